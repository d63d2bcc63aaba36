"""Overlays show what they say; panels have the right cells."""

import numpy as np
import pytest

from segflax import visualize


def example():
  image = np.full((20, 30, 3), 100, np.uint8)
  truth, prediction = np.zeros((2, 20, 30), bool)
  truth[2:10], prediction[6:14] = True, True
  return image, prediction, truth


def test_overlay_colours_found_false_and_missed():
  image, prediction, truth = example()
  out = visualize.overlay(image, prediction, truth, opacity=1.0)
  rows = {0: (100, 100, 100), 3: visualize.FALSE_NEGATIVE, 7: visualize.TRUE_POSITIVE}
  rows |= {12: visualize.FALSE_POSITIVE, 15: (100, 100, 100)}
  for row, color in rows.items():
    assert (out[row] == color).all(), row
  assert (image == 100).all()  # the picture is not painted on
  half = visualize.overlay(image, prediction * np.uint8(255), opacity=0.5)
  assert (half[7, 0] == np.rint(50 + np.array(visualize.PREDICTION) / 2)).all()


def test_panel_has_a_row_per_prompt_and_a_cell_per_kind():
  image, prediction, truth = example()
  maps = {"segment crack": prediction * 0.9, "segment taping area": prediction * np.uint8(255)}
  as_it_is = {"cell": (0, 640)}
  with_truth = visualize.panel(
    image, maps, {"segment crack": truth}, notes={"segment crack": "x"}, **as_it_is
  )
  without = visualize.panel(image, maps, **as_it_is)
  assert with_truth.size[0] - without.size[0] == 30 + 4
  assert with_truth.size == (4 * 34 + 4, 2 * (20 + 18 + 4) + 4)
  cells = np.asarray(with_truth)[22:42]
  np.testing.assert_array_equal(cells[:, 4:34], image)
  np.testing.assert_array_equal(cells[:, 38:68, 0] > 0, truth)
  np.testing.assert_array_equal(cells[:, 72:102, 0] > 0, prediction)


def test_large_pictures_are_shrunk_and_small_ones_enlarged():
  image = np.zeros((100, 400, 3), np.uint8)
  out = visualize.panel(image, {"p": np.zeros((100, 400))}, cell=(0, 200))
  assert out.size == (3 * 204 + 4, 50 + 18 + 8)
  small = visualize.panel(image[:20, :10], {"p": np.zeros((20, 10))}, cell=(60, 200))
  assert small.size == (3 * 34 + 4, 60 + 18 + 8)


def test_a_mask_of_another_size_is_refused():
  image, prediction, _ = example()
  with pytest.raises(ValueError, match=r"\(10, 30\) does not fit a picture of \(20, 30\)"):
    visualize.overlay(image, prediction[:10])
