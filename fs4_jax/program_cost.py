"""What a program costs on any device, read from its jaxpr: operations and bytes.

XLA's own counts (cost_analysis, memory_analysis) are of one platform's compiled program: they take
a loop's body once, whatever its number of turns, and miss products handed to a library. What is
counted here is what was written, before any compiler: no fusion, nothing that it leaves out.
"""

import math

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def product_flops(jaxpr):
    """Operations of a jaxpr's matrix products and convolutions, over all devices.

    A product [m,k] x [k,n] is 2 m k n; everything else is thought free, as is usual for a
    transformer. A scan counts its turns, a while loop one, of branches the dearest counts.
    """
    total = 0
    for eqn in jaxpr.eqns:
        inner = [product_flops(sub) for sub in _inside(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * eqn.params.get("length", 1)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // features
    return total


def live_bytes(jaxpr):
    """The most bytes that a jaxpr's own arrays take at once, when run in the order written.

    Its arguments are not counted; an array goes after its last use. Rather too much, as XLA
    fuses, but without the padding of a device: 715 MB for a gradient of ViT-Ti/8 (64 images of 64
    pixels), of which a TPU v5e's program takes 677; 154 with `remat`, of which it takes 29.
    """
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars
            if not isinstance(var, Literal)}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if not isinstance(var, Literal)}
    live, peak, held = 0, 0, {}
    for i, eqn in enumerate(jaxpr.eqns):
        made = {var: _bytes(var.aval) for var in eqn.outvars}
        inner = max((live_bytes(sub) for sub in _inside(eqn)), default=0)
        peak = max(peak, live + max(inner, sum(made.values())))
        held |= {var: size for var, size in made.items() if last.get(var, i) > i}
        live += sum(size for var, size in made.items() if var in held)
        for var in eqn.invars:
            if not isinstance(var, Literal) and last[var] == i:
                live -= held.pop(var, 0)
    return peak


def _inside(eqn):
    """The jaxprs that an equation runs."""
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _bytes(aval):
    return math.prod(aval.shape) * aval.dtype.itemsize
