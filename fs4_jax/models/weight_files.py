"""Tensors in files: .safetensors, .npz and torch's pickles, without ever running code in them."""

import argparse
import contextlib
import dataclasses
import importlib
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
import safetensors
import safetensors.numpy

from fs4_jax.whole_files import whole_file

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
FLOATS = ("F16", "BF16", "F32", "float16", "bfloat16", "float32")
# Keys of a checkpoint under which state dicts lie.
NESTS = ("state_dict", "model", "teacher", "student", "target_encoder", "encoder",
         "momentum_encoder", "base_encoder", "encoder_q", "encoder_k", "backbone", "module")

_BROKEN = (safetensors.SafetensorError, zipfile.BadZipFile, ValueError, OSError, KeyError,
           EOFError, RuntimeError, pickle.UnpicklingError)


class WeightsError(ValueError):
    """A file of weights that can not be used; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """An open file. header: {name: (shape, dtype name)}; read: name -> float32 array."""

    path: pathlib.Path
    header: Mapping
    metadata: Mapping
    read: Callable


@contextlib.contextmanager
def open_weights(path):
    """Opens a file of weights; reads no tensor of a .safetensors or .npz before it is asked for.

    Raises:
      WeightsError: no such file, one that can not be read, or a pickle where torch is missing.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} (encoder.weights) is not there, or not a file")
    with contextlib.ExitStack() as stack:
        if path.suffix in PICKLES:
            kind, opener = path.suffix, _open_pickle
        elif path.suffix == ".npz":
            kind, opener = ".npz", _open_npz
        else:
            kind, opener = ".safetensors", _open_safetensors
        with _readable(path, kind):
            header, metadata, read = opener(path, stack)

        def read_float32(name):
            with _readable(path, kind):
                return np.asarray(read(name)).astype(np.float32)

        yield WeightsFile(path, header, metadata, read_float32)


def save_weights(path, tensors, metadata):
    """Writes .safetensors or .npz, whole or not at all; metadata: {str: str}.

    Raises:
      WeightsError: another suffix, or a place that can not be written.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise WeightsError(f"{path}: weights are written as .safetensors or .npz")
    try:
        with whole_file(path) as writing:
            if path.suffix == ".npz":
                with open(writing, "wb") as file:
                    np.savez(file, **tensors, **{name: np.array(v) for name, v in metadata.items()})
            else:
                safetensors.numpy.save_file(tensors, writing, metadata=metadata)
    except OSError as error:
        raise WeightsError(f"{path} can not be written: {error.strerror}") from error


def _open_safetensors(path, stack):
    file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    slices = {name: file.get_slice(name) for name in file.keys()}
    header = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    return header, file.metadata() or {}, file.get_tensor


def _open_npz(path, stack):
    header = _npz_header(path)
    file = stack.enter_context(np.load(path, allow_pickle=False))
    # `save_weights` keeps metadata as strings beside the tensors.
    texts = [name for name, (shape, dtype) in header.items() if not shape and "<U" in dtype]
    return ({name: entry for name, entry in header.items() if name not in texts},
            {name: str(file[name]) for name in texts}, file.__getitem__)


def _npz_header(path):
    header = {}
    readers = {(1, 0): np.lib.format.read_array_header_1_0,
               (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
                header[name.removesuffix(".npy")] = shape, str(dtype)
    return header


def _open_pickle(path, stack):
    try:
        # Not an import statement: torch is no dependency, only what reads its own files.
        torch = importlib.import_module("torch")
    except ImportError as error:
        target = path.with_name(path.name.split(".")[0] + ".safetensors")
        raise WeightsError(
            f"{path} is torch's own format, and torch is not installed here: install it, or "
            f"convert the file once where it is: python -m fs4_jax.models.weights convert "
            f"--input={path} --output={target}") from error
    # The arguments of a training lie in many checkpoints; a Namespace holds data and runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True,
                                 mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:     # torch's own text tells to load it all the same
            found = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
            raise WeightsError(
                f"{path} holds Python objects besides tensors"
                f"{f' ({found[1]})' if found else ''}, or is damaged; objects are not loaded, for "
                f"they can run code: save its state dict alone") from error
    tensors = dict(_flatten(content, torch.Tensor))
    header = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch."))
              for name, t in tensors.items()}
    return header, {}, lambda name: tensors[name].detach().to(torch.float32).numpy()


def _flatten(content, tensor_type, prefix=""):
    """(name, tensor) of a checkpoint's state dicts; optimizers and settings are passed over."""
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not tensors by name")
    for key, value in content.items():
        if isinstance(value, tensor_type):
            yield f"{prefix}{key}", value
        elif key in NESTS and isinstance(value, Mapping):
            yield from _flatten(value, tensor_type, f"{prefix}{key}.")


@contextlib.contextmanager
def _readable(path, kind):
    """Turns what a broken file raises into a WeightsError that names it."""
    try:
        yield
    except WeightsError:
        raise
    except _BROKEN as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} (encoder.weights) is not a readable {kind} file: {first}") from error
