"""Writes masks: one PNG of the picture's own size, {0, 255}, per picture and prompt.

    scripts/predict.py --model=runs/quickstart/best_model --images DIR photo.jpg \
        --prompt "segment crack" --prompt "segment taping area" --output=masks --overlay

`photo.jpg` gives `masks/photo__segment_crack.png`; with --overlay also `masks/photo__panel.png`.
"""

import argparse
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
from PIL import Image

from segflax import tiles, visualize
from segflax.data.decode import load_image
from segflax.errors import UserError
from segflax.predict import Predictor, VisualPrompt
from segflax.prompting import names_of

SUFFIXES = {".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, help="model folder, hub id, or a run's workdir")
  parser.add_argument("--images", required=True, nargs="+", type=Path, help="files and folders")
  parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
  parser.add_argument("--negative", action="append", default=[], help="what no mask may cover")
  parser.add_argument(
    "--support",
    action="append",
    default=[],
    metavar="NAME=IMAGE=MASK",
    help="a prompt by example: a picture, and the mask of the thing in it",
  )
  parser.add_argument("--output", required=True, type=Path, help="folder for the masks")
  parser.add_argument("--overlay", action="store_true", help="also write a panel per picture")
  parser.add_argument("--threshold", type=float, help="for all prompts, in [0, 1]")
  parser.add_argument("--tile", default="auto", help="auto, none, or a window's side in pixels")
  parser.add_argument("--image_size", type=int, help="what the network sees; default: the model's")
  parser.add_argument("--batch_size", type=int, default=8, help="canvases per pass")
  parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16")
  parser.add_argument(
    "--template",
    action="append",
    metavar="TEXT",
    help="a sentence with {} for the prompt; several: the mean of their embeddings",
  )
  return parser.parse_args(argv)


def find_pictures(paths: list[Path]) -> list[Path]:
  """Expands folders (not their subfolders), in order of name."""
  found = []
  for path in paths:
    if path.is_dir():
      inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
      if not inside:
        raise UserError(f"{path} has no pictures; known endings: {' '.join(sorted(SUFFIXES))}")
      found += inside
    elif path.is_file():
      found.append(path)
    else:
      raise UserError(f"--images {path} does not exist")
  return found


def slug(prompt: str) -> str:
  """`segment joint/tape` -> `segment_joint_tape`, as the data sets name their masks."""
  return re.sub(r"[^\w.-]+", "_", prompt).strip("_")


def name_outputs(pictures: list[Path], names: list[str], output: Path) -> dict[Path, list[Path]]:
  """Returns picture -> one path per name.

  Raises:
    UserError: two outputs of one name, or an output that would overwrite a picture.
  """
  taken = {picture.resolve(): f"the picture {picture}" for picture in pictures}
  plan = {}
  for picture in dict.fromkeys(pictures):
    plan[picture] = [output / f"{picture.stem}__{slug(name)}.png" for name in names]
    for path, name in zip(plan[picture], names, strict=True):
      if path.resolve() in taken:
        raise UserError(
          f"{path}, the mask of {picture} for {name!r}, is also {taken[path.resolve()]}; "
          "rename one, or use another --output"
        )
      taken[path.resolve()] = f"the mask of {picture} for {name!r}"
  return plan


def main(argv: list[str] | None = None):
  args = parse(argv)
  if not all(support.count("=") == 2 for support in args.support):
    raise UserError(f"--support {' '.join(args.support)} is not of the form NAME=IMAGE=MASK")
  prompts = args.prompt + [VisualPrompt(*support.split("=")) for support in args.support]
  names = names_of(prompts)
  if args.threshold is not None and not 0 <= args.threshold <= 1:
    raise UserError(f"--threshold {args.threshold} is not in [0, 1]")
  tile = tiles.parse(args.tile)
  panel = ["panel"] if args.overlay else []
  plan = name_outputs(find_pictures(args.images), names + panel, args.output)
  predictor = Predictor.from_pretrained(
    args.model,
    image_size=args.image_size,
    batch_size=args.batch_size,
    bfloat16=args.bfloat16,
    templates=args.template or ("{}",),
  )
  args.output.mkdir(parents=True, exist_ok=True)
  pictures = list(plan)
  for start in range(0, len(pictures), args.batch_size):  # So that a large folder fits in memory.
    chunk = pictures[start : start + args.batch_size]
    images = [load_image(picture) for picture in chunk]
    answers = predictor(images, prompts, negatives=args.negative, tile=tile)
    masks = predictor.masks(answers, args.threshold)
    for picture, image, maps in zip(chunk, images, masks, strict=True):
      for path, mask in zip(plan[picture], maps.values(), strict=False):
        Image.fromarray(mask).save(path)
      if args.overlay:
        visualize.panel(np.asarray(image), maps).save(plan[picture][-1])
      print(f"{picture}: " + ", ".join(f"{n} {m.mean() / 255:.1%}" for n, m in maps.items()))


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"predict: {error}", file=sys.stderr)
    sys.exit(2)
