"""A whole run: what it leaves, that it resumes exactly, and what it says to bad input."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tiny_run import tiny

import segflax
from segflax import metrics, preemption, summary
from segflax.checkpoint import Checkpoints
from segflax.checkpoint_io import read_document
from segflax.data import builder
from segflax.errors import UserError
from segflax.outputs import Outputs
from segflax.train import train_and_evaluate


def weights(workdir):
  return load_file(workdir / "final_model" / "model.safetensors")


def last_checkpoint(workdir) -> dict:
  """Returns what the last checkpoint says: checksums of every leaf, progress, position."""
  folders = (workdir / "checkpoints").glob("*step_*")
  document = read_document(max(folders, key=lambda path: path.name.split("step_")[1]))
  del document["progress"]["timings"]
  return document


def curves(workdir) -> dict[str, list]:
  """Returns TensorBoard's scalars, tag -> (step, value) pairs, without those of the clock."""
  events = EventAccumulator(str(workdir / "logs"), tensor_size_guidance={})
  events.Reload()
  return {
    tag: [(e.step, e.tensor_proto.tensor_content or e.tensor_proto.float_val[0]) for e in values]
    for tag in events.Tags()["tensors"]
    if tag != "images_per_second" and not tag.startswith(("panels/", "_hparams_", "hparams"))
    for values in [events.Tensors(tag)]
  }


def assert_same_run(one, other):
  """Everything but the clock's share is equal, bit for bit."""
  assert last_checkpoint(one) == last_checkpoint(other)
  assert curves(one) == curves(other)
  assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
  for name, values in weights(one).items():
    np.testing.assert_array_equal(values, weights(other)[name], err_msg=name)
  for name in ("best_metrics", "final_metrics", "total_epochs", "stopped"):
    assert summary.read_summary(one)[name] == summary.read_summary(other)[name]


def test_summary_has_the_origins_fields(finished):
  workdir, returned = finished
  content = json.loads((workdir / "training_summary.json").read_text())
  assert content["total_epochs"] == 2
  assert content["training_args"]["lr"] == returned["training_args"]["lr"]
  history = summary.read_history(workdir)
  for name, pick in (("val_iou", max), ("val_dice", max), ("val_loss", min)):
    best = content["best_metrics"][name]
    assert best["value"] == pick(row[name] for row in history)
    assert history[best["epoch"] - 1][name] == best["value"]
  assert content["best_val_iou"] == content["best_metrics"]["val_iou"]["value"]
  assert content["best_val_dice"] == content["best_metrics"]["val_dice"]["value"]
  assert {"train_loss", "val_loss", "val_iou", "val_dice"} <= set(content["final_metrics"])


def test_phases_of_the_clock_add_up(finished):
  timings = finished[1]["timings"]
  parts = [seconds for name, seconds in timings.items() if name != "total"]
  assert {"init", "compile", "data_wait", "train", "evaluate", "save"} <= set(timings)
  assert sum(parts) == pytest.approx(timings["total"], abs=0.1)


def test_tensorboard_has_curves_and_panels(finished):
  events = EventAccumulator(str(finished[0] / "logs"))
  events.Reload()
  names = set(events.Tags()["tensors"])
  wanted = {"train/loss", "val/loss", "val/iou", "val/dice", "val/pixel_accuracy", "learning_rate"}
  assert wanted | {"images_per_second", "val_iou/segment crack"} <= names
  assert len([name for name in names if name.startswith("panels/")]) == 4
  assert list((finished[0] / "logs" / "plugins" / "profile").glob("*/*.xplane.pb"))


def test_every_validation_picture_is_judged_once(finished, walls):
  rows = metrics.Rows.load(finished[0] / summary.VAL_ROWS)
  records = builder.open_split(walls, "val")
  assert rows.image_ids == [records[i]["image_id"] for i in range(len(records))]
  assert (rows.counts.sum(-1) == 32 * 32).all()


def test_best_model_predicts_what_the_best_epoch_was_judged_by(finished, walls):
  """The exported folder, read back and run by Predictor, gives the counts that were written."""
  workdir, _ = finished
  rows = metrics.Rows.load(workdir / summary.VAL_ROWS)
  predictor = segflax.Predictor.from_pretrained(workdir / "best_model")
  records = builder.open_split(walls, "val")
  for i, name in enumerate(rows.image_ids):
    record = records[i]
    (maps,) = predictor([record["image"]], rows.prompts)
    for q, prompt in enumerate(rows.prompts):
      truth = np.asarray(Image.open(io.BytesIO(record["masks"][q]))) > 0
      guess = maps[prompt] > 0.5
      counts = [(guess & truth).sum(), (guess & ~truth).sum(), (~guess & truth).sum()]
      assert np.abs(metrics.counts_at(rows, 0.5)[i, q, :3] - counts).max() <= 1, name


