"""Templates, mixtures and visual prompts against plain re-statements of the paper."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from segflax.errors import UserError
from segflax.models import conditions
from segflax.models.clip_vision import normalize

DRAW = np.random.default_rng(0)


def test_templates_and_their_ensemble():
  assert len(conditions.TEMPLATES) == 9
  filled = conditions.fill(conditions.TEMPLATES, "crack")
  assert filled[0] == "a photo of a crack." and filled[3] == "crack."
  embeddings = DRAW.normal(size=(2, 9, 5))
  np.testing.assert_allclose(
    conditions.ensemble(embeddings), sum(embeddings[:, i] for i in range(9)) / 9, atol=1e-6
  )
  with pytest.raises(UserError, match="must have one"):
    conditions.fill(["no place"], "crack")


def test_interpolation_ends_at_its_ends():
  text, image = DRAW.normal(size=(2, 3, 4))
  np.testing.assert_array_equal(conditions.interpolate(text, image, 1.0), text)
  np.testing.assert_array_equal(conditions.interpolate(text, image, 0.0), image)
  np.testing.assert_allclose(
    conditions.interpolate(text, image, 0.25), 0.25 * text + 0.75 * image, rtol=1e-12
  )


def test_visual_prompt_keeps_the_thing_and_darkens_the_rest():
  image = DRAW.integers(0, 256, (60, 90, 3), np.uint8)
  mask = np.zeros((60, 90), bool)
  mask[20:40, 30:50] = True  # a square of 20: with context 24, from (18, 28)
  got = conditions.visual_prompt(image, mask, 24)
  assert got.shape == (24, 24, 3) and got.dtype == np.float32
  want = np.asarray(normalize(image))[18:42, 28:52]
  np.testing.assert_allclose(got[2:22, 2:22], want[2:22, 2:22], atol=1e-5)
  border = np.ones((24, 24), bool)
  border[2:22, 2:22] = False
  assert np.abs(got[border]).max() < 0.1 * np.abs(want).max()


def test_blur_is_a_gaussian_of_sigma_3_in_a_window_of_15():
  # One bright pixel far from the borders shows the kernel itself.
  point = np.zeros((41, 41, 1), np.float32)
  point[20, 20] = 1
  kernel = conditions._blur(point)[..., 0]
  x = np.arange(-7, 8)
  line = np.exp(-(x**2) / 18)
  np.testing.assert_allclose(
    kernel[13:28, 13:28], np.outer(line, line) / line.sum() ** 2, rtol=1e-5
  )
  assert kernel[12].max() == 0 and abs(kernel.sum() - 1) < 1e-5
  # An independent blur, Pillow's, is near it (it approximates by box filters).
  picture = DRAW.integers(0, 256, (40, 40), np.uint8)
  other = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3)), np.float32)
  ours = conditions._blur(picture[..., None].astype(np.float32))[..., 0]
  assert np.abs(ours - other)[8:-8, 8:-8].mean() < 3


def test_visual_prompt_pads_to_a_square_with_the_mean_colour():
  image = np.full((40, 80, 3), 200, np.uint8)
  mask = np.zeros((40, 80), bool)
  mask[10:20, 10:70] = True  # 60 x 10, with context 72 x 12
  got = conditions.visual_prompt(image, mask, 72)
  assert np.abs(got[:28]).max() < 1e-6 and np.abs(got[-28:]).max() < 1e-6
  assert np.abs(got[36, 36]).max() > 1


def test_support_pictures_that_say_nothing():
  image = np.zeros((4, 6, 3), np.uint8)
  with pytest.raises(UserError, match="support mask is 4 x 6 px, its picture 6 x 4"):
    conditions.visual_prompt(image, np.ones((6, 4), bool), 16)
  with pytest.raises(UserError, match="support mask is empty"):
    conditions.visual_prompt(image, np.zeros((4, 6), bool), 16)
