"""From a config to the objects of a run: data set, prompts, model, parameters, processor."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from segflax import feature_cache, lora, losses, optimizer, steps
from segflax.data import builder, synthetic
from segflax.data.augment import AugmentConfig, augment
from segflax.data.decode import load_image
from segflax.data.eval_stream import EvalStream, make_eval_stream
from segflax.data.prompts import PromptSet
from segflax.data.resize import fit_image
from segflax.data.train_stream import TrainStream, make_train_stream
from segflax.errors import UserError
from segflax.evaluate import EvalSplit
from segflax.feature_cache import CachedPass, CachedStream, FeatureCache
from segflax.models import pretrained
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, encode_pictures, init_params
from segflax.models.processor import Processor
from segflax.train_state import identity
from segflax.trainable import trainable_regex

WALLS = "generated walls"
PRESETS = {
  "rd64-refined": CLIPSegConfig.rd64_refined,
  "rd64": CLIPSegConfig.rd64,
  "rd16": CLIPSegConfig.rd16,
  "small": CLIPSegConfig.small,
}


class Model(NamedTuple):
  """A CLIPSeg with its parameters (nested dict, float32, on the host) and its processor."""

  module: CLIPSeg
  params: dict
  processor: Processor


def open_dataset(config: ConfigDict) -> builder.DatasetInfo:
  """Returns what the data set at `data_dir` says of itself; generates walls first if asked to.

  Raises:
    UserError: there is no data set, or it has no training or validation pictures.
  """
  if config.synthetic.train_pictures:
    _ensure_walls(config)
  info = builder.load_info(config.data_dir)
  for split in (config.data.train_split, config.data.val_split):
    if split not in info.splits:
      raise UserError(
        f"{info.path} has no split {split!r}, only {', '.join(info.splits)}; prepare it again, "
        "or name another with --config.data.train_split or --config.data.val_split"
      )
  return info


def _ensure_walls(config: ConfigDict):
  """Writes the generated walls to data_dir unless these very walls are there already."""
  wanted = config.synthetic.to_dict()
  if (Path(config.data_dir) / builder.NAME).exists():
    sources = builder.load_info(config.data_dir).sources
    if sources == {WALLS: wanted}:
      return
    raise UserError(
      f"data_dir {config.data_dir} holds other data than config.synthetic asks for ({wanted}); "
      "name another data_dir, or remove this one"
    )
  # Every split has a seed of its own: no wall stands in two of them.
  names = (config.data.train_split, config.data.val_split, "test")
  sizes = (wanted["train_pictures"], wanted["val_pictures"], wanted["test_pictures"])
  splits = {
    name: synthetic.generate_walls(n, wanted["size"], 3 * wanted["seed"] + i)
    for i, (name, n) in enumerate(zip(names, sizes, strict=True))
  }
  if jax.process_index() == 0:
    metadata = {"sources": {WALLS: wanted}, "licenses": ["generated, free of rights"]}
    builder.write_dataset(config.data_dir, splits, synthetic.CONCEPTS, metadata)
  multihost_utils.sync_global_devices("walls written")


def make_prompts(config: ConfigDict, info: builder.DatasetInfo) -> PromptSet:
  """Returns the table of every prompt that training and evaluation use."""
  return PromptSet.create(info.concepts, config.prompts.synonyms, config.prompts.templates)


def make_model(config: ConfigDict) -> Model:
  """Loads the pretrained model that the config names, or makes a fresh one.

  Raises:
    UserError: unknown preset, weights that do not fit, image_size not a multiple of the patch.
  """
  dtype = jnp.bfloat16 if config.mixed_precision else jnp.float32
  if config.model.pretrained:
    model, params, processor = pretrained.from_pretrained(config.model.pretrained)
    architecture = model.config
  else:
    architecture, processor = _fresh(config)
    params = None
  architecture = dataclasses.replace(architecture, decoder_dropout=config.model.decoder_dropout)
  check_image_size(config.image_size, architecture.patch_size)
  if params is None:
    params = jax.device_get(init_params(architecture, jax.random.key(config.seed)))
  module = CLIPSeg(architecture, dtype=dtype, attention=config.model.attention, remat=config.remat)
  return Model(module, params, processor)


def train_stream(config: ConfigDict, info: builder.DatasetInfo, prompts: PromptSet):
  """Returns this process's share of the training stream."""
  return make_train_stream(
    info.path,
    config.data.train_split,
    batch_size=config.batch_size,
    prompts_per_picture=config.data.prompts_per_picture,
    negative_probability=config.prompts.negative_probability,
    seed=config.seed,
    images=not config.cache_features,
    **_reading(config, prompts),
  )


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

  held = jax.device_put(cast_frozen(config, tower))
  feature_cache.build(
    layout,
    load,
    functools.partial(encode, held),
    batch_size=config.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    label=f"encoding {split}",
    after_batch=after_batch,
  )
  multihost_utils.sync_global_devices(f"features of {split} cached")
  return FeatureCache(layout)


