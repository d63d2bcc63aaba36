"""What both towers and the decoder are made of: dense layers, attention, MLP, positions."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from segflax.arrays import Array
from segflax.errors import UserError

ATTENTION = ("auto", "fused", "mapped", "plain")
ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Radford et al. 2021, their code
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
}
# Below this many tokens the scores of all heads stay in cache anyway: mapping them gains nothing.
_MAPPED_FROM_TOKENS = 400  # AMD EPYC: 1.25 times at 485 tokens, on the whole step

# Modules declare shapes; `init.init_params` gives the values, all from one draw, because compiling
# a random draw per leaf takes 50 s at full size.
declared = nn.initializers.zeros


def activation(name: str) -> Callable[[Array], Array]:
  """Returns the activation that a Hugging Face config calls `name`."""
  if name not in ACTIVATIONS:
    raise UserError(f"activation {name!r} is unknown; available: {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[name]


def _accumulator(dtype: DTypeLike) -> DTypeLike | None:
  # XLA's CPU bfloat16 dots are 1.4x faster when asked for a float32 result; accelerators
  # accumulate in float32 by themselves and would only write more memory.
  return jnp.float32 if dtype != jnp.float32 and jax.default_backend() == "cpu" else None


class Dense(nn.Module):
  """`x @ kernel + bias` in `dtype`; parameters are float32."""

  features: int
  dtype: DTypeLike = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
    kernel = self.param("kernel", declared, (x.shape[-1], self.features))
    y = jax.lax.dot_general(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (((x.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=_accumulator(self.dtype),
    )
    if self.use_bias:
      bias = self.param("bias", declared, (self.features,))
      y += bias.astype(y.dtype)
    return y.astype(self.dtype)


def LayerNorm(epsilon: float, dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
  """Returns a layer normalisation that computes in float32 and writes `dtype`."""
  # The fast variance E[x^2] - E[x]^2 loses 3 digits on CLIP's activations, whose mean is large.
  return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def choose_attention(implementation: str, tokens: int) -> str:
  """Returns what `attend` does for `implementation`, which may be "auto", with so many tokens."""
  if implementation not in ATTENTION:
    raise UserError(f"attention {implementation!r} is unknown; available: {', '.join(ATTENTION)}")
  if implementation != "auto":
    return implementation
  if jax.default_backend() != "cpu":
    return "fused"
  return "mapped" if tokens >= _MAPPED_FROM_TOKENS else "plain"


def attend(
  query: Float[Array, "b n heads k"],
  key: Float[Array, "b n heads k"],
  value: Float[Array, "b n heads k"],
  *,
  causal: bool = False,
  implementation: str = "auto",
  keep: Bool[Array, "b heads n n"] | None = None,
  keep_rate: float = 1.0,
) -> Float[Array, "b n heads k"]:
  """Softmax attention, Vaswani et al. 2017; the softmax is in float32.

  Args:
    query, key, value: projected tokens, any float dtype.
    causal: each token sees itself and those before it.
    implementation: "plain" computes all scores at once; "mapped" one (picture, head) after the
      other, so that its scores stay in a CPU's cache; "fused" is `jax.nn.dot_product_attention`,
      cuDNN's where it can be; "auto" takes what is fastest on the default backend.
    keep: dropout mask of the attention weights, which implies "plain"; None: no dropout.
    keep_rate: the probability with which `keep` was drawn.

  Returns:
    Attended values in the dtype of `query`.
  """
  implementation = choose_attention(implementation, query.shape[1])
  if keep is not None or implementation == "plain":
    return _attend_plain(query, key, value, causal, keep, keep_rate)
  if implementation == "fused":
    # cuDNN's flash attention takes 16-bit heads of a multiple of 8 only.
    flash = (
      jax.default_backend() == "gpu" and query.dtype != jnp.float32 and query.shape[-1] % 8 == 0
    )
    return jax.nn.dot_product_attention(
      query, key, value, is_causal=causal, implementation="cudnn" if flash else None
    )

  b, n, heads, k = query.shape
  flat = tuple(x.transpose(0, 2, 1, 3).reshape(b * heads, n, k) for x in (query, key, value))
  out = jax.lax.map(lambda qkv: _attend_head(*qkv, causal), flat)
  return out.reshape(b, heads, n, k).transpose(0, 2, 1, 3)


def _product(a: Array, b: Array, *, transpose: str = "") -> Array:
  """Returns the float32 product of two matrices, either of them ("a", "b") transposed first."""
  axes = (0 if "a" in transpose else 1, 1 if "b" in transpose else 0)
  return jax.lax.dot_general(
    a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend_head(query, key, value, causal):
  """Attention of one head `[n k]`, with the backward pass of Dao et al. 2022 (algorithm 4).

  It keeps two numbers per query instead of n scores, and needs no sum over the scores.
  """
  return _attend_head_forward(query, key, value, causal)[0]


def _scores(query, key, causal):
  scores = _product(query, key, transpose="b") * query.shape[-1] ** -0.5
  return jnp.where(np.tril(np.ones(scores.shape, bool)), scores, -jnp.inf) if causal else scores


def _attend_head_forward(query, key, value, causal):
  scores = _scores(query, key, causal)
  largest = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - largest)
  total = weights.sum(-1, keepdims=True)
  out = _product(weights.astype(query.dtype), value) / total
  return out.astype(query.dtype), (query, key, value, out, largest + jnp.log(total))


def _attend_head_backward(causal, residuals, gradient):
  query, key, value, out, log_total = residuals
  dtype = query.dtype
  weights = jnp.exp(_scores(query, key, causal) - log_total)
  along = (gradient.astype(jnp.float32) * out).sum(-1, keepdims=True)
  d_scores = weights * (_product(gradient, value, transpose="b") - along)
  d_scores = (d_scores * query.shape[-1] ** -0.5).astype(dtype)
  d_value = _product(weights.astype(dtype), gradient, transpose="a")
  d_query, d_key = _product(d_scores, key), _product(d_scores, query, transpose="a")
  return d_query.astype(dtype), d_key.astype(dtype), d_value.astype(dtype)


_attend_head.defvjp(_attend_head_forward, _attend_head_backward)


def _attend_plain(query, key, value, causal, keep, keep_rate):
  scores = jnp.einsum("bqhk,bmhk->bhqm", query, key, preferred_element_type=jnp.float32)
  scores *= query.shape[-1] ** -0.5
  if causal:
    n = query.shape[1]
    scores = jnp.where(np.tril(np.ones((n, n), bool)), scores, -jnp.inf)
  weights = jax.nn.softmax(scores)
  if keep is not None:
    weights = jnp.where(keep, weights / keep_rate, 0.0)
  out = jnp.einsum(
    "bhqm,bmhk->bqhk",
    weights.astype(query.dtype),
    value,
    preferred_element_type=_accumulator(query.dtype),
  )
  return out.astype(query.dtype)


class SelfAttention(nn.Module):
  """Multi-head self-attention with biased projections, over any leading axes."""

  heads: int
  dtype: DTypeLike
  attention: str
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "*batch n c"],
    keep: Bool[Array, "*batch heads n n"] | None = None,
    keep_rate: float = 1.0,
  ) -> Float[Array, "*batch n c"]:
    *batch, n, c = x.shape
    split = (math.prod(batch), n, self.heads, c // self.heads)
    query, key, value = (
      Dense(c, self.dtype, name=name)(x).reshape(split) for name in ("query", "key", "value")
    )
    if keep is not None:
      keep = keep.reshape(math.prod(batch), self.heads, n, n)
    out = attend(
      query,
      key,
      value,
      causal=self.causal,
      implementation=self.attention,
      keep=keep,
      keep_rate=keep_rate,
    )
    return Dense(c, self.dtype, name="out")(out.reshape(x.shape))


class MLP(nn.Module):
  """Two dense layers with an activation between them."""

  width: int
  act: str
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "*batch c"], dropout: Callable[[Array], Array] = lambda x: x
  ) -> Float[Array, "*batch c"]:
    hidden = activation(self.act)(Dense(self.width, self.dtype, name="fc1")(x))
    return Dense(x.shape[-1], self.dtype, name="fc2")(dropout(hidden))


class Block(nn.Module):
  """CLIP's transformer layer: normalise, attend, add; normalise, MLP, add.

  The residual stream stays in the dtype it comes in. Both towers give float32, as torch's autocast
  does: in bfloat16 a block's small contribution is rounded away (quickstart: a tenth more loss).
  """

  heads: int
  mlp_width: int
  act: str
  epsilon: float
  dtype: DTypeLike
  attention: str
  causal: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    y = LayerNorm(self.epsilon, self.dtype, "norm1")(x)
    x += SelfAttention(self.heads, self.dtype, self.attention, self.causal, name="attention")(y)
    y = LayerNorm(self.epsilon, self.dtype, "norm2")(x)
    return x + MLP(self.mlp_width, self.act, self.dtype, name="mlp")(y)


def bicubic_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
  """Returns the matrix of one axis of torch's bicubic resizing (align_corners and antialias off).

  jax.image.resize is no substitute: it uses a = -0.5 and renormalises at the borders, which
  differs by 0.07 RMS (0.39 at most) on unit variance from 14 to 22.
  """
  a = -0.75  # Keys 1981 with torch's constant
  centre = (np.arange(target) + 0.5) * (source / target) - 0.5
  first = np.floor(centre)
  matrix = np.zeros((target, source))
  for offset in (-1, 0, 1, 2):
    x = np.abs(centre - (first + offset))
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    column = np.clip(first + offset, 0, source - 1).astype(int)  # borders are repeated
    np.add.at(matrix, (np.arange(target), column), np.where(x <= 1, near, far))
  return matrix.astype(np.float32)


def interpolate_positions(
  table: Float[Array, "positions c"], grid: tuple[int, int]
) -> Float[Array, "n c"]:
  """Resizes a square table of position embeddings (CLS first) to a grid of any aspect."""
  side = math.isqrt(table.shape[0] - 1)
  if grid == (side, side):
    return table
  patches = table[1:].reshape(side, side, -1)
  rows, columns = (bicubic_matrix(side, target) for target in grid)
  # The table is float32 and small: full precision costs nothing and keeps TPUs from rounding it.
  resized = jnp.einsum(
    "Hh,Ww,hwc->HWc", rows, columns, patches, precision=jax.lax.Precision.HIGHEST
  )
  return jnp.concatenate([table[:1], resized.reshape(-1, table.shape[1])])
