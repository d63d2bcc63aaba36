"""What both streams share: where their rows come from, and how many are read at a time."""

from pathlib import Path
from typing import Protocol

import grain

from segflax.data.builder import load_info, open_split
from segflax.data.prompts import PromptSet
from segflax.errors import UserError


class Source(Protocol):
  """Random access to undecoded records, as `segflax.data.builder.open_split` returns them."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict: ...


def open_source(data: str | Path | Source, split: str, prompts: PromptSet) -> tuple[Source, str]:
  """Returns the undecoded records and what their content is known by.

  Args:
    data: data set folder, or an opened source (then `split` is not used).
    split: of the data set.
    prompts: must have every concept of the data set.

  Returns:
    The source, and the data set's `content_sha256`, "" for an opened source.

  Raises:
    UserError: no such data or split, it is empty, or a concept has no prompts.
  """
  if isinstance(data, str | Path):
    info, source = load_info(data), open_split(data, split)
    concepts, content = info.concepts, info.content_sha256
  else:
    concepts, content, source = (), "", data
  if missing := sorted(set(concepts) - set(prompts.concepts)):
    raise UserError(f"the data set has the concepts {missing}, the prompts do not: add prompts")
  if not len(source):
    raise UserError(f"split {split!r} of {data} is empty; it needs at least one picture")
  return source, content


def local_batch(batch_size: int, process_count: int) -> int:
  """Returns the rows of one process; raises UserError where they do not come out even."""
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f"batch_size {batch_size} must be a positive multiple of the {process_count} processes"
    )
  return batch_size // process_count


def read_options(num_threads: int, local_batch: int) -> grain.ReadOptions:
  """Returns how far decoding runs ahead, and in how many threads."""
  # Enough to refill a batch while another is used; Grain's default of 500 pictures is half a GiB.
  ahead = 2 * local_batch + num_threads if num_threads else 0
  return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
