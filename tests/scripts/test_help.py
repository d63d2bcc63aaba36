"""Every script explains itself: --help works, which a lone % in a help text is enough to break."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
  path for path in (ROOT / "scripts").rglob("*.py") if "argparse" in path.read_text()
)

# One process for all: most of the time goes into importing JAX.
CODE = """
import runpy, sys
for path in sys.argv[1:]:
  before, sys.argv = sys.argv, [path, "--help"]
  try:
    runpy.run_path(path, run_name="__main__")
    code = "no exit"
  except SystemExit as end:
    code = end.code
  except Exception as error:
    code = repr(error)
  sys.argv = before
  print("ended", path, code, flush=True)
"""


def test_every_script_explains_itself():
  command = [sys.executable, "-c", CODE, *map(str, SCRIPTS)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  ends = [line for line in done.stdout.splitlines() if line.startswith("ended ")]
  assert ends == [f"ended {path} 0" for path in SCRIPTS], done.stderr
  assert len(SCRIPTS) > 10
