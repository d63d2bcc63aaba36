"""The evaluation stream against plain loops over the records."""

import numpy as np
import pytest
import streams
from streams import assert_same, evaluation, record, take, train

from segflax.data.builder import write_dataset
from segflax.data.prompts import PromptSet
from segflax.data.records import encode
from segflax.data.synthetic import generate_walls
from segflax.errors import UserError


@pytest.fixture(scope="module")
def records():
  return streams.records()


def test_evaluation_sees_every_picture_once_in_order_at_its_own_size():
  mixed = [record(i, height=20 + i, width=50 - i) for i in range(11)]
  mixed[3] = record(3, concepts=["taping area"], height=23, width=47)
  stream = evaluation(mixed, batch_size=4)
  assert (len(stream), stream.num_examples, stream.canvas) == (3, 11, (32, 64))
  for _ in range(2):  # A stream is for every epoch.
    batches = list(stream)
    rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    assert rows["index"].tolist() == [*range(11), -1]
    assert rows["valid"].tolist() == [True] * 11 + [False]
    assert not rows["known"][11].any() and not rows["mask"][11].any()
    assert rows["known"][:11].tolist() == [[i != 3, True] for i in range(11)]
    for i in range(11):
      height, width = rows["size"][i]
      assert (height, width) == (20 + i, 50 - i)
      expected = np.zeros((2, 32, 64), np.uint8)
      if i != 3:
        expected[0, : height // 2, :width] = 1
      expected[1, :height, : width // 2] = 1
      np.testing.assert_array_equal(rows["mask"][i], expected)
      assert (rows["image"][i] == i).all()


def test_evaluation_over_processes_is_that_of_one(records):
  reference = list(evaluation(records))
  shares = [list(evaluation(records, process_index=p, process_count=2)) for p in (0, 1)]
  joined = [
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert_same(reference, joined)


def test_reads_a_prepared_data_set_like_its_records(tmp_path):
  walls = list(generate_walls(9, 40, 0))
  write_dataset(tmp_path, {"train": walls, "val": walls[:5]}, ["crack", "taping area"])
  encoded = [encode(wall) for wall in walls]
  assert_same(take(train(encoded), 3), take(train(tmp_path), 3))
  stream = evaluation(tmp_path)
  assert stream.canvas == (48, 48)
  assert_same(list(evaluation(encoded[:5])), list(stream))
  with pytest.raises(UserError, match="taping area"):
    train(tmp_path, prompts=PromptSet.create(["crack"]))
  with pytest.raises(UserError, match="test"):
    evaluation(tmp_path, split="test")


def test_empty_splits_and_unknown_concepts_are_refused(records):
  with pytest.raises(UserError, match="is empty; it needs at least one picture"):
    evaluation([])
  with pytest.raises(UserError, match="concept 'hole' is none of"):
    next(train([record(0, concepts=["hole"])]))
