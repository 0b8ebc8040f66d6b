"""An ONNX graph that grows, a tensor at a time: values, stored arrays, nodes, the checked file.

`onnx_rules.to_onnx` fills it from a jax function. Needs the package `onnx` (extra "onnx").
"""

import dataclasses

import numpy as np

_OPSET, _IR_VERSION = 18, 9        # what runtimes since 2023 read
_LARGEST = 2 ** 31 - 2 ** 24       # bytes of a file, protobuf's limit


class Untranslatable(ValueError):
    """A function that can not be an ONNX graph; the message names what in it."""


@dataclasses.dataclass(frozen=True)
class Value:
    """An array, or what broadcasts to it.

    shape, dtype: of the array; a side may be symbolic, a multiple of the batch. held: the shape of
    what is held, as many sides, 1 where it is broadcast. array: it, where it is known; name: of the
    tensor that holds it, where it is not.
    """
    shape: tuple
    dtype: np.dtype
    held: tuple
    array: np.ndarray | None = None
    name: str = ""

    @property
    def is_whole(self):
        """Whether it is held at its own shape."""
        return self.held == self.shape

    @property
    def is_known(self):
        """Whether it is held whole as an array."""
        return self.array is not None and self.is_whole


class Graph:
    """Nodes and stored arrays.

    Args:
      batch: the symbolic size. name: of the input. shape: of it, the batch first. dtype: of it.
    """

    def __init__(self, batch, name, shape, dtype):
        self._batch = batch
        self.input = Value(tuple(shape), np.dtype(dtype), tuple(shape), name=name)
        self._nodes, self._arrays, self._names = [], {}, {}

    def constant(self, array):
        """The value of an array that is known."""
        array = np.asarray(array)
        return Value(array.shape, array.dtype, array.shape, array=array)

    def integers(self, *numbers):
        """int64 [n], as operators take axes and shapes."""
        return self.constant(np.array(numbers, np.int64))

    def node(self, op, inputs, shape, dtype, *, held=None, name=None, **attributes):
        """The value that an operator makes of values."""
        name = name or f"v{len(self._nodes)}"
        self._nodes.append((op, [self._name_of(x) for x in inputs], name, attributes))
        shape = tuple(shape)
        return Value(shape, np.dtype(dtype), shape if held is None else held, name=name)

    def elementwise(self, op, inputs, like, **attributes):
        """The value of an operator on values that broadcast; like: its shape and dtype."""
        rank = len(like.shape)           # scalars stand beside arrays
        sides = zip(*((1,) * (rank - len(x.held)) + x.held for x in inputs))
        held = tuple(next((side for side in some if not _is_one(side)), 1) for some in sides)
        return self.node(op, inputs, like.shape, like.dtype, held=held, **attributes)

    def cast(self, value, like):
        import onnx
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(like.dtype))
        return self.elementwise("Cast", [value], like, to=kind)

    def whole(self, value):
        """The value held at its own shape."""
        if value.is_whole:
            return value
        if value.array is not None and all(isinstance(side, int) for side in value.shape):
            return self.constant(np.broadcast_to(value.array, value.shape))
        wanted = [1 if have == want else want for have, want in zip(value.held, value.shape)]
        parts = [self.integers(side) if isinstance(side, int) else self.size(side)
                 for side in wanted]
        sides = self.node("Concat", parts, (len(parts),), np.int64, axis=0)
        return self.node("Expand", [value, sides], value.shape, value.dtype)

    def size(self, side):
        """A symbolic side, int64 [1]: so many times the batch."""
        times = side // self._batch
        if not isinstance(times, int) or times * self._batch != side:
            raise Untranslatable(f"a side of {side}: only multiples of the batch are translated")
        batch = self.node("Shape", [self.input], (1,), np.int64, start=0, end=1)
        return batch if times == 1 else self.node(
            "Mul", [batch, self.integers(times)], (1,), np.int64)

    def reshape(self, value, shape):
        """The value in another shape of as many elements."""
        value, shape = self.whole(value), tuple(shape)
        if value.shape == shape:
            return value
        if value.is_known:
            return self.constant(value.array.reshape(shape))
        sides = [side if isinstance(side, int) else -1 for side in shape]
        if sides.count(-1) > 1:
            raise Untranslatable(f"a reshape to {shape}: only one side may depend on the batch")
        return self.node("Reshape", [value, self.integers(*sides)], shape, value.dtype)

    def transpose(self, value, order):
        value, order = self.whole(value), tuple(order)
        if order == tuple(range(len(order))):
            return value
        if value.is_known:
            return self.constant(np.transpose(value.array, order))
        return self.node("Transpose", [value], [value.shape[i] for i in order], value.dtype,
                         perm=order)

    def slice(self, value, starts, stops, steps=None):
        """value[start:stop:step, ...]."""
        value = self.whole(value)
        steps = steps or [1] * len(starts)
        axes = [i for i, (start, stop, step) in enumerate(zip(starts, stops, steps))
                if (start, stop, step) != (0, value.shape[i], 1)]
        if not axes:
            return value
        if value.is_known:
            return self.constant(value.array[tuple(map(slice, starts, stops, steps))])
        shape = [-(-(stop - start) // step) if i in axes else value.shape[i]
                 for i, (start, stop, step) in enumerate(zip(starts, stops, steps))]
        bounds = [self.integers(*(_bound(given[i], value.shape[i]) for i in axes))
                  for given in (starts, stops)]
        return self.node("Slice", [value, *bounds, self.integers(*axes),
                                   self.integers(*(steps[i] for i in axes))], shape, value.dtype)

    def concatenate(self, values, shape, axis):
        """Values one after the other; shape: of the answer."""
        values = [x for x in values if not (isinstance(x.shape[axis], int) and not x.shape[axis])]
        if len(values) == 1:
            return values[0]
        if all(x.is_known for x in values):
            return self.constant(np.concatenate([x.array for x in values], axis))
        return self.node("Concat", [self.whole(x) for x in values], shape, values[0].dtype,
                         axis=axis)

    def stack(self, values, axis):
        """Values side by side along a new axis."""
        shape = (*values[0].shape[:axis], 1, *values[0].shape[axis:])
        return self.concatenate([self.reshape(x, shape) for x in values],
                                (*shape[:axis], len(values), *shape[axis + 1:]), axis)

    def model(self, outputs, metadata):
        """The checked ModelProto of {name: value} and what they need.

        Args:
          outputs: values by the names that they get. metadata: {name: string}.

        Raises:
          Untranslatable: above 2 GB.
        """
        import onnx
        named = [self.node("Identity", [self.whole(x)], x.shape, x.dtype, name=name)
                 for name, x in outputs.items()]
        nodes, needed = [], {value.name for value in named}
        for op, inputs, name, attributes in reversed(self._nodes):
            if name in needed:
                needed.update(inputs)
                nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        arrays = {name: array for name, array in self._arrays.items() if name in needed}
        size = sum(array.nbytes for array in arrays.values())
        if size > _LARGEST:
            raise Untranslatable(f"{size / 2 ** 30:.1f} GB of parameters are more than an ONNX "
                                 "file can hold")
        graph = onnx.helper.make_graph(
            nodes[::-1], "graph", [_declared(self.input)], [_declared(x) for x in named],
            [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()])
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], producer_name="fs4_jax",
            ir_version=_IR_VERSION)
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _name_of(self, value):
        """The tensor that holds a value; a known array is stored, equal ones once."""
        if value.array is None:
            return value.name
        array = np.ascontiguousarray(value.array)
        key = (array.dtype.str, value.array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = f"c{len(self._names)}"
            self._arrays[self._names[key]] = array.reshape(value.array.shape)
        return self._names[key]


def _declared(value):
    import onnx
    sides = [side if isinstance(side, int) else "batch" for side in value.shape]
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(value.name, kind, sides)


def _bound(index, side):
    """An index as operators take it; one that depends on the batch is counted from the end."""
    if isinstance(index, int):
        return index
    behind = index - side
    if not isinstance(behind, int):
        raise Untranslatable(f"the place {index} of {side}")
    return behind or np.iinfo(np.int64).max


def _is_one(side):
    return isinstance(side, int) and side == 1
