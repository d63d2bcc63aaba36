"""The feature cache against the tower that it stands for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segflax import feature_cache
from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params, normalize

CONFIG = CLIPSegConfig.small(image_size=32, width=32, layers=2, taps=(0, 1), decoder_mlp=32)
PICTURES, VIEWS, SEED = 11, 2, 3
MODEL = CLIPSeg(CONFIG)


def brighten(pictures, keys):
  """Stands for the augmentation: any function of picture and key."""
  shift = jax.vmap(lambda key: jax.random.uniform(jax.random.wrap_key_data(key)))(keys)
  return pictures * (0.5 + shift[:, None, None, None] / 2)


@functools.cache
def params():
  return init_params(CONFIG, jax.random.key(0))


@jax.jit
def _encode(params, pictures, keys):
  image = normalize(brighten(pictures.astype(jnp.float32), keys))
  return MODEL.apply({"params": params}, image, method="encode_image")


def encode(pictures, keys):
  return _encode(params(), pictures, keys)


@functools.cache
def pictures():
  return np.random.default_rng(0).integers(0, 256, (PICTURES, 32, 32, 3), dtype=np.uint8)


def layout(root, **changes):
  options = {
    "content": "walls",
    "weights": {"vision/kernel": "ab"},
    "pictures": PICTURES,
    "views": VIEWS,
    "row": (2, 17, 32),
    "seed": SEED,
    "settings": {"image_size": 32},
    "shard_bytes": 4 * 2 * VIEWS * 2 * 17 * 32,  # four pictures
  }
  return feature_cache.make_layout(root, **options | changes)


def build(plan, **options):
  load = lambda i: pictures()[i]  # noqa: E731
  feature_cache.build(plan, load, encode, batch_size=3, **options)


class Stream:
  """What CachedStream needs of a training stream."""

  steps_per_epoch, num_examples = 3, PICTURES

  def __init__(self):
    self.step = 0

  def __next__(self):
    slots = np.arange(4) + 4 * (self.step % 3)
    epoch, self.step = divmod(self.step, 3)[0], self.step + 1
    index = np.where(slots < PICTURES, slots, -1)
    key = np.stack([np.random.SeedSequence((epoch, s)).generate_state(2) for s in slots])
    return {"key": key, "index": index, "valid": index >= 0}

  def get_state(self):
    return {"step": self.step}

  def set_state(self, state):
    self.step = state["step"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  plan = layout(tmp_path_factory.mktemp("cache"))
  build(plan)
  return feature_cache.FeatureCache(plan)


def test_taps_are_the_towers_to_the_last_bit_of_bfloat16(cache):
  assert cache.layout.shards == 3
  assert cache.layout.nbytes == sum(
    cache.layout.path(s).stat().st_size for s in range(cache.layout.shards)
  )
  index, view = np.array([0, 10, 4, 4]), np.array([0, 1, 0, 1])
  keys = feature_cache.view_keys(SEED, view, index)
  expected = encode(pictures()[index], keys)
  for ours, theirs in zip(cache.taps(index, view), expected, strict=True):
    assert ours.dtype == jnp.bfloat16
    # 2^-8: rounding of 8 bits, and a tie that another batch's summation order may break.
    np.testing.assert_allclose(ours.astype(np.float32), theirs, rtol=2**-8, atol=1e-5)


def test_the_stream_pairs_every_example_with_a_view_and_its_key(cache):
  stream = feature_cache.CachedStream(Stream(), cache)
  seen = set()
  for _ in range(6 * stream.steps_per_epoch):
    batch = next(stream)
    for row in np.flatnonzero(batch["valid"]):
      index = batch["index"][[row]]
      views = [
        v
        for v in range(VIEWS)
        if (feature_cache.view_keys(SEED, [v], index) == batch["view_key"][row]).all()
      ]
      assert len(views) == 1
      np.testing.assert_array_equal(batch["taps"][1][row], cache.taps(index, np.array(views))[1][0])
      seen.add((int(index[0]), views[0]))
  assert len(seen) > 1.8 * PICTURES  # Six epochs show nearly every view of every picture.


def test_a_resumed_stream_goes_on_with_the_same_batches(cache):
  stream = feature_cache.CachedStream(Stream(), cache)
  for _ in range(4):
    next(stream)
  state = stream.get_state()
  expected = [next(stream) for _ in range(3)]
  again = feature_cache.CachedStream(Stream(), cache)
  again.set_state(state)
  for batch in expected:
    jax.tree.map(np.testing.assert_array_equal, batch, next(again))


def test_a_pass_brings_each_picture_its_first_view(cache):
  batches = [{"index": np.array([3, 0])}, {"index": np.array([10, -1])}]
  for batch, given in zip(feature_cache.CachedPass(batches, cache), batches, strict=True):
    expected = cache.taps(np.maximum(given["index"], 0), np.zeros(2, int))
    jax.tree.map(np.testing.assert_array_equal, batch, given | {"taps": expected})


def test_training_from_the_cache_is_training_to_the_stated_tolerance(cache):
  """Ten updates of the decoder, once from pictures and once from the cache."""
  condition = jax.random.normal(jax.random.key(1), (4, 1, CONFIG.projection_dim))
  target = np.random.default_rng(1).random((4, 1, 32, 32)) < 0.2
  scale = params()["logit_scale"]

  def loss_fn(decoder, taps, valid):
    model = {"decoder": decoder, "logit_scale": scale}
    logits = MODEL.apply({"params": model}, taps, condition, (32, 32), method="decode")
    loss = optax.sigmoid_binary_cross_entropy(logits, target).mean((1, 2, 3))
    return jnp.where(valid, loss, 0).sum() / valid.sum(), logits

  @jax.jit
  def update(decoder, taps, valid):
    (_, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(decoder, taps, valid)
    return jax.tree.map(lambda p, g: p - 0.1 * g, decoder, grads), logits

  def train(taps_of):
    decoder, stream = params()["decoder"], feature_cache.CachedStream(Stream(), cache)
    for _ in range(10):
      batch = next(stream)
      taps = tuple(np.asarray(x, np.float32) for x in taps_of(batch))
      decoder, logits = update(decoder, taps, batch["valid"])
    return np.asarray(logits)

  cached = train(lambda batch: batch["taps"])
  whole = train(lambda batch: encode(pictures()[batch["index"]], batch["view_key"]))
  difference = np.sqrt(np.mean((cached - whole) ** 2)) / np.std(whole)
  assert difference < 0.01, difference  # The tolerance that the module states.
  assert difference > 0  # It is not the same array twice.


def test_a_build_goes_on_where_it_was_interrupted(tmp_path):
  plan = layout(tmp_path)

  class Stop(Exception):
    pass

  batches = iter(range(3))  # The first shard takes two, of three pictures and of one.

  def interrupt():
    if next(batches) == 2:
      raise Stop

  with pytest.raises(Stop):
    build(plan, after_batch=interrupt)
  assert feature_cache.missing_shards(plan) == [1, 2]
  with pytest.raises(UserError, match="lacks 2 of 3 shards"):
    feature_cache.FeatureCache(plan)
  before = plan.path(0).stat().st_mtime_ns
  build(plan)
  assert plan.path(0).stat().st_mtime_ns == before
  feature_cache.FeatureCache(plan)


def test_processes_share_the_work_and_make_the_same_cache(tmp_path, cache):
  plan = layout(tmp_path)
  for process in range(2):
    build(plan, process_index=process, process_count=2)
  for shard in range(plan.shards):
    assert plan.path(shard).read_bytes() == cache.layout.path(shard).read_bytes()


@pytest.mark.parametrize(
  "change",
  [{"content": "other"}, {"weights": {"vision/kernel": "ac"}}, {"seed": 4}, {"views": 3},
   {"settings": {"image_size": 48}}, {"pictures": 12}],
)  # fmt: skip
def test_whatever_changes_the_taps_changes_the_folder(tmp_path, change):
  assert layout(tmp_path).folder == layout(tmp_path).folder
  assert layout(tmp_path).folder != layout(tmp_path, **change).folder


def test_a_flipped_bit_is_found(tmp_path):
  plan = layout(tmp_path)
  build(plan)
  path = plan.path(1)
  content = bytearray(path.read_bytes())
  content[100] ^= 4
  path.write_bytes(content)
  opened = feature_cache.FeatureCache(plan)
  opened.taps(np.array([0, 5]), np.array([0, 0]))
  with pytest.raises(UserError, match="damaged at picture 4"):
    opened.taps(np.array([4]), np.array([0]))


def test_no_views_is_refused(tmp_path):
  with pytest.raises(UserError, match="fewer than one"):
    layout(tmp_path, views=0)
