"""What a source is made of: pictures whose masks are drawn only when they are asked for."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

from PIL import ExifTags, Image

from segflax.data.decode import FORMATS, load_image
from segflax.data.records import Example
from segflax.errors import UserError

# How exports call their splits, and how the data set does.
SPLIT_NAMES = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
_LYING = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclasses.dataclass(frozen=True)
class Item:
  """One picture of a source.

  Attributes:
    image_id: Names the picture; the file's stem until sources are mixed.
    image: The picture's file, or a function that returns its encoded bytes.
    split: Official split: train, val, test, or "" where the source has none.
    group: Source picture.
    source: Name of the source.
    concepts: Whose masks `masks()` returns.
    masks: Draws or reads the masks.
    annotations: Outlines, boxes and run lengths; for mask files, the files.
    boxes: Those of them that are only boxes.
  """

  image_id: str
  image: Path | Callable[[], bytes]
  split: str
  group: str
  source: str
  concepts: tuple[str, ...]
  masks: Callable[[], dict[str, Image.Image]]
  annotations: int = 0
  boxes: int = 0

  @property
  def where(self) -> str:
    """How errors name the picture."""
    return str(self.image) if isinstance(self.image, Path) else f"{self.source}: {self.image_id}"

  def picture(self, at_least: int = 0) -> Image.Image:
    """Returns the picture, decoded as `load_image` does; raises `UserError` as it does."""
    image = self.image if isinstance(self.image, Path) else self.image()
    return load_image(image, name=self.where, at_least=at_least)

  def picture_size(self) -> tuple[int, int]:
    """Returns width and height of the upright picture, from the file's header."""
    content = self.image if isinstance(self.image, Path) else io.BytesIO(self.image())
    try:
      with Image.open(content, formats=FORMATS) as opened:
        orientation = opened.getexif().get(ExifTags.Base.Orientation)
        return opened.size[::-1] if orientation in _LYING else opened.size
    except OSError:
      return self.picture().size  # says what is wrong with it

  def example(self) -> Example:
    return Example(
      image_id=self.image_id,
      image=self.image if isinstance(self.image, Path) else self.image(),
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


def official_split(name: str) -> str:
  """Returns what a source's split is called here; "" for one of another kind."""
  return next((ours for theirs, ours in SPLIT_NAMES.items() if theirs == name), "")


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
