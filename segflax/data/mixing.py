"""Several sources become one list of pictures: unique names, merged masks, weights."""

import dataclasses
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segflax.data import fingerprint
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


def distinct(sources: Sequence[Source]) -> list[Source]:
  """Returns the sources with names of their own: the second `a/b` is called `a/b-2`."""
  taken, named = set(), []
  for source in sources:
    name, number = source.name, 1
    while name in taken:
      number += 1
      name = f"{source.name}-{number}"
    taken.add(name)
    named.append(source if name == source.name else _renamed(source, name))
  return named


def _renamed(source: Source, name: str) -> Source:
  def group(item: Item) -> str:
    own = f"{source.name}/"  # groups that hold across sources do not begin so
    return f"{name}/{item.group.removeprefix(own)}" if item.group.startswith(own) else item.group

  items = [dataclasses.replace(item, source=name, group=group(item)) for item in source.items]
  return dataclasses.replace(source, name=name, items=tuple(items))


def _merged(items: list[Item]) -> list[Item]:
  if len({item.source for item in items}) == 1:
    return items
  kept, copies = [], []  # pairs of numbers of `items`
  first = {}  # content -> the first item that has it
  place = defaultdict(list)  # content -> where in `kept` it is
  whose = []  # number of the item that each of `kept` began with
  for number, item in enumerate(items):
    digest = _digest(item) or number
    copies.append((first.setdefault(digest, number), number))
    for where in place[digest]:
      if _fit(kept[where], item):
        kept[where] = _both(kept[where], item)
        break
    else:
      place[digest].append(len(kept))
      kept.append(item)
      whose.append(number)
  # One copy may belong to a group of the first source and the other to one of the second: the
  # two groups are then one, or a split could part what shows the same.
  joined = fingerprint.clusters([item.group for item in items], copies)
  return [
    dataclasses.replace(item, group=items[joined[number]].group)
    for item, number in zip(kept, whose, strict=True)
  ]


def _digest(item: Item) -> str:
  """Returns the content's hash; "" where it cannot be read, which the survey will report."""
  try:
    return content_hash(item)
  except OSError:
    return ""


def _fit(one: Item, two: Item) -> bool:
  # Copies in two official splits are a leak: merged, nobody would see it.
  same_split = one.split == two.split or not (one.split and two.split)
  return same_split and not set(one.concepts) & set(two.concepts)


def _both(first: Item, second: Item) -> Item:
  def masks() -> dict[str, Image.Image]:
    return first.masks() | second.masks()

  sources = tuple(dict.fromkeys(first.sources + second.sources))
  return dataclasses.replace(
    first,
    masks=masks,
    split=first.split or second.split,
    concepts=first.concepts + second.concepts,
    annotations=first.annotations + second.annotations,
    boxes=first.boxes + second.boxes,
    source="+".join(sources),
    merged=sources,
  )


def weighted(items: Sequence[Item], weights: Mapping[str, float], seed: int = 42) -> list[Item]:
  """Repeats or thins out the training pictures of each source.

  Args:
    items: Pictures of the training split.
    weights: Source to how often its pictures stand in an epoch: 2 stores each twice, 0.5 a
      seeded half of them; a source that is not named keeps weight 1. A picture of several
      sources has the largest of their weights: the source that wants it most gets it.
    seed: Chooses where a weight is not a whole number.

  Raises:
    UserError: A weight is not positive or not finite.
  """
  if bad := {name: weight for name, weight in weights.items() if not 0 < weight < math.inf}:
    raise UserError(f"source weights {bad} must be positive and finite; leave a source out instead")
  rng = np.random.default_rng(seed)
  weights = {**dict.fromkeys((name for item in items for name in item.sources), 1.0), **weights}
  chosen = []
  for source in dict.fromkeys(item.source for item in items):
    own = [item for item in items if item.source == source]
    weight = max(weights[name] for name in own[0].sources)
    whole = int(weight)
    some = set(rng.permutation(len(own))[: round((weight - whole) * len(own))].tolist())
    for number, item in enumerate(own):
      copies = whole + (number in some)
      chosen += [item] if copies else []
      chosen += [
        dataclasses.replace(item, image_id=f"{item.image_id}+{copy}") for copy in range(1, copies)
      ]
  return chosen
