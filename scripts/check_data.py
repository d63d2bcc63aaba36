"""Says what is wrong with pictures and masks, before or after they are prepared.

    scripts/check_data.py --source crack=exports/cracks --source "taping area=exports/drywall" \
        --page=check.html
    scripts/check_data.py --source data/walls

Reads the same sources as prepare_data.py, and a prepared data set. Exit code 0: nothing that
would make training wrong (warnings are printed), 1: errors (with --strict also warnings), 2: the
sources cannot be read at all.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import logging

from segflax.data import check_page
from segflax.data.check import check
from segflax.data.sources import read_named_source
from segflax.errors import UserError

FOUND, BAD_INPUT = 1, 2


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--source", action="append", required=True, help="[CONCEPT=]DIR[:LAYOUT]")
  parser.add_argument("--page", help="HTML file with tables, histograms and overlays")
  parser.add_argument("--strict", action="store_true", help="warnings fail, too")
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  try:
    report = check([read_named_source(text, strict=False) for text in args.source])
  except UserError as error:
    print(f"segflax: {error}", file=sys.stderr)
    return BAD_INPUT
  print(check_page.text(report))
  if args.page:
    Path(args.page).write_text(check_page.page(report), encoding="utf-8")
    print(f"wrote {args.page}")
  return FOUND if report.errors or (args.strict and report.findings) else 0


if __name__ == "__main__":
  sys.exit(main())
