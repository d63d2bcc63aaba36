"""From a config to the objects of a run: data set, prompts, model, parameters, processor."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from segflax import lora, losses, optimizer, steps, walls
from segflax.data import builder
from segflax.data.augment import AugmentConfig
from segflax.data.eval_stream import make_eval_stream
from segflax.data.prompts import PromptSet
from segflax.data.train_stream import make_train_stream
from segflax.errors import UserError
from segflax.evaluate import EvalSplit
from segflax.models import pretrained
from segflax.models.clip_vision import check_image_size
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params
from segflax.models.processor import Processor
from segflax.plateau import Plateau
from segflax.trainable import trainable_regex

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
    walls.ensure(config)
  info = builder.load_info(config.data_dir)
  for split in (config.data.train_split, config.data.val_split):
    if split not in info.splits:
      raise UserError(
        f"{info.path} has no split {split!r}, only {', '.join(info.splits)}; prepare it again, "
        "or name another with --config.data.train_split or --config.data.val_split"
      )
  return info


def make_prompts(config: ConfigDict, info: builder.DatasetInfo) -> PromptSet:
  """Returns the table of every prompt that training and evaluation use."""
  return PromptSet.create(info.concepts, config.prompts.synonyms, config.prompts.templates)


def make_model(config: ConfigDict) -> Model:
  """Loads the pretrained model that the config names, or makes a fresh one; adds LoRA's factors.

  Raises:
    UserError: unknown preset, weights that do not fit, image_size not a multiple of the patch.
  """
  if config.model.pretrained:
    model, params, processor = pretrained.from_pretrained(config.model.pretrained, seed=config.seed)
    architecture = model.config
  else:
    architecture, processor = _fresh(config)
    params = None
  architecture = dataclasses.replace(architecture, decoder_dropout=config.model.decoder_dropout)
  # Pictures are prepared for use as they were for training, whatever size the weights came with.
  processor = dataclasses.replace(processor, image_size=config.image_size)
  check_image_size(config.image_size, config.image_size, architecture.patch_size)
  if params is None:
    params = init_params(architecture, jax.random.key(config.seed))
  if config.lora.rank:
    params = lora.add(
      params,
      jax.random.key(config.seed),
      rank=config.lora.rank,
      alpha=config.lora.alpha or None,
    )
  params = jax.device_get(params)
  module = CLIPSeg(
    architecture,
    dtype=jnp.bfloat16 if config.mixed_precision else jnp.float32,
    attention=config.model.attention,
    remat=config.remat,
  )
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


def train_image_id(config: ConfigDict, info: builder.DatasetInfo) -> Callable[[int], str]:
  """Returns the function from record number to name of the training pictures."""
  records = builder.open_split(info.path, config.data.train_split)
  return lambda index: records[index]["image_id"]


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
    rates=dict(config.optimizer.rates),
    b1=config.optimizer.b1,
    b2=config.optimizer.b2,
    eps=config.optimizer.eps,
  )


def make_plateau(config: ConfigDict) -> Plateau:
  """Returns the schedule that reduces the rate while `plateau.metric` stands still."""
  options = config.plateau.to_dict()
  del options["metric"]
  return Plateau(config.lr, **options)


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
  check_image_size(config.image_size, config.image_size, preset.patch_size)
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
