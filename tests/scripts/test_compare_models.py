"""compare_models.py and report.py on workdirs as training leaves them."""

import csv
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_runs import PROMPTS, ignoring, make_run, noisy, walls

from segflax import judgement, metrics, runs, summary
from segflax.data import builder
from segflax.errors import UserError

ROOT = Path(__file__).parents[2]
ORIGINS_COLUMNS = [
  "experiment",
  "best_val_iou",
  "best_val_dice",
  "total_epochs",
  "batch_size",
  "learning_rate",
  "image_size",
  "mixed_precision",
  "best_epoch",
]


def main(name, *argv):
  runpy.run_path(str(ROOT / "scripts" / name), run_name="script")["main"](list(map(str, argv)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two seeds of one config, a worse run, one that ignores its prompt, one unfinished."""
  truth = walls(80)
  folder = tmp_path_factory.mktemp("runs")
  make_run(folder / "baseline", noisy(truth, 1, 0.18), truth)
  make_run(folder / "baseline_2", noisy(truth, 2, 0.18), truth, seed=43)
  make_run(folder / "lower_lr", noisy(truth, 3, 0.25), truth, lr=5e-5)
  make_run(folder / "deep" / "ignoring", ignoring(truth), truth)
  make_run(folder / "deep" / "everything", np.ones(truth.shape), truth)
  make_run(folder / "deep" / "nothing", np.zeros(truth.shape), truth)
  (folder / "unfinished" / "checkpoints").mkdir(parents=True)
  (folder / "unfinished" / "config.json").write_text("{}")
  return folder


@pytest.fixture(scope="module")
def compared(folder):
  output = folder / "out" / "model_comparison.csv"
  command = [sys.executable, "scripts/compare_models.py", str(folder), "--output", str(output)]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  before = os.times().children_user
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
  seconds = os.times().children_user - before
  assert done.returncode == 0, done.stderr
  return done, output, seconds


def test_the_table_has_the_origins_columns_and_is_sorted(compared):
  done, output, _ = compared
  with output.open() as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0])[:9] == ORIGINS_COLUMNS
  values = [float(row["best_val_iou"]) for row in rows]
  assert len(values) == 6 and values == sorted(values, reverse=True)
  lower = next(row for row in rows if row["experiment"] == "lower_lr")
  assert lower["learning_rate"] == "5e-05" and lower["best_epoch"] == "4"
  assert "unfinished" in done.stderr and "not finished" in done.stderr


def test_two_seeds_show_no_difference(compared):
  done, _, _ = compared
  lines = [line for line in done.stdout.splitlines() if " against " in line]
  (seeds,) = [line for line in lines if line.startswith("baseline") and " against baseline" in line]
  assert "no difference shown" in seeds
  assert not any("no difference" in line for line in lines if "lower_lr" in line)


def test_the_page_exposes_the_run_that_ignores_its_prompt(compared):
  _, output, _ = compared
  text = output.with_suffix(".html").read_text()
  assert "ignoring: ignores its prompt" in text and "baseline: ignores" not in text
  assert "everything: masks everything: 100% of the pixels" in text
  assert "nothing: masks almost nothing" in text
  for words in ("Curves", "Overlays side by side", f"Worst pictures for “{PROMPTS[0]}”", "5e-05"):
    assert words in text
  for outside in ("http://", "https://", "<script", "<link", "url("):
    assert outside not in text
  # Every picture of the page is inside it.
  assert set(re.findall(r'src="([^,"]{5})', text)) == {"data:"}


def test_marking_nothing_is_best_at_nothing(compared):
  """No overlap of prompts and no pixel of the wrong concept are no merit of an empty mask."""
  page = compared[1].with_suffix(".html").read_text()
  champions = page[page.index("The best per metric") : page.index("Is the difference")]
  assert "<td>nothing</td>" not in champions and "overlap" not in champions
  runs_table = page[page.index("Runs, the best") : page.index("The best per metric")]
  for column in ("val_prompt_overlap", "val_truth_overlap", "val_predicted_area"):
    assert f"<th>{column}</th>" in runs_table


def script(name):
  return runpy.run_path(str(ROOT / "scripts" / name), run_name="script")


def test_verdicts_name_runs_called_first_and_second():
  verdict = script("compare_models.py")["verdict"]
  result = judgement.Difference("first better", judgement.Interval(1, 1, 1), 1)
  assert verdict(result, "second_try", "first_try") == "second_try better"
  result = result._replace(verdict="no difference shown")
  assert verdict(result, "no", "first") == "no difference shown"


def test_six_runs_of_500_pictures_are_compared_in_two_seconds(tmp_path, monkeypatch):
  """Each run's rows are read once, and all pairs share one bootstrap."""
  truth = walls(500, size=12)
  for seed in range(6):
    make_run(tmp_path / f"seed_{seed}", noisy(truth, seed, 0.2), truth)
  loads, draws = [], []
  load, bootstrap = metrics.Rows.load.__func__, judgement.bootstrap
  monkeypatch.setattr(
    metrics.Rows, "load", classmethod(lambda cls, path: loads.append(path) or load(cls, path))
  )
  monkeypatch.setattr(judgement, "bootstrap", lambda v: draws.append(v.shape) or bootstrap(v))
  start = time.process_time()
  main("compare_models.py", tmp_path, "--output", tmp_path / "c.csv")
  assert time.process_time() - start < 4  # Half of it is what the machine's other users cost.
  assert len(loads) == 6 and draws == [(500, 15)]


def test_overlays_that_only_some_runs_have_are_shown_too(tmp_path):
  truth = walls(8)
  for name in ("one", "two", "three"):
    make_run(tmp_path / name, truth * 0.9, truth, epochs=1)
  shutil.rmtree(tmp_path / "two" / runs.OVERLAYS)
  found, _ = runs.find([tmp_path])
  rows = script("compare_models.py")["side_by_side"](found)
  assert len(rows) == 6 and all(row.count("<img") == 2 for row in rows)
  assert "two:" not in "".join(rows)


def test_it_takes_less_than_two_seconds_and_starts_no_jax(compared):
  assert compared[2] < 2  # of the processor, so that a busy machine does not matter
  code = (
    "import sys, runpy; runpy.run_path('scripts/compare_models.py', run_name='x');"
    "print('jax' in sys.modules, 'scipy' in sys.modules)"
  )
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
  )
  assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_origins_summaries_are_read_too(tmp_path):
  (tmp_path / "old").mkdir()
  summary.write_json(
    tmp_path / "old" / "training_summary.json",
    {
      "best_metrics": {"val_iou": {"value": 0.75, "epoch": 25}},
      "final_metrics": {"train_loss": 0.12, "val_loss": 0.15},
      "total_epochs": 30,
      "training_args": {"lr": 1e-4, "batch_size": 8},
      "best_val_iou": 0.75,
      "best_val_dice": 0.82,
    },
  )
  main("compare_models.py", tmp_path / "old", "--output", tmp_path / "c.csv")
  with (tmp_path / "c.csv").open() as file:
    (row,) = csv.DictReader(file)
  assert row["best_epoch"] == "25" and row["learning_rate"] == "0.0001" and row["seed"] == ""


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["/nowhere"], "/nowhere does not exist"),
    (["{empty}"], "holds no training_summary.json"),
    (["{folder}", "--output=x.txt"], "must end in .csv"),
  ],
)
def test_bad_input_is_one_sentence(arguments, message, folder, tmp_path):
  arguments = [a.format(empty=tmp_path, folder=folder) for a in arguments]
  with pytest.raises(UserError, match=message):
    main("compare_models.py", *arguments)


