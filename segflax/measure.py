"""Measures predictions at the pictures' own size on the host: what a script can afford.

Training counts on the device (counts.py); here every picture is also skeletonised, its pixels
ranked, its distances taken.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from segflax import metrics, metrics_thin
from segflax.counts import THRESHOLDS

PIXEL_METRICS = ("f1@2px", "f1@5px", "cldice")


def threshold_counts(
  probability: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]
) -> Int[np.ndarray, "t 4"]:
  """Returns (tp, fp, fn, tn) at every threshold of counts.THRESHOLDS, as the device does."""
  levels = np.asarray(THRESHOLDS, np.float32)
  # The number of thresholds a pixel exceeds; a histogram of it gives all of them at once.
  exceeded = np.searchsorted(levels, np.asarray(probability, np.float32).ravel(), side="left")
  truth = truth.ravel()
  above = []
  for value in (True, False):
    histogram = np.bincount(exceeded[truth == value], minlength=len(levels) + 1)
    above.append(histogram[::-1].cumsum()[::-1][1:])
  tp, fp = above
  return np.stack([tp, fp, truth.sum() - tp, (~truth).sum() - fp], -1)


def pair_counts(
  prediction: Bool[np.ndarray, "q h w"], truth: Bool[np.ndarray, "q h w"]
) -> Int[np.ndarray, "q q 3 2"]:
  """Returns (intersection, union) of prompts' masks and truths, as counts.pair_counts does."""
  p, t = (m.reshape(len(m), -1).astype(np.float64) for m in (prediction, truth))
  both = np.stack([p @ p.T, p @ t.T, t @ t.T], -1)
  area_p, area_t = p.sum(1), t.sum(1)
  sums = [a[:, None] + b for a, b in ((area_p, area_p), (area_p, area_t), (area_t, area_t))]
  return np.stack([both, np.stack(sums, -1) - both], -1).astype(np.int64)


class Measured(NamedTuple):
  """What a pass over a split found.

  Attributes:
    rows: of metrics.compute.
    thin: threshold name -> metric -> float [n q]; NaN where the truth is unknown.
    width: float [n q], of the truth in pixels; NaN where it is empty or unknown.
    histograms: per prompt, the pixels whose truth is known.
  """

  rows: metrics.Rows
  thin: dict[str, dict[str, np.ndarray]]
  width: np.ndarray
  histograms: list[metrics_thin.ScoreHistogram]

  def average_precision(self, prompts: Sequence[str]) -> float:
    """Returns `ap` over the pixels of some prompts."""
    joined = metrics_thin.ScoreHistogram()
    for prompt, histogram in zip(self.rows.prompts, self.histograms, strict=True):
      if prompt in prompts:
        joined.merge(histogram)
    return joined.average_precision()


class Measure:
  """Collects measurements picture by picture.

  Args:
    prompts: those asked.
    concepts: the concept of each prompt.
    thresholds: name -> threshold for all prompts or per prompt, for the thin-structure metrics;
      none: only counts are kept, which is all that fitting thresholds needs.
  """

  def __init__(
    self,
    prompts: Sequence[str],
    concepts: Sequence[str],
    thresholds: Mapping[str, float | Mapping[str, float]],
  ):
    self.prompts, self.concepts, self.thresholds = list(prompts), list(concepts), thresholds
    self._image_ids, self._sources, self._known = [], [], []
    self._counts, self._pairs, self._width = [], [], []
    self._thin = {name: {m: [] for m in PIXEL_METRICS} for name in thresholds}
    self._histograms = [metrics_thin.ScoreHistogram() for _ in prompts]

  def add(
    self,
    image_id: str,
    source: str,
    probability: Mapping[str, Float[np.ndarray, "h w"]],
    truth: Mapping[str, Bool[np.ndarray, "h w"]],
  ):
    """Measures one picture.

    Args:
      image_id: its name.
      source: the data set it came from.
      probability: prompt -> map of the picture's size.
      truth: concept -> mask; a concept that is missing is unknown.
    """
    maps = np.stack([probability[prompt] for prompt in self.prompts])
    nothing = np.zeros(maps.shape[1:], bool)
    truths = np.stack([truth.get(concept, nothing) for concept in self.concepts])
    known = np.array([concept in truth for concept in self.concepts])
    self._image_ids.append(image_id)
    self._sources.append(source)
    self._known.append(known)
    self._counts.append([threshold_counts(p, t) for p, t in zip(maps, truths, strict=True)])
    self._pairs.append(pair_counts(maps > 0.5, truths))
    if self.thresholds:
      self._measure_shapes(maps, truths, known)

  def _measure_shapes(self, maps: np.ndarray, truths: np.ndarray, known: np.ndarray):
    widths = []
    for column, prompt in enumerate(self.prompts):
      unknown = dict.fromkeys((*PIXEL_METRICS, "width"), np.nan)
      if known[column]:
        self._histograms[column].add(maps[column], truths[column])
      for name, threshold in self.thresholds.items():
        level = threshold[prompt] if isinstance(threshold, Mapping) else threshold
        found = unknown
        if known[column]:
          found = metrics_thin.picture_metrics(maps[column] > level, truths[column])
        for metric in PIXEL_METRICS:
          self._thin[name][metric].append(found[metric])
      widths.append(found["width"])
    self._width.append(widths)

  def result(self) -> Measured:
    """Returns what has been measured so far."""
    shape = len(self._image_ids), len(self.prompts)
    rows = metrics.Rows(
      prompts=self.prompts,
      concepts=self.concepts,
      image_ids=list(self._image_ids),
      sources=list(self._sources),
      thresholds=np.asarray(THRESHOLDS),
      threshold=0.5,
      counts=np.asarray(self._counts),
      pairs=np.asarray(self._pairs),
      known=np.asarray(self._known),
    )
    thin = {
      name: {metric: np.reshape(values, shape) for metric, values in columns.items()}
      for name, columns in self._thin.items()
    }
    width = np.asarray(self._width) if self._width else np.full(shape, np.nan)
    return Measured(rows, thin, width, self._histograms)


