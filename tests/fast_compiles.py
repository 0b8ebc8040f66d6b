"""For tests that compile much and run little: fast compiles in place of fast programs.

A test module that imports both functions has them called before and after its tests.
"""

import jax


def setUpModule():
    jax.config.update("jax_disable_most_optimizations", True)


def tearDownModule():
    jax.config.update("jax_disable_most_optimizations", False)
