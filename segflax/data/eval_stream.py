"""The evaluation stream: one exact pass, in order, masks at their own size."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import numpy as np

from segflax.data import reading, rows
from segflax.data.builder import load_info
from segflax.data.prompts import PromptSet
from segflax.data.reading import Source
from segflax.data.rows import Unreadable
from segflax.data.set_aside import SetAside

_CANVAS_STEP = 16  # Canvases are rounded up to it: similar data sets share compiled programs.


class EvalStream:
  """Iterable over the batches of one pass; `make_eval_stream` says what is in them.

  Attributes:
    steps: batches in a pass, the padded last one included, the same on every process.
    num_examples: pictures in the split.
    canvas: height and width of the masks' canvas.
    set_aside: the unreadable pictures met so far.
  """

  def __init__(self, position_to_row, *, num_examples, steps, canvas, local_batch, read, set_aside):
    self.num_examples, self.steps, self.canvas = num_examples, steps, canvas
    self.set_aside = set_aside
    dataset = grain.MapDataset.range(steps * local_batch).map(position_to_row)
    self._batches = dataset.to_iter_dataset(read).batch(local_batch)

  def __len__(self) -> int:
    return self.steps

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    for batch in self._batches:
      self.set_aside.check()
      yield batch


def make_eval_stream(
  data: str | Path | Source,
  split: str = "val",
  *,
  batch_size: int,
  image_size: int,
  prompts: PromptSet,
  max_corrupt: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 2,
) -> EvalStream:
  """Returns this process's share of one ordered pass over a split; iterate as often as needed.

  Every picture comes exactly once; every process gets the same number of batches. A batch is a
  dict of arrays (b: local batch, k: concepts of `prompts`, s: `image_size`, H W: the canvas, as
  large as the largest picture, rounded up to a multiple of 16):

      image  [b s s 3] uint8
      mask   [b k H W] uint8 {0, 1}, at the picture's own size in the top left corner
      known  [b k] bool, False: the source says nothing of the concept
      size   [b 2] int32, own height and width
      valid  [b] bool, False: padding, or a picture that was set aside
      index  [b] int32, record number, -1: padding

  Args and Raises: as `segflax.data.train_stream.make_train_stream`.
  """
  source, _ = reading.open_source(data, split, prompts)
  local = reading.local_batch(batch_size, process_count)
  n, k = len(source), len(prompts.concepts)
  canvas = _canvas(data, split, source)
  set_aside = SetAside(max_corrupt)

  def row(position: int) -> dict[str, np.ndarray]:
    step, place = divmod(position, local)
    index = step * batch_size + process_index * local + place
    if index >= n:
      return rows.empty_eval_row(k, canvas, image_size, -1)
    try:
      filled = rows.eval_row(source[index], prompts, canvas, image_size)
    except Unreadable as error:
      set_aside.add(index, error)
      return rows.empty_eval_row(k, canvas, image_size, index)
    return filled | {"index": np.int32(index)}

  return EvalStream(
    row,
    num_examples=n,
    steps=-(-n // batch_size),
    canvas=canvas,
    local_batch=local,
    read=reading.read_options(num_threads, local),
    set_aside=set_aside,
  )


def _canvas(data: str | Path | Source, split: str, source: Source) -> tuple[int, int]:
  if isinstance(data, str | Path):
    counts = load_info(data).counts[split]
    size = counts["max_height"], counts["max_width"]
  else:
    records: Sequence[dict] = [source[i] for i in range(len(source))]
    size = max(r["height"] for r in records), max(r["width"] for r in records)
  height, width = (-(-side // _CANVAS_STEP) * _CANVAS_STEP for side in size)
  return height, width
