"""Thin-structure metrics against scikit-image, scikit-learn, SciPy and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import thin
from sklearn.metrics import average_precision_score

from segflax import metrics_thin
from segflax.skeleton import skeletonize


def blobs(seed, shape=(40, 50)):
  r = np.random.default_rng(seed)
  return ndimage.gaussian_filter(r.normal(size=shape), r.uniform(0, 4)) > r.uniform(-0.05, 0.05)


def line(width, shape=(30, 40), row=10):
  mask = np.zeros(shape, bool)
  mask[row : row + width, 4:36] = True
  return mask


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_skeleton_is_scikit_images(seed):
  mask = blobs(seed)
  np.testing.assert_array_equal(skeletonize(mask.T), thin(mask.T))
  np.testing.assert_array_equal(skeletonize(mask), thin(mask))


@pytest.mark.parametrize("value", [False, True])
def test_the_skeleton_of_an_empty_and_of_a_full_picture(value):
  mask = np.full((17, 23), value)
  np.testing.assert_array_equal(skeletonize(mask), thin(mask))


def f1_by_loop(prediction, truth, tolerance):
  def share(a, b):
    near = 0
    points = np.argwhere(b)
    for point in np.argwhere(a):
      near += np.sqrt(((points - point) ** 2).sum(1)).min() <= tolerance
    return near / a.sum()

  precision, recall = share(prediction, truth), share(truth, prediction)
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_f1_within_equals_a_loop(seed):
  r = np.random.default_rng(seed)
  prediction, truth = r.random((2, 20, 25)) > 0.97
  got = metrics_thin.f1_within(prediction, truth)
  for tolerance in (2, 5):
    assert got[tolerance] == pytest.approx(f1_by_loop(prediction, truth, tolerance), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_cldice_equals_scikit_images_skeletons(seed):
  prediction, truth = blobs(seed), blobs(seed + 100)
  precision, recall = truth[thin(prediction)].mean(), prediction[thin(truth)].mean()
  expected = 2 * precision * recall / (precision + recall)
  assert metrics_thin.cl_dice(prediction, truth) == pytest.approx(expected, abs=1e-6)


def test_empty_masks():
  nothing, something = np.zeros((9, 9), bool), np.eye(9, dtype=bool)
  for score in (metrics_thin.cl_dice, lambda p, t: metrics_thin.f1_within(p, t)[2]):
    assert score(nothing, nothing) == score(something, something) == 1
    assert score(nothing, something) == score(something, nothing) == 0


def test_a_shift_of_a_pixel_is_no_fault_of_a_thin_line():
  """The table of the fact sheet: IoU falls, f1@2px does not; a bounding box is found out."""
  truth = line(3)
  shifted = np.roll(truth, 1, 0)
  assert metrics_thin.f1_within(shifted, truth)[2] == 1
  assert metrics_thin.cl_dice(shifted, truth) == 1
  assert metrics_thin.f1_within(np.ones_like(truth), truth)[2] < 0.5


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_the_width_of_a_line(width):
  long = np.zeros((30, 400), bool)
  long[10 : 10 + width, 4:396] = True
  assert metrics_thin.width(long) == pytest.approx(width, rel=0.03)
  assert metrics_thin.width(long.T) == pytest.approx(width, rel=0.03)


def test_width_bins():
  assert metrics_thin.width_bins() == ["0 to 2.5 px", "2.5 to 4.5 px", "4.5 to 8.5 px", "> 8.5 px"]
  assert [metrics_thin.width_bin(w) for w in (1, 2, 3, 8, 9)] == [
    "0 to 2.5 px",
    "0 to 2.5 px",
    "2.5 to 4.5 px",
    "4.5 to 8.5 px",
    "> 8.5 px",
  ]
  assert metrics_thin.width_bin(metrics_thin.width(np.zeros((5, 5), bool))) == "none"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), cut=st.integers(0, 6), ties=st.booleans())
def test_average_precision_equals_scikit_learn_however_it_is_split(seed, cut, ties):
  r = np.random.default_rng(seed)
  probability = r.integers(0, 20 if ties else 65536, (6, 8, 9)) / (19 if ties else 65535)
  truth = r.random((6, 8, 9)) > 0.8
  first, second = metrics_thin.ScoreHistogram(), metrics_thin.ScoreHistogram()
  for i in range(6):
    (first if i < cut else second).add(probability[i], truth[i])
  first.merge(second)
  rounded = np.rint(probability * 65535)
  expected = average_precision_score(truth.ravel(), rounded.ravel())
  assert first.average_precision() == pytest.approx(expected, abs=1e-6)


def test_average_precision_without_foreground_is_nothing():
  histogram = metrics_thin.ScoreHistogram()
  histogram.add(np.random.default_rng(0).random((4, 4)), np.zeros((4, 4), bool))
  assert np.isnan(histogram.average_precision())


def test_the_papers_metrics_by_hand():
  """Two pictures, three thresholds, every number written out."""
  counts = np.array(
    [
      [[4, 4, 0, 2], [3, 1, 1, 5], [0, 0, 4, 6]],
      [[2, 3, 0, 5], [2, 0, 0, 8], [1, 0, 1, 8]],
    ]
  )
  got = metrics_thin.paper_metrics(counts, np.array([0.3, 0.5, 0.7]))
  assert got["clipseg.fgiou_0.5"] == pytest.approx(5 / (1 + 5 + 1 + 1))
  assert got["clipseg.fgiou_best_t"] == 0.5
  assert got["clipseg.biniou_best"] == pytest.approx(0.5 * 5 / 8 + 0.5 * 13 / 16)
  # recall 1/7, 5/7, 6/7 with precision 1/2, 5/7, 6/14: a parabola through three uneven points.
  x, y = [1 / 7, 5 / 7, 6 / 7], [1 / 2, 5 / 7, 6 / 14]
  a, b = x[1] - x[0], x[2] - x[1]
  simpson = (a + b) / 6 * ((2 - b / a) * y[0] + (a + b) ** 2 / (a * b) * y[1] + (2 - a / b) * y[2])
  assert got["clipseg.ap"] == pytest.approx(simpson, abs=1e-9)


def test_picture_metrics_are_those_above():
  prediction, truth = blobs(3), blobs(5)
  got = metrics_thin.picture_metrics(prediction, truth)
  assert got["f1@5px"] == metrics_thin.f1_within(prediction, truth)[5]
  assert got["cldice"] == metrics_thin.cl_dice(prediction, truth)
  skeleton = skeletonize(truth)
  assert got == metrics_thin.picture_metrics(prediction, truth, skeleton)
