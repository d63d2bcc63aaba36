"""Reading pictures and masks that somebody else made: one form out, whatever comes in.

Only raster formats whose decoders are hardened and widely fuzzed are read; the size is checked in
the header, before a pixel is allocated; whatever the decoder trips over names the file.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from segflax.errors import UserError
from segflax.pictures import to_rgb, upright

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million, 256 MiB decoded; Pillow only warns there

# Pillow asks the system for every picture's memory anew, and the kernel hands it out page by page,
# which can cost more than decoding. Kept instead are up to 16 MiB, in pieces that fit all sizes.
if "PILLOW_BLOCKS_MAX" not in os.environ:
  Image.core.set_block_size(256 * 1024)
  Image.core.set_blocks_max(64)

# What Pillow's plugins are known to raise on malformed files.
DECODE_ERRORS = (
  OSError,
  SyntaxError,
  ValueError,
  TypeError,
  LookupError,
  ArithmeticError,
  EOFError,
  MemoryError,
  NotImplementedError,
  struct.error,
  zlib.error,
  Image.DecompressionBombError,
)


def load_image(
  image: str | Path | bytes | Image.Image, *, name: str | None = None, at_least: int = 0
) -> Image.Image:
  """Returns a picture as upright 8-bit RGB.

  EXIF orientation is applied, CMYK and palettes are converted, 16-bit values are scaled to 8,
  transparent parts are laid on white, grey is repeated; of several frames the first is taken.

  Args:
    image: path, encoded bytes, or a picture (returned converted, never modified).
    name: what to call the picture in errors; by default its path.
    at_least: a JPEG may be decoded at a half, quarter or eighth of its size as long as both
      sides keep this many pixels (it costs that much less); 0: always full size.

  Raises:
    UserError: the file is missing, of another format, too large, or damaged.
  """
  return _read(image, name, at_least, to_rgb)


def load_mask(mask: str | Path | bytes | Image.Image, *, name: str | None = None) -> Image.Image:
  """Returns a mask as mode "L" with the values {0, 255}.

  Read are one channel of {0, 255} or {0, 1}, and, in palette or colour files, black with at most
  one other colour. Orientation is applied as for pictures.

  Args:
    mask: path, encoded bytes, or a picture.
    name: what to call the mask in errors; by default its path.

  Raises:
    UserError: as `load_image`, or the values are others.
  """
  return _read(mask, name, 0, _to_binary)


def _read(source, name, at_least, convert) -> Image.Image:
  if isinstance(source, Image.Image):
    name = name or getattr(source, "filename", "") or "picture in memory"
    try:
      return convert(upright(source), name)
    except DECODE_ERRORS as error:  # A picture that is opened but not decoded yet.
      raise _explain(error, name) from error
  name = name or (f"picture of {len(source)} bytes" if isinstance(source, bytes) else str(source))
  try:
    # One read: Pillow's many small ones are slow, and a path may be a network's.
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
      _check_size(opened.size, name)
      if at_least:
        opened.draft(None, (at_least, at_least))
      opened.load()
      # In place: it is nobody else's, and a picture that stands upright would be copied.
      ImageOps.exif_transpose(opened, in_place=True)
      return convert(opened, name)
  except DECODE_ERRORS as error:
    raise _explain(error, name) from error


def _explain(error: BaseException, name: str) -> UserError:
  if isinstance(error, UserError):
    return error
  if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
    return UserError(f"{name} cannot be read ({error.strerror}); mend the path or remove it")
  if isinstance(error, Image.UnidentifiedImageError):
    return UserError(
      f"{name} is none of {', '.join(FORMATS)}, or its header is damaged; "
      "convert it to one of them or remove it"
    )
  if isinstance(error, Image.DecompressionBombError):
    return UserError(f"{name} has more than {MAX_PIXELS} pixels; scale it down or cut it in tiles")
  return UserError(f"{name} is damaged ({error}); replace or remove it")


def _check_size(size: tuple[int, int], name: str):
  width, height = size
  if width * height > MAX_PIXELS:
    raise UserError(
      f"{name} is {width}x{height}, more than {MAX_PIXELS} pixels; scale it down or cut it in tiles"
    )


def _to_binary(image: Image.Image, name: str) -> Image.Image:
  if image.mode == "1":
    return image.convert("L")
  if image.mode in ("L", "I", "I;16", "I;16B", "I;16L"):
    if image.mode == "L":  # Its histogram is the cheapest look at all values.
      values = {value for value, count in enumerate(image.histogram()) if count}
    else:
      values = set(np.unique(np.asarray(image)).tolist())
    if values <= {0, 255}:
      return image if image.mode == "L" else image.convert("L")
    if values <= {0, 1}:
      return Image.fromarray(np.asarray(image).astype(np.uint8) * np.uint8(255))
    raise UserError(
      f"mask {name} has the values {sorted(values)[:5]}{'…' if len(values) > 5 else ''}; "
      "it must hold {0, 255} or {0, 1}: store it as PNG, never as JPEG"
    )
  image = image.convert("RGBA" if image.has_transparency_data else "RGB")
  if image.mode == "RGBA":
    image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
  colours = {colour for _, colour in image.getcolors(maxcolors=3) or [(0, i) for i in range(4)]}
  if len(colours - {(0, 0, 0)}) > 1:
    raise UserError(
      f"mask {name} has more colours than black and one other; store one mask per concept"
    )
  return Image.fromarray(np.where(np.asarray(image).any(-1), 255, 0).astype(np.uint8))
