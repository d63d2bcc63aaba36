"""Predictor: against the model called by hand, at any size, whatever is batched with what."""

import functools
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from segflax.errors import UserError
from segflax.models import conditions
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params, normalize
from segflax.models.pretrained import from_pretrained, save_pretrained
from segflax.models.processor import Processor
from segflax.predict import Predictor, VisualPrompt, _probabilities

PROMPTS = ["segment crack", "segment taping area"]
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


def picture(h, w, seed=0):
  """Smooth noise, so that resizing does not average everything away."""
  small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
  return np.asarray(Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """A saved model with a wide spread of logits, so that differences show."""
  params = init_params(CONFIG, jax.random.key(0))
  params["decoder"]["head"]["enlarge"]["pixels"]["kernel"] *= 3
  return save_pretrained(
    tmp_path_factory.mktemp("model") / "tiny",
    CLIPSeg(CONFIG),
    params,
    Processor.byte_level(32),
    thresholds={"segment crack": 0.25},
  )


@pytest.fixture(scope="session")
def predictor(folder):
  return Predictor.from_pretrained(folder, batch_size=4)


@pytest.fixture(scope="session")
def by_hand(predictor):
  """The oracle: [h w 3] uint8 of network size, prompts -> probabilities [q h w]."""
  model, params = CLIPSeg(CONFIG, attention="plain"), predictor._params
  processor = Processor.byte_level(32)
  apply = jax.jit(lambda image, tokens: model.apply({"params": params}, image, tokens))

  def call(pixels, prompts=PROMPTS):
    logits = apply(normalize(pixels[None]), processor.tokenize(prompts)[None])
    return np.asarray(jax.nn.sigmoid(logits[0]))

  return call


def stacked(maps):
  return np.stack(list(maps.values()))


def test_equals_the_model_called_by_hand(predictor, by_hand):
  image = picture(50, 50)
  (maps,) = predictor([image], PROMPTS)
  assert list(maps) == PROMPTS
  small = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
  expected = [
    np.asarray(Image.fromarray(p).resize((50, 50), Image.Resampling.BILINEAR))
    for p in by_hand(np.asarray(small))
  ]
  assert maps[PROMPTS[0]].dtype == np.float32
  np.testing.assert_allclose(stacked(maps), expected, atol=1e-5)
  assert np.ptp(stacked(maps)) > 0.1


def test_any_size_and_aspect_batched_equals_one_by_one(predictor):
  sizes = [(32, 32), (45, 61), (33, 32), (1, 1), (46, 60), (7, 40), (63, 64)]
  images = [picture(h, w, seed) for seed, (h, w) in enumerate(sizes)]
  together = predictor(images, PROMPTS)
  for image, maps in zip(images, together, strict=True):
    assert stacked(maps).shape == (2, *image.shape[:2])
    assert stacked(maps).min() >= 0 and stacked(maps).max() <= 1
    (alone,) = predictor([image], PROMPTS)
    np.testing.assert_allclose(stacked(alone), stacked(maps), atol=1e-5)


def test_prompt_order_changes_the_order_alone(predictor):
  (forward,) = predictor([picture(32, 32)], PROMPTS)
  (backward,) = predictor([picture(32, 32)], PROMPTS[::-1])
  assert list(backward) == PROMPTS[::-1]
  for prompt in PROMPTS:
    np.testing.assert_allclose(forward[prompt], backward[prompt], atol=1e-5)
  assert np.abs(forward[PROMPTS[0]] - forward[PROMPTS[1]]).max() > 1e-3


def test_no_distortion(predictor, by_hand):
  """A wide picture reaches the network with its aspect, mirrored into the rest of the canvas."""
  image = picture(20, 60)
  (maps,) = predictor([image], PROMPTS)
  # 16 patches: the best grid is 2 x 8 (scale .8); 16 x 48 of its 16 x 64 pixels are the picture.
  small = np.asarray(Image.fromarray(image).resize((48, 16), Image.Resampling.BILINEAR))
  answers = by_hand(np.concatenate([small, small[:, :-17:-1]], 1))[:, :, :48]
  expected = [
    np.asarray(Image.fromarray(p).resize((60, 20), Image.Resampling.BILINEAR)) for p in answers
  ]
  np.testing.assert_allclose(stacked(maps), expected, atol=1e-5)


def test_every_form_of_a_picture(predictor, tmp_path):
  image = picture(40, 56)
  png = io.BytesIO()
  Image.fromarray(image).save(png, "PNG")
  (tmp_path / "a.png").write_bytes(png.getvalue())
  turned = Image.fromarray(np.rot90(image))  # as a camera held upright stores it
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown turned clockwise
  turned.save(tmp_path / "exif.png", exif=exif)
  forms = [image, Image.fromarray(image), png.getvalue(), tmp_path / "a.png",
           str(tmp_path / "a.png"), tmp_path / "exif.png"]  # fmt: skip
  expected = stacked(predictor([image], PROMPTS)[0])
  for maps in predictor(forms, PROMPTS):
    np.testing.assert_allclose(stacked(maps), expected, atol=1e-5)
  grey, rgb = predictor([image[..., 0], image[..., :1].repeat(3, -1)], PROMPTS)
  np.testing.assert_array_equal(stacked(grey), stacked(rgb))


def test_large_pictures_are_tiled(predictor, by_hand):
  image = picture(70, 90)
  (auto,), (tiled,), (whole,) = (
    predictor([image], PROMPTS, tile=tile) for tile in ("auto", 32, None)
  )
  np.testing.assert_array_equal(stacked(auto), stacked(tiled))
  assert np.abs(stacked(auto) - stacked(whole)).max() > 1e-2
  # Where one window alone looks, its answer stands: overlaps begin 8 pixels before its end.
  corner = by_hand(image[:32, :32])
  np.testing.assert_allclose(stacked(tiled)[:, :10, :10], corner[:, :10, :10], atol=1e-5)
  (small,), (small_whole,) = (
    predictor([image[:64, :64]], PROMPTS, tile=tile) for tile in ("auto", None)
  )
  np.testing.assert_array_equal(stacked(small), stacked(small_whole))


def test_one_tile_is_the_whole_picture(predictor):
  (tiled,), (whole,) = (predictor([picture(48, 48)], PROMPTS, tile=tile) for tile in (48, None))
  np.testing.assert_allclose(stacked(tiled), stacked(whole), atol=1e-6)


def test_negative_prompts_are_subtracted(predictor, by_hand):
  image, negatives = picture(32, 32), ["segment tape", "floor"]
  (maps,) = predictor([image], PROMPTS, negatives=negatives)
  unwanted = by_hand(image, negatives).max(0)
  expected = np.clip(by_hand(image) - unwanted, 0, None)
  np.testing.assert_allclose(stacked(maps), expected, atol=1e-5)
  assert list(maps) == PROMPTS and (stacked(maps) > 0).any()
  (nothing,) = predictor([image], PROMPTS, negatives=PROMPTS)
  np.testing.assert_allclose(stacked(nothing), 0, atol=1e-6)


def test_templates_are_averaged(folder, predictor):
  templates = conditions.TEMPLATES[:3]
  ensemble = Predictor.from_pretrained(folder, templates=templates)
  prompts = [t.replace("{}", "crack") for t in templates]
  tokens = Processor.byte_level(32).tokenize(prompts)
  params = {"params": predictor._params}
  embed = jax.jit(lambda tokens: CLIPSeg(CONFIG).apply(params, tokens, method="encode_text"))
  condition = ensemble._encode(ensemble._params, ["crack"])[0]
  np.testing.assert_allclose(condition, np.mean(embed(tokens), 0), atol=1e-5)


def test_visual_prompts(predictor):
  image, mask = picture(32, 32), np.eye(32, dtype=bool)
  alone = VisualPrompt("like this", picture(32, 32, 1), mask)
  text = VisualPrompt("text", picture(32, 32, 1), mask, PROMPTS[0], text_weight=1.0)
  half = VisualPrompt("half", picture(32, 32, 1), Image.fromarray(mask), PROMPTS[0])
  (maps,) = predictor([image], [alone, text, half, PROMPTS[0]])
  assert list(maps) == ["like this", "text", "half", PROMPTS[0]]
  np.testing.assert_allclose(maps["text"], maps[PROMPTS[0]], atol=1e-5)
  rows = predictor._encode(predictor._params, [alone, half, PROMPTS[0]])
  np.testing.assert_allclose(rows[1], (rows[0] + rows[2]) / 2, atol=1e-5)
  pixels = conditions.visual_prompt(picture(32, 32, 1), mask, 32)[None]
  params = {"params": predictor._params}
  embed = jax.jit(lambda pixels: CLIPSeg(CONFIG).apply(params, pixels, method="embed_image"))
  np.testing.assert_allclose(rows[0], embed(pixels)[0], atol=1e-5)


def test_thresholds_of_the_folder(predictor, folder):
  assert predictor.threshold("segment crack") == 0.25
  assert predictor.threshold("another") == 0.5
  maps = {"segment crack": np.float32([[0.2, 0.25, 0.3, 0.6]]),
          "another": np.float32([[0.2, 0.5, 0.51, 0.6]])}  # fmt: skip
  own, all_one = predictor.masks([maps, maps]), predictor.masks([maps], threshold=0.55)
  assert own[1]["segment crack"].dtype == np.uint8
  assert own[1]["segment crack"].tolist() == [[0, 0, 255, 255]]
  assert own[0]["another"].tolist() == [[0, 0, 255, 255]]
  assert all_one[0]["segment crack"].tolist() == [[0, 0, 0, 255]]
  assert Predictor.from_pretrained(folder, thresholds={}).threshold("segment crack") == 0.5


def test_thresholds_of_a_hub_id(folder, tmp_path, monkeypatch):
  repo = tmp_path / "models--someone--walls"
  commit = "0123456789abcdef0123456789abcdef01234567"
  shutil.copytree(folder, repo / "snapshots" / commit)
  (repo / "refs").mkdir()
  (repo / "refs" / "main").write_text(commit)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  assert Predictor.from_pretrained("someone/walls").threshold("segment crack") == 0.25


def test_bfloat16_holds_half_and_answers_the_same_bits(folder):
  low = Predictor.from_pretrained(folder, bfloat16=True)
  model, params, _ = from_pretrained(folder)
  sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (low._params, params)]
  assert sizes[0] < 0.55 * sizes[1]
  held = flatten_dict(low._params, sep="/")
  assert held["vision/pre_norm/scale"].dtype == held["logit_scale"].dtype == np.float32
  model, pixels = model.clone(dtype=jax.numpy.bfloat16), picture(32, 32)
  run = jax.jit(functools.partial(_probabilities, model))
  condition = low._encode(low._params, PROMPTS)
  nothing = np.zeros((0, condition.shape[1]), np.float32)
  expected = run(params, pixels[None], condition, nothing)
  np.testing.assert_array_equal(run(low._params, pixels[None], condition, nothing), expected)


