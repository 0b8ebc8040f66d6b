"""Scores of classes that consist of several prototypes."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from fs4_jax.models.prototypes import class_scores


class ClassScoresTest(absltest.TestCase):

    def test_against_a_loop(self):
        rng = np.random.default_rng(0)
        cosines, groups = rng.uniform(-1, 1, (4, 5, 7)), np.array([2, 0, 1, 0, 0, 2, 1])
        prior = rng.dirichlet(np.ones(7))
        got = class_scores(jnp.float32(cosines), jnp.asarray(groups), 3, 0.1, jnp.float32(prior))
        for place in np.ndindex(4, 5):
            for c in range(3):
                members = (cosines[place] + 0.1 * np.log(7 * prior))[groups == c]
                want = 0.1 * np.log(np.sum(np.exp(members / 0.1)))
                self.assertAlmostEqual(float(got[place][c]), want, places=5)     # float32
                self.assertGreaterEqual(float(got[place][c]) + 1e-6, members.max())

    def test_one_prototype_a_class_is_its_cosine(self):
        cosines = jnp.float32(np.random.default_rng(1).uniform(-1, 1, (6, 3)))
        np.testing.assert_allclose(class_scores(cosines, jnp.arange(3), 3, 0.1,
                                                np.full(3, 1 / 3)), cosines, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
