"""Trains the tiny run in a process of its own.

train_tiny.py DATA WORKDIR [PORT PROCESSES ID [HANGS]]

Process number HANGS stands still at its third batch, as one does whose file server is gone.
"""

import sys
import time

import jax
from tiny_run import tiny

from segflax.data.train_stream import TrainStream
from segflax.preemption import EXIT_CODE, Interrupted
from segflax.train import train_and_evaluate

HANG_SECONDS = 20  # longer than an epoch of the tiny run with its evaluation and saves

read = TrainStream.__next__


def read_until_the_server_is_gone(stream):
  if stream.get_state()["step"] == 3:
    print("standing still", flush=True)
    time.sleep(3600)
  return read(stream)


if __name__ == "__main__":
  data, workdir, *cluster = sys.argv[1:]
  config = tiny(data, batch_size=8, eval__batch_size=8)
  if cluster:
    port, processes, process, *hangs = cluster
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    if hangs:
      config.hang_seconds = HANG_SECONDS
      config.epochs = 20  # It stands still in training, not after it.
    if hangs == [process]:
      TrainStream.__next__ = read_until_the_server_is_gone
  try:
    train_and_evaluate(config, workdir)
  except Interrupted:
    sys.exit(EXIT_CODE)
