"""YOLO exports are read, and bad lines are named."""

import exports
import numpy as np
import pytest
from PIL import Image

from segflax.data.sources import read_source
from segflax.errors import UserError


@pytest.fixture(scope="module")
def content():
  return exports.walls()


@pytest.fixture(scope="module")
def truth(content):
  return exports.truth(content)


@pytest.mark.parametrize("split_inside", [False, True])
def test_yolo(tmp_path, content, truth, split_inside):
  source = read_source(exports.write_yolo(tmp_path, content, split_inside=split_inside))
  assert source.layout == "yolo"
  assert source.concepts == ("crack",)
  assert {item.image_id: item.split for item in source.items}["wall2"] == "val"
  exports.assert_agree(exports.masks_of(source), truth)


def test_yolo_box_and_background(tmp_path, content):
  folder = exports.write_yolo(tmp_path, content)
  (folder / "train/labels/wall0.txt").write_text("0 0.5 0.5 0.25 0.125\n")
  (folder / "train/labels/wall1.txt").unlink()
  source = read_source(folder, "crack")
  masks = exports.masks_of(source)
  assert masks["wall0"].sum() == 20 * 8
  assert masks["wall0"][28:36, 30:50].all()
  assert not masks["wall1"].any()
  assert "1 pictures have no label file" in source.notes[0]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("0 0.5 0.5 0.2", "3 numbers are neither a box"),
    ("0 0.5 0.5 1.5 0.2", r"coordinates must lie in 0..1"),
    ("0 0.5 nan 0.1 0.2", r"coordinates must lie in 0..1"),
    ("crack 0.5 0.5 0.1 0.2", "not numbers"),
    ("-1 0.5 0.5 0.1 0.2", "class -1.0 is not a class number"),
    ("nan 0.5 0.5 0.1 0.2", "class nan is not a class number"),
    ("inf 0.5 0.5 0.1 0.2", "class inf is not a class number"),
    ("0 0.5 0.5 0 0.2", "the box is empty"),
  ],
)
def test_bad_yolo_lines_are_named(tmp_path, content, line, message):
  folder = exports.write_yolo(tmp_path, content)
  (folder / "train/labels/wall0.txt").write_text("0 0.5 0.5 0.1 0.2\n" + line)
  with pytest.raises(UserError, match=f"wall0.txt, line 2: {message}"):
    read_source(folder)


def test_classes_that_labelimg_wrote_are_names_not_a_label(tmp_path, content):
  folder = exports.write_yolo(tmp_path, content)
  (folder / "data.yaml").unlink()
  for split in ("train", "valid"):
    (folder / split / "labels/classes.txt").write_text("hairline\nspall\n")
  assert read_source(folder).concepts == ("hairline",)
  (folder / "valid/labels/classes.txt").write_text("spall\nhairline\n")
  with pytest.raises(UserError, match=r"valid/labels/classes\.txt name the classes differently"):
    read_source(folder)


def test_the_licence_is_read_from_roboflows_data_yaml(tmp_path, content):
  folder = exports.write_yolo(tmp_path, content)
  assert read_source(folder).licenses == ()
  with (folder / "data.yaml").open("a") as file:
    file.write("roboflow:\n  project: x\n  license: CC BY 4.0\n")
  assert read_source(folder).licenses == ("CC BY 4.0",)
  (folder / "data.yaml").write_text("names: [crack]\nroboflow: 3\n")
  assert read_source(folder).licenses == ()


def test_turned_pictures_have_the_masks_of_their_upright_twins(tmp_path):
  # Labels are shares of the upright picture, as every viewer shows it.
  folder = exports.write_yolo(tmp_path, exports.walls(2, splits=("train",)))
  images, labels = folder / "train/images", folder / "train/labels"
  upright = Image.open(images / "wall0.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise
  upright.transpose(Image.Transpose.ROTATE_90).save(images / "wall1.png", exif=exif)
  (labels / "wall1.txt").write_text((labels / "wall0.txt").read_text())
  twin, turned = read_source(folder).items
  assert Image.open(images / "wall1.png").size == exports.SIZE[::-1]
  np.testing.assert_array_equal(turned.picture(), twin.picture())
  np.testing.assert_array_equal(turned.masks()["crack"], twin.masks()["crack"])
  assert np.asarray(turned.masks()["crack"]).any()


def test_what_leaves_the_folder_is_named_and_not_read(tmp_path, content):
  folder = exports.write_yolo(tmp_path / "export", content)
  exports.write_picture(tmp_path / "secret.png", content[0])
  (folder / "train/images/wall0.png").unlink()
  (folder / "train/images/wall0.png").symlink_to(tmp_path / "secret.png")
  (folder / "train/images/wall1.png").unlink()
  (folder / "train/images/wall1.png").symlink_to("wall3.png")  # stays inside
  (folder / "valid/images").rename(tmp_path / "elsewhere")
  (folder / "valid/images").symlink_to(tmp_path / "elsewhere")
  source = read_source(folder, strict=False)
  rule = "leaves the folder; only files inside it are read"
  assert source.problems == (f"'train/images/wall0.png' {rule}", f"'valid/images' {rule}")
  assert [item.image_id for item in source.items] == ["wall1", "wall3", "wall4"]


def test_a_data_yaml_out_of_the_folder_is_not_read(tmp_path, content):
  folder = exports.write_yolo(tmp_path / "export", content)
  (folder / "data.yaml").rename(tmp_path / "data.yaml")
  (folder / "data.yaml").symlink_to(tmp_path / "data.yaml")
  source = read_source(folder, strict=False)
  assert source.problems[0].startswith("'data.yaml' leaves the folder")
  assert source.concepts == ("class 0",)


def test_pictures_of_one_stem_are_named(tmp_path, content):
  folder = exports.write_yolo(tmp_path, content)
  exports.write_picture(folder / "train/images/wall0.jpg", content[0])
  with pytest.raises(UserError, match=r"train/images: wall0\.png and wall0\.jpg share a stem"):
    read_source(folder)


def test_a_label_that_links_to_nothing_is_no_background(tmp_path, content):
  folder = exports.write_yolo(tmp_path, content)
  (folder / "train/labels/wall0.txt").unlink()
  (folder / "train/labels/wall0.txt").symlink_to("gone.txt")
  with pytest.raises(UserError, match=r"train/labels/wall0\.txt, it cannot be read"):
    read_source(folder)
