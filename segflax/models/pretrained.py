"""Hugging Face folders and hub ids to (model, params, processor), and back to a folder."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
from safetensors.numpy import save_file

from segflax.errors import UserError
from segflax.models import weights
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params
from segflax.models.model_card import ModelCard
from segflax.models.processor import Processor, load_tokenizer, read_json

_FILES = ("*.json", "*.safetensors", "merges.txt", "vocab.txt")  # never a pickle


def from_pretrained(
  path: str | os.PathLike,
  *,
  revision: str | None = None,
  cache_dir: str | os.PathLike | None = None,
  offline: bool = False,
  seed: int = 0,
) -> tuple[CLIPSeg, dict, Processor]:
  """Loads any CLIPSeg, or a plain CLIP as towers under a fresh decoder.

  Args:
    path: a Hugging Face folder, or a hub id such as "CIDAS/clipseg-rd64-refined". The MIT licence
      of the CLIPSeg project does not cover the released weights.
    revision: branch, tag or commit on the hub.
    cache_dir: where huggingface_hub keeps what it fetched; None: its default.
    offline: use that cache alone (so does HF_HUB_OFFLINE=1).
    seed: of the fresh decoder over a plain CLIP.

  Returns:
    (model, params, processor); params are float32 NumPy arrays on the host.

  Raises:
    UserError: nothing there, no safetensors, or tensors that do not fit the config.
  """
  folder = local_folder(path, revision=revision, cache_dir=cache_dir, offline=offline)
  if not (folder / "config.json").exists():
    raise UserError(f"{folder} has no config.json; give a Hugging Face CLIPSeg folder")
  hf = read_json(folder / "config.json")
  config = CLIPSegConfig.from_hf(hf)
  tensors = weights.read_tensors(folder)
  if hf["model_type"] == "clipseg":
    params = weights.to_params(tensors, weights.table(config), config, str(folder))
    return CLIPSeg(config), params, Processor.load(folder)
  params = weights.to_params(tensors, weights.clip_table(config), config, str(folder))
  params["decoder"] = jax.device_get(init_params(config, jax.random.key(seed))["decoder"])
  # A CLIP folder crops pictures and has other means; CLIPSeg has its own way with them.
  return CLIPSeg(config), params, Processor(load_tokenizer(folder))


def save_pretrained(
  path: str | os.PathLike,
  model: CLIPSeg,
  params: dict,
  processor: Processor,
  *,
  card: ModelCard | None = None,
  thresholds: Mapping[str, float] | None = None,
) -> Path:
  """Writes a folder that transformers' CLIPSegForImageSegmentation and CLIPSegProcessor load.

  The folder appears whole or not at all; one that stands at `path` is replaced.

  Args:
    path: folder.
    model: its config is written, its compute dtype is not.
    params: the whole tree; stored as float32.
    processor: tokenizer and picture size.
    card: what `README.md` says of the training; None: a card without it.
    thresholds: prompt -> probability above which a pixel counts, for `thresholds.json`.

  Returns:
    The folder.

  Raises:
    UserError: parameters that do not fit the model's config, or a path that is a file.
  """
  path = Path(path)
  if path.is_file():
    raise UserError(f"{path} is a file; name a folder")
  tensors = weights.to_tensors(params, model.config)
  fresh, old = (path.with_name(f".{path.name}.{kind}") for kind in ("new", "old"))
  shutil.rmtree(fresh, ignore_errors=True)
  fresh.mkdir(parents=True)
  save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
  config = json.dumps(model.config.to_hf(), indent=2, sort_keys=True)
  (fresh / "config.json").write_text(config + "\n")
  processor.save(fresh)
  if thresholds is not None:
    (fresh / "thresholds.json").write_text(json.dumps(dict(thresholds), indent=2) + "\n")
  text = (card or ModelCard()).render(model.config, processor.image_size, thresholds)
  (fresh / "README.md").write_text(text)
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    path.rename(old)
  fresh.rename(path)
  shutil.rmtree(old, ignore_errors=True)
  return path


def local_folder(
  path: str | os.PathLike,
  *,
  revision: str | None = None,
  cache_dir: str | os.PathLike | None = None,
  offline: bool = False,
) -> Path:
  """Returns a local folder as it is, a hub id as its snapshot in the cache.

  Arguments and errors as of `from_pretrained`.
  """
  folder = Path(path).expanduser()
  if folder.is_dir():
    return folder
  name = os.fspath(path)
  if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
    raise UserError(f"{name} is neither a folder nor a hub id such as CIDAS/clipseg-rd64-refined")
  # Slow to import, and needed for the hub alone.
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import HfHubHTTPError

  try:
    snapshot = snapshot_download(
      name,
      revision=revision,
      cache_dir=cache_dir,
      local_files_only=offline,
      allow_patterns=list(_FILES),
    )
  except (OSError, ValueError, HfHubHTTPError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"{name} is no folder here, and the hub's {revision or 'main'} of it cannot be had "
      f"({reason}); check the name, the network, or the cache when offline"
    ) from error
  if not list(Path(snapshot).glob("*.safetensors*")) and not offline:
    _refuse_pickles(name, revision)
  return Path(snapshot)


def _refuse_pickles(name: str, revision: str | None):
  """Raises UserError where pickled weights are all that the hub has: they were not fetched."""
  from huggingface_hub import list_repo_files
  from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

  try:
    files = list_repo_files(name, revision=revision)
  except (OSError, HfHubHTTPError, OfflineModeIsEnabled):
    return  # Then the folder's own error says that there are no weights.
  if any(Path(file).suffix in weights.PICKLES for file in files):
    raise UserError(weights.only_pickles(name))
