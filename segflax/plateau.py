"""What validation decides between epochs: a lower rate (Plateau), the end (EarlyStopping).

Both are a handful of Python numbers on the host; `state_dict()` is JSON and part of checkpoints.
"""

import dataclasses
import math

from absl import logging

from segflax.errors import UserError


def _check_mode(mode: str):
  if mode not in ("min", "max"):
    raise UserError(f"mode {mode!r} is unknown; available: min, max")


@dataclasses.dataclass
class Plateau:
  """torch.optim.lr_scheduler.ReduceLROnPlateau, operation for operation in float64.

  optax.contrib.reduce_on_plateau counts in float32, only minimises and knows no threshold_mode.
  The one deliberate difference: a value that is not finite is not counted at all, neither as the
  best nor as a bad epoch.

  Attributes:
    lr: learning rate to start from; `rate` is what has become of it.
    mode: "min" if lower values are better, else "max".
    factor: the rate is multiplied by it, in (0, 1).
    patience: epochs without a better value that are tolerated; the next one reduces the rate.
    threshold: what counts as better: by more than this (abs), or by more than this times the best.
    threshold_mode: "rel" or "abs".
    cooldown: epochs after a reduction in which bad epochs are not counted.
    min_lr: the rate does not fall below it.
    eps: a reduction by less is not made.
  """

  lr: float
  mode: str = "min"
  factor: float = 0.1
  patience: int = 10
  threshold: float = 1e-4
  threshold_mode: str = "rel"
  cooldown: int = 0
  min_lr: float = 0.0
  eps: float = 1e-8

  rate: float = dataclasses.field(init=False)
  best: float | None = dataclasses.field(init=False, default=None)
  bad_epochs: int = dataclasses.field(init=False, default=0)
  cooldown_left: int = dataclasses.field(init=False, default=0)

  def __post_init__(self):
    _check_mode(self.mode)
    if self.threshold_mode not in ("rel", "abs"):
      raise UserError(
        f"plateau.threshold_mode {self.threshold_mode!r} is unknown; available: rel, abs"
      )
    if not 0 < self.factor < 1:
      raise UserError(f"plateau.factor {self.factor} is not in (0, 1); torch's default is 0.1")
    if not self.threshold >= 0 or (self.threshold_mode == "rel" and self.threshold >= 1):
      raise UserError(
        f"plateau.threshold {self.threshold} is not in [0, 1) (rel) or [0, inf) (abs)"
      )
    for name in ("patience", "cooldown", "min_lr"):
      if getattr(self, name) < 0:
        raise UserError(f"plateau.{name} {getattr(self, name)} is negative; use 0 or more")
    self.rate = self.lr

  @property
  def scale(self) -> float:
    """What the plateau has made of the learning rate: 1.0 until the first reduction."""
    return self.rate / self.lr

  def update(self, value: float) -> bool:
    """Takes the value of one epoch.

    Returns:
      Whether the rate was reduced just now.
    """
    if not math.isfinite(value):
      logging.warning("plateau: a value of %s is not counted", value)
      return False
    if self.best is None or self._is_better(value):
      self.best, self.bad_epochs = float(value), 0
    else:
      self.bad_epochs += 1
    if self.cooldown_left > 0:
      self.cooldown_left -= 1
      self.bad_epochs = 0
    if self.bad_epochs <= self.patience:
      return False
    self.bad_epochs, self.cooldown_left = 0, self.cooldown
    before, after = self.rate, max(self.rate * self.factor, self.min_lr)
    if before - after > self.eps:
      self.rate = after
    return self.rate < before

  def _is_better(self, value: float) -> bool:
    sign = 1.0 if self.mode == "max" else -1.0
    if self.threshold_mode == "rel":
      limit = self.best * (1.0 + sign * self.threshold)
    else:
      limit = self.best + sign * self.threshold
    return sign * value > sign * limit

  def state_dict(self) -> dict:
    """Returns what changes, as JSON: rate, best, bad_epochs, cooldown_left."""
    return {name: getattr(self, name) for name in ("rate", "best", "bad_epochs", "cooldown_left")}

  def load_state_dict(self, state: dict):
    """Goes on where `state_dict` was taken."""
    self.rate, self.best = state["rate"], state["best"]
    self.bad_epochs, self.cooldown_left = state["bad_epochs"], state["cooldown_left"]


@dataclasses.dataclass
class EarlyStopping:
  """Ends training when a validation metric has not got better for `patience` epochs in a row.

  A value that is not finite never counts as best, nor as an epoch without a better one.

  Attributes:
    patience: epochs in a row without a better value after which `should_stop`; 0: never.
    min_delta: better means better by more than this.
    mode: "max" if higher values are better, else "min".
  """

  patience: int = 10
  min_delta: float = 0.0
  mode: str = "max"

  best: float | None = dataclasses.field(init=False, default=None)
  bad_epochs: int = dataclasses.field(init=False, default=0)

  def __post_init__(self):
    _check_mode(self.mode)
    if self.patience < 0:
      raise UserError(f"early_stopping_patience {self.patience} is negative; use 0 for never")
    if not self.min_delta >= 0:
      raise UserError(f"early_stopping min_delta {self.min_delta} is negative; use 0 or more")

  @property
  def should_stop(self) -> bool:
    return 0 < self.patience <= self.bad_epochs

  def update(self, value: float) -> bool:
    """Takes the value of one epoch.

    Returns:
      Whether it is better than the best before by more than `min_delta`.
    """
    if not math.isfinite(value):
      logging.warning("early stopping: a value of %s is not counted", value)
      return False
    sign = 1.0 if self.mode == "max" else -1.0
    better = self.best is None or sign * (value - self.best) > self.min_delta
    if better:
      self.best, self.bad_epochs = float(value), 0
    else:
      self.bad_epochs += 1
    return better

  def state_dict(self) -> dict:
    """Returns what changes, as JSON: best, bad_epochs."""
    return {"best": self.best, "bad_epochs": self.bad_epochs}

  def load_state_dict(self, state: dict):
    """Goes on where `state_dict` was taken."""
    self.best, self.bad_epochs = state["best"], state["bad_epochs"]

  def __str__(self) -> str:
    if not self.patience:
      return "off"
    return f"{self.bad_epochs}/{self.patience}"
