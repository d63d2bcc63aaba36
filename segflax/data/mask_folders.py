"""Folders of pictures beside folders of masks: `[<split>/]images` and `[<split>/]masks`.

A mask is called `<image id>__<prompt with _>.png`, one per prompt, or has its picture's stem.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from segflax.data.decode import load_mask
from segflax.data.items import (
  IMAGE_SUFFIXES,
  SPLIT_NAMES,
  Item,
  Source,
  contained,
  source_group,
  source_name,
)
from segflax.data.prompts import SYNONYMS
from segflax.errors import UserError

# File names have no "/".
_CONCEPT_OF = {
  text.replace("/", " "): concept for concept, texts in SYNONYMS.items() for text in texts
}


def recognises(folder: Path) -> bool:
  return bool(_parts(folder))


def read(folder: Path, concept: str, *, name: str = "", overrule: bool = False) -> Source:
  """Reads pictures and their masks.

  Args:
    folder: Holds `images/` and `masks/`, or splits that do.
    concept: Which masks to take, or what masks without a prompt show; empty takes every prompt.
    name: How records name the source; empty takes `source_name`.
    overrule: Masks whose names all ask for one other known concept are of `concept` all the same.

  Raises:
    UserError: The masks' names do not say what they show, and `concept` does not either; or
      they say that it is another concept.
  """
  name = name or source_name(folder)
  pairs, problems = [], []  # of (split, picture, [(label, mask file)])
  for split, part in _parts(folder):
    dirs, found = contained(folder, [part / "images", part / "masks"])
    problems += found
    if len(dirs) < 2:
      continue
    stems, found = _by_stem(folder, part / "images")
    masks, more = _paired(folder, part / "masks", stems)
    problems += found + more
    pairs += [(split, path, masks[stem]) for stem, path in stems.items()]
  labels = {label for _, _, masks in pairs for label, _ in masks}
  wanted, notes = _wanted(folder, labels, concept, overrule)
  items = []
  for split, path, masks in pairs:
    files = defaultdict(list)
    for label, mask in masks:
      if label in wanted:
        files[wanted[label]].append(mask)
    if files:
      group = source_group(name, path.relative_to(folder))
      items.append(_item(path, dict(files), split, group, name))
    elif not masks:
      problems.append(f"{path.relative_to(folder)} has no mask")
  return Source(name, folder, "masks", tuple(items), notes=notes, problems=tuple(problems))


def concept_of(label: str) -> str:
  """Returns what a mask's label asks for: a known prompt's concept, else the label itself."""
  words = " ".join(label.replace("_", " ").replace("/", " ").lower().split())
  return _CONCEPT_OF[words] if words in _CONCEPT_OF else words.removeprefix("segment ")


def _wanted(
  folder: Path, labels: set[str], concept: str, overrule: bool
) -> tuple[dict[str, str], tuple]:
  """Returns label -> concept for the masks to take."""
  concepts = {label: concept_of(label) for label in labels if label}
  if "" in labels and not concept:
    raise UserError(
      f"{folder}: mask names do not say what they show; name it: --source CONCEPT={folder}"
    )
  if not concept:
    return concepts, ()
  fitting = {label: concept for label, own in concepts.items() if own == concept}
  if "" in labels:
    fitting[""] = concept
  if fitting or not concepts:
    left = sorted(set(concepts.values()) - {concept})
    return fitting, ((f"masks of {', '.join(left)} are left out",) if left else ())
  if len(set(concepts.values())) == 1:
    (own,) = set(concepts.values())
    # A label of nobody's ("mask") may be called anything; a known concept is what it says.
    if own in SYNONYMS and not overrule:
      raise UserError(
        f"{folder}: the masks' names ask for {own!r}, not {concept!r}; "
        f'read them as --source "{own}={folder}", or rename the masks'
      )
    return dict.fromkeys(concepts, concept), (f"masks of {own!r} are taken as {concept!r}",)
  raise UserError(
    f"{folder}: no mask is of {concept!r}; there are {', '.join(sorted(set(concepts.values())))}"
  )


def _item(path: Path, files: dict[str, list[Path]], split: str, group: str, source: str) -> Item:
  def masks() -> dict[str, Image.Image]:
    return {concept: _union(paths) for concept, paths in files.items()}

  return Item(
    image_id=path.stem,
    image=path,
    split=split,
    group=group,
    source=source,
    concepts=tuple(sorted(files)),
    masks=masks,
    annotations=Counter({concept: len(paths) for concept, paths in files.items()}),
  )


def _union(paths: list[Path]) -> Image.Image:
  """Returns what any of a concept's masks shows (one per synonym)."""
  masks = [load_mask(path) for path in paths]
  if len({mask.size for mask in masks}) > 1:
    raise UserError(f"{paths[0]} and {paths[1].name} show one concept in two sizes; mend one")
  return Image.fromarray(np.maximum.reduce([np.asarray(mask) for mask in masks]))


def _by_stem(folder: Path, images: Path) -> tuple[dict[str, Path], list[str]]:
  found = {}
  paths, problems = contained(folder, _pictures(images))
  for path in paths:
    if path.stem in found:
      place = images.relative_to(folder)
      problems.append(f"{place}: {path.name} and {found[path.stem].name} share a stem")
    found.setdefault(path.stem, path)
  return found, problems


def _paired(folder: Path, masks: Path, stems: dict[str, Path]) -> tuple[dict[str, list], list[str]]:
  """Returns stem -> [(label, mask file)]; the label is "" where the name has none."""
  pairs = {stem: [] for stem in stems}
  paths, problems = contained(folder, _pictures(masks))
  for path in paths:
    stem, separator, label = path.stem.rpartition("__")
    if path.stem in stems:
      pairs[path.stem].append(("", path))
    elif separator and stem in stems:
      pairs[stem].append((label, path))
    else:
      problems.append(f"mask {path.relative_to(folder)} has no picture")
  return pairs, problems


def _pictures(folder: Path) -> Iterable[Path]:
  return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _parts(folder: Path) -> list[tuple[str, Path]]:
  places = [("", folder), *((name, folder / split) for split, name in SPLIT_NAMES.items())]
  return [(n, p) for n, p in places if (p / "images").is_dir() and (p / "masks").is_dir()]
