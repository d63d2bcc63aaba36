"""What the host does about updates that were skipped for a loss or gradient that was not finite."""

import collections
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from segflax.errors import UserError
from segflax.train_state import RECENT, NonFinite

_REMEMBERED = 10_000  # steps whose pictures are remembered; checks come far more often
_SHOWN = 4


class NonFiniteWatch:
  """Names the pictures of skipped updates, and ends a run that has skipped too many in a row.

  Args:
    workdir: takes nonfinite.jsonl, a line per skipped update (the latest 32 of each check).
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
    total = int(found.total)
    for number in range(max(self._total, total - RECENT), total):
      step = int(found.recent[number % RECENT])
      line = {"step": step, "skipped_in_all": number + 1, "pictures": self._pictures(step)}
      with self._path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    self._total = total
    if found.halted:
      step = int(found.recent[(total - 1) % RECENT])
      raise UserError(
        f"the loss or its gradient was not finite in {int(found.streak)} updates in a row, the "
        f"last at step {step}, on {', '.join(self._pictures(step)[:_SHOWN])}, … (all in "
        f"{self._path}); no update was made from them: look at the pictures, raise max_nonfinite, "
        "or lower lr in a new workdir with --config.resume to start from this one's checkpoint"
      )

  def _pictures(self, step: int) -> list[str]:
    records = next((index for seen, index in self._recent if seen == step), ())
    return [self._image_id(int(i)) for i in records if i >= 0]
