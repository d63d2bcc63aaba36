"""A run that takes seconds, for tests and for processes that tests start."""

from configs import quickstart


def tiny(walls, **changes):
  """The quickstart config at a size that trains in seconds; `changes` name leaves by `a__b`."""
  config = quickstart.get_config()
  config.update_from_flattened_dict(
    {
      "data_dir": str(walls),
      "synthetic.train_pictures": 12,
      "synthetic.val_pictures": 5,  # no multiple of the batch: the last one is padded
      "synthetic.test_pictures": 4,
      "synthetic.size": 32,
      "image_size": 32,
      "batch_size": 4,
      "eval.batch_size": 2,
      "epochs": 2,
      "schedule.warmup_epochs": 0.0,
    }
  )
  config.update_from_flattened_dict({name.replace("__", "."): v for name, v in changes.items()})
  return config
