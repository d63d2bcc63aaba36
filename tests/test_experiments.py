"""Trials are laid out, run once, continued, and written for other engines."""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

from segflax import emit, experiments, launch_templates, runs, study
from segflax.errors import UserError

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "emit_golden"

# Stands in for main.py: fails on lr=0, is interrupted by SIGTERM, else leaves a summary.
FAKE_MAIN = """
import json, pathlib, signal, sys, time
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
with open(workdir / "calls", "a") as f: f.write("x")
if flags.get("config.lr") == "0": sys.exit("lr 0 is not positive; use 1e-4")
def leave(*_): print("saved step 7", flush=True); sys.exit(75)
signal.signal(signal.SIGTERM, leave)
if "config.wait" in flags and not (workdir / "waited").exists():
  (workdir / "waited").touch(); time.sleep(30)
iou = 1 - abs(float(flags.get("config.lr", 0.5)) - 0.5)
best = {"val_iou": {"value": iou, "epoch": 2}}
(workdir / "training_summary.json").write_text(json.dumps({"best_metrics": best,
  "final_metrics": {}, "total_epochs": 3, "training_args": {}, "best_val_iou": iou}))
"""


@pytest.fixture
def project(tmp_path):
  """A folder with templates and a main.py that takes milliseconds."""
  (tmp_path / "configs").mkdir()
  for name in ("baseline", "higher_lr", "quickstart"):
    text = f'"""The {name} template.\n\nMore."""\n\ndef get_config():\n  return 1 / 0\n'
    (tmp_path / "configs" / f"{name}.py").write_text(text)
  (tmp_path / "configs" / "helper.py").write_text("x = 1\n")
  (tmp_path / "main.py").write_text(textwrap.dedent(FAKE_MAIN))
  return tmp_path


def plan(project, names=(), **options):
  return experiments.plan(names, project / "runs", folder=project / "configs", **options)


def runner(project, said=None):
  say = (lambda text: None) if said is None else said.append
  return experiments.Runner([sys.executable, str(project / "main.py")], say)


def calls(project, name):
  return len((project / "runs" / name / "calls").read_text())


def test_templates_are_listed_without_running_them(project):
  found = experiments.templates(project / "configs")
  assert found == {n: f"The {n} template." for n in ("baseline", "higher_lr", "quickstart")}


ORIGINS_VALUES = {
  "baseline": {},
  "baseline_mixed_precision": {"mixed_precision": True},
  "higher_lr": {"lr": 5e-4},
  "lower_lr": {"lr": 5e-5},
  "larger_batch": {"batch_size": 16},
  "smaller_image": {"image_size": 256},
  "with_per_prompt_eval": {"eval_per_prompt": True},
}
TEMPLATES = sorted(experiments.templates(ROOT / "configs"))


def load(name):
  return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_loads_and_says_what_it_is_and_how_to_run_it(name):
  config = runs.leaves(load(name).to_dict())
  assert set(config) == set(runs.leaves(load("baseline").to_dict()))
  text = importlib.import_module(f"configs.{name}").__doc__
  assert experiments.templates(ROOT / "configs")[name]
  assert f"main.py --config=configs/{name}.py --workdir=runs/" in text


def test_the_origins_experiments_are_there_with_its_values():
  assert tuple(ORIGINS_VALUES) == experiments.ORIGIN and set(ORIGINS_VALUES) < set(TEMPLATES)
  baseline = runs.leaves(load("baseline").to_dict())
  of_origin = ("batch_size", "epochs", "lr", "image_size", "early_stopping_patience",
               "gradient_clip", "mixed_precision", "eval_per_prompt")  # fmt: skip
  values = [baseline[field] for field in of_origin]
  assert values == [8, 50, 1e-4, 512, 10, 1.0, False, False]
  for name, changed in ORIGINS_VALUES.items():
    config = runs.leaves(load(name).to_dict())
    different = {field: v for field, v in config.items() if v != baseline[field]}
    assert different.pop("eval.batch_size", 0) == 0
    assert different == changed, name


def test_a_sweep_is_a_grid_over_every_experiment(project):
  trials = plan(
    project,
    ["baseline", "higher_lr"],
    settings=["epochs=2", "config.data_dir=a b"],
    sweeps=["lr=1e-4,5e-4", "loss.name=bce,dice"],
  )
  assert [t.name for t in trials][:2] == [
    "baseline__lr=1e-4__loss.name=bce",
    "baseline__lr=1e-4__loss.name=dice",
  ]
  assert len(trials) == 8 == len({t.workdir for t in trials})
  assert trials[0].overrides == {
    "epochs": "2", "data_dir": "a b", "lr": "1e-4", "loss.name": "bce"
  }  # fmt: skip
  assert "--config.data_dir=a b" in trials[0].arguments()


