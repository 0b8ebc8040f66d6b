"""Trained encoders from files, and back: names, shapes and values are checked one by one."""

import contextlib
import dataclasses
import hashlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.models import vit
from fs4_jax.models import weight_names as naming_of
from fs4_jax.models.architecture import Architecture, describe, infer, usual_heads
from fs4_jax.models.weight_files import (
    FLOATS,
    WeightsError,
    WeightsFile,
    open_weights,
    save_weights,
)


@dataclasses.dataclass(frozen=True)
class Found:
    """An encoder in an open file, its names and shapes checked."""

    architecture: Architecture
    listing: naming_of.Listing
    file: WeightsFile

    def tensor(self, official):
        """A tensor by its official name, float32, put together from its parts in the file."""
        parts = self.listing.naming.parts(official)
        rows, *rest = self.architecture.shapes()[official]
        value = [np.zeros((rows // len(parts), *rest), np.float32) if part is None
                 else self.file.read(self.listing.names[part]) for part in parts]
        value = value[0] if len(value) == 1 else np.concatenate(value)
        if official.endswith("attn.qkv.bias") and "mask of the key bias" in self.listing.dropped:
            value[rows // 3:2 * rows // 3] = 0
        return value

    def params(self, num_blocks):
        """Nested float32 numpy parameters of the first `num_blocks` blocks, for a `vit.ViT`."""
        params, broken = {}, []
        for name in self.architecture.shapes():
            block = re.match(r"blocks\.(\d+)\.", name)
            value = self.tensor(name)
            if not np.isfinite(value).all():
                broken += [part for part in self.listing.naming.parts(name) if part]
            if not block or int(block[1]) < num_blocks:
                _put(params, name, value, self.architecture.pos_grid)
        if broken:
            raise WeightsError(f"{self.file.path}: not finite: {', '.join(broken)}")
        return params


def load_encoder(path, *, dtype=jnp.float32, block=None, drop_path=0.0, expected_variant=None,
                 position=None, allow_supervised=False):
    """Reads a trained encoder.

    Args:
      path: .safetensors, .npz or (where torch is) .pth, .pt of DINO, iBOT, MAE, MoCo-v3, MSN,
        DINOv2 or DINOv3, float16, bfloat16 or float32, under their official names or Hugging
        Face's (`weight_names`). Of several encoders the averaged one is taken (`ROLES` there);
        heads of self-supervised training are left out.
      dtype, block, drop_path: as in `vit.ViT`. Blocks after `block` are checked, not returned.
      expected_variant: for instance "S/14", to be sure of it.
      position: as in `vit.ViT`, where it should not be what the file or its family says.
      allow_supervised: takes a file with a classifier, without it.

    Returns:
      (model, params): a `vit.ViT` and its float32 parameters,
      for model.apply({"params": params}, images).

    Raises:
      WeightsError: the file can not be read, holds a classifier, or names every tensor that is
        missing, extra, of another shape, not floating or not finite.
      ValueError: a block that the encoder does not have.
    """
    with find_encoder(path, expected_variant=expected_variant, position=position,
                      allow_supervised=allow_supervised) as found:
        arch = found.architecture
        if block is not None and not 1 <= block <= arch.depth:
            raise ValueError(f"encoder.block={block}: {path} has blocks 1 to {arch.depth}")
        params = found.params(block or arch.depth)
    model = arch.model(drop_path=drop_path, dtype=dtype, block=block)
    return model, jax.tree.map(jnp.asarray, params)


def read_architecture(path, **options):
    """`Architecture` of a file, without its values; options and errors are `load_encoder`'s."""
    with find_encoder(path, **options) as found:
        return found.architecture


@contextlib.contextmanager
def find_encoder(path, *, expected_variant=None, position=None, allow_supervised=False):
    """A `Found` in a file that is open as long as the context; raises as `load_encoder` does."""
    with open_weights(path) as file:
        listing = naming_of.list_names(file.header)
        if listing.twice:
            first, second = listing.twice[0]
            raise WeightsError(f"{path} holds more than one encoder: {first} and {second} are the "
                               f"same tensor of two; keep one of them in the file")
        if listing.classifier and not allow_supervised:
            raise WeightsError(
                f"{path} holds a classifier ({', '.join(listing.classifier.values())}): its "
                f"encoder has probably seen labels, and nothing built on it would be label-free. "
                f"To use it all the same, without the classifier, convert it with "
                f"--allow_supervised (load_encoder(..., allow_supervised=True))")
        arch, problems = infer(listing, file, position)
        problems += _compare(arch, listing, file)
        if problems:
            raise WeightsError(
                f"{path} is no encoder that is known here (names: fs4_jax/models/weight_names.py); "
                f"read as {arch.family}, {listing.naming.name} names:\n  "
                + "\n  ".join(dict.fromkeys(problems)))
        if expected_variant is not None:
            _check_variant(path, arch, expected_variant)
        yield Found(arch, listing, file)


def export_encoder(params, path, *, model=None, num_heads=None, names="official", family=None,
                   metadata=None):
    """Writes a `vit.ViT`'s parameters as float32 .safetensors or .npz.

    Args:
      params: parameters of an encoder that ran all its blocks (arrays or jax arrays).
      path: where to; an existing file is replaced.
      model: the `vit.ViT`. Without it: heads by `num_heads` or the width, plain bicubic or, where
        no positions are stored, rotary positions.
      names: "official" (DINOv2's, with rotary positions DINOv3's) or "huggingface".
      family: whose it is, one of `architecture.FAMILIES`; metadata: {str: str}, kept beside.
    """
    tensors, said = encoder_tensors(params, model=model, num_heads=num_heads, names=names,
                                    family=family)
    save_weights(path, tensors, {**said, **(metadata or {})})


def encoder_tensors(params, *, model=None, num_heads=None, names="official", family=None):
    """({name: float32 array}, metadata) that `export_encoder` writes of its arguments."""
    if names not in naming_of.NAMES:
        raise ValueError(f"names={names!r} is unknown: one of {', '.join(naming_of.NAMES)}")
    rope = "pos_embed" not in params
    width = params["cls_token"].shape[-1]
    mlp = "swiglu" if "w12" in params["blocks_0"]["mlp"] else "gelu"
    if model is not None:
        said = {name: getattr(model, name)
                for name in ("num_heads", "pos_grid", "position", "norm_epsilon")}
    else:
        said = {"num_heads": num_heads or usual_heads(width, mlp),
                "pos_grid": (1, 1) if rope else params["pos_embed"].shape[1:3],
                "position": "rope" if rope else "bicubic",
                "norm_epsilon": 1e-5 if rope else 1e-6}
    naming = _naming(names, rope, "ls1" in params["blocks_0"])
    tensors = {}
    for official, value in _official(params):
        parts = naming.parts(official)
        for part, rows in zip(parts, np.split(value, len(parts)), strict=True):
            if part is not None:
                tensors[part] = np.ascontiguousarray(rows)
    if naming is naming_of.OFFICIAL_V3:
        tensors |= _rotary_extras(params, width // said["num_heads"])
    return tensors, describe(**said, family=family)


# ---- Checks ----------------------------------------------------------------------------------


def _compare(arch, listing, file):
    """Lines on every tensor that is missing, extra, of another shape or not floating."""
    problems, known = [], set()
    for official, shape in arch.shapes().items() if arch.depth else ():
        parts = listing.naming.parts(official)
        shape = (shape[0] // len(parts), *shape[1:])
        for name in parts:
            if name is None:
                continue
            known.add(name)
            raw = listing.names.get(name)
            if raw is None:
                problems.append(f"missing {name} {list(shape)}")
            elif file.header[raw][0] != shape:
                problems.append(f"{name} is {list(file.header[raw][0])}, not {list(shape)}")
            elif file.header[raw][1] not in FLOATS:
                problems.append(
                    f"{name} is {file.header[raw][1]}, not float16, bfloat16 or float32")
    return problems + [f"extra {name} {list(file.header[raw][0])}"
                       for name, raw in listing.names.items() if name not in known]


def _check_variant(path, arch, expected):
    width, depth, _, patch = vit.parse_variant(expected)
    gated = expected.partition("/")[0] in vit.SWIGLU_WIDTHS
    if (width, depth, patch, gated) != (arch.width, arch.depth, arch.patch, arch.gated):
        raise WeightsError(
            f"{path} (encoder.weights) holds a {arch.variant}, but encoder.variant is "
            f"{expected}: change one of the two")


# ---- Official tensors and ours ---------------------------------------------------------------


def _put(params, name, value, pos_grid):
    """Puts an official tensor where it stands in nested parameters."""
    if name == "pos_embed":
        params["cls_pos"] = value[:, :1]
        params["pos_embed"] = value[:, 1:].reshape(1, *pos_grid, -1)
        return
    name = re.sub(r"^blocks\.", "blocks_", name).replace("patch_embed.proj", "patch_embed")
    *scope, leaf = name.removesuffix(".gamma").split(".")
    if leaf == "weight" and value.ndim == 1:
        leaf = "scale"
    elif leaf == "weight":
        leaf = "kernel"
        value = np.moveaxis(value, 1, -1).reshape(len(value), -1).T
    for part in scope:
        params = params.setdefault(part, {})
    params[leaf] = value


def _official(params):
    """(official name, float32 array) of nested parameters: the inverse of `_put`."""
    params = dict(params)
    width = params["cls_token"].shape[-1]
    if "pos_embed" in params:
        pos = np.asarray(params.pop("pos_embed"), np.float32).reshape(1, -1, width)
        yield "pos_embed", np.concatenate(
            [np.asarray(params.pop("cls_pos"), np.float32), pos], axis=1)
    for keys, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        *scope, leaf = [key.key for key in keys]
        value = np.asarray(value, np.float32)
        name = re.sub(r"^blocks_", "blocks.", ".".join(scope))
        if name == "patch_embed":
            name = "patch_embed.proj"
            if leaf == "kernel":
                side = math.isqrt(len(value) // 3)
                value = value.reshape(side, side, 3, width).transpose(3, 2, 0, 1)
        elif leaf == "kernel":
            value = value.T
        leaf = {"kernel": "weight", "scale": "weight", "ls1": "ls1.gamma",
                "ls2": "ls2.gamma"}.get(leaf, leaf)
        yield (f"{name}.{leaf}" if name else leaf), value


def _naming(names, rope, layer_scale):
    if names == "official":
        return naming_of.OFFICIAL_V3 if rope else naming_of.OFFICIAL
    if rope:
        return naming_of.HF_DINOV3
    return naming_of.HF_DINOV2 if layer_scale else naming_of.HF_VIT


def _rotary_extras(params, size):
    """What DINOv3's own code wants in the file besides: frequencies, and masks of key biases."""
    extras = {"rope_embed.periods": (100.0 ** (np.arange(size // 4) * 4 / size)).astype(np.float32)}
    for name, block in params.items():
        if name.startswith("blocks_"):
            third = np.ones(block["attn"]["qkv"]["bias"].shape[0] // 3, np.float32)
            extras[f"{name.replace('_', '.')}.attn.qkv.bias_mask"] = np.concatenate(
                [third, 0 * third, third])
    return extras


def fingerprint(tree):
    """Hex digits that another tree of arrays (numbers, or names) has not."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
