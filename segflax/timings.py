"""Where the time of a run goes."""

import collections
import contextlib
import time


class Timings:
  """Wall-clock seconds by phase; a phase inside another counts for itself alone."""

  def __init__(self):
    self.seconds = collections.Counter()
    self._start = time.monotonic()
    self._stack, self._mark = [], self._start

  @contextlib.contextmanager
  def __call__(self, phase: str):
    """Adds the time spent in the `with` block to `phase`."""
    self._settle()
    self._stack.append(phase)
    try:
      yield
    finally:
      self._settle()
      self._stack.pop()

  def state_dict(self) -> dict[str, float]:
    """Returns seconds by phase so far, as JSON."""
    return dict(self.seconds)

  def load_state_dict(self, state: dict[str, float]):
    """Adds the time that the run took before it was interrupted."""
    self.seconds.update(state)
    self._start -= sum(state.values())

  def _settle(self):
    now = time.monotonic()
    if self._stack:
      self.seconds[self._stack[-1]] += now - self._mark
    self._mark = now

  def summary(self) -> dict[str, float]:
    """Returns seconds by phase, `total` since the start, and `other` for what no phase claims."""
    total = time.monotonic() - self._start
    other = total - sum(self.seconds.values())
    return {
      name: round(value, 3)
      for name, value in {**self.seconds, "other": other, "total": total}.items()
    }

  def speed(self, pictures: int) -> dict[str, float]:
    """Returns what the times say of the run.

    Args:
      pictures: trained on, repetitions counted.

    Returns:
      `images_per_second` of training, its waits for data included; `training_share`: of the time
      since the start, what was training steps.
    """
    seconds = self.summary()
    training = self.seconds["train"] + self.seconds["data_wait"]
    return {
      "images_per_second": round(pictures / max(training, 1e-9), 3),
      "training_share": round(self.seconds["train"] / max(seconds["total"], 1e-9), 4),
    }
