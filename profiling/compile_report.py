"""Compile the CUDA kernels for every architecture and show what each takes of a multiprocessor. Needs no GPU.

    python profiling/compile_report.py                     # four minutes on two cores
    python profiling/compile_report.py --only col2im --all # one kernel, each specialisation in full
    python profiling/compile_report.py --arch sm_89 --out resources.txt
    python profiling/compile_report.py --kept outcomes.json # only what changed since it wrote that file

Which specialisations: those that the backend itself launches on every line of conv_shapes.csv and
pool_shapes.csv, in both layouts and three dtypes, and some that no line there reaches. All are compiled for
sm_90, and for each other architecture one of every kernel, element and layout, or all with `--everywhere`.

Exits with 1 where a kernel doesn't compile, has a stack frame or spills registers, 2 where NVRTC is missing.
"""

import argparse
import csv
import ctypes
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import count
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout, not another installed one

from gpuconv.backends import unmade  # noqa: E402
from gpuconv.backends.cuda import adaptive, columns, convolution, planning, pooling, runtime, sources  # noqa: E402
from gpuconv.backends.cuda.kernels import C_TYPES, Kernel  # noqa: E402
from gpuconv.backends.dispatch import real_dtype  # noqa: E402
from gpuconv.config import config  # noqa: E402
from gpuconv.files import write_whole  # noqa: E402
from gpuconv.geometry import Window, sliding_window  # noqa: E402

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
WHOLE = "sm_90"
DTYPES = tuple(map(np.dtype, ("float16", "float32", "float64")))


SHARED_CONSTANTS = {"T", "ACC", "INDEX", "VECTOR", "AXES", "UNROLL", "CHANNELS_LAST"} | {
    f"{letter}{axis}" for letter in "KSD" for axis in range(3)
}


class Specialisation(NamedTuple):
    """A kernel, and the bytes of dynamic shared memory that it is launched with."""

    kernel: Kernel
    shared: int

    @property
    def element(self) -> str:
        """NumPy's name of T."""
        c_type = dict(self.kernel.defines)["T"]
        return next(name for name, known in C_TYPES.items() if known == c_type)

    @property
    def layout(self) -> str:
        """Which of the two it is for; empty where it knows none."""
        return {"0": "first", "1": "last"}.get(dict(self.kernel.defines).get("CHANNELS_LAST", ""), "")

    @property
    def window(self) -> str:
        """Kernel, stride and dilation."""
        defines = dict(self.kernel.defines)
        axes = range(3 - int(defines["AXES"]), 3)
        k, s, d = ("x".join(defines[f"{letter}{axis}"] for axis in axes) for letter in "KSD")
        return f"{k} s{s}" + (f" d{d}" if set(d) - set("1x") else "")

    @property
    def vector(self) -> int:
        """Elements that one access moves."""
        return int(dict(self.kernel.defines)["VECTOR"])

    @property
    def unrolled(self) -> int:
        """Taps that the compiler sees one by one."""
        defines = dict(self.kernel.defines)
        return 1 if defines["UNROLL"] == "1" else prod(int(defines[name]) for name in ("K0", "K1", "K2"))

    @property
    def more(self) -> str:
        """Constants that only this kernel has."""
        return " ".join(
            f"{name}={value}" for name, value in self.kernel.defines if name not in SHARED_CONSTANTS
        )

    @property
    def group(self) -> tuple[str, str, str]:
        """Kernel, element and layout: those of a group are alike but for window, vector and index width."""
        return self.kernel.name, self.element, self.layout

    @property
    def cells(self) -> tuple[str, ...]:
        """What tells it from others, for a table."""
        index = "64" if dict(self.kernel.defines)["INDEX"] == "long long" else "32"
        return (*self.group, str(self.vector), index, self.window, self.more)

    @property
    def variant(self) -> str:
        """What tells it from others of the same kernel and element, as words."""
        layout, vector, index, window, more = self.cells[2:]
        channels = f"channels {layout}, " if layout else ""
        return f"{channels}vector {vector}, {index}-bit indices, window {window}{more and f', {more}'}"

    def __str__(self) -> str:
        return f"{self.kernel.name}, {self.element}, {self.variant}"


