"""A compiled training step does what it must and not 5 % more; and it is compiled once."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import baseline
from segflax import cost, flops, sharding
from segflax.dry_step import train_step_and_shapes
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params

# Wide enough that matrix products dominate, with two blocks after the last tap.
CONFIG = CLIPSegConfig.small(
  image_size=64, patch_size=16, width=256, layers=3, taps=(0,), decoder_mlp=512, refined=True
)
SIZE, BATCH = 128, 8


def shapes_of(architecture):
  return jax.eval_shape(lambda: init_params(architecture, jax.random.key(0)))


def step_of(architecture, *, prompts=1, size=SIZE, batch=BATCH, **changes):
  config = baseline.get_config()
  config.trainable = "decoder"
  config.image_size = size
  config.data.prompts_per_picture = prompts
  config.update(changes)
  # Mapped attention is a loop, whose body the compiler's account takes once.
  model = CLIPSeg(architecture, attention="plain")
  return train_step_and_shapes(
    config, model, shapes_of(architecture), sharding.make_mesh(jax.devices()[:1]), batch
  )


def compiled_flops(*args, **kwargs) -> float:
  step, shapes = step_of(*args, **kwargs)
  return cost.measure(step.lower(*shapes).compile()).flops


def test_the_hand_count_is_that_of_the_fact_sheet():
  """GF per picture of rd64-refined at 352: facts/performance.md, counted independently."""
  full = CLIPSegConfig.rd64_refined()
  patch_embedding = 2 * 22**2 * 768 * 768
  assert (flops.tower(full, 352) - patch_embedding) / 1e9 == pytest.approx(75.9, abs=0.05)
  assert flops.decoder(full, 352) / 1e9 == pytest.approx(1.21, abs=0.01)
  backward = flops.decoder_step(full, 352) - flops.tower(full, 352) - flops.decoder(full, 352)
  assert backward / 1e9 == pytest.approx(2.28, abs=0.01)
  assert flops.decoder_step(full, 352) / 1e9 == pytest.approx(79.9, abs=0.1)
  assert flops.decoder_step(full, 512) / 1e9 == pytest.approx(187, abs=0.5)


@pytest.mark.parametrize("prompts", [1, 2])
def test_the_frozen_tower_step_does_nothing_for_nothing(prompts):
  needed = BATCH * flops.decoder_step(CONFIG, SIZE, prompts)
  done = compiled_flops(CONFIG, prompts=prompts)
  assert needed <= done <= 1.05 * needed
  # The bound has teeth: blocks that nobody reads, or the picture encoded per prompt, break it.
  whole = dataclasses.replace(CONFIG, taps=(CONFIG.vision_layers - 1,))
  assert BATCH * flops.decoder_step(whole, SIZE, prompts) > 1.05 * needed
  if prompts > 1:
    assert done < 1.05 * 0.75 * prompts * BATCH * flops.decoder_step(CONFIG, SIZE)


@pytest.mark.slow
def test_the_full_size_step_does_nothing_for_nothing():
  full = CLIPSegConfig.rd64_refined()
  needed = flops.decoder_step(full, 352)
  assert needed <= compiled_flops(full, size=352, batch=1) <= 1.05 * needed


def test_one_program_serves_every_batch():
  """Other pictures, prompts, padding and rates; the state that the step itself returned."""
  tiny = CLIPSegConfig.small(image_size=16, width=32, layers=1, taps=(0,), decoder_mlp=32)
  step, shapes = step_of(tiny, size=16, batch=2)
  mesh = sharding.make_mesh(jax.devices()[:1])
  state, frozen, table, batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  state, frozen, table = sharding.replicate((state, frozen, table), mesh)
  rng = np.random.default_rng(0)
  for number in range(4):
    arrays = {name: rng.integers(0, 2, x.shape).astype(x.dtype) for name, x in batch.items()}
    state = step(state, frozen, table, sharding.shard_batch(arrays, mesh))
    lr_scale = sharding.replicate(np.float32(0.5**number), mesh)
    state = state.replace(lr_scale=lr_scale)  # as the plateau does
  assert step._cache_size() == 1
