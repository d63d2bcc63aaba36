"""Every metric against scikit-learn or a plain loop, on random, empty and full masks."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from segflax import metrics
from segflax.data.prompts import PromptSet
from segflax.errors import UserError
from segflax.evaluate import EvalSplit, evaluate
from segflax.sharding import make_mesh

PROMPTS = ["segment crack", "segment wall crack", "segment taping area"]
CONCEPTS = ["crack", "crack", "taping area"]
THRESHOLDS = np.array([0.3, 0.5, 0.7])


def count(prediction, truth):
  p, t = prediction, truth
  return [(p & t).sum(), (p & ~t).sum(), (~p & t).sum(), (~p & ~t).sum()]


def make_rows(probability, truth, known=None, names=None, threshold=0.5):
  """Rows of pictures given as lists of [q h w] arrays, counted by NumPy."""
  n, q = len(probability), len(PROMPTS)
  counts = np.zeros((n, q, len(THRESHOLDS), 4), np.int32)
  pairs = np.zeros((n, q, q, 3, 2), np.int32)
  for i in range(n):
    p = probability[i] > threshold
    for a in range(q):
      for k, level in enumerate(THRESHOLDS):
        counts[i, a, k] = count(probability[i][a] > level, truth[i][a])
      for b in range(q):
        sides = ((p[a], p[b]), (p[a], truth[i][b]), (truth[i][a], truth[i][b]))
        pairs[i, a, b] = [[(x & y).sum(), (x | y).sum()] for x, y in sides]
  return metrics.Rows(
    prompts=PROMPTS,
    concepts=CONCEPTS,
    image_ids=names or [f"picture {i}" for i in range(n)],
    sources=["wall" if i % 2 else "road" for i in range(n)],
    thresholds=THRESHOLDS,
    threshold=threshold,
    counts=counts,
    pairs=pairs,
    known=np.ones((n, q), bool) if known is None else known,
  )


def random_pictures(seed, n=6):
  """Pictures of different sizes; truths per concept; empty and full ones among them."""
  r = np.random.default_rng(seed)
  probability, truth = [], []
  for i in range(n):
    h, w = r.integers(4, 12, 2)
    crack, tape = r.random((2, h, w)) > 0.6
    if i % 3 == 1:
      crack[:] = False
    if i % 3 == 2:
      tape[:] = True
    p = r.random((3, h, w))
    if i in (1, 4):
      p[:] = 0 if i == 1 else 1
    probability.append(p)
    truth.append(np.stack([crack, crack, tape]))
  return probability, truth


@pytest.fixture(scope="module")
def pictures():
  return random_pictures(0)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_metrics_equal_scikit_learn(pictures, threshold):
  probability, truth = pictures
  got = metrics.compute(make_rows(probability, truth), threshold)
  t = [x[q].ravel() for x in truth for q in range(3)]
  p = [x[q].ravel() > threshold for x in probability for q in range(3)]
  both = list(zip(t, p, strict=True))
  every_t, every_p = np.concatenate(t), np.concatenate(p)
  iou = [jaccard_score(a, b, zero_division=1) for a, b in both]
  expected = {
    "iou": np.mean(iou),
    "dice": np.mean([f1_score(a, b, zero_division=1) for a, b in both]),
    "pixel_accuracy": np.mean([accuracy_score(a, b) for a, b in both]),
    "iou_fg": np.mean([v for v, a in zip(iou, t, strict=True) if a.any()]),
    "iou_global": jaccard_score(every_t, every_p),
    "dice_global": f1_score(every_t, every_p),
    "miou_2c": jaccard_score(every_t, every_p, average="macro"),
    "empty_fp_rate": np.mean([b.any() for a, b in both if not a.any()]),
    "empty_fp_area": np.mean([b.mean() for a, b in both if not a.any()]),
  }
  for name, value in expected.items():
    assert got[name] == pytest.approx(value, abs=1e-6), name


def test_metrics_between_prompts_equal_a_loop(pictures):
  probability, truth = pictures
  got = metrics.compute(make_rows(probability, truth))
  seen = {"prompt_overlap": [], "truth_overlap": [], "wrong_prompt_iou": [], "synonym": []}
  for p, t in zip([x > 0.5 for x in probability], truth, strict=True):
    for a, b in np.ndindex(3, 3):
      if CONCEPTS[a] == CONCEPTS[b]:
        if a != b and (p[a] | p[b]).any():
          seen["synonym"].append((p[a] & p[b]).sum() / (p[a] | p[b]).sum())
        continue
      if (p[a] | p[b]).any():
        seen["prompt_overlap"].append((p[a] & p[b]).sum() / (p[a] | p[b]).sum())
      if (t[a] | t[b]).any():
        seen["truth_overlap"].append((t[a] & t[b]).sum() / (t[a] | t[b]).sum())
      if t[b].any():
        seen["wrong_prompt_iou"].append((p[a] & t[b]).sum() / (p[a] | t[b]).sum())
  seen["synonym_agreement"] = seen.pop("synonym")
  for name, values in seen.items():
    assert got[name] == pytest.approx(np.mean(values), abs=1e-6), name


def test_the_two_toy_pictures_of_the_fact_sheet():
  """One empty and right, one half right: four common tools say .25, .50, .75 or .80."""
  truth = [np.zeros((3, 2, 4), bool), np.zeros((3, 2, 4), bool)]
  truth[1][:, 0] = True
  probability = [np.zeros((3, 2, 4)), np.zeros((3, 2, 4))]
  probability[1][:, 0, :2] = 1
  got = metrics.compute(make_rows(probability, truth))
  assert got["iou"] == 0.75 and got["iou_fg"] == 0.5 and got["iou_global"] == 0.5
  assert got["empty_fp_rate"] == 0


def test_unknown_truths_are_not_judged(pictures):
  probability, truth = pictures
  known = np.ones((6, 3), bool)
  known[2:, 2] = False
  rows = make_rows(probability, truth, known)
  alone = metrics.compute(rows, prompts=["segment taping area"])
  first = make_rows(probability[:2], truth[:2])
  assert alone["iou"] == metrics.compute(first, prompts=["segment taping area"])["iou"]
  assert alone["wrong_prompt_iou"] == pytest.approx(
    metrics.compute(make_rows(probability, truth), prompts=PROMPTS[2:])["wrong_prompt_iou"]
  )
  assert np.isnan(metrics.iou_rows(rows)[3, 2])
  nothing = metrics.compute(make_rows(probability, truth, np.zeros((6, 3), bool)))
  assert all(np.isnan(nothing[name]) for name in ("iou", "iou_global", "miou_2c", "truth_overlap"))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), batch=st.integers(1, 7), order=st.randoms())
def test_a_pass_over_any_batches_has_the_metrics_of_the_pictures(seed, batch, order):
  """Through segflax.evaluate: batches of several processes, padding among them, any order."""
  rows = make_rows(*random_pictures(seed))
  indices = list(range(6))
  order.shuffle(indices)  # Processes read shards: a batch is of no particular order.
  columns = {name: getattr(rows, name) for name in ("counts", "pairs", "known")}

  def batches():
    for start in range(0, 6, batch):
      index = np.array(indices[start : start + batch])
      padding = batch - len(index)
      # A padding row repeats a picture, and must not be counted again.
      yield {
        "index": np.concatenate([index, np.zeros(padding, int)]),
        "valid": np.arange(batch) < len(index),
      }

  def eval_step(params, given):
    index = np.asarray(given["index"])
    found = {name: values[index] for name, values in columns.items()}
    loss = index[:, None] * np.ones(3)
    return found | {"loss": loss, **{n: np.asarray(given[n]) for n in ("index", "valid")}}, None

  class Records(list):
    stream = batches()

  records = Records({"image_id": i, "source": s} for i, s in
                    zip(rows.image_ids, rows.sources, strict=True))  # fmt: skip
  prompts = PromptSet(
    ("crack", "taping area"), tuple(PROMPTS), np.array([0, 0, 1]), np.array([0, 2])
  )
  split = EvalSplit(
    records, records.stream, prompts, every_synonym=True, threshold=0.5, num_panels=0
  )
  # THRESHOLDS of the rows here are three, of the device 49.
  with mock.patch("segflax.evaluate.counts.THRESHOLDS", THRESHOLDS):
    found = evaluate(eval_step, {}, (), split, make_mesh(jax.devices()[:1]))
  assert sorted(found.rows.image_ids) == rows.image_ids
  assert found.loss == pytest.approx(2.5)
  expected = metrics.compute(rows)
  assert metrics.compute(found.rows) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_thresholds_are_fitted_per_prompt_and_used(pictures):
  truth = pictures[1]
  probability = [np.where(t, 0.6, 0.0) for t in truth]
  for p in probability:
    p[1] = np.where(p[1] > 0, 0.95, 0.6)  # this prompt needs 0.7
  rows = make_rows(probability, truth)
  fitted = metrics.fit_thresholds(rows)
  assert fitted == {PROMPTS[0]: 0.5, PROMPTS[1]: 0.7, PROMPTS[2]: 0.5}
  assert metrics.compute(rows, fitted)["iou"] == 1
  assert metrics.compute(rows)["iou"] < 0.9
  with pytest.raises(UserError, match=r"threshold 0.4 was not counted; counted: 0.3, 0.5, 0.7"):
    metrics.compute(rows, 0.4)


def walls(n=8, size=16):
  """Pictures with a thin crack and a broad tape band; one in four has neither."""
  truth = []
  for i in range(n):
    t = np.zeros((3, size, size), bool)
    if i % 4:
      t[:2, :, 2 + i % 3] = True
      t[2, 6:12] = True
    truth.append(t)
  return truth


def test_a_model_that_ignores_its_prompt_is_exposed():
  truth = walls()
  ignoring = [np.broadcast_to(t.any(0), t.shape).astype(float) for t in truth]
  obeying = [t.astype(float) for t in truth]
  good, bad = (metrics.compute(make_rows(p, truth)) for p in (obeying, ignoring))
  assert good["prompt_overlap"] == good["truth_overlap"] < 0.15
  assert bad["prompt_overlap"] == 1
  assert bad["wrong_prompt_iou"] > 3 * good["wrong_prompt_iou"]


def test_a_model_that_masks_everything_is_exposed():
  truth = walls()
  bad = metrics.compute(make_rows([np.ones(t.shape) for t in truth], truth))
  assert bad["prompt_overlap"] == bad["empty_fp_rate"] == bad["empty_fp_area"] == 1
  assert bad["iou"] < 0.4 and bad["pixel_accuracy"] < 0.4


def test_rows_on_disk(pictures, tmp_path):
  rows = make_rows(*pictures)
  rows.save(tmp_path / "val_rows.npz")
  back = metrics.Rows.load(tmp_path / "val_rows.npz")
  fitted = dataclasses.replace(rows, threshold=dict(zip(PROMPTS, (0.3, 0.5, 0.7), strict=True)))
  fitted.save(tmp_path / "fitted.npz")
  assert metrics.Rows.load(tmp_path / "fitted.npz").threshold == fitted.threshold
  assert repr(metrics.compute(back)) == repr(metrics.compute(rows))
  assert back.image_ids == rows.image_ids and back.prompts == PROMPTS
  (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
  for name in ("missing.npz", "broken.npz"):
    with pytest.raises(UserError, match=f"{name} holds no rows of an evaluation"):
      metrics.Rows.load(tmp_path / name)
  with pytest.raises(ValueError, match=r"sources has shape \(6,\), not \(1,\)"):
    make_rows(*pictures, names=["one name for six pictures"])
