"""C kernels for NumPy arrays (native/*.c): compiled for this machine when first used, and kept.

NumPy alone does everything, but neither a convolution of few channels nor a pooling fast: each of its
operations passes over memory again. The extra `fast` brings a C compiler (ziglang, a package of its own),
with which the kernels are compiled once, for this processor's own vectors, in seconds.
"""

import ctypes
import hashlib
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np

from gpuconv.backends.cpu import compiler, libraries
from gpuconv.config import config

Array = np.ndarray[Any, Any]

# Files of native/ that are compiled, each with what it includes. Every part has a library of its own for each
# dtype, as most programs need few of them, and a part takes one to three seconds.
PARTS = ("direct", "winograd", "depthwise", "pooling", "relu")

# Endings of functions' names. A processor of 32 bits may align doubles to 4 bytes, where `kernels` couldn't
# tell what C can take.
SUFFIXES = {
    dtype: suffix
    for dtype, suffix in ((np.dtype(np.float32), "f32"), (np.dtype(np.float64), "f64"))
    if dtype.alignment == dtype.itemsize
}


class Kernels:
    """The compiled functions of a part for one dtype, as attributes by the sources' names."""

    def __init__(self, library: ctypes.CDLL, part: str, dtype: np.dtype[Any], name: str) -> None:
        self.compiler = name
        self.path = library._name  # of its file, which is gone where it couldn't be kept
        self.addresses: dict[str, int | None] = {}  # of the functions' code
        for function_name, parameters in _functions(part).items():
            function = getattr(library, f"{function_name}_{SUFFIXES[dtype]}")
            # Addresses and numbers as wide: native/jobs.h takes no others.
            function.argtypes = [ctypes.c_void_p if "*" in each else ctypes.c_ssize_t for each in parameters]
            function.restype = None
            setattr(self, function_name, function)
            self.addresses[function_name] = ctypes.cast(function, ctypes.c_void_p).value

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(f"no kernel is called {name!r}")


def kernels(*arrays: Array, part: str = "direct") -> Kernels | None:
    """Return a part's kernels for these arrays, all of one dtype; None where none are there, or wanted."""
    dtype = arrays[0].dtype
    if dtype not in SUFFIXES or not config.compiled:
        return None
    for x in arrays:
        # Aligned: elements lie where C takes them to lie, and strides are whole numbers of them.
        if x.dtype != dtype or not x.flags.aligned:
            return None
    return _found[part, dtype] if (part, dtype) in _found else _load(part, dtype)


def why_not() -> str:
    """Return why there are no compiled kernels; "" where there are, or nobody asked for them yet."""
    return _why_not


def address(x: Array) -> int:
    """Return where an array's first element lies."""
    if not HEAD:
        return int(x.__array_interface__["data"][0])
    return _word.from_address(id(x) + HEAD).value or 0


_word = ctypes.c_void_p


def _head() -> int:
    """Return how far into an array's object its address stands, as NumPy's C API has it; 0 where not there.

    Read from there it takes 0.1 us. NumPy's own answers take 1 us, and a training step asks 50 times.
    """
    x, head = np.zeros(1), object.__basicsize__
    if platform.python_implementation() != "CPython" or type(x).__basicsize__ < head + ctypes.sizeof(_word):
        return 0
    return head if _word.from_address(id(x) + head).value == x.__array_interface__["data"][0] else 0


HEAD = _head()


def three(values: Sequence[int], fill: int) -> tuple[int, int, int]:
    """Return what one to three axes have as that of d, h and w, C's axes; the first are filled."""
    return (fill,) * (3 - len(values)) + tuple(values)  # type: ignore[return-value]


def five(steps: Sequence[int]) -> tuple[int, ...]:
    """Return an array's steps along n, c, and one to three axes as those of n, c, d, h and w."""
    return (*steps[:2], *three(steps[2:], 0))


