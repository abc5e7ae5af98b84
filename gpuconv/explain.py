"""What a call would do, without doing it: algorithm, products, chunks, workspace, and the least it takes."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np

from gpuconv import geometry
from gpuconv.backends import unmade
from gpuconv.backends.cpu import planning as on_cpu
from gpuconv.backends.dispatch import backend_of, check_gpu, real_dtype
from gpuconv.backends.plans import Part, Step
from gpuconv.backends.unmade import Note, Unmade
from gpuconv.config import config
from gpuconv.entry import OPERATIONS, taken
from gpuconv.measure.work import Work, arrays, work_of_notes
from gpuconv.offload import ARRAYS

Array = Any


class Result(NamedTuple):
    """An array that the call would return."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Plan:
    """What a call would do; made by `explain`.

    Attributes
    ----------
    op : str
        The function.
    device : "cpu" or "cuda"
        Where it would run.
    algorithm : str
        "gemm": products with columns, or with what needs none; "direct": a convolution from the image itself,
        without columns; "implicit": products whose columns are nowhere in memory; "winograd": 3x3 kernels in
        fewer multiplications; "kernel": a CUDA kernel of our own, of what is no convolution;
        "depthwise": a channel at a time; "taps", "axes", "sum", …: how NumPy goes about it; "none": there is
        nothing to do. Several, with commas, where a function's gradients differ.
    why : str
        In a sentence; in several, with semicolons, where gradients differ.
    steps : tuple of Step
        What is done, and how often: (what, sizes, repeats, result). Of a matrix product sizes are m, k, n
        ([m, k] times [k, n]) and batch, of a CUDA kernel its blocks of 256 threads. Equal steps are counted
        together; chunk by chunk they take turns.
    chunks : int
        Pieces that the work is cut into. On a GPU, as often the workspace is filled, one after another; on a
        CPU, what threads share out.
    threads : int
        CPU threads; 1 on a GPU.
    workspace : int
        Bytes of memory beside arguments and results: on a GPU what `config.workspace_limit` bounds, on a CPU
        all threads' buffers together (of poolings roughly).
    flops, least_bytes : int
        The work itself, whatever the algorithm (`gpuconv.measure.work`).
    results : tuple of Result
        Shape and dtype of each array returned.
    """

    op: str
    device: str
    algorithm: str
    why: str
    steps: tuple[Step, ...]
    chunks: int
    threads: int
    workspace: int
    flops: int
    least_bytes: int
    results: tuple[Result, ...]
    precision: str = field(repr=False)

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold the call: on a GPU, all that has no products by cuBLAS.

        CuPy refuses cuBLAS's while a stream is captured.
        """
        return self.device == "cuda" and all(step.what != "gemm" for step in self.steps)

    @property
    def least_seconds(self) -> float | None:
        """The least time on the present device, by measured ceilings; None without such a device.

        That of the bytes at the rate of a large copy, or of the operations at that of a large product,
        whichever is longer. The first to ask waits for the measurement, a second or two.
        """
        from gpuconv.measure import ceilings  # asks the machine more than those need who only plan

        dtype = self.results[0].dtype if self.results else "float32"
        ceiling = ceilings.present(self.device, dtype, self.precision)
        return None if ceiling is None else ceiling.seconds(Work(self.flops, self.least_bytes))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "op": self.op,
            "device": self.device,
            "algorithm": self.algorithm,
            "why": self.why,
            "steps": [step._asdict() for step in self.steps],
            "chunks": self.chunks,
            "threads": self.threads,
            "workspace": self.workspace,
            "capturable": self.capturable,
            "flops": self.flops,
            "least_bytes": self.least_bytes,
            "least_seconds": self.least_seconds,
            "results": [{"shape": list(shape), "dtype": dtype} for shape, dtype in self.results],
        }

    def __str__(self) -> str:
        lines = [
            f"{self.op} on {self.device}: {self.algorithm}",
            *(f"  {why}" for why in self.why.split("; ")),
        ]
        for what, sizes, repeats, result in self.steps:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            lines.append(f"  {repeats:>6} x {f'{result} {what}'.strip():14} {listed}".rstrip())
        threads = f" on {self.threads} threads" if self.threads > 1 else ""
        chunks = f"{self.chunks} chunk{'' if self.chunks == 1 else 's'}"
        lines.append(f"  {chunks}{threads}, {_scaled(self.workspace)}B of workspace")
        seconds = self.least_seconds
        least = "" if seconds is None else f", which take {seconds * 1e3:.3g} ms at least"
        lines.append(f"  {_scaled(self.flops)}FLOP and {_scaled(self.least_bytes)}B{least}")
        lines += [f"  gives {dtype} {list(shape)}" for shape, dtype in self.results]
        return "\n".join(lines)


def explain(
    op: str | Callable[..., Any],
    *arguments: Any,
    device: Literal["cpu", "cuda"] | None = None,
    dtype: Any = "float32",
    **options: Any,
) -> Plan:
    """Return what a call of a public function would do, without doing it.

    The function's own code works it out, on arrays without values: as fast for terabytes as for bytes, but
    for plans of many thousand chunks.

    Parameters
    ----------
    op : str or function
        A public function, such as `conv2d`, or its name.
    *arguments, **options
        The function's own, without `out` and `like`, which make no difference. For an array its shape will
        do, a tuple; of one that is given its strides count, too. Values are never read.
    device : "cpu" or "cuda", optional
        Where. By default where the arrays are; for shapes alone, on a GPU where one can be used. Without a
        GPU, "cuda" is planned for one that has the least default workspace, 16 MiB.
    dtype : dtype
        That of arrays given as shapes. A mask of maxima has the one that it is made with; norms are real.

    Returns
    -------
    plan : Plan
        Its text, `str(plan)`, is meant to be read; `plan.as_dict()` is for JSON.

    Raises
    ------
    TypeError, ValueError
        As the function itself; and for a function that there isn't, or another device.
    MemoryError
        As the function itself, where `config.workspace_limit` is too small.

    Examples
    --------
    >>> import gpuconv
    >>> plan = gpuconv.explain("conv2d", (8, 64, 56, 56), (64, 64, 3, 3), padding=1, device="cuda")
    >>> plan.algorithm, plan.chunks, plan.flops
    ('gemm', 4, 1849688064)
    >>> for step in plan.steps:
    ...     print(step.repeats, step.what, step.sizes)
    4 im2col {'blocks': 392}
    4 gemm {'m': 64, 'k': 576, 'n': 3136, 'batch': 2}
    """
    name, function = _operation(op)
    for without in {"out", "like"} & options.keys():
        raise TypeError(f"explain: {without} makes no difference to {name}; leave it out")
    try:
        bound = inspect.signature(function).bind(*arguments, **options).arguments
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f'explain: device must be "cpu", "cuda" or None, not {device!r}')
    given = {
        key: taken(name, key, value)
        for key, value in bound.items()
        if key in ARRAYS and value is not None and not isinstance(value, tuple | list)
    }
    backend = backend_of(name, **given) if given else None
    is_cuda = backend is not None and backend.__name__.endswith("cuda")
    if device is None:
        device = "cuda" if is_cuda or (backend is None and _has_gpu()) else "cpu"
    for key, value in bound.items():
        if key in given:
            bound[key] = _like(given[key]) if is_cuda else unmade.like(given[key])
        elif key in ARRAYS and value is not None:
            shape = geometry.shape(name, key, value, len(value))
            bound[key] = unmade.empty(shape, _dtype(name, key, bound, dtype))
    results, notes = unmade.noted(function, **bound)
    part = _planner(device, next(iter(given.values())) if is_cuda else None)
    parts = [(note, part(note)) for note in notes]
    of = [key for key, y in zip(getattr(results, "_fields", ()), results, strict=False) if y is not None]
    return Plan(
        name,
        device,
        *_together([part for note, part in parts if _writes(note)], of, parts),
        *work_of_notes(results, notes),
        tuple(Result(y.shape, y.dtype.name) for y in arrays(results)),
        config.fp32_precision,
    )


def _operation(op: Any) -> tuple[str, Callable[..., Any]]:
    name = op if isinstance(op, str) else getattr(op, "__name__", "")
    found = OPERATIONS.get(name)
    if found is None or (callable(op) and op is not found):
        near = ", ".join(difflib.get_close_matches(name, OPERATIONS))
        hint = f"near it: {near}" if near else "gpuconv.__all__ lists them, among others"
        raise ValueError(f"explain: {op!r} is no public function on arrays; {hint}")
    return name, found.__wrapped__  # type: ignore[attr-defined]


def _dtype(op: str, name: str, bound: dict[str, Any], dtype: Any) -> np.dtype[Any]:
    """Return the dtype of an array that is given as a shape."""
    if name == "argmax":
        if "kernel_size" not in bound:
            return np.dtype(np.int64)
        axes = len(bound[name].shape if hasattr(bound[name], "shape") else bound[name]) - 2
        kernel = geometry.per_axis(op, "kernel_size", bound["kernel_size"], axes, 1)
        return np.dtype(geometry.mask_of(prod(kernel)))
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"explain: dtype must be that of an array, not {dtype!r}") from None
    return real_dtype(found) if op.startswith("lp_pool") and name in ("dy", "y") else found


def _has_gpu() -> bool:
    try:
        check_gpu()
    except RuntimeError:
        return False
    return True


def _like(x: Array) -> Unmade:
    """Return an array that lies as one on a GPU does, at an address that is a multiple of as much."""
    from gpuconv.backends.cuda import runtime

    return unmade.like(x, unmade.ADDRESS + runtime.of(x).address(x) % unmade.ADDRESS)


def _planner(device: str, x: Array | None) -> Callable[[Note], Part]:
    """Return what plans primitives, and copies that public functions make, where x is."""
    if device == "cpu":
        plan: Callable[[Note], Part] = on_cpu.plan
    else:
        from gpuconv.backends.cuda import planning as on_cuda

        plan = partial(on_cuda.plan, device=on_cuda.target(x))
    return lambda note: plan(note) if "." in note.what else _copy(note)


def _copy(note: Note) -> Part:
    return Part("", "", (Step(note.what, note.arguments, 1),), 0, 1, 0)


def _writes(note: Note) -> bool:
    """Tell whether a result is written: copies, and a dy through a rectifier, are what others read."""
    return "." in note.what and not note.what.startswith("activations.")


def _together(
    computed: list[Part], of: list[str], all_parts: list[tuple[Note, Part]]
) -> tuple[str, str, tuple[Step, ...], int, int, int]:
    """Return algorithm, why, steps, chunks, threads and workspace of a function with these primitives."""
    if not computed:
        return "none", "nothing is asked for", (), 0, 1, 0
    names = iter(of)
    steps: list[Step] = []
    for note, part in all_parts:
        result = next(names, "") if _writes(note) else ""
        steps += [step._replace(result=result) for step in part.steps]
    algorithms = dict.fromkeys(part.algorithm for part in computed)
    whys = dict.fromkeys(part.why for part in computed)
    return (
        ", ".join(algorithms),
        "; ".join(whys),
        tuple(steps),
        sum(part.chunks for _, part in all_parts),
        max(part.threads for _, part in all_parts),
        max(part.workspace for _, part in all_parts),
    )


def _scaled(number: int) -> str:
    """Return a number with three digits and a prefix: 1.85 G."""
    value, prefixes = float(number), iter(" kMGTPEZY")
    prefix = next(prefixes)
    while value >= 1000:
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix.strip()}"
