"""A ViT written once more, in NumPy and float64, from torch's definitions and official names."""

import numpy as np
import scipy.special


def official_tensors(
    rng, *, width=64, depth=3, patch=4, grid=(4, 4), registers=0, layer_scale=True, hidden=256
):
    """Random float32 weights under DINOv2's names; no gain is 1 and no bias is 0."""

    def normal(*shape, scale, mean=0.0):
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {
        "cls_token": normal(1, 1, width, scale=0.5),
        "pos_embed": normal(1, 1 + grid[0] * grid[1], width, scale=0.5),
        "mask_token": np.zeros((1, width), np.float32),
        "patch_embed.proj.weight": normal(width, 3, patch, patch, scale=0.5 / patch),
        "patch_embed.proj.bias": normal(width, scale=0.1),
        "norm.weight": normal(width, mean=1, scale=0.2),
        "norm.bias": normal(width, scale=0.2),
    }
    if registers:
        tensors["register_tokens"] = normal(1, registers, width, scale=0.5)
    sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    sizes |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    for i in range(depth):
        for name, (rows, cols) in sizes.items():
            tensors[f"blocks.{i}.{name}.weight"] = normal(rows, cols, scale=1.5 / cols**0.5)
            tensors[f"blocks.{i}.{name}.bias"] = normal(rows, scale=0.1)
        for name in ("norm1", "norm2"):
            tensors[f"blocks.{i}.{name}.weight"] = normal(width, mean=1, scale=0.2)
            tensors[f"blocks.{i}.{name}.bias"] = normal(width, scale=0.2)
        if layer_scale:
            for name in ("ls1", "ls2"):
                tensors[f"blocks.{i}.{name}.gamma"] = normal(width, mean=0.5, scale=0.2)
    return tensors


def reference_bicubic(grid, rows, cols):
    """torch's upsample_bicubic2d, align_corners=False, one output at a time; grid [h,w,d]."""
    a = -0.75

    def near(x):
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x):
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    def taps(index, size_in, size_out):
        real = (index + 0.5) * size_in / size_out - 0.5
        floor = int(np.floor(real))
        t = real - floor
        weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
        places = [min(max(floor + k, 0), size_in - 1) for k in (-1, 0, 1, 2)]
        return list(zip(places, weights, strict=True))

    out = np.zeros((rows, cols, grid.shape[-1]))
    for i in range(rows):
        for j in range(cols):
            for r, weight_r in taps(i, grid.shape[0], rows):
                for c, weight_c in taps(j, grid.shape[1], cols):
                    out[i, j] += weight_r * weight_c * grid[r, c]
    return out


def reference_vit(tensors, images, *, num_heads, grid, blocks):
    """cls [b,d], registers [b,r,d], patch tokens [b,h,w,d] after `blocks` blocks; float64."""
    t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    images = np.asarray(images, np.float64)
    width, _, patch, _ = t["patch_embed.proj.weight"].shape
    rows, cols = images.shape[1] // patch, images.shape[2] // patch

    def linear(x, name):
        return x @ t[name + ".weight"].T + t[name + ".bias"]

    def norm(x, name):
        mean = x.mean(-1, keepdims=True)
        var = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * t[name + ".weight"] + t[name + ".bias"]

    def attention(x, name):
        qkv = linear(x, name + ".qkv")
        size = width // num_heads
        heads = []
        for head in range(num_heads):
            q, k, v = (
                qkv[:, part * width + head * size : part * width + (head + 1) * size]
                for part in range(3)
            )
            scores = np.exp(q @ k.T / np.sqrt(size))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v)
        return linear(np.concatenate(heads, -1), name + ".proj")

    def mlp(x, name):
        x = linear(x, name + ".fc1")
        return linear(x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2))), name + ".fc2")

    pos = reference_bicubic(t["pos_embed"][0, 1:].reshape(*grid, width), rows, cols)
    registers = t.get("register_tokens", np.zeros((1, 0, width)))[0]
    results = []
    for image in images:
        tokens = [t["cls_token"][0, 0] + t["pos_embed"][0, 0], *registers]
        for r in range(rows):
            for c in range(cols):
                pixels = image[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
                kernel = t["patch_embed.proj.weight"]
                token = np.tensordot(kernel, pixels.transpose(2, 0, 1), 3)
                tokens.append(token + t["patch_embed.proj.bias"] + pos[r, c])
        x = np.stack(tokens)
        for i in range(blocks):
            name = f"blocks.{i}."
            y = attention(norm(x, name + "norm1"), name + "attn")
            x = x + t.get(name + "ls1.gamma", 1.0) * y
            y = mlp(norm(x, name + "norm2"), name + "mlp")
            x = x + t.get(name + "ls2.gamma", 1.0) * y
        results.append(norm(x, "norm"))
    x, first = np.stack(results), 1 + len(registers)
    return {
        "cls": x[:, 0],
        "registers": x[:, 1:first],
        "patch_tokens": x[:, first:].reshape(len(x), rows, cols, width),
    }


def relative_error(ours, reference):
    """Largest error over the largest value."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return np.abs(ours - reference).max() / np.abs(reference).max()
