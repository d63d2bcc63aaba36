"""Each loss against a NumPy loop over pixels, on hard, soft, empty and full targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from segflax import losses, losses_thin
from segflax.errors import UserError

NAMES = ("bce_dice", "bce", "dice", "focal", "tversky", "bce_dice_skeleton", "bce_dice_cldice")


def loss_config(name):
  return ConfigDict(
    {
      "name": name,
      "bce_weight": 0.7,
      "dice_weight": 1.3,
      "pos_weight": 3.0,
      "smooth": 1.0,
      "focal_alpha": 0.25,
      "focal_gamma": 2.0,
      "tversky_fp": 0.3,
      "tversky_fn": 0.7,
      "tversky_gamma": 0.75,
      "thin_weight": 0.5,
      "skeleton_iterations": 3,
    }
  )


@pytest.fixture(scope="module")
def pairs():
  """logits and targets [2 3 9 7]: soft, hard, empty, full, thin line, half right."""
  r = np.random.default_rng(0)
  logits = r.normal(0, 3, (2, 3, 9, 7))
  target = r.random((2, 3, 9, 7))
  target[0, 1] = target[0, 1] > 0.5
  target[0, 2] = 0
  target[1, 0] = 1
  target[1, 1] = 0
  target[1, 1, 4] = 1
  return logits.astype(np.float32), target.astype(np.float32)


def by_pixel(logits, target, cell):
  """Sums `cell(p, t)` pixel by pixel in Python floats: [pairs] for one cell value."""
  out = np.zeros(logits.shape[:2])
  for b in range(logits.shape[0]):
    for q in range(logits.shape[1]):
      for x, t in zip(logits[b, q].ravel(), target[b, q].ravel(), strict=True):
        out[b, q] += cell(1 / (1 + np.exp(-float(x))), float(t))
  return out


def oracle(name, logits, target):
  c = loss_config(name)
  n = logits.shape[-1] * logits.shape[-2]
  total = lambda cell: by_pixel(logits, target, cell)  # noqa: E731
  bce = -total(lambda p, t: 3 * t * np.log(p) + (1 - t) * np.log(1 - p)) / n
  overlap = total(min)
  sums = total(lambda p, t: p + t)
  dice = 1 - (2 * overlap + 1) / (sums + 1)
  fp, fn = total(lambda p, t: max(p - t, 0)), total(lambda p, t: max(t - p, 0))
  index = (overlap + 1) / (overlap + 0.3 * fp + 0.7 * fn + 1)
  focal = -total(
    lambda p, t: 0.25 * (1 - p) ** 2 * t * np.log(p) + 0.75 * p**2 * (1 - t) * np.log(1 - p)
  )
  return {
    "bce": bce,
    "dice": dice,
    "bce_dice": c.bce_weight * bce + c.dice_weight * dice,
    "focal": focal / n,
    "tversky": (1 - index) ** 0.75,
  }[name]


@pytest.mark.parametrize("name", ["bce", "dice", "bce_dice", "focal", "tversky"])
def test_equals_a_loop_over_pixels(name, pairs):
  logits, target = pairs
  got = losses.make_loss(loss_config(name))(jnp.asarray(logits), jnp.asarray(target))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, oracle(name, logits, target), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_do_not_see_one_another_and_gradients_are_finite(name, pairs):
  logits, target = pairs
  fn = jax.jit(losses.make_loss(loss_config(name)))
  whole, alone = fn(logits, target), fn(logits[1:, 1:2], target[1:, 1:2])
  np.testing.assert_allclose(whole[1:, 1:2], alone, rtol=1e-6)
  extreme = np.where(target > 0.5, 200.0, -200.0).astype(np.float32)  # saturated and right
  slope = jax.jit(jax.value_and_grad(lambda x: fn(x, target).sum()))
  for x in (logits, extreme, -extreme):
    value, gradient = slope(jnp.asarray(x))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_mask_beats_empty_full_and_shifted_ones(name):
  truth = np.zeros((16, 16), np.float32)
  truth[5:7, 2:14] = 1
  fn = jax.jit(losses.make_loss(loss_config(name)))
  score = lambda mask: float(fn(8 * (2 * mask - 1), truth))  # noqa: E731
  others = (np.zeros_like(truth), np.ones_like(truth), np.roll(truth, 4, 0))
  assert all(score(truth) < score(other) for other in others)


def test_a_soft_target_is_its_own_optimum():
  target = np.random.default_rng(1).uniform(0.05, 0.95, (6, 6)).astype(np.float32)
  logits = np.log(target / (1 - target))
  assert losses.dice(logits, target) < 1e-5
  assert np.abs(jax.grad(losses.bce)(jnp.asarray(logits), target)).max() < 1e-6


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.full((1, 64, 64), 0.3, jnp.bfloat16)
  target = jnp.ones((1, 64, 64))
  exact = losses.bce(logits.astype(jnp.float32), target)
  np.testing.assert_array_equal(losses.bce(logits, target), exact)


def skeleton_by_scipy(x, iterations):
  """Algorithm 1 of the clDice paper with SciPy's grey morphology."""
  from scipy import ndimage

  pad = lambda y, v: np.pad(y, 1, constant_values=v)  # noqa: E731

  def erode(y):
    cross = ndimage.generate_binary_structure(2, 1)
    return ndimage.grey_erosion(pad(y, np.inf), footprint=cross)[1:-1, 1:-1]

  def opened(y):
    return ndimage.grey_dilation(pad(erode(y), -np.inf), size=(3, 3))[1:-1, 1:-1]

  relu = lambda y: np.maximum(y, 0)  # noqa: E731
  skeleton = relu(x - opened(x))
  for _ in range(iterations):
    x = erode(x)
    delta = relu(x - opened(x))
    skeleton = skeleton + relu(delta - skeleton * delta)
  return skeleton


