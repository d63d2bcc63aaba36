"""Times segflax against transformers' torch CLIPSeg, side by side on this machine.

    scripts/benchmark.py                      # names the cases
    scripts/benchmark.py train-352-float32 predict4-352-bfloat16 [--rounds=7] [--json=FILE]

Each side is a process of its own (so its peak memory is its own); after a warm-up they take turns,
call by call, and the medians' ratio counts: a busy moment hits both. Full-size rd64-refined with
fresh weights, batch 8. The peer trains as a user would write it: towers frozen, AdamW, clipping,
BCE + Dice, eager unless the case says compiled. --preset=tiny only shows that the script works.
The same script serves GPUs, where the cases with `full` and `compiled` belong.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
SIDES = Path(__file__).parent / "benchmark_sides"
sys.path.insert(0, str(Path(__file__).parents[1]))

from segflax import huge_pages  # noqa: E402  The path first.


class Side(NamedTuple):
  """One of the two programs of a case."""

  label: str
  script: str  # in benchmark_sides
  task: dict


class Case(NamedTuple):
  """Two sides, and what is counted per call of each."""

  unit: str
  ours: Side
  peer: Side


def _task(kind: str, size: int, batch: int = 8, **options) -> dict:
  task = {
    "kind": kind,
    "size": size,
    "batch": batch,
    "prompts": 1,
    "bfloat16": False,
    "compiled": False,
    "trainable": "decoder",
    "cached": 0,  # views in the feature cache that training reads instead of pictures
    "text_length": 7,
  }
  return task | options


def make_cases() -> dict[str, Case]:
  """Returns every comparison that can be asked for, by name."""
  cases = {}
  for size in (352, 512):
    for dtype in ("float32", "bfloat16"):
      low = {"bfloat16": dtype == "bfloat16"}
      ours = Side("segflax", "jax_side.py", _task("train", size, **low))
      for suffix, options in (("", {}), ("-compiled", {"compiled": True})):
        peer = Side(f"torch{suffix}", "torch_side.py", _task("train", size, **low, **options))
        cases[f"train-{size}-{dtype}{suffix}"] = Case("pictures", ours, peer)
      four = {"batch": 1, "prompts": 4, **low}
      for suffix, options in (("", {}), ("-compiled", {"compiled": True})):
        cases[f"predict4-{size}-{dtype}{suffix}"] = Case(
          "masks",
          Side("segflax", "jax_side.py", _task("predict", size, **four)),
          Side(f"torch{suffix}", "torch_side.py", _task("predict", size, **four, **options)),
        )
      one, two = (_task("predict", size, batch=1, prompts=q, **low) for q in (1, 2))
      cases[f"predict2-{size}-{dtype}"] = Case(
        "pictures",
        Side("two prompts", "jax_side.py", two),
        Side("one prompt", "jax_side.py", one),
      )
      two = _task("train", size, **low, prompts=2)
      cases[f"two_prompts-{size}-{dtype}"] = Case(
        "pairs", Side("two prompts", "jax_side.py", two), ours._replace(label="one prompt")
      )
      cached = Side("from cache", "jax_side.py", _task("train", size, **low, cached=1))
      cases[f"cached-{size}-{dtype}"] = Case("pictures", cached, ours._replace(label="uncached"))
      full = {"trainable": "vision", **low}
      for suffix, options in (("", {}), ("-compiled", {"compiled": True})):
        cases[f"full-{size}-{dtype}{suffix}"] = Case(
          "pictures",
          Side("segflax", "jax_side.py", _task("train", size, **full)),
          Side(f"torch{suffix}", "torch_side.py", _task("train", size, **full, **options)),
        )
  return cases


class Process:
  """A side that is running, ready to be called."""

  def __init__(self, side: Side, hf_config: dict, batch: int | None, huge_pages_too: bool):
    with_pages = huge_pages_too or side.script == "jax_side.py"
    # As main.py does. The peer runs as its user starts it; --huge_pages gives it the same.
    environment = huge_pages.environment() if with_pages else dict(os.environ)
    # Both sides hold a GPU at once: neither may take what the other needs.
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    self.task = side.task | ({"batch": batch} if batch else {})
    argument = json.dumps(self.task | {"hf_config": hf_config})
    self._process = subprocess.Popen(
      [sys.executable, str(SIDES / side.script), argument],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    self.facts = self._answer()

  def call(self) -> float:
    """Returns the seconds that one call took."""
    self._process.stdin.write("go\n")
    self._process.stdin.flush()
    return self._answer()["seconds"]

  def finish(self) -> int:
    """Ends the process and returns its peak memory in bytes."""
    self._process.stdin.close()
    peak = self._answer()["peak_bytes"]
    self._process.wait()
    return peak

  def _answer(self) -> dict:
    for line in self._process.stdout:
      if line.startswith("{"):
        return json.loads(line)
    raise SystemExit(f"{self._process.args[1]} ended without an answer; its message is above")


def run_case(name: str, case: Case, preset: "Preset", rounds: int, pause: float) -> dict:
  """Runs one case and returns rates per second, their ratio and the memory of both sides."""
  processes = [
    Process(preset.shrink(side), preset.hf_config, preset.batch, preset.huge_pages)
    for side in (case.ours, case.peer)
  ]
  seconds = [[], []]
  load = os.getloadavg()[0]
  for round_number in range(rounds):
    # Alternately first: neither side always runs on the other's warm or busy machine.
    for i in (0, 1) if round_number % 2 else (1, 0):
      time.sleep(pause)  # Idle worker threads of the other side stop spinning.
      seconds[i].append(processes[i].call())
  rates = []
  for process, times in zip(processes, seconds, strict=True):
    task = process.task
    units = task["batch"] * (1 if case.unit == "pictures" else task["prompts"])
    rates.append(units / statistics.median(times))
  peaks = [process.finish() for process in processes]
  return {
    "case": name,
    "unit": case.unit,
    "ours": case.ours.label,
    "peer": case.peer.label,
    "ours_per_second": rates[0],
    "peer_per_second": rates[1],
    "ratio": rates[0] / rates[1],
    "ours_peak_gib": peaks[0] / 2**30,
    "peer_peak_gib": peaks[1] / 2**30,
    "seconds": seconds,
    "first_call_seconds": [process.facts["first_call_seconds"] for process in processes],
    "devices": [process.facts["device"] for process in processes],
    "versions": [process.facts["version"] for process in processes],
    "load_before": load,
    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
  }


class Preset(NamedTuple):
  """The model that is timed, as Hugging Face's config has it."""

  hf_config: dict
  batch: int | None = None  # None: what the case says
  size: int | None = None
  huge_pages: bool = False  # of the peer as well

  def shrink(self, side: Side) -> Side:
    return side._replace(task=side.task | ({"size": self.size} if self.size else {}))


