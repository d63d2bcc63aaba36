"""What training changes (TrainState), and how parameters divide into trained and frozen ones."""

import hashlib
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from segflax.errors import UserError


class EpochSums(flax.struct.PyTreeNode):
  """Running sums over the steps of the current epoch; part of every checkpoint."""

  loss: jax.Array  # float32 [], summed over valid (picture, prompt) pairs
  pairs: jax.Array  # float32 []
  grad_norm: jax.Array  # float32 [], summed over steps, before clipping
  steps: jax.Array  # float32 []

  @classmethod
  def zeros(cls) -> "EpochSums":
    return cls(**{f: jnp.zeros((), jnp.float32) for f in cls.__dataclass_fields__})


RECENT = 32  # skipped steps that are remembered on the device between two looks of the host


class NonFinite(flax.struct.PyTreeNode):
  """Bookkeeping of skipped updates, kept on the device so that the loop never waits for it."""

  streak: jax.Array  # int32 [], skipped updates in a row
  total: jax.Array  # int32 []
  recent: jax.Array  # int32 [32], the latest skipped steps, the n-th at n % 32; -1: none
  halted: jax.Array  # bool [], streak has exceeded its limit: nothing changes any more

  @classmethod
  def none(cls) -> "NonFinite":
    # Four arrays, not one four times: a donated state must not hold a buffer twice.
    return cls(
      streak=jnp.zeros((), jnp.int32),
      total=jnp.zeros((), jnp.int32),
      recent=jnp.full(RECENT, -1, jnp.int32),
      halted=jnp.zeros((), bool),
    )


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes: one logical copy, replicated over the mesh."""

  step: jax.Array  # int32 [], updates made or skipped so far
  params: dict  # trainable leaves only, float32
  opt_state: optax.OptState
  lr_scale: jax.Array  # float32 [], what ReduceLROnPlateau has made of 1.0
  ema: dict | None  # moving average of params, or None
  sums: EpochSums
  nonfinite: NonFinite

  @classmethod
  def create(cls, params: dict, tx: optax.GradientTransformation, *, ema: bool) -> "TrainState":
    """Returns the state before the first step."""
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      lr_scale=jnp.ones((), jnp.float32),
      ema=jax.tree.map(jnp.copy, params) if ema else None,
      sums=EpochSums.zeros(),
      nonfinite=NonFinite.none(),
    )


def split_params(params: dict, trainable: str) -> tuple[dict, dict]:
  """Divides a parameter tree by a pattern over paths such as `decoder/blocks_0/norm1/scale`.

  Args:
    params: nested dict of arrays.
    trainable: regular expression that a whole path must match to be trained.

  Returns:
    (trainable, frozen): two nested dicts; `merge_params` joins them again.

  Raises:
    UserError: the pattern is malformed or matches no parameter.
  """
  try:
    pattern = re.compile(trainable)
  except re.error as error:
    raise UserError(f"trainable {trainable!r} is not a regular expression: {error}") from error
  flat = flatten_dict(params, sep="/")
  chosen = {path: leaf for path, leaf in flat.items() if pattern.fullmatch(path)}
  if not chosen:
    raise UserError(
      f"trainable {trainable!r} matches no parameter path; paths look like {sorted(flat)[0]!r}"
    )
  frozen = {path: leaf for path, leaf in flat.items() if path not in chosen}
  return unflatten_dict(chosen, sep="/"), unflatten_dict(frozen, sep="/")


def merge_params(trainable: dict, frozen: dict) -> dict:
  """Inverse of `split_params`."""
  return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trainable)})


def identity(params: dict) -> dict[str, str]:
  """Returns path -> sha256 of dtype, shape and bytes: what a checkpoint says of frozen leaves."""
  digests = {}
  for path, leaf in flatten_dict(params, sep="/").items():
    array = np.asarray(leaf)
    header = f"{array.dtype} {array.shape} ".encode()
    digests[path] = hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()
  return digests
