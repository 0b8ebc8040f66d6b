"""The linear probe finds what is linear, and its loss is the written out one."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from fs4_jax.evaluation.probe import apply_probe, fit_probe, init_probe, probe_loss


class ProbeTest(absltest.TestCase):

    def test_the_loss_at_label_size(self):
        """Features of the label's size: nothing to upsample; a loop over the labelled pixels."""
        rng = np.random.default_rng(0)
        features = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
        probe = {"kernel": rng.normal(size=(3, 5)).astype(np.float32), "bias": np.arange(5.0)}
        label = rng.integers(0, 5, (2, 4, 4))
        label[0, 0] = 255
        logits = features @ probe["kernel"] + probe["bias"]
        losses = [np.log(np.exp(x).sum()) - x[t] for x, t in zip(
            logits.reshape(-1, 5), label.reshape(-1)) if t != 255]
        got = probe_loss(probe, features, jnp.asarray(label), jnp.array([[4, 4]] * 2))
        self.assertAlmostEqual(float(got), np.mean(losses), delta=1e-5)     # float32
        nothing = probe_loss(probe, features, jnp.full((2, 4, 4), 255), jnp.array([[4, 4]] * 2))
        self.assertEqual(float(nothing), 0.0)

    def test_finds_linear_classes(self):
        rng = np.random.default_rng(1)
        truth = rng.normal(size=(6, 3))

        def batches(number):
            for _ in range(number):
                features = rng.normal(size=(2, 8, 8, 6)).astype(np.float32)
                yield features, jnp.asarray((features @ truth).argmax(-1)), jnp.array([[8, 8]] * 2)

        probe, loss = fit_probe(batches(300), 3, learning_rate=0.05)
        features, label, _ = next(batches(1))
        accuracy = np.mean(jnp.argmax(apply_probe(probe, features), -1) == label)
        self.assertGreater(accuracy, 0.95)
        self.assertLess(loss, 0.3)

    def test_channels_of_any_scale_and_offset(self):
        """Small, shifted, uneven channels: the same answers, from features as they are."""
        rng = np.random.default_rng(2)
        truth, scale = rng.normal(size=(6, 3)), np.array([1e-3, 1e-3, 0.01, 1, 10, 100])
        x = rng.normal(size=(200, 2, 8, 8, 6)).astype(np.float32)
        label, size = jnp.asarray((x @ truth).argmax(-1)), jnp.array([[8, 8]] * 2)
        plain, _ = fit_probe(((x[i], label[i], size) for i in range(200)), 3, learning_rate=0.05)
        seen = np.float32(x * scale + 5 * scale)
        probe, _ = fit_probe(((seen[i], label[i], size) for i in range(200)), 3,
                             learning_rate=0.05)
        np.testing.assert_allclose(apply_probe(probe, seen[0]), apply_probe(plain, x[0]),
                                   atol=0.02)       # logits of about 10, std + 1e-6
        right = np.mean(jnp.argmax(apply_probe(probe, seen), -1) == label)
        self.assertGreater(right, 0.95)

    def test_starts_at_even_odds(self):
        logits = apply_probe(init_probe(4, 3), jnp.ones((2, 4)))
        np.testing.assert_array_equal(jax.nn.softmax(logits), np.full((2, 3), np.float32(1 / 3)))

    def test_no_batches(self):
        with self.assertRaisesRegex(ValueError, "needs batches"):
            fit_probe([], 3)


if __name__ == "__main__":
    absltest.main()
