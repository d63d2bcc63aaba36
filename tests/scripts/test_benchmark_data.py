"""The benchmark of the stream, on a few tiny pictures."""

import importlib
import json
import multiprocessing
import queue
import sys
from pathlib import Path

import pytest

from segflax.data.builder import write_dataset
from segflax.data.synthetic import CONCEPTS, generate_walls
from segflax.errors import UserError

_SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("walls")
  write_dataset(path, {"train": generate_walls(8, 40, 0)}, CONCEPTS)
  return path


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(_SCRIPTS)  # Its processes import it by name, as this one does.
  return importlib.import_module("benchmark_data")


def _main(script, monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["benchmark_data.py", *map(str, arguments)])
  script.main()


def test_it_measures_a_data_set_over_two_processes(script, data_dir, tmp_path, monkeypatch, capsys):
  table = tmp_path / "table.json"
  sizes = ("--processes=2", "--threads=1", "--seconds=0.2", "--image_size=32")
  _main(script, monkeypatch, f"--data_dir={data_dir}", f"--json={table}", *sizes)
  (row,) = json.loads(table.read_text())["rows"]
  assert (row["processes"], row["threads"]) == (2, 1)
  assert row["per_second"] > 0 and row["per_cpu_second"] > 0
  assert data_dir.name in capsys.readouterr().out


@pytest.mark.parametrize(
  ("where", "split", "message"),
  [("", "dev", "has no split 'dev'; it has train"), ("nowhere", "train", "does not exist")],
)
def test_bad_data_is_named_before_a_process_starts(
  script, data_dir, monkeypatch, where, split, message
):
  monkeypatch.setattr(multiprocessing, "get_context", None)
  with pytest.raises(UserError, match=message):
    _main(script, monkeypatch, f"--data_dir={data_dir / where}", f"--split={split}")


class _Dead:
  exitcode = -9

  def terminate(self):
    self.exitcode = -15


def test_a_process_that_dies_ends_the_wait(script):
  with pytest.raises(UserError, match="a process ended with code -9 before it had measured"):
    script.collect([_Dead()], queue.Queue())
