"""What users bring: a folder in any of the known layouts becomes a `Source`.

Each layout is a module with `recognises(folder) -> bool` and `read(folder, concept) -> Source`.
"""

from pathlib import Path

from segflax.data import coco, mask_folders, origin, tfds_source, yolo
from segflax.data.items import Item, Source
from segflax.data.records import Example
from segflax.errors import UserError

__all__ = ["LAYOUTS", "Example", "Item", "Source", "read_named_source", "read_source"]

LAYOUTS = {  # in the order in which they are tried
  "tfds": tfds_source,
  "coco": coco,
  "origin": origin,
  "masks": mask_folders,
  "yolo": yolo,
}
_SHOWN = 5  # problems that an error names in full


def read_source(
  folder: str | Path, concept: str = "", *, layout: str = "", strict: bool = True
) -> Source:
  """Reads one source.

  Args:
    folder: Where it is.
    concept: What its masks show; empty takes the labels' own names.
    layout: A key of `LAYOUTS`; empty recognises it.
    strict: Refuse a source with problems; otherwise they are listed in it.

  Raises:
    UserError: The folder is missing, its layout is unknown, or records break rules.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f"source {folder} is not a folder; give the folder that holds the export")
  if layout and layout not in LAYOUTS:
    raise UserError(f"layout {layout!r} is unknown; known are {', '.join(LAYOUTS)}")
  fitting = [name for name, module in LAYOUTS.items() if module.recognises(folder)]
  if not layout and not fitting:
    raise UserError(f"source {folder} is in no known layout; known are {', '.join(LAYOUTS)}")
  source = LAYOUTS[layout or fitting[0]].read(folder, concept)
  if strict and source.problems:
    rest = len(source.problems) - _SHOWN
    more = f" and {rest} more (scripts/check_data.py lists them)" if rest > 0 else ""
    raise UserError(f"{folder}: {'; '.join(source.problems[:_SHOWN])}{more}; mend these records")
  if strict and not source.items:
    raise UserError(f"source {folder} ({source.layout}) holds no picture")
  return source


def read_named_source(text: str, *, strict: bool = True) -> Source:
  """Reads a source given as [CONCEPT=]DIR[:LAYOUT]."""
  concept, separator, folder = text.partition("=")
  if not separator or Path(text).is_dir():
    concept, folder = "", text
  folder, colon, layout = folder.rpartition(":")
  if not colon or layout not in LAYOUTS:
    folder, layout = folder + colon + layout, ""
  return read_source(folder, concept.strip(), layout=layout, strict=strict)
