"""A run's config on disk, and what may change in it when the run is resumed."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

from ml_collections import ConfigDict

from segflax.errors import UserError
from segflax.metrics import DEFINITIONS

# Changing these mid-run leaves the run well defined: they decide how long it goes on and what it
# writes, not what an update computes. A whole group is named by its first part.
SAFE_TO_CHANGE = (
  "data.num_threads",
  "data_dir",  # where the data lie: the stream's position names their content
  "early_stopping_patience",
  "epochs",
  "eval.batch_size",
  "checkpoint",
  "hang_seconds",
  "log",
  "max_nonfinite",
  "profile_steps",
  "resume",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy")


# Rules that no other module states before the first step: field, what holds, remedy.
_RULES = (
  ("log.every_steps", lambda v: v >= 1, "at least 1; use 100"),
  ("max_nonfinite", lambda v: v >= 0, "0 or more; use 0 to stop at the first"),
  ("ema_decay", lambda v: 0 <= v < 1, "in [0, 1); use 0 for none, or 0.999"),
  ("accumulate", lambda v: v >= 1, "at least 1; use 1"),
  ("epochs", lambda v: v >= 1, "at least 1"),
  ("eval.batch_size", lambda v: v >= 0, "0 (as batch_size) or more"),
  ("eval.threshold", lambda v: 0 < v < 1 and abs(50 * v - round(50 * v)) < 1e-9,
   "a multiple of 0.02 between 0.02 and 0.98, where pixels are counted; use 0.5"),
  ("early_stopping_patience", lambda v: v >= 0, "0 (never stop early) or more"),
  ("checkpoint.every_steps", lambda v: v >= 0, "0 (only at an epoch's end) or more"),
  ("hang_seconds", lambda v: v >= 0, "0 (wait for ever) or more; use 1800"),
  ("cache_features", lambda v: v >= 0, "0 (off) or a number of views"),
)  # fmt: skip


def check(config: ConfigDict, devices: int):
  """Refuses a config whose fields break a rule that would show only later, or never.

  Args:
    devices: that a global batch is split over.

  Raises:
    UserError: naming field, value and rule.
  """
  leaves = flatten(config)
  for path, holds, rule in _RULES:
    if not holds(leaves[path]):
      raise UserError(f"{path} {leaves[path]!r} must be {rule}")
  if ("lora" in config.trainable) != (config.lora.rank > 0):
    raise UserError(
      f"trainable {config.trainable!r} and lora.rank {config.lora.rank} do not go together: "
      "trainable=lora trains factors of a rank, such as 8, and nothing else has a use for them"
    )
  metric, mode = config.plateau.metric, config.plateau.mode
  if metric != "val_loss" and metric.removeprefix("val_") not in DEFINITIONS:
    known = ", ".join(f"val_{name}" for name in DEFINITIONS)
    raise UserError(f"plateau.metric {metric!r} is unknown; available: val_loss, {known}")
  if metric == "val_loss" and mode == "max":
    raise UserError("plateau.mode 'max' would reduce the rate while val_loss falls; use 'min'")
  if config.batch_size // devices % config.accumulate:
    raise UserError(
      f"accumulate {config.accumulate} does not divide the {config.batch_size // devices} pictures "
      "of a device; use a divisor of them, or another batch_size"
    )


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, object]:
  """Returns dotted path -> leaf; an empty group is a leaf of its own."""
  leaves = {}
  for key, value in config.items():
    path = f"{prefix}{key}"
    if isinstance(value, ConfigDict | dict) and value:
      leaves |= flatten(value, path + ".")
    else:
      leaves[path] = value
  return leaves


def environment() -> dict[str, str]:
  """Returns versions, platform and git revision: what a number depends on besides the config."""
  return {
    "python": platform.python_version(),
    "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    "git_revision": _revision(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def _revision() -> str:
  """Returns the git revision of the checkout this file lies in; "unknown" where it is in none."""
  root = Path(__file__).parents[1]
  if not (root / ".git").exists():  # Installed: a repository further up is somebody else's.
    return "unknown"
  command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
  try:
    git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
  except OSError:  # There is no git.
    return "unknown"
  return git.stdout.strip() or "unknown"


def save(config: ConfigDict, workdir: Path):
  """Writes `config.json`: the whole config as it was resolved, with versions and revision."""
  path = Path(workdir) / "config.json"
  content = {"config": config.to_dict(), "environment": environment()}
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(content, indent=2) + "\n")
  temporary.replace(path)


def load(workdir: Path) -> dict | None:
  """Returns the config that `save` wrote as a dict; None where the workdir has none.

  Raises:
    UserError: the file is damaged.
  """
  path = Path(workdir) / "config.json"
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())["config"]
  except (json.JSONDecodeError, KeyError) as error:
    raise UserError(
      f"{path} is damaged ({error}); restore it, or start in a new workdir"
    ) from error


def run_of(path: str | Path) -> Path:
  """Returns the workdir that a checkpoint, its folder, or the workdir itself belongs to."""
  path = Path(path).expanduser()
  parents = [path, *path.parents][:3]
  return next((folder for folder in parents if (folder / "config.json").exists()), path)


def changes(config: ConfigDict, workdir: Path) -> dict[str, str]:
  """Returns field -> "field: old -> new" for all that differs from the config of a workdir.

  Raises:
    UserError: its config.json is damaged.
  """
  before = load(workdir)
  if before is None:
    return {}
  before = flatten(before)
  now = flatten(json.loads(json.dumps(config.to_dict())))  # tuples become lists, as on disk
  return {
    path: f"{path}: {before.get(path)!r} -> {now.get(path)!r}"
    for path in sorted(before.keys() | now.keys())
    if before.get(path) != now.get(path)
  }


def check_resume(config: ConfigDict, workdir: Path) -> list[str]:
  """Compares with the config that the workdir's last session had.

  Returns:
    One line for each changed field, all of them safe.

  Raises:
    UserError: a field has changed that would make it another run; all such fields are listed.
  """
  changed = changes(config, workdir)
  # A cosine reaches its end in the last epoch: more epochs are another curve from the start.
  safe = set(SAFE_TO_CHANGE) - ({"epochs"} if config.schedule.name == "cosine" else set())
  unsafe = [
    line for path, line in changed.items() if path not in safe and path.split(".")[0] not in safe
  ]
  if unsafe:
    raise UserError(
      f"{workdir} holds a run with another config: {'; '.join(unsafe)}. Give the old values to "
      "resume it, or another --workdir (with --config.resume to start from its checkpoint)"
    )
  return list(changed.values())
