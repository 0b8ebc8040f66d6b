"""Scribbles: a segmentation model from a few strokes an image, on pictures drawn by the package.

Paper: DFR, arXiv 2108.01296 (our reconstruction), and the regularized losses before it.
Commands:
  python -m fs4_jax.main --config=configs/scribble.py --workdir=W          # `scenes`, drawn strokes
  the same on an encoder of configs/pretrain.py:scenes, frozen, nothing from outside:
      --config=configs/scribble.py:pretrained --config.encoder.weights=W1
  your own images and strokes (PNGs of the images' names and sizes: class ids, 255 = not drawn):
  python -m fs4_jax.main --config=configs/scribble.py:S/14 --workdir=W \\
      --config.encoder.weights=FILE.safetensors --config.data.images=DIR --config.data.labels=DIR \\
      --config.data.num_classes=8 --config.num_clusters=8
  street scenes in CamVid's layout, strokes drawn from its masks:
      --config=configs/scribble.py:camvid --config.data.root=ROOT --config.encoder.weights=FILE
Other losses: --config.scribble.regularizer.form=none|static|densecrf|normalized_cut|kernel_cut|dfr;
full supervision: --config.scribble.annotation=given --config.scribble.regularizer.form=none
With a frozen encoder add --config.encoder.cached_views=2: two crops of each image are encoded once,
and a step costs what the decoder costs, 0.3 to 0.4 s for 8 crops of 224 pixels on one CPU core.
"""

from fs4_jax.config import default_config

_CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
           "pedestrian", "bicyclist")


def get_config(arg="scenes"):
    """arg: "scenes", "pretrained", "camvid", or SIZE/PATCH of an encoder for one's own folder."""
    config = default_config()
    config.method = "scribble"
    config.eval.protocol = "identity"
    config.log_every = 10
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.data.grey = config.data.hue = 0.0       # colours are what strokes are about
    config.data.blur = 0.0
    config.checkpoint.every = 100
    if arg in ("scenes", "pretrained"):
        return _scenes(config, arg == "pretrained")
    config.encoder.variant = "S/14" if arg == "camvid" else arg
    config.encoder.frozen = True
    config.data.image_size = 16 * int(config.encoder.variant.partition("/")[2] or 14)
    config.batch_size = config.eval.batch_size = 8
    config.total_steps = 500
    config.optimizer.learning_rate = 3e-3          # of the decoder alone
    config.scribble.regularizer.strokes.weight = 4.0
    # Beside the strokes' term of dfr; for form=static or densecrf take 1.0.
    config.scribble.regularizer.weight = 0.3
    if arg == "camvid":
        # Roads and pavements are alike in their tokens: place and colour have more to say here.
        config.scribble.regularizer.strokes.weight = config.scribble.regularizer.weight = 1.0
        config.num_clusters = 11
        config.scribble.annotation = "scribbles"
        config.data.class_names, config.data.ignore_ids = _CAMVID, (11,)
        config.data.image_size = 224
        config.data.eval_size = (336, 448)
    return config


def _scenes(config, pretrained):
    config.data.name = "scenes"
    config.num_clusters = 10
    config.data.image_size = 96
    config.data.num_train, config.data.num_eval = 768, 192
    config.data.crop_scale = (0.5, 1.0)
    config.encoder.variant = "mu/8"
    config.scribble.annotation = "scribbles"
    config.encoder.frozen = pretrained
    if pretrained:
        config.optimizer.learning_rate = 3e-3      # of the decoder alone
    # Features that begin random tie every pixel to every stroke, so to the class most drawn.
    config.scribble.regularizer.strokes.weight = 1.0 if pretrained else 0.0
    config.total_steps = 300
    config.batch_size, config.eval.batch_size = 16, 32
    return config
