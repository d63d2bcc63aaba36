"""Judges a model on a split of prepared data: every metric, with intervals, failures and a page.

    scripts/evaluate.py --model=runs/quickstart --data_dir=data/generated_walls --split=test

Each prompt's threshold is fitted on --fit_split (val) and stored with the model; results are given
at 0.5 and at the fitted thresholds. Writes evaluation.json, rows.npz, overlays/ and evaluation.html
to --output (default: evaluation_<split>/ in the run).
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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
  visualize,
)
from segflax.data import builder
from segflax.data.decode import load_image, load_mask
from segflax.data.progress import progress
from segflax.data.prompts import PromptSet
from segflax.errors import UserError
from segflax.predict import Predictor


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
  predictor: Predictor, split: Split, prompts: Sequence[str], batch_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray], float]]:
  """Yields (record number, prompt -> probability, seconds) of every picture."""
  for start in progress(range(0, split.count, batch_size), f"judging {split.name}"):
    indices = range(start, min(start + batch_size, split.count))
    pictures = [split.picture(i) for i in indices]
    began = time.perf_counter()
    maps = predictor(pictures, prompts, tile=None)
    seconds = (time.perf_counter() - began) / len(pictures)
    for index, probability in zip(indices, maps, strict=True):
      yield index, probability, seconds


def judge(predictor, split, prompts: PromptSet, asked: Sequence[int], thresholds, batch_size):
  """Returns (Measured, seconds per picture) of a split; `thresholds` as of measure.Measure."""
  texts = [prompts.prompts[i] for i in asked]
  concepts = [prompts.concepts[prompts.concept_of[i]] for i in asked]
  collect, seconds = measure.Measure(texts, concepts, thresholds), []
  for index, probability, each in predictions(predictor, split, texts, batch_size):
    record = split.records[index]
    collect.add(record["image_id"], record["source"], probability, split.truth(index))
    seconds.append(each)
  # The first batch compiles.
  steady = seconds[batch_size:] or seconds
  return collect.result(), float(np.mean(steady))


def intervals(measured: measure.Measured, at: dict) -> dict[str, dict[str, dict]]:
  """Returns prompt -> metric -> mean, low, high: bootstrap over pictures, 95 %."""
  found = {}
  for name, threshold in at.items():
    columns = {"iou": metrics.iou_rows(measured.rows, threshold), **measured.thin[name]}
    found[name] = {}
    for column, prompt in enumerate(measured.rows.prompts):
      table = np.stack([values[:, column] for values in columns.values()], -1)
      found[name][prompt] = {
        metric: interval._asdict()
        for metric, interval in zip(columns, judgement.bootstrap(table), strict=True)
      }
  return found


def failures(rows: metrics.Rows, threshold, worst: int) -> dict[str, dict[str, list]]:
  """Chooses what to look at: kind -> prompt -> [(record number, caption)]."""
  tp, fp, fn, tn = np.moveaxis(metrics.counts_at(rows, threshold), -1, 0)
  iou = metrics.iou_rows(rows, threshold)
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


def draw(predictor, split: Split, chosen: dict, concept_of: dict, threshold: dict) -> dict:
  """Returns kind -> prompt -> [(image id, caption, panel)], predicting the chosen ones again."""
  needed = sorted({i for kinds in chosen.values() for items in kinds.values() for i, _ in items})
  maps = {}
  for start in range(0, len(needed), predictor.batch_size):
    chunk = needed[start : start + predictor.batch_size]
    pictures = [split.picture(index) for index in chunk]
    maps |= zip(chunk, predictor(pictures, list(concept_of), tile=None), strict=True)
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


def prompts_of(model: Path, concepts: Sequence[str]) -> PromptSet:
  """Returns the prompts that a run was trained with, the built-in ones for any other model."""
  if not (model / "checkpoints").is_dir():
    return PromptSet.create(concepts)
  asked = config_lib.load(model)["prompts"]
  # The data set may be another than that of training.
  synonyms = {c: texts for c, texts in asked["synonyms"].items() if c in concepts}
  return PromptSet.create(concepts, synonyms, asked["templates"])


def store_thresholds(model: Path, thresholds: dict[str, float]) -> Path | None:
  """Adds fitted thresholds to the model folder; None where the model is no folder of ours."""
  folder = model / "best_model" if (model / "best_model").is_dir() else model
  if not folder.is_dir():
    return None
  path = folder / summary.THRESHOLDS
  before = summary.read_json(path, "remove it") if path.exists() else {}
  summary.write_json(path, before | thresholds)
  return path


def main(argv: list[str] | None = None):
  args = parse(argv)
  model = Path(args.model)
  info = builder.load_info(args.data_dir)
  prompts = prompts_of(model, info.concepts)
  asked = range(len(prompts.prompts)) if args.every_synonym else prompts.canonical.tolist()
  split = Split(args.data_dir, args.split, args.limit)
  if args.batch_size < 1 or args.limit < 0 or args.worst < 0:
    raise UserError("--batch_size must be at least 1, --limit and --worst at least 0")
  predictor = Predictor.from_pretrained(
    args.model, image_size=args.image_size, batch_size=args.batch_size
  )
  at: dict = {"0.5": 0.5}
  if args.fit_split:
    fit = Split(args.data_dir, args.fit_split, args.limit)
    fit_rows = judge(predictor, fit, prompts, asked, {}, args.batch_size)[0].rows
    at["fitted"] = metrics.fit_thresholds(fit_rows)
    if stored := store_thresholds(model, at["fitted"]):
      print(f"thresholds fitted on {args.fit_split}: {stored}")
  measured, seconds = judge(predictor, split, prompts, asked, at, args.batch_size)
  rows = measured.rows
  best = at["fitted"] if args.fit_split else dict.fromkeys(rows.prompts, 0.5)

  content = {
    "model": args.model,
    "data_dir": str(args.data_dir),
    "content_sha256": info.content_sha256,
    "split": args.split,
    "pictures": len(rows.image_ids),
    "concepts": dict(zip(rows.prompts, rows.concepts, strict=True)),
    "thresholds": at,
    "thresholds_fitted_on": args.fit_split or None,
    "metrics": {name: measure.report(measured, name, value) for name, value in at.items()},
    "intervals": intervals(measured, at),
    "confusion": measure.confusion(rows, best),
    "clipseg": metrics_thin.paper_metrics(rows.counts[rows.known], rows.thresholds),
    "footprint": footprint(model, predictor, seconds),
    "definitions": metrics.DEFINITIONS | metrics_thin.DEFINITIONS,
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

  chosen = failures(rows, best, args.worst)
  spread = np.unique(np.linspace(0, split.count - 1, min(6, split.count)).astype(int))
  iou = metrics.iou_rows(rows, best)
  chosen = {
    "example": {
      p: [(int(i), f"IoU {iou[i, k]:.2f}") for i in spread] for k, p in enumerate(rows.prompts)
    }
  } | chosen
  drawn = draw(predictor, split, chosen, content["concepts"], best)
  entries = {
    (kind, image_id, prompt): (kind, image_id, prompt, panel, caption)
    for kind in ("example", "worst")
    for prompt, figures in drawn[kind].items()
    for image_id, caption, panel in figures
  }
  runs.write_overlays(output / runs.OVERLAYS, entries.values())
  content = summary.strict(content)
  (output / "evaluation.html").write_text(evaluation_page.page(content, drawn), encoding="utf-8")
  for prompt, values in content["metrics"][list(at)[-1]]["per_prompt"].items():
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
