"""Signs that clusters collapse: too few are in use, or one of them holds nearly everything."""

import numpy as np

WARNING = "warning_"                    # and a sign's name: a column of metrics.jsonl
_LEAST_USED, _MOST_HELD = 0.5, 0.6      # of the clusters; of the pixels
_IN_USE = 0.1                           # of an even share


def cluster_health(shares):
    """(clusters in use, share of the largest) of shares [k] of the pixels, which sum to 1.

    In use: at least a tenth of an even share, 0.1 / k, as `methods.fs4.telemetry` counts.
    """
    shares = np.asarray(shares, np.float64)
    return int(np.sum(shares >= _IN_USE / len(shares))), float(shares.max())


def collapse_signs(used, largest, num_clusters):
    """{name: sentence} of the signs that are there; NaN is none.

    Args:
      used: clusters in use, or a mean of it. largest: share of the largest, 0..1.
      num_clusters: that there are.

    Returns:
      "few_clusters" where fewer than half are in use, "large_cluster" where one holds over 60 %.
    """
    signs = {}
    if used < _LEAST_USED * num_clusters:
        signs["few_clusters"] = f"{used:.3g} of {num_clusters} clusters are in use"
    if largest > _MOST_HELD:
        signs["large_cluster"] = f"the largest cluster holds {100 * largest:.0f} % of the pixels"
    return signs


def advice(config):
    """What to look at and what to change, by config key.

    Args:
      config: of the run (a mapping); what it does not hold is not named.
    """
    text = ("Look at the pictures: a large background is honest where the images have one, and "
            "so are few clusters where they show few things. If it is a collapse: ")
    return text + "; ".join([*_fs4_changes(config), "lower optimizer.learning_rate",
                             "choose a smaller num_clusters"]) + "."


def _fs4_changes(config):
    if config.get("method") != "fs4" or "fs4" not in config:
        return []
    sinkhorn, pgg = config["fs4"].get("sinkhorn", {}), config["fs4"].get("pgg", {})
    relaxation = sinkhorn.get("marginal_relaxation", 1.0)
    balance = "set fs4.sinkhorn.enabled=True"
    if sinkhorn.get("enabled", True):
        balance = (f"move fs4.sinkhorn.marginal_relaxation from {relaxation:g} towards 1"
                   if relaxation < 1 else "raise fs4.sinkhorn.num_iters")
    guide = "raise fs4.pgg.weight" if pgg.get("enabled", True) else "set fs4.pgg.enabled=True"
    return [balance, f"try another fs4.sinkhorn.epsilon ({sinkhorn.get('epsilon', 0.05):g} now)",
            guide]
