"""CLIPSeg's decoder: reduced taps, FiLM, post-norm transformer layers, a head back to pixels."""

import zlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, UInt32

from segflax.arrays import Array
from segflax.errors import UserError
from segflax.models.config import CLIPSegConfig
from segflax.models.layers import MLP, Dense, LayerNorm, SelfAttention, declared

_DROPOUT_STREAM = zlib.crc32(b"decoder dropout") & 0x7FFFFFFF


def _fold(keys: UInt32[Array, "b 2"], step: int) -> UInt32[Array, "b 2"]:
  """Returns keys of a decoder step: a stream that other users of a picture's key do not draw."""

  def fold(key):
    return jax.random.fold_in(jax.random.fold_in(key, _DROPOUT_STREAM), step)

  return jax.random.key_data(jax.vmap(fold)(jax.random.wrap_key_data(keys)))


class FiLM(nn.Module):
  """Feature-wise affine conditioning, Perez et al. 2018."""

  features: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b qx n d"], condition: Float[Array, "b q p"]
  ) -> Float[Array, "b q n d"]:
    gamma = Dense(self.features, self.dtype, name="mul")(condition)
    beta = Dense(self.features, self.dtype, name="add")(condition)
    return gamma[:, :, None] * x + beta[:, :, None]


class DecoderBlock(nn.Module):
  """torch's default transformer layer: attend, add, normalise; MLP, add, normalise.

  What is added to and normalised is float32, as in the towers.
  """

  config: CLIPSegConfig
  dtype: DTypeLike
  attention: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "b q n d"], keys: UInt32[Array, "b 2"] | None = None
  ) -> Float[Array, "b q n d"]:
    c = self.config
    rate = 1.0 - c.decoder_dropout

    def keep(site: int, shape: tuple[int, ...]):
      def draw(key):
        return jax.random.bernoulli(jax.random.fold_in(key, site), rate, shape[1:])

      # One key per picture: its masks do not depend on who shares its batch or device.
      return jax.vmap(draw)(jax.random.wrap_key_data(keys))

    def dropout(site: int):
      if keys is None:
        return lambda y: y
      return lambda y: jnp.where(keep(site, y.shape), y / rate, 0).astype(y.dtype)

    b, q, n, _ = x.shape
    weights = None if keys is None else keep(0, (b, q, c.decoder_heads, n, n))
    attention = SelfAttention(c.decoder_heads, self.dtype, self.attention, name="attention")
    y = dropout(1)(attention(x, weights, rate))
    x = LayerNorm(c.vision_epsilon, jnp.float32, "norm1")(x + y)
    y = dropout(3)(MLP(c.decoder_mlp, "relu", self.dtype, name="mlp")(x, dropout(2)))
    return LayerNorm(c.vision_epsilon, jnp.float32, "norm2")(x + y)


class Enlarge(nn.Module):
  """Transposed convolution whose stride is its kernel: one matrix product, then pixels unfold."""

  factor: int
  features: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b H W o"]:
    b, h, w, _ = x.shape
    f = self.factor
    bias = self.param("bias", declared, (self.features,))
    kernel = Dense(f * f * self.features, self.dtype, use_bias=False, name="pixels")
    y = kernel(x).reshape(b, h, w, f, f, self.features).swapaxes(2, 3)
    return y.reshape(b, h * f, w * f, self.features) + bias.astype(self.dtype)


class Head(nn.Module):
  """From the token grid to pixels: simple (one enlargement) or refined (convolution and two)."""

  config: CLIPSegConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b H W"]:
    c = self.config
    if not c.refined:
      return Enlarge(c.head[0], 1, self.dtype, name="enlarge")(x)[..., 0]
    conv = nn.Conv(c.reduce_dim, (3, 3), dtype=self.dtype, name="conv")
    x = jax.nn.relu(conv(x))
    x = jax.nn.relu(Enlarge(c.head[0], c.reduce_dim // 2, self.dtype, name="enlarge_0")(x))
    return Enlarge(c.head[1], 1, self.dtype, name="enlarge_1")(x)[..., 0]


class Decoder(nn.Module):
  """Turns the taps of a picture and its conditions into logits, one map per condition."""

  config: CLIPSegConfig
  dtype: DTypeLike
  attention: str

  @nn.compact
  def __call__(
    self,
    taps: Sequence[Float[Array, "b n c"]],
    condition: Float[Array, "b q p"],
    size: tuple[int, int],
    keys: UInt32[Array, "b 2"] | None = None,
  ) -> Float[Array, "b q h w"]:
    """Args as in `CLIPSeg.decode`; dropout is active where `keys` are given."""
    c = self.config
    size = tuple(size)
    grid = (size[0] // c.patch_size, size[1] // c.patch_size)
    if taps[0].shape[1] != grid[0] * grid[1] + 1:
      raise UserError(
        f"{taps[0].shape[1]} tokens do not belong to a picture of {size[0]} x {size[1]} px; "
        "give decode the size that encode_image has seen"
      )
    x = None  # [b 1 n d] until the condition enters, so that prompts share the work; then [b q n d]
    for step, tap in enumerate(reversed(taps)):  # deepest first
      reduced = Dense(c.reduce_dim, self.dtype, name=f"reduces_{step}")(tap)[:, None]
      x = reduced if x is None else x + reduced
      if step == c.conditional_layer:
        x = FiLM(c.reduce_dim, self.dtype, name="film")(x, condition)
      block_keys = None if keys is None else _fold(keys, step)
      x = DecoderBlock(c, self.dtype, self.attention, name=f"blocks_{step}")(x, block_keys)
    b, q, _, d = x.shape
    x = x[:, :, 1:].reshape(b * q, *grid, d)  # CLS dropped, grid restored row by row
    logits = Head(c, self.dtype, name="head")(x).astype(jnp.float32)
    if logits.shape[1:] != size:
      # transformers' refined head at a patch other than 16 misses the picture's size.
      logits = jax.image.resize(logits, (b * q, *size), "bilinear", antialias=False)
    return logits.reshape(b, q, *size)
