"""Where FS^4 starts from: k-means groups, a projection and prototypes, from tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fs4_jax.clustering import kmeans
from fs4_jax.clustering.kmeans import unit_length

_RESTARTS = 3
_RIDGE = 0.1              # of the mean variance: keeps directions that are all noise small
_MAX_POINTS = 60_000      # of a fit: what k-means gains from more is far below its seed's spread


def gather(step, params, batches):
    """Runs step(params, batch) over batches; every leaf concatenated on the host.

    The answer of each step is replicated over the mesh first, so that any process can read it.
    """
    step = jax.jit(step)
    parts = [jax.device_get(step(params, batch)) for batch in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def fit_centroids(cells, levels, key, start=None):
    """k-means groups of each pyramid level.

    Args:
      cells: {level: float [n, l, l, d]}. levels: {level: number of groups}.
      key: random key. start: {level: [k, d]} to begin from (a bootstrap round), or None.

    Returns:
      {level: float32 [k, d]}.

    Raises:
      ValueError: fewer cells than groups; names the config keys.
    """
    centroids = {}
    for i, (level, num_groups) in enumerate(levels.items()):
        points = cells[level].reshape(-1, cells[level].shape[-1])
        if len(points) < num_groups:
            raise ValueError(
                f"{len(points)} cells at pyramid level {level} can not form {num_groups} groups: "
                "use more images, raise config.fs4.fit_images, or lower config.fs4.pgg.num_groups "
                "or config.num_clusters")
        init = "k-means++" if start is None else start[level]
        centroids[level] = _best(points, num_groups, jax.random.fold_in(key, i), init).centroids
    return centroids


def scatter(cues1, cues2, valid):
    """Sums over pairs of the same place seen in two views, for `consistent_projection`.

    Args:
      cues1, cues2: float [b, h, w, d]. valid: bool [b, h, w].

    Returns:
      dict with a leading axis of 1: "count", "sum" [d], "total" [d, d], "within" [d, d].
    """
    d = cues1.shape[-1]
    cues1, cues2 = cues1.reshape(-1, d), cues2.reshape(-1, d)
    vote = valid.reshape(-1, 1).astype(jnp.float32)
    both = jnp.concatenate([cues1 * vote, cues2 * vote])
    difference = (cues1 - cues2) * vote
    sums = {"count": 2 * jnp.sum(vote), "sum": jnp.sum(both, axis=0), "total": both.T @ both,
            "within": difference.T @ difference}
    return jax.tree.map(lambda x: x[None], sums)


def consistent_projection(sums, width):
    r"""The linear map in which places differ most, measured by how much two views of one differ.

    .. math:: \max_v\; v^\top S_t v / v^\top S_w v

    S_t scatters over all places and views, S_w over the two views of a place: discriminant
    analysis with every place its own class. What a change of light and framing changes (colour,
    noise) counts little; what tells places apart in spite of it counts much. Our reconstruction.

    Args:
      sums: the answers of `scatter`, concatenated. width: components wanted.

    Returns:
      {"kernel": [d, width], "bias": [width]} of a Dense: centred, unit variance between views;
      where d < width the rest is zero.
    """
    sums = {name: x.astype(np.float64).sum(0) for name, x in sums.items()}
    mean = sums["sum"] / sums["count"]
    total = sums["total"] / sums["count"] - np.outer(mean, mean)
    within = sums["within"] / sums["count"]
    scale = 1.0 / np.sqrt(np.maximum(np.diag(total), 1e-8))
    total, within = total * np.outer(scale, scale), within * np.outer(scale, scale)
    within += _RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = scipy.linalg.eigh(total, within)
    kept = min(width, len(values))
    kernel = np.zeros((len(values), width))
    kernel[:, :kept] = scale[:, None] * vectors[:, ::-1][:, :kept]
    return {"kernel": kernel.astype(np.float32), "bias": (-mean @ kernel).astype(np.float32)}


def embed(head, head_params, gathered, batch=32):
    """The head's embeddings of gathered tokens, a sample of at most `_MAX_POINTS`: [n, c]."""
    @jax.jit
    def step(tokens, appearance):
        return head.apply({"params": head_params}, tokens, appearance)["embedding"]

    tokens, appearance = gathered["patch_tokens"], gathered["appearance"]
    parts = [np.asarray(step(tokens[i:i + batch], appearance[i:i + batch]))
             for i in range(0, len(tokens), batch)]
    points = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
    return points


def fit_prototypes(embedding, num_clusters, key):
    """Spherical k-means of embeddings [n, c]: a KMeansResult."""
    if len(embedding) < num_clusters:
        raise ValueError(f"{len(embedding)} tokens can not form config.num_clusters="
                         f"{num_clusters} clusters: use more or larger images")
    return _best(embedding, num_clusters, jax.random.fold_in(key, 1000), "k-means++",
                 spherical=True)


def _best(points, num_clusters, key, init, spherical=False):
    """The best of a few restarts, by inertia; one run when a start is given."""
    if len(points) > _MAX_POINTS:
        chosen = jax.random.choice(jax.random.fold_in(key, 99), len(points), (_MAX_POINTS,),
                                   replace=False)
        points = points[np.asarray(chosen)]
    return kmeans(jnp.asarray(points), num_clusters, key=key, init=init, spherical=spherical,
                  restarts=_RESTARTS if isinstance(init, str) else 1)
