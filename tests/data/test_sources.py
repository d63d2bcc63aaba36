"""Every layout is read, recognised, and gives the same masks for the same content."""

import io
import json

import exports
import numpy as np
import pytest
import skimage.draw
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segflax.data import builder
from segflax.data.sources import read_named_source, read_source
from segflax.errors import UserError


@pytest.fixture(scope="module")
def content():
  return exports.walls()


@pytest.fixture(scope="module")
def truth(content):
  """name -> mask, from scikit-image, which takes (row, column) at the pixel's corner."""
  width, height = exports.SIZE
  masks = {}
  for wall in content:
    mask = np.zeros((height, width), bool)
    for outline in wall.outlines:
      points = np.reshape(outline, (-1, 2))[:, ::-1] - 0.5
      mask |= skimage.draw.polygon2mask((height, width), points)
    masks[wall.name] = mask
  return masks


def _masks(source, concept="crack"):
  return {item.image_id: np.asarray(item.masks()[concept]) > 0 for item in source.items}


def _agree(found, truth):
  assert found.keys() == truth.keys()
  for name, mask in truth.items():
    union = (mask | found[name]).sum()
    assert (mask & found[name]).sum() / union > 0.999, name
    assert mask.any()


def test_coco(tmp_path, content, truth):
  source = read_source(exports.write_coco(tmp_path, content), "crack")
  assert source.layout == "coco"
  assert source.licenses == ("CC BY 4.0",)
  assert [item.split for item in source.items] == ["train"] * 4 + ["val"] * 2
  assert sum(item.annotations.total() for item in source.items) == 6
  _agree(_masks(source), truth)


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

  _agree(_masks(read_source(exports.write_coco(tmp_path, content, change), "crack")), truth)


@pytest.mark.parametrize("split_inside", [False, True])
def test_yolo(tmp_path, content, truth, split_inside):
  source = read_source(exports.write_yolo(tmp_path, content, split_inside=split_inside))
  assert source.layout == "yolo"
  assert source.concepts == ("crack",)
  assert {item.image_id: item.split for item in source.items}["wall2"] == "val"
  _agree(_masks(source), truth)


def test_yolo_box_and_background(tmp_path, content):
  folder = exports.write_yolo(tmp_path, content)
  (folder / "train/labels/wall0.txt").write_text("0 0.5 0.5 0.25 0.125\n")
  (folder / "train/labels/wall1.txt").unlink()
  source = read_source(folder, "crack")
  masks = _masks(source)
  assert masks["wall0"].sum() == 20 * 8
  assert masks["wall0"][28:36, 30:50].all()
  assert not masks["wall1"].any()
  assert "1 pictures have no label file" in source.notes[0]


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("label", ["__segment_crack", "__segment_wall_crack", ""])
def test_mask_folders(tmp_path, content, truth, label, high):
  folder = exports.write_masks(tmp_path, content, truth, label, high)
  source = read_source(folder, "" if label else "crack")
  assert source.layout == "masks"
  _agree(_masks(source), truth)


def test_mask_folder_with_several_prompts(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path, content, truth)
  exports.write_masks(folder, content[:1], {"wall0": ~truth["wall0"]}, "__segment_joint_tape")
  both = read_source(folder)
  assert both.items[0].concepts == ("crack", "taping area")
  assert both.items[1].concepts == ("crack",)  # nobody said that there is no tape
  only = read_source(folder, "taping area")
  assert [item.image_id for item in only.items] == ["wall0"]
  assert "masks of crack are left out" in only.notes[0]
  # Two synonyms of one concept: what either shows.
  exports.write_masks(folder, content[:1], {"wall0": ~truth["wall0"]}, "__segment_wall_crack")
  assert _masks(read_source(folder, "crack"))["wall0"].all()


def test_names_that_do_not_say_what_masks_show_need_a_concept(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path, content, truth, label="")
  with pytest.raises(UserError, match="name it: --source CONCEPT="):
    read_source(folder)