def matrix_rate(bfloat16: bool, n: int, hf_config: dict) -> float:
  """Returns the FLOP/s that this machine reaches in a product of two n x n matrices."""
  side = Side("matmul", "jax_side.py", _task("matmul", 16, bfloat16=bfloat16, matmul=n))
  process = Process(side, hf_config, None, True)
  seconds = statistics.median(process.call() for _ in range(7))
  process.finish()
  return 2 * n**3 / seconds


def share_of(row: dict, case: Case, preset: "Preset", rate: float) -> float | None:
  """Returns the share of the matrix rate that our side of a training case reaches."""
  task = preset.shrink(case.ours).task
  if task["kind"] != "train" or task["cached"] or task["trainable"] != "decoder":
    return None
  from segflax import flops
  from segflax.models.config import CLIPSegConfig

  architecture = CLIPSegConfig.from_hf(preset.hf_config)
  work = flops.decoder_step(architecture, task["size"], task["prompts"])
  per_unit = work if case.unit == "pictures" else work / task["prompts"]
  return per_unit * row["ours_per_second"] / rate


def make_preset(name: str, batch: int | None) -> Preset:
  from segflax.models.config import CLIPSegConfig

  if name == "full":
    return Preset(CLIPSegConfig.rd64_refined().to_hf(), batch)
  tiny = CLIPSegConfig.small(image_size=32, width=32, layers=2, taps=(0, 1), decoder_mlp=32)
  return Preset(tiny.to_hf(), batch or 2, size=32)


def main(argv: list[str]) -> int:
  cases = make_cases()
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("cases", nargs="*", metavar="CASE")
  parser.add_argument("--rounds", type=int, default=7, help="timed calls of each side")
  parser.add_argument("--batch", type=int, help="pictures per call; default: the case's")
  parser.add_argument("--pause", type=float, default=0.3, help="seconds before every call")
  parser.add_argument("--preset", choices=("full", "tiny"), default="full")
  parser.add_argument("--huge_pages", action="store_true", help="give the peer huge pages, too")
  parser.add_argument(
    "--peak", type=int, default=0, metavar="N", help="also give the share of an NxN product's rate"
  )
  parser.add_argument("--json", help="append one line per case to this file")
  args = parser.parse_args(argv)
  if unknown := [name for name in args.cases if name not in cases]:
    parser.error(f"unknown cases {unknown}; available: {', '.join(cases)}")
  if not args.cases:
    print("\n".join(cases))
    return 0
  preset = make_preset(args.preset, args.batch)._replace(huge_pages=args.huge_pages)
  rates = {}
  for bfloat16 in {"bfloat16" in name for name in args.cases} if args.peak else ():
    rates[bfloat16] = matrix_rate(bfloat16, args.peak, preset.hf_config)
    dtype = "bfloat16" if bfloat16 else "float32"
    print(f"{dtype} product of {args.peak} x {args.peak}: {rates[bfloat16] / 1e9:.0f} GFLOP/s\n")
  columns = (
    "case",
    "ours",
    "peer",
    "ratio",
    "peak memory GiB, ours and peer",
    "share",
    "load before",
  )
  print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
  for name in args.cases:
    row = run_case(name, cases[name], preset, args.rounds, args.pause)
    share = None
    if rates:
      share = share_of(row, cases[name], preset, rates["bfloat16" in name])
    row["share_of_matrix_rate"] = share
    print(
      f"| {name} | {row['ours']} {row['ours_per_second']:.2f} {row['unit']}/s "
      f"| {row['peer']} {row['peer_per_second']:.2f} | {row['ratio']:.2f} "
      f"| {row['ours_peak_gib']:.2f}, {row['peer_peak_gib']:.2f} "
      f"| {'' if share is None else f'{share:.0%}'} | {row['load_before']:.1f} |",
      flush=True,
    )
    if args.json:
      with open(args.json, "a") as file:
        file.write(json.dumps(row) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