def strides(x: Array) -> list[int]:
    """Return an array's steps along its axes, in elements."""
    return [step // x.itemsize for step in x.strides]


_lock = threading.Lock()
_found: dict[Any, Kernels | None] = {}  # by part and dtype, once somebody asked: None where there are none
_why_not = ""


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that only the parent has may hold it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _load(part: str, dtype: np.dtype[Any]) -> Kernels | None:
    """Find a part's kernels for a dtype, whatever that takes; say once what went wrong and what mends it."""
    global _why_not
    warning = ""
    with _lock:
        if (part, dtype) in _found:  # another thread was faster
            return _found[part, dtype]
        start = time.monotonic()
        try:
            by = compiler.find()
            if by is None:
                _why_not = "there is no compiler: pip install 'gpuconv[fast]' brings one"
                if "GPUCONV_CC" in os.environ:
                    _why_not = "GPUCONV_CC is empty"
            else:
                key = _key(by, part, dtype)
                library, trouble = libraries.load(key, partial(compiler.run, by, part, dtype.itemsize))
                others = bool(_found)  # whose trouble was the same
                _found[part, dtype] = Kernels(library, part, dtype, by.name)
                if trouble and not others:
                    warning = (
                        f"its compiled C kernels can't be kept ({trouble}), so every process compiles "
                        f"them again ({time.monotonic() - start:.0f} s for the first): set "
                        "GPUCONV_CACHE_DIR to a folder that can be written"
                    )
        except Exception as error:  # whatever it is, NumPy can do without
            _why_not = str(error) or type(error).__name__
            warning = (
                f"its C kernels can't be compiled, so NumPy computes, slower: {_why_not}. GPUCONV_CC names "
                "another C compiler; GPUCONV_COMPILED=0 does without"
            )
        if (part, dtype) not in _found:
            _found.update({each: _found.get(each) for each in product(PARTS, SUFFIXES)})
    if warning:
        warnings.warn(f"gpuconv: {warning}", RuntimeWarning, stacklevel=3)
    return _found[part, dtype]


def _key(by: compiler.Compiler, part: str, dtype: np.dtype[Any]) -> str:
    """Return a name for everything that a compiled library depends on."""
    told = repr((by.identity, compiler.flags(by, dtype.itemsize), compiler.processor(), _sources(part)))
    return hashlib.sha256(told.encode()).hexdigest()[:24]


@cache
def _sources(part: str) -> dict[str, str]:
    """Return a part's file and what it includes, by name; none where the package has none, as when frozen."""
    found: dict[str, str] = {}
    names = [f"{part}.c"]
    while names:
        name = names.pop()
        if name not in found and (compiler.SOURCES / name).is_file():
            found[name] = (compiler.SOURCES / name).read_text(encoding="utf-8")
            names += re.findall(r'^#include "(.*)"', found[name], re.MULTILINE)
    return found


def _functions(part: str) -> dict[str, list[str]]:
    """Return a part's kernels and the types of their parameters, read from the sources, so declared once."""
    text = "".join(_sources(part).values())
    found = re.findall(r"EXPORT void NAME\((\w+)\)\(([^)]*)\)", text)
    return {name: [part.strip() for part in parameters.split(",")] for name, parameters in found}


def fields(header: str, name: str) -> list[tuple[str, Any]]:
    """Return the fields of a header's struct, all of type ptrdiff_t, for a ctypes structure."""
    try:
        text = (compiler.SOURCES / header).read_text(encoding="utf-8")
    except OSError:  # and so no kernels that take it
        return []
    match = re.search(rf"typedef struct {{([^}}]*)}} {name};", text)
    if match is None:
        raise LookupError(f"native/{header} declares no struct {name}")
    body = re.sub(r"//[^\n]*", "", match[1]).replace("ptrdiff_t", "")
    found: list[tuple[str, Any]] = []
    for field in re.split(r"[,;]", body):
        if field.strip():
            word, _, count = field.strip().rstrip("]").partition("[")
            found.append((word, ctypes.c_ssize_t * int(count) if count else ctypes.c_ssize_t))
    return found
