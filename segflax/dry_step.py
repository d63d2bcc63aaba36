"""The train step of a config from shapes alone: to compile, count and weigh it without data."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from segflax import build
from segflax.models.clipseg import CLIPSeg
from segflax.sharding import AXIS
from segflax.train_state import TrainState, split_params

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
  frozen = jax.eval_shape(lambda x: build.cast_frozen(config, x), frozen)
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
  batch = {
    "image": split((b, s, s, 3), jnp.uint8),
    "mask": split((b, q, s, s), jnp.uint8),
    "prompt": split((b, q), jnp.int32),
    "valid": split((b, q), jnp.bool_),
    "key": split((b, 2), jnp.uint32),
    "index": split((b,), jnp.int32),
  }
  return step, (state, frozen, table, batch)
