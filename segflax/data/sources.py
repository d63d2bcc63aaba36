"""What users bring: a folder in any of the known layouts becomes a `Source`.

Each layout is a module with `recognises(folder) -> bool` and `read(folder, concept) -> Source`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from segflax.data import coco, mask_folders, origin, tfds_source, yolo
from segflax.data.items import Item, Source, listed
from segflax.data.mixing import distinct
from segflax.data.records import Example
from segflax.errors import UserError

__all__ = [
  "LAYOUTS",
  "Example",
  "Item",
  "Source",
  "of_name",
  "read_named_source",
  "read_named_sources",
  "read_source",
]

LAYOUTS = {  # in the order in which they are tried
  "tfds": tfds_source,
  "coco": coco,
  "origin": origin,
  "masks": mask_folders,
  "yolo": yolo,
}


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
    UserError: The folder is missing or not of this layout, or records break rules.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f"source {folder} is not a folder; give the folder that holds the export")
  if layout and layout not in LAYOUTS:
    raise UserError(f"layout {layout!r} is unknown; known are {', '.join(LAYOUTS)}")
  fitting = [name for name, module in LAYOUTS.items() if module.recognises(folder)]
  if not layout and not fitting:
    raise UserError(f"source {folder} is in no known layout; known are {', '.join(LAYOUTS)}")
  if layout and layout not in fitting:
    fits = f"it fits {', '.join(fitting)}" if fitting else f"known are {', '.join(LAYOUTS)}"
    raise UserError(f"source {folder} is not in the layout {layout!r}; {fits}")
  source = LAYOUTS[layout or fitting[0]].read(folder, concept)
  if strict and source.problems:
    raise UserError(f"{folder}: {listed(source.problems)}; mend these records")
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


def read_named_sources(
  texts: Sequence[str], licenses: Sequence[str] = (), *, strict: bool = True
) -> list[Source]:
  """Reads the sources of a command line; each gets a name of its own.

  Args:
    texts: [CONCEPT=]DIR[:LAYOUT] each.
    licenses: SOURCE=TEXT or CONCEPT=TEXT each, for what the folders do not say themselves.
    strict: As for `read_source`.

  Raises:
    UserError: As `read_source`; or a licence is of no source.
  """
  sources = distinct([read_named_source(text, strict=strict) for text in texts])
  for text in licenses:
    named, stated = of_name(sources, text, "--license")
    sources = [
      dataclasses.replace(s, licenses=(*s.licenses, stated)) if s.name in named else s
      for s in sources
    ]
  return sources


def of_name(sources: Sequence[Source], text: str, option: str) -> tuple[list[str], str]:
  """Returns the sources that NAME=VALUE is about, and VALUE.

  Args:
    sources: All of them.
    text: NAME is a source's name, or a concept: then those are meant that show only it.
    option: Where the text stands, for the error.

  Raises:
    UserError: No source is meant, or there is no value.
  """
  names = {source.name: [source.name] for source in sources}
  for source in sources:
    if len(source.concepts) == 1 and source.concepts[0] not in names:
      names[source.concepts[0]] = [s.name for s in sources if s.concepts == source.concepts]
  # A name may hold "=" itself: the longest that fits is meant.
  for name in sorted(names, key=len, reverse=True):
    if text.startswith(f"{name}=") and text.removeprefix(f"{name}=").strip():
      return names[name], text.removeprefix(f"{name}=").strip()
  raise UserError(
    f"{option}={text}: no source or concept is called {text.partition('=')[0]!r}, or nothing "
    f"follows it; NAME=VALUE is needed, the names are {', '.join(names)}"
  )
