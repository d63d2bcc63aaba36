"""Trains a CLIPSeg: `main.py --config=configs/quickstart.py --workdir=runs/quickstart`.

The same command resumes an interrupted run. Exit codes: 0 done, 2 bad input (one sentence says
what), 75 interrupted and saved (give the same command again), 1 anything else.
"""

import os
import sys

from segflax import huge_pages

if __name__ == "__main__":
  huge_pages.enable()

# Before jax and transformers are imported: without these they greet the user with notices.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags, logging
from ml_collections import config_flags

BAD_INPUT = 2

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment template, for example configs/baseline.py.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Everything that the run leaves goes here.")
DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Run as one of several processes; TPU pods, Slurm and Open MPI say by themselves which one.",
)
COORDINATOR = flags.DEFINE_string(
  "coordinator_address", None, "host:port of process 0, where the cluster does not say."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator_address.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator_address.")
flags.mark_flags_as_required(["config", "workdir"])


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, but whatever is wrong with a flag ends in one sentence and exit code 2."""
  try:
    rest = flags.FLAGS(argv)
    _ = CONFIG.value.to_dict  # A missing file is reported only on the first look into it.
    return rest
  # absl's and ml_collections' own errors, and what the latter lets through for odd names.
  except (flags.Error, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
    sys.exit(
      _refuse(
        f"{_reason(error)}; write --config.FIELD=VALUE as configs/baseline.py has the field and "
        "its type, and see --help for the other flags"
      )
    )


def _reason(error: BaseException) -> str:
  """Returns in one line what a parser complains about."""
  # ml_collections wraps one exception in another; the innermost says "Did you mean …?".
  reason = error
  while isinstance(reason, Exception) and reason.args:
    reason = reason.args[-1] if isinstance(reason, OSError) else reason.args[0]
  lines = str(reason).split("\n")
  if any(line.startswith("Traceback") for line in lines):  # of a config file that fails
    lines = [lines[0], *[line for line in lines if line][-1:]]
  return " ".join(" ".join(lines).split()).rstrip(".")


def _refuse(sentence: str) -> int:
  print(f"segflax: {sentence}", file=sys.stderr, flush=True)
  return BAD_INPUT


def main(argv: list[str]):
  if argv[1:]:
    sys.exit(_refuse(f"arguments without a flag: {argv[1:]}; write --name=value"))

  # Not at the top: a misspelt flag is answered at once, without waiting for jax.
  import jax

  from segflax import compilation_cache
  from segflax.errors import UserError
  from segflax.preemption import EXIT_CODE, Interrupted
  from segflax.train import train_and_evaluate

  logging.set_verbosity(logging.WARNING)
  try:
    compilation_cache.enable()
    if DISTRIBUTED.value or COORDINATOR.value:
      jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    train_and_evaluate(CONFIG.value, WORKDIR.value)
  except UserError as error:
    sys.exit(_refuse(str(error)))
  except Interrupted:
    sys.exit(EXIT_CODE)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
