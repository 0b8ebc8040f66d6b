"""The encoder against the same model in PyTorch, forward and forward with gradient.

    python -m benchmarks.encoder --batch_sizes=2,8 [--parts]

Needs torch and transformers. Float32, all cores, random weights; the models are `transformers`'
ViTModel (S/16 at 224) and Dinov2Model (S/14 at 336x448), both with sdpa attention. The gradient is
that of the mean square of the patch tokens, for all parameters. Images are divided among all of
jax's devices; XLA_FLAGS=--xla_force_host_platform_device_count=2 makes one a core of two.
The two libraries take turns, so that a disturbance of the machine hits both; a row is the median of
the repeats. --parts times the parts of one block alone, each against torch's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from benchmarks.timing import median_of_each
from fs4_jax import models
from fs4_jax.models import block_ops, transformer
from fs4_jax.sharding import batch_sharding, make_mesh, replicated

_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["2", "8"], "Images a batch.")
_MODELS = flags.DEFINE_list("models", ["S/16", "S/14"], "Which of S/16 and S/14.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed runs of each.", lower_bound=1)
_PARTS = flags.DEFINE_bool("parts", False, "Time the parts of a block too.")

SIZES = {"S/16": (224, 224), "S/14": (336, 448)}
SHAPE = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}


def torch_model(variant):
    """transformers' model of this shape, in eval mode, and how many tokens precede the patches."""
    common = SHAPE | {"attn_implementation": "sdpa", "layer_norm_eps": 1e-6}
    if variant == "S/16":
        config = transformers.ViTConfig(intermediate_size=1536, image_size=224, patch_size=16,
                                        **common)
        model = transformers.ViTModel(config, add_pooling_layer=False)
    else:
        config = transformers.Dinov2Config(image_size=518, patch_size=14, **common)
        model = transformers.Dinov2Model(config)
    return model.eval()


def compare_models(variant, batch_size):
    """Two rows (name, seconds of ours, seconds of torch's): forward, and with the gradient."""
    height, width = SIZES[variant]
    images = np.random.default_rng(0).normal(size=(batch_size, height, width, 3))
    images = images.astype(np.float32)
    scale = {} if variant == "S/16" else {"layer_scale": 1.0}
    ours = models.make_encoder(variant, image_size=224 if variant == "S/16" else 518, **scale)
    mesh = make_mesh({"data": jax.device_count(), "fsdp": 1})
    params = jax.device_put(jax.jit(ours.init)(jax.random.key(0), images[:1]), replicated(mesh))
    apply = jax.jit(lambda p, x: ours.apply(p, x)["patch_tokens"])
    grad = jax.jit(jax.value_and_grad(lambda p, x: jnp.mean(jnp.square(apply(p, x)))),
                   out_shardings=replicated(mesh))
    x = jax.device_put(images, batch_sharding(mesh))

    theirs = torch_model(variant)
    x_torch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def torch_forward():
        with torch.inference_mode():
            return theirs(x_torch).last_hidden_state[:, 1:]

    def torch_grad():
        theirs.zero_grad(set_to_none=True)
        theirs(x_torch).last_hidden_state[:, 1:].square().mean().backward()

    rows = []
    for name, mine, other in (
        ("forward", lambda: jax.block_until_ready(apply(params, x)), torch_forward),
        ("forward+backward", lambda: jax.block_until_ready(grad(params, x)), torch_grad),
    ):
        rows.append((name, *median_of_each((mine, other), _REPEATS.value)))
    return rows


