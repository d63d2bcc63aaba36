"""What the device counts for evaluation: integers; metrics.py makes every ratio on the host.

Counts are exact, so neither the batch split nor the number of devices can change a metric.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from segflax.arrays import Array

# The 49 thresholds of the CLIPSeg paper, which contain 0.5; float32 as the device compares.
THRESHOLDS = tuple(round(0.02 * k, 2) for k in range(1, 50))


def pixel_counts(
  prediction: Bool[Array, "*n h w"], truth: Bool[Array, "*n h w"], where: Bool[Array, "*#n h w"]
) -> Int[Array, "*n 4"]:
  """Counts pixels by prediction and truth.

  Args:
    prediction: foreground of the prediction.
    truth: foreground of the truth.
    where: the picture's own pixels; False on the padding of its canvas, which never counts.

  Returns:
    int32 (tp, fp, fn, tn).
  """
  cells = (prediction & truth, prediction & ~truth, ~prediction & truth, ~prediction & ~truth)
  return jnp.stack([jnp.sum(cell & where, (-2, -1), dtype=jnp.int32) for cell in cells], -1)


def threshold_counts(
  probability: Float[Array, "*n h w"],
  truth: Bool[Array, "*n h w"],
  where: Bool[Array, "*#n h w"],
  thresholds: Float[Array, " t"],
) -> Int[Array, "*n t 4"]:
  """`pixel_counts` of `probability > threshold` for every threshold, one after the other."""
  # lax.map: t masks at once would be t times the memory of the pictures.
  counts = jax.lax.map(lambda t: pixel_counts(probability > t, truth, where), thresholds)
  return jnp.moveaxis(counts, 0, -2)


def pair_counts(
  prediction: Bool[Array, "*n q h w"], truth: Bool[Array, "*n q h w"], where: Bool[Array, "*#n h w"]
) -> Int[Array, "*n q q 3 2"]:
  """Counts how far the masks of two prompts on one picture agree.

  Args:
    prediction: one mask per prompt.
    truth: the truth of each prompt's concept.
    where: the picture's own pixels.

  Returns:
    int32 (intersection, union) for [first prompt, second prompt] of
    0: prediction and prediction, 1: prediction and the second's truth, 2: truth and truth.
  """
  prediction, truth = (m & where[..., None, :, :] for m in (prediction, truth))

  def overlap(a, b):
    # float32 holds the sum of a row exactly; the sum over rows is of integers.
    rows = jnp.einsum("...qhw,...phw->...qph", a.astype(jnp.float32), b.astype(jnp.float32))
    both = jnp.sum(rows.astype(jnp.int32), -1)
    area_a, area_b = (jnp.sum(m, (-2, -1), dtype=jnp.int32) for m in (a, b))
    return jnp.stack([both, area_a[..., :, None] + area_b[..., None, :] - both], -1)

  pairs = ((prediction, prediction), (prediction, truth), (truth, truth))
  return jnp.stack([overlap(a, b) for a, b in pairs], -2)


def bilinear_matrix(target: Int[Array, ""], rows: int, source: int) -> Float[Array, "rows source"]:
  """Returns the matrix that stretches `source` samples to `target`; rows past `target` are 0.

  As torch's `interpolate(mode="bilinear", align_corners=False)` along one axis: half-pixel
  centres, border repeated, no antialiasing. `target` may be traced, so one compilation serves
  pictures of every size.
  """
  index = jnp.arange(rows, dtype=jnp.float32)
  position = (index + 0.5) * (source / target.astype(jnp.float32)) - 0.5
  position = jnp.clip(position, 0, source - 1)
  weights = jnp.maximum(0, 1 - jnp.abs(position[:, None] - jnp.arange(source)))
  return jnp.where(index[:, None] < target, weights, 0)


def resize_to_own_size(
  probability: Float[Array, "q s1 s2"], size: Int[Array, "2"], canvas: tuple[int, int]
) -> Float[Array, "q h w"]:
  """Stretches network-sized maps to a picture's own size, top left in a canvas.

  Args:
    probability: values in [0, 1] at the network's size.
    size: the picture's (height, width), traced.
    canvas: static (height, width), at least `size`.

  Returns:
    float32 maps; 0 outside the picture.
  """
  _, height, width = probability.shape
  down = bilinear_matrix(size[0], canvas[0], height)
  right = bilinear_matrix(size[1], canvas[1], width)
  # HIGHEST: the default precision of a TPU or GPU would round probabilities to 8 or 10 bits.
  return jnp.einsum(
    "hs,qst,wt->qhw",
    down,
    probability.astype(jnp.float32),
    right,
    precision=jax.lax.Precision.HIGHEST,
  )


def area_matrix(source: Int[Array, ""], rows: int, columns: int) -> Float[Array, "rows columns"]:
  """Returns the matrix that averages the first `source` of `columns` samples into `rows` bins.

  Exact area averaging (a sample that straddles two bins is shared between them), so a mask becomes
  the share of each bin that it covers. `source` may be traced.
  """
  step = source.astype(jnp.float32) / rows
  start = jnp.arange(rows, dtype=jnp.float32)[:, None] * step
  sample = jnp.arange(columns, dtype=jnp.float32)
  overlap = jnp.minimum(start + step, sample + 1) - jnp.maximum(start, sample)
  return jnp.maximum(overlap, 0) / step


def resize_to_network(
  mask: Bool[Array, "q h w"], size: Int[Array, "2"], network: tuple[int, int]
) -> Float[Array, "q s1 s2"]:
  """Inverse of `resize_to_own_size` for masks: area average, the soft target of training."""
  down = area_matrix(size[0], network[0], mask.shape[1])
  right = area_matrix(size[1], network[1], mask.shape[2])
  return jnp.einsum(
    "sh,qhw,tw->qst",
    down,
    mask.astype(jnp.float32),
    right,
    precision=jax.lax.Precision.HIGHEST,
  )


def inside(size: Int[Array, "2"], canvas: tuple[int, int]) -> Bool[Array, "h w"]:
  """Returns which pixels of the canvas belong to a picture of `size` in its top left corner."""
  height, width = canvas
  return (jnp.arange(height)[:, None] < size[0]) & (jnp.arange(width) < size[1])


def picture_counts(
  probability: Float[Array, "q s1 s2"],
  truth: Bool[Array, "q h w"],
  size: Int[Array, "2"],
  thresholds: Float[Array, " t"],
  threshold: float | Float[Array, ""],
) -> dict[str, Int[Array, "..."]]:
  """Everything that metrics.py needs of one picture; `jax.vmap` it over a batch.

  Args:
    probability: per prompt, at the network's size.
    truth: per prompt, the truth of its concept on the canvas.
    size: the picture's own (height, width).
    thresholds: of `counts`; pass `jnp.asarray([threshold])` where one is enough.
    threshold: of `pairs`.

  Returns:
    counts: int32 [q t 4]; pairs: int32 [q q 3 2].
  """
  canvas = truth.shape[-2:]
  where = inside(size, canvas)
  probability = resize_to_own_size(probability, size, canvas)
  return {
    "counts": threshold_counts(probability, truth, where, thresholds),
    "pairs": pair_counts(probability > threshold, truth, where),
  }
