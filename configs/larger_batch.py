"""baseline with twice the batch; the learning rate stays, so that one thing changes.

    main.py --config=configs/larger_batch.py --workdir=runs/larger_batch \
        --config.data_dir=DIR --config.model.pretrained=CIDAS/clipseg-rd64-refined
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.batch_size = 16
  return c
