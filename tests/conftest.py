"""Shared set-up: one CPU device, a cache of compiled programs, and no silent skips of parity."""

import logging
import os

import jaxtyping
import pytest
from absl import logging as absl_logging

# On few cores several virtual devices deadlock in XLA's CPU all-reduce unless its pool is larger
# than their number; like the rest here it must be set before jax is imported.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Programs are small and many: LLVM's optimisation costs a third of the suite and wins nothing.
# .ci/run sets it empty, so that parity and the slow tests see what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Before segflax is imported: the shapes and dtypes that the numerical modules promise are checked
# in every call. A compiled function pays for that once, while it is traced.
CHECKED = ("models", "counts", "losses", "losses_thin", "metrics", "metrics_thin", "steps", "tiles")
jaxtyping.install_import_hook([f"segflax.{name}" for name in CHECKED], "typecheck.check")

from segflax import compilation_cache  # noqa: E402  After all that.

# Compilation is the suite's cost, and many tests run the same tiny programs.
compilation_cache.enable()


@pytest.fixture(autouse=True)
def _absl_log_reaches_caplog():
  """Libraries that set absl's verbosity, for all that come after, must not silence our warnings."""
  verbosity, propagate = absl_logging.get_verbosity(), logging.getLogger("absl").propagate
  absl_logging.set_verbosity(absl_logging.INFO)
  logging.getLogger("absl").propagate = True
  yield
  absl_logging.set_verbosity(verbosity)
  logging.getLogger("absl").propagate = propagate


def pytest_addoption(parser):
  parser.addoption(
    "--strict-parity", action="store_true", help="fail the run if a parity test is skipped"
  )


def pytest_terminal_summary(terminalreporter, config):
  if config.getoption("--strict-parity") and not _parity_ran(terminalreporter):
    terminalreporter.write_line("parity tests were skipped or did not run", red=True)


def pytest_sessionfinish(session, exitstatus):
  reporter = session.config.pluginmanager.get_plugin("terminalreporter")
  if session.config.getoption("--strict-parity") and not _parity_ran(reporter):
    session.exitstatus = 1


def _parity_ran(reporter) -> bool:
  def parity(outcome):
    return [r for r in reporter.stats.get(outcome, []) if "parity" in getattr(r, "keywords", {})]

  return bool(parity("passed") + parity("failed")) and not parity("skipped")
