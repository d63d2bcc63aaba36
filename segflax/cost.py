"""What a compiled program costs: memory, FLOPs, traffic, collectives; which batch fits."""

import collections
import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# One instruction of HLO text: `%name = shapes opcode(`; -start and -done are halves of one.
_INSTRUCTION = re.compile(rf"= (.+?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+))\w*\[([\d,]*)\]")


class Chip(NamedTuple):
  """What one accelerator chip can do, as its maker states it."""

  flops: float  # bfloat16, per second
  memory: float  # bytes
  bandwidth: float  # bytes per second to and from its memory
  interconnect: float  # bytes per second to the other chips of its slice, both directions


# Key specifications at docs.cloud.google.com/tpu/docs/v5e, v6e, v5p; memory as libtpu 0.0.42's
# compiler states it when a program exceeds it: a little less than the nominal 16, 32 and 95 GB.
CHIPS = {
  "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 400e9),
  "v6e": Chip(918e12, 31.25 * 2**30, 1638e9, 800e9),
  "v5p": Chip(459e12, 95.74 * 2**30, 2765e9, 600e9),
}


class Cost(NamedTuple):
  """Cost of one call of a compiled program on each device that it runs on."""

  flops: float
  bytes_accessed: float  # operands and results of every fused operation; some stay on the chip
  memory: int  # bytes at the peak: arguments, results, temporaries, code
  arguments: int  # bytes of that which live between calls: state, frozen parameters, batch
  collectives: dict[str, tuple[int, int]]  # kind -> (how many, bytes of their results)

  def roofline(self, chip: Chip) -> dict[str, float]:
    """Returns the seconds that compute, memory traffic and interconnect take at their peaks.

    No step is faster than the largest of them (Williams et al. 2009). A ring all-reduce sends
    every byte twice.
    """
    sent = sum(
      size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in self.collectives.items()
    )
    return {
      "compute": self.flops / chip.flops,
      "memory": self.bytes_accessed / chip.bandwidth,
      "interconnect": sent / chip.interconnect,
    }


def measure(compiled: jax.stages.Compiled) -> Cost:
  """Reads the compiler's own account of a program."""
  account, memory = compiled.cost_analysis(), compiled.memory_analysis()
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # Donated: counted once.
  return Cost(
    flops=account["flops"],
    bytes_accessed=account["bytes accessed"],
    memory=memory.argument_size_in_bytes
    + results
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes,
    arguments=memory.argument_size_in_bytes,
    collectives=count_collectives(compiled.as_text()),
  )


def count_collectives(hlo: str) -> dict[str, tuple[int, int]]:
  """Counts the operations between devices in a compiled program's text.

  Returns:
    kind -> (how many, bytes of their results on each device).
  """
  found = collections.defaultdict(lambda: (0, 0))
  for shapes, kind in _INSTRUCTION.findall(hlo):
    count, size = found[kind]
    found[kind] = (count + 1, size + sum(_bytes(*shape) for shape in _SHAPE.findall(shapes)))
  return dict(found)


def _bytes(dtype: str, bits: str, dimensions: str) -> int:
  each = 1 if dtype == "pred" else math.ceil(int(bits) / 8)
  return each * math.prod(int(n) for n in dimensions.split(",") if n)


def largest_batch(
  memory_at: Callable[[int], int | None], limit: float, *, start: int = 8, most: int = 4096
) -> int:
  """Returns the largest batch per device whose program fits.

  Memory grows nearly linearly with the batch: two compilations give the line, further ones check
  its answer.

  Args:
    memory_at: batch per device -> bytes of the compiled program, None if it does not compile
      for want of memory.
    limit: bytes of a device.
    start: batch of the first compilation.
    most: where to stop looking.

  Returns:
    The batch, rounded down to a multiple of 8 from 16 on; 0 if not even one picture fits.
  """

  memory_at = functools.cache(memory_at)  # Each call compiles a program.

  def fits(batch: int) -> bool:
    needed = memory_at(batch)
    return needed is not None and needed <= limit

  while start and not fits(start):
    start //= 2
  if not start:
    return 0
  low, at_low = start, memory_at(start)
  at_double = memory_at(2 * low)
  if at_double is None or at_double > limit:
    guess = 2 * low - 1
  else:
    slope = max(1.0, (at_double - at_low) / low)
    low, guess = 2 * low, int(2 * low + (limit - at_double) / slope)
  guess = _tidy(min(guess, most))
  while guess > low and not fits(guess):
    guess = _tidy(min(guess - 1, int(guess * 0.95)))
  return min(max(low, guess), most)


def _tidy(batch: int) -> int:
  return batch - batch % 8 if batch >= 16 else batch
