"""Trains the tiny run in a process of its own: `train_tiny.py DATA WORKDIR [PORT PROCESSES ID]`."""

import sys

import jax
from tiny_run import tiny

from segflax.preemption import EXIT_CODE, Interrupted
from segflax.train import train_and_evaluate

if __name__ == "__main__":
  data, workdir, *cluster = sys.argv[1:]
  if cluster:
    port, processes, process = cluster
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
  try:
    train_and_evaluate(tiny(data, batch_size=8, eval__batch_size=8), workdir)
  except Interrupted:
    sys.exit(EXIT_CODE)
