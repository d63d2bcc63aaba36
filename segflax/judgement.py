"""What may be concluded from metrics: intervals, differences between runs, suspicions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from segflax.metrics import Rows, iou_rows, ratio

CONFIDENCE = 0.95
SAMPLES = 4000


class Interval(NamedTuple):
  """A mean and the limits between which it lies with 95 % confidence."""

  mean: float
  low: float
  high: float


def bootstrap(
  values: Float[np.ndarray, "n *m"], samples: int = SAMPLES, seed: int = 0
) -> list[Interval] | Interval:
  """Percentile bootstrap of the mean over pictures (Efron 1979); columns share the draws.

  Args:
    values: one row per picture; NaN where a picture says nothing.
    samples: how often the pictures are drawn anew.
    seed: of the draws.

  Returns:
    One Interval per column, or one for a vector; all NaN where no picture says anything.
  """
  values = np.asarray(values, np.float64)
  columns = values[:, None] if values.ndim == 1 else values
  known = ~np.isnan(columns)
  intervals = bootstrap_ratio(np.where(known, columns, 0), known, samples, seed)
  return intervals[0] if values.ndim == 1 else intervals


def bootstrap_ratio(
  above: Float[np.ndarray, "n m"],
  below: Float[np.ndarray, "n m"],
  samples: int = SAMPLES,
  seed: int = 0,
) -> list[Interval]:
  """Percentile bootstrap of sum(above) / sum(below) over pictures; columns share the draws.

  Args:
    above: what each picture adds to the numerator of each column.
    below: and to its denominator.
    samples: how often the pictures are drawn anew.
    seed: of the draws.

  Returns:
    One Interval per column; all NaN where the denominator is 0.
  """
  above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
  n, rng = len(above), np.random.default_rng(seed)
  ratios = []
  step = max(1, 2_000_000 // max(n, 1))  # draws in memory at once
  for start in range(0, samples if n else 0, step):
    rows = min(step, samples - start)
    # How often each picture is drawn, counted for `rows` draws at once.
    draws = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
    # float64, because NumPy multiplies matrices of integers without BLAS: ten times slower.
    weights = np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
    ratios.append(ratio(weights @ above, weights @ below, np.nan))
  intervals = []
  tail = (1 - CONFIDENCE) / 2
  means = ratio(above.sum(0), below.sum(0), np.nan)
  for column, mean in enumerate(means):
    drawn = np.concatenate([r[:, column] for r in ratios]) if ratios else np.empty(0)
    drawn = drawn[~np.isnan(drawn)]
    limits = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
    intervals.append(Interval(float(mean), *map(float, limits)))
  return intervals


class Difference(NamedTuple):
  """How two runs differ in IoU on the pictures that both have judged."""

  verdict: str
  interval: Interval  # first minus second
  pictures: int


def compare(first: Rows, second: Rows) -> Difference:
  """Paired bootstrap of the IoU per picture, averaged over the prompts both were asked.

  The interval speaks of other pictures, not of other seeds of training.
  """
  (difference,) = compare_pairs([(first, second)])
  return difference


def compare_pairs(pairs: Sequence[tuple[Rows, Rows]]) -> list[Difference]:
  """Compares the runs of each pair as `compare` does; pairs that judged the same share the draws.

  Each interval is at 95 % by itself: of many pairs of equal runs one in twenty shows a difference.
  """
  # Identity, because rows are large and have no hash: each run is laid out once, not per pair.
  layouts = {id(rows): _layout(rows) for pair in pairs for rows in pair}
  found: list[Difference | None] = [None] * len(pairs)
  alike: dict[int, list[tuple[int, np.ndarray]]] = {}
  for number, (first, second) in enumerate(pairs):
    values = _differences(layouts[id(first)], layouts[id(second)])
    if isinstance(values, str):
      nothing = Interval(np.nan, np.nan, np.nan)
      found[number] = Difference(f"not comparable: no {values} in common", nothing, 0)
    else:
      alike.setdefault(len(values), []).append((number, values))
  for members in alike.values():
    intervals = bootstrap(np.stack([values for _, values in members], -1))
    for (number, values), interval in zip(members, intervals, strict=True):
      found[number] = Difference(_verdict(interval), interval, len(values))
  return found


class _Layout(NamedTuple):
  """A run's IoU by name: prompt -> column, image id -> row of `iou`."""

  columns: dict[str, int]
  pictures: dict[str, int]
  iou: np.ndarray


def _layout(rows: Rows) -> _Layout:
  numbered = lambda names: {name: k for k, name in enumerate(names)}  # noqa: E731
  return _Layout(numbered(rows.prompts), numbered(rows.image_ids), iou_rows(rows))


def _differences(first: _Layout, second: _Layout) -> np.ndarray | str:
  """Returns per picture that both judged first minus second; or what they have not in common."""
  prompts = [p for p in first.columns if p in second.columns]
  ids = [i for i in first.pictures if i in second.pictures]
  if not prompts or not ids:
    return "picture" if prompts else "prompt"
  one, two = (
    each.iou[np.ix_([each.pictures[i] for i in ids], [each.columns[p] for p in prompts])]
    for each in (first, second)
  )
  difference = one - two  # NaN where either truth is unknown
  known = ~np.isnan(difference)
  pictures = known.any(1)
  return np.where(known, difference, 0).sum(1)[pictures] / known.sum(1)[pictures]


def _verdict(interval: Interval) -> str:
  if interval.low > 0:
    return "first better"
  return "second better" if interval.high < 0 else "no difference shown"


def suspicions(metrics: Mapping[str, float | None], prefix: str = "") -> list[str]:
  """Names what a good average can hide.

  Args:
    metrics: of metrics.compute, maybe read from JSON (None for NaN).
    prefix: of the names in `metrics`, for example "val_".

  Returns:
    One sentence per suspicion.
  """

  def value(name: str) -> float:
    number = metrics.get(prefix + name)
    return float("nan") if number is None else number

  found = []
  overlap, goal = value("prompt_overlap"), value("truth_overlap")
  if overlap > 0.5 and not overlap < 2 * goal:
    truths = "unknown" if np.isnan(goal) else f"at {goal:.2f}"
    found.append(
      f"ignores its prompt: the masks of different concepts overlap at {overlap:.2f}, "
      f"their truths {truths}"
    )
  area, truth = value("predicted_area"), value("truth_area")
  if area > 0.9 and truth < 0.5:
    found.append(f"masks everything: {area:.0%} of the pixels, the truth {truth:.0%}")
  if area < 0.02 * truth:
    found.append(f"masks almost nothing: {area:.2%} of the pixels, the truth {truth:.2%}")
  if value("empty_fp_rate") > 0.5:
    found.append(
      f"false alarms on {value('empty_fp_rate'):.0%} of the pictures that have nothing to find"
    )
  return found
