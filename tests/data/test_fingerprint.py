"""Copies are found whatever was done to them, other walls are not."""

import io

import numpy as np
from PIL import Image, ImageEnhance

from segflax.data import fingerprint


def _wall(seed, size=(320, 240)):
  """Wall-like: broad light, fine grain, one dark joint or crack."""
  rng = np.random.default_rng(seed)
  width, height = size
  light = Image.fromarray(rng.uniform(120, 220, (3, 4)).astype(np.float32)).resize(size)
  grain = Image.fromarray(rng.normal(0, 12, (60, 80)).astype(np.float32)).resize(size)
  picture = np.asarray(light) + np.asarray(grain)
  x = (width * rng.uniform(0.2, 0.8) + np.cumsum(rng.normal(0, 2, height))).astype(int)
  for dx in range(4):
    picture[np.arange(height), np.clip(x + dx, 0, width - 1)] -= 70
  return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).convert("RGB")


def _jpeg(picture, quality):
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=quality)
  return Image.open(buffer)


def test_copies_are_found_and_other_walls_are_not():
  walls = [_wall(seed) for seed in range(40)]
  copies = [
    _jpeg(walls[0], 40),
    walls[1].resize((97, 133)),
    walls[2].transpose(Image.Transpose.ROTATE_90),
    walls[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    walls[4].transpose(Image.Transpose.TRANSVERSE),
    ImageEnhance.Brightness(walls[5]).enhance(0.7),
    ImageEnhance.Contrast(walls[6]).enhance(1.4),
    walls[7].crop((3, 2, 318, 238)),
    walls[8].convert("L"),
  ]
  prints = np.stack([fingerprint.fingerprint(picture) for picture in walls + copies])
  pairs = {(i, j) for i, j, _ in fingerprint.near_duplicates(prints)}
  assert pairs == {(i, 40 + i) for i in range(len(copies))}


def test_blocks_change_nothing(monkeypatch):
  rng = np.random.default_rng(0)
  prints = rng.normal(size=(30, fingerprint.SIZE**2)).astype(np.float32)
  prints[17] = prints[4]
  prints /= np.linalg.norm(prints, axis=1, keepdims=True)
  whole = list(fingerprint.near_duplicates(prints))
  monkeypatch.setattr(fingerprint, "_BLOCK", 7)
  assert [pair[:2] for pair in fingerprint.near_duplicates(prints)] == [(4, 17)]
  assert [pair[:2] for pair in whole] == [(4, 17)]


def test_clusters_join_names_and_pairs():
  assert fingerprint.clusters(["a", "b", "a", "c", "d"], [(3, 1)]) == [0, 1, 0, 1, 4]
  assert fingerprint.clusters(["a", "b", "c", "d"], [(2, 3), (1, 2), (0, 3)]) == [0, 0, 0, 0]
