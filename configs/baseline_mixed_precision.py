"""baseline in bfloat16: half the activation memory, and faster where bfloat16 is.

Parameters, loss and reductions stay float32; the frozen towers are held in bfloat16.

    main.py --config=configs/baseline_mixed_precision.py --workdir=runs/baseline_mixed_precision \
        --config.data_dir=DIR --config.model.pretrained=CIDAS/clipseg-rd64-refined
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.mixed_precision = True
  return c
