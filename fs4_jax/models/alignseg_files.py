"""AlignSeg's checkpoints, read and written under the names of its released code.

Official name (J: a layer)                               shape         in our parameters
backbone.*                                               DINO's        encoder (`encoder_files`)
clsQueries.weight                                        [k,d]         decoder/prototypes
decoder_cross_attention_layers.J.multihead_attn
  .in_proj_weight, .in_proj_bias                         [3d,d], [3d]  layer_J/cross/query, ...
  .out_proj.weight, .bias                                [d,d], [d]    layer_J/cross/out
decoder_cross_attention_layers.J.norm.weight, .bias      [d]           layer_J/cross_norm
decoder_self_attention_layers.J.self_attn.*, .norm.*     the same      layer_J/self, self_norm
decoder_ffn_layers.J.linear1.*, .linear2.*               [m,d], [d,m]  layer_J/linear1, linear2
decoder_ffn_layers.J.norm.*                              [d]           layer_J/ffn_norm
"""

import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.models.encoder_files import encoder_tensors, load_encoder
from fs4_jax.models.prototype_decoder import PrototypeDecoder
from fs4_jax.models.weight_files import FLOATS, WeightsError, open_weights, save_weights

_BACKBONE, _QUERIES = "backbone.", "clsQueries.weight"
_LAYER = re.compile(r"decoder_(?:cross_attention|self_attention|ffn)_layers\.(\d+)\.")
_RELEASED_HEADS = 3             # of its VOC and COCO models; those of MOVi have 4
_SAID = "prototype_decoder"     # our metadata: what shapes do not say


class AlignSegModel(NamedTuple):
    """encoder: `vit.ViT`. decoder: `PrototypeDecoder`. params: {"encoder": ..., "decoder": ...},
    float32."""
    encoder: Any
    decoder: PrototypeDecoder
    params: dict


def load_alignseg(path, *, num_heads=None, bug_compatible=None, **encoder_options):
    """Reads a whole model: a frozen encoder, and the decoder that was trained on it.

    Args:
      path: .safetensors, .npz or (where torch is) .pth, .pt, .ckpt.
      num_heads: of the decoder; None: what a file of ours says, else 3.
      bug_compatible: as in `PrototypeDecoder`; None: what a file of ours says, else True, for the
        released code trained so (a single layer is the same either way).
      encoder_options: of `load_encoder`.

    Returns:
      AlignSegModel.

    Raises:
      WeightsError: as `load_encoder`; names every tensor of the decoder that is missing, extra,
        of another shape, not floating or not finite.
    """
    decoder, decoder_params = load_decoder(path, num_heads=num_heads,
                                           bug_compatible=bug_compatible)
    encoder, params = load_encoder(path, **encoder_options)
    if encoder.width != decoder_params["prototypes"].shape[1]:
        raise WeightsError(f"{path}: its encoder's tokens have {encoder.width} channels, its "
                           f"{_QUERIES} {decoder_params['prototypes'].shape[1]}")
    return AlignSegModel(encoder, decoder, {"encoder": params, "decoder": decoder_params})


def load_decoder(path, *, num_heads=None, bug_compatible=None):
    """(PrototypeDecoder, parameters) of a file of `load_alignseg`, whatever its backbone."""
    with open_weights(path) as file:
        prefix = next((name.removesuffix(_QUERIES) for name in file.header
                       if name.endswith(_QUERIES)), "")
        names = {raw.removeprefix(prefix): raw for raw in file.header}
        names = {name: raw for name, raw in names.items() if not name.startswith(_BACKBONE)}
        said = json.loads(file.metadata.get(_SAID, "{}"))
        shapes = _expected_shapes({name: file.header[raw][0] for name, raw in names.items()})
        problems = _compare(shapes, names, file.header)
        heads = num_heads or said.get("num_heads", _RELEASED_HEADS)
        if not problems and shapes[_QUERIES][1] % heads:
            problems.append(f"{heads} heads do not divide the width {shapes[_QUERIES][1]}: give "
                            "num_heads")
        if problems:
            raise WeightsError(f"{path} is no AlignSeg checkpoint that is known here (names: "
                               "fs4_jax/models/alignseg_files.py):\n  " + "\n  ".join(problems))
        tensors = {name: file.read(raw) for name, raw in names.items()}
    broken = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise WeightsError(f"{path}: not finite: {', '.join(broken)}")
    params = {}
    for name, value in tensors.items():
        places = _places(name)
        for place, rows in zip(places, np.split(value, len(places))):
            _put(params, place, jnp.asarray(_turned(name, rows)))
    decoder = PrototypeDecoder(
        len(params["prototypes"]), heads, params["layer_0"]["linear1"]["bias"].size,
        len(params) - 1, said.get("bug_compatible", True) if bug_compatible is None
        else bug_compatible)
    return decoder, params


