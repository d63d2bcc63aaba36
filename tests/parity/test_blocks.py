"""Each part of the network against its torch counterpart: values and all gradients, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_clipseg as oracle
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers.models.clipseg import modeling_clipseg as hf

from segflax.models import weights
from segflax.models.config import CLIPSegConfig
from segflax.models.decoder import DecoderBlock, FiLM, Head
from segflax.models.layers import Block

pytestmark = pytest.mark.parity
DRAW = np.random.default_rng(0)
TOLERANCE = 1e-5  # of the largest value; float32 rounding in another order


def setup_module():
  torch.manual_seed(0)


@pytest.fixture(scope="module", params=[True, False], ids=["refined", "simple"])
def whole(request):
  """A torch model, our config, and our parameters of it."""
  config = oracle.make_config(use_complex_transposed_convolution=request.param)
  model = oracle.randomize(hf.CLIPSegForImageSegmentation(config), 1)
  ours = CLIPSegConfig.from_hf(config.to_dict())
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  return model, ours, weights.to_params(tensors, weights.table(ours), ours, "torch")


def part(params: dict, path: str) -> dict:
  for name in path.split("/"):
    params = params[name]
  return params


def compare(whole, path, prefix, forward, module, inputs, torch_inputs=None):
  """Checks output, gradients of inputs and gradients of parameters under one random cotangent."""
  model, config, params = whole
  torch_inputs = [torch.from_numpy(x).requires_grad_() for x in torch_inputs or inputs]
  want = forward(*torch_inputs)
  model.zero_grad()
  got, pull = jax.vjp(
    lambda p, *xs: module.apply({"params": p}, *xs), part(params, path), *map(jnp.asarray, inputs)
  )
  assert got.shape == want.shape
  cotangent = DRAW.normal(size=want.shape).astype(np.float32)
  want.backward(torch.from_numpy(cotangent))
  close(got, want.detach().numpy(), "output")
  ours, *input_gradients = pull(cotangent)
  for i, (a, b) in enumerate(zip(input_gradients, torch_inputs, strict=True)):
    close(np.asarray(a), b.grad.numpy(), f"gradient of input {i}")
  tree = flatten_dict(jax.tree.map(np.zeros_like, params), sep="/")
  tree |= {f"{path}/{k}": np.asarray(g) for k, g in flatten_dict(ours, sep="/").items()}
  tensors = weights.to_tensors(unflatten_dict(tree, sep="/"), config)
  theirs = {k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None}
  assert theirs and all(name.startswith(prefix) for name in theirs)
  for name, gradient in theirs.items():
    if "k_proj.bias" not in name:  # truly 0: a key's bias moves no softmax
      # Sums over all tokens cancel: ten times the rounding of one product.
      close(tensors[name], gradient, name, 10 * TOLERANCE)


def close(got, want, what, tolerance=TOLERANCE):
  error = np.abs(got - want).max() / np.abs(want).max()
  assert error <= tolerance, f"{what}: {error:.1e}"


@pytest.mark.parametrize("attention", ["plain", "mapped", "fused"])
def test_vision_block(whole, attention):
  model, c, _ = whole
  module = Block(
    c.vision_heads, c.vision_mlp, c.vision_act, c.vision_epsilon, jnp.float32, attention
  )
  layer = model.clip.vision_model.encoder.layers[1]
  x = DRAW.normal(size=(2, 17, c.vision_width)).astype(np.float32)
  prefix = "clip.vision_model.encoder.layers.1."
  compare(whole, "vision/blocks_1", prefix, lambda x: layer(x, None), module, [x])


@pytest.mark.parametrize("attention", ["plain", "mapped", "fused"])
def test_text_block_is_causal(whole, attention):
  model, c, _ = whole
  module = Block(
    c.text_heads, c.text_mlp, c.text_act, c.text_epsilon, jnp.float32, attention, causal=True
  )
  layer = model.clip.text_model.encoder.layers[0]
  x = DRAW.normal(size=(3, 9, c.text_width)).astype(np.float32)
  mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
  prefix = "clip.text_model.encoder.layers.0."
  compare(whole, "text/blocks_0", prefix, lambda x: layer(x, mask), module, [x])


def test_film(whole):
  model, c, _ = whole
  x = DRAW.normal(size=(2, 1, 17, c.reduce_dim)).astype(np.float32)
  condition = DRAW.normal(size=(2, 3, c.projection_dim)).astype(np.float32)

  def forward(x, condition):
    mul, add = model.decoder.film_mul(condition), model.decoder.film_add(condition)
    return mul[:, :, None] * x + add[:, :, None]

  module = FiLM(c.reduce_dim, jnp.float32)
  compare(whole, "decoder/film", "decoder.film_", forward, module, [x, condition])


@pytest.mark.parametrize("attention", ["plain", "mapped", "fused"])
def test_decoder_block(whole, attention):
  model, c, _ = whole
  layer = model.decoder.layers[2]
  x = DRAW.normal(size=(2, 3, 17, c.reduce_dim)).astype(np.float32)
  module = DecoderBlock(c, jnp.float32, attention)

  def forward(x):
    return layer(x.reshape(6, 17, -1), None).reshape(x.shape)

  compare(whole, "decoder/blocks_2", "decoder.layers.2.", forward, module, [x])


def test_head(whole):
  model, c, _ = whole
  x = DRAW.normal(size=(2, 3, 5, c.reduce_dim)).astype(np.float32)

  def forward(x):
    return model.decoder.transposed_convolution(x.permute(0, 3, 1, 2))[:, 0]

  compare(
    whole, "decoder/head", "decoder.transposed_convolution", forward, Head(c, jnp.float32), [x]
  )
