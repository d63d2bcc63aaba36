"""Predictor: pictures of any size x prompts -> probabilities and masks at the pictures' size."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, UInt8

from segflax import sharding, tiles
from segflax.arrays import Array
from segflax.data.decode import load_image
from segflax.errors import UserError
from segflax.models.clip_vision import check_image_size
from segflax.models.clipseg import CLIPSeg, encode_pictures, held
from segflax.models.pretrained import from_pretrained, local_folder
from segflax.models.processor import Processor
from segflax.prompting import Picture, Prompt, PromptEncoder, VisualPrompt, as_source, names_of

__all__ = ["Predictor", "VisualPrompt"]

Maps = dict[str, np.ndarray]  # prompt -> [h w]
TILE_ABOVE = 2.0  # "auto" tiles pictures whose longer side exceeds this many image sizes


class Predictor:
  """One model, ready for pictures of any size; compiled once per canvas, batch and prompt count."""

  def __init__(
    self,
    model: CLIPSeg,
    params: dict,
    processor: Processor,
    *,
    thresholds: Mapping[str, float] | None = None,
    image_size: int | None = None,
    templates: Sequence[str] = ("{}",),
    batch_size: int = 8,
  ):
    """Puts the parameters on all local devices.

    Args:
      model: its dtype is what is computed in.
      params: all parameters of the model.
      processor: tokenizer and picture size.
      thresholds: prompt -> threshold; a prompt without one has 0.5.
      image_size: side of the square whose area the network sees; None: the processor's.
      templates: a text prompt is the mean of its embeddings in them; `{}` stands for it. The
        paper's nine are `models.conditions.TEMPLATES`.
      batch_size: canvases per pass of the network, over all local devices.

    Raises:
      UserError: image_size is not a multiple of the patch, or batch_size is below 1.
    """
    self.image_size, self.batch_size = image_size or processor.image_size, batch_size
    self.patch = model.config.patch_size
    check_image_size(self.image_size, self.image_size, self.patch)
    if batch_size < 1:
      raise UserError(f"batch_size {batch_size} is below 1; use 8")
    self.thresholds = dict(thresholds or {})
    self._mesh = sharding.make_mesh(jax.local_devices())
    self._params = sharding.replicate(held(params, model.dtype), self._mesh)
    self._encode = PromptEncoder(model, processor, self.image_size, templates)
    self._network = jax.jit(
      jax.shard_map(
        functools.partial(_probabilities, model),
        mesh=self._mesh,
        in_specs=(P(), P(sharding.AXIS), P(), P()),
        out_specs=P(sharding.AXIS),
      )
    )

  @classmethod
  def from_pretrained(cls, path: str | Path, *, bfloat16: bool = False, **options) -> "Predictor":
    """Loads a model folder, a hub id, or the best model of a run.

    Args:
      path: Hugging Face CLIPSeg folder, hub id, or a run's workdir. A folder's
        `thresholds.json` (prompt -> threshold) is used where it is there.
      bfloat16: compute in it; normalisations, softmax and probabilities stay float32.
      **options: of the constructor.

    Raises:
      UserError: nothing usable at path.
    """
    folder = path
    if (Path(path) / "checkpoints").is_dir():
      folder = Path(path) / "best_model"
      if not folder.is_dir():
        raise UserError(f"the run {path} has no best_model yet; train it for one epoch at least")
    folder = local_folder(folder)
    options = {"thresholds": _read_thresholds(folder / "thresholds.json")} | options
    model, params, processor = from_pretrained(folder)
    if bfloat16:
      model = model.clone(dtype=jnp.bfloat16)
    return cls(model, params, processor, **options)

  def __call__(
    self,
    images: Sequence[Picture],
    prompts: Sequence[Prompt],
    *,
    negatives: Sequence[Prompt] = (),
    tile: str | int | None = "auto",
  ) -> list[Maps]:
    """Asks every picture every prompt, with one pass of the vision tower.

    Args:
      images: paths, encoded bytes, uint8 arrays `[h w]` or `[h w 3]`, or PIL pictures.
      prompts: texts or VisualPrompts.
      negatives: what no prompt may cover: the largest of their probabilities is subtracted from
        every prompt's, and nothing goes below 0 (bounded difference of fuzzy sets, Zadeh 1975).
      tile: "auto": windows of image_size where the longer side exceeds twice that, else the whole
        picture; None: always the whole picture; a number: windows of so many source pixels.

    Returns:
      Per picture: prompt (a VisualPrompt's name) -> float32 `[h w]` in [0, 1], in prompt order.
      The size is that of the upright picture (EXIF orientation applied).

    Raises:
      UserError: an unreadable picture, no prompt, two prompts of one name, a bad tile.
    """
    if isinstance(images, Picture):
      raise UserError("images is a single picture; give a list of pictures")
    names = names_of(prompts)
    positive, negative = (self._encode(self._params, p) for p in (prompts, negatives))
    pictures = [np.asarray(load_image(as_source(image))) for image in images]
    layouts = [self._layout(picture.shape[:2], tile) for picture in pictures]
    by_canvas = {}
    for i, layout in enumerate(layouts):
      by_canvas.setdefault(layout.canvas, []).append(i)
    results = [{} for _ in pictures]
    for members in by_canvas.values():
      canvases = itertools.chain.from_iterable(layouts[i].cut(pictures[i]) for i in members)
      answers = self._answers(canvases, positive, negative)
      for i in members:  # Lazily: two batches of canvases and answers in memory at most.
        maps = layouts[i].blend(itertools.islice(answers, len(layouts[i])))
        results[i] = dict(zip(names, maps, strict=True))
    return results

  @property
  def num_parameters(self) -> int:
    """Numbers that the model holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(self._params))

  def threshold(self, prompt: str) -> float:
    """Returns the threshold fitted for a prompt, 0.5 where there is none."""
    if prompt not in self.thresholds:
      return 0.5
    return self.thresholds[prompt]

  def masks(self, probabilities: Sequence[Maps], threshold: float | None = None) -> list[Maps]:
    """Turns what a call returned into masks, uint8 `[h w]` {0, 255}: probability > threshold.

    Args:
      probabilities: per picture, prompt -> float32 `[h w]`.
      threshold: for all prompts; None: each prompt's own.
    """
    return [
      {
        prompt: np.uint8(255) * (p > (self.threshold(prompt) if threshold is None else threshold))
        for prompt, p in maps.items()
      }
      for maps in probabilities
    ]

  def _layout(self, size: tiles.Size, tile: str | int | None) -> tiles.Layout:
    if tile == "auto":
      tile = self.image_size if max(size) > TILE_ABOVE * self.image_size else None
    if tile is None:
      return tiles.fit(size, self.image_size, self.patch)
    if not isinstance(tile, int):
      raise UserError(f"tile {tile!r} is neither 'auto', None nor a number of pixels")
    return tiles.tile(size, self.image_size, self.patch, tile)

  def _answers(
    self,
    canvases: Iterator[UInt8[np.ndarray, "ch cw 3"]],
    positive: Float[np.ndarray, "q p"],
    negative: Float[np.ndarray, "r p"],
  ) -> Iterator[Float[np.ndarray, "q ch cw"]]:
    """Yields the probabilities of each canvas; all are of one size."""
    running, rows = (), 0
    while batch := list(itertools.islice(canvases, self.batch_size)):
      # Padded to a power of two per device: few shapes, and a single picture costs a single one.
      per_device = -(-len(batch) // self._mesh.size)
      padding = self._mesh.size * (1 << (per_device - 1).bit_length()) - len(batch)
      pixels = sharding.shard_batch(np.stack(batch + [batch[-1]] * padding), self._mesh)
      answers = self._network(self._params, pixels, positive, negative)
      # Only now: the device works on the new batch while the host blends the one before.
      yield from np.asarray(running)[:rows]
      running, rows = answers, len(batch)
    yield from np.asarray(running)[:rows]


def _probabilities(model, params, pixels, positive, negative) -> Float[Array, "b q h w"]:
  """One pass over canvases `[b h w 3]` uint8 for q prompts `[q p]` and r negative ones `[r p]`."""
  taps = encode_pictures(model, params, pixels)
  condition = jnp.concatenate([positive, negative])
  condition = jnp.broadcast_to(condition, (len(pixels), *condition.shape))
  logits = model.apply({"params": params}, taps, condition, pixels.shape[1:3], method="decode")
  wanted, unwanted = jnp.split(jax.nn.sigmoid(logits), [len(positive)], axis=1)
  return jnp.maximum(wanted - unwanted.max(axis=1, keepdims=True, initial=0), 0)


def _read_thresholds(path: Path) -> dict[str, float]:
  if not path.exists():
    return {}
  try:
    return {prompt: float(value) for prompt, value in json.loads(path.read_text()).items()}
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} is damaged ({error}); it must map prompts to numbers, or be removed"
    ) from error
