"""What is stored of a picture and its masks."""

import io

import exports
import numpy as np
import pytest
from PIL import Image

from segflax.data import rasterize, records


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_turned_pictures_are_stored_upright(tmp_path, orientation):
  turned = Image.new("RGB", (60, 40), "white")
  turned.paste("red", (0, 0, 30, 40))
  exif = Image.Exif()
  exif[0x0112] = orientation
  turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
  size = (40, 60) if orientation != 3 else (60, 40)
  example = {
    "image_id": "turned",
    "image": tmp_path / "turned.jpg",
    "masks": {"crack": Image.new("L", size, 255)},
    "group": "turned",
    "source": "x",
  }
  stored = Image.open(io.BytesIO(records.encode(example)["image"]))
  assert stored.size == size
  assert 0x0112 not in stored.getexif()
  red = np.asarray(stored)[..., 1] < 128
  assert red.mean() == pytest.approx(0.5, abs=0.02)
  # Where the left half went: right (180), top (90 clockwise), bottom (90 anticlockwise).
  rows, columns = np.nonzero(red)
  centre = {3: columns.mean() > 40, 6: rows.mean() < 20, 8: rows.mean() > 40}
  assert centre[orientation]


def test_untouched_files_are_stored_byte_for_byte(tmp_path):
  exports.write_picture(tmp_path / "wall.png", exports.walls(1)[0])
  for path in (tmp_path / "wall.png", tmp_path / "wall.jpg"):
    Image.open(tmp_path / "wall.png").save(path)
    example = {"image_id": "w", "image": path, "masks": {}, "group": "w", "source": "x"}
    assert records.encode(example)["image"] == path.read_bytes()


@pytest.mark.parametrize("thick", [1.3, 2.4, 9.0])
def test_shrinking_keeps_the_area_of_thin_lines(thick):
  rng = np.random.default_rng(0)
  outline = np.stack([150 + np.cumsum(rng.normal(0, 4, 61)), np.linspace(-1, 301, 61)], 1)
  outline = np.concatenate([outline, outline[::-1] + np.array([thick, 0])])
  mask = np.where(rasterize.polygon_mask(outline, 300, 400), 255, 0).astype(np.uint8)
  small = records.shrink_mask(mask, (133, 100))
  assert small.mean() / mask.mean() == pytest.approx(1, abs=0.2)
  assert set(np.unique(small)) == {0, 255}
  half = np.asarray(Image.fromarray(mask).resize((133, 100), Image.Resampling.BOX)) >= 128
  if thick < 1.5:  # coverage of one half would have wiped it out
    assert half.mean() < 0.3 * (small > 0).mean()


@pytest.mark.parametrize("thick", [1, 2, 3, 5])
@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("axis", [0, 1])
def test_shrinking_keeps_the_area_and_the_length_of_straight_lines(thick, offset, axis):
  mask = np.zeros((400, 320), np.uint8)
  line = slice(100 + offset, 100 + offset + thick)
  mask[(line,) if axis == 0 else (slice(None), line)] = 255
  small = records.shrink_mask(mask, (80, 100)) > 0
  assert small.mean() == pytest.approx(np.mean(mask > 0), rel=0.02)
  along = np.flatnonzero(small.any(axis))  # Where a pixel of it is stored, along the line.
  assert along[0] < 4 and along[-1] >= small.shape[1 - axis] - 4
  assert np.diff(along).max() <= 4  # Dashed at worst, never cut off.


def test_shrinking_leaves_a_hairline_its_share_beside_a_broad_band():
  mask = np.zeros((400, 400), np.uint8)
  mask[:, 50:201] = 255  # Its edges are covered more than the hairline's pixels.
  mask[:, 300:301] = 255
  small = records.shrink_mask(mask, (100, 100)) > 0
  assert small[:, 70:].sum() == pytest.approx(100 / 4, abs=1)
  assert small[:, :70].sum() == pytest.approx(100 * 151 / 4, abs=1)


def test_shrinking_many_specks_keeps_their_area():
  mask = np.zeros((400, 400), np.uint8)
  mask[2::8, 2::8] = 255
  small = records.shrink_mask(mask, (100, 100)) > 0
  assert small.sum() == round(50 * 50 / 16)
  lone = np.zeros((400, 400), np.uint8)
  lone[7, 9] = 255
  np.testing.assert_array_equal(np.argwhere(records.shrink_mask(lone, (100, 100))), [[1, 2]])
  assert not records.shrink_mask(np.zeros((400, 400), np.uint8), (100, 100)).any()