def test_bfloat16_masks_are_those_of_float32():
  golden = Path(__file__).parent / "golden" / "refined"
  exact, low = (Predictor.from_pretrained(golden, bfloat16=b) for b in (False, True))
  images = [picture(64, 64, seed) for seed in range(20)]
  one, other = (p(images, ["segment crack"]) for p in (exact, low))
  a, b = (np.stack([maps["segment crack"] for maps in m]) for m in (one, other))
  middle = np.median(a)  # Masks of half the area, where most pixels are near the threshold.
  iou = ((a > middle) & (b > middle)).sum() / ((a > middle) | (b > middle)).sum()
  # Measured: IoU .9968, largest difference .0023 where probabilities range over .42. bfloat16 keeps
  # 8 bits: what changes sides are pixels within that difference of the threshold.
  assert iou > 0.99
  assert np.abs(a - b).max() < 0.01


def test_prompts_are_encoded_once(predictor, monkeypatch):
  calls, encode = [], predictor._encode._apply
  monkeypatch.setattr(
    predictor._encode, "_apply", lambda *args: calls.append(args[2]) or encode(*args)
  )
  monkeypatch.setattr(predictor._encode, "_known", {})
  for _ in range(2):
    predictor([picture(32, 32)], PROMPTS[::-1])
    predictor([picture(32, 32)] * 2, PROMPTS)
  assert calls == ["encode_text"] * 2


