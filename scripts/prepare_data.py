"""Prepares pictures and masks, as they were exported, for training.

    scripts/prepare_data.py --source crack=exports/cracks --source "taping area=exports/drywall" \
        --data_dir=data/walls

A source is a folder in any known layout (Roboflow COCO, YOLO, mask folders, the origin's
data/processed, TFDS in ArrayRecord); the layout is recognised, or named: CONCEPT=DIR:yolo. Without
CONCEPT= the labels' own names are the concepts; --license=CONCEPT=TEXT states a licence that the
folder does not. Splits never share a source picture; they are written to DATA_DIR/splits.json, to
be looked at and to be given back with --split_file. The result is a TFDS data set
(tfds.data_source("concept_masks", data_dir=DATA_DIR)) for main.py --config.data_dir=DATA_DIR. Exit
code 2: bad input, one sentence says what.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import logging

from segflax.data import prepare
from segflax.data.sources import Source, of_name, read_named_sources
from segflax.errors import UserError

BAD_INPUT = 2
_NETWORK = 512  # the default image_size


def main() -> int:
  args = _parse_args()
  logging.set_verbosity(logging.ERROR)
  start = time.monotonic()
  try:
    sources = read_named_sources(args.source, args.license)
    print(source_table(sources), flush=True)
    options = prepare.Options(
      split=args.split,
      split_file=args.split_file,
      fractions=_fractions(args.fractions),
      seed=args.seed,
      max_size=args.max_size,
      max_corrupt=args.max_corrupt,
      weights=_weights(args.weight, sources),
      overwrite=args.overwrite,
    )
    prepared = prepare.prepare(sources, args.data_dir, options)
  except UserError as error:
    print(f"segflax: {error}", file=sys.stderr)
    return BAD_INPUT
  print(report(prepared, args.max_size))
  print(f"wrote {prepared.info.path} in {time.monotonic() - start:.0f} s")
  return 0


def source_table(sources: list[Source]) -> str:
  """Returns what was found in the sources, a line each."""
  lines = []
  for source in sources:
    items = source.items
    lines.append(
      f"{source.name} ({source.layout}): {len(items)} pictures of "
      f"{len({item.group for item in items})} source pictures, "
      f"{sum(item.annotations.total() for item in items)} annotations, "
      f"{sum(item.boxes.total() for item in items)} of them only boxes; "
      f"{', '.join(source.concepts)}; "
      f"{', '.join(source.licenses) or 'no licence stated'}"
    )
    lines += [f"  note: {note}" for note in source.notes]
  return "\n".join(lines)


def report(prepared: prepare.Prepared, max_size: int) -> str:
  """Returns what was written: a line per split and concept, and what needs a look."""
  lines = ["split  concept               known  empty  mask area  pictures  groups"]
  for split, counts in prepared.info.counts.items():
    for concept, of in counts["concepts"].items():
      lines.append(
        f"{split:<6} {concept:<20} {of['known']:>6} {of['empty']:>6} {of['area']:>9.2%} "
        f"{counts['pictures']:>9} {counts['groups']:>7}"
      )
  for first, second, correlation in prepared.same_picture:
    if first.split(".rf.")[0] != second.split(".rf.")[0]:
      lines.append(f"same picture, kept in one split: {first} {second} ({correlation:.2f})")
  lines += [f"set aside: {why}" for why in prepared.unreadable]
  for leak in prepared.leaks:
    lines.append(f"LEAK, one source picture in several splits: {' '.join(leak)}")
  for split, counts in prepared.info.counts.items():
    for concept, of in counts["concepts"].items():
      if of["known"] == of["empty"]:
        lines.append(f"WARNING: every mask of {concept!r} in {split} is empty")
  for name, source in prepared.info.sources.items():
    if source["annotations"] and source["boxes"] == source["annotations"]:
      lines.append(f"WARNING: {name} has only boxes: a model learns boxes from them, not outlines")
  if not max_size and prepared.longest > _NETWORK:
    lines.append(
      f"note: half of the pictures are {prepared.longest} px long or longer; for a model of "
      f"{_NETWORK} px, --max_size={_NETWORK} stores what training loads 2.4 times faster "
      "(docs/data.md)"
    )
  return "\n".join(lines)


def _fractions(text: str) -> dict[str, float]:
  try:
    train, val, test = (float(part) for part in text.split(","))
  except ValueError as error:
    raise UserError(f"--fractions={text} must be three numbers, such as 0.8,0.1,0.1") from error
  return {"train": train, "val": val, "test": test}


def _weights(texts: list[str], sources: list[Source]) -> dict[str, float]:
  """Returns source name -> weight for SOURCE=WEIGHT or CONCEPT=WEIGHT."""
  weights = {}
  for text in texts:
    named, number = of_name(sources, text, "--weight")
    try:
      weights |= dict.fromkeys(named, float(number))
    except ValueError as error:
      raise UserError(f"--weight={text} must be NAME=NUMBER") from error
  return weights


def _parse_args() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--source", action="append", required=True, help="[CONCEPT=]DIR[:LAYOUT]")
  parser.add_argument("--data_dir", required=True, help="where the data set goes")
  parser.add_argument(
    "--split",
    default="grouped",
    choices=("grouped", "official"),
    help="deal out anew, or keep the sources' own splits and report their leaks",
  )
  parser.add_argument("--split_file", default="", help="take the splits from a splits.json")
  parser.add_argument("--fractions", default="0.8,0.1,0.1", help="of train, val, test")
  parser.add_argument("--seed", type=int, default=42, help="of the splits")
  parser.add_argument(
    "--max_size", type=int, default=0, help="longest side in pixels to store; 0: as it is"
  )
  parser.add_argument(
    "--max_corrupt", type=int, default=10, help="unreadable pictures that may be set aside"
  )
  parser.add_argument(
    "--weight",
    action="append",
    default=[],
    help="SOURCE=W or CONCEPT=W: how often its training pictures stand in an epoch",
  )
  parser.add_argument(
    "--license",
    action="append",
    default=[],
    help="SOURCE=TEXT or CONCEPT=TEXT: the licence of a source that does not state it",
  )
  parser.add_argument("--overwrite", action="store_true", help="replace what is there")
  return parser.parse_args()


if __name__ == "__main__":
  sys.exit(main())
