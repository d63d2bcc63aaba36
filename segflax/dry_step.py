"""The train step of a config from shapes alone: to compile, count and weigh it without data."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from segflax import build, cost
from segflax import config as config_lib
from segflax.data import builder
from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, held
from segflax.sharding import AXIS
from segflax.train_state import TrainState, split_params

# Of a device's memory: the rest is for what lives beside the step (evaluation, fragments).
_SHARE = 0.8
PROMPTS = 16  # rows of the prompt table; a step's cost does not depend on their number


def train_step_and_shapes(
  config: ConfigDict, model: CLIPSeg, params: dict, mesh: Mesh, batch_size: int
) -> tuple[Callable, tuple]:
  """Returns the step that `train_and_evaluate` runs, and the shapes of its arguments.

  Args:
    params: arrays or their shapes; nothing is computed with them.
    mesh: of devices, or of descriptions of devices (jax.experimental.topologies).
    batch_size: pictures, over the whole mesh.

  Returns:
    The jitted step and its (state, frozen, table, batch) as jax.ShapeDtypeStruct with shardings:
    `step.lower(*shapes).compile()` is the program.
  """
  pattern = build.trainable_pattern(config, model.config)
  abstract = jax.eval_shape(lambda: params)
  trained, frozen = split_params(abstract, pattern)
  frozen = jax.eval_shape(lambda x: held(x, model.dtype), frozen)
  _, tx = build.make_optimizer(config, trained, steps_per_epoch=1000)
  state = jax.eval_shape(lambda x: TrainState.create(x, tx, ema=config.ema_decay > 0), trained)
  step = build.make_train_step(config, model, tx, mesh)
  one = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P()))
  split = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P(AXIS)))
  state, frozen = jax.tree.map(lambda x: one(x.shape, x.dtype), (state, frozen))
  if "text" in trained:
    table = {"tokens": one((PROMPTS, model.config.max_text_length), jnp.int32)}
  else:
    table = {"condition": one((PROMPTS, model.config.projection_dim), jnp.float32)}
  b, q, s = batch_size, config.data.prompts_per_picture, config.image_size
  if config.cache_features:  # Then the tower has run already.
    c = model.config
    tap = split((b, 1 + (s // c.patch_size) ** 2, c.vision_width), jnp.bfloat16)
    picture = {"taps": (tap,) * len(c.taps), "view_key": split((b, 2), jnp.uint32)}
  else:
    picture = {"image": split((b, s, s, 3), jnp.uint8)}
  batch = picture | {
    "mask": split((b, q, s, s), jnp.uint8),
    "prompt": split((b, q), jnp.int32),
    "valid": split((b, q), jnp.bool_),
    "key": split((b, 2), jnp.uint32),
    "index": split((b,), jnp.int32),
  }
  return step, (state, frozen, table, batch)


def step_memory(
  config: ConfigDict, model: CLIPSeg, params: dict, mesh: Mesh, batch_size: int
) -> int | None:
  """Returns the bytes per device that the compiled step takes; None if it does not compile for
  want of them. Arguments as of `train_step_and_shapes`.
  """
  step, shapes = train_step_and_shapes(config, model, params, mesh, batch_size)
  try:
    return cost.measure(step.lower(*shapes).compile()).memory
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return None


def resolve_batch_size(config: ConfigDict, workdir: Path, mesh: Mesh) -> ConfigDict:
  """Returns the config with a number in place of batch_size "auto".

  A run that goes on keeps the number it began with.

  Raises:
    UserError: batch_size is neither a whole number nor "auto", or nothing fits.
  """
  if type(config.batch_size) is int:
    return config
  if config.batch_size != "auto":
    raise UserError(f"batch_size {config.batch_size!r} is neither a whole number nor 'auto'")
  if before := config_lib.load(workdir):
    return _with_batch_size(config, before["batch_size"])
  model, params, _ = build.make_model(config)
  info = build.open_dataset(config)
  pictures = len(builder.open_split(info.path, config.data.train_split))
  fitting = fitting_batch_size(config, model, params, mesh, most=pictures)
  # The process with the least memory decides.
  least = np.min(multihost_utils.process_allgather(np.int32(fitting)))
  return _with_batch_size(config, int(least))


def _with_batch_size(config: ConfigDict, batch_size: int) -> ConfigDict:
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.batch_size = batch_size
  return config


def fitting_batch_size(
  config: ConfigDict, model: CLIPSeg, params: dict, mesh: Mesh, *, most: int, memory: float = 0.0
) -> int:
  """Returns the largest global batch whose step fits the devices.

  Args:
    most: pictures that there are.
    memory: bytes of a device; 0: of those of the mesh.

  Raises:
    UserError: not even one picture per device fits.
  """
  memory = memory or _SHARE * _device_memory(mesh)

  def memory_at(per_device: int) -> int | None:
    return step_memory(config, model, params, mesh, per_device * mesh.size)

  per_device = cost.largest_batch(memory_at, memory, most=max(1, most // mesh.size))
  if not per_device:
    raise UserError(
      f"batch_size auto: not even one picture of {config.image_size} px per device fits into "
      f"{memory / 2**30:.1f} GiB; use a smaller image_size, or remat"
    )
  return per_device * mesh.size


def _device_memory(mesh: Mesh) -> float:
  """Returns the bytes that a device can give a program; a CPU's devices share the free memory."""
  statistics = mesh.local_devices[0].memory_stats()
  if statistics and "bytes_limit" in statistics:
    return statistics["bytes_limit"]
  free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
  return free / len(mesh.local_devices)
