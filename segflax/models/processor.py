"""Prompts to tokens and pictures to pixels, equal to Hugging Face's CLIPSegProcessor."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image
from transformers import CLIPTokenizer

from segflax.errors import UserError
from segflax.models.clip_vision import IMAGE_MEAN, IMAGE_STD
from segflax.pictures import to_rgb, upright

MAX_TOKENS = 77  # positions of CLIP's text tower, start and end included
_START, _END = "<|startoftext|>", "<|endoftext|>"
_BILINEAR = 2  # PIL's number, as preprocessor_config.json has it


def _byte_symbols() -> list[str]:
  """Returns the printable symbol of each of the 256 bytes, as GPT-2's byte-level BPE has them."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in printable]
  symbol = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
  return [symbol[b] for b in (*printable, *rest)]


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
  """What stands before a CLIPSeg.

  Attributes:
    tokenizer: a CLIPTokenizer of transformers.
    image_size: px, side of the square that pictures are resized to.
  """

  tokenizer: CLIPTokenizer
  image_size: int = 352

  @classmethod
  def byte_level(cls, image_size: int = 352) -> "Processor":
    """Returns a processor whose 514 tokens are the bytes, those that end a word, start and end.

    It knows no merges and needs no download: a complete CLIP tokenizer for models from scratch.
    """
    symbols = _byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), _START, _END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)
    return cls(tokenizer, image_size)

  @classmethod
  def load(cls, folder: Path) -> "Processor":
    """Reads the tokenizer and image settings of a Hugging Face folder.

    Raises:
      UserError: there is no tokenizer, or pictures are prepared in a way CLIPSeg was not trained.
    """
    return cls(load_tokenizer(folder), _image_size(Path(folder)))

  def save(self, folder: Path):
    """Writes files that CLIPSegProcessor.from_pretrained reads."""
    folder = Path(folder)
    self.tokenizer.save_pretrained(folder)
    settings = {
      "do_normalize": True,
      "do_rescale": True,
      "do_resize": True,
      "image_mean": IMAGE_MEAN,
      "image_processor_type": "ViTImageProcessor",
      "image_std": IMAGE_STD,
      "processor_class": "CLIPSegProcessor",
      "resample": _BILINEAR,
      "rescale_factor": 1 / 255,
      "size": {"height": self.image_size, "width": self.image_size},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")

  def tokenize(self, prompts: Sequence[str]) -> Int32[np.ndarray, "P l"]:
    """Returns token ids, padded to the longest prompt with the padding token.

    Raises:
      UserError: no prompt, an empty one, one of more than 77 tokens, or one with symbols that the
        vocabulary lacks.
    """
    prompts = list(prompts)
    if not prompts:
      raise UserError("there is no prompt; give at least one, such as 'segment crack'")
    for prompt in prompts:
      if not prompt.strip():
        raise UserError(f"prompt {prompt!r} is empty; name what to segment")
    rows = self.tokenizer(prompts, padding=False, truncation=False, verbose=False)["input_ids"]
    for prompt, row in zip(prompts, rows, strict=True):
      if len(row) > MAX_TOKENS:
        raise UserError(
          f"prompt {prompt[:40]!r}… has {len(row)} tokens, CLIP reads {MAX_TOKENS}; shorten it"
        )
      # CLIP's unknown token is its end token: the text tower would stop reading there.
      if self.tokenizer.eos_token_id in row[1:-1]:
        raise UserError(f"prompt {prompt!r} has symbols that the vocabulary lacks; reword it")
    length = max(map(len, rows))
    pad = self.tokenizer.pad_token_id
    return np.array([row + [pad] * (length - len(row)) for row in rows], np.int32)

  def pixels(self, image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """Resizes a picture as CLIPSegProcessor does; `normalize` is the rest of its work.

    Args:
      image: of any mode and orientation. An opened file is shown upright, 16 bits are scaled to 8
        and transparent parts are laid on white; transformers' processor does neither.

    Raises:
      UserError: its values have more than 16 bits.
    """
    if isinstance(image, np.ndarray):
      image = Image.fromarray(image)
    name = getattr(image, "filename", "") or "picture in memory"
    size = (self.image_size, self.image_size)
    return np.asarray(to_rgb(upright(image), name).resize(size, Image.Resampling.BILINEAR))


def load_tokenizer(folder: Path) -> CLIPTokenizer:
  """Reads the tokenizer of a Hugging Face folder.

  Raises:
    UserError: there is none, or it is damaged.
  """
  folder = Path(folder)
  if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
    raise UserError(f"{folder} has no tokenizer.json or vocab.json; fetch the tokenizer's files")
  try:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
  except (OSError, ValueError) as error:
    raise UserError(f"the tokenizer in {folder} cannot be read ({error})") from error


def read_json(path: Path) -> dict:
  """Reads a JSON file; UserError names it where it is damaged."""
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is damaged ({error}); fetch it again") from error


def _image_size(folder: Path) -> int:
  """Returns the picture size of a folder; 352, the paper's, where a folder does not say."""
  path, nested = folder / "preprocessor_config.json", folder / "processor_config.json"
  settings = {}
  if path.exists():
    settings = read_json(path)
  elif nested.exists():
    settings = read_json(nested)
    if "image_processor" in settings:
      settings = settings["image_processor"]
  for name, ours in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)):
    if name in settings and not np.allclose(settings[name], ours):
      raise UserError(
        f"{folder} normalises with {name} {settings[name]}, CLIPSeg with ImageNet's {list(ours)}; "
        "retrain it, or correct preprocessor_config.json if that is wrong"
      )
  if "size" not in settings:
    return 352
  size = settings["size"]
  sides = set(size.values()) if isinstance(size, dict) else {size}
  if len(sides) != 1:
    raise UserError(f"{folder} resizes pictures to {size}; segflax needs height equal to width")
  return sides.pop()
