"""check_data finds what was planted, each defect by its kind and place."""

import json
import re
import runpy
import sys
from pathlib import Path

import exports
import numpy as np
import pytest
from PIL import Image

from segflax.data import builder, check_page
from segflax.data.check import ERROR, WARNING, check
from segflax.data.sources import read_source

_SCRIPT = Path(__file__).parents[2] / "scripts/check_data.py"


def _annotation(data, number, **fields):
  data["annotations"][number] |= fields


def _spoil_coco(split, data):
  """Plants a defect in each of the first records of the train split."""
  if split != "train":
    return
  _annotation(data, 0, segmentation=[[1, 2, 3, 4]])
  _annotation(data, 1, segmentation=[[1, 2, 3, 4, 5, 6, 7]])
  _annotation(data, 2, segmentation=[[1, 2, "x", 4, 5, 6]])
  _annotation(data, 3, image_id=99)
  _annotation(data, 4, category_id=9)
  _annotation(data, 5, id=6)
  _annotation(data, 7, segmentation={"counts": [3], "size": [64, 80]})
  _annotation(data, 8, segmentation={"counts": [5120], "size": [80, 64]})
  _annotation(data, 9, segmentation=[], bbox=[1, 1, 0, 5])
  _annotation(data, 10, segmentation=[], bbox=None)
  _annotation(data, 11, segmentation=[[-9, 20, 95, 22, 95, 26, -9, 24]])
  _annotation(data, 12, segmentation=[[0, 0, 80, 0, 80, 64, 0, 64]])
  _annotation(data, 13, segmentation=[[0, 0, 80, 0, 80, 50, 0, 50]])
  _annotation(data, 14, segmentation=[[4, 4, 6, 4, 6, 6, 4, 6]])
  _annotation(data, 15, segmentation=[[90, 90, 95, 90, 95, 95]])
  data["images"][16]["file_name"] = "gone.png"
  data["images"][17]["file_name"] = "../outside.png"
  data["images"][18]["width"] = 90
  data["images"][19]["height"] = -1
  data["images"][20]["id"] = 21
  data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 22]
  _annotation(data, 28, segmentation=[[5, 50, 70, 50, 70, 58, 5, 58]])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  root = tmp_path_factory.mktemp("bad")
  content = exports.walls(40, splits=("train",), name="w")
  content += exports.walls(6, splits=("valid",), seed=9, name="v")
  content[28].seed = content[27].seed  # one file, two annotations
  content[29].seed = content[40].seed  # train and valid show the same wall
  content[30].name, content[41].name = "IMG_1_jpg.rf.a", "IMG_1_jpg.rf.b"
  folder = exports.write_coco(root / "coco", content, _spoil_coco)
  train = folder / "train"
  (train / "w23.png").write_bytes((train / "w23.png").read_bytes()[:300])
  (train / "w24.png").write_text("no picture")
  Image.new("RGB", exports.SIZE, (90, 90, 90)).save(train / "w25.png")
  Image.fromarray(content[26].pixels).save(train / "w26.gif")
  (train / "w26.gif").rename(train / "w26.png")
  Image.fromarray(content[31].pixels).resize((40, 32)).save(train / "w31.png")
  mirrored = Image.fromarray(content[32].pixels).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  mirrored.save(train / "w33.png")

  masks = {f"m{i}": np.zeros((64, 80), bool) for i in range(8)}
  for mask in masks.values():
    mask[20:24, 10:70] = True  # boxes, all of them
  pictures = exports.walls(8, splits=("train",), seed=3, name="m")
  plain = exports.write_masks(root / "masks", pictures, masks)
  (plain / "train/masks/m0__segment_crack.png").rename(plain / "train/masks/n0__x.png")
  Image.new("L", (40, 40), 255).save(plain / "train/masks/m1__segment_crack.png")
  Image.new("L", exports.SIZE, 77).save(plain / "train/masks/m2__segment_crack.png")
  Image.new("RGB", (400, 60), "red").save(plain / "train/images/m3.png")
  (plain / "train/images/m4.jpg").write_bytes((plain / "train/images/m4.png").read_bytes())

  lines = exports.write_yolo(root / "yolo", exports.walls(6, seed=5, name="y"))
  (lines / "train/labels/y0.txt").write_text("0 0.5 0.5 1.7 0.2\n0 0.5 0.5\nx\n")
  (lines / "train/labels/lost.txt").write_text("0 0.5 0.5 0.2 0.2\n")
  (lines / "train/labels/y1.txt").unlink()
  for label in (lines / "valid/labels").iterdir():
    label.write_text("")

  named = ((folder, "crack"), (plain, ""), (lines, "crack"))
  return check([read_source(path, concept, strict=False) for path, concept in named])


