"""baseline with a five times higher learning rate.

    main.py --config=configs/higher_lr.py --workdir=runs/higher_lr \
        --config.data_dir=DIR --config.model.pretrained=CIDAS/clipseg-rd64-refined
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.lr = 5e-4
  return c
