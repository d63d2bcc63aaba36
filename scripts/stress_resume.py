"""Kills a run at random moments until it is done, and compares it with one left alone, bit for bit.

    scripts/stress_resume.py --directory=/tmp/stress --kills=20

Trains a tiny CLIPSeg on generated walls twice through main.py: once undisturbed, once killed with
SIGKILL and SIGTERM by turns, at moments drawn from the start-up, the compilation, the training and
evaluation, and the writing of a checkpoint. Parameters, optimizer, schedule, data position,
history, both exported models, metrics.jsonl, TensorBoard's scalars and the summary must come out
equal. Exit code 0: they do, and every kill hit the run, a save by both signals; 1: anything else.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tensorboard.backend.event_processing.plugin_event_accumulator import (
  TENSORS,
  EventAccumulator,
)
from tensorboard.util.tensor_util import make_ndarray

from segflax.checkpoint_io import read_document

ROOT = Path(__file__).resolve().parent.parent
INTERRUPTED = 75  # segflax.preemption.EXIT_CODE
PATIENCE = 900  # seconds that any session may take
STARTED = "parameters train on"  # main.py says so when it begins to compile
CONFIG = {
  "synthetic.train_pictures": 12,
  "synthetic.val_pictures": 6,
  "synthetic.test_pictures": 4,
  "synthetic.size": 32,
  "image_size": 32,
  "batch_size": 4,
  "eval.batch_size": 2,
  "lr": 1e-3,
  "ema_decay": 0.5,
  "plateau.patience": 0,
  "early_stopping_patience": 0,
  "checkpoint.every_steps": 2,
  "checkpoint.every_epochs": 0,
}


MOMENTS = ("save", "run", "save", "run", "compile", "run", "start-up", "compile")
ATTEMPTS = 3  # each with twice the epochs, should a run be done before all kills have hit it


class Kill(NamedTuple):
  """When to send what: `moment` is one of MOMENTS."""

  moment: str
  number: signal.Signals


class Pace(NamedTuple):
  """Seconds that the undisturbed run took: what delays are drawn from."""

  start_up: float  # until STARTED
  compile: float  # from there to its first checkpoint
  run: float  # between two checkpoints


def plan(kills: int, rng: random.Random) -> list[Kill]:
  """Returns the kills in random order, a quarter or more in a save; signals by turns per moment."""
  moments = [MOMENTS[i % len(MOMENTS)] for i in range(kills)]
  pairs = [
    Kill(moment, (signal.SIGKILL, signal.SIGTERM)[moments[:i].count(moment) % 2])
    for i, moment in enumerate(moments)
  ]
  rng.shuffle(pairs)
  return pairs


def delay_of(kill: Kill, pace: Pace, rng: random.Random) -> float:
  """Draws the seconds to wait once the moment has come."""
  if kill.moment == "save":
    return 0
  longest = {"start-up": pace.start_up, "compile": pace.compile, "run": 2 * pace.run}
  return rng.uniform(0, longest[kill.moment])


def command(directory: Path, workdir: Path, epochs: int) -> list[str]:
  """Returns the command line of a session; the same one starts and resumes."""
  overrides = CONFIG | {"epochs": epochs, "data_dir": directory / "walls"}
  return [
    sys.executable,
    str(ROOT / "main.py"),
    f"--config={ROOT / 'configs' / 'quickstart.py'}",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in overrides.items()),
  ]


def saving(workdir: Path) -> bool:
  """Whether a checkpoint is being written right now."""
  return any("orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def finished(workdir: Path) -> set[str]:
  """Returns the names of the checkpoints that are whole."""
  names = {path.name for path in (workdir / "checkpoints").glob("*step_*")}
  return {name for name in names if "orbax-checkpoint-tmp" not in name}


def session(argv: list[str], workdir: Path, log: Path, kill: Kill | None, delay: float) -> str:
  """Runs main.py once, killing it if asked to.

  Returns:
    "done", or what was hit and how it ended.

  Raises:
    RuntimeError: it failed, hung, or did not leave as the signal asks.
  """
  with log.open("w") as output:
    process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
  try:
    hit = _watch(process, workdir, log, kill, delay)
  finally:
    process.kill()
    process.wait()
  code = process.returncode
  if code == 0:
    return "done"
  # Before PreemptionGuard, SIGTERM ends a process as it ends any.
  early = code == -signal.SIGTERM and STARTED not in log.read_text()
  expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: INTERRUPTED}
  if hit and (early or code == expected[kill.number]):
    return f"{kill.number.name} {hit}"
  raise RuntimeError(f"{log} ended with {code}:\n{log.read_text()[-3000:]}")


def _watch(process, workdir: Path, log: Path, kill: Kill | None, delay: float) -> str:
  """Waits for the end of a process, killing it when it is time; returns what that hit."""
  began, since, sent, hit = time.monotonic(), None, False, ""
  before = finished(workdir)
  while process.poll() is None:
    now = time.monotonic()
    if now - began > PATIENCE:
      raise RuntimeError(f"{log} hangs")
    if kill and since is None and _has_come(kill.moment, log, workdir, before):
      since = now
    if kill and not sent and since is not None and now - since >= delay:
      # Until a session has started, an unfinished checkpoint is the one before's.
      writes = STARTED in log.read_text() and saving(workdir)
      hit = "in a save" if writes else kill.moment
      process.send_signal(kill.number)
      sent = True
    time.sleep(0.002 if kill and kill.moment == "save" else 0.02)
  return hit


def _has_come(moment: str, log: Path, workdir: Path, before: set[str]) -> bool:
  """Whether a session is where the delay of a kill begins."""
  if moment == "start-up":
    return True
  if moment == "run":
    return bool(finished(workdir) - before)
  return STARTED in log.read_text() and (moment == "compile" or saving(workdir))


def alone(argv: list[str], workdir: Path, log: Path) -> Pace:
  """Runs main.py undisturbed."""
  marks = {}
  with log.open("w") as output:
    began = time.monotonic()
    process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
  try:
    seen = set()
    while process.poll() is None:
      now = time.monotonic() - began
      if now > PATIENCE:
        raise RuntimeError(f"{log} hangs")
      seen |= finished(workdir)
      if STARTED in log.read_text():
        marks.setdefault("start_up", now)
      if seen:
        marks.setdefault("compile", now)
      time.sleep(0.02)
  finally:
    process.kill()
    process.wait()
  if process.returncode or not seen:
    raise RuntimeError(f"{log} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
  took = time.monotonic() - began
  start_up, compiled = marks["start_up"], marks["compile"]
  print(f"left alone: {took:.0f} s, {len(seen)} checkpoints", flush=True)
  return Pace(start_up, compiled - start_up, (took - compiled) / len(seen))


def result(workdir: Path) -> dict[str, object]:
  """Returns everything that must be equal, by name; arrays as their sha256."""
  folder = max(
    (workdir / "checkpoints").glob("epoch_*"), key=lambda path: path.name.split("step_")[1]
  )
  document = read_document(folder)
  summary = json.loads((workdir / "training_summary.json").read_text())
  without_times = {
    name: value
    for name, value in summary.items()
    if name not in ("timings", "speed", "environment")
  }
  found = {f"checkpoint: {name}": leaf for name, leaf in document["leaves"].items()}
  found |= {
    f"progress: {name}": value for name, value in document["progress"].items() if name != "timings"
  }
  for model in ("best_model", "final_model"):
    data = (workdir / model / "model.safetensors").read_bytes()
    found[model] = hashlib.sha256(data).hexdigest()
  found |= {f"TensorBoard: {tag}": values for tag, values in scalars(workdir / "logs").items()}
  return found | {
    "data position": document["data_state"],
    "metrics.jsonl": (workdir / "metrics.jsonl").read_text(),
    "summary": without_times,
  }


def scalars(logs: Path) -> dict[str, list[tuple[int, float]]]:
  """Returns what TensorBoard shows: tag -> (step, value), without the tags that a clock fills."""
  events = EventAccumulator(str(logs), tensor_size_guidance={TENSORS: 0})  # 0: keep all
  events.Reload()
  return {
    tag: [(event.step, make_ndarray(event.tensor_proto).item()) for event in events.Tensors(tag)]
    for tag in events.PluginTagToContent("scalars")
    if tag != "images_per_second"
  }


def missed(hits: list[str], kills: int) -> list[str]:
  """Returns what a stress of so many kills has not done."""
  lacking = [f"only {len(hits)} of {kills} kills hit the run"] if len(hits) < kills else []
  wanted = ("SIGKILL in a save", "SIGTERM in a save") if kills >= 4 else ()
  return lacking + [f"no {hit}" for hit in wanted if hit not in hits]


def stress(
  directory: Path, kills: int, epochs: int, rng: random.Random
) -> tuple[list[str], list[str]]:
  """Runs both.

  Returns:
    The hits in order, such as "SIGKILL in a save"; names of what differs between the runs.
  """
  one, other = directory / "alone", directory / "killed"
  for path in (one, other):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
  pace = alone(command(directory, one, epochs), one, directory / "alone.log")
  hits = []
  for number, kill in enumerate([*plan(kills, rng), None]):
    delay = delay_of(kill, pace, rng) if kill else 0
    log = directory / f"killed_{number:02d}.log"
    outcome = session(command(directory, other, epochs), other, log, kill, delay)
    print(f"session {number}: {outcome}", flush=True)
    if outcome == "done":
      break
    hits.append(outcome)
  one, other = result(one), result(other)
  names = one.keys() | other.keys()
  return hits, sorted(name for name in names if one.get(name) != other.get(name))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--directory", type=Path, required=True, help="takes both runs and the data")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--epochs", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  args.directory.mkdir(parents=True, exist_ok=True)
  rng = random.Random(args.seed)
  for attempt in range(ATTEMPTS):
    epochs = args.epochs * 2**attempt
    hits, differing = stress(args.directory.resolve(), args.kills, epochs, rng)
    print(f"{len(hits)} of {args.kills} kills hit the run of {epochs} epochs", flush=True)
    lacking = missed(hits, args.kills)
    if differing or not lacking:
      break
    print(f"once more, with twice the epochs: {'; '.join(lacking)}", flush=True)
  for name in differing:
    print(f"differs: {name}")
  if differing or lacking:
    sys.exit(1)
  print("equal, bit for bit")


if __name__ == "__main__":
  main()
