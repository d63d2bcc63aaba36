"""baseline with half the learning rate.

    main.py --config=configs/lower_lr.py --workdir=runs/lower_lr \
        --config.data_dir=DIR --config.model.pretrained=CIDAS/clipseg-rd64-refined
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.lr = 5e-5
  return c
