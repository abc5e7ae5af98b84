"""From an argument to an array that is safe to work on, and from its type to the backend that works on it."""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
INEXACT = (*FLOATS, np.dtype(np.complex64), np.dtype(np.complex128))


# NumPy's own, in this machine's order of bytes.
PLAIN = frozenset(np.dtype(letter) for letter in "?bBhHiIlLqQefdFD")


def backend_of(op: str, **arrays: Any) -> ModuleType:
    """Return the backend for these arrays, all of one kind.

    Raises
    ------
    TypeError
        For anything that is not an array of a known kind, and for kinds mixed in one call.
    """
    for value in arrays.values():
        if type(value) is not np.ndarray:
            break
    else:  # the usual case of small arrays, which feel every microsecond
        return _backend("cpu")
    kinds = {name: _kind(op, name, value) for name, value in arrays.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} is a {kind} array" for name, kind in kinds.items())
        raise TypeError(f"{op}: arrays must all be NumPy's or all be CuPy's, but {listed}")
    kind = next(iter(kinds.values()))
    if kind == "NumPy":
        return _backend("cpu")
    if kind in (UNMADE, DASK):
        return _backend(kind)
    cuda = _backend("cuda")
    cuda.check_device(op, arrays)
    return cuda


@cache
def _backend(name: str) -> ModuleType:
    return importlib.import_module(f"gpuconv.backends.{name}")


def given(**arrays: Any) -> dict[str, Any]:
    """Return those of some optional arrays that were given."""
    return {name: x for name, x in arrays.items() if x is not None}


# The kinds of arrays without values: of none ever, and of those that Dask computes.
UNMADE, DASK = "unmade", "dask"
# Array types by kind. CuPy's joins them when first seen, so that nothing imports CuPy before.
KINDS: dict[type, str] = {np.ndarray: "NumPy"}


def _kind(op: str, name: str, value: Any) -> str:
    kind = KINDS.get(type(value))
    return kind if kind is not None else _kind_of_new_type(op, name, value)


def _kind_of_new_type(op: str, name: str, value: Any) -> str:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array; fill it first: {name}.filled(0)")
    if isinstance(value, np.ndarray):
        return "NumPy"
    cls = type(value)
    if cls.__name__ == "ndarray" and cls.__module__.partition(".")[0] == "cupy":
        KINDS[cls] = "CuPy"
        return "CuPy"
    # not for a result, which the user would then not see
    convertible = isinstance(value, list | tuple | np.generic) and not name.startswith("out")
    hint = f"; numpy.asarray({name}) makes one" if convertible else ""
    if is_dask(value):  # where no graph is laid out
        hint = f"; {name}.compute() makes one"
    raise TypeError(
        f"{op}: {name} must be a NumPy or CuPy array, not {cls.__module__}.{cls.__qualname__}{hint}"
    )


def is_dask(value: Any) -> bool:
    """Tell whether a value is a Dask array, without importing Dask."""
    return any(
        kind.__name__ == "Array" and kind.__module__.startswith("dask.array") for kind in type(value).__mro__
    )


def check_rank(op: str, name: str, x: Any, layout: str) -> None:
    """Check the number of axes; `layout` names them, as in "[N, C, H, W]"."""
    ndim = layout.count(",") + 1
    if x.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} axes {layout}, not {x.ndim} (shape {x.shape})")


def check_shape(op: str, name: str, got: tuple[int, ...], must: tuple[int, ...], because: str) -> None:
    """Check a shape that the other arguments determine."""
    if got != must:
        raise ValueError(f"{op}: {name} has shape {got}, but {because} it must be {must}")


def check_kind(op: str, name: str, x: Any, kinds: str) -> None:
    """Check that x's dtype is of one of these kinds (NumPy's letters: b, i, u, f, c)."""
    if x.dtype.kind in kinds and x.dtype in PLAIN:
        return  # naming a dtype takes microseconds
    if x.dtype.kind not in kinds or x.dtype.name == "bfloat16":
        names = {"b": "bool", "i": "integers", "u": "unsigned integers", "f": "floats", "c": "complex"}
        listed = ", ".join(names[k] for k in kinds)
        raise TypeError(f"{op}: {name} has dtype {x.dtype.name}; it must be one of: {listed}")


def float_result(op: str, **arrays: Any) -> np.dtype[Any]:
    """Return the dtype that NumPy promotes these arrays to; it must be float16, float32 or float64."""
    return _result(op, FLOATS, arrays)


def inexact_result(op: str, **arrays: Any) -> np.dtype[Any]:
    """Return the dtype that NumPy promotes these arrays to; it must be one of `float_result`, or complex."""
    return _result(op, INEXACT, arrays)


def _result(op: str, allowed: tuple[np.dtype[Any], ...], arrays: dict[str, Any]) -> np.dtype[Any]:
    dtypes: set[np.dtype[Any]] = {x.dtype for x in arrays.values()}
    if len(dtypes) == 1 and (same := dtypes.pop()) in allowed:
        return same  # the usual case; naming a dtype, below, takes microseconds
    must = ", ".join(dtype.name for dtype in allowed[:-1]) + f" or {allowed[-1].name}"
    for name, x in arrays.items():
        if x.dtype.name == "bfloat16":
            raise TypeError(f"{op}: {name} is bfloat16, which is not supported; {name}.astype(numpy.float32)")
        if x.dtype.kind not in ("biufc" if allowed is INEXACT else "biuf"):
            raise TypeError(f"{op}: {name} has dtype {x.dtype.name}; it must be {must}")
    result = np.result_type(*(x.dtype for x in arrays.values())).newbyteorder("=")
    if result not in allowed:
        listed = ", ".join(f"{name} is {x.dtype.name}" for name, x in arrays.items())
        raise TypeError(
            f"{op}: the arrays promote to {result.name} ({listed}), "
            f"but the result must be {must}; convert one with .astype(numpy.float32)"
        )
    return result


