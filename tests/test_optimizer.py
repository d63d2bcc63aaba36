"""The optax chain against NumPy loops: clipping, decay, schedules, rates per group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segflax.errors import UserError
from segflax.optimizer import decay_mask, leaf_rates, make_optimizer, make_schedule


def tree(seed: int) -> dict:
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return {
    "decoder": {"film": {"kernel": draw(3, 4), "bias": draw(4)}, "norm": {"scale": draw(4)}},
    "vision": {"blocks_0": {"kernel": draw(4, 4), "bias": draw(2, 2)}},
  }


def flat(params) -> dict[str, np.ndarray]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
    for path, leaf in jax.tree.leaves_with_path(params)
  }


def adamw_loop(params, gradients, rate_of, *, clip, decay, rates):
  """AdamW with decoupled decay, Loshchilov & Hutter 2019, algorithm 2, in float64."""
  params = dict(params)
  m = {path: np.zeros_like(leaf) for path, leaf in params.items()}
  v = {path: np.zeros_like(leaf) for path, leaf in params.items()}
  for t, gradient in enumerate(gradients, 1):
    norm = np.sqrt(sum((leaf**2).sum() for leaf in gradient.values()))
    shrink = min(1.0, clip / norm) if clip else 1.0
    for path in params:
      g = gradient[path] * shrink
      m[path] = 0.9 * m[path] + 0.1 * g
      v[path] = 0.999 * v[path] + 0.001 * g**2
      direction = (m[path] / (1 - 0.9**t)) / (np.sqrt(v[path] / (1 - 0.999**t)) + 1e-8)
      matrix = params[path].ndim >= 2 and not path.endswith("bias")
      step = direction + (decay * params[path] if matrix else 0)
      params[path] = params[path] - rate_of(t - 1) * rates.get(path.split("/")[0], 1.0) * step
  return params


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_equals_a_loop_of_adamw(clip):
  schedule = make_schedule("cosine", 0.1, warmup_steps=3, total_steps=10, final_fraction=0.1)
  params, gradients = tree(0), [tree(i) for i in range(1, 9)]
  tx = make_optimizer(
    params, schedule, weight_decay=0.1, gradient_clip=clip, rates={"vision/.*": 0.25}
  )
  state, now = tx.init(params), params
  update = jax.jit(tx.update)
  for gradient in gradients:
    updates, state = update(gradient, state, now)
    now = optax.apply_updates(now, updates)
  expected = adamw_loop(
    flat(params),
    [flat(g) for g in gradients],
    lambda step: float(schedule(step)),
    clip=clip,
    decay=0.1,
    rates={"vision": 0.25},
  )
  for path, leaf in flat(now).items():
    # 1 - 0.999 in float32 is 2e-5 off, relatively: that much of 8 steps of 0.1.
    np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-5, err_msg=path)


def test_scaling_updates_is_scaling_the_rate():
  params, gradient = tree(0), tree(1)
  results = []
  for lr, scale in ((0.1, 0.5), (0.05, 1.0)):
    tx = make_optimizer(params, make_schedule("constant", lr), gradient_clip=0.0)
    updates, _ = tx.update(gradient, tx.init(params), params)
    results.append(optax.tree.scale(scale, updates))
  for one, other in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_decay_touches_matrices_only():
  decayed = {path for path, leaf in flat(decay_mask(tree(0))).items() if leaf}
  assert decayed == {"decoder/film/kernel", "vision/blocks_0/kernel"}


def test_schedule_against_its_formula():
  schedule = make_schedule("cosine", 2.0, warmup_steps=4, total_steps=20, final_fraction=0.25)
  rates = [float(schedule(step)) for step in range(24)]
  np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])  # The first is not 0.
  theirs = optax.cosine_decay_schedule(2.0, 16, alpha=0.25)
  np.testing.assert_allclose(rates[4:], [theirs(i) for i in range(20)], rtol=1e-6)
  assert rates[-1] == 0.5


def test_constant_schedule():
  schedule = make_schedule("constant", 0.1)
  assert {float(schedule(step)) for step in (0, 1, 10**6)} == {float(np.float32(0.1))}


def test_first_matching_rate_wins():
  rates = leaf_rates(tree(0), {"decoder/film/bias": 3.0, "decoder/.*": 2.0})
  assert flat(rates) == {
    "decoder/film/bias": 3.0,
    "decoder/film/kernel": 2.0,
    "decoder/norm/scale": 2.0,
    "vision/blocks_0/bias": 1.0,
    "vision/blocks_0/kernel": 1.0,
  }


@pytest.mark.parametrize(
  ("rates", "message"),
  [
    ({"text/.*": 1.0}, "rate pattern 'text/.*' decides no trained leaf"),
    ({"decoder/.*": 1.0, "decoder/film/.*": 2.0}, "'decoder/film/.*' decides no"),
    ({"(": 1.0}, "is not a regular expression"),
    ({"vision/.*": -1.0}, "rate -1.0 of 'vision/.*' is negative"),
  ],
)
def test_wrong_rates_are_refused(rates, message):
  with pytest.raises(UserError, match=message):
    leaf_rates(tree(0), rates)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("cosin", {}, "'cosin' is unknown; available: constant, cosine"),
    ("constant", {"lr": 0.0}, "lr 0.0 is not a positive number"),
    ("constant", {"lr": float("nan")}, "lr nan is not a positive number"),
    ("constant", {"warmup_steps": -1}, "-1 warm-up steps"),
    ("cosine", {"warmup_steps": 5, "total_steps": 5}, "5 steps leave no room for a cosine"),
    ("cosine", {"total_steps": 5, "final_fraction": 2.0}, "final_fraction 2.0 is not in"),
  ],
)
def test_wrong_schedules_are_refused(name, options, message):
  with pytest.raises(UserError, match=message):
    make_schedule(name, **({"lr": 0.1} | options))


def test_negative_clip_and_decay_are_refused():
  schedule = make_schedule("constant", 0.1)
  with pytest.raises(UserError, match="gradient_clip -1"):
    make_optimizer(tree(0), schedule, gradient_clip=-1)
  with pytest.raises(UserError, match="weight_decay -1"):
    make_optimizer(tree(0), schedule, weight_decay=-1)
