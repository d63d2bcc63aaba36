"""Kills a run at random moments until it is done, and compares it with one left alone, bit for bit.

    scripts/stress_resume.py --directory=/tmp/stress --kills=20

Trains a tiny CLIPSeg on generated walls twice through main.py: once undisturbed, once killed with
SIGKILL and SIGTERM by turns, at moments drawn from the start-up, the training and evaluation, and
the writing of a checkpoint. Parameters, optimizer, schedule, data position, history, both exported
models, metrics.jsonl and the summary must come out equal. Exit code 0: they do; 1: they do not.
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


class Kill(NamedTuple):
  """When to send what: `moment` is "start-up", "run" or "save"."""

  moment: str
  number: signal.Signals


def plan(kills: int, rng: random.Random) -> list[Kill]:
  """Returns the kills in random order: both signals in each moment, a quarter of them in a save."""
  moments = [
    ("save", "run", "save", "run", "run", "run", "start-up", "run")[i % 8] for i in range(kills)
  ]
  signals = [(signal.SIGKILL, signal.SIGTERM)[i // 2 % 2] for i in range(kills)]
  pairs = [Kill(*pair) for pair in zip(moments, signals, strict=True)]
  rng.shuffle(pairs)
  return pairs


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
  while process.poll() is None:
    now = time.monotonic()
    if now - began > PATIENCE:
      raise RuntimeError(f"{log} hangs")
    if since is None and (STARTED in log.read_text() or (kill and kill.moment == "start-up")):
      since = now
    due = kill and not sent and since is not None and now - since >= delay
    if due and (kill.moment != "save" or saving(workdir)):
      hit = "in a save" if saving(workdir) else kill.moment
      process.send_signal(kill.number)
      sent = True
    time.sleep(0.002 if kill and kill.moment == "save" else 0.02)
  return hit


def result(workdir: Path) -> dict[str, object]:
  """Returns everything that must be equal, by name; arrays as their sha256."""
  folder = max(
    (workdir / "checkpoints").glob("epoch_*"), key=lambda path: path.name.split("step_")[1]
  )
  document = read_document(folder)
  summary = json.loads((workdir / "training_summary.json").read_text())
  without_times = {
    name: value for name, value in summary.items() if name not in ("timings", "environment")
  }
  found = {f"checkpoint: {name}": leaf for name, leaf in document["leaves"].items()}
  found |= {
    f"progress: {name}": value for name, value in document["progress"].items() if name != "timings"
  }
  for model in ("best_model", "final_model"):
    data = (workdir / model / "model.safetensors").read_bytes()
    found[model] = hashlib.sha256(data).hexdigest()
  return found | {
    "data position": document["data_state"],
    "metrics.jsonl": (workdir / "metrics.jsonl").read_text(),
    "summary": without_times,
  }


def stress(directory: Path, kills: int, epochs: int, seed: int) -> list[str]:
  """Runs both; returns the names of what differs."""
  rng = random.Random(seed)
  alone, killed = directory / "alone", directory / "killed"
  for path in (alone, killed):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)

  began = time.monotonic()
  session(command(directory, alone, epochs), alone, directory / "alone.log", None, 0)
  seconds = time.monotonic() - began
  print(f"left alone: {seconds:.0f} s", flush=True)

  argv = command(directory, killed, epochs)
  hits = []
  for number, kill in enumerate([*plan(kills, rng), None]):
    # Drawn so that the kills are spread over the run, however long it takes.
    delay = rng.uniform(0, 2 * seconds / max(kills, 1)) if kill and kill.moment != "save" else 0
    log = directory / f"killed_{number:02d}.log"
    outcome = session(argv, killed, log, kill, delay)
    print(f"session {number}: {outcome}", flush=True)
    if outcome == "done":
      break
    hits.append(outcome)
  print(f"{len(hits)} of {kills} kills hit the run before it was done", flush=True)
  one, other = result(alone), result(killed)
  return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--directory", type=Path, required=True, help="takes both runs and the data")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--epochs", type=int, default=8)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  args.directory.mkdir(parents=True, exist_ok=True)
  differing = stress(args.directory.resolve(), args.kills, args.epochs, args.seed)
  for name in differing:
    print(f"differs: {name}")
  if differing:
    sys.exit(1)
  print("equal, bit for bit")


if __name__ == "__main__":
  main()
