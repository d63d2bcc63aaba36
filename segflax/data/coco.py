"""COCO annotations as Roboflow exports them: `<split>/_annotations.coco.json` beside the pictures.

Every category that has annotations counts (category 0 of an export is a placeholder); an
annotation without an outline falls back to its box. Each file numbers its categories for itself.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from segflax.data import coco_rules, rasterize
from segflax.data.items import SPLIT_NAMES, Item, Source, contained, source_group, source_name

ANNOTATIONS = "_annotations.coco.json"


def recognises(folder: Path) -> bool:
  return bool(_annotation_files(folder))


def read(folder: Path, concept: str) -> Source:
  """Reads every split of an export.

  Args:
    folder: Holds `train/`, `valid/`, `test/`, or the annotation file itself.
    concept: What all categories show; empty makes each category a concept of its own name.
  """
  files, problems = contained(folder, _annotation_files(folder))
  exports = {}
  for path in files:
    try:
      content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
      problems.append(f"{path.relative_to(folder)}: not JSON ({error})")
      continue
    exports[path], found = coco_rules.usable(content, path.parent)
    problems += [f"{path.relative_to(folder)}: {problem}" for problem in found]
  used = list(dict.fromkeys(name for export in exports.values() for name in _used(export)))
  source = source_name(folder)
  items = []
  for path, export in exports.items():
    names = {category["id"]: category["name"] for category in export["categories"]}
    # A file vouches only for the categories that it lists: nobody looked for others.
    vouched = (concept,) if concept else tuple(n for n in used if n in names.values())
    split = SPLIT_NAMES[path.parent.name] if path.parent != folder else ""
    by_image = {image["id"]: [] for image in export["images"]}
    for annotation in export["annotations"]:
      by_image[annotation["image_id"]].append(annotation)
    for image in export["images"]:
      drawn = [(concept or names[a["category_id"]], a) for a in by_image[image["id"]]]
      group = source_group(source, path.parent.relative_to(folder) / image["file_name"])
      items.append(_item(path.parent, image, drawn, vouched, split, group, source))
  notes = []
  if concept and len(used) > 1:
    notes.append(f"categories {sorted(used)} are all taken as {concept!r}")
  for path, export in exports.items():
    if beyond := coco_rules.beyond_border(export):
      listed = ", ".join(map(str, beyond[:5])) + (", …" if len(beyond) > 5 else "")
      place = path.parent.name
      notes.append(f"{place}: annotations {listed} reach beyond their picture and are cut there")
  licenses = [entry["name"] for export in exports.values() for entry in export["licenses"]]
  return Source(
    name=source,
    path=folder,
    layout="coco",
    items=tuple(items),
    licenses=tuple(dict.fromkeys(licenses)),
    notes=tuple(notes),
    problems=tuple(problems),
  )


def draw(annotation: dict, height: int, width: int) -> np.ndarray:
  """Returns one annotation's mask, `[height, width]` bool; its box where it has no outline."""
  segmentation = annotation["segmentation"]
  if not segmentation:
    return rasterize.box_mask(annotation["bbox"], height, width)
  if isinstance(segmentation, dict):
    return rasterize.rle_mask(segmentation["counts"], height, width)
  mask = np.zeros((height, width), bool)
  for flat in segmentation:
    mask |= rasterize.polygon_mask(np.reshape(flat, (-1, 2)), height, width)
  return mask


def _item(
  folder: Path, image: dict, drawn: list, vouched: tuple, split: str, group: str, source: str
) -> Item:
  def masks() -> dict[str, Image.Image]:
    height, width = image["height"], image["width"]
    arrays = {concept: np.zeros((height, width), bool) for concept in vouched}
    for concept, annotation in drawn:
      arrays[concept] |= draw(annotation, height, width)
    return {concept: Image.fromarray(np.uint8(255) * array) for concept, array in arrays.items()}

  return Item(
    image_id=Path(image["file_name"]).stem,
    image=folder / image["file_name"],
    split=split,
    group=group,
    source=source,
    concepts=vouched,
    masks=masks,
    annotations=Counter(concept for concept, _ in drawn),
    boxes=Counter(concept for concept, a in drawn if not a["segmentation"]),
  )


def _used(export: dict) -> list[str]:
  """Returns the names of the categories that have annotations."""
  numbers = {annotation["category_id"] for annotation in export["annotations"]}
  return [c["name"] for c in export["categories"] if c["id"] in numbers]


def _annotation_files(folder: Path) -> list[Path]:
  found = [folder / ANNOTATIONS] + [folder / split / ANNOTATIONS for split in SPLIT_NAMES]
  return [path for path in found if path.is_file()]