def test_without_a_name_the_origins_run(project):
  assert [t.name for t in plan(project)] == ["baseline", "higher_lr"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"names": ["basline"]}, "'basline' is unknown; available: baseline, higher_lr, quickstart"),
    ({"settings": ["lr"]}, "'lr' is not of the form field=value"),
    ({"settings": ["l r=1"]}, "not of the form"),
    ({"sweeps": ["lr=1,,2"]}, "must list distinct values"),
    ({"sweeps": ["lr=1,1"]}, "must list distinct values"),
    ({"sweeps": ["data_dir=a/b,a b"]}, "data_dir=a/b and data_dir=a b would share the workdir"),
  ],
)
def test_bad_plans_are_one_sentence(project, options, message):
  with pytest.raises(UserError, match=message):
    plan(project, **options)


def test_one_failing_does_not_stop_the_rest_and_only_the_missing_is_repeated(project):
  trials = plan(project, ["baseline"], sweeps=["lr=0,0.5,0.7"])
  said = []
  states = runner(project, said).run(trials, jobs=2)
  names = [t.name for t in trials]
  assert states == dict(zip(names, ("failed", "done", "done"), strict=True))
  assert any("failed" in line and "lr 0 is not positive" in line for line in said)
  rows = [experiments.result(t, states[t.name]) for t in trials]
  assert rows[1]["best_val_iou"] == 1 and rows[1]["best_epoch"] == 2
  record = json.loads((trials[0].workdir / "experiment.json").read_text())
  assert record["state"] == "failed" and record["exit_code"] == 1

  runner(project).run(trials)
  assert [calls(project, name) for name in names] == [2, 1, 1]
  assert (trials[0].workdir / "experiment.log").read_text().count("$ ") == 2


def test_a_done_run_with_other_settings_is_not_mistaken_for_it(project):
  runner(project).run(plan(project, ["baseline"], settings=["lr=0.5"]))
  with pytest.raises(UserError, match=r"was run with lr=0.5, not with lr=0.6; give the same"):
    runner(project).run(plan(project, ["higher_lr", "baseline"], settings=["lr=0.6"]))
  assert not (project / "runs" / "higher_lr").exists()


def test_a_run_of_main_py_itself_is_left_to_main_py(project):
  """Its settings are unknown here: main.py finishes at once where they are the same, or refuses."""
  (trial,) = plan(project, ["baseline"], settings=["lr=0"])
  trial.workdir.mkdir(parents=True)
  (trial.workdir / "training_summary.json").write_text("{}")
  assert experiments.state_of(trial) == "missing"
  assert runner(project).run([trial]) == {"baseline": "failed"}  # what the fake says of lr=0
  assert calls(project, "baseline") == 1


def test_a_failed_run_may_be_tried_with_other_settings(project):
  assert runner(project).run(plan(project, ["baseline"], settings=["lr=0"])) == {
    "baseline": "failed"
  }
  states = runner(project).run(plan(project, ["baseline"], settings=["lr=0.5"]))
  assert states == {"baseline": "done"}


def test_stopping_lets_the_running_save_and_starts_no_other(project):
  trials = plan(project, ["baseline", "higher_lr"], settings=["wait=1"])
  first = runner(project)

  def stop_when_running():
    while not (project / "runs" / "baseline" / "waited").exists():
      time.sleep(0.02)
    first.stop()

  thread = threading.Thread(target=stop_when_running)
  thread.start()
  states = first.run(trials)
  thread.join()
  assert states == {"baseline": "interrupted", "higher_lr": "missing"}
  (project / "runs" / "higher_lr").mkdir()
  (project / "runs" / "higher_lr" / "waited").touch()
  assert set(runner(project).run(trials).values()) == {"done"}


def test_a_killed_runner_leaves_a_trial_that_is_run_again(project):
  (trial,) = plan(project, ["baseline"])
  trial.workdir.mkdir(parents=True)
  record = {"overrides": {}, "state": "running"}
  (trial.workdir / "experiment.json").write_text(json.dumps(record))
  assert experiments.state_of(trial) == "running"
  assert runner(project).run([trial]) == {"baseline": "done"}


def golden_trials():
  return experiments.plan(
    ["baseline"],
    Path("runs/experiments"),
    settings=["data_dir=data/dry wall"],
    sweeps=["lr=1e-4,5e-4"],
    folder=ROOT / "configs",
  )


def relative(text):
  return text.replace(str(ROOT) + "/", "")


def emitted():
  files = {"trials.sbatch": emit.slurm(golden_trials())} | emit.skypilot(golden_trials())
  return {name: relative(text) for name, text in files.items()}


@pytest.mark.parametrize("name", sorted(emitted()))
def test_emitted_files_equal_the_golden_ones(name):
  """`python tests/test_experiments.py` writes them anew; read the difference before a commit."""
  assert emitted()[name] == (GOLDEN / name).read_text()


