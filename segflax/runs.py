"""Reads what runs have left behind: summaries, curves, rows, overlays. Starts no JAX."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from segflax import summary
from segflax.errors import UserError
from segflax.metrics import Rows

# The origin's columns come first and keep its names.
COLUMNS = (
  "experiment",
  "best_val_iou",
  "best_val_dice",
  "total_epochs",
  "batch_size",
  "learning_rate",
  "image_size",
  "mixed_precision",
  "best_epoch",
  "best_val_loss",
  "best_val_pixel_accuracy",
  "val_prompt_overlap",
  "val_truth_overlap",
  "val_wrong_prompt_iou",
  "val_predicted_area",
  "val_truth_area",
  "final_train_loss",
  "final_val_loss",
  "loss",
  "pretrained",
  "trainable",
  "seed",
  "stopped",
  "train_minutes",
  "workdir",
)
OVERLAYS = "overlays"  # folder: index.json and the pictures it names


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that has ended.

  Attributes:
    name: short and unique among the runs compared.
    path: its workdir.
    summary: training_summary.json.
    history: metrics.jsonl; empty where there is none.
  """

  name: str
  path: Path
  summary: dict
  history: list[dict]

  def argument(self, path: str) -> object:
    """Returns a leaf of the config by dotted path; None where the run has no such leaf."""
    value = self.summary["training_args"]
    for key in path.split("."):
      if not isinstance(value, dict) or key not in value:
        return None
      value = value[key]
    return value

  def best(self, metric: str, field: str = "value") -> float | None:
    """Returns the best value of a metric, or the epoch of it."""
    best = self.summary["best_metrics"].get(metric)
    return best[field] if best else None

  def best_row(self) -> dict:
    """Returns the line of metrics.jsonl with the best validation IoU; empty where unknown."""
    epoch = self.best("val_iou", "epoch")
    rows = [row for row in self.history if row["epoch"] == epoch]
    return rows[-1] if rows else {}

  def rows(self) -> Rows | None:
    """Returns the rows of validation at the best epoch, read once; None where there are none."""
    return self._rows

  @functools.cached_property
  def _rows(self) -> Rows | None:
    path = self.path / summary.VAL_ROWS
    return Rows.load(path) if path.exists() else None

  def overlays(self) -> dict[tuple[str, str], Path]:
    """Returns (image id, prompt) -> overlay picture, of training and of evaluations."""
    found = {}
    for index in sorted(self.path.glob(f"**/{OVERLAYS}/index.json")):
      for entry in summary.read_json(index, "evaluate again")["overlays"]:
        found[entry["image_id"], entry["prompt"]] = index.parent / entry["file"]
    return found

  def row(self) -> dict[str, object]:
    """Returns the run's line of the comparison."""
    final, at_best = self.summary["final_metrics"], self.best_row()
    seconds = self.summary.get("timings", {}).get("train")
    rate = self.argument("lr")  # The origin wrote `lr`, some of its copies `learning_rate`.
    values = (
      self.name,
      self.summary.get("best_val_iou", self.best("val_iou")),
      self.summary.get("best_val_dice", self.best("val_dice")),
      self.summary["total_epochs"],
      self.argument("batch_size"),
      self.argument("learning_rate") if rate is None else rate,
      self.argument("image_size"),
      self.argument("mixed_precision"),
      self.best("val_iou", "epoch"),
      self.best("val_loss"),
      self.best("val_pixel_accuracy"),
      at_best.get("val_prompt_overlap"),
      at_best.get("val_truth_overlap"),
      at_best.get("val_wrong_prompt_iou"),
      at_best.get("val_predicted_area"),
      at_best.get("val_truth_area"),
      final.get("train_loss"),
      final.get("val_loss"),
      self.argument("loss.name"),
      self.argument("model.pretrained"),
      self.argument("trainable"),
      self.argument("seed"),
      self.summary.get("stopped"),
      None if seconds is None else seconds / 60,
      str(self.path),
    )
    return dict(zip(COLUMNS, values, strict=True))


