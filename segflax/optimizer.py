"""AdamW over the trained leaves: clipping, learning rate per step, rates per group of leaves."""

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from segflax.errors import UserError

SCHEDULES = ("constant", "cosine")


def make_schedule(
  name: str,
  lr: float,
  *,
  warmup_steps: int = 0,
  total_steps: int = 0,
  final_fraction: float = 0.0,
) -> Callable[[jax.Array], jax.Array]:
  """Returns the learning rate of each update, before what a plateau makes of it.

  Args:
    name: "constant", or "cosine" (SGDR without restarts, Loshchilov & Hutter 2017).
    lr: peak learning rate, > 0.
    warmup_steps: updates over which the rate rises linearly to `lr`; the first one has
      `lr / warmup_steps`, not 0. 0: no warm-up.
    total_steps: updates at which the cosine has fallen to its end; constant does not read it.
    final_fraction: what the cosine leaves of `lr`, in [0, 1].

  Returns:
    Function from the number of updates already made, int32 [], to the rate, float32 [].

  Raises:
    UserError: a value breaks its rule.
  """
  if name not in SCHEDULES:
    raise UserError(f"schedule.name {name!r} is unknown; available: {', '.join(SCHEDULES)}")
  if not lr > 0:
    raise UserError(f"lr {lr} is not a positive number; the usual one is 1e-4")
  if warmup_steps < 0:
    raise UserError(f"{warmup_steps} warm-up steps are fewer than none; use 0 for no warm-up")
  if not 0 <= final_fraction <= 1:
    raise UserError(f"schedule.final_fraction {final_fraction} is not in [0, 1]")
  if name == "cosine" and total_steps <= warmup_steps:
    raise UserError(
      f"{total_steps} steps leave no room for a cosine after {warmup_steps} of warm-up; "
      "shorten the warm-up or train for more epochs"
    )

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
    if name == "constant":
      return lr * warm
    progress = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return lr * warm * (final_fraction + (1 - final_fraction) * cosine)

  return schedule


def make_optimizer(
  params: dict,
  schedule: Callable[[jax.Array], jax.Array],
  *,
  weight_decay: float = 0.01,
  gradient_clip: float = 1.0,
  rates: Mapping[str, float] | None = None,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """Returns AdamW (Loshchilov & Hutter 2019) for exactly the trained leaves.

  Everything in the chain is linear in the learning rate from Adam's direction on, so scaling its
  updates (TrainState.lr_scale) is the same as scaling the rate; that needs no recompilation.

  Args:
    params: the trained leaves. Frozen ones must not be here: they would count in the norm.
    schedule: number of updates made -> rate, as `make_schedule` returns it.
    weight_decay: decoupled, times the rate; matrices only, not biases, norms or single vectors.
    gradient_clip: largest global norm of the gradient over `params`; 0: off.
    rates: regular expression over whole paths such as `vision/.*` -> factor on the learning rate
      (and so on the decay); a leaf takes the first that matches, else 1.
    b1, b2, eps: Adam's.

  Raises:
    UserError: a value breaks its rule, or a pattern matches no trained leaf.
  """
  if gradient_clip < 0:
    raise UserError(f"gradient_clip {gradient_clip} is negative; use 0 to switch clipping off")
  if weight_decay < 0:
    raise UserError(f"weight_decay {weight_decay} is negative; use 0 to switch it off")
  chain = [optax.clip_by_global_norm(gradient_clip)] if gradient_clip else []
  chain += [
    optax.adamw(
      schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask(params)
    ),
  ]
  if rates:
    chain.append(_scale_leaves(leaf_rates(params, rates)))
  return optax.chain(*chain)


def decay_mask(params: dict) -> dict:
  """Returns the same tree with True where weight decay applies: matrices that are no biases."""
  return jax.tree.map_with_path(
    lambda path, leaf: leaf.ndim >= 2 and _name(path).rsplit("/", 1)[-1] != "bias", params
  )


def leaf_rates(params: dict, rates: Mapping[str, float]) -> dict:
  """Returns the same tree with each leaf's factor on the learning rate.

  Raises:
    UserError: a pattern is malformed or decides no leaf, or a factor is negative.
  """
  try:
    patterns = [(re.compile(pattern), factor) for pattern, factor in rates.items()]
  except re.error as error:
    raise UserError(f"{error.pattern!r} is not a regular expression: {error}") from error
  for pattern, factor in rates.items():
    if factor < 0:
      raise UserError(f"rate {factor} of {pattern!r} is negative; 0 freezes, 1 changes nothing")
  used = set()

  def factor_of(path, leaf):
    del leaf
    for pattern, factor in patterns:
      if pattern.fullmatch(_name(path)):
        used.add(pattern.pattern)
        return float(factor)
    return 1.0

  tree = jax.tree.map_with_path(factor_of, params)
  for pattern in rates:
    if pattern not in used:
      raise UserError(
        f"rate pattern {pattern!r} decides no trained leaf; they are "
        f"{', '.join(_name(path) for path, _ in jax.tree.leaves_with_path(params)[:3])}, ..."
      )
  return tree


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _scale_leaves(factors: dict) -> optax.GradientTransformation:
  return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))
