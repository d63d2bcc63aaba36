"""Folders of pictures beside folders of masks: `[<split>/]images` and `[<split>/]masks`.

A mask is called `<image id>__<prompt with _>.png`, one per prompt, or has its picture's stem.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from segflax.data.decode import load_mask
from segflax.data.items import IMAGE_SUFFIXES, SPLIT_NAMES, Item, Source, inside, source_group
from segflax.data.prompts import SYNONYMS
from segflax.errors import UserError

# File names have no "/".
_CONCEPT_OF = {
  text.replace("/", " "): concept for concept, texts in SYNONYMS.items() for text in texts
}


def recognises(folder: Path) -> bool:
  return bool(_parts(folder))


def read(folder: Path, concept: str) -> Source:
  """Reads pictures and their masks.

  Args:
    folder: Holds `images/` and `masks/`, or splits that do.
    concept: Which masks to take, or what masks without a prompt show; empty takes every prompt.

  Raises:
    UserError: The masks' names do not say what they show, and `concept` does not either.
  """
  name = f"{folder.parent.name}/{folder.name}"
  images, masks, problems = {}, {}, []
  for split, part in _parts(folder):
    images[split], found = _by_stem(part / "images")
    masks[split], more = _paired(part / "masks", images[split])
    problems += found + more
  labels = {label for of in masks.values() for pairs in of.values() for label, _ in pairs}
  wanted, notes = _wanted(folder, labels, concept)
  items = []
  for split, stems in images.items():
    for stem, path in stems.items():
      files = defaultdict(list)
      for label, mask in masks[split][stem]:
        if label in wanted:
          files[wanted[label]].append(mask)
      if files:
        items.append(_item(path, dict(files), split, name))
      elif not masks[split][stem]:
        problems.append(f"{path.relative_to(folder)} has no mask")
  return Source(name, folder, "masks", tuple(items), notes=notes, problems=tuple(problems))


def concept_of(label: str) -> str:
  """Returns what a mask's label asks for: a known prompt's concept, else the label itself."""
  words = " ".join(label.replace("_", " ").replace("/", " ").lower().split())
  return _CONCEPT_OF[words] if words in _CONCEPT_OF else words.removeprefix("segment ")


def _wanted(folder: Path, labels: set[str], concept: str) -> tuple[dict[str, str], tuple]:
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
    return dict.fromkeys(concepts, concept), (f"masks of {own!r} are taken as {concept!r}",)
  raise UserError(
    f"{folder}: no mask is of {concept!r}; there are {', '.join(sorted(set(concepts.values())))}"
  )


def _item(path: Path, files: dict[str, list[Path]], split: str, source: str) -> Item:
  def masks() -> dict[str, Image.Image]:
    return {concept: _union(paths) for concept, paths in files.items()}

  return Item(
    image_id=path.stem,
    image=path,
    split=split,
    group=source_group(path.name),
    source=source,
    concepts=tuple(sorted(files)),
    masks=masks,
    annotations=sum(map(len, files.values())),
  )


def _union(paths: list[Path]) -> Image.Image:
  """Returns what any of a concept's masks shows (one per synonym)."""
  masks = [load_mask(path) for path in paths]
  if len({mask.size for mask in masks}) > 1:
    raise UserError(f"{paths[0]} and {paths[1].name} show one concept in two sizes; mend one")
  return Image.fromarray(np.maximum.reduce([np.asarray(mask) for mask in masks]))


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[str]]:
  found, problems = {}, []
  for path in _pictures(folder):
    if path.stem in found:
      problems.append(f"{path.name} and {found[path.stem].name} share a stem")
    found.setdefault(path.stem, inside(folder, path.name))
  return found, problems


def _paired(folder: Path, stems: dict[str, Path]) -> tuple[dict[str, list], list[str]]:
  """Returns stem -> [(label, mask file)]; the label is "" where the name has none."""
  pairs, problems = {stem: [] for stem in stems}, []
  for path in _pictures(folder):
    stem, separator, label = path.stem.rpartition("__")
    if path.stem in stems:
      pairs[path.stem].append(("", inside(folder, path.name)))
    elif separator and stem in stems:
      pairs[stem].append((label, inside(folder, path.name)))
    else:
      problems.append(f"mask {folder.parent.name}/{folder.name}/{path.name} has no picture")
  return pairs, problems


def _pictures(folder: Path) -> Iterable[Path]:
  return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _parts(folder: Path) -> list[tuple[str, Path]]:
  places = [("", folder), *((name, folder / split) for split, name in SPLIT_NAMES.items())]
  return [(n, p) for n, p in places if (p / "images").is_dir() and (p / "masks").is_dir()]
