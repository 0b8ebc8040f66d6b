"""AlignSeg against plain PyTorch: the same weights, the same image, the same numbers.

The referee is written here from the equations (docs/alignseg.md; methods.md 2) with torch's own
layers, under the names of the released code, and saved by torch in the released form.
"""

import pathlib
import tempfile
import unittest

import fs4_jax  # noqa: F401  (sets an XLA flag before jax starts)
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.losses.alignment import cosines, prototype_contrast, prototype_image_loss
from fs4_jax.models.alignseg_files import load_alignseg, official_tensors
from fs4_jax.models.foreground import foreground_mask

try:
    import torch
    from torch import nn
    from torch.nn import functional

    from tests.models import parity_test
except ImportError as error:
    raise unittest.SkipTest("the referee of AlignSeg is torch") from error

_K, _HEADS, _HIDDEN, _WIDTH = 5, 4, 96, parity_test.WIDTH


class Attention(nn.Module):
    """A branch of attention and its norm, under one of the released code's names."""

    def __init__(self, name):
        super().__init__()
        setattr(self, name, nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True))
        self.name, self.norm = name, nn.LayerNorm(_WIDTH)

    def forward(self, y, seen):
        return self.norm(y + getattr(self, self.name)(y, seen, seen)[0])


class FFN(nn.Module):

    def __init__(self):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(_WIDTH, _HIDDEN), nn.Linear(_HIDDEN, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH)

    def forward(self, y):
        return self.norm(y + self.linear2(functional.relu(self.linear1(y))))


class Referee(nn.Module):
    """The decoder of methods.md 2.2; stacked, or as released."""

    def __init__(self, num_layers, as_released):
        super().__init__()
        self.clsQueries = nn.Embedding(_K, _WIDTH)
        self.decoder_cross_attention_layers = nn.ModuleList(
            Attention("multihead_attn") for _ in range(num_layers))
        self.decoder_self_attention_layers = nn.ModuleList(
            Attention("self_attn") for _ in range(num_layers))
        self.decoder_ffn_layers = nn.ModuleList(FFN() for _ in range(num_layers))
        self.as_released = as_released

    def forward(self, tokens):
        y = start = self.clsQueries.weight.expand(len(tokens), -1, -1)
        for cross, own, ffn in zip(self.decoder_cross_attention_layers,
                                   self.decoder_self_attention_layers, self.decoder_ffn_layers):
            y = cross(start if self.as_released else y, tokens)
            y = ffn(own(y, y))
        return y


def unit(x):
    return functional.normalize(x, dim=-1, eps=1e-10)


def referee_mask(attention):
    """[b, heads, h, w] -> [b, h w]: blur, 60 % of the mass, no component of one or two patches."""
    m = attention.mean(1, keepdim=True)
    x = torch.linspace(-3, 3, 7)
    kernel = torch.exp(-0.5 * (x / 0.6) ** 2)
    kernel = kernel / kernel.sum()
    m = functional.conv2d(functional.pad(m, (3, 3, 3, 3), mode="reflect"),
                          (kernel[:, None] * kernel)[None, None])[:, 0]
    answer = []
    for image in m:
        values, order = torch.sort(image.flatten(), stable=True)
        kept = torch.cumsum(values / values.sum(), 0) > 1 - 0.6
        mask = torch.zeros(image.numel(), dtype=torch.bool)
        mask[order[kept]] = True
        answer.append(flooded(mask.reshape(image.shape)).flatten())
    return torch.stack(answer)


def flooded(mask):
    """The mask without its small components, found one by one by walking."""
    kept, left = torch.zeros_like(mask), {tuple(p) for p in mask.nonzero().tolist()}
    while left:
        component, front = set(), {left.pop()}
        while front:
            r, c = front.pop()
            component.add((r, c))
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front |= near
        if len(component) > 2:
            for r, c in component:
                kept[r, c] = True
    return kept


def referee_losses(fg, fi, qg, qi, mg, mi, b0=0.11):
    """methods.md 2.4: (1) without its 0.15, summed, and (2)."""
    with torch.no_grad():
        c = torch.einsum("bnd,bmd->bnm", unit(fg), unit(fi))
        mu = c.mean()
        c = c - c.mean(2, keepdim=True)
        c = c - c.mean() + mu
    ag, ai = (torch.softmax(torch.einsum("bnd,bkd->bnk", unit(f), unit(q)).clamp(min=0), -1)
              for f, q in ((fg, qg), (fi, qi)))
    s = torch.einsum("bnk,bmk->bnm", ag, ai)
    pairs = mg[:, :, None] & mi[:, None, :]
    correlation = (-s * (c - b0))[pairs].sum()
    contrast = []
    for a, b in zip(unit(qg), unit(qi)):
        z = torch.cat([a, b])
        scores = (z @ z.T).masked_fill(torch.eye(2 * _K, dtype=torch.bool), float("-inf"))
        contrast.append(functional.cross_entropy(scores, (torch.arange(2 * _K) + _K) % (2 * _K)))
    return correlation, torch.stack(contrast).mean()


