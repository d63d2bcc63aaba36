"""What a run leaves for people and programs besides its checkpoints."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from segflax import metrics, runs, summary, visualize
from segflax.evaluate import EvalSplit, Evaluation, Panel
from segflax.models import pretrained
from segflax.models.clipseg import CLIPSeg
from segflax.models.model_card import SCRATCH, ModelCard
from segflax.models.processor import Processor
from segflax.train_state import EpochSums
from segflax.writers import Profile, create_writer

_RESULTS = ("val/iou", "val/dice", "val/loss")  # of TensorBoard's HParams tab


class Outputs:
  """Console, TensorBoard, metrics.jsonl, val_rows.npz and model folders of one run.

  Only process 0 has one that writes; on the others every method returns at once.

  Args:
    workdir: where to.
    enabled: whether this is process 0.
    from_step: step the run goes on from.
    recorded: step of the last evaluation that the run remembers; TensorBoard forgets later ones,
      they come again.
    profile_steps: steps to trace, after the first two of this session; 0: none.
  """

  def __init__(
    self, workdir: Path, *, enabled: bool, from_step: int, recorded: int, profile_steps: int = 0
  ):
    self.workdir, self.enabled = workdir, enabled
    logs = workdir / "logs" if enabled else None
    self.writer = create_writer(logs, from_step=recorded, metrics=_RESULTS)
    self._profile = None
    if enabled and profile_steps:
      self._profile = Profile(logs, first_step=from_step + 2, num_steps=profile_steps)

  def say(self, line: str):
    """Prints a line for the user."""
    if self.enabled:
      print(line, flush=True)

  def after_step(self, step: int):
    """Starts and ends the trace that TensorBoard's profile page shows."""
    if self._profile is not None:
      self._profile(step)

  def take_over(self, run: Path):
    """Copies what another run, whose history is gone on with, has left of its best epoch."""
    if not self.enabled:
      return
    for name in ("best_model", runs.OVERLAYS):
      if (run / name).is_dir():
        shutil.copytree(run / name, self.workdir / name, dirs_exist_ok=True)
    if (run / summary.VAL_ROWS).exists():
      shutil.copy2(run / summary.VAL_ROWS, self.workdir / summary.VAL_ROWS)

  def record(self, history: list[dict], evaluation: Evaluation, split: EvalSplit):
    """Writes what one epoch's training and evaluation gave; `history[-1]` is its row."""
    if not self.enabled:
      return
    summary.write_history(self.workdir, history)
    step = history[-1]["step"]
    self.writer.write_scalars(step, _tags(history[-1]))
    panels = {
      f"panels/{split.image_ids[panel.index]}": draw(panel, split)
      for panel in sorted(evaluation.panels, key=lambda panel: panel.index)
    }
    self.writer.write_images(step, panels)

  def save_model(
    self,
    name: str,
    model: CLIPSeg,
    params: dict,
    processor: Processor,
    card: ModelCard,
    thresholds: dict[str, float],
  ):
    """Writes `<workdir>/<name>`, a Hugging Face folder."""
    if self.enabled:
      pretrained.save_pretrained(
        self.workdir / name, model, params, processor, card=card, thresholds=thresholds
      )

  def save_judgement(self, evaluation: Evaluation, split: EvalSplit):
    """Writes what the best epoch was judged by: counts per picture, and overlays to look at."""
    if not self.enabled:
      return
    evaluation.rows.save(self.workdir / summary.VAL_ROWS)
    entries = [
      ("example", split.image_ids[panel.index], prompt, Image.fromarray(sheet), prompt)
      for panel in sorted(evaluation.panels, key=lambda panel: panel.index)
      for prompt, sheet in draw_each(panel, split).items()
    ]
    runs.write_overlays(self.workdir / runs.OVERLAYS, entries)

  def finish(self, content: dict, config: dict):
    """Writes the summary, and the hyperparameters with their results."""
    if self.enabled:
      self.writer.write_hparams(config)
      summary.write_summary(self.workdir, content)

  def close(self):
    """Waits until everything is on disk."""
    if self._profile is not None:
      self._profile.close()
    self.writer.flush()
    self.writer.close()


def epoch_row(epoch: int, step: int, lr: float, sums: EpochSums, evaluation: Evaluation) -> dict:
  """Returns one line of metrics.jsonl: what the epoch's training and evaluation gave.

  Nothing that a clock says is in it: a resumed run writes the lines of the uninterrupted one.
  """
  values = metrics.compute(evaluation.rows)
  by_prompt = metrics.per_prompt(evaluation.rows)
  return {
    "epoch": epoch,
    "step": step,
    "lr": lr,
    "train_loss": float(sums.loss / sums.pairs),
    "train_grad_norm": float(sums.grad_norm / sums.steps),
    "val_loss": evaluation.loss,
    **{f"val_{name}": value for name, value in values.items()},
    "val_prompts": by_prompt,
    "thresholds": metrics.fit_thresholds(evaluation.rows),
  }


