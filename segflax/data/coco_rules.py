"""What a COCO file must obey before anything is drawn from it."""

import math
from collections import Counter
from pathlib import Path

from segflax.data.decode import MAX_PIXELS
from segflax.data.items import outside
from segflax.data.rasterize import rle_mask

_LISTS = ("images", "annotations", "categories")


def usable(content: object, folder: Path) -> tuple[dict, list[str]]:
  """Separates what can be used from what breaks a rule.

  Args:
    content: The parsed annotation file.
    folder: Where its pictures are.

  Returns:
    `images`, `annotations`, `categories`, `licenses` without the records that break a rule, and
    one sentence for each that does: the record's id and the rule.
  """
  empty = {"images": [], "annotations": [], "categories": [], "licenses": []}
  if not isinstance(content, dict):
    return empty, ["the file must hold an object"]
  if missing := [k for k in _LISTS if k not in content or not isinstance(content[k], list)]:
    return empty, [f"lists missing: {', '.join(missing)}"]
  problems = []

  def keep(kind: str, records: list, rule) -> list[dict]:
    kept, seen = [], Counter()
    for record in records:
      number = record["id"] if isinstance(record, dict) and "id" in record else None
      if not isinstance(number, int | str):
        problems.append(f"{kind} without an id")
        continue
      seen[number] += 1
      if seen[number] > 1:
        problems.append(f"{kind} {number}: this id occurs twice")
      elif problem := rule(record):
        problems.append(f"{kind} {number}: {problem}")
      else:
        kept.append(record)
    return kept

  categories = keep("category", content["categories"], _category_problem)
  images = keep("image", content["images"], lambda image: _image_problem(image, folder))
  sizes = {image["id"]: (image["height"], image["width"]) for image in images}
  # Those of refused images, too: their annotations are not wrong by themselves.
  numbers = [i["id"] for i in content["images"] if isinstance(i, dict) and "id" in i]
  known = {number for number in numbers if isinstance(number, int | str)}
  names = {category["id"] for category in categories}
  annotations = keep(
    "annotation",
    [_completed(entry) for entry in content["annotations"]],
    lambda annotation: _annotation_problem(annotation, known, sizes, names),
  )
  content = {"licenses": [], **content}
  return {
    "images": images,
    # Those of a refused image go with it; the image itself has been named.
    "annotations": [a for a in annotations if a["image_id"] in sizes],
    "categories": categories,
    "licenses": _named(content["licenses"]),
  }, problems


def _completed(annotation: object) -> object:
  """Exports leave out what an annotation has not, or write null."""
  if not isinstance(annotation, dict):
    return annotation
  whole = {"segmentation": [], "bbox": None} | annotation
  return whole | {"segmentation": whole["segmentation"] or []}


def _named(licenses: object) -> list[dict]:
  entries = licenses if isinstance(licenses, list) else []
  entries = [entry for entry in entries if isinstance(entry, dict) and "name" in entry]
  return [entry for entry in entries if isinstance(entry["name"], str)]


def beyond_border(content: dict) -> list[int]:
  """Returns the ids of annotations that reach more than a pixel out of their picture."""
  sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
  found = []
  for annotation in content["annotations"]:
    if isinstance(annotation["segmentation"], dict):
      continue  # RLE covers its picture exactly
    corners = [value for polygon in annotation["segmentation"] for value in polygon]
    if not corners:
      x, y, w, h = annotation["bbox"]
      corners = [x, y, x + w, y + h]
    points = zip(corners[::2], corners[1::2], strict=True)
    width, height = sizes[annotation["image_id"]]
    if any(not (-1 <= px <= width + 1 and -1 <= py <= height + 1) for px, py in points):
      found.append(annotation["id"])
  return found


def _category_problem(category: dict) -> str:
  named = "name" in category and isinstance(category["name"], str) and category["name"].strip()
  return "" if named else "it has no name"


def _image_problem(image: dict, folder: Path) -> str:
  if missing := [key for key in ("file_name", "height", "width") if key not in image]:
    return f"{', '.join(missing)} missing"
  if not isinstance(image["file_name"], str):
    return f"file_name {image['file_name']!r} is not a name"
  width, height = image["width"], image["height"]
  if not all(type(side) is int and side > 0 for side in (width, height)):
    return f"size {width}x{height} is not a size in pixels"
  if width * height > MAX_PIXELS:
    return f"size {width}x{height} is more than {MAX_PIXELS} pixels"
  path = folder / image["file_name"]
  if problem := outside(folder, path):
    return problem
  return "" if path.is_file() else f"file {image['file_name']!r} is missing"


def _annotation_problem(annotation: dict, known: set, sizes: dict, categories: set) -> str:
  if missing := [key for key in ("image_id", "category_id") if key not in annotation]:
    return f"{', '.join(missing)} missing"
  if not all(isinstance(annotation[key], int | str) for key in ("image_id", "category_id")):
    return "image_id and category_id must be numbers"
  if problem := _reference_problem("image", annotation["image_id"], known):
    return problem
  if problem := _reference_problem("category", annotation["category_id"], categories):
    return problem
  if annotation["image_id"] not in sizes:
    return ""
  segmentation = annotation["segmentation"]
  if not segmentation:
    return _box_problem(annotation["bbox"])
  if isinstance(segmentation, dict):
    return _rle_problem(segmentation, sizes[annotation["image_id"]])
  if not isinstance(segmentation, list):
    return f"segmentation is a {type(segmentation).__name__}, not polygons or RLE"
  return next((problem for polygon in segmentation if (problem := _polygon_problem(polygon))), "")


def _reference_problem(kind: str, number: int | str, known: set) -> str:
  if number in known:
    return ""
  twin = next((other for other in known if str(other) == str(number)), None)
  close = "" if twin is None else f"; there is {twin!r}: text and numbers differ, write it alike"
  plural = {"image": "images", "category": "categories"}[kind]
  return f"{kind}_id {number!r} is not among the {plural}{close}"


def _polygon_problem(polygon: object) -> str:
  if not isinstance(polygon, list) or not all(_finite(value) for value in polygon):
    return "a polygon must be a flat list of numbers x, y, x, y, …"
  if len(polygon) % 2:
    return f"a polygon has {len(polygon)} numbers; they come in pairs"
  return "" if len(polygon) >= 6 else f"a polygon has {len(polygon) // 2} points; 3 are needed"


def _box_problem(box: object) -> str:
  if not isinstance(box, list) or len(box) != 4 or not all(_finite(value) for value in box):
    return "neither an outline nor a box [x, y, w, h]"
  return "" if box[2] > 0 and box[3] > 0 else f"the box is {box[2]} wide and {box[3]} high"


def _rle_problem(segmentation: dict, size: tuple[int, int]) -> str:
  if "counts" not in segmentation or "size" not in segmentation:
    return "RLE needs counts and size"
  if segmentation["size"] != list(size):
    return f"RLE is for {segmentation['size']}, the picture is {list(size)} (height, width)"
  try:
    rle_mask(segmentation["counts"], *size)
  except (ValueError, TypeError, IndexError, OverflowError) as error:
    return f"RLE is unreadable: {error}"
  return ""


def _finite(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
