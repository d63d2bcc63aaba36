"""The origin's `data/processed`: `{taping_area,cracks}/<split>/{images,masks,prompts}`.

The folder says what the masks show. The prompt files only have to agree: in the origin's projects
they were overwritten, so that a whole set was trained under the other one's prompt.
"""

import dataclasses
from pathlib import Path

from segflax.data import mask_folders
from segflax.data.items import SPLIT_NAMES, Source, contained, source_name
from segflax.errors import UserError

CONCEPT_OF = {"taping_area": "taping area", "cracks": "crack"}


def recognises(folder: Path) -> bool:
  return bool(_present(folder))


def read(folder: Path, concept: str) -> Source:
  """Reads both sets.

  Args:
    folder: Holds `taping_area/`, `cracks/` or both.
    concept: Reads only the set of this concept; empty reads all.

  Raises:
    UserError: There is no set of this concept.
  """
  parts = {name: path for name, path in _present(folder).items() if concept in ("", name)}
  if not parts:
    raise UserError(f"{folder} has no set for {concept!r}; it has {', '.join(_present(folder))}")
  name = source_name(folder)
  items, notes = [], []
  within, problems = contained(folder, parts.values())
  for own, path in parts.items():
    if path not in within:
      continue
    # Named after its part, so that its groups are; the pictures are of one source all the same.
    part = mask_folders.read(path, own, name=f"{name}/{path.name}", overrule=True)
    items += part.items
    notes += [f"{path.name}: {note}" for note in part.notes]
    problems += [f"{path.name}: {problem}" for problem in part.problems]
    problems += _prompt_problems(folder, path, own)
  items = [dataclasses.replace(item, source=name) for item in items]
  return Source(name, folder, "origin", tuple(items), notes=tuple(notes), problems=tuple(problems))


def _prompt_problems(folder: Path, part: Path, own: str) -> list[str]:
  found = [p for split in SPLIT_NAMES for p in sorted((part / split / "prompts").glob("*.txt"))]
  paths, problems = contained(folder, found)
  for path in (path for path in paths if path.is_file()):
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
      asked = mask_folders.concept_of(line) if line.strip() else own
      if asked != own:
        place = path.relative_to(folder)
        problems.append(f"{place} asks for {asked!r}, its folder is of {own!r}")
  return problems


def _present(folder: Path) -> dict[str, Path]:
  places = {concept: folder / name for name, concept in CONCEPT_OF.items()}
  return {concept: path for concept, path in places.items() if mask_folders.recognises(path)}
