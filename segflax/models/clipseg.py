"""CLIPSeg, Lüddecke & Ecker 2022: CLIP and a small decoder conditioned on a prompt."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Num, UInt32

from segflax.arrays import Array
from segflax.errors import UserError
from segflax.models.clip_text import TextTower
from segflax.models.clip_vision import VisionTower, normalize
from segflax.models.config import CLIPSegConfig
from segflax.models.decoder import Decoder
from segflax.models.layers import choose_attention, declared

__all__ = [
  "CLIPSeg",
  "CLIPSegConfig",
  "encode_pictures",
  "held",
  "init_params",
  "normalize",
  "param_shapes",
]

_FOREGROUND = 0.08  # share of pixels that a fresh model calls foreground
# CLIP's initial temperature ln(1 / 0.07), as transformers rounds it
_CONSTANTS = {"scale": 1.0, "bias": 0.0, "logit_scale": 2.6592}
_EMBEDDING_STD = {  # CLIP's
  "text/token_embedding": 0.02,
  "text/position_embedding": 0.01,
  "vision/position_embedding": 0.02,
}


class CLIPSeg(nn.Module):
  """Text- or picture-prompted segmentation.

  The parameters are {"vision", "text", "decoder", "logit_scale"}, all float32; the last serves
  CLIP's contrastive loss alone and is kept so that weights pass through unharmed.

  Attributes:
    config: shape of the model.
    dtype: of the matrix products; residual streams, normalisations, softmax and logits are float32
      in any case.
    attention: one of `layers.ATTENTION`.
    remat: the backward pass computes the vision blocks again instead of keeping what is in them
      (Chen et al. 2016, arXiv:1604.06174): less memory, a third more work where they train.
  """

  config: CLIPSegConfig
  dtype: DTypeLike = jnp.float32
  attention: str = "auto"
  remat: bool = False

  def setup(self):
    self.vision = VisionTower(self.config, self.dtype, self.attention, self.remat)
    self.text = TextTower(self.config, self.dtype, self.attention)
    self.decoder = Decoder(self.config, self.dtype, self.attention)
    self.logit_scale = self.param("logit_scale", declared, ())

  def encode_image(self, image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b n c"], ...]:
    """Runs the vision tower as far as its last tap.

    Args:
      image: normalised pixels (see `normalize`); height and width are multiples of the patch.

    Returns:
      The outputs of the blocks `config.taps`, n = 1 + (h / patch) * (w / patch) tokens each.
    """
    return self.vision.taps(image)

  def embed_image(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
    """Returns CLIP's image embedding: the condition that a visual prompt gives."""
    return self.vision.pooled(image)

  def encode_text(self, tokens: Int[Array, "b l"]) -> Float[Array, "b p"]:
    """Returns CLIP's text embedding (not normalised): the condition that a text prompt gives."""
    return self.text(tokens)

  def decode(
    self,
    taps: Sequence[Float[Array, "b n c"]],
    condition: Float[Array, "b q p"],
    size: tuple[int, int],
    *,
    train: bool = False,
    keys: UInt32[Array, "b 2"] | None = None,
  ) -> Float[Array, "b q h w"]:
    """Segments encoded pictures by q conditions each.

    Args:
      taps: from `encode_image`.
      condition: text or image embeddings, or a mix of them (see `conditions`).
      size: height and width of the pictures, static.
      train: whether `config.decoder_dropout` applies.
      keys: key data per picture, needed where it does: masks depend on nothing else.

    Returns:
      Logits, float32.
    """
    if not train or not self.config.decoder_dropout:
      keys = None
    elif keys is None:
      raise UserError(
        f"decoder_dropout {self.config.decoder_dropout} needs a key per picture in training; "
        "give decode keys=batch['key']"
      )
    return self.decoder(taps, condition, size, keys)

  def __call__(
    self,
    image: Float[Array, "b h w 3"],
    tokens: Int[Array, "b q l"],
    *,
    train: bool = False,
    keys: UInt32[Array, "b 2"] | None = None,
  ) -> Float[Array, "b q h w"]:
    """Segments each picture by its q prompts; every picture is encoded once."""
    b, q, length = tokens.shape
    condition = self.encode_text(tokens.reshape(b * q, length)).reshape(b, q, -1)
    taps = self.encode_image(image)
    return self.decode(taps, condition, image.shape[1:3], train=train, keys=keys)

  def touch_all(self, image: Float[Array, "b h w 3"], tokens: Int[Array, "b q l"]):
    """Calls every submodule, also those a text prompt leaves out; gives `init` their shapes."""
    return self(image, tokens), self.embed_image(image)


def encode_pictures(
  model: CLIPSeg, params: dict, image: Num[Array, "b h w 3"], *, one_by_one: bool = True
) -> tuple[Float[Array, "b n c"], ...]:
  """Returns the taps of pictures 0..255 of any dtype, as `encode_image` does of normalised ones.

  Args:
    one_by_one: where attention is mapped for the sake of a CPU's cache, so may pictures be: a
      tenth faster at 1025 tokens if no gradient has to come back, slower if one has.
  """
  height, width = (side // model.config.patch_size for side in image.shape[1:3])

  def encode(pictures):
    return model.apply({"params": params}, normalize(pictures), method="encode_image")

  if one_by_one and choose_attention(model.attention, height * width + 1) == "mapped":
    return jax.lax.map(lambda picture: jax.tree.map(lambda x: x[0], encode(picture[None])), image)
  return encode(image)


def held(params: dict, dtype: DTypeLike) -> dict:
  """Returns parameters as devices hold those that do not train: in 16 bits, half the memory.

  Only what every layer casts to the compute dtype by itself is cast: answers stay the same to the
  last bit. Biases, normalisations, position tables and logit_scale are small and stay float32.
  """

  def cast(path, leaf):
    return leaf.astype(dtype) if path[-1].key in ("kernel", "token_embedding") else leaf

  return params if dtype == jnp.float32 else jax.tree_util.tree_map_with_path(cast, params)


@functools.cache  # tracing the model takes a second, and every folder read or written asks thrice
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
  # Start from "foreground is rare" (RetinaNet's prior, Lin et al. 2017) instead of random masks: to
  # unlearn those, training first makes the decoder deaf to its input and needs long to recover. The
  # kernel keeps its size: a small one learns what a patch holds late (quickstart: IoU .38 for .59).
  last = "decoder/head/enlarge_1" if config.refined else "decoder/head/enlarge"
  params[f"{last}/bias"] += math.log(_FOREGROUND / (1 - _FOREGROUND))
  return unflatten_dict(params, sep="/")
