"""A progress bar for long work: one line that moves on a terminal, a few lines in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")
_WIDTH = 24  # characters of the bar
_REDRAW = 0.1  # seconds between two states of a moving line
_LOG_EVERY = 20.0  # seconds between two lines of a log file


def progress(
  values: Iterable[T], label: str, total: int | None = None, stream: TextIO | None = None
) -> Iterator[T]:
  """Yields `values` and shows how far it is, on standard error.

  Args:
    values: What is worked through.
    label: What is being done.
    total: How many there are; by default `len(values)`.
    stream: Where to write; by default `sys.stderr`.
  """
  stream = stream or sys.stderr
  total = len(values) if total is None else total
  moving = stream.isatty()
  start = shown = time.monotonic()
  done = 0
  for value in values:
    now = time.monotonic()
    if now - shown >= (_REDRAW if moving else _LOG_EVERY):
      shown = now
      _show(stream, label, done, total, now - start, moving)
    yield value
    done += 1
  _show(stream, label, done, total, time.monotonic() - start, moving)
  if moving:
    stream.write("\n")


def _show(stream: TextIO, label: str, done: int, total: int, seconds: float, moving: bool):
  filled = _WIDTH * done // max(total, 1)
  rate = done / max(seconds, 1e-9)
  text = f"{label} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}, "
  text += f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2f}/s"
  if 0 < done < total:
    text += f", {(total - done) / rate:.0f} s left"
  stream.write(f"\r{text}\x1b[K" if moving else f"{text}\n")
  stream.flush()
