"""Tests of fs4_jax.losses.distillation, each against a loop in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.losses import distillation as d

# float32 sums of some tens of terms; the loops are float64.
TOLERANCE = dict(rtol=2e-5, atol=2e-6)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


class DistillationTest(parameterized.TestCase):

    @parameterized.parameters(2, 5)
    def test_views_predict_every_other_global_view(self, num_views):
        student, targets = noise(3, num_views, 7), softmax(noise(3, 2, 7, seed=1) / 0.05)
        total, pairs = 0.0, 0
        for t in range(2):
            for s in range(num_views):
                if s == t:
                    continue
                pairs += 1
                for b in range(3):
                    log_p = np.log(softmax(student[b, s].astype(np.float64) / 0.1))
                    total -= (targets[b, t] * log_p).sum() / 3
        np.testing.assert_allclose(d.view_loss(student, targets, 0.1), total / pairs, **TOLERANCE)

    def test_a_view_does_not_predict_itself(self):
        targets = softmax(noise(2, 2, 5) / 0.01)
        agree = np.log(targets[:, ::-1] + 1e-9) * 0.1         # each view says what the other is
        lowest = -np.mean((targets * np.log(targets + 1e-9)).sum(-1))
        np.testing.assert_allclose(d.view_loss(agree, targets, 0.1), lowest, rtol=1e-3, atol=1e-4)

    def test_masked_tokens_count_once_an_image(self):
        student, targets = noise(3, 4, 6), softmax(noise(3, 4, 6, seed=1))
        valid = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
        images = []
        for n in range(2):
            losses = [-(targets[n, m] * np.log(softmax(student[n, m] / 0.1))).sum()
                      for m in range(4) if valid[n, m]]
            images.append(np.mean(losses))
        loss, grad = jax.value_and_grad(d.masked_token_loss)(
            jnp.asarray(student), targets, valid, 0.1)
        np.testing.assert_allclose(loss, np.mean(images), **TOLERANCE)
        self.assertTrue((np.asarray(grad)[~valid] == 0).all())
        self.assertEqual(float(d.masked_token_loss(student, targets, valid & False, 0.1)), 0.0)

    def test_koleo_is_the_log_distance_to_the_nearest(self):
        x = noise(6, 4).astype(np.float64)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        nearest = [min(np.linalg.norm(unit[i] - unit[j]) for j in range(6) if j != i)
                   for i in range(6)]
        np.testing.assert_allclose(d.koleo(x), -np.mean(np.log(nearest)), **TOLERANCE)
        twins = jax.grad(d.koleo)(jnp.ones((4, 3)))
        self.assertTrue(np.isfinite(twins).all())
        self.assertLess(float(d.koleo(np.eye(4))), float(d.koleo(noise(4, 4) + 3)))

    def test_centred_targets_and_the_centre(self):
        cosines, centre = noise(5, 3), noise(3, seed=1)
        np.testing.assert_allclose(d.centred_targets(cosines, centre, 0.04),
                                   softmax((cosines - centre) / 0.04), rtol=1e-4, atol=1e-6)
        valid = np.array([1, 0, 1, 1, 0], bool)
        np.testing.assert_allclose(
            d.moved_centre(centre, cosines, 0.9, valid),
            0.9 * centre + 0.1 * cosines[valid].mean(0), **TOLERANCE)
        np.testing.assert_array_equal(d.moved_centre(centre, cosines, 0.9, valid & False), centre)

    def test_balanced_targets_use_every_prototype_alike(self):
        cosines = noise(64, 4) + np.array([1.0, 0, 0, 0], np.float32)     # one is near to all
        valid = np.arange(64) < 48
        balanced = jax.jit(lambda t: d.balanced_targets(cosines, t, 50, valid))(0.2)
        np.testing.assert_allclose(np.asarray(balanced).sum(0), 12, rtol=1e-2)
        np.testing.assert_allclose(np.asarray(balanced)[valid].sum(1), 1, rtol=1e-5)
        self.assertEqual(float(np.abs(balanced[~valid]).max()), 0)

    def test_regression_to_standardised_targets(self):
        target = 3 * noise(2, 8, 5, seed=2) + 1
        flat_target = target.reshape(-1, 5)
        unit = (flat_target - flat_target.mean(0)) / (flat_target.std(0) + 1e-3)
        told = noise(2, 8, 5)
        np.testing.assert_allclose(d.regression_loss(told, target),
                                   np.mean((told.reshape(-1, 5) - unit) ** 2), **TOLERANCE)
        np.testing.assert_allclose(d.regression_loss(0 * told, target), 1, rtol=1e-2)
        target[0, 0, 0] = 1e6
        self.assertLess(float(d.regression_loss(0 * told, target)), 2)

    def test_no_gradient_reaches_targets(self):
        cosines, centre = jnp.asarray(noise(5, 3)), jnp.zeros(3)
        for target in (lambda x: d.centred_targets(x, centre, 0.1),
                       lambda x: d.balanced_targets(x, 0.1, 3),
                       lambda x: d.moved_centre(centre, x, 0.9)):
            grad = jax.grad(lambda x, target=target: jnp.sum(target(x) ** 2))(cosines)
            np.testing.assert_array_equal(grad, np.zeros((5, 3)))


if __name__ == "__main__":
    absltest.main()
