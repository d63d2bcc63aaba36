"""Our side of scripts/benchmark.py: the step that training runs, and what a Predictor runs."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from timing import serve

from configs import baseline
from segflax import build, losses, sharding
from segflax.dry_step import train_step_and_shapes
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, encode_pictures, param_shapes
from segflax.train_state import split_params

task = json.loads(sys.argv[1])
b, q, size = task["batch"], task["prompts"], task["size"]
config = baseline.get_config()
config.update(image_size=size, mixed_precision=task["bfloat16"])
config.trainable = {"decoder": "decoder", "vision": r"decoder/.*|vision/.*"}[task["trainable"]]
config.data.prompts_per_picture = q
architecture = CLIPSegConfig.from_hf(task["hf_config"])
dtype = jnp.bfloat16 if task["bfloat16"] else jnp.float32
model = CLIPSeg(architecture, dtype=dtype)
rng = np.random.default_rng(0)


def weight(shape: tuple[int, ...]) -> np.ndarray:
  """Kernels scaled by fan-in, ones and small numbers else: as large as trained ones are."""
  scale = np.float32(max(1, np.prod(shape[:-1])) ** -0.5 if len(shape) > 1 else 0.1)
  return scale * rng.standard_normal(shape, dtype=np.float32)


# Leaf by leaf on the host, as weights are loaded: init_params' one draw would be the memory's peak.
shapes = param_shapes(architecture)
params = unflatten_dict({path: weight(shape) for path, shape in shapes.items()}, sep="/")
pictures = rng.integers(0, 256, (b, size, size, 3), dtype=np.uint8)
masks = (255 * (rng.random((b, q, size, size)) < 0.1)).astype(np.uint8)
prompts = np.tile(np.arange(q, dtype=np.int32), (b, 1))


def train():
  mesh = sharding.make_mesh()
  step, shapes = train_step_and_shapes(config, model, params, mesh, b)
  compiled = step.lower(*shapes).compile()
  state, frozen, table, _ = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  trained, rest = split_params(params, build.trainable_pattern(config, architecture))
  frozen = jax.tree.map(lambda shape, x: x.astype(shape.dtype, copy=False), frozen, rest)
  state = state.replace(params=trained, lr_scale=np.float32(1))
  table = {"condition": jax.random.normal(jax.random.key(1), table["condition"].shape)}
  state, frozen, table = sharding.replicate((state, frozen, table), mesh)
  if not task["bfloat16"]:
    params.clear()  # As train.py: only bfloat16 keeps the exact weights on the host besides.
  batch = {
    "image": pictures,
    "mask": masks,
    "prompt": prompts,
    "valid": np.ones((b, q), bool),
    "key": rng.integers(0, 2**32, (b, 2), dtype=np.uint32),
    "index": np.arange(b, dtype=np.int32),
  }

  def call():
    nonlocal state
    state = compiled(state, frozen, table, sharding.shard_batch(batch, mesh))
    jax.block_until_ready(state)

  return call


def cached():
  """The decoder's update from taps as the feature cache delivers them."""
  loss_fn, tx = losses.make_loss(config.loss), optax.adamw(1e-4)
  tx = optax.chain(optax.clip_by_global_norm(config.gradient_clip), tx)
  tokens = (size // architecture.patch_size) ** 2 + 1
  shape = (b, tokens, architecture.vision_width)
  taps = tuple(rng.normal(size=shape).astype(jnp.bfloat16) for _ in architecture.taps)
  condition = jax.random.normal(jax.random.key(1), (b, q, architecture.projection_dim))
  others = {name: leaf for name, leaf in params.items() if name == "logit_scale"}

  def loss(decoder, taps, mask):
    variables = {"params": {"decoder": decoder, **others}}
    logits = model.apply(variables, taps, condition, (size, size), method="decode")
    return loss_fn(logits, mask.astype(jnp.float32) / 255).mean()

  @jax.jit
  def update(decoder, opt_state, taps, mask):
    updates, opt_state = tx.update(jax.grad(loss)(decoder, taps, mask), opt_state, decoder)
    return optax.apply_updates(decoder, updates), opt_state

  state = (params["decoder"], tx.init(params["decoder"]))

  def call():
    nonlocal state
    state = jax.block_until_ready(update(*state, taps, masks))

  return call


def predict():
  @jax.jit
  def masks_of(params, pictures, condition):
    taps = encode_pictures(model, params, pictures)
    logits = model.apply({"params": params}, taps, condition, (size, size), method="decode")
    return jax.nn.sigmoid(logits)

  # Prompts are encoded once for all pictures, as the Predictor does.
  condition = jax.random.normal(jax.random.key(1), (b, q, architecture.projection_dim))
  held = {name: jax.tree.map(_held, leaf) for name, leaf in params.items() if name != "text"}

  def call():
    np.asarray(masks_of(held, pictures, condition))

  return call


def matmul():
  """The rate that the machine's matrix units really reach."""
  n = task["matmul"]
  x = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
  wide = jnp.float32 if jax.default_backend() == "cpu" else None
  product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=wide))
  return lambda: product(x, x).block_until_ready()


def _held(leaf):
  return leaf.astype(dtype) if leaf.ndim else leaf


def device_peak():
  stats = jax.local_devices()[0].memory_stats()
  return stats["peak_bytes_in_use"] if stats else None


KINDS = {"train": train, "cached": cached, "predict": predict, "matmul": matmul}
kind = jax.devices()[0].device_kind
serve(KINDS[task["kind"]](), device_peak=device_peak, device=kind, version=f"jax {jax.__version__}")
