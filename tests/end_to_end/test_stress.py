"""A run killed again and again ends like one left alone (scripts/stress_resume.py, shortened)."""

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import stress_resume  # noqa: E402


@pytest.mark.parametrize("kills", [16, 20, 40])
def test_plan_has_both_signals_in_every_moment(kills):
  plan = stress_resume.plan(kills, random.Random(0))
  assert len(plan) == kills
  assert set(plan) == {
    stress_resume.Kill(moment, number)
    for moment in stress_resume.MOMENTS
    for number in (signal.SIGKILL, signal.SIGTERM)
  }
  assert sum(kill.moment == "save" for kill in plan) >= kills / 4


def test_a_stress_that_missed_is_no_proof():
  both = ["SIGKILL in a save", "SIGTERM in a save"]
  assert stress_resume.missed([], 4) == [
    "only 0 of 4 kills hit the run",
    *(f"no {b}" for b in both),
  ]
  assert stress_resume.missed([both[0]] * 4, 4) == ["no SIGTERM in a save"]
  assert stress_resume.missed([*both, "SIGKILL run", "SIGTERM run"], 4) == []


@pytest.mark.slow
def test_killed_run_equals_the_one_left_alone(tmp_path):
  script = [sys.executable, str(ROOT / "scripts" / "stress_resume.py"), "--kills=4", "--epochs=4"]
  done = subprocess.run(
    [*script, f"--directory={tmp_path}"], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "4 of 4 kills hit the run" in done.stdout
  hits = re.findall(r"session \d+: (SIG\w+ in a save)", done.stdout)
  assert set(hits) == {"SIGKILL in a save", "SIGTERM in a save"}
  assert "equal, bit for bit" in done.stdout
