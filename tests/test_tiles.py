"""Layouts of pictures of any size: nothing lost, nothing distorted, weights that sum to one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segflax import tiles
from segflax.errors import UserError

LENGTH = st.integers(1, 300)


def picture(h, w):
  return np.random.default_rng(h * 1000 + w).integers(0, 256, (h, w, 3), np.uint8)


def planes(canvas):
  """The canvas itself as the network's answer: [3 ch cw] float32."""
  return np.float32(canvas).transpose(2, 0, 1)


@settings(max_examples=60, deadline=None)
@given(
  h=LENGTH, w=LENGTH, side=st.sampled_from([16, 48, 64]), overlap=st.sampled_from([0, 0.25, 0.6])
)
def test_identity_is_reassembled_exactly(h, w, side, overlap):
  image = picture(h, w)
  layout = tiles.tile((h, w), side, 16, side, overlap)
  canvases = list(layout.cut(image))
  assert len(canvases) == len(layout)
  whole = layout.blend(planes(canvas) for canvas in canvases)
  assert whole.dtype == np.float32
  # Integers up to 255 in float32: the nearest integer is the exact value.
  np.testing.assert_allclose(whole, planes(image), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(h=LENGTH, w=LENGTH, side=st.integers(8, 80), overlap=st.floats(0, 0.8))
def test_weights_sum_to_one_and_neighbours_overlap(h, w, side, overlap):
  layout = tiles.tile((h, w), 32, 8, side, overlap)
  ones = [np.ones((1, *layout.canvas), np.float32)] * len(layout)
  np.testing.assert_allclose(layout.blend(ones), 1, atol=1e-6)
  for starts, length in ((layout.tops, h), (layout.lefts, w)):
    assert starts[0] == 0 and starts[-1] == max(0, length - side)
    assert all(0 < b - a <= side - int(side * overlap) for a, b in itertools.pairwise(starts))


@settings(max_examples=100, deadline=None)
@given(
  h=st.integers(1, 5000),
  w=st.integers(1, 5000),
  grid=st.integers(1, 32),
  patch=st.sampled_from([8, 16]),
)
def test_canvas_keeps_the_aspect_and_the_area(h, w, grid, patch):
  layout = tiles.fit((h, w), grid * patch, patch)
  (ch, cw), (kh, kw) = layout.content, layout.canvas
  assert kh % patch == 0 and kw % patch == 0 and kh * kw <= (grid * patch) ** 2
  assert 1 <= ch <= kh and 1 <= cw <= kw
  # One scale for both sides, up to the rounding to whole pixels (and never below one pixel).
  scale = max(kh / h, kw / w) if min(ch, cw) == 1 else None
  if scale is None:
    assert abs(ch / h - cw / w) <= 0.5 / h + 0.5 / w + 1e-9


@pytest.mark.parametrize("image_size, patch", [(352, 16), (512, 16), (80, 8)])
def test_few_canvases_and_little_padding(image_size, patch):
  g = image_size // patch
  canvases = set()
  for aspect in np.geomspace(1 / 3, 3, 400):
    layout = tiles.fit((round(1000 * aspect), 1000), image_size, patch)
    canvases.add(layout.canvas)
    used = np.prod(layout.content) / np.prod(layout.canvas)
    assert used > (0.85 if g >= 22 else 0.7), (aspect, layout)
  assert len(canvases) <= 2 * g - 1


def test_a_square_picture_fills_the_square_canvas():
  layout = tiles.fit((640, 640), 352, 16)
  assert layout.canvas == layout.content == (352, 352) and len(layout) == 1


def test_upsampling_is_bilinear_with_aligned_pixel_centres():
  """Against the definition, written as a loop over pixels."""
  layout = tiles.fit((50, 70), 32, 16)
  answer = np.random.default_rng(0).random((1, *layout.canvas), np.float32)
  ch, cw = layout.content
  expected = np.empty((50, 70))
  for y in range(50):
    for x in range(70):
      v, u = (y + 0.5) * ch / 50 - 0.5, (x + 0.5) * cw / 70 - 0.5
      v0, u0 = int(np.floor(v)), int(np.floor(u))
      total = 0.0
      for i, a in ((v0, v0 + 1 - v), (v0 + 1, v - v0)):
        for j, b in ((u0, u0 + 1 - u), (u0 + 1, u - u0)):
          total += a * b * answer[0, np.clip(i, 0, ch - 1), np.clip(j, 0, cw - 1)]
      expected[y, x] = total
  np.testing.assert_allclose(layout.blend([answer])[0], expected, atol=1e-5)


def test_answers_must_match_the_windows():
  layout = tiles.tile((100, 100), 32, 16, 32)
  with pytest.raises(ValueError):
    layout.blend([np.zeros((1, 32, 32), np.float32)])


def test_bad_tiles_are_refused():
  with pytest.raises(UserError, match="0 pixels"):
    tiles.tile((100, 100), 32, 16, 0)
  with pytest.raises(UserError, match="overlap 1"):
    tiles.tile((100, 100), 32, 16, 32, 1.0)
