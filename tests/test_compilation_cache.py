"""The cache of compiled programs belongs to its user alone."""

import jax
import pytest

from segflax import compilation_cache
from segflax.errors import UserError


@pytest.fixture(autouse=True)
def restored():
  before = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", before)


def test_it_is_made_private(tmp_path):
  path = compilation_cache.enable(tmp_path / "cache")
  assert path.stat().st_mode & 0o777 == 0o700
  assert jax.config.jax_compilation_cache_dir == str(path)


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, mode):
  compilation_cache.enable(tmp_path).chmod(mode)
  with pytest.raises(UserError, match="chmod 700"):
    compilation_cache.enable(tmp_path)
