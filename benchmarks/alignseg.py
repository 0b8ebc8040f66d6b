"""AlignSeg's training step against the same step in PyTorch, with the encoder and without.

    python -m benchmarks.alignseg --batch_size=4 --repeats=5

Needs torch and transformers. Float32, all cores, random weights: a frozen ViT-S/16, one global and
two local crops of 224 pixels, 5 prototypes, the released decoder, both losses, AdamW. "with the
encoder" starts from crops, "without" from its tokens and attention, as with
config.encoder.cached_views. PyTorch runs the encoder in inference mode, with sdpa attention, and
asks its last block for the class token's row alone; its decoder, losses and foreground are the
equations (docs/alignseg.md), batched, without the released code's loops. The two libraries take
turns; a row is the median of the repeats. Before that both losses of the first step are compared.
"""

import jax
import numpy as np
import torch
import transformers
from absl import app, flags
from torch import nn
from torch.nn import functional

from benchmarks.timing import median_of_each
from fs4_jax.config import default_config
from fs4_jax.models.alignseg_files import official_tensors
from fs4_jax.run import prepare

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images a batch, of three crops each.",
                                   lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each.", lower_bound=1)
_ENCODER = flags.DEFINE_bool("encoder", True, "Time the step with the encoder too.")

SIZE, WIDTH, HEADS, HIDDEN, NUM = 224, 384, 3, 768, 5
PRESSURE, WEIGHT = 0.11, 0.15       # of the summed loss, as released


# ---- the same in PyTorch -----------------------------------------------------------------------


class Branch(nn.Module):

    def __init__(self, name):
        super().__init__()
        self.name, self.norm = name, nn.LayerNorm(WIDTH)
        setattr(self, name, nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))

    def forward(self, y, seen):
        return self.norm(y + getattr(self, self.name)(y, seen, seen, need_weights=False)[0])


class FFN(nn.Module):

    def __init__(self):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, y):
        return self.norm(y + self.linear2(functional.relu(self.linear1(y))))


class Decoder(nn.Module):

    def __init__(self):
        super().__init__()
        self.clsQueries = nn.Embedding(NUM, WIDTH)
        self.decoder_cross_attention_layers = nn.ModuleList([Branch("multihead_attn")])
        self.decoder_self_attention_layers = nn.ModuleList([Branch("self_attn")])
        self.decoder_ffn_layers = nn.ModuleList([FFN()])

    def forward(self, tokens):
        y = self.decoder_cross_attention_layers[0](
            self.clsQueries.weight.expand(len(tokens), -1, -1), tokens)
        return self.decoder_ffn_layers[0](self.decoder_self_attention_layers[0](y, y))


class Encoder:
    """transformers' ViT-S/16: crops [b, 3, H, W] -> tokens [b, n, d], attention [b, h, w]."""

    def __init__(self):
        config = transformers.ViTConfig(
            hidden_size=WIDTH, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
            image_size=SIZE, patch_size=16, layer_norm_eps=1e-6, attn_implementation="sdpa")
        self.model = transformers.ViTModel(config, add_pooling_layer=False).eval()
        last = [m for name, m in self.model.named_modules()
                if name.endswith(("q_proj", "k_proj", "query", "key"))][-2:]
        self.seen = [None, None]
        for i, module in enumerate(last):
            module.register_forward_hook(lambda m, inputs, out, i=i: self.seen.__setitem__(i, out))

    def __call__(self, images):
        with torch.inference_mode():
            tokens = self.model(images).last_hidden_state[:, 1:]
            q, k = (x.unflatten(-1, (6, -1)).transpose(1, 2) for x in self.seen)
            scores = (q[:, :, :1] @ k.mT)[:, :, 0] / 8
            attention = scores.softmax(-1)[..., 1:].mean(1)
        side = SIZE // 16
        return tokens.clone(), attention.clone().unflatten(-1, (side, side))


def foreground(maps):
    """bool [b, n] of attention [b, h, w]."""
    x = torch.arange(-3, 4)
    kernel = torch.exp(-0.5 * (x / 0.6) ** 2)
    kernel = kernel / kernel.sum()
    m = functional.pad(maps[:, None], (3, 3, 3, 3), mode="reflect")
    m = functional.conv2d(m, kernel[None, None, None])
    m = functional.conv2d(m, kernel[None, None, :, None])
    values, order = torch.sort(m.flatten(1), stable=True)
    held = torch.cumsum(values, 1)
    mask = torch.zeros_like(held, dtype=torch.bool).scatter(1, order, held > 0.4 * held[:, -1:])
    mask = mask.unflatten(1, maps.shape[1:])[:, None].float()
    ones = torch.ones(1, 1, 3, 3)
    touches = functional.conv2d(mask, ones, padding=1) - 1
    larger = functional.conv2d(mask * (touches >= 2), ones, padding=1) > 0
    return ((mask > 0) & larger).flatten(1)


