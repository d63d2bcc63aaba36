"""CLIP's vision tower: a ViT that hands out the activations the decoder taps."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Num

from segflax.arrays import Array
from segflax.errors import UserError
from segflax.models.config import CLIPSegConfig
from segflax.models.layers import Block, Dense, LayerNorm, declared, interpolate_positions

# ImageNet's, not CLIP's: what CLIPSeg was trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def normalize(image: Num[Array, "*batch h w 3"]) -> Float[Array, "*batch h w 3"]:
  """Turns 0..255 into the float32 pixels the vision tower reads."""
  scale = np.float32(1 / 255) / np.float32(IMAGE_STD)
  return image.astype(jnp.float32) * scale - np.float32(IMAGE_MEAN) / np.float32(IMAGE_STD)


def check_image_size(height: int, width: int, patch: int):
  """Raises UserError when a picture is not a whole number of patches."""
  for side in (height, width):
    if side < patch or side % patch:
      use = max(1, -(-side // patch)) * patch
      raise UserError(f"image_size {side} is not a multiple of patch_size {patch}; use {use}")


class VisionTower(nn.Module):
  """ViT, Dosovitskiy et al. 2021, as CLIP has it: CLS first, LayerNorm before the blocks."""

  config: CLIPSegConfig
  dtype: DTypeLike
  attention: str
  remat: bool = False

  def setup(self):
    c = self.config
    self.patch_embedding = Dense(c.vision_width, self.dtype, use_bias=False)
    self.class_embedding = self.param("class_embedding", declared, (c.vision_width,))
    positions = (c.image_size // c.patch_size) ** 2 + 1
    self.position_embedding = self.param(
      "position_embedding", declared, (positions, c.vision_width)
    )
    self.pre_norm = LayerNorm(c.vision_epsilon, jnp.float32)  # what the residual stream starts in
    block = nn.remat(Block) if self.remat else Block
    self.blocks = [
      block(
        c.vision_heads,
        c.vision_mlp,
        c.vision_act,
        c.vision_epsilon,
        self.dtype,
        self.attention,
      )
      for _ in range(c.vision_layers)
    ]
    self.post_norm = LayerNorm(c.vision_epsilon, self.dtype)
    self.projection = Dense(c.projection_dim, self.dtype, use_bias=False)

  def embed(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
    """Patches, CLS and positions: what the first block reads."""
    b, h, w, channels = image.shape
    p = self.config.patch_size
    check_image_size(h, w, p)
    # A convolution whose stride is its kernel is one matrix product over the pixels of a patch.
    patches = image.reshape(b, h // p, p, w // p, p, channels).swapaxes(2, 3)
    tokens = self.patch_embedding(patches.reshape(b, -1, p * p * channels)).astype(jnp.float32)
    first = jnp.broadcast_to(self.class_embedding, (b, 1, self.config.vision_width))
    tokens = jnp.concatenate([first, tokens], axis=1)
    tokens += interpolate_positions(self.position_embedding, (h // p, w // p))
    return self.pre_norm(tokens)

  def taps(self, image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b n c"], ...]:
    """Returns the outputs of the tapped blocks, in the order of `config.taps`."""
    x = self.embed(image)
    outputs = []
    for block in self.blocks[: max(self.config.taps) + 1]:  # what lies behind is never read
      x = block(x)
      outputs.append(x)
    return tuple(outputs[tap] for tap in self.config.taps)

  def pooled(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
    """Returns CLIP's image embedding: CLS after all blocks, normalised and projected."""
    x = self.embed(image)
    for block in self.blocks:
      x = block(x)
    return self.projection(self.post_norm(x[:, 0])).astype(jnp.float32)
