"""The data set on disk, read back by TFDS itself and by us."""

import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segflax.data import builder
from segflax.errors import UserError


def _example(number, masks=("crack",), size=(24, 16), group=None):
  rng = np.random.default_rng(number)
  picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
  drawn = {
    name: Image.fromarray(np.uint8(255) * rng.integers(0, 2, (size[1], size[0]), np.uint8))
    for name in masks
  }
  return {
    "image_id": f"wall_{number}",
    "image": picture,
    "masks": drawn,
    "group": group or f"wall_{number}",
    "source": "generated",
  }


@pytest.fixture(scope="module")
def examples():
  return {
    "train": [
      _example(0),
      _example(1, masks=("crack", "taping area"), size=(20, 30)),
      _example(2, masks=()),
      _example(3, group="wall_0"),
    ],
    "val": [_example(4)],
  }


@pytest.fixture(scope="module")
def data_dir(examples, tmp_path_factory):
  path = tmp_path_factory.mktemp("data")
  metadata = {"licenses": ["CC BY 4.0"], "sources": {"generated": {"pictures": 5}}}
  builder.write_dataset(path, examples, ["taping area", "crack"], metadata)
  return path


def test_records_hold_what_was_given_in_order(data_dir, examples):
  for split, given in examples.items():
    stored = builder.open_split(data_dir, split)
    assert len(stored) == len(given)
    for record, example in zip(stored, given, strict=True):
      assert record["image_id"] == example["image_id"]
      assert record["group"] == example["group"]
      assert record["source"] == "generated"
      assert (record["width"], record["height"]) == example["image"].size
      np.testing.assert_array_equal(_pixels(record["image"]), np.asarray(example["image"]))
      assert record["concepts"] == list(example["masks"])
      for encoded, mask in zip(record["masks"], example["masks"].values(), strict=True):
        np.testing.assert_array_equal(_pixels(encoded), np.asarray(mask))


def test_tfds_reads_it_by_name_and_by_directory(data_dir, examples):
  by_name = tfds.data_source("concept_masks", split="train", data_dir=data_dir)
  path = builder.load_info(data_dir).path
  by_path = tfds.builder_from_directory(path).as_data_source(split="train")
  for source in (by_name, by_path):
    assert len(source) == 4
    record = source[1]
    np.testing.assert_array_equal(record["image"], np.asarray(examples["train"][1]["image"]))
    assert record["concepts"] == [b"crack", b"taping area"]
    mask = np.asarray(examples["train"][1]["masks"]["taping area"])
    np.testing.assert_array_equal(record["masks"][1][..., 0], mask)
  assert "tensorflow" not in sys.modules


def test_info_counts_by_hand(data_dir):
  info = builder.load_info(data_dir)
  assert info.concepts == ("taping area", "crack")
  assert info.licenses == ("CC BY 4.0",)
  assert info.sources == {"generated": {"pictures": 5}}
  train = info.counts["train"]
  assert (train["pictures"], train["groups"]) == (4, 3)
  assert (train["max_height"], train["max_width"]) == (30, 24)
  assert train["concepts"]["crack"]["known"] == 3
  assert train["concepts"]["taping area"]["known"] == 1
  assert info == builder.load_info(info.path)


def test_content_hash_follows_content(data_dir, examples, tmp_path):
  again = builder.write_dataset(tmp_path / "a", examples, ["crack", "taping area"])
  assert again.content_sha256 == builder.load_info(data_dir).content_sha256
  changed = examples | {"val": [_example(5)]}
  other = builder.write_dataset(tmp_path / "b", changed, ["crack", "taping area"])
  assert other.content_sha256 != again.content_sha256


def test_overwriting_needs_the_word_and_is_whole(tmp_path):
  builder.write_dataset(tmp_path, {"train": [_example(0)]}, ["crack"])
  with pytest.raises(UserError, match="exists"):
    builder.write_dataset(tmp_path, {"train": [_example(1)]}, ["crack"])
  broken = {"train": iter([_example(1), _example(2) | {"masks": {"crack": _mask(9)}}])}
  with pytest.raises(UserError, match="values 0 and 255"):
    builder.write_dataset(tmp_path, broken, ["crack"], overwrite=True)
  assert builder.open_split(tmp_path, "train")[0]["image_id"] == "wall_0"
  builder.write_dataset(tmp_path, {"train": [_example(1)]}, ["crack"], overwrite=True)
  assert builder.open_split(tmp_path, "train")[0]["image_id"] == "wall_1"
  assert [path.name for path in tmp_path.iterdir()] == ["concept_masks"]


def test_what_is_refused(data_dir, tmp_path):
  with pytest.raises(UserError, match="data_dir is empty"):
    builder.load_info("")
  with pytest.raises(UserError, match="does not exist"):
    builder.load_info(tmp_path / "nowhere")
  with pytest.raises(UserError, match="holds no prepared data set"):
    builder.load_info(tmp_path)
  with pytest.raises(UserError, match="no split 'dev'; it has train, val"):
    builder.open_split(data_dir, "dev")
  with pytest.raises(UserError, match="split 'val' is empty"):
    builder.write_dataset(tmp_path, {"train": [_example(0)], "val": []}, ["crack"])
  wrong_size = _example(0) | {"masks": {"crack": Image.new("L", (5, 5))}}
  with pytest.raises(UserError, match="5x5, its picture 24x16"):
    builder.write_dataset(tmp_path, {"train": [wrong_size]}, ["crack"])


def _pixels(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)))


def _mask(value):
  return Image.new("L", (24, 16), value)
