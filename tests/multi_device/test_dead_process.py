"""One of two processes is killed, or hangs: the other ends with an error, soon enough."""

import signal
import time

import pytest
from test_same_curve import two_processes
from train_tiny import HANG_SECONDS

pytestmark = pytest.mark.slow
# JAX's coordination service notices a missing heartbeat; Gloo a closed connection, at once.
LIMIT = 180  # seconds


@pytest.mark.parametrize("victim", [0, 1])
def test_the_survivor_ends_with_an_error(victim, tmp_path):
  processes = two_processes(tmp_path / "walls", tmp_path / "run")
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


def test_both_end_when_one_hangs(tmp_path):
  """Its heart goes on beating: only the watchdog can tell, and says where it stood."""
  processes = two_processes(tmp_path / "walls", tmp_path / "run", 1)
  try:
    for line in processes[1].stdout:
      if "standing still" in line:
        break
    since = time.monotonic()
    said = {process: process.communicate(timeout=HANG_SECONDS + 30)[0] for process in processes}
    took = time.monotonic() - since
  finally:
    for process in processes:
      process.kill()
  assert took > HANG_SECONDS / 2
  assert all(process.returncode != 0 for process in processes)
  # Whichever was first ended by its own watchdog; the other may have seen the connection close.
  first = next(text for text in said.values() if "Timeout" in text)
  assert "train_and_evaluate" in first
