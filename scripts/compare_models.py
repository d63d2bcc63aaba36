"""Compares runs that have ended: a table, a CSV file and a page to look at.

    scripts/compare_models.py runs/baseline runs/higher_lr --output model_comparison.csv
    scripts/compare_models.py runs

Writes the CSV and, beside it, a page of the same name (.html). Reads summaries only.
"""

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from segflax import html, judgement, metrics, runs, summary, visualize
from segflax.errors import UserError

# Not the overlap of prompts, nor the IoU with the wrong truth: marking nothing has the least.
LOWER = ("best_val_loss",)
HIGHER = ("best_val_iou", "best_val_dice", "best_val_pixel_accuracy")
CURVES = ("val_iou", "val_dice", "val_loss", "train_loss", "val_pixel_accuracy", "lr")
WORST = 6  # pictures per prompt
ALL_PAIRS = 6  # runs that are all compared with one another


def best_values(rows: Sequence[dict]) -> dict[str, float]:
  """Returns column -> the best value in it."""
  best = {}
  for column in HIGHER + LOWER:
    values = [row[column] for row in rows if row[column] is not None]
    if values:
      best[column] = min(values) if column in LOWER else max(values)
  return best


def differences(found: Sequence[runs.Run]) -> list[dict[str, object]]:
  """Compares runs in pairs, where both have per-picture results; `found` is ranked."""
  # Every pair of a few runs; of many, the best one with each other.
  pairs = (
    list(itertools.combinations(found, 2))
    if len(found) <= ALL_PAIRS
    else [(found[0], other) for other in found[1:]]
  )
  judged = [pair for pair in pairs if all(run.rows() is not None for run in pair)]
  compared = judgement.compare_pairs([(one.rows(), two.rows()) for one, two in judged])
  results = {(one.name, two.name): c for (one, two), c in zip(judged, compared, strict=True)}
  lines = []
  for first, second in ((one.name, two.name) for one, two in pairs):
    line = {"first": first, "second": second, "verdict": "not comparable: no per-picture results"}
    if (first, second) in results:
      result = results[first, second]
      line |= {"verdict": verdict(result, first, second), "pictures": result.pictures}
      line |= {"difference in IoU": result.interval.mean}
      line |= {"95 % from": result.interval.low, "to": result.interval.high}
    lines.append(line)
  return lines


def verdict(result: judgement.Difference, first: str, second: str) -> str:
  """Returns the verdict with the names of the runs."""
  for place, name in (("first", first), ("second", second)):
    if result.verdict == f"{place} better":
      return f"{name} better"
  return result.verdict


def per_prompt(found: Sequence[runs.Run]) -> list[dict[str, object]]:
  """Returns a line per prompt: the IoU of each run at its best epoch."""
  lines = {}
  for run in found:
    rows = run.rows()
    for prompt, values in metrics.per_prompt(rows).items() if rows is not None else ():
      lines.setdefault(prompt, {"prompt": prompt})[run.name] = values["iou"]
  return list(lines.values())


def worst_pictures(found: Sequence[runs.Run]) -> dict[str, list[dict[str, object]]]:
  """Returns prompt -> the pictures with the lowest IoU, averaged over the runs that judged them."""
  scores: dict[str, dict[str, dict[str, float]]] = {}
  for run in found:
    rows = run.rows()
    if rows is None:
      continue
    table = metrics.iou_rows(rows)
    for column, prompt in enumerate(rows.prompts):
      for image_id, value in zip(rows.image_ids, table[:, column], strict=True):
        if not np.isnan(value):
          scores.setdefault(prompt, {}).setdefault(image_id, {})[run.name] = float(value)
  worst = {}
  for prompt, pictures in scores.items():
    order = sorted(pictures, key=lambda i, p=pictures: sum(p[i].values()) / len(p[i]))
    worst[prompt] = [{"picture": i, **pictures[i]} for i in order[:WORST]]
  return worst


def side_by_side(found: Sequence[runs.Run], limit: int = 12) -> list[str]:
  """Returns a row of figures per picture and prompt that at least two runs have an overlay of.

  Those that most runs have come first.
  """
  overlays = {run.name: run.overlays() for run in found}
  having: dict[tuple[str, str], list[str]] = {}
  for name, each in overlays.items():
    for key in each:
      having.setdefault(key, []).append(name)
  shared = sorted((k for k in having if len(having[k]) > 1), key=lambda k: -len(having[k]))
  rows = []
  for image_id, prompt in shared[:limit]:
    figures = [
      html.image(overlays[name][image_id, prompt], caption=f"{name}: {prompt}, {image_id}")
      for name in having[image_id, prompt]
    ]
    rows.append(html.gallery(figures))
  return rows


