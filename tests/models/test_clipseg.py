"""What CLIPSeg promises beyond torch: shared encoding, dropout by key, sizes, initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params, normalize, param_shapes
from segflax.models.layers import attend

CONFIG = CLIPSegConfig.small(
  image_size=32, width=32, layers=2, taps=(0, 1), text_width=16, reduce_dim=16, decoder_mlp=32
)
DRAW = np.random.default_rng(0)
IMAGE = DRAW.normal(size=(2, 32, 48, 3)).astype(np.float32)
TOKENS = np.array([[[512, 5, 513, 513], [512, 9, 8, 513], [512, 1, 2, 513]]] * 2, np.int32)


# A third of the compile time; these programs run once or twice.
quick = functools.partial(
  jax.jit,
  compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


@pytest.fixture(scope="module")
def params():
  return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def encoded(params):
  model, variables = CLIPSeg(CONFIG), {"params": params}

  @quick
  def encode(image, tokens):
    condition = model.apply(variables, tokens.reshape(6, 4), method="encode_text")
    return model.apply(variables, image, method="encode_image"), condition.reshape(2, 3, -1)

  return encode(IMAGE, TOKENS)


@pytest.fixture(scope="module")
def logits(params):
  return quick(CLIPSeg(CONFIG).apply)({"params": params}, IMAGE, TOKENS)


def decode(params, taps, condition, config=CONFIG, **options):
  size = IMAGE.shape[1:3]
  return CLIPSeg(config).apply(
    {"params": params}, taps, condition, size, method="decode", **options
  )


@pytest.mark.parametrize("step", [0, 1])
def test_prompts_of_a_picture_do_not_see_one_another(params, encoded, step):
  config = CLIPSegConfig(**{**vars(CONFIG), "conditional_layer": step})
  taps, condition = encoded
  together = decode(params, taps, condition, config)
  assert together.shape == (2, 3, 32, 48) and together.dtype == jnp.float32
  alone = decode(params, taps, condition[:, 1:2], config)
  np.testing.assert_allclose(together[:, 1:2], alone, atol=1e-5)


def test_call_is_encode_and_decode(params, encoded, logits):
  np.testing.assert_allclose(logits, decode(params, *encoded), atol=1e-5)


def test_bfloat16_keeps_logits_in_float32(params, logits):
  rough = quick(CLIPSeg(CONFIG, dtype=jnp.bfloat16).apply)({"params": params}, IMAGE, TOKENS)
  assert rough.dtype == jnp.float32
  error = np.abs(rough - logits).max() / np.abs(logits).max()
  assert 0 < error < 0.05


def test_bfloat16_keeps_residual_streams_in_float32(params):
  """Else a block's contribution below 2^-8 of its input is lost."""
  model = CLIPSeg(CONFIG, dtype=jnp.bfloat16)
  taps = quick(functools.partial(model.apply, method="encode_image"))({"params": params}, IMAGE)
  assert {tap.dtype for tap in taps} == {jnp.dtype(jnp.float32)}
  bits = np.asarray(taps[-1]).view(np.uint32)
  assert (bits & 0xFFFF).any()  # More than a bfloat16 holds.


@pytest.mark.parametrize("causal", [False, True])
def test_attention_implementations_agree(causal):
  q, k, v = DRAW.normal(size=(3, 2, 9, 3, 8)).astype(np.float32)
  plain = attend(q, k, v, causal=causal, implementation="plain")
  for other in ("mapped", "fused", "auto"):
    got = attend(q, k, v, causal=causal, implementation=other)
    np.testing.assert_allclose(got, plain, atol=1e-6)

  def loss(qkv, implementation):
    return (attend(*qkv, causal=causal, implementation=implementation) ** 2).sum()

  wanted = jax.grad(loss)((q, k, v), "plain")
  for gradient, expected in zip(jax.grad(loss)((q, k, v), "mapped"), wanted, strict=True):
    # A token that sees only itself has gradient 0: there, terms of about 10 cancel to 1e-6 of them.
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(UserError, match=r"fast.*unknown; available: auto, fused"):
    attend(q, k, v, implementation="fast")


def test_remat_computes_blocks_again_and_changes_nothing(params):
  image = DRAW.normal(size=(4, 32, 32, 3)).astype(np.float32)

  def lowered(remat):
    model = CLIPSeg(CONFIG, remat=remat)

    def loss(vision):
      taps = model.apply({"params": params | {"vision": vision}}, image, method="encode_image")
      return sum((tap**2).sum() for tap in taps)

    return jax.jit(jax.grad(loss)).lower(params["vision"])

  kept, again = lowered(False), lowered(True)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
    again.compile()(params["vision"]),
    kept.compile()(params["vision"]),
  )
  # One barrier per block keeps the compiler from sharing the second computation with the first.
  assert "optimization_barrier" not in kept.as_text()
  assert again.as_text().count("optimization_barrier") == CONFIG.vision_layers