def torch_losses(decoder, tokens, attention):
    """methods.md 2.4, of tokens [b, 3, n, d] and attention [b, 3, h, w]."""
    adapted = decoder(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    mask = foreground(attention.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    f, q = (functional.normalize(x, dim=-1, eps=1e-10) for x in (tokens, adapted))
    soft = (f @ q.mT).clamp(min=0).softmax(-1)
    away = torch.eye(2 * NUM, dtype=torch.bool)
    positive = (torch.arange(2 * NUM) + NUM) % (2 * NUM)
    correlation, contrast = [], []
    for i in (1, 2):
        with torch.no_grad():
            c = f[:, 0] @ f[:, i].mT
            mean = c.mean()
            c = c - c.mean(2, keepdim=True)
            c = c - c.mean() + mean
            pairs = mask[:, 0, :, None] & mask[:, i, None]
        correlation.append(-((soft[:, 0] @ soft[:, i].mT) * (c - PRESSURE))[pairs].sum())
        z = torch.cat([q[:, 0], q[:, i]], dim=1)
        scores = (z @ z.mT).masked_fill(away, float("-inf"))
        contrast.append(functional.cross_entropy(scores.flatten(0, 1), positive.repeat(len(z))))
    return sum(correlation) / 2, sum(contrast) / 2


# ---- both, in turns ----------------------------------------------------------------------------


def our_run(batch_size):
    config = default_config()
    config.update(dict(method="alignseg", batch_size=batch_size, num_clusters=21))
    config.data.image_size = SIZE
    config.encoder.update(dict(variant="S/16", frozen=True))
    config.optimizer.update(dict(learning_rate=5e-4, warmup_steps=0, clip_norm=0.0, beta2=0.999,
                                 halve_every=990))
    config.alignseg.update(dict(num_prototypes=NUM, num_heads=HEADS, hidden=HIDDEN))
    config.alignseg.correlation.update(dict(reduction="sum", weight=WEIGHT, pressure=PRESSURE))
    return prepare(config)


def compare(batch_size):
    """Rows (name, seconds of ours, seconds of torch's)."""
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (batch_size, 3, SIZE, SIZE, 3), dtype=np.uint8)
    side = SIZE // 16
    tokens = rng.normal(size=(batch_size, 3, side, side, WIDTH)).astype(np.float32)
    tokens += rng.normal(size=(batch_size, 1, 1, 1, WIDTH)).astype(np.float32)
    attention = rng.dirichlet(np.full(side * side, 0.2), (batch_size, 3)).astype(np.float32)
    kept = {"patch_tokens": tokens, "attention": attention.reshape(batch_size, 3, side, side)}

    run = our_run(batch_size)
    states = {name: [run.create_state()] for name in ("crops", "kept")}
    batches = {"crops": jax.device_put({"crops": crops}), "kept": jax.device_put(kept)}
    step = run.jit_step(states["kept"][0])
    first = {}

    def ours(name):
        states[name][0], metrics = step(states[name][0], batches[name])
        first.setdefault(name, {k: float(v) for k, v in metrics.items()})
        jax.block_until_ready(states[name][0])

    encoder, decoder = Encoder(), Decoder()
    decoder.load_state_dict({name: torch.from_numpy(value) for name, value in official_tensors(
        jax.device_get(states["kept"][0].params["decoder"])).items()})
    matrices = [p for name, p in decoder.named_parameters() if p.ndim > 1 and "cls" not in name]
    rest = [p for name, p in decoder.named_parameters() if p.ndim < 2 or "cls" in name]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.04},
                                   {"params": rest, "weight_decay": 0.0}], lr=5e-4)
    pixels = torch.from_numpy(crops).flatten(0, 1).movedim(-1, 1).contiguous()
    shown = {"patch_tokens": torch.from_numpy(tokens).flatten(2, 3),
             "attention": torch.from_numpy(kept["attention"])}
    told = []

    def theirs(name):
        if name == "crops":
            seen = [x.unflatten(0, (batch_size, 3)) for x in encoder((pixels.float() / 255 - 0.45)
                                                                     / 0.225)]
        else:
            seen = shown.values()
        optimizer.zero_grad(set_to_none=True)
        terms = torch_losses(decoder, *seen)
        (WEIGHT * terms[0] + terms[1]).backward()
        optimizer.step()
        told.append([float(x.detach()) for x in terms])

    ours("kept")
    theirs("kept")
    for i, name in enumerate(("loss_correlation", "loss_contrast")):
        print(f"  {name} of the first step: {first['kept'][name]:.5f}, torch {told[0][i]:.5f}")
        np.testing.assert_allclose(first["kept"][name], told[0][i], rtol=1e-4)
    rows = []
    for title, name in (("without the encoder", "kept"), ("with the encoder", "crops")):
        if name == "kept" or _ENCODER.value:
            rows.append((title, *median_of_each(
                (lambda name=name: ours(name), lambda name=name: theirs(name)), _REPEATS.value)))
    return rows


def main(_):
    torch.manual_seed(0)
    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"float32, {_BATCH_SIZE.value} images of 3 crops, median of {_REPEATS.value}; "
          "milliseconds")
    rows = compare(_BATCH_SIZE.value)
    print(f"{'a training step':24s}  fs4_jax     torch  fs4_jax / torch")
    for name, ours, theirs in rows:
        print(f"  {name:22s} {1000 * ours:8.1f} {1000 * theirs:9.1f}  {ours / theirs:6.2f}")


if __name__ == "__main__":
    app.run(main)
