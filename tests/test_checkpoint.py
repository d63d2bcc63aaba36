"""Checkpoints: exact, kept by policy, never wrong when damaged, loud when not written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from segflax import sharding
from segflax.checkpoint import Checkpoints, restore_from
from segflax.errors import UserError


def make_state(step: int) -> dict:
  rng = np.random.default_rng(step)
  state = {
    "params": {"decoder": {"kernel": jnp.asarray(rng.normal(size=(9, 7)), jnp.float32)}},
    # Orbax sorts names otherwise than jax.tree does leaves.
    "params-2": (jnp.asarray(rng.normal(size=5), jnp.bfloat16), None, jnp.asarray(True)),
    "step": jnp.asarray(step, jnp.int32),
  }
  return jax.device_put(state, NamedSharding(sharding.make_mesh(), P()))


def save(checkpoints, step, *, epoch=None, val_iou=None):
  metrics = None if val_iou is None else {"val_iou": val_iou}
  checkpoints.save(
    step,
    make_state(step),
    data_state={"position": step},
    progress={"history": [step, 0.1]},
    epoch=epoch,
    metrics=metrics,
  )


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def names(directory) -> set[str]:
  return {path.name for path in directory.iterdir()}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  """A folder with sound checkpoints of steps 10 and 20; to be copied."""
  directory = tmp_path_factory.mktemp("two") / "checkpoints"
  checkpoints = Checkpoints(directory, {"vision/kernel": "abc"})
  save(checkpoints, 10)
  save(checkpoints, 20)
  checkpoints.wait()
  return directory


@pytest.fixture
def copy(two_steps, tmp_path):
  return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def test_what_comes_back_is_what_was_saved(two_steps):
  restored = Checkpoints(two_steps).restore(make_state(0))
  assert_same(restored.state, make_state(20))
  assert (restored.step, restored.data_state) == (20, {"position": 20})
  assert restored.progress == {"history": [20, 0.1]}
  assert_same(restore_from(two_steps / "step_00000010", make_state(0)).state, make_state(10))
  assert restore_from(two_steps.parent, jax.eval_shape(lambda: make_state(0))).step == 20


def test_bytes_as_data_position(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_state(1), data_state=b"\x00\xff", progress={})
  assert checkpoints.restore(make_state(0)).data_state == b"\x00\xff"


def test_nothing_saved_is_none(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  assert checkpoints.restore(make_state(0)) is None
  assert checkpoints.latest_step is None
  with pytest.raises(UserError, match="holds no checkpoint; name a workdir"):
    restore_from(tmp_path, make_state(0))


def test_state_may_be_donated_while_it_is_written(tmp_path):
  add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  state = {str(i): jnp.full((400, 500), 3.0) for i in range(4)}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, data_state=None, progress={})
  for _ in range(5):
    state = add(state)
  restored = checkpoints.restore(state).state
  assert all(bool((leaf == 3).all()) for leaf in restored.values())


def test_latest_best_and_periodic_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path, every_epochs=3, keep_latest=2)
  # NaN is no best; the earlier of two equal ones is.
  for epoch, iou in enumerate([0.1, 0.5, float("nan"), 0.5, 0.2, 0.3, 0.1, 0.1], 1):
    save(checkpoints, epoch * 10, epoch=epoch, val_iou=iou)
    save(checkpoints, epoch * 10 + 5)
  checkpoints.wait()
  kept = {2: 20, 3: 30, 6: 60, 8: 80}
  expected = {f"epoch_{epoch:04d}_step_{step:08d}" for epoch, step in kept.items()}
  assert names(tmp_path) == expected | {"step_00000085"}
  # Another session knows the scores too.
  checkpoints = Checkpoints(tmp_path, every_epochs=0, keep_latest=1)
  save(checkpoints, 90, epoch=9, val_iou=0.4)
  checkpoints.wait()
  assert names(tmp_path) == {"epoch_0002_step_00000020", "epoch_0009_step_00000090"}


def test_the_end_of_an_epoch_comes_after_its_last_step(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  save(checkpoints, 10)
  save(checkpoints, 10)  # As after a signal right behind a periodic save.
  save(checkpoints, 10, epoch=1, val_iou=0.5)
  save(checkpoints, 10)
  checkpoints.wait()
  assert names(tmp_path) == {"step_00000010", "epoch_0001_step_00000010"}
  assert Checkpoints(tmp_path).restore(make_state(0)).step == 10


def damage(path: Path, kind: str, rng):
  data = bytearray(path.read_bytes())
  if kind == "missing":
    path.unlink()
  elif kind == "cut":
    path.write_bytes(data[: len(data) // 2])
  elif data:
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["flipped bit", "cut", "missing"])
def test_no_damage_of_any_file_gives_a_wrong_state(two_steps, tmp_path, kind, caplog):
  rng, fallbacks = np.random.default_rng(0), 0
  files = [path for path in (two_steps / "step_00000020").rglob("*") if path.is_file()]
  for path in files:
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    directory = Path(shutil.copytree(two_steps, tmp_path / "c"))
    damage(directory / path.relative_to(two_steps), kind, rng)
    caplog.clear()
    restored = Checkpoints(directory).restore(make_state(0))
    assert_same(restored.state, make_state(restored.step))
    if restored.step == 10:
      fallbacks += 1
      assert "checkpoint of step 20 is damaged" in caplog.text
      assert "using step 10" in caplog.text
  assert fallbacks >= 4  # Some files are not needed to read the arrays.


def test_damaged_step_is_set_aside_and_can_be_saved_again(copy):
  (copy / "step_00000020" / "run" / "data.json").unlink()
  checkpoints = Checkpoints(copy)
  assert checkpoints.restore(make_state(0)).step == 10
  save(checkpoints, 20)
  checkpoints.wait()
  assert Checkpoints(copy).restore(make_state(0)).step == 20
  assert "damaged_step_00000020" in names(copy)


def test_strict_refuses_the_damaged_step(copy):
  (copy / "step_00000020" / "state" / "manifest.ocdbt").unlink()
  with pytest.raises(UserError, match="checkpoint of step 20 is damaged"):
    Checkpoints(copy, strict=True).restore(make_state(0))
  assert names(copy) == {"step_00000010", "step_00000020"}


def test_nothing_usable_is_refused_and_nothing_touched(copy):
  for name in names(copy):
    (copy / name / "run" / "data.json").write_text("{}")
  for _ in range(2):  # Refused again, too: not a fresh start the second time.
    with pytest.raises(UserError, match=r"no checkpoint in .* is usable: .*step 20.*step 10"):
      Checkpoints(copy).restore(make_state(0))


def test_every_differing_leaf_is_listed(two_steps):
  like = make_state(0)
  like["params"]["decoder"] = {
    "kernel": jnp.zeros((9, 8)),
    "bias": jnp.zeros(8),
  }
  like["params-2"] = (jnp.zeros(5, jnp.float32), None, jnp.asarray(True))
  del like["step"]
  with pytest.raises(UserError) as error:
    Checkpoints(two_steps).restore(like)
  for line in (
    "params.decoder.bias is not in the checkpoint",
    "step is only in the checkpoint",
    "params.decoder.kernel was saved as float32[9, 7], not float32[9, 8]",
    "params-2.0 was saved as bfloat16[5], not float32[5]",
  ):
    assert line in str(error.value)


def test_frozen_parameters_must_be_the_same(two_steps):
  same = Checkpoints(two_steps, {"vision/kernel": "abc"})
  assert same.restore(make_state(0)).step == 20
  for frozen in ({"vision/kernel": "abd"}, {"vision/kernel": "abc", "text/kernel": "x"}):
    with pytest.raises(UserError, match="1 frozen parameters are not those"):
      Checkpoints(two_steps, frozen).restore(make_state(0))


def test_leftovers_are_removed_by_their_own_run_only(copy):
  leftover = copy / "step_00000030.orbax-checkpoint-tmp" / "state"
  leftover.mkdir(parents=True)
  assert restore_from(copy, make_state(0)).step == 20
  assert leftover.exists()
  checkpoints = Checkpoints(copy)
  assert not leftover.exists()
  save(checkpoints, 30)
  checkpoints.wait()
  assert checkpoints.latest_step == 30


def test_a_full_disk_is_loud_and_loses_nothing(copy):
  checkpoints = Checkpoints(copy, keep_latest=1)
  big = {"x": jax.random.normal(jax.random.key(0), (300, 300))}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(
    resource.RLIMIT_FSIZE, (50_000, hard)
  )  # Writes beyond fail, as on a full disk.
  try:
    with pytest.raises(UserError, match=r"step 30 could not be written .*step 20 is safe"):
      checkpoints.save(30, big, data_state=None, progress={})
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert checkpoints.latest_step == 20
  assert names(copy) == {"step_00000010", "step_00000020"}
  assert Checkpoints(copy).restore(make_state(0)).step == 20


KILLED = """
import sys
import jax.numpy as jnp
from segflax.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep_latest=2)
for step in range(1, 1000):
  state = {str(i): jnp.full((64, 64), step, jnp.float32) for i in range(60)}
  checkpoints.save(step, state, data_state=None, progress={"step": step})
  print(step, flush=True)
"""


def test_sigkill_in_a_save(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", KILLED, str(tmp_path)],
    stdout=subprocess.PIPE,
    env=os.environ | {"PYTHONPATH": os.getcwd()},
  )
  try:
    for _ in range(4):
      process.stdout.readline()
    until = time.monotonic() + 60
    while not any(".orbax-checkpoint-tmp" in name for name in names(tmp_path)):
      assert time.monotonic() < until
    process.send_signal(signal.SIGKILL)
  finally:
    process.kill()
    process.wait()
    process.stdout.close()
  like = {str(i): jnp.zeros((64, 64)) for i in range(60)}
  restored = Checkpoints(tmp_path).restore(like)
  assert restored.step >= 3
  assert all(bool((leaf == restored.step).all()) for leaf in restored.state.values())
  assert not any("tmp" in name or "damaged" in name for name in names(tmp_path))


@pytest.mark.parametrize(
  ("options", "message"),
  [({"every_epochs": -1}, "every_epochs -1"), ({"keep_latest": 0}, "keep_latest 0 keeps nothing")],
)
def test_wrong_settings_are_refused(tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    Checkpoints(tmp_path, **options)
