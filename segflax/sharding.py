"""Data parallelism over every device of every process: mesh, shardings, global arrays."""

import collections
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from segflax.errors import UserError

AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """Returns the one-dimensional mesh over all devices (of all processes)."""
  devices = devices or jax.devices()
  # Auto, not make_mesh's default Explicit: there a plain Linen ViT fails at concatenate.
  return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_batch_size(batch_size: int, mesh: Mesh):
  """Raises UserError when the global batch does not divide evenly over the devices."""
  if batch_size < 1 or batch_size % mesh.size:
    raise UserError(
      f"batch_size {batch_size} is not a positive multiple of the {mesh.size} devices; "
      f"use {max(1, round(batch_size / mesh.size)) * mesh.size}"
    )


def replicate(tree, mesh: Mesh):
  """Puts one logical copy of every leaf on all devices; a checkpoint of it fits any mesh.

  Leaves must be equal on all processes (they come from one seed or one file).
  """
  sharding = NamedSharding(mesh, P())
  if jax.process_count() == 1:
    # may_alias: what is donated later must not be the caller's own buffer.
    return jax.device_put(tree, sharding, may_alias=False)

  def put(leaf):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(put, tree)


def shard_batch(batch, mesh: Mesh):
  """Joins the processes' local NumPy batches into global arrays split along axis 0."""
  sharding = NamedSharding(mesh, P(AXIS))
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_rows(array: jax.Array) -> np.ndarray:
  """Returns this process's rows of an array split along axis 0, in order."""
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def prefetch(batches: Iterable, put: Callable, depth: int = 2) -> Iterator:
  """Yields `put(batch)`, having started the transfer of `depth` batches ahead of use."""
  queue = collections.deque()
  for batch in batches:
    queue.append(put(batch))
    if len(queue) > depth:
      yield queue.popleft()
  yield from queue
