"""check_data finds what was planted, each defect by its kind and place."""

import html
import json
import re
import runpy
import sys
from pathlib import Path

import exports
import numpy as np
import pytest
from PIL import Image

from segflax.data import builder, check_page, check_report
from segflax.data.check import ERROR, INFO, WARNING, check
from segflax.data.sources import read_source
from segflax.data.survey import Look

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
  _annotation(data, 39, segmentation=[])
  data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 22]
  _annotation(data, 28, segmentation=[[5, 50, 70, 50, 70, 58, 5, 58]])


def _without_pictures(split, data):
  data["images"] = data["annotations"] = []


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
  exports.write_bomb(train / "w38.png")

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

  nothing = exports.write_coco(root / "nothing", exports.walls(1), _without_pictures)
  named = ((folder, "crack"), (plain, ""), (lines, "crack"), (nothing, "crack"))
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
  ("source note", INFO, "annotations 11, 15 reach beyond their picture"),
  ("full mask", ERROR, "w12.png, 'crack': 100% is foreground"),
  ("very large mask", WARNING, "w13.png, 'crack': 78% is foreground; is the mask inverted"),
  ("speck", WARNING, "w14.png, 'crack': only 4 pixels"),
  ("annotations without a pixel", WARNING, "w15.png, 'crack': no pixel"),
  ("broken record", ERROR, "image 16: file 'gone.png' is missing"),
  ("broken record", ERROR, "image 17: '../outside.png' leaves the folder"),
  ("mask does not fit", ERROR, "w18.png: the mask of 'crack' is 90x64, its picture 80x64"),
  ("broken record", ERROR, "image 19: size 80x-1"),
  ("broken record", ERROR, "image 21: this id occurs twice"),
  ("empty mask", INFO, "w22.png, 'crack'"),
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
  ("several sizes", INFO, "80x64"),
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
  ("source note", INFO, "1 pictures have no label file"),
  ("concept missing in split", ERROR, "no picture of val shows 'crack'"),
  ("unreadable picture", ERROR, "w38.png has more than 89478485 pixels"),
  ("boxes among outlines", WARNING, "1 pictures have boxes among outlines of 'crack'"),
  ("no picture", ERROR, "nothing holds no usable picture"),
]


@pytest.mark.parametrize(("kind", "level", "message"), PLANTED)
def test_planted_defects_are_found(report, kind, level, message):
  found = [f for f in report.findings if f.kind == kind and re.search(message, f.message)]
  assert found, [f.message for f in report.findings if f.kind == kind]
  assert {f.level for f in found} == {level}


def test_sound_pictures_are_not_blamed(report):
  sound = {"w34", "w35", "w36", "w37", "v2", "v3", "v4", "v5", "m5", "m6", "m7"}
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
    assert html.escape(finding.message) in page
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
  walls = exports.walls(12)
  for wall in walls[:2]:
    wall.outlines = []  # vouched to be empty
  good = exports.write_coco(tmp_path / "good", walls)
  page, listing = tmp_path / "page.html", tmp_path / "all.json"
  arguments = [f"--source=crack={good}", f"--page={page}", f"--json={listing}", "--strict"]
  assert _run(monkeypatch, *arguments) == 0
  assert page.stat().st_size > 10_000
  assert json.loads(listing.read_text())["levels"] == {"error": 0, "warning": 0, "info": 2}
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


def test_a_licence_given_by_hand_satisfies_strict(tmp_path, monkeypatch, capsys):
  good = exports.write_yolo(tmp_path / "good", exports.walls(12))
  assert _run(monkeypatch, f"--source={good}", "--strict") == 1
  assert "say it with --license" in capsys.readouterr().out
  assert _run(monkeypatch, f"--source={good}", "--strict", "--license=crack=MIT") == 0


def test_everything_is_listed_in_the_json_report(report):
  whole = check_report.as_json(report)
  json.dumps(whole)
  assert [f["message"] for f in whole["findings"]] == [f.message for f in report.findings]
  assert len(whole["pictures"]) == len(report.items)
  (leak,) = (f for f in whole["findings"] if f["kind"] == "leak: source picture")
  assert [Path(place).name for place in leak["pictures"]] == [
    "IMG_1_jpg.rf.a.png",
    "IMG_1_jpg.rf.b.png",
  ]


def test_a_terminal_gets_a_few_findings_of_a_kind(report):
  text = check_report.text(report)
  assert re.search(r"ERROR broken record: \d\d\n(  .*\n){3}  and \d+ more\n", text)
  assert text.endswith("findings in all; --page and --json have all")


def _two_categories(split, data):
  """Every other picture has tape instead of a crack, as a box; the last a sliver of tape."""
  data["categories"].append({"id": 2, "name": "tape"})
  for annotation in data["annotations"][::2]:
    annotation |= {"category_id": 2, "segmentation": []}
  data["annotations"][0] |= {"segmentation": [[9.6, 9.6, 9.9, 9.6, 9.9, 9.9]]}


def test_two_categories_are_judged_each_for_itself(tmp_path):
  folder = exports.write_coco(tmp_path, exports.walls(12), _two_categories)
  report = check([read_source(folder)])
  rows = {row[1:3]: row[3:7] for row in check_report.counts(report)[1:]}
  # pictures, groups, empty, boxes
  assert rows["train", "NewCracks - v2"] == (8, 8, 4, 0)
  assert rows["train", "tape"] == (8, 8, 5, 3)
  kinds = report.kinds()
  assert [Path(f.message).name for f in kinds["annotations without a pixel"]] == [
    "wall0.png, 'tape': no pixel is foreground",
    "wall2.png, 'tape': no pixel is foreground",
  ]
  assert len(kinds["empty mask"]) == 12
  assert "boxes among outlines of 'tape'" in kinds["boxes among outlines"][0].message
  assert len(kinds["boxes among outlines"]) == 1


def test_a_bad_mask_among_two_copies_ends_no_check(tmp_path):
  walls = exports.walls(6)
  walls[1].seed = walls[0].seed
  folder = exports.write_masks(tmp_path, walls, exports.truth(walls))
  (folder / "train/masks/wall1__segment_crack.png").write_text("no picture")
  kinds = check([read_source(folder)]).kinds()
  assert len(kinds["mask does not fit"]) == len(kinds["duplicate file"]) == 1
  assert "contradicting masks" not in kinds


def test_each_concept_has_one_colour_on_the_page(tmp_path):
  sources = []
  for number in range(5):
    walls = exports.walls(2, splits=("train",), seed=number, name=f"c{number}_")
    folder = exports.write_masks(
      tmp_path / str(number), walls, {w.name: np.eye(64, 80, dtype=bool) for w in walls}, "__x"
    )
    sources.append(read_source(folder, f"concept {number}"))
  report = check(sources)
  colours = check_page.colours(report)
  assert len(set(colours.values())) == 4
  assert colours["concept 4"] == colours["concept 0"]  # the fifth begins again
  for concept, (red, green, blue) in colours.items():
    assert f"rgb({red}, {green}, {blue})" in check_page.page(report)
    assert f"</span>{concept}" in check_page.page(report)
  last = report.items[-1], report.looks[-1]
  plain = np.asarray(check_page.overlay(report.items[-1], Look(), colours), int)
  for colour in ((255, 0, 0), (0, 0, 255)):
    drawn = np.asarray(check_page.overlay(*last, {"concept 4": colour}), int)
    changed = (drawn - plain)[np.abs(drawn - plain).sum(-1) > 150]
    assert changed.mean(0).argmax() == np.argmax(colour)
