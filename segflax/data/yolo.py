"""YOLO labels: `<split>/{images,labels}` or `{images,labels}/<split>`, one text file a picture.

A line is `class x y w h` (a box about its centre) or `class x1 y1 x2 y2 x3 y3 …` (an outline),
in shares of the picture's width and height.
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from segflax.data import rasterize
from segflax.data.items import (
  IMAGE_SUFFIXES,
  SPLIT_NAMES,
  Item,
  Source,
  contained,
  outside,
  source_group,
  source_name,
)

CLASSES = "classes.txt"  # labelImg leaves it among the labels: a class name a line

# A corner may miss the border by a rounding error of the export, no more.
_SLACK = 0.01


def recognises(folder: Path) -> bool:
  return bool(_parts(folder))


def read(folder: Path, concept: str) -> Source:
  """Reads pictures and their label files.

  Args:
    folder: Holds the splits, or `images/` and `labels/`, and perhaps `data.yaml`.
    concept: What all classes show; empty takes the class names of `data.yaml` or `classes.txt`.
  """
  described, problems = _described(folder)
  names, found = _class_names(folder, described)
  problems += found
  name = source_name(folder)
  rows_of, unlabelled = {}, 0
  for split, images, labels in _parts(folder):
    stems, labelled, found = _paired(folder, images, labels)
    problems += found
    for stem, path in stems.items():
      unlabelled += stem not in labelled
      rows, found = _rows(labelled[stem]) if stem in labelled else ([], [])
      place = (labels / f"{stem}.txt").relative_to(folder)
      problems += [f"{place}, {problem}" for problem in found]
      rows_of[path] = split, rows
  used = sorted({number for _, rows in rows_of.values() for number, _ in rows})
  names = {number: f"class {number}" for number in used} | names
  concept_of = {number: concept or names[number] for number in used}
  vouched = (concept,) if concept else tuple(dict.fromkeys(concept_of.values()))
  items = [
    _item(
      path,
      [(concept_of[n], values) for n, values in rows],
      vouched,
      split,
      source_group(name, path.relative_to(folder)),
      name,
    )
    for path, (split, rows) in rows_of.items()
  ]
  notes = [f"classes {used} are all taken as {concept!r}"] if concept and len(used) > 1 else []
  if unlabelled:
    notes.append(f"{unlabelled} pictures have no label file: taken as background, as YOLO does")
  return Source(
    name=name,
    path=folder,
    layout="yolo",
    items=tuple(items),
    licenses=_licenses(described),
    notes=tuple(notes),
    problems=tuple(problems),
  )


def draw(values: list[float], height: int, width: int) -> np.ndarray:
  """Returns the mask of one line without its class, `[height, width]` bool."""
  points = np.reshape(values, (-1, 2)) * (width, height)
  if len(points) == 2:
    (x, y), (w, h) = points
    return rasterize.box_mask([x - w / 2, y - h / 2, w, h], height, width)
  return rasterize.polygon_mask(points, height, width)


def _item(path: Path, rows: list, vouched: tuple, split: str, group: str, source: str) -> Item:
  def masks() -> dict[str, Image.Image]:
    width, height = item.picture_size()
    arrays = {concept: np.zeros((height, width), bool) for concept in vouched}
    for concept, values in rows:
      arrays[concept] |= draw(values, height, width)
    return {concept: Image.fromarray(np.uint8(255) * array) for concept, array in arrays.items()}

  item = Item(
    image_id=path.stem,
    image=path,
    split=split,
    group=group,
    source=source,
    concepts=vouched,
    masks=masks,
    annotations=Counter(concept for concept, _ in rows),
    boxes=Counter(concept for concept, values in rows if len(values) == 4),
  )
  return item


def _paired(folder: Path, images: Path, labels: Path) -> tuple[dict, dict, list[str]]:
  """Returns stem -> picture, stem -> label file, and what cannot be paired."""
  found, problems = contained(folder, [images, labels])
  if problems:
    return {}, {}, problems
  found = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
  pictures, problems = contained(folder, found)
  stems = {}
  for path in pictures:
    if path.stem in stems:
      place = path.parent.relative_to(folder)
      problems.append(f"{place}: {path.name} and {stems[path.stem].name} share a stem")
    stems.setdefault(path.stem, path)
  known = {path.stem for path in found}
  texts = [p for p in sorted(labels.glob("*.txt")) if p.stem in known or p.name != CLASSES]
  lost = [f"label {p.relative_to(folder)} has no picture" for p in texts if p.stem not in known]
  texts, escaped = contained(folder, [path for path in texts if path.stem in known])
  return stems, {path.stem: path for path in texts}, problems + lost + escaped


def _rows(path: Path) -> tuple[list[tuple[int, list[float]]], list[str]]:
  rows, problems = [], []
  try:
    text = path.read_text(errors="replace")
  except OSError as error:  # such as a link to nothing: no label would mean background
    return [], [f"it cannot be read ({error.strerror})"]
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      kind, *values = [float(word) for word in line.split()]
    except ValueError:
      problems.append(f"line {number}: not numbers")
      continue
    problem = _row_problem(kind, values)
    if problem:
      problems.append(f"line {number}: {problem}")
    else:
      rows.append((int(kind), values))
  return rows, problems


def _row_problem(kind: float, values: list[float]) -> str:
  if not math.isfinite(kind) or kind != int(kind) or kind < 0:
    return f"class {kind} is not a class number"
  if len(values) != 4 and (len(values) < 6 or len(values) % 2):
    return f"{len(values)} numbers are neither a box (4) nor an outline (6, 8, …)"
  if not all(math.isfinite(v) and -_SLACK <= v <= 1 + _SLACK for v in values):
    return "coordinates must lie in 0..1 (shares of the picture)"
  return "the box is empty" if len(values) == 4 and min(values[2:]) <= 0 else ""


def _described(folder: Path) -> tuple[dict, list[str]]:
  """Returns what `data.yaml` holds."""
  path = folder / "data.yaml"
  if not path.is_file():
    return {}, []
  if problem := outside(folder, path):
    return {}, [problem]
  try:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
  except (yaml.YAMLError, ValueError, OSError) as error:
    return {}, [f"data.yaml: not YAML ({type(error).__name__})"]
  return (content, []) if isinstance(content, dict) else ({}, ["data.yaml: no mapping"])


def _class_names(folder: Path, described: dict) -> tuple[dict[int, str], list[str]]:
  """Returns class number -> name."""
  if not described:
    return _listed_names(folder)
  try:
    names = described["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in pairs}, []
  except (KeyError, TypeError, ValueError) as error:
    return {}, [f"data.yaml: no class names can be read ({type(error).__name__})"]


def _listed_names(folder: Path) -> tuple[dict[int, str], list[str]]:
  places = [folder / CLASSES, *(labels / CLASSES for _, _, labels in _parts(folder))]
  found, problems = contained(folder, [path for path in places if path.is_file()])
  texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in found}
  lines = {path: [line.strip() for line in text.splitlines()] for path, text in texts.items()}
  for path in found[1:]:
    if lines[path] != lines[found[0]]:
      first, other = found[0].relative_to(folder), path.relative_to(folder)
      problems.append(f"{first} and {other} name the classes differently; make them alike")
  names = enumerate(lines[found[0]]) if found else ()
  return {number: name for number, name in names if name}, problems


def _licenses(described: dict) -> tuple[str, ...]:
  """Returns the licence that Roboflow states in `data.yaml`."""
  try:
    stated = described["roboflow"]["license"]
  except (KeyError, TypeError):
    return ()
  return (stated,) if isinstance(stated, str) and stated.strip() else ()


def _parts(folder: Path) -> list[tuple[str, Path, Path]]:
  """Returns (split, images, labels) for either order of the folders."""
  places = [("", folder / "images", folder / "labels")]
  for split, name in SPLIT_NAMES.items():
    places.append((name, folder / split / "images", folder / split / "labels"))
    places.append((name, folder / "images" / split, folder / "labels" / split))
  return [
    place
    for place in places
    if all(path.is_dir() for path in place[1:]) and any(p.is_file() for p in place[1].iterdir())
  ]
