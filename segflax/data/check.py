"""What is wrong with this data: every finding has a kind, a place and a sentence."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from segflax.data import fingerprint, mixing
from segflax.data.items import Item, Source
from segflax.data.progress import progress
from segflax.data.survey import Look, survey
from segflax.errors import UserError

ERROR, WARNING, INFO = LEVELS = "error", "warning", "info"

# What a mask or picture must be like before somebody has to look at it.
FULL = 0.99  # share of the picture
LARGE = 0.6  # most likely inverted: what is sought on a wall covers less
SPECK = 16  # pixels
BOX_LIKE = 0.97  # share of the parts' bounding boxes; a straight joint reaches it by itself
BOXES_IN_SOURCE = 0.5  # share of a source's masks that are box-like
FLAT = 2.0  # grey levels, standard deviation
SMALL = 64  # pixels, shorter side
LONG = 4.0  # longer side over shorter side
SAME_MASK = 0.5  # IoU of two annotations of the same file


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing to mend, or to look at.

  Attributes:
    kind: A few words, the same for all findings of a kind.
    level: ERROR: training on it would be wrong. WARNING: somebody should look. INFO: a fact about
      sound data.
    message: Where, and which rule.
    items: Numbers of the pictures concerned.
  """

  kind: str
  level: str
  message: str
  items: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything that `check` saw: pictures, one look at each, findings."""

  sources: tuple[Source, ...]
  items: tuple[Item, ...]
  looks: tuple[Look, ...]
  findings: tuple[Finding, ...]

  @property
  def concepts(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c for source in self.sources for c in source.concepts))

  def count(self, level: str) -> int:
    return sum(finding.level == level for finding in self.findings)

  def kinds(self) -> dict[str, list[Finding]]:
    """Returns kind -> its findings, errors first."""
    of = defaultdict(list)
    for finding in sorted(self.findings, key=lambda finding: LEVELS.index(finding.level)):
      of[finding.kind].append(finding)
    return dict(of)


def check(sources: Sequence[Source]) -> Report:
  """Looks at every picture and mask of all sources.

  Args:
    sources: From `read_source(..., strict=False)`; the problems listed in them are findings.
  """
  sources = mixing.distinct(sources)
  items = [item for source in sources for item in source.items]
  looks = list(progress(survey(items, shapes=True), "checking", len(items)))
  findings = [
    *_of_sources(sources),
    *_of_pictures(items, looks),
    *_of_masks(sources, items, looks),
    *_boxes(sources, items, looks),
    *_of_splits(sources, items, looks),
    *_of_copies(items, looks),
  ]
  return Report(tuple(sources), tuple(items), tuple(looks), tuple(findings))


def _of_sources(sources: Sequence[Source]) -> Iterator[Finding]:
  for source in sources:
    for problem in source.problems:
      yield Finding("broken record", ERROR, f"{source.name}: {problem}")
    for note in source.notes:
      yield Finding("source note", INFO, f"{source.name}: {note}")
    if not source.items:
      yield Finding("no picture", ERROR, f"{source.name} holds no usable picture")
    if not source.licenses:
      message = f"{source.name} states no licence; say it with --license '{source.name}=TEXT'"
      yield Finding("no licence", WARNING, message)


def _of_pictures(items: Sequence[Item], looks: Sequence[Look]) -> Iterator[Finding]:
  for number, (item, look) in enumerate(zip(items, looks, strict=True)):
    if look.unreadable:
      yield Finding("unreadable picture", ERROR, look.unreadable, (number,))
      continue
    width, height = look.size
    if look.contrast < FLAT:
      yield Finding("blank picture", ERROR, f"{item.where} has one colour", (number,))
    if min(look.size) < SMALL:
      yield Finding("small picture", WARNING, f"{item.where} is {width}x{height}", (number,))
    if max(look.size) > LONG * min(look.size):
      yield Finding("long picture", WARNING, f"{item.where} is {width}x{height}", (number,))
  sizes = Counter(look.size for look in looks if not look.unreadable)
  if len(sizes) > 1:
    listed = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes.most_common(5))
    yield Finding("several sizes", INFO, f"{len(sizes)} picture sizes: {listed}")


def _of_masks(sources, items: Sequence[Item], looks: Sequence[Look]) -> Iterator[Finding]:
  outlined = {source.name for source in sources if source.layout in ("coco", "yolo")}
  for number, (item, look) in enumerate(zip(items, looks, strict=True)):
    for problem in look.problems:
      yield Finding("mask does not fit", ERROR, problem, (number,))
    pixels = look.size[0] * look.size[1]
    for concept, mask in look.masks.items():
      place = f"{item.where}, {concept!r}"
      if not mask.area:
        message = f"{place}: no pixel is foreground"
        if item.annotations[concept] and outlined.intersection(item.sources):
          yield Finding("annotations without a pixel", WARNING, message, (number,))
        else:  # the source vouches that there is nothing
          yield Finding("empty mask", INFO, message, (number,))
      elif mask.area >= FULL:
        yield Finding("full mask", ERROR, f"{place}: {mask.area:.0%} is foreground", (number,))
      elif mask.area >= LARGE:
        message = f"{place}: {mask.area:.0%} is foreground; is the mask inverted?"
        yield Finding("very large mask", WARNING, message, (number,))
      elif mask.area * pixels < SPECK:
        message = f"{place}: only {mask.area * pixels:.0f} pixels are foreground"
        yield Finding("speck", WARNING, message, (number,))


def _boxes(sources, items: Sequence[Item], looks: Sequence[Look]) -> Iterator[Finding]:
  for source in sources:
    for concept in source.concepts:
      drawn = [
        (number, look.masks[concept])
        for number, (item, look) in enumerate(zip(items, looks, strict=True))
        if source.name in item.sources and concept in look.masks and look.masks[concept].area
      ]
      boxes = [number for number, mask in drawn if mask.box_share >= BOX_LIKE]
      if len(boxes) > BOXES_IN_SOURCE * len(drawn):
        message = (
          f"{source.name}: {len(boxes)} of {len(drawn)} masks of {concept!r} are boxes; a model "
          "learns boxes from them"
        )
        yield Finding("boxes as masks", WARNING, message, tuple(boxes))
      own = [n for n, item in enumerate(items) if source.name in item.sources]
      mixed = [number for number in own if items[number].boxes[concept]]
      if mixed and any(items[n].annotations[concept] > items[n].boxes[concept] for n in own):
        message = f"{source.name}: {len(mixed)} pictures have boxes among outlines of {concept!r}"
        yield Finding("boxes among outlines", WARNING, message, tuple(mixed))


def _of_splits(sources, items: Sequence[Item], looks: Sequence[Look]) -> Iterator[Finding]:
  shown = {
    (name, item.split, concept)
    for item, look in zip(items, looks, strict=True)
    for name in item.sources
    for concept, mask in look.masks.items()
    if mask.area
  }
  for source in sources:
    splits = {item.split for item in source.items} - {""}
    for concept in source.concepts:
      positive = {split for split in splits if (source.name, split, concept) in shown}
      for split in sorted(splits - positive):
        message = f"{source.name}: no picture of {split} shows {concept!r}"
        yield Finding("concept missing in split", ERROR, message)
    if splits and "val" not in splits:
      message = f"{source.name} has no validation split; prepare_data makes one (--split=grouped)"
      yield Finding("no validation split", WARNING, message)
  places = defaultdict(list)
  for number, item in enumerate(items):
    places[item.group].append(number)
  for group, numbers in places.items():
    splits = sorted({items[number].split for number in numbers} - {""})
    if len(splits) > 1:
      message = f"copies of {group!r} are in {' and '.join(splits)}"
      yield Finding("leak: source picture", ERROR, message, tuple(numbers))


def _of_copies(items: Sequence[Item], looks: Sequence[Look]) -> Iterator[Finding]:
  usable = [number for number, look in enumerate(looks) if look.print is not None]
  if not usable:
    return
  prints = np.stack([looks[number].print for number in usable])
  for i, j, correlation in fingerprint.near_duplicates(prints):
    first, second = usable[i], usable[j]
    one, two = items[first], items[second]
    same_file = looks[first].digest == looks[second].digest
    pair = f"{one.where} and {two.where}"
    if same_file and (conflict := _conflict(one, two)):
      yield Finding("contradicting masks", ERROR, f"{pair}: {conflict}", (first, second))
    if one.group == two.group and not same_file:
      continue  # augmented copies; those that leak have been named
    what = "are the same file" if same_file else f"show the same ({correlation:.2f})"
    if one.split and two.split and one.split != two.split:
      message = f"{pair} {what}, in {one.split} and {two.split}"
      yield Finding("leak: same content", ERROR, message, (first, second))
    else:
      kind = "duplicate file" if same_file else "near-duplicate"
      yield Finding(kind, WARNING, f"{pair} {what}", (first, second))


def _conflict(one: Item, two: Item) -> str:
  """Returns how two annotations of the same file differ, or ""."""
  try:
    first, second = one.masks(), two.masks()
  except UserError:
    return ""  # the survey has named the mask that cannot be read
  for concept in sorted(set(first) & set(second)):
    a, b = np.asarray(first[concept]) > 0, np.asarray(second[concept]) > 0
    if a.shape == b.shape and (union := (a | b).sum()) and (a & b).sum() / union < SAME_MASK:
      return f"their masks of {concept!r} agree at IoU {(a & b).sum() / union:.2f}"
  return ""
