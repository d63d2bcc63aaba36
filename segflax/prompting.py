"""From what a user asks with (texts, example pictures) to the decoder's conditions, each once."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from segflax.arrays import Array
from segflax.data.decode import load_image, load_mask
from segflax.errors import UserError
from segflax.models import conditions
from segflax.models.clipseg import CLIPSeg
from segflax.models.processor import Processor

Picture = str | Path | bytes | np.ndarray | Image.Image


@dataclasses.dataclass(frozen=True, eq=False)
class VisualPrompt:
  """A prompt by example (the paper's visual prompt), alone or mixed with a text.

  Attributes:
    name: key of the result, and part of file names.
    image: support picture.
    mask: where in it the thing is: of the same size, {0, 255}, {0, 1} or bool.
    text: prompt to mix with; None: the example alone.
    text_weight: w of `w * text + (1 - w) * image` where text is given.
  """

  name: str
  image: Picture
  mask: Picture
  text: str | None = None
  text_weight: float = 0.5


Prompt = str | VisualPrompt


class PromptEncoder:
  """Encodes each distinct prompt once in its life."""

  def __init__(
    self, model: CLIPSeg, processor: Processor, image_size: int, templates: Sequence[str]
  ):
    self.model, self.processor = model, processor
    self.image_size, self.templates = image_size, tuple(templates)
    self._known: dict[Prompt, np.ndarray] = {}
    self._apply = jax.jit(
      lambda params, x, method: model.apply({"params": params}, x, method=method),
      static_argnums=2,
    )

  def __call__(self, params: dict, prompts: Sequence[Prompt]) -> Float[np.ndarray, "q p"]:
    """Returns the conditions of prompts, float32; no rows for no prompts.

    Raises:
      UserError: a prompt that the tokenizer refuses, an unreadable or empty support.
    """
    for prompt in prompts:
      if prompt not in self._known:
        encode = self._visual if isinstance(prompt, VisualPrompt) else self._text
        self._known[prompt] = np.asarray(encode(params, prompt))
    width = self.model.config.projection_dim
    return np.array([self._known[prompt] for prompt in prompts], np.float32).reshape(-1, width)

  def _text(self, params: dict, prompt: str) -> Float[Array, "p"]:
    tokens = self.processor.tokenize(conditions.fill(self.templates, prompt))
    # What stands behind the end token changes nothing, and few lengths are few compilations.
    length = min(-(-tokens.shape[1] // 16) * 16, self.model.config.max_text_length)
    padding = ((0, 0), (0, length - tokens.shape[1]))
    tokens = np.pad(tokens, padding, constant_values=self.processor.tokenizer.pad_token_id)
    return conditions.ensemble(self._apply(params, tokens, "encode_text"))

  def _visual(self, params: dict, prompt: VisualPrompt) -> Float[Array, "p"]:
    mask = np.asarray(load_mask(as_source(prompt.mask))) > 0
    picture = np.asarray(load_image(as_source(prompt.image)))
    pixels = conditions.visual_prompt(picture, mask, self.image_size)
    image = self._apply(params, pixels[None], "embed_image")[0]
    if prompt.text is None:
      return image
    return conditions.interpolate(self._text(params, prompt.text), image, prompt.text_weight)


def names_of(prompts: Sequence[Prompt]) -> list[str]:
  """Returns what the results of prompts are called.

  Raises:
    UserError: one text instead of a list, no prompt, or two of one name.
  """
  if isinstance(prompts, str):
    raise UserError(f"prompts is the text {prompts!r}; give a list of prompts")
  names = [p.name if isinstance(p, VisualPrompt) else p for p in prompts]
  if not names:
    raise UserError("there is no prompt; give at least one, such as 'segment crack'")
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(f"prompt {twice[0]!r} is given twice; results are named by prompt")
  return names


def as_source(image: Picture) -> str | Path | bytes | Image.Image:
  """Returns arrays as PIL pictures; the rest is what `load_image` and `load_mask` take.

  Raises:
    UserError: an array that is not uint8 or bool, `[h w]` or `[h w 3]`.
  """
  if not isinstance(image, np.ndarray):
    return image
  if image.dtype not in (bool, np.uint8) or image.shape[2:] not in ((), (3,)) or not image.size:
    raise UserError(
      f"a picture is an array {image.dtype} {list(image.shape)}; give uint8 [h w 3] or [h w]"
    )
  return Image.fromarray(image * np.uint8(255) if image.dtype == bool else image)
