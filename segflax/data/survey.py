"""One look at every picture and its masks, before anything is split, stored or trained."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

from segflax.data import fingerprint, mixing
from segflax.data.items import Item
from segflax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MaskLook:
  """What one mask is like.

  Attributes:
    area: Share of the picture that is foreground.
    box_share: Foreground over the area of its parts' bounding boxes; 1 is all boxes, 0 is empty.
    thickness: Median width in pixels along the middle lines of the foreground; 0 where empty.
  """

  area: float
  box_share: float = 0.0
  thickness: float = 0.0


@dataclasses.dataclass(frozen=True)
class Look:
  """What one picture is like.

  Attributes:
    size: Width and height, upright.
    digest: sha256 of the file.
    print: Its `fingerprint`.
    masks: Per concept.
    contrast: Standard deviation of its grey values; 0 for a picture of one colour.
    unreadable: Why the picture cannot be used, or "".
    problems: What is wrong with its masks, one sentence each.
  """

  size: tuple[int, int] = (0, 0)
  digest: str = ""
  print: np.ndarray | None = None
  masks: dict[str, MaskLook] = dataclasses.field(default_factory=dict)
  contrast: float = 0.0
  unreadable: str = ""
  problems: tuple[str, ...] = ()


def survey(items: Sequence[Item], *, shapes: bool = False) -> Iterable[Look]:
  """Yields one `Look` per item, in order.

  Args:
    items: The pictures.
    shapes: Measure box share and thickness, too; costs about as much as everything else.
  """
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    yield from pool.map(lambda item: look_at(item, shapes=shapes), items)


def look_at(item: Item, *, shapes: bool = False) -> Look:
  """Looks at one picture; what is wrong stands in the result."""
  try:
    size = item.picture_size()
    picture = item.picture(at_least=fingerprint.SIZE)
    digest = mixing.content_hash(item)
  except (UserError, OSError) as error:
    return Look(unreadable=str(error))
  masks, problems = {}, []
  try:
    drawn = item.masks()
  except UserError as error:
    drawn = {}
    problems.append(str(error))
  for concept, mask in drawn.items():
    if mask.size != size:
      problems.append(
        f"{item.where}: the mask of {concept!r} is {mask.width}x{mask.height}, "
        f"its picture {size[0]}x{size[1]}"
      )
    else:
      masks[concept] = mask_look(np.asarray(mask) > 0, shapes)
  grey = np.asarray(picture.convert("L"), np.float32)
  return Look(
    size=size,
    digest=digest,
    print=fingerprint.fingerprint(picture),
    masks=masks,
    contrast=float(grey.std()),
    problems=tuple(problems),
  )


def mask_look(mask: np.ndarray, shapes: bool) -> MaskLook:
  """Measures a `[h, w]` bool mask."""
  area = float(mask.mean())
  if not shapes or not area:
    return MaskLook(area)
  parts, _ = ndimage.label(mask, np.ones((3, 3)))
  boxes = sum((r.stop - r.start) * (c.stop - c.start) for r, c in ndimage.find_objects(parts))
  # The middle lines are where the distance to the background has its ridge. The border of the
  # picture is background, too: what it cuts is measured by what can be seen.
  distance = ndimage.distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
  ridge = (distance == ndimage.maximum_filter(distance, 3)) & mask
  thickness = float(np.median(2 * distance[ridge] - 1))
  return MaskLook(area, float(mask.sum() / boxes), thickness)
