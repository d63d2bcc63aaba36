"""Several sources become one list of pictures: unique names, merged masks, weights."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segflax.data.items import Item, Source
from segflax.errors import UserError


def mix(sources: Sequence[Source]) -> list[Item]:
  """Returns the pictures of all sources, each with a name of its own.

  A file that stands in several sources under different concepts becomes one picture with all
  their masks: then each concept's absence elsewhere is known, and one encoding serves both.
  """
  items = _merged([item for source in sources for item in source.items])
  stems = Counter(item.image_id for item in items)
  taken = Counter()
  named = []
  for item in items:
    name = item.image_id
    if stems[name] > 1:
      name = f"{item.source.replace('/', '-')}-{name}"
      taken[name] += 1
      name += f"-{taken[name]}" if taken[name] > 1 else ""
    named.append(dataclasses.replace(item, image_id=name))
  return named


def content_hash(item: Item) -> str:
  """Returns the sha256 of a picture's file."""
  content = item.image.read_bytes() if isinstance(item.image, Path) else item.image()
  return hashlib.sha256(content).hexdigest()


def _merged(items: list[Item]) -> list[Item]:
  if len({item.source for item in items}) == 1:
    return items
  kept = []
  place = defaultdict(list)  # content -> where in `kept` it is
  for item in items:
    digest = content_hash(item)
    for number in place[digest]:
      if not set(kept[number].concepts) & set(item.concepts):
        kept[number] = _both(kept[number], item)
        break
    else:
      place[digest].append(len(kept))
      kept.append(item)
  return kept


def _both(first: Item, second: Item) -> Item:
  def masks() -> dict[str, Image.Image]:
    return first.masks() | second.masks()

  return dataclasses.replace(
    first,
    masks=masks,
    concepts=first.concepts + second.concepts,
    annotations=first.annotations + second.annotations,
    boxes=first.boxes + second.boxes,
    source=f"{first.source}+{second.source}",
  )


def weighted(items: Sequence[Item], weights: Mapping[str, float], seed: int = 42) -> list[Item]:
  """Repeats or thins out the training pictures of each source.

  Args:
    items: Pictures of the training split.
    weights: Source to how often its pictures stand in an epoch: 2 stores each twice, 0.5 a
      seeded half of them; a source that is not named keeps weight 1.
    seed: Chooses where a weight is not a whole number.

  Raises:
    UserError: A weight is not positive.
  """
  if bad := {source: weight for source, weight in weights.items() if not weight > 0}:
    raise UserError(f"source weights {bad} must be positive; leave a source out instead")
  rng = np.random.default_rng(seed)
  weights = {**dict.fromkeys((item.source for item in items), 1.0), **weights}
  chosen = []
  for source in dict.fromkeys(item.source for item in items):
    own = [item for item in items if item.source == source]
    weight = weights[source]
    whole = int(weight)
    some = set(rng.permutation(len(own))[: round((weight - whole) * len(own))].tolist())
    for number, item in enumerate(own):
      copies = whole + (number in some)
      chosen += [item] if copies else []
      chosen += [
        dataclasses.replace(item, image_id=f"{item.image_id}+{copy}") for copy in range(1, copies)
      ]
  return chosen
