"""What a program costs on any device, read from its jaxpr: operations and bytes; and what its
devices tell each other, read from the compiled program.

XLA's own counts (cost_analysis, memory_analysis) are of one platform's compiled program: they take
a loop's body once, whatever its number of turns, and miss products handed to a library. What is
counted here is what was written, before any compiler: no fusion, nothing that it leaves out.
"""

import math
import re

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def product_flops(jaxpr):
    """Operations of a jaxpr's matrix products and convolutions, over all devices.

    A product [m,k] x [k,n] is 2 m k n; everything else is thought free, as is usual for a
    transformer, and so is one with a single vector, which is a sum along rows. A scan counts its
    turns, a while loop one, of branches the dearest counts.
    """
    def flops(eqn):
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            return 2 * math.prod(out) * math.prod(left[i] for i in contracted)
        kernel = eqn.invars[1].aval.shape
        features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // features

    return _over_products(jaxpr, flops)


def product_bytes(jaxpr):
    """Bytes that a jaxpr's matrix products and convolutions read and write, over all devices.

    Each operand and result once; what lies between products is thought fused with them.
    """
    return _over_products(jaxpr, lambda eqn: sum(
        _bytes(var.aval) for var in (*eqn.invars, *eqn.outvars)))


def _over_products(jaxpr, cost):
    """The sum of cost(eqn) over products, turns of loops counted."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [_over_products(sub, cost) for sub in _inside(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * eqn.params.get("length", 1)
        name = eqn.primitive.name
        if name == "conv_general_dilated" or (name == "dot_general" and not _is_sum(eqn)):
            total += cost(eqn)
    return total


def _is_sum(product):
    """Whether it is a matrix's with one vector, as `long_rows.total` sums rows on a CPU."""
    (contracted, _), _ = product.params["dimension_numbers"]
    left, right = (var.aval for var in product.invars)
    return right.size == math.prod(left.shape[i] for i in contracted) < left.size


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


# ---- what devices tell each other ---------------------------------------------------------------

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}   # else 4
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_KIND = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})\(")
_CALLS = re.compile(r"(?:body|calls|to_apply)=%([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%[\w.\-]+))")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def collectives(program):
    """{kind: (number, bytes)} of the collectives that one device takes part in.

    Args:
      program: text of a compiled program, `compiled.as_text()`, of a CPU. Loops count their turns
        where XLA knows them (else one), of branches the dearest counts. Bytes: of the results.
    """
    bodies, entry = {}, None
    for line in program.splitlines():
        head = _HEAD.match(line.strip()) if not line.startswith("    ") else None
        if head:
            body = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        elif bodies:
            body.append(line)

    def of(name):
        total = {}
        for line in bodies.get(name, ()):
            found = _KIND.search(line)
            if found:
                _add(total, {found[2]: (1, sum(
                    _ITEM.get(kind, 4) * math.prod(int(side) for side in sides.split(",") if side)
                    for kind, sides in _SHAPE.findall(found[1])))})
            turns = _TURNS.search(line)
            for called in _CALLS.findall(line):
                _add(total, of(called), int(turns[1]) if turns else 1)
            branches = [name.strip().lstrip("%") for pair in _BRANCHES.findall(line)
                        for name in (pair[0] or pair[1]).split(",")]
            if branches:
                _add(total, max(map(of, branches), key=lambda x: sum(b for _, b in x.values())))
        return total

    return of(entry)


def _add(total, more, times=1):
    for kind, (number, size) in more.items():
        before = total.get(kind, (0, 0))
        total[kind] = before[0] + times * number, before[1] + times * size