def parts(variant, batch_size):
    """Pairs (name, ours, torch's) of functions of arrays, with the shapes of their arguments."""
    height, width = SIZES[variant]
    patch, d, heads = int(variant.split("/")[1]), SHAPE["hidden_size"], 6
    n = 1 + (height // patch) * (width // patch)
    functional = torch.nn.functional

    def torch_attention(x, qkv, qkv_bias, proj, proj_bias):
        q, k, v = (functional.linear(x, qkv, qkv_bias).unflatten(-1, (3, heads, -1))
                   .permute(2, 0, 3, 1, 4))
        y = functional.scaled_dot_product_attention(q, k, v)
        return functional.linear(y.transpose(1, 2).flatten(2), proj, proj_bias)

    def torch_mlp(x, fc1, bias1, fc2, bias2):
        y = functional.gelu(functional.linear(x, fc1, bias1))
        return functional.linear(y, fc2, bias2)

    attention = transformer.Attention(heads, jnp.float32)
    mlp = transformer.Mlp(4.0, jnp.float32)

    def dense(kernel, bias):
        return {"kernel": kernel, "bias": bias}

    norm = transformer.LayerNorm(1e-6, jnp.float32)
    token, hidden = (batch_size, n, d), (batch_size, n, 4 * d)
    return (
        ("attention", lambda x, a, b, c, e: attention.apply(
            {"params": {"qkv": dense(a.T, b), "proj": dense(c.T, e)}}, x)[0],
         torch_attention, (token, (3 * d, d), (3 * d,), (d, d), (d,))),
        ("mlp", lambda x, a, b, c, e: mlp.apply(
            {"params": {"fc1": dense(a.T, b), "fc2": dense(c.T, e)}}, x),
         torch_mlp, (token, (4 * d, d), (4 * d,), (d, 4 * d), (d,))),
        ("layer norm", lambda x, a, b: norm.apply({"params": {"scale": a, "bias": b}}, x),
         lambda x, a, b: functional.layer_norm(x, (d,), a, b, 1e-6), (token, (d,), (d,))),
        ("gelu", block_ops.gelu, functional.gelu, (hidden,)),
        ("matmul d x 4d", lambda x, a: x @ a.T, functional.linear, (token, (4 * d, d))),
        ("matmul 4d x d", lambda x, a: x @ a.T, functional.linear, (hidden, (d, 4 * d))),
    )


def compare_parts(variant, batch_size):
    """Rows as of `compare_models`; the gradient is that of sum(out * w), for every argument."""
    rng = np.random.default_rng(0)
    rows = []
    for name, mine, other, shapes in parts(variant, batch_size):
        arrays = [(0.1 * rng.standard_normal(shape)).astype(np.float32) for shape in shapes]
        args = [jnp.asarray(a) for a in arrays]
        tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
        weight = np.asarray(jax.eval_shape(mine, *args).shape)
        weight = rng.standard_normal(weight).astype(np.float32)
        weights, weights_torch = jnp.asarray(weight), torch.from_numpy(weight)
        forward = jax.jit(mine)

        def gradient(w, *args, mine=mine):
            out, pull = jax.vjp(mine, *args)
            return out, pull(w)

        gradient = jax.jit(gradient)

        def torch_forward(other=other, tensors=tensors):
            with torch.inference_mode():
                return other(*tensors)

        def torch_gradient(other=other, tensors=tensors, w=weights_torch):
            return torch.autograd.grad(other(*tensors), tensors, w)

        times = median_of_each(
            (lambda f=forward, a=args: jax.block_until_ready(f(*a)), torch_forward,
             lambda f=gradient, a=args, w=weights: jax.block_until_ready(f(w, *a)),
             torch_gradient), 3 * _REPEATS.value)
        rows += [(name + ", forward", *times[:2]), (name + ", with gradient", *times[2:])]
    return rows


def main(_):
    torch.manual_seed(0)
    print(f"jax {jax.__version__}, {jax.device_count()} device(s), torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, float32, median of {_REPEATS.value}; milliseconds")
    for variant in _MODELS.value:
        for batch_size in map(int, _BATCH_SIZES.value):
            height, width = SIZES[variant]
            print(f"ViT-{variant}, {batch_size} x {height} x {width}"
                  f"{'':13s} fs4_jax     torch  fs4_jax / torch")
            rows = compare_models(variant, batch_size)
            rows += compare_parts(variant, batch_size) if _PARTS.value else []
            for name, ours, theirs in rows:
                print(f"  {name:29s} {1000 * ours:9.2f} {1000 * theirs:9.2f}  "
                      f"{ours / theirs:6.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
