"""One stored record becomes one row of a batch: decoded, fitted to the network, asked prompts."""

import numpy as np

from segflax.data.decode import load_image, load_mask
from segflax.data.prompts import PromptSet
from segflax.data.resize import fit_image, fit_mask
from segflax.errors import UserError

Row = dict[str, np.ndarray]


class Unreadable(UserError):
  """A stored picture or mask that cannot be decoded."""


def train_row(
  record: dict,
  rng: np.random.Generator,
  prompts: PromptSet,
  *,
  slots: int,
  negative_probability: float,
  image_size: int,
  images: bool = True,
) -> Row:
  """Returns the picture with up to `slots` of its concepts, drawn, and a drawn prompt for each.

  With `negative_probability` one slot (a free one, or the last) asks for a concept that the
  record says nothing of. Only the masks that are asked for are decoded; without `images` no
  picture is.

  Raises:
    Unreadable: naming the picture.
  """
  known = [prompts.number(concept) for concept in record["concepts"]]
  unknown = [c for c in range(len(prompts.concepts)) if c not in known]
  asked = rng.permutation(known).astype(int).tolist()
  # Both are drawn always: what comes after does not depend on whether there was a choice.
  draw, pick = rng.random(2)
  if unknown and draw < negative_probability:
    asked[min(len(asked), slots - 1) :] = [unknown[int(pick * len(unknown))]]
  row = empty_train_row(slots, image_size, -1, images=False)
  for slot, concept in enumerate(asked[:slots]):
    if concept in known:
      content = record["masks"][known.index(concept)]
      row["mask"][slot] = fit_mask(_decode(load_mask, content, record), image_size)
    row["prompt"][slot] = rng.choice(prompts.of_concept(concept))
    row["valid"][slot] = True
  if images:
    image = _decode(load_image, record["image"], record, at_least=image_size)
    row["image"] = fit_image(image, image_size)
  return row


def empty_train_row(slots: int, image_size: int, index: int, images: bool = True) -> Row:
  """Returns a row of which nothing is valid."""
  image = {"image": np.zeros((image_size, image_size, 3), np.uint8)} if images else {}
  return image | {
    "mask": np.zeros((slots, image_size, image_size), np.uint8),
    "prompt": np.zeros(slots, np.int32),
    "valid": np.zeros(slots, bool),
    "key": np.zeros(2, np.uint32),
    "index": np.int32(index),
  }


def eval_row(record: dict, prompts: PromptSet, canvas: tuple[int, int], image_size: int) -> Row:
  """Returns the picture with the masks of all concepts at their own size.

  Raises:
    Unreadable: naming the picture.
  """
  image = _decode(load_image, record["image"], record)
  row = empty_eval_row(len(prompts.concepts), canvas, image_size, -1)
  for concept, content in zip(record["concepts"], record["masks"], strict=True):
    mask = np.asarray(_decode(load_mask, content, record))
    number = prompts.number(concept)
    row["mask"][number, : mask.shape[0], : mask.shape[1]] = mask > 0
    row["known"][number] = True
  row["image"] = fit_image(image, image_size)
  row["size"] = np.array([image.height, image.width], np.int32)
  row["valid"] = np.bool_(True)
  return row


def empty_eval_row(concepts: int, canvas: tuple[int, int], image_size: int, index: int) -> Row:
  """Returns a row of which nothing is valid."""
  return {
    "image": np.zeros((image_size, image_size, 3), np.uint8),
    "mask": np.zeros((concepts, *canvas), np.uint8),
    "known": np.zeros(concepts, bool),
    "size": np.ones(2, np.int32),  # Not 0: nothing downstream should divide by it.
    "valid": np.bool_(False),
    "index": np.int32(index),
  }


def _decode(load, content: bytes, record: dict, **options):
  try:
    return load(content, name=record["image_id"], **options)
  except UserError as error:
    raise Unreadable(str(error)) from error
