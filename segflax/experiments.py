"""Trials: templates with overrides, each in its own workdir, run once and only once. No JAX."""

import ast
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segflax import summary
from segflax.errors import UserError

# The origin's experiments: what runs when none is named. Any other template runs by name.
ORIGIN = (
  "baseline",
  "baseline_mixed_precision",
  "higher_lr",
  "lower_lr",
  "larger_batch",
  "smaller_image",
  "with_per_prompt_eval",
)
STATE = "experiment.json"
LOG = "experiment.log"
INTERRUPTED = 75  # main.py's exit code: saved, give the same command again


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run: a template and what is changed of it.

  Attributes:
    name: also that of its workdir.
    config: path of the template.
    overrides: dotted config field -> value as text.
    workdir: where it leaves everything.
  """

  name: str
  config: Path
  overrides: Mapping[str, str]
  workdir: Path

  def arguments(self) -> list[str]:
    """Returns main.py's arguments."""
    fields = [f"--config.{key}={value}" for key, value in self.overrides.items()]
    return [f"--config={self.config}", f"--workdir={self.workdir}", *fields]


def templates(folder: Path) -> dict[str, str]:
  """Returns template name -> first line of its docstring, without running it."""
  found = {}
  for path in sorted(folder.glob("*.py")):
    module = ast.parse(path.read_text())
    if any(isinstance(n, ast.FunctionDef) and n.name == "get_config" for n in module.body):
      found[path.stem] = (ast.get_docstring(module) or "").split("\n")[0]
  return found


def parse_setting(text: str) -> tuple[str, str]:
  """Splits `key=value`; `config.` before the key may be there or not."""
  key, equals, value = text.partition("=")
  key = key.strip().removeprefix("--").removeprefix("config.")
  if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
    raise UserError(f"{text!r} is not of the form field=value, for example lr=5e-4")
  return key, value


def plan(
  names: Sequence[str],
  output: Path,
  *,
  settings: Sequence[str] = (),
  sweeps: Sequence[str] = (),
  folder: Path = Path("configs"),
) -> list[Trial]:
  """Lays out trials: every template, times every point of the grid.

  Args:
    names: of templates; ORIGIN's if empty.
    output: folder of the workdirs.
    settings: `field=value`, for every trial.
    sweeps: `field=value,value,…`; several make a grid.
    folder: of the templates.

  Raises:
    UserError: an unknown template, a setting that cannot be read, or two trials of one workdir.
  """
  known = templates(folder)
  for name in names:
    if name not in known:
      raise UserError(f"experiment {name!r} is unknown; available: {', '.join(known)}")
  names = list(dict.fromkeys(names)) or [name for name in ORIGIN if name in known]
  fixed = dict(map(parse_setting, settings))
  axes = []
  for sweep in sweeps:
    key, values = parse_setting(sweep)
    points = [v.strip() for v in values.split(",")]
    if "" in points or len(set(points)) < len(points):
      raise UserError(f"--sweep {sweep!r} must list distinct values, for example lr=1e-4,5e-4")
    axes.append([(key, value) for value in points])
  trials = []
  for name, point in itertools.product(names, itertools.product(*axes)):
    parts = [name, *(f"{key}={value}" for key, value in point)]
    full = "__".join(re.sub(r"[^\w.=+-]+", "_", part) for part in parts)
    trials.append(Trial(full, folder / f"{name}.py", fixed | dict(point), output / full))
  taken: dict[Path, Trial] = {}
  for trial in trials:
    if trial.workdir in taken:
      raise UserError(
        f"{_words(taken[trial.workdir].overrides)} and {_words(trial.overrides)} would share the "
        f"workdir {trial.workdir}; sweep values that differ in letters, digits or one of . + = -"
      )
    taken[trial.workdir] = trial
  return trials


