"""AlignSeg on PASCAL VOC 2012: the released recipe, with its defects mended or as it was.

Paper: AlignSeg, TPAMI 2024; recipe of the released code (docs/alignseg.md): frozen DINO ViT-S/16,
5 prototypes an image, 10 epochs of trainaug (10,582 images, 330 steps of 32), AdamW, the rate
halved every 3 epochs.
Data: VOCdevkit/VOC2012 with the list trainaug and SegmentationClassAug.
Commands:
  python -m fs4_jax.main --config=configs/alignseg_voc.py --workdir=W --config.data.root=ROOT \\
      --config.encoder.weights=dino_vitsmall16.pth
  the same with the released defects (pairing, summed loss): configs/alignseg_voc.py:released
  segments as a mixture (ours; the best we know): configs/alignseg_voc.py:mixture
  the authors' checkpoint, scored: --config.encoder.weights=FILE.pth --config.alignseg.weights=\\
      FILE.pth --config.total_steps=1 --config.optimizer.learning_rate=0.0
Its number, 69.5, is of the protocol per-image-m2o, which maps every segment of every image to a
class by that image's truth; it is scored besides `hungarian`, whose one match is the data set's.
Cost: not measured; a step is 96 forward passes of a ViT-S/16 at 224 pixels.
"""

from fs4_jax.config import default_config


def get_config(kind="right"):
    """kind: "right", "released" or "mixture"."""
    if kind not in ("right", "released", "mixture"):
        raise ValueError(f"configs/alignseg_voc.py:{kind}: choose right, released or mixture")
    config = default_config()
    config.method = "alignseg"
    config.seed = 3407
    config.num_clusters = 21              # classes of the data set
    config.total_steps = 3300
    config.batch_size = 32
    config.data.update(dict(name="voc", label_set="21-aug", image_size=224, eval_size=(448, 448),
                            num_workers=4))
    config.encoder.update(dict(variant="S/16", frozen=True))
    config.optimizer.update(dict(learning_rate=5e-4, warmup_steps=0, weight_decay=0.04,
                                 clip_norm=0.0, beta2=0.999, halve_every=990))
    config.alignseg.update(dict(num_prototypes=5, hidden=768, fit_images=4096))
    config.alignseg.correlation.pressure = 0.11
    if kind == "released":
        config.alignseg.update(dict(released_pairing=True, bug_compatible=True))
        config.alignseg.correlation.update(dict(reduction="sum", weight=0.15))
    if kind == "mixture":
        config.alignseg.correlation.weight = config.alignseg.contrast.weight = 0.0
        config.alignseg.mixture.update(dict(weight=10.0, rounds=10, whitening=0.25, fitted=True))
    config.checkpoint.every = 330
    config.eval.update(dict(also=("per-image-m2o",), at_start=True))
    return config
