"""The demo: FS^4 from random weights on `scenes`, pictures drawn by the package itself.

Paper: FS^4, arXiv 2202.11981 (our reconstruction).
Command: bash launch/demo.sh, or
  python -m fs4_jax.main --config=configs/demo.py --workdir=workdirs/demo
Cost: about 2.5 minutes on 2 CPU cores; --config.total_steps=200 takes 4 and scores 1 point more.
"""

from fs4_jax.config import default_config


def get_config():
    config = default_config()
    config.num_clusters = 10
    config.total_steps = 100
    config.batch_size = 16
    config.data.name = "scenes"
    config.data.image_size = 96
    config.data.num_train, config.data.num_eval = 768, 192
    config.data.crop_scale = (0.5, 1.0)
    config.data.hue, config.data.grey = 0.5, 0.2
    config.encoder.variant = "mu/8"
    config.checkpoint.every = 100
    config.fs4.sinkhorn.marginal_relaxation = 0.5     # classes are not equal in size
    config.fs4.pgg.weight = 0.1                       # groups of random tokens guide but little
    config.eval.batch_size = 32
    return config
