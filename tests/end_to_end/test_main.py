"""main.py as a user starts it: one sentence and a documented exit code, never a traceback."""

import os
import signal
import string
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from hypothesis import example, given
from hypothesis import strategies as st

import main
from configs import baseline
from segflax import config as config_lib

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
    ("--config.epochs=abc", "--config.epochs=abc: invalid literal for int() with base 10: 'abc'"),
    ("stray", "stray"),
  ],
)
def test_bad_flags_are_answered_at_once(flag, said, tmp_path):
  done = run("--workdir=run", flag, cwd=tmp_path)
  assert done.returncode == 2
  assert said in done.stderr
  assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("segflax: ")
  assert not list(tmp_path.iterdir())


def test_help_lists_the_flags(tmp_path):
  done = run("--help", cwd=tmp_path)
  assert "--workdir: Everything that the run leaves goes here." in done.stdout
  assert "segflax:" not in done.stderr


def parsed(*arguments) -> dict[str, object]:
  """Returns the flattened config that main.py makes of arguments, in this process."""
  argv = ["main.py", f"--config={ROOT / 'configs' / 'baseline.py'}", "--workdir=run", *arguments]
  was_parsed, was_argv, sys.argv = flags.FLAGS.is_parsed(), sys.argv, argv
  try:
    assert main.parse_flags(argv)[1:] == []
    return config_lib.flatten(main.CONFIG.value.to_dict())
  finally:
    sys.argv = was_argv
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    if was_parsed:
      flags.FLAGS.mark_as_parsed()


DEFAULTS = config_lib.flatten(baseline.get_config().to_dict())
TEXT = {int: str, float: repr, bool: str, str: str}
VALUES = {
  int: st.integers(-(2**40), 2**40),
  float: st.floats(allow_nan=False),
  bool: st.booleans(),
  str: st.text(string.printable.strip() + "äß", max_size=20),
}
# batch_size is a number or "auto": segflax/dry_step.py looks at it.
TYPED = sorted(set(DEFAULTS) - {"batch_size"})
TYPED = [name for name in TYPED if type(DEFAULTS[name]) in VALUES]
# Written as one of these, no int, float or bool is understood.
NONSENSE = st.text(string.ascii_letters + " .-", max_size=6).filter(
  lambda text: text.strip().lower() not in ("true", "false", "t", "f", "nan", "inf", "-inf",
                                            "infinity", "-infinity", "", "y", "n", "yes", "no",
                                            "on", "off")
)  # fmt: skip


@given(st.sampled_from(TYPED), st.data())
def test_a_value_arrives_with_its_type(name, data):
  kind = type(DEFAULTS[name])
  value = data.draw(VALUES[kind])
  config = parsed(f"--config.{name}={TEXT[kind](value)}")
  assert config.pop(name) == value
  assert config == {other: default for other, default in DEFAULTS.items() if other != name}


def refused(*arguments) -> str:
  """Returns the sentence, after checking that it is one, with exit code 2."""
  said = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(main, "print", lambda text, **_: said.append(text), raising=False)
    with pytest.raises(SystemExit) as ended:
      parsed(*arguments)
  assert ended.value.code == 2
  assert len(said) == 1 and "\n" not in said[0] and said[0].startswith("segflax: ")
  return said[0]


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--config.epochs=1.5", "--config.epochs=1.5: invalid literal for int()"),
    ("--config.lr=x", "--config.lr=x: could not convert string to float: 'x'"),
    ("--config.mixed_precision=maybe", "--config.mixed_precision=maybe: "),
    ("--config.data=3", "--config.data=3: "),
    ("--config=nothing.py", "No such file or directory: 'nothing.py'"),
    ("--wrkdir=run", "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    ("--num_processes=two", "--num_processes=two: "),
  ],
)
def test_bad_values_are_one_sentence(flag, said):
  assert said in refused(flag)


@given(st.sampled_from([name for name in TYPED if type(DEFAULTS[name]) is not str]), NONSENSE)
def test_a_value_of_another_type_is_one_sentence(name, text):
  assert f"--config.{name}=" in refused(f"--config.{name}={text}")


@given(
  st.sampled_from(sorted(DEFAULTS)).flatmap(
    lambda name: st.tuples(
      st.just(name), st.integers(0, len(name)), st.text("abz_.0", min_size=1, max_size=3)
    )
  )
)
@example(("model.preset", 12, ".x"))
@example(("lr", 0, "."))
def test_a_misspelt_field_is_one_sentence(spelling):
  name, place, inserted = spelling
  wrong = name[:place] + inserted + name[place:]
  if any(field == wrong or field.startswith(wrong + ".") for field in DEFAULTS):
    return
  refused(f"--config.{wrong}=1")


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
