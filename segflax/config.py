"""A run's config on disk, and what may change in it when the run is resumed."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

from ml_collections import ConfigDict

from segflax.errors import UserError

# Changing these mid-run leaves the run well defined: they decide how long it goes on and what it
# writes, not what an update computes. A whole group is named by its first part.
SAFE_TO_CHANGE = (
  "data.num_threads",
  "early_stopping_patience",
  "epochs",
  "eval.batch_size",
  "checkpoint",
  "log",
  "profile_steps",
  "resume",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy")


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
  git = subprocess.run(
    ["git", "describe", "--always", "--dirty", "--abbrev=12"],
    cwd=Path(__file__).parent,
    capture_output=True,
    text=True,
    check=False,
  )
  return {
    "python": platform.python_version(),
    "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    "git_revision": git.stdout.strip() or "unknown",
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }


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


def check_resume(config: ConfigDict, workdir: Path) -> list[str]:
  """Compares with the config the workdir was started with.

  Returns:
    One line for each changed field, all of them safe.

  Raises:
    UserError: a field has changed that would make it another run; all such fields are listed.
  """
  before = load(workdir)
  if before is None:
    return []
  before = flatten(before)
  now = flatten(json.loads(json.dumps(config.to_dict())))  # tuples become lists, as on disk
  changed = {
    path: f"{path}: {before.get(path)!r} -> {now.get(path)!r}"
    for path in sorted(before.keys() | now.keys())
    if before.get(path) != now.get(path)
  }
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
