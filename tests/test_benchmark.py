"""scripts/benchmark.py at tiny size: that it runs and reports, not what it measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=600
  )


def test_without_a_case_it_names_them():
  names = benchmark().stdout.split()
  assert {"train-352-float32", "train-512-bfloat16-compiled", "predict4-352-float32"} <= set(names)
  assert {
    "two_prompts-352-float32",
    "cached-352-float32",
    "full-512-bfloat16",
    "predict2-512-float32",
  } <= set(names)
  assert len(names) == len(set(names)) == 36


def test_an_unknown_case_is_refused_with_the_names():
  done = benchmark("train-9")
  assert done.returncode == 2
  assert "unknown cases ['train-9']; available: train-352-float32" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "unit", "peer"),
  [("train-352-bfloat16", "pictures", "torch"), ("predict4-352-float32", "masks", "torch"),
   ("full-352-float32", "pictures", "torch"), ("cached-352-float32", "pictures", "uncached"),
   ("two_prompts-352-float32", "pairs", "one prompt")],
)  # fmt: skip
def test_a_case_reports_both_sides(case, unit, peer, tmp_path):
  path = tmp_path / "rows.jsonl"
  done = benchmark(case, "--preset=tiny", "--rounds=3", "--pause=0", f"--json={path}")
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].startswith(f"| {case} | ")
  row = json.loads(path.read_text())
  assert (row["unit"], row["peer"]) == (unit, peer)
  assert row["ratio"] == pytest.approx(row["ours_per_second"] / row["peer_per_second"])
  assert [len(times) for times in row["seconds"]] == [3, 3]
  assert 0.05 < row["ours_peak_gib"] < 4
  assert 0.05 < row["peer_peak_gib"] < 4
