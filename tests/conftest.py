"""Shared set-up: one CPU device, a compilation cache for the suite, shape-checked calls."""

import os

# On few cores several virtual devices deadlock in XLA's CPU all-reduce unless its pool is larger
# than their number; it must be set before jax is imported.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
