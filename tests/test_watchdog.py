"""A process whose loop stands still ends by itself; one whose loop moves does not."""

import subprocess
import sys

SCRIPT = """
import sys, time
from segflax.watchdog import Watchdog
dog = Watchdog(float(sys.argv[1]))
for _ in range(10):
  dog.beat()
  time.sleep(0.1)
print("moving", flush=True)
time.sleep(float(sys.argv[2]))
dog.close()
print("closed", flush=True)
"""


def run(limit, hang):
  return subprocess.run(
    [sys.executable, "-c", SCRIPT, str(limit), str(hang)],
    capture_output=True,
    text=True,
    timeout=60,
  )


def test_a_standstill_ends_the_process_and_says_where():
  done = run(0.5, 30)
  assert (done.returncode, done.stdout) == (1, "moving\n")
  assert "Timeout" in done.stderr
  assert 'File "<string>"' in done.stderr


def test_a_moving_loop_and_no_limit_go_on():
  for limit in (5, 0):
    done = run(limit, 0.1)
    assert (done.returncode, done.stdout) == (0, "moving\nclosed\n")
