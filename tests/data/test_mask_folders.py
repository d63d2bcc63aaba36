"""Mask folders and the origin's data/processed are read; names say what masks show."""

import exports
import numpy as np
import pytest

from segflax.data import check, mixing
from segflax.data.sources import read_source
from segflax.errors import UserError


@pytest.fixture(scope="module")
def content():
  return exports.walls()


@pytest.fixture(scope="module")
def truth(content):
  return exports.truth(content)


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("label", ["__segment_crack", "__segment_wall_crack", ""])
def test_mask_folders(tmp_path, content, truth, label, high):
  folder = exports.write_masks(tmp_path, content, truth, label, high)
  source = read_source(folder, "" if label else "crack")
  assert source.layout == "masks"
  exports.assert_agree(exports.masks_of(source), truth)


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
  assert exports.masks_of(read_source(folder, "crack"))["wall0"].all()


def test_names_that_do_not_say_what_masks_show_need_a_concept(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path, content, truth, label="")
  with pytest.raises(UserError, match="name it: --source CONCEPT="):
    read_source(folder)


def test_masks_and_pictures_must_pair(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path, content, truth)
  (folder / "train/masks/wall0__segment_crack.png").rename(folder / "train/masks/wall_0.png")
  with pytest.raises(UserError) as error:
    read_source(folder)
  assert "mask train/masks/wall_0.png has no picture" in str(error.value)
  assert "train/images/wall0.png has no mask" in str(error.value)


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
  exports.assert_agree(exports.masks_of(read_source(tmp_path, "crack")), truth)


def test_valid_and_val_are_both_read(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path, content, truth)
  more = exports.walls(2, splits=("val",), seed=4, name="more")
  exports.write_masks(folder, more, exports.truth(more))
  source = read_source(folder)
  exports.assert_agree(exports.masks_of(source), truth | exports.truth(more))
  assert [item.split for item in source.items].count("val") == 4
  assert len({item.group for item in source.items}) == 8


def test_masks_of_another_known_concept_are_refused(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path / "x", content, truth, "__segment_joint_tape")
  with pytest.raises(UserError, match=r"ask for 'taping area', not 'crack'; read them as --source"):
    read_source(folder, "crack")
  folder = exports.write_masks(tmp_path / "y", content, truth, "__mask")
  source = read_source(folder, "crack")  # a label that is no known prompt may mean anything
  assert source.notes == ("masks of 'mask' are taken as 'crack'",)


def test_masks_out_of_the_folder_are_named_and_not_read(tmp_path, content, truth):
  folder = exports.write_masks(tmp_path / "x", content, truth)
  (folder / "valid/masks").rename(tmp_path / "elsewhere")
  (folder / "valid/masks").symlink_to(tmp_path / "elsewhere")
  source = read_source(folder, strict=False)
  assert source.problems == ("'valid/masks' leaves the folder; only files inside it are read",)
  assert {item.split for item in source.items} == {"train"}


@pytest.fixture
def processed(tmp_path):
  """The origin's folder, both parts of which name their pictures alike."""
  for name, seed in (("cracks", 6), ("taping_area", 7)):
    walls = exports.walls(9, splits=("train", "val", "test"), seed=seed)
    exports.write_masks(tmp_path / "processed" / name, walls, exports.truth(walls), label="")
  return tmp_path / "processed"


def test_a_clean_origin_folder_passes_the_check(processed):
  source = read_source(processed)
  assert {item.source for item in source.items} == {source.name}
  assert len({item.group for item in source.items}) == 18
  report = check.check([source])
  assert [f.message for f in report.findings if f.level == check.ERROR] == []


def test_an_origin_folder_has_a_weight(processed):
  source = read_source(processed)
  train = [item for item in source.items if item.split == "train"]
  assert len(mixing.weighted(train, {source.name: 3})) == 18


def test_in_an_origin_folder_the_folder_decides(tmp_path, content, truth):
  # Prompts were overwritten there; what the prompt files say is compared, and reported.
  exports.write_masks(tmp_path / "cracks", content, truth, "__segment_joint_tape")
  source = read_source(tmp_path)
  assert source.concepts == ("crack",)
  assert "cracks: masks of 'taping area' are taken as 'crack'" in source.notes


def test_prompt_files_out_of_the_folder_are_not_read(processed, tmp_path):
  (tmp_path / "secret.txt").write_text("password")
  prompts = processed / "cracks/train/prompts"
  prompts.mkdir()
  (prompts / "wall0.txt").symlink_to(tmp_path / "secret.txt")
  source = read_source(processed, strict=False)
  (problem,) = source.problems
  assert problem.startswith("'cracks/train/prompts/wall0.txt' leaves the folder")
