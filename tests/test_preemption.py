"""Signals: a flag to poll, acknowledged even while the main thread is busy in C++."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from segflax.preemption import EXIT_CODE, Interrupted, PreemptionGuard


def wait_for(guard: PreemptionGuard):
  until = time.monotonic() + 10
  while not guard.requested:
    assert time.monotonic() < until
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_becomes_a_flag(number, capfd):
  before = signal.getsignal(number)
  with PreemptionGuard() as guard:
    assert not guard.poll()
    guard.check()
    os.kill(os.getpid(), number)
    wait_for(guard)
    assert guard.poll()
    with pytest.raises(Interrupted):
      guard.check()
  assert signal.getsignal(number) is before
  assert f"{number.name}: stopping after this step, then saving" in capfd.readouterr().err


def test_several_sigterms_are_one(capfd):
  with PreemptionGuard() as guard:
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGTERM)
    wait_for(guard)
  assert capfd.readouterr().err.count("SIGTERM") == 1


def test_guards_can_follow_one_another():
  for _ in range(2):
    with PreemptionGuard() as guard:
      guard.request()
      assert guard.poll()
  with PreemptionGuard() as guard:
    assert not guard.poll()


def test_exit_code_is_the_documented_one():
  assert EXIT_CODE == os.EX_TEMPFAIL == 75


def test_second_sigint_leaves_at_once_though_the_main_thread_is_in_a_compiler():
  # pbkdf2 stands for XLA: minutes in C without the GIL and without a look at Python's signals.
  code = """
    import hashlib
    from segflax.preemption import PreemptionGuard
    with PreemptionGuard():
      print("ready", flush=True)
      hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
  """
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=os.environ | {"PYTHONPATH": os.getcwd()},
    text=True,
  )
  try:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "once more leaves at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
  finally:
    process.kill()
    process.wait()
  assert process.returncode == 130
  assert "nothing more is saved" in err
