"""Losses: logits and targets of (picture, prompt) pairs -> one float32 value per pair.

Targets are soft: the share of a pixel that the mask covers. The overlaps are therefore sums of
min(p, t), which equal sums of p * t where t is 0 or 1, and of which a perfect prediction scores
0 also where t is in between (Wang et al. 2023, Dice semimetric losses, arXiv:2303.16296).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict

from segflax.arrays import Array
from segflax.errors import UserError
from segflax.losses_thin import cl_dice, skeleton_recall

Logits = Float[Array, "*n h w"]
Target = Float[Array, "*n h w"]
PerPair = Float[Array, "*n"]


def _mean(x: Logits) -> PerPair:
  return jnp.mean(x, (-2, -1))


def _log_likelihoods(logits: Logits) -> tuple[Logits, Logits]:
  """log p and log(1 - p), neither of which overflows."""
  return jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)


def bce(logits: Logits, target: Target, *, pos_weight: float = 1.0) -> PerPair:
  """Binary cross-entropy, mean over pixels.

  Args:
    logits: float, before the sigmoid.
    target: in [0, 1].
    pos_weight: weight of the foreground term; more than 1 where foreground is rare.

  Returns:
    float32, at least 0.
  """
  logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
  log_p, log_not_p = _log_likelihoods(logits)
  return -_mean(pos_weight * target * log_p + (1 - target) * log_not_p)


def tversky(
  logits: Logits,
  target: Target,
  *,
  fp_weight: float = 0.3,
  fn_weight: float = 0.7,
  gamma: float = 1.0,
  smooth: float = 1.0,
) -> PerPair:
  """(1 - Tversky index)^gamma: Dice with separate prices for false alarms and misses.

  Salehi et al. 2017, arXiv:1706.05721; the power is the inverse of gamma in Abraham and Khan
  2018, arXiv:1810.07842, who use 0.75.

  Args:
    logits: float, before the sigmoid.
    target: in [0, 1].
    fp_weight: price of a falsely marked pixel; 0.5 and 0.5 give Dice.
    fn_weight: price of a missed pixel.
    gamma: the power; 1: none.
    smooth: pixels added above and below: an empty truth predicted empty scores 0.

  Returns:
    float32 in [0, 1].
  """
  p, target = jax.nn.sigmoid(logits.astype(jnp.float32)), target.astype(jnp.float32)
  total = lambda x: jnp.sum(x, (-2, -1))  # noqa: E731
  tp = total(jnp.minimum(p, target))
  fp, fn = total(jnp.maximum(p - target, 0)), total(jnp.maximum(target - p, 0))
  missing = (fp_weight * fp + fn_weight * fn) / (tp + fp_weight * fp + fn_weight * fn + smooth)
  if gamma == 1.0:
    return missing
  # The power's slope is infinite at 0, where a perfect pair would turn the gradient into NaN.
  return jnp.maximum(missing, 1e-6) ** gamma


def dice(logits: Logits, target: Target, *, smooth: float = 1.0) -> PerPair:
  """Soft Dice loss 1 - (2 I + smooth) / (|p| + |t| + smooth), Milletari et al. 2016.

  Args:
    logits: float, before the sigmoid.
    target: in [0, 1].
    smooth: pixels added above and below: an empty truth predicted empty scores 0.

  Returns:
    float32 in [0, 1].
  """
  return tversky(logits, target, fp_weight=0.5, fn_weight=0.5, smooth=smooth / 2)


def focal(logits: Logits, target: Target, *, alpha: float = 0.25, gamma: float = 2.0) -> PerPair:
  """Focal loss, mean over pixels (Lin et al. 2017, arXiv:1708.02002, equation 5).

  Args:
    logits: float, before the sigmoid.
    target: in [0, 1]; a soft target mixes the two terms.
    alpha: weight of foreground; background has 1 - alpha.
    gamma: how far easy pixels are discounted; 0: none.

  Returns:
    float32, at least 0.
  """
  logits, target = logits.astype(jnp.float32), target.astype(jnp.float32)
  log_p, log_not_p = _log_likelihoods(logits)
  foreground = alpha * target * jnp.exp(gamma * log_not_p) * log_p
  background = (1 - alpha) * (1 - target) * jnp.exp(gamma * log_p) * log_not_p
  return -_mean(foreground + background)


def _bce_dice(config: ConfigDict, logits: Logits, target: Target) -> PerPair:
  """The origin's BCE + Dice."""
  return config.bce_weight * bce(
    logits, target, pos_weight=config.pos_weight
  ) + config.dice_weight * dice(logits, target, smooth=config.smooth)


def make_loss(config: ConfigDict) -> Callable[[Logits, Target], PerPair]:
  """Returns the loss that a config names.

  Args:
    config: `config.loss`; `configs/baseline.py` explains its fields.

  Returns:
    (logits `[b q h w]`, target `[b q h w]` in [0, 1]) -> float32 `[b q]`; lower is better.

  Raises:
    UserError: the name is unknown.
  """
  thin = {"iterations": config.skeleton_iterations, "smooth": config.smooth}
  weights = {"fp_weight": config.tversky_fp, "fn_weight": config.tversky_fn}
  losses = {
    "bce_dice": lambda x, t: _bce_dice(config, x, t),
    "bce": lambda x, t: bce(x, t, pos_weight=config.pos_weight),
    "dice": lambda x, t: dice(x, t, smooth=config.smooth),
    "focal": lambda x, t: focal(x, t, alpha=config.focal_alpha, gamma=config.focal_gamma),
    "tversky": lambda x, t: tversky(
      x, t, gamma=config.tversky_gamma, smooth=config.smooth, **weights
    ),
    # Each complements a loss over all pixels: a skeleton alone says nothing of the rest.
    "bce_dice_skeleton": lambda x, t: (
      _bce_dice(config, x, t) + config.thin_weight * skeleton_recall(x, t, **thin)
    ),
    "bce_dice_cldice": lambda x, t: (
      _bce_dice(config, x, t) + config.thin_weight * cl_dice(x, t, **thin)
    ),
  }
  if config.name not in losses:
    raise UserError(f"loss.name {config.name!r} is unknown; available: {', '.join(losses)}")
  return losses[config.name]
