"""A run killed again and again ends like one left alone (scripts/stress_resume.py, shortened)."""

import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import stress_resume  # noqa: E402


def test_plan_mixes_signals_and_moments():
  kills = Counter(stress_resume.plan(20, random.Random(0)))
  assert sum(kills.values()) == 20
  for moment in ("save", "run", "start-up"):
    for number in (signal.SIGKILL, signal.SIGTERM):
      if moment != "start-up":
        assert kills[stress_resume.Kill(moment, number)] >= 2


@pytest.mark.slow
def test_killed_run_equals_the_one_left_alone(tmp_path):
  script = [sys.executable, str(ROOT / "scripts" / "stress_resume.py"), "--kills=4", "--epochs=2"]
  done = subprocess.run(
    [*script, f"--directory={tmp_path}"], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "equal, bit for bit" in done.stdout