def export_alignseg(params, path, *, encoder, decoder, metadata=None):
    """Writes a model under the official names, as float32 .safetensors or .npz.

    Args:
      params: {"encoder": ..., "decoder": ...}; other keys are passed over.
      path: where to; an existing file is replaced.
      encoder: `vit.ViT`, as for `export_encoder`. decoder: `PrototypeDecoder`.
      metadata: {str: str}, kept beside.
    """
    backbone, said = encoder_tensors(params["encoder"], model=encoder)
    tensors = {_BACKBONE + name: value for name, value in backbone.items()}
    tensors |= official_tensors(params["decoder"])
    heads = json.dumps({"num_heads": decoder.num_heads, "bug_compatible": decoder.bug_compatible})
    save_weights(path, tensors, {**said, _SAID: heads, **(metadata or {})})


def official_tensors(decoder_params):
    """{official name: float32 array} of a `PrototypeDecoder`'s parameters."""
    flat = {tuple(key.key for key in path): np.asarray(leaf, np.float32) for path, leaf in
            jax.tree_util.tree_leaves_with_path(decoder_params)}
    shapes = _shapes(*decoder_params["prototypes"].shape, len(decoder_params) - 1,
                     decoder_params["layer_0"]["linear1"]["bias"].size)
    return {name: np.ascontiguousarray(np.concatenate(
        [_turned(name, flat[place]) for place in _places(name)])) for name in shapes}


# ---- Names and shapes ------------------------------------------------------------------------


def _shapes(num_prototypes, width, num_layers, hidden):
    """{official name: shape} of a whole decoder."""
    shapes = {_QUERIES: (num_prototypes, width)}
    for j in range(num_layers):
        ffn = f"decoder_ffn_layers.{j}"
        for scope, attention in ((f"decoder_cross_attention_layers.{j}", "multihead_attn"),
                                 (f"decoder_self_attention_layers.{j}", "self_attn")):
            shapes |= {f"{scope}.{attention}.in_proj_weight": (3 * width, width),
                       f"{scope}.{attention}.in_proj_bias": (3 * width,),
                       f"{scope}.{attention}.out_proj.weight": (width, width),
                       f"{scope}.{attention}.out_proj.bias": (width,),
                       f"{scope}.norm.weight": (width,), f"{scope}.norm.bias": (width,)}
        shapes |= {f"{ffn}.linear1.weight": (hidden, width), f"{ffn}.linear1.bias": (hidden,),
                   f"{ffn}.linear2.weight": (width, hidden), f"{ffn}.linear2.bias": (width,),
                   f"{ffn}.norm.weight": (width,), f"{ffn}.norm.bias": (width,)}
    return shapes


def _expected_shapes(found):
    """The shapes of the decoder that the found names and shapes come nearest to."""
    queries = found.get(_QUERIES, ())
    k, width = queries if len(queries) == 2 else (0, 0)
    layers = [int(match[1]) + 1 for match in map(_LAYER.match, found) if match]
    hidden = found.get("decoder_ffn_layers.0.linear1.bias", (0,))
    return _shapes(k, width, max(layers, default=1), hidden[0] if len(hidden) == 1 else 0)


def _compare(shapes, names, header):
    """Lines on every tensor that is missing, extra, of another shape or not floating."""
    problems = []
    for name, shape in shapes.items():
        found, dtype = header[names[name]] if name in names else (None, None)
        if found is None:
            problems.append(f"missing {name} {list(shape)}")
        elif tuple(found) != shape or not all(shape):
            problems.append(f"{name} is {list(found)}, not {list(shape)}")
        elif dtype not in FLOATS:
            problems.append(f"{name} is {dtype}, not float16, bfloat16 or float32")
    return problems + [f"extra {name} {list(header[raw][0])}" for name, raw in names.items()
                       if name not in shapes]


def _places(name):
    """Where an official tensor stands in our parameters: a path, three of a fused projection."""
    if name == _QUERIES:
        return [("prototypes",)]
    kind, j, rest = re.match(r"decoder_(cross|self|ffn)(?:_attention)?_layers\.(\d+)\.(.+)",
                             name).groups()
    layer, leaf = f"layer_{j}", "bias" if rest.endswith("bias") else "kernel"
    if rest.startswith("norm."):
        return [(layer, f"{kind}_norm", "bias" if leaf == "bias" else "scale")]
    if "in_proj" in rest:
        return [(layer, kind, part, leaf) for part in ("query", "key", "value")]
    if "out_proj" in rest:
        return [(layer, kind, "out", leaf)]
    return [(layer, rest.split(".")[0], leaf)]


def _turned(name, value):
    """torch keeps its matrices transposed; prototypes are rows in both."""
    return value if name == _QUERIES else value.T


def _put(params, place, value):
    *scope, leaf = place
    for part in scope:
        params = params.setdefault(part, {})
    params[leaf] = value
