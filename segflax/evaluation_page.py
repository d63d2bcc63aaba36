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


def metric_table(content: Mapping, name: str) -> str:
  """Returns the metrics at one threshold: a line per prompt and one for all."""
  found = content["metrics"][name]
  groups = dict(found["per_prompt"])
  if len(groups) > 1:
    groups |= {"all prompts": found["overall"]}
  fitted = content["thresholds"][name]
  lines = []
  for group, values in groups.items():
    threshold = fitted.get(group) if isinstance(fitted, dict) else fitted
    row = {"prompt": group, "threshold": threshold} | {m: values[m] for m in SHOWN}
    row["IoU, 95 %"] = interval_text(content["intervals"][name].get(group))
    lines.append(row)
  return html.table(lines, ["prompt", "threshold", "iou", "IoU, 95 %", *SHOWN[1:]])


def interval_text(intervals: Mapping | None) -> str | None:
  """Returns "0.61 to 0.67" of the IoU; None where there is nothing to say."""
  if intervals is None or intervals["iou"]["low"] is None:
    return None
  return f"{intervals['iou']['low']:.3f} to {intervals['iou']['high']:.3f}"


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
  names = list(content["metrics"])
  main = names[-1]
  warnings = [html.paragraph(sentence, "warning") for sentence in content["suspicions"]]
  tables = []
  for name in names:
    fitted = f"fitted on {content['thresholds_fitted_on']}" if name == "fitted" else "0.5"
    tables += [html.paragraph(f"Threshold {fitted}:"), metric_table(content, name)]
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
    html.section("Metrics", *tables),
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
