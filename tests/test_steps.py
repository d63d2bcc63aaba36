"""The train step against a step written out by hand, and what it does about non-finite updates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segflax import losses, nonfinite, sharding, steps
from segflax.data.augment import AugmentConfig
from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params, normalize
from segflax.train_state import TrainState, merge_params, split_params

SIZE = 16
CONFIG = CLIPSegConfig.small(
  image_size=SIZE, layers=2, width=32, taps=(0, 1), reduce_dim=16, decoder_heads=2, decoder_mlp=32
)
MODEL = CLIPSeg(CONFIG, attention="plain")
MESH = sharding.make_mesh(jax.devices()[:1])
TOKENS = np.array([[512, 5, 513], [512, 9, 513], [512, 7, 513]], np.int32)


def loss_fn(logits, target):
  return losses.bce(logits, target) + losses.dice(logits, target)


def make_batch(seed, b=4, q=2):
  rng = np.random.default_rng(seed)
  valid = np.ones((b, q), bool)
  valid[-1] = False  # a padding row
  valid[0, 1] = False  # an unfilled slot
  return {
    "image": rng.integers(0, 256, (b, SIZE, SIZE, 3), np.uint8),
    "mask": rng.integers(0, 256, (b, q, SIZE, SIZE), np.uint8),
    "prompt": rng.integers(0, len(TOKENS), (b, q)).astype(np.int32),
    "valid": valid,
    "key": rng.integers(0, 2**32, (b, 2), np.uint32),
    "index": np.arange(b, dtype=np.int32),
  }


@pytest.fixture(scope="module")
def params():
  return jax.device_get(init_params(CONFIG, jax.random.key(0)))


def prepare(params, tx, *, pattern=".*", ema=False, **options):
  trained, frozen = split_params(params, pattern)
  table = steps.prompt_table(MODEL, params, TOKENS, text_is_frozen="text" not in trained)
  step = steps.make_train_step(MODEL, tx, loss_fn, MESH, augment_config=AugmentConfig(), **options)
  state = sharding.replicate(TrainState.create(trained, tx, ema=ema), MESH)
  return step, state, (frozen, table)


def by_hand(params, tx, batches, pattern=".*"):
  """Returns (params, losses) of plain gradient steps on the valid pairs alone."""
  trained, frozen = split_params(params, pattern)
  trained, frozen = jax.tree.map(jnp.asarray, (trained, frozen))
  opt_state, seen = tx.init(trained), []

  @jax.jit
  def grad(trained, image, tokens, target, valid):
    def loss(trained):
      logits = MODEL.apply(
        {"params": merge_params(trained, frozen)}, normalize(image.astype(jnp.float32)), tokens
      )
      return (loss_fn(logits, target) * valid).sum() / valid.sum()

    return jax.value_and_grad(loss)(trained)

  for batch in batches:
    target = batch["mask"].astype(np.float32) / 255
    value, grads = grad(
      trained, batch["image"], TOKENS[batch["prompt"]], target, batch["valid"].astype(np.float32)
    )
    updates, opt_state = tx.update(grads, opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    seen.append(float(value))
  return trained, seen


def assert_close(one, other, rtol=1e-4):
  for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
    scale = max(np.abs(b).max(), 1e-3)
    np.testing.assert_allclose(a, b, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
  ("pattern", "options"),
  [(".*", {}), ("decoder/.*", {}), (".*", {"accumulate": 2})],
  ids=["everything", "decoder", "accumulated"],
)
def test_steps_are_those_written_out_by_hand(params, pattern, options):
  tx = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
  batches = [make_batch(seed) for seed in range(3)]
  step, state, constants = prepare(params, tx, pattern=pattern, **options)
  for batch in batches:
    state = step(state, *constants, sharding.shard_batch(batch, MESH))
  expected, seen = by_hand(params, tx, batches, pattern)
  assert_close(state.params, expected)
  np.testing.assert_allclose(state.sums.loss / state.sums.pairs, np.mean(seen), rtol=1e-5)
  assert int(state.step) == 3


def test_the_plateau_scales_the_update_and_ema_follows(params):
  tx = optax.sgd(0.1)
  step, state, constants = prepare(params, tx, ema=True, ema_decay=0.75)
  state = state.replace(lr_scale=sharding.replicate(jnp.float32(0.5), MESH))
  batch = make_batch(0)
  state = step(state, *constants, sharding.shard_batch(batch, MESH))
  expected, _ = by_hand(params, optax.sgd(0.05), [batch])
  assert_close(state.params, expected)
  assert_close(state.ema, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, params, expected))


def nan_on_white(logits, target):
  """NaN for a target that is white everywhere: a fault that only some batches have."""
  white = (target >= 1).all((-2, -1))
  return jnp.where(white, jnp.nan, loss_fn(logits, target))


def white(batch):
  mask = batch["mask"].copy()
  mask[1, 0] = 255
  return batch | {"mask": mask}


def test_non_finite_updates_change_nothing_and_too_many_halt(params, tmp_path):
  tx = optax.adam(1e-3)
  trained, frozen = split_params(params, "decoder/.*")
  table = steps.prompt_table(MODEL, params, TOKENS, text_is_frozen=True)
  step = steps.make_train_step(
    MODEL, tx, nan_on_white, MESH, augment_config=AugmentConfig(), max_nonfinite=1
  )
  state = sharding.replicate(TrainState.create(trained, tx, ema=False), MESH)
  watch = nonfinite.NonFiniteWatch(tmp_path, "picture {}".format, state.nonfinite)
  good = make_batch(0)

  def go(state, batch):
    watch.saw(int(state.step), batch["index"])
    return step(state, frozen, table, sharding.shard_batch(batch, MESH))

  state = go(state, good)
  before = jax.device_get((state.params, state.opt_state, state.sums))
  state = go(state, white(good))
  after = jax.device_get((state.params, state.opt_state, state.sums))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert (int(state.step), int(state.nonfinite.streak), int(state.nonfinite.total)) == (2, 1, 1)
  watch.check(state.nonfinite)  # one is allowed, and written down
  assert "picture 1" in (tmp_path / "nonfinite.jsonl").read_text()

  state = go(state, good)
  assert int(state.nonfinite.streak) == 0
  state = go(go(state, white(good)), white(good))
  halted = jax.device_get(state.params)
  state = go(state, good)  # the loop has not looked yet: nothing may change any more
  jax.tree.map(np.testing.assert_array_equal, halted, jax.device_get(state.params))
  resumed = nonfinite.NonFiniteWatch(tmp_path, "picture {}".format, state.nonfinite)
  with pytest.raises(UserError, match=r"2 updates in a row"):  # also where a session begins so
    resumed.check(state.nonfinite)
  with pytest.raises(UserError, match=r"2 updates in a row, the last at step 4, on picture 0"):
    watch.check(state.nonfinite)
  lines = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [1, 3, 4]
  assert all(line["pictures"] for line in lines)


def test_a_batch_without_anything_valid_changes_nothing(params):
  """As a corrupt picture leaves it that is alone in an epoch's last batch."""
  tx = optax.adamw(1e-3)
  trained, frozen = split_params(params, "decoder/.*")
  table = steps.prompt_table(MODEL, params, TOKENS, text_is_frozen=True)
  step = steps.make_train_step(MODEL, tx, loss_fn, MESH, augment_config=AugmentConfig())
  state = sharding.replicate(TrainState.create(trained, tx, ema=False), MESH)
  before = jax.device_get((state.params, state.opt_state, state.sums))
  batch = make_batch(0)
  batch["valid"] = np.zeros_like(batch["valid"])
  state = step(state, frozen, table, sharding.shard_batch(batch, MESH))
  after = jax.device_get((state.params, state.opt_state, state.sums))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert (int(state.step), int(state.nonfinite.total)) == (1, 0)
