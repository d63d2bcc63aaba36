"""What the device counts, against NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from segflax import counts


def random_masks(seed, shape=(3, 2, 12, 10)):
  """Predictions and truths with empty and full ones among them."""
  r = np.random.default_rng(seed)
  prediction, truth = r.random(shape) > 0.6, r.random(shape) > 0.4
  prediction[0, 0], truth[0, 0] = False, False
  prediction[1, 0], truth[1, 1] = True, True
  return prediction, truth


def test_pixel_counts_equal_scikit_learn():
  prediction, truth = random_masks(0)
  where = np.random.default_rng(1).random((3, 1, 12, 10)) > 0.2
  got = np.asarray(counts.pixel_counts(prediction, truth, where))
  assert got.dtype == np.int32
  for b, q in np.ndindex(3, 2):
    inside = where[b, 0]
    table = confusion_matrix(truth[b, q][inside], prediction[b, q][inside], labels=[False, True])
    (tn, fp), (fn, tp) = table
    assert got[b, q].tolist() == [tp, fp, fn, tn]


def test_threshold_counts_equal_one_mask_at_a_time():
  _, truth = random_masks(2)
  probability = np.random.default_rng(3).random(truth.shape, np.float32)
  probability[0, 1] = 0.5  # foreground is strictly above the threshold
  thresholds = np.asarray(counts.THRESHOLDS, np.float32)
  where = np.ones((1, 1, 12, 10), bool)
  got = counts.threshold_counts(probability, truth, where, jnp.asarray(thresholds))
  assert got.shape == (3, 2, 49, 4)
  for i, threshold in enumerate(thresholds):
    expected = counts.pixel_counts(probability > threshold, truth, where)
    np.testing.assert_array_equal(got[:, :, i], expected)
  assert got[0, 1, 24, :2].sum() == 0 and counts.THRESHOLDS[24] == 0.5


def test_pair_counts_equal_set_operations():
  prediction, truth = random_masks(4, (3, 4, 9, 8))
  where = np.random.default_rng(5).random((3, 9, 8)) > 0.3
  got = np.asarray(counts.pair_counts(prediction, truth, where))
  for b, i, j in np.ndindex(3, 4, 4):
    sides = ((prediction, prediction), (prediction, truth), (truth, truth))
    for kind, (first, second) in enumerate(sides):
      a, c = first[b, i] & where[b], second[b, j] & where[b]
      assert got[b, i, j, kind].tolist() == [(a & c).sum(), (a | c).sum()]


def bilinear_by_hand(image, height, width):
  """align_corners=False, pixel by pixel."""
  out = np.zeros((height, width))
  rows, columns = image.shape
  for y, x in np.ndindex(height, width):
    v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
    u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
    y0, x0 = int(v), int(u)
    y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
    top = image[y0, x0] * (1 - u + x0) + image[y0, x1] * (u - x0)
    bottom = image[y1, x0] * (1 - u + x0) + image[y1, x1] * (u - x0)
    out[y, x] = top * (1 - v + y0) + bottom * (v - y0)
  return out


SIZES = [(20, 30), (8, 6), (5, 30), (3, 4), (1, 1), (32, 32)]


@pytest.fixture(scope="module")
def resized():
  """One compilation for every size."""
  fn = jax.jit(lambda p, size: counts.resize_to_own_size(p, size, (32, 32)))
  probability = np.random.default_rng(6).random((2, 8, 6), np.float32)
  out = {size: np.asarray(fn(probability, jnp.asarray(size, jnp.int32))) for size in SIZES}
  assert fn._cache_size() == 1
  return probability, out


@pytest.mark.parametrize("size", SIZES)
def test_resize_equals_a_loop_over_pixels(size, resized):
  probability, out = resized
  height, width = size
  for q in range(2):
    expected = bilinear_by_hand(probability[q], height, width)
    np.testing.assert_allclose(out[size][q, :height, :width], expected, atol=1e-6)
  assert not out[size][:, height:].any() and not out[size][:, :, width:].any()


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES)
def test_resize_equals_torch(size, resized):
  import torch

  probability, out = resized
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(probability)[None], size, mode="bilinear", align_corners=False
  )[0].numpy()
  np.testing.assert_allclose(out[size][:, : size[0], : size[1]], expected, atol=2e-6)


def test_picture_counts_ignore_the_canvas():
  r = np.random.default_rng(7)
  probability = r.random((2, 8, 8), np.float32)
  truth = r.random((2, 24, 20)) > 0.5
  size = np.array([17, 11], np.int32)
  thresholds, count = jnp.asarray([0.3, 0.5]), jax.jit(counts.picture_counts)
  small = count(probability, truth[:, :17, :11], size, thresholds, 0.5)
  large = count(probability, truth, size, thresholds, 0.5)  # garbage around
  for name, value in small.items():
    np.testing.assert_array_equal(value, large[name])
  assert (np.asarray(small["counts"]).sum(-1) == 17 * 11).all()


@pytest.mark.parametrize("size", [(16, 24), (8, 6), (5, 30), (3, 4), (32, 32)])
def test_truth_at_network_size_is_the_share_covered(size):
  truth = np.zeros((2, 32, 32), bool)
  height, width = size
  truth[:, :height, :width] = np.random.default_rng(8).random((2, height, width)) > 0.5
  got = counts.resize_to_network(truth, jnp.asarray(size, jnp.int32), (8, 6))
  # Oracle: every source pixel cut into 8 x 6 equal parts, every target pixel their mean.
  fine = np.repeat(np.repeat(truth[:, :height, :width], 8, 1), 6, 2)
  expected = fine.reshape(2, 8, height, 6, width).mean((2, 4))
  np.testing.assert_allclose(got, expected, atol=1e-6)
