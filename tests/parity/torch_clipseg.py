"""The oracle: transformers' CLIPSeg with random weights, and its parts where the whole refuses."""

import dataclasses
import os
import random
import secrets

import numpy as np
import torch
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

BASE_SEED = int(os.environ.get("SEGFLAX_PARITY_SEED", secrets.randbits(32)))
VOCABULARY = 514
START, END = 512, 513


def randomize(module: nn.Module, seed: int) -> nn.Module:
  """Gives every parameter a random value that keeps activations of order one."""
  generator = torch.Generator().manual_seed(seed)

  def normal(shape, std):
    return torch.randn(shape, generator=generator) * std

  with torch.no_grad():
    for name, p in module.named_parameters():
      if "norm" in name or "layrnorm" in name:
        p.copy_(normal(p.shape, 0.2) + (1.0 if name.endswith("weight") else 0.0))
      elif "embedding" in name and "patch" not in name:
        p.copy_(normal(p.shape, 0.5))
      elif p.ndim < 2:
        p.copy_(normal(p.shape, 0.2))
      else:
        # Transposed convolutions have their inputs in front.
        inputs = p.shape[0] if "transposed" in name and p.shape[-1] != 3 else p[0].numel()
        # Not more: attention that saturates has gradients which are rounding, torch's own too.
        p.copy_(normal(p.shape, 0.7 * inputs**-0.5))
  return module.eval()


def make_config(**changes) -> CLIPSegConfig:
  """Returns a tiny config; `vision`, `text` and the rest of the arguments change it."""
  vision = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "patch_size": 16,
    "image_size": 64,
  } | changes.pop("vision", {})
  text = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": END,
  } | changes.pop("text", {})
  rest = {
    "projection_dim": 20,
    "extract_layers": [0, 2, 3],
    "reduce_dim": 16,
    "decoder_intermediate_size": 32,
    "use_complex_transposed_convolution": True,
  } | changes
  return CLIPSegConfig(vision_config=vision, text_config=text, **rest)


@dataclasses.dataclass
class Variant:
  """A random model, how it is stored, and what it is asked."""

  config: CLIPSegConfig
  dtype: torch.dtype
  shards: bool
  image: np.ndarray  # [b h w 3] float32
  tokens: np.ndarray  # [b q l] int32


def random_variant(seed: int) -> Variant:
  """Draws a variant: patch, taps, heads, activations, end-of-text convention, storage."""
  rng = random.Random(seed)
  refined = rng.random() < 0.5
  # transformers' refined head misses the picture's size unless the patch is 16; both are tried.
  patch = rng.choice([8, 16, 16]) if refined else rng.choice([4, 8, 14, 16, 32])
  layers = rng.randint(3, 6)
  taps = sorted(rng.sample(range(layers), rng.randint(1, min(4, layers))))
  if rng.random() < 0.3:
    rng.shuffle(taps)
  heads = rng.choice([1, 2, 4])
  text_heads = rng.choice([1, 2, 4])
  config = make_config(
    vision={
      "hidden_size": heads * rng.choice([8, 16]),
      "num_attention_heads": heads,
      "num_hidden_layers": layers,
      "intermediate_size": rng.choice([40, 64]),
      "patch_size": patch,
      "image_size": patch * rng.randint(2, 5),
      "hidden_act": rng.choice(["quick_gelu", "gelu"]),
      "layer_norm_eps": rng.choice([1e-5, 1e-6]),
    },
    text={
      "hidden_size": text_heads * rng.choice([8, 16]),
      "num_attention_heads": text_heads,
      "num_hidden_layers": rng.randint(1, 3),
      "hidden_act": rng.choice(["quick_gelu", "gelu"]),
      "eos_token_id": rng.choice([END, 2]),
    },
    projection_dim=rng.choice([12, 32]),
    extract_layers=taps,
    reduce_dim=rng.choice([16, 64, 128]),
    decoder_num_attention_heads=rng.choice([2, 4]),
    decoder_intermediate_size=rng.choice([32, 96]),
    conditional_layer=rng.randrange(len(taps)),
    use_complex_transposed_convolution=refined,
  )
  draw = np.random.default_rng(seed)
  side = patch * rng.randint(2, 6)
  batch, prompts, length = rng.randint(1, 3), rng.randint(1, 3), rng.randint(4, 12)
  return Variant(
    config,
    rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
    rng.random() < 0.4,
    draw.normal(size=(batch, side, side, 3)).astype(np.float32),
    random_tokens(draw, (batch, prompts), length),
  )


def random_tokens(draw: np.random.Generator, shape: tuple[int, ...], length: int) -> np.ndarray:
  """Returns texts of different lengths: start, bytes, end, padding (which is end)."""
  tokens = draw.integers(3, START, (*shape, length)).astype(np.int32)
  tokens[..., 0] = START
  ends = draw.integers(2, length, shape)
  tokens[np.arange(length) >= ends[..., None]] = END
  return tokens


def nchw(image: np.ndarray) -> torch.Tensor:
  """[b h w 3] -> [b 3 h w]."""
  return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))


def repeat_pictures(image: np.ndarray, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns what transformers asks for: the picture once for each of its prompts."""
  prompts = tokens.shape[1]
  return nchw(np.repeat(image, prompts, 0)), torch.from_numpy(
    tokens.reshape(-1, tokens.shape[-1]).astype(np.int64)
  )


def logits(model: CLIPSegForImageSegmentation, image: np.ndarray, tokens: np.ndarray):
  """Returns the logits [b q h w] of transformers' own forward, resized if it misses the size."""
  pixels, ids = repeat_pictures(image, tokens)
  out = model(pixel_values=pixels, input_ids=ids).logits
  out = out.reshape(pixels.shape[0], *out.shape[-2:])  # squeezed away for one picture
  size = image.shape[1:3]
  if out.shape[1:] != size:
    out = nn.functional.interpolate(out[:, None], size, mode="bilinear")[:, 0]
  return out.reshape(*tokens.shape[:2], *size)


def logits_of_any_shape(model: CLIPSegForImageSegmentation, image: np.ndarray, tokens: np.ndarray):
  """As `logits`, from the model's parts: its decoder takes the square root of the token count."""
  pixels, ids = repeat_pictures(image, tokens)
  with torch.no_grad():
    condition = model.clip.get_text_features(ids).pooler_output
    states = model.clip.vision_model(pixels, output_hidden_states=True).hidden_states
  decoder = model.decoder
  x = 0
  steps = zip(reversed(model.config.extract_layers), decoder.layers, decoder.reduces, strict=True)
  for i, (tap, layer, reduce) in enumerate(steps):
    x = x + reduce(states[tap + 1])
    if i == decoder.conditional_layer:
      x = decoder.film_mul(condition)[:, None] * x + decoder.film_add(condition)[:, None]
    x = layer(x, attention_mask=None)
  patch = model.config.vision_config.patch_size
  height, width = (side // patch for side in image.shape[1:3])
  grid = x[:, 1:].transpose(1, 2).reshape(len(x), -1, height, width)
  return decoder.transposed_convolution(grid).reshape(*tokens.shape[:2], *image.shape[1:3])
