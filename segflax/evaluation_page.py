"""The page of one evaluation, for scripts/evaluate.py and scripts/report.py."""

import io
from collections.abc import Mapping, Sequence

from PIL import Image

from segflax import html, visualize

SHOWN = (
  "iou",
  "dice",
  "pixel_accuracy",
  "iou_fg",
  "iou_global",
  "dice_global",
  "miou_2c",
  "f1@2px",
  "f1@5px",
  "cldice",
  "ap",
  "empty_fp_rate",
  "empty_fp_area",
  "predicted_area",
  "truth_area",
  "wrong_prompt_iou",
  "prompt_overlap",
  "truth_overlap",
  "synonym_agreement",
)
# Pixels are not ranked per width, and a truth that has a width is not empty.
NOT_BY_WIDTH = ("ap", "empty_fp_rate", "empty_fp_area")
TITLES = {
  "example": "Examples, evenly spread over the split",
  "worst": "Worst pictures",
  "wrong concept": "Prompts that fire on another concept",
  "false alarms": "False alarms on pictures that have nothing to find",
}


def jpeg(picture: Image.Image) -> bytes:
  """Returns an encoded picture."""
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=88)
  return buffer.getvalue()


def figures(items: Sequence[tuple[str, str, Image.Image]]) -> str:
  """Returns panels one below the other, with their names."""
  return html.gallery(
    [
      html.image(jpeg(panel), f"{image_id}: {caption}", media="image/jpeg")
      for image_id, caption, panel in items
    ],
    wide=True,
  )


def metric_table(content: Mapping) -> str:
  """Returns a line per metric, and a column per prompt and threshold; intervals in brackets."""
  columns = {}
  for name, found in content["metrics"].items():
    at, limits = content["thresholds"][name], content["intervals"][name]
    for prompt, values in found["per_prompt"].items():
      level = at[prompt] if isinstance(at, Mapping) else at
      columns[f"{prompt}, above {level:g}"] = cells(values, limits["per_prompt"][prompt])
    if len(found["per_prompt"]) > 1:
      column = f"all, {'fitted' if isinstance(at, Mapping) else f'above {at:g}'}"
      columns[column] = cells(found["overall"], limits["overall"])
  return html.table(
    [{"metric": m} | {column: each.get(m) for column, each in columns.items()} for m in SHOWN]
  )


def cells(values: Mapping, limits: Mapping) -> dict[str, object]:
  """Returns metric -> "0.612 (0.58 to 0.64)"; None where there is nothing to say."""
  found = {}
  for metric, value in values.items():
    interval = limits.get(metric)
    if value is None or interval is None or interval["low"] is None:
      found[metric] = value
    else:
      found[metric] = f"{value:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
  return found


def threshold_words(content: Mapping, name: str) -> str:
  """Returns "0.5" or "fitted on val (0.3, 0.44)"."""
  at = content["thresholds"][name]
  if not isinstance(at, Mapping):
    return f"{at:g}"
  levels = ", ".join(f"{value:g}" for value in at.values())
  return f"fitted on {content['thresholds_fitted_on']} ({levels})"


def breakdown(groups: Mapping[str, Mapping], title: str) -> str:
  """Returns a table with a line per group; nothing for a single group."""
  if len(groups) < 2:
    return ""
  rows = [{title: name} | {m: values[m] for m in SHOWN} for name, values in groups.items()]
  return html.table(rows)


def widths(content: Mapping, name: str) -> list[str]:
  """Returns per prompt a table by the width of its truth, where there are several widths."""
  parts = []
  for prompt, bins in content["metrics"][name]["by_width"].items():
    shown = ("pictures", *(metric for metric in SHOWN if metric not in NOT_BY_WIDTH))
    rows = [{"width of the truth": w} | {m: v[m] for m in shown} for w, v in bins.items()]
    if rows:
      parts += [html.paragraph(prompt), html.table(rows)]
  return parts


def confusion(content: Mapping) -> list[str]:
  """Returns the tables of what is taken for what."""
  found = content["confusion"]
  pixels = [{"prompt": p} | values for p, values in found["pixels"].items()]
  pictures = [{"prompt": p} | values for p, values in found["pictures"].items()]
  marked = [
    {"prompt": p} | {f"in the truth of {c}": share for c, share in values.items()}
    for p, values in found["marked"].items()
  ]
  return [
    html.paragraph(f"Threshold: {threshold_words(content, found['threshold'])}.", "note"),
    html.paragraph("Pictures:"),
    html.table(pictures),
    html.paragraph("Pixels:"),
    html.table(pixels),
    html.paragraph("Of the pixels that a prompt marks, the share that lies in each truth:"),
    html.table(marked),
  ]


def page(content: Mapping, drawn: Mapping[str, Mapping[str, Sequence]]) -> str:
  """Returns the whole page.

  Args:
    content: of evaluation.json.
    drawn: kind of TITLES -> prompt -> [(image id, caption, panel)].
  """
  main = list(content["metrics"])[-1]
  warnings = [html.paragraph(sentence, "warning") for sentence in content["suspicions"]]
  at = html.paragraph(f"Threshold: {threshold_words(content, main)}.", "note")
  groups = [
    breakdown(content["metrics"][main]["per_concept"], "concept"),
    breakdown(content["metrics"][main]["per_source"], "data set"),
  ]
  by_width = widths(content, main)
  galleries = []
  for kind, prompts in drawn.items():
    parts = []
    for prompt, items in prompts.items():
      if items:
        parts += [html.paragraph(f"“{prompt}”"), figures(items)]
    head = [html.legend(visualize.LEGEND), at] if parts else []
    galleries.append(html.section(TITLES[kind], *head, *parts))
  definitions = [{"metric": n, "definition": t} for n, t in content["definitions"].items()]
  return html.page(
    f"{content['model']} on {content['split']}",
    html.paragraph(f"{content['pictures']} pictures of {content['data_dir']}", "note"),
    html.section("Suspicions", *warnings),
    html.section(
      "Metrics",
      metric_table(content),
      html.paragraph(
        "In brackets: 95 % of the bootstrap over pictures, which it treats as independent; crops "
        "and copies of one wall are not, and make the intervals too narrow. "
        "miou_2c and ap have none.",
        "note",
      ),
    ),
    html.section("Per concept and data set", *([at] if any(groups) else []), *groups),
    html.section("By width", *([at] if by_width else []), *by_width),
    html.section("What is taken for what", *confusion(content)),
    html.section(
      "As the CLIPSeg paper measures",
      html.table([content["clipseg"]]),
      html.paragraph("Over the thresholds 0.02 to 0.98; the best is of this split.", "note"),
    ),
    html.section("How pictures reach the network", html.table([content["geometry"]])),
    html.section("Footprint", html.table([content["footprint"]])),
    *galleries,
    html.section("Definitions", html.table(definitions)),
  )