DROPPING = CLIPSegConfig(**{**vars(CONFIG), "decoder_dropout": 0.1})
KEYS = np.array([[1, 2], [3, 4]], np.uint32)


def test_dropout_acts_in_training_alone(params, encoded):
  exact = decode(params, *encoded)
  np.testing.assert_array_equal(decode(params, *encoded, DROPPING), exact)
  np.testing.assert_array_equal(decode(params, *encoded, DROPPING, keys=KEYS), exact)
  np.testing.assert_array_equal(decode(params, *encoded, train=True), exact)
  dropped = decode(params, *encoded, DROPPING, train=True, keys=KEYS)
  assert 0.05 < np.std(dropped - exact) / np.std(exact) < 2
  with pytest.raises(UserError, match="needs a key per picture"):
    decode(params, *encoded, DROPPING, train=True)


def test_dropout_depends_on_a_pictures_key_and_not_on_its_batch(params, encoded):
  taps, condition = encoded
  together = decode(params, taps, condition, DROPPING, train=True, keys=KEYS)
  last = [x[1:] for x in taps]
  alone = decode(params, last, condition[1:], DROPPING, train=True, keys=KEYS[1:])
  np.testing.assert_allclose(together[1:], alone, atol=1e-5)
  other = decode(params, last, condition[1:], DROPPING, train=True, keys=KEYS[:1])
  assert np.abs(other - alone).max() > 0.01


def test_dropout_keeps_the_mean(params, encoded):
  """Over many keys the expectation of a first-order change is none (inverted dropout)."""
  taps, condition = ([x[:1] for x in encoded[0]], encoded[1][:1, :1])
  exact = decode(params, taps, condition)
  many = quick(
    jax.vmap(lambda k: decode(params, taps, condition, DROPPING, train=True, keys=k[None]))
  )(DRAW.integers(0, 2**32, (400, 2), np.uint32))
  bias = np.mean(many, 0) - exact
  noise = np.std(many, 0).mean()
  assert np.abs(bias).mean() < 0.35 * noise  # layer normalisation makes it small, not zero


@pytest.mark.parametrize("shape", [(2, 33, 48, 3), (2, 32, 4, 3)])
def test_sizes_that_the_patch_does_not_divide_are_refused(params, shape):
  with pytest.raises(UserError, match="is not a multiple of patch_size 8; use"):
    CLIPSeg(CONFIG).apply({"params": params}, np.zeros(shape, np.float32), method="encode_image")


def test_decoding_at_another_size_than_encoded_is_refused(params, encoded):
  with pytest.raises(UserError, match="25 tokens do not belong to a picture of 32 x 32"):
    CLIPSeg(CONFIG).apply({"params": params}, *encoded, (32, 32), method="decode")


def test_head_factors_of_other_patches_reach_the_pictures_size():
  config = CLIPSegConfig.small(
    image_size=24, patch_size=12, width=32, layers=1, taps=(0,), text_width=16, refined=True
  )
  assert config.head == (3, 4)
  shapes = jax.eval_shape(
    CLIPSeg(config).apply,
    {"params": init_params(config, jax.random.key(0))},
    jnp.zeros((1, 24, 36, 3)),
    TOKENS[:1],
  )
  assert shapes.shape == (1, 3, 24, 36)


def test_fresh_parameters_say_that_foreground_is_rare(params, logits):
  assert 0.1 < np.std(logits) < 3  # transformers' own initialisation: 560
  assert abs(np.mean(logits) - np.log(0.08 / 0.92)) < 0.5
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  again = init_params(CONFIG, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  other = init_params(CONFIG, jax.random.key(1))["vision"]["patch_embedding"]["kernel"]
  assert np.abs(other - params["vision"]["patch_embedding"]["kernel"]).max() > 0


def test_full_size_has_the_released_number_of_parameters():
  counted = sum(
    int(np.prod(shape)) for shape in param_shapes(CLIPSegConfig.rd64_refined()).values()
  )
  assert counted == 150_747_746  # what transformers reports of rd64-refined


def test_normalize_is_imagenets():
  image = DRAW.integers(0, 256, (1, 4, 4, 3), np.uint8)
  want = (image / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(normalize(image), want, atol=1e-6)
