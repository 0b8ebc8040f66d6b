"""Sinkhorn assignment: ours against SwAV's in torch, ott-jax and POT, in one run.

    python -m benchmarks.sinkhorn [--sizes=3136x27,12544x256]

Three iterations at epsilon 0.05 on random cosines, float32. A row is the median of --repeats calls
of each, taken in turns, and how far each peer's result is from ours. SwAV's is its authors'
distributed_sinkhorn (main_swav.py) on one process. ott-jax scales kernels, as ours does; POT runs
on NumPy arrays. Peers of the extra `bench` that are not installed are left out, saying so.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.timing import median_of_each
from fs4_jax.clustering import sinkhorn

_SIZES = flags.DEFINE_list("sizes", ["3136x27", "12544x27", "12544x256", "50176x27", "12544x2048"],
                           "Points x clusters.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Timed runs of each.", lower_bound=1)

EPSILON, NUM_ITERS = 0.05, 3


def main(_):
    peers = {"torch": torch_swav, "ott": ott_jax, "ot": pot}
    missing = [name for name in peers if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed (pip install '.[bench]'), left out: {', '.join(missing)}")
    run = jax.jit(functools.partial(sinkhorn, epsilon=EPSILON, num_iters=NUM_ITERS))
    for size in _SIZES.value:
        n, k = map(int, size.split("x"))
        scores = np.random.default_rng(0).uniform(-1, 1, (n, k)).astype(np.float32)
        on_device = jnp.asarray(scores)
        ours = np.asarray(run(on_device))
        calls = {"fs4_jax": lambda x=on_device: jax.block_until_ready(run(x))}
        calls |= {name: make(scores) for name, make in peers.items() if name not in missing}
        times = dict(zip(calls, median_of_each(list(calls.values()), _REPEATS.value, skip=2)))
        print(f"{n} x {k}: fs4_jax {1000 * times['fs4_jax']:.2f} ms")
        for name in list(calls)[1:]:
            off = np.abs(np.asarray(calls[name]()) - ours).max()
            print(f"  {name:6s} {1000 * times[name]:9.2f} ms   "
                  f"{times[name] / times['fs4_jax']:6.2f} x ours, off by {off:.0e}", flush=True)


def torch_swav(scores):
    import torch
    scores = torch.from_numpy(scores)

    @torch.no_grad()
    def run():
        q = torch.exp(scores / EPSILON).t()
        k, n = q.shape
        q /= q.sum()
        for _ in range(NUM_ITERS):
            q /= q.sum(dim=1, keepdim=True)
            q /= k
            q /= q.sum(dim=0, keepdim=True)
            q /= n
        return (q * n).t()
    return run


def ott_jax(scores):
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    # As many iterations as ours, no test of convergence; the second marginal is fitted first.
    solve = ott_sinkhorn.Sinkhorn(lse_mode=False, threshold=0.0, inner_iterations=NUM_ITERS,
                                  min_iterations=NUM_ITERS, max_iterations=NUM_ITERS)

    @jax.jit
    def run(scores):
        n, k = scores.shape
        geom = geometry.Geometry(cost_matrix=-scores, epsilon=EPSILON)
        return solve(linear_problem.LinearProblem(
            geom, a=jnp.full(n, 1 / n), b=jnp.full(k, 1 / k))).matrix * n

    scores = jnp.asarray(scores)
    return lambda: jax.block_until_ready(run(scores))


def pot(scores):
    import ot
    n, k = scores.shape
    a, b = np.full(n, 1 / n, np.float32), np.full(k, 1 / k, np.float32)

    def run():
        return n * ot.sinkhorn(a, b, -scores, EPSILON, numItermax=NUM_ITERS, stopThr=0.0,
                               warn=False)
    return run


if __name__ == "__main__":
    app.run(main)
