"""Tests of fs4_jax.evaluation.collapse."""

import math

from absl.testing import absltest, parameterized

from fs4_jax.config import default_config
from fs4_jax.evaluation.collapse import advice, cluster_health, collapse_signs


class CollapseTest(parameterized.TestCase):

    def test_health(self):
        used, largest = cluster_health([0.7, 0.2, 0.0749, 0.0251])
        self.assertEqual((used, largest), (4, 0.7))
        self.assertEqual(cluster_health([0.976, 0.024, 0.0, 0.0])[0], 1)     # 0.1 / 4 is asked

    @parameterized.parameters(
        (6, 0.4, 11, ()), (5.4, 0.4, 11, ("few_clusters",)), (11, 0.6, 11, ()),
        (11, 0.61, 11, ("large_cluster",)), (1, 1.0, 11, ("few_clusters", "large_cluster")),
        (1, 0.6, 2, ()), (math.nan, math.nan, 11, ()))
    def test_signs(self, used, largest, num_clusters, expected):
        self.assertEqual(tuple(collapse_signs(used, largest, num_clusters)), expected)

    def test_sentences(self):
        signs = collapse_signs(3.25, 0.716, 11)
        self.assertEqual(list(signs.values()), ["3.25 of 11 clusters are in use",
                                                "the largest cluster holds 72 % of the pixels"])

    def test_advice_names_keys_that_are_there(self):
        config = default_config()
        text = advice(config)
        for key in ("fs4.sinkhorn.num_iters", "fs4.sinkhorn.epsilon", "fs4.pgg.weight",
                    "optimizer.learning_rate", "num_clusters"):
            self.assertIn(key, text)
            found = config
            for name in key.split("."):
                found = found[name]
        self.assertIn("a large background is honest", text)
        self.assertNotIn("marginal_relaxation", text)         # it is 1 already
        config.fs4.sinkhorn.marginal_relaxation, config.fs4.pgg.enabled = 0.5, False
        self.assertIn("fs4.sinkhorn.marginal_relaxation from 0.5 towards 1", advice(config))
        self.assertIn("fs4.pgg.enabled=True", advice(config))
        config.fs4.sinkhorn.enabled = False
        self.assertIn("fs4.sinkhorn.enabled=True", advice(config))
        config.method = "other"
        self.assertNotIn("fs4", advice(config))
        self.assertIn("num_clusters", advice({}))


if __name__ == "__main__":
    absltest.main()
