"""What the host does about updates that were skipped for a loss or gradient that was not finite."""

import collections
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from segflax.errors import UserError
from segflax.train_state import NonFinite

_REMEMBERED = 10_000  # steps whose pictures are remembered; checks come far more often
_SHOWN = 4


class NonFiniteWatch:
  """Names the pictures of skipped updates, and ends a run that has skipped too many in a row.

  Args:
    workdir: takes nonfinite.jsonl, one line per check that found skipped updates.
    image_id: record number -> name of the training picture.
    start: the state that training begins or goes on with.
  """

  def __init__(self, workdir: Path, image_id: Callable[[int], str], start: NonFinite):
    self._path, self._image_id = workdir / "nonfinite.jsonl", image_id
    self._total = int(start.total)
    self._recent = collections.deque(maxlen=_REMEMBERED)

  def saw(self, step: int, index: np.ndarray):
    """Remembers which pictures (of this process) a step is made of; -1 is padding."""
    self._recent.append((step, index))

  def check(self, state: NonFinite):
    """Waits for the devices and looks.

    Raises:
      UserError: more updates in a row were not finite than the config allows.
    """
    found = jax.device_get(state)
    new, self._total = int(found.total) - self._total, int(found.total)
    if not new:
      return
    step = int(found.last_step)
    records = next((index for seen, index in self._recent if seen == step), ())
    pictures = [self._image_id(int(i)) for i in records if i >= 0]
    line = {"step": step, "skipped": new, "skipped_in_all": self._total, "pictures": pictures}
    with self._path.open("a") as file:
      file.write(json.dumps(line) + "\n")
    if found.halted:
      raise UserError(
        f"the loss or its gradient was not finite in {int(found.streak)} updates in a row, the "
        f"last at step {step}, on {', '.join(pictures[:_SHOWN])}, … (all in {self._path}); no "
        "update was made from them: lower lr, look at the pictures, or raise max_nonfinite"
      )