def state_of(trial: Trial) -> str:
  """Returns "missing", "done", "failed", "interrupted", or "running" (also one that was killed).

  Raises:
    UserError: the workdir holds a trial with other settings.
  """
  path = trial.workdir / STATE
  if not path.exists():
    # Also of a run that main.py made by itself: main.py compares the configs, and finishes at once
    # or refuses.
    return "missing"
  record = summary.read_json(path, "remove the workdir to start again")
  # One that failed may be tried with other settings: they are often what was wrong.
  if record["overrides"] != dict(trial.overrides) and record["state"] != "failed":
    raise UserError(
      f"{trial.workdir} was run with {_words(record['overrides'])}, not with "
      f"{_words(trial.overrides)}; give the same settings, or another --output"
    )
  done = (trial.workdir / summary.SUMMARY).exists()
  return "done" if done and record["state"] in ("done", "running") else record["state"]


def _words(overrides: Mapping[str, str]) -> str:
  return ", ".join(f"{k}={v}" for k, v in overrides.items()) or "no settings"


class Runner:
  """Runs trials as processes of main.py; what is done already is left alone."""

  def __init__(self, main: Sequence[str], say: Callable[[str], None] = print):
    """`main` is the command that trains, for example [python, "main.py"]."""
    self._main, self._say = list(main), say
    self._children: set[subprocess.Popen] = set()
    self._lock = threading.Lock()
    self._stopping = False

  def run(self, trials: Sequence[Trial], jobs: int = 1) -> dict[str, str]:
    """Runs what is missing, `jobs` at a time; one that fails does not stop the rest.

    Returns:
      Trial name -> state afterwards; "missing" where the runner was stopped before.
    """
    states = {trial.name: state_of(trial) for trial in trials}  # every conflict before any run
    with ThreadPoolExecutor(max_workers=jobs) as pool:
      waiting = {t.name: pool.submit(self._one, t) for t in trials if states[t.name] != "done"}
      for name, future in waiting.items():
        states[name] = future.result()
    return states

  def stop(self) -> None:
    """Lets every running trial save and end, and starts no other; may be called by a signal."""
    self._stopping = True
    for child in list(self._children):
      child.send_signal(signal.SIGTERM)

  def _one(self, trial: Trial) -> str:
    if self._stopping:
      return state_of(trial)
    trial.workdir.mkdir(parents=True, exist_ok=True)
    command = [*self._main, *trial.arguments()]
    record = {"name": trial.name, "overrides": dict(trial.overrides), "command": command}
    started = time.time()
    self._write(trial, record, state="running", started=started)
    self._say(f"{trial.name}: started, log in {trial.workdir / LOG}")
    with (trial.workdir / LOG).open("a") as log:
      log.write(f"$ {' '.join(command)}\n")
      log.flush()
      # Its own process group: Ctrl-C reaches the runner alone, which then lets each trial save.
      child = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
      )
      self._children.add(child)
      if self._stopping:
        child.send_signal(signal.SIGTERM)
      code = child.wait()
      self._children.discard(child)
    finished = code == 0 and (trial.workdir / summary.SUMMARY).exists()
    state = "done" if finished else "interrupted" if code == INTERRUPTED else "failed"
    minutes = (time.time() - started) / 60
    self._write(trial, record, state=state, started=started, exit_code=code, minutes=minutes)
    tail = "" if finished else f" (exit code {code}): {_last_line(trial.workdir / LOG)}"
    self._say(f"{trial.name}: {state} after {minutes:.1f} min{tail}")
    return state

  def _write(self, trial: Trial, record: dict, **more) -> None:
    with self._lock:
      summary.write_json(trial.workdir / STATE, record | more)


def _last_line(path: Path) -> str:
  lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
  return lines[-1] if lines else ""


def result(trial: Trial, state: str) -> dict[str, object]:
  """Returns the trial's line of the table at the end."""
  row = {"experiment": trial.name, "state": state}
  if state != "done":
    return row
  content = summary.read_summary(trial.workdir)
  return row | {
    "best_val_iou": content.get("best_val_iou"),
    "best_val_dice": content.get("best_val_dice"),
    "best_epoch": (content["best_metrics"].get("val_iou") or {}).get("epoch"),
    "total_epochs": content["total_epochs"],
  }


def main_command(root: Path) -> list[str]:
  """Returns the command that trains: this Python and main.py."""
  return [sys.executable, os.path.relpath(root / "main.py")]
