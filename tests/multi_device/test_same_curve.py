"""1, 2, 4, 8 virtual devices and 2 processes: one training curve, up to the order of float32 sums.

Measured over the tiny run's two epochs on CPU: losses differ by 1e-7 relative, metrics (counts of
pixels) not at all; the bounds below leave room for other processors.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segflax import summary
from segflax.preemption import EXIT_CODE

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 300  # seconds
STARTED = "parameters train on"  # what a run says before it compiles


def start(data, workdir, *cluster, devices=1):
  environment = os.environ | {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    "NPROC": "16",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  script = ROOT / "tests" / "multi_device" / "train_tiny.py"
  command = [sys.executable, str(script), str(data), str(workdir), *map(str, cluster)]
  return subprocess.Popen(
    command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(*processes):
  for process in processes:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output[-3000:]


def assert_same_curve(one, other):
  history, others = summary.read_history(one), summary.read_history(other)
  assert len(history) == len(others) == 2
  for row, again in zip(history, others, strict=True):
    assert (row["step"], row["lr"]) == (again["step"], again["lr"])
    for name in ("train_loss", "val_loss", "train_grad_norm"):
      np.testing.assert_allclose(row[name], again[name], rtol=1e-4, err_msg=name)
    for name in ("val_iou", "val_dice", "val_pixel_accuracy"):
      np.testing.assert_allclose(row[name], again[name], atol=2e-3, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """Returns (data, workdir) of the run on one device."""
  folder = tmp_path_factory.mktemp("alone")
  finish(start(folder / "walls", folder / "run"))
  return folder / "walls", folder / "run"


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_several_devices(devices, alone, tmp_path):
  finish(start(alone[0], tmp_path, devices=devices))
  assert_same_curve(alone[1], tmp_path)


def two_processes(data, workdir, *options):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [start(data, workdir, port, 2, process, *options) for process in range(2)]


def test_two_processes(alone, tmp_path):
  finish(*two_processes(alone[0], tmp_path))
  assert_same_curve(alone[1], tmp_path)


@pytest.mark.parametrize("on", ["two processes", "one process"])
def test_two_processes_stop_as_one_and_the_run_goes_on(on, alone, tmp_path):
  """A signal to one stops both at one step; what they saved fits any number of processes."""
  first, second = two_processes(alone[0], tmp_path)
  for line in first.stdout:
    if STARTED in line:
      break
  second.send_signal(signal.SIGTERM)
  for process in (second, first):
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == EXIT_CODE, output[-3000:]
  assert any((tmp_path / "checkpoints").iterdir())
  assert not (tmp_path / summary.SUMMARY).exists()
  again = two_processes(alone[0], tmp_path) if on == "two processes" else None
  finish(*(again or [start(alone[0], tmp_path)]))
  assert_same_curve(alone[1], tmp_path)
