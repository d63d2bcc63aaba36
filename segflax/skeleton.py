"""Thinning of masks to lines one pixel wide (Guo and Hall 1989, as in Lam, Lee and Suen 1992).

Written here because one function is no reason to depend on scikit-image, which is the oracle.
"""

import numpy as np
from jaxtyping import Bool

# Neighbours as (row, column) steps: east first, then counterclockwise.
_STEPS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def _removable() -> Bool[np.ndarray, "2 256"]:
  """Returns, per half of an iteration and neighbourhood code, whether its centre may go."""
  x = (np.arange(256)[:, None] >> np.arange(8)) & 1 > 0  # x[code, k]: neighbour k is foreground
  odd, even = np.arange(1, 8, 2), np.arange(0, 8, 2)
  crossings = (~x[:, even] & (x[:, even + 1] | x[:, (even + 2) % 8])).sum(1)
  pairs = (x[:, odd] | x[:, odd - 1]).sum(1), (x[:, odd] | x[:, (odd + 1) % 8]).sum(1)
  few = np.minimum(*pairs)
  thinnable = (crossings == 1) & (few >= 2) & (few <= 3)
  first = (x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0]
  second = (x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4]
  return np.stack([thinnable & ~first, thinnable & ~second])


_REMOVABLE = _removable()


def skeletonize(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  """Thins a mask until nothing can go.

  Args:
    mask: foreground where not zero.

  Returns:
    A subset of the mask, with as many pieces.
  """
  padded = np.ascontiguousarray(np.pad(np.asarray(mask) > 0, 1))
  flat = padded.reshape(-1)  # a view
  steps = np.array([row * padded.shape[1] + column for row, column in _STEPS])
  weights = 1 << np.arange(8)
  # Only a pixel whose neighbourhood has changed can have become removable, so each half of an
  # iteration looks at those alone: the cost is that of the pixels removed, not of the picture.
  candidates = [np.flatnonzero(flat)] * 2
  half = 0
  while len(candidates[0]) or len(candidates[1]):
    at = candidates[half][flat[candidates[half]]]
    codes = flat[at[:, None] + steps] @ weights
    gone = at[_REMOVABLE[half, codes]]
    flat[gone] = False
    touched = np.unique((gone[:, None] + steps).ravel())
    candidates[half] = touched
    candidates[1 - half] = np.union1d(candidates[1 - half], touched)
    half = 1 - half
  return padded[1:-1, 1:-1]
