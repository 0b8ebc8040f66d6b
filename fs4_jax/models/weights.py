"""Trained encoders from files under DINOv2's official names, and back. Never unpickles.

Official name                    shape              here
cls_token                        [1,1,d]            cls_token [1,1,d]
pos_embed                        [1,1+h*w,d]        cls_pos [1,1,d], pos_embed [1,h,w,d]
register_tokens (optional)       [1,r,d]            register_tokens
patch_embed.proj.weight, .bias   [d,3,p,p], [d]     patch_embed/kernel [p*p*3,d], bias
blocks.N.norm1, .norm2           [d]                blocks_N/norm1/scale, bias ...
blocks.N.attn.qkv, .attn.proj    [3d,d], [d,d]      blocks_N/attn/qkv/kernel (transposed), bias ...
blocks.N.mlp.fc1, .fc2           [m,d], [d,m]       blocks_N/mlp/fc1/kernel (transposed), bias ...
blocks.N.ls1.gamma, .ls2.gamma   [d]                blocks_N/ls1, ls2 (no ls at all: DINO)
norm.weight, .bias               [d]                norm/scale, bias
mask_token                                          ignored
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from fs4_jax.models import vit

_PREFIX = re.compile(r"^((teacher|student|backbone|module|encoder)\.)+")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
_BROKEN = (safetensors.SafetensorError, zipfile.BadZipFile, ValueError, OSError, KeyError)
_FLOATS = ("F16", "BF16", "F32", "float16", "float32")


class WeightsError(ValueError):
    """A file of weights that can not be used; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the shapes in a file say about the encoder it holds."""

    width: int
    depth: int
    patch: int
    num_heads: int
    pos_grid: tuple[int, int]
    num_registers: int
    mlp_width: int
    layer_scale: bool

    @property
    def variant(self):
        """As "S/14" for a shape that `vit.VARIANTS` names, else a description."""
        for size, shape in vit.VARIANTS.items():
            if shape == (self.width, self.depth, self.num_heads):
                return f"{size}/{self.patch}"
        return (
            f"(width {self.width}, depth {self.depth}, {self.num_heads} heads, "
            f"patch {self.patch})"
        )


def load_encoder(path, *, dtype=jnp.float32, block=None, drop_path=0.0, expected_variant=None):
    """Reads a trained encoder.

    Args:
      path: .safetensors or .npz file, float16, bfloat16 or float32, under DINOv2's official
        names; `teacher.`, `student.`, `backbone.`, `module.` and `encoder.` before them are
        dropped. Heads are what its metadata or `vit.VARIANTS` say, else width // 64.
      dtype, block, drop_path: as in `vit.ViT`. Blocks after `block` are checked, not returned.
      expected_variant: for instance "S/14", to be sure of it.

    Returns:
      (model, params): a `vit.ViT` and its float32 parameters,
      for model.apply({"params": params}, images).

    Raises:
      WeightsError: the file can not be read, or names every tensor that is missing, extra, of
        another shape, not floating or not finite.
      ValueError: a block that the encoder does not have.
    """
    arch = read_architecture(path, expected_variant=expected_variant)
    if block is not None and not 1 <= block <= arch.depth:
        raise ValueError(f"encoder.block={block}: {path} has blocks 1 to {arch.depth}")
    model = vit.ViT(
        patch=arch.patch,
        width=arch.width,
        depth=arch.depth,
        num_heads=arch.num_heads,
        pos_grid=arch.pos_grid,
        mlp_ratio=arch.mlp_width / arch.width,
        num_registers=arch.num_registers,
        layer_scale=1.0 if arch.layer_scale else None,
        drop_path=drop_path,
        dtype=dtype,
        block=block,
    )
    tensors = _read_tensors(path)
    broken = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise WeightsError(f"{path}: not finite: {', '.join(broken)}")
    return model, jax.tree.map(jnp.asarray, _from_official(tensors, arch, block or arch.depth))


def read_architecture(path, *, expected_variant=None):
    """`Architecture` of a file, from its header alone; raises as `load_encoder` does."""
    found, metadata = _read_header(path)
    if any(".mlp.w12." in name or ".mlp.w1." in name for name in found):
        raise WeightsError(
            f"{path}: its blocks have SwiGLU MLPs (mlp.w12, mlp.w3, as in DINOv2's ViT-g), which "
            f"are not supported yet: take a ViT-S, -B or -L"
        )
    arch, problems = _infer(found, metadata)
    expected = _official_shapes(arch)
    for name, shape in expected.items():
        if name not in found:
            problems.append(f"missing {name} {list(shape)}")
        elif found[name][0] != shape:
            problems.append(f"{name} is {list(found[name][0])}, not {list(shape)}")
        elif found[name][1] not in _FLOATS:
            problems.append(f"{name} is {found[name][1]}, not float16, bfloat16 or float32")
    problems += [f"extra {name} {list(found[name][0])}" for name in found if name not in expected]
    if problems:
        raise WeightsError(
            f"{path} is not an encoder under DINOv2's names (see fs4_jax/models/weights.py):\n  "
            + "\n  ".join(dict.fromkeys(problems))
        )
    if expected_variant is not None:
        width, depth, _, patch = vit.parse_variant(expected_variant)
        if (width, depth, patch) != (arch.width, arch.depth, arch.patch):
            raise WeightsError(
                f"{path} (encoder.weights) holds a {arch.variant}, but encoder.variant is "
                f"{expected_variant}: change one of the two"
            )
    return arch


def export_encoder(params, path, *, num_heads=None):
    """Writes a `vit.ViT`'s parameters as float32 .safetensors (or .npz) under official names.

    Args:
      params: parameters of an encoder that ran all its blocks (arrays or jax arrays).
      path: where to; an existing file is replaced.
      num_heads: only needed, in .safetensors only, where `load_encoder` would guess another.
    """
    path = pathlib.Path(path)
    tensors = _to_official(jax.tree.map(lambda p: np.asarray(p, np.float32), dict(params)))
    if path.suffix == ".npz":
        with open(path, "wb") as file:
            np.savez(file, **tensors)
        return
    rows, cols = params["pos_embed"].shape[1:3]
    metadata = {"pos_grid": f"{rows}x{cols}"}
    if num_heads is not None:
        metadata["num_heads"] = str(num_heads)
    safetensors.numpy.save_file(tensors, path, metadata=metadata)


# ---- What a file should hold -----------------------------------------------------------------


def _infer(found, metadata):
    """The architecture that fits best, and the problems met while guessing."""
    problems = []

    def shape(name, rank):
        value = found[name][0] if name in found else ()
        return value if len(value) == rank else (0,) * rank

    hints = [shape("patch_embed.proj.weight", 4)[0], shape("norm.weight", 1)[0]]
    hints += [shape(name, 3)[-1] for name in ("cls_token", "pos_embed")]
    hints = collections.Counter(hint for hint in hints if hint)
    width = hints.most_common(1)[0][0] if hints else 0
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in found]
    depth = max((int(match[1]) + 1 for match in blocks if match), default=0)
    if not depth:
        problems.append("missing blocks.0.* and all other blocks")

    tokens = max(shape("pos_embed", 3)[1] - 1, 0)
    grid = (math.isqrt(tokens),) * 2
    num_heads = _default_heads(width)
    try:
        num_heads = int(metadata.get("num_heads", num_heads))
        rows, cols = metadata.get("pos_grid", f"{grid[0]}x{grid[1]}").split("x")
        grid = int(rows), int(cols)
    except ValueError:
        problems.append(f"metadata {metadata} should hold num_heads '6' and pos_grid '37x37'")
    if math.prod(grid) != tokens:
        problems.append(f"pos_embed has {tokens} positions, which are not {grid[0]}x{grid[1]}")
    if width and (num_heads < 1 or width % num_heads):
        problems.append(f"{num_heads} heads do not divide the width {width}")
    arch = Architecture(
        width=width,
        depth=depth,
        patch=shape("patch_embed.proj.weight", 4)[-1],
        num_heads=num_heads,
        pos_grid=grid,
        num_registers=shape("register_tokens", 3)[1],
        mlp_width=shape("blocks.0.mlp.fc1.weight", 2)[0] or 4 * width,
        layer_scale=any(re.match(r"blocks\.\d+\.ls[12]\.", name) for name in found),
    )
    return arch, problems


def _default_heads(width):
    """Heads of the named variants of this width, else one for every 64 numbers."""
    named = {size: heads for size, _, heads in vit.VARIANTS.values()}
    return named.get(width, width // 64)


def _official_shapes(arch):
    d, p, m = arch.width, arch.patch, arch.mlp_width
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + math.prod(arch.pos_grid), d),
        "patch_embed.proj.weight": (d, 3, p, p),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if arch.num_registers:
        shapes["register_tokens"] = (1, arch.num_registers, d)
    block = {"norm1": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d)}
    block |= {"norm2": (d,), "mlp.fc1": (m, d), "mlp.fc2": (d, m)}
    for i in range(arch.depth):
        for name, shape in block.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        if arch.layer_scale:
            shapes[f"blocks.{i}.ls1.gamma"] = shapes[f"blocks.{i}.ls2.gamma"] = (d,)
    return shapes


# ---- Official names and ours -----------------------------------------------------------------


def _from_official(tensors, arch, num_blocks):
    """Official tensors -> nested parameters of the first `num_blocks` blocks."""
    params = {}
    for name, value in tensors.items():
        match = re.match(r"blocks\.(\d+)\.", name)
        if match and int(match[1]) >= num_blocks:
            continue
        if name == "pos_embed":
            params["cls_pos"] = value[:, :1]
            params["pos_embed"] = value[:, 1:].reshape(1, *arch.pos_grid, -1)
            continue
        name = re.sub(r"^blocks\.", "blocks_", name).replace("patch_embed.proj", "patch_embed")
        *scope, leaf = name.removesuffix(".gamma").split(".")
        if leaf == "weight" and value.ndim == 1:
            leaf = "scale"
        elif leaf == "weight":
            leaf = "kernel"
            value = np.moveaxis(value, 1, -1).reshape(len(value), -1).T
        node = params
        for part in scope:
            node = node.setdefault(part, {})
        node[leaf] = value
    return params


def _to_official(params):
    """Nested numpy parameters -> official tensors: the inverse of `_from_official`."""
    params = dict(params)
    width = params["cls_token"].shape[-1]
    pos = params.pop("pos_embed").reshape(1, -1, width)
    tensors = {"pos_embed": np.concatenate([params.pop("cls_pos"), pos], axis=1)}
    for keys, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        *scope, leaf = [key.key for key in keys]
        name = re.sub(r"^blocks_", "blocks.", ".".join(scope))
        if name == "patch_embed":
            name = "patch_embed.proj"
            if leaf == "kernel":
                side = math.isqrt(len(value) // 3)
                value = value.reshape(side, side, 3, width).transpose(3, 2, 0, 1)
        elif leaf == "kernel":
            value = value.T
        leaf = {"kernel": "weight", "scale": "weight", "ls1": "ls1.gamma", "ls2": "ls2.gamma"}.get(
            leaf, leaf
        )
        tensors[f"{name}.{leaf}" if name else leaf] = np.ascontiguousarray(value)
    return tensors


# ---- Files -----------------------------------------------------------------------------------


def _read_header(path):
    """{official name: (shape, dtype name)}, metadata; reads no tensor."""
    path = _checked(path)
    with _readable(path):
        if path.suffix == ".npz":
            found, metadata = _npz_header(path), {}
        else:
            with safetensors.safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
                found = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
                metadata = file.metadata() or {}
    return {name: found[raw] for name, raw in _official_names(path, found).items()}, metadata


def _read_tensors(path):
    """{official name: float32 array}."""
    path = pathlib.Path(path)
    with _readable(path):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                raw = {name: file[name] for name in file.files}
        else:
            raw = safetensors.numpy.load_file(path)
    names = _official_names(path, raw)
    return {name: np.asarray(raw[old]).astype(np.float32) for name, old in names.items()}


@contextlib.contextmanager
def _readable(path):
    """Turns what a broken file raises into a WeightsError that names it."""
    try:
        yield
    except _BROKEN as error:
        kind = ".npz" if path.suffix == ".npz" else ".safetensors"
        raise WeightsError(
            f"{path} (encoder.weights) is not a readable {kind} file: {error}"
        ) from error


def _official_names(path, raw_names):
    """{official name: name in the file} without prefixes and the unused mask token."""
    names = {}
    for raw in raw_names:
        name = _PREFIX.sub("", raw)
        if name == "mask_token":
            continue
        if name in names:
            raise WeightsError(
                f"{path} holds more than one encoder: {names[name]} and {raw} are both {name}; "
                f"keep one of them in the file"
            )
        names[name] = raw
    return names


def _checked(path):
    path = pathlib.Path(path)
    if path.suffix in _PICKLES:
        target = path.with_suffix(".safetensors").name
        raise WeightsError(
            f"{path}: pickled checkpoints are not opened, for they can run code. Convert it once, "
            f'where torch is: python -c "import torch, safetensors.torch as s; '
            f"w = torch.load('{path.name}', map_location='cpu', weights_only=True); "
            f'w = w.get(\'teacher\', w); s.save_file({{k: v.contiguous() for k, v in w.items()}}, '
            f"'{target}')\""
        )
    if not path.is_file():
        raise WeightsError(f"{path} (encoder.weights) is not there, or not a file")
    return path


def _npz_header(path):
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read(file)
                found[name.removesuffix(".npy")] = (shape, str(dtype))
    return found
