"""Pages that stand alone: one file, nothing loaded from elsewhere, readable in light and dark."""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Okabe and Ito 2008: told apart by everybody.
# From the ninth curve on they come again, dashed.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7a00", "#777777")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #009e7333; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; max-width: 100%; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { background: var(--soft); vertical-align: bottom; }
td.best { background: var(--good); font-weight: 600; }
.charts, .gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; max-width: 20rem; overflow-wrap: anywhere; }
.gallery img { max-width: 100%; width: 20rem; height: auto; display: block; }
.wide img { width: 100%; }
.warning { border-left: 4px solid #d55e00; padding: .4rem .8rem; background: #d55e0018;
  margin: .5rem 0; }
.note { opacity: .75; font-size: .9rem; }
.swatch { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
.line { display: inline-block; width: 1.6em; vertical-align: middle; margin: 0 .3em 0 1em; }
svg text { fill: currentColor; font: 11px system-ui, sans-serif; }
"""


def escape(text: object) -> str:
  """Returns text that is safe inside an element or a quoted attribute."""
  return html.escape(str(text))


def page(title: str, *parts: str) -> str:
  """Returns a whole document."""
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
  )


def section(title: str, *parts: str) -> str:
  """Returns a heading and what belongs to it; nothing where there are no parts."""
  return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts) if any(parts) else ""


def paragraph(text: str, kind: str = "") -> str:
  """Returns a paragraph of plain text; kind: "", "note" or "warning"."""
  return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def number(value: object) -> str:
  """Returns a cell's text: four significant digits, a dash where there is nothing."""
  if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
    return "-"
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(
  rows: Sequence[Mapping[str, object]],
  columns: Sequence[str] | None = None,
  best: Mapping[str, object] | None = None,
) -> str:
  """Returns a table.

  Args:
    rows: column -> value; a value may be missing.
    columns: their order; that of the first row by default.
    best: column -> the value that is marked.
  """
  if not rows:
    return ""
  columns, best = list(columns or rows[0]), best or {}
  lines = ["<table>", "<tr>" + "".join(f"<th>{escape(c)}</th>" for c in columns) + "</tr>"]
  for row in rows:
    cells = []
    for column in columns:
      value = row.get(column)
      kinds = ["number"] if isinstance(value, int | float) and not isinstance(value, bool) else []
      if value is not None and column in best and best[column] == value:
        kinds.append("best")
      name = f' class="{" ".join(kinds)}"' if kinds else ""
      cells.append(f"<td{name}>{escape(number(value))}</td>")
    lines.append("<tr>" + "".join(cells) + "</tr>")
  return "\n".join([*lines, "</table>"])


def image(data: bytes | Path, caption: str = "", media: str = "image/png") -> str:
  """Returns a figure with the picture inside the page."""
  if isinstance(data, Path):
    media = "image/jpeg" if data.suffix.lower() in (".jpg", ".jpeg") else media
    data = data.read_bytes()
  source = f"data:{media};base64,{base64.b64encode(data).decode()}"
  text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
  return f'<figure><img src="{source}" alt="{escape(caption)}">{text}</figure>'


def gallery(figures: Iterable[str], wide: bool = False) -> str:
  """Returns figures side by side, or one below the other if `wide`."""
  figures = list(figures)
  kind = "gallery wide" if wide else "gallery"
  return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


def dashed(index: int) -> bool:
  """Whether the curve of this number is dashed, because another has its colour already."""
  return index >= len(COLORS)


def curve_legend(names: Sequence[str]) -> str:
  """Returns which curve is whose, for curves drawn in the order of `names`."""
  items = []
  for index, name in enumerate(names):
    style = "dashed" if dashed(index) else "solid"
    line = f"border-top: 3px {style} {COLORS[index % len(COLORS)]}"
    items.append(f'<span class="line" style="{line}"></span>{escape(name)}')
  return f'<p class="note">{"".join(items)}</p>'


def legend(colors: Mapping[str, tuple[int, int, int] | str]) -> str:
  """Returns what the colours mean."""
  items = []
  for name, color in colors.items():
    color = color if isinstance(color, str) else "rgb({}, {}, {})".format(*color)
    items.append(f'<span class="swatch" style="background: {color}"></span>{escape(name)}')
  return f'<p class="note">{"".join(items)}</p>'


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
  """Round numbers between low and high."""
  raw = (high - low) / count
  power = 10 ** math.floor(math.log10(raw))
  step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
  first = math.ceil(low / step - 1e-9)
  return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
  title: str,
  curves: Mapping[str, Sequence[tuple[float, float | None]]],
  size: tuple[int, int] = (370, 230),
) -> str:
  """Returns an SVG line chart; a point whose value is None or not finite interrupts its curve."""
  width, height = size
  left, right, top, bottom = 58, 10, 24, 28
  finite = lambda y: y is not None and math.isfinite(y)  # noqa: E731
  points = [(x, y) for curve in curves.values() for x, y in curve if finite(y)]
  if not points:
    return ""
  x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
  y_low, y_high = min(y for _, y in points), max(y for _, y in points)
  x_high = x_high if x_high > x_low else x_low + 1
  margin = 0.05 * (y_high - y_low) or abs(y_high) * 0.1 or 1
  y_low, y_high = y_low - margin, y_high + margin
  to_x = lambda x: left + (x - x_low) / (x_high - x_low) * (width - left - right)  # noqa: E731
  to_y = lambda y: top + (y_high - y) / (y_high - y_low) * (height - top - bottom)  # noqa: E731
  parts = [
    f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(title)}">',
    f'<text x="{left}" y="14" font-weight="600">{escape(title)}</text>',
  ]
  for y in _ticks(y_low, y_high):
    parts.append(
      f'<line x1="{left}" x2="{width - right}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}" '
      f'stroke="currentColor" opacity=".15"/>'
      f'<text x="{left - 6}" y="{to_y(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>'
    )
  for x in _ticks(x_low, x_high):
    parts.append(f'<text x="{to_x(x):.1f}" y="{height - 10}" text-anchor="middle">{x:.4g}</text>')
  for index, (name, curve) in enumerate(curves.items()):
    color, dash = COLORS[index % len(COLORS)], ' stroke-dasharray="5 3"' if dashed(index) else ""
    path, pen = [], "M"
    for x, y in curve:
      if finite(y):
        path.append(f"{pen}{to_x(x):.1f} {to_y(y):.1f}")
        pen = "L"
      else:
        pen = "M"
    parts.append(
      f'<path d="{"".join(path)}" fill="none" stroke="{color}" stroke-width="1.8"{dash}>'
      f"<title>{escape(name)}</title></path>"
    )
    for x, y in curve:
      if finite(y):
        parts.append(
          f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.4" fill="{color}">'
          f"<title>{escape(name)}: {y:.4g} at {x:g}</title></circle>"
        )
  return "".join([*parts, "</svg>"])


def charts(figures: Iterable[str], names: Sequence[str] = ()) -> str:
  """Returns charts side by side under one legend for curves in the order of `names`."""
  key = curve_legend(names) if names else ""
  return key + f'<div class="charts">{"".join(figures)}</div>'
