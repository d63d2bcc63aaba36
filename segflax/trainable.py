"""Names for what is trained: patterns over parameter paths such as `decoder/film/mul/bias`."""

import re

from segflax.errors import UserError

# The vision tower's patch embedding to its last tap, and all that the mask depends on besides.
# What no gradient reaches (the pooled embedding's head, blocks after the last tap, logit_scale) is
# in no preset: weight decay would wear it down.
_DECODER = r"decoder/.*"
PRESETS = ("decoder", "decoder_norms", "vision_last_K", "everything", "lora")


def trainable_regex(name: str, *, vision_blocks: int) -> str:
  """Returns the pattern that a whole path must match to be trained.

  Args:
    name: a preset, or a regular expression over paths, which is returned as it is. Presets are
      `decoder`; `decoder_norms`, with the LayerNorms of the vision tower; `vision_last_K`, with
      the last K vision blocks that run; `everything` that the mask depends on; `lora`, the decoder
      and the low-rank factors that `segflax.lora` adds to the towers' blocks that run.
    vision_blocks: blocks of the vision tower that run: the last tap + 1.

  Raises:
    UserError: the name is a plain word but no preset, or K is not in 1..vision_blocks.
  """
  run = "|".join(str(i) for i in range(vision_blocks))
  last = re.fullmatch(r"vision_last_(\d+)", name)
  if last:
    count = int(last.group(1))
    if not 1 <= count <= vision_blocks:
      raise UserError(
        f"trainable {name!r} asks for {count} blocks, but {vision_blocks} vision blocks run; "
        f"use vision_last_1 to vision_last_{vision_blocks}"
      )
    blocks = "|".join(str(i) for i in range(vision_blocks - count, vision_blocks))
    return rf"{_DECODER}|vision/blocks_({blocks})/.*"
  presets = {
    "decoder": _DECODER,
    "decoder_norms": rf"{_DECODER}|vision/(pre_norm|blocks_({run})/norm[12])/.*",
    "everything": (
      rf"{_DECODER}|text/.*|vision/(blocks_({run})|pre_norm|patch_embedding)/.*"
      r"|vision/(class|position)_embedding"
    ),
    "lora": rf"{_DECODER}|(vision/blocks_({run})|text)/.*/lora_[ab]",
  }
  if name in presets:
    return presets[name]
  if re.fullmatch(r"\w+", name):  # A path has a slash: this can only be a misspelt preset.
    raise UserError(
      f"trainable {name!r} is unknown; available: {', '.join(PRESETS)}, or a regular expression "
      "over parameter paths such as 'decoder/.*'"
    )
  return name
