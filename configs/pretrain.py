"""An encoder from nothing: self-distillation on anybody's folder, no label, no outside weights.

Papers: DINO (arXiv 2104.14294); masked patches and KoLeo as in DINOv2 (2304.07193); texture as in
MaskFeat (2112.09133). What each term is: fs4_jax/methods/dino.py.
Commands: first the encoder, then FS^4 on top of it
  python -m fs4_jax.main --config=configs/pretrain.py --workdir=W1 --config.data.images=DIR
  python -m fs4_jax.main --config=configs/folder.py --workdir=W2 --config.data.images=DIR \\
      --config.encoder.weights=W1
The same on `scenes`, which needs no images: configs/pretrain.py:scenes, then configs/demo.py
with --config.encoder.weights=W1. The published recipe, for many images and accelerators:
configs/pretrain.py:dinov2 (ViT-S/16).
Cost: ":scenes" 13 minutes on one CPU core, a folder about 35 (3,000 steps; resumable).
"""

from fs4_jax.config import default_config


def get_config(name="folder"):
    """name: "folder", "scenes" (pictures that the package draws) or "dinov2" (a folder, large)."""
    if name not in ("folder", "scenes", "dinov2"):
        raise ValueError(f"configs/pretrain.py:{name}: choose folder, scenes or dinov2")
    config = default_config()
    config.method = "dino"
    config.data.name = "scenes" if name == "scenes" else "folder"
    config.eval.update(dict(protocol="kmeans", probes=True, at_start=True, batch_size=16))
    if name == "dinov2":
        _published(config)
        return config
    config.num_clusters = 8
    config.encoder.variant = "mu/8"
    config.data.image_size = 96
    config.batch_size = 8
    config.total_steps = 3000
    config.checkpoint.every = 200
    config.dino.update(dict(num_prototypes=128, patch_prototypes=128, hidden=256, bottleneck=64,
                            num_local=2, local_size=48, local_scale=(0.1, 0.4), solarize=0.0,
                            teacher_temperature=0.04, teacher_momentum=0.95))
    # Few steps: what has a meaning from the first one on leads, the teacher's word follows.
    config.dino.texture.weight = 1.0
    config.dino.cls.weight = config.dino.ibot.weight = 0.1
    config.dino.koleo.weight = 0.0
    config.dino.mask.update(dict(ratio=(0.3, 0.5), probability=1.0))
    if name == "scenes":
        config.num_clusters = 10
        config.total_steps = 800
        config.data.num_train, config.data.num_eval = 768, 192
        config.data.update(dict(crop_scale=(0.7, 1.0), hue=0.5, blur=0.0))
    return config


def _published(config):
    """DINO's and DINOv2's own numbers, where they do not depend on a cluster's size."""
    config.dtype = "bfloat16"
    config.encoder.update(dict(variant="S/16", drop_path=0.1))
    config.data.update(dict(image_size=224, crop_scale=(0.32, 1.0), hue=0.1, grey=0.2, blur=0.5,
                            num_workers=8))
    config.batch_size = 1024
    config.total_steps = 125_000
    config.optimizer.update(dict(learning_rate=2e-3, warmup_steps=12_500, weight_decay=0.04,
                                 final_weight_decay=0.4, clip_norm=3.0, beta2=0.999))
    config.dino.update(dict(num_prototypes=65536, patch_prototypes=65536, num_local=8,
                            local_size=96, local_scale=(0.05, 0.32),
                            warmup_temperature_steps=37_500, freeze_last_layer_steps=1250))
    config.checkpoint.every = 2500
    config.eval.every = 12_500
