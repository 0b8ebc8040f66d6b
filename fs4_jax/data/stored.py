"""Data sets stored as ArrayRecord: what `fs4_jax.data.prepare` builds, read back file by file.

A record is a tf.train.Example whose features are the bytes of the original files, none of them
encoded again: "name", "image", "label" and the like. A folder holds

  prepare.json                                   what it was built from, and its shards
  NAME-SPLIT.array_record-00000-of-00010 ...     the records, in tensorflow_datasets' names
  SPLIT.names.txt                                the examples' names, a line for each record
  features.json, dataset_info.json               for tensorflow_datasets; the last one comes last

so that without dataset_info.json it is unfinished. `tfds.builder_from_directory` reads it too.
"""

import bisect
import dataclasses
import itertools
import json
import pathlib
import threading

from fs4_jax.data.images import DataError

PLAN_FILE, FEATURES_FILE, INFO_FILE = "prepare.json", "features.json", "dataset_info.json"


def shard_name(name, split, shard, number):
    """The file name of a shard, 0 <= shard < number."""
    return f"{name}-{split}.array_record-{shard:05d}-of-{number:05d}"


def names_file(split):
    """The file name of the list of a split's example names."""
    return f"{split}.names.txt"


def array_record():
    """The module of ArrayRecord's reader and writer; DataError where it is not installed."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:      # grain brings it along, but not on Windows
        raise DataError("data sets stored as ArrayRecord need the package array_record "
                        f"({error}); without it, use the tree of files") from error
    return array_record_module


# ---- records ------------------------------------------------------------------------------------

def encode(features):
    """A serialized tf.train.Example of {name: bytes}; see tensorflow's example.proto."""
    entries = (_field(1, _field(1, name.encode()) + _field(2, _field(1, _field(1, value))))
               for name, value in sorted(features.items()))
    return _field(1, b"".join(entries))


def decode(record):
    """{name: bytes} of a serialized tf.train.Example whose features are single byte strings.

    Raises ValueError for anything else.
    """
    features = {}
    for entry in _messages(_only_field(record)):
        name, feature = _messages(entry)
        features[bytes(name).decode()] = bytes(_only_field(_only_field(feature)))
    return features


def _field(number, content):
    """Field `number` of a protocol buffer, wire type 2: its length (a varint), its content."""
    length, varint = len(content), bytearray()
    while length >= 128:
        varint.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *varint, length]) + content


def _messages(buffer):
    """The contents of the fields of a protocol buffer, all of wire type 2, in their order."""
    buffer, at = memoryview(buffer), 0
    while at < len(buffer):
        if buffer[at] & 7 != 2:
            raise ValueError("not a record of byte strings")
        at, length, shift = at + 1, 0, 0
        while True:
            byte = buffer[at]
            at, length, shift = at + 1, length | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        if at + length > len(buffer):
            raise ValueError("a record cut short")
        yield buffer[at:at + length]
        at += length


def _only_field(buffer):
    (content,) = _messages(buffer)
    return content


# ---- reading ------------------------------------------------------------------------------------

def stored_files(root, name, split):
    """The files of a split of a stored data set, as a tree's would be listed.

    Args:
      root: folder. name: of the data set. split: its name in the set.

    Returns:
      {"image": {stem: StoredFile}, "label": ...}; None where `root` is no stored data set.

    Raises:
      DataError: an unfinished set, another data set, or no such split in it.
    """
    root = pathlib.Path(root)
    if not (root / PLAN_FILE).exists():
        return None
    if not (root / INFO_FILE).exists():
        raise DataError(f"{root} (config.data.root) is unfinished: there is no {INFO_FILE}; run "
                        "python -m fs4_jax.data.prepare again with the same arguments")
    plan = json.loads((root / PLAN_FILE).read_text())
    if plan["name"] != name:
        raise DataError(f"{root} (config.data.root) holds {plan['name']}, not {name}: give another "
                        f"root, or --config.data.name={plan['name']}")
    if split not in plan["splits"]:
        raise DataError(f"{root} (config.data.root) holds no split {split!r}, only "
                        f"{', '.join(plan['splits'])}: prepare it with that split")
    lengths, fields = plan["splits"][split]["shards"], plan["splits"][split]["fields"]
    paths = [root / shard_name(name, split, i, len(lengths)) for i in range(len(lengths))]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{missing[0]} is missing, a part of the stored data set; delete "
                        f"{root / INFO_FILE} and prepare it again, which makes what is missing")
    names = (root / names_file(split)).read_text().splitlines()
    if len(names) != sum(lengths):
        raise DataError(f"{root / names_file(split)} names {len(names)} examples for "
                        f"{sum(lengths)} records: build the set anew")
    shards = Shards(paths, lengths)
    return {field: {stem: StoredFile(shards, i, field, stem) for i, stem in enumerate(names)}
            for field in fields}


class Shards:
    """The records of several files, numbered through; opened when first read, in any thread.

    Args:
      paths: of the files. lengths: records in each.
    """

    def __init__(self, paths, lengths):
        self.paths = [str(path) for path in paths]
        self._ends = list(itertools.accumulate(lengths))
        self._forget()

    def _forget(self):
        self._readers, self._lock = {}, threading.Lock()

    def __getstate__(self):
        return self.paths, self._ends

    def __setstate__(self, state):        # in another process, which opens files of its own
        self.paths, self._ends = state
        self._forget()

    def path_of(self, i):
        """The file that holds record i."""
        return self.paths[bisect.bisect_right(self._ends, i)]

    def __getitem__(self, i):
        shard = bisect.bisect_right(self._ends, i)
        with self._lock:
            if shard not in self._readers:
                # Records are read in random order: no reading ahead.
                reader = array_record().ArrayRecordReader(
                    self.paths[shard], options="readahead_buffer_size:0",
                    file_reader_buffer_size=32768)
                length = self._ends[shard] - (self._ends[shard - 1] if shard else 0)
                if not reader.ok() or reader.num_records() != length:
                    raise OSError(f"not the ArrayRecord file it was built as, records: {length}")
                self._readers[shard] = reader
        return self._readers[shard].read([i - (self._ends[shard - 1] if shard else 0)])[0]


@dataclasses.dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a stored data set: field `field` of record `index`; as text, where it lies."""
    shards: Shards
    index: int
    field: str
    stem: str

    @property
    def path(self):
        """The shard it lies in."""
        return self.shards.path_of(self.index)

    def read_bytes(self):
        """The bytes of the original file; OSError, RuntimeError or ValueError."""
        return decode(self.shards[self.index])[self.field]

    def __str__(self):
        return f"{self.path}, {self.field} of {self.stem}"
