"""Layouts are recognised, sources get names, and copies in several become one picture."""

import exports
import pytest

from segflax.data import check, fingerprint, mixing, prepare, splits
from segflax.data.sources import read_named_source, read_named_sources, read_source
from segflax.errors import UserError


@pytest.fixture(scope="module")
def content():
  return exports.walls()


def test_what_is_no_source(tmp_path):
  with pytest.raises(UserError, match="is not a folder"):
    read_source(tmp_path / "nowhere")
  with pytest.raises(UserError, match="in no known layout; known are tfds, coco, origin"):
    read_source(tmp_path)
  with pytest.raises(UserError, match="layout 'voc' is unknown"):
    read_source(tmp_path, layout="voc")
  with pytest.raises(UserError, match="not in the layout 'tfds'; known are tfds, coco"):
    read_source(tmp_path, layout="tfds")
  (tmp_path / "images").mkdir()
  (tmp_path / "masks").mkdir()
  with pytest.raises(UserError, match=r"\(masks\) holds no picture"):
    read_source(tmp_path)


def test_sources_as_the_command_line_names_them(tmp_path, content):
  folder = exports.write_coco(tmp_path / "a=b", content)
  assert read_named_source(str(folder)).concepts == ("NewCracks - v2",)
  assert read_named_source(f"crack={folder}").concepts == ("crack",)
  assert read_named_source(f"crack={folder}:coco").concepts == ("crack",)
  for layout in ("yolo", "tfds"):
    with pytest.raises(UserError, match=f"is not in the layout '{layout}'; it fits coco"):
      read_named_source(f"crack={folder}:{layout}")


def test_problems_are_listed_up_to_a_few(tmp_path, content):
  folder = exports.write_yolo(tmp_path, content)
  (folder / "train/labels/wall0.txt").write_text("x\n" * 8)
  with pytest.raises(UserError, match=r"line 5: not numbers; and 3 more \(scripts/check_data\.py"):
    read_source(folder)


def test_sources_of_one_name_are_numbered(tmp_path, content):
  one = exports.write_yolo(tmp_path / "a/set", content)
  two = exports.write_yolo(tmp_path / "b/a/set", content)
  sources = read_named_sources([str(one), str(two)])
  assert [source.name for source in sources] == ["a/set", "a/set-2"]
  assert {item.source for item in sources[1].items} == {"a/set-2"}
  assert len({item.group for source in sources for item in source.items}) == 12
  assert mixing.distinct(sources) == sources


def test_a_source_is_named_after_its_place_however_it_is_given(tmp_path, content, monkeypatch):
  folder = exports.write_yolo(tmp_path / "a/set", content)
  monkeypatch.chdir(folder)
  assert read_source(".").name == read_source("../set").name == "a/set"


def test_licences_given_by_hand(tmp_path, content):
  coco = exports.write_coco(tmp_path / "a=b", content)
  yolo = exports.write_yolo(tmp_path / "y", content, names=("tape",))
  texts = [f"crack={coco}", str(yolo)]
  name = f"{tmp_path.name}/a=b"
  sources = read_named_sources(texts, ["tape=MIT", f"{name}=my own, 2024=ok"])
  assert [source.licenses for source in sources] == [("CC BY 4.0", "my own, 2024=ok"), ("MIT",)]
  for bad in ("spall=MIT", "tape=", "tape"):
    with pytest.raises(
      UserError, match=f"--license={bad}: no source or concept .*, crack, .*tape$"
    ):
      read_named_sources(texts, [bad])


def _numbered(folder, seed, splits=("train", "train", "train", "train", "valid")):
  return exports.write_yolo(folder, exports.walls(20, splits=splits, seed=seed, name=""))


def test_sources_that_number_their_pictures_alike_do_not_leak(tmp_path):
  sources = [read_source(_numbered(tmp_path / f"s{n}", n)) for n in (1, 2)]
  report = check.check(sources)
  assert not [f for f in report.findings if f.kind.startswith("leak")]
  items = mixing.mix(sources)
  clusters = fingerprint.clusters([item.group for item in items], [])
  chosen = splits.official(items, clusters, 0.1)
  assert splits.leaks(chosen, clusters) == []
  assert chosen.count("test") == 4  # cut from each


