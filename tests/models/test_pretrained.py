"""Folders in and out: bit-exact round trips, reports of what does not fit, the hub's cache."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params
from segflax.models.model_card import SCRATCH, ModelCard
from segflax.models.pretrained import from_pretrained, save_pretrained
from segflax.models.processor import Processor

GOLDEN = Path(__file__).parents[1] / "golden" / "refined"


@pytest.fixture
def folder(tmp_path):
  return Path(shutil.copytree(GOLDEN, tmp_path / "model"))


def rewrite(folder, change):
  tensors = load_file(folder / "model.safetensors")
  save_file(change(tensors), folder / "model.safetensors")


@pytest.mark.parametrize("name", ["refined", "simple"])
def test_round_trip_is_bit_exact(tmp_path, name):
  source = GOLDEN.parent / name
  out = save_pretrained(tmp_path / "out", *from_pretrained(source))
  theirs, ours = (load_file(p / "model.safetensors") for p in (source, out))
  assert theirs.keys() == ours.keys()
  for key, tensor in theirs.items():
    np.testing.assert_array_equal(ours[key], tensor, strict=True)
  config, again = (json.loads((p / "config.json").read_text()) for p in (source, out))
  # The version is that of whoever writes; transformers ignores what its own config says of the
  # decoder's activation: it is always ReLU.
  written = {"decoder_hidden_act": "relu", "transformers_version": transformers.__version__}
  assert again == config | written


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(folder, dtype):
  rewrite(folder, lambda tensors: {k: v.astype(dtype) for k, v in tensors.items()})
  _, params, _ = from_pretrained(folder)
  _, exact, _ = from_pretrained(GOLDEN)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype).astype(np.float32), strict=True),
    params,
    exact,
  )


def test_shards_are_joined(folder):
  tensors = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  names = sorted(tensors)
  parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
  for part, keys in parts.items():
    save_file({k: tensors[k] for k in keys}, folder / part)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {k: p for p, keys in parts.items() for k in keys}}))
  jax.tree.map(
    np.testing.assert_array_equal, from_pretrained(folder)[1], from_pretrained(GOLDEN)[1]
  )
  index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
  with pytest.raises(UserError, match="which leaves the folder"):
    from_pretrained(folder)
  index.write_text("{")
  with pytest.raises(UserError, match="is damaged"):
    from_pretrained(folder)


def test_one_report_names_all_that_does_not_fit(folder):
  def spoil(tensors):
    del tensors["clip.text_projection.weight"]
    tensors["decoder.film_mul.bias"] = np.zeros(3, np.float32)
    tensors["clip.logit_scale"] = np.zeros((), np.int64)
    return tensors | {"decoder.extra": np.zeros(2, np.float32)}

  rewrite(folder, spoil)
  with pytest.raises(UserError) as caught:
    from_pretrained(folder)
  message = str(caught.value)
  assert "missing: clip.text_projection.weight;" in message
  assert "extra: decoder.extra;" in message
  assert "misshapen: decoder.film_mul.bias (3,) instead of (8,);" in message
  assert "not floating point: clip.logit_scale int64" in message


def test_long_reports_are_cut(folder):
  rewrite(folder, lambda tensors: {"decoder.film_mul.bias": tensors["decoder.film_mul.bias"]})
  with pytest.raises(UserError, match=r"missing: .* and \d+ more$"):
    from_pretrained(folder)


def test_position_ids_of_old_checkpoints_are_no_weights(folder):
  ids = {"clip.text_model.embeddings.position_ids": np.arange(77)[None]}
  rewrite(folder, lambda tensors: tensors | ids)
  from_pretrained(folder)


def test_params_of_another_config_are_not_saved(tmp_path):
  model, params, processor = from_pretrained(GOLDEN)
  params["decoder"].pop("film")
  with pytest.raises(UserError, match=r"params cannot be used.*missing: decoder/film/add/bias"):
    save_pretrained(tmp_path / "out", model, params, processor)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("remove", "write", "message"),
  [
    ("config.json", {}, r"has no config.json; give a Hugging Face CLIPSeg folder"),
    ("config.json", {"config.json": "{"}, r"config.json is damaged"),
    ("config.json", {"config.json": '{"model_type": "bert"}'}, "no model_type 'clipseg' or 'clip'"),
    ("model.safetensors", {}, r"has no model.safetensors"),
    ("model.safetensors", {"pytorch_model.bin": ""}, "pickled weights.*convert it"),
    ("model.safetensors", {"model.safetensors": "torn"}, "cannot be read"),
    ("tokenizer.json", {}, "has no tokenizer.json"),
  ],
)
def test_unusable_folders(folder, remove, write, message):
  (folder / remove).unlink()
  for name, text in write.items():
    (folder / name).write_text(text)
  with pytest.raises(UserError, match=message):
    from_pretrained(folder)


def test_hub_ids_are_found_in_the_cache(tmp_path):
  repo = tmp_path / "models--someone--clipseg"
  commit = "0123456789abcdef0123456789abcdef01234567"
  shutil.copytree(GOLDEN, repo / "snapshots" / commit)
  for ref in ("main", "v1"):
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
  for revision in (None, "v1", commit):
    _, params, _ = from_pretrained(
      "someone/clipseg", revision=revision, cache_dir=tmp_path, offline=True
    )
    jax.tree.map(np.testing.assert_array_equal, params, from_pretrained(GOLDEN)[1])
  with pytest.raises(UserError, match="the hub's v2 of it cannot be had"):
    from_pretrained("someone/clipseg", revision="v2", cache_dir=tmp_path, offline=True)
  with pytest.raises(UserError, match="the hub's main of it cannot be had"):
    from_pretrained("someone/else", cache_dir=tmp_path, offline=True)


@pytest.mark.parametrize("name", ["/no/such/folder", "nothing", "./a/b"])
def test_what_is_neither_folder_nor_id(name):
  with pytest.raises(UserError, match="neither a folder nor a hub id"):
    from_pretrained(name)


def test_a_hub_repository_with_pickles_alone_is_told_what_to_do(folder, tmp_path, monkeypatch):
  (folder / "model.safetensors").unlink()
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(folder))
  files = ["config.json", "pytorch_model.bin"]
  monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *args, **options: files)
  with pytest.raises(UserError, match=r"someone/old has only pickled weights.*convert it"):
    from_pretrained("someone/old")
  files.remove("pytorch_model.bin")
  with pytest.raises(UserError, match=r"has no model\.safetensors"):
    from_pretrained("someone/old")


def test_the_seed_decides_the_decoder_over_a_plain_clip(folder):
  config = json.loads((folder / "config.json").read_text())
  towers = {"text_config", "vision_config", "projection_dim"}
  clip = {name: value for name, value in config.items() if name in towers}
  (folder / "config.json").write_text(json.dumps(clip | {"model_type": "clip"}))
  rewrite(
    folder,
    lambda tensors: {
      name.removeprefix("clip."): tensor
      for name, tensor in tensors.items()
      if name.startswith("clip.")
    },
  )
  film = [
    from_pretrained(folder, **seed)[1]["decoder"]["film"]["mul"]["kernel"]
    for seed in ({}, {"seed": 0}, {"seed": 1})
  ]
  np.testing.assert_array_equal(film[0], film[1])
  assert np.abs(film[0] - film[2]).max() > 0


@pytest.mark.parametrize(
  ("card", "said"),
  [
    (ModelCard(base=SCRATCH), "Trained from scratch: no base weights"),
    (
      ModelCard(base="CIDAS/clipseg-rd64-refined"),
      "the original project's MIT licence does not cover the released weights",
    ),
    (ModelCard(base="someone/walls"), "not stated here; ask its publisher"),
    (ModelCard(base="someone/walls", base_license="CC0"), "Their licence: CC0."),
    (ModelCard(), "Not stated: ask whoever trained it"),
  ],
)
def test_every_card_speaks_of_the_base_weights(card, said):
  assert said in card.render(CLIPSegConfig.small(), 80, None)


@pytest.mark.parametrize(
  ("patch_size", "head", "torch_loads"),
  [(16, (4, 4), True), (16, (16,), True), (32, (8, 8), True), (16, (2, 8), False)],
)
def test_cards_promise_transformers_what_it_can_load(patch_size, head, torch_loads):
  config = CLIPSegConfig.small(image_size=64, patch_size=patch_size, head=head)
  text = ModelCard().render(config, 64, None)
  assert ("CLIPSegForImageSegmentation.from_pretrained" in text) == torch_loads
  assert ("transformers cannot load this folder" in text) != torch_loads


def test_what_transformers_cannot_express_survives(tmp_path):
  config = CLIPSegConfig.small(
    image_size=16, width=32, layers=1, taps=(0,), text_width=16, refined=True, decoder_dropout=0.1
  )
  params = init_params(config, jax.random.key(0))
  processor = Processor.byte_level(image_size=16)
  out = save_pretrained(tmp_path / "out", CLIPSeg(config), params, processor)
  assert from_pretrained(out)[0].config == config
  assert "transformers cannot load this folder" in (out / "README.md").read_text()


def test_card_and_thresholds(tmp_path):
  model, params, processor = from_pretrained(GOLDEN)
  card = ModelCard(
    title="Cracks",
    base="CIDAS/clipseg-rd64-refined",
    trained_on="3,000 generated walls",
    trained="decoder",
    metrics={"iou": (0.71234, "intersection over union over the set")},
  )
  out = save_pretrained(
    tmp_path / "out", model, params, processor, card=card, thresholds={"segment crack": 0.4}
  )
  text = (out / "README.md").read_text()
  for part in (
    "# Cracks",
    "3,000 generated walls",
    "| iou | 0.7123 | intersection over union over the set |",
    "| segment crack | 0.4 |",
    "The MIT licence of the original CLIPSeg project covers its code, not the weights",
    "CLIPSegForImageSegmentation.from_pretrained",
  ):
    assert part in text
  assert json.loads((out / "thresholds.json").read_text()) == {"segment crack": 0.4}
  save_pretrained(out, model, params, processor, card=ModelCard(base=SCRATCH))  # replaces it
  assert "from scratch" in (out / "README.md").read_text()
  assert not (out / "thresholds.json").exists()
  assert [p.name for p in tmp_path.iterdir()] == ["out"]
