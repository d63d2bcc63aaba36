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
  "wrong_prompt_iou",
  "prompt_overlap",
  "truth_overlap",
)
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
  """Returns a line per metric, and a column per prompt and threshold."""
  columns = {}
  for name, found in content["metrics"].items():
    at = content["thresholds"][name]
    for prompt, values in found["per_prompt"].items():
      level = at[prompt] if isinstance(at, Mapping) else at
      columns[f"{prompt}, above {level:g}"] = values | {
        "iou, 95 %": interval_text(content["intervals"][name][prompt])
      }
    if len(found["per_prompt"]) > 1:
      columns[f"all, {'fitted' if isinstance(at, Mapping) else f'above {at:g}'}"] = found["overall"]
  lines = [
    {"metric": metric} | {column: values.get(metric) for column, values in columns.items()}
    for metric in ("iou", "iou, 95 %", *SHOWN[1:])
  ]
  return html.table(lines)


def interval_text(intervals: Mapping) -> str | None:
  """Returns "0.61 to 0.67" of the IoU; None where there is nothing to say."""
  iou = intervals["iou"]
  return None if iou["low"] is None else f"{iou['low']:.3f} to {iou['high']:.3f}"


def breakdown(groups: Mapping[str, Mapping], title: str, metrics: Sequence[str]) -> str:
  """Returns a table with a line per group; nothing for a single group."""
  if len(groups) < 2:
    return ""
  rows = [{title: name} | {m: values[m] for m in metrics} for name, values in groups.items()]
  return html.table(rows)


def widths(content: Mapping, name: str) -> list[str]:
  """Returns per prompt a table by the width of its truth, where there are several widths."""
  parts = []
  for prompt, bins in content["metrics"][name]["by_width"].items():
    rows = [{"width of the truth": width} | values for width, values in bins.items()]
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
  fitted_on = content["thresholds_fitted_on"]
  some = ("iou", "dice", "iou_fg", "f1@2px", "cldice")
  galleries = []
  for kind, prompts in drawn.items():
    parts = []
    for prompt, items in prompts.items():
      if items:
        parts += [html.paragraph(f"“{prompt}”"), figures(items)]
    galleries.append(html.section(TITLES[kind], html.legend(visualize.LEGEND) if parts else "",
                                  *parts))  # fmt: skip
  definitions = [{"metric": n, "definition": t} for n, t in content["definitions"].items()]
  return html.page(
    f"{content['model']} on {content['split']}",
    html.paragraph(f"{content['pictures']} pictures of {content['data_dir']}", "note"),
    html.section("Suspicions", *warnings),
    html.section(
      "Metrics",
      metric_table(content),
      html.paragraph(f"Thresholds other than 0.5 were fitted on {fitted_on}.", "note")
      if fitted_on
      else "",
    ),
    html.section(
      "Per concept and data set",
      breakdown(content["metrics"][main]["per_concept"], "concept", some),
      breakdown(content["metrics"][main]["per_source"], "data set", some),
    ),
    html.section("By width", *widths(content, main)),
    html.section("What is taken for what", *confusion(content)),
    html.section("As the CLIPSeg paper measures", html.table([content["clipseg"]])),
    html.section("Footprint", html.table([content["footprint"]])),
    *galleries,
    html.section("Definitions", html.table(definitions)),
  )
