"""Plateau and early stopping: torch's sequences, properties, NaN, resuming."""

import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from segflax.errors import UserError
from segflax.plateau import EarlyStopping, Plateau

# What torch 2.13's ReduceLROnPlateau made of lr 1.0 (tests/parity compares live).
GOLDEN = [
  (
    {"factor": 0.5, "patience": 1},
    [1.0, 0.9, 0.95, 0.95, 0.95, 0.95, 0.1],
    [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25],
  ),
  (
    {"factor": 0.1, "patience": 0, "cooldown": 2, "min_lr": 0.05},
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    [1.0, 0.1, 0.1, 0.1, 0.05, 0.05],
  ),
  (
    {"factor": 0.5, "patience": 0, "mode": "max", "threshold": 0.1, "threshold_mode": "rel"},
    [1.0, 1.1, 1.2, 1.25],
    [1.0, 0.5, 0.5, 0.25],
  ),
  (
    {"factor": 0.5, "patience": 0, "mode": "max", "threshold": 0.1, "threshold_mode": "abs"},
    [0.0, 0.05, 0.2, 0.25],
    [1.0, 0.5, 0.5, 0.25],
  ),
]
VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40)


@pytest.mark.parametrize(("options", "values", "rates"), GOLDEN)
def test_torch_sequences(options, values, rates):
  plateau = Plateau(1.0, **options)
  for value, rate in zip(values, rates, strict=True):
    plateau.update(value)
    assert plateau.scale == rate


def test_reduction_smaller_than_eps_is_not_made():
  plateau = Plateau(1e-9, patience=0)
  assert [plateau.update(1.0) for _ in range(3)] == [False] * 3
  assert plateau.rate == 1e-9


@settings(deadline=None)
@given(values=VALUES, cut=st.integers(0, 40))
def test_resumed_anywhere_goes_on_the_same(values, cut):
  def fresh():
    return Plateau(0.1, patience=1, cooldown=1, factor=0.5), EarlyStopping(3)

  whole, first, second = fresh(), fresh(), fresh()
  for value in values:
    for part in whole:
      part.update(value)
  for value in values[:cut]:
    for part in first:
      part.update(value)
  for old, new in zip(first, second, strict=True):
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
  for value in values[cut:]:
    for part in second:
      part.update(value)
  assert whole == second


@settings(deadline=None)
@given(values=VALUES)
def test_what_is_not_finite_changes_nothing(values):
  finite = [value for value in values if math.isfinite(value)]
  for make in (lambda: Plateau(0.1, patience=1), lambda: EarlyStopping(3)):
    with_all, with_finite = make(), make()
    for value in values:
      with_all.update(value)
    for value in finite:
      with_finite.update(value)
    assert with_all == with_finite


def test_not_finite_is_said(caplog):
  with caplog.at_level("WARNING"):
    Plateau(0.1).update(float("nan"))
    EarlyStopping().update(float("nan"))
  assert "plateau: a value of nan is not counted" in caplog.text
  assert "early stopping: a value of nan is not counted" in caplog.text


@settings(deadline=None)
@given(
  values=st.lists(st.floats(0, 1), max_size=30),
  patience=st.integers(0, 5),
  min_delta=st.sampled_from([0.0, 0.05]),
)
def test_early_stopping_is_its_definition(values, patience, min_delta):
  stopping = EarlyStopping(patience, min_delta)
  for count in range(1, len(values) + 1):
    better = stopping.update(values[count - 1])
    # From scratch: walk through the records, each better than the one before by min_delta.
    best, last = values[0], 0
    for i, value in enumerate(values[:count]):
      if value - best > min_delta:
        best, last = value, i
    assert (stopping.best, stopping.bad_epochs) == (best, count - 1 - last)
    assert better == (last == count - 1)
    assert stopping.should_stop == (patience > 0 and count - 1 - last >= patience)


def test_early_stopping_for_a_loss():
  stopping = EarlyStopping(1, mode="min")
  assert [stopping.update(v) for v in (0.5, 0.4, 0.45)] == [True, True, False]
  assert stopping.should_stop
  assert str(stopping) == "1/1"


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Plateau(0.1, mode="down"), "mode 'down' is unknown; available: min, max"),
    (lambda: Plateau(0.1, factor=1.0), "plateau.factor 1.0 is not in"),
    (lambda: Plateau(0.1, threshold=1.5), "plateau.threshold 1.5"),
    (lambda: Plateau(0.1, threshold_mode="x"), "available: rel, abs"),
    (lambda: Plateau(0.1, cooldown=-1), "plateau.cooldown -1 is negative"),
    (lambda: EarlyStopping(-1), "early_stopping_patience -1 is negative"),
    (lambda: EarlyStopping(1, -0.1), "min_delta -0.1 is negative"),
  ],
)
def test_wrong_settings_are_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()
