"""COCO exports are read, and whatever breaks a rule is named with its id."""

import json

import exports
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segflax.data.sources import read_source
from segflax.errors import UserError


@pytest.fixture(scope="module")
def content():
  return exports.walls()


@pytest.fixture(scope="module")
def truth(content):
  return exports.truth(content)


def test_coco(tmp_path, content, truth):
  source = read_source(exports.write_coco(tmp_path, content), "crack")
  assert source.layout == "coco"
  assert source.licenses == ("CC BY 4.0",)
  assert [item.split for item in source.items] == ["train"] * 4 + ["val"] * 2
  assert sum(item.annotations.total() for item in source.items) == 6
  exports.assert_agree(exports.masks_of(source), truth)


def test_coco_takes_every_category_and_falls_back_to_boxes(tmp_path, content):
  def change(split, data):
    data["categories"].append({"id": 7, "name": "hairline"})
    data["annotations"][0]["category_id"] = 7
    data["annotations"][0]["segmentation"] = []
    data["annotations"][0]["bbox"] = [10, 20, 30.0, 4]
    if split == "train":  # a picture on which nobody found anything
      data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 1]

  source = read_source(exports.write_coco(tmp_path, content, change), "crack")
  boxed, empty, *_ = source.items
  mask = np.asarray(boxed.masks()["crack"]) > 0
  assert boxed.boxes == {"crack": 1}
  assert mask.sum() == 30 * 4
  assert mask[20:24, 10:40].all()
  assert not np.asarray(empty.masks()["crack"]).any()
  assert "['NewCracks - v2', 'hairline'] are all taken as 'crack'" in source.notes[0]
  assert read_source(tmp_path).concepts == ("NewCracks - v2", "hairline")


def test_coco_run_lengths(tmp_path, content, truth):
  def change(split, data):
    for annotation, wall in zip(
      data["annotations"], [w for w in content if w.split == split], strict=True
    ):
      flat = truth[wall.name].T.ravel()
      edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]])))
      runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
      annotation["segmentation"] = {"counts": runs, "size": [64, 80]}

  exports.assert_agree(
    exports.masks_of(read_source(exports.write_coco(tmp_path, content, change), "crack")), truth
  )


def test_roboflow_copies_share_a_group(tmp_path):
  content = exports.walls(2, splits=("train",))
  content[0].name, content[1].name = "IMG_1_JPG_jpg.rf.aaa", "IMG_1_JPG_jpg.rf.bbb"
  source = read_source(exports.write_coco(tmp_path, content), "crack")
  assert [item.group for item in source.items] == ["IMG_1_JPG_jpg"] * 2


def _spoil(index, **fields):
  def change(split, data):
    if split == "train":
      data["annotations"][index] |= fields

  return change


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_spoil(1, id=0), "annotation 0: this id occurs twice"),
    (_spoil(1, image_id=99), "annotation 1: image_id 99 is not among the images"),
    (_spoil(1, category_id=9), "annotation 1: category_id 9 is not among the categories"),
    (_spoil(1, segmentation=[[1, 2, 3, 4]]), "annotation 1: a polygon has 2 points; 3 are needed"),
    (
      _spoil(1, segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
      "a polygon has 7 numbers; they come in pairs",
    ),
    (_spoil(1, segmentation=[["a"] * 6]), "a polygon must be a flat list of numbers"),
    (_spoil(1, segmentation=[], bbox=[1, 2, 0, 4]), "the box is 0 wide and 4 high"),
    (_spoil(1, segmentation=[], bbox=None), "neither an outline nor a box"),
    (_spoil(1, segmentation={"counts": [5], "size": [64, 80]}), "RLE covers 5 pixels"),
    (_spoil(1, segmentation={"counts": [5], "size": [80, 64]}), r"RLE is for \[80, 64\]"),
  ],
)
def test_bad_coco_annotations_are_named_with_their_id(tmp_path, content, change, message):
  folder = exports.write_coco(tmp_path, content, change)
  with pytest.raises(UserError, match=message):
    read_source(folder, "crack")
  # With strict off the rest is read, and the problem is listed.
  source = read_source(folder, "crack", strict=False)
  assert len(source.items) == 6
  assert len(source.problems) == 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"file_name": "gone.png"}, "image 1: file 'gone.png' is missing"),
    ({"file_name": "../../secret.png"}, "'../../secret.png' leaves the folder"),
    ({"file_name": "/etc/hostname"}, "'/etc/hostname' leaves the folder"),
    ({"height": 0}, "size 80x0 is not a size in pixels"),
    ({"id": 0}, "image 0: this id occurs twice"),
  ],
)
def test_bad_coco_images_are_named_with_their_id(tmp_path, content, fields, message):
  def change(split, data):
    if split == "train":
      data["images"][1] |= fields

  folder = exports.write_coco(tmp_path, content, change)
  with pytest.raises(UserError, match=message):
    read_source(folder, "crack")


