"""What is stored: an example becomes one record of encoded bytes."""

import io
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import ExifTags, Image
from scipy import ndimage

from segflax.data.decode import load_image
from segflax.errors import UserError

_JPEG_QUALITY = 92  # with halved colour, as cameras do: it decodes faster than full colour


class Example(TypedDict):
  """What a source yields.

  Attributes:
    image_id: Unique in the data set; names the files that are written for the picture.
    image: Where the picture is, its encoded bytes, or the picture.
    masks: Concept to a mode "L" mask of the picture's size, values {0, 255}. An empty mask: the
      source vouches that the concept is absent. No mask: nobody knows.
    group: The source picture; its copies and augmentations share it and never part at a split.
    source: Where it came from.
  """

  image_id: str
  image: Path | bytes | Image.Image
  masks: dict[str, Image.Image]
  group: str
  source: str


def encode(example: Example, max_size: int = 0) -> dict:
  """Returns the record of an example: `image` and `masks` as encoded bytes, and its size.

  A picture that needs no change is stored byte for byte.

  Args:
    example: The example.
    max_size: Longest side in pixels that is stored; 0 stores the picture as large as it is.

  Raises:
    UserError: The picture cannot be read, or a mask is not of its size or of values {0, 255}.
  """
  name = None if isinstance(example["image"], Path) else example["image_id"]
  picture = load_image(example["image"], name=name)
  size = _stored_size(picture.size, max_size)
  masks = [
    png_bytes(shrink_mask(_mask_array(mask, picture.size, example["image_id"], concept), size))
    for concept, mask in example["masks"].items()
  ]
  return {
    "image": _image_bytes(example["image"], picture, size),
    "masks": masks,
    "concepts": list(example["masks"]),
    "image_id": example["image_id"],
    "group": example["group"],
    "source": example["source"],
    "height": size[1],
    "width": size[0],
  }


def png_bytes(mask: np.ndarray) -> bytes:
  """Returns a `[h, w]` uint8 mask as a PNG file."""
  buffer = io.BytesIO()
  # Level 1: of a mask it makes 3 KiB instead of 1, and decodes in less than half the time.
  Image.fromarray(mask).save(buffer, "PNG", compress_level=1)
  return buffer.getvalue()


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns a mask at a smaller size, each connected part with its share of foreground.

  Coverage of at least one half would wipe out lines thinner than a stored pixel; here the pixels
  with the most coverage are taken until the area is reached. Part by part: a hairline would lose
  its pixels to the edges of a broad band.

  Args:
    mask: `[h, w]` uint8, values {0, 255}.
    size: Width and height to store.

  Returns:
    `[size[1], size[0]]` uint8, values {0, 255}.
  """
  if size == mask.shape[::-1]:
    return mask
  width, height = size
  small = np.zeros(height * width, np.uint8)
  parts, _ = ndimage.label(mask, np.ones((3, 3)))
  y, x = np.nonzero(parts)
  if not len(y):
    return small.reshape(height, width)
  # The stored pixel that the centre of each foreground pixel lies in, and how many do, per part.
  row, column = (2 * y + 1) * height // (2 * len(mask)), (2 * x + 1) * width // (2 * mask.shape[1])
  places, covered = np.unique(
    (parts[y, x].astype(np.int64) * height + row) * width + column, return_counts=True
  )
  part, places = np.divmod(places, height * width)
  areas = np.bincount(parts[y, x])
  total = max(1, round(len(y) * small.size / mask.size))
  # Rounded sums, not rounded parts: a thousand specks are not a thousand stored pixels.
  budgets = np.diff(np.rint(np.cumsum(areas) * (total / len(y))), prepend=0).astype(int)
  ends = np.cumsum(np.bincount(part))
  for start, end, budget in zip(ends, ends[1:], budgets[1:], strict=False):
    small[places[start:end][_largest(covered[start:end], budget)]] = 255
  return small.reshape(height, width)


def _largest(values: np.ndarray, n: int) -> np.ndarray:
  """Returns where the n largest stand; of equal ones as many as fit, evenly spread."""
  if n == 0 or n >= len(values):
    return np.arange(min(n, len(values)))
  least = np.partition(values, -n)[-n]
  larger, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
  # All of a straight line's pixels are equal: the first ones would be its beginning only.
  k = n - len(larger)
  return np.concatenate([larger, equal[(2 * np.arange(k) + 1) * len(equal) // (2 * k)]])


def _stored_size(size: tuple[int, int], max_size: int) -> tuple[int, int]:
  scale = max_size / max(size) if max_size else 1.0
  if scale >= 1:
    return size
  return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _mask_array(mask: Image.Image, size, image_id: str, concept: str) -> np.ndarray:
  if mask.size != size:
    raise UserError(
      f"{image_id}: the mask of {concept!r} is {mask.width}x{mask.height}, its picture "
      f"{size[0]}x{size[1]}; masks must be of their picture's size"
    )
  array = np.asarray(mask)
  if array.ndim != 2 or not ((array == 0) | (array == 255)).all():
    raise UserError(f"{image_id}: the mask of {concept!r} must be one channel of values 0 and 255")
  return array.astype(np.uint8)


def _upright(opened: Image.Image) -> bool:
  return opened.getexif().get(ExifTags.Base.Orientation) in (None, 1)


def _image_bytes(image, picture: Image.Image, size: tuple[int, int]) -> bytes:
  """Returns the given file where every reader sees the same in it, else a new encoding."""
  if isinstance(image, Path):
    image = image.read_bytes()
  lossless = True
  if isinstance(image, bytes):
    with Image.open(io.BytesIO(image)) as opened:
      lossless = opened.format == "PNG"
      plain = opened.format in ("JPEG", "PNG") and opened.mode == "RGB"
      if plain and size == picture.size and _upright(opened):
        return image
  if size != picture.size:
    picture, lossless = picture.resize(size, Image.Resampling.BOX, reducing_gap=None), False
  buffer = io.BytesIO()
  if lossless:
    picture.save(buffer, "PNG")
  else:
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
  return buffer.getvalue()
