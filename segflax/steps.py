"""The train step and the evaluation step: pure per-device bodies, mapped over the mesh and jitted.

`jit(shard_map(body))` with explicit `psum` is what `jax.pmap` has become since jax 0.8. State is
one logical replicated array per leaf, so nothing here knows how many devices there are.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from segflax import counts, lora
from segflax.data.augment import AugmentConfig, augment
from segflax.models.clipseg import CLIPSeg, encode_pictures
from segflax.sharding import AXIS
from segflax.train_state import RECENT, EpochSums, NonFinite, TrainState, merge_params


def _per_device(body: Callable, mesh: Mesh, in_specs, out_specs, **jit_options) -> Callable:
  # check_vma=False: with the check on, differentiating with respect to replicated parameters sums
  # over devices by itself; the bodies below say so in one visible psum instead.
  mapped = jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  return jax.jit(mapped, **jit_options)


def prompt_table(model: CLIPSeg, params: dict, tokens, *, text_is_frozen: bool) -> dict:
  """Returns what a step looks prompts up in.

  A frozen text tower runs here, once per distinct prompt, and never again.

  Args:
    tokens: `[P, l]` int32, every distinct prompt.

  Returns:
    {"condition": `[P, p]` float32} if the text tower is frozen, else {"tokens": `[P, l]` int32}.
  """
  if not text_is_frozen:
    return {"tokens": jnp.asarray(tokens)}
  encode = jax.jit(functools.partial(model.apply, method="encode_text"))
  return {"condition": encode({"params": params}, tokens)}


def _look_up(model: CLIPSeg, params: dict, table: dict, prompt: jax.Array) -> jax.Array:
  """Returns the conditions `[b q p]` of prompt ids `[b q]`."""
  if "condition" in table:
    return table["condition"][prompt]
  tokens = table["tokens"]
  encode = functools.partial(model.apply, {"params": params}, method="encode_text")
  if prompt.size < len(tokens):  # Static: whichever is fewer sequences for the text tower.
    return encode(tokens[prompt.reshape(-1)]).reshape(*prompt.shape, -1)
  return encode(tokens)[prompt]


def make_train_step(
  model: CLIPSeg,
  tx: optax.GradientTransformation,
  loss_fn: Callable,
  mesh: Mesh,
  *,
  augment_config: AugmentConfig,
  ema_decay: float = 0.0,
  accumulate: int = 1,
  max_nonfinite: int = 0,
) -> Callable:
  """Returns the jitted `step(state, frozen, table, batch) -> state`; `state` is donated.

  The loss is the mean over the valid (picture, prompt) pairs of the *global* batch, so that
  neither the number of devices nor `accumulate` nor padding changes it.

  Args:
    loss_fn: (logits `[b q h w]`, target `[b q h w]` in [0, 1]) -> `[b q]`, all float32.
    ema_decay: of the moving average of the trained leaves, in [0, 1); used if `state.ema` is set.
    accumulate: pieces the local batch is cut into to save memory.
    max_nonfinite: updates in a row that may be skipped for a non-finite loss or gradient; one
      more, and `state.nonfinite.halted` stops all further change.
  """

  change = jax.vmap(functools.partial(augment, config=augment_config))

  def picture_side(params, frozen, batch):
    """Returns the taps of the augmented pictures, and masks `[b q h w]` changed alike."""
    mask = batch["mask"].astype(jnp.float32) / 255
    if "taps" in batch:  # feature_cache has encoded a view of each picture: masks follow that view
      b, _, h, w = mask.shape
      _, target = change(batch["view_key"], jnp.zeros((b, h, w, 3), jnp.uint8), mask)
      return batch["taps"], target
    image, target = change(batch["key"], batch["image"], mask)
    merged = lora.merge(merge_params(params, frozen))
    return encode_pictures(model, merged, 255 * image, one_by_one="vision" not in params), target

  def loss_sum(params, frozen, table, batch, pairs):
    taps, target = picture_side(params, frozen, batch)
    merged = lora.merge(merge_params(params, frozen))
    condition = _look_up(model, merged, table, batch["prompt"])
    logits = model.apply(
      {"params": merged},
      taps,
      condition,
      target.shape[-2:],
      train=True,
      keys=batch["key"],
      method="decode",
    )
    return jnp.where(batch["valid"], loss_fn(logits, target), 0).sum() / pairs

  def body(state: TrainState, frozen, table, batch):
    pairs = jax.lax.psum(batch["valid"].sum().astype(jnp.float32), AXIS)
    some = jnp.maximum(pairs, 1)  # A batch may hold nothing valid: padding and a corrupt picture.
    grad_fn = jax.value_and_grad(loss_sum)
    if accumulate == 1:
      loss, grads = grad_fn(state.params, frozen, table, batch, some)
    else:
      pieces = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
      zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))

      def add(total, piece):
        new = grad_fn(state.params, frozen, table, piece, some)
        return jax.tree.map(jnp.add, total, new), None

      (loss, grads), _ = jax.lax.scan(add, zeros, pieces)
    loss, grads = jax.lax.psum((loss, grads), AXIS)

    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    nonfinite = _count_nonfinite(state, finite, max_nonfinite)
    apply = finite & ~nonfinite.halted & (pairs > 0)

    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    # AdamW's update is linear in its rate: scaling it is the plateau's "reduce the rate".
    params = optax.apply_updates(state.params, optax.tree.scale(state.lr_scale, updates))
    ema = state.ema
    if ema is not None:
      ema = optax.tree.add(
        optax.tree.scale(ema_decay, ema), optax.tree.scale(1 - ema_decay, params)
      )
    sums = EpochSums(
      loss=state.sums.loss + loss * pairs,
      pairs=state.sums.pairs + pairs,
      grad_norm=state.sums.grad_norm + grad_norm,
      steps=state.sums.steps + 1,
    )
    new = state.replace(params=params, opt_state=opt_state, ema=ema, sums=sums)
    new = jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, state)
    return new.replace(
      step=state.step + ~nonfinite.halted, lr_scale=state.lr_scale, nonfinite=nonfinite
    )

  return _per_device(body, mesh, in_specs=(P(), P(), P(), P(AXIS)), out_specs=P(), donate_argnums=0)


def _count_nonfinite(state: TrainState, finite: jax.Array, limit: int) -> NonFinite:
  was = state.nonfinite
  streak = jnp.where(finite, 0, was.streak + 1)
  now = NonFinite(
    streak=streak,
    total=was.total + ~finite,
    recent=jnp.where(finite, was.recent, was.recent.at[was.total % RECENT].set(state.step)),
    halted=streak > limit,
  )
  return jax.tree.map(lambda old, new: jnp.where(was.halted, old, new), was, now)


def make_eval_step(
  model: CLIPSeg,
  loss_fn: Callable,
  mesh: Mesh,
  *,
  prompts,
  concept_of,
  threshold: float,
) -> Callable:
  """Returns the jitted `step(params, frozen, table, batch) -> (rows, probability)`.

  A picture is encoded once and asked every prompt. The loss is taken at the network's size against
  area-averaged truth; pixels are counted at the picture's own size, after its probabilities were
  stretched to it.

  Args:
    prompts: `[P]` prompt ids to ask of every picture.
    concept_of: `[P]` concept number of each of them.
    threshold: of the counts between prompts, one of `counts.THRESHOLDS`.

  Returns (of the step):
    rows: `counts` [B P t 4], `pairs` [B P P 3 2], `loss` [B P], `known` [B P], `valid` [B] and
      `index` [B] of the *global* batch, the same on every process.
    probability: `[B P s s]` uint8 0..255, split over devices; costs nothing unless fetched.
  """
  prompts, concept_of = jnp.asarray(prompts), jnp.asarray(concept_of)
  thresholds = jnp.asarray(counts.THRESHOLDS, jnp.float32)

  def body(params, frozen, table, batch):
    merged = lora.merge(merge_params(params, frozen))
    image = batch["image"]
    ask = jnp.broadcast_to(prompts, (len(image), len(prompts)))
    taps = batch["taps"] if "taps" in batch else encode_pictures(model, merged, image)
    condition = _look_up(model, merged, table, ask)
    logits = model.apply({"params": merged}, taps, condition, image.shape[1:3], method="decode")
    probability = jax.nn.sigmoid(logits)

    truth = batch["mask"][:, concept_of] > 0
    to_network = functools.partial(counts.resize_to_network, network=image.shape[1:3])
    count = functools.partial(counts.picture_counts, thresholds=thresholds, threshold=threshold)
    rows = jax.vmap(count)(probability, truth, batch["size"]) | {
      "loss": loss_fn(logits, jax.vmap(to_network)(truth, batch["size"])),
      "known": batch["known"][:, concept_of],
      "valid": batch["valid"],
      "index": batch["index"],
    }
    return (
      jax.lax.all_gather(rows, AXIS, tiled=True),
      jnp.round(probability * 255).astype(jnp.uint8),
    )

  return _per_device(body, mesh, in_specs=(P(), P(), P(), P(AXIS)), out_specs=(P(), P(AXIS)))
