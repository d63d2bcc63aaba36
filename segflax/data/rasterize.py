"""Outlines and run lengths to masks: a pixel is foreground when its centre lies inside.

Fills that paint the outline too (OpenCV's `fillPoly`, PIL's `polygon`) thicken a crack that is
three pixels wide to five; pixel centres keep its area.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


def polygon_mask(points: np.ndarray, height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Returns the even-odd inside of one polygon, sampled at pixel centres (x + 0.5, y + 0.5).

  Args:
    points: `[n, 2]` float, corners as (x, y) in pixels; the last joins the first.
    height: Rows of the mask.
    width: Columns of the mask.

  Returns:
    `[height, width]` bool.
  """
  points = np.asarray(points, np.float64)
  x0, y0 = points.T
  x1, y1 = np.roll(points, -1, axis=0).T
  # Rows whose centre an edge crosses, half open, so that a corner on a centre counts once.
  first = np.ceil(np.clip(np.minimum(y0, y1) - 0.5, 0, height)).astype(np.int64)
  last = np.ceil(np.clip(np.maximum(y0, y1) - 0.5, 0, height)).astype(np.int64)
  rows_per_edge = last - first
  edge = np.repeat(np.arange(len(points)), rows_per_edge)
  starts = np.cumsum(rows_per_edge) - rows_per_edge
  row = first[edge] + np.arange(len(edge)) - starts[edge]
  slope = (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
  crossing = x0[edge] + (row + 0.5 - y0[edge]) * slope
  # Every crossing switches inside and outside for all centres to its right.
  column = np.ceil(np.clip(crossing - 0.5, 0, width)).astype(np.int64)
  switches = np.zeros((height, width + 1), bool)
  np.logical_xor.at(switches, (row, column), True)
  return np.logical_xor.accumulate(switches, axis=1)[:, :width]


def box_mask(box: Sequence[float], height: int, width: int) -> Bool[np.ndarray, "h w"]:
  """Returns the mask of a box (x, y, w, h) in pixels."""
  x, y, w, h = box
  return polygon_mask(np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]), height, width)


def rle_mask(counts: str | bytes | Sequence[int], height: int, width: int):
  """Returns the mask of COCO run lengths: background first, down the columns.

  Args:
    counts: The run lengths, or COCO's string of them.
    height: Rows of the mask.
    width: Columns of the mask.

  Returns:
    `[height, width]` bool.

  Raises:
    ValueError: The runs do not cover height * width pixels.
  """
  runs = _decode_rle_string(counts) if isinstance(counts, str | bytes) else list(counts)
  if any(run < 0 for run in runs) or sum(runs) != height * width:
    raise ValueError(f"RLE covers {sum(runs)} pixels, the picture has {height}x{width}")
  values = np.arange(len(runs)) % 2 == 1
  return np.repeat(values, runs).reshape(width, height).T


def _decode_rle_string(text: str | bytes) -> list[int]:
  """Reads COCO's own code (cocoapi, `rleFrString`): 5 bits a character, low first, deltas."""
  codes = text.encode() if isinstance(text, str) else text
  runs, value, shift = [], 0, 0
  for code in codes:
    bits = code - 48
    value |= (bits & 0x1F) << shift
    shift += 5
    if bits & 0x20:  # more characters follow
      continue
    if bits & 0x10:  # sign bit of the last character
      value -= 1 << shift
    # From the fourth run on, the difference to the run before last is stored.
    runs.append(value + runs[-2] if len(runs) > 2 else value)
    value, shift = 0, 0
  return runs
