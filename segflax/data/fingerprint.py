"""Which pictures show the same thing, whatever their names are.

The fingerprint is a 64x64 grey thumbnail without its low frequencies; two pictures are the same
where the thumbnails correlate in one of the eight ways to turn and mirror a square.

Why not a 64-bit perceptual hash: walls are nearly flat, and its low frequencies see only the
light and the black corners of a sheared copy: on the 1,217 real pictures (drywall_qa and
crackforest) pHash gives distance 0 to different walls. Without the low frequencies, joints,
cracks and grain decide. There, 15 pairs with different names correlate at 0.72 or more, and by
eye all 15 are one picture; the next 35 pairs, from 0.70 downwards, are all different walls.

What it does not see: copies turned by a few degrees, sheared or cropped hard. Of the 503 pairs of
Roboflow's augmented copies in drywall_qa it finds 106; the others are kept together by name.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 64
THRESHOLD = 0.71
_BLUR = 2.0  # pixels of the thumbnail; what is wider than this is light, not content
_CLIP = 3.0  # in medians: the hard edge of a black corner must not outweigh the wall
_BLOCK = 1024  # rows compared at a time: bounds the memory, not the result


def fingerprint(picture: Image.Image) -> Float[np.ndarray, "n"]:
  """Returns a picture's fingerprint, `[SIZE * SIZE]` float32 of mean 0 and length 1."""
  grey = picture.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
  values = np.asarray(grey, np.float32)
  detail = values - gaussian_filter(values, _BLUR)
  scale = np.median(np.abs(detail)) + 0.5  # half a grey level: flat pictures have only noise
  detail = np.clip(detail / scale, -_CLIP, _CLIP).ravel()
  detail -= detail.mean()
  return detail / max(np.linalg.norm(detail), 1e-6)


def near_duplicates(
  prints: Float[np.ndarray, "b n"], threshold: float = THRESHOLD
) -> Iterator[tuple[int, int, float]]:
  """Yields (i, j, correlation), i < j, for all pairs that show the same thing.

  Args:
    prints: `[b, SIZE * SIZE]`, rows from `fingerprint`.
    threshold: Least correlation, over the eight turns and mirrors of a square.
  """
  for start in range(0, len(prints), _BLOCK):
    block = prints[start : start + _BLOCK]
    best = np.full((len(block), len(prints) - start), -1, np.float32)
    for turned in _turns(block):
      np.maximum(best, turned @ prints[start:].T, out=best)
    for i, j in np.argwhere(np.triu(best >= threshold, 1)):
      yield start + int(i), start + int(j), float(best[i, j])


def _turns(prints: np.ndarray) -> Iterator[np.ndarray]:
  squares = prints.reshape(-1, SIZE, SIZE)
  for quarter in range(4):
    turned = np.rot90(squares, quarter, axes=(1, 2))
    yield turned.reshape(len(prints), -1)
    yield turned[:, :, ::-1].reshape(len(prints), -1)


def clusters(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[int]:
  """Joins what shares a name or a pair.

  Args:
    names: One per picture; equal names belong together.
    pairs: Numbers of pictures that belong together.

  Returns:
    Per picture the number of its cluster, which is that of the cluster's first picture.
  """
  parent = list(range(len(names)))

  def root(i: int) -> int:
    while parent[i] != i:
      parent[i] = parent[parent[i]]
      i = parent[i]
    return i

  first = {}
  same_name = [(first.setdefault(name, i), i) for i, name in enumerate(names)]
  for i, j in [*same_name, *pairs]:
    low, high = sorted((root(i), root(j)))
    parent[high] = low
  return [root(i) for i in range(len(names))]