def page(found: Sequence[runs.Run], rows: list[dict], lines: list[dict]) -> str:
  """Returns the whole comparison as a page; `found` is ranked."""
  names = [run.name for run in found]
  best = best_values(rows)
  warnings = [
    html.paragraph(f"{run.name}: {sentence}", "warning")
    for run in found
    for sentence in judgement.suspicions(run.best_row(), "val_")
  ]
  figures = []
  for curve in CURVES:
    points = {r.name: [(row["epoch"], row.get(curve)) for row in r.history] for r in found}
    figures.append(html.chart(curve, points))
  columns = [c for c in runs.COLUMNS if any(row[c] is not None for row in rows)]
  champions = [
    {"metric": c, "best": next(r["experiment"] for r in rows if r[c] == value), "value": value}
    for c, value in best.items()
  ]
  worst = worst_pictures(found)
  shown = {c.removeprefix("best_").removeprefix("val_") for c in columns}
  definitions = [
    {"metric": name, "definition": text}
    for name, text in metrics.DEFINITIONS.items()
    if name in shown
  ]
  return html.page(
    f"Comparison of {len(found)} run{'s' if len(found) > 1 else ''}",
    html.section("Suspicions", *warnings),
    html.section("Runs, the best validation IoU first", html.table(rows, columns, best)),
    html.section("The best per metric", html.table(champions)),
    html.section(
      "Is the difference more than chance?",
      html.table(lines, ["first", "second", "verdict", "difference in IoU", "95 % from", "to"]),
      html.paragraph(
        "Paired bootstrap over the pictures that both runs judged, 95 %. It says what other "
        "pictures might have shown, not what another seed of training might have given. Pictures "
        "count as independent: crops and copies of one wall are not, and make the interval too "
        f"narrow. Nothing is corrected for the number of comparisons ({len(lines)} here): among "
        "runs that are all the same, one in twenty shows a difference.",
        "note",
      )
      if lines
      else "",
    ),
    html.section("IoU per prompt", html.table(per_prompt(found), ["prompt", *names])),
    html.section("Curves", html.charts(figures, names)),
    html.section("What differs in the configs", html.table(runs.config_differences(found))),
    html.section(
      "Overlays side by side",
      *([html.legend(visualize.LEGEND)] if (rows_of := side_by_side(found)) else []),
      *rows_of,
    ),
    *(
      html.section(f"Worst pictures for “{prompt}”", html.table(table, ["picture", *names]))
      for prompt, table in worst.items()
    ),
    html.section("Definitions", html.table(definitions)),
  )


def main(argv: list[str] | None = None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir, or a folder of workdirs")
  parser.add_argument("--output", type=Path, default=Path("model_comparison.csv"))
  args = parser.parse_args(argv)
  if args.output.suffix != ".csv":
    raise UserError(f"--output {args.output} must end in .csv; the page is written beside it")
  found, unfinished = runs.find(args.runs)
  for workdir in unfinished:
    print(f"left out, not finished: {workdir}", file=sys.stderr)
  found = runs.ranked(found)
  rows = [run.row() for run in found]
  lines = differences(found)

  args.output.parent.mkdir(parents=True, exist_ok=True)
  with args.output.open("w", newline="") as file:
    writer = csv.DictWriter(file, runs.COLUMNS)
    writer.writeheader()
    writer.writerows(summary.strict(rows))
  target = args.output.with_suffix(".html")
  target.write_text(page(found, rows, lines), encoding="utf-8")

  width = max(len(run.name) for run in found)
  for row in rows:
    shown = ["best_val_iou", "best_val_dice", "best_epoch", "total_epochs", "learning_rate"]
    cells = [f"{name} {html.number(row[name])}" for name in shown]
    print(f"{row['experiment']:{width}}  " + "  ".join(cells))
  for line in lines:
    low, high = line.get("95 % from", math.nan), line.get("to", math.nan)
    limits = "" if math.isnan(low) else f" (IoU {low:+.4f} to {high:+.4f}, 95 %)"
    print(f"{line['first']} against {line['second']}: {line['verdict']}{limits}")
  print(f"{args.output}\n{target}")


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"compare_models: {error}", file=sys.stderr)
    sys.exit(2)
