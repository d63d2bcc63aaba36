"""Writes tests/golden: two tiny CLIPSegs and what torch says of them, for tests without torch.

  python scripts/make_golden.py

needs torch (see requirements-test.txt). The files are in git; run it again only when what is
recorded has to change.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPSegForImageSegmentation

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]

import torch_clipseg as oracle  # noqa: E402

from segflax.models.processor import Processor  # noqa: E402

SMALL = {"hidden_size": 16, "intermediate_size": 24}
VARIANTS = {
  "refined": oracle.make_config(
    vision=SMALL, text=SMALL | {"num_hidden_layers": 1}, reduce_dim=8, extract_layers=[0, 2]
  ),
  # The other choice in everything: head, patch, activation, end of text, conditioned step.
  "simple": oracle.make_config(
    vision=SMALL | {"patch_size": 8, "image_size": 32, "hidden_act": "gelu"},
    text=SMALL | {"num_hidden_layers": 1, "hidden_act": "gelu", "eos_token_id": 2},
    reduce_dim=8,
    conditional_layer=1,
    use_complex_transposed_convolution=False,
  ),
}


def record(model: CLIPSegForImageSegmentation, seed: int) -> dict[str, np.ndarray]:
  """Returns inputs and torch's answers: embeddings, taps, logits, gradients of the decoder."""
  draw = np.random.default_rng(seed)
  patch = model.config.vision_config.patch_size
  image = draw.normal(size=(2, 5 * patch, 5 * patch, 3)).astype(np.float32)
  wide = draw.normal(size=(1, 3 * patch, 6 * patch, 3)).astype(np.float32)
  tokens = oracle.random_tokens(draw, (2, 2), 7)
  pixels = oracle.nchw(image)
  ids = torch.from_numpy(tokens.reshape(-1, 7).astype(np.int64))
  with torch.no_grad():
    states = model.clip.vision_model(pixels, output_hidden_states=True).hidden_states
    golden = {
      "text": model.clip.get_text_features(ids).pooler_output.reshape(2, 2, -1),
      "image_embedding": model.clip.get_image_features(pixels).pooler_output,
      "wide_logits": oracle.logits_of_any_shape(model, wide, tokens[:1]),
      **{f"tap_{i}": states[tap + 1] for i, tap in enumerate(model.config.extract_layers)},
    }
  logits = oracle.logits(model, image, tokens)
  target = torch.from_numpy((draw.random(logits.shape) < 0.3).astype(np.float32))
  torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
  golden |= {f"grad/{k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
  golden |= {"logits": logits.detach()}
  return {
    **{k: v.numpy() for k, v in golden.items()},
    "image": image,
    "wide": wide,
    "tokens": tokens,
    "target": target.numpy().astype(np.uint8),
  }


def bicubic() -> dict[str, np.ndarray]:
  """Returns torch's bicubic resizing of a random grid, up, down and to another aspect."""
  grid = np.random.default_rng(0).normal(size=(1, 3, 14, 14)).astype(np.float32)
  sizes = ((22, 22), (9, 9), (32, 20), (14, 22), (1, 3))
  resized = {
    f"{h}x{w}": torch.nn.functional.interpolate(
      torch.from_numpy(grid), (h, w), mode="bicubic", align_corners=False
    )[0].numpy()
    for h, w in sizes
  }
  return {"grid": grid[0]} | resized


def main():
  shutil.rmtree(GOLDEN, ignore_errors=True)
  for seed, (name, config) in enumerate(VARIANTS.items()):
    model = oracle.randomize(CLIPSegForImageSegmentation(config), seed)
    model.save_pretrained(GOLDEN / name)
    Processor.byte_level(image_size=64).save(GOLDEN / name)
    np.savez_compressed(GOLDEN / name / "torch.npz", **record(model, seed))
  np.savez_compressed(GOLDEN / "bicubic.npz", **bicubic())
  size = sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file())
  print(f"{GOLDEN}: {size / 1e6:.2f} MB, torch {torch.__version__}")


if __name__ == "__main__":
  main()
