"""Writes trials for engines that run many: a Slurm array, SkyPilot managed jobs.

Queueing, quotas, spot markets and recovery are theirs; a trial that is stopped saves itself, and
the same command resumes it, which is all that they need to know of segflax.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from segflax.experiments import INTERRUPTED, Trial

_SLURM = """\
#!/bin/bash
# {count} trials of segflax as one array: sbatch {file}
# Options given to sbatch override these lines; --array=0-{last}%4 runs four at a time.
#SBATCH --job-name=segflax
#SBATCH --array=0-{last}
#SBATCH --output=segflax_%A_%a.log
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --requeue
# Two minutes before the time limit every trial is told to save.
#SBATCH --signal=TERM@120
set -uo pipefail

case "$SLURM_ARRAY_TASK_ID" in
{cases}
esac

echo "$name"
srun {python} main.py "${{arguments[@]}}"
code=$?
# Saved but not finished: back into the queue, where the same command resumes it.
if [ "$code" -eq {interrupted} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""

_SKY = """\
# One trial of segflax as a managed job: sky jobs launch {file}
name: {name}

resources:
  accelerators: {accelerators}
  use_spot: true
  job_recovery:
    # A trial resumes from its last checkpoint, so an error may be tried again.
    max_restarts_on_errors: 3

workdir: .

# The bucket keeps what a preempted machine would lose.
file_mounts:
  {mount}:
    name: {bucket}
    mode: MOUNT

setup: |
  pip install uv
  uv sync

run: |
  uv run main.py {arguments}
"""


def slurm(trials: Sequence[Trial], file: str = "trials.sbatch", python: str = "python") -> str:
  """Returns a batch script whose array index chooses the trial."""
  cases = "\n".join(
    f"  {index}) name={shlex.quote(trial.name)}; arguments=({shlex.join(trial.arguments())}) ;;"
    for index, trial in enumerate(trials)
  )
  return _SLURM.format(
    count=len(trials),
    last=len(trials) - 1,
    cases=cases,
    file=file,
    python=python,
    interrupted=INTERRUPTED,
  )


def skypilot(
  trials: Sequence[Trial],
  accelerators: str = "A100:1",
  bucket: str = "segflax-runs",
  mount: str = "/mnt/segflax",
) -> dict[str, str]:
  """Returns file name -> content: a YAML per trial, and a script that launches them all.

  Workdirs move into the bucket, below `mount`.
  """
  files, launches = {}, []
  for trial in trials:
    name = "segflax-" + "".join(c if c.isalnum() else "-" for c in trial.name.lower())
    file = f"{trial.name}.yaml"
    arguments = [
      f"--workdir={mount}/{trial.name}" if a.startswith("--workdir=") else a
      for a in trial.arguments()
    ]
    files[file] = _SKY.format(
      file=file,
      name=name,
      accelerators=accelerators,
      bucket=bucket,
      mount=mount,
      arguments=shlex.join(arguments),
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
