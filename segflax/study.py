"""An Optuna study over trials: its storage is shared, so any number of machines may join in."""

from collections.abc import Callable, Sequence
from pathlib import Path

from segflax import experiments, summary
from segflax.errors import UserError


def parse_search(text: str) -> tuple[str, Callable]:
  """Reads one dimension of the search.

  Args:
    text: `field=low:high`, `field=low:high:log`, or `field=a,b,c`; whole numbers give integers.

  Returns:
    (field, suggest): `suggest(optuna_trial)` returns the value as text.
  """
  field, values = experiments.parse_setting(text)
  if ":" not in values:
    choices = values.split(",")
    return field, lambda trial: trial.suggest_categorical(field, choices)
  low, high, *scale = values.split(":")
  try:
    whole = all(part.strip().lstrip("-").isdecimal() for part in (low, high))
    low, high = (int(low), int(high)) if whole else (float(low), float(high))
    log = {(): False, ("log",): True}[tuple(scale)]
  except (ValueError, KeyError) as error:
    raise UserError(
      f"--search {text!r} is neither field=low:high, field=low:high:log nor field=a,b,c"
    ) from error
  if not low < high or (log and low <= 0):
    raise UserError(f"--search {text!r} needs low < high, and 0 < low with log")
  if whole:
    return field, lambda trial: str(trial.suggest_int(field, low, high, log=log))
  return field, lambda trial: f"{trial.suggest_float(field, low, high, log=log):.6g}"


def run(
  runner: experiments.Runner,
  experiment: str,
  *,
  storage: str,
  searches: Sequence[str],
  settings: Sequence[str],
  trials: int,
  output: Path,
  folder: Path,
) -> list[dict[str, object]]:
  """Runs trials that the study proposes; maximises the best validation IoU.

  A trial that was interrupted is proposed again, and resumes in its workdir; one that fails is
  told to the study as failed.

  Args:
    runner: of the trials.
    experiment: template, and name of the study.
    storage: for example "sqlite:///study.db", the same for everybody who joins in.
    searches: dimensions, of `parse_search`.
    settings: `field=value`, the same for every trial.
    trials: that this process runs.
    output: folder of the workdirs.
    folder: of the templates.

  Returns:
    A row per trial of this process: experiment, state, best_val_iou.

  Raises:
    UserError: optuna is not installed, nothing to search.
  """
  try:
    import optuna
  except ImportError as error:
    raise UserError("--study needs Optuna; install it with: pip install segflax[study]") from error
  if not searches:
    raise UserError("--study needs at least one --search, for example --search lr=1e-5:1e-3:log")
  dimensions = dict(map(parse_search, searches))
  study = optuna.create_study(
    study_name=experiment, storage=storage, direction="maximize", load_if_exists=True
  )
  rows = []
  for _ in range(trials):
    proposal = study.ask()
    values = {field: suggest(proposal) for field, suggest in dimensions.items()}
    # Named by its values: proposed again, it finds its workdir and resumes.
    sweeps = [f"{field}={value}" for field, value in values.items()]
    (trial,) = experiments.plan(
      [experiment], output, settings=settings, sweeps=sweeps, folder=folder
    )
    state = runner.run([trial])[trial.name]
    row = experiments.result(trial, state)
    rows.append(row)
    value = summary.read_summary(trial.workdir)["best_val_iou"] if state == "done" else None
    if value is not None:
      study.tell(proposal, value)
      continue
    study.tell(proposal, state=optuna.trial.TrialState.FAIL)
    if state in ("interrupted", "missing"):
      study.enqueue_trial(proposal.params)
      break
  return rows
