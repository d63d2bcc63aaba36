"""The checkpoints of a run: saved while training goes on, kept by policy, verified on restore."""

import math
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging
from jax.experimental import multihost_utils

from segflax import checkpoint_io
from segflax.checkpoint_io import Damaged
from segflax.errors import UserError

_NAME = re.compile(r"(?:epoch_(\d+)_)?step_(\d+)")
_UNFINISHED = ".orbax-checkpoint-tmp"  # what Orbax appends until everything is on disk


class Restored(NamedTuple):
  """What a checkpoint held."""

  step: int
  state: object  # pytree of jax arrays on the shardings that were asked for
  data_state: object  # JSON or bytes: where the training stream goes on
  progress: dict  # JSON: everything that the host remembers


class _Folder(NamedTuple):
  """A finished checkpoint, ordered by step; the end of an epoch comes after its last step."""

  step: int
  epoch: int  # completed epochs where it was saved at the end of one, else -1
  path: Path


class Checkpoints:
  """Saves asynchronously to `directory/[epoch_0010_]step_00000300/` and restores the latest.

  The latest `keep_latest`, the best by `best_metric` and every `every_epochs`-th epoch's are kept;
  others are deleted once a newer one is safely on disk. Every process calls every method.

  Args:
    directory: made if need be.
    frozen: path -> sha256 of the parameters that are not in the state; they must be the same when
      it is restored. None: not recorded, not compared.
    every_epochs: period of the checkpoints kept for good; 0: none.
    keep_latest: at least 1.
    best_metric: key of `metrics`, higher is better, by which the best is kept.
    strict: refuse a damaged checkpoint instead of going back to the one before.
  """

  def __init__(
    self,
    directory: str | Path,
    frozen: dict[str, str] | None = None,
    *,
    every_epochs: int = 10,
    keep_latest: int = 2,
    best_metric: str = "val_iou",
    strict: bool = False,
  ):
    if every_epochs < 0:
      raise UserError(f"checkpoint.every_epochs {every_epochs} is negative; use 0 for none")
    if keep_latest < 1:
      raise UserError(f"checkpoint.keep_latest {keep_latest} keeps nothing to resume from; use 2")
    self.directory = Path(directory).resolve()
    self._every_epochs, self._keep_latest = every_epochs, keep_latest
    self._best_metric, self._frozen, self._strict = best_metric, frozen, strict
    self._pending = None  # (folder, score, Orbax's response) of the save that is being written
    if _is_primary():
      self.directory.mkdir(parents=True, exist_ok=True)
      _remove_unfinished(self.directory)
    _barrier("checkpoints:open")
    self._folders = _list(self.directory)
    self._scores = {folder: self._read_score(folder) for folder in self._folders}

  @property
  def latest_step(self) -> int | None:
    """The step of the latest checkpoint that is safely on disk."""
    return self._folders[-1].step if self._folders else None

  def save(
    self,
    step: int,
    state,
    *,
    data_state,
    progress: dict,
    epoch: int | None = None,
    metrics: dict[str, float] | None = None,
  ):
    """Starts a save and returns; waits first for the one before.

    Args:
      step: updates made.
      state: pytree of replicated jax arrays; may be donated as soon as this returns.
      data_state: JSON or bytes, the same on every process.
      progress: JSON.
      epoch: number of completed epochs, where one has just been completed and evaluated.
      metrics: of that evaluation.

    Raises:
      UserError: the save before, or the start of this one, failed.
    """
    self.wait()
    name = f"step_{step:08d}" if epoch is None else f"epoch_{epoch:04d}_step_{step:08d}"
    folder = _Folder(step, -1 if epoch is None else epoch, self.directory / name)
    if self._folders and self._folders[-1] >= folder:
      logging.info("checkpoint of step %d is there already", step)
      return
    document = {
      "step": step,
      "epoch": epoch,
      "metrics": metrics,
      "progress": progress,
      "data_state": checkpoint_io.encode_data_state(data_state),
      "frozen": self._frozen,
    }
    try:
      response = checkpoint_io.write(folder.path, state, document)
    except checkpoint_io.UNREADABLE as error:
      raise self._failed(folder, error) from error
    self._pending = folder, self._score(metrics), response

  def wait(self):
    """Returns when the save under way, if any, is on disk; then deletes what the policy drops.

    Raises:
      UserError: it could not be written. It never counts as saved, and nothing was deleted for it.
    """
    if self._pending is None:
      return
    (folder, score, response), self._pending = self._pending, None
    try:
      response.result()
    except checkpoint_io.UNREADABLE as error:
      raise self._failed(folder, error) from error
    self._folders.append(folder)
    self._scores[folder] = score
    self._prune()

  def restore(self, like) -> Restored | None:
    """Reads the latest sound checkpoint.

    Damaged ones after it are named, and renamed to `damaged_...` so that their steps can be saved
    again.

    Args:
      like: pytree of jax arrays or ShapeDtypeStructs with shardings, on any mesh.

    Returns:
      None if there never was a checkpoint.

    Raises:
      UserError: there are some but none is usable, or (strict) the latest is damaged; or a sound
        one does not fit `like` or the frozen parameters.
    """
    self.wait()
    if not self._folders:
      return None
    folder, restored = _restore(self._folders, like, self._frozen, self._strict)
    damaged = [other for other in self._folders if other > folder]
    if _is_primary():
      for other in damaged:
        _set_aside(other.path)
    _barrier("checkpoints:restored")
    self._folders = [other for other in self._folders if other <= folder]
    return restored

  def _failed(self, folder: _Folder, error: Exception) -> UserError:
    if _is_primary():
      _remove_unfinished(self.directory)
      shutil.rmtree(folder.path, ignore_errors=True)  # Never a name without sound contents.
    before = self.latest_step
    remains = "there is none before it" if before is None else f"step {before} is safe"
    return UserError(
      f"checkpoint of step {folder.step} could not be written to {self.directory} "
      f"({checkpoint_io.first_line(error)}); {remains}. Free disk space, then resume with the "
      "same command"
    )

  def _prune(self):
    """Deletes what neither latest, nor best, nor periodic keeps."""
    keep = set(self._folders[-self._keep_latest :])
    if self._every_epochs:
      keep |= {f for f in self._folders if f.epoch > 0 and f.epoch % self._every_epochs == 0}
    scored = [folder for folder in self._folders if self._scores[folder] is not None]
    if scored:  # Earlier wins a tie, as it does where training chooses best_model.
      keep.add(max(scored, key=lambda folder: (self._scores[folder], -folder.step)))
    if _is_primary():
      for folder in self._folders:
        if folder not in keep:
          # Renamed first: a deletion that is interrupted must not look like a damaged checkpoint.
          doomed = folder.path.with_name(folder.path.name + _UNFINISHED)
          folder.path.rename(doomed)
          shutil.rmtree(doomed)
    self._folders = [folder for folder in self._folders if folder in keep]

  def _score(self, metrics: dict[str, float] | None) -> float | None:
    score = metrics[self._best_metric] if metrics and self._best_metric in metrics else None
    return score if score is not None and math.isfinite(score) else None

  def _read_score(self, folder: _Folder) -> float | None:
    try:
      return self._score(checkpoint_io.read_document(folder.path)["metrics"])
    except Damaged:
      return None  # Named when it is restored, and no candidate for the best.


