"""A CuPy whose arrays lie on the CPU, with the CUDA backend behind it, and no more forgiving than CuPy.

`DeviceArray` is NumPy's own and passes wherever NumPy's arrays do. These arrays never turn into NumPy's by
themselves, don't mix with them, have the functions, methods and keywords that are listed here (each of them
CuPy's; a new one is added when gpuconv needs it) and note where the program would wait for the GPU.

Stricter than CuPy: NumPy's functions and NumPy's indices are refused, which CuPy takes in part. Not shown:
rounding, memory order and speed of CuPy's own functions, which are NumPy's here; several devices; what goes
wrong only because a GPU is still at work, but for copies on streams (see streams.py).
"""

import operator
import sys
from contextlib import contextmanager
from operator import attrgetter
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from gpuconv.backends import dispatch
from gpuconv.backends.cuda import runtime
from host import streams
from host.runtime import Device, DeviceArray, HostRuntime, to_host

# What may be called, and with which keywords.
FUNCTIONS = {
    **dict.fromkeys(("exp", "log", "maximum", "sqrt", "square", "subtract", "tanh"), "dtype"),
    **dict.fromkeys(("arange", "ascontiguousarray", "full", "ones", "zeros", "zeros_like"), "dtype"),
    **dict.fromkeys(("concatenate", "stack"), "axis"),
    **dict.fromkeys(("moveaxis", "where"), ""),
    "copyto": "where",
    "pad": "mode",
}
METHODS = {
    **dict.fromkeys(("mean", "sum"), "axis dtype keepdims"),
    **dict.fromkeys(("all", "any", "argmax", "max", "min"), "axis keepdims"),
    **dict.fromkeys(("conj", "ravel", "reshape", "swapaxes", "transpose"), ""),
    "copy": "order",
}
OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


# Where the program waited for the GPU, since the stand-in was installed: what it asked for each time.
waits = []


class ndarray:
    """An array on the GPU; operators, methods and readers are added below."""

    __module__ = "cupy"
    __hash__ = None
    device = Device()

    def __init__(self, values):
        self._values = values

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, *args, **kwargs):
        raise TypeError(f"numpy.{ufunc.__name__} of a CuPy array, or an operator between NumPy's and CuPy's")

    def __array_function__(self, function, *args, **kwargs):
        raise TypeError(f"numpy.{function.__name__} of a CuPy array")

    @property
    def flags(self):
        """CuPy's flags, which say nothing about writing."""
        return SimpleNamespace(
            c_contiguous=self._values.flags.c_contiguous, f_contiguous=self._values.flags.f_contiguous
        )

    @property
    def T(self):
        return ndarray(self._values.T)

    @property
    def real(self):
        return ndarray(self._values.real)

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        index = _on_device(index if isinstance(index, tuple) else (index,))
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in index):
            waits.append("the size of what a mask selects")
        # The dots make a view of a single element, too.
        dotted = any(part is Ellipsis for part in index)
        return _to_cupy(self._values[index if dotted else (*index, ...)])

    def __setitem__(self, index, value):
        self._values[_on_device(index)] = _on_device(value)

    def get(self, stream=None, order="C", out=None, blocking=True):
        """Return a copy in NumPy; or let a stream write one to pinned memory."""
        assert order == "C"
        if stream is None and out is None and blocking:
            waits.append("get")
            streams.default.use(self._values)
            streams.default.synchronize()
            return to_host(self._values)
        _check_twins(self, out)
        assert isinstance(stream, streams.Stream) and not blocking
        stream.copy(streams.span(out), streams.span(self._values))
        return out

    def set(self, arr, stream=None):
        """Let a stream fill the array from pinned memory."""
        _check_twins(self, arr)
        assert isinstance(stream, streams.Stream)
        stream.copy(streams.span(self._values), streams.span(arr))

    def astype(self, dtype, order="K", copy=True):
        if not copy and order == "K" and self.dtype == dtype:
            return self
        return ndarray(self._values.astype(dtype, order=order))

    def view(self, dtype=None, array_class=None):
        assert array_class is None
        return ndarray(self._values.view(dtype))


def _check_twins(there, here):
    if type(here) is not np.ndarray or here.dtype != there.dtype:
        raise TypeError(f"{type(here)} of {here.dtype}, but the array on the GPU is of {there.dtype}")
    if here.shape != there.shape:
        raise ValueError(f"Shape mismatch: {here.shape} and {there.shape}")
    streams.check_pinned(here)


def _on_device(x):
    """Return what NumPy works on in CuPy's place: the arrays within, and no array of NumPy's own."""
    if isinstance(x, ndarray):
        return x._values
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return type(x)(map(_on_device, x)) if isinstance(x, tuple | list) else x


