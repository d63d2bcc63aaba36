"""Our side of scripts/benchmark.py: the step that training runs, and what a Predictor runs."""

import atexit
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from timing import serve

from configs import baseline
from segflax import build, feature_cache, sharding
from segflax.dry_step import train_step_and_shapes
from segflax.feature_cache import CachedStream
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, param_shapes
from segflax.models.processor import Processor
from segflax.predict import Predictor
from segflax.train_state import split_params

task = json.loads(sys.argv[1])
b, q, size = task["batch"], task["prompts"], task["size"]
config = baseline.get_config()
config.update(image_size=size, mixed_precision=task["bfloat16"])
config.trainable = {"decoder": "decoder", "vision": r"decoder/.*|vision/.*"}[task["trainable"]]
config.data.prompts_per_picture = q
config.cache_features = task["cached"]
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
  batches = cached_batches() if config.cache_features else itertools.repeat(make_batch())

  def call():
    nonlocal state
    state = compiled(state, frozen, table, sharding.shard_batch(next(batches), mesh))
    jax.block_until_ready(state)

  return call


def make_batch() -> dict:
  return {
    "image": pictures,
    "mask": masks,
    "prompt": prompts,
    "valid": np.ones((b, q), bool),
    "key": rng.integers(0, 2**32, (b, 2), dtype=np.uint32),
    "index": np.arange(b, dtype=np.int32),
  }


def cached_batches():
  """Batches as CachedStream makes them, from a cache on disk; what is in it does not matter."""
  tokens = (size // architecture.patch_size) ** 2 + 1
  row = (len(architecture.taps), tokens, architecture.vision_width)
  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder)
  layout = feature_cache.make_layout(
    folder, content="", weights={}, pictures=4 * b, views=1, row=row, seed=0, settings={}
  )

  def encode(images, keys):
    del images, keys
    return tuple(rng.standard_normal((b, *row[1:]), np.float32) for _ in architecture.taps)

  feature_cache.build(layout, lambda index: pictures[0], encode, batch_size=b)
  batch = make_batch()
  del batch["image"]
  epoch = [batch | {"index": np.arange(b, dtype=np.int32) + b * i} for i in range(4)]
  return CachedStream(_Endless(itertools.cycle(epoch)), feature_cache.FeatureCache(layout))


class _Endless:
  """What CachedStream needs of a training stream."""

  steps_per_epoch, num_examples = 4, 4 * b

  def __init__(self, batches):
    self._batches = batches

  def __next__(self):
    return next(self._batches)


def predict():
  """What a user calls: pictures and prompts in, probabilities out; prompts are encoded once."""
  predictor = Predictor(model, params, Processor.byte_level(size), batch_size=b)
  texts = [f"segment thing {i}" for i in range(q)]
  return lambda: predictor(list(pictures), texts, tile=None)


def matmul():
  """The rate that the machine's matrix units really reach."""
  n = task["matmul"]
  x = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
  wide = jnp.float32 if jax.default_backend() == "cpu" else None
  product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=wide))
  return lambda: product(x, x).block_until_ready()


def device_peak():
  stats = jax.local_devices()[0].memory_stats()
  return stats["peak_bytes_in_use"] if stats else None


KINDS = {"train": train, "predict": predict, "matmul": matmul}
kind = jax.devices()[0].device_kind
serve(KINDS[task["kind"]](), device_peak=device_peak, device=kind, version=f"jax {jax.__version__}")
