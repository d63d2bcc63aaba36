"""Fine-tuning a pretrained folder: what stays frozen, LoRA, bfloat16, and the feature cache."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_run import tiny

from segflax import Predictor, summary
from segflax.errors import UserError
from segflax.train import train_and_evaluate

STILL = {"augment__horizontal_flip": 0.0, "augment__vertical_flip": 0.0, "augment__transpose": 0.0}


@pytest.fixture(scope="module")
def base(finished):
  return finished[0] / "best_model"


@pytest.fixture(scope="module")
def decoder(base, walls, tmp_path_factory):
  """Workdir of a run that trains the decoder alone, without augmentation."""
  workdir = tmp_path_factory.mktemp("decoder")
  train_and_evaluate(tiny(walls, model__pretrained=str(base), epochs=1, **STILL), workdir)
  return workdir


def changed(workdir, base) -> set[str]:
  """Names of the tensors that differ from the base model's in any bit."""
  before = load_file(base / "model.safetensors")
  after = load_file(workdir / "final_model" / "model.safetensors")
  assert before.keys() == after.keys()
  return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def test_the_decoder_changes_and_nothing_else(decoder, base):
  names = changed(decoder, base)
  assert names
  assert all(name.startswith("decoder.") for name in names)


def test_lora_is_merged_into_the_exported_attention(base, walls, tmp_path):
  config = tiny(walls, model__pretrained=str(base), trainable="lora", lora__rank=2, epochs=1)
  train_and_evaluate(config, tmp_path)
  towers = {name for name in changed(tmp_path, base) if not name.startswith("decoder.")}
  assert towers
  assert all(".self_attn." in name and name.endswith("proj.weight") for name in towers)


def test_cached_features_train_as_pictures_do(decoder, base, walls, tmp_path):
  """Taps are kept in bfloat16, 2^-9 of their value: the bound is on what that does to the loss."""
  config = tiny(walls, model__pretrained=str(base), epochs=1, cache_features=1, **STILL)
  train_and_evaluate(config, tmp_path)
  (plain,), (cached,) = summary.read_history(decoder), summary.read_history(tmp_path)
  for name in ("train_loss", "val_loss"):
    np.testing.assert_allclose(cached[name], plain[name], rtol=2e-3, err_msg=name)


def test_cached_features_need_a_frozen_tower(walls, tmp_path):
  with pytest.raises(UserError, match="cache_features 1 needs a frozen vision tower"):
    train_and_evaluate(tiny(walls, cache_features=1), tmp_path)


def test_bfloat16_stays_in_a_band_around_float32(decoder, base, walls, tmp_path):
  config = tiny(walls, model__pretrained=str(base), epochs=1, mixed_precision=True, **STILL)
  train_and_evaluate(config, tmp_path)
  (plain,), (mixed,) = summary.read_history(decoder), summary.read_history(tmp_path)
  for name in ("train_loss", "val_loss"):
    np.testing.assert_allclose(mixed[name], plain[name], rtol=0.02, err_msg=name)
  weights = load_file(tmp_path / "final_model" / "model.safetensors")
  assert {str(values.dtype) for values in weights.values()} == {"float32"}


def test_another_runs_checkpoint_is_gone_on_from(decoder, base, walls, tmp_path):
  """Two epochs in a new workdir, the first of them taken over."""
  options = {"model__pretrained": str(base), "schedule__name": "constant", **STILL}
  train_and_evaluate(tiny(walls, epochs=1, **options), tmp_path / "first")
  train_and_evaluate(tiny(walls, epochs=2, **options), tmp_path / "whole")
  resumed = tiny(walls, epochs=2, resume=str(tmp_path / "first"), **options)
  train_and_evaluate(resumed, tmp_path / "second")
  histories = [summary.read_history(tmp_path / name) for name in ("whole", "second")]
  assert histories[0] == histories[1]
  assert len(summary.read_history(tmp_path / "first")) == 1
  for name in ("best_model/model.safetensors", summary.VAL_ROWS):  # also if no epoch was better
    assert (tmp_path / "second" / name).exists()


def test_a_run_started_from_another_may_have_another_rate(base, walls, tmp_path, capsys):
  options = {"model__pretrained": str(base), "schedule__name": "constant", **STILL}
  train_and_evaluate(tiny(walls, epochs=1, **options), tmp_path / "first")
  config = tiny(walls, epochs=2, resume=str(tmp_path / "first"), lr=5e-4, **options)
  train_and_evaluate(config, tmp_path / "second")
  assert "changed: lr: 0.0012 -> 0.0005" in capsys.readouterr().out


def test_a_group_with_rate_zero_stays_and_the_model_keeps_the_size_it_was_trained_at(
  base, walls, tmp_path
):
  config = tiny(
    walls,
    model__pretrained=str(base),
    epochs=1,
    image_size=48,
    optimizer__rates=(("decoder/film/.*", 0.0),),
    optimizer__weight_decay=0.0,
  )
  train_and_evaluate(config, tmp_path)
  names = changed(tmp_path, base)
  assert names
  assert not [name for name in names if ".film" in name]
  assert Predictor.from_pretrained(tmp_path).image_size == 48
