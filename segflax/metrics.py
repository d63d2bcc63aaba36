"""Metrics from rows of counts: one row per picture and prompt, every ratio in float64 on the host.

Definitions (a metric without its definition says nothing) are in DEFINITIONS. Rows of several
processes are joined before any ratio is made; padding never becomes a row. NumPy only: scripts
that read results do not start JAX.
"""

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segflax.errors import UserError

DEFINITIONS = {
  "iou": "mean over pictures of tp / (tp + fp + fn); empty truth and prediction count 1",
  "dice": "mean over pictures of 2 tp / (2 tp + fp + fn); empty truth and prediction count 1",
  "pixel_accuracy": "mean over pictures of (tp + tn) / all",
  "iou_fg": "iou over the pictures whose truth is not empty",
  "iou_global": "tp / (tp + fp + fn) of counts summed over pictures",
  "dice_global": "2 tp / (2 tp + fp + fn) of counts summed over pictures",
  "miou_2c": "mean of foreground and background IoU of counts summed over pictures",
  "empty_fp_rate": "of the pictures with empty truth, the share with any foreground",
  "empty_fp_area": "mean share of foreground over the pictures with empty truth",
  "predicted_area": "mean share of foreground in the predictions",
  "truth_area": "mean share of foreground in the truths",
  "prompt_overlap": "mean IoU of the masks of two concepts' prompts on one picture, where either "
  "is not empty; truth_overlap is the goal, 1 means that the prompt is ignored",
  "truth_overlap": "the same of the truths",
  "wrong_prompt_iou": "mean IoU of a prompt's mask with another concept's truth, where that truth "
  "is not empty",
  "synonym_agreement": "mean IoU of the masks of two prompts of one concept on one picture, where "
  "either is not empty",
}
# No value of these is the best: a model that marks nothing has the least overlap and wrong IoU.
NO_DIRECTION = (
  "predicted_area",
  "truth_area",
  "prompt_overlap",
  "truth_overlap",
  "wrong_prompt_iou",
)
LOWER_IS_BETTER = ("loss", "empty_fp_rate", "empty_fp_area")
BETWEEN_MASKS = ("prompt_overlap", "wrong_prompt_iou", "synonym_agreement")  # need Rows.pairs


@dataclasses.dataclass(frozen=True)
class Rows:
  """What an evaluation leaves behind: n pictures, q prompts, t thresholds.

  Attributes:
    prompts: q prompt strings.
    concepts: q names, the concept of each prompt.
    image_ids: n names.
    sources: n names, the data set each picture came from.
    thresholds: float64 [t], those of `counts`.
    threshold: that of `pairs`: one of `thresholds` for all prompts, or prompt -> one of them.
    counts: int [n q t 4], (tp, fp, fn, tn) of `counts.threshold_counts`.
    pairs: int [n q q 3 2], of `counts.pair_counts`.
    known: bool [n q], whether the truth of the prompt's concept is known.
  """

  prompts: Sequence[str]
  concepts: Sequence[str]
  image_ids: Sequence[str]
  sources: Sequence[str]
  thresholds: np.ndarray
  threshold: float | Mapping[str, float]
  counts: np.ndarray
  pairs: np.ndarray
  known: np.ndarray

  def __post_init__(self):
    n, q, t = len(self.image_ids), len(self.prompts), len(self.thresholds)
    shapes = {
      "concepts": (np.shape(self.concepts), (q,)),
      "sources": (np.shape(self.sources), (n,)),
      "counts": (self.counts.shape, (n, q, t, 4)),
      "pairs": (self.pairs.shape, (n, q, q, 3, 2)),
      "known": (self.known.shape, (n, q)),
    }
    for name, (shape, expected) in shapes.items():
      if tuple(shape) != expected:
        raise ValueError(f"{name} has shape {tuple(shape)}, not {expected} = (pictures, prompts …)")
    counts_at(self)  # Raises where `threshold` was not counted.

  def threshold_index(self, threshold: float) -> int:
    """Returns where a threshold stands in `thresholds`."""
    match = np.flatnonzero(np.isclose(self.thresholds, threshold, rtol=0, atol=1e-6))
    if not len(match):
      raise UserError(
        f"threshold {threshold} was not counted; counted: "
        f"{', '.join(f'{t:g}' for t in self.thresholds)}"
      )
    return int(match[0])

  def pictures(self, chosen: np.ndarray | Sequence[int]) -> "Rows":
    """Returns the rows of some pictures; `chosen` is a mask or indices."""
    index = np.arange(len(self.image_ids))[np.asarray(chosen)]
    return dataclasses.replace(
      self,
      image_ids=[self.image_ids[i] for i in index],
      sources=[self.sources[i] for i in index],
      counts=self.counts[index],
      pairs=self.pairs[index],
      known=self.known[index],
    )

  def save(self, path: Path) -> None:
    """Writes an .npz without pickled objects."""
    columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    for name in ("prompts", "concepts", "image_ids", "sources"):
      columns[name] = np.asarray(columns[name], dtype=np.str_)
    if isinstance(self.threshold, Mapping):
      columns["threshold"] = np.asarray([self.threshold[prompt] for prompt in self.prompts])
    path = Path(path)
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **columns)
    temporary.replace(path)

  @classmethod
  def load(cls, path: Path) -> "Rows":
    """Reads what `save` wrote.

    Raises:
      UserError: the file is missing or is none of `save`'s.
    """
    try:
      with np.load(path, allow_pickle=False) as columns:
        content = {f.name: columns[f.name] for f in dataclasses.fields(cls)}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
      raise UserError(f"{path} holds no rows of an evaluation ({error}); evaluate again") from error
    for name in ("prompts", "concepts", "image_ids", "sources"):
      content[name] = content[name].tolist()
    threshold = content["threshold"].tolist()
    if isinstance(threshold, list):
      threshold = dict(zip(content["prompts"], threshold, strict=True))
    return cls(**{**content, "threshold": threshold})


