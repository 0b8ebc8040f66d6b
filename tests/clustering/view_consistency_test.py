"""Tests of fs4_jax.clustering.view_consistency: sums by a loop, directions that views agree on."""

import numpy as np
from absl.testing import absltest

from fs4_jax.clustering.view_consistency import consistent_projection, scatter


def pairs(seed=0, spread=(4.0, 1.0, 3.0, 0.5), change=(2.0, 0.1, 0.2, 0.5), shape=(6, 10, 10)):
    """Places with a spread of their own in each direction, and two views, which change them."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(*shape, 4)) * spread + [3, 0, -1, 0]
    return [(places + rng.normal(size=places.shape) * change).astype(np.float32) for _ in range(2)]


class ViewConsistencyTest(absltest.TestCase):

    def test_the_sums_are_those_of_a_loop(self):
        one, other = pairs(shape=(2, 3, 4))
        valid = np.random.default_rng(1).random((2, 3, 4)) < 0.6
        sums = scatter(one, other, valid)
        want = {"count": 0.0, "sum": np.zeros(4), "total": np.zeros((4, 4)),
                "within": np.zeros((4, 4))}
        for a, b in zip(one[valid].astype(float), other[valid].astype(float)):
            for x in (a, b):
                want["count"] += 1
                want["sum"] += x
                want["total"] += np.outer(x, x)
            want["within"] += np.outer(a - b, a - b)
        for name, value in want.items():      # float32 sums of 48 numbers below 100
            np.testing.assert_allclose(sums[name][0], value, rtol=1e-5, atol=1e-4, err_msg=name)

    def test_directions_come_by_how_well_views_agree_on_them(self):
        sums = scatter(*pairs(), np.ones((6, 10, 10), bool))
        space = consistent_projection({k: np.asarray(v) for k, v in sums.items()}, 4)
        # Spread over change: 2, 10, 15 and 1. The widest direction of all is the third best.
        self.assertEqual(list(np.argmax(np.abs(space["kernel"]), axis=0)), [2, 1, 0, 3])
        measured = np.concatenate(pairs()).reshape(-1, 4) @ space["kernel"] + space["bias"]
        np.testing.assert_allclose(measured.mean(0), 0, atol=1e-3)
        spread = measured.std(0)
        self.assertTrue((np.diff(spread) < 0).all(), spread)

    def test_parts_add_up(self):
        valid = np.random.default_rng(2).random((6, 10, 10)) < 0.5
        whole = scatter(*pairs(), valid)
        parts = [scatter(*(x[i:i + 2] for x in pairs()), valid[i:i + 2]) for i in (0, 2, 4)]
        parts = {name: np.concatenate([np.asarray(part[name]) for part in parts])
                 for name in whole}
        one, other = (consistent_projection({k: np.asarray(v) for k, v in sums.items()}, 3)
                      for sums in (whole, parts))
        for name in one:                      # up to each direction's sign
            np.testing.assert_allclose(np.abs(one[name]), np.abs(other[name]), atol=2e-4)

    def test_more_components_than_directions_are_zero(self):
        sums = scatter(*pairs(), np.ones((6, 10, 10), bool))
        space = consistent_projection({k: np.asarray(v) for k, v in sums.items()}, 6)
        self.assertEqual((space["kernel"].shape, space["bias"].shape), ((4, 6), (6,)))
        np.testing.assert_array_equal(space["kernel"][:, 4:], 0)


if __name__ == "__main__":
    absltest.main()
