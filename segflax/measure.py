"""Measures predictions at the pictures' own size on the host: what a script can afford.

Training counts on the device (counts.py); here every picture is also skeletonised, its pixels
ranked, its distances taken.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from segflax import judgement, metrics, metrics_thin
from segflax.counts import THRESHOLDS
from segflax.skeleton import skeletonize

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
    rows: name of a threshold -> of metrics.compute, with the pairs counted at that threshold.
    thin: name of a threshold -> metric -> float [n q]; NaN where the truth is unknown.
    width: float [n q], of the truth in pixels; NaN where it is empty or unknown.
    histograms: data set -> per prompt, the pixels whose truth is known.
  """

  rows: dict[str, metrics.Rows]
  thin: dict[str, dict[str, np.ndarray]]
  width: np.ndarray
  histograms: dict[str, list[metrics_thin.ScoreHistogram]]

  def average_precision(self, prompts: Sequence[str], source: str | None = None) -> float:
    """Returns `ap` over the pixels of some prompts, of one data set or of all."""
    joined = metrics_thin.ScoreHistogram()
    asked = next(iter(self.rows.values())).prompts
    for name, histograms in self.histograms.items():
      for prompt, histogram in zip(asked, histograms, strict=True):
        if prompt in prompts and source in (None, name):
          joined.merge(histogram)
    return joined.average_precision()


class Measure:
  """Collects measurements picture by picture.

  Args:
    prompts: those asked.
    concepts: the concept of each prompt.
    thresholds: name -> threshold for all prompts or per prompt, for what the counts at all
      thresholds do not tell: the shapes, and how the masks of two prompts agree.
    shapes: measure them; fitting thresholds does not need it.
  """

  def __init__(
    self,
    prompts: Sequence[str],
    concepts: Sequence[str],
    thresholds: Mapping[str, float | Mapping[str, float]],
    *,
    shapes: bool = True,
  ):
    self.prompts, self.concepts, self.thresholds = list(prompts), list(concepts), thresholds
    self._shapes = shapes
    # float32, as the counts compare.
    self._levels = {
      name: np.float32([t[p] if isinstance(t, Mapping) else t for p in prompts])
      for name, t in thresholds.items()
    }
    self._image_ids, self._sources, self._known = [], [], []
    self._counts, self._width = [], []
    self._pairs = {name: [] for name in thresholds}
    self._thin = {name: {m: [] for m in PIXEL_METRICS} for name in thresholds}
    self._histograms = {}

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
    for name, levels in self._levels.items():
      self._pairs[name].append(pair_counts(maps > levels[:, None, None], truths))
    if self._shapes:
      self._measure_shapes(source, maps, truths, known)

  def _measure_shapes(self, source: str, maps: np.ndarray, truths: np.ndarray, known: np.ndarray):
    if source not in self._histograms:
      self._histograms[source] = [metrics_thin.ScoreHistogram() for _ in self.prompts]
    widths = np.full(len(self.prompts), np.nan)
    for column in range(len(self.prompts)):
      truth, skeleton = truths[column], None
      if known[column]:
        self._histograms[source][column].add(maps[column], truth)
        # The slowest part by far, and the same at every threshold.
        skeleton = skeletonize(truth)
        widths[column] = metrics_thin.width(truth, skeleton)
      for name, levels in self._levels.items():
        found = dict.fromkeys(PIXEL_METRICS, np.nan)
        if known[column]:
          found = metrics_thin.picture_metrics(maps[column] > levels[column], truth, skeleton)
        for metric in PIXEL_METRICS:
          self._thin[name][metric].append(found[metric])
    self._width.append(widths)

  def result(self) -> Measured:
    """Returns what has been measured so far."""
    shape = len(self._image_ids), len(self.prompts)
    rows = {
      name: metrics.Rows(
        prompts=self.prompts,
        concepts=self.concepts,
        image_ids=list(self._image_ids),
        sources=list(self._sources),
        thresholds=np.asarray(THRESHOLDS),
        threshold=threshold,
        counts=np.asarray(self._counts),
        pairs=np.asarray(self._pairs[name]),
        known=np.asarray(self._known),
      )
      for name, threshold in self.thresholds.items()
    }
    thin = {
      name: {metric: np.reshape(values, shape) for metric, values in columns.items()}
      for name, columns in self._thin.items()
      if self._shapes
    }
    width = np.asarray(self._width) if self._width else np.full(shape, np.nan)
    return Measured(rows, thin, width, self._histograms)


