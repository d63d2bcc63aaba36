"""Fresh parameters: the scale of every leaf, and one random draw for all of them."""

import functools
import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from segflax.models.clipseg import CLIPSeg
from segflax.models.config import CLIPSegConfig

# CLIP's initial temperature ln(1 / 0.07), as transformers rounds it
_CONSTANTS = {"scale": 1.0, "bias": 0.0, "logit_scale": 2.6592}
_EMBEDDING_STD = {  # CLIP's
  "text/token_embedding": 0.02,
  "text/position_embedding": 0.01,
  "vision/position_embedding": 0.02,
}


def param_shapes(config: CLIPSegConfig) -> dict[str, tuple[int, ...]]:
  """Returns path -> shape of every parameter, without computing any."""
  image = jnp.zeros((1, config.patch_size, config.patch_size, 3))
  tokens = jnp.zeros((1, 1, 1), jnp.int32)
  model = CLIPSeg(config, attention="plain")
  init = functools.partial(model.init, method="touch_all")
  tree = jax.eval_shape(init, jax.random.key(0), image, tokens)["params"]
  return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def _std(path: str, shape: tuple[int, ...], config: CLIPSegConfig) -> float:
  """Returns the standard deviation of a random leaf: 1 / sqrt(fan-in) unless it is special."""
  if path in _EMBEDDING_STD:
    return _EMBEDDING_STD[path]
  std = math.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else shape[0] ** -0.5
  if path.endswith(("/out/kernel", "/fc2/kernel")) and not path.startswith("decoder"):
    # GPT-2's rule for what is added to a pre-norm residual stream: it keeps its variance.
    depth = config.vision_layers if path.startswith("vision") else config.text_layers
    std *= (2 * depth) ** -0.5
  return std


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: CLIPSegConfig, rng: Array) -> dict:
  """Returns fresh float32 parameters, scaled by fan-in.

  transformers' own initialisation gives FiLM, reduces and head a standard deviation of 1: logits
  then spread by 560 and the first loss is 300.
  """
  shapes = param_shapes(config)
  random = {path: s for path, s in shapes.items() if path.split("/")[-1] not in _CONSTANTS}
  draw = jax.random.normal(rng, (sum(map(math.prod, random.values())),))
  params, start = {}, 0
  for path, shape in shapes.items():
    if path in random:
      size = math.prod(shape)
      params[path] = draw[start : start + size].reshape(shape) * _std(path, shape, config)
      start += size
    else:
      params[path] = jnp.full(shape, _CONSTANTS[path.split("/")[-1]])
  # A fresh FiLM passes its input on: gamma is around 1, Perez et al. 2018.
  params["decoder/film/mul/bias"] = jnp.ones_like(params["decoder/film/mul/bias"])
  return unflatten_dict(params, sep="/")
