"""Named patterns of what is trained, and LoRA."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from segflax import lora
from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params
from segflax.train_state import merge_params, split_params
from segflax.trainable import trainable_regex

# One vision block more than the last tap needs.
CONFIG = dataclasses.replace(
  CLIPSegConfig.small(),
  vision_layers=3,
  taps=(0, 1),
  text_layers=1,
  vision_width=12,
  vision_mlp=16,
  text_width=8,
  text_mlp=8,
  projection_dim=8,
  reduce_dim=8,
  decoder_mlp=8,
)
BLOCKS = max(CONFIG.taps) + 1


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 3, x.dtype), shapes)


def groups(params, name) -> set[str]:
  """The first two parts of the trained paths: decoder, vision/blocks_3, ..."""
  trained, _ = split_params(params, trainable_regex(name, vision_blocks=BLOCKS))
  return {re.match(r"decoder|[^/]+/[^/]+", path).group() for path in flatten_dict(trained, sep="/")}


def test_presets(params):
  blocks = {f"vision/blocks_{i}" for i in range(BLOCKS)}
  assert groups(params, "decoder") == {"decoder"}
  assert groups(params, "vision_last_2") == {"decoder", "vision/blocks_0", "vision/blocks_1"}
  assert groups(params, "decoder_norms") == {"decoder", "vision/pre_norm"} | blocks
  trained, _ = split_params(params, trainable_regex("decoder_norms", vision_blocks=BLOCKS))
  outside = flatten_dict(trained["vision"], sep="/")
  assert all(re.search(r"norm\d?/(scale|bias)$", path) for path in outside)


def test_everything_is_what_a_gradient_reaches(params):
  """Weight decay would wear down leaves that the mask does not depend on."""
  model = CLIPSeg(CONFIG)
  image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
  tokens = jnp.asarray([[[CONFIG.bos_token_id, 5, CONFIG.eos_token_id]]])

  def loss(params):
    logits = model.apply({"params": params}, image, tokens)
    return (logits * jax.random.normal(jax.random.key(2), logits.shape)).sum()

  gradient = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
  reached = {path for path, leaf in gradient.items() if np.any(leaf != 0)}
  # A shift of all keys cancels in the softmax: the gradient there is 0 up to rounding.
  either = {path for path in gradient if path.endswith("attention/key/bias")}
  pattern = re.compile(trainable_regex("everything", vision_blocks=BLOCKS))
  assert {p for p in gradient if pattern.fullmatch(p)} - either == reached - either


def test_patterns_are_returned_as_they_are():
  assert trainable_regex("decoder/film/.*", vision_blocks=BLOCKS) == "decoder/film/.*"


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("decodr", "trainable 'decodr' is unknown; available: decoder"),
    ("vision_last_5", "2 vision blocks run; use vision_last_1 to vision_last_2"),
    ("vision_last_0", "asks for 0 blocks"),
  ],
)
def test_unknown_names_are_refused(name, message):
  with pytest.raises(UserError, match=message):
    trainable_regex(name, vision_blocks=BLOCKS)


def test_lora_starts_as_the_identity(params):
  added = lora.add(params, jax.random.key(3), rank=2, alpha=4.0)
  merged = lora.merge(added)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), merged, params))


def test_lora_merges_to_its_formula(params):
  added = lora.add(params, jax.random.key(3), rank=2, alpha=4.0)
  module = added["vision"]["blocks_1"]["attention"]["query"]
  module["lora_b"] = jax.random.normal(jax.random.key(4), module["lora_b"].shape)
  merged = lora.merge(added)["vision"]["blocks_1"]["attention"]["query"]
  a, b, kernel = (np.asarray(module[name], np.float64) for name in ("lora_a", "lora_b", "kernel"))
  np.testing.assert_allclose(merged["kernel"], kernel + 4.0 / 2 * a @ b, rtol=1e-5, atol=1e-6)
  assert set(merged) == {"kernel", "bias"}


def test_lora_trains_its_factors_and_nothing_frozen(params):
  added = lora.add(params, jax.random.key(3), rank=2)
  trained, frozen = split_params(added, trainable_regex("lora", vision_blocks=BLOCKS))
  factors = {p for p in flatten_dict(trained, sep="/") if not p.startswith("decoder/")}
  # None in the block behind the last tap, which no gradient reaches.
  assert CONFIG.vision_layers > BLOCKS
  assert factors == {
    f"vision/blocks_{i}/attention/{name}/lora_{factor}"
    for i in range(BLOCKS)
    for name in ("query", "key", "value", "out")
    for factor in "ab"
  }

  def loss(trained):
    merged = lora.merge(merge_params(trained, frozen))
    kernel = merged["vision"]["blocks_0"]["attention"]["out"]["kernel"]
    return (kernel**2).sum()

  gradient = jax.grad(loss)(trained)["vision"]["blocks_0"]["attention"]["out"]
  assert np.any(gradient["lora_b"] != 0)
  assert not np.any(gradient["lora_a"])  # lora_b is zero at the start.


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rank": 0}, r"LoRA rank 0 is not in 1\.\.12"),
    ({"rank": 13}, r"LoRA rank 13 is not in 1\.\.12"),
    ({"rank": 2, "modules": "audio/.*"}, "match no module"),
  ],
)
def test_wrong_lora_is_refused(params, options, message):
  with pytest.raises(UserError, match=message):
    lora.add(params, jax.random.key(0), **options)
