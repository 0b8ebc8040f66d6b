"""Tests of fs4_jax.clustering.sinkhorn."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering import sinkhorn
from fs4_jax.sharding import batch_sharding, make_mesh

# float32 against float64: three iterations of sums over a few hundred numbers.
_TOLERANCE = dict(rtol=2e-5, atol=1e-6)


def cosines(n, k, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, k)).astype(np.float32)


def swav(scores, epsilon=0.05, num_iters=3, prior=None):
    """SwAV's distributed_sinkhorn as its authors wrote it (main_swav.py), in float64."""
    scores = np.asarray(scores, np.float64)
    n, k = scores.shape
    prior = np.full(k, 1 / k) if prior is None else prior
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(num_iters):
        q *= (prior / q.sum(axis=1))[:, None]
        q /= q.sum(axis=0, keepdims=True) * n
    return (q * n).T


def relaxed(scores, epsilon, num_iters, rho):
    """Scaling iterations of unbalanced transport (Chizat et al. 2018), in float64."""
    kernel = np.exp(np.asarray(scores, np.float64) / epsilon)
    n, k = kernel.shape
    kernel *= n / kernel.sum()
    u = np.ones(n)
    for _ in range(num_iters):
        v = (n / k / (kernel.T @ u)) ** rho
        u = 1 / (kernel @ v)
    q = kernel * v
    return q / q.sum(axis=1, keepdims=True)


def in_logarithms(scores, epsilon, num_iters=3, prior=None, rho=1.0):
    """The definition in float64 logarithms, which no range of scores leaves."""
    def logsumexp(x, axis):
        highest = x.max(axis=axis, keepdims=True)
        return np.squeeze(highest, axis) + np.log(np.exp(x - highest).sum(axis=axis))

    scores = np.asarray(scores, np.float64) / epsilon
    n, k = scores.shape
    log_u, log_target = np.zeros(n), np.log(n * (np.full(k, 1 / k) if prior is None else prior))
    for _ in range(num_iters):
        log_v = rho * (log_target - logsumexp(scores + log_u[:, None], 0))
        log_u = -logsumexp(scores + log_v, 1)
    return np.exp(scores + log_v + log_u[:, None])


