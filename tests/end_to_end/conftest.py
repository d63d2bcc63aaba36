"""One tiny run, shared by the tests that look at what a run does and leaves."""

import pytest
from tiny_run import tiny


@pytest.fixture(scope="session")
def walls(tmp_path_factory):
  """Folder of the generated data set that every tiny run shares."""
  return tmp_path_factory.mktemp("data") / "walls"


@pytest.fixture(scope="session")
def finished(walls, tmp_path_factory):
  """Returns (workdir, summary) of a tiny run that was never interrupted."""
  from segflax.train import train_and_evaluate

  workdir = tmp_path_factory.mktemp("runs") / "finished"
  return workdir, train_and_evaluate(tiny(walls, profile_steps=1), workdir)
