"""From folders to a prepared data set: look at everything, split, write."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from segflax.data import builder, fingerprint, mixing, splits
from segflax.data.items import Item, Source, listed
from segflax.data.progress import progress
from segflax.data.survey import Look, survey
from segflax.errors import UserError

SPLIT_FILE = "splits.json"


@dataclasses.dataclass(frozen=True)
class Options:
  """What `prepare` can be told.

  Attributes:
    split: "grouped" deals source pictures out anew; "official" keeps the sources' own splits.
    split_file: Take the splits from this file instead.
    fractions: Shares of the splits; with "official", the share of a test split that is cut off.
    seed: Of the splits, and of weights that are not whole numbers.
    max_size: Longest side in pixels that is stored; 0: as large as they are.
    max_corrupt: Unreadable pictures that are set aside before the data set is refused.
    weights: Source to how often its training pictures stand in an epoch.
    overwrite: Replace a data set that is there already.
  """

  split: str = "grouped"
  split_file: str = ""
  fractions: Mapping[str, float] = dataclasses.field(default_factory=lambda: splits.FRACTIONS)
  seed: int = 42
  max_size: int = 0
  max_corrupt: int = 10
  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What `prepare` did.

  Attributes:
    info: The data set.
    items: The pictures that are in it, with their splits in `chosen`.
    chosen: Split of each.
    unreadable: Pictures that were set aside, and why.
    same_picture: Pairs of names that show the same thing, with their correlation.
    leaks: Names of the pictures that share their source picture across splits (official ones).
    longest: Longest side of the median picture before it is stored, in pixels.
  """

  info: builder.DatasetInfo
  items: tuple[Item, ...]
  chosen: tuple[str, ...]
  unreadable: tuple[str, ...]
  same_picture: tuple[tuple[str, str, float], ...]
  leaks: tuple[tuple[str, ...], ...]
  longest: int


def prepare(
  sources: Sequence[Source], data_dir: str | Path, options: Options | None = None
) -> Prepared:
  """Writes the pictures of all sources as one data set, and `splits.json` beside it.

  Args:
    sources: From `read_source`.
    data_dir: Where to.
    options: See `Options`.

  Raises:
    UserError: A mask does not fit its picture, too many pictures are unreadable, the splits
      cannot be made, or a data set is there already.
  """
  options = options or Options()
  if options.max_size < 0:
    raise UserError(f"max_size {options.max_size} must be the longest side in pixels, or 0")
  sources = mixing.distinct(sources)
  builder.check_target(data_dir, options.overwrite)
  items, looks, unreadable = _look_over(mixing.mix(sources), options.max_corrupt)
  pairs = list(fingerprint.near_duplicates(np.stack([look.print for look in looks])))
  clusters = fingerprint.clusters([i.group for i in items], [(i, j) for i, j, _ in pairs])
  shown = [[c for c, mask in look.masks.items() if mask.area] for look in looks]
  chosen = choose_splits(items, shown, clusters, options)
  # What shares a cluster shares a group in the records, too: whoever cuts the data set anew
  # needs no other knowledge.
  items = [
    dataclasses.replace(i, group=items[c].group) for i, c in zip(items, clusters, strict=True)
  ]
  info = builder.write_dataset(
    data_dir,
    _examples(items, chosen, options),
    list(dict.fromkeys(concept for source in sources for concept in source.concepts)),
    {
      "sources": {source.name: _describe(source, options) for source in sources},
      "licenses": list(dict.fromkeys(name for source in sources for name in source.licenses)),
    },
    max_size=options.max_size,
    overwrite=options.overwrite,
  )
  how = {"split": options.split, "seed": options.seed, "fractions": dict(options.fractions)}
  how |= {"near_duplicate_correlation": fingerprint.THRESHOLD}
  splits.write_file(Path(data_dir) / SPLIT_FILE, items, chosen, clusters, how)
  names = [item.image_id for item in items]
  return Prepared(
    info=info,
    items=tuple(items),
    chosen=tuple(chosen),
    unreadable=tuple(unreadable),
    same_picture=tuple((names[i], names[j], c) for i, j, c in pairs),
    leaks=tuple(tuple(names[n] for n in leak) for leak in splits.leaks(chosen, clusters)),
    longest=int(np.median([max(look.size) for look in looks])),
  )


def choose_splits(
  items: Sequence[Item],
  shown: Sequence[Collection[str]],
  clusters: Sequence[int],
  options: Options,
) -> list[str]:
  """Returns the split of each picture, as the options want it.

  Raises:
    UserError: The mode is unknown, or no picture is left for training or validation.
  """
  if options.split_file:
    chosen = splits.read_file(Path(options.split_file), items)
  elif options.split == "grouped":
    chosen = splits.grouped(items, shown, clusters, options.fractions, options.seed)
  elif options.split == "official":
    chosen = splits.official(items, clusters, options.fractions["test"], options.seed)
  else:
    raise UserError(f"split {options.split!r} is unknown; known are grouped, official")
  if missing := [split for split in ("train", "val") if split not in chosen]:
    raise UserError(
      f"no picture is in {' or '.join(missing)}; deal the pictures out anew with --split=grouped"
    )
  return chosen


def _look_over(items: list[Item], max_corrupt: int) -> tuple[list[Item], list[Look], list[str]]:
  """Returns the usable items with their looks, and what is unreadable."""
  looks = list(progress(survey(items), "looking", len(items)))
  unreadable = [look.unreadable for look in looks if look.unreadable]
  if len(unreadable) > max_corrupt:
    raise UserError(
      f"{len(unreadable)} pictures are unreadable, {max_corrupt} may be (--max_corrupt): "
      f"{listed(unreadable)}"
    )
  if problems := [problem for look in looks for problem in look.problems]:
    raise UserError(f"{len(problems)} masks do not fit: {listed(problems)}")
  usable = [(item, look) for item, look in zip(items, looks, strict=True) if not look.unreadable]
  if not usable:
    raise UserError("no picture can be read; the sources hold nothing to prepare")
  return [item for item, _ in usable], [look for _, look in usable], unreadable


def _examples(items: Sequence[Item], chosen: Sequence[str], options: Options) -> dict:
  """Returns split -> its examples, in the order of the items."""
  order = ("train", "val", "test")
  of_split = {
    split: [item for item, own in zip(items, chosen, strict=True) if own == split]
    for split in sorted(set(chosen), key=lambda s: order.index(s) if s in order else len(order))
  }
  if options.weights:
    of_split["train"] = mixing.weighted(of_split["train"], options.weights, options.seed)
  return {
    split: (item.example() for item in progress(of, f"writing {split}"))
    for split, of in of_split.items()
  }


def _describe(source: Source, options: Options) -> dict:
  weights = {source.name: 1.0, **options.weights}
  return {
    "path": str(source.path),
    "layout": source.layout,
    "concepts": list(source.concepts),
    "licenses": list(source.licenses),
    "pictures": len(source.items),
    "groups": len({item.group for item in source.items}),
    "annotations": sum(item.annotations.total() for item in source.items),
    "boxes": sum(item.boxes.total() for item in source.items),
    "weight": weights[source.name],
    "notes": list(source.notes),
  }
