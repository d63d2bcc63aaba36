"""prepare_data, as a user calls it."""

import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import exports
import numpy as np
import pytest

from segflax.data import builder, prepare, progress
from segflax.data.sources import read_source
from segflax.errors import UserError

_SCRIPT = Path(__file__).parents[2] / "scripts/prepare_data.py"


def _run(*arguments):
  command = [sys.executable, str(_SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A crack export with 2 Roboflow copies of each of 10 walls, and a taping one of boxes."""
  root = tmp_path_factory.mktemp("exports")
  cracks = exports.walls(10, name="crack")
  copies = [
    exports.Wall(f"{wall.name}_jpg.rf.{copy}", wall.split, wall.outlines, wall.seed + 50 * copy)
    for wall in cracks
    for copy in (0, 1)
  ]
  exports.write_coco(root / "cracks", copies)

  def boxes(split, data):
    for annotation in data["annotations"]:
      annotation["segmentation"] = []

  exports.write_coco(root / "drywall", exports.walls(10, seed=1, name="joint"), boxes)
  return root


@pytest.fixture(scope="module")
def prepared(folders, tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("data")
  done = _run(
    f"--source=crack={folders / 'cracks'}",
    f"--source=taping area={folders / 'drywall'}",
    f"--data_dir={data_dir}",
  )
  assert done.returncode == 0, done.stderr
  return data_dir, done


def test_it_says_what_it_found(prepared, folders):
  _, done = prepared
  name = folders.name
  assert f"{name}/cracks (coco): 20 pictures of 10 source pictures, 20 annot" in done.stdout
  assert f"{name}/drywall (coco): 10 pictures of 10 source pictures, 10 annot" in done.stdout
  assert "10 of them only boxes; taping area; CC BY 4.0" in done.stdout
  assert f"WARNING: {name}/drywall has only boxes" in done.stdout
  assert "30/30" in done.stderr
  assert "\r" not in done.stderr
  assert "Traceback" not in done.stderr


def test_every_picture_is_in_one_split_and_no_source_picture_in_two(prepared):
  data_dir, _ = prepared
  info = builder.load_info(data_dir)
  assert info.concepts == ("crack", "taping area")
  assert info.splits == ("train", "val", "test")
  assert sum(counts["pictures"] for counts in info.counts.values()) == 30
  groups, ids = {}, []
  for split in info.splits:
    opened = builder.open_split(data_dir, split)
    groups[split] = {opened[i]["group"] for i in range(len(opened))}
    ids += [opened[i]["image_id"] for i in range(len(opened))]
  assert len(set(ids)) == 30
  assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 20
  named = json.loads((data_dir / "splits.json").read_text())["splits"]
  assert sorted(image_id for of in named.values() for image_id in of) == sorted(ids)


def test_the_split_file_is_obeyed(prepared, folders, tmp_path):
  data_dir, _ = prepared
  content = json.loads((data_dir / "splits.json").read_text())
  moved = content["splits"]["val"].pop()
  content["splits"]["train"].append(moved)
  (tmp_path / "splits.json").write_text(json.dumps(content))
  sources = _sources(folders)
  options = prepare.Options(split_file=str(tmp_path / "splits.json"))
  info = prepare.prepare(sources, tmp_path / "data", options).info
  stored = builder.open_split(info.path, "train")
  assert moved in {stored[i]["image_id"] for i in range(len(stored))}


def test_official_splits_are_kept_and_their_leaks_reported(folders, tmp_path):
  leaky = exports.walls(6, name="w")
  leaky[2].seed = leaky[0].seed  # the same picture, once in train, once in valid
  source = read_source(exports.write_coco(tmp_path / "leaky", leaky), "crack")
  fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
  options = prepare.Options(split="official", fractions=fractions)
  done = prepare.prepare([source], tmp_path / "data", options)
  assert [set(leak) for leak in done.leaks] == [{"w0", "w2"}]
  assert done.info.counts["val"]["pictures"] == 2
  assert done.info.counts["test"]["pictures"] >= 1
  grouped = prepare.prepare([source], tmp_path / "grouped", prepare.Options(fractions=fractions))
  assert grouped.leaks == ()
  assert [set(pair[:2]) for pair in grouped.same_picture] == [{"w0", "w2"}]


def test_val_and_test_get_pictures_that_show_the_concept(tmp_path):
  def few(split, data):
    kept = {image["id"] for image in data["images"] if int(image["file_name"][4:-4]) % 10 == 0}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]

  folder = exports.write_coco(tmp_path / "few", exports.walls(30, splits=("train",)), few)
  done = prepare.prepare([read_source(folder, "crack")], tmp_path / "data")
  shown = {
    s: c["concepts"]["crack"]["known"] - c["concepts"]["crack"]["empty"]
    for s, c in done.info.counts.items()
  }
  assert shown == {"train": 1, "val": 1, "test": 1}


def test_a_data_set_without_validation_pictures_is_refused(tmp_path):
  folder = exports.write_coco(tmp_path / "one", exports.walls(8, splits=("train",)))
  options = prepare.Options(split="official")
  with pytest.raises(UserError, match=r"no picture is in val; .*--split=grouped"):
    prepare.prepare([read_source(folder, "crack")], tmp_path / "data", options)


def test_empty_masks_are_pointed_out(tmp_path, monkeypatch, capsys):
  def empty(split, data):
    data["annotations"] = []

  folder = exports.write_coco(tmp_path / "empty", exports.walls(8), empty)
  monkeypatch.setattr(
    sys, "argv", ["prepare_data.py", f"--source=crack={folder}", f"--data_dir={tmp_path / 'x'}"]
  )
  with pytest.raises(SystemExit) as ended:
    runpy.run_path(str(_SCRIPT), run_name="__main__")
  assert ended.value.code == 0
  printed = capsys.readouterr().out
  assert "WARNING: every mask of 'crack' in train is empty" in printed
  assert "has only boxes" not in printed  # said of such a source, in the test of what it found


@pytest.mark.parametrize(
  ("side", "max_size", "noted"), [(640, 0, True), (640, 512, False), (512, 0, False)]
)
def test_large_pictures_are_noted_unless_they_are_stored_smaller(
  side, max_size, noted, tmp_path, monkeypatch
):
  monkeypatch.setattr(exports, "SIZE", (side, side // 2))
  source = read_source(exports.write_coco(tmp_path / "large", exports.walls(4)), "crack")
  done = prepare.prepare([source], tmp_path / "data", prepare.Options(max_size=max_size))
  assert done.longest == side
  printed = runpy.run_path(str(_SCRIPT))["report"](done, max_size)
  assert ("note: half of the pictures are 640 px long" in printed) == noted


def test_unreadable_pictures_are_set_aside_up_to_a_limit(tmp_path):
  folder = exports.write_coco(tmp_path / "broken", exports.walls(8))
  path = folder / "train/wall0.png"
  path.write_bytes(path.read_bytes()[:200])
  source = read_source(folder, "crack")
  done = prepare.prepare([source], tmp_path / "data", prepare.Options(max_corrupt=1))
  (message,) = done.unreadable
  assert str(path) in message
  assert sum(counts["pictures"] for counts in done.info.counts.values()) == 7
  with pytest.raises(UserError, match=r"1 pictures are unreadable, 0 may be.*wall0\.png"):
    prepare.prepare([source], tmp_path / "none", prepare.Options(max_corrupt=0))


def test_misaligned_masks_are_all_named_before_anything_is_written(tmp_path):
  def change(split, data):
    for image in data["images"][:2]:
      image["width"] = 90

  source = read_source(exports.write_coco(tmp_path / "x", exports.walls(6), change), "crack")
  with pytest.raises(UserError, match=r"4 masks do not fit: .*90x64, its picture 80x64"):
    prepare.prepare([source], tmp_path / "data")
  assert not (tmp_path / "data").exists()


def test_weights_and_max_size(folders, tmp_path):
  sources = _sources(folders)
  options = prepare.Options(max_size=40, weights={sources[1].name: 3})
  info = prepare.prepare(sources, tmp_path, options).info
  assert {c["max_width"] for c in info.counts.values()} == {40}
  assert info.sources[sources[1].name]["weight"] == 3
  train = builder.open_split(info.path, "train")
  taping = [i for i in range(len(train)) if train[i]["concepts"] == ["taping area"]]
  assert len(taping) % 3 == 0
  assert len({train[i]["group"] for i in taping}) == len(taping) / 3
  plain = prepare.prepare(sources, tmp_path / "b", prepare.Options(max_size=40)).info
  assert _cracks(info) == _cracks(plain) != []  # weights leave the other sources alone


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--source=crack=/nowhere"], "source /nowhere is not a folder"),
    (["--source=crack=EXPORT", "--max_size=-1"], "max_size -1 must be the longest side in pixels"),
    (["--source=crack=EXPORT", "--fractions=1,2"], "--fractions=1,2 must be three numbers"),
    (["--source=crack=EXPORT", "--weight=tape=2"], "no source or concept is called 'tape'"),
    (["--source=crack=EXPORT", "--weight=crack=much"], "must be NAME=NUMBER"),
  ],
)
def test_bad_input_ends_in_one_sentence(folders, tmp_path, capsys, monkeypatch, arguments, message):
  arguments = [text.replace("EXPORT", str(folders / "cracks")) for text in arguments]
  monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments, f"--data_dir={tmp_path / 'x'}"])
  with pytest.raises(SystemExit) as ended:
    runpy.run_path(str(_SCRIPT), run_name="__main__")
  assert ended.value.code == 2
  printed = capsys.readouterr().err
  assert message in printed
  assert printed.count("\n") == 1


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_bar_moves_on_a_terminal_and_stays_quiet_in_a_file(monkeypatch):
  clock = iter(np.arange(0, 1000, 1.0))
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
  terminal, file = _Terminal(), io.StringIO()
  assert list(progress.progress(range(100), "work", stream=terminal)) == list(range(100))
  assert terminal.getvalue().count("\r") > 90
  assert terminal.getvalue().endswith("\n")
  list(progress.progress(range(100), "work", stream=file))
  assert "\r" not in file.getvalue()
  assert 3 <= file.getvalue().count("\n") <= 7
  assert "100/100" in file.getvalue()


def _cracks(info):
  train = builder.open_split(info.path, "train")
  return [train[i] for i in range(len(train)) if train[i]["concepts"] == ["crack"]]


def _sources(folders):
  return [
    read_source(folders / "cracks", "crack"),
    read_source(folders / "drywall", "taping area"),
  ]
