"""batch_size "auto": the largest batch that the compiled step's own account of memory allows."""

import jax
import pytest
from ml_collections import ConfigDict
from tiny_run import tiny

from segflax import build, dry_step, sharding
from segflax import config as config_lib
from segflax.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  config = tiny(tmp_path_factory.mktemp("walls") / "walls")
  model, params, _ = build.make_model(config)
  return config, model, params, sharding.make_mesh(jax.devices()[:1])


def asking(config, batch_size) -> ConfigDict:
  return ConfigDict(config.to_dict() | {"batch_size": batch_size})


def test_the_largest_batch_that_fits(run):
  memory = dry_step.step_memory(*run, 6)
  batch = dry_step.fitting_batch_size(*run, most=1000, memory=memory)
  assert dry_step.step_memory(*run, batch) <= memory
  assert batch >= 6
  assert dry_step.step_memory(*run, batch + 2) > memory


def test_no_more_than_there_are_pictures(run):
  assert dry_step.fitting_batch_size(*run, most=10, memory=1e12) == 10


def test_nothing_fits(run):
  with pytest.raises(UserError, match="not even one picture of 32 px per device fits"):
    dry_step.fitting_batch_size(*run, most=10, memory=1e5)


def test_auto_becomes_a_number_that_a_resumed_run_keeps(run, tmp_path, monkeypatch):
  config, _, _, mesh = run
  config = asking(config, "auto")
  resolved = dry_step.resolve_batch_size(config, tmp_path, mesh)
  assert resolved.batch_size == 12  # the pictures that there are
  resolved.batch_size = 7
  config_lib.save(resolved, tmp_path)
  assert dry_step.resolve_batch_size(config, tmp_path, mesh).batch_size == 7
  assert config.batch_size == "auto"


def test_another_word_is_refused(run, tmp_path):
  config, _, _, mesh = run
  with pytest.raises(UserError, match="'large' is neither a whole number nor 'auto'"):
    dry_step.resolve_batch_size(asking(config, "large"), tmp_path, mesh)
