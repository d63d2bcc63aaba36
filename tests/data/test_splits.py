"""Splits that never share a source picture, and the fingerprints that find hidden copies."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from segflax.data import fingerprint, mixing, splits
from segflax.data.items import Item, Source
from segflax.errors import UserError


def _item(number, group=None, source="a", concept="crack", split="", image=b""):
  return Item(
    image_id=f"{source}{number}",
    image=lambda: image,
    split=split,
    group=group or f"{source}{number}",
    source=source,
    concepts=(concept,),
    masks=lambda: {concept: Image.new("L", (4, 4))},
  )


def _population(seed=0):
  """Two sources; the second one's pictures come in 1 to 6 copies."""
  rng = np.random.default_rng(seed)
  items = [_item(i) for i in range(300)]
  for group in range(60):
    copies = rng.integers(1, 7)
    items += [_item(f"{group}.{c}", f"g{group}", "b", "taping area") for c in range(copies)]
  return items, fingerprint.clusters([item.group for item in items], [])


def test_no_cluster_is_cut_and_shares_are_kept_per_source():
  items, clusters = _population()
  chosen = splits.grouped(items, clusters, seed=1)
  assert splits.leaks(chosen, clusters) == []
  for source in ("a", "b"):
    own = [split for item, split in zip(items, chosen, strict=True) if item.source == source]
    for split, fraction in splits.FRACTIONS.items():
      assert abs(own.count(split) / len(own) - fraction) < 0.02


def test_the_seed_decides_and_repeats():
  items, clusters = _population()
  assert splits.grouped(items, clusters, seed=1) == splits.grouped(items, clusters, seed=1)
  assert splits.grouped(items, clusters, seed=1) != splits.grouped(items, clusters, seed=2)


def test_every_split_gets_a_picture_even_of_few():
  items = [_item(i) for i in range(3)]
  assert set(splits.grouped(items, [0, 1, 2])) == {"train", "val", "test"}
  with pytest.raises(UserError, match="2 different source pictures cannot fill 3 splits"):
    splits.grouped(items, [0, 0, 1])
  with pytest.raises(UserError, match="must be positive and sum to 1"):
    splits.grouped(items, [0, 1, 2], {"train": 0.5, "val": 0.1})


def test_official_splits_stay_and_a_missing_test_split_is_cut_by_cluster():
  items = [_item(i, group=f"g{i // 2}", split="train") for i in range(40)]
  items += [_item(40 + i, split="val") for i in range(5)]
  items += [_item(45, group="g0", split="val")]  # leaks into train
  items += [_item(i, source="b", split=s) for i, s in enumerate(["train", "val", "test"])]
  clusters = fingerprint.clusters([item.group for item in items], [])
  chosen = splits.official(items, clusters, test_fraction=0.1, seed=0)
  assert all(c in (i.split, "test") for i, c in zip(items, chosen, strict=True))
  assert [c for c, i in zip(chosen, items, strict=True) if i.source == "b"] == [
    "train",
    "val",
    "test",
  ]
  assert 4 <= sum(c == "test" for c in chosen[:46]) <= 6
  (leak,) = splits.leaks(chosen, clusters)  # reported, not mended
  assert leak == [0, 1, 45]
  with pytest.raises(UserError, match="1 pictures have no official split"):
    splits.official([*items, _item(99)], [*clusters, 99])


def test_split_files_give_the_splits_back(tmp_path):
  items, clusters = _population()
  chosen = splits.grouped(items, clusters)
  path = tmp_path / "splits.json"
  splits.write_file(path, items, chosen, clusters, {"seed": 42})
  assert splits.read_file(path, items) == chosen
  content = json.loads(path.read_text())
  assert content["how"] == {"seed": 42}
  assert all(len(ids) > 1 for ids in content["same_picture"])
  with pytest.raises(UserError, match="lacks 1 of 1 pictures"):
    splits.read_file(path, [_item("new")])
  content["splits"]["val"].append(content["splits"]["train"][0])
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="twice"):
    splits.read_file(path, items)
  path.write_text("[]")
  with pytest.raises(UserError, match="is not a split file"):
    splits.read_file(path, items)
  with pytest.raises(UserError, match="cannot be read"):
    splits.read_file(tmp_path / "none.json", items)


