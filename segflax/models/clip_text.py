"""CLIP's text tower: a causal transformer, read at the end-of-text token."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from segflax.arrays import Array
from segflax.errors import UserError
from segflax.models.config import CLIPSegConfig
from segflax.models.layers import Block, Dense, LayerNorm, declared

# transformers before 4.31 saved configs with this id, which no CLIP vocabulary uses as end of text.
_LEGACY_END = 2


def end_positions(tokens: Int[Array, "b l"], eos_token_id: int) -> Int[Array, "b"]:
  """Returns where each text ends, by the convention that a saved config's id stands for.

  An id of 2 means "the largest token id of the text" (end of text is CLIP's last token); any
  other id means the first token equal to it.
  """
  if eos_token_id == _LEGACY_END:
    return jnp.argmax(tokens, axis=-1)
  return jnp.argmax(tokens == eos_token_id, axis=-1)


class TextTower(nn.Module):
  """The text encoder of Radford et al. 2021.

  It takes no attention mask: padding comes after the end token, which a causal tower reads
  nothing behind.
  """

  config: CLIPSegConfig
  dtype: DTypeLike
  attention: str

  @nn.compact
  def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b p"]:
    c = self.config
    length = tokens.shape[-1]
    if length > c.max_text_length:
      raise UserError(
        f"{length} tokens exceed the text tower's {c.max_text_length}; cut the prompt"
      )
    table = self.param("token_embedding", declared, (c.vocab_size, c.text_width))
    positions = self.param("position_embedding", declared, (c.max_text_length, c.text_width))
    # Cast as a kernel would be (`clipseg.held`), summed in the residual stream's float32.
    x = table[tokens].astype(self.dtype).astype(jnp.float32) + positions[:length]
    for i in range(c.text_layers):
      x = Block(
        c.text_heads,
        c.text_mlp,
        c.text_act,
        c.text_epsilon,
        self.dtype,
        self.attention,
        causal=True,
        name=f"blocks_{i}",
      )(x)
    end = end_positions(tokens, c.eos_token_id)
    # Normalising one token of a text is the same as normalising all and picking one.
    x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    x = LayerNorm(c.text_epsilon, self.dtype, "final_norm")(x)
    projection = Dense(c.projection_dim, self.dtype, use_bias=False, name="projection")
    return projection(x).astype(jnp.float32)
