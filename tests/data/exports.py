"""Writes one generated content in every layout that users bring."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import skimage.draw
from PIL import Image

SIZE = 80, 64  # width, height


@dataclasses.dataclass
class Wall:
  """A picture with the outlines of what is on it, in pixels."""

  name: str
  split: str
  outlines: list[list[float]]
  seed: int

  @property
  def pixels(self) -> np.ndarray:
    rng = np.random.default_rng(self.seed)
    coarse = rng.integers(60, 220, (8, 10, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def walls(n=6, splits=("train", "train", "valid"), seed=0, name="wall") -> list[Wall]:
  """Returns n walls; each has a thin slanted crack whose corners are no pixel centres."""
  rng = np.random.default_rng(seed)
  made = []
  for i in range(n):
    x, y = rng.uniform(4, 30, 2)
    dx, dy, thick = rng.uniform(20, 40), rng.uniform(-3, 25), rng.uniform(2.5, 6)
    outline = [x, y, x + dx, y + dy, x + dx, y + dy + thick, x, y + thick]
    rounded = [round(float(value), 3) for value in outline]
    made.append(Wall(f"{name}{i}", splits[i % len(splits)], [rounded], 100 * seed + i))
  return made


def write_picture(path: Path, wall: Wall, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(wall.pixels).save(path, **options)


def write_bomb(path: Path):
  """Writes a PNG of a few bytes whose header promises 10^10 pixels."""
  header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
  chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
  content = b"\x89PNG\r\n\x1a\n"
  for kind, data in chunks:
    content += struct.pack(">I", len(data)) + kind + data
    content += struct.pack(">I", zlib.crc32(kind + data))
  path.write_bytes(content)


def coco_content(of_split: list[Wall], suffix=".png") -> dict:
  """Returns what stands in `_annotations.coco.json`; category 0 is Roboflow's placeholder."""
  width, height = SIZE
  annotations = []
  for number, wall in enumerate(of_split):
    for outline in wall.outlines:
      x, y = min(outline[::2]), min(outline[1::2])
      box = [x, y, max(outline[::2]) - x, max(outline[1::2]) - y]
      annotations.append(
        {
          "id": len(annotations),
          "image_id": number,
          "category_id": 1,
          "bbox": box,
          "area": box[2] * box[3],
          "segmentation": [outline],
          "iscrowd": 0,
        }
      )
  return {
    "info": {},
    "licenses": [{"id": 1, "name": "CC BY 4.0"}],
    "categories": [{"id": 0, "name": "crack"}, {"id": 1, "name": "NewCracks - v2"}],
    "images": [
      {"id": number, "file_name": wall.name + suffix, "height": height, "width": width}
      for number, wall in enumerate(of_split)
    ],
    "annotations": annotations,
  }


def write_coco(folder: Path, content: list[Wall], change=lambda split, data: None) -> Path:
  """Writes a Roboflow export; `change` may spoil the annotations of a split first."""
  for split in sorted({wall.split for wall in content}):
    own = [wall for wall in content if wall.split == split]
    for wall in own:
      write_picture(folder / split / f"{wall.name}.png", wall)
    data = coco_content(own)
    change(split, data)
    (folder / split / "_annotations.coco.json").write_text(json.dumps(data))
  return folder


def write_yolo(folder: Path, content: list[Wall], names=("crack",), split_inside=False) -> Path:
  width, height = SIZE
  for wall in content:
    parts = [folder / wall.split / kind for kind in ("images", "labels")]
    if split_inside:
      parts = [folder / kind / wall.split for kind in ("images", "labels")]
    write_picture(parts[0] / f"{wall.name}.png", wall)
    parts[1].mkdir(parents=True, exist_ok=True)
    lines = []
    for outline in wall.outlines:
      shares = [value / (height if i % 2 else width) for i, value in enumerate(outline)]
      lines.append(" ".join(["0", *(f"{share:.9f}" for share in shares)]))
    (parts[1] / f"{wall.name}.txt").write_text("\n".join(lines))
  (folder / "data.yaml").write_text(f"names: {list(names)}\n")
  return folder


def write_masks(folder: Path, content: list[Wall], masks: dict, label="__segment_crack", high=255):
  """Writes images and masks; masks: name -> `[h, w]` bool, label: what follows the stem."""
  for wall in content:
    write_picture(folder / wall.split / "images" / f"{wall.name}.png", wall)
    path = folder / wall.split / "masks" / f"{wall.name}{label}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(masks[wall.name].astype(np.uint8) * np.uint8(high)).save(path)
  return folder


def truth(content: list[Wall]) -> dict[str, np.ndarray]:
  """Returns name -> mask, from scikit-image, which takes (row, column) at the pixel's corner."""
  width, height = SIZE
  masks = {}
  for wall in content:
    mask = np.zeros((height, width), bool)
    for outline in wall.outlines:
      points = np.reshape(outline, (-1, 2))[:, ::-1] - 0.5
      mask |= skimage.draw.polygon2mask((height, width), points)
    masks[wall.name] = mask
  return masks


def masks_of(source, concept="crack") -> dict[str, np.ndarray]:
  """Returns image id -> mask of a source that was read."""
  return {item.image_id: np.asarray(item.masks()[concept]) > 0 for item in source.items}


def assert_agree(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]):
  assert found.keys() == truth.keys()
  for name, mask in truth.items():
    union = (mask | found[name]).sum()
    assert (mask & found[name]).sum() / union > 0.999, name
    assert mask.any()
