"""k-means: ours against faiss-cpu and scikit-learn, in one run.

    python -m benchmarks.kmeans [--sizes=100000x70x27]

Float32 normal points around K centres that overlap, the same K points of them as a start. Ten
Lloyd iterations of each (faiss with its subsampling off; it alone gives no labels at the end, one
assignment less), and one pass of mini-batches of 4096 from host memory (`stream` beside
scikit-learn's MiniBatchKMeans). Medians of --repeats runs, taken in turns; besides the ratio, the
final sum of squared distances of each over ours. Peers of the extra `bench` that are not installed
are left out, saying so.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.timing import median_of_each
from fs4_jax.clustering import kmeans, stream

_SIZES = flags.DEFINE_list("sizes", ["100000x70x27", "200000x384x27", "200000x384x500"],
                           "Points x dimensions x clusters.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each.", lower_bound=1)

NUM_ITERS, BATCH = 10, 4096


def main(_):
    peers = {"faiss": faiss_lloyd, "sklearn": sklearn_lloyd, "sklearn mini-batch": sklearn_batches}
    missing = [name for name in peers if importlib.util.find_spec(name.split()[0]) is None]
    if missing:
        print(f"not installed (pip install '.[bench]'), left out: {', '.join(missing)}")
    for size in _SIZES.value:
        n, d, k = map(int, size.split("x"))
        rng = np.random.default_rng(0)
        x = 0.5 * rng.standard_normal((k, d), np.float32)[rng.integers(0, k, n)]
        x += rng.standard_normal((n, d), np.float32)
        start = x[rng.choice(n, k, replace=False)]
        calls = {"fs4_jax": ours_lloyd(x, start), "fs4_jax mini-batch": ours_batches(x, start)}
        calls |= {name: make(x, start) for name, make in peers.items() if name not in missing}
        result = {}
        seconds = dict(zip(calls, median_of_each(
            [functools.partial(keep, result, name, call) for name, call in calls.items()],
            _REPEATS.value)))
        inertia = {name: inertia_of(x, result[name]) for name in calls}
        print(f"{n} x {d}, K = {k}")
        for name in calls:
            base = "fs4_jax mini-batch" if "mini-batch" in name else "fs4_jax"
            print(f"  {name:18s} {seconds[name]:7.3f} s   "
                  f"{seconds[name] / seconds[base]:5.2f} x ours   "
                  f"inertia {inertia[name] / inertia[base]:.5f} x ours", flush=True)


def keep(result, name, call):
    result[name] = call()


def inertia_of(x, centroids):
    return float(kmeans(x, len(centroids), key=jax.random.key(0), num_iters=0,
                        init=centroids).inertia)


def ours_lloyd(x, start):
    run = jax.jit(functools.partial(kmeans, key=jax.random.key(0), num_iters=NUM_ITERS),
                  static_argnames="num_clusters")
    on_device = jnp.asarray(x)
    return lambda: jax.block_until_ready(run(on_device, len(start), init=start)).centroids


def ours_batches(x, start):
    def run():
        state = stream.start(start, len(start), key=None, init=start)
        for i in range(0, len(x), BATCH):
            state = stream.add_and_move(state, x[i:i + BATCH])
        return np.asarray(state.centroids)
    return run


def faiss_lloyd(x, start):
    import faiss

    def run():
        model = faiss.Kmeans(x.shape[1], len(start), niter=NUM_ITERS, seed=0,
                             max_points_per_centroid=len(x), min_points_per_centroid=1)
        model.train(x, init_centroids=start)
        return model.centroids
    return run


def sklearn_lloyd(x, start):
    from sklearn.cluster import KMeans
    return lambda: KMeans(len(start), init=start, n_init=1, max_iter=NUM_ITERS, tol=0,
                          algorithm="lloyd").fit(x).cluster_centers_


def sklearn_batches(x, start):
    from sklearn.cluster import MiniBatchKMeans

    def run():
        model = MiniBatchKMeans(len(start), init=start, n_init=1, batch_size=BATCH,
                                reassignment_ratio=0)
        for i in range(0, len(x), BATCH):
            model.partial_fit(x[i:i + BATCH])
        return model.cluster_centers_
    return run


if __name__ == "__main__":
    app.run(main)
