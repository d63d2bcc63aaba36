"""A small CLIPSeg from scratch on your own pictures: no download, trains on a laptop's two cores.

main.py --config=configs/from_scratch.py --workdir=runs/from_scratch --config.data_dir=DIR
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.model.preset = "small"
  c.image_size = 160
  c.batch_size = 16
  c.epochs = 30
  c.lr = 1e-3
  c.schedule.name = "cosine"
  c.schedule.warmup_epochs = 1.0
  c.prompts.negative_probability = 0.2
  c.augment.vertical_flip = 0.5
  c.augment.transpose = 0.5
  c.augment.scale = 0.3
  c.augment.brightness = 0.2
  c.augment.contrast = 0.2
  return c