def test_names_are_as_short_as_they_can_be(tmp_path):
  truth = walls(4)
  for path in ("a/run", "b/run", "b/other"):
    make_run(tmp_path / path, truth * 0.9, truth, epochs=1)
  found, _ = runs.find([tmp_path])
  assert sorted(run.name for run in found) == ["a/run", "b/other", "b/run"]


def test_an_empty_folder_is_refused_although_another_has_an_unfinished_run(folder, tmp_path):
  with pytest.raises(UserError, match=f"{tmp_path} holds no training_summary.json"):
    runs.find([folder, tmp_path])


def test_the_report_of_a_run_without_data_dir_reads_no_others_data(tmp_path, monkeypatch):
  truth = walls(8)
  make_run(tmp_path / "run", truth * 0.9, truth, data_dir="")
  of = {"known": 7, "empty": 3, "area": 0.1}
  content = {"counts": {"train": {"pictures": 7, "groups": 7, "concepts": {"crack": of}}}}
  data = tmp_path / "data" / builder.NAME / builder.VERSION
  data.mkdir(parents=True)
  summary.write_json(data / "metadata.json", content)
  monkeypatch.chdir(tmp_path)
  table = script("report.py")["data_table"]
  ((one,), _) = runs.find(["run"])
  assert table(one) == []
  make_run(tmp_path / "run", truth * 0.9, truth, data_dir="data")
  ((one,), _) = runs.find(["run"])
  assert table(one)[0]["pictures"] == 7
  make_run(tmp_path / "run", truth * 0.9, truth, data_dir=str(tmp_path))
  ((one,), _) = runs.find(["run"])
  assert table(one) == []


def test_the_report_of_a_run_without_an_evaluation(folder):
  main("report.py", folder / "baseline")
  text = (folder / "baseline" / "report.html").read_text()
  for words in ("Approach", "seed 42", "segment taping area", "95 %", "Examples", "Run time"):
    assert words in text
  with pytest.raises(UserError, match="holds 6 runs; name one"):
    main("report.py", folder)


def test_a_page_escapes_what_it_is_given():
  from segflax import html

  text = html.page("<b>", html.table([{"<i>": "<script>"}]), html.paragraph("a & b"))
  assert "<script>" not in text and "<b>" not in text and "a &amp; b" in text


def test_no_two_of_sixteen_curves_look_alike():
  from segflax import html

  names = [f"run {i}" for i in range(16)]
  text = html.charts([html.chart("IoU", {n: [(1, 0.1), (2, 0.2)] for n in names})], names)
  curves = re.findall(r'<path [^>]*stroke="(#\w+)"[^>]*?( stroke-dasharray="[^"]*")?>', text)
  keys = re.findall(r"border-top: 3px (solid|dashed) (#\w+)", text)
  assert len(set(curves)) == len(set(keys)) == 16
  assert [(bool(dash), color) for color, dash in curves] == [(k == "dashed", c) for k, c in keys]


def test_a_chart_has_gaps_where_values_are_missing():
  from segflax import html

  curve = [(1, 0.5), (2, None), (3, float("nan")), (4, 0.7), (5, 0.9)]
  text = html.chart("IoU", {"run": curve})
  path = re.search(r'<path d="([^"]*)"', text)[1]
  assert path.count("M") == 2 and path.count("L") == 1 and text.count("<circle") == 3
  assert html.chart("nothing", {"run": [(1, None)]}) == ""
  assert "nan" not in html.chart("one", {"run": [(1, 0.0)]}).lower()
  assert np.isfinite(html._ticks(0, 1)).all()
