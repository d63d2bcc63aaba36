"""CLU's writers without TensorFlow: what TensorBoard's own reader makes of their files."""

import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util

from segflax.writers import Profile, create_writer


def read(logdir):
  accumulator = plugin_event_accumulator.EventAccumulator(str(logdir), tensor_size_guidance={})
  accumulator.Reload()
  return accumulator


def values(accumulator, tag) -> list:
  return [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in accumulator.Tensors(tag)]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_everything_is_read_back(tmp_path, asynchronous):
  images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
  writer = create_writer(tmp_path, asynchronous=asynchronous)
  writer.write_scalars(3, {"train/loss": 0.25, "lr": np.float32(1e-4), "x": jnp.float32(2)})
  writer.write_images(3, {"panel": images, "grey": np.full((4, 4, 1), 0.5)})
  writer.write_texts(3, {"note": "wall"})
  writer.write_histograms(3, {"h": np.arange(10.0)}, num_buckets={"h": 5})
  writer.flush()
  writer.close()
  events = read(tmp_path)
  assert values(events, "train/loss") == [(3, 0.25)]
  assert values(events, "x") == [(3, 2.0)]
  assert values(events, "note")[0][1] == [b"wall"]
  assert values(events, "h")[0][1].shape == (5, 3)
  width, height, *pngs = values(events, "panel")[0][1]
  assert (width, height) == (b"7", b"5")
  from_png = [np.asarray(Image.open(io.BytesIO(png))) for png in pngs]
  np.testing.assert_array_equal(from_png, images)
  grey = Image.open(io.BytesIO(values(events, "grey")[0][1][2]))
  assert np.asarray(grey).tolist() == [[128] * 4] * 4


def test_resuming_forgets_later_steps(tmp_path):
  def session(from_step, steps, value):
    writer = create_writer(tmp_path, from_step=from_step)
    for step in steps:
      writer.write_scalars(step, {"loss": value})
    writer.close()

  session(0, range(1, 11), 1.0)
  session(4, range(5, 8), 2.0)
  session(6, range(7, 9), 3.0)
  expected = [(s, 1.0) for s in range(1, 5)] + [(5, 2.0), (6, 2.0), (7, 3.0), (8, 3.0)]
  assert values(read(tmp_path), "loss") == expected
  session(0, range(1, 3), 4.0)  # Killed before its first checkpoint: all over again.
  assert values(read(tmp_path), "loss") == [(1, 4.0), (2, 4.0)]


def test_hyperparameters_and_their_results(tmp_path):
  writer = create_writer(tmp_path, metrics=["val/iou"])
  writer.write_hparams({"lr": 0.1, "loss": {"name": "bce", "weights": (1, 2), "none": None}})
  writer.close()
  plugin = read(tmp_path).PluginTagToContent("hparams")
  start = hparams_metadata.parse_session_start_info_plugin_data(
    plugin[hparams_metadata.SESSION_START_INFO_TAG]
  )
  assert start.hparams["lr"].number_value == 0.1
  assert start.hparams["loss.name"].string_value == "bce"
  assert start.hparams["loss.weights.1"].number_value == 2
  experiment = hparams_metadata.parse_experiment_plugin_data(
    plugin[hparams_metadata.EXPERIMENT_TAG]
  )
  assert [info.name.tag for info in experiment.metric_infos] == ["val/iou"]


def test_without_a_folder_only_the_log_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  writer = create_writer(None)
  writer.write_scalars(1, {"loss": 1.0})
  writer.close()
  assert not list(tmp_path.iterdir())


def test_a_trace_ends_with_the_run(tmp_path):
  profile = Profile(tmp_path, first_step=2, num_steps=50)  # Longer than the run.
  add = jax.jit(lambda x: x + 1)
  for step in range(1, 5):
    add(jnp.ones(3)).block_until_ready()
    profile(step)
  profile.close()
  profile.close()
  assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_no_tensorflow():
  code = "import sys, segflax.writers; sys.exit('tensorflow' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
