"""A trained model in one file, to be run without this package.

    python -m fs4_jax.export --workdir=W --format=stablehlo --out=model.zip
    python -m fs4_jax.export --workdir=W --format=onnx --out=model.onnx

W is a workdir that fs4_jax.main trained in; its newest checkpoint is taken. The model's input is
"image", uint8 [batch, H, W, 3], RGB, of any batch and of one size; its outputs are "class_ids",
uint8 [batch, H, W], and "logits", float32 [batch, H, W, classes]. Normalisation is inside.

stablehlo: a zip of model.jax_export (what jax.export wrote: for CPU, CUDA and TPU) and
metadata.json. onnx: opset 18, the same metadata in its metadata_props. How to load them:
docs/export.md.
"""

import io
import json
import os
import pathlib
import statistics
import time
import zipfile

from absl import app, flags

FORMATS = ("stablehlo", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
LEAST_AGREEMENT = 0.999         # of the pixels' classes, of the file and the model
_RUNS = 5


def main(argv):
    from fs4_jax.errors import command
    args = flags.FLAGS
    with command(argv):
        export(args.workdir, args.out, form=args.format, size=_size(args.size))


def export(workdir, out, *, form, size=0):
    """Writes a workdir's model into one file, checked against the model.

    Args:
      workdir: where a method with classes was trained. out: the file; it appears whole or not.
      form: one of FORMATS. size: (height, width) or one side; 0: as the workdir was evaluated.

    Returns:
      The metadata, a dict.

    Raises:
      ConfigError: no checkpoint, a method without classes, a size that does not fit, a package
        that is missing, a model that the format can not hold, or that in the file is another.
      DataError: an `out` that can not be written.
    """
    from fs4_jax.standalone import standalone_model
    out = pathlib.Path(out)
    _check_out(out)
    if form == "onnx":
        _need_onnx()
    model = standalone_model(workdir, size, dtype="float32" if form == "onnx" else None)
    about = model.about
    print(f"{about['method']} {about['encoder']}, step {about['step']} of {workdir}, images of "
          f"{model.size[0]} x {model.size[1]}\n{model.meaning}", flush=True)
    content = _stablehlo(model) if form == "stablehlo" else _onnx(model)
    call = _loaded_stablehlo(content) if form == "stablehlo" else _loaded_onnx(content)
    same, seconds = _compared(model, call)
    if same < LEAST_AGREEMENT:
        raise _config_error(f"the {form} file gives another class than the model on "
                            f"{100 * (1 - same):.2f} % of the pixels; nothing was written")
    _write(out, content)
    print(f"{out}: {len(content) / 2 ** 20:.1f} MB, {1000 * seconds:.0f} ms an image here; the "
          f"model's classes on {100 * same:.2f} % of the pixels of two test images")
    return about


def _stablehlo(model):
    """The zip's bytes."""
    import jax
    import numpy as np
    from jax import export as jax_export

    from fs4_jax.archives import entry_of
    batch, = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.size, 3), np.uint8)
    exported = jax_export.export(jax.jit(model.segment), platforms=PLATFORMS)(images)
    about = model.about | {"platforms": list(PLATFORMS)}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("metadata.json", (json.dumps(about, indent=2) + "\n").encode()),
                           ("model.jax_export", exported.serialize())):
            archive.writestr(entry_of(name), data)
    return content.getvalue()


def _loaded_stablehlo(content):
    import jax
    from jax import export as jax_export
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        exported = jax_export.deserialize(bytearray(archive.read("model.jax_export")))
    return jax.jit(lambda images: exported.call(images)["class_ids"])


def _onnx(model):
    """The file's bytes."""
    import numpy as np

    from fs4_jax.onnx_graph import Untranslatable
    from fs4_jax.onnx_rules import to_onnx
    names = tuple(model.about["outputs"])
    metadata = {key: value if isinstance(value, str) else json.dumps(value)
                for key, value in model.about.items()}

    def segment(images):
        answer = model.segment(images)
        return tuple(answer[name] for name in names)

    try:
        return to_onnx(segment, (*model.size, 3), np.uint8, input_name="image",
                       output_names=names, metadata=metadata).SerializeToString()
    except Untranslatable as error:
        raise _config_error(f"this model can not be an ONNX file: {error}. --format=stablehlo "
                            "has no such limit") from error


def _loaded_onnx(content):
    import onnxruntime
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["class_ids"], {"image": images})[0]


def _compared(model, call):
    """(share of pixels of the same class, seconds an image of a batch of one)."""
    import jax
    import numpy as np
    rng = np.random.default_rng(0)
    height, width = model.size
    coarse = rng.uniform(0, 255, (2, -(-height // 16), -(-width // 16), 3))
    images = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    images = np.clip(images + rng.normal(0, 16, images.shape), 0, 255).astype(np.uint8)
    wanted = np.asarray(jax.jit(lambda x: model.segment(x)["class_ids"])(images))
    same = float(np.mean(np.asarray(call(images)) == wanted))
    np.asarray(call(images[:1]))                # another batch: compiled anew
    seconds = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        np.asarray(call(images[:1]))
        seconds.append(time.perf_counter() - began)
    return same, statistics.median(seconds)


def _need_onnx():
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise _config_error(f"--format=onnx needs the packages onnx and onnxruntime ({error}): "
                            "pip install 'fs4_jax[onnx]'") from error


def _config_error(message):
    from fs4_jax.config import ConfigError
    return ConfigError(message)


def _check_out(out):
    from fs4_jax.data.images import DataError
    folder = out.absolute().parent
    if out.is_dir():
        raise DataError(f"--out={out} is a folder: name a file in it")
    if not folder.is_dir():
        raise DataError(f"--out={out}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise DataError(f"--out={out} can not be written: permission denied")


def _write(out, content):
    from fs4_jax.data.images import DataError
    from fs4_jax.whole_files import write_whole
    try:
        write_whole(out, content)
    except OSError as error:
        raise DataError(f"--out={out} can not be written: {error.strerror or error}") from error


def _size(given):
    """0, one side or (height, width) of what was given on the command line."""
    try:
        sides = tuple(int(side) for side in given.split(",")) if given else ()
    except ValueError:
        sides = (0,)
    if any(side < 1 for side in sides) or len(sides) > 2:
        raise _config_error(f"--size={given}: give pixels, one side or HEIGHT,WIDTH")
    return 0 if not sides else sides[0] if len(sides) == 1 else sides


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("workdir", None, "A workdir that fs4_jax.main trained in.")
    flags.DEFINE_enum(
        "format", "stablehlo", FORMATS, "stablehlo: a zip for jax on CPU, CUDA and TPU; onnx: for "
        "onnxruntime and others (needs the extra onnx).")
    flags.DEFINE_string("out", None, "File to write; an older one is replaced.")
    flags.DEFINE_string(
        "size", "", "Pixels of the model's images, one side or HEIGHT,WIDTH, multiples of the "
        "encoder's patch. Not given: as the workdir was evaluated.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["workdir", "out"])
    app.run(main)
