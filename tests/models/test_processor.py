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


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(64, 64), (31, 77), (48, 48)])
def test_pixels_equal_transformers(folder, mode, size):
  draw = np.random.default_rng(0)
  image = Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), np.uint8)).convert(mode)
  theirs = CLIPSegProcessor.from_pretrained(folder)(
    images=[image.convert("RGB")], return_tensors="np"
  )["pixel_values"][0]
  ours = normalize(Processor.load(folder).pixels(image))
  # 2e-5 of a grey level of 255: both resize with Pillow, the rest is float32 rounding.
  assert np.abs(ours - theirs.transpose(1, 2, 0)).max() < 1e-6


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
