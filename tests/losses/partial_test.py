"""Tests of fs4_jax.losses.partial and consistency."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from fs4_jax.losses.consistency import pair_loss
from fs4_jax.losses.partial import partial_cross_entropy


class PartialTest(absltest.TestCase):

    def test_is_the_mean_over_labelled_pixels(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(2, 3, 4, 5))
        label = rng.integers(0, 5, (2, 3, 4))
        label[rng.random(label.shape) < 0.6] = 255
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        want = -np.mean([log_p[(*place, label[place])] for place in zip(*np.nonzero(label != 255))])
        got = partial_cross_entropy(jnp.float32(logits), jnp.array(label))
        np.testing.assert_allclose(got, want, rtol=1e-6)

    def test_logits_are_upsampled_as_torch_does(self):
        """align_corners=False: a row of two becomes 1, 3/4 1/4, 1/4 3/4, 1 mixtures."""
        logits = jnp.array([[[[4.0, 0.0], [0.0, 4.0]]]])
        label = jnp.array([[[255, 0, 255, 255]]])
        want = np.log(1 + np.exp(1.0 - 3.0))
        np.testing.assert_allclose(partial_cross_entropy(logits, label), want, rtol=1e-6)

    def test_unlabelled_pixels_get_no_gradient_and_an_empty_batch_no_loss(self):
        logits = jnp.ones((1, 2, 2, 3))
        label = jnp.array([[[255, 1], [255, 255]]])
        grad = jax.grad(partial_cross_entropy)(logits, label)
        self.assertEqual([tuple(x) for x in np.argwhere(np.abs(grad).sum(-1) > 0)], [(0, 0, 1)])
        value, grad = jax.value_and_grad(partial_cross_entropy)(logits, jnp.full((1, 2, 2), 255))
        self.assertEqual(float(value), 0)
        np.testing.assert_array_equal(grad, 0)


def loop_pairs(features, label, valid):
    pulls, pushes = {}, []
    for i in range(len(label)):
        for j in range(len(label)):
            if i != j and valid[i] and valid[j]:
                distance = 0.5 * np.sum((features[i] - features[j]) ** 2)
                if label[i] == label[j]:
                    pulls.setdefault(label[i], []).append(distance)
                else:
                    pushes.append(-np.log(1 - np.exp(-distance)))
    pull = np.mean([np.mean(x) for x in pulls.values()]) if pulls else 0
    return 0.5 * pull + 0.5 * (np.mean(pushes) if pushes else 0)


class PairTest(absltest.TestCase):

    def test_is_the_loop(self):
        rng = np.random.default_rng(0)
        features, label = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
        for valid in (np.ones(20, bool), rng.random(20) < 0.6, label == 1, np.zeros(20, bool)):
            got = pair_loss(jnp.float32(features), jnp.array(label), jnp.array(valid), 5)
            np.testing.assert_allclose(got, loop_pairs(features, label, valid), rtol=1e-4,
                                       atol=1e-6)

    def test_classes_count_alike_however_many_pixels_they_have(self):
        """Nine close pixels of one class do not drown two far ones of another."""
        features = jnp.zeros((11, 1)).at[10].set(2.0)
        label = jnp.array([0] * 9 + [1] * 2)
        pull = 0.5 * (0 + 2.0) / 2                          # class means of distances 0 and 2
        got = pair_loss(features, label, jnp.ones(11, bool), 2)
        push = -np.log(1e-5) * 9 - np.log(1 - np.exp(-2.0)) * 9
        np.testing.assert_allclose(got, pull + 0.5 * push / 18, rtol=1e-5)

    def test_gradients_are_finite_where_features_are_equal(self):
        grad = jax.grad(pair_loss)(jnp.ones((4, 3)), jnp.array([0, 0, 1, 1]), jnp.ones(4, bool), 2)
        self.assertTrue(jnp.all(jnp.isfinite(grad)))

    def test_descent_parts_the_classes(self):
        label = jnp.array([0, 0, 0, 1, 1, 1])
        features = 0.1 * jax.random.normal(jax.random.key(0), (6, 2))
        grad = jax.jit(jax.grad(lambda x: pair_loss(x, label, jnp.ones(6, bool), 2)))
        for _ in range(200):
            features = features - 0.3 * grad(features)
        distance = jnp.sum((features[:, None] - features) ** 2, -1)
        same = label[:, None] == label
        self.assertLess(float(jnp.max(jnp.where(same, distance, 0))), 0.05)
        self.assertGreater(float(jnp.min(jnp.where(same, 9, distance))), 1.0)


if __name__ == "__main__":
    absltest.main()
