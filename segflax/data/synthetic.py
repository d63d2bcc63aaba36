"""Generated walls: cracks, taping, both, or neither, with exact masks and no download.

Every picture carries both concepts, so a model that ignores its prompt cannot score; shadows,
stains and folds of light are there so that neither "dark" nor "pale" answers a prompt by itself.
Widths and lengths scale with the picture: at any size it is the same kind of wall.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from segflax.data.records import Example

CONCEPTS = ("crack", "taping area")
# Shares of the four kinds of wall.
_KINDS = {("crack",): 0.3, ("taping area",): 0.3, CONCEPTS: 0.25, (): 0.15}
_CHUNK = 32  # Walls are drawn by the chunk: NumPy's overhead is shared, the memory stays small.
_OVERSAMPLE = 4  # Lines are drawn this much larger and averaged: antialiased, subpixel widths.
_PAINT = np.array(  # off-white, sand, grey, pale blue, concrete, ochre
  [
    [226, 222, 212],
    [205, 192, 170],
    [183, 183, 181],
    [190, 202, 210],
    [158, 156, 150],
    [202, 178, 136],
  ],
  np.float32,
)


def generate_walls(n: int, size: int, seed: int) -> Iterator[Example]:
  """Yields `n` square walls; wall i depends on (size, seed, i) alone.

  Args:
    n: number of walls.
    size: side in pixels, at least 16.
    seed: walls of different seeds are different; it is part of their ids.

  Yields:
    Examples with a mask for both concepts; an empty one says that the concept is absent.
  """
  for start in range(0, n, _CHUNK):
    rng = np.random.default_rng([seed, start])
    images, masks = _draw_chunk(rng, _CHUNK, size)
    for i in range(min(_CHUNK, n - start)):
      name = f"wall_{seed}_{start + i:06d}"
      yield Example(
        image_id=name,
        image=Image.fromarray(images[i]),
        masks={c: Image.fromarray(mask[i]) for c, mask in zip(CONCEPTS, masks, strict=True)},
        group=name,
        source="generated walls",
      )


def _draw_chunk(rng: np.random.Generator, n: int, size: int):
  """Returns images `[n s s 3]` uint8 and, per concept, masks `[n s s]` uint8 {0, 255}."""
  kinds = list(_KINDS)
  kind = rng.choice(len(kinds), n, p=list(_KINDS.values()))
  has_crack, has_tape = (np.array([c in kinds[k] for k in kind]) for c in CONCEPTS)

  wall = _PAINT[rng.integers(len(_PAINT), size=n)] + rng.normal(0, 6, (n, 3))
  shade = _light(rng, n, size)  # multiplies what is there
  relief = _plaster(rng, n, size)  # grey levels added to it
  tape = np.zeros((n, size, size), np.float32)
  crack = np.zeros((n, size, size), np.float32)
  for i in range(n):
    if has_tape[i]:
      tape[i] = _draw_bands(rng, size)
    if has_crack[i]:
      crack[i] = _draw_cracks(rng, size)

  # Joint compound is paler than the wall and sanded: less of the wall's relief, trowel streaks.
  compound = wall + 0.62 * (248 - wall) + rng.normal(0, 3, (n, 3))
  smooth = 0.35 * relief + _smooth_noise(rng, n, size, 14, 3.0)
  blend = (tape * rng.uniform(0.75, 0.95, (n, 1, 1)))[..., None]
  image = wall[:, None, None] * (1 - blend) + compound[:, None, None] * blend
  image += (relief * (1 - tape) + smooth * tape)[..., None]
  # A crack is a gap without light, a little deeper here than there.
  depth = rng.uniform(0.5, 0.8, (n, 1, 1)) + _smooth_noise(rng, n, size, 8, 0.06)
  image *= (shade * (1 - crack * depth))[..., None]
  image += rng.normal(0, 2.0, (n, size, size, 1))  # the camera's noise
  image = np.clip(np.round(image), 0, 255).astype(np.uint8)
  # At least half a pixel covered; a floor below it would fray the thin ends.
  return image, [np.where(cover >= 0.5, 255, 0).astype(np.uint8) for cover in (crack, tape)]


def _plaster(rng, n: int, size: int) -> np.ndarray:
  """Returns `[n s s]` relief in grey levels: noise in octaves, as rough as the wall is old."""
  rough = rng.uniform(0.3, 1.0, (n, 1, 1)).astype(np.float32)
  coarse = _smooth_noise(rng, n, size, 5, 5.0) + _smooth_noise(rng, n, size, 13, 4.0)
  fine = _smooth_noise(rng, n, size, 34, 5.0)
  grain = rng.standard_normal((n, size, size), np.float32) * 5.0
  return coarse + rough * (fine + grain)


def _light(rng, n: int, size: int) -> np.ndarray:
  """Returns `[n s s]` factors: a falling-off lamp, soft shadow edges, stains."""
  axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
  y, x = axis[None, :, None], axis[None, None, :]

  def draw(low, high):
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

  light = 1 + draw(-0.25, 0.25) * x + draw(-0.25, 0.25) * y
  # A shadow: one side of a soft line, on half of the walls.
  angle = draw(0, 2 * np.pi)
  side = (x * np.cos(angle) + y * np.sin(angle) - draw(-0.3, 0.3)) / draw(0.01, 0.08)
  light *= 1 - draw(0.1, 0.35) * (draw(0, 1) < 0.5) / (1 + np.exp(-np.clip(side, -30, 30)))
  # Stains: where slow noise is high, on half of the walls.
  stain = np.clip(_smooth_noise(rng, n, size, 6, 1.0) - 0.5, 0, 1)
  return light * (1 - draw(0.1, 0.35) * (draw(0, 1) < 0.5) * stain)


def _smooth_noise(rng, n: int, size: int, cells: int, scale: float) -> np.ndarray:
  """Returns `[n s s]` float32 noise whose blobs are size / cells wide, by bilinear steps."""
  grid = rng.standard_normal((n, cells, cells), np.float32) * np.float32(scale)
  at = np.linspace(0, cells - 1, size)
  low = np.minimum(at.astype(int), cells - 2)
  spread = np.zeros((size, cells), np.float32)
  spread[np.arange(size), low] = 1 - (at - low)
  spread[np.arange(size), low + 1] = at - low
  return spread @ grid @ spread.T


def _draw_bands(rng, size: int) -> np.ndarray:
  """Returns the coverage `[s s]` in [0, 1] of one or two broad, nearly straight bands."""
  canvas, draw = _canvas(size)
  side = size * _OVERSAMPLE
  vertical = rng.random() < 0.5
  width = rng.uniform(0.14, 0.24) * side
  for number in range(1 + (rng.random() < 0.25)):  # The second crosses the first, as seams do.
    across = rng.uniform(0.2, 0.8) * side
    tilt = rng.normal(0, 0.05) * side
    along = np.linspace(-0.05, 1.05, 9) * side
    centre = across + np.linspace(-tilt, tilt, 9)
    half = width / 2 * (1 + rng.normal(0, 0.05, (2, 9)))  # Hand-drawn edges.
    outline = np.concatenate(
      [np.stack([along, centre - half[0]], -1), np.stack([along, centre + half[1]], -1)[::-1]]
    )
    draw.polygon(
      [(x, y) for x, y in (outline[:, ::-1] if vertical ^ number else outline)], fill=255
    )
  return _average(canvas)


def _draw_cracks(rng, size: int) -> np.ndarray:
  """Returns the coverage `[s s]` in [0, 1] of thin, wandering, sometimes forking lines."""
  canvas, draw = _canvas(size)
  side = size * _OVERSAMPLE
  for _ in range(1 + (rng.random() < 0.3)):
    start = rng.uniform(0.1, 0.9, 2) * side
    inwards = np.arctan2(*(side / 2 - start)[::-1])
    heading = inwards + rng.normal(0, 0.8)
    width = rng.uniform(0.016, 0.034) * side
    points, headings = _wander(rng, start, heading, rng.uniform(0.5, 1.1) * side)
    _draw_line(draw, points, width, rng)
    if rng.random() < 0.45:
      at = rng.integers(len(points) // 4, len(points) - 2)
      fork = headings[at] + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
      branch, _ = _wander(rng, points[at], fork, rng.uniform(0.2, 0.45) * side)
      _draw_line(draw, branch, 0.75 * width, rng)
  return _average(canvas)


def _wander(rng, start, heading: float, length: float):
  """Returns the corners `[m 2]` of a random walk and the heading `[m]` at each."""
  steps = rng.integers(10, 18)
  # Jagged from corner to corner, yet it keeps to its course.
  headings = heading + np.cumsum(rng.normal(0, 0.18, steps)) + rng.normal(0, 0.4, steps)
  strides = length / steps * rng.uniform(0.5, 1.5, steps)
  moves = strides[:, None] * np.stack([np.cos(headings), np.sin(headings)], -1)
  points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)])
  return points, np.append(headings, headings[-1])


def _draw_line(draw: ImageDraw.ImageDraw, points: np.ndarray, width: float, rng):
  widths = width * np.clip(1 + rng.normal(0, 0.15, len(points)), 0.75, 1.3)
  for (x0, y0), (x1, y1), w in zip(points[:-1], points[1:], widths, strict=False):
    draw.line([(x0, y0), (x1, y1)], fill=255, width=max(1, round(w)))
    r = w / 2
    draw.ellipse([x1 - r, y1 - r, x1 + r, y1 + r], fill=255)  # No gap at the corner.


def _canvas(size: int):
  canvas = Image.new("L", (size * _OVERSAMPLE, size * _OVERSAMPLE))
  return canvas, ImageDraw.Draw(canvas)


def _average(canvas: Image.Image) -> np.ndarray:
  return np.asarray(canvas.reduce(_OVERSAMPLE), np.float32) / 255
