"""Writes a data set as ArrayRecord: shard by shard, so that it can be interrupted at any moment.

See `fs4_jax.data.stored` for what a finished folder holds. A file gets its name when it is whole
and on disk; dataset_info.json, without which nobody reads the set, is the last.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time

from fs4_jax.data.images import DataError
from fs4_jax.data.stored import (FEATURES_FILE, INFO_FILE, PLAN_FILE, array_record, encode,
                                 names_file, shard_name)
from fs4_jax.whole_files import WRITING, whole_file, write_whole

_FORMAT = 1
_OPTIONS = "group_size:1,uncompressed"     # the files are compressed as they are; read singly
_TRIAL = 64                 # examples that a rate is measured on
_CHUNK, _THREADS = 100, 8   # examples read at once: disks over a network answer late

# What tensorflow_datasets calls the contents of a field, by its kind.
_FEATURES = {
    "jpeg": ("image_feature.Image", dict(image=dict(
        dtype="uint8", encodingFormat="jpeg", shape=dict(dimensions=["-1", "-1", "3"])))),
    "png": ("image_feature.Image", dict(image=dict(
        dtype="uint8", encodingFormat="png", shape=dict(dimensions=["-1", "-1", "3"])))),
    "png label": ("image_feature.Image", dict(image=dict(
        dtype="uint8", encodingFormat="png", shape=dict(dimensions=["-1", "-1", "1"])))),
    "bytes": ("text_feature.Text", dict(text=dict())),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """What goes into a split, in its order: fields {"image": {stem: path}, "label": ...}."""
    fields: dict

    @property
    def stems(self):
        return list(self.fields["image"])

    def paths(self, stem):
        """{field: path} of an example."""
        return {field: files[stem] for field, files in self.fields.items()}

    def record(self, stem):
        """The record of an example; OSError where a file can not be read."""
        contents = {field: pathlib.Path(path).read_bytes()
                    for field, path in self.paths(stem).items()}
        return encode({"name": stem.encode(), **contents})

    def measure(self):
        """(bytes, sha256 of every file's stem, field and size): what tells trees apart."""
        total, digest = 0, hashlib.sha256()
        for stem in self.stems:
            for field, path in self.paths(stem).items():
                size = os.path.getsize(path)
                total += size
                digest.update(f"{stem}\n{field} {size}\n".encode())
        return total, digest.hexdigest()


def make_plan(name, splits, shard_size=1000):
    """What a set is to be, as prepare.json holds it: its splits, their bytes and shards.

    Args:
      name: of the data set. splits: {name: Split}. shard_size: examples a shard, at most.
    """
    plan = {}
    for key, split in splits.items():
        number, (total, digest) = len(split.stems), split.measure()
        shards = -(-number // shard_size)
        plan[key] = dict(examples=number, bytes=total, sha256=digest, fields=list(split.fields),
                         shards=[number * (i + 1) // shards - number * i // shards
                                 for i in range(shards)])
    return dict(format=_FORMAT, name=name, splits=plan)


def build(out, plan, splits, *, kinds, extra=(), on_shard=None):
    """Writes the set that a plan describes, going on where an earlier call stopped.

    Args:
      out: folder, made if missing; empty, or begun with the same plan.
      plan, splits: of `make_plan`.
      kinds: {field: a key of _FEATURES}, for tensorflow_datasets.
      extra: (path, its name in the set) of files that belong to it as they are.
      on_shard: called as on_shard(examples written so far, all of them) after each hundred.

    Returns:
      Number of examples that lay there finished from an earlier call.

    Raises:
      DataError: a folder with other things in it, a file that can not be read, no space left.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _begin(out, plan)
        kept = _write_shards(out, plan, splits, on_shard)
        for key, split in splits.items():
            write_whole(out / names_file(key), "".join(f"{stem}\n" for stem in split.stems),
                        durable=True)
        for source, name in extra:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / name)
        for path in out.glob(f"*{WRITING}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _write_json(out / FEATURES_FILE, _features(plan, kinds))
        _write_json(out / INFO_FILE, _info(plan))
    return kept


def seconds_for_each(splits, folder=None):
    """Seconds that one example takes to be read and written, measured on a few dozen.

    Args:
      splits: of `make_plan`. folder: on the disk to be written to; None for the temporary one.
    """
    split = max(splits.values(), key=lambda split: len(split.stems))
    stems = split.stems[::-(-len(split.stems) // _TRIAL)]
    with tempfile.TemporaryDirectory(dir=folder, suffix=WRITING) as trial:
        start = time.monotonic()
        for _ in _write_shard(pathlib.Path(trial, "trial"), split, stems):
            pass
        return (time.monotonic() - start) / len(stems)


@contextlib.contextmanager
def _alone(out):
    """Locks a folder against a second build; the lock ends with the process, however it ends."""
    import fcntl             # not on Windows, nor is ArrayRecord
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"--out={out} is being built by another process") from error
        except OSError:      # a file system without locks
            pass
        yield
    finally:
        os.close(folder)


def _begin(out, plan):
    """Writes the plan into an empty folder, or checks that it was begun with the same one."""
    if not (out / PLAN_FILE).exists():
        if any(not path.name.endswith(WRITING) for path in out.iterdir()):
            raise DataError(f"--out={out} holds other files: give an empty or a new folder")
        _write_json(out / PLAN_FILE, plan)
    elif _read_plan(out) != plan:
        raise DataError(f"--out={out} was begun from other files or splits ({PLAN_FILE} tells "
                        "which): give another folder, or delete this one")


def _read_plan(out):
    try:
        return json.loads((out / PLAN_FILE).read_text())
    except (OSError, ValueError):
        return None


def _unwritten(out, plan):
    """(path, split, first example, last + 1) of the shards that are not there whole."""
    missing = []
    for key, split in plan["splits"].items():
        start = 0
        for i, length in enumerate(split["shards"]):
            path = out / shard_name(plan["name"], key, i, len(split["shards"]))
            if _num_records(path) != length:
                missing.append((path, key, start, start + length))
            start += length
    return missing


def _write_shards(out, plan, splits, on_shard):
    """Writes what is missing; the number of examples that were there."""
    missing = _unwritten(out, plan)
    if missing:
        (out / INFO_FILE).unlink(missing_ok=True)
    total = sum(split["examples"] for split in plan["splits"].values())
    done = kept = total - sum(stop - start for *_, start, stop in missing)
    for path, key, start, stop in missing:
        for number in _write_shard(path, splits[key], splits[key].stems[start:stop]):
            if on_shard:
                on_shard(done + number, total)
        done += stop - start
    return kept


def _num_records(path):
    """Records in an ArrayRecord file; None where it is none, or not whole."""
    if not path.exists():
        return None
    reader = array_record().ArrayRecordReader(str(path))
    if not reader.ok():         # closing it would raise
        return None
    number = reader.num_records()
    reader.close()
    return number


def _write_shard(path, split, stems):
    """Writes a shard, whole or not at all; yields how many examples are in it, now and then."""
    try:
        with whole_file(path, durable=True) as writing:
            writer = array_record().ArrayRecordWriter(str(writing), _OPTIONS)
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                for first in range(0, len(stems), _CHUNK):
                    for record in pool.map(split.record, stems[first:first + _CHUNK]):
                        writer.write(record)
                    if first + _CHUNK < len(stems):
                        yield first + _CHUNK
            writer.close()
            if _num_records(writing) != len(stems):
                raise DataError(f"{writing} is not whole after it was written: is the disk full?")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{getattr(error, 'filename', None) or path}: "
                        f"{getattr(error, 'strerror', None) or error}") from error
    yield len(stems)


def _write_json(path, value):
    write_whole(path, json.dumps(value, indent=2) + "\n", durable=True)


def _info(plan):
    """dataset_info.json, tensorflow_datasets' own: without it the set is unfinished."""
    splits = [dict(name=key, numBytes=str(split["bytes"]),
                   shardLengths=[str(length) for length in split["shards"]],
                   filepathTemplate="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
              for key, split in plan["splits"].items()]
    return dict(name=plan["name"], version="1.0.0", fileFormat="array_record", splits=splits)


def _features(plan, kinds):
    """features.json of tensorflow_datasets: the fields that all the splits have."""
    common = set.intersection(*(set(split["fields"]) for split in plan["splits"].values()))
    fields = {"name": "bytes", **{field: kinds[field] for field in kinds if field in common}}
    package = "tensorflow_datasets.core.features."
    features = {field: dict(pythonClassName=package + _FEATURES[kind][0], **_FEATURES[kind][1])
                for field, kind in fields.items()}
    return dict(pythonClassName=package + "features_dict.FeaturesDict",
                featuresDict=dict(features=features))
