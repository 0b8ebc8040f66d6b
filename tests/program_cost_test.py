"""What devices tell each other: counted right, and for Sinkhorn and k-means next to nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering import kmeans, sinkhorn
from fs4_jax.clustering.kmeans import _highest
from fs4_jax.losses.assignment import swapped_prediction
from fs4_jax.program_cost import collectives, product_bytes
from fs4_jax.sharding import batch_sharding, make_mesh, replicated
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401

_CLUSTERS, _WIDTH = 5, 4


def told(function, rows, devices, width=_WIDTH):
    mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:devices])
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=batch_sharding(mesh))
    program = jax.jit(function, out_shardings=None).lower(x).compile().as_text()
    return collectives(program)


class CollectivesTest(parameterized.TestCase):

    def test_a_sum_and_its_turns(self):
        def summed(x):
            return jnp.sum(x, axis=0)

        def again(x):
            return jax.lax.fori_loop(0, 3, lambda _, y: y + jnp.sum(x * y, axis=0),
                                     jnp.ones(_WIDTH))

        self.assertEqual(told(summed, 16, 8), {"all-reduce": (1, 4 * _WIDTH)})
        self.assertEqual(told(again, 16, 8), {"all-reduce": (3, 3 * 4 * _WIDTH)})
        self.assertEqual(told(summed, 16, 1), {})

    def test_a_gather_and_the_dearest_branch(self):
        mesh = make_mesh({"data": 8, "fsdp": 1})

        def gathered(x):
            return jax.lax.with_sharding_constraint(x, replicated(mesh))

        self.assertEqual(told(gathered, 16, 8), {"all-gather": (1, 16 * 4 * _WIDTH)})
        branch = told(lambda x: jax.lax.cond(
            jnp.sum(x) > 0, lambda x: jnp.sum(x, axis=0), lambda x: jnp.zeros(_WIDTH), x), 16, 8)
        self.assertEqual(branch, {"all-reduce": (2, 4 + 4 * _WIDTH)})

    def test_products_read_and_write(self):
        def product(x):
            return jax.lax.scan(lambda y, _: (y @ x, None), x, length=3)[0]

        jaxpr = jax.make_jaxpr(product)(jax.ShapeDtypeStruct((6, 6), jnp.float32)).jaxpr
        self.assertEqual(product_bytes(jaxpr), 3 * 3 * 36 * 4)

    def test_sinkhorn_tells_as_much_on_two_devices_as_on_eight(self):
        few, many = told(sinkhorn, 64, 2, _CLUSTERS), told(sinkhorn, 1024, 8, _CLUSTERS)
        self.assertEqual(few, many)
        self.assertEqual(few.keys(), {"all-reduce"})
        # Three iterations of at most a handful of numbers a cluster.
        self.assertLess(few["all-reduce"][1], 3 * 8 * 4 * _CLUSTERS)

    def test_swapped_prediction_moves_no_row(self):
        def loss(x):
            views = jnp.split(x, 4, axis=1)
            return jnp.mean(swapped_prediction(*views, x[:, 0] > 0, epsilon=0.05, num_iters=3)[0])

        few, many = (told(jax.value_and_grad(loss), rows, devices, 4 * _CLUSTERS)
                     for rows, devices in ((64, 2), (1024, 8)))
        self.assertEqual(few, many)
        self.assertEqual(few.keys(), {"all-reduce"})

    def test_k_means_tells_as_much_whatever_the_points(self):
        def run(x):
            return kmeans(x, _CLUSTERS, key=jax.random.key(0), init=jnp.eye(_CLUSTERS, _WIDTH),
                          num_iters=10)

        few, more, many = told(run, 256, 2), told(run, 4096, 2), told(run, 4096, 8)
        self.assertEqual(few, more)
        self.assertEqual(few["all-reduce"], many["all-reduce"])
        # What repairs an empty cluster: so many candidates of each device, not its points.
        self.assertEqual(many["all-gather"][1], 10 * 8 * _CLUSTERS * 4)

    def test_highest_is_top_k(self):
        rng = np.random.default_rng(0)
        for length in (64, 24, 7):
            values = jnp.asarray(rng.integers(0, 9, length).astype(np.float32))      # with ties
            np.testing.assert_array_equal(_highest(values, 5), jax.lax.top_k(values, 5)[1])


if __name__ == "__main__":
    absltest.main()
