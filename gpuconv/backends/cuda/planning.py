"""What the CUDA backend would do: its own code on arrays without values, through a runtime that only notes.

Needs no GPU: the backend works out integers, and this runtime launches nothing.
"""

from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from gpuconv.backends import cuda, unmade
from gpuconv.backends.cuda import autotune
from gpuconv.backends.cuda import runtime as runtimes
from gpuconv.backends.cuda.convolution import describe
from gpuconv.backends.cuda.kernels import Kernel
from gpuconv.backends.plans import Account, Part, Step
from gpuconv.backends.unmade import Note, Unmade
from gpuconv.config import config

# The primitives that several algorithms can compute, and which arguments are result, image and output.
PASSES = {
    "convolution.forward": ("y", "x", "y"),
    "convolution.input_grad": ("dx", "dx", "dy"),
    "convolution.weight_grad": ("dw", "x", "dy"),
}

# Where the workspace lies; any place but where arrays do.
WORKSPACE = 1 << 40


class Target(NamedTuple):
    """The device that is planned for: by default one that isn't there, on which nothing was measured."""

    default_workspace: int = runtimes.LEAST_DEFAULT
    identity: str = ""


def target(array: Any | None) -> Target:
    """Return the GPU where an array is; without one the current GPU, or else none in particular."""
    runtime = runtimes.present() if array is None else runtimes.of(array)
    if runtime is None:
        return Target()
    with (None if array is None else runtime.elsewhere(array)) or nullcontext():
        return Target(runtime.default_workspace(), runtime.identity() if autotune.wanted() else "")


_target: ContextVar[Target] = ContextVar("gpuconv.target", default=Target())  # noqa: B039, it can't change


class NotingRuntime:
    """A `Runtime` that notes what it is asked for."""

    def elsewhere(self, array: Unmade) -> None:
        """Return None: there is one device."""

    def default_workspace(self) -> int:
        """Return that of the device that is planned for."""
        return _target.get().default_workspace

    def identity(self) -> str:
        """Return that of the device that is planned for."""
        return _target.get().identity

    def time(self, call: Callable[[], object]) -> None:
        """Return None: nothing runs."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Unmade:
        """Return a new array without values."""
        return unmade.empty(shape, dtype)

    def workspace(self, size: int) -> Unmade:
        """Return `size` bytes."""
        unmade.note("workspace", bytes=size)
        return unmade.empty((size,), np.uint8, address=WORKSPACE)

    def address(self, array: Unmade) -> int:
        """Return an address, so that alignment can be told."""
        return array.address

    def launch(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], shared: int) -> None:
        """Note a kernel."""
        unmade.note("launch", kernel=kernel, blocks=blocks, arguments=arguments, shared=shared)

    def gemm(
        self,
        transposed: tuple[bool, bool],
        sizes: tuple[int, int, int],
        a: tuple[int, int, int],
        b: tuple[int, int, int],
        c: tuple[int, int, int],
        batch: int,
        dtypes: tuple[np.dtype[Any], np.dtype[Any]],
        accumulate: bool,
        precision: str,
    ) -> None:
        """Note a product; of matrices by rows, which to cuBLAS are transposed and change places."""
        n, m, k = sizes
        unmade.note("gemm", m=m, k=k, n=n, batch=batch)


runtimes.register(Unmade, NotingRuntime())


def noted(function: Callable[..., object], *arguments: Any) -> list[Note]:
    """Call what calls this backend with arrays without values; return what it would launch."""
    with config(ranges="operations"):  # stages that don't run are none
        return unmade.noted(function, *arguments)[1]


def plan(primitive: Note, device: Target) -> Part:
    """Return how this backend would compute a primitive on a device."""
    token = _target.set(device)
    try:
        return _plan(primitive)
    finally:
        _target.reset(token)


def _plan(primitive: Note) -> Part:
    module, _, name = primitive.what.partition(".")
    if module == "activations":  # by CuPy's own kernels
        step = Step(name, {"bytes": primitive.arguments["dy"].nbytes}, 1)
        return Part("", "", (step,), 0, 1, 0)
    notes = noted(getattr(getattr(cuda, module), name), *primitive.arguments.values())
    account, workspace = Account(), 0
    for what, arguments in notes:
        if what == "workspace":
            workspace = max(workspace, arguments["bytes"])
        elif what == "launch":
            account.step(arguments["kernel"].name, blocks=arguments["blocks"])
        else:
            account.step(what, **arguments)
    steps = account.steps
    algorithm, why = _algorithm(primitive, {step.what for step in steps})
    return Part(algorithm, why, steps, _chunks(notes), 1, workspace)


def _chunks(notes: list[Note]) -> int:
    """Count how many times columns are collected from, or how many times they are laid out anew.

    What else is copied into a chunk's workspace by im2col's kernel lies behind its columns.
    """
    collected, laid_out, last = 0, 0, 2 * WORKSPACE
    for what, arguments in notes:
        if what == "launch":
            name, target = arguments["kernel"].name, arguments["arguments"][1]
            collected += name == "col2im"
            if name == "im2col":
                laid_out += target <= last
                last = target
    return max(1, collected or laid_out)


def _algorithm(primitive: Note, steps: set[str]) -> tuple[str, str]:
    what, arguments = primitive
    if not steps - {"copy", "fill"}:
        return "none", "an array is empty: there is nothing to compute"
    if what in PASSES:
        result, x, y = (arguments[name] for name in PASSES[what])
        problem = describe(arguments["window"], x, y, result.dtype, arguments["channels_last"])
        name, why = autotune.choose(runtimes.of(x), problem, what.partition(".")[2])
        return name, why
    if what == "convolution.bias_grad":
        return "kernel", "one kernel adds up parts of the batch, another the parts, always in the same order"
    return "kernel", "one kernel of our own computes each place of the result once"
