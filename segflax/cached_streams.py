"""A run's streams with the frozen tower's taps in place of its work: `config.cache_features`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from segflax import feature_cache
from segflax.data import builder
from segflax.data.augment import AugmentConfig, augment
from segflax.data.decode import load_image
from segflax.data.eval_stream import EvalStream
from segflax.data.resize import fit_image
from segflax.data.train_stream import TrainStream
from segflax.errors import UserError
from segflax.feature_cache import CachedPass, CachedStream, FeatureCache
from segflax.models.clipseg import CLIPSeg, encode_pictures, held
from segflax.train_state import identity


def cached_streams(
  config: ConfigDict,
  info: builder.DatasetInfo,
  stream: TrainStream,
  evaluation: EvalStream,
  model: CLIPSeg,
  trained: dict,
  frozen: dict,
  *,
  after_batch: Callable[[], None],
) -> tuple[CachedStream, CachedPass]:
  """Returns both streams with the frozen tower's taps; makes what is missing of them.

  Args:
    after_batch: called after each batch was encoded; may raise, and what is whole is kept.

  Raises:
    UserError: the vision tower is trained, so that its taps change with every step; or a picture
      cannot be read.
  """
  if "vision" in trained:
    raise UserError(
      f"cache_features {config.cache_features} needs a frozen vision tower, but trainable "
      f"{config.trainable!r} changes it; use trainable decoder, or cache_features 0"
    )
  # The module declares logit_scale whatever is asked of it.
  tower = {name: frozen[name] for name in ("vision", "logit_scale")}
  of = functools.partial(_feature_cache, config, info, model, tower, after_batch)
  augmentation = AugmentConfig(**config.augment)
  train = of(config.data.train_split, config.cache_features, augmentation, config.image_size)
  val = of(config.data.val_split, 1, AugmentConfig(), 0)
  return CachedStream(stream, train), CachedPass(evaluation, val)


def _feature_cache(
  config: ConfigDict,
  info: builder.DatasetInfo,
  model: CLIPSeg,
  tower: dict,
  after_batch: Callable[[], None],
  split: str,
  views: int,
  augmentation: AugmentConfig,
  at_least: int,
) -> FeatureCache:
  """Returns the tower's taps of every picture of a split, in so many augmented views.

  `at_least` (of `load_image`) is what the split's stream decodes with.
  """
  architecture = model.config
  records = builder.open_split(info.path, split)
  patches = (config.image_size // architecture.patch_size) ** 2
  layout = feature_cache.make_layout(
    Path(config.data_dir) / "features",
    content=f"{info.content_sha256} {split}",
    weights=identity(tower),
    pictures=len(records),
    views=views,
    row=(len(architecture.taps), 1 + patches, architecture.vision_width),
    seed=config.seed,
    settings={
      "image_size": config.image_size,
      "dtype": str(jnp.dtype(model.dtype)),
      "augment": dataclasses.asdict(augmentation),
    },
  )
  no_mask = jnp.zeros((1, config.image_size, config.image_size))

  @jax.jit
  def encode(params, pictures, keys):
    change = jax.vmap(lambda key, image: augment(key, image, no_mask, augmentation)[0])
    return encode_pictures(model, params, 255 * change(keys, pictures))

  def load(index: int) -> np.ndarray:
    record = records[index]
    picture = load_image(record["image"], name=record["image_id"], at_least=at_least)
    return np.asarray(fit_image(picture, config.image_size))

  tower = jax.device_put(held(tower, model.dtype))
  feature_cache.build(
    layout,
    load,
    functools.partial(encode, tower),
    batch_size=config.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    label=f"encoding {split}",
    after_batch=after_batch,
  )
  multihost_utils.sync_global_devices(f"features of {split} cached")
  return FeatureCache(layout)
