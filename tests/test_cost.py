"""The reading of compiled programs, against programs whose cost is known by hand."""

import jax
import jax.numpy as jnp
import pytest

from segflax import cost


def test_a_matrix_product_costs_what_it_must():
  m, k, n = 64, 128, 256
  a, b = jnp.zeros((m, k)), jnp.zeros((k, n))
  measured = cost.measure(jax.jit(jnp.dot).lower(a, b).compile())
  assert measured.flops == 2 * m * k * n
  assert measured.arguments == 4 * (m * k + k * n)
  assert measured.memory >= 4 * (m * k + k * n + m * n)
  assert measured.collectives == {}


def test_donated_memory_is_counted_once():
  x = jnp.zeros(1 << 16)
  plain = cost.measure(jax.jit(lambda x: x + 1).lower(x).compile())
  donated = cost.measure(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
  assert plain.memory - donated.memory == x.nbytes


def test_collectives_are_counted_with_their_bytes():
  hlo = """
  %a.1 = (f32[64]{0:T(128)S(1)}, bf16[64,3]{1,0}) all-reduce(%x, %y), channel_id=1
  %b = f32[8,2]{1,0} get-tuple-element(%a.1), index=0
  %c = (f32[4]{0}, f32[16]{0}) all-gather-start(%z), dimensions={0}
  %d = f32[16]{0} all-gather-done(%c)
  %e = pred[] all-reduce(%w)
  """
  assert cost.count_collectives(hlo) == {
    "all-reduce": (2, 64 * 4 + 64 * 3 * 2 + 1),
    "all-gather": (1, 4 * 4 + 16 * 4),
  }


def test_roofline_of_a_known_cost():
  chip = cost.Chip(flops=1e12, memory=1e9, bandwidth=1e9, interconnect=1e8)
  c = cost.Cost(2e12, 3e9, 0, 0, {"all-reduce": (1, 50_000_000), "all-gather": (1, 10_000_000)})
  assert c.roofline(chip) == pytest.approx({"compute": 2.0, "memory": 3.0, "interconnect": 1.1})


@pytest.mark.parametrize(
  ("fixed", "each", "limit", "best"),
  [(100, 10, 100 + 10 * 500, 496), (0, 1, 8, 8), (0, 1, 13, 13), (50, 10, 75, 2), (9, 1, 9, 0)],
)
def test_the_largest_batch_fits_and_the_next_does_not(fixed, each, limit, best):
  compilations = []

  def memory_at(batch):
    compilations.append(batch)
    used = fixed + each * batch
    return used if used <= 2 * limit else None  # Beyond that the compiler gives up.

  assert cost.largest_batch(memory_at, limit) == best
  assert len(compilations) < 12
  assert len(set(compilations)) == len(compilations)


def test_memory_that_grows_faster_than_a_line_is_not_overrun():
  def memory_at(batch):
    return batch**2

  assert cost.largest_batch(memory_at, 10_000) in range(88, 101, 8)
