"""What both sides of scripts/benchmark.py share: one process, one task, one timed call per line."""

import json
import resource
import sys
import time
from collections.abc import Callable


def serve(call: Callable[[], None], *, device_peak: Callable[[], int | None], **facts):
  """Warms up, then runs and times `call` for every line read, until the input ends.

  Args:
    call: does the work and waits for it.
    device_peak: bytes of device memory at the peak; None where host memory is what counts.
    facts: said once, with the seconds that the two warm-up calls took.
  """
  start = time.perf_counter()
  call()
  first = time.perf_counter() - start
  call()
  print(json.dumps({"ready": True, "first_call_seconds": first, **facts}), flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    call()
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
  peak = device_peak() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(json.dumps({"peak_bytes": peak}), flush=True)
