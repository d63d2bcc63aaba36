"""Judges a model on a split of prepared data: every metric, with intervals, failures and a page.

    scripts/evaluate.py --model=runs/quickstart --data_dir=data/generated_walls --split=test

Each prompt's threshold is fitted on --fit_split (val); results are given at 0.5 and at the fitted
thresholds. These are stored with the model, where predict.py finds them, if they were fitted on all
of the data that the run was trained with and at predict.py's defaults; --store stores any others.
Writes evaluation.json, rows.npz, overlays/ and evaluation.html to --output (default:
evaluation_<split>/ in the run).
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import numpy as np

from segflax import config as config_lib
from segflax import (
  evaluation_page,
  judgement,
  measure,
  metrics,
  metrics_thin,
  runs,
  summary,
  tiles,
  visualize,
)
from segflax.data import builder
from segflax.data.decode import load_image, load_mask
from segflax.data.progress import progress
from segflax.data.prompts import PromptSet
from segflax.errors import UserError
from segflax.predict import TILE_ABOVE, Predictor

Tile = str | int | None


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, help="a run's workdir, a model folder, a hub id")
  parser.add_argument("--data_dir", required=True, help="prepared data set")
  parser.add_argument("--split", default="test")
  parser.add_argument("--fit_split", default="val", help="thresholds are fitted here; '': not")
  parser.add_argument("--output", type=Path)
  parser.add_argument("--every_synonym", action="store_true", help="ask all prompts of a concept")
  parser.add_argument("--store", action="store_true", help="store the thresholds in any case")
  parser.add_argument("--tile", default="auto", help="auto, none, or a window's side in pixels")
  parser.add_argument("--limit", type=int, default=0, help="pictures per split; 0: all")
  parser.add_argument("--image_size", type=int, help="what the network sees; default: the model's")
  parser.add_argument("--batch_size", type=int, default=8, help="pictures per pass")
  parser.add_argument("--worst", type=int, default=8, help="pictures per gallery of the page")
  return parser.parse_args(argv)


class Split:
  """The pictures of a split with their truths, decoded as they are asked for."""

  def __init__(self, data_dir: str, name: str, limit: int):
    self.records = builder.open_split(data_dir, name)
    self.name = name
    self.count = min(limit, len(self.records)) if limit else len(self.records)

  def picture(self, index: int) -> np.ndarray:
    record = self.records[index]
    return np.asarray(load_image(record["image"], name=record["image_id"]))

  def truth(self, index: int) -> dict[str, np.ndarray]:
    """Returns concept -> mask [h w] bool; a concept whose truth is unknown is missing."""
    record = self.records[index]
    pairs = zip(record["concepts"], record["masks"], strict=True)
    return {concept: np.asarray(load_mask(mask)) > 0 for concept, mask in pairs}


def predictions(
  predictor: Predictor, split: Split, prompts: Sequence[str], tile: Tile
) -> Iterator[tuple[int, dict[str, np.ndarray], float]]:
  """Yields (record number, prompt -> probability, seconds) of every picture."""
  size = predictor.batch_size
  for start in progress(range(0, split.count, size), f"judging {split.name}"):
    indices = range(start, min(start + size, split.count))
    pictures = [split.picture(i) for i in indices]
    began = time.perf_counter()
    maps = predictor(pictures, prompts, tile=tile)
    seconds = (time.perf_counter() - began) / len(pictures)
    for index, probability in zip(indices, maps, strict=True):
      yield index, probability, seconds


def judge(
  predictor: Predictor, split: Split, collect: measure.Measure, tile: Tile
) -> tuple[measure.Measured, float]:
  """Returns (what `collect` measured, seconds per picture) of a split."""
  seconds = []
  for index, probability, each in predictions(predictor, split, collect.prompts, tile):
    record = split.records[index]
    collect.add(record["image_id"], record["source"], probability, split.truth(index))
    seconds.append(each)
  # The first batch compiles.
  steady = seconds[predictor.batch_size :] or seconds
  return collect.result(), float(np.mean(steady))


def examples(rows: metrics.Rows, number: int = 6) -> dict[str, list]:
  """Chooses pictures evenly spread over those whose truth is known, as `failures` returns them."""
  iou, chosen = metrics.iou_rows(rows), {}
  for column, prompt in enumerate(rows.prompts):
    known = np.flatnonzero(rows.known[:, column])
    # Without any truth there is still a prediction to look at.
    known = known if len(known) else np.arange(len(rows.image_ids))
    spread = np.unique(np.linspace(0, len(known) - 1, min(number, len(known))).astype(int))
    captions = [f"IoU {v:.2f}" if v == v else "truth unknown" for v in iou[known[spread], column]]
    chosen[prompt] = list(zip(known[spread].tolist(), captions, strict=True))
  return chosen


def failures(rows: metrics.Rows, worst: int) -> dict[str, dict[str, list]]:
  """Chooses what to look at: kind -> prompt -> [(record number, caption)]."""
  tp, fp, fn, tn = np.moveaxis(metrics.counts_at(rows), -1, 0)
  iou = metrics.iou_rows(rows)
  wrong = metrics.ratio(rows.pairs[..., 1, 0], rows.pairs[..., 1, 1], 0)
  kinds = {"worst": {}, "wrong concept": {}, "false alarms": {}}
  for column, prompt in enumerate(rows.prompts):
    known = rows.known[:, column]
    there = known & ((tp + fn)[:, column] > 0)
    order = [i for i in np.argsort(iou[:, column]) if there[i]][:worst]
    kinds["worst"][prompt] = [(int(i), f"IoU {iou[i, column]:.2f}") for i in order]
    others = [k for k, c in enumerate(rows.concepts) if c != rows.concepts[column]]
    score = np.where(rows.known[:, others], wrong[:, column, others], 0).max(1, initial=0)
    order = [i for i in np.argsort(-score) if score[i] > 0.05][:worst]
    kinds["wrong concept"][prompt] = [
      (int(i), f"IoU {score[i]:.2f} with another concept") for i in order
    ]
    share = fp[:, column] / (tp + fp + fn + tn)[:, column]
    order = [i for i in np.argsort(-share) if known[i] and not there[i] and share[i] > 0][:worst]
    kinds["false alarms"][prompt] = [(int(i), f"{share[i]:.1%} of the picture") for i in order]
  return kinds


def draw(
  predictor: Predictor, split: Split, chosen: dict, concept_of: dict, threshold: dict, tile: Tile
) -> dict:
  """Returns kind -> prompt -> [(image id, caption, panel)], predicting the chosen ones again."""
  needed = sorted({i for kinds in chosen.values() for items in kinds.values() for i, _ in items})
  maps = {}
  for start in range(0, len(needed), predictor.batch_size):
    chunk = needed[start : start + predictor.batch_size]
    pictures = [split.picture(index) for index in chunk]
    maps |= zip(chunk, predictor(pictures, list(concept_of), tile=tile), strict=True)
  drawn = {}
  for kind, prompts in chosen.items():
    drawn[kind] = {}
    for prompt, items in prompts.items():
      figures = []
      for index, caption in items:
        truth = split.truth(index)
        truths = {prompt: truth[concept_of[prompt]]} if concept_of[prompt] in truth else None
        panel = visualize.panel(
          split.picture(index),
          {prompt: maps[index][prompt]},
          truths,
          threshold=threshold[prompt],
          cell=(160, 300),
        )
        figures.append((split.records[index]["image_id"], caption, panel))
      drawn[kind][prompt] = figures
  return drawn


def footprint(model: Path, predictor: Predictor, seconds: float) -> dict[str, object]:
  """Returns what the model costs."""
  weights = sorted(model.glob("**/model*.safetensors"))[:1] if model.is_dir() else []
  device = jax.devices()[0]
  return {
    "parameters": predictor.num_parameters,
    "megabytes on disk": round(weights[0].stat().st_size / 1e6, 2) if weights else None,
    "seconds per picture": round(seconds, 4),
    "image size": predictor.image_size,
    "device": f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores",
  }


def geometry(predictor: Predictor, split: Split, tile: Tile) -> dict[str, object]:
  """Says how pictures reached the network: the numbers depend on it."""
  sides = (max(r["height"], r["width"]) for r in map(split.records.__getitem__, range(split.count)))
  above = TILE_ABOVE * predictor.image_size if tile == "auto" else tile or np.inf
  return {
    "tile": "none" if tile is None else tile,
    "image size": predictor.image_size,
    "pictures in tiles": sum(side > above for side in sides),
    "other pictures": "whole, their aspect kept, at about image size² pixels",
    "in training and its val_ metrics": "whole, squashed to a square",
  }


def run_of(model: Path) -> Path | None:
  """Returns the workdir that a model belongs to; None for a model folder or hub id by itself."""
  candidates = (model, model.parent) if model.name == "best_model" else (model,)
  return next((path for path in candidates if (path / "checkpoints").is_dir()), None)


def prompts_of(model: Path, concepts: Sequence[str]) -> PromptSet:
  """Returns the prompts that a run was trained with, the built-in ones for any other model."""
  run = run_of(model)
  if run is None:
    return PromptSet.create(concepts)
  asked = config_lib.load(run)["prompts"]
  # The data set may be another than that of training.
  synonyms = {c: texts for c, texts in asked["synonyms"].items() if c in concepts}
  return PromptSet.create(concepts, synonyms, asked["templates"])


def why_not_stored(args: argparse.Namespace, model: Path, info: builder.DatasetInfo) -> str | None:
  """Returns why thresholds fitted so are not the model's own; None where they are."""
  if args.limit:
    return f"--limit={args.limit} fitted them on a part of the split"
  if args.image_size is not None or args.tile != "auto":
    return "--image_size or --tile fitted them otherwise than predict.py predicts by default"
  run = run_of(model)
  if run is None:
    return f"{model} is not a run, so that the data it was trained with are unknown"
  trained_on = config_lib.load(run)["data_dir"]
  try:
    same = builder.load_info(trained_on).content_sha256 == info.content_sha256
  except UserError:
    return f"the data of the run ({trained_on}) are gone, so that they cannot be compared"
  return None if same else f"the run was trained on {trained_on}, whose content is another"


