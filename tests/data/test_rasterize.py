"""Masks from outlines and run lengths, against a loop over pixel centres and scikit-image."""

import numpy as np
import pytest
import skimage.draw
from hypothesis import given, settings
from hypothesis import strategies as st

from segflax.data import rasterize

_COORDINATE = st.floats(-6, 24, allow_nan=False, width=32)


def _loop(points, height, width):
  """Even-odd rule, one pixel at a time: count the edges to the right of each centre."""
  mask = np.zeros((height, width), bool)
  for row in range(height):
    for column in range(width):
      x, y, inside = column + 0.5, row + 0.5, False
      for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
          inside = not inside
      mask[row, column] = inside
  return mask


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(_COORDINATE, _COORDINATE), min_size=3, max_size=9))
def test_any_polygon_equals_the_loop(points):
  points = np.array(points, np.float64)
  expected = _loop(points, 13, 17)
  actual = rasterize.polygon_mask(points, 13, 17)
  # A centre that lies on an edge may fall to either side; random corners rarely hit one.
  assert (expected != actual).sum() <= 1


def test_thin_crack_agrees_with_skimage():
  rng = np.random.default_rng(0)
  x = np.linspace(3.2, 195.7, 60)
  y = 60 + np.cumsum(rng.normal(0, 3, 60))
  outline = np.concatenate([np.stack([x, y], 1), np.stack([x, y + 2.3], 1)[::-1]])
  # polygon2mask takes pixel (r, c) for the point (r, c): shift the centres onto it.
  expected = skimage.draw.polygon2mask((120, 200), outline[:, ::-1] - 0.5)
  actual = rasterize.polygon_mask(outline, 120, 200)
  assert (expected & actual).sum() / (expected | actual).sum() > 0.999
  assert 300 < actual.sum() < 600


def test_box_on_pixel_borders_is_exact():
  mask = rasterize.box_mask([2, 1, 3, 4], 8, 9)
  expected = np.zeros((8, 9), bool)
  expected[1:5, 2:5] = True
  np.testing.assert_array_equal(mask, expected)
  # Half a pixel belongs to the box that holds its centre.
  assert rasterize.box_mask([0, 0, 1.4, 1], 1, 3).tolist() == [[True, False, False]]
  assert rasterize.box_mask([-5, -5, 100, 100], 3, 4).all()


def test_neighbours_share_no_pixel_and_leave_no_gap():
  left = rasterize.polygon_mask(np.array([[0, 0], [7.5, 0], [3.5, 10], [0, 10]]), 10, 12)
  right = rasterize.polygon_mask(np.array([[7.5, 0], [12, 0], [12, 10], [3.5, 10]]), 10, 12)
  assert (left ^ right).all()


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 6))
def test_both_forms_of_run_lengths_give_the_mask_back(values, height):
  values = values[: len(values) // height * height] or [True] * height
  mask = np.array(values).reshape(-1, height).T
  runs = _runs(mask)
  for counts in (runs, _rle_string(runs), _rle_string(runs).encode()):
    np.testing.assert_array_equal(rasterize.rle_mask(counts, *mask.shape), mask)


def test_known_rle_string():
  # cocoapi: encode(ones((2, 2)) with the first column empty) gives counts b"22".
  np.testing.assert_array_equal(rasterize.rle_mask("22", 2, 2), [[False, True], [False, True]])


def test_run_lengths_that_do_not_cover_the_picture_are_refused():
  with pytest.raises(ValueError, match="covers 5 pixels, the picture has 2x3"):
    rasterize.rle_mask([2, 3], 2, 3)


def _runs(mask):
  flat, runs, value = mask.T.ravel(), [0], False
  for pixel in flat:
    if pixel != value:
      runs.append(0)
      value = pixel
    runs[-1] += 1
  return runs


def _rle_string(runs):
  """cocoapi's rleToString, as its C code has it."""
  text = ""
  for i, run in enumerate(runs):
    x = run - runs[i - 2] if i > 2 else run
    more = True
    while more:
      c = x & 0x1F
      x >>= 5
      more = x != -1 if c & 0x10 else x != 0
      text += chr((c | 0x20 if more else c) + 48)
  return text