class SinkhornTest(parameterized.TestCase):

    @parameterized.parameters((200, 7, 0.05, 3), (64, 27, 0.05, 3), (33, 5, 0.2, 10), (5, 8, 1, 1))
    def test_is_swavs(self, n, k, epsilon, num_iters):
        scores = cosines(n, k)
        q = sinkhorn(scores, epsilon, num_iters)
        self.assertEqual(q.dtype, jnp.float32)
        np.testing.assert_allclose(q, swav(scores, epsilon, num_iters), **_TOLERANCE)
        np.testing.assert_allclose(np.sum(q, axis=1), 1, atol=1e-6)

    def test_written_out(self):
        """Two points that both prefer cluster 0: the one that cares less is sent to cluster 1."""
        q = sinkhorn(jnp.array([[1.0, 0.0], [1.0, 0.8]]), epsilon=0.1, num_iters=200)
        np.testing.assert_allclose(np.round(q), [[1, 0], [0, 1]])
        np.testing.assert_allclose(np.sum(q, axis=0), [1, 1], atol=1e-4)

    def test_columns_follow_the_prior(self):
        scores, prior = cosines(300, 4), np.array([0.55, 0.25, 0.15, 0.05])
        np.testing.assert_allclose(np.mean(sinkhorn(scores, num_iters=200), axis=0), 0.25,
                                   atol=1e-4)
        few = sinkhorn(scores, prior=prior)
        np.testing.assert_allclose(few, swav(scores, prior=prior), **_TOLERANCE)
        many = sinkhorn(scores, num_iters=200, prior=prior)
        np.testing.assert_allclose(np.mean(many, axis=0), prior, atol=1e-4)

    def test_relaxation_goes_from_softmax_to_the_prior(self):
        scores = cosines(200, 6) + np.linspace(0, 0.6, 6, dtype=np.float32)     # unequal classes
        np.testing.assert_allclose(sinkhorn(scores, marginal_relaxation=0.0),
                                   jax.nn.softmax(scores / 0.05), **_TOLERANCE)
        np.testing.assert_allclose(sinkhorn(scores, num_iters=0), jax.nn.softmax(scores / 0.05),
                                   **_TOLERANCE)
        off = []
        for rho in (0.0, 0.3, 0.7, 1.0):
            q = sinkhorn(scores, num_iters=50, marginal_relaxation=rho)
            np.testing.assert_allclose(q, relaxed(scores, 0.05, 50, rho), rtol=2e-4, atol=1e-5)
            off.append(float(np.abs(np.mean(q, axis=0) - 1 / 6).sum()))
        self.assertEqual(off, sorted(off, reverse=True))
        self.assertGreater(off[1] - off[2], 0.01)

    @parameterized.parameters(1.0, 0.5)
    def test_an_invalid_row_has_no_vote(self, rho):
        scores, valid = cosines(100, 5), np.arange(100) % 3 != 0
        want = sinkhorn(scores[valid], marginal_relaxation=rho)
        for junk in (7.0, -1e30, 1e30, np.inf, np.nan):
            spoilt = np.where(valid[:, None], scores, junk)
            q = np.asarray(sinkhorn(spoilt, marginal_relaxation=rho, valid=valid))
            np.testing.assert_allclose(q[valid], want, **_TOLERANCE)
            np.testing.assert_array_equal(q[~valid], 0)

    def test_no_valid_row_at_all_is_zero_not_nan(self):
        np.testing.assert_array_equal(sinkhorn(cosines(6, 3), valid=np.zeros(6, bool)), 0)

    @parameterized.parameters(1e2, 1e4, 1e8, 1e30)
    def test_a_huge_range_stays_finite(self, scale):
        scores = cosines(64, 6) * scale
        for rho in (1.0, 0.5):
            q = np.asarray(sinkhorn(scores, marginal_relaxation=rho))
            self.assertTrue(np.isfinite(q).all())
            np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-5)

    @parameterized.parameters(0.2, 0.05, 0.03, 0.02, 0.01, 0.003, 0.001)
    def test_a_small_epsilon_is_exact(self, epsilon):
        """Below 0.03 or so exp(scores / epsilon) leaves float32; a cluster nobody likes first."""
        scores, prior = cosines(150, 5), np.array([0.1, 0.3, 0.2, 0.2, 0.2])
        scores[:, 0] = (scores[:, 0] - 1) / 2
        for rho in (1.0, 0.6):
            q = sinkhorn(scores, epsilon, prior=prior, marginal_relaxation=rho)
            want = in_logarithms(scores, epsilon, 3, prior, rho)
            # A number near 1 / epsilon is rounded in its 24th bit, a few times over.
            np.testing.assert_allclose(q, want, atol=5e-7 / epsilon)
            np.testing.assert_allclose(np.sum(q, axis=1), 1, atol=1e-5)

    def test_rows_at_very_different_levels_are_exact(self):
        """A row far below the others has no part in the first sums, and all of it in its own."""
        scores = cosines(80, 4)
        scores[::3] -= 3.0
        scores[1::3] += 2.0
        np.testing.assert_allclose(sinkhorn(scores), in_logarithms(scores, 0.05), atol=1e-4)

    @parameterized.parameters(0.05, 0.005)
    def test_a_cluster_with_no_share_gets_nothing(self, epsilon):
        scores, prior = cosines(90, 4), np.array([0.5, 0.0, 0.3, 0.2])
        scores[:, 1] += 1.0                                            # though all would like it
        q = np.asarray(sinkhorn(scores, epsilon, prior=prior))
        np.testing.assert_array_equal(q[:, 1], 0)
        some = np.array([0, 2, 3])
        np.testing.assert_allclose(q[:, some], in_logarithms(scores[:, some], epsilon,
                                                             prior=prior[some]), atol=1e-4)

    def test_a_constant_added_to_all_scores_changes_nothing(self):
        scores = np.round(cosines(50, 4) * 64) / 64      # exact in float32 after the shift
        np.testing.assert_allclose(sinkhorn(scores + 1000), sinkhorn(scores), rtol=2e-3, atol=1e-5)

    @parameterized.product(num_devices=(1, 2, 4, 8), epsilon=(0.05, 0.005))
    def test_is_the_same_on_any_number_of_devices(self, num_devices, epsilon):
        mesh = make_mesh({"data": -1, "fsdp": 2 if num_devices > 2 else 1},
                         jax.devices()[:num_devices])
        scores = cosines(512, 9)
        valid = np.arange(512) % 5 != 0
        run = jax.jit(lambda s, v: sinkhorn(s, epsilon, valid=v, marginal_relaxation=0.8))
        sharded = run(*jax.device_put((scores, valid), batch_sharding(mesh)))
        self.assertLen(sharded.sharding.device_set, num_devices)
        # The sums are added in another order: a few roundings, of 1 / epsilon in logarithms.
        np.testing.assert_allclose(sharded, run(scores, valid), rtol=1e-5 if epsilon == 0.05
                                   else 3e-4, atol=1e-7)

    def test_no_gradient(self):
        weight = cosines(20, 3, seed=1)
        grad = jax.jit(jax.grad(lambda s: jnp.sum(sinkhorn(s) * weight)))(cosines(20, 3))
        np.testing.assert_array_equal(grad, 0)

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, r"scores must be \[n, k\], got \(2, 3, 4\)"):
            sinkhorn(jnp.zeros((2, 3, 4)))
        with self.assertRaisesRegex(ValueError, "epsilon must be > 0, got 0"):
            sinkhorn(jnp.zeros((2, 3)), 0)
        with self.assertRaisesRegex(ValueError, r"prior must be \[3\].*got \(2,\)"):
            sinkhorn(jnp.zeros((2, 3)), prior=jnp.ones(2))


if __name__ == "__main__":
    absltest.main()
