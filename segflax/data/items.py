"""What a source is made of: pictures whose masks are drawn only when they are asked for."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from segflax.data.records import Example
from segflax.errors import UserError

# How exports call their splits, and how the data set does.
SPLIT_NAMES = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Item:
  """One picture of a source.

  Attributes:
    image_id: Names the picture; the file's stem until sources are mixed.
    image: The picture's file, or its encoded bytes.
    split: Official split: train, val, test, or "" where the source has none.
    group: Source picture.
    source: Name of the source.
    concepts: Whose masks `masks()` returns.
    masks: Draws or reads the masks.
    annotations: Outlines, boxes and run lengths; for mask files, the files.
    boxes: Those of them that are only boxes.
  """

  image_id: str
  image: Path | bytes
  split: str
  group: str
  source: str
  concepts: tuple[str, ...]
  masks: Callable[[], dict[str, Image.Image]]
  annotations: int = 0
  boxes: int = 0

  def example(self) -> Example:
    return Example(
      image_id=self.image_id,
      image=self.image,
      masks=self.masks(),
      group=self.group,
      source=self.source,
    )


@dataclasses.dataclass(frozen=True)
class Source:
  """A folder as it was read.

  Attributes:
    name: How records name it.
    path: Where it is.
    layout: Which reader understood it.
    items: Its pictures; what `problems` names is left out.
    licenses: As the source states them.
    notes: What the reader decided, one sentence each.
    problems: What breaks a rule, each with the record and the rule.
  """

  name: str
  path: Path
  layout: str
  items: tuple[Item, ...]
  licenses: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  problems: tuple[str, ...] = ()

  @property
  def concepts(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(concept for item in self.items for concept in item.concepts))


def source_group(file_name: str) -> str:
  """Returns the source picture's name: Roboflow appends `.rf.<hash>` to each augmented copy."""
  name = Path(file_name).name
  return name.split(".rf.")[0] if ".rf." in name else Path(name).stem


def inside(folder: Path, name: str) -> Path:
  """Returns `folder / name`, which must stay in the folder.

  Raises:
    UserError: It leaves the folder, through `..`, an absolute path or a link.
  """
  path = folder / name
  if not path.resolve().is_relative_to(folder.resolve()):
    raise UserError(f"{name!r} leaves the folder; only files inside it are read")
  return path
