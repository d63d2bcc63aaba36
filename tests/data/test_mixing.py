"""Several sources become one list of pictures."""

import dataclasses

import pytest
from tiny_items import tiny_item

from segflax.data import mixing
from segflax.data.items import Source
from segflax.errors import UserError


def test_mixing_gives_unique_names_and_merges_one_file_under_two_concepts():
  first = (
    tiny_item(1, source="a", image=b"1"),
    tiny_item(2, source="a", image=b"2"),
  )
  second = (
    dataclasses.replace(tiny_item(1, concept="taping area", image=b"1"), source="b"),
    dataclasses.replace(tiny_item(2, concept="taping area", image=b"other"), source="b"),
  )
  mixed = mixing.mix([Source("a", None, "coco", first), Source("b", None, "coco", second)])
  assert [item.image_id for item in mixed] == ["a1", "a-a2", "b-a2"]
  assert mixed[0].concepts == ("crack", "taping area")
  assert set(mixed[0].masks()) == {"crack", "taping area"}
  assert mixed[0].source == "a+b"


def test_weights_repeat_and_thin_out():
  items = [tiny_item(i) for i in range(10)] + [tiny_item(i, source="b") for i in range(10)]
  chosen = mixing.weighted(items, {"a": 2.5, "b": 0.3})
  ids = [item.image_id for item in chosen]
  assert len(set(ids)) == len(ids)
  assert sum(item.source == "a" for item in chosen) == 25
  assert sum(item.source == "b" for item in chosen) == 3
  assert mixing.weighted(items, {"a": 2.5, "b": 0.3}, seed=1) != chosen
  assert len(mixing.weighted(items, {"a": 2})) == 30
  with pytest.raises(UserError, match="must be positive"):
    mixing.weighted(items, {"a": 0})
