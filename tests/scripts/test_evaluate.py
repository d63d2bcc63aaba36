"""evaluate.py and report.py on generated walls with a tiny model, end to end."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from segflax import metrics, summary
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
  config = {"prompts": {"synonyms": {"crack": ["find the crack"]}, "templates": ["{}"]}}
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
  found = content["metrics"]["0.5"]["overall"]
  assert {name: found[name] for name in expected} == expected
  prompt = "find the crack"  # as the run was trained
  interval = content["intervals"]["0.5"][prompt]["iou"]
  assert interval["low"] <= interval["mean"] <= interval["high"]
  assert interval["mean"] == pytest.approx(np.nanmean(metrics.iou_rows(rows)[:, 0]))
  assert content["footprint"]["parameters"] > 10_000
  assert set(found) >= {"f1@2px", "cldice", "ap"} and "clipseg.ap" in content["clipseg"]
  assert set(found) <= set(content["definitions"])


def test_fitted_thresholds_are_stored_with_the_model(evaluated):
  stored = json.loads((evaluated / "best_model" / "thresholds.json").read_text())
  content = json.loads((evaluated / "evaluation_test" / "evaluation.json").read_text())
  assert stored == content["thresholds"]["fitted"]
  rows = metrics.Rows.load(evaluated / "evaluation_test" / "rows.npz")
  assert content["metrics"]["fitted"]["overall"]["iou"] == metrics.compute(rows, stored)["iou"]


def test_the_page_stands_alone(evaluated):
  text = (evaluated / "evaluation_test" / "evaluation.html").read_text()
  for words in ("Worst pictures", "segment taping area", "Footprint", "cldice"):
    assert words in text
  for outside in ("http://", "https://", "<script", "<link", "url("):
    assert outside not in text


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--split=nothing"], "has no split 'nothing'"),
    (["--data_dir=/nowhere"], "/nowhere"),
    (["--batch_size=0"], "--batch_size must be at least 1"),
  ],
)
def test_bad_input_is_one_sentence(evaluated, arguments, message):
  given = [f"--model={evaluated}", f"--data_dir={evaluated.parent / 'data'}", *arguments]
  with pytest.raises(UserError, match=message):
    script("evaluate.py")(given)