def test_emitted_files_are_what_the_engines_read():
  for name, text in emitted().items():
    if name.endswith(".yaml"):
      task = yaml.safe_load(text)
      assert set(task) == {"name", "resources", "workdir", "file_mounts", "setup", "run"}
      assert "-r requirements-gpu.txt" in task["setup"]  # Else an A100 trains on its CPU.
      assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
      assert "data_dir must be reachable" in text
    else:
      subprocess.run(["bash", "-n"], input=text, text=True, check=True)
      assert name != "trials.sbatch" or "\n#SBATCH --open-mode=append\n" in text
  on_tpu = emit.skypilot(golden_trials(), "tpu-v6e-8")["baseline__lr=1e-4.yaml"]
  assert "-r requirements-tpu.txt" in yaml.safe_load(on_tpu)["setup"]


def test_a_template_takes_exactly_its_keys():
  with pytest.raises(KeyError, match=r"missing \['accelerator'.*unknown \['nodes'\]"):
    launch_templates.fill("sky.yaml", name="a", nodes=1)


def test_the_slurm_array_starts_the_right_trial(tmp_path):
  """The script runs here with stand-ins for srun and scontrol; exit code 75 requeues."""
  (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$OUT"; exit 75\n')
  (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@" >> "$OUT"\n')
  for tool in ("srun", "scontrol"):
    (tmp_path / tool).chmod(0o755)
  environment = os.environ | {
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "OUT": str(tmp_path / "out"),
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_ARRAY_JOB_ID": "77",
  }
  script = emit.slurm(golden_trials())
  code = subprocess.run(["bash"], input=script, text=True, env=environment).returncode
  lines = (tmp_path / "out").read_text().splitlines()
  assert code == 75 and lines[-1] == "requeue 77_1"
  assert lines[:2] == ["python", "main.py"]
  assert lines[2:-1] == golden_trials()[1].arguments()


def run_study(project, trials, **options):
  return study.run(
    runner(project),
    "baseline",
    storage=f"sqlite:///{project}/study.db",
    searches=["lr=0.1:0.9", "batch_size=4:8"],
    trials=trials,
    output=project / "runs",
    folder=project / "configs",
    **({"settings": []} | options),
  )


@pytest.mark.slow
def test_a_study_goes_on_in_its_storage(project):
  import optuna

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  assert len(run_study(project, 3)) == 3
  run_study(project, 2)
  found = optuna.load_study(study_name="baseline", storage=f"sqlite:///{project}/study.db")
  assert len(found.trials) == 5
  best = found.best_trial
  assert best.value == pytest.approx(1 - abs(best.params["lr"] - 0.5), abs=1e-5)
  assert isinstance(best.params["batch_size"], int)


@pytest.mark.parametrize(
  "text", ["lr=1:0", "lr=0:1:log", "lr=1:2:linear", "lr=a:b", "lr=0.1:0.2:log:x"]
)
def test_a_bad_search_is_one_sentence(text):
  with pytest.raises(UserError, match=f"--search '{text}'"):
    study.parse_search(text)


def test_the_script_lists_and_reports_bad_input():
  script = [sys.executable, "scripts/run_experiments.py"]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  run = lambda *a: subprocess.run(  # noqa: E731
    [*script, *a], capture_output=True, text=True, cwd=ROOT, env=environment
  )
  listed = run("--list")
  assert listed.returncode == 0 and "* baseline " in listed.stdout
  wrong = run("--experiment", "nothing")
  assert wrong.returncode == 2 and "'nothing' is unknown; available:" in wrong.stderr
  assert "Traceback" not in wrong.stderr


def test_the_exit_code_says_that_trials_failed():
  exit_code = runpy.run_path(str(ROOT / "scripts/run_experiments.py"), run_name="x")["exit_code"]
  assert exit_code(["done", "done"], False) == 0
  assert exit_code(["failed", "failed"], False) == exit_code(["done", "failed"], False) == 1
  assert exit_code(["done", "interrupted"], False) == exit_code(["done"], True) == 75


def test_a_study_whose_trials_all_fail_does_not_end_well(project, monkeypatch):
  script = runpy.run_path(str(ROOT / "scripts/run_experiments.py"), run_name="x")
  rows = [{"experiment": "baseline", "state": "failed"}]
  monkeypatch.setattr(study, "run", lambda *_, **__: rows)
  monkeypatch.setattr(signal, "signal", lambda *_: None)  # Leave pytest its own handlers.
  argv = ["--experiment", "baseline", "--study", "sqlite://", "--search", "lr=1:2"]
  assert script["main"](argv) == 1


def test_finetune_lora_differs_from_finetune_only_in_what_it_says():
  one, two = (runs.leaves(load(name).to_dict()) for name in ("finetune", "finetune_lora"))
  different = {field for field in one if one[field] != two[field]}
  assert different == {"trainable", "lora.rank", "lora.alpha", "lr", "schedule.warmup_epochs"}


if __name__ == "__main__":
  emit.write(emitted(), GOLDEN)
