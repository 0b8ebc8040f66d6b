"""FS^4 on COCO-Stuff, 27 classes, from COCO-Stuff's own tree.

Paper: FS^4, arXiv 2202.11981. Its backbone, K, schedule and weights are not public: the settings
are ours, the data and the number of classes are the field's.
Data: ROOT/images/{train2017,val2017}/ID.jpg, ROOT/annotations/{train2017,val2017}/ID.png (the
official stuffthingmaps) and, where it is there, the curated list
ROOT/curated/{train2017,val2017}/Coco164kFull_Stuff_Coarse_7.txt (49,629 and 2,175 ids).
Commands:
  python -m fs4_jax.main --config=configs/cocostuff.py --workdir=W --config.data.root=ROOT \\
      --config.encoder.weights=FILE.safetensors
  python -m fs4_jax.main --config=configs/cocostuff.py:small --workdir=W --config.data.root=ROOT
Cost: made for 8 accelerators (256 images of 224 pixels a step, two views, a frozen ViT-S/14);
":small" is the same path at a size that 2 CPU cores run in minutes, from random weights.
"""

from fs4_jax.config import default_config


def get_config(size="full"):
    """size: "full" (paper scale) or "small" (a few minutes on a laptop, to see it run)."""
    if size not in ("full", "small"):
        raise ValueError(f"configs/cocostuff.py:{size}: choose full or small")
    config = default_config()
    config.num_clusters = 27
    config.data.name = "cocostuff"
    config.fs4.sinkhorn.marginal_relaxation = 0.3
    if size == "full":
        config.total_steps = 4000
        config.batch_size = 256
        config.dtype = "bfloat16"
        config.encoder.variant = "S/14"
        config.encoder.frozen = True
        config.data.image_size = 224
        config.eval.protocol = "picie27"     # what the paper compares itself under
        config.data.num_workers = 8
        config.optimizer.learning_rate = 5e-4
        config.optimizer.warmup_steps = 200
        config.fs4.fit_images = 4096
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
