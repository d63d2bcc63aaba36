"""The plateau against torch's ReduceLROnPlateau, live, over random sequences and settings."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from segflax.plateau import Plateau

pytestmark = pytest.mark.parity

# Coarse values hit the thresholds exactly, fine ones fall anywhere.
VALUES = st.one_of(
  st.integers(-10, 10).map(lambda i: i / 10), st.floats(-1e3, 1e3, allow_nan=False)
)


@settings(max_examples=500, deadline=None)
@given(
  lr=st.sampled_from([1e-4, 0.1, 3.0]),
  mode=st.sampled_from(["min", "max"]),
  factor=st.floats(0.01, 0.99),
  patience=st.integers(0, 5),
  threshold=st.sampled_from([0.0, 1e-4, 0.1, 0.5]),
  threshold_mode=st.sampled_from(["rel", "abs"]),
  cooldown=st.integers(0, 4),
  min_lr=st.sampled_from([0.0, 1e-5, 0.05]),
  values=st.lists(VALUES, max_size=60),
)
def test_equal_to_torch_after_every_epoch(lr, values, **options):
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
  theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
  ours = Plateau(lr, **options)
  for value in values:
    before = optimizer.param_groups[0]["lr"]
    theirs.step(value)
    reduced = ours.update(value)
    assert ours.rate == optimizer.param_groups[0]["lr"]  # Exactly: both are float64.
    assert reduced == (ours.rate < before)
    assert (ours.best, ours.bad_epochs, ours.cooldown_left) == (
      theirs.best,
      theirs.num_bad_epochs,
      theirs.cooldown_counter,
    )
