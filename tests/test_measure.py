"""Measuring on the host gives what the device counts, and groups are means of their parts."""

import jax.numpy as jnp
import numpy as np
import pytest
from fake_runs import CONCEPTS, PROMPTS, noisy, walls
from sklearn.metrics import average_precision_score

from segflax import counts, measure, metrics, metrics_thin

FITTED = dict(zip(PROMPTS, (0.3, 0.7), strict=True))


@pytest.fixture(scope="module")
def measured():
  """Eight walls; the tape of the last two is unknown."""
  truth = walls(8)
  probability = noisy(truth, 0, 0.25).astype(np.float32)
  collect = measure.Measure(PROMPTS, CONCEPTS, {"0.5": 0.5, "fitted": FITTED})
  for i in range(8):
    known = CONCEPTS if i < 6 else CONCEPTS[:1]
    collect.add(
      f"wall {i}",
      "old" if i < 3 else "new",
      dict(zip(PROMPTS, probability[i], strict=True)),
      {c: truth[i, k] for k, c in enumerate(known)},
    )
  return probability, truth, collect.result()


def test_counts_are_the_devices(measured):
  probability, truth, found = measured
  where = np.ones((1, 1, *truth.shape[-2:]), bool)
  thresholds = jnp.asarray(counts.THRESHOLDS)
  expected = np.array(counts.threshold_counts(probability, truth, where, thresholds))
  known = found.rows.known
  np.testing.assert_array_equal(found.rows.counts[known], expected[known])
  pairs = counts.pair_counts(probability[:6] > 0.5, truth[:6], where[0])
  np.testing.assert_array_equal(found.rows.pairs[:6], pairs)


def test_a_pixel_on_a_threshold_is_background():
  probability = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1))]], np.float32)
  got = measure.threshold_counts(probability, np.ones((1, 2), bool))
  assert got[24].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("name", "threshold"), [("0.5", 0.5), ("fitted", FITTED)])
def test_the_report_is_made_of_its_parts(measured, name, threshold):
  probability, truth, found = measured
  got = measure.report(found, name, threshold)
  assert got["overall"]["iou"] == metrics.compute(found.rows, threshold)["iou"]
  f1 = []
  for i, q in np.argwhere(found.rows.known):
    level = threshold if name == "0.5" else threshold[PROMPTS[q]]
    f1.append(metrics_thin.f1_within(probability[i, q] > level, truth[i, q])[2])
  assert got["overall"]["f1@2px"] == pytest.approx(np.mean(f1), abs=1e-9)
  assert set(got["per_source"]) == {"old", "new"}
  assert got["per_concept"]["crack"] == pytest.approx(got["per_prompt"][PROMPTS[0]], nan_ok=True)
  known = found.rows.known[:, 1]
  rounded = np.rint(probability[known, 1].astype(np.float64) * 65535)
  expected = average_precision_score(truth[known, 1].ravel(), rounded.ravel())
  assert got["per_prompt"][PROMPTS[1]]["ap"] == pytest.approx(expected, abs=1e-6)
  cracks = got["by_width"][PROMPTS[0]]
  assert list(cracks) == ["0 to 2.5 px"] and cracks["0 to 2.5 px"]["pictures"] == 4


def test_confusion_counts_pixels_pictures_and_concepts(measured):
  probability, truth, found = measured
  got = measure.confusion(found.rows, 0.5)
  prediction = probability > 0.5
  tape = got["pixels"][PROMPTS[1]]
  assert tape["tp"] == (prediction[:6, 1] & truth[:6, 1]).sum()
  assert sum(tape.values()) == truth[:6, 1].size
  fired = prediction[:, 0].any((1, 2))
  there = truth[:, 0].any((1, 2))
  assert got["pictures"][PROMPTS[0]]["not there but marked"] == (fired & ~there).sum()
  wrong = (prediction[:6, 0] & truth[:6, 1]).sum() / prediction[:6, 0].sum()
  assert got["marked"][PROMPTS[0]]["taping area"] == pytest.approx(wrong)
