"""The files that engines read, for launch.py (one run) and emit.py (many): one room for both.

The standard library only: whoever launches need not have JAX installed.
"""

import re
from pathlib import Path

# Outside the package: whoever launches has the repository, because the engines run its main.py.
TEMPLATES = Path(__file__).parents[1] / "scripts/launch/templates"
MOUNT = "/mnt/segflax"  # where the bucket appears on every host
PYTHON = ".venv/bin/python"  # what `install` makes


def fill(template: str, **values) -> str:
  """Replaces `{{key}}`.

  Raises:
    KeyError: a key has no value, or a value no key.
  """
  text = (TEMPLATES / template).read_text()
  keys = set(re.findall(r"{{(\w+)}}", text))
  if keys != values.keys():
    raise KeyError(
      f"{template} needs {sorted(keys)}: missing {sorted(keys - values.keys())}, "
      f"unknown {sorted(values.keys() - keys)}"
    )
  return re.sub(r"{{(\w+)}}", lambda match: str(values[match[1]]), text)


def install(on_tpu: bool) -> str:
  """Returns the command that installs segflax with the JAX of the machine's accelerator."""
  # Without it JAX falls back on the CPU, on a machine that is paid for its accelerator.
  extra = "requirements-tpu.txt" if on_tpu else "requirements-gpu.txt"
  # uv, because the machines' own Python may be older than the one segflax needs.
  return (
    "python3 -m pip install -q uv && python3 -m uv venv -q --allow-existing --python 3.11 .venv && "
    f"python3 -m uv pip install -q --python {PYTHON} -r requirements.txt -r {extra}"
  )
