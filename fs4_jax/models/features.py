"""Dense features of a folder of images, in one file.

    python -m fs4_jax.models.features --weights=F --images=DIR --out=OUT.npz

--weights is a file of weights or a workdir that fs4_jax.main trained in. OUT is .npz or
.array_record; `read_features` reads both. An .npz holds an array [h,w,d] for each image under its
stem ([d] for --output=cls), besides "__names__" and "__metadata__" (JSON); an .array_record holds
a record for each image, a tf.train.Example of bytes: "name", "features" (a .npy) and "metadata".

While it works, each batch is a file of the folder OUT.partial; the same command takes up from
there, and computes none of them again. OUT appears when it is whole, and OUT.partial goes.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys
import time
import zipfile

import numpy as np
from absl import app, flags

# Whatever needs jax is imported where it is used, so that --help answers at once.
from fs4_jax.archives import write_npz
from fs4_jax.data.images import DataError
from fs4_jax.whole_files import whole_file, write_whole

FORMATS = (".npz", ".array_record")
OUTPUTS = ("patch_tokens", "cls", "keys")
DTYPES = ("float32", "float16")

_NAMES, _METADATA, _SKIPPED = "__names__", "__metadata__", "__skipped__"


def main(argv):
    from fs4_jax.errors import command
    args = flags.FLAGS
    with command(argv, stopped=f"the same command goes on from {args.out}.partial"):
        write_features(args.weights, args.images, args.out, image_size=args.image_size,
                       block=args.block, output=args.output, dtype=args.dtype,
                       batch_size=args.batch_size)


def write_features(weights, images, out, *, image_size=0, block=None, output="patch_tokens",
                   dtype="float32", batch_size=8, devices=None):
    """Computes the features of every readable image of a folder and writes them into one file.

    Args:
      weights: file of weights, or workdir. images: folder. out: file, .npz or .array_record.
      image_size: images are resized to about this side squared in area, at the nearest of seven
        aspect ratios (`eval_shape`); 0: the side at which the workdir was evaluated, or at which
        the file's positions are stored (224 where there are none).
      block: tokens after this block; None: the last. output: one of OUTPUTS.
      dtype: what is stored. Computed in float32.
      batch_size: images at a time. devices: jax devices; None: all.

    Returns:
      Number of images written; unreadable ones are named on stderr and left out.

    Raises:
      ConfigError, DataError, WeightsError: weights that are none, a block that there is not; no
        or empty folder, nothing readable in it; an `out` that can not be written, is there
        already, or was begun with other settings or images.
    """
    import jax

    from fs4_jax.data.folder import PairSource
    from fs4_jax.data.pipeline import eval_batches
    from fs4_jax.metrics import ProgressLine
    from fs4_jax.models.encoder_files import fingerprint
    from fs4_jax.models.vit import normalize_images
    from fs4_jax.sharding import batch_sharding, make_mesh, replicated, round_up
    out = pathlib.Path(out)
    _check_out(out)
    files = _list_images(images)
    model, params, side = _encoder(weights, block)
    metadata = {
        "weights": str(weights), "block": model.block or model.depth, "output": output,
        "dtype": dtype, "image_size": image_size or side, "patch": model.patch,
        "width": model.width,
    }
    partial = _Partial(out, {**metadata, "weights_are": fingerprint(params),
                             "images_are": fingerprint(_sizes(files))})
    mesh = make_mesh({"data": -1, "fsdp": 1}, devices)
    params = jax.device_put(params, replicated(mesh))

    @jax.jit
    def encode_batch(params, image):
        told = model.apply({"params": params}, normalize_images(image),
                           return_keys=output == "keys")
        return told[output].astype(dtype)

    done = len(partial.where) + len(partial.skipped)
    remaining = {stem: file for stem, file in files.items() if stem not in partial}
    progress = ProgressLine(len(files), done, unit="image")
    if done:
        progress.note(f"{done} of {len(files)} images are in {partial.folder} already")
    source, skipped, noted, began = (
        PairSource("folder", remaining, where=images), [], 0, time.monotonic())
    first = done
    for batch in eval_batches(source, batch_size=round_up(batch_size, mesh),
                              image_size=metadata["image_size"], patch=model.patch,
                              on_unreadable="skip", with_labels=False, skipped=skipped):
        image = jax.device_put(batch["image"], batch_sharding(mesh))
        features = jax.device_get(encode_batch(params, image))
        rows = np.flatnonzero(batch["index"] >= 0)
        names = [source.example_name(i) for i in batch["index"][rows]]
        partial.add(dict(zip(names, features[rows])), skipped[noted:])
        for _, reason in skipped[noted:]:
            progress.note(f"skipped {reason}")
        noted, done = len(skipped), len(partial.where) + len(partial.skipped)
        progress.update(done, {"images_per_second": (done - first) / (time.monotonic() - began)})
    progress.close()
    for _, reason in skipped[noted:]:
        print(f"skipped {reason}", file=sys.stderr)
    if not partial.where:
        raise DataError(f"none of the {len(files)} images in {images} can be read")
    names = [stem for stem in files if stem in partial.where]
    partial.finish(names, metadata)
    left = len(files) - len(names)
    print(f"{output} of {len(names)} images in {out}"
          + (f"; {left} of {len(files)} images unreadable, skipped" if left else ""))
    return len(names)


def read_features(path):
    """(metadata, iterator of (name, array)) of a file of `write_features`, in order of the names.

    Arrays are read one at a time, [h,w,d] or [d]. metadata: {"weights", "block", "output",
    "dtype", "image_size", "patch", "width"}.

    Raises:
      DataError: no such file, or not one of these.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not there, or not a file")
    records = _read_npz(path) if path.suffix == ".npz" else _read_array_record(path)
    try:
        return next(records), records
    except (ValueError, LookupError, OSError, RuntimeError, StopIteration,
            zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no features of fs4_jax ({error})") from error


def _read_npz(path):
    with np.load(path) as file:
        yield json.loads(str(file[_METADATA]))
        for name in file[_NAMES].tolist():
            yield name, file[name]


def _read_array_record(path):
    from fs4_jax.data.stored import array_record, decode
    reader = array_record().ArrayRecordReader(str(path), options="readahead_buffer_size:0")
    records = (decode(reader.read([i])[0]) for i in range(reader.num_records()))
    for i, record in enumerate(records):
        if i == 0:
            yield json.loads(record["metadata"])
        yield record["name"].decode(), np.load(io.BytesIO(record["features"]))


class _Partial:
    """What is done of a file: a folder with an .npz for each batch.

    Attributes:
      folder: the folder. where: {name: the .npz it is in}. skipped: names of unreadable images.

    A whole batch is there or not, so that the batches that are left have the images, and bits,
    that they would have had.
    """

    def __init__(self, out, plan):
        self.folder = out.with_name(out.name + ".partial")
        self._out, self.where, self.skipped = out, {}, set()
        plan_file = self.folder / "plan.json"
        if plan_file.exists():
            begun = json.loads(plan_file.read_text())
            other = [key for key in plan if begun.get(key) != plan[key]]
            if other:
                raise DataError(f"{self.folder} was begun with other settings or images "
                                f"({', '.join(other)}): go on with those, or remove that folder")
        else:
            self.folder.mkdir(exist_ok=True)
            with _explained(plan_file):
                write_whole(plan_file, json.dumps(plan, indent=2), durable=True)
        self._number = 0
        for chunk in sorted(self.folder.glob("*.npz")):
            with np.load(chunk) as content:
                self.where |= {name: chunk for name in content.files if name != _SKIPPED}
                self.skipped |= set(content[_SKIPPED].tolist())
            self._number = int(chunk.stem) + 1

    def __contains__(self, name):
        return name in self.where or name in self.skipped

    def add(self, features, skipped):
        """Keeps a batch: {name: array}, and [(name, reason)] of what was skipped on the way."""
        skipped = [name for name, _ in skipped]
        chunk = self.folder / f"{self._number:08d}.npz"
        arrays = {**features, _SKIPPED: np.array(skipped, str)}
        with _explained(chunk), whole_file(chunk, durable=True) as writing:
            write_npz(writing, arrays.items())
        self._number += 1
        self.where |= dict.fromkeys(features, chunk)
        self.skipped |= set(skipped)

    def finish(self, names, metadata):
        """Writes the file, in the order of the names, and removes the folder."""
        if self._out.suffix == ".npz":
            arrays = ((name, self._array(name)) for name in names)
            told = ((_NAMES, np.array(names)), (_METADATA, np.array(json.dumps(metadata))))
            with _explained(self._out), whole_file(self._out, durable=True) as writing:
                write_npz(writing, told, arrays)
        else:
            self._write_array_record(names, json.dumps(metadata).encode())
        shutil.rmtree(self.folder)

    def _array(self, name):
        with np.load(self.where[name]) as content:
            return content[name]

    def _write_array_record(self, names, metadata):
        from fs4_jax.data.stored import array_record, encode
        with whole_file(self._out) as writing:
            writer = array_record().ArrayRecordWriter(str(writing), "group_size:1,uncompressed")
            for name in names:
                features = io.BytesIO()
                np.save(features, self._array(name))
                writer.write(encode({"name": name.encode(), "features": features.getvalue(),
                                     "metadata": metadata}))
            writer.close()


@contextlib.contextmanager
def _explained(path):
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} can not be written: {error.strerror or error}") from error


