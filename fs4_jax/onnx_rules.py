"""A jax function as an ONNX model, without TensorFlow.

What does not depend on the input is computed here and stored; each other operation of the jaxpr
becomes ONNX operators. Calls are inlined, loops unrolled: their length is known. (jax2onnx 0.17,
the one converter there is, wants an orbax older than ours, and what it makes of FS^4's context
embedding does not load, nor does it take a batch of any size.)
"""

import dataclasses
import math

import jax
import numpy as np
from jax.extend import core

from fs4_jax.onnx_graph import Graph, Untranslatable, Value

_SAME = {
    "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos",
    "div": "Div", "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor",
    "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
    "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg",
    "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt",
    "sub": "Sub", "tanh": "Tanh", "xor": "Xor"}
_REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_sum": "ReduceSum",
               "reduce_prod": "ReduceProd"}
_NOTHING = ("copy", "copy_p", "optimization_barrier", "reduce_precision", "sharding_constraint",
            "stop_gradient")
_INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
            "remat2", "checkpoint")
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")     # parameters that hold what is called


def to_onnx(function, shape, dtype, *, input_name, output_names, metadata):
    """The ONNX model of a function of a batch of arrays.

    Args:
      function: array [b, *shape] -> tuple of arrays; traced with a batch of any size.
      shape, dtype: of an array.
      input_name, output_names: in the model.
      metadata: {name: string}, its metadata_props.

    Returns:
      onnx.ModelProto, checked.

    Raises:
      Untranslatable: an operation without a rule; a model above 2 GB.
    """
    batch, = jax.export.symbolic_shape("batch")
    traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *shape), dtype))
    graph = Graph(batch, input_name, (batch, *shape), dtype)
    outputs = _run(graph, traced.jaxpr, traced.consts, [graph.input])
    return graph.model(dict(zip(output_names, outputs, strict=True)), metadata)


