"""Compiles the real train step for TPU slices on a machine without a TPU, and says what it costs.

    pip install -r requirements-tpu.txt
    scripts/compile_for_tpu.py --config=configs/baseline.py --config.trainable=decoder \
        --topology=v5e:1x1,v5e:4x4,v6e:4x4,v5p:2x2x2 --pictures_per_chip=32 [--largest]

Per chip and step: memory against the chip's limit, FLOPs, bytes accessed, collectives, the step
time that the chip's peaks allow (a bound, not a measurement) and pictures/s at that bound. With
--largest also the largest batch whose program fits. Exit code 1 if a program does not fit.
"""

import os
import sys
from pathlib import Path
from unittest import mock

# Before jax is imported: the host computes on its CPU, and libtpu asks no cloud who it is.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1]))

import json
import time

import jax
from absl import app, flags
from jax.experimental import topologies
from ml_collections import ConfigDict, config_flags

from segflax import build, cost
from segflax.dry_step import step_memory, train_step_and_shapes
from segflax.errors import UserError
from segflax.sharding import check_batch_size, make_mesh

CONFIG = config_flags.DEFINE_config_file("config", None, "As for main.py.", lock_config=True)
TOPOLOGY = flags.DEFINE_list("topology", ["v5e:2x4"], "GENERATION:SHAPE, one or more.")
PER_CHIP = flags.DEFINE_integer("pictures_per_chip", 0, "0: batch_size over the chips.")
LARGEST = flags.DEFINE_bool("largest", False, "Also search the largest batch that fits.")
JSON = flags.DEFINE_string("json", None, "Append one JSON line per topology to this file.")
flags.mark_flag_as_required("config")


def devices_of(topology: str) -> list[jax.Device]:
  """Returns the chips of a slice such as v5e:4x4, none of which needs to exist."""
  generation, _, shape = topology.partition(":")
  if generation not in cost.CHIPS or not shape:
    raise UserError(
      f"topology {topology!r} is not GENERATION:SHAPE with one of {', '.join(cost.CHIPS)}; "
      "for example v5e:4x4 or v5p:2x2x2"
    )
  options = {"chips_per_host_bounds": [1, 1, 1]} if shape in ("1x1", "1x1x1") else {}
  try:
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"no topology {topology!r} ({' '.join(str(error).split())[:200]}); check the shape, and "
      "that requirements-tpu.txt is installed"
    ) from error
  return list(description.devices)


def as_on_tpu():
  """The model asks jax for its backend to choose attention and accumulators: here it is the TPU."""
  return mock.patch.object(jax, "default_backend", lambda: "tpu")


def compile_step(config: ConfigDict, model: build.Model, mesh, batch_size: int):
  """Compiles what train_and_evaluate runs per step."""
  with as_on_tpu():
    step, shapes = train_step_and_shapes(config, model.module, model.params, mesh, batch_size)
    lowered = step.lower(*shapes)
  return lowered.compile()


def report(config: ConfigDict, model: build.Model, topology: str) -> dict:
  """Compiles for one slice and returns what the table shows."""
  if not PER_CHIP.value and type(config.batch_size) is not int:
    raise UserError(
      f"batch_size {config.batch_size!r} needs the devices themselves; give --pictures_per_chip, "
      "and --largest for the largest that fits"
    )
  devices = devices_of(topology)
  chip = cost.CHIPS[topology.partition(":")[0]]
  mesh = make_mesh(devices)
  batch_size = PER_CHIP.value * mesh.size or config.batch_size
  check_batch_size(batch_size, mesh)

  def memory_at(per_chip: int) -> int | None:
    with as_on_tpu():
      return step_memory(config, model.module, model.params, mesh, per_chip * mesh.size)

  row = {
    "topology": topology,
    "chips": mesh.size,
    "image_size": config.image_size,
    "prompts": config.data.prompts_per_picture,
    "trainable": config.trainable,
    "bfloat16": config.mixed_precision,
    "per_chip": batch_size // mesh.size,
    "limit_gib": chip.memory / 2**30,
  }
  start = time.perf_counter()
  try:
    measured = cost.measure(compile_step(config, model, mesh, batch_size))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return row | {"fits": False}
  times = measured.roofline(chip)
  bound = max(times.values())
  row |= {
    "fits": measured.memory <= chip.memory,
    "memory_gib": measured.memory / 2**30,
    "arguments_gib": measured.arguments / 2**30,
    "gflop": measured.flops / 1e9,
    "gbytes": measured.bytes_accessed / 1e9,
    "collectives": measured.collectives,
    "compute_ms": 1e3 * times["compute"],
    "memory_ms": 1e3 * times["memory"],
    "interconnect_ms": 1e3 * times["interconnect"],
    "pictures_per_second": batch_size / bound,
    "compile_seconds": time.perf_counter() - start,
  }
  row["largest_per_chip"] = cost.largest_batch(memory_at, chip.memory) if LARGEST.value else "-"
  return row


COLUMNS = (
  "slice", "chips", "px", "prompts", "pictures a chip", "memory GiB (limit)", "GFLOP",
  "GB accessed", "collectives", "step >= ms: compute, memory, interconnect", "pictures/s <=",
  "largest a chip",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def markdown(row: dict) -> str:
  """Returns a row as the table in docs/scaling.md has it; costs are per chip and step."""
  head = (
    f"| {row['topology']} | {row['chips']} | {row['image_size']} | {row['prompts']} "
    f"| {row['per_chip']} |"
  )
  if "memory_gib" not in row:
    return f"{head} does not fit ({row['limit_gib']:.2f}) |" + " |" * 6
  kinds = ", ".join(
    f"{count} {kind} of {size / 1e6:.2f} MB" for kind, (count, size) in row["collectives"].items()
  )
  return (
    f"{head} {row['memory_gib']:.2f} ({row['limit_gib']:.2f}) | {row['gflop']:.0f} "
    f"| {row['gbytes']:.2f} | {kinds or 'none'} "
    f"| {row['compute_ms']:.2f}, {row['memory_ms']:.2f}, {row['interconnect_ms']:.3f} "
    f"| {row['pictures_per_second']:.0f} | {row['largest_per_chip']} |"
  )


def main(argv):
  del argv
  config = CONFIG.value
  try:
    model = build.make_model(config)
    rows = []
    print(HEADER)
    for topology in TOPOLOGY.value:
      rows.append(report(config, model, topology))
      print(markdown(rows[-1]), flush=True)
      if JSON.value:
        with open(JSON.value, "a") as file:
          file.write(json.dumps(rows[-1]) + "\n")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0 if all(row["fits"] for row in rows) else 1


if __name__ == "__main__":
  app.run(main)
