"""The check in words and as JSON: for a terminal, and for programs."""

from collections import Counter, defaultdict

import numpy as np

from segflax.data.check import ERROR, LEVELS, Report

_SHOWN = 3  # findings of a kind that a terminal shows; the page and the JSON file have all


def counts(report: Report) -> list[tuple]:
  """Returns rows, the first of them the heading: one per source, split and concept."""
  of = defaultdict(list)
  for item, look in zip(report.items, report.looks, strict=True):
    for concept in item.concepts:
      of[item.source, item.split or "-", concept].append((item, look))
  rows = [("source", "split", "concept", "pictures", "groups", "empty", "boxes", "mask area")]
  for (source, split, concept), members in of.items():
    areas = [look.masks[concept].area for _, look in members if concept in look.masks]
    rows.append(
      (
        *(source, split, concept, len(members)),
        len({item.group for item, _ in members}),
        areas.count(0.0),
        sum(item.boxes[concept] for item, _ in members),
        f"{np.mean(areas):.2%}" if areas else "-",
      )
    )
  return rows


def text(report: Report) -> str:
  """Returns the findings for a terminal: kinds with their number and a few places."""
  lines = ["  ".join(str(value) for value in row) for row in counts(report)]
  kinds = report.kinds()
  folded = False
  for kind, of in kinds.items():
    lines.append(f"{of[0].level.upper()} {kind}: {len(of)}")
    lines += [f"  {finding.message}" for finding in of[:_SHOWN]]
    if len(of) > _SHOWN:
      lines.append(f"  and {len(of) - _SHOWN} more")
      folded = True
  errors = sum(of[0].level == ERROR for of in kinds.values())
  hint = "; --page and --json have all" if folded else ""
  lines.append(
    f"{report.count(ERROR)} errors of {errors} kinds, {len(report.findings)} findings in all{hint}"
  )
  return "\n".join(lines)


def as_json(report: Report) -> dict:
  """Returns everything that was found: sources, findings, and every picture with its masks."""
  levels = Counter(finding.level for finding in report.findings)
  return {
    "levels": {level: levels[level] for level in LEVELS},
    "sources": [
      {
        "name": source.name,
        "path": str(source.path),
        "layout": source.layout,
        "concepts": list(source.concepts),
        "licenses": list(source.licenses),
        "pictures": len(source.items),
      }
      for source in report.sources
    ],
    "findings": [
      {
        "kind": finding.kind,
        "level": finding.level,
        "message": finding.message,
        "pictures": [report.items[number].where for number in finding.items],
      }
      for finding in report.findings
    ],
    "pictures": [
      {
        "picture": item.where,
        "source": item.source,
        "split": item.split,
        "group": item.group,
        "size": list(look.size),
        "sha256": look.digest,
        "unreadable": look.unreadable,
        "problems": list(look.problems),
        "masks": {
          concept: {
            "annotations": item.annotations[concept],
            "boxes": item.boxes[concept],
            "area": mask.area,
            "box_share": mask.box_share,
            "thickness": mask.thickness,
          }
          for concept, mask in look.masks.items()
        },
      }
      for item, look in zip(report.items, report.looks, strict=True)
    ],
  }