def report(measured: Measured, name: str) -> dict:
  """Returns every metric at one threshold: overall, per prompt, concept and data set, by width."""
  rows, thin = measured.rows[name], measured.thin[name]
  sources = np.asarray(rows.sources)
  every = np.ones(len(sources), bool)

  def group(prompts: Sequence[str], pictures: np.ndarray = every) -> dict[str, float]:
    chosen = np.isin(rows.prompts, prompts)
    shapes = {m: metrics.mean(values[pictures][:, chosen]) for m, values in thin.items()}
    return metrics.compute(rows.pictures(pictures), prompts=prompts) | shapes

  def with_ap(prompts: Sequence[str], source: str | None = None) -> dict[str, float]:
    pictures = every if source is None else sources == source
    return group(prompts, pictures) | {"ap": measured.average_precision(prompts, source)}

  def widths(prompt: str) -> dict[str, dict[str, float]]:
    column = rows.prompts.index(prompt)
    bins = np.array([metrics_thin.width_bin(w) for w in measured.width[:, column]])
    return {
      name: {"pictures": int((bins == name).sum())} | group([prompt], bins == name)
      for name in metrics_thin.width_bins()
      if (bins == name).any()
    }

  of_concept = {}
  for prompt, concept in zip(rows.prompts, rows.concepts, strict=True):
    of_concept.setdefault(concept, []).append(prompt)
  return {
    "overall": with_ap(rows.prompts),
    "per_prompt": {prompt: with_ap([prompt]) for prompt in rows.prompts},
    "per_concept": {concept: with_ap(prompts) for concept, prompts in of_concept.items()},
    "per_source": {source: with_ap(rows.prompts, source) for source in sorted(set(rows.sources))},
    # No ap: pixels are ranked per data set, not per width. Every picture here has a truth.
    "by_width": {prompt: widths(prompt) for prompt in rows.prompts},
  }


def intervals(measured: Measured, name: str) -> dict:
  """Returns "overall" and "per_prompt": metric -> mean, low, high at one threshold.

  Bootstrap over pictures, 95 %, of every metric that is a ratio of sums over pictures; `ap` and
  `miou_2c` are not, and get none.
  """
  rows, prompts = measured.rows[name], measured.rows[name].prompts
  return {
    "overall": _intervals(rows, measured.thin[name], prompts),
    "per_prompt": {p: _intervals(rows, measured.thin[name], [p]) for p in prompts},
  }


def _intervals(rows: metrics.Rows, thin: dict, prompts: Sequence[str]) -> dict[str, dict]:
  chosen = np.isin(rows.prompts, prompts)
  parts = metrics.ratio_parts(rows, prompts)
  for metric, values in thin.items():
    values = values[:, chosen]
    parts[metric] = (np.nansum(values, 1), (~np.isnan(values)).sum(1))
  above, below = (np.stack([part[k] for part in parts.values()], -1) for k in (0, 1))
  found = judgement.bootstrap_ratio(above, below)
  return {m: interval._asdict() for m, interval in zip(parts, found, strict=True)}


def confusion(rows: metrics.Rows) -> dict:
  """Returns what is taken for what at `rows.threshold`.

  Returns:
    pixels: prompt -> tp, fp, fn, tn summed over pictures.
    pictures: prompt -> of the pictures that have the concept and of those that have not, how many
      got any foreground.
    marked: prompt -> concept -> share of the pixels that the prompt marks that lie in the
      concept's truth, over the pictures where that truth is known.
  """
  counts = metrics.counts_at(rows)
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
