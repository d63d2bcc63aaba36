"""The matrix FLOPs that CLIPSeg needs, counted by hand; a multiply-add is two.

What is counted is what has to be done: the tower as far as its last tap, prompts from a table, the
decoder per (picture, prompt) pair. A compiled step that needs more does something for nothing
(tests/test_flops.py), and a measured rate divided by a chip's peak is its share of that peak.
"""

from segflax.models.config import CLIPSegConfig


def _block(n: int, c: int, mlp: int) -> int:
  """A transformer layer over n tokens: four projections, scores and values, MLP."""
  return 2 * n * c * (4 * c + 2 * n + 2 * mlp)


def tower(config: CLIPSegConfig, size: int) -> int:
  """Returns the FLOPs of `encode_image` for one picture of `size` x `size` pixels."""
  patches = (size // config.patch_size) ** 2
  embed = 2 * patches * 3 * config.patch_size**2 * config.vision_width
  blocks = max(config.taps) + 1
  return embed + blocks * _block(patches + 1, config.vision_width, config.vision_mlp)


def _reduces(config: CLIPSegConfig, size: int) -> int:
  n = (size // config.patch_size) ** 2 + 1
  return len(config.taps) * 2 * n * config.vision_width * config.reduce_dim


def _film(config: CLIPSegConfig) -> int:
  return 2 * 2 * config.projection_dim * config.reduce_dim


def decoder(config: CLIPSegConfig, size: int, prompts: int = 1) -> int:
  """Returns the FLOPs of `decode` for one picture; taps are reduced once for all prompts."""
  grid = size // config.patch_size
  d, n = config.reduce_dim, grid**2 + 1
  block = _block(n, d, config.decoder_mlp)
  if config.refined:
    first, second = config.head
    half = d // 2
    head = 2 * grid**2 * (9 * d * d + d * first**2 * half + first**2 * half * second**2)
  else:
    head = 2 * grid**2 * d * config.head[0] ** 2
  # Layers before the conditioned one see the picture alone.
  alone = config.conditional_layer * block
  conditioned = (len(config.taps) - config.conditional_layer) * block
  return _reduces(config, size) + alone + prompts * (_film(config) + conditioned + head)


def decoder_step(config: CLIPSegConfig, size: int, prompts: int = 1) -> int:
  """Returns the FLOPs of one picture in a training step of the decoder with frozen towers.

  Backward is twice forward, but for what reads a constant: reduces and FiLM have no gradient to
  hand on.
  """
  forward = decoder(config, size, prompts)
  constant = _reduces(config, size) + prompts * _film(config)
  return tower(config, size) + 3 * forward - constant