def test_one_name_in_two_splits_is_two_pictures(tmp_path):
  folder = exports.write_yolo(tmp_path, exports.walls(3, splits=("train",), name=""))
  exports.write_yolo(folder, exports.walls(3, splits=("valid",), seed=1, name=""))
  report = check.check([read_source(folder)])
  assert not [f for f in report.findings if f.level == check.ERROR]


def test_copies_of_a_source_picture_leak_across_sources(tmp_path):
  (one,) = exports.walls(1, splits=("train",), name="IMG_1_jpg.rf.a")
  (two,) = exports.walls(1, splits=("valid",), name="IMG_1_jpg.rf.b", seed=1)
  sources = [read_source(exports.write_coco(tmp_path / w.split, [w]), "crack") for w in (one, two)]
  leaks = [f for f in check.check(sources).findings if f.kind == "leak: source picture"]
  assert [leak.message for leak in leaks] == ["copies of 'IMG_1_jpg' are in train and val"]


@pytest.fixture
def overlapping(tmp_path):
  """Source a has A and B; source b a copy of A and, of the same source picture, another one."""

  def made(split_of_copy="train"):
    a, b = exports.walls(2, splits=("train",), name="wall")
    first = exports.write_coco(tmp_path / "a", [a, b])
    copy = exports.Wall("IMG_7_jpg.rf.x", split_of_copy, a.outlines, a.seed)
    other = exports.Wall("IMG_7_jpg.rf.y", "valid", b.outlines, 77)
    second = exports.write_coco(tmp_path / "b", [copy, other])
    return [read_source(first, "crack"), read_source(second, "taping area")]

  return made


def test_a_merged_picture_joins_the_groups_of_its_copies(overlapping):
  both, alone, other = mixing.mix(overlapping())
  assert both.concepts == ("crack", "taping area")
  assert both.group == other.group != alone.group
  assert both.annotations == {"crack": 1, "taping area": 1}


def test_copies_in_two_official_splits_stay_apart_and_are_reported(overlapping):
  items = mixing.mix(overlapping("valid"))
  assert len(items) == 4
  clusters = fingerprint.clusters([item.group for item in items], [])
  assert [len(leak) for leak in splits.leaks([i.split for i in items], clusters)] == [3]


def test_a_merged_picture_has_the_largest_weight_of_its_sources(overlapping):
  sources = overlapping()
  items = mixing.mix(sources)
  one, two = (source.name for source in sources)
  assert items[0].source == f"{one}+{two}"
  ids = [item.image_id for item in mixing.weighted(items, {one: 2, two: 3})]
  assert [sum(i.startswith(item.image_id) for i in ids) for item in items] == [3, 2, 3]


def test_a_link_to_nothing_is_left_to_the_survey(tmp_path):
  sources = [read_source(_numbered(tmp_path / f"s{n}", n)) for n in (1, 2)]
  path = sources[0].items[0].image
  path.unlink()
  path.symlink_to("gone.png")
  assert len(mixing.mix(sources)) == 40
  report = check.check(sources)
  (finding,) = (f for f in report.findings if f.kind == "unreadable picture")
  assert str(path) in finding.message


def test_bombs_and_links_to_nothing_are_set_aside_when_preparing(tmp_path):
  sources = [read_source(_numbered(tmp_path / f"s{n}", n)) for n in (1, 2)]
  bomb, link = (source.items[0].image for source in sources)
  exports.write_bomb(bomb)
  link.unlink()
  link.symlink_to("gone.png")
  done = prepare.prepare(sources, tmp_path / "data", prepare.Options(split="official"))
  assert [str(path) in why for path, why in zip((bomb, link), done.unreadable, strict=True)] == [
    True,
    True,
  ]
  assert "has more than 89478485 pixels" in done.unreadable[0]
  assert done.leaks == ()
  assert sum(counts["pictures"] for counts in done.info.counts.values()) == 38


def test_equal_names_of_sources_have_a_weight_each(tmp_path):
  sources = [read_source(_numbered(tmp_path / n / "a/set", i)) for i, n in enumerate("xy")]
  options = prepare.Options(split="official", weights={"a/set-2": 2})
  info = prepare.prepare(sources, tmp_path / "data", options).info
  assert {name: source["weight"] for name, source in info.sources.items()} == {
    "a/set": 1,
    "a/set-2": 2,
  }
  assert info.counts["train"]["pictures"] == 14 + 2 * 14
