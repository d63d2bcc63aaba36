"""Metrics for thin structures, per picture, on the host: tolerance, course, ranking, width.

On cracks three pixels wide a shift by one pixel costs a quarter of the IoU, so IoU alone
misjudges them (DEFINITIONS says what each of these means).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.integrate import simpson
from scipy.ndimage import distance_transform_edt

from segflax.metrics import ratio
from segflax.skeleton import skeletonize

Mask = Bool[np.ndarray, "h w"]
TOLERANCES = (2, 5)  # pixels
WIDTH_EDGES = (2.5, 4.5, 8.5)  # pixels, between the bins; a line of n pixels is clear of them
LEVELS = 1 << 16

DEFINITIONS = {
  "f1@2px": "harmonic mean of the share of predicted pixels within 2 px (Euclidean) of truth and "
  "of the reverse, mean over pictures; empty truth and prediction count 1",
  "f1@5px": "the same within 5 px",
  "cldice": "harmonic mean of the share of the prediction's skeleton inside truth and of the "
  "truth's skeleton inside the prediction (Shit et al. 2021), mean over pictures; empty and empty "
  "count 1; skeletons by Guo and Hall 1989",
  "ap": "average precision over the pixels of all pictures (scikit-learn's definition), of "
  "probabilities rounded to 1/65535",
}
PAPER_DEFINITIONS = {
  "clipseg.ap": "Simpson's integral of precision over recall at the thresholds .02 to .98, from "
  "counts summed over pictures and prompts, 1 added to every denominator; comparable with the "
  "CLIPSeg paper only",
  "clipseg.fgiou_best": "tp / (1 + tp + fp + fn) of summed counts, at the best of the thresholds "
  ".02 to .98 on the split itself, as the paper has it",
  "clipseg.fgiou_best_t": "the threshold of clipseg.fgiou_best",
  "clipseg.fgiou_0.5": "the same IoU at 0.5",
  "clipseg.biniou_best": "mean of foreground and background IoU of summed counts (1 added to the "
  "denominators), at the best threshold on the split itself",
  "clipseg.biniou_0.5": "the same at 0.5",
}


def _harmonic(a: float, b: float) -> float:
  return 2 * a * b / (a + b) if a + b > 0 else 0.0


def _empty(prediction: Mask, truth: Mask) -> float | None:
  """Returns the score where a mask is empty: 1 if both are, 0 if one is; else None."""
  if prediction.any() and truth.any():
    return None
  return float(prediction.any() == truth.any())


def f1_within(
  prediction: Mask, truth: Mask, tolerances: Sequence[float] = TOLERANCES
) -> dict[float, float]:
  """Returns tolerance in pixels -> F1 of pixels that lie within it of the other mask."""
  empty = _empty(prediction, truth)
  if empty is not None:
    return dict.fromkeys(tolerances, empty)
  to_truth = distance_transform_edt(~truth)[prediction]
  to_prediction = distance_transform_edt(~prediction)[truth]
  return {
    t: _harmonic(float((to_truth <= t).mean()), float((to_prediction <= t).mean()))
    for t in tolerances
  }


def cl_dice(
  prediction: Mask,
  truth: Mask,
  prediction_skeleton: Mask | None = None,
  truth_skeleton: Mask | None = None,
) -> float:
  """Returns the share of each mask's skeleton inside the other mask, as harmonic mean.

  Args:
    prediction: mask of the model.
    truth: mask to compare with.
    prediction_skeleton: made here if None.
    truth_skeleton: made here if None.
  """
  empty = _empty(prediction, truth)
  if empty is not None:
    return empty
  if prediction_skeleton is None:
    prediction_skeleton = skeletonize(prediction)
  if truth_skeleton is None:
    truth_skeleton = skeletonize(truth)
  return _harmonic(
    float(truth[prediction_skeleton].mean()), float(prediction[truth_skeleton].mean())
  )


def width(truth: Mask, skeleton: Mask | None = None) -> float:
  """Returns the mean width in pixels: area over length of the skeleton; NaN without foreground.

  The skeleton ends about half a width short of a line's ends, and a diagonal step counts as one
  pixel of length: good enough to sort pictures into bins.
  """
  if not truth.any():
    return float("nan")
  skeleton = skeletonize(truth) if skeleton is None else skeleton
  return float(truth.sum() / skeleton.sum())


def width_bin(pixels: float) -> str:
  """Returns the name of the bin a width falls into; "none" for NaN."""
  if np.isnan(pixels):
    return "none"
  edges = (0.0, *WIDTH_EDGES)
  index = int(np.searchsorted(WIDTH_EDGES, pixels))
  if index == len(WIDTH_EDGES):
    return f"> {WIDTH_EDGES[-1]:g} px"
  return f"{edges[index]:g} to {edges[index + 1]:g} px"


def width_bins() -> list[str]:
  """Returns the names of all bins, thinnest first."""
  return [width_bin(edge) for edge in (*WIDTH_EDGES, WIDTH_EDGES[-1] + 1)]


def picture_metrics(
  prediction: Mask, truth: Mask, truth_skeleton: Mask | None = None
) -> dict[str, float]:
  """Returns the metrics of one picture and prompt that need its pixels.

  Args:
    prediction: mask of the model.
    truth: mask to compare with.
    truth_skeleton: made here if None; one serves every threshold.
  """
  prediction, truth = np.asarray(prediction) > 0, np.asarray(truth) > 0
  close = {f"f1@{t:g}px": v for t, v in f1_within(prediction, truth).items()}
  return close | {"cldice": cl_dice(prediction, truth, truth_skeleton=truth_skeleton)}


class ScoreHistogram:
  """Pixels by probability and truth: add, merge, and rank them exactly, in constant memory."""

  def __init__(self):
    self.counts = np.zeros((2, LEVELS), np.int64)  # [truth, level]

  def add(self, probability: Float[np.ndarray, "..."], truth: Bool[np.ndarray, "..."]):
    """Counts the pixels of one picture."""
    level = np.rint(np.asarray(probability, np.float64) * (LEVELS - 1)).astype(np.int64)
    for value in (0, 1):
      chosen = level[(np.asarray(truth) > 0) == value]
      self.counts[value] += np.bincount(chosen, minlength=LEVELS)

  def merge(self, other: "ScoreHistogram"):
    """Adds the pixels of another process."""
    self.counts += other.counts

  def average_precision(self) -> float:
    """Returns the sum of precision x gain in recall over levels; NaN without any foreground."""
    negative, positive = self.counts[:, ::-1]
    if not positive.sum():
      return float("nan")
    tp, fp = np.cumsum(positive), np.cumsum(negative)
    return float(np.sum(ratio(tp, tp + fp, 0) * positive) / positive.sum())


def paper_metrics(
  counts: Int[np.ndarray, "rows t 4"], thresholds: Float[np.ndarray, " t"]
) -> dict[str, float]:
  """The CLIPSeg paper's metrics, under their own names (Lüddecke and Ecker 2022, metrics.py).

  49 thresholds, 1 added to every denominator, AP as Simpson's integral over the curve's distinct
  points sorted by recall. Comparable with the paper only.

  Args:
    counts: (tp, fp, fn, tn) per picture and threshold.
    thresholds: 0.02 to 0.98.

  Returns:
    `clipseg.` name -> value; an AP of NaN where the curve has fewer than two points.
  """
  tp, fp, fn, tn = counts.sum(0).astype(np.float64).T
  foreground = tp / (1 + tp + fp + fn)
  both = 0.5 * foreground + 0.5 * tn / (1 + tn + fn + fp)
  half = int(np.argmin(np.abs(thresholds - 0.5)))
  predicted = tp + fp > 0
  precision, recall = (tp / (1 + tp + fp))[predicted], (tp / (1 + tp + fn))[predicted]
  # Python's stable sort of a set leaves equal recalls in no order; by precision is one of them.
  curve = sorted(set(zip(recall.tolist(), precision.tolist(), strict=True)))
  ap = simpson([p for _, p in curve], x=[r for r, _ in curve]) if len(curve) > 1 else float("nan")
  return {
    "clipseg.ap": float(ap),
    "clipseg.fgiou_best": float(foreground.max()),
    "clipseg.fgiou_best_t": float(thresholds[np.argmax(foreground)]),
    "clipseg.fgiou_0.5": float(foreground[half]),
    "clipseg.biniou_best": float(both.max()),
    "clipseg.biniou_0.5": float(both[half]),
  }
