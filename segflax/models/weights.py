"""One table of names: Hugging Face's CLIPSeg tensors and our parameters, in both directions."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from segflax.errors import UserError
from segflax.models.clipseg import param_shapes
from segflax.models.config import CLIPSegConfig

_FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
PICKLES = (".bin", ".pt", ".pth")
_LISTED = 8  # names per kind of fault in a report


class Entry(NamedTuple):
  """A tensor and its parameter: `ours = theirs.transpose(axes).reshape(shape of ours)`."""

  theirs: str
  ours: str
  shape: tuple[int, ...]  # of theirs
  axes: tuple[int, ...]


def table(config: CLIPSegConfig) -> list[Entry]:
  """Returns an entry for every tensor of transformers' CLIPSegForImageSegmentation."""
  ours = param_shapes(config)
  entries = []

  def same(theirs: str, path: str):
    entries.append(Entry(theirs, path, ours[path], tuple(range(len(ours[path])))))

  def norm(theirs: str, path: str):
    same(f"{theirs}.weight", f"{path}/scale")
    same(f"{theirs}.bias", f"{path}/bias")

  def linear(theirs: str, path: str, bias: bool = True):
    entries.append(
      Entry(f"{theirs}.weight", f"{path}/kernel", ours[f"{path}/kernel"][::-1], (1, 0))
    )
    if bias:
      same(f"{theirs}.bias", f"{path}/bias")

  def block(theirs: str, path: str):
    for a, b in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
      linear(f"{theirs}.self_attn.{a}", f"{path}/attention/{b}")
    for i in (1, 2):
      linear(f"{theirs}.mlp.fc{i}", f"{path}/mlp/fc{i}")
      norm(f"{theirs}.layer_norm{i}", f"{path}/norm{i}")

  def enlarge(theirs: str, path: str, factor: int):
    inputs, pixels = ours[f"{path}/pixels/kernel"]
    shape = (inputs, pixels // factor**2, factor, factor)
    entries.append(Entry(f"{theirs}.weight", f"{path}/pixels/kernel", shape, (0, 2, 3, 1)))
    same(f"{theirs}.bias", f"{path}/bias")

  same("clip.logit_scale", "logit_scale")

  vision, p = "clip.vision_model", config.patch_size
  same(f"{vision}.embeddings.class_embedding", "vision/class_embedding")
  same(f"{vision}.embeddings.position_embedding.weight", "vision/position_embedding")
  patches = f"{vision}.embeddings.patch_embedding.weight"
  shape = (config.vision_width, 3, p, p)
  entries.append(Entry(patches, "vision/patch_embedding/kernel", shape, (2, 3, 1, 0)))
  norm(f"{vision}.pre_layrnorm", "vision/pre_norm")  # CLIP's own spelling
  for i in range(config.vision_layers):
    block(f"{vision}.encoder.layers.{i}", f"vision/blocks_{i}")
  norm(f"{vision}.post_layernorm", "vision/post_norm")
  linear("clip.visual_projection", "vision/projection", bias=False)

  text = "clip.text_model"
  same(f"{text}.embeddings.token_embedding.weight", "text/token_embedding")
  same(f"{text}.embeddings.position_embedding.weight", "text/position_embedding")
  for i in range(config.text_layers):
    block(f"{text}.encoder.layers.{i}", f"text/blocks_{i}")
  norm(f"{text}.final_layer_norm", "text/final_norm")
  linear("clip.text_projection", "text/projection", bias=False)

  linear("decoder.film_mul", "decoder/film/mul")
  linear("decoder.film_add", "decoder/film/add")
  for i in range(len(config.taps)):
    linear(f"decoder.reduces.{i}", f"decoder/reduces_{i}")
    block(f"decoder.layers.{i}", f"decoder/blocks_{i}")
  head = "decoder.transposed_convolution"
  if config.refined:
    conv = (config.reduce_dim, config.reduce_dim, 3, 3)
    entries.append(Entry(f"{head}.0.weight", "decoder/head/conv/kernel", conv, (2, 3, 1, 0)))
    same(f"{head}.0.bias", "decoder/head/conv/bias")
    for i in (0, 1):  # 1 and 3 are the ReLUs between
      enlarge(f"{head}.{2 * i + 2}", f"decoder/head/enlarge_{i}", config.head[i])
  else:
    enlarge(head, "decoder/head/enlarge", config.head[0])
  return entries


def clip_table(config: CLIPSegConfig) -> list[Entry]:
  """Returns the entries of the towers under the names of transformers' CLIPModel."""
  clip = (entry for entry in table(config) if entry.theirs.startswith("clip."))
  return [entry._replace(theirs=entry.theirs.removeprefix("clip.")) for entry in clip]


def to_params(
  tensors: dict[str, np.ndarray], entries: list[Entry], config: CLIPSegConfig, name: str
) -> dict:
  """Turns tensors into the float32 parameters of the entries, each exactly once.

  Raises:
    UserError: one report of all missing, extra, misshapen and non-float tensors of `name`.
  """
  # Buffers of older checkpoints: 0, 1, 2, …
  tensors = {k: v for k, v in tensors.items() if not k.endswith(".position_ids")}
  expected = {entry.theirs: entry.shape for entry in entries}
  _check(tensors, expected, name, "config.json does not describe these weights")
  shapes = param_shapes(config)
  params = {
    entry.ours: np.asarray(
      tensors[entry.theirs].astype(np.float32).transpose(entry.axes).reshape(shapes[entry.ours]),
      order="C",
    )
    for entry in entries
  }
  return unflatten_dict(params, sep="/")


def to_tensors(params: dict, config: CLIPSegConfig) -> dict[str, np.ndarray]:
  """Inverse of `to_params` over the whole table.

  Raises:
    UserError: one report of all missing, extra, misshapen and non-float parameters.
  """
  flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
  _check(flat, param_shapes(config), "params", "they do not belong to model.config")
  tensors = {}
  for entry in table(config):
    permuted = flat[entry.ours].astype(np.float32).reshape([entry.shape[a] for a in entry.axes])
    tensors[entry.theirs] = np.asarray(permuted.transpose(np.argsort(entry.axes)), order="C")
  return tensors


def _check(found: dict[str, np.ndarray], expected: dict[str, tuple], name: str, hint: str):
  shared = sorted(found.keys() & expected.keys())
  faults = {
    "missing": sorted(expected.keys() - found.keys()),
    "extra": sorted(found.keys() - expected.keys()),
    "misshapen": [
      f"{k} {found[k].shape} instead of {expected[k]}"
      for k in shared
      if found[k].shape != expected[k]
    ],
    "not floating point": [
      f"{k} {found[k].dtype}" for k in shared if found[k].dtype not in _FLOATS
    ],
  }
  report = "; ".join(f"{kind}: {_list(names)}" for kind, names in faults.items() if names)
  if report:
    raise UserError(f"{name} cannot be used, {hint}: {report}")


def _list(names: Iterable[str]) -> str:
  names = list(names)
  more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
  return ", ".join(names[:_LISTED]) + more


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
  """Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names.

  Raises:
    UserError: no safetensors, only a pickle, a damaged file or index.
  """
  single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
  if single.exists():
    return _read(single)
  if index.exists():
    try:
      weight_map = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
      raise UserError(f"{index} is damaged ({error!r}); fetch the folder again") from error
    tensors = {}
    for shard in sorted(set(weight_map.values())):
      if Path(shard).name != shard:
        raise UserError(f"{index} names {shard!r}, which leaves the folder; fetch it again")
      tensors |= _read(folder / shard)
    return tensors
  if any(path.suffix in PICKLES for path in folder.iterdir()):
    raise UserError(only_pickles(folder))
  raise UserError(f"{folder} has no model.safetensors; give a Hugging Face CLIPSeg folder")


def only_pickles(place: Path | str) -> str:
  """Returns the sentence for a folder or hub id whose weights are pickled."""
  return (
    f"{place} has only pickled weights, which can run code when opened and are never loaded; "
    "convert it with transformers on a machine that trusts it: CLIPSegForImageSegmentation"
    ".from_pretrained(…).save_pretrained(folder) writes model.safetensors"
  )


def _read(path: Path) -> dict[str, np.ndarray]:
  try:
    return load_file(path)
  except (OSError, SafetensorError) as error:
    raise UserError(f"{path} cannot be read ({error}); fetch it again") from error
