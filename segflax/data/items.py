"""What a source is made of: pictures whose masks are drawn only when they are asked for."""

import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import ExifTags, Image

from segflax.data.decode import DECODE_ERRORS, FORMATS, load_image
from segflax.data.records import Example

# How exports call their splits, and how the data set does.
SPLIT_NAMES = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
_LYING = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_LISTED = 5  # sentences that an error writes out


@dataclasses.dataclass(frozen=True)
class Item:
  """One picture of a source.

  Attributes:
    image_id: Names the picture; the file's stem until sources are mixed.
    image: The picture's file, or a function that returns its encoded bytes.
    split: Official split: train, val, test, or "" where the source has none.
    group: Source picture, named alike in all sources (`source_group`).
    source: Name of the source, which is its `Source.name`.
    concepts: Whose masks `masks()` returns.
    masks: Draws or reads the masks.
    annotations: Per concept its outlines, boxes and run lengths; for mask files, the files.
    boxes: Those of them that are only boxes.
    merged: Names of the sources, where copies of the picture from several are one item.
  """

  image_id: str
  image: Path | Callable[[], bytes]
  split: str
  group: str
  source: str
  concepts: tuple[str, ...]
  masks: Callable[[], dict[str, Image.Image]]
  annotations: Counter[str] = dataclasses.field(default_factory=Counter)
  boxes: Counter[str] = dataclasses.field(default_factory=Counter)
  merged: tuple[str, ...] = ()

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of all sources that the picture is from."""
    return self.merged or (self.source,)

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
    except DECODE_ERRORS:
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


def source_name(folder: Path) -> str:
  """Returns how records name the source in a folder: the last two parts of its full path."""
  folder = folder.resolve()
  return f"{folder.parent.name}/{folder.name}"


def source_group(source: str, place: Path) -> str:
  """Returns the source picture's name.

  Roboflow appends `.rf.<hash>` to each augmented copy; what stands before it names the picture in
  all splits and exports. Any other file is its own: many sources number theirs from 0 in every
  split, and real copies are found by content.

  Args:
    source: Name of the source.
    place: The picture's file, seen from the source's folder.
  """
  if ".rf." in place.name:
    return place.name.split(".rf.")[0]
  return f"{source}/{place.with_suffix('').as_posix()}"


def outside(folder: Path, path: Path) -> str:
  """Returns "" where a path leads into the folder, else the rule it breaks.

  Args:
    folder: The source's folder.
    path: In it as it is written; `..`, an absolute path or a link may lead elsewhere.
  """
  name = path.relative_to(folder) if path.is_relative_to(folder) else path
  try:
    real = path.resolve()
  except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
    return f"{str(name)!r} is no path ({error})"
  if real.is_relative_to(folder.resolve()):
    return ""
  return f"{str(name)!r} leaves the folder; only files inside it are read"


def contained(folder: Path, paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
  """Returns the paths that lead into the folder, and what is wrong with the others."""
  paths = list(paths)
  reasons = [outside(folder, path) for path in paths]
  kept = [path for path, reason in zip(paths, reasons, strict=True) if not reason]
  return kept, [reason for reason in reasons if reason]


def listed(sentences: Sequence[str]) -> str:
  """Returns the first sentences as one, and how to see the others."""
  rest = len(sentences) - _LISTED
  more = f"; and {rest} more (scripts/check_data.py --page lists all)" if rest > 0 else ""
  return "; ".join(sentences[:_LISTED]) + more