def specialisations() -> list[Specialisation]:
    """Return the representative set, each source text once, always in the same order."""
    found: dict[str, Specialisation] = {}

    def add(kernel: Kernel, shared: int) -> None:
        """Note a kernel, by its text, with the most shared memory that it is launched with."""
        known = found.get(kernel.text)
        found[kernel.text] = Specialisation(kernel, max(shared, known.shared if known else 0))

    for what, arguments in planning.noted(call_everything):
        if what == "launch":
            add(arguments["kernel"], arguments["shared"])
    groups: dict[tuple[str, ...], list[Specialisation]] = {}
    for each in found.values():
        groups.setdefault(each.group, []).append(each)
    # Of each group: 64-bit indices where registers are scarcest, what rectifies real numbers, and the vector
    # widths that odd pitches and addresses lead to.
    for group in groups.values():
        widest = max(group, key=lambda each: (each.vector, each.unrolled))
        add(_changed(widest.kernel, INDEX="long long"), widest.shared)
        if "RELU" in dict(widest.kernel.defines) and np.dtype(widest.element).kind != "c":
            add(_changed(widest.kernel, RELU="1"), widest.shared)
        have = {each.vector for each in group}
        for vector in (1, 2, 4, 8):
            if vector < widest.vector and vector not in have:
                add(_changed(widest.kernel, VECTOR=str(vector)), widest.shared)
    return list(found.values())


def _changed(kernel: Kernel, **defines: str) -> Kernel:
    return replace(kernel, defines=tuple((name, defines.get(name, value)) for name, value in kernel.defines))


def call_everything() -> None:
    """Call every operation on the shared shapes, and on windows and dtypes unlike theirs."""
    for channels_last in (False, True):
        for dtype in DTYPES:
            for s in _lines("conv_shapes.csv"):
                window = sliding_window(
                    *(
                        "conv2d",
                        (s["h"], s["w"]),
                        (s["kh"], s["kw"]),
                        s["stride"],
                        s["padding"],
                        s["dilation"],
                    ),
                    groups=s["groups"],
                )
                _convolve(window, s["c_in"], s["c_out"], dtype, channels_last)
                if dtype == np.float32 and window.groups < s["c_in"]:
                    for algorithm, precision in BESIDE_COLUMNS:
                        with config(algorithm=algorithm, fp32_precision=precision):
                            _convolve(window, s["c_in"], s["c_out"], dtype, channels_last, images=s["n"])
            for s in _lines("pool_shapes.csv"):
                window = sliding_window("pool", (s["h"], s["w"]), s["kernel"], s["stride"], s["padding"])
                for kind in pooling.kernels(window, dtype):  # gpu_check.py compares them
                    with pooling.by(kind):
                        _pool(window, s["c"], dtype, channels_last)
            _convolve(TRANSPOSED, 16, 16, dtype, channels_last, transposed=True)
            for algorithm in ("direct", "implicit"):
                with config(algorithm=algorithm):
                    _convolve(SMALL_GROUPS, 16, 16, dtype, channels_last, transposed=True)
            with config(algorithm="implicit"):
                _convolve(FEW_PLACES, 256, 256, dtype, channels_last, transposed=True)
        for window in OTHER_WINDOWS:  # float16 takes most registers: eight sums a thread
            _convolve(window, 16, 16, np.dtype(np.float16), channels_last)
            _pool(window, 16, np.dtype(np.float16), channels_last)
            _convolve(replace(window, groups=16), 16, 16, np.dtype(np.float32), channels_last)
        window = sliding_window("small", (16, 16), 3, 1, 1)
        for dtype in map(np.dtype, (np.uint8, np.int64)):
            _columns(window, 16, dtype, channels_last)
            _max_pool(window, 16, dtype, channels_last)
            _adaptive(16, dtype, channels_last)
        complex_dtypes = tuple(map(np.dtype, (np.complex64, np.complex128)))
        for dtype in complex_dtypes:
            _convolve(window, 16, 16, dtype, channels_last, transposed=True)
            _avg_pool(window, 16, dtype, channels_last)
        for dtype in (*DTYPES, *complex_dtypes):
            _adaptive(16, dtype, channels_last)
            _lp_pool(window, 16, dtype, channels_last)


