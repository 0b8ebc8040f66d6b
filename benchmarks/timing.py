"""How the benchmarks time a call."""

import time

import numpy as np


def median(function, repeats, skip=1):
    """Median seconds of a call over `repeats` calls, after `skip` warm-up calls."""
    times = []
    for _ in range(skip + repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return float(np.median(times[skip:]))
