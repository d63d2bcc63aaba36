"""Losses for thin structures: what counts is the crack's course, not its few pixels of width."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from segflax.arrays import Array

Map = Float[Array, "*n h w"]


def _pool(x: Map, window: tuple[int, int], largest: bool) -> Map:
  """Largest or smallest value around each pixel; outside the picture counts as neither."""
  start, choose = (-jnp.inf, jax.lax.max) if largest else (jnp.inf, jax.lax.min)
  dimensions = (1,) * (x.ndim - 2) + window
  return jax.lax.reduce_window(x, start, choose, dimensions, (1,) * x.ndim, "SAME")


def _erode(x: Map) -> Map:
  return jnp.minimum(_pool(x, (3, 1), largest=False), _pool(x, (1, 3), largest=False))


def _open(x: Map) -> Map:
  return _pool(_erode(x), (3, 3), largest=True)


def soft_skeleton(x: Map, iterations: int) -> Map:
  """Skeleton of a soft mask by repeated opening (Shit et al. 2021, arXiv:2003.07311, algorithm 1).

  Args:
    x: values in [0, 1].
    iterations: at least half the width in pixels of the widest structure.

  Returns:
    float32 in [0, 1].
  """
  x = x.astype(jnp.float32)
  skeleton = jax.nn.relu(x - _open(x))

  def thin(_, state):
    x, skeleton = state
    x = _erode(x)
    delta = jax.nn.relu(x - _open(x))
    return x, skeleton + jax.nn.relu(delta - skeleton * delta)

  # A static count keeps the loop differentiable in reverse.
  return jax.lax.fori_loop(0, iterations, thin, (x, skeleton))[1]


def skeleton_recall(
  logits: Map, target: Map, *, iterations: int = 5, smooth: float = 1.0
) -> Float[Array, "*n"]:
  """1 - share of the truth's course that is marked (Kirchhoff et al. 2024, arXiv:2404.03010).

  As there the skeleton is widened by one pixel on each side and kept inside the truth; it is
  made on the device by `soft_skeleton` rather than by the data loader.

  Args:
    logits: float, before the sigmoid.
    target: in [0, 1].
    iterations: of `soft_skeleton`.
    smooth: pixels added above and below; an empty truth scores 0.

  Returns:
    float32 in [0, 1].
  """
  p, target = jax.nn.sigmoid(logits.astype(jnp.float32)), target.astype(jnp.float32)
  tube = jnp.minimum(_pool(soft_skeleton(target, iterations), (3, 3), largest=True), target)
  tube = jax.lax.stop_gradient(tube)
  total = functools.partial(jnp.sum, axis=(-2, -1))
  return 1 - (total(p * tube) + smooth) / (total(tube) + smooth)


def cl_dice(
  logits: Map, target: Map, *, iterations: int = 5, smooth: float = 1.0
) -> Float[Array, "*n"]:
  """Soft clDice loss (Shit et al. 2021, arXiv:2003.07311, algorithm 2).

  Args:
    logits: float, before the sigmoid.
    target: in [0, 1].
    iterations: of `soft_skeleton`, for both masks.
    smooth: pixels added above and below.

  Returns:
    float32 in [0, 1].
  """
  p, target = jax.nn.sigmoid(logits.astype(jnp.float32)), target.astype(jnp.float32)
  total = functools.partial(jnp.sum, axis=(-2, -1))
  skeleton_p, skeleton_t = soft_skeleton(p, iterations), soft_skeleton(target, iterations)
  precision = (total(skeleton_p * target) + smooth) / (total(skeleton_p) + smooth)
  recall = (total(skeleton_t * p) + smooth) / (total(skeleton_t) + smooth)
  return 1 - 2 * precision * recall / (precision + recall)
