"""segflax: text-prompted segmentation on JAX, a Flax port of CLIPSeg."""

import importlib

_HOME = {
  "Predictor": "segflax.predict",
  "VisualPrompt": "segflax.prompting",
  "from_pretrained": "segflax.models.pretrained",
  "save_pretrained": "segflax.models.pretrained",
  "train_and_evaluate": "segflax.train",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
  # On first use: scripts that only read results must not wait for jax.
  if name not in _HOME:
    raise AttributeError(f"module 'segflax' has no attribute {name!r}")
  return getattr(importlib.import_module(_HOME[name]), name)
