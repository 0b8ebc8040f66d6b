"""FS^4 on anybody's folder of images.

Paper: FS^4, arXiv 2202.11981 (our reconstruction).
Commands:
  python -m fs4_jax.main --config=configs/folder.py --workdir=W --config.data.images=DIR \\
      --config.num_clusters=8 [--config.data.labels=DIR]
  with an encoder that was trained without labels (DINOv2's names, safetensors):
      --config=configs/folder.py:S/14 --config.encoder.weights=FILE.safetensors
Labels are never trained on: with them the model is also scored. Name an argument such as
:S/14 to choose the encoder; without one it is small and starts from random weights.
Cost on 2 CPU cores: about 3 minutes with the small encoder; with S/14, 1.5 s a step.
"""

from fs4_jax.config import default_config


def get_config(variant=""):
    """variant: "" (small, random weights, trained here) or SIZE/PATCH of given, frozen weights."""
    config = default_config()
    config.num_clusters = 8
    config.data.name = "folder"
    config.fs4.sinkhorn.marginal_relaxation = 0.3
    if variant:
        config.encoder.variant = variant
        config.encoder.frozen = True
        config.data.image_size = 16 * int(variant.partition("/")[2] or 14)
        config.total_steps = 100
        config.batch_size = 8
        config.optimizer.learning_rate = 2e-4
        config.optimizer.warmup_steps = 10
        config.fs4.mixture.enabled = True            # a trained encoder's tokens tell
        config.fs4.sinkhorn.prior = "fitted"         # how large classes are,
        config.fs4.pgg.guides = (1,)                 # and which kinds of images there are
    else:
        config.encoder.variant = "mu/8"
        config.data.image_size = 128
        config.total_steps = 200
        config.fs4.pgg.weight = 0.1
    config.eval.batch_size = 8
    return config
