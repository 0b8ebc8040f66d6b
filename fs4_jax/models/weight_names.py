"""What encoders' tensors are called: DINOv2's official names, and how others call the same.

Official name                    shape              in `vit.ViT`
cls_token                        [1,1,d]            cls_token [1,1,d]
pos_embed (not DINOv3)           [1,1+h*w,d]        cls_pos [1,1,d], pos_embed [1,h,w,d]
register_tokens (optional)       [1,r,d]            register_tokens
patch_embed.proj.weight, .bias   [d,3,p,p], [d]     patch_embed/kernel [p*p*3,d], bias
blocks.N.norm1, .norm2           [d]                blocks_N/norm1/scale, bias ...
blocks.N.attn.qkv, .attn.proj    [3d,d], [d,d]      blocks_N/attn/qkv/kernel (transposed), bias ...
blocks.N.mlp.fc1, .fc2           [m,d], [d,m]       blocks_N/mlp/fc1/kernel (transposed), bias ...
blocks.N.mlp.w12, .w3 (SwiGLU)   [2m,d], [d,m]      blocks_N/mlp/w12/kernel (transposed), bias ...
blocks.N.ls1.gamma, .ls2.gamma   [d]                blocks_N/ls1, ls2 (optional)
norm.weight, .bias               [d]                norm/scale, bias

DINO, iBOT, MAE, MoCo-v3 and MSN use a part of these names. DINOv3 and Hugging Face have names of
their own, and keep some of these tensors in parts (rows one after the other).
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

NAMES = ("official", "huggingface")        # that are written

# A file may hold several encoders: the first of these words before a name says whose it is. In
# order of preference: the averaged network is the one that is used afterwards.
ROLES = ("teacher", "target_encoder", "momentum_encoder", "encoder_k", "student", "base_encoder",
         "encoder_q", "encoder")
_WORDS = (*ROLES, "backbone", "module", "model", "state_dict", "vit", "dinov2",
          "dinov2_with_registers", "dinov3_vit")
# `encoder.layer.` and `model.layer.` are Hugging Face's names of the blocks, not prefixes.
_PREFIX = re.compile(r"(?:(?!encoder\.layer\.|model\.layer\.)(?:%s)\.)+" % "|".join(_WORDS))
_BLOCK = re.compile(r"(?:blocks|(?:encoder\.|model\.)?layers?)\.\d+\.")
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+\.)")     # DINOv2's training keeps blocks in chunks

# Dropped, by what they are: what self-supervised training puts on or beside an encoder.
HEADS = {
    "DINO or iBOT head": r"(dino_|ibot_)?head\.(mlp|last_layer|last_norm)\w*\.",
    "MoCo projector": r"head\.\d+\.",
    "MoCo predictor": r"predictor\.",
    "MSN head": r"fc\.(fc|bn)\d\.|prototypes(\.weight)?$",
    "AlignSeg decoder": r"clsQueries\.|decoder_(cross_attention|self_attention|ffn)_layers\.",
    "MAE decoder": r"decoder[._]",
    "mask token": r"(embeddings\.)?(mask_token|masked_embed)$",
    "pooler": r"pooler\.",
    "norm of local crops": r"local_cls_norm\.",
    "rotary frequencies": r"rope_embed\.periods$|rope_embeddings\.inv_freq$",
    "mask of the key bias": r"blocks\.\d+\.attn\.qkv\.bias_mask$",
}
_CLASSIFIER = re.compile(r"(head|classifier|fc|linear_head|heads\.head|head_dist)\.(weight|bias)$")


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a kind of file calls the official tensors.

    top: {official name: its name} outside of blocks. block: before a block's names, {} its number.
    inner: {official name in a block: names of its parts, rows one after the other}. A part of
    None is not stored: zeros.
    """

    name: str
    block: str
    top: Mapping
    inner: Mapping

    def parts(self, official):
        """Names in the file of an official tensor, e.g. of "blocks.3.attn.qkv.bias"."""
        match = re.match(r"blocks\.(\d+)\.(.+?)(\.weight|\.bias)?$", official)
        if not match:
            module, _, leaf = official.rpartition(".")
            if module in self.top:
                return (f"{self.top[module]}.{leaf}",)
            return (self.top.get(official, official),)
        number, inner, leaf = match[1], match[2], match[3] or ""
        if inner + leaf in self.inner:
            inner, leaf = inner + leaf, ""
        before = self.block.format(number)
        return tuple(part and before + part + leaf for part in self.inner.get(inner, (inner,)))

    def block_number(self, name):
        """The number of the block a name in the file belongs to, or None."""
        match = re.match(re.escape(self.block).replace(r"\{\}", r"(\d+)"), name)
        return int(match[1]) if match else None

    def knows(self, name):
        """Whether a name in the file could be one of this naming's."""
        number = self.block_number(name)
        leaf = re.compile(r"\.(weight|bias)$")
        if number is None:
            return name in self._tops or leaf.sub("", name) in self._tops
        inner = name[len(self.block.format(number)):]
        return inner in self._inners or leaf.sub("", inner) in self._inners

    @property
    def _tops(self):
        return set(self.top.values())

    @property
    def _inners(self):
        return {part for parts in self.inner.values() for part in parts}


_SAME = ("norm1", "norm2", "attn.qkv", "attn.proj", "ls1.gamma", "ls2.gamma", "mlp.fc1",
         "mlp.fc2", "mlp.w12", "mlp.w3")