def test_a_finished_run_says_so_and_does_nothing(finished, walls, capsys):
  workdir, returned = finished
  before = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")}
  again = train_and_evaluate(tiny(walls), workdir)
  assert "finished" in capsys.readouterr().out
  assert again["best_metrics"] == summary.strict(returned)["best_metrics"]
  assert before == {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")}


@pytest.mark.parametrize(
  "polls", [1, 3, 4, 6], ids=["compile", "inside an epoch", "end of an epoch", "evaluation"]
)
def test_interrupted_and_resumed_is_the_uninterrupted_run(
  polls, finished, walls, tmp_path, monkeypatch
):
  """Polls: 2 while compiling, 3 steps, 3 evaluation batches, and so on; the next one stops."""
  left = iter(range(polls))
  with monkeypatch.context() as patched:
    patched.setattr(preemption.PreemptionGuard, "poll", lambda self: next(left, None) is None)
    with pytest.raises(preemption.Interrupted):
      train_and_evaluate(tiny(walls), tmp_path)
  step = {1: 0, 3: 2, 4: 3, 6: 3}[polls]
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step_{step:08d}"]
  train_and_evaluate(tiny(walls, profile_steps=1), tmp_path)
  assert_same_run(tmp_path, finished[0])


def test_an_epoch_that_was_shown_but_not_saved_is_shown_once(
  finished, walls, tmp_path, monkeypatch
):
  """The run dies between an epoch's last word and its checkpoint; an older one has its step."""
  config, save = tiny(walls, checkpoint__every_steps=3), Checkpoints.save

  def die(self, step, state, *, epoch=None, metrics=None, **rest):
    if epoch:
      self.wait()
      raise KeyboardInterrupt
    save(self, step, state, **rest)

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(Checkpoints, "save", die)
    train_and_evaluate(config, tmp_path)
  train_and_evaluate(config, tmp_path)
  assert curves(tmp_path) == curves(finished[0])


def test_a_longer_run_that_dies_before_its_last_word_is_not_finished(walls, tmp_path, monkeypatch):
  options = {"schedule__name": "constant"}
  train_and_evaluate(tiny(walls, epochs=1, **options), tmp_path)
  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(Outputs, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    train_and_evaluate(tiny(walls, epochs=2, **options), tmp_path)
  assert summary.read_summary(tmp_path)["total_epochs"] == 1
  train_and_evaluate(tiny(walls, epochs=2, **options), tmp_path)
  assert summary.read_summary(tmp_path)["total_epochs"] == 2


def test_a_longer_run_goes_on_and_a_changed_one_is_refused(walls, tmp_path):
  config = tiny(walls, epochs=1, schedule__name="constant")
  train_and_evaluate(config, tmp_path)
  was, config.lr = config.lr, 1.0
  with pytest.raises(UserError, match=rf"lr: {was} -> 1\.0"):
    train_and_evaluate(config, tmp_path)
  with pytest.raises(UserError, match=r"epochs: 1 -> 2"):  # a cosine would be another curve
    train_and_evaluate(tiny(walls, epochs=2), tmp_path)
  longer = train_and_evaluate(tiny(walls, epochs=2, schedule__name="constant"), tmp_path)
  assert longer["total_epochs"] == 2


def test_a_run_without_compiling_after_its_first_epoch(walls, tmp_path):
  """Three epochs compile exactly what one epoch does."""

  def compiled(epochs):
    names = []
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patched:
      from jax._src import compiler

      original = compiler.compile_or_get_cached
      patched.setattr(
        compiler,
        "compile_or_get_cached",
        lambda backend, module, *args, **kwargs: (
          names.append(str(module.operation.attributes["sym_name"]))
          or original(backend, module, *args, **kwargs)
        ),
      )
      train_and_evaluate(
        tiny(walls, epochs=epochs, schedule__name="constant"), tmp_path / str(epochs)
      )
    return sorted(names)

  assert compiled(1) == compiled(3)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data_dir": "/nowhere", "synthetic__train_pictures": 0}, "/nowhere"),
    ({"image_size": 33}, "image_size 33 is not a multiple of patch_size 8; use 40"),
    ({"model__pretrained": "/nowhere/model"}, "/nowhere/model"),
    ({"model__preset": "rd65"}, "rd64-refined"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"data__val_split": "validation"}, "validation"),
    ({"loss__name": "mse"}, "bce_dice"),
    ({"trainable": "nothing/.*"}, "nothing"),
  ],
)
def test_bad_input_is_one_sentence(changes, message, walls, tmp_path):
  with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
    train_and_evaluate(tiny(walls, **changes), tmp_path / "run")
  assert "\n" not in str(error.value)
