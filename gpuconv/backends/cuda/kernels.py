"""From a `.cu` file to something that can be launched: specialise, describe its arguments, compile once.

A kernel is specialised when it is compiled: element types, window and vector width are `#define`d in front of
its text, so that the loops over taps unroll. What is left is passed as pointers and one struct, which is
declared in the source alone: its layout is read from there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cuda import sources
from gpuconv.geometry import Window

# Threads of a block. Enough to fill a multiprocessor with any register count that these kernels have.
THREADS = 256
# Blocks of a grid at most; each thread takes several items where there are more.
MAX_BLOCKS = 1 << 16
# Loops over a window's taps are not unrolled where the taps, or the taps of all places of a vector, are more:
# NVRTC took 3.5 to 5.7 s for 64 taps of 8 places, 1.4 to 2.2 s for 49 (sm_90).
UNROLLED_TAPS, UNROLLED = 64, 256

C_TYPES = {
    "float16": "__half",
    "float32": "float",
    "float64": "double",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
    "complex64": "Complex<float>",
    "complex128": "Complex<double>",
}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A source and what it is specialised to; made by `specialise`, which returns the same one again.

    Compared by identity, so that looking one up among the compiled costs nothing.
    """

    name: str
    defines: tuple[tuple[str, str], ...]

    @property
    def function(self) -> str:
        """Name of the `__global__` function."""
        return f"gpuconv_{self.name}"

    @cached_property
    def text(self) -> str:
        """The whole source that is compiled."""
        defines = [f"#define {name} {value}" for name, value in self.defines]
        half = ["#include <cuda_fp16.h>"] if any("__half" in value for _, value in self.defines) else []
        return "\n".join([*half, *defines, sources.common(), sources.read(self.name)])

    @cached_property
    def struct(self) -> np.dtype[Any]:
        """Layout of the kernel's struct of arguments, the last that its source declares."""
        index = dict(self.defines)["INDEX"]
        return structs(self.name, index)[-1]

    def arguments(self, **values: Any) -> np.ndarray[Any, Any]:
        """Return the struct, filled; a name more or less than it has is an error."""
        filled = np.zeros((), self.struct)
        _fill(filled, values)
        filled.setflags(write=False)
        return filled


def specialise(
    name: str, window: Window | None, dtype: Any, *, vector: int, wide: bool, **more: Any
) -> Kernel:
    """Return a kernel for this window (if it has one), element type, vector width and index width.

    `more` are further constants of this source, in capitals.
    """
    fixed = () if window is None else (window.kernel, window.stride, window.dilation)
    return _specialise(name, fixed, np.dtype(dtype).name, vector, wide, tuple(sorted(more.items())))


@cache
def _specialise(
    name: str, fixed: tuple[Any, ...], dtype: str, vector: int, wide: bool, more: tuple[Any, ...]
) -> Kernel:
    element = C_TYPES[dtype]
    defines = {
        "T": element,
        "ACC": "float" if element == "__half" else element,
        "INDEX": "long long" if wide else "int",
        "VECTOR": vector,
    }
    taps = prod(fixed[0]) if fixed else 1
    axes = len(fixed[0]) if fixed else 1
    for letter, numbers in zip("KSD", fixed or ((1,),) * 3, strict=True):
        for axis, number in enumerate((1,) * (3 - axes) + tuple(numbers)):
            defines[f"{letter}{axis}"] = number
    defines["AXES"] = axes
    defines |= dict(more)
    places = 1 if defines.get("CHANNELS_LAST") else vector
    defines["UNROLL"] = UNROLLED if taps <= UNROLLED_TAPS and taps * places <= UNROLLED else 1
    return Kernel(name, tuple((key, str(value)) for key, value in defines.items()))


def grid(items: int) -> int:
    """Return the number of blocks for this many items."""
    return max(1, min(MAX_BLOCKS, -(-items // THREADS)))


# Indices below this fit 32 bits.
NARROW = 2**31


def needs_wide(*extents: int) -> bool:
    """Tell whether indices up to these need 64 bits: with the grid's stride added, 31 aren't enough."""
    return max(extents, default=0) + MAX_BLOCKS * THREADS >= NARROW


def divisor(value: int, wide: bool) -> dict[str, int]:
    """Return the constants by which a kernel divides by this value (Granlund and Montgomery, 1994)."""
    if wide:
        return {"value": value, "multiplier": 0, "shift": 0}
    shift = max(value - 1, 0).bit_length()
    return {"value": value, "multiplier": (((1 << shift) - value) << 32) // value + 1, "shift": shift}


_STRUCT = re.compile(r"^struct (\w+) \{(.*?)^\};", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"(\w[\w ]*?)\s+(\w+(?:\[\d+\])?(?:\s*,\s*\w+(?:\[\d+\])?)*)$")
_SCALARS = {"int": "i4", "unsigned": "u4", "long long": "i8", "float": "f4", "double": "f8"}


@cache
def structs(name: str, index: str) -> list[np.dtype[Any]]:
    """Return the layouts of the structs that a source declares, in order."""
    known: dict[str, Any] = {**_SCALARS, "INDEX": _SCALARS[index]}
    own = []
    for text, mine in ((sources.common(), False), (sources.read(name), True)):
        for struct, body in _STRUCT.findall(text):
            fields: list[Any] = []
            for line in re.sub(r"//.*", "", body).split(";")[:-1]:
                match = _FIELD.fullmatch(line.strip())
                if match is None or match[1] not in known:
                    break  # not a struct of plain data
                for declared in match[2].split(","):
                    field, _, length = declared.strip().rstrip("]").partition("[")
                    fields.append(
                        (field, known[match[1]], (int(length),)) if length else (field, known[match[1]])
                    )
            else:
                known[struct] = np.dtype(fields, align=True)
                if mine:
                    own.append(known[struct])
    return own


def _fill(record: Any, values: Mapping[str, Any]) -> None:
    if set(values) != set(record.dtype.names):
        raise TypeError(f"the struct has {record.dtype.names}, not {tuple(values)}")
    for name, value in values.items():
        if isinstance(value, Mapping):
            _fill(record[name], value)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                _fill(record[name][i], item)
        else:
            record[name] = value
