"""How the benchmarks time a call."""

import time

import numpy as np


def median(function, repeats, skip=1, setup=None):
    """Median seconds of a call over `repeats` calls, after `skip` warm-up calls.

    setup: makes what a call takes, not timed; None: it takes nothing.
    """
    times = []
    for _ in range(skip + repeats):
        given = () if setup is None else (setup(),)
        began = time.perf_counter()
        function(*given)
        times.append(time.perf_counter() - began)
    return float(np.median(times[skip:]))


def median_of_each(functions, repeats, skip=1):
    """Median seconds of each function's calls; the functions take turns, as `median` repeats."""
    times = np.empty((skip + repeats, len(functions)))
    for i in range(skip + repeats):
        for j, function in enumerate(functions):
            began = time.perf_counter()
            function()
            times[i, j] = time.perf_counter() - began
    return np.median(times[skip:], axis=0).tolist()
