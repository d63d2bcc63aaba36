"""finetune with low-rank factors on the vision tower's attention as well, at half the rate.

Costs a backward pass through the tower, which `finetune` does without. Everything else is
finetune's, so that the two compare.

    main.py --config=configs/finetune_lora.py --workdir=runs/finetune_lora --config.data_dir=DIR
"""

from configs import finetune


def get_config():
  c = finetune.get_config()
  c.trainable = "lora"
  c.lora.rank = 8
  c.lora.alpha = 16.0
  c.lr = 5e-4
  c.schedule.warmup_epochs = 1.0  # Adam's first steps are blind, and the tower is good
  return c