def _wall(seed, size=(320, 240)):
  """Wall-like: broad light, fine grain, one dark joint or crack."""
  rng = np.random.default_rng(seed)
  width, height = size
  light = Image.fromarray(rng.uniform(120, 220, (3, 4)).astype(np.float32)).resize(size)
  grain = Image.fromarray(rng.normal(0, 12, (60, 80)).astype(np.float32)).resize(size)
  picture = np.asarray(light) + np.asarray(grain)
  x = (width * rng.uniform(0.2, 0.8) + np.cumsum(rng.normal(0, 2, height))).astype(int)
  for dx in range(4):
    picture[np.arange(height), np.clip(x + dx, 0, width - 1)] -= 70
  return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).convert("RGB")


def _jpeg(picture, quality):
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=quality)
  return Image.open(buffer)


def test_copies_are_found_and_other_walls_are_not():
  walls = [_wall(seed) for seed in range(40)]
  copies = [
    _jpeg(walls[0], 40),
    walls[1].resize((97, 133)),
    walls[2].transpose(Image.Transpose.ROTATE_90),
    walls[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    walls[4].transpose(Image.Transpose.TRANSVERSE),
    ImageEnhance.Brightness(walls[5]).enhance(0.7),
    ImageEnhance.Contrast(walls[6]).enhance(1.4),
    walls[7].crop((3, 2, 318, 238)),
    walls[8].convert("L"),
  ]
  prints = np.stack([fingerprint.fingerprint(picture) for picture in walls + copies])
  pairs = {(i, j) for i, j, _ in fingerprint.near_duplicates(prints)}
  assert pairs == {(i, 40 + i) for i in range(len(copies))}


def test_blocks_change_nothing(monkeypatch):
  rng = np.random.default_rng(0)
  prints = rng.normal(size=(30, fingerprint.SIZE**2)).astype(np.float32)
  prints[17] = prints[4]
  prints /= np.linalg.norm(prints, axis=1, keepdims=True)
  whole = list(fingerprint.near_duplicates(prints))
  monkeypatch.setattr(fingerprint, "_BLOCK", 7)
  assert [pair[:2] for pair in fingerprint.near_duplicates(prints)] == [(4, 17)]
  assert [pair[:2] for pair in whole] == [(4, 17)]


def test_clusters_join_names_and_pairs():
  assert fingerprint.clusters(["a", "b", "a", "c", "d"], [(3, 1)]) == [0, 1, 0, 1, 4]
  assert fingerprint.clusters(["a", "b", "c", "d"], [(2, 3), (1, 2), (0, 3)]) == [0, 0, 0, 0]


def test_mixing_gives_unique_names_and_merges_one_file_under_two_concepts():
  first = (
    _item(1, source="a", image=b"1"),
    _item(2, source="a", image=b"2"),
  )
  second = (
    dataclasses.replace(_item(1, concept="taping area", image=b"1"), source="b"),
    dataclasses.replace(_item(2, concept="taping area", image=b"other"), source="b"),
  )
  mixed = mixing.mix([Source("a", None, "coco", first), Source("b", None, "coco", second)])
  assert [item.image_id for item in mixed] == ["a1", "a-a2", "b-a2"]
  assert mixed[0].concepts == ("crack", "taping area")
  assert set(mixed[0].masks()) == {"crack", "taping area"}
  assert mixed[0].source == "a+b"


def test_weights_repeat_and_thin_out():
  items = [_item(i) for i in range(10)] + [_item(i, source="b") for i in range(10)]
  chosen = mixing.weighted(items, {"a": 2.5, "b": 0.3})
  ids = [item.image_id for item in chosen]
  assert len(set(ids)) == len(ids)
  assert sum(item.source == "a" for item in chosen) == 25
  assert sum(item.source == "b" for item in chosen) == 3
  assert mixing.weighted(items, {"a": 2.5, "b": 0.3}, seed=1) != chosen
  assert len(mixing.weighted(items, {"a": 2})) == 30
  with pytest.raises(UserError, match="must be positive"):
    mixing.weighted(items, {"a": 0})
