"""Every script explains itself: --help works, which a lone % in a help text is enough to break."""

import runpy
import sys
from pathlib import Path

import pytest

from segflax import huge_pages

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
  path for path in (ROOT / "scripts").rglob("*.py") if "argparse" in path.read_text()
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_explains_itself(path, monkeypatch, capsys):
  """In this process: most of a script's start goes into importing JAX."""
  monkeypatch.setattr(sys, "argv", [str(path), "--help"])
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setattr(huge_pages, "enable", lambda: None)  # It would start pytest over.
  with pytest.raises(SystemExit) as end:
    runpy.run_path(str(path), run_name="__main__")
  assert end.value.code in (0, None)
  assert "--" in capsys.readouterr().out
