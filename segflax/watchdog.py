"""Ends a process whose loop stands still, so that a run of several never waits for ever."""

import faulthandler
import sys


class Watchdog:
  """A timer that ends the process with exit code 1 unless `beat` is called often enough.

  A process that dies is noticed by JAX's heartbeat. One that hangs in its own code (a file server
  that no longer answers) keeps its heart beating, and the others wait in a collective: there the
  timer prints where every thread stands, and leaves.

  Args:
    seconds: between two beats at most; 0: no limit.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds

  def beat(self):
    """Starts the time anew."""
    if self._seconds:
      faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

  def close(self):
    """Stops the timer."""
    if self._seconds:
      faulthandler.cancel_dump_traceback_later()
