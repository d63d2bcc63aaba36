"""baseline that asks every synonym in evaluation: do they agree, and which is best?

    main.py --config=configs/with_per_prompt_eval.py --workdir=runs/with_per_prompt_eval \
        --config.data_dir=DIR --config.model.pretrained=CIDAS/clipseg-rd64-refined
"""

from configs import baseline


def get_config():
  c = baseline.get_config()
  c.eval_per_prompt = True
  return c