def test_compiled_once_per_canvas_and_batch(predictor):
  predictor([picture(32, 32)], PROMPTS)
  before = predictor._network._cache_size()
  for h, w in ((64, 64), (50, 50), (7, 7)):
    predictor([picture(h, w)], PROMPTS)
  assert predictor._network._cache_size() == before


def test_a_run_is_its_best_model(folder, tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(UserError, match="no best_model yet"):
    Predictor.from_pretrained(tmp_path)
  (tmp_path / "best_model").symlink_to(folder)
  assert Predictor.from_pretrained(tmp_path).threshold("segment crack") == 0.25


def test_bad_input_is_one_sentence(predictor, folder, tmp_path):
  image = picture(32, 32)
  (tmp_path / "text.png").write_text("no picture")
  cases = [
    (lambda: predictor([image], []), "no prompt"),
    (lambda: predictor([image], "segment crack"), "give a list of prompts"),
    (lambda: predictor(image, PROMPTS), "give a list of pictures"),
    (lambda: predictor([image], ["a", "a"]), "'a' is given twice"),
    (lambda: predictor([image], [" "]), "is empty"),
    (lambda: predictor([tmp_path / "text.png"], PROMPTS), "text.png"),
    (lambda: predictor([tmp_path / "none.png"], PROMPTS), "none.png"),
    (lambda: predictor([np.float32(image)], PROMPTS), "float32"),
    (lambda: predictor([image[..., :2]], PROMPTS), r"\[32, 32, 2\]"),
    (lambda: predictor([image], PROMPTS, tile="small"), "'small'"),
    (lambda: predictor([image], PROMPTS, tile=0), "0 pixels"),
    (lambda: Predictor.from_pretrained(folder, image_size=30), "use 32"),
    (lambda: Predictor.from_pretrained(folder, batch_size=0), "batch_size 0"),
    (lambda: Predictor.from_pretrained(tmp_path / "nothing"), "nothing"),
  ]
  for call, message in cases:
    with pytest.raises(UserError, match=message):
      call()
  damaged = tmp_path / "damaged"
  damaged.mkdir()
  for file in folder.iterdir():
    (damaged / file.name).symlink_to(file)
  (damaged / "thresholds.json").unlink()
  (damaged / "thresholds.json").write_text(json.dumps({"crack": None}))
  with pytest.raises(UserError, match="must map prompts to numbers"):
    Predictor.from_pretrained(damaged)


@pytest.mark.slow
def test_several_devices_change_nothing(predictor, folder, tmp_path):
  """Three pictures on four virtual devices, in a process of its own."""
  images = np.stack([picture(32, 32, seed) for seed in range(3)])
  np.save(tmp_path / "images.npy", images)
  code = (
    "import sys, jax, numpy as np; from segflax.predict import Predictor;"
    "assert jax.device_count() == 4; folder, work, *prompts = sys.argv[1:];"
    "maps = Predictor.from_pretrained(folder)(list(np.load(work + '/images.npy')), prompts);"
    "np.save(work + '/maps.npy', [list(m.values()) for m in maps])"
  )
  env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", code, folder, tmp_path, *PROMPTS]
  subprocess.run(command, check=True, env=os.environ | env, timeout=300)
  expected = [stacked(m) for m in predictor(list(images), PROMPTS)]
  np.testing.assert_allclose(np.load(tmp_path / "maps.npy"), expected, atol=1e-5)
