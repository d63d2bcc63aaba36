"""evaluate.py and report.py on generated walls with a tiny model, end to end."""

import dataclasses
import json
import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_runs import PROMPTS, ignoring, make_rows, make_run, walls

from segflax import evaluation_page, metrics, summary
from segflax.data import builder, synthetic
from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params
from segflax.models.pretrained import save_pretrained
from segflax.models.processor import Processor

ROOT = Path(__file__).parents[2]
CONFIG = CLIPSegConfig.small(
  image_size=32,
  width=32,
  layers=1,
  taps=(0,),
  text_width=32,
  text_layers=1,
  reduce_dim=16,
  decoder_mlp=32,
)


def script(name):
  """Returns the `main` of a script."""
  return runpy.run_path(str(ROOT / "scripts" / name), run_name="script")["main"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
  """A run with a random model, judged on 8 walls of 40 px; thresholds fitted on 8 others."""
  folder = tmp_path_factory.mktemp("evaluate")
  splits = {
    name: synthetic.generate_walls(n, 40, seed)
    for seed, (name, n) in enumerate([("val", 8), ("test", 8)])
  }
  builder.write_dataset(folder / "data", splits, synthetic.CONCEPTS)
  params = init_params(CONFIG, jax.random.key(0))
  params["decoder"]["head"]["enlarge"]["pixels"]["kernel"] *= 3
  run = folder / "run"
  (run / "checkpoints").mkdir(parents=True)  # what tells a run from a model folder
  config = {
    "data_dir": str(folder / "data"),
    "prompts": {"synonyms": {"crack": ["find the crack"]}, "templates": ["{}"]},
  }
  (run / "config.json").write_text(json.dumps({"config": config}))
  save_pretrained(run / "best_model", CLIPSeg(CONFIG), params, Processor.byte_level(32))
  script("evaluate.py")(
    [f"--model={run}", f"--data_dir={folder / 'data'}", "--split=test", "--worst=2"]
  )
  return run


def test_the_numbers_are_those_of_the_rows(evaluated):
  content = json.loads((evaluated / "evaluation_test" / "evaluation.json").read_text())
  rows = metrics.Rows.load(evaluated / "evaluation_test" / "rows.npz")
  assert content["pictures"] == len(rows.image_ids) == 8
  expected = summary.strict(metrics.compute(rows))
  found = content["metrics"]["fitted"]["overall"]
  assert {name: found[name] for name in expected} == expected
  prompt = "find the crack"  # as the run was trained
  interval = content["intervals"]["fitted"]["per_prompt"][prompt]["iou"]
  assert interval["low"] <= interval["mean"] <= interval["high"]
  assert interval["mean"] == pytest.approx(np.nanmean(metrics.iou_rows(rows)[:, 0]))
  assert content["footprint"]["parameters"] > 10_000
  assert set(found) >= {"f1@2px", "cldice", "ap"} and "clipseg.ap" in content["clipseg"]
  assert set(found) | set(content["clipseg"]) <= set(content["definitions"])
  assert "ap" in content["metrics"]["fitted"]["per_source"]["generated walls"]
  assert rows.threshold == content["thresholds"]["fitted"]


def test_fitted_thresholds_are_stored_with_the_model(evaluated):
  stored = json.loads((evaluated / "best_model" / "thresholds.json").read_text())
  content = json.loads((evaluated / "evaluation_test" / "evaluation.json").read_text())
  assert stored == content["thresholds"]["fitted"]
  rows = metrics.Rows.load(evaluated / "evaluation_test" / "rows.npz")
  assert content["metrics"]["fitted"]["overall"]["iou"] == metrics.compute(rows, stored)["iou"]


@pytest.mark.parametrize(
  ("arguments", "reason"),
  [
    (["--limit=4"], "--limit=4 fitted them on a part"),
    (["--image_size=16"], "otherwise than predict.py predicts by default"),
    (["--tile=24"], "otherwise than predict.py predicts by default"),
    (["--data_dir={other}"], "whose content is another"),
    (["--limit=4", "--store"], None),
  ],
)
def test_thresholds_of_anything_else_are_stored_only_on_demand(
  evaluated, other_data, tmp_path, arguments, reason, capsys
):
  run = tmp_path / "run"
  shutil.copytree(evaluated, run)
  before = (run / "best_model" / "thresholds.json").read_text()
  (run / "best_model" / "thresholds.json").write_text(json.dumps({"find the crack": 0.02}))
  given = [f"--model={run}", f"--data_dir={evaluated.parent / 'data'}", "--worst=0"]
  script("evaluate.py")(given + [a.format(other=other_data) for a in arguments])
  after = json.loads((run / "best_model" / "thresholds.json").read_text())
  said = capsys.readouterr().out
  if reason is None:
    assert set(after) == set(json.loads(before)) and "not stored" not in said
  else:
    assert after == {"find the crack": 0.02} and reason in said
  content = json.loads((run / "evaluation_test" / "evaluation.json").read_text())
  assert content["geometry"]["pictures in tiles"] == (8 if "--tile=24" in arguments else 0) or (
    "--image_size=16" in arguments
  )


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("other")
  splits = {name: synthetic.generate_walls(4, 40, seed) for seed, name in ((5, "val"), (6, "test"))}
  builder.write_dataset(folder, splits, synthetic.CONCEPTS)
  return folder


def test_failures_and_examples_are_the_pictures_they_say():
  truth = walls(12)
  rows = make_rows(ignoring(truth), truth)
  known = rows.known.copy()
  known[[0, 2, 6], 0] = False  # a third of the pictures nobody searched for cracks
  rows = dataclasses.replace(rows, known=known)
  functions = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="script")
  found = functions["failures"](rows, 3)
  crack = PROMPTS[0]
  # Worst: has a crack (1, 3 of four), and the mask of both concepts covers it badly.
  assert {i % 4 for i, _ in found["worst"][crack]} == {3}
  assert {i % 4 for i, _ in found["wrong concept"][crack]} <= {2, 3}
  assert found["wrong concept"][crack][0][1] == "IoU 1.00 with another concept"
  assert {i for i, _ in found["false alarms"][crack]} == {10}
  assert {i % 4 for i, _ in found["false alarms"][PROMPTS[1]]} == {1}
  chosen = functions["examples"](rows, 6)
  assert {i for i, _ in chosen[crack]}.isdisjoint({0, 2, 6}) and len(chosen[crack]) == 6
  assert not any("nan" in caption for items in chosen.values() for _, caption in items)
  nothing = functions["examples"](dataclasses.replace(rows, known=known & False))
  assert {caption for _, caption in nothing[crack]} == {"truth unknown"}


