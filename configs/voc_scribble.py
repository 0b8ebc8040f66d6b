"""Scribbles on PASCAL VOC 2012: ScribbleSup's strokes, or strokes drawn from VOC's masks.

Paper: DFR, arXiv 2108.01296 (our reconstruction); strokes: ScribbleSup, CVPR 2016.
Commands:
  python -m fs4_jax.main --config=configs/voc_scribble.py --workdir=W --config.data.root=VOC2012 \\
      --config.encoder.weights=FILE.safetensors
  python -m fs4_jax.main --config=configs/voc_scribble.py:animals ...     # 7 classes, drawn strokes
Cost: as configs/scribble.py says, with --config.encoder.cached_views=2 for `animals`.
"""

import pathlib
import runpy

# Read by path, as configs are: they are no package where this one is installed.
_scribble = runpy.run_path(str(pathlib.Path(__file__).with_name("scribble.py")))


def get_config(arg="scribblesup"):
    """arg: "scribblesup" (21 classes, trainaug) or "animals" (7 classes of a tree that has them,
    strokes drawn from the masks)."""
    if arg not in ("scribblesup", "animals"):
        raise ValueError(f"configs/voc_scribble.py:{arg}: choose scribblesup or animals")
    config = _scribble["get_config"]("S/14")
    config.data.name = "voc"
    config.data.image_size = 224
    config.data.eval_size = 448
    if arg == "animals":
        config.data.label_set = "animals"
        config.num_clusters = 7
        config.scribble.annotation = "scribbles"
        config.scribble.width = (3, 7)             # 3 % of the pixels, as ScribbleSup's strokes
    else:
        config.data.label_set = "21-aug-scribbles"
        config.num_clusters = 21
        config.total_steps = 20_000
        config.batch_size = 16
    return config
