"""One pass over a split: every picture exactly once, every prompt on one encoding of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from segflax import counts, metrics
from segflax.data.builder import Records
from segflax.data.eval_stream import EvalStream
from segflax.data.prompts import PromptSet
from segflax.sharding import local_rows, prefetch, shard_batch


class Panel(NamedTuple):
  """One picture and what the model made of it."""

  index: int  # record number in the split
  image: np.ndarray  # [s s 3] uint8, at network size
  mask: np.ndarray  # [k h w] uint8 {0, 1} per concept, at the picture's own size
  probability: np.ndarray  # [P s s] uint8 0..255 per prompt, at network size


class Evaluation(NamedTuple):
  """What a pass found: the same rows and loss on every process, the panels of this one."""

  rows: metrics.Rows
  loss: float  # mean over (picture, prompt) pairs whose truth is known, at network size
  panels: list[Panel]


class EvalSplit:
  """A split, the prompts to ask of every picture of it, and the names of both.

  Args:
    records: the split.
    stream: batches of it.
    prompts: table that the prompt ids refer to.
    every_synonym: ask all prompts, not only each concept's canonical one.
    threshold: of the metrics between prompts.
    num_panels: pictures that are brought back with their probabilities, evenly spread.
  """

  def __init__(
    self,
    records: Records,
    stream: EvalStream,
    prompts: PromptSet,
    *,
    every_synonym: bool,
    threshold: float,
    num_panels: int,
  ):
    self.stream, self.prompts, self.threshold = stream, prompts, threshold
    self.prompt_ids = np.arange(len(prompts.prompts)) if every_synonym else prompts.canonical
    self.concept_of = prompts.concept_of[self.prompt_ids]
    every = (records[i] for i in range(len(records)))  # One at a time: they hold the pictures.
    names = [(record["image_id"], record["source"]) for record in every]
    self.image_ids, self.sources = map(list, zip(*names, strict=True))
    spread = np.linspace(0, len(records) - 1, num=min(num_panels, len(records)))
    self.panel_indices = frozenset(np.rint(spread).astype(int).tolist())

  @property
  def prompt_names(self) -> list[str]:
    """The prompts asked, in the order of the rows' second axis."""
    return [self.prompts.prompts[i] for i in self.prompt_ids]

  def rows(self, found: dict[str, np.ndarray]) -> metrics.Rows:
    """Gives the counts of a pass the names of their pictures and prompts."""
    return metrics.Rows(
      prompts=self.prompt_names,
      concepts=[self.prompts.concepts[k] for k in self.concept_of],
      image_ids=[self.image_ids[i] for i in found["index"]],
      sources=[self.sources[i] for i in found["index"]],
      thresholds=np.asarray(counts.THRESHOLDS),
      threshold=self.threshold,
      counts=found["counts"],
      pairs=found["pairs"],
      known=found["known"],
    )


def evaluate(
  eval_step: Callable,
  params: dict,
  constants: tuple,
  split: EvalSplit,
  mesh: Mesh,
  *,
  after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
  """Runs `eval_step(params, *constants, batch)` over the split.

  Args:
    after_batch: called after each batch was handed to the devices; may raise to stop the pass.
  """
  collected, panels = [], []
  for host, batch in prefetch(split.stream, lambda host: (host, shard_batch(host, mesh))):
    rows, probability = eval_step(params, *constants, batch)
    collected.append(rows)
    wanted = [
      i
      for i, index in enumerate(host["index"])
      if host["valid"][i] and index in split.panel_indices
    ]
    if wanted:
      panels += _panels(host, local_rows(probability), wanted)
    after_batch()

  # The only wait for the devices: small integers per picture, never pixels.
  collected = jax.device_get(collected)
  found = {name: np.concatenate([rows[name] for rows in collected]) for name in collected[0]}
  found = {name: values[found["valid"]] for name, values in found.items()}
  losses = found["loss"][found["known"]]
  # Not metrics.mean: it passes over NaN, and a loss that is NaN on one picture must be seen.
  loss = float(losses.mean()) if losses.size else float("nan")
  return Evaluation(split.rows(found), loss, panels)


def _panels(host: dict, probability: np.ndarray, wanted: list[int]) -> list[Panel]:
  panels = []
  for i in wanted:
    height, width = host["size"][i]
    mask = host["mask"][i, :, :height, :width]
    panels.append(Panel(int(host["index"][i]), host["image"][i], mask, probability[i]))
  return panels
