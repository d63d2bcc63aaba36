"""What may be concluded from metrics: intervals, differences between runs, suspicions."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from segflax.metrics import Rows, iou_rows

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
  filled = np.where(known, columns, 0)
  n, rng = len(values), np.random.default_rng(seed)
  means = []
  step = max(1, 2_000_000 // max(n, 1))  # draws in memory at once
  for start in range(0, samples if n else 0, step):
    rows = min(step, samples - start)
    # How often each picture is drawn, counted for `rows` draws at once.
    draws = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
    weights = np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n)
    total, number = weights @ filled, weights @ known.astype(np.float64)
    means.append(np.where(number > 0, total / np.maximum(number, 1), np.nan))
  intervals = []
  tail = (1 - CONFIDENCE) / 2
  for column in range(columns.shape[1]):
    drawn = np.concatenate([m[:, column] for m in means]) if means else np.empty(0)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
      intervals.append(Interval(np.nan, np.nan, np.nan))
      continue
    low, high = np.quantile(drawn, [tail, 1 - tail])
    mean = filled[:, column].sum() / known[:, column].sum()
    intervals.append(Interval(float(mean), float(low), float(high)))
  return intervals[0] if values.ndim == 1 else intervals


class Difference(NamedTuple):
  """How two runs differ in IoU on the pictures that both have judged."""

  verdict: str
  interval: Interval  # first minus second
  pictures: int


def compare(first: Rows, second: Rows) -> Difference:
  """Paired bootstrap of the IoU per picture, averaged over the prompts both were asked.

  The interval speaks of other pictures, not of other seeds of training.
  """
  prompts = [p for p in first.prompts if p in second.prompts]
  ids = [i for i in first.image_ids if i in set(second.image_ids)]
  if not prompts or not ids:
    missing = "prompt" if not prompts else "picture"
    nothing = Interval(np.nan, np.nan, np.nan)
    return Difference(f"not comparable: no {missing} in common", nothing, 0)

  def table(rows: Rows) -> np.ndarray:
    where = {image_id: row for row, image_id in enumerate(rows.image_ids)}
    columns = [list(rows.prompts).index(p) for p in prompts]
    return iou_rows(rows)[[where[i] for i in ids]][:, columns]

  difference = table(first) - table(second)  # NaN where either truth is unknown
  known = ~np.isnan(difference)
  pictures = known.any(1)
  total = np.where(known, difference, 0).sum(1)[pictures]
  interval = bootstrap(total / known.sum(1)[pictures])
  if interval.low > 0:
    verdict = "first better"
  elif interval.high < 0:
    verdict = "second better"
  else:
    verdict = "no difference shown"
  return Difference(verdict, interval, int(pictures.sum()))


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
