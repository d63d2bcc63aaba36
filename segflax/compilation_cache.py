"""JAX's persistent compilation cache, on by default and private to the user."""

import hashlib
import os
import platform
import stat
from pathlib import Path

import jax

from segflax.errors import UserError


def enable(directory: str | Path | None = None) -> Path:
  """Turns the cache on and returns its folder.

  The cache holds machine code: it is kept per machine type, and a folder that others could write
  to is refused.

  Args:
    directory: None for `$JAX_COMPILATION_CACHE_DIR` or `~/.cache/segflax/compiled`.

  Raises:
    UserError: another user owns the folder or may write to it.
  """
  default = Path.home() / ".cache" / "segflax" / "compiled"
  root = Path(directory or os.environ.get("JAX_COMPILATION_CACHE_DIR") or default).expanduser()
  path = root / _machine()
  path.mkdir(parents=True, exist_ok=True, mode=0o700)
  status = path.stat()
  if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise UserError(
      f"compilation cache {path} can be written by others, and cached programs are run as they "
      f"are; run `chmod 700 {path}` as its owner, or set JAX_COMPILATION_CACHE_DIR to a folder of "
      "your own"
    )
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  return path


def _machine() -> str:
  """Names the processor and its instruction set: code for another one may not run here."""
  flags = ""
  cpuinfo = Path("/proc/cpuinfo")
  if cpuinfo.exists():
    lines = cpuinfo.read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"