def relative(got, want):
    got, want = np.asarray(got), np.asarray(want)
    return np.abs(got - want).max() / max(np.abs(want).max(), 1e-12)


class AlignSegParityTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def model(self, num_layers, as_released, randomize=True):
        """(the referee's backbone, its decoder, what is read of its file)."""
        backbone = parity_test.randomize(parity_test.dino(8))
        torch.manual_seed(1)
        decoder = Referee(num_layers, as_released)
        if randomize:
            parity_test.randomize(decoder, seed=1)
        state = {f"backbone.{name}": torch.from_numpy(value.copy())
                 for name, value in parity_test.official(backbone).items()}
        path = self.folder / "epoch10.pth"
        torch.save({"state_dict": {**state, **decoder.state_dict()}, "epoch": 10}, path)
        return backbone, decoder, load_alignseg(path, num_heads=_HEADS,
                                                bug_compatible=as_released)

    @parameterized.parameters((1, False, (56, 56)), (2, False, (64, 48)), (3, True, (56, 56)))
    def test_prototypes_assignment_and_mask_of_an_image(self, num_layers, as_released, size):
        backbone, decoder, ours = self.model(num_layers, as_released)
        images = np.random.default_rng(2).normal(size=(3, *size, 3)).astype(np.float32)
        seen = parity_test.referee(backbone, images)
        tokens = torch.from_numpy(seen["patch_tokens"]).flatten(1, 2)
        with torch.no_grad():
            want = decoder(tokens)
            ids = torch.softmax(unit(tokens) @ unit(want).mT, -1).argmax(-1)
        mask = referee_mask(torch.from_numpy(seen["attention"]))

        out = ours.encoder.apply({"params": ours.params["encoder"]}, images,
                                 return_attention=True)
        seen = out["patch_tokens"].reshape(len(images), -1, _WIDTH)
        got = ours.decoder.apply({"params": ours.params["decoder"]}, seen)
        print(f"{num_layers} layers: prototypes {np.abs(got - want.numpy()).max():.1e}")
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(np.argmax(cosines(seen, got), -1), ids)
        found = foreground_mask(out["attention"]).reshape(len(images), -1)
        np.testing.assert_array_equal(found, mask)
        self.assertTrue(0 < mask.sum() < mask.numel())
        self.assertGreater(len(np.unique(ids)), 1)

    @parameterized.parameters((1, False), (2, False), (2, True))
    def test_losses_and_their_gradients(self, num_layers, as_released):
        # As torch starts them: wild weights make all prototypes alike, and the gradient of the
        # first loss a difference of equal numbers (torch's own float32 is then off by 1e-3).
        _, decoder, ours = self.model(num_layers, as_released, randomize=False)
        rng = np.random.default_rng(3)
        shared = rng.normal(size=(4, 1, _WIDTH))
        fg, fi = ((rng.normal(size=(4, n, _WIDTH)) + shared).astype(np.float32) for n in (49, 36))
        mg, mi = (rng.random((4, n)) < 0.4 for n in (49, 36))
        tg, ti, ug, ui = map(torch.from_numpy, (fg, fi, mg, mi))
        pairs = (mg.sum(1) * mi.sum(1)).sum()

        def loss(params, reduction):
            qg, qi = (ours.decoder.apply({"params": params}, x) for x in (fg, fi))
            return jnp.stack([prototype_image_loss((fg, fi), (qg, qi), (mg, mi), pressure=0.11,
                                                   reduction=reduction),
                              prototype_contrast(qg, qi)])

        values = jax.jit(loss, static_argnums=1)
        grads = jax.jit(jax.jacrev(loss), static_argnums=1)(ours.params["decoder"], "sum")
        got = values(ours.params["decoder"], "sum")
        for i, name in enumerate(("correlation", "contrast")):
            decoder.zero_grad()
            term = referee_losses(tg, ti, decoder(tg), decoder(ti), ug, ui)[i]
            term.backward()
            self.assertLess(relative(got[i], term.detach()), 1e-4, name)
            theirs = {k: np.zeros_like(p.detach()) if p.grad is None else p.grad.numpy()
                      for k, p in decoder.named_parameters()}
            mine = official_tensors(jax.tree.map(lambda x: x[i], grads))
            self.assertEqual(set(mine), set(theirs))
            scale = max(np.abs(g).max() for g in theirs.values())
            worst = max(relative(mine[k], g) for k, g in theirs.items()
                        if np.abs(g).max() > 1e-3 * scale)
            print(f"{num_layers} layers, {name}: gradients {worst:.1e} relative")
            self.assertLess(worst, 1e-4, name)
            for k, g in theirs.items():              # key biases: nothing but rounding
                np.testing.assert_allclose(mine[k], g, atol=1e-5 * scale, err_msg=k)
        mean = values(ours.params["decoder"], "mean")
        self.assertLess(relative(mean[0], got[0] / pairs), 1e-5)


if __name__ == "__main__":
    absltest.main()