_JUNK = st.recursive(
  st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.text(max_size=3),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
  ),
  max_leaves=4,
)


@pytest.fixture(scope="module")
def three_walls(tmp_path_factory):
  folder = tmp_path_factory.mktemp("junk")
  for wall in exports.walls(3):
    exports.write_picture(folder / f"{wall.name}.png", wall)
  return folder


@settings(max_examples=60, deadline=None)
@given(junk=_JUNK, data=st.data())
def test_any_junk_in_an_annotation_file_is_a_problem_not_a_crash(three_walls, junk, data):
  content = exports.coco_content(exports.walls(3))
  place = content
  while isinstance(place, dict | list) and len(place):
    keys = sorted(place) if isinstance(place, dict) else range(len(place))
    key = data.draw(st.sampled_from(keys))
    if data.draw(st.booleans()):
      break
    parent, place = place, place[key]
  else:
    place = parent
  place[key] = junk
  (three_walls / "_annotations.coco.json").write_text(json.dumps(content))
  for item in read_source(three_walls, "crack", strict=False).items:
    item.masks()


def test_a_link_out_of_the_folder_is_refused(tmp_path, content):
  folder = exports.write_coco(tmp_path / "export", content)
  exports.write_picture(tmp_path / "secret.png", content[0])
  (folder / "train/wall0.png").unlink()
  (folder / "train/wall0.png").symlink_to(tmp_path / "secret.png")
  with pytest.raises(UserError, match=r"'wall0.png' leaves the folder"):
    read_source(folder, "crack")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "not JSON"),
    ("[]", "the file must hold an object"),
    ('{"images": []}', "lists missing: annotations, categories"),
  ],
)
def test_files_that_are_no_coco_are_refused(tmp_path, text, message):
  (tmp_path / "_annotations.coco.json").write_text(text)
  with pytest.raises(UserError, match=message):
    read_source(tmp_path, "crack")


def _compressed(runs):
  """COCO's string of run lengths, as pycocotools' `rleToString` writes it."""
  text = ""
  for number, run in enumerate(runs):
    value = run - runs[number - 2] if number > 2 else run
    more = True
    while more:
      bits = value & 0x1F
      value >>= 5
      more = value != -1 if bits & 0x10 else value != 0
      text += chr((bits | 0x20 if more else bits) + 48)
  return text


def test_coco_compressed_run_lengths(tmp_path):
  wall = exports.walls(1, splits=("train",))[0]
  mask = np.zeros((64, 80), bool)
  mask[3:50, 7] = mask[10:12, 30:70] = mask[40:64, 71] = True

  def change(split, data):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]])))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    assert len(runs) > 80
    data["annotations"][0]["segmentation"] = {"counts": _compressed(runs), "size": [64, 80]}

  source = read_source(exports.write_coco(tmp_path, [wall], change), "crack")
  np.testing.assert_array_equal(exports.masks_of(source)["wall0"], mask)


def test_ids_that_differ_in_kind_are_reported_not_dropped(tmp_path, content):
  def change(split, data):
    if split == "train":
      data["annotations"][3]["image_id"] = "3"
      data["annotations"][2]["category_id"] = "1"

  folder = exports.write_coco(tmp_path, content, change)
  source = read_source(folder, "crack", strict=False)
  assert "annotation 3: image_id '3' is not among the images; there is 3: " in source.problems[1]
  assert (
    "annotation 2: category_id '1' is not among the categories; there is 1:" in (source.problems[0])
  )


def test_each_file_names_its_categories_for_itself(tmp_path, content):
  def change(split, data):
    data["categories"] = [{"id": 1, "name": "crack" if split == "train" else "tape"}]
    if split == "train":
      data["categories"].append({"id": "x", "name": "spall"})
      data["annotations"][0]["category_id"] = "x"

  source = read_source(exports.write_coco(tmp_path, content, change))
  concepts = {item.split: item.concepts for item in source.items}
  assert concepts == {"train": ("crack", "spall"), "val": ("tape",)}
  assert source.items[0].annotations == {"spall": 1}
  assert source.items[1].annotations == {"crack": 1}
  for item in source.items[1:]:
    assert np.asarray(item.masks()[item.concepts[0]]).any()


def test_a_linked_split_is_refused(tmp_path, content):
  folder = exports.write_coco(tmp_path / "export", content)
  (folder / "train").rename(tmp_path / "elsewhere")
  (folder / "train").symlink_to(tmp_path / "elsewhere")
  source = read_source(folder, "crack", strict=False)
  assert source.problems == (
    "'train/_annotations.coco.json' leaves the folder; only files inside it are read",
  )
  assert {item.split for item in source.items} == {"val"}
