"""One checkpoint on disk: arrays written by Orbax, a run document, a checksum per leaf.

Orbax neither notices flipped bits nor refuses to cast, so both are done here: the document holds
shape, dtype and sha256 of every leaf (and a sha256 of itself), compared before and after loading.
"""

import base64
import concurrent.futures
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from segflax.errors import UserError

DOCUMENT = "run/data.json"  # where Orbax's JsonHandler puts the checkpointable named "run"
# What reading a damaged folder raises, found by flipping and cutting every file of one: Orbax and
# TensorStore have no class of their own for it.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError)
_SHOWN = 8  # differing leaves listed in full


class Damaged(Exception):
  """The folder cannot be read back as it was written; says what was found."""


def write(path: Path, state, document: dict) -> ocp.AsyncResponse:
  """Starts writing; all processes call it. The folder gets its name when everything is on disk.

  Args:
    state: pytree of jax arrays, each replicated over (or wholly owned by) this process. Copied to
      the host before this returns: the caller may donate it to the next step.
    document: JSON; "leaves" is added to it.
  """
  flat = _flatten(state)
  content = document | {"leaves": _describe(flat)}
  run = {"sha256": _digest_json(content), "content": content}
  registry = ocp.handlers.local_registry()
  registry.add(ocp.handlers.JsonHandler, checkpointable_name="run")
  context = ocp.Context()
  context.checkpointables_options.registry = registry
  # Orbax's own notes on arrays: shardings are given anew, sums are checked here; a third less CPU.
  saving = context.array_options.saving
  saving.array_metadata_store = None
  saving.enable_write_sharding_file = False
  saving.enable_post_merge_validation = False
  with context:
    return ocp.save_checkpointables_async(path, {"state": flat, "run": run})


def read_document(path: Path) -> dict:
  """Returns the document that `write` was given, with "leaves".

  Raises:
    Damaged: the file is missing, cut, or not what was written.
  """
  try:
    run = json.loads((path / DOCUMENT).read_text())
    content, digest = run["content"], run["sha256"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise Damaged(f"{DOCUMENT}: {first_line(error)}") from error
  if _digest_json(content) != digest:
    raise Damaged(f"{DOCUMENT}: its checksum does not match")
  return content


def read(path: Path, like) -> tuple[object, dict]:
  """Reads a checkpoint back, bit for bit, onto the shardings of `like`.

  Args:
    like: pytree of jax arrays or ShapeDtypeStructs: the structure to fill. A leaf without sharding
      goes to the first device.

  Returns:
    (state, document).

  Raises:
    Damaged: the folder is not what was written.
    UserError: it is sound but holds other leaves, shapes or dtypes than `like`.
  """
  document = read_document(path)
  wanted = _flatten(like)
  check_fit(document["leaves"], wanted, path.name)
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or first)
    for name, leaf in wanted.items()
  }
  try:
    flat = ocp.load_checkpointables(path, {"state": abstract})["state"]
    found = _describe(flat)
  except UNREADABLE as error:
    raise Damaged(first_line(error)) from error
  wrong = [name for name, leaf in document["leaves"].items() if found[name] != leaf]
  if wrong:
    raise Damaged(f"checksum of {wrong[0]} does not match{_and_more(len(wrong) - 1)}")
  leaves = [flat[name] for name in wanted]  # Orbax sorts by another rule than jax.tree.
  return jax.tree.unflatten(jax.tree.structure(like), leaves), document


def check_fit(saved: dict, wanted: dict, name: str):
  """Raises UserError that lists every leaf whose presence, shape or dtype differs."""
  lines = [f"{path} is not in the checkpoint" for path in wanted if path not in saved]
  lines += [f"{path} is only in the checkpoint" for path in saved if path not in wanted]
  for path, leaf in wanted.items():
    if path in saved:
      was = (tuple(saved[path]["shape"]), saved[path]["dtype"])
      now = (tuple(leaf.shape), str(leaf.dtype))
      if was != now:
        lines.append(f"{path} was saved as {was[1]}{list(was[0])}, not {now[1]}{list(now[0])}")
  if lines:
    raise UserError(
      f"checkpoint {name} does not fit this config: {'; '.join(lines[:_SHOWN])}"
      f"{_and_more(len(lines) - _SHOWN)}. Give the config it was trained with"
    )


def encode_data_state(data_state) -> dict:
  """Makes JSON of a data position, which is JSON already or bytes."""
  if isinstance(data_state, bytes):
    return {"base64": base64.b64encode(data_state).decode()}
  return {"json": data_state}


def decode_data_state(encoded: dict):
  """Inverse of `encode_data_state`."""
  if "base64" in encoded:
    return base64.b64decode(encoded["base64"])
  return encoded["json"]


def _flatten(tree) -> dict:
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _describe(flat: dict[str, jax.Array]) -> dict[str, dict]:
  """Returns path -> shape, dtype, sha256, from the copy that this process holds."""

  def describe(leaf):
    if not (leaf.is_fully_replicated or leaf.is_fully_addressable):
      raise ValueError(f"a leaf of sharding {leaf.sharding} is on no process as a whole")
    array = np.asarray(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(data.data).hexdigest()
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": digest}

  with concurrent.futures.ThreadPoolExecutor() as pool:  # hashlib releases the GIL.
    return dict(zip(flat, pool.map(describe, flat.values()), strict=True))


def _digest_json(content) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_line(error: BaseException) -> str:
  """Returns what started it, in one line: Orbax wraps TensorStore's errors several times."""
  while error.__cause__ or error.__context__:
    error = error.__cause__ or error.__context__
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _and_more(count: int) -> str:
  return f", and {count} more" if count > 0 else ""
