"""AlignSeg on `scenes`, on top of an encoder that `configs/pretrain.py:scenes` has trained.

Paper: AlignSeg, TPAMI 2024 (docs/alignseg.md). No image and no outside weight is needed.
Commands:
  python -m fs4_jax.main --config=configs/pretrain.py:scenes --workdir=W1
  python -m fs4_jax.main --config=configs/alignseg_demo.py --workdir=W2 \\
      --config.encoder.weights=W1
  the paper's losses: configs/alignseg_demo.py:right
  its segments beside the things in the pictures, mBO and FG-ARI (docs/protocols.md):
  python -m fs4_jax.main --config=configs/alignseg_demo.py --workdir=W2 --mode=eval \\
      --config.eval.protocol=objects --config.eval.also="()" --config.data.label_set=objects
Without --config.encoder.weights the encoder is random: it shows that everything runs, no more.
Cost: the encoder 13 minutes on one CPU core (configs/pretrain.py); the decoder's 300 steps were
not timed on a machine of their own yet.
"""

from fs4_jax.config import default_config


def get_config(kind="mixture"):
    """kind: "mixture" (ours) or "right"."""
    if kind not in ("mixture", "right"):
        raise ValueError(f"configs/alignseg_demo.py:{kind}: choose mixture or right")
    config = default_config()
    config.method = "alignseg"
    config.num_clusters = 10              # classes of the data set
    config.total_steps = 300
    config.batch_size = 16
    config.data.name = "scenes"
    config.data.image_size = 96
    config.data.num_train, config.data.num_eval = 768, 192
    config.encoder.variant = "mu/8"
    config.encoder.frozen = True
    config.optimizer.update(dict(learning_rate=5e-4, warmup_steps=0, clip_norm=0.0, beta2=0.999,
                                 halve_every=144))           # 3 epochs of 48 steps
    config.alignseg.update(dict(num_prototypes=5, num_heads=4, hidden=256, fit_images=768))
    if kind == "mixture":
        config.alignseg.correlation.weight = config.alignseg.contrast.weight = 0.0
        config.alignseg.mixture.update(dict(weight=10.0, rounds=10, attention=0.0, place=1.0,
                                            whitening=0.25, fitted=True))
    config.checkpoint.every = 100
    config.eval.update(dict(batch_size=32, also=("per-image-m2o-whole",), at_start=True))
    return config
