"""CLIPSeg, Lüddecke & Ecker 2022: a frozen CLIP and a small decoder conditioned on a prompt."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from segflax.errors import UserError
from segflax.models.clip_text import TextTower
from segflax.models.clip_vision import VisionTower, normalize
from segflax.models.config import CLIPSegConfig
from segflax.models.decoder import Decoder
from segflax.models.layers import declared

__all__ = ["CLIPSeg", "CLIPSegConfig", "normalize"]


class CLIPSeg(nn.Module):
  """Text- or picture-prompted segmentation.

  The parameters are {"vision", "text", "decoder", "logit_scale"}, all float32; the last serves
  CLIP's contrastive loss alone and is kept so that weights pass through unharmed.

  Attributes:
    config: shape of the model.
    dtype: compute dtype; normalisations, softmax and logits are float32 in any case.
    attention: one of `layers.ATTENTION`.
  """

  config: CLIPSegConfig
  dtype: jnp.dtype = jnp.float32
  attention: str = "auto"

  def setup(self):
    self.vision = VisionTower(self.config, self.dtype, self.attention)
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
    taps: tuple[Float[Array, "b n c"], ...],
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