def _run(graph, jaxpr, constants, inputs):
    """The values of a jaxpr's outputs for values of its inputs."""
    known = dict(zip(jaxpr.constvars, map(graph.constant, constants), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable):
        if isinstance(variable, core.Literal):
            return graph.constant(np.asarray(variable.val, variable.aval.dtype))
        return known[variable]

    for eqn in jaxpr.eqns:
        outputs = _translate(graph, eqn, [read(x) for x in eqn.invars])
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _translate(graph, eqn, inputs):
    """The values of an equation's outputs."""
    name = eqn.primitive.name
    if name in _INLINED:
        called = next(eqn.params[key] for key in _CALLED if key in eqn.params)
        return _run(graph, getattr(called, "jaxpr", called), getattr(called, "consts", ()), inputs)
    if name in _NOTHING:
        return inputs
    if name in _STRUCTURE:
        return _STRUCTURE[name](graph, eqn, *inputs)
    computed = _computed(graph, eqn, inputs)
    if computed is not None:
        return computed
    if name in _SAME:
        return [graph.elementwise(_SAME[name], inputs, _out(eqn))]
    if name not in _RULES:
        raise Untranslatable(f"jax's operation {name!r} has no rule in fs4_jax/onnx_rules.py")
    answer = _RULES[name](graph, eqn, *inputs)
    return answer if isinstance(answer, list) else [answer]


def _computed(graph, eqn, inputs):
    """The outputs where nothing depends on the input, else None."""
    if any(x.array is None for x in inputs):
        return None
    if all(isinstance(side, int) for x in eqn.outvars for side in x.aval.shape):
        arrays = [graph.whole(x).array for x in inputs]
    elif eqn.primitive.name in _SAME:         # of any batch: the same for each image
        arrays = np.broadcast_arrays(*(x.array for x in inputs))
    else:
        return None
    answers = eqn.primitive.bind(*arrays, **eqn.params)
    answers = answers if eqn.primitive.multiple_results else [answers]
    return [Value(x.aval.shape, np.dtype(x.aval.dtype), np.shape(answer), array=np.asarray(answer))
            for x, answer in zip(eqn.outvars, answers)]


def _out(eqn):
    return eqn.outvars[0].aval


# ---- structure: (graph, eqn, *inputs) -> [values] ------------------------------------------------

def _broadcast(graph, eqn, value):
    """Nothing is copied: the value is held with sides of 1."""
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    held = [1] * len(shape)
    for side, place in zip(value.held, places):
        held[place] = side
    held = tuple(held)
    narrow = graph.reshape(dataclasses.replace(value, shape=value.held), held)
    return [dataclasses.replace(narrow, shape=tuple(shape), held=held)]


def _cond(graph, eqn, index, *operands):
    if index.array is None:
        raise Untranslatable("a condition that depends on the image")
    branches = eqn.params["branches"]
    branch = branches[int(np.clip(index.array, 0, len(branches) - 1))]
    return _run(graph, branch.jaxpr, branch.consts, operands)


def _platform_index(graph, eqn):
    """What is meant for any platform: the loops that help XLA on a CPU help nobody else."""
    platforms = eqn.params["platforms"]
    return [graph.constant(np.int32(platforms.index(None) if None in platforms else 0))]


def _dim_as_value(graph, eqn):
    return [graph.cast(graph.reshape(graph.size(eqn.params["dim"]), ()), _out(eqn))]


def _scan(graph, eqn, *inputs):
    """Unrolled."""
    params, body = eqn.params, eqn.params["jaxpr"]
    fixed, carry, each = _parts_of_scan(params, inputs)
    each, num_carry = [graph.whole(x) for x in each], len(carry)
    order = range(params["length"])[::-1 if params["reverse"] else 1]
    steps = {}
    for i in order:
        parts = [_row(graph, x, i) for x in each]
        outputs = _run(graph, body.jaxpr, body.consts, [*fixed, *carry, *parts])
        carry, steps[i] = outputs[:num_carry], outputs[num_carry:]
    stacked = [graph.stack(parts, 0) for parts in zip(*(steps[i] for i in sorted(steps)))]
    return [*carry, *stacked]


def _parts_of_scan(params, inputs):
    """(what every round reads, the first carry, what is read row by row), a list each."""
    if "ft_in" in params:               # jax 0.12
        return [list(part) for part in params["ft_in"].update(inputs).unpack()]
    fixed, carry = params["num_consts"], params["num_consts"] + params["num_carry"]
    return [list(inputs[:fixed]), list(inputs[fixed:carry]), list(inputs[carry:])]


def _row(graph, x, i):
    shape = x.shape[1:]
    part = graph.slice(x, [i] + [0] * len(shape), [i + 1, *shape])
    return graph.reshape(part, shape)


_STRUCTURE = {"broadcast_in_dim": _broadcast, "cond": _cond, "dim_as_value": _dim_as_value,
              "platform_index": _platform_index, "scan": _scan}


# ---- rules: (graph, eqn, *inputs) -> value or [values] -------------------------------------------

def _chain(*operators):
    """A rule: elementwise operators one after the other."""
    def rule(graph, eqn, x):
        for op in operators:
            x = graph.elementwise(op, [x], _out(eqn))
        return x
    return rule


def _integer_pow(graph, eqn, x):
    if eqn.params["y"] == 2:
        return _square(graph, eqn, x)
    power = graph.constant(np.asarray(eqn.params["y"], x.dtype))
    return graph.elementwise("Pow", [x, power], _out(eqn))


def _square(graph, eqn, x):
    return graph.elementwise("Mul", [x, x], _out(eqn))


def _log1p(graph, eqn, x):
    one = graph.constant(np.asarray(1, x.dtype))
    return _chain("Log")(graph, eqn, graph.elementwise("Add", [x, one], _out(eqn)))


def _expm1(graph, eqn, x):
    one = graph.constant(np.asarray(1, x.dtype))
    return graph.elementwise("Sub", [_chain("Exp")(graph, eqn, x), one], _out(eqn))


def _not_equal(graph, eqn, x, y):
    return _chain("Not")(graph, eqn, graph.elementwise("Equal", [x, y], _out(eqn)))


def _is_finite(graph, eqn, x):
    odd = [_chain(op)(graph, eqn, x) for op in ("IsInf", "IsNaN")]
    return _chain("Not")(graph, eqn, graph.elementwise("Or", odd, _out(eqn)))


def _clamp(graph, eqn, low, x, high):
    like = _out(eqn)
    return graph.elementwise("Min", [graph.elementwise("Max", [x, low], like), high], like)


def _select(graph, eqn, which, *cases):
    if len(cases) != 2 or which.dtype != bool:
        raise Untranslatable("a choice among more than two")
    return graph.elementwise("Where", [which, cases[1], cases[0]], _out(eqn))


def _cast(graph, eqn, x):
    return graph.cast(x, _out(eqn))


def _reduce(graph, eqn, x):
    axes, like = graph.integers(*eqn.params["axes"]), _out(eqn)
    return graph.node(_REDUCTIONS[eqn.primitive.name], [graph.whole(x), axes], like.shape,
                      like.dtype, keepdims=0)


def _arg_extreme(graph, eqn, x):
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[eqn.primitive.name]
    axis, = eqn.params["axes"]
    found = graph.node(op, [graph.whole(x)], _out(eqn).shape, np.int64, axis=axis, keepdims=0)
    return graph.cast(found, _out(eqn))


def _reshape(graph, eqn, x):
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        raise Untranslatable("a reshape in another order")
    return graph.reshape(x, _out(eqn).shape)


def _transpose(graph, eqn, x):
    return graph.transpose(x, eqn.params["permutation"])


def _concatenate(graph, eqn, *values):
    return graph.concatenate(values, _out(eqn).shape, eqn.params["dimension"])


def _stack(graph, eqn, *values):
    return graph.stack(values, eqn.params["axis"])


def _split(graph, eqn, x):
    axis, parts, start = eqn.params["axis"], [], 0
    for size in map(int, eqn.params["sizes"]):
        starts, stops = [0] * len(x.shape), list(x.shape)
        starts[axis], stops[axis] = start, start + size
        parts.append(graph.slice(x, starts, stops))
        start += size
    return parts


def _unstack(graph, eqn, x):
    axis, parts = eqn.params["axis"], []
    for i, out in enumerate(eqn.outvars):
        starts, stops = [0] * len(x.shape), list(x.shape)
        starts[axis], stops[axis] = i, i + 1
        parts.append(graph.reshape(graph.slice(x, starts, stops), out.aval.shape))
    return parts


def _slice(graph, eqn, x):
    params = eqn.params
    return graph.slice(x, params["start_indices"], params["limit_indices"], params["strides"])


def _dynamic_slice(graph, eqn, x, *starts):
    return _slice_at(graph, x, starts, eqn.params["slice_sizes"])


def _gather(graph, eqn, x, indices):
    """How jax writes x[:, 1:5], x[:, ::2] and x[:, places] where a side is symbolic."""
    numbers, like = eqn.params["dimension_numbers"], _out(eqn)
    if indices.array is None or numbers.operand_batching_dims:
        raise Untranslatable("a gather whose places depend on the image")
    places = graph.whole(indices).array
    if places.ndim == 1:
        starts = [graph.constant(np.int32(0))] * len(x.shape)
        for axis, start in zip(numbers.start_index_map, places):
            starts[axis] = graph.constant(start)
        part = _slice_at(graph, x, starts, eqn.params["slice_sizes"])
        return graph.reshape(part, like.shape)
    axis = numbers.start_index_map[0]
    others = tuple(i for i in range(len(like.shape)) if i != axis)
    if places.shape[1:] != (1,) or numbers.collapsed_slice_dims != (axis,) or \
            numbers.offset_dims != others or not 0 <= places.min() <= places.max() < x.shape[axis]:
        raise Untranslatable("a gather of several sides")
    rows = graph.integers(*places[:, 0])
    return graph.node("Gather", [graph.whole(x), rows], like.shape, like.dtype, axis=axis)


def _slice_at(graph, x, starts, sizes):
    """As jax does, a slice that would leave the array is moved inside."""
    places = []
    for start, side, size in zip(starts, x.shape, sizes):
        if side != size and start.array is None:
            raise Untranslatable("a slice whose place depends on the image")
        places.append(0 if side == size else int(np.clip(int(start.array), 0, side - size)))
    return graph.slice(x, places, [start + size for start, size in zip(places, sizes)])


def _pad(graph, eqn, x, value):
    config = eqn.params["padding_config"]
    if any(between for _, _, between in config):
        raise Untranslatable("padding between pixels")
    pads = graph.integers(*(low for low, _, _ in config), *(high for _, high, _ in config))
    return graph.node("Pad", [graph.whole(x), pads, value], _out(eqn).shape, x.dtype)


def _dot(graph, eqn, a, b):
    """A product of matrices; its sides: those that are shared, free ones of a, free ones of b."""
    (sum_a, sum_b), (shared_a, shared_b) = eqn.params["dimension_numbers"]
    like = _out(eqn)
    if not a.dtype == b.dtype == like.dtype:
        raise Untranslatable(f"a product of {a.dtype} and {b.dtype} summed in {like.dtype}")
    free_a = [i for i in range(len(a.shape)) if i not in (*sum_a, *shared_a)]
    free_b = [i for i in range(len(b.shape)) if i not in (*sum_b, *shared_b)]
    shared, rows, inner, columns = ([x.shape[i] for i in places] for x, places in (
        (a, shared_a), (a, free_a), (a, sum_a), (b, free_b)))
    a = graph.transpose(a, (*shared_a, *free_a, *sum_a))
    b = graph.transpose(b, (*shared_b, *sum_b, *free_b))
    if shared or not rows:               # else one matrix b multiplies any number of sides
        rows = [math.prod(rows)]
    a = graph.reshape(a, (*shared, *rows, math.prod(inner)))
    b = graph.reshape(b, (*shared, math.prod(inner), math.prod(columns)))
    product = graph.node("MatMul", [a, b], (*shared, *rows, math.prod(columns)), like.dtype)
    return graph.reshape(product, like.shape)


def _conv(graph, eqn, x, kernel):
    params, like = eqn.params, _out(eqn)
    numbers = params["dimension_numbers"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        raise Untranslatable("a transposed convolution")
    x, kernel = graph.transpose(x, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)
    begins, ends = zip(*params["padding"])
    y = graph.node("Conv", [x, kernel], [like.shape[i] for i in numbers.out_spec], like.dtype,
                   strides=params["window_strides"], dilations=params["rhs_dilation"],
                   group=params["feature_group_count"], pads=[*begins, *ends])
    return graph.transpose(y, np.argsort(numbers.out_spec).tolist())


_RULES = {
    "integer_pow": _integer_pow, "square": _square, "rsqrt": _chain("Sqrt", "Reciprocal"),
    "log1p": _log1p, "expm1": _expm1, "ne": _not_equal, "is_finite": _is_finite, "clamp": _clamp,
    "select_n": _select, "convert_element_type": _cast, "argmax": _arg_extreme,
    "argmin": _arg_extreme, "reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape,
    "transpose": _transpose, "concatenate": _concatenate, "stack": _stack, "split": _split,
    "unstack": _unstack,
    "slice": _slice, "dynamic_slice": _dynamic_slice, "gather": _gather, "pad": _pad,
    "dot_general": _dot, "conv_general_dilated": _conv, **dict.fromkeys(_REDUCTIONS, _reduce)}
