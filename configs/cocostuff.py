"""FS^4 on COCO-Stuff, 27 classes, from COCO-Stuff's own tree.

Paper: FS^4, arXiv 2202.11981. Its backbone, K, schedule and weights are not public: the settings
are ours, the data and the number of classes are the field's.
Data: ROOT/images/{train2017,val2017}/ID.jpg, ROOT/annotations/{train2017,val2017}/ID.png (the
official stuffthingmaps) and, where it is there, the curated list
ROOT/curated/{train2017,val2017}/Coco164kFull_Stuff_Coarse_7.txt (49,629 and 2,175 ids).
Commands:
  python -m fs4_jax.main --config=configs/cocostuff.py --workdir=W --config.data.root=ROOT \\
      --config.encoder.weights=FILE.safetensors
  another encoder: configs/cocostuff.py:SIZE/PATCH with weights of DINO (S/16, S/8, B/8) or DINOv2
  (S/14, which the first command has, B/14), frozen unless --config.encoder.frozen=False
  python -m fs4_jax.main --config=configs/cocostuff.py:small --workdir=W --config.data.root=ROOT
Cost, by --dry_run: 256 images of 224 pixels a step, two views, 4,000 steps on 8 TPU v5e of which
40 % are used, and what a device needs of its 16 GB; no accelerator was there to measure on.
          frozen               with the encoder trained
  S/16    30 s,    0.4 GB      2 min,   3.5 GB
  S/14    40 s,    0.5 GB      2.7 min, 4.4 GB
  S/8     2.5 min, 2.2 GB      12 min,  4.3 GB
  B/14    2.5 min, 1.2 GB      12 min,  3.2 GB
  B/8     8.5 min, 2.4 GB      41 min,  5.7 GB
":small" is the same path at a size that 2 CPU cores run in minutes, from random weights.
"""

from fs4_jax.config import default_config

# Micro-batches and remat with which 8 devices of 16 GB can train the encoder too. Frozen, it has
# no backward pass, and remat changes nothing.
_SIZES = {"S/16": (1, "none"), "S/8": (1, "blocks"), "B/8": (2, "blocks"), "S/14": (1, "none"),
          "B/14": (1, "blocks")}


def get_config(size="full"):
    """size: an encoder of `_SIZES` at paper scale, "full" (S/14), or "small" (a few minutes on a
    laptop, to see it run)."""
    size = "S/14" if size == "full" else size
    if size not in ("small", *_SIZES):
        raise ValueError(f"configs/cocostuff.py:{size}: choose full, small, "
                         f"{', '.join(list(_SIZES)[:-1])} or {list(_SIZES)[-1]}")
    config = default_config()
    config.num_clusters = 27
    config.data.name = "cocostuff"
    config.fs4.sinkhorn.marginal_relaxation = 0.3
    if size != "small":
        config.total_steps = 4000
        config.batch_size = 256
        config.dtype = "bfloat16"
        config.encoder.variant = size
        config.accumulate_steps, config.encoder.remat = _SIZES[size]
        config.encoder.frozen = True
        config.data.image_size = 224
        config.eval.protocol = "picie27"     # what the paper compares itself under
        config.data.num_workers = 8
        config.optimizer.learning_rate = 5e-4
        config.optimizer.warmup_steps = 200
        config.fs4.fit_images = 4096
        config.fs4.mixture.enabled = True            # a trained encoder's tokens tell
        config.fs4.sinkhorn.prior = "fitted"         # how large classes are,
        config.fs4.pgg.guides = (1,)                 # and which kinds of images there are
        config.eval.batch_size = 64
        config.checkpoint.every = 500
    else:
        config.total_steps = 40
        config.batch_size = 8
        config.encoder.variant = "mu/16"
        config.data.image_size = 160
        config.fs4.fit_images = 64
        config.fs4.pgg.levels = (2, 4)       # an image a cell would be too few for 27 groups
        config.fs4.pgg.weight = 0.1
        config.eval.batch_size = 8
    return config
