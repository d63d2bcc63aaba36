"""The frozen tower's outputs on disk: it runs once per picture and view, not once per epoch.

Taps are kept in bfloat16. A bfloat16 tower (`mixed_precision`) loses nothing by that. A float32 one
is rounded to 8 bits of mantissa, a relative error of at most 2^-9 per value; the logits of a fresh
model then differ by less than 1 % of their standard deviation (tests/test_feature_cache.py).

A cache is a folder of shards, each `[rows, views, taps, tokens, width]` bfloat16 and read by memory
map: an epoch costs the disk's bandwidth and no memory. Its name is a hash of all that its content
depends on: another data set, tower, size or augmentation has another folder.
"""

import hashlib
import itertools
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8, UInt32

from segflax.data.progress import progress
from segflax.errors import UserError

_SHARD_BYTES = 1 << 28  # 120 pictures at 352 px full size: what an interrupted build loses at most
_VERSION = 1


class Layout(NamedTuple):
  """The shape of a cache, and what its content depends on."""

  folder: Path
  pictures: int
  views: int
  row: tuple[int, int, int]  # taps, tokens, width of one view of one picture
  seed: int
  rows_per_shard: int

  @property
  def shards(self) -> int:
    return -(-self.pictures // self.rows_per_shard)

  @property
  def nbytes(self) -> int:
    return 2 * self.pictures * self.views * int(np.prod(self.row))

  def rows_of(self, shard: int) -> range:
    first = shard * self.rows_per_shard
    return range(first, min(first + self.rows_per_shard, self.pictures))

  def path(self, shard: int) -> Path:
    return self.folder / f"taps-{shard:05d}-of-{self.shards:05d}.bf16"

  def checksums(self, shard: int) -> Path:
    return self.path(shard).with_suffix(".crc32")


def make_layout(
  root: str | Path,
  *,
  content: str,
  weights: dict[str, str],
  pictures: int,
  views: int,
  row: tuple[int, int, int],
  seed: int,
  settings: dict,
  shard_bytes: int = _SHARD_BYTES,
) -> Layout:
  """Names the cache of one split.

  Args:
    root: folder that holds caches; several may share it.
    content: hash of the pictures, as the data set's `content_sha256` (plus the split's name).
    weights: path -> sha256 of the tower's parameters (`train_state.identity`).
    pictures: records in the split.
    views: augmented views of each picture, at least 1.
    row: taps, tokens and width of one encoded picture.
    seed: of the views' augmentation.
    settings: JSON-able, whatever else decides the taps: size, compute dtype, augmentation.
    shard_bytes: about how large a file becomes.

  Raises:
    UserError: fewer than one view.
  """
  if views < 1:
    raise UserError(f"cache_features {views} views are fewer than one; use 1, or 0 for no cache")
  depends = {
    "version": _VERSION,
    "content": content,
    "weights": dict(sorted(weights.items())),
    "pictures": pictures,
    "views": views,
    "row": list(row),
    "seed": seed,
    "settings": settings,
  }
  text = json.dumps(depends, sort_keys=True)
  rows_per_shard = max(1, shard_bytes // (2 * views * int(np.prod(row))))
  name = hashlib.sha256(f"{rows_per_shard} {text}".encode()).hexdigest()[:16]
  folder = Path(root) / name
  folder.mkdir(parents=True, exist_ok=True)
  _replace(folder / "depends.json", lambda path: path.write_text(text + "\n"))
  return Layout(folder, pictures, views, tuple(row), seed, rows_per_shard)


def view_keys(
  seed: int, view: Int[np.ndarray, "b"], index: Int[np.ndarray, "b"]
) -> UInt32[np.ndarray, "b 2"]:
  """Returns what views are augmented with: keys of (seed, view, record number) alone."""
  pairs = zip(view, index, strict=True)
  return np.stack([np.random.SeedSequence((seed, v, i)).generate_state(2) for v, i in pairs])


def missing_shards(layout: Layout) -> list[int]:
  """Returns the shards that are not there yet, or not whole."""
  each = 2 * layout.views * int(np.prod(layout.row))

  def whole(shard: int) -> bool:
    path = layout.path(shard)
    size = each * len(layout.rows_of(shard))
    return path.exists() and path.stat().st_size == size and layout.checksums(shard).exists()

  return [shard for shard in range(layout.shards) if not whole(shard)]


def build(
  layout: Layout,
  load: Callable[[int], UInt8[np.ndarray, "h w 3"]],
  encode: Callable[[np.ndarray, np.ndarray], tuple[Array, ...]],
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  label: str = "encoding",
  after_batch: Callable[[], None] = lambda: None,
):
  """Computes the shards that are missing; an interrupted build goes on where it stood.

  Several processes share the work: each takes every process_count-th missing shard of a folder that
  all of them see. The caller waits for the others before it opens the cache.

  Args:
    load: record number -> picture at network size.
    encode: (pictures `[b h w 3]` uint8, keys `[b 2]` uint32) -> taps, each `[b n c]`, augmented as
      the keys say. Jitted; it always gets batch_size pictures.
    label: of the progress bar.
    after_batch: called after each batch; may raise to stop, whole shards are kept.
  """
  # By number, not by position among the missing ones: processes may look at different moments.
  mine = [s for s in missing_shards(layout) if s % process_count == process_index]
  if not mine:
    return
  pictures = iter(progress([i for s in mine for i in layout.rows_of(s)], label))
  for shard in mine:
    rows = layout.rows_of(shard)
    shape = (len(rows), layout.views, *layout.row)
    scratch = layout.path(shard).with_suffix(f".tmp{os.getpid()}")
    taps = np.memmap(scratch, np.uint16, "w+", shape=shape)  # the bits of bfloat16
    for first in range(0, len(rows), batch_size):
      index = np.asarray(list(itertools.islice(pictures, min(batch_size, len(rows) - first))))
      images = np.stack([load(int(i)) for i in index])
      short = batch_size - len(index)  # Padded: one compiled program serves every batch.
      images = np.pad(images, ((0, short), (0, 0), (0, 0), (0, 0)))
      for view in range(layout.views):
        keys = view_keys(layout.seed, np.full(batch_size, view), np.pad(index, (0, short)))
        encoded = [np.asarray(x, jnp.bfloat16) for x in encode(images, keys)]
        stacked = np.stack(encoded, axis=1)[: len(index)]  # [b taps n c]
        taps[first : first + len(index), view] = stacked.view(np.uint16)
      after_batch()
    checksums = np.array([[zlib.crc32(view) for view in row] for row in taps], np.uint32)
    taps.flush()
    del taps
    _replace(layout.checksums(shard), lambda path, c=checksums: path.write_bytes(c.tobytes()))
    scratch.replace(layout.path(shard))  # Last: a shard that is there is whole.
  next(pictures, None)  # The bar ends.


class FeatureCache:
  """A complete cache, open for reading.

  Raises:
    UserError: shards are missing.
  """

  def __init__(self, layout: Layout):
    if missing := missing_shards(layout):
      raise UserError(
        f"feature cache {layout.folder} lacks {len(missing)} of {layout.shards} shards; "
        "let every process finish building it"
      )
    self.layout = layout
    shape = (layout.views, *layout.row)
    self._shards = [
      np.memmap(layout.path(s), np.uint16, "r", shape=(len(layout.rows_of(s)), *shape))
      for s in range(layout.shards)
    ]
    self._checksums = [
      np.fromfile(layout.checksums(s), np.uint32).reshape(-1, layout.views)
      for s in range(layout.shards)
    ]
    self._checked = np.zeros((layout.pictures, layout.views), bool)

  def taps(self, index: Int[np.ndarray, "b"], view: Int[np.ndarray, "b"]) -> tuple[np.ndarray, ...]:
    """Returns the taps of some views of some pictures, each `[b n c]` bfloat16.

    Raises:
      UserError: what is read for the first time is not what was written.
    """
    rows = [self._row(int(i), int(v)) for i, v in zip(index, view, strict=True)]
    return tuple(
      np.stack([row[t] for row in rows]).view(jnp.bfloat16) for t in range(self.layout.row[0])
    )

  def _row(self, index: int, view: int) -> np.ndarray:
    shard, position = divmod(index, self.layout.rows_per_shard)
    row = self._shards[shard][position, view]
    if not self._checked[index, view]:
      if zlib.crc32(row) != self._checksums[shard][position, view]:
        path = self.layout.path(shard)
        raise UserError(
          f"{path} is damaged at picture {index}; delete it and start again: it is made anew"
        )
      self._checked[index, view] = True
    return row


class CachedStream:
  """A training stream that yields taps where the one it wraps yields pictures.

  Batches have `taps` (tuple of `[b n c]` bfloat16) and `view_key` (`[b 2]` uint32: the view's
  augmentation, so the mask's, too) instead of `image`. Which view an example shows in an epoch is
  drawn from its `key`: resuming, devices and processes change nothing.

  Args:
    stream: a `TrainStream` without images; its position is this stream's position.
    cache: of the split that the stream reads.
  """

  def __init__(self, stream, cache: FeatureCache):
    self._stream, self._cache = stream, cache
    self.steps_per_epoch, self.num_examples = stream.steps_per_epoch, stream.num_examples

  def __iter__(self) -> Iterator[dict]:
    return self

  def __next__(self) -> dict:
    batch = dict(next(self._stream))
    layout = self._cache.layout
    index = np.maximum(batch["index"], 0)  # Padding is -1; it is not valid, any taps will do.
    view = batch["key"][:, 1] % layout.views
    batch["taps"] = self._cache.taps(index, view)
    batch["view_key"] = view_keys(layout.seed, view, index)
    return batch

  def get_state(self):
    return self._stream.get_state()

  def set_state(self, state):
    self._stream.set_state(state)


class CachedPass:
  """The batches of an evaluation stream with `taps`, for a step that then leaves the tower out.

  Args:
    stream: an `EvalStream`.
    cache: of the split that the stream reads; its first view is the picture as it is.
  """

  def __init__(self, stream, cache: FeatureCache):
    self._stream, self._cache = stream, cache

  def __len__(self) -> int:
    return len(self._stream)

  def __iter__(self) -> Iterator[dict]:
    for batch in self._stream:
      index = np.maximum(batch["index"], 0)  # Padding is -1, and not valid.
      yield batch | {"taps": self._cache.taps(index, np.zeros_like(index))}


def _replace(path: Path, write: Callable[[Path], object]):
  scratch = path.with_name(f"{path.name}.tmp{os.getpid()}-{threading.get_ident()}")
  write(scratch)
  scratch.replace(path)
