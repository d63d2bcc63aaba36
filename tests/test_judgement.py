"""Intervals against SciPy, verdicts on runs that are known to be equal or not, suspicions."""

import numpy as np
import pytest
from fake_runs import ignoring, make_rows, noisy, walls
from scipy import stats

from segflax import judgement, metrics


def test_bootstrap_equals_scipys():
  values = np.random.default_rng(0).beta(2, 3, 150)
  got = judgement.bootstrap(values)
  expected = stats.bootstrap(
    (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
  ).confidence_interval
  assert got.mean == pytest.approx(values.mean(), abs=1e-12)
  # The limits are themselves drawn: their error is about 1 % of the interval at 4,000 draws.
  width = expected.high - expected.low
  assert got.low == pytest.approx(expected.low, abs=0.05 * width)
  assert got.high == pytest.approx(expected.high, abs=0.05 * width)


def test_bootstrap_of_columns_with_gaps():
  values = np.array([[0.5, np.nan, np.nan], [0.5, 1.0, np.nan], [0.5, 0.0, np.nan]])
  one, two, three = judgement.bootstrap(values)
  assert one == (0.5, 0.5, 0.5)
  assert two.mean == 0.5 and two.low == 0 and two.high == 1
  assert np.isnan(three.mean) and np.isnan(judgement.bootstrap(np.empty(0)).low)


def test_two_seeds_show_no_difference_and_a_worse_model_does():
  truth = walls(120)
  first, second, worse = (
    make_rows(noisy(truth, seed, noise), truth) for seed, noise in ((1, 0.18), (2, 0.18), (3, 0.25))
  )
  same = judgement.compare(first, second)
  assert same.verdict == "no difference shown" and same.pictures == 120
  assert judgement.compare(first, worse).verdict == "first better"
  assert judgement.compare(worse, first).verdict == "second better"


def test_pairs_are_matched_by_picture_not_by_position():
  truth = walls(40)
  rows = make_rows(noisy(truth, 1, 0.3), truth)
  shuffled = rows.pictures(np.random.default_rng(0).permutation(40))
  found = judgement.compare(rows, shuffled)
  assert found.interval == (0, 0, 0) and found.verdict == "no difference shown"
  half = judgement.compare(rows, shuffled.pictures(np.arange(15)))
  assert half.pictures == 15


def test_runs_without_common_pictures_are_not_comparable():
  truth = walls(8)
  rows = make_rows(truth * 0.9, truth)
  other = make_rows(truth * 0.9, truth, prompts=["segment door", "segment window"])
  assert judgement.compare(rows, other).verdict == "not comparable: no prompt in common"
  none = rows.pictures(np.zeros(8, bool))
  assert judgement.compare(rows, none).verdict == "not comparable: no picture in common"


@pytest.mark.parametrize(
  ("model", "words"),
  [
    (lambda t: t * 0.9, []),
    (ignoring, ["ignores its prompt"]),
    (
      lambda t: np.ones(t.shape),
      ["ignores its prompt", "masks everything", "false alarms on 100%"],
    ),
    (lambda t: np.zeros(t.shape), ["masks almost nothing"]),
  ],
)
def test_what_an_average_hides_is_named(model, words):
  truth = walls(40)
  found = judgement.suspicions(metrics.compute(make_rows(model(truth), truth)))
  for word in words:
    assert any(word in sentence for sentence in found), (word, found)
  assert words or not found