def find(paths: Iterable[str | Path]) -> tuple[list[Run], list[Path]]:
  """Expands folders to the runs in them.

  Args:
    paths: workdirs, folders of workdirs at any depth, or summary files.

  Returns:
    (runs, unfinished): those that have ended, in the order given, and the workdirs of those
    that have not.

  Raises:
    UserError: a path does not exist or holds no run that has ended.
  """
  workdirs, unfinished = {}, {}
  for path in map(Path, paths):
    if not path.exists():
      raise UserError(f"{path} does not exist; give the workdirs of runs, or a folder of them")
    files = [path] if path.is_file() else sorted(path.rglob(summary.SUMMARY))
    workdirs |= dict.fromkeys(file.parent for file in files)
    configs = [] if path.is_file() else sorted(path.rglob("config.json"))
    trained = (c.parent for c in configs if (c.parent / "checkpoints").is_dir())
    begun = [w for w in trained if not (w / summary.SUMMARY).exists()]
    unfinished |= dict.fromkeys(begun)
    if not files and not begun:
      raise UserError(
        f"{path} holds no {summary.SUMMARY}; give the workdir of a run that has ended"
      )
  if not workdirs:
    raise UserError(f"no run has ended yet; unfinished: {', '.join(map(str, unfinished))}")
  names = _names(list(workdirs))
  runs = []
  for workdir, name in zip(workdirs, names, strict=True):
    has_curves = (workdir / summary.HISTORY).exists()
    history = summary.read_history(workdir) if has_curves else []
    runs.append(Run(name, workdir, summary.read_summary(workdir), history))
  return runs, list(unfinished)


def _names(workdirs: Sequence[Path]) -> list[str]:
  """The last part of each path, and as many parts before it as make it unique."""
  resolved = [workdir.resolve() for workdir in workdirs]
  deepest = max(len(path.parts) for path in resolved)
  for parts in range(1, deepest + 1):
    names = ["/".join(path.parts[-parts:]) for path in resolved]
    if len(set(names)) == len(names):
      return names
  return [str(path) for path in resolved]


def leaves(tree: dict, prefix: str = "") -> dict[str, object]:
  """Returns dotted path -> leaf of a nested config."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= leaves(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def config_differences(runs: Sequence[Run]) -> list[dict[str, object]]:
  """Returns a row per config field that is not the same in all runs: "field", then run names."""
  configs = [leaves(run.summary["training_args"]) for run in runs]
  fields = dict.fromkeys(field for config in configs for field in config)
  return [
    {"field": field}
    | {r.name: c.get(field, "not there") for r, c in zip(runs, configs, strict=True)}
    for field in fields
    if any(c.get(field, "not there") != configs[0].get(field, "not there") for c in configs)
  ]


def ranked(runs: Sequence[Run]) -> list[Run]:
  """Sorts by best validation IoU, the best first; runs without one last."""

  def key(run: Run) -> float:
    value = run.row()["best_val_iou"]
    return -math.inf if value is None else value

  return sorted(runs, key=key, reverse=True)


def write_overlays(folder: Path, entries: Iterable[tuple[str, str, str, object, str]]) -> None:
  """Writes overlays for the pages of compare_models and report.

  Args:
    folder: a folder named `overlays` inside a workdir, at any depth.
    entries: (kind, image id, prompt, PIL picture, caption); kind: of evaluation_page.TITLES.
  """
  folder.mkdir(parents=True, exist_ok=True)
  index = []
  for number, (kind, image_id, prompt, picture, caption) in enumerate(entries):
    file = f"{number:04d}.jpg"
    picture.save(folder / file, quality=88)
    entry = {"kind": kind, "image_id": image_id, "prompt": prompt}
    index.append(entry | {"file": file, "caption": caption})
  summary.write_json(folder / "index.json", {"overlays": index})