_TOP = {name: name for name in ("cls_token", "pos_embed", "patch_embed.proj", "norm")}
OFFICIAL = Naming(
    "official", "blocks.{}.", {**_TOP, "register_tokens": "register_tokens"},
    {name: (name,) for name in _SAME})
OFFICIAL_V3 = Naming(
    "official", "blocks.{}.", {**_TOP, "register_tokens": "storage_tokens"},
    {**OFFICIAL.inner, "mlp.w12": ("mlp.w1", "mlp.w2")})

_HF_TOP = {"cls_token": "embeddings.cls_token", "register_tokens": "embeddings.register_tokens",
           "pos_embed": "embeddings.position_embeddings", "norm": "layernorm",
           "patch_embed.proj": "embeddings.patch_embeddings.projection"}
_HF_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_HF_SCALES = {"ls1.gamma": ("layer_scale1.lambda1",), "ls2.gamma": ("layer_scale2.lambda1",)}
_NEW_ATTENTION = {"attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                  "attn.proj": ("attention.o_proj",)}
_NEW_GATED = {"mlp.w12": ("mlp.gate_proj", "mlp.up_proj"), "mlp.w3": ("mlp.down_proj",)}
HF_VIT = Naming(
    "huggingface", "encoder.layer.{}.", _HF_TOP,
    {"norm1": ("layernorm_before",), "norm2": ("layernorm_after",), "attn.qkv": _HF_QKV,
     "attn.proj": ("attention.output.dense",), "mlp.fc1": ("intermediate.dense",),
     "mlp.fc2": ("output.dense",)})
HF_DINOV2 = Naming(
    "huggingface", "encoder.layer.{}.", _HF_TOP,
    {**OFFICIAL.inner, **_HF_SCALES, "attn.qkv": _HF_QKV, "attn.proj": ("attention.output.dense",),
     "mlp.w12": ("mlp.weights_in",), "mlp.w3": ("mlp.weights_out",)})
HF_DINOV3 = Naming(
    "huggingface", "layer.{}.",
    {**_HF_TOP, "norm": "norm", "patch_embed.proj": "embeddings.patch_embeddings"},
    {**OFFICIAL.inner, **_HF_SCALES, **_NEW_ATTENTION, **_NEW_GATED, "mlp.fc1": ("mlp.up_proj",),
     "mlp.fc2": ("mlp.down_proj",),
     "attn.qkv.bias": ("attention.q_proj.bias", None, "attention.v_proj.bias")})
# The names that transformers 5 has in memory; it still saves and loads those above.
HF5_VIT = dataclasses.replace(
    HF_VIT, block="layers.{}.",
    inner={**HF_VIT.inner, **_NEW_ATTENTION, "mlp.fc1": ("mlp.fc1",), "mlp.fc2": ("mlp.fc2",)})
HF5_DINOV2 = dataclasses.replace(
    HF_DINOV2, inner={**HF_DINOV2.inner, **_NEW_ATTENTION, **_NEW_GATED})
HF5_DINOV3 = dataclasses.replace(HF_DINOV3, block="model.layer.{}.")

NAMINGS = (OFFICIAL, OFFICIAL_V3, HF_VIT, HF_DINOV2, HF_DINOV3, HF5_VIT, HF5_DINOV2, HF5_DINOV3)
_ROTARY = (OFFICIAL_V3, HF_DINOV3, HF5_DINOV3)


def is_rotary(naming):
    """Whether it is one of DINOv3's, whose encoders store no positions."""
    return any(naming is rotary for rotary in _ROTARY)


@dataclasses.dataclass(frozen=True)
class Listing:
    """What names alone say about a file.

    Attributes:
      naming: the `Naming` that fits most names.
      names: {name without prefix: name in the file} of the encoder that is taken.
      role: word of `ROLES` that was before its names, or "".
      other_roles: of encoders in the file that are not taken.
      dropped: {what it is: [names in the file]} of heads, see `HEADS`.
      classifier: {name without prefix: name in the file} of a classifier's tensors.
      twice: pairs of names in the file that are the same without their prefixes.
    """

    naming: Naming
    names: Mapping
    role: str
    other_roles: tuple
    dropped: Mapping
    classifier: Mapping
    twice: tuple


def list_names(raw_names):
    """Sorts the names of a file into a `Listing`."""
    groups, bearers = collections.defaultdict(list), set()
    for raw in raw_names:
        prefix = _PREFIX.match(raw)
        prefix = prefix[0] if prefix else ""
        role = next((word for word in prefix.split(".") if word in ROLES), "")
        name = _CHUNK.sub(r"blocks.\1", raw[len(prefix):])
        groups[role].append((name, raw))
        if _BLOCK.match(name):
            bearers.add(role)
    ranked = sorted(bearers, key=(*ROLES, "").index)
    taken = ranked[:1] or list(groups)
    names, classifier, twice = {}, {}, []
    dropped = collections.defaultdict(list)
    for role, members in groups.items():
        if role in ranked[1:]:
            continue
        for name, raw in members:
            what = next((w for w, pattern in HEADS.items() if re.match(pattern, name)), None)
            target = classifier if _CLASSIFIER.match(name) else names
            if what:
                dropped[what].append(raw)
            elif name in target:
                twice.append((target[name], raw))
            else:
                target[name] = raw
    naming = max(NAMINGS, key=lambda n: sum(map(n.knows, names)))
    if naming is OFFICIAL and {"rotary frequencies", "mask of the key bias"} & dropped.keys():
        naming = OFFICIAL_V3
    return Listing(naming, names, taken[0] if taken else "", tuple(ranked[1:]), dict(dropped),
                   classifier, tuple(twice))