def store_thresholds(model: Path, thresholds: dict[str, float]) -> Path:
  """Adds fitted thresholds to the model folder; those of other prompts stay."""
  folder = model / "best_model" if (model / "best_model").is_dir() else model
  path = folder / summary.THRESHOLDS
  before = summary.read_json(path, "remove it") if path.exists() else {}
  summary.write_json(path, before | thresholds)
  return path


def check(args: argparse.Namespace):
  """Raises UserError where the arguments contradict themselves."""
  if args.batch_size < 1 or args.limit < 0 or args.worst < 0:
    raise UserError("--batch_size must be at least 1, --limit and --worst at least 0")
  if args.fit_split == args.split:
    raise UserError(
      f"--split={args.split} would be judged at thresholds fitted on itself, which flatters; give "
      "another --fit_split (train), or --fit_split= for 0.5 alone"
    )
  if args.store and not Path(args.model).is_dir():
    raise UserError(f"--store: {args.model} is no folder on this machine; download it first")
  if args.store and not args.fit_split:
    raise UserError("--store needs thresholds; give a --fit_split, for example val")


def main(argv: list[str] | None = None):
  args = parse(argv)
  check(args)
  tile = tiles.parse(args.tile)
  model = Path(args.model)
  info = builder.load_info(args.data_dir)
  prompts = prompts_of(model, info.concepts)
  asked = range(len(prompts.prompts)) if args.every_synonym else prompts.canonical.tolist()
  texts = [prompts.prompts[i] for i in asked]
  concepts = [prompts.concepts[prompts.concept_of[i]] for i in asked]
  split = Split(args.data_dir, args.split, args.limit)
  fit = Split(args.data_dir, args.fit_split, args.limit) if args.fit_split else None
  predictor = Predictor.from_pretrained(
    args.model, image_size=args.image_size, batch_size=args.batch_size
  )
  at: dict = {"0.5": 0.5}
  if fit is not None:
    collect = measure.Measure(texts, concepts, at, shapes=False)
    at["fitted"] = metrics.fit_thresholds(judge(predictor, fit, collect, tile)[0].rows["0.5"])
    reason = None if args.store else why_not_stored(args, model, info)
    if reason is None:
      print(f"thresholds fitted on {args.fit_split}: {store_thresholds(model, at['fitted'])}")
    else:
      print(f"thresholds not stored with the model: {reason}; --store stores them")
  collect = measure.Measure(texts, concepts, at)
  measured, seconds = judge(predictor, split, collect, tile)
  main_name = list(at)[-1]
  rows = measured.rows[main_name]
  best = at["fitted"] if fit is not None else dict.fromkeys(rows.prompts, 0.5)

  content = {
    "model": args.model,
    "data_dir": str(args.data_dir),
    "content_sha256": info.content_sha256,
    "split": args.split,
    "pictures": len(rows.image_ids),
    "geometry": geometry(predictor, split, tile),
    "concepts": dict(zip(rows.prompts, rows.concepts, strict=True)),
    "thresholds": at,
    "thresholds_fitted_on": args.fit_split or None,
    "metrics": {name: measure.report(measured, name) for name in at},
    "intervals": {name: measure.intervals(measured, name) for name in at},
    "confusion": {"threshold": main_name, **measure.confusion(rows)},
    "clipseg": metrics_thin.paper_metrics(rows.counts[rows.known], rows.thresholds),
    "footprint": footprint(model, predictor, seconds),
    "definitions": metrics.DEFINITIONS | metrics_thin.DEFINITIONS | metrics_thin.PAPER_DEFINITIONS,
  }
  content["suspicions"] = [
    f"threshold {name}: {sentence}"
    for name, found in content["metrics"].items()
    for sentence in judgement.suspicions(found["overall"])
  ]
  name = f"evaluation_{args.split}"
  output = args.output or (model / name if model.is_dir() else Path(name))
  output.mkdir(parents=True, exist_ok=True)
  rows.save(output / "rows.npz")
  summary.write_json(output / "evaluation.json", content)

  chosen = {"example": examples(rows)} | failures(rows, args.worst)
  drawn = draw(predictor, split, chosen, content["concepts"], best, tile)
  entries = [
    (kind, image_id, prompt, panel, caption)
    for kind, prompts_drawn in drawn.items()
    for prompt, figures in prompts_drawn.items()
    for image_id, caption, panel in figures
  ]
  runs.write_overlays(output / runs.OVERLAYS, entries)
  content = summary.strict(content)
  (output / "evaluation.html").write_text(evaluation_page.page(content, drawn), encoding="utf-8")
  for prompt, values in content["metrics"][main_name]["per_prompt"].items():
    shown = ("iou", "dice", "iou_fg", "f1@2px", "cldice", "ap", "wrong_prompt_iou")
    numbers = "  ".join(f"{n} {v:.4f}" for n in shown if (v := values[n]) is not None)
    print(f"{prompt} (threshold {best[prompt]:g}):  {numbers}")
  for sentence in content["suspicions"]:
    print(f"careful: {sentence}")
  print(f"{output / 'evaluation.json'}\n{output / 'evaluation.html'}")


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"evaluate: {error}", file=sys.stderr)
    sys.exit(2)