def test_origin_folder(tmp_path, content, truth):
  exports.write_masks(tmp_path / "cracks", content, truth, label="")
  tape = exports.walls(3, seed=1, name="tape")
  exports.write_masks(
    tmp_path / "taping_area", tape, {w.name: np.eye(64, 80, dtype=bool) for w in tape}
  )
  prompts = tmp_path / "cracks/train/prompts"
  prompts.mkdir()
  (prompts / "wall0.txt").write_text("segment wall crack\n")
  (prompts / "wall1.txt").write_text("segment joint/tape\n")
  with pytest.raises(
    UserError, match=r"wall1\.txt asks for 'taping area', its folder is of 'crack'"
  ):
    read_source(tmp_path)
  (prompts / "wall1.txt").unlink()
  source = read_source(tmp_path)
  assert source.layout == "origin"
  assert set(source.concepts) == {"crack", "taping area"}
  assert len(source.items) == 9
  _agree(_masks(read_source(tmp_path, "crack")), truth)


def test_a_data_set_of_ours(tmp_path, content, truth):
  source = read_source(exports.write_coco(tmp_path / "coco", content), "crack")
  train = [item.example() for item in source.items]
  builder.write_dataset(tmp_path / "set", {"train": train}, ["crack"], {"licenses": ["MIT"]})
  again = read_source(tmp_path / "set")
  assert (again.layout, again.licenses) == ("tfds", ("MIT",))
  _agree(_masks(again), truth)
  np.testing.assert_array_equal(again.items[3].picture(), content[4].pixels)


class _Foreign(tfds.core.GeneratorBasedBuilder):
  """Somebody else's TFDS data set: picture, mask and file name."""

  VERSION = tfds.core.Version("2.0.0")

  def __init__(self, *, content, truth, **kwargs):
    self._content, self._truth = content, truth
    super().__init__(**kwargs)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "file_name": tfds.features.Text(),
          "image": tfds.features.Image(shape=(64, 80, 3)),
          "segmentation_mask": tfds.features.Image(shape=(64, 80, 1)),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for wall in self._content:
      mask = Image.fromarray(self._truth[wall.name].astype(np.uint8))
      picture = Image.fromarray(wall.pixels)
      yield (
        wall.name,
        {
          "file_name": f"{wall.name}.png",
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
  _agree(_masks(source), truth)
  assert {item.split for item in source.items} == {"train"}


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


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("0 0.5 0.5 0.2", "3 numbers are neither a box"),
    ("0 0.5 0.5 1.5 0.2", r"coordinates must lie in 0..1"),
    ("0 0.5 nan 0.1 0.2", r"coordinates must lie in 0..1"),
    ("crack 0.5 0.5 0.1 0.2", "not numbers"),
    ("-1 0.5 0.5 0.1 0.2", "class -1.0 is not a class number"),
    ("0 0.5 0.5 0 0.2", "the box is empty"),
  ],
)
def test_bad_yolo_lines_are_named(tmp_path, content, line, message):
  folder = exports.write_yolo(tmp_path, content)
  (folder / "train/labels/wall0.txt").write_text("0 0.5 0.5 0.1 0.2\n" + line)
  with pytest.raises(UserError, match=f"wall0.txt, line 2: {message}"):
    read_source(folder)


def test_masks_and_pictures_must_pair(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path, content, truth)
  (folder / "train/masks/wall0__segment_crack.png").rename(folder / "train/masks/wall_0.png")
  with pytest.raises(UserError) as error:
    read_source(folder)
  assert "mask train/masks/wall_0.png has no picture" in str(error.value)
  assert "train/images/wall0.png has no mask" in str(error.value)


def test_what_is_no_source(tmp_path):
  with pytest.raises(UserError, match="is not a folder"):
    read_source(tmp_path / "nowhere")
  with pytest.raises(UserError, match="in no known layout; known are tfds, coco, origin"):
    read_source(tmp_path)
  with pytest.raises(UserError, match="layout 'voc' is unknown"):
    read_source(tmp_path, layout="voc")


def test_sources_as_the_command_line_names_them(tmp_path, content):
  folder = exports.write_coco(tmp_path / "a=b", content)
  assert read_named_source(str(folder)).concepts == ("NewCracks - v2",)
  assert read_named_source(f"crack={folder}").concepts == ("crack",)
  assert read_named_source(f"crack={folder}:coco").concepts == ("crack",)
  with pytest.raises(UserError, match="holds no picture"):
    read_named_source(f"crack={folder}:yolo")


def test_roboflow_copies_share_a_group(tmp_path):
  content = exports.walls(2, splits=("train",))
  content[0].name, content[1].name = "IMG_1_JPG_jpg.rf.aaa", "IMG_1_JPG_jpg.rf.bbb"
  source = read_source(exports.write_coco(tmp_path, content), "crack")
  assert [item.group for item in source.items] == ["IMG_1_JPG_jpg"] * 2
