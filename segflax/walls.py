"""The generated walls of a run: written to its data_dir where that is empty, then only compared."""

from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from segflax.data import builder, synthetic
from segflax.errors import UserError

NAME = "generated walls"


def ensure(config: ConfigDict):
  """Writes the walls of `config.synthetic` to data_dir unless there is a data set already.

  Raises:
    UserError: the data set that is there is another.
  """
  wanted = config.synthetic.to_dict()
  if jax.process_index() == 0 and not (Path(config.data_dir) / builder.NAME).exists():
    _write(config, wanted)
  # For all, whatever each of them saw: one process may come when another has written already.
  multihost_utils.sync_global_devices("walls written")
  if builder.load_info(config.data_dir).sources != {NAME: wanted}:
    raise UserError(
      f"data_dir {config.data_dir} holds other data than config.synthetic asks for ({wanted}); "
      "name another data_dir, or remove this one"
    )


def _write(config: ConfigDict, wanted: dict):
  # Every split has a seed of its own: no wall stands in two of them.
  names = (config.data.train_split, config.data.val_split, "test")
  sizes = (wanted["train_pictures"], wanted["val_pictures"], wanted["test_pictures"])
  splits = {
    name: synthetic.generate_walls(n, wanted["size"], 3 * wanted["seed"] + i)
    for i, (name, n) in enumerate(zip(names, sizes, strict=True))
  }
  metadata = {"sources": {NAME: wanted}, "licenses": ["generated, free of rights"]}
  builder.write_dataset(config.data_dir, splits, synthetic.CONCEPTS, metadata)
