"""scripts/compile_for_tpu.py: the real step compiles for slices that are not here.

Needs libtpu (requirements-tpu.txt), which .ci/run installs; no TPU.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from segflax import cost, flops
from segflax.models.clipseg import CLIPSegConfig, init_params

SCRIPT = Path(__file__).parents[1] / "scripts" / "compile_for_tpu.py"
ROOT = SCRIPT.parents[1]
SMALL = ["--config.model.preset=small", "--config.image_size=80", "--config.trainable=decoder"]

pytestmark = pytest.mark.slow


def compile_for(*arguments: str) -> subprocess.CompletedProcess:
  command = [sys.executable, str(SCRIPT), "--config=configs/baseline.py", *SMALL, *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_a_small_step_for_one_chip_and_for_a_slice_of_each_generation(tmp_path):
  path = tmp_path / "rows.jsonl"
  slices = "v5e:1x1,v5e:2x2,v6e:2x2,v5p:2x2x1"
  done = compile_for(f"--topology={slices}", "--pictures_per_chip=4", f"--json={path}")
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == 2 + 4
  rows = {row["topology"]: row for row in map(json.loads, path.read_text().splitlines())}
  assert [row["chips"] for row in rows.values()] == [1, 4, 4, 4]
  config = CLIPSegConfig.small(image_size=80)
  needed = 4 * flops.decoder_step(config, 80) / 1e9
  decoder = jax.eval_shape(lambda: init_params(config, jax.random.key(0))["decoder"])
  gradient = 4 * sum(leaf.size for leaf in jax.tree.leaves(decoder))
  for row in rows.values():
    assert row["fits"]
    assert 0 < row["arguments_gib"] < row["memory_gib"] < 1
    assert needed < row["gflop"] < 1.5 * needed  # The same work on every chip of any slice.
    if row["chips"] > 1:
      # The decoder's gradient, the loss and the number of pairs cross the slice; nothing else does.
      # A little less than the gradient: biases that are added at one place share one gradient.
      assert set(row["collectives"]) == {"all-reduce"}
      assert 0.99 * gradient <= row["collectives"]["all-reduce"][1] <= gradient + 8
    else:
      assert row["collectives"] == {}
    chip = cost.CHIPS[row["topology"].split(":")[0]]
    bound = max(row["gflop"] * 1e9 / chip.flops, row["gbytes"] * 1e9 / chip.bandwidth)
    assert row["pictures_per_second"] <= 1.001 * 4 * row["chips"] / bound


def test_a_batch_that_only_devices_can_tell_is_refused():
  done = compile_for("--topology=v5e:1x1", "--config.batch_size=auto")
  assert done.returncode == 2
  assert "batch_size 'auto' needs the devices themselves; give --pictures_per_chip" in done.stderr


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e:3x7", "v5e"])
def test_a_slice_that_does_not_exist_is_named(topology):
  done = compile_for(f"--topology={topology}")
  assert done.returncode == 2
  assert repr(topology) in done.stderr
