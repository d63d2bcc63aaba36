"""Prepared data sets, ours and others', are read."""

import io

import exports
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segflax.data import builder
from segflax.data.sources import read_source
from segflax.errors import UserError


@pytest.fixture(scope="module")
def content():
  return exports.walls()


@pytest.fixture(scope="module")
def truth(content):
  return exports.truth(content)


def test_a_data_set_of_ours(tmp_path, content, truth):
  source = read_source(exports.write_coco(tmp_path / "coco", content), "crack")
  train = [item.example() for item in source.items]
  builder.write_dataset(tmp_path / "set", {"train": train}, ["crack"], {"licenses": ["MIT"]})
  again = read_source(tmp_path / "set")
  assert (again.layout, again.licenses) == ("tfds", ("MIT",))
  exports.assert_agree(exports.masks_of(again), truth)
  np.testing.assert_array_equal(again.items[3].picture(), content[4].pixels)


class _Foreign(tfds.core.GeneratorBasedBuilder):
  """Somebody else's TFDS data set: picture, mask and file name."""

  VERSION = tfds.core.Version("2.0.0")

  def __init__(self, *, content, truth, numbered=False, **kwargs):
    self._content, self._truth, self._numbered = content, truth, numbered
    super().__init__(**kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          **({"id": np.int64} if self._numbered else {"file_name": tfds.features.Text()}),
          "image": tfds.features.Image(shape=(64, 80, 3)),
          "segmentation_mask": tfds.features.Image(shape=(64, 80, 1)),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for number, wall in enumerate(self._content):
      mask = Image.fromarray(self._truth[wall.name].astype(np.uint8))
      picture = Image.fromarray(wall.pixels)
      yield (
        wall.name,
        {
          **({"id": number} if self._numbered else {"file_name": f"{wall.name}.png"}),
          "image": _png(picture),
          "segmentation_mask": _png(mask),
        },
      )


def _png(picture):
  buffer = io.BytesIO()
  picture.save(buffer, "PNG")
  return buffer.getvalue()


def test_a_foreign_tfds_data_set(tmp_path, content, truth):
  made = _Foreign(content=content, truth=truth, data_dir=tmp_path, file_format="array_record")
  made.download_and_prepare(file_format="array_record")
  folder = tmp_path / made.info.name / "2.0.0"
  with pytest.raises(UserError, match="the masks have no name"):
    read_source(folder)
  source = read_source(folder, "crack")
  exports.assert_agree(exports.masks_of(source), truth)
  assert {item.split for item in source.items} == {"train"}


def test_a_foreign_data_set_may_number_its_pictures(tmp_path, content, truth):
  options = {"data_dir": tmp_path, "file_format": "array_record"}
  made = _Foreign(content=content, truth=truth, numbered=True, **options)
  made.download_and_prepare(file_format="array_record")
  source = read_source(tmp_path / made.info.name / "2.0.0", "crack")
  assert sorted(item.image_id for item in source.items) == ["0", "1", "2", "3", "4", "5"]
  assert len({item.group for item in source.items}) == 6
