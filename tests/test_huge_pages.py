"""Huge pages: the program starts over once, as the same process, with what the user set kept."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
print("start", os.getpid(), sys.argv[1:])
from segflax import huge_pages
huge_pages.enable()
print("runs", os.getpid(), os.environ.get("GLIBC_TUNABLES"), flush=True)
"""


@pytest.mark.parametrize(
  ("before", "after"),
  [
    (None, "glibc.malloc.hugetlb=1"),
    ("glibc.malloc.perturb=0", "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1"),
    ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
  ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_one_more_start(tmp_path, before, after):
  path = tmp_path / "program.py"
  path.write_text(SCRIPT)
  environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"}
  environment.pop("GLIBC_TUNABLES", None)
  if before:
    environment["GLIBC_TUNABLES"] = before
  command = [sys.executable, str(path), "--flag=a b"]
  lines = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=True
  ).stdout.splitlines()
  pid = lines[0].split()[1]
  assert lines[-1] == f"runs {pid} {after}"
  assert lines[:-1] == [f"start {pid} ['--flag=a b']"] * (1 if before == after else 2)
