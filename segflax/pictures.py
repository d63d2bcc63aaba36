"""Any picture that Pillow has opened to upright 8-bit RGB."""

import numpy as np
from PIL import Image, ImageOps

from segflax.errors import UserError


def upright(image: Image.Image) -> Image.Image:
  """Returns a picture as its EXIF orientation wants it shown."""
  if image.format is None and not image.info:
    return image  # Made in memory: exif_transpose would copy it for nothing.
  return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
  """Returns a picture as 8-bit RGB.

  CMYK and palettes are converted, 16-bit values are scaled to 8, transparent parts are laid on
  white, grey is repeated.

  Args:
    image: of any mode; returned as it is where nothing is to be done.
    name: what to call the picture in errors.

  Raises:
    UserError: its values have more than 16 bits.
  """
  if image.mode == "RGB" and "transparency" not in image.info:
    return image
  if image.mode == "F" or image.mode.startswith("I"):
    return _scale_to_8_bits(image, name).convert("RGB")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image, name: str) -> Image.Image:
  # Pillow's own conversion clips 16-bit values at 255, which turns most pictures white.
  values = np.asarray(image)
  if image.mode == "F" or values.min() < 0 or values.max() > 65535:
    raise UserError(
      f"{name} has {image.mode} pixels beyond 16 bits, whose range is a matter of taste; "
      "convert it to 8 or 16 bits"
    )
  return Image.fromarray(np.round(values / 257).astype(np.uint8))
