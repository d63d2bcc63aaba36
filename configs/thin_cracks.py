"""For hairline cracks: more pixels, misses cost more than false alarms, skeleton recall on top.

Predict with tiles: a large picture shrunk to the network loses such cracks whatever was trained.

    main.py --config=configs/thin_cracks.py --workdir=runs/thin_cracks \
        --config.data_dir=DIR --config.model.pretrained=CIDAS/clipseg-rd64-refined
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.image_size = 640
  c.loss.name = "bce_dice_skeleton"
  c.loss.pos_weight = 3.0
  c.augment.vertical_flip = 0.5
  c.augment.scale = 0.5
  return c