def report(measured: Measured, name: str, threshold: float | Mapping[str, float]) -> dict:
  """Returns every metric at one threshold: overall, per prompt, concept and data set, by width."""
  rows, thin = measured.rows, measured.thin[name]

  def group(pictures: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
    chosen = np.isin(rows.prompts, prompts)
    shapes = {m: metrics.mean(values[pictures][:, chosen]) for m, values in thin.items()}
    return metrics.compute(rows.pictures(pictures), threshold, prompts) | shapes

  every = np.ones(len(rows.image_ids), bool)
  sources, concepts = np.asarray(rows.sources), np.asarray(rows.concepts)
  of_concept = {c: [p for p, k in zip(rows.prompts, concepts, strict=True) if k == c]
                for c in dict.fromkeys(rows.concepts)}  # fmt: skip
  with_ap = lambda values, prompts: values | {"ap": measured.average_precision(prompts)}  # noqa: E731
  iou = metrics.iou_rows(rows, threshold)
  return {
    "overall": with_ap(group(every, rows.prompts), rows.prompts),
    "per_prompt": {p: with_ap(group(every, [p]), [p]) for p in rows.prompts},
    "per_concept": {c: with_ap(group(every, ps), ps) for c, ps in of_concept.items()},
    "per_source": {str(s): group(sources == s, rows.prompts) for s in np.unique(sources)},
    "by_width": {
      prompt: metrics_thin.by_width(
        measured.width[:, column],
        {"iou": iou[:, column]} | {m: values[:, column] for m, values in thin.items()},
      )
      for column, prompt in enumerate(rows.prompts)
    },
  }


def confusion(rows: metrics.Rows, threshold: float | Mapping[str, float]) -> dict:
  """Returns what is taken for what.

  Returns:
    pixels: prompt -> tp, fp, fn, tn summed over pictures.
    pictures: prompt -> of the pictures that have the concept and of those that have not, how many
      got any foreground.
    marked: prompt -> concept -> share of the pixels that the prompt marks (at `rows.threshold`)
      that lie in the concept's truth, over the pictures where that truth is known.
  """
  counts = metrics.counts_at(rows, threshold)
  pixels, pictures, marked = {}, {}, {}
  for column, prompt in enumerate(rows.prompts):
    tp, fp, fn, _ = own = counts[rows.known[:, column], column].T
    pixels[prompt] = dict(zip(("tp", "fp", "fn", "tn"), own.sum(1).tolist(), strict=True))
    present, fired = (tp + fn) > 0, (tp + fp) > 0
    pictures[prompt] = {
      "there and marked": int((present & fired).sum()),
      "there and missed": int((present & ~fired).sum()),
      "not there but marked": int((~present & fired).sum()),
      "not there, not marked": int((~present & ~fired).sum()),
    }
    marked[prompt] = {}
    for other, concept in enumerate(rows.concepts):
      known = rows.known[:, other]
      inside = rows.pairs[known, column, other, 1, 0].sum()
      area = rows.pairs[known, column, column, 0, 0].sum()
      marked[prompt][concept] = float(metrics.ratio(inside, area, np.nan))
  return {"pixels": pixels, "pictures": pictures, "marked": marked}
