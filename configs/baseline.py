"""The origin's defaults: decoder fine-tuning of a pretrained CLIPSeg, or training from scratch.

    main.py --config=configs/baseline.py --workdir=runs/baseline --config.data_dir=DIR \
        --config.model.pretrained=CIDAS/clipseg-rd64-refined

Every field that segflax knows stands here with its default; the other templates change a few.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()

  # The origin's names and defaults.
  c.data_dir = ""  # prepared data set (scripts/prepare_data.py)
  c.batch_size = 8  # pictures per update, over all devices
  c.epochs = 50  # at most
  c.lr = 1e-4  # peak learning rate of AdamW
  c.image_size = 512  # pixels, a multiple of the model's patch
  c.early_stopping_patience = 10  # epochs without a better validation IoU; 0: never stop early
  c.gradient_clip = 1.0  # global norm of the trained leaves' gradient; 0: off
  c.mixed_precision = False  # bfloat16 compute; parameters, loss and reductions stay float32
  c.eval_per_prompt = False  # evaluate every synonym, not only each concept's first
  c.seed = 42

  c.resume = ""  # another run's workdir, or one of its checkpoints, to start from
  # Which parameters train: auto (decoder of a pretrained model, else everything), decoder,
  # decoder_norms, vision_last_K, everything, or a regular expression over parameter paths.
  c.trainable = "auto"

  c.model = ConfigDict()
  c.model.pretrained = ""  # Hugging Face CLIPSeg or CLIP folder, hub id, or a run's best_model
  c.model.preset = "rd64-refined"  # architecture where pretrained is empty
  c.model.decoder_dropout = 0.0  # the original trains with 0.1, transformers' port has none
  c.model.attention = "auto"  # auto, plain, mapped (CPU), fused (accelerators)

  c.data = ConfigDict()
  c.data.train_split = "train"
  c.data.val_split = "val"
  c.data.num_threads = 2  # decoding threads per process
  c.data.max_corrupt = 10  # unreadable pictures set aside before the run is refused
  c.data.prompts_per_picture = 1  # concepts of one picture that share a step's vision pass

  c.prompts = ConfigDict()
  c.prompts.synonyms = ConfigDict()  # concept -> prompts; the built-in ones where empty
  c.prompts.negative_probability = 0.0  # another concept's prompt with an empty mask

  # Generated walls (segflax/data/synthetic.py), written to data_dir where it is empty.
  c.synthetic = ConfigDict()
  c.synthetic.train_pictures = 0  # 0: data_dir holds a prepared data set
  c.synthetic.val_pictures = 0
  c.synthetic.test_pictures = 0
  c.synthetic.size = 80  # pixels, square

  c.augment = ConfigDict()  # strengths; 0: off (segflax/data/augment.py)

  c.loss = ConfigDict()
  c.loss.name = "bce_dice"

  c.schedule = ConfigDict()
  c.schedule.name = "constant"  # constant or cosine, times what the plateau makes of it

  c.plateau = ConfigDict()  # ReduceLROnPlateau on validation loss

  c.checkpoint = ConfigDict()
  c.checkpoint.every_epochs = 10  # kept for good; best and latest are kept besides

  c.eval = ConfigDict()
  c.eval.batch_size = 0  # pictures per evaluation step; 0: as batch_size
  c.eval.threshold = 0.5  # of val_iou and the other metrics of training

  return c