def _lines(file: str) -> Iterator[dict[str, Any]]:
    with open(HERE / file, newline="") as lines:
        for line in csv.DictReader(lines):
            yield {key: int(value) if value.isdigit() else value for key, value in line.items()}


# What has to be asked for, and how it multiplies float32.
BESIDE_COLUMNS = (("implicit", "ieee"), ("implicit", "3xtf32"), ("implicit", "tf32"), ("winograd", "ieee"))

OTHER_WINDOWS = (
    sliding_window("1-D", (96,), 5, 2, 2),
    sliding_window("3-D", (8, 16, 16), (2, 3, 3), 1, 1),
    sliding_window("3-D, 125 taps, dilated", (12, 16, 16), 5, 1, 2, (1, 2, 2)),
    sliding_window("dilated, strided", (32, 32), 3, 2, 2, 2),
    sliding_window("256 taps", (32, 32), 16, 8, 4),  # the mask is no longer a byte
)


TRANSPOSED = sliding_window("transposed", (32, 32), 4, 2, 1)
SMALL_GROUPS = sliding_window("4 groups", (32, 32), 3, 1, 1, groups=4)
FEW_PLACES = sliding_window("7x7", (7, 7), 3, 1, 1)  # so few that sums are cut into parts


def _unmade(
    c: int, sizes: tuple[int, ...], dtype: np.dtype[Any], channels_last: bool, images: int = 2
) -> unmade.Unmade:
    """Return images: most kernels are the same for any number that needs no 64-bit indices."""
    return unmade.empty((images, *sizes, c) if channels_last else (images, c, *sizes), dtype)


def _convolve(
    window: Window,
    c_in: int,
    c_out: int,
    dtype: np.dtype[Any],
    channels_last: bool,
    *,
    transposed: bool = False,
    images: int = 2,
) -> None:
    x, y = (
        _unmade(c, sizes, dtype, channels_last, images)
        for c, sizes in ((c_in, window.in_size), (c_out, window.out_size))
    )
    cg = c_in // window.groups
    w = unmade.empty((*window.kernel, cg, c_out) if channels_last else (c_out, cg, *window.kernel), dtype)
    b = unmade.empty((c_out,), dtype)
    convolution.forward(x, w, b, y, window, channels_last, None if dtype.kind == "c" else "relu")
    convolution.input_grad(
        y, w, unmade.empty((c_in,), dtype) if transposed else None, x, window, channels_last
    )
    convolution.weight_grad(y, x, w, window, channels_last)
    convolution.bias_grad(y, b, channels_last)
    _columns(window, c_in, dtype, channels_last)


def _columns(window: Window, c: int, dtype: np.dtype[Any], channels_last: bool) -> None:
    x = _unmade(c, window.in_size, dtype, channels_last)
    places, rows = window.places, c * window.taps
    col = unmade.empty((2, places, rows) if channels_last else (2, rows, places), dtype)
    columns.im2col(x, col, window, channels_last)
    columns.col2im(col, x, window, channels_last)


def _pool(window: Window, c: int, dtype: np.dtype[Any], channels_last: bool) -> None:
    _max_pool(window, c, dtype, channels_last)
    _avg_pool(window, c, dtype, channels_last)


def _avg_pool(window: Window, c: int, dtype: np.dtype[Any], channels_last: bool) -> None:
    x, y = (_unmade(c, sizes, dtype, channels_last) for sizes in (window.in_size, window.out_size))
    pooling.avg_pool(x, y, window, channels_last, True, None)
    pooling.avg_pool_backward(y, x, window, channels_last, True, None)


