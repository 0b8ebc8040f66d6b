"""Tests of fs4_jax.clustering.stream."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering import kmeans, stream
from fs4_jax.sharding import batch_sharding, make_mesh
from tests.clustering.kmeans_test import blobs

_KEY = jax.random.key(0)


def batches_from(x, size):
    """The function that `stream.run` asks for: whole batches of x, from the i-th on."""
    return lambda i: (x[j:j + size] for j in range(i * size, len(x), size))


def last(states):
    *_, state = states
    return state


class StreamTest(parameterized.TestCase):

    @parameterized.product(spherical=(False, True), size=(17, 64, 300))
    def test_passes_are_lloyds_iterations(self, spherical, size):
        """In batches of any size, a ragged last one included."""
        x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
        want = kmeans(x, 5, key=_KEY, num_iters=4, init=x[:5], spherical=spherical)
        begin = stream.start(x[:50], 5, key=_KEY, init=x[:5], spherical=spherical)
        state = last(stream.run(begin, batches_from(x, size), num_passes=4, spherical=spherical))
        # Running means instead of sums: a few float32 roundings of numbers near 1.
        np.testing.assert_allclose(state.centroids, want.centroids, atol=1e-5)
        self.assertEqual(int(state.passes), 4)
        again = last(stream.run(state, batches_from(x, size), num_passes=5, spherical=spherical))
        np.testing.assert_array_equal(again.batches, 0)
        for later in stream.run(state, batches_from(x, size), num_passes=5, spherical=spherical):
            if int(later.passes) == 4:
                inertia, counts = later.inertia, later.counts
        np.testing.assert_allclose(inertia, want.inertia, rtol=1e-5)
        np.testing.assert_array_equal(counts, want.counts)

    @parameterized.parameters(False, True)
    def test_goes_on_from_a_saved_state_to_the_same_bits(self, mini_batch):
        x, _, _ = blobs(each=40)
        arguments = dict(num_passes=2, mini_batch=mini_batch)
        begin = stream.start(x[:60], 6, key=_KEY, init="random")
        states = list(stream.run(begin, batches_from(x, 50), **arguments))
        self.assertLen(states, 2 * (5 + 1))
        for i in (0, 3, 4, 5, 8, 11):
            saved = jax.tree.map(np.asarray, states[i])            # to disk and back
            rest = list(stream.run(saved, batches_from(x, 50), **arguments))
            self.assertLen(rest, len(states) - 1 - i)
            for resumed, straight in zip(rest, states[i + 1:]):
                jax.tree.map(np.testing.assert_array_equal, resumed, straight)

    def test_mini_batches_follow_sculleys_rule(self):
        """Each point pulls its centroid by 1 / count, one after the other, in float64."""
        x = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
        centroids, counts = np.asarray(x[:5], np.float64).copy(), np.zeros(5)
        for i in range(0, 200, 25):
            batch = np.asarray(x[i:i + 25], np.float64)
            labels = ((batch[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)
            for point, j in zip(batch, labels):
                counts[j] += 1
                centroids[j] += (point - centroids[j]) / counts[j]
        begin = stream.start(x, 5, key=_KEY, init=x[:5])
        state = last(stream.run(begin, batches_from(x, 25), num_passes=1, mini_batch=True))
        np.testing.assert_allclose(state.centroids, centroids, atol=1e-5)
        np.testing.assert_array_equal(state.counts, counts)

    def test_mini_batches_find_blobs(self):
        x, blob, centres = blobs(each=100)
        begin = stream.start(x[:60], 6, key=_KEY)
        state = last(stream.run(begin, batches_from(x, 30), num_passes=1, mini_batch=True))
        labels = kmeans(x, 6, key=_KEY, num_iters=0, init=state.centroids).labels
        self.assertLen(set(zip(blob, np.asarray(labels))), 6)

    @parameterized.parameters(False, True)
    def test_an_empty_cluster_is_repaired(self, mini_batch):
        x, blob, centres = blobs()
        init = np.concatenate([centres[:5], [[1e3] * 4]])
        begin = stream.start(x, 6, key=_KEY, init=init)
        state = last(stream.run(begin, batches_from(x, 45), num_passes=3, mini_batch=mini_batch))
        labels = kmeans(x, 6, key=_KEY, num_iters=0, init=state.centroids).labels
        self.assertLen(set(zip(blob, np.asarray(labels))), 6)
        if not mini_batch:
            want = kmeans(x, 6, key=_KEY, num_iters=3, init=init)
            np.testing.assert_allclose(state.centroids, want.centroids, atol=1e-4)

    def test_an_invalid_point_has_no_vote(self):
        x, _, centres = blobs()
        valid = np.arange(len(x)) % 3 != 0
        spoilt = np.where(valid[:, None], x, np.nan)
        begin = stream.start(spoilt, 6, key=_KEY, init=centres + 0.3, valid=valid)
        some = last(stream.run(begin, lambda i: [(spoilt, valid)][i:], num_passes=2))
        want = last(stream.run(begin, lambda i: [x[valid]][i:], num_passes=2))
        np.testing.assert_allclose(some.centroids, want.centroids, atol=1e-5)

    def test_no_points_leave_the_centroids(self):
        begin = stream.start(np.eye(3), 2, key=_KEY, init=np.eye(3)[:2])
        state = stream.add_and_move(begin, np.full((4, 3), np.nan), valid=np.zeros(4, bool))
        np.testing.assert_array_equal(state.centroids, np.eye(3)[:2])
        np.testing.assert_array_equal(stream.move(state).centroids, np.eye(3)[:2])

    @parameterized.parameters(2, 4, 8)
    def test_is_the_same_on_any_number_of_devices(self, num_devices):
        x, _, _ = blobs(num_blobs=8, each=16)
        mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:num_devices])
        begin = stream.start(x, 8, key=_KEY)
        single = jax.jit(stream.add_and_move)(begin, x)
        sharded = jax.jit(stream.add_and_move)(begin, jax.device_put(x, batch_sharding(mesh)))
        np.testing.assert_allclose(sharded.centroids, single.centroids, atol=1e-5)
        np.testing.assert_array_equal(sharded.counts, single.counts)

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, r"5 clusters need a sample .* got \(4, 2\)"):
            stream.start(np.zeros((4, 2)), 5, key=_KEY)


if __name__ == "__main__":
    absltest.main()