def ratio(
  numerator: np.ndarray | np.number, denominator: np.ndarray | np.number, empty: float
) -> np.ndarray:
  """Returns numerator / denominator in float64, `empty` where the denominator is 0."""
  numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
  return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), empty)


def mean(values: np.ndarray) -> float:
  """Returns the mean of what is not NaN; NaN of nothing."""
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else float("nan")


def counts_at(rows: Rows, threshold: float | Mapping[str, float] | None = None) -> np.ndarray:
  """Returns int64 [n q 4], the counts at one threshold or at one per prompt."""
  index = _levels(rows, rows.threshold if threshold is None else threshold)
  return rows.counts[:, np.arange(len(index)), index].astype(np.int64)


def _levels(rows: Rows, threshold: float | Mapping[str, float]) -> list[int]:
  """Returns per prompt where its threshold stands in `rows.thresholds`."""
  if not isinstance(threshold, Mapping):
    threshold = dict.fromkeys(rows.prompts, threshold)
  return [rows.threshold_index(threshold[prompt]) for prompt in rows.prompts]


def iou_rows(rows: Rows, threshold: float | Mapping[str, float] | None = None) -> np.ndarray:
  """Returns float64 [n q], the IoU per picture and prompt; NaN where the truth is unknown."""
  tp, fp, fn, _ = np.moveaxis(counts_at(rows, threshold), -1, 0)
  return np.where(rows.known, ratio(tp, tp + fp + fn, 1), np.nan)


def from_counts(counts: np.ndarray) -> dict[str, float]:
  """Computes the metrics that need one prompt's counts only.

  Args:
    counts: int [rows 4], (tp, fp, fn, tn).

  Returns:
    metric name -> value in [0, 1]; NaN where no row qualifies.
  """
  counts = np.asarray(counts, np.int64).reshape(-1, 4)
  tp, fp, fn, tn = counts.T
  every = tp + fp + fn + tn
  empty = (tp + fn) == 0
  iou = ratio(tp, tp + fp + fn, 1)
  total_tp, total_fp, total_fn, total_tn = counts.sum(0)
  wrong = total_fp + total_fn
  # Without any row there is nothing to judge, which differs from judging empty pictures.
  nothing = 1.0 if len(counts) else float("nan")
  iou_global = float(ratio(total_tp, total_tp + wrong, nothing))
  return {
    "iou": mean(iou),
    "dice": mean(ratio(2 * tp, 2 * tp + fp + fn, 1)),
    "pixel_accuracy": mean(ratio(tp + tn, every, np.nan)),
    "iou_fg": mean(iou[~empty]),
    "iou_global": iou_global,
    "dice_global": float(ratio(2 * total_tp, 2 * total_tp + wrong, nothing)),
    "miou_2c": (iou_global + float(ratio(total_tn, total_tn + wrong, nothing))) / 2,
    "empty_fp_rate": mean((fp > 0)[empty]),
    "empty_fp_area": mean(ratio(fp, every, np.nan)[empty]),
    "predicted_area": mean(ratio(tp + fp, every, np.nan)),
    "truth_area": mean(ratio(tp + fn, every, np.nan)),
  }


def from_pairs(rows: Rows, prompts: Sequence[str]) -> dict[str, float]:
  """Computes how far `prompts` are told from all the others, at `rows.threshold`."""
  return {name: mean(values) for name, values in _pair_values(rows, prompts).items()}


