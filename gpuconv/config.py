"""Settings that hold for every call: a GPU operation's memory, how float32 is multiplied, what profilers see.

Set one for the whole process by assignment, or for a block of code (of this thread or task only) by `with`.

Examples
--------
>>> import gpuconv
>>> gpuconv.config.fp32_precision
'ieee'
>>> with gpuconv.config(workspace_limit=1 << 20):
...     gpuconv.config.workspace_limit
1048576
>>> gpuconv.config.workspace_limit is None
True
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

LEAST_WORKSPACE = 1 << 20
PRECISIONS = ("ieee", "3xtf32", "tf32")
ALGORITHMS = ("auto", "gemm", "direct", "implicit", "winograd")
RANGES = ("none", "layers", "operations", "stages")  # each with those before it


class Config:
    """The settings.

    Attributes
    ----------
    workspace_limit : int or None, default None
        Bytes of workspace that one operation on a GPU may take beside its arguments and its result, at least
        1 MiB. None: half of the GPU's L2 cache, or 16 MiB where that is more. Results for different limits
        may differ by rounding. The copy of a strided dy or w, or of an argument of another dtype, isn't
        counted.
    fp32_precision : "ieee", "3xtf32" or "tf32", default "ieee"
        How float32 is multiplied on a GPU: as IEEE 754 says; or by tensor cores with factors rounded to 10
        bits of mantissa ("tf32"), which can be several times as fast; or as three such products of what is
        kept of a factor and what is left of it ("3xtf32"), nearly as exact as float32, though infinities, and
        what rounds to one, become NaN. Sums are float32 in all. What has no kernel for "3xtf32" (all but
        "implicit", below) computes as "ieee". Ignored elsewhere.
    ranges : "none", "layers", "operations" or "stages", default "stages"
        What a profiler that listens to NVTX sees, each with those before it: layers and the steps of
        training; public operations with their shapes; an operation's kernels, matrix products and copies.
        All by default, as ranges cost nothing where no profiler listens. The environment variable
        ``GPUCONV_RANGES`` gives another default.
    compiled : bool, default True
        Whether NumPy arrays may be worked on by the C kernels of the extra ``fast``, where it is installed;
        False keeps to NumPy alone. Results differ by rounding. The environment variable
        ``GPUCONV_COMPILED=0`` makes False the default.
    algorithm : "auto", "gemm", "direct", "implicit" or "winograd", default "auto"
        How arrays are convolved; `gpuconv.explain` tells what "auto" would choose. "gemm": columns,
        multiplied by BLAS. "direct": from the image itself; on a CPU by C kernels, on a GPU by CUDA kernels,
        for groups of up to 8 channels ("auto" takes these where each group has one input channel).
        "implicit", on a GPU: matrix products without columns in memory, by kernels of our own, for float32
        and float64, and the only one for "3xtf32". "winograd": 3x3 kernels with stride 1, on a CPU in a
        quarter of the multiplications, which costs a digit of accuracy (float64 only when it is asked for
        here); on a GPU in 16 of 36, for float32 with "ieee". On a GPU, "auto" takes neither of these two.
        What an algorithm can't compute is computed as by "auto".
    autotune : bool, default False
        Whether "auto" goes by measurements on a GPU: the first call of a convolution or gradient on a shape
        tries all algorithms, several times each, and waits for them; what was the fastest is taken from then
        on, by later processes, too. Results differ by rounding from those of another algorithm: equal calls
        give equal bits as long as what was measured is remembered. Ignored elsewhere, and, until something is
        remembered, while a CUDA graph is captured.
    """

    __slots__ = ("_here", "_values")

    def __init__(self) -> None:
        self._values: dict[str, Any] = {
            "workspace_limit": None,
            "fp32_precision": "ieee",
            "ranges": _ranges_at_first(),
            "algorithm": "auto",
            "compiled": os.environ.get("GPUCONV_COMPILED", "1") != "0",
            "autotune": False,
        }
        self._here: ContextVar[Mapping[str, Any] | None] = ContextVar("gpuconv.config", default=None)

    @property
    def workspace_limit(self) -> int | None:
        """Bytes of workspace, or None."""
        limit: int | None = self._get("workspace_limit")
        return limit

    @workspace_limit.setter
    def workspace_limit(self, value: int | None) -> None:
        self._values["workspace_limit"] = _workspace_limit(value)

    @property
    def fp32_precision(self) -> str:
        """How float32 is multiplied: "ieee", "3xtf32" or "tf32"."""
        return str(self._get("fp32_precision"))

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        self._values["fp32_precision"] = _fp32_precision(value)

    @property
    def ranges(self) -> str:
        """What a profiler sees: "none", "layers", "operations" or "stages"."""
        return str(self._get("ranges"))

    @ranges.setter
    def ranges(self, value: str) -> None:
        self._values["ranges"] = _ranges(value)

    @property
    def algorithm(self) -> str:
        """How arrays are convolved: "auto", "gemm", "direct", "implicit" or "winograd"."""
        return str(self._get("algorithm"))

    @algorithm.setter
    def algorithm(self, value: str) -> None:
        self._values["algorithm"] = _algorithm(value)

    @property
    def compiled(self) -> bool:
        """Whether C kernels may work on NumPy arrays."""
        return bool(self._get("compiled"))

    @compiled.setter
    def compiled(self, value: bool) -> None:
        self._values["compiled"] = _compiled(value)

    @property
    def autotune(self) -> bool:
        """Whether the fastest algorithm on a GPU is measured."""
        return bool(self._get("autotune"))

    @autotune.setter
    def autotune(self, value: bool) -> None:
        self._values["autotune"] = _autotune(value)

    def _get(self, name: str) -> Any:
        here = self._here.get()
        return self._values[name] if here is None or name not in here else here[name]

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as they are here, by name; `config(**settings)` makes them so elsewhere."""
        return {name: self._get(name) for name in _CHECKS}

    @contextmanager
    def __call__(self, **settings: Any) -> Iterator[None]:
        """Use these settings within a `with` block.

        Raises
        ------
        TypeError
            For a setting that doesn't exist.
        ValueError
            For a value it can't have.
        """
        for name in settings:
            if name not in _CHECKS:
                raise TypeError(f"config: there is no setting {name!r}; there are {', '.join(_CHECKS)}")
        checked = {name: _CHECKS[name](value) for name, value in settings.items()}
        token = self._here.set({**(self._here.get() or {}), **checked})
        try:
            yield
        finally:
            self._here.reset(token)

    def __repr__(self) -> str:
        return f"gpuconv.config({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"


