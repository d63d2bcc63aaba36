"""YOLO labels: `<split>/{images,labels}` or `{images,labels}/<split>`, one text file a picture.

A line is `class x y w h` (a box about its centre) or `class x1 y1 x2 y2 x3 y3 …` (an outline),
in shares of the picture's width and height.
"""

import math
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from segflax.data import rasterize
from segflax.data.items import IMAGE_SUFFIXES, SPLIT_NAMES, Item, Source, inside, source_group

# A corner may miss the border by a rounding error of the export, no more.
_SLACK = 0.01


def recognises(folder: Path) -> bool:
  return bool(_parts(folder))


def read(folder: Path, concept: str) -> Source:
  """Reads pictures and their label files.

  Args:
    folder: Holds the splits, or `images/` and `labels/`, and perhaps `data.yaml`.
    concept: What all classes show; empty takes the class names of `data.yaml`.
  """
  names, problems = _class_names(folder)
  name = f"{folder.parent.name}/{folder.name}"
  rows_of, unlabelled = {}, 0
  for split, images, labels in _parts(folder):
    stems = {p.stem: p for p in sorted(images.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}
    for path in sorted(labels.glob("*.txt")):
      if path.stem not in stems:
        problems.append(f"label {path.relative_to(folder)} has no picture")
    for stem, path in stems.items():
      label = labels / f"{stem}.txt"
      unlabelled += not label.is_file()
      rows, found = _rows(inside(labels, label.name)) if label.is_file() else ([], [])
      problems += [f"{label.relative_to(folder)}, {problem}" for problem in found]
      rows_of[inside(images, path.name)] = split, rows
  used = sorted({number for _, rows in rows_of.values() for number, _ in rows})
  names = {number: f"class {number}" for number in used} | names
  concept_of = {number: concept or names[number] for number in used}
  vouched = (concept,) if concept else tuple(dict.fromkeys(concept_of.values()))
  items = [
    _item(path, [(concept_of[n], values) for n, values in rows], vouched, split, name)
    for path, (split, rows) in rows_of.items()
  ]
  notes = [f"classes {used} are all taken as {concept!r}"] if concept and len(used) > 1 else []
  if unlabelled:
    notes.append(f"{unlabelled} pictures have no label file: taken as background, as YOLO does")
  return Source(name, folder, "yolo", tuple(items), notes=tuple(notes), problems=tuple(problems))


def draw(values: list[float], height: int, width: int) -> np.ndarray:
  """Returns the mask of one line without its class, `[height, width]` bool."""
  points = np.reshape(values, (-1, 2)) * (width, height)
  if len(points) == 2:
    (x, y), (w, h) = points
    return rasterize.box_mask([x - w / 2, y - h / 2, w, h], height, width)
  return rasterize.polygon_mask(points, height, width)


def _item(path: Path, rows: list, vouched: tuple, split: str, source: str) -> Item:
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
    group=source_group(path.name),
    source=source,
    concepts=vouched,
    masks=masks,
    annotations=len(rows),
    boxes=sum(len(values) == 4 for _, values in rows),
  )
  return item


def _rows(path: Path) -> tuple[list[tuple[int, list[float]]], list[str]]:
  rows, problems = [], []
  for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
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
  if kind != int(kind) or kind < 0:
    return f"class {kind} is not a class number"
  if len(values) != 4 and (len(values) < 6 or len(values) % 2):
    return f"{len(values)} numbers are neither a box (4) nor an outline (6, 8, …)"
  if not all(math.isfinite(v) and -_SLACK <= v <= 1 + _SLACK for v in values):
    return "coordinates must lie in 0..1 (shares of the picture)"
  return "the box is empty" if len(values) == 4 and min(values[2:]) <= 0 else ""


def _class_names(folder: Path) -> tuple[dict[int, str], list[str]]:
  path = folder / "data.yaml"
  if not path.is_file():
    return {}, []
  try:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = content["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in pairs}, []
  except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
    return {}, [f"data.yaml: no class names can be read ({type(error).__name__})"]


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
