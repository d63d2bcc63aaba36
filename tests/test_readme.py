"""What the README tells users to type works as it stands there."""

import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def blocks(heading: str, language: str) -> list[str]:
  """Returns the code of a section of the README."""
  section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
  return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def test_use_it_from_python_is_ten_lines_that_work(tmp_path, monkeypatch):
  code = blocks("Use it from Python", "python")[0]
  assert len([line for line in code.splitlines() if line]) <= 10
  (tmp_path / "runs/quickstart/checkpoints").mkdir(parents=True)
  shutil.copytree(ROOT / "tests/golden/refined", tmp_path / "runs/quickstart/best_model")
  rng = np.random.default_rng(0)
  sizes = {"wall.jpg": (300, 200), "ceiling.png": (64, 64), "example.jpg": (48, 40)}
  for name, (width, height) in sizes.items():
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
  mask = np.zeros((40, 48), np.uint8)
  mask[10:20, 10:30] = 255
  Image.fromarray(mask).save(tmp_path / "example_mask.png")
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(code, names)
  assert [m["segment crack"].shape for m in names["masks"]] == [(200, 300), (64, 64)]
  assert set(np.unique(names["masks"][0]["segment taping area"])) <= {0, 255}
  assert names["found"][0]["like this"].shape == (200, 300)
