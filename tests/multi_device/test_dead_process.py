"""One of two processes is killed: the other ends with an error, soon enough."""

import signal
import socket
import time

import pytest
from test_same_curve import start

pytestmark = pytest.mark.slow
# JAX's coordination service notices a missing heartbeat; Gloo a closed connection, at once.
LIMIT = 180  # seconds


@pytest.mark.parametrize("victim", [0, 1])
def test_the_survivor_ends_with_an_error(victim, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  processes = [start(tmp_path / "walls", tmp_path / "run", port, 2, i) for i in range(2)]
  for line in processes[0].stdout:
    if "epoch 1 [" in line or line.startswith("epoch 1/"):
      break
  processes[victim].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  survivor = processes[1 - victim]
  try:
    survivor.communicate(timeout=LIMIT)
  finally:
    survivor.kill()
    processes[victim].communicate()
  assert survivor.returncode != 0
  assert time.monotonic() - killed < LIMIT
