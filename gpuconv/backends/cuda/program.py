"""Programs: the launches and matrix products of one operation on one geometry, worked out once and run often.

Working out is integers and nothing else, so programs are cached by what they depend on: sizes, strides,
alignment, dtype, workspace limit. Running one adds addresses to offsets and starts its steps in order.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, ParamSpec

import numpy as np

from gpuconv.backends.cuda import kernels
from gpuconv.backends.cuda.kernels import Kernel
from gpuconv.backends.cuda.runtime import Runtime
from gpuconv.config import config
from gpuconv.trace import LISTENING, stage

Array = Any

P = ParamSpec("P")


class At(NamedTuple):
    """Memory of an operation: one of its arrays, or its workspace, and an offset in bytes."""

    slot: int
    offset: int = 0


class Launch(NamedTuple):
    """A kernel's launch: its blocks, where its pointers point, its struct, its shared memory in bytes."""

    kernel: Kernel
    blocks: int
    pointers: tuple[At, ...]
    struct: np.ndarray[Any, Any]
    shared: int = 0

    @property
    def name(self) -> str:
        """Name of the stage, as profilers show it."""
        return self.kernel.name

    @property
    def shown_sizes(self) -> str:
        """None: the operation's shapes, which profilers show around it, determine them."""
        return ""

    def run(self, runtime: Runtime, addresses: Sequence[int]) -> None:
        """Start it on arrays with these addresses."""
        pointers = [addresses[slot] + offset for slot, offset in self.pointers]
        runtime.launch(self.kernel, self.blocks, (*pointers, self.struct), self.shared)


class Matrix(NamedTuple):
    """A matrix, or a batch of them: `pitch` elements from row to row (or column to column, `by_columns`)."""

    at: At
    pitch: int
    step: int = 0
    by_columns: bool = False


class Gemm(NamedTuple):
    """C = A B, or C += A B, for a batch of matrices; C lies by rows."""

    c: Matrix
    a: Matrix
    b: Matrix
    sizes: tuple[int, int, int]  # rows of C, what is summed over, columns of C
    batch: int
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]  # of A and B, of C
    accumulate: bool
    precision: str

    @property
    def name(self) -> str:
        """Name of the stage, as profilers show it."""
        return "gemm"

    @property
    def shown_sizes(self) -> str:
        """What profilers show behind it: the library's kernels don't tell their sizes."""
        rows, inner, columns = self.sizes
        return f" a[{rows},{inner}] b[{inner},{columns}]" + (f" x{self.batch}" if self.batch > 1 else "")

    def run(self, runtime: Runtime, addresses: Sequence[int]) -> None:
        """Start it on arrays with these addresses."""
        # A matrix by rows is its transpose by columns, which is how cuBLAS counts: C^T = B^T A^T.
        a, b, c = self.a, self.b, self.c
        rows, inner, columns = self.sizes
        runtime.gemm(
            (b.by_columns, a.by_columns),
            (columns, rows, inner),
            (addresses[b.at.slot] + b.at.offset, b.pitch, b.step),
            (addresses[a.at.slot] + a.at.offset, a.pitch, a.step),
            (addresses[c.at.slot] + c.at.offset, c.pitch, c.step),
            self.batch,
            self.dtypes,
            self.accumulate,
            self.precision,
        )


class Program(NamedTuple):
    """The steps of an operation, and the bytes of workspace that they share."""

    steps: tuple[Launch | Gemm, ...]
    workspace: int = 0


class LimitTooSmall(Exception):
    """No program stays under this limit; the smallest takes `least` bytes."""

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least


_PLANS: list[Any] = []


def planned(plan: Callable[P, Program]) -> Callable[P, Program]:
    """Cache a function that works out programs."""
    cached = lru_cache(maxsize=256)(plan)  # with a small limit, a program may have thousands of steps
    _PLANS.append(cached)
    return cached  # type: ignore[return-value]


def forget() -> None:
    """Drop all cached programs."""
    for plan in _PLANS:
        plan.cache_clear()


def run(runtime: Runtime, program: Program, addresses: Sequence[int]) -> None:
    """Start a program's steps in order; with a profiler, each is a range."""
    if not LISTENING:
        for step in program.steps:
            step.run(runtime, addresses)
        return
    for step in program.steps:
        with stage(step.name, step.shown_sizes):
            step.run(runtime, addresses)


def run_within_limit(op: str, runtime: Runtime, plan: Callable[[int], Program], addresses: list[int]) -> None:
    """Plan for the workspace limit and run; the workspace's address is put behind the others.

    Where memory runs out, the limit is halved until it suffices. The default limit gives way to what the
    smallest piece takes; one that the user set doesn't.

    Raises
    ------
    MemoryError
        Where even the smallest pieces find no memory, or need more than the user's limit; with the bytes
        asked for.
    """
    limit = config.workspace_limit or runtime.default_workspace()
    refused: list[int] = []
    while True:
        try:
            program = plan(limit)
            if refused and program.workspace >= refused[-1]:
                raise LimitTooSmall(program.workspace)
        except LimitTooSmall as error:
            if refused:
                asked = ", ".join(map(str, refused))
                raise MemoryError(
                    f"{op}: the GPU's memory is full: {asked} bytes of workspace were refused"
                ) from None
            if config.workspace_limit:
                raise MemoryError(
                    f"{op}: the smallest piece takes {error.least} bytes of workspace, "
                    f"but config.workspace_limit allows {limit}"
                ) from None
            limit = max(2 * limit, error.least)
            continue
        try:
            work = runtime.workspace(program.workspace) if program.workspace else None
        except MemoryError:
            refused.append(program.workspace)
            limit = program.workspace // 2
            continue
        run(runtime, program, addresses if work is None else [*addresses, runtime.address(work)])
        return


def lanes(itemsize: int, *multiples: int) -> int:
    """Return how many elements one access moves: 16 bytes, or less where a pitch or offset is no multiple."""
    vector = max(1, 16 // itemsize)
    while any(number % vector for number in multiples):
        vector //= 2
    return vector


def kernel_launch(kernel: Kernel, items: int, pointers: tuple[At, ...], **values: Any) -> Launch:
    """Return a kernel's launch with one thread an item, or several items a thread where there are many."""
    return Launch(kernel, kernels.grid(items), pointers, kernel.arguments(items=items, **values))
