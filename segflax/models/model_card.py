"""The README.md of an exported model: where it comes from, how good it is, how to load it."""

import dataclasses
from collections.abc import Mapping

from segflax.models.config import CLIPSegConfig

_LOAD = """## Use

```python
import segflax

predictor = segflax.Predictor.from_pretrained("PATH")
[maps] = predictor(["wall.jpg"], ["segment crack"])  # probabilities at the picture's own size
```
"""
_LOAD_TORCH = """
or in PyTorch, at {size} x {size} px:

```python
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

model = CLIPSegForImageSegmentation.from_pretrained("PATH")
processor = CLIPSegProcessor.from_pretrained("PATH")
inputs = processor(text=["segment crack"], images=[image], return_tensors="pt")
probabilities = model(**inputs).logits.sigmoid()
```
"""
_NO_TORCH = """
transformers cannot load this folder: its refined head enlarges tokens by {theirs}, this model's by
{ours}.
"""

SCRATCH = "scratch"
_RELEASED = "CIDAS/"  # the original project's account on the hub
_RELEASED_LICENSE = (
  "the original project's MIT licence does not cover the released weights; see the hub page of "
  "them before you pass this model on"
)


@dataclasses.dataclass(frozen=True)
class ModelCard:
  """What only the training knows.

  Attributes:
    title: first line.
    base: folder or hub id that training started from; SCRATCH; None: not stated.
    base_license: licence of those weights as their publisher states it; None: not stated, or,
      for CIDAS/…, what is known of the released ones.
    trained_on: data sets, pictures, licences, in one or more sentences.
    metrics: name -> (value, definition in words).
    trained: what was changed, such as "decoder" or "everything".
  """

  title: str = "CLIPSeg"
  base: str | None = None
  base_license: str | None = None
  trained_on: str = ""
  metrics: Mapping[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
  trained: str = ""

  def render(
    self, config: CLIPSegConfig, image_size: int, thresholds: Mapping[str, float] | None
  ) -> str:
    """Returns Markdown with the front matter that the hub reads."""
    parts = [
      "---\nlibrary_name: transformers\npipeline_tag: image-segmentation\n"
      "tags: [clipseg, segflax, jax]\n---\n",
      f"# {self.title}\n",
      f"CLIPSeg (Lüddecke & Ecker, CVPR 2022), written by segflax: {_describe(config)}; pictures "
      f"are prepared at {image_size} px.\n",
      "## Training\n",
      f"Trained on: {self.trained_on or 'not stated'}.\n",
      f"Trained parameters: {self.trained or 'not stated'}.\n",
      self._metrics(),
    ]
    if thresholds:
      rows = "".join(f"| {prompt} | {value:g} |\n" for prompt, value in thresholds.items())
      parts.append(
        "## Thresholds\n\nProbability above which a pixel belongs to the mask:\n\n"
        f"| prompt | threshold |\n| --- | --- |\n{rows}"
      )
    parts += ["## Licence\n", self._licence(), _LOAD + _torch(config, image_size)]
    return "\n".join(parts)

  def _metrics(self) -> str:
    if not self.metrics:
      return "## Metrics\n\nNone stated.\n"
    rows = "".join(
      f"| {name} | {value:.4f} | {definition} |\n"
      for name, (value, definition) in self.metrics.items()
    )
    return f"## Metrics\n\n| metric | value | definition |\n| --- | --- | --- |\n{rows}"

  def _licence(self) -> str:
    if self.base is None:
      return "Not stated: ask whoever trained it what its base weights were, and their licence.\n"
    if self.base == SCRATCH:
      return "Trained from scratch: no base weights, and no licence of theirs, are in it.\n"
    if self.base_license:
      stated = self.base_license
    elif self.base.startswith(_RELEASED):
      stated = _RELEASED_LICENSE
    else:
      stated = "not stated here; ask its publisher before you pass this model on"
    return (
      f"Base weights: `{self.base}`. Their licence: {stated}. The MIT licence of the original "
      "CLIPSeg project covers its code, not the weights it released.\n"
    )


def _describe(config: CLIPSegConfig) -> str:
  head = "refined" if config.refined else "simple"
  taps = ", ".join(map(str, config.taps))
  return (
    f"patch {config.patch_size}, vision tower {config.vision_layers} x {config.vision_width}, "
    f"taps {taps}, text tower {config.text_layers} x {config.text_width}, "
    f"decoder of {config.reduce_dim} channels, {head} head"
  )


def _torch(config: CLIPSegConfig, image_size: int) -> str:
  quarter = config.patch_size // 4
  if config.refined and config.head != (quarter, quarter):
    ours = " x ".join(map(str, config.head))
    return _NO_TORCH.format(theirs=f"{quarter} x {quarter}", ours=ours)
  return _LOAD_TORCH.format(size=image_size)
