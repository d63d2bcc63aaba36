"""Measures the training stream: what a core delivers, how it scales, and what to store.

    scripts/benchmark_data.py                                  # generated walls, stored five ways
    scripts/benchmark_data.py --data_dir=DIR [--split=train]   # a prepared data set as it is
    scripts/benchmark_data.py --threads 1 2 4 8 16 --processes 1 2 4 --stored jpeg640 jpeg512

Everything is timed that training waits for: reading the record, decoding picture and mask, fitting
both to --image_size, batching. Two figures count: pictures per second of the clock, which another
program on the machine spoils, and pictures per second of CPU time, which is what one free core
delivers. Several processes are processes of one run, each with its slice of every batch.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import queue
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from segflax import huge_pages

if __name__ == "__main__":
  huge_pages.enable()  # As in training; it starts the program over.

from PIL import Image

from segflax.data.builder import load_info, open_split, write_dataset
from segflax.data.prompts import PromptSet
from segflax.data.synthetic import CONCEPTS, generate_walls
from segflax.data.train_stream import make_train_stream
from segflax.errors import UserError


class Stored(NamedTuple):
  """A way to keep pictures: format, its options, and size (width, height)."""

  form: str
  options: dict
  size: tuple[int, int]


STORED = {
  "jpeg640": Stored("JPEG", {"quality": 90}, (640, 640)),  # as Roboflow exports come
  "jpeg1080": Stored("JPEG", {"quality": 90}, (1920, 1080)),  # as cameras make them
  "jpeg512": Stored("JPEG", {"quality": 92}, (512, 512)),  # as prepare_data --max_size=512 does
  "jpeg512x384": Stored("JPEG", {"quality": 92}, (512, 384)),  # the same of an oblong picture
  "png512": Stored("PNG", {}, (512, 512)),
}


# Grain's shuffle walks through 65,536 places at least: below 1,000 pictures it would count.
_REPEATS = 16


class Measured(NamedTuple):
  """One row of the table."""

  stored: str
  kilobytes: float  # per picture, masks included
  processes: int
  threads: int  # per process
  per_second: float
  per_cpu_second: float


def write_walls(data_dir: Path, stored: Stored, pictures: int):
  """Writes a data set of generated walls, encoded as asked, each of them `_REPEATS` times."""

  def examples():
    for wall in generate_walls(pictures, 512, 0):
      buffer = io.BytesIO()
      image = wall["image"].resize(stored.size, Image.Resampling.BICUBIC)
      image.save(buffer, stored.form, **stored.options)
      masks = {c: m.resize(stored.size, Image.Resampling.NEAREST) for c, m in wall["masks"].items()}
      for i in range(_REPEATS):
        name = {"image_id": f"{wall['image_id']}_{i}"}
        yield wall | name | {"image": buffer.getvalue(), "masks": masks}

  write_dataset(data_dir, {"train": examples()}, CONCEPTS)


def run_process(task: dict, process: int, barrier, results):
  """Times one process's share; puts (pictures, seconds, CPU seconds) into `results`."""
  stream = make_train_stream(
    task["data_dir"],
    task["split"],
    batch_size=task["batch_size"] * task["processes"],
    image_size=task["image_size"],
    prompts=PromptSet.create(load_info(task["data_dir"]).concepts),
    process_index=process,
    process_count=task["processes"],
    num_threads=task["threads"],
  )
  for _ in range(2 + task["threads"] // task["batch_size"]):
    next(stream)  # The read-ahead is full and every import is done.
  barrier.wait()
  started, cpu, pictures = time.perf_counter(), time.process_time(), 0
  while time.perf_counter() - started < task["seconds"]:
    pictures += int((next(stream)["index"] >= 0).sum())
  results.put((pictures, time.perf_counter() - started, time.process_time() - cpu))
  stream.close()


def measure(name: str, data_dir: Path, args, processes: int, threads: int) -> Measured:
  """Runs all processes at once, each on threads of its own."""
  kilobytes = kilobytes_per_picture(data_dir, args.split)  # Says here what is wrong with the data.
  context = multiprocessing.get_context("spawn")  # Forked threads would deadlock.
  task = {
    "data_dir": str(data_dir),
    "split": args.split,
    "batch_size": args.batch_size,
    "image_size": args.image_size,
    "processes": processes,
    "threads": threads,
    "seconds": args.seconds,
  }
  barrier, results = context.Barrier(processes), context.Queue()
  workers = [
    context.Process(target=run_process, args=(task, p, barrier, results)) for p in range(processes)
  ]
  for worker in workers:
    worker.start()
  rows = collect(workers, results)
  return Measured(
    stored=name,
    kilobytes=kilobytes,
    processes=processes,
    threads=threads,
    per_second=sum(pictures / seconds for pictures, seconds, _ in rows),
    per_cpu_second=sum(row[0] for row in rows) / sum(row[2] for row in rows),
  )


def collect(workers: list, results) -> list[tuple]:
  """Returns what each process measured; one that died ends the wait of the others."""
  rows = []
  while len(rows) < len(workers):
    try:
      rows.append(results.get(timeout=1))
    except queue.Empty:
      if codes := [worker.exitcode for worker in workers if worker.exitcode]:
        for worker in workers:
          worker.terminate()
        raise UserError(
          f"a process ended with code {codes[0]} before it had measured; its error stands above"
        ) from None
  for worker in workers:
    worker.join()
  return rows


def kilobytes_per_picture(data_dir: Path, split: str) -> float:
  """Returns the mean size of the first records."""
  records = open_split(data_dir, split)
  n = min(64, len(records))
  sizes = [len(r["image"]) + sum(map(len, r["masks"])) for r in map(records.__getitem__, range(n))]
  return sum(sizes) / n / 1024


def machine() -> str:
  """Returns the CPU in words."""
  names = [
    line.split(":")[1].strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines()
    if line.startswith("model name")
  ]
  name = names[0] if names else platform.processor()
  return f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {name}"


def parse_args() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data_dir", help="prepared data set; without it walls are generated")
  parser.add_argument("--split", default="train")
  parser.add_argument("--stored", nargs="+", choices=STORED, default=list(STORED))
  parser.add_argument("--image_size", type=int, default=512)
  parser.add_argument("--batch_size", type=int, default=8, help="per process")
  parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="per process")
  parser.add_argument("--processes", type=int, nargs="+", default=[1])
  parser.add_argument("--pictures", type=int, default=64, help="generated, each stored 16 times")
  parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
  parser.add_argument("--json", help="write the rows there as well")
  return parser.parse_args()


def main():
  args = parse_args()
  rows = []
  print(f"{machine()}; to {args.image_size}, batches of {args.batch_size}", flush=True)
  print("stored       KiB/picture  processes  threads  pictures/s  pictures/s of CPU time")
  with tempfile.TemporaryDirectory() as scratch:
    for name in [args.data_dir] if args.data_dir else args.stored:
      data_dir = Path(args.data_dir or scratch) / ("" if args.data_dir else name)
      if not args.data_dir:
        write_walls(data_dir, STORED[name], args.pictures)
      for processes in args.processes:
        for threads in args.threads:
          row = measure(Path(name).name, data_dir, args, processes, threads)
          rows.append(row)
          print(
            f"{row.stored:12} {row.kilobytes:11.0f} {row.processes:10} {row.threads:8} "
            f"{row.per_second:11.0f} {row.per_cpu_second:23.0f}",
            flush=True,
          )
  if args.json:
    table = {"machine": machine(), "rows": [row._asdict() for row in rows]}
    Path(args.json).write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"benchmark_data.py: {error}")
