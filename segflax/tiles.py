"""How a picture of any size meets a network of one size: a fitted canvas, or overlapping tiles.

A picture is cut into equal windows (one, if it is not large), each is resized without distortion
and padded to a multiple of the patch, and the answers are resized back and blended with weights
that sum to one at every pixel.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from segflax.errors import UserError

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the windows of one picture lie, and how each is shown to the network.

  Attributes:
    size: of the picture, in pixels, as all sizes here: (height, width).
    window: of every window, in the picture's pixels.
    content: the window as the network sees it.
    canvas: content padded at the bottom and on the right to multiples of the patch.
    tops: first row of each row of windows.
    lefts: first column of each column of windows.
  """

  size: Size
  window: Size
  content: Size
  canvas: Size
  tops: tuple[int, ...]
  lefts: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.tops) * len(self.lefts)

  def cut(self, picture: UInt8[np.ndarray, "h w 3"]) -> Iterator[UInt8[np.ndarray, "ch cw 3"]]:
    """Yields the canvas of each window, row by row."""
    pad = [(0, canvas - content) for canvas, content in zip(self.canvas, self.content, strict=True)]
    h, w = self.window
    for top in self.tops:
      for left in self.lefts:
        content = _resize(picture[top : top + h, left : left + w], self.content)
        # Mirrored, because a constant margin would be an edge that the picture does not have.
        yield np.pad(content, [*pad, (0, 0)], mode="symmetric")

  def blend(self, answers: Iterable[Float[np.ndarray, "q ch cw"]]) -> Float[np.ndarray, "q h w"]:
    """Reassembles what the network said of each canvas, in the order of `cut`.

    Args:
      answers: float32 maps, one `[q, ch, cw]` per window.

    Returns:
      float32 `[q, h, w]` at the picture's size: bilinear upsampling, then the weighted mean.
    """
    rows = _weights(self.size[0], self.window[0], self.tops)
    columns = _weights(self.size[1], self.window[1], self.lefts)
    (h, w), whole = self.window, None
    places = ((i, j) for i in range(len(self.tops)) for j in range(len(self.lefts)))
    for (i, j), answer in zip(places, answers, strict=True):
      if whole is None:
        whole = np.zeros((len(answer), *self.size), np.float32)
      weight = rows[i][:, None] * columns[j]
      top, left = self.tops[i], self.lefts[j]
      for q, one in enumerate(answer):
        content = _resize(one[: self.content[0], : self.content[1]], self.window)
        whole[q, top : top + h, left : left + w] += weight * content
    return whole


def fit(size: Size, image_size: int, patch: int) -> Layout:
  """Lays out the whole picture as one window, its aspect kept and its area about image_size².

  The canvas is the best of the at most 2 g - 1 grids of g² patches or just fewer
  (g = image_size / patch), so that a mixed folder needs few compilations.

  Args:
    size: of the picture.
    image_size: side of the square pictures that the network was trained on.
    patch: side of a patch of the vision tower; divides image_size.
  """
  g, (h, w) = image_size // patch, size
  grids = {(gh, g * g // gh) for gh in range(1, g * g + 1)}
  # The grid in which the picture is largest; of equals the one with the least padding.
  scale, _, gh, gw = max(
    (min(gh * patch / h, gw * patch / w), -gh * gw, gh, gw) for gh, gw in grids
  )
  canvas = (gh * patch, gw * patch)
  content = tuple(
    min(side, max(1, round(length * scale))) for length, side in zip(size, canvas, strict=True)
  )
  return Layout(size, size, content, canvas, (0,), (0,))


def tile(size: Size, image_size: int, patch: int, side: int, overlap: float = 0.25) -> Layout:
  """Lays out a picture as overlapping square windows.

  Args:
    size: of the picture; where it is shorter than `side`, the windows are too.
    image_size: what a window's side is resized to.
    patch: side of a patch of the vision tower; divides image_size.
    side: of a window, in the picture's pixels.
    overlap: share of a window, in [0, 1), that neighbours have in common at least.

  Raises:
    UserError: side or overlap is out of range.
  """
  if side < 1:
    raise UserError(f"a tile of {side} pixels is empty; use about {image_size}")
  if not 0 <= overlap < 1:
    raise UserError(f"tile overlap {overlap} is not in [0, 1); use 0.25")
  window = tuple(min(side, length) for length in size)
  content = tuple(max(1, round(length * image_size / side)) for length in window)
  canvas = tuple(math.ceil(length / patch) * patch for length in content)
  tops, lefts = (_starts(length, side, int(side * overlap)) for length in size)
  return Layout(size, window, content, canvas, tops, lefts)


def parse(text: str) -> str | int | None:
  """Reads a script's --tile: "auto", "none" (None) or the side of a window in pixels.

  Raises:
    UserError: it is none of these.
  """
  if text.isdecimal():
    return int(text)
  if text not in ("auto", "none"):
    raise UserError(f"--tile {text} is neither auto, none nor a number of pixels")
  return None if text == "none" else text


def _starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
  """First pixels of the fewest evenly spread windows that overlap enough and end at the border."""
  if length <= side:
    return (0,)
  count = math.ceil((length - overlap) / (side - overlap))
  return tuple(int(start) for start in np.linspace(0, length - side, count).round())


def _weights(length: int, side: int, starts: tuple[int, ...]) -> Float[np.ndarray, "n side"]:
  """Triangular weights of the windows along one axis, normalised to sum to one at every pixel.

  Triangular, because an answer is the better the farther it lies from its window's border. The
  product over both axes sums to one as well, so blending needs no second, dividing pass.
  """
  hat = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
  total = np.zeros(length)
  for start in starts:
    total[start : start + side] += hat
  return np.stack([hat / total[start : start + side] for start in starts]).astype(np.float32)


def _resize(array: np.ndarray, size: Size) -> np.ndarray:
  """Bilinear, pixel centres aligned, antialiased when shrinking; uint8 [h w 3] or float32 [h w]."""
  if array.shape[:2] == size:
    return array
  return np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling.BILINEAR))
