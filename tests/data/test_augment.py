"""What is drawn on a picture stays on its mask; each transform against NumPy or SciPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segflax.data import augment as module
from segflax.data.augment import AugmentConfig, augment
from segflax.errors import UserError

B, S = 24, 32
ORIENTATIONS = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "transpose": 0.5}
GEOMETRY = [
  {"horizontal_flip": 0.5},
  {"vertical_flip": 0.5},
  {"transpose": 0.5},
  ORIENTATIONS,
  {"scale": 1.0},
  {"rotation": 20.0},
  {"horizontal_flip": 0.5, "scale": 0.5},
  ORIENTATIONS | {"scale": 0.5, "rotation": 20.0},
]
COLOUR = [
  {"brightness": 0.4},
  {"contrast": 0.4},
  {"saturation": 0.9},
  {"blur": 1.5},
  {"noise": 0.05},
]
EVERYTHING = functools.reduce(lambda a, b: a | b, [*COLOUR, GEOMETRY[-1]])


@functools.cache
def compiled(config: AugmentConfig):
  # Level 0: what is tested is the program, and there are forty of them to compile.
  return jax.jit(
    jax.vmap(functools.partial(augment, config=config)),
    compiler_options={"xla_backend_optimization_level": 0},
  )


def run(image, masks, seed=0, **strengths):
  keys = np.random.default_rng(seed).integers(2**32, size=(len(image), 2), dtype=np.uint32)
  out = compiled(AugmentConfig(**strengths))(keys, image, masks.astype(np.float32))
  return tuple(map(np.asarray, out))


def lines(b=B, h=S, w=S):
  """Returns pictures `[b h w 3]` of thin slanted lines and the same as masks `[b 2 h w]`."""
  rng = np.random.default_rng(1)
  y, x = np.mgrid[:h, :w]
  angle, offset = rng.uniform(0, np.pi, (2, b, 1, 1)), rng.uniform(-5, 5, (2, b, 1, 1))
  distance = (x - w / 2) * np.cos(angle) + (y - h / 2) * np.sin(angle) - offset
  masks = np.moveaxis(np.abs(distance) < 1, 0, 1).astype(np.float32)
  image = np.concatenate([masks, np.zeros((b, 1, h, w))], 1)
  return np.moveaxis(255 * image, 1, -1).astype(np.uint8), masks


def smooth_pictures(b=B, h=S, w=S):
  noise = np.random.default_rng(2).normal(size=(b, h, w, 3))
  smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0))
  return np.clip(115 + 250 * smooth, 40, 190).astype(np.uint8)


@pytest.mark.parametrize("strengths", GEOMETRY, ids=lambda s: "+".join(s))
def test_a_drawn_line_stays_on_its_mask(strengths):
  image, masks = lines()
  image, masks = run(image, masks, **strengths)
  np.testing.assert_allclose(image[..., 0], masks[:, 0], atol=1e-6)
  np.testing.assert_allclose(image[..., 1], masks[:, 1], atol=1e-6)
  assert not np.allclose(masks, lines()[1])  # Something did move.


@pytest.mark.parametrize("strengths", COLOUR, ids=lambda s: "+".join(s))
def test_colour_moves_nothing(strengths):
  before, truth = lines()
  before[..., 1:] = 0  # One red line each: saturation has something to change.
  image, masks = run(before, truth, **strengths)
  np.testing.assert_array_equal(masks, truth)
  assert np.abs(image - before / 255).max() > 0.02
  for picture, mask in zip(image[..., 0], truth[:, 0], strict=True):
    picture = np.where(picture > 0.3, picture, 0)  # Without the noise around it.
    centre = ndimage.center_of_mass(picture)
    np.testing.assert_allclose(centre, ndimage.center_of_mass(mask), atol=0.5)  # pixels


def test_off_is_the_picture_itself():
  image, masks = smooth_pictures(), np.random.default_rng(0).random((B, 1, S, S), np.float32)
  out, same = run(image, masks)
  np.testing.assert_allclose(out, image / 255, rtol=1e-6)
  np.testing.assert_array_equal(same, masks)


def test_orientations_are_exact_and_all_eight_occur_evenly():
  image = np.repeat(smooth_pictures(1), 800, 0)
  masks = np.moveaxis(image[..., :1], -1, 1) / np.float32(255)
  out, out_masks = run(image, masks, **ORIENTATIONS)
  eight = [np.rot90(a, turns) for a in (image[0], image[0, :, ::-1]) for turns in range(4)]
  values = np.rint(255 * out).astype(np.uint8)  # XLA divides by 255 with one more rounding.
  matches = np.stack([[np.array_equal(e, o) for e in eight] for o in values])
  assert (matches.sum(1) == 1).all()
  np.testing.assert_array_equal(np.rint(255 * out_masks[:, 0]), values[..., 0])
  np.testing.assert_allclose(matches.sum(0), 100, atol=4 * np.sqrt(800 / 8 * 7 / 8))


@pytest.mark.parametrize("shape", [(S, S), (20, 44)])
@pytest.mark.parametrize("name", ["horizontal_flip", "vertical_flip"])
def test_flips_at_1_and_at_any_shape(name, shape):
  image = smooth_pictures(3, *shape)
  out, _ = run(image, np.zeros((3, 1, *shape)), **{name: 1.0})
  axis = 2 if name == "horizontal_flip" else 1
  np.testing.assert_allclose(out, np.flip(image, axis) / 255, rtol=1e-6)


def test_orientation_within_the_warp_is_the_exact_one():
  image, masks = smooth_pictures(), np.zeros((B, 1, S, S))
  exact, _ = run(image, masks, **ORIENTATIONS)
  warped, _ = run(image, masks, **ORIENTATIONS, rotation=1e-4)
  np.testing.assert_allclose(warped, exact, atol=1e-3)


def test_sampling_is_scipys():
  rng = np.random.default_rng(0)
  x = rng.random((20, 30, 4), np.float32)
  rows = rng.uniform(-8, 27, (17, 23)).astype(np.float32)
  columns = rng.uniform(-8, 37, (17, 23)).astype(np.float32)
  expected = np.stack(
    [ndimage.map_coordinates(x[..., c], [rows, columns], order=1, mode="mirror") for c in range(4)],
    -1,
  )
  np.testing.assert_allclose(jax.jit(module.sample)(x, rows, columns), expected, atol=5e-6)

  grid = np.meshgrid(rows[:, 0], columns[0], indexing="ij")
  expected = np.stack(
    [ndimage.map_coordinates(x[..., c], grid, order=1, mode="mirror") for c in range(4)], -1
  )
  # The form TPUs run, and the one all others do.
  for form in (module.sample_grid, module._gather_grid):
    sampled = jax.jit(form)(x, rows[:, 0], columns[0])
    np.testing.assert_allclose(sampled, expected, atol=5e-6)


def test_zoom_and_rotation_are_the_stated_ones():
  """Positions of the warped coordinates themselves: an affine map with the drawn parameters."""
  ramp = np.linspace(0, 255, S).round().astype(np.uint8)
  across = np.broadcast_to(ramp[None, :, None], (400, S, S, 3)).copy()
  across[..., 1] = ramp[None, :, None]  # Channel 0 holds x, channel 1 holds y.
  out, _ = run(across, np.zeros((400, 1, S, S)), scale=1.0, rotation=15.0)
  inner = out[:, 12:20, 12:20]  # Far from mirrored corners.
  slope = 255 / 255 / (S - 1)
  dx = np.gradient(inner[..., 0], axis=2).mean((1, 2)) / slope  # cos / zoom
  dy = np.gradient(inner[..., 0], axis=1).mean((1, 2)) / slope  # sin / zoom
  zoom, angle = 1 / np.hypot(dx, dy), np.rad2deg(np.arctan2(dy, dx))
  assert zoom.min() > 0.97 and zoom.max() < 2.06  # 3 %: the ramp is rounded to 8 bits.
  assert np.abs(angle).max() < 15.5 and np.abs(angle).max() > 12 and abs(angle.mean()) < 2
  np.testing.assert_allclose(np.log2(zoom).mean(), 0.5, atol=0.07)  # log-uniform


def test_zoomed_crops_keep_lines_as_wide_as_they_were():
  """Across the whole picture runs a vertical line: its width is its area over the height."""
  masks = np.zeros((400, 1, S, S), np.float32)
  masks[..., 14:17] = 1  # 3 pixels
  _, zoomed = run(np.zeros((400, S, S, 3), np.uint8), masks, scale=1.0)
  assert zoomed.max() <= 1 + 1e-6 and zoomed.min() >= -1e-6
  zoomed = zoomed[:, 0]
  np.testing.assert_allclose(zoomed, zoomed[:, :1].repeat(S, 1), atol=1e-6)  # no gap in it
  whole = (zoomed[:, 0, 0] == 0) & (zoomed[:, 0, -1] == 0)  # not cut by the picture's edge
  width = zoomed[whole].sum((1, 2)) / S
  assert len(width) > 200
  assert width.min() > 3 - 0.05 and 5.5 < width.max() < 6 + 0.3  # zoomed by 1 to 2


def test_zoomed_crops_stay_inside():
  _, masks = lines()
  image = np.zeros((B, S, S, 3), np.uint8)
  # A crop of an all-foreground mask has no border that came from nowhere.
  _, full = run(image, np.ones_like(masks), scale=3.0, rotation=30.0)
  np.testing.assert_allclose(full, 1, atol=1e-6)


def test_colour_against_numpy():
  image, masks = smooth_pictures(), np.zeros((B, 1, S, S))
  x = image / 255
  out, _ = run(image, masks, brightness=0.3)
  ratio = out / x
  np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape), rtol=1e-4)
  assert 0.7 <= ratio.min() < 0.85 and 1.15 < ratio.max() <= 1.3

  luma = np.array([0.299, 0.587, 0.114])
  out, _ = run(image, masks, contrast=0.3)
  mean = (x @ luma).mean((1, 2))[:, None, None, None]
  factor = ((out - mean) * (x - mean)).sum((1, 2, 3)) / ((x - mean) ** 2).sum((1, 2, 3))
  np.testing.assert_allclose(out, mean + factor[:, None, None, None] * (x - mean), atol=1e-5)
  assert 0.7 <= factor.min() < 0.85 and 1.15 < factor.max() <= 1.3

  out, _ = run(image, masks, saturation=0.3)
  grey = (x @ luma)[..., None]
  factor = ((out - grey) * (x - grey)).sum((1, 2, 3)) / ((x - grey) ** 2).sum((1, 2, 3))
  np.testing.assert_allclose(out, grey + factor[:, None, None, None] * (x - grey), atol=1e-5)
  np.testing.assert_allclose(out @ luma, grey[..., 0], atol=1e-5)


def test_blur_is_scipys_gaussian():
  image = np.random.default_rng(0).random((S, 20, 3), np.float32)
  for sigma in (0.4, 1.0, 1.5):
    blurred = module.gaussian_blur(jnp.asarray(image), jnp.float32(sigma), 1.5)
    radius = round(3 * 1.5)
    expected = ndimage.gaussian_filter(
      image, (sigma, sigma, 0), mode="nearest", radius=(radius, radius, 0)
    )
    np.testing.assert_allclose(blurred, expected, atol=1e-6)
  np.testing.assert_allclose(module.gaussian_blur(image, jnp.float32(0), 1.5), image, atol=1e-6)


def test_noise_is_grey_and_of_the_stated_strength():
  image = np.full((200, S, S, 3), 128, np.uint8)
  out, _ = run(image, np.zeros((200, 1, S, S)), noise=0.1)
  noise = out - np.float32(128 / 255)
  np.testing.assert_allclose(noise, noise[..., :1].repeat(3, -1), atol=1e-6)
  levels = noise[..., 0].std((1, 2))
  assert levels.max() < 0.11 and abs(levels.mean() - 0.05) < 0.01
  assert abs(noise.mean()) < 1e-3


def test_everything_at_once_stays_in_range():
  image, masks = lines()
  image, masks = run(image, masks, **EVERYTHING)
  assert image.shape == (B, S, S, 3) and image.dtype == np.float32
  assert image.min() >= 0 and image.max() <= 1 and masks.min() >= -1e-6 and masks.max() <= 1 + 1e-6


def test_a_picture_changes_as_its_key_says_whatever_stands_beside_it():
  image, masks = lines()
  keys = np.random.default_rng(0).integers(2**32, size=(B, 2), dtype=np.uint32)
  every = compiled(AugmentConfig(**EVERYTHING))
  whole = every(keys, image, masks)
  pieces = [every(keys[i : i + 8], image[i : i + 8], masks[i : i + 8]) for i in (0, 8, 16)]
  joined = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
  for all_at_once, in_pieces in zip(whole, joined, strict=True):
    np.testing.assert_allclose(all_at_once, in_pieces, atol=1e-6)


def test_switching_one_transform_leaves_the_draws_of_the_others():
  image, masks = lines()
  _, alone = run(image, masks, **ORIENTATIONS)
  _, among = run(image, masks, **ORIENTATIONS, brightness=0.3, noise=0.1, blur=1.0)
  np.testing.assert_array_equal(alone, among)


@pytest.mark.parametrize("field", dataclasses.fields(AugmentConfig), ids=lambda f: f.name)
def test_strengths_out_of_range_are_named(field):
  for value in (-0.1, 400):
    with pytest.raises(
      UserError, match=rf"augment.{field.name} {value} must lie in \[0, .* 0 is off"
    ):
      AugmentConfig(**{field.name: value})


def test_transposing_oblongs_is_refused():
  with pytest.raises(UserError, match=r"augment.transpose swaps height and width of \(20, 44\)"):
    run(smooth_pictures(2, 20, 44), np.zeros((2, 1, 20, 44)), transpose=0.5)
