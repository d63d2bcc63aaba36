"""Generated walls: exact, repeatable, and worth learning from."""

import numpy as np
import pytest

from segflax.data.synthetic import CONCEPTS, generate_walls


@pytest.fixture(scope="module")
def walls():
  return list(generate_walls(128, 64, 5))


def arrays(example):
  return np.asarray(example["image"]), *(np.asarray(example["masks"][c]) for c in CONCEPTS)


def test_every_wall_has_both_masks(walls):
  for wall in walls:
    assert list(wall["masks"]) == list(CONCEPTS)
    image, *masks = arrays(wall)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    for mask in masks:
      assert mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
  assert len({wall["image_id"] for wall in walls}) == len({wall["group"] for wall in walls}) == 128


def test_all_four_kinds_occur(walls):
  kinds = {tuple(mask.any() for mask in arrays(wall)[1:]) for wall in walls}
  assert kinds == {(False, False), (True, False), (False, True), (True, True)}


def test_a_wall_depends_on_size_seed_and_number_alone(walls):
  for one, other in zip(walls, generate_walls(40, 64, 5), strict=False):
    for a, b in zip(arrays(one), arrays(other), strict=True):
      np.testing.assert_array_equal(a, b)
  other = next(generate_walls(1, 64, 6))
  assert not np.array_equal(arrays(walls[0])[0], arrays(other)[0])
  assert other["image_id"] != walls[0]["image_id"]


def test_cracks_are_thin_and_dark_and_taping_is_broad_and_pale(walls):
  thickness, contrast = {}, {}
  for number, concept in enumerate(CONCEPTS):
    widths, steps = [], []
    for wall in walls:
      image, *masks = arrays(wall)
      mask, other = masks[number] > 0, masks[1 - number] > 0
      if not mask.any():
        continue
      # Area over half the outline: the width of a long thin thing.
      outline = sum((np.diff(mask, axis=axis) != 0).sum() for axis in (0, 1))
      widths.append(2 * mask.sum() / outline)
      grey = image.mean(-1)
      if (mask & ~other).any():
        steps.append(grey[mask & ~other].mean() - grey[~mask & ~other].mean())
    thickness[concept], contrast[concept] = np.median(widths), np.array(steps)
  assert thickness["crack"] < 2.5 and thickness["taping area"] > 8
  assert (contrast["crack"] < -10).mean() > 0.9
  assert (contrast["taping area"] > 0).mean() > 0.9


def test_brightness_alone_does_not_answer(walls):
  """The best global threshold on grey finds neither concept well."""
  grey = np.stack([arrays(wall)[0].mean(-1) for wall in walls])
  for number, dark in ((1, True), (2, False)):
    truth = np.stack([arrays(wall)[number] for wall in walls]) > 0
    best = 0.0
    for threshold in range(20, 250, 5):
      guess = grey < threshold if dark else grey > threshold
      best = max(best, (guess & truth).sum() / (guess | truth).sum())
    assert best < 0.6, best
