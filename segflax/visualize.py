"""Overlays and panels for people, in NumPy and Pillow."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "h w 3"]
Mask = np.ndarray  # [h w], foreground where not zero

# Told apart also by people who confuse red and green (Okabe and Ito 2008).
TRUE_POSITIVE = (0, 158, 115)
FALSE_POSITIVE = (213, 94, 0)
FALSE_NEGATIVE = (0, 114, 178)
PREDICTION = (240, 228, 66)
LEGEND = {
  "found": TRUE_POSITIVE,
  "false alarm": FALSE_POSITIVE,
  "missed": FALSE_NEGATIVE,
  "marked, truth unknown": PREDICTION,
}
_CAPTION = 18  # pixels
_GAP = 4


def _check(image: Picture, *masks: Mask):
  for mask in masks:
    if mask.shape != image.shape[:2]:
      raise ValueError(f"a mask of shape {mask.shape} does not fit a picture of {image.shape[:2]}")


def paint(image: Picture, mask: Mask, color: tuple[int, int, int], opacity: float = 0.6) -> Picture:
  """Lays a colour over the foreground of a mask."""
  _check(image, mask)
  out = image.astype(np.float32)
  chosen = np.asarray(mask) > 0
  out[chosen] = (1 - opacity) * out[chosen] + opacity * np.asarray(color, np.float32)
  return np.rint(out).astype(np.uint8)


def overlay(
  image: Picture, prediction: Mask, truth: Mask | None = None, opacity: float = 0.6
) -> Picture:
  """Paints a prediction: found, false alarm and missed where the truth is given.

  Args:
    image: the picture.
    prediction: mask of the model.
    truth: mask to compare with, or None.
    opacity: of the colours, in [0, 1].

  Returns:
    A new picture; colours in LEGEND.
  """
  if truth is None:
    return paint(image, prediction, PREDICTION, opacity)
  _check(image, prediction, truth)
  p, t = np.asarray(prediction) > 0, np.asarray(truth) > 0
  out = paint(image, p & t, TRUE_POSITIVE, opacity)
  out = paint(out, p & ~t, FALSE_POSITIVE, opacity)
  return paint(out, ~p & t, FALSE_NEGATIVE, opacity)


def as_picture(values: np.ndarray) -> Picture:
  """Returns a mask (bool, or {0, 255}) or a probability map (float in [0, 1]) as grey picture."""
  values = np.asarray(values)
  if values.dtype == bool or np.issubdtype(values.dtype, np.floating):
    values = np.rint(np.clip(values, 0, 1) * 255)
  return np.repeat(values.astype(np.uint8)[..., None], 3, -1)


def grid(rows: Sequence[Sequence[Picture]], captions: Sequence[Sequence[str]]) -> Image.Image:
  """Sets pictures of one size in rows, each with a caption above it."""
  height, width = rows[0][0].shape[:2]
  columns = max(len(row) for row in rows)
  cell = (width + _GAP, height + _CAPTION + _GAP)
  sheet = Image.new("RGB", (columns * cell[0] + _GAP, len(rows) * cell[1] + _GAP), "white")
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
  for y, (row, texts) in enumerate(zip(rows, captions, strict=True)):
    for x, (picture, text) in enumerate(zip(row, texts, strict=True)):
      left, top = _GAP + x * cell[0], _GAP + y * cell[1]
      while text and draw.textlength(text, font=font) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
      draw.text((left, top), text, fill="black", font=font)
      sheet.paste(Image.fromarray(picture), (left, top + _CAPTION))
  return sheet


def panel(
  image: Picture,
  predictions: Mapping[str, np.ndarray],
  truths: Mapping[str, Mask] | None = None,
  *,
  threshold: float = 0.5,
  notes: Mapping[str, str] | None = None,
  cell: tuple[int, int] = (160, 640),
) -> Image.Image:
  """One row per prompt: picture, truth (where known), prediction, overlay.

  Args:
    image: the picture.
    predictions: prompt -> probability (float) or mask, of the picture's size.
    truths: prompt -> mask; a prompt may be missing.
    threshold: what makes a probability foreground.
    notes: prompt -> what to add to the caption of the overlay, for example its IoU.
    cell: pixels that the longer side of a picture has at least (so that a prompt fits above it)
      and at most.

  Returns:
    The panel as a picture.
  """
  truths, notes = truths or {}, notes or {}
  side = max(image.shape[:2])
  scale = min(max(side, cell[0]), cell[1]) / side
  size = tuple(max(1, round(n * scale)) for n in image.shape[1::-1])

  # Enlarged pixels stay square: what the model did to each is the point of looking.
  method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC

  def fit(picture):
    return picture if scale == 1 else np.asarray(Image.fromarray(picture).resize(size, method))

  rows, captions = [], []
  for prompt, values in predictions.items():
    values = np.asarray(values)
    floats = np.issubdtype(values.dtype, np.floating)
    mask = values > threshold if floats else values > 0
    truth = truths.get(prompt)
    cells = {prompt: image}
    if truths:  # A blank cell keeps the columns in line.
      known = truth is not None
      cells["truth" if known else "truth unknown"] = (
        as_picture(np.asarray(truth) > 0) if known else np.full_like(image, 230)
      )
    cells["prediction"] = as_picture(values if floats else mask)
    note = f": {notes[prompt]}" if prompt in notes else ""
    cells["overlay" + note] = overlay(image, mask, truth)
    rows.append([fit(picture) for picture in cells.values()])
    captions.append(list(cells))
  return grid(rows, captions)
