"""What a decoder can be conditioned on besides one text: templates, example pictures, mixtures."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import correlate1d

from segflax.arrays import Array
from segflax.errors import UserError
from segflax.models.clip_vision import IMAGE_MEAN, IMAGE_STD

# "shuffle+" of Lüddecke & Ecker 2022
TEMPLATES = (
  "a photo of a {}.",
  "a photograph of a {}.",
  "an image of a {}.",
  "{}.",
  "a cropped photo of a {}.",
  "a good photo of a {}.",
  "a photo of one {}.",
  "a bad photo of a {}.",
  "a photo of the {}.",
)
_BLUR_RADIUS, _BLUR_SIGMA = 7, 3.0  # a window of 15 x 15
_BACKGROUND = 0.1
_CONTEXT = 0.1  # of the box's sides, added on each of them before cropping


def fill(templates: Sequence[str], phrase: str) -> list[str]:
  """Returns the phrase in each template.

  Raises:
    UserError: a template does not have exactly one "{}".
  """
  for template in templates:
    if template.count("{}") != 1:
      raise UserError(f'template {template!r} must have one "{{}}", where the phrase goes')
  return [template.replace("{}", phrase) for template in templates]


def ensemble(embeddings: Float[Array, "*batch t p"]) -> Float[Array, "*batch p"]:
  """Returns the mean over t templates.

  Plain, not over unit vectors as in CLIP's zero-shot classification: FiLM reads the embedding's
  length too, and the decoder was trained on lengths as they come.
  """
  return jnp.mean(embeddings, axis=-2)


def interpolate(
  text: Float[Array, "*batch p"],
  image: Float[Array, "*batch p"],
  weight: float | Float[Array, "*#batch 1"],
) -> Float[Array, "*batch p"]:
  """Returns `weight * text + (1 - weight) * image` (Lüddecke & Ecker 2022, section 3.1)."""
  return weight * text + (1 - weight) * image


def visual_prompt(
  image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "mh mw"], size: int
) -> Float[np.ndarray, "size size 3"]:
  """Prepares a support picture so that its embedding speaks of the masked thing.

  The paper's best visual prompt: the background is blurred and darkened to a tenth, the box
  around the mask is cut out with a tenth of its sides around it and padded to a square. Darkening
  and padding are towards the mean colour, because the original does both after normalising.

  Args:
    image: support picture, RGB.
    mask: where the thing is; not empty.
    size: side of the result in px, a multiple of the model's patch.

  Returns:
    Normalised pixels, for `CLIPSeg.embed_image`.

  Raises:
    UserError: mask and picture differ in size, or the mask is empty.
  """
  if mask.shape != image.shape[:2]:
    raise UserError(
      f"support mask is {mask.shape[1]} x {mask.shape[0]} px, its picture {image.shape[1]} x "
      f"{image.shape[0]}; give a mask of the same size"
    )
  if not mask.any():
    raise UserError("the support mask is empty; mark the thing to look for")
  pixels = (image / np.float32(255) - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
  inside = mask[..., None].astype(np.float32)
  pixels = pixels * inside + _BACKGROUND * _blur(pixels) * (1 - inside)
  top, bottom = _extent(mask.any(1))
  left, right = _extent(mask.any(0))
  crop = pixels[top:bottom, left:right]
  side = max(crop.shape[:2])
  square = np.zeros((side, side, 3), np.float32)
  y, x = ((side - n) // 2 for n in crop.shape[:2])
  square[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
  # The original takes the nearest pixel here; the tower was trained on bilinear pictures.
  channels = [
    Image.fromarray(square[..., c]).resize((size, size), Image.Resampling.BILINEAR)
    for c in range(3)
  ]
  return np.stack([np.asarray(c, np.float32) for c in channels], axis=-1)


def _blur(pixels: np.ndarray) -> np.ndarray:
  """OpenCV's GaussianBlur(15 x 15, sigma 3) and its reflected borders."""
  x = np.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
  kernel = np.exp(-(x**2) / (2 * _BLUR_SIGMA**2))
  kernel /= kernel.sum()
  return correlate1d(correlate1d(pixels, kernel, 0, mode="mirror"), kernel, 1, mode="mirror")


def _extent(occupied: Bool[np.ndarray, "n"]) -> tuple[int, int]:
  """Returns start and end of what is occupied, with context, within the picture."""
  where = np.flatnonzero(occupied)
  start, end = int(where[0]), int(where[-1]) + 1
  context = _CONTEXT * (end - start)
  return int(max(0, start - context)), int(min(len(occupied), end + context))
