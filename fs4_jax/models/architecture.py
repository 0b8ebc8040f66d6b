"""What encoder a file of weights holds: read from names, shapes and the position embedding."""

import collections
import dataclasses
import json
import math

import numpy as np

from fs4_jax.models import vit
from fs4_jax.models.position import POSITIONS
from fs4_jax.models.weight_names import is_rotary

# What each family does that its tensors' shapes do not say: how it resizes its positions
# (`position.resize_position`). MAE and MoCo-v3 never did; theirs get the plain resize. Plain
# DINOv2's own code adds DINO's offset, its exports and transformers do not; we follow the latter.
FAMILIES = {"dino": "bicubic_offset", "ibot": "bicubic_offset", "mae": "bicubic",
            "moco-v3": "bicubic", "msn": "bicubic", "dinov2": "bicubic",
            "dinov2-registers": "bicubic_antialias", "dinov3": "rope"}
# Heads by width: those of the variants, and of MoCo-v3, which has others.
_HEADS = {(width, size in vit.SWIGLU_WIDTHS): heads
          for size, (width, _, heads) in vit.VARIANTS.items()}
_MOCO_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a file says about the encoder it holds; the fields are those of `vit.ViT`."""

    width: int
    depth: int
    patch: int
    num_heads: int
    pos_grid: tuple[int, int]
    num_registers: int
    mlp_width: int
    layer_scale: bool
    family: str = "dinov2"
    position: str = "bicubic"
    mlp: str = "gelu"
    norm_epsilon: float = 1e-6

    @property
    def variant(self):
        """As "S/14" for a shape that `vit.VARIANTS` names, else a description."""
        for size, shape in vit.VARIANTS.items():
            if (*shape, self.gated) == (self.width, self.depth, self.num_heads,
                                        size in vit.SWIGLU_WIDTHS):
                return f"{size}/{self.patch}"
        return (
            f"(width {self.width}, depth {self.depth}, {self.num_heads} heads, "
            f"patch {self.patch})"
        )

    @property
    def gated(self):
        return self.mlp == "swiglu"

    def model(self, **options):
        """The `vit.ViT`; options: its dtype, block and drop_path."""
        return vit.ViT(
            patch=self.patch, width=self.width, depth=self.depth, num_heads=self.num_heads,
            pos_grid=self.pos_grid, mlp_ratio=self.mlp_width / self.width,
            num_registers=self.num_registers, layer_scale=1.0 if self.layer_scale else None,
            position=self.position, mlp=self.mlp, norm_epsilon=self.norm_epsilon, **options)

    def shapes(self):
        """{official name: shape} of the encoder's tensors."""
        d, p, m = self.width, self.patch, self.mlp_width
        shapes = {"cls_token": (1, 1, d)}
        if self.position != "rope":
            shapes["pos_embed"] = (1, 1 + math.prod(self.pos_grid), d)
        shapes |= {"patch_embed.proj.weight": (d, 3, p, p), "patch_embed.proj.bias": (d,),
                   "norm.weight": (d,), "norm.bias": (d,)}
        if self.num_registers:
            shapes["register_tokens"] = (1, self.num_registers, d)
        block = {"norm1": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d), "norm2": (d,)}
        if self.gated:
            block |= {"mlp.w12": (2 * m, d), "mlp.w3": (d, m)}
        else:
            block |= {"mlp.fc1": (m, d), "mlp.fc2": (d, m)}
        for i in range(self.depth):
            for name, shape in block.items():
                shapes[f"blocks.{i}.{name}.weight"] = shape
                shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
            if self.layer_scale:
                shapes[f"blocks.{i}.ls1.gamma"] = shapes[f"blocks.{i}.ls2.gamma"] = (d,)
        return shapes


def describe(*, num_heads, pos_grid, position, norm_epsilon, family=None):
    """The metadata of a file: as JSON what the tensors' shapes do not say, as in `vit.ViT`."""
    said = {"num_heads": num_heads, "pos_grid": list(pos_grid), "position": position,
            "norm_epsilon": norm_epsilon, "family": family}
    return {"architecture": json.dumps(said)}


