"""The origin's defaults: decoder fine-tuning of a pretrained CLIPSeg, or training from scratch.

    main.py --config=configs/baseline.py --workdir=runs/baseline \
        --config.data_dir=DIR --config.model.pretrained=CIDAS/clipseg-rd64-refined

Every field that segflax knows stands here with its default; the other templates change a few.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  c = ConfigDict()

  # The origin's names and defaults.
  c.data_dir = ""  # prepared data set (scripts/prepare_data.py)
  # Pictures per update, over all devices. "auto": as many as fit, by the compiled step's memory.
  c.batch_size = FieldReference(8, field_type=object)
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
  # decoder_norms, vision_last_K, lora, everything, or a regular expression over parameter paths.
  c.trainable = "auto"

  c.lora = ConfigDict()  # low-rank factors on the vision tower's attention; for trainable=lora
  c.lora.rank = 0  # 0: none
  c.lora.alpha = 0.0  # the product is scaled by alpha / rank; 0: by 1

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
  c.prompts.templates = ("{}",)  # each synonym goes into each of them
  c.prompts.negative_probability = 0.0  # another concept's prompt with an empty mask

  # Generated walls (segflax/data/synthetic.py), written to data_dir where it is empty.
  c.synthetic = ConfigDict()
  c.synthetic.train_pictures = 0  # 0: data_dir holds a prepared data set
  c.synthetic.val_pictures = 0
  c.synthetic.test_pictures = 0
  c.synthetic.size = 80  # pixels, square
  c.synthetic.seed = 0

  c.augment = ConfigDict()  # at most; 0: off (segflax/data/augment.py explains the units)
  c.augment.horizontal_flip = 0.5  # probability
  c.augment.vertical_flip = 0.0
  c.augment.transpose = 0.0
  c.augment.scale = 0.0
  c.augment.rotation = 0.0  # degrees
  c.augment.brightness = 0.0
  c.augment.contrast = 0.0
  c.augment.saturation = 0.0
  c.augment.blur = 0.0  # pixels
  c.augment.noise = 0.0

  c.loss = ConfigDict()
  c.loss.name = "bce_dice"  # segflax/losses.py lists the others
  c.loss.bce_weight = 1.0
  c.loss.dice_weight = 1.0
  c.loss.pos_weight = 1.0  # of foreground pixels in BCE
  c.loss.smooth = 1.0  # pixels, of Dice and its relatives
  c.loss.focal_alpha = 0.25  # weight of the foreground
  c.loss.focal_gamma = 2.0
  c.loss.tversky_fp = 0.3  # price of a false alarm
  c.loss.tversky_fn = 0.7  # price of a miss
  c.loss.tversky_gamma = 1.0
  c.loss.thin_weight = 1.0  # of the skeleton term in bce_dice_skeleton and bce_dice_cldice
  c.loss.skeleton_iterations = 5  # pixels of half width that thinning can remove

  c.optimizer = ConfigDict()  # AdamW
  c.optimizer.weight_decay = 0.01
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.999
  c.optimizer.eps = 1e-8
  # Pairs of a regular expression over parameter paths and a factor on lr: (("vision/.*", 0.1),)
  c.optimizer.rates = ()
  # Augmented views per picture whose taps are kept below data_dir (bfloat16), so that a frozen
  # tower runs once per view and not once per epoch; 0: off.
  c.cache_features = 0
  c.remat = False  # compute transformer blocks again on the way back instead of keeping them
  c.accumulate = 1  # pieces a device's batch is cut into to save memory
  c.ema_decay = 0.0  # moving average of the trained leaves, which is then evaluated; 0: off
  c.max_nonfinite = 0  # updates in a row that may be skipped for a non-finite loss or gradient
  c.early_stopping_min_delta = 0.0  # what counts as better

  c.schedule = ConfigDict()
  c.schedule.name = "constant"  # constant or cosine, times what the plateau makes of it
  c.schedule.warmup_epochs = 0.0
  c.schedule.final_fraction = 0.0  # of lr, at the cosine's end

  c.plateau = ConfigDict()  # ReduceLROnPlateau, torch's names
  c.plateau.metric = "val_loss"  # what stands still; val_iou and others go with mode "max"
  c.plateau.mode = "min"
  c.plateau.factor = 0.5
  c.plateau.patience = 5
  c.plateau.threshold = 1e-4
  c.plateau.threshold_mode = "rel"
  c.plateau.cooldown = 0
  c.plateau.min_lr = 0.0
  c.plateau.eps = 1e-8

  c.checkpoint = ConfigDict()
  c.checkpoint.every_epochs = 10  # kept for good; 0: none; the best is kept besides
  c.checkpoint.every_steps = 0  # also inside an epoch; 0: only at its end
  c.checkpoint.keep_latest = 2
  c.checkpoint.strict = False  # refuse a damaged checkpoint instead of using the one before

  c.log = ConfigDict()
  c.log.every_steps = 100  # how often the loop looks at the devices' state
  c.log.panels = 4  # validation pictures shown in TensorBoard

  # Seconds after which a process of several whose loop stands still (another one hangs, say) ends
  # with an error; 0: never. Longer than an epoch's slowest step, evaluation pass or save.
  c.hang_seconds = 1800

  c.profile_steps = 0  # steps traced for TensorBoard's profile page, a session's third on; 0: none

  c.eval = ConfigDict()
  c.eval.batch_size = 0  # pictures per evaluation step; 0: as batch_size
  c.eval.threshold = 0.5  # of val_iou and the other metrics of training

  return c
