"""Tiny records and streams over them; test helpers."""

import io
import itertools

import numpy as np
from PIL import Image

from segflax.data.eval_stream import make_eval_stream
from segflax.data.prompts import PromptSet
from segflax.data.train_stream import make_train_stream

N, SIZE = 21, 32
PROMPTS = PromptSet.create(["crack", "taping area"])


def png(array: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, "PNG")
  return buffer.getvalue()


def record(number: int, concepts=("crack", "taping area"), height=20, width=28) -> dict:
  """A picture whose colour is its number, with half of it masked, another half per concept."""
  image = np.full((height, width, 3), number, np.uint8)
  masks = []
  for concept in concepts:
    mask = np.zeros((height, width), np.uint8)
    half = (slice(height // 2),) if concept == "crack" else (slice(None), slice(width // 2))
    mask[half] = 255
    masks.append(png(mask))
  return {
    "image": png(image),
    "masks": masks,
    "concepts": list(concepts),
    "image_id": f"picture_{number}",
    "group": f"group_{number}",
    "source": "test",
    "height": height,
    "width": width,
  }


def records() -> list[dict]:
  return [record(number) for number in range(N)]


def train(records, **options):
  settings = {"batch_size": 8, "image_size": SIZE, "prompts": PROMPTS, "seed": 3} | options
  return make_train_stream(records, **settings)


def evaluation(records, **options):
  settings = {"batch_size": 8, "image_size": SIZE, "prompts": PROMPTS} | options
  return make_eval_stream(records, **settings)


def take(stream, n: int) -> list[dict]:
  return list(itertools.islice(stream, n))


def assert_same(batches, others):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name], err_msg=name)
