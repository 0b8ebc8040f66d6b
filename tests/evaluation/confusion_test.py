"""Tests of fs4_jax.evaluation.confusion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.evaluation import IGNORE_LABEL, Confusion, confusion_matrix
from fs4_jax.evaluation.upsample import upsample_argmax
from fs4_jax.sharding import batch_sharding, make_mesh, replicated


def loop_confusion(prediction, label, num_clusters, num_classes):
    counts = np.zeros((num_clusters, num_classes), np.int64)
    for p, t in zip(np.ravel(prediction), np.ravel(label), strict=True):
        if 0 <= p < num_clusters and 0 <= t < num_classes and t != IGNORE_LABEL:
            counts[p, t] += 1
    return counts


class ConfusionMatrixTest(parameterized.TestCase):

    @parameterized.parameters((5, 5), (7, 3), (3, 7), (1, 1))
    def test_is_the_loop(self, num_clusters, num_classes):
        rng = np.random.default_rng(0)
        prediction = rng.integers(-1, num_clusters + 1, (3, 9, 8)).astype(np.int32)
        label = rng.choice([*range(num_classes), 255], (3, 9, 8)).astype(np.uint8)
        counts = confusion_matrix(prediction, label, num_clusters=num_clusters,
                                  num_classes=num_classes)
        self.assertEqual(counts.dtype, jnp.int32)
        np.testing.assert_array_equal(
            counts, loop_confusion(prediction, label, num_clusters, num_classes))

    def test_ids_that_do_not_vote(self):
        label = jnp.array([0, 1, 255, 2, -1, 0, 0, 0, 254])
        prediction = jnp.array([0, 1, 0, 0, 0, -1, 2, 255, 0])
        counts = confusion_matrix(prediction, label, num_clusters=2, num_classes=2)
        np.testing.assert_array_equal(counts, [[1, 0], [0, 1]])

    def test_255_never_votes_however_many_classes(self):
        counts = confusion_matrix(jnp.zeros(3, int), jnp.array([255, 255, 299]), num_clusters=1,
                                  num_classes=300)
        self.assertEqual(int(counts.sum()), 1)

    def test_uint8_and_int32_ids_are_the_same(self):
        rng = np.random.default_rng(1)
        prediction, label = rng.integers(0, 200, 500), rng.integers(0, 200, 500)
        run = functools.partial(confusion_matrix, num_clusters=200, num_classes=200)
        np.testing.assert_array_equal(run(prediction.astype(np.uint8), label.astype(np.uint8)),
                                      run(prediction, label))

    def test_different_shapes_are_an_error(self):
        with self.assertRaisesRegex(ValueError, r"\(2, 3\) and label \(3, 2\) differ in shape"):
            confusion_matrix(jnp.zeros((2, 3)), jnp.zeros((3, 2)), num_clusters=2, num_classes=2)

    def test_8_devices_give_the_same_integers(self):
        rng = np.random.default_rng(2)
        prediction = rng.integers(0, 6, (16, 20, 20)).astype(np.int32)
        label = rng.integers(0, 4, (16, 20, 20)).astype(np.uint8)
        mesh = make_mesh({"data": -1, "fsdp": 2})
        run = jax.jit(functools.partial(confusion_matrix, num_clusters=6, num_classes=4),
                      out_shardings=replicated(mesh))
        counts = run(*jax.device_put((prediction, label), batch_sharding(mesh)))
        np.testing.assert_array_equal(counts, loop_confusion(prediction, label, 6, 4))


class ConfusionTest(absltest.TestCase):

    def test_totals_pass_two_to_the_31(self):
        total = Confusion(2, 2)
        for _ in range(5):
            total.add(jnp.array([[2**31 - 1, 0], [3, 1]], jnp.int32))
        self.assertEqual(total.counts.dtype, np.int64)
        np.testing.assert_array_equal(total.counts, [[5 * (2**31 - 1), 0], [15, 5]])

    def test_padding_does_not_vote(self):
        """10 images in batches of 4 give the counts of 10, each image at its own size."""
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(10, 3, 4, 5)).astype(np.float32)
        size = np.array([[20, 20], [9, 14], [17, 6]])[np.arange(10) % 3]
        label = np.full((10, 20, 20), IGNORE_LABEL, np.uint8)
        want, one = np.zeros((5, 3), np.int64), jax.jit(upsample_argmax, static_argnums=2)
        for i, (h, w) in enumerate(size):
            label[i, :h, :w] = rng.choice([0, 1, 2, 255], (h, w))
            alone = one(logits[i:i + 1], size[i:i + 1], (int(h), int(w)))
            want += loop_confusion(alone[0], label[i, :h, :w], 5, 3)

        total, compiled = Confusion(5, 3), []

        @jax.jit
        def measure(logits, label, size):
            compiled.append(1)
            ids = upsample_argmax(logits, size, (20, 20))
            return confusion_matrix(ids, label, num_clusters=5, num_classes=3)

        for start in range(0, 10, 4):
            real = min(4, 10 - start)
            batch = [np.zeros((4, 3, 4, 5), np.float32), np.full((4, 20, 20), 255, np.uint8),
                     np.ones((4, 2), np.int32)]                       # padding rows
            for padded, array in zip(batch, (logits, label, size), strict=True):
                padded[:real] = array[start:start + real]
            total.add(measure(*batch))
        np.testing.assert_array_equal(total.counts, want)
        self.assertLen(compiled, 1)


if __name__ == "__main__":
    absltest.main()
