"""Coverage against a loop that measures areas."""

import numpy as np
import pytest
from PIL import Image

from segflax.data.resize import fit_image, fit_mask


def coverage_by_loop(mask: np.ndarray, size: int) -> np.ndarray:
  h, w = mask.shape

  def overlap(i, j, length):  # of output pixel i with input pixel j, in output pixels
    low, high = max(i * length / size, j), min((i + 1) * length / size, j + 1)
    return max(0.0, high - low) * size / length

  out = np.zeros((size, size))
  for y in range(size):
    for x in range(size):
      for j in range(int(y * h / size), min(h, int((y + 1) * h / size) + 1)):
        for i in range(int(x * w / size), min(w, int((x + 1) * w / size) + 1)):
          out[y, x] += (mask[j, i] > 0) * overlap(y, j, h) * overlap(x, i, w)
  return out


@pytest.mark.parametrize("shape", [(40, 40), (37, 53), (16, 90), (7, 5), (16, 16)])
def test_coverage_is_the_exact_area(shape):
  mask = np.where(np.random.default_rng(0).random(shape) < 0.2, 255, 0).astype(np.uint8)
  fitted = fit_mask(Image.fromarray(mask), 16)
  expected = 255 * coverage_by_loop(mask, 16)
  assert fitted.dtype == np.uint8
  np.testing.assert_allclose(fitted, expected, atol=0.5 + 1e-3)  # 1e-3: float32 before rounding


@pytest.mark.parametrize("y, x", [(0, 0), (36, 52), (36, 0), (20, 31)])
def test_a_single_pixel_keeps_its_area_wherever_it_is(y, x):
  mask = np.zeros((37, 53), np.uint8)
  mask[y, x] = 255
  fitted = fit_mask(Image.fromarray(mask), 64).astype(float) / 255
  np.testing.assert_allclose(fitted.sum(), 64 * 64 / (37 * 53), rtol=0.02)


def test_empty_mask_stays_empty_and_equal_size_stays_exact():
  assert not fit_mask(Image.new("L", (50, 30)), 16).any()
  mask = np.where(np.random.default_rng(0).random((16, 16)) < 0.2, 255, 0).astype(np.uint8)
  np.testing.assert_array_equal(fit_mask(Image.fromarray(mask), 16), mask)


def test_picture_and_mask_stay_aligned():
  mask = np.zeros((60, 90), np.uint8)
  mask[20:40, 30:80] = 255
  image = fit_image(Image.fromarray(np.repeat(mask[..., None], 3, -1)), 48)
  fitted = fit_mask(Image.fromarray(mask), 48)
  assert image.shape == (48, 48, 3)

  def centre(weights):
    weights = weights / weights.sum()
    return [(weights.sum(1 - axis) * np.arange(48)).sum() for axis in (0, 1)]

  np.testing.assert_allclose(centre(image[..., 0].astype(float)), centre(fitted), atol=0.02)
