"""Splits that never share a source picture, and get their share of what is shown."""

import json

import numpy as np
import pytest
from tiny_items import tiny_item

from segflax.data import fingerprint, splits
from segflax.errors import UserError


def _population(seed=0):
  """Two sources; the second one's pictures come in 1 to 6 copies."""
  rng = np.random.default_rng(seed)
  items = [tiny_item(i) for i in range(300)]
  for group in range(60):
    copies = rng.integers(1, 7)
    items += [tiny_item(f"{group}.{c}", f"g{group}", "b", "taping area") for c in range(copies)]
  return items, fingerprint.clusters([item.group for item in items], [])


def _grouped(items, clusters, *rest, **options):
  """Every picture shows all its concepts."""
  return splits.grouped(items, [item.concepts for item in items], clusters, *rest, **options)


def test_no_cluster_is_cut_and_shares_are_kept_per_source():
  items, clusters = _population()
  chosen = _grouped(items, clusters, seed=1)
  assert splits.leaks(chosen, clusters) == []
  for source in ("a", "b"):
    own = [split for item, split in zip(items, chosen, strict=True) if item.source == source]
    for split, fraction in splits.FRACTIONS.items():
      assert abs(own.count(split) / len(own) - fraction) < 0.02


def test_the_seed_decides_and_repeats():
  items, clusters = _population()
  assert _grouped(items, clusters, seed=1) == _grouped(items, clusters, seed=1)
  assert _grouped(items, clusters, seed=1) != _grouped(items, clusters, seed=2)


def test_every_split_gets_a_picture_even_of_few():
  items = [tiny_item(i) for i in range(3)]
  assert set(_grouped(items, [0, 1, 2])) == {"train", "val", "test"}
  with pytest.raises(UserError, match="2 different source pictures cannot fill 3 splits"):
    _grouped(items, [0, 0, 1])
  with pytest.raises(UserError, match="must be positive and sum to 1"):
    _grouped(items, [0, 1, 2], {"train": 0.5, "val": 0.1})


@pytest.mark.parametrize(
  ("positives", "dealt"), [(10, (8, 1, 1)), (5, (3, 1, 1)), (3, (1, 1, 1)), (100, (80, 10, 10))]
)
def test_every_split_gets_its_share_of_the_pictures_that_show_the_concept(positives, dealt):
  """All 200 are vouched for, as in a COCO export; few show it."""
  items = [tiny_item(i) for i in range(200)]
  shown = [["crack"] if i < positives else [] for i in range(200)]
  for seed in range(5):
    chosen = splits.grouped(items, shown, range(200), seed=seed)
    assert tuple(map(chosen[:positives].count, splits.FRACTIONS)) == dealt
    assert tuple(map(chosen.count, splits.FRACTIONS)) == pytest.approx((160, 20, 20), abs=2)


def test_official_splits_stay_and_a_missing_test_split_is_cut_by_cluster():
  items = [tiny_item(i, group=f"g{i // 2}", split="train") for i in range(40)]
  items += [tiny_item(40 + i, split="val") for i in range(5)]
  items += [tiny_item(45, group="g0", split="val")]  # leaks into train
  items += [tiny_item(i, source="b", split=s) for i, s in enumerate(["train", "val", "test"])]
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
    splits.official([*items, tiny_item(99)], [*clusters, 99])


def test_split_files_give_the_splits_back(tmp_path):
  items, clusters = _population()
  chosen = _grouped(items, clusters)
  path = tmp_path / "splits.json"
  splits.write_file(path, items, chosen, clusters, {"seed": 42})
  assert splits.read_file(path, items) == chosen
  content = json.loads(path.read_text())
  assert content["how"] == {"seed": 42}
  assert all(len(ids) > 1 for ids in content["same_picture"])
  with pytest.raises(UserError, match="lacks 1 of 1 pictures"):
    splits.read_file(path, [tiny_item("new")])
  content["splits"]["val"].append(content["splits"]["train"][0])
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="twice"):
    splits.read_file(path, items)
  path.write_text("[]")
  with pytest.raises(UserError, match="is not a split file"):
    splits.read_file(path, items)
  with pytest.raises(UserError, match="cannot be read"):
    splits.read_file(tmp_path / "none.json", items)
