"""What tiles are worth: f1 at 2 px and IoU of thin cracks on large walls, tiled and resized.

    scripts/benchmark_tiles.py --model=runs/quickstart/best_model

A large wall is a mosaic of generated walls of --size px, on which cracks are 2.5 % of it wide in
the mean: 2 px at 80. Resized, it reaches the network whole; tiled, in windows of --size px. The
truth is exact, and both ways use the model's own threshold.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
from jaxtyping import Bool, UInt8

from segflax.data.synthetic import generate_walls
from segflax.errors import UserError
from segflax.metrics_thin import f1_within
from segflax.predict import Predictor

PROMPT, CONCEPT = "segment crack", "crack"


def large_walls(
  n: int, size: int, rows: int, columns: int, seed: int
) -> list[tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]]:
  """Returns n pictures of rows x columns generated walls of `size` px each, and their cracks.

  Cracks of generated walls are 1.6 to 3.4 % of their side wide: 2 px at a side of 80.
  """
  walls = list(generate_walls(n * rows * columns, size, seed))
  pictures = np.stack([np.asarray(wall["image"]) for wall in walls])
  masks = np.stack([np.asarray(wall["masks"][CONCEPT]) > 0 for wall in walls])

  def join(parts):
    parts = parts.reshape(n, rows, columns, size, size, *parts.shape[3:]).swapaxes(2, 3)
    return parts.reshape(n, rows * size, columns * size, *parts.shape[5:])

  return list(zip(join(pictures), join(masks), strict=True))


def main(argv: list[str] | None = None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, help="model folder, or a run's workdir")
  parser.add_argument("--walls", type=int, default=4, help="large pictures")
  parser.add_argument("--size", type=int, default=80, help="side of a part; cracks: 2.5 %% of it")
  parser.add_argument("--grid", type=int, nargs=2, default=(6, 8), help="rows and columns")
  parser.add_argument("--seed", type=int, default=1_000_003, help="no seed of a training set")
  args = parser.parse_args(argv)
  predictor = Predictor.from_pretrained(args.model)
  walls = large_walls(args.walls, args.size, *args.grid, args.seed)
  height, width = walls[0][1].shape
  print(f"{args.walls} walls of {width}x{height}, network {predictor.image_size}")
  for name, tile in (("tiled", args.size), ("resized", None)):
    start, rows = time.perf_counter(), []
    for picture, truth in walls:
      (mask,) = predictor.masks(predictor([picture], [PROMPT], tile=tile))
      prediction = mask[PROMPT] > 0
      both, either = (prediction & truth).sum(), (prediction | truth).sum()
      rows.append((f1_within(prediction, truth, [2])[2], both / max(1, either)))
    f1, iou = np.mean(rows, 0)
    seconds = (time.perf_counter() - start) / len(walls)
    print(f"{name:8} f1@2px {f1:.3f}  iou {iou:.3f}  {seconds:.1f} s a wall, compiling included")


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"benchmark_tiles: {error}", file=sys.stderr)
    sys.exit(2)
