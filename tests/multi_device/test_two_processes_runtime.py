"""Two real processes: they stop at the same step, and save and restore one checkpoint."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segflax.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

WORKER = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp
port, process, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
from segflax import sharding
from segflax.checkpoint import Checkpoints
from segflax.preemption import Interrupted, PreemptionGuard

mesh = sharding.make_mesh()
found = {"devices": mesh.size}

with PreemptionGuard() as guard:
  for poll in range(20):
    if process == 1 and poll == 3:
      guard.request()  # The other process never hears of a signal.
    if guard.poll():
      break
  found["stopped"] = poll

def state(step):
  tree = {"x": jnp.arange(12.0).reshape(3, 4) * step, "n": jnp.int32(step)}
  return sharding.replicate(tree, mesh)

checkpoints = Checkpoints(directory, {"w": "1"}, every_epochs=0)
for step in (1, 2, 3):
  known = {"data_state": {"step": step}, "progress": {}, "metrics": {"val_iou": -step}}
  checkpoints.save(step, state(step), epoch=step, **known)
checkpoints.wait()
restored = Checkpoints(directory, {"w": "1"}).restore(state(0))
found["restored"] = restored.step
found["x"] = float(restored.state["x"].addressable_data(0).sum())

jax.experimental.multihost_utils.sync_global_devices("damage")
if process == 0:
  (directory / "epoch_0003_step_00000003" / "run" / "data.json").unlink()
jax.experimental.multihost_utils.sync_global_devices("damaged")
found["fell back to"] = Checkpoints(directory).restore(state(0)).step
print("FOUND " + json.dumps(found), flush=True)
"""


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder that both processes saved to, and what each of them found."""
  directory = tmp_path_factory.mktemp("two") / "checkpoints"
  environment = os.environ | {
    "PYTHONPATH": os.getcwd(),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
  }
  port = str(free_port())
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", WORKER, port, str(process), str(directory)],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env=environment,
    )
    for process in range(2)
  ]
  try:
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
      worker.wait()
  for worker, output in zip(workers, outputs, strict=True):
    assert worker.returncode == 0, output[-4000:]
  lines = [next(x for x in output.splitlines() if x.startswith("FOUND ")) for output in outputs]
  return directory, [json.loads(line.removeprefix("FOUND ")) for line in lines]


def test_both_stop_at_the_same_poll(run):
  _, (one, other) = run
  assert one["devices"] == 4
  assert one["stopped"] == other["stopped"]
  assert 3 <= one["stopped"] <= 5


def test_both_restore_what_both_saved(run):
  _, found = run
  for process in found:
    assert (process["restored"], process["x"]) == (3, 66.0 * 3)
    assert process["fell back to"] == 2


def test_one_process_restores_what_two_saved(run):
  directory, _ = run
  assert {path.name for path in Path(directory).iterdir()} == {
    "epoch_0001_step_00000001",  # The best.
    "epoch_0002_step_00000002",
    "damaged_epoch_0003_step_00000003",
  }
  like = {"x": jnp.zeros((3, 4)), "n": jnp.int32(0)}
  restored = Checkpoints(directory, {"w": "1"}).restore(like)
  np.testing.assert_array_equal(restored.state["x"], np.arange(12.0).reshape(3, 4) * 2)
  assert restored.state["x"].sharding.device_set == {jax.devices()[0]}
