"""Tokens and pixels against transformers' own CLIPSegProcessor; bad prompts and settings."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPSegProcessor

from segflax.errors import UserError
from segflax.models.clipseg import normalize
from segflax.models.processor import Processor

PROMPTS = [
  "segment crack",
  "  Segment  WALL\tcrack ",
  "segment joint/tape",
  "it's 2 px wide, isn't it?",
  "Rissbildung über der Tür",
  "ひび割れ",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("processor")
  Processor.byte_level(image_size=48).save(path)
  return path


def test_tokens_equal_transformers(folder):
  theirs = CLIPSegProcessor.from_pretrained(folder)(text=PROMPTS, padding=True)["input_ids"]
  ours = Processor.load(folder).tokenize(PROMPTS)
  assert ours.dtype == np.int32
  np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(ours, Processor.byte_level().tokenize(PROMPTS))
  assert len(Processor.byte_level().tokenizer) == 514
  assert (ours[:, 0] == 512).all() and ((ours == 513).sum(1) >= 1).all()


@pytest.mark.parametrize("size", [(64, 64), (31, 77), (48, 48)])
def test_pixels_equal_transformers(folder, size):
  draw = np.random.default_rng(0)
  image = Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), np.uint8))
  ours = Processor.load(folder).pixels(image)
  np.testing.assert_array_equal(ours, Processor.load(folder).pixels(np.asarray(image)))
  assert difference(folder, ours, image) < 1e-6


def difference(folder, ours, rgb) -> float:
  """Largest difference from transformers' pixels of an upright RGB picture, after normalising.

  Measured: at most 7.2e-7, that is 4e-5 of a grey level of 255, far below 1 / 255: both resize with
  Pillow in uint8, the rest is float32 rounding.
  """
  theirs = CLIPSegProcessor.from_pretrained(folder)(images=[rgb], return_tensors="np")
  return np.abs(normalize(ours) - theirs["pixel_values"][0].transpose(1, 2, 0)).max()


SMOOTH = np.stack([*np.meshgrid(np.arange(0, 240, 6), np.arange(0, 240, 8))] * 2, -1)[..., :3]
SMOOTH = SMOOTH.astype(np.uint8)  # [30 40 3]: different in every direction


def turned():
  exif = Image.Exif()
  exif[0x0112] = 6  # stored as a camera held upright stores it: to be turned clockwise
  return Image.fromarray(np.rot90(SMOOTH)), {"exif": exif}, SMOOTH


def sixteen_bits():
  # 257 * grey is what 16-bit cameras and scanners write for grey; Pillow alone clips it to white.
  grey = SMOOTH[..., 0]
  return Image.fromarray(grey.astype(np.uint16) * 257), {}, np.stack([grey] * 3, -1)


def transparent():
  alpha = np.where(np.arange(40) < 20, 255, 0).astype(np.uint8)[None].repeat(30, 0)
  stored = Image.fromarray(np.dstack([SMOOTH, alpha]))
  return stored, {}, np.where(alpha[..., None] > 0, SMOOTH, np.uint8(255))


def inks():
  stored = Image.fromarray(SMOOTH).convert("CMYK")
  return stored, {}, 255 - np.asarray(stored)[..., :3]  # without black ink: its definition


def palette():
  stored = Image.fromarray(SMOOTH).quantize(256)
  return stored, {}, np.array(stored.getpalette()).reshape(-1, 3)[np.asarray(stored)]


def grey():
  return Image.fromarray(SMOOTH[..., 0]), {}, SMOOTH[..., :1].repeat(3, -1)


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "in_memory"])
@pytest.mark.parametrize("make", [turned, sixteen_bits, transparent, inks, palette, grey])
def test_pictures_of_any_kind(folder, tmp_path, make, opened):
  """What transformers makes of the upright RGB picture, segflax makes of the file itself."""
  stored, options, rgb = make()
  path = tmp_path / ("picture.tif" if stored.mode == "CMYK" else "picture.png")
  stored.save(path, **options)
  if opened:
    stored = Image.open(path)
  elif make is turned:
    stored.info["exif"] = options["exif"].tobytes()
  ours = Processor.load(folder).pixels(stored)
  assert difference(folder, ours, Image.fromarray(rgb.astype(np.uint8))) < 1e-6


def test_a_matter_of_taste_is_refused():
  with pytest.raises(UserError, match=r"beyond 16 bits.*convert it to 8 or 16 bits"):
    Processor.byte_level(48).pixels(Image.fromarray(np.ones((4, 4), np.float32)))


@pytest.mark.parametrize(
  ("prompts", "message"),
  [
    ([], "there is no prompt"),
    (["crack", " \t"], r"prompt ' \\t' is empty; name what to segment"),
    (["crack " * 40], "has 202 tokens, CLIP reads 77; shorten it"),
    (["crack <|endoftext|> wall"], "has symbols that the vocabulary lacks"),
  ],
)
def test_prompts_that_cannot_be_asked(prompts, message):
  with pytest.raises(UserError, match=message):
    Processor.byte_level().tokenize(prompts)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean \[0.5, 0.5, 0.5\], CLIPSeg with ImageNet's"),
    ({"size": {"height": 32, "width": 48}}, "height equal to width"),
  ],
)
def test_other_ways_with_pictures_are_refused(folder, tmp_path, change, message):
  Processor.load(folder).save(tmp_path)
  path = tmp_path / "preprocessor_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UserError, match=message):
    Processor.load(tmp_path)


def test_all_spellings_of_the_size_are_read(folder, tmp_path):
  processor = Processor.load(folder)
  assert processor.image_size == 48
  processor.save(tmp_path)
  path = tmp_path / "preprocessor_config.json"
  settings = json.loads(path.read_text())
  for size in (64, {"shortest_edge": 64}, {"height": 64, "width": 64}):
    path.write_text(json.dumps(settings | {"size": size}))
    assert Processor.load(tmp_path).image_size == 64
  (tmp_path / "processor_config.json").write_text(
    json.dumps({"image_processor": settings | {"size": 80}})
  )
  path.unlink()  # transformers 5 writes one nested file
  assert Processor.load(tmp_path).image_size == 80


def test_missing_and_damaged_files_are_named(folder, tmp_path):
  with pytest.raises(UserError, match=r"has no tokenizer.json or vocab.json"):
    Processor.load(tmp_path)
  Processor.load(folder).save(tmp_path)
  (tmp_path / "preprocessor_config.json").write_text("{")
  with pytest.raises(UserError, match=r"preprocessor_config.json is damaged"):
    Processor.load(tmp_path)