def restore_from(
  path: str | Path, like, *, frozen: dict[str, str] | None = None, strict: bool = False
) -> Restored:
  """Reads a checkpoint of another run and changes nothing there.

  Args:
    path: a workdir, its `checkpoints` folder (the latest sound one is read), or one checkpoint.

  Raises:
    UserError: there is none, none is usable, or it does not fit.
  """
  path = Path(path).expanduser().resolve()
  folders = _list(path) or _list(path / "checkpoints")
  if _NAME.fullmatch(path.name) and path.is_dir():
    folders = [_folder(path)]
  if not folders:
    raise UserError(f"resume {path} holds no checkpoint; name a workdir or one of its checkpoints")
  return _restore(folders, like, frozen, strict)[1]


def _restore(folders, like, frozen, strict) -> tuple[_Folder, Restored]:
  reasons = []
  for number, folder in reversed(list(enumerate(folders))):
    try:
      result = checkpoint_io.read(folder.path, like)
      reason = None
    except Damaged as error:
      result, reason = None, str(error)
    # What one process cannot read, none uses.
    if not _all_processes(reason is None):
      message = f"checkpoint of step {folder.step} is damaged ({reason or 'on another process'})"
      reasons.append(message)
      if strict:
        raise UserError(f"{message}; resume without strict to use the one before it")
      if number:
        logging.warning("%s; using step %d", message, folders[number - 1].step)
      continue
    state, document = result
    _check_frozen(document["frozen"], frozen, folder)
    data_state = checkpoint_io.decode_data_state(document["data_state"])
    return folder, Restored(document["step"], state, data_state, document["progress"])
  raise UserError(
    f"no checkpoint in {folders[0].path.parent} is usable: {'; '.join(reasons)}. Bring back a "
    "copy, or start again in a new workdir"
  )


def _check_frozen(saved: dict | None, frozen: dict | None, folder: _Folder):
  if saved is None or frozen is None or saved == frozen:
    return
  differing = sorted(
    path for path in saved.keys() | frozen.keys() if saved.get(path) != frozen.get(path)
  )
  raise UserError(
    f"{len(differing)} frozen parameters are not those that checkpoint {folder.path.name} was "
    f"trained with, {differing[0]} first; give the same model.pretrained and trainable"
  )


def _list(directory: Path) -> list[_Folder]:
  if not directory.is_dir():
    return []
  return sorted(_folder(path) for path in directory.iterdir() if _NAME.fullmatch(path.name))


def _folder(path: Path) -> _Folder:
  epoch, step = _NAME.fullmatch(path.name).groups()
  return _Folder(int(step), -1 if epoch is None else int(epoch), path)


def _remove_unfinished(directory: Path):
  for path in directory.iterdir():
    if _UNFINISHED in path.name:
      logging.info("removing %s, left by an interrupted save", path.name)
      shutil.rmtree(path)


def _set_aside(path: Path):
  target, number = path.with_name(f"damaged_{path.name}"), 1
  while target.exists():
    number += 1
    target = path.with_name(f"damaged_{path.name}_{number}")
  path.rename(target)


def _is_primary() -> bool:
  return jax.process_index() == 0


def _barrier(name: str):
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _all_processes(ok: bool) -> bool:
  if jax.process_count() == 1:
    return ok
  return bool(multihost_utils.process_allgather(jax.numpy.asarray(ok)).all())