def _pair_values(rows: Rows, prompts: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns metric -> float64 [n k], a column per pair of prompts; NaN where it says nothing."""
  concepts = np.asarray(rows.concepts)
  chosen = np.isin(rows.prompts, prompts)
  other = chosen[:, None] & (concepts[:, None] != concepts)
  synonym = chosen[:, None] & (concepts[:, None] == concepts) & ~np.eye(len(chosen), dtype=bool)
  # Intersection over union, NaN where both masks are empty: nothing is confused there.
  iou = ratio(rows.pairs[..., 0], rows.pairs[..., 1], np.nan)
  own_known, their_known = rows.known[:, :, None], rows.known[:, None, :]
  themselves = np.arange(len(chosen))
  truth_area = rows.pairs[:, themselves, themselves, 2, 1]  # union of a truth with itself
  their_truth = their_known & (truth_area > 0)[:, None, :]
  return {
    "prompt_overlap": iou[:, other, 0],
    "truth_overlap": np.where(own_known & their_known, iou[..., 2], np.nan)[:, other],
    "wrong_prompt_iou": np.where(their_truth, iou[..., 1], np.nan)[:, other],
    "synonym_agreement": iou[:, synonym, 0],
  }


def ratio_parts(rows: Rows, prompts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Splits metrics at `rows.threshold` into what each picture adds above and below the line.

  Returns:
    metric name -> (numerator, denominator), float64 [n] each: the metric is the sum of the one
    over the sum of the other. `miou_2c`, a mean of two ratios, is not among them.
  """
  chosen = np.isin(rows.prompts, prompts)
  known = rows.known[:, chosen]
  tp, fp, fn, tn = np.moveaxis(counts_at(rows)[:, chosen], -1, 0)
  every, empty = tp + fp + fn + tn, tp + fn == 0
  iou = ratio(tp, tp + fp + fn, 1)
  means = {
    "iou": (iou, known),
    "dice": (ratio(2 * tp, 2 * tp + fp + fn, 1), known),
    "pixel_accuracy": (ratio(tp + tn, every, 0), known),
    "iou_fg": (iou, known & ~empty),
    "empty_fp_rate": (fp > 0, known & empty),
    "empty_fp_area": (ratio(fp, every, 0), known & empty),
    "predicted_area": (ratio(tp + fp, every, 0), known),
    "truth_area": (ratio(tp + fn, every, 0), known),
  }
  parts = {name: ((v * where).sum(1), where.sum(1)) for name, (v, where) in means.items()}
  total = lambda values: (values * known).sum(1)  # noqa: E731
  parts["iou_global"] = total(tp), total(tp + fp + fn)
  parts["dice_global"] = total(2 * tp), total(2 * tp + fp + fn)
  for name, values in _pair_values(rows, prompts).items():
    parts[name] = np.nansum(values, 1), (~np.isnan(values)).sum(1)
  return {name: tuple(np.asarray(v, np.float64) for v in part) for name, part in parts.items()}


def compute(
  rows: Rows,
  threshold: float | Mapping[str, float] | None = None,
  prompts: Sequence[str] | None = None,
) -> dict[str, float]:
  """Computes every metric of DEFINITIONS.

  Args:
    rows: of one evaluation.
    threshold: one for all or one per prompt; `rows.threshold` by default.
    prompts: those to judge; all by default.

  Returns:
    metric name -> value in [0, 1]; NaN where there is nothing to judge, and of BETWEEN_MASKS at
    any threshold but `rows.threshold`, at which alone they were counted.
  """
  prompts = list(rows.prompts) if prompts is None else list(prompts)
  chosen = np.isin(rows.prompts, prompts)
  counts = counts_at(rows, threshold)[:, chosen][rows.known[:, chosen]]
  between = from_pairs(rows, prompts)
  if threshold is not None and _levels(rows, threshold) != _levels(rows, rows.threshold):
    between |= dict.fromkeys(BETWEEN_MASKS, float("nan"))
  return from_counts(counts) | between


def per_prompt(rows: Rows, threshold=None) -> dict[str, dict[str, float]]:
  """Returns prompt -> metrics."""
  return {prompt: compute(rows, threshold, [prompt]) for prompt in rows.prompts}


def fit_thresholds(rows: Rows) -> dict[str, float]:
  """Chooses the threshold of each prompt that has the highest `iou`; on validation rows only.

  Returns:
    prompt -> threshold; of equally good ones the nearest to 0.5, and 0.5's nearest where the
    prompt's truth is never known.
  """
  tp, fp, fn, _ = np.moveaxis(rows.counts.astype(np.int64), -1, 0)  # each [n q t]
  iou = ratio(tp, tp + fp + fn, 1)
  order = np.argsort(np.abs(rows.thresholds - 0.5), kind="stable")
  best = {}
  for column, prompt in enumerate(rows.prompts):
    judged = iou[rows.known[:, column], column]
    means = judged.mean(0)[order] if len(judged) else np.zeros(len(order))
    best[prompt] = float(rows.thresholds[order[int(np.argmax(means))]])
  return best
