"""Writes trials for engines that run many: a Slurm array, SkyPilot managed jobs.

Queueing, quotas, spot markets and recovery are theirs; a trial that is stopped saves itself, and
the same command resumes it, which is all that they need to know of segflax.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from segflax.experiments import Trial
from segflax.launch_templates import MOUNT, PYTHON, fill, install


def slurm(trials: Sequence[Trial], file: str = "trials.sbatch", python: str = "python") -> str:
  """Returns a batch script whose array index chooses the trial."""
  cases = "\n".join(
    f"  {index}) name={shlex.quote(trial.name)}; arguments=({shlex.join(trial.arguments())}) ;;"
    for index, trial in enumerate(trials)
  )
  last = len(trials) - 1
  return fill(
    "slurm.sbatch",
    title=f"{len(trials)} trials of segflax as one array: sbatch {file}",
    name="segflax",
    array_line=(
      f"# Options given to sbatch override these lines; --array=0-{last}%4 runs four at a time.\n"
      f"#SBATCH --array=0-{last}\n"
    ),
    nodes=1,
    gpus_per_node=1,
    cpus_per_task=8,
    time="24:00:00",
    log="%x_%A_%a.log",
    partition_line="",
    choose=f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}\nesac\necho "$name"\n',
    command=f'{python} main.py "${{arguments[@]}}"',
    job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
  )


def skypilot(
  trials: Sequence[Trial], accelerators: str = "A100:1", bucket: str = "segflax-runs"
) -> dict[str, str]:
  """Returns file name -> content: a YAML per trial, and a script that launches them all.

  Workdirs move into the bucket, below MOUNT.
  """
  files, launches = {}, []
  for trial in trials:
    file = f"{trial.name}.yaml"
    arguments = [
      f"--workdir={MOUNT}/{trial.name}" if a.startswith("--workdir=") else a
      for a in trial.arguments()
    ]
    files[file] = fill(
      "sky.yaml",
      name="segflax-" + "".join(c if c.isalnum() else "-" for c in trial.name.lower()),
      accelerator=accelerators,
      spot="true",
      mount=MOUNT,
      bucket=f"name: {bucket}",
      install=install(on_tpu=accelerators.startswith("tpu")),
      command=shlex.join([PYTHON, "main.py", *arguments]),
    )
    launches.append(f'sky jobs launch --yes --detach-run "$here"/{shlex.quote(file)}')
  files["launch.sh"] = (
    "#!/bin/bash\n# Launches every trial; run it from the root of segflax.\nset -e\n"
    'here=$(dirname "$0")\n' + "\n".join(launches) + "\n"
  )
  return files


def write(files: dict[str, str], folder: Path) -> list[Path]:
  """Writes files into a folder; returns their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (folder / name).write_text(content)
  return [folder / name for name in files]
