"""finetune's data and schedule, with low-rank factors on the vision tower's attention as well.

Costs a backward pass through the tower, which `finetune` does without.

    main.py --config=configs/finetune_lora.py --workdir=runs/finetune_lora --config.data_dir=DIR
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.model.pretrained = "CIDAS/clipseg-rd64-refined"
  c.trainable = "lora"
  c.lora.rank = 8
  c.lora.alpha = 16.0
  c.lr = 5e-4
  c.schedule.name = "cosine"
  c.schedule.warmup_epochs = 1.0
  c.prompts.negative_probability = 0.1
  c.augment.vertical_flip = 0.5
  c.augment.brightness = 0.2
  c.augment.contrast = 0.2
  return c
