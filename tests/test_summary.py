"""training_summary.json: the origin's format, strict JSON, errors that say what to do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segflax import summary
from segflax.errors import UserError


def make_history():
  nan = float("nan")
  rows = [(1, 0.9, 0.8, 0.3), (2, 0.5, 0.6, 0.7), (3, 0.4, 0.7, 0.7), (4, nan, nan, nan)]
  return [
    {
      "epoch": epoch,
      "train_loss": train,
      "val_loss": loss,
      "val_iou": iou,
      "val_dice": iou,
      "val_empty_fp_rate": 1 - iou,
      "per_prompt": {"segment crack": {"iou": iou}},
    }
    for epoch, train, loss, iou in rows
  ]


def make(history):
  return summary.make_summary(
    history,
    training_args={"lr": 1e-4, "model": {"preset": "tiny"}},
    stopped="all epochs",
    timings={"train_seconds": np.float32(1.5)},
    speed={"images_per_second": np.float32(2.0)},
    environment={"jax": "0"},
  )


def test_the_origins_format_survives_the_disk(tmp_path):
  summary.write_summary(tmp_path, make(make_history()))
  text = (tmp_path / "training_summary.json").read_text()
  assert "NaN" not in text
  back = summary.read_summary(tmp_path)
  assert back["best_metrics"]["val_iou"] == {"value": 0.7, "epoch": 2}
  assert back["best_metrics"]["val_loss"] == {"value": 0.6, "epoch": 2}
  assert back["best_metrics"]["val_empty_fp_rate"] == {"value": pytest.approx(0.3), "epoch": 2}
  assert back["final_metrics"]["val_loss"] is None
  assert back["total_epochs"] == 4 and back["training_args"]["lr"] == 1e-4
  assert back["best_val_iou"] == back["best_val_dice"] == 0.7
  assert back["definitions"]["val_iou"].startswith("mean over pictures")
  assert "per_prompt" not in back["final_metrics"]


def test_no_evaluation_at_all(tmp_path):
  summary.write_summary(tmp_path, make([]))
  back = summary.read_summary(tmp_path)
  assert back["total_epochs"] == 0 and back["best_val_iou"] is None


values = st.floats(0, 1) | st.just(float("nan")) | st.none()


@given(st.lists(values, max_size=8))
def test_the_best_is_the_earliest_of_the_finite_extremes(column):
  history = [{"epoch": i, "val_iou": v, "val_loss": v} for i, v in enumerate(column)]
  finite = [(v, i) for i, v in enumerate(column) if v is not None and v == v]
  for metric, choose in (("val_iou", max), ("val_loss", min)):
    best = summary.best_of(history, metric)
    if not finite:
      assert best is None
      continue
    value = choose(v for v, _ in finite)
    assert best == {"value": value, "epoch": min(i for v, i in finite if v == value)}


def test_history_is_one_strict_line_per_evaluation(tmp_path):
  summary.write_history(tmp_path, make_history())
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == 4 and json.loads(lines[3])["val_iou"] is None
  assert summary.read_history(tmp_path)[0] == make_history()[0]
  (tmp_path / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
  with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl is not JSON .*resume the run"):
    summary.read_history(tmp_path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "does not exist; give the workdir of a run that has ended"),
    ("{", "is not readable as JSON"),
    ("[1]", "holds a list, not an object"),
    ('{"total_epochs": 3}', "lacks best_metrics, final_metrics, training_args"),
  ],
)
def test_a_bad_summary_is_one_sentence(content, message, tmp_path):
  if content is not None:
    (tmp_path / "training_summary.json").write_text(content)
  with pytest.raises(UserError, match=message):
    summary.read_summary(tmp_path)


def test_reading_results_starts_no_jax():
  code = "import sys, segflax.summary, segflax.metrics; print('jax' in sys.modules)"
  root = Path(__file__).parents[1]
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
  assert out.stdout.strip() == "False", out.stderr