# (kind, level, what the message says): each was planted above.
PLANTED = [
  ("broken record", ERROR, "annotation 0: a polygon has 2 points"),
  ("broken record", ERROR, "annotation 1: a polygon has 7 numbers"),
  ("broken record", ERROR, "annotation 2: a polygon must be a flat list of numbers"),
  ("broken record", ERROR, "annotation 3: image_id 99"),
  ("broken record", ERROR, "annotation 4: category_id 9"),
  ("broken record", ERROR, "annotation 6: this id occurs twice"),
  ("broken record", ERROR, "annotation 7: RLE is unreadable"),
  ("broken record", ERROR, "annotation 8: RLE is for"),
  ("broken record", ERROR, "annotation 9: the box is 0 wide"),
  ("broken record", ERROR, "annotation 10: neither an outline nor a box"),
  ("source note", WARNING, "annotations 11, 15 reach beyond their picture"),
  ("full mask", ERROR, "w12.png, 'crack': 100% is foreground"),
  ("very large mask", WARNING, "w13.png, 'crack': 78% is foreground; is the mask inverted"),
  ("speck", WARNING, "w14.png, 'crack': only 4 pixels"),
  ("annotations without a pixel", WARNING, "w15.png, 'crack': no pixel"),
  ("broken record", ERROR, "image 16: file 'gone.png' is missing"),
  ("broken record", ERROR, "image 17: '../outside.png' leaves the folder"),
  ("mask does not fit", ERROR, "w18.png: the mask of 'crack' is 90x64, its picture 80x64"),
  ("broken record", ERROR, "image 19: size 80x-1"),
  ("broken record", ERROR, "image 21: this id occurs twice"),
  ("empty mask", WARNING, "w22.png, 'crack'"),
  ("unreadable picture", ERROR, "w23.png is damaged"),
  ("unreadable picture", ERROR, "w24.png is none of JPEG, PNG"),
  ("blank picture", ERROR, "w25.png has one colour"),
  ("unreadable picture", ERROR, "w26.png is none of JPEG, PNG"),
  ("contradicting masks", ERROR, "w27.png and .*w28.png: their masks of 'crack' agree at IoU"),
  ("duplicate file", WARNING, "w27.png and .*w28.png are the same file"),
  ("leak: same content", ERROR, "w29.png and .*v0.png are the same file, in train and val"),
  ("leak: source picture", ERROR, "copies of 'IMG_1_jpg' are in train and val"),
  ("mask does not fit", ERROR, "w31.png: the mask of 'crack' is 80x64, its picture 40x32"),
  ("near-duplicate", WARNING, r"w32.png and .*w33.png show the same \(0.9"),
  ("small picture", WARNING, "w31.png is 40x32"),
  ("several sizes", WARNING, "80x64"),
  ("broken record", ERROR, "mask train/masks/n0__x.png has no picture"),
  ("broken record", ERROR, "train/images/m0.png has no mask"),
  ("mask does not fit", ERROR, "the mask of 'crack' is 40x40"),
  ("mask does not fit", ERROR, r"m2__segment_crack.png has the values \[77\]"),
  ("long picture", WARNING, "m3.png is 400x60"),
  ("broken record", ERROR, "m4.jpg share a stem|m4.png and m4.jpg"),
  ("boxes as masks", WARNING, "masks of 'crack' are boxes"),
  ("no licence", WARNING, "states no licence"),
  ("no validation split", WARNING, "masks has no validation split"),
  ("broken record", ERROR, "y0.txt, line 1: coordinates must lie in 0..1"),
  ("broken record", ERROR, "y0.txt, line 2: 2 numbers are neither"),
  ("broken record", ERROR, "y0.txt, line 3: not numbers"),
  ("broken record", ERROR, "label train/labels/lost.txt has no picture"),
  ("source note", WARNING, "1 pictures have no label file"),
  ("concept missing in split", ERROR, "no picture of val shows 'crack'"),
]