def console_line(row: dict, epochs: int, stopping: str, images_per_second: float) -> str:
  """Returns the line a user reads after every epoch."""
  return (
    f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  "
    f"train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
    f"IoU {row['val_iou']:.4f}  Dice {row['val_dice']:.4f}  "
    f"accuracy {row['val_pixel_accuracy']:.4f}  lr {row['lr']:.2e}  "
    f"no better for {stopping}  {images_per_second:.1f} images/s"
  )


def prompt_lines(row: dict) -> str:
  """Returns one line per prompt: how good, and how far it obeys."""
  width = max(map(len, row["val_prompts"]))
  return "\n".join(
    f"  {prompt:<{width}}  IoU {values['iou']:.4f}  Dice {values['dice']:.4f}  "
    f"on the other concept's truth {values['wrong_prompt_iou']:.4f}"
    for prompt, values in row["val_prompts"].items()
  )


def ending(history: list[dict], content: dict) -> str:
  """Returns the run's last words: why it ended, its best epoch per prompt, and where time went."""
  speed = content["speed"]
  lines = [
    f"ended: {content['stopped']}; {content['timings']['total']:.0f} s, "
    f"{speed['training_share']:.0%} of them training steps, "
    f"{speed['images_per_second']:.1f} images/s"
  ]
  best = summary.best_of(history, "val_iou")
  if best is not None:
    row = next(row for row in history if row["epoch"] == best["epoch"])
    lines += [f"best_model is that of epoch {best['epoch']}:", prompt_lines(row)]
  return "\n".join(lines)


def draw(panel: Panel, split: EvalSplit) -> np.ndarray:
  """Returns the picture of a panel: a row per prompt, at network size. `[h w 3]` uint8."""
  return np.concatenate(list(draw_each(panel, split).values()))


def draw_each(panel: Panel, split: EvalSplit) -> dict[str, np.ndarray]:
  """Returns prompt -> picture, truth, probability and overlay side by side. `[h w 3]` uint8."""
  size = panel.image.shape[1::-1]
  sheets = {}
  for row, (prompt, concept) in enumerate(zip(split.prompt_names, split.concept_of, strict=True)):
    truth = np.asarray(Image.fromarray(panel.mask[concept] * 255).resize(size)) > 127
    probability = panel.probability[row].astype(np.float32) / 255
    sheet = visualize.panel(
      panel.image, {prompt: probability}, {prompt: truth}, threshold=split.threshold
    )
    sheets[prompt] = np.asarray(sheet)
  return sheets


def model_card(config, info, row: dict) -> ModelCard:
  """Returns what the README.md of an exported model says of its training."""
  pictures = info.counts[config.data.train_split]["pictures"]
  sources = ", ".join(sorted(info.sources)) or str(info.path)
  licences = ", ".join(info.licenses) or "licence not stated"
  shown = ("iou", "dice", "pixel_accuracy", "wrong_prompt_iou")
  return ModelCard(
    base=config.model.pretrained or SCRATCH,
    trained_on=f"{pictures} pictures of {sources} ({licences})",
    metrics={
      f"validation {name}": (row[f"val_{name}"], metrics.DEFINITIONS[name])
      for name in shown
      if np.isfinite(row[f"val_{name}"])
    },
    trained=_trained(config),
  )


def _trained(config) -> str:
  """Returns what was trained, in words."""
  if config.trainable == "auto":
    return "decoder" if config.model.pretrained else "everything"
  rank = f" of rank {config.lora.rank}, merged into the kernels" if config.lora.rank else ""
  return config.trainable + rank


def _tags(row: dict) -> dict[str, float]:
  """Turns a row's names into TensorBoard's: train/…, val/…, val/<prompt>/…."""
  tags = {"learning_rate": row["lr"], "epoch": row["epoch"]}
  for name, value in row.items():
    if name.startswith(("train_", "val_")) and not isinstance(value, dict):
      tags["/".join(name.split("_", 1))] = value
  for prompt, values in row["val_prompts"].items():
    tags |= {f"val_{name}/{prompt}": values[name] for name in ("iou", "dice", "wrong_prompt_iou")}
  return {tag: value for tag, value in tags.items() if np.isfinite(value)}
