"""Measuring on the host gives what the device counts, and groups are means of their parts."""

import jax.numpy as jnp
import numpy as np
import pytest
from fake_runs import CONCEPTS, PROMPTS, ignoring, noisy, walls
from sklearn.metrics import average_precision_score

from segflax import counts, judgement, measure, metrics, metrics_thin

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
  known = found.rows["0.5"].known
  for name, level in (("0.5", 0.5), ("fitted", np.float32([0.3, 0.7])[:, None, None])):
    np.testing.assert_array_equal(found.rows[name].counts[known], expected[known])
    pairs = counts.pair_counts(probability[:6] > level, truth[:6], where[0])
    np.testing.assert_array_equal(found.rows[name].pairs[:6], pairs)


def test_a_pixel_on_a_threshold_is_background():
  probability = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1))]], np.float32)
  got = measure.threshold_counts(probability, np.ones((1, 2), bool))
  assert got[24].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("name", "threshold"), [("0.5", 0.5), ("fitted", FITTED)])
def test_the_report_is_made_of_its_parts(measured, name, threshold):
  probability, truth, found = measured
  got = measure.report(found, name)
  rows = found.rows[name]
  assert got["overall"]["iou"] == metrics.compute(rows, threshold)["iou"]
  f1 = []
  for i, q in np.argwhere(rows.known):
    level = threshold if name == "0.5" else threshold[PROMPTS[q]]
    f1.append(metrics_thin.f1_within(probability[i, q] > level, truth[i, q])[2])
  assert got["overall"]["f1@2px"] == pytest.approx(np.mean(f1), abs=1e-9)
  assert set(got["per_source"]) == {"old", "new"}
  assert got["per_concept"]["crack"] == pytest.approx(got["per_prompt"][PROMPTS[0]], nan_ok=True)
  known = rows.known[:, 1]
  rounded = np.rint(probability[known, 1].astype(np.float64) * 65535)
  expected = average_precision_score(truth[known, 1].ravel(), rounded.ravel())
  assert got["per_prompt"][PROMPTS[1]]["ap"] == pytest.approx(expected, abs=1e-6)
  new = rows.pictures(np.arange(3, 8))
  assert got["per_source"]["new"]["iou"] == metrics.compute(new)["iou"]
  values = [
    (np.rint(probability[i, q].astype(np.float64) * 65535).ravel(), truth[i, q].ravel())
    for i, q in np.argwhere(rows.known)
    if i >= 3
  ]
  scores, masks = map(np.concatenate, zip(*values, strict=True))
  assert got["per_source"]["new"]["ap"] == pytest.approx(
    average_precision_score(masks, scores), abs=1e-6
  )
  cracks = got["by_width"][PROMPTS[0]]
  assert list(cracks) == ["0 to 2.5 px"] and cracks["0 to 2.5 px"]["pictures"] == 4


def test_confusion_counts_pixels_pictures_and_concepts(measured):
  probability, truth, found = measured
  got = measure.confusion(found.rows["fitted"])
  prediction = probability > np.float32([0.3, 0.7])[:, None, None]
  tape = got["pixels"][PROMPTS[1]]
  assert tape["tp"] == (prediction[:6, 1] & truth[:6, 1]).sum()
  assert sum(tape.values()) == truth[:6, 1].size
  fired = prediction[:, 0].any((1, 2))
  there = truth[:, 0].any((1, 2))
  assert got["pictures"][PROMPTS[0]]["not there but marked"] == (fired & ~there).sum()
  wrong = (prediction[:6, 0] & truth[:6, 1]).sum() / prediction[:6, 0].sum()
  assert got["marked"][PROMPTS[0]]["taping area"] == pytest.approx(wrong)


@pytest.mark.parametrize("name", ["0.5", "fitted"])
def test_every_ratio_has_an_interval_around_it(measured, name):
  report, found = measure.report(measured[2], name), measure.intervals(measured[2], name)
  groups = [(report["overall"], found["overall"])]
  groups += [(report["per_prompt"][p], found["per_prompt"][p]) for p in PROMPTS]
  for values, limits in groups:
    assert set(values) - set(limits) == {"ap", "miou_2c"}
    for metric, interval in limits.items():
      assert interval["mean"] == pytest.approx(values[metric], abs=1e-12, nan_ok=True), metric
      if not np.isnan(values[metric]):
        assert interval["low"] <= interval["mean"] <= interval["high"]


def test_obedience_is_measured_at_the_threshold_it_is_shown_under():
  """The same mask for every prompt, below 0.5: only the fitted thresholds can show it."""
  truth = walls(20)
  half = (ignoring(truth) * 0.5).astype(np.float32)
  collect = lambda thresholds, **options: measure.Measure(  # noqa: E731
    PROMPTS, CONCEPTS, thresholds, **options
  )

  def judge(collect):
    for i in range(len(truth)):
      masks = dict(zip(CONCEPTS, truth[i], strict=True))
      collect.add(f"wall {i}", "walls", dict(zip(PROMPTS, half[i], strict=True)), masks)
    return collect.result()

  counted = judge(collect({"0.5": 0.5}, shapes=False)).rows["0.5"]
  fitted = metrics.fit_thresholds(counted)
  assert all(level < 0.45 for level in fitted.values())
  found = judge(collect({"0.5": 0.5, "fitted": fitted}))
  values = measure.report(found, "fitted")["overall"]
  assert values["prompt_overlap"] == 1
  assert any("ignores its prompt" in s for s in judgement.suspicions(values))
  assert measure.confusion(found.rows["fitted"])["marked"][PROMPTS[0]]["taping area"] > 0.3
  # What was not counted at a threshold is not given under it.
  assert np.isnan(metrics.compute(counted, fitted)["prompt_overlap"])


def test_a_truth_is_skeletonised_once_for_all_thresholds(monkeypatch):
  truth, seen = walls(4), []
  whole = measure.skeletonize
  monkeypatch.setattr(measure, "skeletonize", lambda mask: seen.append(1) or whole(mask))
  collect = measure.Measure(PROMPTS, CONCEPTS, {"0.5": 0.5, "a": 0.3, "b": 0.7})
  for i in range(4):
    maps = dict(zip(PROMPTS, truth[i] * np.float32(0.9), strict=True))
    collect.add(f"{i}", "walls", maps, dict(zip(CONCEPTS, truth[i], strict=True)))
  assert len(seen) == 8


def test_by_width_has_the_metrics_of_the_pictures_of_that_width(measured):
  _, truth, found = measured
  got = measure.report(found, "fitted")["by_width"][PROMPTS[0]]["0 to 2.5 px"]
  cracked = truth[:, 0].any((1, 2))
  expected = metrics.compute(found.rows["fitted"].pictures(cracked), prompts=PROMPTS[:1])
  assert {name: got[name] for name in expected} == pytest.approx(expected, nan_ok=True)
  assert got["iou"] == got["iou_fg"] and got["pictures"] == 4
  assert got["cldice"] == pytest.approx(found.thin["fitted"]["cldice"][cracked, 0].mean())
