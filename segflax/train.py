"""The whole story of a run, from top to bottom: `train_and_evaluate(config, workdir)`."""

import functools
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from segflax import build, lora, losses, outputs, sharding, steps, summary
from segflax import config as config_lib
from segflax.cached_streams import cached_streams
from segflax.checkpoint import Checkpoints, restore_from
from segflax.data.progress import progress
from segflax.dry_step import resolve_batch_size
from segflax.evaluate import evaluate
from segflax.models.clipseg import held
from segflax.nonfinite import NonFiniteWatch
from segflax.outputs import Outputs
from segflax.plateau import EarlyStopping
from segflax.preemption import Interrupted, PreemptionGuard
from segflax.timings import Timings
from segflax.train_state import EpochSums, TrainState, identity, merge_params, split_params
from segflax.watchdog import Watchdog


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains as the config says, or goes on where the workdir's last checkpoint stands.

  Args:
    config: as `configs/baseline.py` makes it; every field is explained there.
    workdir: takes config.json, checkpoints/, best_model/, final_model/, logs/, metrics.jsonl,
      val_rows.npz and training_summary.json.

  Returns:
    The content of training_summary.json.

  Raises:
    UserError: the input breaks a rule, or the loss was not finite too often.
    Interrupted: a signal came; the state is saved, and the same call goes on from there.
  """
  with PreemptionGuard() as guard:
    return _train(config, workdir, guard)


def _train(config: ConfigDict, workdir: str | Path, guard: PreemptionGuard) -> dict:
  timings = Timings()
  with timings("init"):
    # ---- Config and devices ----------------------------------------------------------------------
    workdir = build.workdir_path(workdir)
    mesh = sharding.make_mesh()
    config = resolve_batch_size(config, workdir, mesh)
    config_lib.check(config, mesh.size)
    changes = config_lib.check_resume(config, workdir)
    eval_batch_size = config.eval.batch_size or config.batch_size
    for size in (config.batch_size, eval_batch_size):
      sharding.check_batch_size(size, mesh)

    # ---- Data ------------------------------------------------------------------------------------
    info = build.open_dataset(config)
    prompts = build.make_prompts(config, info)
    stream = build.train_stream(config, info, prompts)
    split = build.eval_split(config, info, prompts, config.data.val_split, eval_batch_size)

    # ---- Model: what is trained, what is frozen --------------------------------------------------
    model, params, processor = build.make_model(config)
    pattern = build.trainable_pattern(config, model.config)
    trained, frozen = split_params(params, pattern)
    tokens = processor.tokenize(prompts.prompts)
    if config.cache_features:
      stream, split.stream = cached_streams(
        config, info, stream, split.stream, model, trained, frozen, after_batch=guard.check_alone
      )
    table = steps.prompt_table(model, params, tokens, text_is_frozen="text" not in trained)

    # ---- Optimizer, state, steps -----------------------------------------------------------------
    schedule, tx = build.make_optimizer(config, trained, stream.steps_per_epoch)
    plateau = build.make_plateau(config)
    stopping = EarlyStopping(config.early_stopping_patience, config.early_stopping_min_delta)
    state = TrainState.create(trained, tx, ema=config.ema_decay > 0)
    constants = (held(frozen, model.dtype), table)
    state, constants = sharding.replicate((state, constants), mesh)
    how_many = f"{_count(trained):,} of {_count(params):,} parameters"
    frozen_identity = identity(frozen)
    if not config.mixed_precision:
      frozen = jax.device_get(constants[0])  # On a CPU the same memory: one copy, not two.
    del params, trained
    loss_fn = losses.make_loss(config.loss)
    train_step = build.make_train_step(config, model, tx, mesh)
    eval_step = steps.make_eval_step(
      model,
      loss_fn,
      mesh,
      prompts=split.prompt_ids,
      concept_of=split.concept_of,
      threshold=split.threshold,
    )

    # ---- Restore ---------------------------------------------------------------------------------
    checkpoints = Checkpoints(
      workdir / "checkpoints",
      every_epochs=config.checkpoint.every_epochs,
      keep_latest=config.checkpoint.keep_latest,
      strict=config.checkpoint.strict,
      frozen=frozen_identity,
    )
    restored = checkpoints.restore(state)
    taken_over = None
    if restored is None and config.resume:
      taken_over = config_lib.run_of(config.resume)
      changes += config_lib.changes(config, taken_over).values()
      restored = restore_from(
        config.resume, state, frozen=frozen_identity, strict=config.checkpoint.strict
      )
    step, epoch, history = 0, 0, []  # epoch: completed ones, trained and evaluated
    if restored is not None:
      step, state = restored.step, restored.state
      stream.set_state(restored.data_state)
      epoch, history = restored.progress["epoch"], restored.progress["history"]
      plateau.load_state_dict(restored.progress["plateau"])
      stopping.load_state_dict(restored.progress["early_stopping"])
      timings.load_state_dict(restored.progress["timings"])
    output = Outputs(
      workdir,
      enabled=jax.process_index() == 0,
      from_step=step,
      recorded=history[-1]["step"] if history else 0,
      profile_steps=config.profile_steps,
    )
    for change in changes:
      output.say(f"changed: {change}")
    if taken_over:
      output.take_over(taken_over)
    if _ended(config, epoch, stopping) and summary.ended_with(workdir, epoch):
      output.say(f"{workdir} is finished: {_ended(config, epoch, stopping)}; nothing to do")
      output.close()
      return summary.read_summary(workdir)
    if output.enabled:
      config_lib.save(config, workdir)
    output.say(
      f"{workdir}: {how_many} train on "
      f"{stream.num_examples} pictures, {stream.steps_per_epoch} steps an epoch, {mesh.size} x "
      f"{mesh.devices.flat[0].device_kind}; "
      + (f"resumed at step {step}" if restored else "from the beginning")
    )

  def save(**end_of_epoch):
    """Starts to save everything this function would need to go on from here."""
    with timings("save"):
      watch.check(state.nonfinite)  # A run that must end does not go on from here.
      output.writer.flush()  # TensorBoard has what the checkpoint says was written.
      remembered = {
        "epoch": epoch,
        "history": history,
        "plateau": plateau.state_dict(),
        "early_stopping": stopping.state_dict(),
        "timings": timings.state_dict(),
      }
      # The stream itself has read ahead of what was trained on.
      data_state = stream.get_state() | {"step": step}
      checkpoints.save(step, state, data_state=data_state, progress=remembered, **end_of_epoch)

  def save_model(name: str, row: dict):
    """Writes what is trained and what is frozen, joined, as a Hugging Face folder."""
    joined = lora.merge(merge_params(jax.device_get(_judged(state)), frozen))
    card = outputs.model_card(config, info, row)
    output.save_model(name, model, joined, processor, card, row["thresholds"])

  watch = NonFiniteWatch(workdir, build.train_image_id(config, info), state.nonfinite)
  watchdog = Watchdog(config.hang_seconds if jax.process_count() > 1 else 0)
  try:
    # ---- Compile -------------------------------------------------------------------------------
    with timings("compile"):
      put = functools.partial(sharding.shard_batch, mesh=mesh)
      batches = sharding.prefetch(stream, lambda host: (host["index"], put(host)))
      first = next(batches)
      batches = itertools.chain([first], batches)
      train_step = train_step.lower(state, *constants, first[1]).compile()
      guard.check()
      example = put(next(iter(split.stream)))
      eval_step = eval_step.lower(_judged(state), *constants, example).compile()
      guard.check()
    watchdog.beat()

    while not _ended(config, epoch, stopping):
      # ---- Train: one epoch --------------------------------------------------------------------
      first_step, last_step = step, (epoch + 1) * stream.steps_per_epoch
      started = time.monotonic()
      with timings("train"):
        for _ in progress(range(first_step, last_step), f"epoch {epoch + 1}"):
          with timings("data_wait"):
            index, batch = next(batches)
          state = train_step(state, *constants, batch)
          watch.saw(step, index)
          step += 1
          output.after_step(step)
          watchdog.beat()
          if step % config.log.every_steps == 0:
            watch.check(state.nonfinite)
          if config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0:
            save()
          guard.check()
        watch.check(state.nonfinite)  # Waits for the devices, so that the time is the epoch's.
      seconds = time.monotonic() - started

      # ---- Evaluate: every validation picture once, every prompt on it -------------------------
      with timings("evaluate"):
        evaluation = evaluate(
          eval_step, _judged(state), constants, split, mesh, after_batch=guard.check
        )
        watchdog.beat()

      # ---- Decide: rate, end, best -------------------------------------------------------------
      epoch += 1
      rate = float(schedule(step - 1)) * plateau.scale
      row = outputs.epoch_row(epoch, step, rate, jax.device_get(state.sums), evaluation)
      history.append(row)
      plateau.update(row[config.plateau.metric])
      stopping.update(row["val_iou"])
      fresh = sharding.replicate((EpochSums.zeros(), jnp.float32(plateau.scale)), mesh)
      state = state.replace(sums=fresh[0], lr_scale=fresh[1])

      # ---- Write -------------------------------------------------------------------------------
      images_per_second = config.batch_size * (step - first_step) / max(seconds, 1e-9)
      output.record(history, evaluation, split)
      output.writer.write_scalars(step, {"images_per_second": images_per_second})
      output.say(outputs.console_line(row, config.epochs, str(stopping), images_per_second))
      if config.eval_per_prompt:
        output.say(outputs.prompt_lines(row))
      with timings("save"):
        if summary.best_of(history, "val_iou") == {"value": row["val_iou"], "epoch": epoch}:
          output.save_judgement(evaluation, split)
          save_model("best_model", row)
      # After best_model: whoever resumes here finds it written.
      save(epoch=epoch, metrics={"val_iou": row["val_iou"]})

    # ---- End -----------------------------------------------------------------------------------
    with timings("save"):
      checkpoints.wait()
      if history:
        save_model("final_model", history[-1])
    content = summary.make_summary(
      history,
      training_args=config.to_dict(),
      stopped=_ended(config, epoch, stopping),
      timings=timings.summary(),
      speed=timings.speed(pictures=epoch * stream.num_examples),
      environment=config_lib.environment(),
    )
    output.finish(content, config.to_dict())
    output.say(outputs.ending(history, content))
    return content
  except Interrupted:
    save()
    checkpoints.wait()
    output.say(f"saved step {step}; resume with the same command")
    raise
  finally:
    watchdog.close()
    output.close()


def _ended(config: ConfigDict, epoch: int, stopping: EarlyStopping) -> str:
  """Returns why training is over after so many completed epochs; empty: it is not."""
  if stopping.should_stop:
    return f"no better validation IoU for {stopping.bad_epochs} epochs"
  return f"all {epoch} epochs" if epoch >= config.epochs else ""


def _judged(state: TrainState) -> dict:
  """Returns the parameters to evaluate and export: the moving average where there is one."""
  return state.params if state.ema is None else state.ema


def _count(params: dict) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))