def usual_heads(width, mlp="gelu"):
    """Heads of the named variants of this width, else one for every 64 channels."""
    return _HEADS.get((width, mlp == "swiglu"), width // 64)


def infer(listing, file, position=None):
    """The architecture that fits a file best, and the problems met while guessing.

    Args:
      listing: `weight_names.Listing`. file: `weight_files.WeightsFile`; of its tensors only the
        position embedding and the rotary frequencies are read, where there are any.
      position: one of `POSITIONS`, instead of what the family does.
    """
    problems, naming = [], listing.naming
    said = _said(file.metadata, problems)

    def shape(name, rank):
        raw = listing.names.get(naming.parts(name)[0])
        value = file.header[raw][0] if raw else ()
        return value if len(value) == rank else (0,) * rank

    hints = [shape("patch_embed.proj.weight", 4)[0], shape("norm.weight", 1)[0]]
    hints += [shape(name, 3)[-1] for name in ("cls_token", "pos_embed")]
    hints = collections.Counter(hint for hint in hints if hint)
    width = hints.most_common(1)[0][0] if hints else 0
    numbers = [naming.block_number(name) for name in listing.names]
    depth = max((n + 1 for n in numbers if n is not None), default=0)
    if not depth:
        problems.append("missing blocks.0.* and all other blocks")
    inner = {name.removeprefix(naming.block.format(n))
             for name, n in zip(listing.names, numbers, strict=True) if n is not None}
    gate = naming.inner.get("mlp.w12", ("",))[0]
    gated = any(name.startswith(f"{gate}.") for name in inner)
    layer_scale = bool(inner & {*naming.inner.get("ls1.gamma", ()),
                                *naming.inner.get("ls2.gamma", ())})
    registers = shape("register_tokens", 3)[1]

    tokens = max(shape("pos_embed", 3)[1] - 1, 0)
    family = said.get("family") or _family(listing, file, layer_scale, registers, tokens)
    how = position or said.get("position") or FAMILIES[family]
    grid = tuple(said.get("pos_grid", (math.isqrt(tokens),) * 2))
    if how == "rope":
        grid = (1, 1)
    elif math.prod(grid) != tokens:
        problems.append(f"pos_embed has {tokens} positions, which are not {grid[0]}x{grid[1]}")
    heads = said.get("num_heads") or _num_heads(listing, file, family, width, gated)
    if width and (heads < 1 or width % heads):
        problems.append(f"{heads} heads do not divide the width {width}")
    hidden = shape("blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight", 2)[1]
    return Architecture(
        width=width, depth=depth, patch=shape("patch_embed.proj.weight", 4)[-1], num_heads=heads,
        pos_grid=grid, num_registers=registers, mlp_width=hidden or 4 * width,
        layer_scale=layer_scale, family=family, position=how, mlp="swiglu" if gated else "gelu",
        norm_epsilon=said.get("norm_epsilon", 1e-5 if family == "dinov3" else 1e-6)), problems


def _said(metadata, problems):
    """What `describe` wrote; {} where nothing was written."""
    if "architecture" not in metadata:
        return {}
    try:
        said = json.loads(metadata["architecture"])
        said = {"num_heads": int(said["num_heads"]), "norm_epsilon": float(said["norm_epsilon"]),
                "pos_grid": tuple(map(int, said["pos_grid"])), "position": said["position"],
                "family": said.get("family")}
        if (len(said["pos_grid"]) == 2 and said["position"] in POSITIONS
                and said["family"] in (None, *FAMILIES)):
            return said
    except (ValueError, KeyError, TypeError):
        pass
    problems.append(f"its metadata says architecture = {metadata['architecture']}, which "
                    f"fs4_jax.models.export_encoder never writes")
    return {}


def _family(listing, file, layer_scale, registers, tokens):
    """Whose code trained it, as far as names, shapes and the position embedding tell."""
    words = {word for raw in file.header for word in raw.split(".")}
    if is_rotary(listing.naming):
        return "dinov3"
    if registers:
        return "dinov2-registers"
    if layer_scale:
        return "dinov2"
    if "target_encoder" in words or "MSN head" in listing.dropped:
        return "msn"
    if "decoder_pos_embed" in words:
        return "mae"
    raw = listing.names.get(listing.naming.parts("pos_embed")[0])
    if raw and len(file.header[raw][0]) == 3 and tokens:
        fixed = _fixed_waves(file.read(raw)[0])
        if fixed:
            return fixed
    if "masked_embed" in words or any("last_layer2" in word for word in words):
        return "ibot"
    return "dino"


def _fixed_waves(pos):
    """"mae" or "moco-v3" where the position embedding [1 + n, d] is their sines, else None."""
    tokens, width = len(pos) - 1, pos.shape[1]
    side = math.isqrt(tokens)
    if side * side != tokens or side < 2 or width % 4 or np.abs(pos[0]).max() > 1e-6:
        return None
    # Both begin with sines of the column, as they call it: MoCo-v3's column is the row.
    wave = np.sin(np.arange(side)[:, None] / 10000 ** (np.arange(width // 4) / (width // 4)))
    first = pos[1:].reshape(side, side, width)[..., :width // 4]
    if np.abs(first - wave).max() < 1e-3:
        return "mae"
    return "moco-v3" if np.abs(first - wave[:, None]).max() < 1e-3 else None


def _num_heads(listing, file, family, width, gated):
    """Heads that the rotary frequencies, the family or the width tell."""
    if family == "dinov3":
        periods = [raw for raw in listing.dropped.get("rotary frequencies", ())
                   if raw.endswith("rope_embed.periods")]
        if periods:                 # one for every 4 channels of a head
            return width // max(4 * file.header[periods[0]][0][0], 1)
        return width // 64
    if family == "moco-v3" and width in _MOCO_HEADS:
        return _MOCO_HEADS[width]
    return usual_heads(width, "swiglu" if gated else "gelu")
