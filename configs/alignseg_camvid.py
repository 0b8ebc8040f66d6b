"""AlignSeg on street scenes: CamVid's layout (configs/camvid.py), a frozen ViT-S/14.

Paper: AlignSeg, TPAMI 2024 (docs/alignseg.md); it has no CamVid, so K and the schedule are ours.
Segments are a mixture (ours): the paper's losses make about two segments of a street scene.
Commands:
  python -m fs4_jax.main --config=configs/alignseg_camvid.py --workdir=W --config.data.root=ROOT \\
      --config.encoder.weights=FILE.safetensors
  five segments an image, as many as the paper has: configs/alignseg_camvid.py:five
  the paper's losses: configs/alignseg_camvid.py:right
With the crops of an image encoded once, four times over, a step costs what the decoder costs, and
several seeds share them: --config.encoder.cached_views=4 --config.encoder.cache_dir=DIR (0.9 GB)
Cost: not measured on a machine of its own yet.
"""

from fs4_jax.config import default_config


def get_config(kind="mixture"):
    """kind: "mixture", "five" or "right"."""
    if kind not in ("mixture", "five", "right"):
        raise ValueError(f"configs/alignseg_camvid.py:{kind}: choose mixture, five or right")
    config = default_config()
    config.method = "alignseg"
    config.num_clusters = 11              # classes of the data set
    config.total_steps = 460              # 10 epochs of 46 steps
    config.batch_size = 8
    config.data.update(dict(
        class_names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
                     "pedestrian", "bicyclist"), ignore_ids=(11,),
        image_size=224, eval_size=(336, 448)))
    config.encoder.update(dict(variant="S/14", frozen=True))
    config.optimizer.update(dict(learning_rate=5e-4, warmup_steps=0, clip_norm=0.0, beta2=0.999,
                                 halve_every=138))           # 3 epochs
    config.alignseg.update(dict(num_prototypes=8, fit_images=367))
    if kind != "right":
        config.alignseg.correlation.weight = config.alignseg.contrast.weight = 0.0
        config.alignseg.mixture.update(dict(weight=10.0, rounds=10, whitening=0.25, fitted=True))
    if kind == "five":
        config.alignseg.num_prototypes = 5
        config.alignseg.mixture.update(dict(whitening=0.0, consistent=True))
    config.checkpoint.every = 46
    config.eval.update(dict(batch_size=8, floor_images=101, also=("per-image-m2o",), at_start=True))
    return config
