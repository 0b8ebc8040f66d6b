"""Makes the pictures of the pages in docs/; all of them, or that of --only=NAME.

    bash launch/demo.sh
    python -m fs4_jax.main --config=configs/pretrain.py:scenes --workdir=workdirs/encoder
    python -m fs4_jax.main --config=configs/alignseg_demo.py --workdir=workdirs/alignseg \\
        --config.encoder.weights=workdirs/encoder
    python docs/pictures.py

The package must be installed. results, performance, pods and reliability need no workdir.
choosing_k and viewer are screenshots: they need Chromium and playwright (extra `test`), and are
left out, with a word, where these are not. predict needs the extra `coco`, export `onnx`.
"""

import dataclasses
import sys

import chart_pictures as charts
import inside_pictures as inside
import outcome_pictures as outcome
from absl import app, flags, logging
from picture_parts import DOCS

_DEMO = flags.DEFINE_string("demo", "workdirs/demo", "A workdir of configs/demo.py.")
_ENCODER = flags.DEFINE_string("encoder", "workdirs/encoder",
                               "A workdir of configs/pretrain.py:scenes.")
_ALIGNSEG = flags.DEFINE_string("alignseg", "workdirs/alignseg",
                                "A workdir of configs/alignseg_demo.py.")

# Each writes NAME.png.
_MAKERS = {make.__name__: make for make in (
    outcome.scenes, outcome.start, inside.encoders, charts.choosing_k, outcome.viewer, inside.fs4,
    outcome.failures, inside.alignseg, outcome.protocols, charts.results, charts.pods,
    charts.performance, charts.reliability, outcome.predict, outcome.export, inside.glossary)}
_ONLY = flags.DEFINE_multi_enum("only", [], list(_MAKERS), "The picture to make; repeatable.")


@dataclasses.dataclass(frozen=True)
class Workdirs:
    demo: str
    encoder: str
    alignseg: str


def main(_):
    logging.set_verbosity(logging.WARNING)
    sys.path.append(str(DOCS.parent))           # benchmarks, configs and tests are not installed
    workdirs = Workdirs(_DEMO.value, _ENCODER.value, _ALIGNSEG.value)
    for name in _ONLY.value or _MAKERS:
        _MAKERS[name](workdirs)


if __name__ == "__main__":
    app.run(main)
