"""The decoder on CLIPSeg's released weights, as a dozen public projects do it, with what helped.

Bias towards what drywall needs: cosine instead of a constant rate, all flips, light and colour, and
every tenth prompt a negative one.

    main.py --config=configs/finetune.py --workdir=runs/finetune --config.data_dir=DIR
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.model.pretrained = "CIDAS/clipseg-rd64-refined"
  c.trainable = "decoder"
  c.lr = 1e-3  # the paper's
  c.schedule.name = "cosine"
  c.schedule.final_fraction = 0.1
  c.prompts.negative_probability = 0.1
  c.augment.vertical_flip = 0.5
  c.augment.scale = 0.3
  c.augment.brightness = 0.2
  c.augment.contrast = 0.2
  return c
