"""Trains a CLIPSeg: `main.py --config=configs/quickstart.py --workdir=runs/quickstart`.

The same command resumes an interrupted run. Exit codes: 0 done, 2 bad input (one sentence says
what), 75 interrupted and saved (give the same command again), 1 anything else.
"""

import os
import sys

# Decided before jax is imported: fewer lines of noise from XLA and transformers.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment template, for example configs/baseline.py.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Everything that the run leaves goes here.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
  print(CONFIG.value.lr, argv)


if __name__ == "__main__":
  app.run(main)
