"""Says what is wrong with pictures and masks, before or after they are prepared.

    scripts/check_data.py --source crack=exports/cracks --source "taping area=exports/drywall" \
        --page=check.html --json=check.json
    scripts/check_data.py --source data/walls

Reads the same sources as prepare_data.py, and a prepared data set. A terminal gets a few findings
of each kind; the page and the JSON file have all, the JSON file also every picture's masks. Exit
code 0: nothing that would make training wrong (warnings are printed), 1: errors (with --strict
also warnings; remarks never), 2: the sources cannot be read at all.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import logging

from segflax.data import check_page, check_report
from segflax.data.check import ERROR, WARNING, check
from segflax.data.sources import read_named_sources
from segflax.errors import UserError

FOUND, BAD_INPUT = 1, 2


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--source", action="append", required=True, help="[CONCEPT=]DIR[:LAYOUT]")
  parser.add_argument("--page", help="HTML file with tables, histograms and overlays")
  parser.add_argument("--json", help="file with all findings and every picture, for programs")
  parser.add_argument(
    "--license",
    action="append",
    default=[],
    help="SOURCE=TEXT or CONCEPT=TEXT: the licence of a source that does not state it",
  )
  parser.add_argument("--strict", action="store_true", help="warnings fail, too")
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  try:
    report = check(read_named_sources(args.source, args.license, strict=False))
  except UserError as error:
    print(f"segflax: {error}", file=sys.stderr)
    return BAD_INPUT
  print(check_report.text(report))
  if args.page:
    Path(args.page).write_text(check_page.page(report), encoding="utf-8")
    print(f"wrote {args.page}")
  if args.json:
    content = json.dumps(check_report.as_json(report), indent=1, ensure_ascii=False)
    Path(args.json).write_text(content + "\n", encoding="utf-8")
    print(f"wrote {args.json}")
  wrong = report.count(ERROR) + args.strict * report.count(WARNING)
  return FOUND if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
