"""Every family against the PyTorch implementation in transformers, on random weights.

Each model is written to files under all names it is found under, read back, and compared at the
native size, at another and at one that is not square.
"""

import pathlib
import re
import tempfile
import unittest

import fs4_jax  # noqa: F401  (sets an XLA flag before jax starts)
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

from fs4_jax.models import (
    VARIANTS,
    export_encoder,
    load_encoder,
    make_encoder,
    normalize_images,
    read_architecture,
)
from tests.shared import shared_path, street_photo

try:
    import torch
    import transformers
except ImportError as error:
    raise unittest.SkipTest("the referees of parity are torch and transformers") from error

WIDTH, DEPTH, GRID = 128, 2, 4
# Float32 through two blocks; values are around 1. Measured: 1.3e-5 at most.
TOLERANCE = 1e-4


def config(kind, patch, **kwargs):
    return kind(hidden_size=WIDTH, num_hidden_layers=DEPTH, image_size=GRID * patch,
                patch_size=patch, layer_norm_eps=kwargs.pop("eps", 1e-6),
                attn_implementation="eager", **kwargs)


def dino(patch):
    model = transformers.ViTModel(
        config(transformers.ViTConfig, patch, num_attention_heads=4, intermediate_size=256),
        add_pooling_layer=False)

    def interpolate(embeddings, height, width):
        # DINO's own: scale factors of a tenth of a patch more, for the rounding of old torch.
        pos = model.embeddings.position_embeddings
        if height == width == GRID * patch:
            return pos
        scales = [(size // patch + 0.1) / GRID for size in (height, width)]
        grid = pos[:, 1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, scale_factor=scales, mode="bicubic")
        return torch.cat([pos[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)], 1)

    model.embeddings.interpolate_pos_encoding = interpolate
    return model


def vit(patch):
    return transformers.ViTModel(
        config(transformers.ViTConfig, patch, num_attention_heads=4, intermediate_size=256),
        add_pooling_layer=False)


def mae(patch):
    return transformers.ViTMAEModel(config(
        transformers.ViTMAEConfig, patch, num_attention_heads=4, intermediate_size=256,
        mask_ratio=0.0))


def msn(patch):
    return transformers.ViTMSNModel(config(
        transformers.ViTMSNConfig, patch, num_attention_heads=4, intermediate_size=256))


def dinov2(patch, swiglu=False):
    return transformers.Dinov2Model(config(
        transformers.Dinov2Config, patch, num_attention_heads=2 if swiglu else 4,
        use_swiglu_ffn=swiglu))


def dinov2_registers(patch):
    return transformers.Dinov2WithRegistersModel(config(
        transformers.Dinov2WithRegistersConfig, patch, num_attention_heads=4))


def dinov3(patch, swiglu=False):
    return transformers.DINOv3ViTModel(config(
        transformers.DINOv3ViTConfig, patch, num_attention_heads=2, intermediate_size=256,
        use_gated_mlp=swiglu, hidden_act="silu" if swiglu else "gelu", num_register_tokens=4,
        eps=1e-5))


def randomize(model, seed=0):
    """No gain is 1 and no bias is 0; attention is far from even."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = rng.standard_normal(value.shape)
            if value.ndim > 1 and name.endswith("weight"):
                noise *= 1.5 / np.sqrt(noise[0].size)
            elif "norm" in name and name.endswith("weight") or "lambda" in name:
                noise = 1 + 0.2 * noise
            else:
                noise *= 0.5
            value.copy_(torch.from_numpy(noise))
    return model.eval()


def waves(column_first):
    """The fixed position embedding of MAE (columns first) or MoCo-v3 (rows first)."""
    turns = 1 / 10000 ** (np.arange(WIDTH // 4) / (WIDTH // 4))
    row, column = np.meshgrid(np.arange(GRID), np.arange(GRID), indexing="ij")
    axes = (column, row) if column_first else (row, column)
    parts = [wave(axis.reshape(-1, 1) * turns) for axis in axes for wave in (np.sin, np.cos)]
    return np.concatenate([np.zeros((1, WIDTH)), np.concatenate(parts, 1)])[None]


OFFICIAL = (
    (r"^(embeddings|model|encoder)\.", ""), (r"^(embeddings|encoder)\.", ""),
    (r"^layers?\.", "blocks."), (r"^position_embeddings", "pos_embed"),
    (r"^patch_embeddings\.(projection\.)?", "patch_embed.proj."), (r"^layernorm\.", "norm."),
    (r"layernorm_before", "norm1"), (r"layernorm_after", "norm2"),
    (r"attention\.o_proj", "attn.proj"), (r"attention\.(.)_proj", r"attn.\1"),
    (r"layer_scale(.)\.lambda1", r"ls\1.gamma"))


def official(model, v3=False):
    """The tensors under the names of the original code; names of transformers in memory go in."""
    state = {}
    gated = any("gate_proj" in name for name in model.state_dict())
    mlp = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"} if gated else {
        "up_proj": "fc1", "down_proj": "fc2"}
    for name, value in model.state_dict().items():
        for pattern, new in OFFICIAL:
            name = re.sub(pattern, new, name)
        for old, new in mlp.items():
            name = name.replace(f"mlp.{old}", f"mlp.{new}")
        state[name] = value.numpy()
    for i in range(DEPTH):
        for leaf in ("weight", "bias"):
            q, k, v = (state.pop(f"blocks.{i}.attn.{x}.{leaf}", None) for x in "qkv")
            # DINOv3's file has a key bias, and a mask that takes it away.
            k = np.full_like(q, 7.0) if k is None else k
            state[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate([q, k, v])
            if gated and not v3:
                pair = [state.pop(f"blocks.{i}.mlp.w{n}.{leaf}") for n in (1, 2)]
                state[f"blocks.{i}.mlp.w12.{leaf}"] = np.concatenate(pair)
        if v3:
            mask = np.ones(3 * WIDTH, np.float32)
            mask[WIDTH:2 * WIDTH] = 0
            state[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    if v3:
        state["storage_tokens"] = state.pop("register_tokens")
        size = WIDTH // model.config.num_attention_heads
        state["rope_embed.periods"] = (100 ** (np.arange(size // 4) * 4 / size)).astype(np.float32)
    return state


def referee(model, images):
    """cls, patch_tokens, attention and keys of the last block, block_tokens; NumPy, as ours."""
    seen, keys = [], []
    blocks = next(m for name, m in model.named_modules() if name.split(".")[-1] in (
        "layer", "layers") and isinstance(m, torch.nn.ModuleList))
    hooks = [b.register_forward_hook(lambda m, i, out: seen.append(
        out if isinstance(out, torch.Tensor) else out[0])) for b in blocks]
    hooks.append(blocks[-1].attention.k_proj.register_forward_hook(
        lambda m, i, out: keys.append(out)))
    pixels = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    options = {}
    if model.config.model_type.startswith("vit"):
        options["interpolate_pos_encoding"] = True
    grid = [side // model.config.patch_size for side in images.shape[1:3]]
    if isinstance(model, transformers.ViTMAEModel):
        options["noise"] = torch.arange(grid[0] * grid[1]).expand(len(images), -1).float()
    with torch.no_grad():
        out = model(pixels, output_attentions=True, **options)
    for hook in hooks:
        hook.remove()
    norm = getattr(model, "layernorm", None) or model.norm
    prefix = out.last_hidden_state.shape[1] - grid[0] * grid[1]

    def as_map(tokens):
        return tokens[:, prefix:].detach().numpy().reshape(len(images), *grid, -1)

    attention = out.attentions[-1][:, :, 0, prefix:].numpy()
    return {"cls": out.last_hidden_state[:, 0].numpy(),
            "patch_tokens": as_map(out.last_hidden_state), "keys": as_map(keys[0]),
            "attention": attention.reshape(*attention.shape[:2], *grid),
            "block_tokens": [as_map(norm(x)) for x in seen]}


def run(model, params, images, optimize=False):
    # Random weights run once: not optimizing spares two thirds of the time, most of it compiling.
    options = None if optimize else {"xla_backend_optimization_level": 0}
    apply = jax.jit(model.apply, compiler_options=options, static_argnames=(
        "return_blocks", "return_attention", "return_keys"))
    return apply({"params": params}, images, return_blocks=tuple(range(1, model.depth + 1)),
                 return_attention=True, return_keys=True)


class ParityTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def _files(self, model, tensors, nest, prefix, heads):
        """The same encoder as the hub has it, as in memory, and as its own authors saved it."""
        model.save_pretrained(self.folder / "hub")
        yield self.folder / "hub" / "model.safetensors"
        memory = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        safetensors.numpy.save_file(memory, self.folder / "memory.safetensors")
        yield self.folder / "memory.safetensors"
        named = {prefix + name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
        named |= {name: torch.zeros(3, 3) for name in heads}
        torch.save({**nest, next(iter(nest)): named} if nest else named, self.folder / "own.pth")
        yield self.folder / "own.pth"

    # Encoders of one shape are compiled once for all of their families.
    @parameterized.named_parameters(
        ("dino", dino, 8, "dino", {"teacher": {}, "student": {"head.mlp.0.bias": 1}},
         "backbone.", ("head.mlp.0.weight", "head.last_layer.weight_g")),
        ("ibot", dino, 8, "ibot", {"state_dict": {}}, "", ("masked_embed", "head.last_layer2.v")),
        ("mae", mae, 16, "mae", {"model": {}}, "", ("mask_token", "decoder_embed.weight")),
        ("moco_v3", vit, 16, "moco-v3", {"state_dict": {}, "epoch": 3},
         "module.momentum_encoder.", ("module.predictor.0.weight",)),
        ("msn", msn, 16, "msn", {"target_encoder": {}, "prototypes": 3}, "module.",
         ("module.fc.fc1.weight",)),
        ("dinov2", dinov2, 14, "dinov2", {}, "", ()),
        ("dinov2_swiglu", lambda patch: dinov2(patch, swiglu=True), 14, "dinov2", {}, "", ()),
        ("dinov2_registers", dinov2_registers, 14, "dinov2-registers", {"teacher": {}},
         "backbone.", ("dino_head.mlp.0.weight", "ibot_head.last_layer.weight_v")),
        ("dinov3", dinov3, 16, "dinov3", {}, "", ("local_cls_norm.weight",)),
        ("dinov3_swiglu", lambda patch: dinov3(patch, swiglu=True), 16, "dinov3", {}, "", ()),
    )
    def test_equals_transformers(self, make, patch, family, nest, prefix, heads):
        model = randomize(make(patch))
        if family in ("mae", "moco-v3"):
            with torch.no_grad():
                model.embeddings.position_embeddings.copy_(
                    torch.from_numpy(waves(family == "mae")))
        tensors = official(model, v3=family == "dinov3")
        position = "bicubic" if family == "msn" else None   # MSN's plain files could be DINO's
        loaded = []
        for path in self._files(model, tensors, nest, prefix, heads):
            loaded.append(load_encoder(path, position=position))
        self.assertEqual(read_architecture(self.folder / "own.pth").family, family)
        ours, params = loaded[-1]
        self.assertEqual(ours.norm_epsilon, model.config.layer_norm_eps)
        for other, same in loaded[:-1]:
            self.assertEqual(other, ours)
            jax.tree.map(np.testing.assert_array_equal, same, params)

        rng = np.random.default_rng(1)
        for grid in ((GRID, GRID), (GRID + 3, GRID + 3), (GRID - 1, GRID + 2)):
            images = rng.standard_normal((2, grid[0] * patch, grid[1] * patch, 3))
            images = images.astype(np.float32)
            expected = referee(model, images)
            out = run(ours, params, images)
            worst = {}
            for name in ("cls", "patch_tokens", "attention", "keys"):
                self.assertEqual(out[name].shape, expected[name].shape, name)
                worst[name] = np.abs(out[name] - expected[name]).max()
            for i in range(DEPTH):
                worst[f"block {i + 1}"] = np.abs(
                    out["block_tokens"][i] - expected["block_tokens"][i]).max()
            print(f"{family:17} patch {patch:2} {grid}: {max(worst.values()):.1e}")
            self.assertLess(max(worst.values()), TOLERANCE, f"{grid}: {worst}")

        for names in ("official", "huggingface"):
            path = self.folder / f"{names}.safetensors"
            export_encoder(params, path, model=ours, names=names, family=family)
            again, same = load_encoder(path)
            self.assertEqual(again, ours)
            jax.tree.map(np.testing.assert_array_equal, same, params)
        written = safetensors.numpy.load_file(self.folder / "huggingface.safetensors")
        hub = safetensors.numpy.load_file(self.folder / "hub" / "model.safetensors")
        hub.pop("embeddings.mask_token", None)
        self.assertEqual(set(written), set(hub))
        for name, value in hub.items():
            np.testing.assert_array_equal(written[name], value, name)


class LargeVariantsTest(parameterized.TestCase):

    @parameterized.parameters(
        ("g/14", 518, transformers.Dinov2Config, {"layer_scale": 1.0}),
        ("S+/16", 224, transformers.DINOv3ViTConfig, {"layer_scale": 1.0, "num_registers": 4}),
        ("H+/16", 224, transformers.DINOv3ViTConfig, {"layer_scale": 1.0, "num_registers": 4}))
    def test_as_many_parameters(self, variant, size, kind, options):
        width, depth, heads = VARIANTS[variant.split("/")[0]]
        settings = {"use_swiglu_ffn": True, "intermediate_size": 4 * width}
        if kind is transformers.DINOv3ViTConfig:
            options["position"] = "rope"
            # DINOv3's own code asks for a ratio of 6 and takes two thirds.
            settings = {"use_gated_mlp": True, "intermediate_size": int(6 * width * 2 / 3),
                        "num_register_tokens": 4, "key_bias": True}
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(kind(
                hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
                image_size=size, patch_size=int(variant[-2:]), **settings))
        expected = sum(value.numel() for name, value in model.named_parameters()
                       if "mask_token" not in name and "pooler" not in name)
        ours = make_encoder(variant, image_size=size, **options)
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        shapes = jax.eval_shape(ours.init, jax.random.key(0), images)
        self.assertEqual(sum(leaf.size for leaf in jax.tree.leaves(shapes)), expected)


class RealWeightsTest(absltest.TestCase):

    def test_a_trained_encoder_on_a_photo(self):
        path = shared_path("weights", "dinov2_vits14.safetensors")
        images = np.asarray(normalize_images(street_photo((280, 210))))
        ours, params = load_encoder(path, expected_variant="S/14")
        with tempfile.TemporaryDirectory() as folder:
            export_encoder(params, pathlib.Path(folder, "model.safetensors"), model=ours,
                           names="huggingface", metadata={"format": "pt"})
            settings = transformers.Dinov2Config(
                hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14,
                attn_implementation="eager")
            settings.save_pretrained(folder)
            model, report = transformers.Dinov2Model.from_pretrained(
                folder, attn_implementation="eager", output_loading_info=True)
        self.assertEqual(set(report["missing_keys"]), {"embeddings.mask_token"})
        self.assertEmpty(report["unexpected_keys"])
        expected = referee(model.eval(), images)
        out = run(ours, params, images, optimize=True)
        for name in ("cls", "patch_tokens"):
            # The residual stream of trained weights has outlying channels, of hundreds.
            error = np.abs(out[name] - expected[name]).max()
            print(f"real S/14, {name}: {error:.1e} of {np.abs(expected[name]).max():.1f}")
            self.assertLess(error, 5e-4)


if __name__ == "__main__":
    absltest.main()
