"""AlignSeg on COCO-Stuff-27, from COCO-Stuff's own tree (configs/cocostuff.py).

Paper: AlignSeg, TPAMI 2024; recipe of the released code (docs/alignseg.md): frozen DINO ViT-S/16,
5 prototypes an image, epoch 10 of train2017 (118,287 images, 3,696 steps of 32), AdamW, the rate
halved every 3 epochs. Where ROOT holds the curated list, that is trained on and scored instead, as
the field does.
Command:
  python -m fs4_jax.main --config=configs/alignseg_coco27.py --workdir=W --config.data.root=ROOT \\
      --config.encoder.weights=dino_vitsmall16.pth
Its number, 35.1, is of the protocol per-image-m2o, which maps every segment of every image to a
class by that image's truth; picie27 is the field's, with one match for the data set.
Cost: not measured; a step is 96 forward passes of a ViT-S/16 at 224 pixels.
"""

from fs4_jax.config import default_config


def get_config():
    config = default_config()
    config.method = "alignseg"
    config.seed = 3407
    config.num_clusters = 27              # classes of the data set
    config.total_steps = 36_960
    config.batch_size = 32
    config.data.update(dict(name="cocostuff", image_size=224, num_workers=8))
    config.encoder.update(dict(variant="S/16", frozen=True))
    config.optimizer.update(dict(learning_rate=5e-4, warmup_steps=0, weight_decay=0.04,
                                 clip_norm=0.0, beta2=0.999, halve_every=11_088))
    config.alignseg.update(dict(num_prototypes=5, hidden=768, fit_images=16_384))
    config.alignseg.correlation.pressure = 0.10
    config.checkpoint.every = 3696
    config.eval.update(dict(protocol="picie27", also=("per-image-m2o",), at_start=True))
    return config
