"""Starts training beyond this machine; giving the same command again resumes it.

    launch.py slurm --name=crack --workdir=/shared/runs/crack --nodes=2 --gpus_per_node=8 \
        -- --config.data_dir=/shared/data/drywall
    launch.py tpu_vm --name=crack --tpu=v5e:4x4 --spot --project=P --zone=us-west4-a \
        --bucket=B --workdir=/mnt/segflax/runs/crack -- --config.data_dir=/mnt/segflax/drywall

Engines: tpu_vm, slurm, gke, xpk, sky. `--dry_run` prints every file and command, and does
nothing. What follows `--` goes to main.py. docs/launching.md leads from start to resume.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from segflax.launch_templates import MOUNT, PYTHON, fill, install


class Plan(NamedTuple):
  """What a launch consists of, in order: files to write, then commands to run."""

  files: dict[str, str]
  commands: list[list[str]]


class Tpu(NamedTuple):
  """A slice named as in `v5e:4x4`, in the terms of the engines."""

  name: str
  topology: str
  accelerator: str  # Cloud TPU's accelerator type
  runtime: str
  gke_accelerator: str
  hosts: int
  chips_per_host: int


# Generation: accelerator type's prefix, its unit per chip, VM image, GKE's label, chips of the
# largest single host.
_GENERATIONS = {
  "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 8),
  "v6e": ("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 8),
  "v5p": ("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 4),  # counted in cores, two a chip
}


def parse_tpu(name: str) -> Tpu:
  """Reads `GENERATION:TOPOLOGY`, for example v5e:1x1, v6e:4x4, v5p:2x2x4."""
  generation, _, topology = name.partition(":")
  if generation not in _GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", topology):
    raise argparse.ArgumentTypeError(
      f"{name!r} is not GENERATION:TOPOLOGY with one of {', '.join(_GENERATIONS)}; "
      "for example v5e:4x4"
    )
  prefix, unit, runtime, label, single_host = _GENERATIONS[generation]
  chips = math.prod(int(side) for side in topology.split("x"))
  per_host = chips if chips <= single_host else 4
  return Tpu(
    name, topology, f"{prefix}-{chips * unit}", runtime, label, chips // per_host, per_host
  )


def train_command(args, processes: int, python: str = "python") -> list[str]:
  """Returns the command that every process runs; its rank it learns from the cluster."""
  distributed = ["--distributed"] if processes > 1 else []
  where = [f"--config={args.config}", f"--workdir={args.workdir}"]
  return [python, "main.py", *where, *distributed, *args.rest]


def tpu_vm(args) -> Plan:
  """One Cloud TPU slice, single host or pod: a queued resource, ssh to every host, retry loop."""
  set_up = " && ".join(
    [
      "mkdir -p ~/segflax && tar -xzf segflax.tar.gz -C ~/segflax",
      f"sudo mkdir -p {MOUNT} && sudo chown $USER {MOUNT}",
      f"(mountpoint -q {MOUNT} || gcsfuse --implicit-dirs {args.bucket} {MOUNT})",
      f"cd ~/segflax && {install(on_tpu=True)}",
    ]
  )
  run = f"cd ~/segflax && {shlex.join(train_command(args, args.tpu.hosts, PYTHON))}"
  script = f"{args.name}.sh"
  text = fill(
    "tpu_vm.sh",
    name=args.name,
    accelerator=args.tpu.accelerator,
    hosts=args.tpu.hosts,
    runtime=args.tpu.runtime,
    project=args.project,
    zone=args.zone,
    mount=MOUNT,
    spot_flag=" --spot" if args.spot else "",
    set_up=shlex.quote(set_up),
    run=shlex.quote(run),
  )
  return Plan({script: text}, [["bash", script]])


def slurm(args) -> Plan:
  """GPUs under Slurm: one task per GPU, saved and requeued at the time limit."""
  script = f"{args.name}.sbatch"
  text = fill(
    "slurm.sbatch",
    title=f"{args.name}: written by scripts/launch/launch.py; submit with sbatch",
    name=args.name,
    array_line="",
    log="%x-%j.log",
    choose="",
    job="$SLURM_JOB_ID",
    nodes=args.nodes,
    gpus_per_node=args.gpus_per_node,
    cpus_per_task=args.cpus_per_task,
    time=args.time,
    partition_line=f"#SBATCH --partition={args.partition}\n" if args.partition else "",
    command=shlex.join(train_command(args, args.nodes * args.gpus_per_node)),
  )
  return Plan({script: text}, [["sbatch", script]])


def gke(args) -> Plan:
  """One TPU slice on GKE as a JobSet."""
  manifest = f"{args.name}.yaml"
  spot_line = '\n                cloud.google.com/gke-spot: "true"'
  text = fill(
    "jobset.yaml",
    name=args.name,
    tpu=args.tpu.name,
    topology=args.tpu.topology,
    gke_accelerator=args.tpu.gke_accelerator,
    hosts=args.tpu.hosts,
    chips_per_host=args.tpu.chips_per_host,
    spot_selector=spot_line if args.spot else "",
    image=args.image,
    service_account=args.service_account,
    mount=MOUNT,
    bucket=args.bucket,
    command=json.dumps(train_command(args, args.tpu.hosts)),  # A JSON list is a YAML list.
  )
  # A finished or failed JobSet cannot be applied over: it is replaced.
  delete = ["kubectl", "delete", "jobset", args.name, "--ignore-not-found", "--wait"]
  return Plan({manifest: text}, [delete, ["kubectl", "apply", "-f", manifest]])


def xpk(args) -> Plan:
  """One TPU slice on GKE through xpk, which writes the JobSet; the cluster mounts the bucket."""
  command = [
    "xpk", "workload", "create", f"--workload={args.name}", f"--cluster={args.cluster}",
    f"--project={args.project}", f"--zone={args.zone}", f"--tpu-type={args.tpu.accelerator}",
    "--num-slices=1", "--max-restarts=50", "--restart-on-exit-codes=75",
    "--termination-grace-period-seconds=300", f"--docker-image={args.image}",
    f"--command={shlex.join(train_command(args, args.tpu.hosts))}",
  ]  # fmt: skip
  return Plan({}, [command])


def sky(args) -> Plan:
  """A SkyPilot managed job on spot (or on-demand) machines of any cloud it knows."""
  task = f"{args.name}.yaml"
  on_tpu = args.tpu is not None
  text = fill(
    "sky.yaml",
    name=args.name,
    accelerator=f"tpu-{args.tpu.accelerator}" if on_tpu else args.gpus,
    spot=str(args.spot).lower(),
    mount=MOUNT,
    bucket=f"source: gs://{args.bucket}",
    install=install(on_tpu),
    command=shlex.join(train_command(args, args.tpu.hosts if on_tpu else 1, PYTHON)),
  )
  return Plan({task: text}, [["sky", "jobs", "launch", f"--name={args.name}", "--yes", task]])


ENGINES = {"tpu_vm": tpu_vm, "slurm": slurm, "gke": gke, "xpk": xpk, "sky": sky}


def parse(argv: list[str]) -> argparse.Namespace:
  """Returns the options; what follows `--` is in `rest`."""
  own, rest = argv, []
  if "--" in argv:
    own, rest = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  engines = parser.add_subparsers(dest="engine", required=True)
  for name, plan in ENGINES.items():
    engine = engines.add_parser(name, help=plan.__doc__.splitlines()[0], allow_abbrev=False)
    engine.add_argument("--name", required=True, help="of the job; lower case, digits, dashes")
    engine.add_argument("--config", default="configs/baseline.py")
    engine.add_argument("--workdir", required=True, help="a path that every host sees")
    engine.add_argument("--dry_run", action="store_true", help="print files and commands only")
    if name == "slurm":
      engine.add_argument("--nodes", type=int, default=1)
      engine.add_argument("--gpus_per_node", type=int, default=1)
      engine.add_argument("--cpus_per_task", type=int, default=8)
      engine.add_argument("--time", default="24:00:00", help="limit of one piece of the run")
      engine.add_argument("--partition", default="")
      continue
    accelerator = engine.add_mutually_exclusive_group(required=True)
    accelerator.add_argument("--tpu", type=parse_tpu, help="GENERATION:TOPOLOGY, as in v5e:4x4")
    if name == "sky":
      accelerator.add_argument("--gpus", help="as SkyPilot names them, for example H100:8")
    if name != "xpk":
      engine.add_argument("--spot", action="store_true", help="preemptible and cheaper")
      engine.add_argument("--bucket", required=True, help=f"Cloud Storage, seen as {MOUNT}")
    if name in ("tpu_vm", "xpk"):
      engine.add_argument("--project", required=True)
      engine.add_argument("--zone", required=True)
    if name in ("gke", "xpk"):
      engine.add_argument("--image", required=True, help="container with segflax as its folder")
    if name == "gke":
      engine.add_argument("--service_account", default="default", help="may write to the bucket")
    if name == "xpk":
      engine.add_argument("--cluster", required=True)
  args = parser.parse_args(own)
  args.rest = rest
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.name):
    parser.error(
      f"--name {args.name!r} must be at most 40 lower-case letters, digits and dashes, "
      "starting with a letter: every engine accepts that"
    )
  return args


def main(argv: list[str]) -> int:
  args = parse(argv)
  plan = ENGINES[args.engine](args)
  if args.dry_run:
    for path, text in plan.files.items():
      print(f"# file: {path}\n{text}")
    for command in plan.commands:
      print(f"$ {shlex.join(command)}")
    return 0
  for path, text in plan.files.items():
    Path(path).write_text(text)
  for command in plan.commands:
    code = subprocess.run(command, check=False).returncode
    if code:
      return code
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
