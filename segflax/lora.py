"""LoRA (Hu et al. 2021): a frozen kernel plus a trained product of two thin matrices.

The factors are leaves beside the kernel they belong to, so that freezing, optimising and saving see
nothing new: `add` puts them into a parameter tree, `merge` takes them out again. Models only ever
see merged trees.
"""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from segflax.errors import UserError

# The attention projections; the decoder is small enough to train whole. The preset "lora" of
# trainable.py leaves the blocks out that do not run.
VISION_PROJECTIONS = r"vision/blocks_\d+/attention/(query|key|value|out)"


def add(
  params: dict,
  rng: jax.Array,
  *,
  rank: int,
  alpha: float | None = None,
  modules: str = VISION_PROJECTIONS,
) -> dict:
  """Returns the tree with `lora_a`, `lora_b` and `lora_scale` beside each chosen kernel.

  `lora_b` starts at zero, so that the model is unchanged: `merge(add(params))` equals `params`.

  Args:
    params: nested dict; a kernel is `[i, o]`.
    rng: key of the initial `lora_a`, normal with variance 1 / i.
    rank: r of `lora_a [i, r]` and `lora_b [r, o]`.
    alpha: the product is scaled by `alpha / rank`; None: by 1. Kept as a leaf that is not trained.
    modules: regular expression over the paths of the modules that own the kernels.

  Raises:
    UserError: the rank does not fit, or no module matches.
  """
  flat = flatten_dict(params, sep="/")
  chosen = [
    path.removesuffix("/kernel")
    for path in sorted(flat)
    if path.endswith("/kernel") and re.fullmatch(modules, path.removesuffix("/kernel"))
  ]
  if not chosen:
    raise UserError(f"LoRA modules {modules!r} match no module with a kernel")
  for key, path in zip(jax.random.split(rng, len(chosen)), chosen, strict=True):
    inputs, outputs = flat[f"{path}/kernel"].shape
    if not 1 <= rank <= min(inputs, outputs):
      raise UserError(
        f"LoRA rank {rank} is not in 1..{min(inputs, outputs)}, the size of {path}/kernel"
      )
    flat[f"{path}/lora_a"] = jax.random.normal(key, (inputs, rank)) / jnp.sqrt(inputs)
    flat[f"{path}/lora_b"] = jnp.zeros((rank, outputs))
    flat[f"{path}/lora_scale"] = jnp.float32(1 if alpha is None else alpha / rank)
  return unflatten_dict(flat, sep="/")


def merge(params: dict) -> dict:
  """Returns the tree without factors: `kernel + lora_scale * lora_a @ lora_b`, in float32.

  A tree without factors comes back as it is; cheap enough to be part of every step.
  """
  if "lora_a" in params:
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("lora_")}
    product = jnp.matmul(
      params["lora_a"], params["lora_b"], precision=jax.lax.Precision.HIGHEST
    )  # TPUs would take bfloat16 factors by default, and the export would differ from training.
    kernel = params["kernel"].astype(jnp.float32) + params["lora_scale"] * product
    return rest | {"kernel": kernel}
  return {
    name: merge(child) if isinstance(child, dict) else child for name, child in params.items()
  }