def test_the_report_shows_every_kind_of_failure(evaluated):
  run = evaluated.parent / "reported"
  truth = walls(12)
  make_run(run, ignoring(truth), truth, data_dir="")
  shutil.copytree(evaluated / "evaluation_test", run / "evaluation_test")
  index = run / "evaluation_test" / "overlays" / "index.json"
  entries = json.loads(index.read_text())["overlays"]
  assert {"example", "worst", "false alarms"} <= {entry["kind"] for entry in entries}
  entries += [entry | {"kind": "wrong concept"} for entry in entries[:1]]
  index.write_text(json.dumps({"overlays": entries}))
  script("report.py")([str(run)])
  text = (run / "report.html").read_text()
  words = (*evaluation_page.TITLES.values(), "test, 8 pictures", "fitted on val")
  for word in words:
    assert word in text, word
  assert text.count("<img") == len(entries)


def test_the_page_stands_alone(evaluated):
  text = (evaluated / "evaluation_test" / "evaluation.html").read_text()
  words = ("Worst pictures", "segment taping area", "Footprint", "cldice", "fitted on val",
           "squashed to a square", "marked, truth unknown", "clipseg.biniou_best")  # fmt: skip
  for word in words:
    assert word in text
  for outside in ("http://", "https://", "<script", "<link", "url("):
    assert outside not in text


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--split=nothing"], "has no split 'nothing'"),
    (["--data_dir=/nowhere"], "/nowhere"),
    (["--batch_size=0"], "--batch_size must be at least 1"),
    (["--split=val"], "judged at thresholds fitted on itself, which flatters; give another"),
    (["--fit_split=", "--store"], "--store needs thresholds"),
    (["--tile=big"], "--tile big is neither auto, none nor a number"),
    (["--model=a/hub_id", "--store"], "a/hub_id is no folder on this machine"),
  ],
)
def test_bad_input_is_one_sentence(evaluated, arguments, message):
  given = [f"--model={evaluated}", f"--data_dir={evaluated.parent / 'data'}", *arguments]
  with pytest.raises(UserError, match=message):
    script("evaluate.py")(given)
