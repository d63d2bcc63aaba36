"""Workdirs as training leaves them, made in milliseconds."""

import numpy as np

from segflax import counts, metrics, runs, summary, visualize

PROMPTS = ["segment crack", "segment taping area"]
CONCEPTS = ["crack", "taping area"]


def walls(n, size=24, seed=0):
  """Returns truths [n 2 h w]: a crack of 2 px and a tape band, both, one or neither."""
  r = np.random.default_rng(seed)
  truth = np.zeros((n, 2, size, size), bool)
  for i in range(n):
    if i % 4 in (1, 3):
      column = r.integers(2, size - 4)
      truth[i, 0, :, column : column + 2] = True
    if i % 4 in (2, 3):
      row = r.integers(2, size - 9)
      truth[i, 1, row : row + 7] = True
  return truth


def make_rows(probability, truth, prompts=PROMPTS, concepts=CONCEPTS):
  """Returns metrics.Rows counted by NumPy; probability and truth [n q h w]."""
  n, q = truth.shape[:2]
  thresholds = np.asarray(counts.THRESHOLDS)
  flat_t = truth.reshape(n, q, 1, -1)
  flat_p = probability.reshape(n, q, 1, -1) > thresholds[:, None]
  cells = (flat_p & flat_t, flat_p & ~flat_t, ~flat_p & flat_t, ~flat_p & ~flat_t)
  p, t = probability > 0.5, truth
  pairs = [
    [(a[:, :, None] & b[:, None]).sum((-2, -1)), (a[:, :, None] | b[:, None]).sum((-2, -1))]
    for a, b in ((p, p), (p, t), (t, t))
  ]
  return metrics.Rows(
    prompts=list(prompts),
    concepts=list(concepts),
    image_ids=[f"wall_{i:03d}" for i in range(n)],
    sources=["generated walls"] * n,
    thresholds=thresholds,
    threshold=0.5,
    counts=np.stack([c.sum(-1) for c in cells], -1),
    pairs=np.moveaxis(np.asarray(pairs), (0, 1), (-2, -1)),
    known=np.ones((n, q), bool),
  )


def noisy(truth, seed, noise):
  """A model that is right up to noise of its own seed."""
  r = np.random.default_rng(seed)
  return np.clip(truth * 0.8 + 0.1 + r.normal(0, noise, truth.shape), 0, 1)


def ignoring(truth):
  """A model that gives the same mask whatever it is asked."""
  return np.broadcast_to(truth.any(1, keepdims=True), truth.shape) * 0.9


def make_run(workdir, probability, truth, *, epochs=4, **arguments):
  """Writes summary, history, rows and overlays of a run that made `probability` at its best."""
  workdir.mkdir(parents=True, exist_ok=True)
  rows = make_rows(probability, truth)
  best = {f"val_{name}": value for name, value in metrics.compute(rows).items()}
  history = []
  for epoch in range(1, epochs + 1):
    share = epoch / epochs
    values = {name: value * share if "iou" in name else value for name, value in best.items()}
    history.append({"epoch": epoch, "train_loss": 1.2 - share, "val_loss": 1.3 - share, **values})
    history[-1]["lr"] = 1e-4
  config = {
    "batch_size": 8,
    "lr": 1e-4,
    "image_size": 352,
    "mixed_precision": False,
    "seed": 42,
    "loss": {"name": "bce_dice"},
    "model": {"pretrained": ""},
    "trainable": "auto",
  } | arguments
  content = summary.make_summary(
    history,
    training_args=config,
    stopped="all epochs",
    timings={"train": 60.0},
    speed={"images_per_second": 8.0, "training_share": 0.5},
    environment={"jax": "0"},
  )
  summary.write_history(workdir, history)
  summary.write_summary(workdir, content)
  rows.save(workdir / summary.VAL_ROWS)
  entries = []
  for i in (1, 2, 3):
    picture = np.full((*truth.shape[-2:], 3), 150, np.uint8)
    for q, prompt in enumerate(PROMPTS):
      panel = visualize.overlay(picture, probability[i, q] > 0.5, truth[i, q])
      sheet = visualize.grid([[panel]], [["overlay"]])
      entries.append(("example", rows.image_ids[i], prompt, sheet, "epoch 4"))
  runs.write_overlays(workdir / runs.OVERLAYS, entries)
  return workdir
