"""scripts/launch: what is printed is pinned, and the generated scripts run against fake engines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "launch_golden"
LAUNCH = [sys.executable, str(ROOT / "scripts/launch/launch.py")]
CLOUD = ["--bucket=walls", "--workdir=/mnt/segflax/runs/crack"]
WHERE = ["--project=lab", "--zone=us-west4-a"]
CASES = {
  "tpu_vm_host": ["tpu_vm", "--name=crack", "--tpu=v6e:2x4", *CLOUD, *WHERE],
  "tpu_vm_pod": ["tpu_vm", "--name=crack", "--tpu=v5e:4x4", "--spot", *CLOUD, *WHERE],
  "slurm": ["slurm", "--name=crack", "--nodes=2", "--gpus_per_node=8", "--workdir=/shared/crack"],
  "gke": ["gke", "--name=crack", "--tpu=v5p:2x2x2", "--spot", "--image=lab/segflax", *CLOUD],
  "xpk": ["xpk", "--name=crack", "--tpu=v6e:4x4", "--cluster=c", "--image=lab/segflax",
          "--workdir=/mnt/segflax/runs/crack", *WHERE],
  "sky": ["sky", "--name=crack", "--tpu=v6e:2x4", "--spot", *CLOUD],
}  # fmt: skip
REST = ["--", "--config.data_dir=/data/dry wall", "--config.batch_size=128"]


def dry_run(*arguments: str) -> str:
  command = [*LAUNCH, *arguments, "--dry_run", *REST]
  return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("case", CASES)
def test_dry_run_prints_the_pinned_files_and_commands(case, tmp_path):
  printed = dry_run(*CASES[case])
  path = GOLDEN / f"{case}.txt"
  if "UPDATE_GOLDEN" in os.environ:
    path.write_text(printed)
  assert printed == path.read_text(), "UPDATE_GOLDEN=1 rewrites the file; read the difference"


@pytest.mark.parametrize(
  ("tpu", "accelerator", "hosts"),
  [("v5e:1x1", "v5litepod-1", 1), ("v5e:2x4", "v5litepod-8", 1), ("v5e:16x16", "v5litepod-256", 64),
   ("v6e:4x8", "v6e-32", 8), ("v5p:2x2x1", "v5p-8", 1), ("v5p:4x4x4", "v5p-128", 16)],
)  # fmt: skip
def test_slices_are_named_as_cloud_tpu_names_them(tpu, accelerator, hosts):
  printed = dry_run("tpu_vm", "--name=crack", f"--tpu={tpu}", *CLOUD, *WHERE)
  assert f"--accelerator-type={accelerator} " in printed
  assert f"({hosts} host(s))" in printed


def test_manifests_are_valid_yaml_with_the_command_as_given():
  command = ["--config.data_dir=/data/dry wall", "--config.batch_size=128"]
  gke = yaml.safe_load(_file(dry_run(*CASES["gke"])))
  job = gke["spec"]["replicatedJobs"][0]["template"]["spec"]
  container = job["template"]["spec"]["containers"][0]
  assert container["command"][-2:] == command
  assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == 8
  sky = yaml.safe_load(_file(dry_run(*CASES["sky"])))
  assert sky["resources"]["accelerators"] == "tpu-v6e-8"
  assert "'--config.data_dir=/data/dry wall'" in sky["run"]


def test_slurm_requeues_after_a_save_and_only_then(tmp_path):
  script = _written(tmp_path, "slurm", "crack.sbatch")
  for code, requeued in [(75, True), (0, False), (2, False)]:
    log = tmp_path / f"log{code}"
    _fake(tmp_path, "srun", f'printf "%s\\n" "$@" > {log}; exit {code}')
    _fake(tmp_path, "scontrol", f'echo "$@" >> {log}')
    done = _run(tmp_path, script, SLURM_JOB_ID="17")
    assert done.returncode == code
    lines = log.read_text().splitlines()
    assert ("requeue 17" in lines) == requeued
    assert "--config.data_dir=/data/dry wall" in lines  # One word, as it was given.


def test_tpu_vm_recreates_a_preempted_slice_and_runs_the_same_command_again(tmp_path):
  """A fake gcloud: the slice is preempted in the first training run, and lives in the second."""
  script = _written(tmp_path, "tpu_vm_pod", "crack.sh")
  _fake(tmp_path, "sleep", "exit 0")
  _fake(tmp_path, "git", "exit 0")
  _fake(
    tmp_path,
    "gcloud",
    """
echo "$@" >> calls
case "$*" in
  *describe*) cat state 2>/dev/null; exit 0 ;;
  *create*) echo ACTIVE > state ;;
  *delete*) rm state ;;
  *main.py*) if [ -e second ]; then exit 0; fi; touch second; echo SUSPENDED > state; exit 143 ;;
esac
""",
  )
  done = _run(tmp_path, script)
  assert done.returncode == 0, done.stderr
  calls = (tmp_path / "calls").read_text().splitlines()
  verbs = ["create", "delete", "main.py"]
  story = [verb for call in calls for verb in verbs if verb in call]
  assert story == ["create", "main.py", "delete", "create", "main.py"]
  assert len({call for call in calls if "main.py" in call}) == 1


def test_tpu_vm_stops_at_bad_input(tmp_path):
  script = _written(tmp_path, "tpu_vm_host", "crack.sh")
  _fake(tmp_path, "sleep", "exit 0")
  _fake(tmp_path, "git", "exit 0")
  _fake(tmp_path, "gcloud", 'case "$*" in *describe*) echo ACTIVE ;; *main.py*) exit 2 ;; esac')
  assert _run(tmp_path, script).returncode == 2


def test_launching_writes_the_files_and_runs_the_commands(tmp_path):
  _fake(tmp_path, "sbatch", 'cat "$1" > submitted')
  environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
  command = [*LAUNCH, *CASES["slurm"], *REST]
  subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=60)
  assert (tmp_path / "submitted").read_text() == _file(dry_run(*CASES["slurm"]))


@pytest.mark.parametrize(
  ("arguments", "says"),
  [(["tpu_vm", "--name=crack", "--tpu=v9:4x4"], "'v9:4x4' is not GENERATION:TOPOLOGY"),
   (["slurm", "--name=Crack", "--workdir=/w"], "--name 'Crack' must be"),
   (["slurm", "--name=crack"], "--workdir")],
)  # fmt: skip
def test_mistakes_are_explained(arguments, says):
  done = subprocess.run([*LAUNCH, *arguments], capture_output=True, text=True, timeout=60)
  assert done.returncode == 2
  assert says in done.stderr


def _file(printed: str) -> str:
  body = printed.split("\n", 1)[1]
  return body[: body.index("\n$ ")]


def _written(folder: Path, case: str, name: str) -> Path:
  path = folder / name
  path.write_text(_file(dry_run(*CASES[case])))
  return path


def _fake(folder: Path, name: str, body: str):
  (folder / "bin").mkdir(exist_ok=True)
  path = folder / "bin" / name
  path.write_text(f"#!/bin/bash\n{body}\n")
  path.chmod(0o755)


def _run(folder: Path, script: Path, **environment):
  path = f"{folder / 'bin'}:{os.environ['PATH']}"
  return subprocess.run(
    ["bash", str(script)],
    cwd=folder,
    env={**os.environ, "PATH": path, **environment},
    capture_output=True,
    text=True,
    timeout=60,
  )