@pytest.mark.parametrize(("kind", "level", "message"), PLANTED)
def test_planted_defects_are_found(report, kind, level, message):
  found = [f for f in report.findings if f.kind == kind and re.search(message, f.message)]
  assert found, [f.message for f in report.findings if f.kind == kind]
  assert {f.level for f in found} == {level}


def test_sound_pictures_are_not_blamed(report):
  sound = {"w34", "w35", "w36", "w37", "w38", "w39", "v2", "v3", "v4", "v5", "m5", "m6", "m7"}
  blamed = {report.items[n].image_id for f in report.findings for n in f.items}
  boxes = {"m5", "m6", "m7"}  # rightly: they are boxes
  assert blamed & sound <= boxes
  assert len({kind for kind, _, _ in PLANTED}) >= 20


def test_a_prepared_data_set_is_checked_as_any_other(tmp_path):
  source = read_source(exports.write_coco(tmp_path / "coco", exports.walls(9)), "crack")
  examples = [item.example() for item in source.items]
  empty = {"crack": Image.new("L", exports.SIZE)}
  examples[0] |= {"masks": examples[0]["masks"] | {"taping area": empty["crack"]}}
  splits = {"train": examples[:6], "val": [example | {"masks": empty} for example in examples[6:]]}
  builder.write_dataset(tmp_path / "set", splits, ["crack", "taping area"])
  report = check([read_source(tmp_path / "set")])
  kinds = {kind: len(of) for kind, of in report.kinds().items()}
  assert kinds == {"concept missing in split": 3, "empty mask": 4, "no licence": 1}


def test_the_page_shows_everything_and_needs_nothing(report):
  page = check_page.page(report)
  assert page.count('<img src="data:image/jpeg;base64,') > 20
  assert "http" not in page
  assert "<script" not in page
  for finding in report.findings:
    assert f"{finding.kind} (" in page
  assert "thickness, pixels" in page


def test_names_are_escaped_on_the_page(tmp_path):
  content = exports.walls(3, name="<script>x")
  report = check([read_source(exports.write_coco(tmp_path, content), "crack")])
  assert "<script" not in check_page.page(report)


def _run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, arguments)])
  with pytest.raises(SystemExit) as ended:
    runpy.run_path(str(_SCRIPT), run_name="__main__")
  return ended.value.code


def test_exit_codes(tmp_path, monkeypatch, capsys):
  good = exports.write_coco(tmp_path / "good", exports.walls(12))
  assert _run(monkeypatch, f"--source=crack={good}", f"--page={tmp_path / 'page.html'}") == 0
  assert (tmp_path / "page.html").stat().st_size > 10_000
  assert "0 errors" in capsys.readouterr().out
  path = good / "train/_annotations.coco.json"
  data = json.loads(path.read_text())
  data["annotations"][0]["segmentation"] = []
  path.write_text(json.dumps(data))
  assert _run(monkeypatch, f"--source=crack={good}", "--strict") == 1
  assert _run(monkeypatch, f"--source=crack={good}") == 0
  data["annotations"][0]["image_id"] = 99
  path.write_text(json.dumps(data))
  assert _run(monkeypatch, f"--source=crack={good}") == 1
  assert "annotation 0: image_id 99 is not among the images" in capsys.readouterr().out
  assert _run(monkeypatch, f"--source=crack={tmp_path / 'nowhere'}") == 2
