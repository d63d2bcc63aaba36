"""Runs the templates of configs/, each in its own workdir; given again, it runs what is missing.

    D="--set data_dir=data/drywall --set model.pretrained=CIDAS/clipseg-rd64-refined"
    scripts/run_experiments.py --list
    scripts/run_experiments.py $D                                      # the origin's seven
    scripts/run_experiments.py $D --experiment baseline --experiment higher_lr --set epochs=20
    scripts/run_experiments.py $D --experiment baseline --sweep lr=1e-4,5e-4 --sweep batch_size=8,16
    scripts/run_experiments.py $D --experiment baseline --sweep seed=1,2,3 --emit slurm
    scripts/run_experiments.py $D --experiment baseline --study sqlite:///study.db --trials 20 \\
        --search lr=1e-5:1e-3:log --search loss.dice_weight=0.2:2

baseline and its variants name no pretrained model: without --set model.pretrained=… they train the
full-sized network from random weights.

Exit codes: 0 all done, 1 some failed, 2 bad input, 75 interrupted (give the same command again).
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from segflax import emit, experiments, html, study
from segflax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--list", action="store_true", help="the templates, and what they are for")
  parser.add_argument("--experiment", action="append", default=[], metavar="NAME")
  parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
  parser.add_argument("--sweep", action="append", default=[], metavar="FIELD=V1,V2")
  parser.add_argument("--output", type=Path, default=Path("runs/experiments"))
  parser.add_argument("--jobs", type=int, default=1, help="trials at a time on this machine")
  parser.add_argument("--emit", choices=("slurm", "skypilot"), help="write them out; run nothing")
  parser.add_argument("--emit_to", type=Path, help="folder for what --emit writes")
  parser.add_argument("--accelerators", default="A100:1", help="of a SkyPilot job")
  parser.add_argument("--bucket", default="segflax-runs", help="where SkyPilot jobs keep runs")
  parser.add_argument("--study", help="storage of an Optuna study, for example sqlite:///study.db")
  parser.add_argument("--search", action="append", default=[], metavar="FIELD=LOW:HIGH[:log]")
  parser.add_argument("--trials", type=int, default=10, help="of the study, in this process")
  return parser.parse_args(argv)


def print_table(rows: list[dict[str, object]]):
  columns = list(dict.fromkeys(column for row in rows for column in row))
  cells = [columns] + [[html.number(row.get(column)) for column in columns] for row in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
  for row in cells:
    print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def emit_trials(args: argparse.Namespace, trials: list[experiments.Trial]):
  folder = args.emit_to or args.output / args.emit
  if args.emit == "slurm":
    files = {"trials.sbatch": emit.slurm(trials)}
  else:
    files = emit.skypilot(trials, args.accelerators, args.bucket)
  for path in emit.write(files, folder):
    print(path)


def exit_code(states: Iterable[str], interrupted: bool) -> int:
  """Returns the exit code for the states of all trials, as the docstring above has them."""
  states = set(states)
  if interrupted or "interrupted" in states:
    return experiments.INTERRUPTED
  return 0 if states == {"done"} else 1


def main(argv: list[str] | None = None) -> int:
  args = parse(argv)
  folder = Path(os.path.relpath(ROOT / "configs"))
  if args.list:
    for name, purpose in experiments.templates(folder).items():
      mark = "*" if name in experiments.ORIGIN else " "
      print(f"{mark} {name:26} {purpose}")
    print("* runs when no --experiment is given")
    return 0
  if args.jobs < 1:
    raise UserError(f"--jobs {args.jobs} must be at least 1")
  runner = experiments.Runner(experiments.main_command(ROOT), lambda s: print(s, flush=True))
  interrupted = []

  def stop(number, frame):
    interrupted.append(number)
    runner.stop()

  signal.signal(signal.SIGINT, stop)
  signal.signal(signal.SIGTERM, stop)
  if args.study:
    if len(args.experiment) != 1 or args.sweep or args.emit:
      raise UserError("--study takes one --experiment, and neither --sweep nor --emit")
    rows = study.run(
      runner,
      args.experiment[0],
      storage=args.study,
      searches=args.search,
      settings=args.set,
      trials=args.trials,
      output=args.output,
      folder=folder,
    )
    print_table(rows)
    return exit_code([row["state"] for row in rows], bool(interrupted))
  trials = experiments.plan(
    args.experiment, args.output, settings=args.set, sweeps=args.sweep, folder=folder
  )
  if args.emit:
    emit_trials(args, trials)
    return 0
  states = runner.run(trials, args.jobs)
  print_table([experiments.result(trial, states[trial.name]) for trial in trials])
  return exit_code(states.values(), bool(interrupted))


if __name__ == "__main__":
  try:
    sys.exit(main())
  except UserError as error:
    print(f"run_experiments: {error}", file=sys.stderr)
    sys.exit(2)
