"""One pass over a split: every picture exactly once, every prompt on one encoding of it."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from segflax.sharding import local_rows, prefetch, shard_batch


class Panel(NamedTuple):
  """One picture and what the model made of it, at network size."""

  index: int  # record number in the split
  image: np.ndarray  # [s s 3] uint8
  mask: np.ndarray  # [k H W] uint8 {0, 1}, per concept, on its canvas
  size: np.ndarray  # [2] own height and width in the canvas
  probability: np.ndarray  # [P s s] uint8 0..255, per prompt


class Evaluation(NamedTuple):
  """What a pass found.

  rows: name -> array with one row per picture of the split, in order (make_eval_step names them).
  panels: the pictures asked for, of this process's share of the split.
  """

  rows: dict[str, np.ndarray]
  panels: list[Panel]


def evaluate(
  eval_step: Callable,
  params: dict,
  frozen: dict,
  table: dict,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  *,
  panel_indices: frozenset[int] = frozenset(),
  after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
  """Runs `eval_step` over the split.

  Args:
    batches: this process's padded batches (segflax/data/pipeline.py).
    panel_indices: record numbers of pictures to bring back with their probabilities.
    after_batch: called after each batch was handed to the devices; may raise to stop the pass.

  Returns:
    The same rows on every process.
  """

  def put(batch):
    return batch, shard_batch(batch, mesh)

  collected, panels = [], []
  for host, batch in prefetch(batches, put):
    rows, probability = eval_step(params, frozen, table, batch)
    collected.append(rows)
    wanted = [
      i for i, index in enumerate(host["index"]) if host["valid"][i] and index in panel_indices
    ]
    if wanted:
      mine = local_rows(probability)
      panels += [
        Panel(int(host["index"][i]), host["image"][i], host["mask"][i], host["size"][i], mine[i])
        for i in wanted
      ]
    after_batch()

  # The only wait for the devices: small integers per picture, never pixels.
  collected = jax.device_get(collected)
  rows = {name: np.concatenate([row[name] for row in collected]) for name in collected[0]}
  valid = rows.pop("valid")
  rows = {name: values[valid] for name, values in rows.items()}
  order = np.argsort(rows["index"], kind="stable")  # processes hold alternate slices
  return Evaluation({name: values[order] for name, values in rows.items()}, panels)
