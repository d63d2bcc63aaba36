"""Train, validation and test pictures that never show the same thing.

Clusters (copies, augmentations, near-duplicates) are dealt out whole, biggest first, each to the
split that lacks its kind most; kinds are source, concept and whether any of it is there, so every
split gets all of them (iterative stratification, Sechidis et al. 2011, over groups).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from segflax.data.items import Item
from segflax.errors import UserError

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
_ANY = ("", "", False)  # the kind that every picture is of


def grouped(
  items: Sequence[Item],
  shown: Sequence[Collection[str]],
  clusters: Sequence[int],
  fractions: Mapping[str, float] = FRACTIONS,
  seed: int = 42,
) -> list[str]:
  """Deals clusters to splits.

  Args:
    items: All pictures.
    shown: Of each the concepts that it shows. A source that vouches for all its concepts on every
      picture would have only one kind otherwise, and its few positives would fall anywhere.
    clusters: Cluster of each, from `fingerprint.clusters`.
    fractions: Split to its share of the pictures; they sum to 1.
    seed: Decides between clusters of equal size.

  Returns:
    Split of each picture.

  Raises:
    UserError: The fractions do not sum to 1, or there are fewer clusters than splits.
  """
  if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
    raise UserError(f"split fractions {dict(fractions)} must be positive and sum to 1")
  if len(set(clusters)) < len(fractions):
    raise UserError(
      f"{len(set(clusters))} different source pictures cannot fill {len(fractions)} splits "
      f"({', '.join(fractions)}); bring more pictures"
    )
  kinds = [
    frozenset((item.source, concept, concept in shows) for concept in item.concepts)
    for item, shows in zip(items, shown, strict=True)
  ]
  totals = Counter(kind for of_item in kinds for kind in of_item)
  lacking = {
    split: {kind: fraction * total for kind, total in totals.items()}
    for split, fraction in fractions.items()
  }
  members = defaultdict(list)
  for number, cluster in enumerate(clusters):
    members[cluster].append(number)
  order = np.random.default_rng(seed).permutation(sorted(members))
  order = sorted(order, key=lambda cluster: -len(members[cluster]))  # stable: ties stay shuffled
  content = {c: Counter(kind for n in members[c] for kind in kinds[n]) for c in order}
  left = Counter(kind for of_cluster in content.values() for kind in (_ANY, *of_cluster))
  chosen = [""] * len(items)
  having = {split: set() for split in fractions}
  for cluster in order:
    own = content[cluster]
    candidates = list(fractions)
    # The last clusters of a kind go to the splits that have none of it: no split may stay without
    # a picture, nor, where there are three that show a concept, without one of them.
    for kind in (_ANY, *sorted(own, key=lambda kind: (left[kind], kind))):
      without = [split for split in candidates if kind not in having[split]]
      if len(without) >= left[kind]:
        candidates = without
      left[kind] -= 1
    best = max(candidates, key=lambda split: _need(lacking[split], own, totals))
    for number in members[cluster]:
      chosen[number] = best
    for kind, count in own.items():
      lacking[best][kind] -= count
    having[best] |= {_ANY, *own}
  return chosen


def _need(lacking: Mapping, content: Counter, totals: Counter) -> float:
  # In shares of the kind, so that a rare concept counts as much as a frequent one.
  return sum(lacking[kind] * count / totals[kind] for kind, count in content.items())


def official(
  items: Sequence[Item],
  clusters: Sequence[int],
  test_fraction: float = FRACTIONS["test"],
  seed: int = 42,
) -> list[str]:
  """Keeps the sources' own splits; a source without a test split has one cut off its train split.

  Whole clusters are cut, and only such as lie in train entirely.

  Raises:
    UserError: A picture has no official split.
  """
  if homeless := [item.image_id for item in items if not item.split]:
    raise UserError(
      f"{len(homeless)} pictures have no official split (the first: {homeless[0]}); "
      "use --split=grouped"
    )
  chosen = [item.split for item in items]
  places = defaultdict(set)
  for item, cluster in zip(items, clusters, strict=True):
    places[cluster].add((item.source, item.split))
  for source in sorted({item.source for item in items}):
    if any(item.source == source and item.split == "test" for item in items):
      continue
    free = sorted(c for c, where in places.items() if where == {(source, "train")})
    order = np.random.default_rng(seed).permutation(free)
    wanted = test_fraction * sum(item.source == source for item in items)
    sizes = Counter(clusters)
    taken, count = set(), 0
    for cluster in order:
      if count >= wanted:
        break
      taken.add(cluster)
      count += sizes[cluster]
    chosen = ["test" if c in taken else s for c, s in zip(clusters, chosen, strict=True)]
  return chosen


def leaks(splits: Sequence[str], clusters: Sequence[int]) -> list[list[int]]:
  """Returns the clusters, as lists of picture numbers, that lie in more than one split."""
  members = defaultdict(list)
  for number, cluster in enumerate(clusters):
    members[cluster].append(number)
  return [of for of in members.values() if len({splits[number] for number in of}) > 1]


def write_file(
  path: Path, items: Sequence[Item], splits: Sequence[str], clusters: Sequence[int], how: Mapping
):
  """Writes the split file: for review, for reuse, to publish.

  Args:
    path: A JSON file.
    items: All pictures.
    splits: Split of each.
    clusters: Cluster of each; those of several pictures are listed, to be looked at.
    how: What decided (mode, seed, fractions, threshold).
  """
  members = defaultdict(list)
  for item, cluster in zip(items, clusters, strict=True):
    members[cluster].append(item.image_id)
  content = {
    "how": dict(how),
    "splits": {
      split: sorted(i.image_id for i, s in zip(items, splits, strict=True) if s == split)
      for split in dict.fromkeys(splits)
    },
    "same_picture": [sorted(ids) for ids in members.values() if len(ids) > 1],
  }
  path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_file(path: Path, items: Sequence[Item]) -> list[str]:
  """Returns the split of each picture as a split file has it.

  Raises:
    UserError: The file is missing or not a split file, or does not name every picture once.
  """
  try:
    named = json.loads(Path(path).read_text(encoding="utf-8"))["splits"]
    pairs = [(image_id, split) for split, ids in named.items() for image_id in ids]
  except OSError as error:
    raise UserError(f"split file {path} cannot be read ({error.strerror})") from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path} is not a split file; it must hold {{"splits": …}}') from error
  split_of = dict(pairs)
  if len(split_of) < len(pairs):
    twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    raise UserError(f"split file {path} names {twice!r} twice; each picture has one split")
  if missing := [item.image_id for item in items if item.image_id not in split_of]:
    raise UserError(
      f"split file {path} lacks {len(missing)} of {len(items)} pictures (the first: "
      f"{missing[0]}); it was made for other sources"
    )
  return [split_of[item.image_id] for item in items]