def _workspace_limit(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"config: workspace_limit must be a number of bytes or None, not {value!r}")
    if (limit := int(value)) < LEAST_WORKSPACE:
        raise ValueError(
            f"config: workspace_limit must be at least {LEAST_WORKSPACE} bytes (1 MiB), not {limit}"
        )
    return limit


def _fp32_precision(value: Any) -> str:
    if not isinstance(value, str) or value not in PRECISIONS:
        raise ValueError(f'config: fp32_precision must be "ieee", "3xtf32" or "tf32", not {value!r}')
    return str(value)


def _ranges(value: Any) -> str:
    if not isinstance(value, str) or value not in RANGES:
        raise ValueError(f'config: ranges must be "none", "layers", "operations" or "stages", not {value!r}')
    return str(value)


def _algorithm(value: Any) -> str:
    if not isinstance(value, str) or value not in ALGORITHMS:
        raise ValueError(
            f'config: algorithm must be "auto", "gemm", "direct", "implicit" or "winograd", not {value!r}'
        )
    return str(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"config: {name} must be True or False, not {value!r}")
    return value


_compiled, _autotune = partial(_flag, "compiled"), partial(_flag, "autotune")


def _ranges_at_first() -> str:
    """Return what the environment says, or the default; a wrong word is no reason for an import to fail."""
    try:
        return _ranges(os.environ.get("GPUCONV_RANGES", "stages"))
    except ValueError as error:
        with suppress(RuntimeWarning):  # where warnings are errors
            warnings.warn(f'GPUCONV_RANGES: {error}; "stages" is used', RuntimeWarning, stacklevel=2)
        return "stages"


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "workspace_limit": _workspace_limit,
    "fp32_precision": _fp32_precision,
    "ranges": _ranges,
    "compiled": _compiled,
    "algorithm": _algorithm,
    "autotune": _autotune,
}

config = Config()
