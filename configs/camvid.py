"""FS^4 on street scenes: a folder in CamVid's layout, with a trained encoder or without.

Paper: FS^4, arXiv 2202.11981 (our reconstruction). Data: ROOT/{train,val}/images/NAME.jpg and
ROOT/{train,val}/labels/NAME.png, 11 classes, id 11 ignored (SegNet's form of CamVid).
Commands:
  python -m fs4_jax.main --config=configs/camvid.py --workdir=W --config.data.root=ROOT \\
      --config.encoder.weights=FILE.safetensors                      # a frozen ViT-S/14
  the encoder trained on: --config=configs/camvid.py:tuned (9 s a step on one CPU core)
  python -m fs4_jax.main --config=configs/camvid.py:random --workdir=W --config.data.root=ROOT
Cost with weights on 2 CPU cores: about 1.5 s a step (8 images, two views of 224 pixels) and
three minutes of fitting and scoring. For several seeds, let them share the encoder's tokens
(0.3 GB): --config.encoder.cached_views=2 --config.encoder.cache_dir=DIR
"""

from fs4_jax.config import default_config


def get_config(arg="weights"):
    """arg: "weights" (a frozen encoder from config.encoder.weights), "tuned" (it is trained on) or
    "random"."""
    if arg not in ("weights", "tuned", "random"):
        raise ValueError(f"configs/camvid.py:{arg}: choose weights, tuned or random")
    config = default_config()
    config.num_clusters = 11
    config.total_steps = 60
    config.batch_size = 8
    config.log_every = 5
    config.data.class_names = ("sky", "building", "pole", "road", "pavement", "tree", "sign",
                               "fence", "car", "pedestrian", "bicyclist")
    config.data.ignore_ids = (11,)
    config.data.image_size = 224
    config.data.eval_size = (336, 448)
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 10
    config.fs4.fit_images = 367
    config.fs4.sinkhorn.marginal_relaxation = 0.3
    config.eval.batch_size = 8
    config.eval.floor_images = 101
    config.checkpoint.every = 30
    if arg in ("weights", "tuned"):
        config.encoder.variant = "S/14"
        config.encoder.frozen = arg == "weights"
        config.encoder.block = 10         # middle blocks keep more of the classes
        config.fs4.cae.width = 32
        config.fs4.mixture.enabled = True            # a trained encoder's tokens tell
        config.fs4.sinkhorn.prior = "fitted"         # how large classes are,
        config.fs4.pgg.guides = (1,)                 # and which kinds of images there are
    if arg == "tuned":
        config.optimizer.encoder_scale, config.optimizer.layer_decay = 0.1, 0.75
        config.fs4.teacher = "frozen"    # one that follows, and heads that ask a token of a street
        config.fs4.pgg.weight = 0.0      # for the whole street, undo what the fit found
    if arg == "random":
        config.encoder.variant = "mu/14"
        config.batch_size = 16
        config.total_steps = 200
        config.optimizer.learning_rate = 1e-3
        config.data.hue = 0.5
        config.fs4.pgg.weight = 0.1
    return config