def _to_cupy(result):
    """Return a result as CuPy gives it: numbers, too, are arrays, of no axes."""
    if isinstance(result, np.ndarray | np.generic):
        return ndarray(np.asanyarray(result).view(DeviceArray))
    return result


def _taking(keywords, compute):
    """Return a function of arrays on the GPU that takes only these keywords."""

    def function(*arguments, **options):
        if unknown := options.keys() - set(keywords.split()):
            raise TypeError(f"{compute.__name__} of CuPy takes {keywords or 'no keywords'}, not {unknown}")
        return _to_cupy(
            compute(*map(_on_device, arguments), **{k: _on_device(v) for k, v in options.items()})
        )

    return function


OPERANDS = (ndarray, bool, int, float, complex, np.generic)


def _operator(apply, reflected=False, in_place=False):
    def function(self, other):
        if not isinstance(other, OPERANDS):
            raise TypeError(f"{apply.__name__}: Unsupported type {type(other)}")
        operands = (self._values, _on_device(other))
        result = apply(*(reversed(operands) if reflected else operands))
        return self if in_place else _to_cupy(result)

    return function


def _waiting(name, read):
    def reader(self):
        waits.append(name)
        return read(self._values)

    return reader


for _name in ("shape", "dtype", "ndim", "size", "strides", "itemsize", "nbytes"):
    setattr(ndarray, _name, property(attrgetter(f"_values.{_name}")))
for _name, _keywords in METHODS.items():
    setattr(ndarray, _name, _taking(_keywords, getattr(DeviceArray, _name)))
for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", _operator(getattr(operator, f"__{_name}__")))
    setattr(ndarray, f"__r{_name}__", _operator(getattr(operator, f"__{_name}__"), reflected=True))
    setattr(ndarray, f"__i{_name}__", _operator(getattr(operator, f"__i{_name}__"), in_place=True))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", _operator(getattr(operator, _name)))
for _name in ("neg", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _taking("", getattr(operator, _name)))
READERS = {"item": DeviceArray.item, "tolist": DeviceArray.tolist}
READERS |= {"__bool__": bool, "__float__": float, "__int__": int, "__repr__": repr}
for _name, _read in READERS.items():
    setattr(ndarray, _name, _waiting(_name, _read))


class _Runtime(HostRuntime):
    """The kernels on the CPU, for these arrays; in one order, as other tests run them in several."""

    def __init__(self):
        super().__init__()
        self.orders = 1

    def empty(self, shape, dtype):
        # CuPy's pool hands out memory that the stream may still have to use for what had it before.
        streams.default.use(values := super().empty(shape, dtype))
        return ndarray(values)

    def address(self, array):
        streams.default.use(array._values)
        return super().address(array._values)


def _module():
    cupy = ModuleType("cupy")
    memory = _Runtime()
    runtime.register(ndarray, memory)

    def empty_like(prototype, order="C", shape=None):
        assert order == "C"
        return memory.empty(prototype.shape if shape is None else shape, prototype.dtype)

    def empty(shape, dtype=float):
        return memory.empty(shape, dtype)

    def asarray(a, dtype=None, *, blocking=False):
        if blocking:
            waits.append("asarray")
        if isinstance(a, ndarray):
            return a if dtype is None else a.astype(dtype, copy=False)
        a = np.asarray(a, dtype)
        a = a.astype(a.dtype.newbyteorder("="), copy=False)
        array = memory.empty(a.shape, a.dtype)
        array._values[...] = a
        return array

    vars(cupy).update({name: _taking(keywords, getattr(np, name)) for name, keywords in FUNCTIONS.items()})
    vars(cupy).update(ndarray=ndarray, asarray=asarray, empty=empty, empty_like=empty_like)
    # What is asked before "cuda" is chosen.
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(is_hip=False, getDeviceCount=lambda: 1))
    streams.reset()
    cupy.cuda.Stream, cupy.cuda.alloc_pinned_memory = streams.Stream, streams.alloc_pinned_memory
    cupy.cuda.get_current_stream = lambda device_id=-1: streams.default
    return cupy


@contextmanager
def installed():
    """Let `import cupy` find the stand-in, and gpuconv a GPU; afterwards no trace of either is left."""
    with pytest.MonkeyPatch.context() as patch:
        known = set(dispatch.KINDS)
        patch.setattr(runtime, "_RUNTIMES", dict(runtime._RUNTIMES))
        cupy = _module()
        patch.setitem(sys.modules, "cupy", cupy)
        waits.clear()
        try:
            yield cupy
        finally:
            # Its own kinds alone: what else came meanwhile, such as Dask's stand-ins, is still imported.
            for kind in [
                kind for kind, name in dispatch.KINDS.items() if name == "CuPy" and kind not in known
            ]:
                del dispatch.KINDS[kind]
