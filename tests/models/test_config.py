"""CLIPSegConfig: what it refuses, and its way through Hugging Face's config."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segflax.errors import UserError
from segflax.models.config import CLIPSegConfig, head_factors


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"image_size": 350}, "image_size 350 is not a multiple of patch_size 16; use 352"),
    ({"vision_heads": 7}, "vision_width 768 is not a multiple of vision_heads 7"),
    ({"taps": (3, 12)}, r"taps \(3, 12\) must name vision blocks 0 to 11"),
    ({"taps": ()}, "must name vision blocks"),
    ({"conditional_layer": 3}, "conditional_layer 3 must be one of the 3 decoder steps"),
    ({"text_act": "swish"}, "'swish' is unknown; available: quick_gelu, gelu, relu"),
    ({"head": (2, 2, 4)}, "one factor"),
    ({"decoder_dropout": 1.0}, "must lie in"),
  ],
)
def test_impossible_models_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    CLIPSegConfig(**fields)


@pytest.mark.parametrize("preset", ["rd64_refined", "rd64", "rd16", "small"])
def test_presets_survive_the_hub_format(preset):
  config = getattr(CLIPSegConfig, preset)()
  assert CLIPSegConfig.from_hf(config.to_hf()) == config


def test_the_released_config_is_the_default():
  # What CIDAS/clipseg-rd64-refined's config.json states beyond transformers' defaults.
  hub = {
    "model_type": "clipseg",
    "reduce_dim": 64,
    "use_complex_transposed_convolution": True,
    "vision_config": {"patch_size": 16},
    "text_config": {"pad_token_id": 49407},
  }
  assert CLIPSegConfig.from_hf(hub) == CLIPSegConfig.rd64_refined()


@settings(max_examples=20, deadline=None)
@given(
  patch=st.sampled_from([4, 8, 14, 16, 32]),
  taps=st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True),
  refined=st.booleans(),
  dropout=st.sampled_from([0.0, 0.1]),
  end=st.sampled_from([2, 49407]),
)
def test_any_config_survives_the_hub_format(patch, taps, refined, dropout, end):
  config = dataclasses.replace(
    CLIPSegConfig(),
    image_size=4 * patch,
    patch_size=patch,
    taps=tuple(taps),
    head=head_factors(patch) if refined else (patch,),
    decoder_dropout=dropout,
    eos_token_id=end,
  )
  assert CLIPSegConfig.from_hf(config.to_hf()) == config


@given(st.integers(1, 256))
def test_head_factors_multiply_to_the_patch(patch):
  first, second = head_factors(patch)
  assert first * second == patch and first <= second
