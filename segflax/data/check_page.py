"""The check as one HTML page: tables, histograms and overlays to look at, no other file.

Everything that was found stands in it; long lists are folded.
"""

import base64
import html
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from segflax.data.check import ERROR, INFO, WARNING, Report
from segflax.data.check_report import counts
from segflax.data.items import Item
from segflax.data.survey import Look
from segflax.errors import UserError

_VIEW = 220  # pixels, longer side of an overlay
_SAMPLES = 8  # overlays per source, split and concept
_LISTED = 12  # findings of a kind that are not folded
_SHOWN = 6  # overlays per kind of finding
_COLOURS = ((230, 57, 70), (29, 132, 181), (255, 183, 3), (106, 76, 147))  # then again from first
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff } h2 { margin-top: 2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse } td, th { padding: .25em .8em; text-align: right;
  border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: 0 .5em .8em 0; vertical-align: top; width: 220px }
figcaption { font-size: 11px; overflow-wrap: anywhere; color: #555 } figure img { display: block }
.error { color: #b00020 } .warning { color: #8a5a00 } .info { color: #446 }
.key { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em; vertical-align: -2px }
ul { overflow-wrap: anywhere }
svg { margin-right: 2em } svg text { font: 11px system-ui, sans-serif; fill: #444 }
"""


def page(report: Report, seed: int = 0) -> str:
  """Returns the page.

  Args:
    report: From `check`.
    seed: Chooses the samples.
  """
  parts = [
    f"<h1>Data check</h1><p>{len(report.items)} pictures; "
    f"<b class=error>{report.count(ERROR)} errors</b>, "
    f"<b class=warning>{report.count(WARNING)} warnings</b>, "
    f"<b class=info>{report.count(INFO)} remarks</b></p>",
    _legend(report),
    "<h2>Counts</h2>",
    _table(counts(report)),
    "<h2>Findings</h2>",
    *_findings(report),
    "<h2>Masks</h2>",
    *_histograms(report),
    "<h2>Samples</h2>",
    *_samples(report, seed),
  ]
  body = "\n".join(parts)
  return (
    "<!doctype html><html lang=en><meta charset=utf-8><title>Data check</title>"
    f"<style>{_STYLE}</style><body>{body}</body></html>\n"
  )


def colours(report: Report) -> dict[str, tuple[int, int, int]]:
  """Returns the colour of each concept: the same in all overlays of the page."""
  return {c: _COLOURS[n % len(_COLOURS)] for n, c in enumerate(report.concepts)}


def overlay(item: Item, look: Look, colour_of: Mapping[str, tuple]) -> Image.Image | None:
  """Returns a small picture with its masks laid over it; None where it cannot be read."""
  try:
    picture = item.picture(at_least=_VIEW)
    picture.thumbnail((_VIEW, _VIEW))
    masks = {c: m for c, m in item.masks().items() if c in look.masks}
  except UserError:
    return None
  pixels = np.asarray(picture, np.float32)
  for concept, mask in masks.items():
    small = np.asarray(mask.resize(picture.size, Image.Resampling.BOX), np.float32)[..., None]
    # Twice the coverage: a crack thinner than a pixel of the thumbnail stays visible.
    alpha = 0.6 * np.minimum(2 * small / 255, 1)
    pixels = pixels * (1 - alpha) + np.array(colour_of[concept], np.float32) * alpha
  return Image.fromarray(pixels.astype(np.uint8))


def _findings(report: Report) -> list[str]:
  if not report.findings:
    return ["<p>Nothing to mend.</p>"]
  parts = []
  for kind, of in report.kinds().items():
    parts.append(f'<h3 class="{of[0].level}">{html.escape(kind)} ({len(of)})</h3><ul>')
    lines = [f"<li>{html.escape(finding.message)}</li>" for finding in of]
    parts += [*lines[:_LISTED], "</ul>"]
    if rest := lines[_LISTED:]:
      parts += [f"<details><summary>and {len(rest)} more</summary><ul>", *rest, "</ul></details>"]
    numbers = list(dict.fromkeys(number for finding in of for number in finding.items))
    parts.append(_figures(report, numbers[:_SHOWN]))
  return parts


def _samples(report: Report, seed: int) -> list[str]:
  of = defaultdict(list)
  for number, item in enumerate(report.items):
    for concept in item.concepts:
      of[item.source, item.split or "-", concept].append(number)
  rng = np.random.default_rng(seed)
  parts = []
  for (source, split, concept), numbers in of.items():
    parts.append(f"<h3>{html.escape(f'{source}, {split}, {concept}')}</h3>")
    parts.append(_figures(report, sorted(rng.permutation(numbers)[:_SAMPLES].tolist())))
  return parts


def _legend(report: Report) -> str:
  keys = [
    f'<span class=key style="background: rgb{colour}"></span>{html.escape(concept)}'
    for concept, colour in colours(report).items()
  ]
  return f"<p>Masks:{''.join(keys)}</p>"


def _figures(report: Report, numbers: Sequence[int]) -> str:
  colour_of = colours(report)
  figures = []
  for number in numbers:
    item, look = report.items[number], report.looks[number]
    if (picture := overlay(item, look, colour_of)) is None:
      continue
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    areas = ", ".join(f"{concept} {mask.area:.1%}" for concept, mask in look.masks.items())
    caption = f"{item.image_id} ({item.split or 'no split'}): {areas}"
    figures.append(
      f'<figure><img src="{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
  return "".join(figures)


def _histograms(report: Report) -> list[str]:
  parts = []
  for concept in dict.fromkeys(concept for look in report.looks for concept in look.masks):
    masks = [look.masks[concept] for look in report.looks if concept in look.masks]
    drawn = [mask for mask in masks if mask.area]
    parts.append(f"<h3>{html.escape(concept)}</h3>")
    area = [100 * mask.area for mask in drawn]
    parts.append(
      _histogram(area, "share of the picture, %", (0, 0.5, 1, 2, 5, 10, 20, 40, 60, 100))
    )
    thickness = [mask.thickness for mask in drawn]
    parts.append(_histogram(thickness, "thickness, pixels", (0, 2, 4, 8, 16, 32, 64, 128, 1e9)))
  return parts


def _histogram(values: Sequence[float], label: str, edges: Sequence[float]) -> str:
  heights, _ = np.histogram(values, edges)
  step, tall = 44, 90
  bars = []
  for i, count in enumerate(heights):
    height = tall * count / max(heights.max(), 1)
    x = i * step
    bars.append(
      f'<rect x="{x}" y="{14 + tall - height:.1f}" width="{step - 4}" height="{height:.1f}" '
      f'fill="#4c78a8"/><text x="{x}" y="{10 + tall - height:.1f}">{count or ""}</text>'
      f'<text x="{x}" y="{tall + 28}">≥{edges[i]:g}</text>'
    )
  return (
    f'<svg width="{step * len(heights)}" height="{tall + 50}">{"".join(bars)}'
    f'<text x="0" y="{tall + 46}">{html.escape(label)}</text></svg>'
  )


def _table(rows: Sequence[tuple]) -> str:
  cells = [
    "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in row)
    for row, tag in zip(rows, ["th"] + ["td"] * len(rows), strict=False)
  ]
  return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
