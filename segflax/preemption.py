"""SIGTERM and SIGINT: a flag that the loop polls, so that a run saves and leaves instead of dying.

A run that was interrupted and saved exits with code 75 (EX_TEMPFAIL of sysexits.h: try again);
schedulers can be told to requeue on it. A second SIGINT leaves at once, with code 130.
"""

import collections
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

EXIT_CODE = 75
# Polls between sending this process's flag around and reading the answer, in multi-process runs:
# the answer of a step that is long done costs no wait, and the loop still runs this far ahead.
_LAG = 2


class Interrupted(Exception):
  """Raised by `PreemptionGuard.check`: stop here, save what there is, leave with EXIT_CODE."""


class PreemptionGuard:
  """Context in which SIGTERM and SIGINT ask the loop to stop.

  A thread reads signals from Python's wake-up pipe, so that they are acknowledged (and a second
  SIGINT obeyed) even while the main thread compiles. In a run of several processes any one's
  signal stops all of them at the same poll; for that every process must poll equally often.
  """

  def __init__(self):
    self._requested = threading.Event()
    self._answers = collections.deque()  # of polls whose answer has not been read yet

  @property
  def requested(self) -> bool:
    """Whether a signal has reached this process; see `poll` for what all agree on."""
    return self._requested.is_set()

  def request(self):
    """Does what a signal does."""
    self._requested.set()

  def poll(self) -> bool:
    """Returns whether to stop now, the same on all processes; call it after every step."""
    if jax.process_count() == 1:
      return self.requested
    self._answers.append(self._any(self.requested))
    if len(self._answers) <= _LAG:
      return False
    return bool(self._answers.popleft().addressable_data(0))

  def check(self):
    """Raises Interrupted where `poll` says to stop."""
    if self.poll():
      raise Interrupted

  def check_alone(self):
    """Raises Interrupted where a signal has reached this process, without asking the others.

    For long work before the first step: there is no state yet that all must agree on.
    """
    if self.requested:
      print("stopped before the first step; the same command goes on", flush=True)
      raise Interrupted

  @functools.cached_property
  def _any(self) -> Callable[[bool], jax.Array]:
    """Function from this process's flag to any process's, computed on the devices."""
    mesh = Mesh(np.asarray(jax.devices()), "all")
    agree = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
    split, count = NamedSharding(mesh, P("all")), jax.local_device_count()
    return lambda flag: agree(jax.make_array_from_process_local_data(split, np.full(count, flag)))

  def __enter__(self) -> "PreemptionGuard":
    if threading.current_thread() is not threading.main_thread():
      raise RuntimeError("signals reach the main thread only: enter PreemptionGuard there")
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
    self._thread.start()
    self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    # The handlers do nothing: without one of Python's, the byte would not reach the pipe.
    self._old_handlers = {
      number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    return self

  def __exit__(self, *exception):
    for number, handler in self._old_handlers.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    signal.set_wakeup_fd(self._old_wakeup)
    os.close(self._writer)  # The thread reads the end of the pipe and leaves.
    self._thread.join()
    os.close(self._reader)

  def _watch(self):
    interrupts = 0
    while received := os.read(self._reader, 16):
      for number in received:
        if number not in (signal.SIGTERM, signal.SIGINT):
          continue
        interrupts += number == signal.SIGINT
        if interrupts > 1:
          print(
            "second SIGINT: leaving at once, nothing more is saved", file=sys.stderr, flush=True
          )
          os._exit(128 + signal.SIGINT)
        if not self.requested:
          print(
            f"{signal.Signals(number).name}: stopping after this step, then saving"
            + ("; once more leaves at once" if number == signal.SIGINT else ""),
            file=sys.stderr,
            flush=True,
          )
        self._requested.set()