def check_inexact(op: str, name: str, x: Any) -> None:
    """Check that x is of a dtype that `inexact_result` allows, integers excepted: what a mean keeps."""
    if x.dtype not in INEXACT:
        check_kind(op, name, x, "fc")
        inexact_result(op, **{name: x})


def result(
    op: str,
    backend: ModuleType,
    out: Any,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    name: str = "out",
    **inputs: Any,
) -> Any:
    """Return the array that a result is written to: the user's `out`, or a new one where the inputs lie.

    Parameters
    ----------
    op
        The public function's name, for the messages.
    backend
        That of the inputs.
    out
        What the user gave, or None.
    shape, dtype
        Those of the result.
    name
        What the user knows `out` by.
    **inputs
        The arrays that are read (or written besides), None for one not given but the first; `out` must share
        no element with them.

    Raises
    ------
    TypeError
        Where out is no array, one of another kind than the inputs, or of another dtype.
    ValueError
        Where its shape is wrong, it is read-only, on another GPU, or shares memory with an input.
    """
    if out is None:
        return backend.arrays.empty(shape, dtype, next(iter(inputs.values())))
    inputs = given(**inputs)
    backend_of(op, **inputs, **{name: out})
    if out.dtype != dtype:
        # not their names, which leave out the order of bytes
        raise TypeError(f"{op}: {name} has dtype {out.dtype}, but the result is {np.dtype(dtype)}")
    check_shape(op, name, out.shape, shape, "to hold the result")
    if not getattr(out.flags, "writeable", True):  # CuPy's are always
        raise ValueError(f"{op}: {name} is read-only")
    if _overlaps_itself(out):
        raise ValueError(f"{op}: {name} overlaps itself (shape {out.shape}, strides {out.strides})")
    for other, x in inputs.items():
        if _overlap(backend, out, x):
            raise ValueError(f"{op}: {name} shares memory with {other}; it must have its own")
    return out


# Steps until the search for a shared element is given up; a slice of channels beside another takes a few.
SEARCH = 10_000


def _overlap(backend: ModuleType, a: Any, b: Any) -> bool:
    """Tell whether two arrays share an element; where that takes too long to find out, say that they do."""
    if not (a.size and b.size):
        return False
    here, there = backend.arrays.extent(a), backend.arrays.extent(b)
    try:
        return np.shares_memory(here, there, SEARCH)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(x: Any) -> bool:
    """Tell whether elements of x share memory, as a broadcast array's: each axis must step over the inner."""
    if not x.size:
        return False
    reach = x.itemsize
    for step, n in sorted((abs(step), n) for step, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if step < reach:
            return True
        reach += step * (n - 1)
    return False


def several(op: str, out: Any, *names: str) -> tuple[Any, ...]:
    """Return the user's `out` of a function with several results, a tuple; None for what is not given.

    Raises
    ------
    TypeError
        Where it is no tuple of so many.
    """
    if out is None:
        return (None,) * len(names)
    if not isinstance(out, tuple) or len(out) != len(names):
        listed = ", ".join(names)
        raise TypeError(f"{op}: out must be a tuple ({listed}), with None for what is not given")
    return out


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of a number's magnitude: that of a complex number's parts, else the same."""
    found: np.dtype[Any] = REAL.get(dtype, dtype)
    return found


REAL: dict[Any, np.dtype[Any]] = {
    np.dtype(f"{order}c{2 * size}"): np.dtype(f"{order}f{size}") for order in "<>" for size in (4, 8)
}


def accumulator(dtype: Any) -> np.dtype[Any]:
    """Return the dtype to sum in: float16 is summed in float32."""
    return np.promote_types(dtype, np.float32)


def array_module(x: Any) -> ModuleType:
    """Return the module whose functions work on this array: numpy, or cupy once its arrays are seen."""
    if isinstance(x, np.ndarray | np.generic):
        return np
    return importlib.import_module(type(x).__module__.partition(".")[0])


def to_device(x: Any, device: str) -> Any:
    """Return an array on "cpu" or "cuda" (CuPy's current device): itself where it is there, else a copy.

    Raises
    ------
    RuntimeError
        For "cuda" where it can't be used; the message says what is missing.
    """
    if device == "cpu":
        return to_host(x)
    from gpuconv.backends.cuda import runtime

    return runtime.to_gpu(x)


def beside(x: Any, value: Any) -> Any:
    """Return a value, perhaps an array of another kind or a tensor, as an array where x is.

    Raises
    ------
    TypeError
        For a masked array, whose mask would be lost.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("it is a masked array; fill it first: .filled(0)")
    if type(value).__module__.partition(".")[0] == "cupy":
        value = to_host(value)
    return array_module(x).asarray(value)


def check_gpu() -> None:
    """Raise RuntimeError where there is no usable GPU, saying what is missing and what mends it."""
    from gpuconv.backends.cuda import runtime

    runtime.check_installed()


def to_host(x: Any) -> Any:
    """Return an array's values as a NumPy array: itself, or a CuPy array's copy, which waits for the GPU."""
    return x if array_module(x) is np else x.get()