def _lp_pool(window: Window, c: int, dtype: np.dtype[Any], channels_last: bool) -> None:
    x = _unmade(c, window.in_size, dtype, channels_last)
    y = _unmade(c, window.out_size, real_dtype(dtype), channels_last)
    for norm in (1.0, 2.0, 3.0):
        pooling.lp_pool(x, y, window, channels_last, norm)
        pooling.lp_pool_backward(y, x, y, x, window, channels_last, norm)


def _adaptive(c: int, dtype: np.dtype[Any], channels_last: bool) -> None:
    x = _unmade(c, (16, 16), dtype, channels_last)
    for out_size in ((1, 1), (7, 7)):  # a team of threads an output, and a thread
        y = _unmade(c, out_size, dtype, channels_last)
        argmax = unmade.empty(y.shape, np.dtype(np.int64))
        if dtype.kind != "c":
            adaptive.max_pool(x, y, argmax, channels_last)
            adaptive.max_pool(x, y, None, channels_last)
            adaptive.max_pool_backward(y, argmax, x, channels_last, "compile_report")
        if dtype.kind in "fc":
            adaptive.avg_pool(x, y, channels_last)
            adaptive.avg_pool_backward(y, x, channels_last)


def _max_pool(window: Window, c: int, dtype: np.dtype[Any], channels_last: bool) -> None:
    x, y = (_unmade(c, sizes, dtype, channels_last) for sizes in (window.in_size, window.out_size))
    argmax, indices = unmade.empty(y.shape, np.dtype(window.mask)), unmade.empty(y.shape, np.dtype(np.int64))
    pooling.max_pool(x, y, argmax, window, channels_last)
    pooling.max_pool(x, y, None, window, channels_last)
    pooling.max_pool_backward(y, argmax, x, window, channels_last)
    pooling.argmax_to_indices(argmax, indices, window, channels_last)
    pooling.max_unpool(y, argmax, x, window, channels_last)
    pooling.max_unpool_backward(x, argmax, y, window, channels_last)


class NvrtcMissing(Exception):
    """NVRTC, CUDA's headers, or an architecture in it isn't there; the message says what mends it."""


class Nvrtc:
    """CUDA's run-time compiler, called with the options that CuPy gives it."""

    def __init__(self) -> None:
        library, headers = _found("libnvrtc.so.*", "lib", "lib64"), _found("cuda_fp16.h", "include")
        if library is None or headers is None:
            missing = "NVRTC (libnvrtc.so)" if library is None else "CUDA's headers (cuda_fp16.h)"
            raise NvrtcMissing(f"{missing} not found; pip install 'gpuconv[compile]'")
        self._library = ctypes.CDLL(str(library))
        self.where = f"{library}, {headers.parent}"
        self._given = [*runtime.OPTIONS, "-ftz=true", "--device-as-default-execution-space"]
        self._options = [*self._given, f"-I{headers.parent}"]
        self._files = library, headers, headers.with_suffix(".hpp")

    def check(self, architectures: tuple[str, ...]) -> None:
        """Raise where this version doesn't know one of them."""
        number = ctypes.c_int()
        self._library.nvrtcGetNumSupportedArchs(ctypes.byref(number))
        known = (ctypes.c_int * number.value)()
        self._library.nvrtcGetSupportedArchs(known)
        unknown = [arch for arch in architectures if arch not in {f"sm_{value}" for value in known}]
        if unknown:
            raise NvrtcMissing(
                f"{self.where} doesn't compile for {', '.join(unknown)}; pip install 'gpuconv[compile]'"
            )

    @cached_property
    def _identity(self) -> str:
        """What an outcome depends on beside source and architecture."""
        return sources.digest({file.name: file for file in self._files}) + " ".join(self._given)

    def key(self, text: str, architecture: str) -> str:
        """Return a name for everything that an outcome depends on."""
        return hashlib.sha256(f"{self._identity} {architecture} {text}".encode()).hexdigest()

    def compile(self, text: str, name: str, architecture: str) -> tuple[bool, str]:
        """Return whether it compiled, and the compilers' log."""
        program, library = ctypes.c_void_p(), self._library
        if library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), f"{name}.cu".encode(), 0, None, None
        ):
            raise RuntimeError(f"nvrtcCreateProgram failed for {name}")
        options = [*self._options, f"-arch={architecture}", "--ptxas-options=-v"]
        values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), values)
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return not failed, log.value.decode(errors="replace")