def _check_out(out):
    if out.suffix not in FORMATS:
        raise DataError(f"--out={out} must end in one of {', '.join(FORMATS)}")
    if out.exists():
        raise DataError(f"--out={out} is there already: remove it, or choose another file")
    if not out.absolute().parent.is_dir():
        raise DataError(f"--out={out}: there is no folder {out.absolute().parent}")
    if not os.access(out.absolute().parent, os.W_OK):
        raise DataError(f"--out={out} can not be written: permission denied")


def _list_images(images):
    from fs4_jax.data.folder import list_images
    try:
        files = list_images(images, key="images")
    except DataError as error:
        raise DataError(str(error).replace("config.images", "--images")) from error
    for name in (_NAMES, _METADATA, _SKIPPED):
        if name in files:
            raise DataError(f"{files[name]}: an image can not be called {name}; rename it")
    return files


def _encoder(weights, block):
    """(model, params, side of its images in pixels)."""
    from fs4_jax.config import ConfigError, recall_config
    from fs4_jax.errors import EXPLAINED
    from fs4_jax.models.encoder_files import load_encoder
    from fs4_jax.run import encoder_of_workdir
    try:
        if os.path.isdir(weights):
            data = recall_config(weights).data
            return *encoder_of_workdir(weights, block=block), data.eval_size or data.image_size
        model, params = load_encoder(weights, block=block)
    except EXPLAINED:
        raise
    except ValueError as error:
        raise ConfigError(str(error).replace("encoder.block", "--block")) from error
    if model.position == "rope":
        return model, params, 224
    return model, params, round((model.pos_grid[0] * model.pos_grid[1]) ** 0.5) * model.patch


def _sizes(files):
    """[stem, bytes] of each image, to tell folders apart."""
    return [np.array(f"{stem} {os.path.getsize(file)}") for stem, file in files.items()]


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("weights", None, "File of weights, or a workdir of a training run.")
    flags.DEFINE_string(
        "images", None, "Folder of images (jpg, png, webp, bmp); subfolders are searched.")
    flags.DEFINE_string("out", None, "File to write, .npz or .array_record.")
    flags.DEFINE_integer(
        "image_size", 0, "Side of a square image in pixels; others keep about their aspect ratio "
        "and have its area. 0: as the workdir was evaluated, or as the file's positions are "
        "stored.", lower_bound=0)
    flags.DEFINE_integer("block", None, "Tokens after this block, from 1; the last if not given.")
    flags.DEFINE_enum("output", "patch_tokens", OUTPUTS, "What of an image.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "What is stored; computed in float32.")
    flags.DEFINE_integer("batch_size", 8, "Images at a time.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["weights", "images", "out"])
    app.run(main)
