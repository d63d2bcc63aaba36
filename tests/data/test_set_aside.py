"""Unreadable pictures, in either stream."""

import numpy as np
import pytest
import streams
from streams import N, evaluation, take, train

from segflax.errors import UserError


@pytest.fixture(scope="module")
def records():
  return streams.records()


def test_corrupt_pictures_are_set_aside_up_to_the_limit(records):
  spoilt = [dict(r) for r in records]
  spoilt[4]["image"] = spoilt[4]["image"][:60]
  spoilt[9]["masks"] = [b"not a picture"] * 2
  stream = train(spoilt, max_corrupt=2)
  batches = take(stream, 6)
  index = np.concatenate([batch["index"] for batch in batches])
  valid = np.concatenate([batch["valid"].any(1) for batch in batches])
  assert set(index[~valid]) == {-1, 4, 9}
  np.testing.assert_array_equal(
    np.bincount(index[valid], minlength=N), [0 if i in (4, 9) else 2 for i in range(N)]
  )
  assert sorted(stream.set_aside.found) == [4, 9]
  assert "picture_4" in stream.set_aside.found[4]
  # The others come in the order in which they come without the fault.
  np.testing.assert_array_equal(
    index, np.concatenate([batch["index"] for batch in take(train(records), 6)])
  )
  with pytest.raises(
    UserError, match=r"(?s)2 unreadable pictures, more than the 1 .*picture_4.*picture_9"
  ):
    take(train(spoilt, max_corrupt=1), 3)
  with pytest.raises(UserError, match=r"1 unreadable pictures, more than the 0 .*"):
    list(evaluation([*records[:4], spoilt[4]]))


def test_each_picture_that_is_set_aside_is_said_once(records, caplog):
  spoilt = [dict(r) for r in records]
  spoilt[4]["image"] = spoilt[4]["image"][:60]
  take(train(spoilt, max_corrupt=1), 9)  # three epochs
  said = [r.getMessage() for r in caplog.records if "set aside" in r.getMessage()]
  assert len(said) == 1 and said[0].startswith("set aside: picture_4 is ")
