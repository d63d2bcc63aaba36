"""Random changes of a picture and its masks together: pure JAX, on the device, inside the step.

Each picture brings its key, so neither the number of devices nor the cut of the batch changes
what is drawn; a transform that is switched off costs nothing, and leaves the draws of the others
as they were. Where geometry interpolates, it does so once: rotation and zoom are one warp.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8, UInt32

from segflax.errors import UserError

_STREAM = 1  # Folded into the key: dropout draws from the same one.
_DRAWS = (
  *("horizontal_flip", "vertical_flip", "transpose", "scale", "centre_y", "centre_x", "rotation"),
  *("brightness", "contrast", "saturation", "blur", "noise"),
)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """How strong each transform is at most; a picture draws its own strength below. 0: off.

  Attributes:
    horizontal_flip: probability of mirroring left and right.
    vertical_flip: probability of mirroring top and bottom.
    transpose: probability of swapping rows and columns (square pictures); with both flips at
      0.5 all eight orientations are equally likely.
    scale: zoom in by up to this factor more, log-uniform in [1, 1 + scale], and crop back to
      size anywhere; never zooms out, so thin cracks stay as wide as they are or get wider.
    rotation: degrees to either side; what comes in at the corners is mirrored.
    brightness: share of the brightness added or taken, in [0, 1].
    contrast: share of the contrast added or taken, in [0, 1].
    saturation: share of the saturation added or taken, in [0, 1].
    blur: standard deviation of a Gaussian in pixels.
    noise: standard deviation of grey noise, 1 is white.
  """

  horizontal_flip: float = 0.0
  vertical_flip: float = 0.0
  transpose: float = 0.0
  scale: float = 0.0
  rotation: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  blur: float = 0.0
  noise: float = 0.0

  def __post_init__(self):
    limits = {field.name: 1.0 for field in dataclasses.fields(self)}
    limits |= {"scale": 4.0, "rotation": 180.0, "blur": 16.0}
    for name, most in limits.items():
      value = getattr(self, name)
      if not 0 <= value <= most:
        raise UserError(f"augment.{name} {value} must lie in [0, {most:g}]; 0 is off")


def augment(
  key: UInt32[Array, "2"],
  image: UInt8[Array, "h w 3"],
  masks: Float32[Array, "q h w"],
  config: AugmentConfig,
) -> tuple[Float32[Array, "h w 3"], Float32[Array, "q h w"]]:
  """Returns the picture and its masks, changed alike; vmap it over a batch.

  Args:
    key: the picture's own random key.
    image: 0..255.
    masks: coverage in [0, 1].
    config: static.

  Returns:
    image in [0, 1], masks in [0, 1].

  Raises:
    UserError: `transpose` on a picture that is not square.
  """
  if config.transpose and image.shape[0] != image.shape[1]:
    raise UserError(
      f"augment.transpose swaps height and width of {image.shape[:2]}; set it to 0 or use squares"
    )
  draw_key, noise_key = jax.random.split(jax.random.fold_in(key, _STREAM))
  # One draw for all: every jax.random call is a third of a second of compilation.
  draws = dict(zip(_DRAWS, jax.random.uniform(draw_key, (len(_DRAWS),)), strict=True))
  mean = image.astype(jnp.float32).mean((0, 1)) @ jnp.array(_LUMA) / 255
  if config.scale or config.rotation:
    image, masks = _warp(draws, image.astype(jnp.float32) / 255, masks, config)
  else:
    image, masks = _orient(draws, image, masks, config)
    image = image.astype(jnp.float32) / 255
  if config.brightness or config.contrast or config.saturation:
    image = _recolour(draws, image, mean, config)
  if config.blur:
    image = gaussian_blur(image, draws["blur"] * config.blur, config.blur)
  if config.noise:
    grain = jax.random.normal(noise_key, image.shape[:2])[..., None]
    image = image + draws["noise"] * config.noise * grain
  return jnp.clip(image, 0, 1), masks


def _orient(draws: dict, image, masks, config: AugmentConfig):
  """Flips and transposition by themselves: exact, pixels only change places."""
  swaps = {
    "transpose": lambda x: jnp.swapaxes(x, 0, 1),
    "vertical_flip": lambda x: jnp.flip(x, 0),
    "horizontal_flip": lambda x: jnp.flip(x, 1),
  }
  for name, swap in swaps.items():
    if getattr(config, name):
      drawn = draws[name] < getattr(config, name)
      image = jnp.where(drawn, swap(image), image)
      masks = jnp.where(drawn, jax.vmap(swap)(masks), masks)
  return image, masks


def _warp(draws: dict, image, masks, config: AugmentConfig):
  """Flips, transposition, zoom, crop and rotation as one bilinear sampling."""
  h, w = image.shape[:2]
  zoom = jnp.exp(draws["scale"] * jnp.log1p(config.scale))
  # The crop's centre leaves the (unrotated) crop inside the picture.
  y = (h - 1) / 2 + (draws["centre_y"] - 0.5) * (h - h / zoom)
  x = (w - 1) / 2 + (draws["centre_x"] - 0.5) * (w - w / zoom)
  up = jnp.where(draws["vertical_flip"] < config.vertical_flip, -1, 1) / zoom
  along = jnp.where(draws["horizontal_flip"] < config.horizontal_flip, -1, 1) / zoom
  dy = (jnp.arange(h, dtype=jnp.float32) - (h - 1) / 2) * up
  dx = (jnp.arange(w, dtype=jnp.float32) - (w - 1) / 2) * along
  if config.rotation or config.transpose:
    angle = jnp.deg2rad((2 * draws["rotation"] - 1) * config.rotation)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = cos * dy[:, None] - sin * dx[None, :]
    columns = sin * dy[:, None] + cos * dx[None, :]
    swap = draws["transpose"] < config.transpose
    warp = functools.partial(
      sample,
      rows=y + jnp.where(swap, columns, rows),
      columns=x + jnp.where(swap, rows, columns),
    )
  else:
    # Here the sampling is one matrix per axis. Gathers of single pixels are what a TPU is worst
    # at and products what it is best at; a CPU is many times faster gathering.
    def warp(plane):
      return jax.lax.platform_dependent(
        plane, y + dy, x + dx, tpu=sample_grid, default=_gather_grid
      )

  # Apart from one another: XLA:CPU gathers from a concatenation five times slower.
  return warp(image), jax.vmap(lambda mask: warp(mask[..., None])[..., 0])(masks)


def _recolour(draws: dict, image, mean, config: AugmentConfig):
  """Brightness, then contrast around the mean grey, then saturation around each pixel's grey.

  All three are linear in the pixel: one 3x3 matrix and a constant. As a product it also keeps
  XLA:CPU from computing what comes before once more for every use.
  """

  def factor(name):
    return 1 + getattr(config, name) * (2 * draws[name] - 1)

  gain, contrast, saturation = factor("brightness"), factor("contrast"), factor("saturation")
  to_grey = jnp.outer(jnp.array(_LUMA), jnp.ones(3))
  matrix = gain * contrast * (saturation * jnp.eye(3) + (1 - saturation) * to_grey)
  product = jnp.einsum("hwc,cd->hwd", image, matrix, precision=jax.lax.Precision.HIGHEST)
  return product + (1 - contrast) * gain * mean


def sample(
  x: Float32[Array, "h w c"], rows: Float32[Array, "m n"], columns: Float32[Array, "m n"]
) -> Float32[Array, "m n c"]:
  """Returns x at fractional positions, bilinear, mirrored at the centres of the border pixels."""
  h, w, c = x.shape
  top, down = _split_position(rows, h)
  left, right = _split_position(columns, w)
  flat = x.reshape(h * w, c)
  at = top * w + left
  down, right = down[..., None], right[..., None]
  upper = flat[at] * (1 - right) + flat[at + 1] * right
  lower = flat[at + w] * (1 - right) + flat[at + w + 1] * right
  return upper * (1 - down) + lower * down


def sample_grid(
  x: Float32[Array, "h w c"], rows: Float32[Array, " m"], columns: Float32[Array, " n"]
) -> Float32[Array, "m n c"]:
  """Returns what `sample` does on the grid of `rows` and `columns`, as two matrix products."""
  h, w, _ = x.shape
  product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGH)
  x = product("mh,hwc->mwc", _hat(rows, h), x)
  return product("nw,mwc->mnc", _hat(columns, w), x)


def _gather_grid(x, rows, columns):
  shape = (len(rows), len(columns))
  return sample(
    x, jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None, :], shape)
  )


def _mirror(position, length: int):
  position = jnp.abs(position)
  return jnp.clip((length - 1) - jnp.abs((length - 1) - position), 0, length - 1)


def _split_position(position, length: int):
  """Returns the pixel before a position, such that another follows, and the rest in [0, 1]."""
  position = _mirror(position, length)
  before = jnp.minimum(position.astype(jnp.int32), length - 2)
  return before, position - before


def _hat(position, length: int):
  """Returns bilinear weights `[m, length]`."""
  offset = _mirror(position, length)[:, None] - jnp.arange(length, dtype=jnp.float32)
  return jnp.maximum(0, 1 - jnp.abs(offset))


def gaussian_blur(
  image: Float32[Array, "h w c"], sigma: Float32[Array, ""], largest: float
) -> Float32[Array, "h w c"]:
  """Returns the picture smoothed by a Gaussian of `sigma` pixels, cut at 3 `largest` (static)."""
  radius = max(1, round(3 * largest))
  offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
  weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)  # 1e-3: one pixel, unchanged
  weights = weights / weights.sum()
  for axis in (0, 1):
    padding = [(radius, radius) if axis == i else (0, 0) for i in range(3)]
    padded = jnp.pad(image, padding, mode="edge")
    # Shifted copies fuse into one loop; a depthwise convolution is slow on CPUs.
    image = sum(
      weight * jax.lax.dynamic_slice_in_dim(padded, start, image.shape[axis], axis)
      for start, weight in enumerate(weights)
    )
  return image
