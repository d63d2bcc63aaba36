"""main.py as a user starts it: one sentence and a documented exit code, never a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = [sys.executable, str(ROOT / "main.py"), f"--config={ROOT / 'configs' / 'quickstart.py'}"]
TINY = [
  "--config.synthetic.train_pictures=40",
  "--config.synthetic.val_pictures=2",
  "--config.synthetic.test_pictures=2",
  "--config.synthetic.size=32",
  "--config.image_size=32",
  "--config.batch_size=2",
  "--config.eval.batch_size=2",
]


def run(*arguments, cwd):
  return subprocess.run(
    [*MAIN, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
  )


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--config.gradient_clp=1", 'Did you mean "gradient_clip"'),
    ("--config.model.presett=x", 'Did you mean "preset"'),
    ("stray", "stray"),
  ],
)
def test_bad_flags_are_answered_at_once(flag, said, tmp_path):
  done = run("--workdir=run", flag, cwd=tmp_path)
  assert done.returncode == 2
  assert said in done.stderr
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())


def test_a_missing_data_set_is_one_sentence(tmp_path):
  done = run("--workdir=run", "--config.synthetic.train_pictures=0", cwd=tmp_path)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith(
    "segflax: data_dir data/generated_walls does not exist"
  )
  assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_ends_the_run(tmp_path):
  command = [*MAIN, "--workdir=run", *TINY, "--config.epochs=1"]
  process = subprocess.Popen(
    command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  for line in process.stdout:
    if "parameters train on" in line:
      os.kill(process.pid, signal.SIGTERM)
      break
  rest = process.communicate(timeout=300)[0]
  assert process.returncode == 75, rest
  assert "resume with the same command" in rest
  done = run("--workdir=run", *TINY, "--config.epochs=1", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "resumed at step" in done.stdout
  again = run("--workdir=run", *TINY, "--config.epochs=1", cwd=tmp_path)
  assert again.returncode == 0
  assert "nothing to do" in again.stdout
