"""An encoder from nothing: DINO on anybody's folder of images, no label, no outside weights.

Papers: DINO (arXiv 2104.14294), with iBOT's masked patches and KoLeo as in DINOv2 (2304.07193).
Commands: first the encoder, then FS^4 on top of it
  python -m fs4_jax.main --config=configs/pretrain.py --workdir=W1 --config.data.images=DIR
  python -m fs4_jax.main --config=configs/folder.py:mu/8 --workdir=W2 --config.data.images=DIR \\
      --config.encoder.weights=W1
"""

from fs4_jax.config import default_config


def get_config(name="folder"):
    """name: "folder", or "scenes" (the pictures that the package draws)."""
    if name not in ("folder", "scenes"):
        raise ValueError(f"configs/pretrain.py:{name}: choose folder or scenes")
    config = default_config()
    config.method = "dino"
    config.data.name = name
    config.data.image_size = 96
    config.num_clusters = 10
    config.batch_size = 16
    config.total_steps = 600
    config.encoder.variant = "mu/8"
    config.encoder.drop_path = 0.0
    config.dino.update(dict(num_prototypes=512, hidden=512, bottleneck=64, num_local=4,
                            local_size=48, local_scale=(0.1, 0.4)))
    config.dino.patch_prototypes = 512
    config.eval.update(dict(protocol="kmeans", probes=True, at_start=True, batch_size=32))
    config.checkpoint.every = 200
    if name == "scenes":
        config.data.num_train, config.data.num_eval = 768, 192
        config.data.crop_scale = (0.4, 1.0)
    return config