@pytest.mark.parametrize("hard", [False, True])
def test_soft_skeleton_equals_scipy(hard):
  x = np.random.default_rng(2).random((17, 12))
  x = (x > 0.3) if hard else x
  x = x.astype(np.float32)
  expected = skeleton_by_scipy(x, 4)
  np.testing.assert_allclose(losses_thin.soft_skeleton(x[None], 4)[0], expected, atol=1e-6)
  p = np.random.default_rng(3).random(x.shape).astype(np.float32)
  logits = np.log(p / (1 - p))
  from scipy import ndimage

  tube = np.minimum(ndimage.maximum_filter(expected, 3, mode="constant"), x)
  recall = 1 - ((p * tube).sum() + 1) / (tube.sum() + 1)
  got = losses_thin.skeleton_recall(logits, x, iterations=4)
  np.testing.assert_allclose(got, recall, rtol=1e-5)
  skeleton_p = skeleton_by_scipy(p, 4)
  precision = ((skeleton_p * x).sum() + 1) / (skeleton_p.sum() + 1)
  sensitivity = ((expected * p).sum() + 1) / (expected.sum() + 1)
  harmonic = 2 * precision * sensitivity / (precision + sensitivity)
  got = losses_thin.cl_dice(logits, x, iterations=4)
  np.testing.assert_allclose(got, 1 - harmonic, rtol=1e-5)


def test_the_skeleton_of_a_line_is_its_middle():
  x = np.zeros((11, 20), np.float32)
  x[4:7, 2:18] = 1  # three pixels wide
  skeleton = np.asarray(losses_thin.soft_skeleton(x, 3))
  assert skeleton[5, 4:16].all() and not skeleton[4, 4:16].any()


def test_an_unknown_name_lists_the_alternatives():
  with pytest.raises(UserError, match=r"'hinge' is unknown; available: bce_dice, bce, dice"):
    losses.make_loss(loss_config("hinge"))
