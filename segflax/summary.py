"""What a run leaves for the scripts: training_summary.json and metrics.jsonl, in strict JSON.

No JAX here: comparing runs reads these files only and must not wait for a device.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from segflax.errors import UserError
from segflax.metrics import DEFINITIONS, LOWER_IS_BETTER, NO_DIRECTION

SUMMARY = "training_summary.json"
HISTORY = "metrics.jsonl"
VAL_ROWS = "val_rows.npz"  # metrics.Rows of the best epoch
THRESHOLDS = "thresholds.json"  # in a model folder: prompt -> threshold


def strict(value):
  """Returns the value with NaN and infinities as None, which JSON has, and NumPy as Python."""
  if isinstance(value, dict):
    return {str(key): strict(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [strict(item) for item in value]
  if hasattr(value, "tolist"):  # NumPy scalars and arrays
    return strict(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: Path, content) -> None:
  """Writes strict JSON, whole or not at all."""
  path = Path(path)
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(strict(content), indent=2, allow_nan=False) + "\n")
  temporary.replace(path)


def read_json(path: Path, remedy: str) -> dict:
  """Reads a JSON object.

  Raises:
    UserError: the file is missing or damaged; the message ends with `remedy`.
  """
  try:
    content = json.loads(Path(path).read_text())
  except FileNotFoundError as error:
    raise UserError(f"{path} does not exist; {remedy}") from error
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is not readable as JSON ({error}); {remedy}") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} holds a {type(content).__name__}, not an object; {remedy}")
  return content


def write_history(workdir: Path, history: Sequence[dict]) -> None:
  """Writes metrics.jsonl, one line per evaluation.

  The whole file is rewritten from the history that the checkpoint holds, so that a resumed run
  leaves the file of the uninterrupted one.
  """
  path = Path(workdir) / HISTORY
  temporary = path.with_name(path.name + ".tmp")
  lines = [json.dumps(strict(row), allow_nan=False) + "\n" for row in history]
  temporary.write_text("".join(lines))
  temporary.replace(path)


def read_history(workdir: Path) -> list[dict]:
  """Returns the evaluations of a run, oldest first; a number that was not finite is None.

  Raises:
    UserError: the file is missing or a line is damaged.
  """
  path = Path(workdir) / HISTORY
  if not path.exists():
    raise UserError(f"{path} does not exist; give the workdir of a run that evaluated once")
  history = []
  for number, line in enumerate(path.read_text().splitlines(), 1):
    try:
      history.append(json.loads(line))
    except ValueError as error:
      raise UserError(
        f"line {number} of {path} is not JSON ({error}); remove it, or resume the run"
      ) from error
  return history


def lower_is_better(metric: str) -> bool:
  """Whether a metric, with or without `val_` or `train_`, is to be minimised."""
  return metric.removeprefix("val_").removeprefix("train_") in LOWER_IS_BETTER


def best_of(history: Sequence[dict], metric: str) -> dict | None:
  """Returns {"value", "epoch"} of the best evaluation, the earliest of equals.

  A value that is None or not finite is never the best; None where no other is left.
  """
  sign = -1 if lower_is_better(metric) else 1
  best = None
  for row in history:
    if metric not in row or row[metric] is None or not math.isfinite(row[metric]):
      continue
    value = row[metric]
    if best is None or sign * value > sign * best["value"]:
      best = {"value": value, "epoch": row["epoch"]}
  return best


def make_summary(
  history: Sequence[dict],
  *,
  training_args: dict,
  stopped: str,
  timings: dict[str, float],
  speed: dict[str, float],
  environment: dict[str, str],
) -> dict:
  """Makes the content of training_summary.json: the origin's format, and more.

  Args:
    history: one dict per evaluation: "epoch" (from 1), "train_loss", "val_loss", "val_iou", …;
      nested values (per prompt) are left out of the best.
    training_args: the resolved config.
    stopped: why training ended, for example "early stopping" or "all epochs".
    timings: seconds by name.
    speed: images per second, share of training.
    environment: versions, platform, git revision.

  Returns:
    The origin's fields (best_metrics, final_metrics, total_epochs, training_args, best_val_iou,
    best_val_dice), then definitions, stopped, timings, speed, environment.
  """
  final = dict(history[-1]) if history else {}
  scalars = lambda name: name.startswith(("val_", "train_"))  # noqa: E731
  names = [n for n, v in final.items() if scalars(n) and not isinstance(v, dict | list)]
  judged = [n for n in names if n.startswith("val_") and n[4:] not in NO_DIRECTION]
  best = {n: best_of(history, n) for n in judged}
  best = {n: b for n, b in best.items() if b is not None}
  value = lambda name: best[name]["value"] if name in best else None  # noqa: E731
  return {
    "best_metrics": best,
    "final_metrics": {n: final[n] for n in names},
    "total_epochs": final["epoch"] if final else 0,
    "training_args": training_args,
    "best_val_iou": value("val_iou"),
    "best_val_dice": value("val_dice"),
    "definitions": {n: DEFINITIONS[n[4:]] for n in names if n[4:] in DEFINITIONS},
    "stopped": stopped,
    "timings": timings,
    "speed": speed,
    "environment": environment,
  }


def write_summary(workdir: Path, summary: dict) -> Path:
  """Writes training_summary.json; returns its path."""
  path = Path(workdir) / SUMMARY
  write_json(path, summary)
  return path


def ended_with(workdir: Path, epochs: int) -> bool:
  """Whether the workdir's summary is of so many epochs, not of a run that was then prolonged."""
  return (Path(workdir) / SUMMARY).exists() and read_summary(workdir)["total_epochs"] == epochs


def read_summary(workdir: Path) -> dict:
  """Reads training_summary.json, also one that the origin wrote.

  Raises:
    UserError: the file is missing, damaged, or lacks a field of the origin's format.
  """
  path = Path(workdir)
  path = path / SUMMARY if path.is_dir() else path
  summary = read_json(path, "give the workdir of a run that has ended")
  needed = ("best_metrics", "final_metrics", "total_epochs", "training_args")
  missing = [name for name in needed if name not in summary]
  if missing:
    raise UserError(f"{path} lacks {', '.join(missing)}; train again, or restore the file")
  return summary
