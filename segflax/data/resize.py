"""To the network's size: pictures smoothed, masks as the exact share of each pixel they cover."""

import functools

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy import sparse


def fit_image(image: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Returns an RGB picture squashed to a square, bilinear with antialiasing.

  As transformers' processor for CLIPSeg does it, aspect ratio included.
  """
  if image.size != (size, size):
    image = image.resize((size, size), Image.Resampling.BILINEAR)
  return np.asarray(image)


def fit_mask(mask: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
  """Returns the coverage 0..255 of each pixel of a square by a {0, 255} mask.

  The exact mean over the area of the pixel, so a thin crack keeps its area whatever the scale;
  Pillow's BOX only averages the source pixels whose centres lie inside.
  """
  if mask.size == (size, size):
    return np.asarray(mask)
  out = np.zeros((size, size), np.uint8)
  box = mask.getbbox()
  if box is None:
    return out
  # Masks are mostly empty: only what lies around the foreground is computed.
  left, top, right, bottom = box
  rows, down = _shares(mask.height, size, top, bottom)
  columns, across = _shares(mask.width, size, left, right)
  inside = np.asarray(mask.crop(box), np.float32)
  covered = (across @ (down @ inside).T).T
  out[rows, columns] = covered + 0.5  # Rounded, not cut.
  return out


def _shares(length: int, size: int, start: int, stop: int):
  """Returns the slice of pixels that [start, stop) touches, and the sparse averaging into it."""
  touched = slice(start * size // length, -(-stop * size // length))
  return touched, _averaging(length, size)[touched, start:stop]


@functools.lru_cache(maxsize=64)
def _averaging(length: int, size: int) -> sparse.csr_array:
  """Returns `[size, length]`: the share of each of `length` cells in each of `size` wider ones."""
  edges = np.arange(size + 1) * (length / size)
  before = np.clip(edges[:, None] - np.arange(length), 0, 1)  # of each cell, left of each edge
  return sparse.csr_array(((before[1:] - before[:-1]) * (size / length)).astype(np.float32))