def eval_split(
  config: ConfigDict, info: builder.DatasetInfo, prompts: PromptSet, split: str, batch_size: int
) -> EvalSplit:
  """Returns a split with the prompts that evaluation asks of it."""
  return EvalSplit(
    builder.open_split(info.path, split),
    make_eval_stream(info.path, split, batch_size=batch_size, **_reading(config, prompts)),
    prompts,
    every_synonym=config.eval_per_prompt,
    threshold=config.eval.threshold,
    num_panels=config.log.panels,
  )


def add_lora(config: ConfigDict, params: dict) -> dict:
  """Returns the parameters with low-rank factors beside the vision tower's attention kernels."""
  factors = lora.add(
    params,
    jax.random.key(config.seed),
    rank=config.lora.rank,
    alpha=config.lora.alpha or None,
  )
  return jax.device_get(factors)


def train_image_id(config: ConfigDict, info: builder.DatasetInfo) -> Callable[[int], str]:
  """Returns the function from record number to name of the training pictures."""
  records = builder.open_split(info.path, config.data.train_split)
  return lambda index: records[index]["image_id"]


def cast_frozen(config: ConfigDict, frozen: dict) -> dict:
  """Returns frozen parameters as the devices hold them: half the memory under mixed precision."""
  if not config.mixed_precision:
    return frozen
  return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), frozen)


def _reading(config: ConfigDict, prompts: PromptSet) -> dict:
  """What the training stream and the evaluation stream have in common."""
  return {
    "image_size": config.image_size,
    "prompts": prompts,
    "max_corrupt": config.data.max_corrupt,
    "process_index": jax.process_index(),
    "process_count": jax.process_count(),
    "num_threads": config.data.num_threads,
  }


def make_optimizer(config: ConfigDict, params: dict, steps_per_epoch: int):
  """Returns AdamW with the config's schedule for the trained leaves."""
  schedule = optimizer.make_schedule(
    config.schedule.name,
    config.lr,
    warmup_steps=round(config.schedule.warmup_epochs * steps_per_epoch),
    total_steps=config.epochs * steps_per_epoch,
    final_fraction=config.schedule.final_fraction,
  )
  return schedule, optimizer.make_optimizer(
    params,
    schedule,
    weight_decay=config.optimizer.weight_decay,
    gradient_clip=config.gradient_clip,
    rates=config.optimizer.rates.to_dict(),
    b1=config.optimizer.b1,
    b2=config.optimizer.b2,
    eps=config.optimizer.eps,
  )


def make_train_step(
  config: ConfigDict, model: CLIPSeg, tx: optax.GradientTransformation, mesh: Mesh
) -> Callable:
  """Returns the step that the config describes (steps.make_train_step)."""
  return steps.make_train_step(
    model,
    tx,
    losses.make_loss(config.loss),
    mesh,
    augment_config=AugmentConfig(**config.augment),
    ema_decay=config.ema_decay,
    accumulate=config.accumulate,
    max_nonfinite=config.max_nonfinite,
  )


def check_image_size(image_size: int, patch_size: int):
  """Raises UserError unless the patch divides the picture's side."""
  if image_size < patch_size or image_size % patch_size:
    raise UserError(
      f"image_size {image_size} is not a multiple of patch_size {patch_size}; "
      f"use {max(1, round(image_size / patch_size)) * patch_size}"
    )


def trainable_pattern(config: ConfigDict, architecture: CLIPSegConfig) -> str:
  """Returns the regular expression that `trainable` names; `auto`: a fresh model trains all."""
  name = config.trainable
  if name == "auto":
    name = "decoder" if config.model.pretrained else "everything"
  return trainable_regex(name, vision_blocks=max(architecture.taps) + 1)


def _fresh(config: ConfigDict) -> tuple[CLIPSegConfig, Processor]:
  """A model from scratch reads bytes: no vocabulary has to be downloaded for it."""
  if config.model.preset not in PRESETS:
    raise UserError(
      f"model.preset {config.model.preset!r} is unknown; available: {', '.join(PRESETS)}"
    )
  preset = PRESETS[config.model.preset]()
  check_image_size(config.image_size, preset.patch_size)
  processor = Processor.byte_level(image_size=config.image_size)
  tokenizer = processor.tokenizer
  return dataclasses.replace(
    preset,
    image_size=config.image_size,
    vocab_size=len(tokenizer),
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
  ), processor


def workdir_path(workdir: str | Path) -> Path:
  """Returns the workdir, made if need be.

  Raises:
    UserError: it is a file or cannot be written.
  """
  path = Path(workdir).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"workdir {path} cannot be made ({error}); name another folder") from error
  return path