def _found(pattern: str, *folders: str) -> Path | None:
    """Look in the wheels' folders first, then where CUDA is installed."""
    roots = [root for entry in sys.path for root in sorted(Path(entry or ".").glob("nvidia/*"))]
    roots += [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    for root in (*roots, Path("/usr/local/cuda")):
        for folder in folders:
            for path in sorted((root / folder).glob(pattern)):
                return path
    return None


class Resources(NamedTuple):
    """What a thread takes, and a block's static shared memory; the largest of a source's functions."""

    registers: int
    shared: int
    stack: int
    spilled: int


def parse(log: str) -> Resources:
    """Read ptxas's log.

    Raises
    ------
    ValueError
        Where it says nothing of registers or stack: then nothing may be claimed of them.
    """

    def most(pattern: str, least: int) -> int:
        values = [int(value) for value in re.findall(pattern, log)]
        if len(values) < least:
            raise ValueError(f"no {pattern!r} in ptxas's log: {log!r}")
        return max(values, default=0)

    return Resources(
        registers=most(r"Used (\d+) registers", 1),
        shared=most(r"(\d+) bytes smem", 0),
        stack=most(r"(\d+) bytes stack frame", 1),
        spilled=most(r"(\d+) bytes spill (?:stores|loads)", 1),
    )


class Outcome(NamedTuple):
    """How one specialisation compiled for one architecture; no resources where it didn't."""

    specialisation: Specialisation
    architecture: str
    resources: Resources | None
    log: str

    @property
    def faults(self) -> list[str]:
        """What is wrong with it."""
        if self.resources is None:
            return ["error"]
        stack, spilled = self.resources.stack, self.resources.spilled
        return [fault for fault, size in (("stack frame", stack), ("spill", spilled)) if size]


def compile_all(
    nvrtc: Nvrtc,
    chosen: list[Specialisation],
    architectures: tuple[str, ...],
    *,
    everywhere: bool,
    kept: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> list[Outcome]:
    """Compile on all cores: for `WHOLE` everything, for the others another of each group, or everything.

    What is `kept`, resources by `Nvrtc.key`, isn't compiled again.
    """
    groups: dict[tuple[str, ...], list[Specialisation]] = {}
    for each in chosen:
        groups.setdefault(each.group, []).append(each)
    turns = count()
    work = []
    for architecture in architectures:
        if everywhere or architecture == WHOLE:
            part = chosen
        else:
            turn = next(turns)
            part = [group[turn % len(group)] for group in groups.values()]
        work += [(each, architecture) for each in part]

    def outcome(item: tuple[Specialisation, str]) -> Outcome:
        each, architecture = item
        if kept and (resources := kept.get(nvrtc.key(each.kernel.text, architecture))):
            return Outcome(each, architecture, Resources(*resources), "")
        compiled, log = nvrtc.compile(each.kernel.text, each.kernel.name, architecture)
        return Outcome(each, architecture, parse(log) if compiled else None, log)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(outcome, work))


TITLES = (
    "kernel",
    "element",
    "layout",
    "vector",
    "index",
    "window",
    "constants",
    "arch",
    "regs",
    "shared",
    "stack",
    "spills",
)


def row(outcome: Outcome) -> tuple[str, ...]:
    """Return a line of the full table; shared memory is the block's, static and dynamic."""
    taken = outcome.resources
    if taken:
        taken = taken._replace(shared=taken.shared + outcome.specialisation.shared)
    numbers = map(str, taken) if taken else ("-",) * 4
    return (*outcome.specialisation.cells, outcome.architecture, *numbers)


SUMMARY = ("kernel", "element", "number", "regs", "shared", "stack", "spills", "most registers in")


def summary(outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    """Return a line for each kernel and element: what its specialisations take, and which takes most."""
    groups: dict[tuple[str, ...], list[tuple[Resources, Outcome]]] = {}
    for outcome in outcomes:
        if outcome.resources:
            key = outcome.specialisation.cells[:2]
            groups.setdefault(key, []).append((outcome.resources, outcome))
    lines = []
    for key, group in sorted(groups.items()):
        fewest, most = min(group, key=_registers)[0], max(group, key=_registers)
        number = len({outcome.specialisation for _, outcome in group})
        largest = [max(int(row(outcome)[column]) for _, outcome in group) for column in (-3, -2, -1)]
        taken = f"{fewest.registers}-{most[0].registers}"
        where = f"{most[1].specialisation.variant}, {most[1].architecture}"
        lines.append((*key, str(number), taken, *map(str, largest), where))
    return lines


def _registers(compiled: tuple[Resources, Outcome]) -> int:
    return compiled[0].registers


def table(titles: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """Return it in columns."""
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (titles, *lines)
    )


def report(outcomes: list[Outcome]) -> int:
    """Print what is wrong, with its log, and the count; return the exit code."""
    faults = [(outcome, fault) for outcome in outcomes for fault in outcome.faults]
    for outcome in dict.fromkeys(outcome for outcome, _ in faults):
        what = " and ".join(outcome.faults)
        print(f"\n{what}: {outcome.specialisation}, {outcome.architecture}\n{outcome.log}")
    number = len({outcome.specialisation for outcome in outcomes})
    architectures = len({outcome.architecture for outcome in outcomes})
    said = []
    for fault in ("error", "stack frame", "spill"):
        times = sum(found == fault for _, found in faults)
        said.append(f"{times or 'no'} {fault}{'' if times == 1 else 's'}")
    print(
        f"{number} specialisation{'' if number == 1 else 's'} compiled for "
        f"{architectures} architecture{'' if architectures == 1 else 's'}, "
        + ", ".join(said if faults else said[1:])
    )
    return 1 if faults else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--arch", action="append", metavar="sm_XX", help="compile for this one alone (may be repeated)"
    )
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="kernels by name"
    )
    parser.add_argument("--everywhere", action="store_true", help="compile each for all architectures")
    parser.add_argument("--all", action="store_true", help="print a line a specialisation and architecture")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write these lines there")
    parser.add_argument(
        "--kept", type=Path, metavar="FILE", help="compile what isn't there; then what has no fault is there"
    )
    options = parser.parse_args(arguments)
    architectures = tuple(options.arch or ARCHITECTURES)
    try:
        nvrtc = Nvrtc()
        nvrtc.check(architectures)
    except NvrtcMissing as error:
        print(f"compile_report: {error}", file=sys.stderr)
        return 2
    start = time.monotonic()
    chosen = [each for each in specialisations() if options.only.search(each.kernel.name)]
    if not chosen:
        parser.error(f"no kernel's name matches {options.only.pattern!r}")
    print(f"{nvrtc.where}; {len(chosen)} specialisations", flush=True)
    kept = json.loads(options.kept.read_text()) if options.kept and options.kept.exists() else {}
    outcomes = compile_all(
        nvrtc, chosen, architectures, everywhere=options.everywhere or bool(options.arch), kept=kept
    )
    if options.kept:
        found = {nvrtc.key(o.specialisation.kernel.text, o.architecture): o for o in outcomes if not o.faults}
        write_whole(options.kept, json.dumps({key: o.resources for key, o in found.items()}).encode())
    counts = [f"{arch} {sum(o.architecture == arch for o in outcomes)}" for arch in architectures]
    print(f"compiled in {time.monotonic() - start:.0f} s: {', '.join(counts)}\n")
    most_first = sorted(outcomes, key=lambda o: -o.resources.registers if o.resources else -1000)
    everything = table(TITLES, [row(outcome) for outcome in most_first])
    if options.out:
        options.out.write_text(everything + "\n")
    print(everything if options.all else table(SUMMARY, summary(outcomes)))
    return report(outcomes)


if __name__ == "__main__":
    sys.exit(main())
