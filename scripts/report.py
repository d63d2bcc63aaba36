"""The report of one run as a page: approach, data, metrics per prompt, examples, failures, cost.

    scripts/report.py runs/quickstart
    scripts/report.py runs/drywall --evaluation=runs/drywall/evaluation_test --output=report.html

Numbers of the test split and the pictures come from scripts/evaluate.py; without it the report
has those of validation.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from segflax import evaluation_page, html, judgement, metrics, runs, summary, visualize
from segflax.errors import UserError

DATA_FOLDER = "concept_masks/1.0.0"  # data.builder's NAME/VERSION; a test compares them
CURVES = {
  "loss": ("train_loss", "val_loss"),
  "IoU and Dice": ("val_iou", "val_dice"),
  "pixel accuracy": ("val_pixel_accuracy",),
  "do prompts matter?": ("val_prompt_overlap", "val_truth_overlap", "val_wrong_prompt_iou"),
  "gradient norm": ("train_grad_norm",),
  "learning rate": ("lr",),
}
PER_PROMPT = ("iou", "dice", "pixel_accuracy", "iou_fg", "empty_fp_rate", "wrong_prompt_iou")


def approach(run: runs.Run) -> str:
  """Says in a paragraph what was trained, on what, how."""
  of = lambda path: html.number(run.argument(path))  # noqa: E731
  start = run.argument("model.pretrained")
  weights = f"starting from {start}" if start else f"preset {of('model.preset')}, from scratch"
  precision = "bfloat16 compute" if run.argument("mixed_precision") else "float32"
  return (
    f"CLIPSeg, {weights}; trained parameters: {of('trainable')}. Pictures at {of('image_size')} "
    f"pixels, batches of {of('batch_size')}, loss {of('loss.name')}, AdamW at {of('lr')} "
    f"({of('schedule.name')} schedule), gradient clipped at {of('gradient_clip')}, {precision}, "
    f"seed {of('seed')}. {run.summary['total_epochs']} epochs of at most {of('epochs')} "
    f"(ended by: {html.number(run.summary.get('stopped'))}); the best validation IoU came in "
    f"epoch {html.number(run.best('val_iou', 'epoch'))}."
  )


def data_table(run: runs.Run) -> list[dict[str, object]]:
  """Returns the counts of each split as prepare_data wrote them; nothing where they are gone."""
  data_dir = run.argument("data_dir")
  if not data_dir:  # Path("") is the current folder, whose data are somebody else's.
    return []
  # The two places where builder.load_info looks; it cannot be asked without starting TFDS.
  places = (Path(data_dir) / DATA_FOLDER / "metadata.json", Path(data_dir) / "metadata.json")
  path = next((path for path in places if path.is_file()), None)
  if path is None:
    return []
  rows = []
  content = summary.read_json(path, "prepare the data again")
  for split, counts in content.get("counts", {}).items():
    row = {"split": split, "pictures": counts["pictures"], "source pictures": counts["groups"]}
    for concept, of in counts["concepts"].items():
      row |= {f"{concept}: known": of["known"], f"{concept}: empty": of["empty"]}
      row |= {f"{concept}: mean area": of["area"]}
    rows.append(row)
  return rows


def validation_table(run: runs.Run) -> list[str]:
  """Returns the metrics per prompt at the best epoch, with intervals of the IoU; or nothing."""
  rows = run.rows()
  if rows is None:
    return []
  table = metrics.iou_rows(rows)
  lines = []
  for column, (prompt, values) in enumerate(metrics.per_prompt(rows).items()):
    interval = judgement.bootstrap(table[:, column])
    limits = f"{interval.low:.3f} to {interval.high:.3f}"
    lines.append({"prompt": prompt, "IoU, 95 %": limits} | {m: values[m] for m in PER_PROMPT})
  return [
    html.paragraph(f"Validation, best epoch, above {rows.threshold:g}:"),
    html.table(lines),
  ]


def cost(run: runs.Run, evaluation: Mapping | None) -> list[dict[str, object]]:
  """Returns what training took, where, and what the model costs."""
  rows = [
    {"what": f"{name} (seconds)", "value": seconds}
    for name, seconds in run.summary.get("timings", {}).items()
  ]
  rows += [{"what": n, "value": v} for n, v in run.summary.get("speed", {}).items()]
  rows += [{"what": n, "value": v} for n, v in run.summary.get("environment", {}).items()]
  if evaluation is not None:
    rows += [{"what": name, "value": value} for name, value in evaluation["footprint"].items()]
  return rows


def galleries(run: runs.Run, folder: Path | None) -> list[str]:
  """Returns a section per kind of picture: panels of picture, truth, prediction, overlay."""
  index = (folder or run.path) / runs.OVERLAYS / "index.json"
  if not index.exists():
    return []
  figures: dict[str, list[str]] = {kind: [] for kind in evaluation_page.TITLES}
  for entry in summary.read_json(index, "evaluate again")["overlays"]:
    caption = f"{entry['prompt']}, {entry['image_id']}: {entry['caption']}"
    figures[entry["kind"]].append(html.image(index.parent / entry["file"], caption))
  key = html.legend(visualize.LEGEND)
  return [
    html.section(evaluation_page.TITLES[kind], key, html.gallery(shown, wide=True))
    for kind, shown in figures.items()
    if shown
  ]


def page(run: runs.Run, evaluation: Mapping | None, folder: Path | None) -> str:
  """Returns the whole report."""
  warnings = judgement.suspicions(run.best_row(), "val_")
  warnings += evaluation["suspicions"] if evaluation else []
  figures = []
  for title, curves in CURVES.items():
    points = {c: [(row["epoch"], row.get(c)) for row in run.history] for c in curves}
    key = html.curve_legend(curves) if len(curves) > 1 else ""
    if chart := html.chart(title, points):
      figures.append(f"<figure>{chart}{key}</figure>")
  tables = []
  if evaluation is not None:
    name = list(evaluation["metrics"])[-1]
    at = evaluation_page.threshold_words(evaluation, name)
    tables += [
      html.paragraph(f"{evaluation['split']}, {evaluation['pictures']} pictures:"),
      evaluation_page.metric_table(evaluation),
      html.paragraph(f"Thresholds of the last column and of the pictures: {at}.", "note"),
    ]
  tables += validation_table(run)
  definitions = dict(run.summary.get("definitions", {}))
  definitions |= evaluation["definitions"] if evaluation else {}
  leaves = runs.leaves(run.summary["training_args"])
  config = [{"field": field, "value": str(value)} for field, value in leaves.items()]
  return html.page(
    f"Report: {run.name}",
    html.section("Suspicions", *(html.paragraph(s, "warning") for s in dict.fromkeys(warnings))),
    html.section("Approach", html.paragraph(approach(run))),
    html.section("Data", html.table(data_table(run))),
    html.section("Metrics", *tables),
    html.section("Curves", html.charts(figures) if figures else ""),
    *galleries(run, folder),
    html.section("Run time and footprint", html.table(cost(run, evaluation))),
    html.section("Config", html.table(config)),
    html.section(
      "Definitions", html.table([{"metric": n, "definition": t} for n, t in definitions.items()])
    ),
  )


def main(argv: list[str] | None = None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run", type=Path, help="workdir of a run that has ended")
  parser.add_argument("--evaluation", type=Path, help="default: evaluation_test/ in the run")
  parser.add_argument("--output", type=Path, help="default: report.html in the run")
  args = parser.parse_args(argv)
  (run, *more), _ = runs.find([args.run])
  if more:
    raise UserError(f"{args.run} holds {len(more) + 1} runs; name one, or use compare_models.py")
  folder = args.evaluation or run.path / "evaluation_test"
  evaluation = None
  if args.evaluation or folder.exists():
    evaluation = summary.read_json(folder / "evaluation.json", "run scripts/evaluate.py first")
  target = args.output or run.path / "report.html"
  target.write_text(page(run, evaluation, folder if evaluation else None), encoding="utf-8")
  print(target)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"report: {error}", file=sys.stderr)
    sys.exit(2)
