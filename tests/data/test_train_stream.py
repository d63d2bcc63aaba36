"""The training stream against plain loops over the records, and the uninterrupted run."""

import json

import numpy as np
import pytest
import streams
from streams import PROMPTS, SIZE, N, assert_same, png, record, take, train

from segflax.data.builder import write_dataset
from segflax.data.synthetic import generate_walls
from segflax.errors import UserError


@pytest.fixture(scope="module")
def records():
  return streams.records()


def test_batches_have_the_documented_shapes(records):
  batch = next(train(records, prompts_per_picture=2))
  expected = {
    "image": ((8, SIZE, SIZE, 3), np.uint8),
    "mask": ((8, 2, SIZE, SIZE), np.uint8),
    "prompt": ((8, 2), np.int32),
    "valid": ((8, 2), bool),
    "key": ((8, 2), np.uint32),
    "index": ((8,), np.int32),
  }
  assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected


def test_without_images_everything_else_is_the_same(records):
  whole = take(train(records, negative_probability=0.5), 3)
  for batch in whole:
    del batch["image"]
  broken = [entry | {"image": b""} for entry in records]  # Pictures are not even looked at.
  assert_same(take(train(broken, negative_probability=0.5, images=False), 3), whole)


def test_a_row_is_its_record_and_its_mask_is_of_its_prompt(records):
  for batch in take(train(records, prompts_per_picture=2), 3):
    for row in np.flatnonzero(batch["valid"].all(1)):
      assert (batch["image"][row] == batch["index"][row]).all()
      assert set(PROMPTS.concept_of[batch["prompt"][row]]) == {0, 1}
      for slot in (0, 1):
        truth = np.zeros((SIZE, SIZE), np.uint8)
        if PROMPTS.concept_of[batch["prompt"][row, slot]] == 0:
          truth[: SIZE // 2] = 255
        else:
          truth[:, : SIZE // 2] = 255
        np.testing.assert_array_equal(batch["mask"][row, slot], truth)


@pytest.mark.parametrize("batch_size, steps", [(8, 3), (7, 3), (1, 21), (32, 1)])
def test_every_picture_comes_once_per_epoch_and_the_rest_is_padding(records, batch_size, steps):
  stream = train(records, batch_size=batch_size)
  assert (stream.steps_per_epoch, stream.num_examples) == (steps, N)
  orders = []
  for _ in range(3):
    batches = take(stream, steps)
    index = np.concatenate([batch["index"] for batch in batches])
    valid = np.concatenate([batch["valid"].any(1) for batch in batches])
    assert len(index) == steps * batch_size
    np.testing.assert_array_equal(valid, index >= 0)
    assert sorted(index[valid]) == list(range(N))
    assert valid[:N].all()  # Padding is at the end.
    orders.append(tuple(index[:N]))
  assert len(set(orders)) == 3 and tuple(range(N)) not in orders


def test_the_order_is_of_the_seed_and_the_threads_have_no_say(records):
  reference = take(train(records, num_threads=0), 7)
  assert_same(reference, take(train(records, num_threads=3), 7))
  other = take(train(records, seed=4), 1)[0]
  assert not np.array_equal(other["index"], reference[0]["index"])


@pytest.mark.parametrize("count", [2, 4])
def test_two_epochs_over_processes_are_those_of_one_process(records, count):
  reference = take(train(records, prompts_per_picture=2), 6)
  shares = [
    take(train(records, prompts_per_picture=2, process_index=p, process_count=count), 6)
    for p in range(count)
  ]
  joined = [
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert_same(reference, joined)
  seen = np.concatenate([batch["index"] for batch in joined])
  np.testing.assert_array_equal(np.bincount(seen[seen >= 0]), np.full(N, 2))


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_resume_is_the_uninterrupted_run(records, stop):
  """Stops within an epoch, at its end, and after it, with batches already read ahead."""
  reference = take(train(records), 9)
  stream = train(records)
  take(stream, stop)
  state = json.loads(json.dumps(stream.get_state()))
  take(stream, 2)  # What came after the saving is forgotten.
  resumed = train(records)
  resumed.set_state(state)
  assert resumed.get_state() == state
  assert_same(reference[stop:], take(resumed, 9 - stop))
  stream.set_state(state)
  assert_same(reference[stop:], take(stream, 9 - stop))


def test_a_position_moves_between_numbers_of_processes(records):
  reference = take(train(records), 6)
  stream = train(records)
  take(stream, 4)
  half = train(records, process_index=1, process_count=2)
  half.set_state(stream.get_state())
  for batch, whole in zip(take(half, 2), reference[4:], strict=True):
    np.testing.assert_array_equal(batch["index"], whole["index"][4:])
    np.testing.assert_array_equal(batch["key"], whole["key"][4:])


@pytest.mark.parametrize("name", ["seed", "num_examples", "batch_size"])
def test_a_position_of_other_data_is_refused(records, name):
  stream = train(records)
  state = stream.get_state()
  with pytest.raises(UserError, match=f"saved data position is of {name} 99, this stream has"):
    stream.set_state(state | {name: 99})


def test_a_position_of_as_many_other_pictures_is_refused(tmp_path):
  for name, seed in (("one", 0), ("same", 0), ("other", 1)):
    walls = list(generate_walls(5, 40, seed))
    write_dataset(tmp_path / name, {"train": walls}, ["crack", "taping area"])
  state = json.loads(json.dumps(train(tmp_path / "one").get_state()))
  train(tmp_path / "same").set_state(state)
  with pytest.raises(UserError, match=r"position is of content_sha256 [0-9a-f]{64}, this"):
    train(tmp_path / "other").set_state(state)
  del state["content_sha256"]
  with pytest.raises(UserError, match="saved data position is of content_sha256 unknown, this"):
    train(tmp_path / "one").set_state(state)


def test_keys_differ_by_picture_epoch_and_seed(records):
  keys = [tuple(k) for b in take(train(records), 6) for k in b["key"][b["index"] >= 0]]
  keys += [tuple(k) for b in take(train(records, seed=4), 3) for k in b["key"][b["index"] >= 0]]
  assert len(set(keys)) == 3 * N


def test_synonyms_and_concepts_are_drawn_evenly():
  drawn = [
    b["prompt"][:, 0] for b in take(train([record(0)] * 600, batch_size=600, image_size=8), 1)
  ]
  counts = np.bincount(np.concatenate(drawn), minlength=5)
  # Two prompts of one concept, three of the other: 150 and 100 each, within 4 standard deviations.
  np.testing.assert_allclose(counts, [150, 150, 100, 100, 100], atol=45)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_negatives_come_at_the_stated_rate_and_are_empty(slots, probability):
  known_crack = [record(0, concepts=["crack"])] * 400
  stream = train(
    known_crack,
    batch_size=400,
    image_size=8,
    prompts_per_picture=slots,
    negative_probability=probability,
  )
  batch = next(stream)
  negative = batch["valid"] & (PROMPTS.concept_of[batch["prompt"]] == 1)
  assert not batch["mask"][negative].any()
  # 4 standard deviations of a binomial of 400.
  deviation = 4 * np.sqrt(probability * (1 - probability) / 400)
  assert abs(negative.any(1).mean() - probability) <= deviation
  positive = batch["valid"] & (PROMPTS.concept_of[batch["prompt"]] == 0)
  assert (batch["mask"][positive].max((1, 2)) == 255).all()
  if slots == 2:  # A negative takes the free slot, never the picture's own concept.
    assert (
      positive.any(1).all() and (positive.sum(1) + negative.sum(1) == batch["valid"].sum(1)).all()
    )
  else:
    assert (positive ^ negative).all()


def test_vouched_absence_is_an_ordinary_example():
  absent = record(0, concepts=["taping area"])
  absent["masks"] = [png(np.zeros((20, 28), np.uint8))]
  batch = next(train([absent] * 8))
  assert batch["valid"].all() and not batch["mask"].any()
  assert (PROMPTS.concept_of[batch["prompt"]] == 1).all()


def test_unfilled_slots_and_pictures_without_concepts_are_not_valid():
  batch = next(
    train([record(0, concepts=["crack"]), record(1, concepts=[])] * 4, prompts_per_picture=2)
  )
  by_picture = {0: [True, False], 1: [False, False]}
  for image, valid in zip(batch["image"], batch["valid"], strict=True):
    assert valid.tolist() == by_picture[image[0, 0, 0]]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"batch_size": 7, "process_count": 2}, "batch_size 7 must be a positive multiple of the 2"),
    ({"batch_size": 0}, "batch_size 0"),
    ({"negative_probability": 1.5}, "negative_probability 1.5 must lie in"),
    ({"prompts_per_picture": 3}, "prompts_per_picture 3 must lie between 1 and .* 2"),
    ({"seed": -1}, "seed -1 must lie in"),
  ],
)
def test_settings_out_of_range_are_named(records, options, message):
  with pytest.raises(UserError, match=message):
    train(records, **options)
