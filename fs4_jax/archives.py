"""Zip files that are the same bytes for the same content: np.savez would note the time."""

import zipfile

import numpy as np


def entry_of(name):
    """The ZipInfo of an entry, of a day that is always the same."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def write_npz(file, *items, compression=zipfile.ZIP_STORED):
    """Writes (name, array) pairs of some iterables one after the other, so that few are in memory.

    Args:
      file: path or binary file. compression: a constant of zipfile.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for some in items:
            for name, array in some:
                entry = entry_of(f"{name}.npy")
                entry.compress_type = compression
                with archive.open(entry, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
