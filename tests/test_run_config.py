"""A run's config: what is refused before the first step, what may change, what is written."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import baseline
from segflax import config as config_lib
from segflax import optimizer
from segflax.errors import UserError


def make(**changes):
  config = baseline.get_config()
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
  return config


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"log__every_steps": 0}, "log.every_steps 0 must be at least 1"),
    ({"max_nonfinite": -1}, "max_nonfinite -1 must be 0 or more"),
    ({"ema_decay": 1.0}, r"ema_decay 1.0 must be in \[0, 1\)"),
    ({"eval__threshold": 0.55}, "eval.threshold 0.55 must be a multiple of 0.02"),
    ({"accumulate": 3}, "accumulate 3 does not divide the 4 pictures"),
    ({"trainable": "lora"}, "trainable 'lora' and lora.rank 0 do not go together"),
    ({"lora__rank": 8}, "trainable 'auto' and lora.rank 8 do not go together"),
    ({"plateau__metric": "val_uoi"}, "plateau.metric 'val_uoi' is unknown; available: val_loss"),
    ({"plateau__mode": "max"}, "plateau.mode 'max' would reduce the rate while val_loss falls"),
    ({"epochs": 0}, "epochs 0 must be at least 1"),
  ],
)
def test_what_would_show_later_or_never_is_refused_at_once(changes, message):
  config_lib.check(make(), 2)
  with pytest.raises(UserError, match=message):
    config_lib.check(make(**changes), 2)


def test_changes_are_listed_and_unsafe_ones_refused(tmp_path):
  config_lib.save(make(), tmp_path)
  assert config_lib.check_resume(make(), tmp_path) == []
  safe = make(epochs=60, log__every_steps=7, data_dir="/elsewhere")
  assert config_lib.check_resume(safe, tmp_path) == [
    "data_dir: '' -> '/elsewhere'",
    "epochs: 50 -> 60",
    "log.every_steps: 100 -> 7",
  ]
  with pytest.raises(UserError, match=r"another config: lr: 0.0001 -> 0.1; seed: 42 -> 1\. Give"):
    config_lib.check_resume(make(lr=0.1, seed=1, epochs=60), tmp_path)
  with pytest.raises(UserError, match="epochs: 50 -> 60"):
    config_lib.save(make(schedule__name="cosine"), tmp_path)
    config_lib.check_resume(make(schedule__name="cosine", epochs=60), tmp_path)


def test_a_damaged_config_is_named(tmp_path):
  (tmp_path / "config.json").write_text('{"config": ')
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    config_lib.check_resume(make(), tmp_path)


def test_a_checkpoint_belongs_to_its_run(tmp_path):
  config_lib.save(make(), tmp_path)
  folder = tmp_path / "checkpoints" / "step_00000003"
  folder.mkdir(parents=True)
  assert config_lib.run_of(folder) == config_lib.run_of(folder.parent) == tmp_path
  assert config_lib.run_of(tmp_path) == tmp_path


def test_a_machine_without_git_saves_its_config(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  config_lib.save(make(), tmp_path)
  content = json.loads((tmp_path / "config.json").read_text())
  assert content["environment"]["git_revision"] == "unknown"
  assert content["config"]["lr"] == 1e-4


@settings(deadline=None, max_examples=30)
@given(
  st.dictionaries(
    st.sampled_from(["lr", "seed", "epochs", "image_size", "data.max_corrupt", "augment.noise"]),
    st.integers(0, 99),
  )
)
def test_changed_fields_are_exactly_those_that_differ(tmp_path_factory, overrides):
  folder = tmp_path_factory.mktemp("run")
  config_lib.save(make(), folder)
  before = config_lib.flatten(make())
  typed = {name: type(before[name])(value) for name, value in overrides.items()}
  changed = make(**{name.replace(".", "__"): value for name, value in typed.items()})
  differing = {name for name, value in overrides.items() if before[name] != value}
  assert set(config_lib.changes(changed, folder)) == differing


@settings(deadline=None, max_examples=50)
@given(
  lr=st.floats(1e-6, 1.0),
  warmup=st.integers(0, 50),
  rest=st.integers(1, 200),
  final=st.floats(0, 1),
)
def test_cosine_with_warmup_against_a_loop(lr, warmup, rest, final):
  """A line up to lr, then half a cosine from lr to its final part (Loshchilov & Hutter 2017)."""
  total = warmup + rest
  schedule = optimizer.make_schedule(
    "cosine", lr, warmup_steps=warmup, total_steps=total, final_fraction=final
  )
  for step in sorted({0, warmup // 2, warmup, warmup + rest // 3, total - 1, total + 5}):
    if step < warmup:
      expected = lr * (step + 1) / warmup  # The first step moves, too.
    else:
      done = min((step - warmup) / rest, 1)
      expected = lr * (final + (1 - final) * (1 + np.cos(np.pi * done)) / 2)
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-4, abs=1e-6 * lr)
