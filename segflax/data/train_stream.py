"""The training stream: endless, and resumable to the example.

What it delivers at a step is a function of (seed, step) alone, so its position is one number, the
same on every process and for any number of processes: step `t` is global batch
`t % steps_per_epoch` of epoch `t // steps_per_epoch`, and process p of n takes the p-th of its n
contiguous slices. Decoding runs ahead in threads; the order never depends on them.
"""

import sys
from pathlib import Path

import grain
import numpy as np

from segflax.data import reading, rows
from segflax.data.prompts import PromptSet
from segflax.data.reading import Source
from segflax.data.rows import Unreadable
from segflax.data.set_aside import SetAside
from segflax.errors import UserError


class TrainStream:
  """Endless iterator over batches; `make_train_stream` says what is in them.

  Attributes:
    steps_per_epoch: global batches per epoch, the padded last one included.
    num_examples: pictures per epoch.
    set_aside: the unreadable pictures met so far.
  """

  def __init__(self, position_to_row, *, identity: dict, local_batch: int, read, set_aside):
    self.num_examples = identity["num_examples"]
    self.steps_per_epoch = -(-self.num_examples // identity["batch_size"])
    self.set_aside = set_aside
    self._identity, self._local_batch, self._read = identity, local_batch, read
    self._rows = grain.MapDataset.range(sys.maxsize).map(position_to_row)
    self._start(0)

  def __iter__(self) -> "TrainStream":
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    self.set_aside.check()
    self._step += 1
    return batch

  def get_state(self) -> dict[str, int | str]:
    """Returns the position after the last delivered batch: JSON-able, the same on all processes."""
    return {"step": self._step, **self._identity}

  def set_state(self, state: dict[str, int | str]):
    """Moves to a position; the next batch is the one that followed `get_state`.

    Raises:
      UserError: the state is of another data set, batch size or seed: its position means nothing.
    """
    saved = dict.fromkeys(self._identity, "unknown") | state
    for name, value in self._identity.items():
      if saved[name] != value:
        raise UserError(
          f"the saved data position is of {name} {saved[name]}, this stream has {name} {value}; "
          "resume with the same data and settings, or start a new workdir"
        )
    self.close()
    self._start(state["step"])

  def close(self):
    """Stops the decoding threads."""
    self._batches.close()

  def _start(self, step: int):
    self._step = step
    ahead = self._rows[step * self._local_batch :]
    self._batches = iter(ahead.to_iter_dataset(self._read).batch(self._local_batch))


def make_train_stream(
  data: str | Path | Source,
  split: str = "train",
  *,
  batch_size: int,
  image_size: int,
  prompts: PromptSet,
  prompts_per_picture: int = 1,
  negative_probability: float = 0.0,
  max_corrupt: int = 0,
  seed: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 2,
  images: bool = True,
) -> TrainStream:
  """Returns this process's share of the endless training stream.

  Within an epoch every picture comes exactly once, in an order of (seed, epoch); the last batch
  is filled up with rows that are not `valid`. A batch is a dict of arrays (b: local batch, q:
  `prompts_per_picture`, s: `image_size`):

      image   [b s s 3] uint8
      mask    [b q s s] uint8, coverage 0..255
      prompt  [b q] int32, prompt ids
      valid   [b q] bool, False: padding, an unfilled slot, or a picture that was set aside
      key     [b 2] uint32, of (seed, epoch, record)
      index   [b] int32, record number, -1: padding

  Of a picture's concepts q are drawn, and one of its synonyms for each. With
  `negative_probability` one slot (a free one, or the last) asks instead for a concept the source
  says nothing of, with an empty mask; where it does say "absent", that is an ordinary example.

  Args:
    data: data set folder, or an opened source (then `split` is not used).
    batch_size: global, a multiple of `process_count`.
    max_corrupt: unreadable pictures that may be set aside before UserError, per process.
    num_threads: of this process, for decoding; 0: none, decode when asked.
    images: off, batches come without `image`, whose decoding is most of the work.

  Raises:
    UserError: no such data or split, it is empty, or a number above is out of its range.
  """
  source, content = reading.open_source(data, split, prompts)
  local = reading.local_batch(batch_size, process_count)
  if not 0 <= negative_probability <= 1:
    raise UserError(f"negative_probability {negative_probability} must lie in [0, 1]")
  if not 1 <= prompts_per_picture <= len(prompts.concepts):
    raise UserError(
      f"prompts_per_picture {prompts_per_picture} must lie between 1 and the number of concepts, "
      f"{len(prompts.concepts)}"
    )
  if not 0 <= seed < 2**32:
    raise UserError(f"seed {seed} must lie in [0, 2**32)")
  n = len(source)
  steps = -(-n // batch_size)
  set_aside = SetAside(max_corrupt)
  # Grain's shuffle is a function of (seed, position): no permutation is held in memory.
  order = grain.MapDataset.range(n).seed(seed).shuffle().repeat()

  def row(position: int) -> dict[str, np.ndarray]:
    step, place = divmod(position, local)
    epoch, step = divmod(step, steps)
    slot = step * batch_size + process_index * local + place
    if slot >= n:
      return rows.empty_train_row(prompts_per_picture, image_size, -1, images)
    index = order[epoch * n + slot]
    seeds = np.random.SeedSequence([seed, epoch, index])
    try:
      filled = rows.train_row(
        source[index],
        np.random.default_rng(seeds),
        prompts,
        slots=prompts_per_picture,
        negative_probability=negative_probability,
        image_size=image_size,
        images=images,
      )
    except Unreadable as error:
      set_aside.add(index, error)
      return rows.empty_train_row(prompts_per_picture, image_size, index, images)
    return filled | {"key": seeds.generate_state(2), "index": np.int32(index)}

  return TrainStream(
    row,
    identity={
      "seed": seed,
      "num_examples": n,
      "batch_size": batch_size,
      "content_sha256": content,  # As many pictures may be other pictures.
    },
    local_batch=local,
    read=reading.read_options(num_threads, local),
    set_aside=set_aside,
  )
