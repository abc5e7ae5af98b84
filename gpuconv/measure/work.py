"""The least that an operation must do: floating-point operations, and bytes moved from and to memory.

Operations are counted as the definition has them, padding included: a multiply-add is two, of complex numbers
eight; what is done with one place of a pooling window is one, a norm's power and addition two. Bytes are of
all arguments, as far as windows read them, and of all results, each once: no algorithm does without.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

from gpuconv.backends import unmade
from gpuconv.backends.unmade import Note, Unmade
from gpuconv.entry import OPERATIONS


class Work(NamedTuple):
    """What an operation must do at least."""

    flops: int
    bytes: int


def work_of(op: str, arguments: Mapping[str, Any]) -> Work:
    """Return the work of a public function.

    Parameters
    ----------
    op
        Its name.
    arguments
        Its arguments by name; those that have a default may be missing, `out` and `like` don't count. Arrays
        are anything with a shape and a dtype: values are never read.

    Raises
    ------
    TypeError, ValueError
        As the function itself.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> work_of("conv2d", {"x": x, "w": w})
    Work(flops=7776, bytes=1776)
    """
    given = {
        name: unmade.empty(tuple(value.shape), value.dtype) if hasattr(value, "dtype") else value
        for name, value in arguments.items()
        if name not in ("out", "like")
    }
    return work_of_notes(*unmade.noted(OPERATIONS[op].__wrapped__, **given))  # type: ignore[attr-defined]


def work_of_notes(results: Any, notes: list[Note]) -> Work:
    """Return the work of a public function that gave these results, and had these primitives computed."""
    flops = 0
    read: dict[Unmade, int] = {}
    for note in notes:
        family = FAMILIES.get(note.what)
        if family is None:  # a copy
            continue
        flops += family.flops(note.arguments)
        for name, elements in family.reads(note.arguments).items():
            array = note.arguments[name].origin
            read[array] = max(read.get(array, 0), elements * array.itemsize)
    written = sum(y.nbytes for y in arrays(results))
    return Work(flops, sum(read.values()) + written)


def arrays(results: Any) -> list[Any]:
    """Return what an operation gave: max pooling gives two arrays, and gradients nobody needs are none."""
    return [y for y in (results if isinstance(results, tuple) else (results,)) if y is not None]


class Family(NamedTuple):
    """How a primitive's operations are counted, and which arguments it reads: whole, or as windows do."""

    flops: Callable[[Mapping[str, Any]], int]
    whole: str
    by_windows: str = ""

    def reads(self, p: Mapping[str, Any]) -> dict[str, int]:
        """Return how many elements are read of which arguments."""
        read = {name: p[name].size for name in self.whole.split() if p[name] is not None}
        for name in self.by_windows.split():
            x = p[name]
            read[name] = len(x) * x.shape[-1 if p["channels_last"] else 1] * prod(p["window"].read)
        return read


def _products(p: Mapping[str, Any]) -> int:
    """Count a convolution's multiply-adds, or a gradient's; not what a bias and a rectifier do with sums."""
    w: Unmade = p["w"] if "w" in p else p["dw"]
    images, window = len(p["y"] if "y" in p else p["dy"]), p["window"]
    complex_ = any(p[name].dtype.kind == "c" for name in ("x", "w", "dy") if name in p)
    return (8 if complex_ else 2) * images * int(window.places) * w.size


def _sums(p: Mapping[str, Any]) -> int:
    """Count one addition for each element that is given."""
    return _additions(p["dy"] if "dy" in p else p["col"])


def _windows(p: Mapping[str, Any]) -> int:
    """Count one operation for each place of each window."""
    return _additions(p["y"] if "y" in p else p["dy"]) * int(p["window"].taps)


def _norms(p: Mapping[str, Any]) -> int:
    """Count a power and an addition for each place of each window."""
    return 2 * _windows(p)


def _shares(p: Mapping[str, Any]) -> int:
    """Count one operation for each place of each window, which differ in size."""
    large, small = (p["x"], p["y"]) if "x" in p else (p["dx"], p["dy"])
    places = slice(1, -1) if p["channels_last"] else slice(2, None)
    all_windows: int = 1
    for size, out in zip(large.shape[places], small.shape[places], strict=True):
        all_windows *= sum(-(-(o + 1) * size // out) - o * size // out for o in range(out))
    return _additions(small) // int(prod(small.shape[places])) * all_windows


def _additions(x: Unmade) -> int:
    return (2 if x.dtype.kind == "c" else 1) * x.size


def _none(p: Mapping[str, Any]) -> int:
    return 0


FAMILIES = {
    "activations.relu_input_grad": Family(_none, "dy y"),
    "convolution.forward": Family(_products, "w b", "x"),
    "convolution.input_grad": Family(_products, "dy w b"),
    "convolution.weight_grad": Family(_products, "dy", "x"),
    "convolution.bias_grad": Family(_sums, "dy"),
    "columns.im2col": Family(_none, "", "x"),
    "columns.col2im": Family(_sums, "col"),
    "pooling.max_pool": Family(_windows, "", "x"),
    "pooling.max_pool_backward": Family(_sums, "dy argmax"),
    "pooling.max_unpool": Family(_none, "x argmax"),
    "pooling.max_unpool_backward": Family(_none, "argmax", "dy"),
    "pooling.argmax_to_indices": Family(_none, "argmax"),
    "pooling.avg_pool": Family(_windows, "", "x"),
    "pooling.avg_pool_backward": Family(_windows, "dy"),
    "pooling.lp_pool": Family(_norms, "", "x"),
    "pooling.lp_pool_backward": Family(_norms, "dy y", "x"),
    "adaptive.avg_pool": Family(_shares, "x"),
    "adaptive.max_pool": Family(_shares, "x"),
    "adaptive.avg_pool_backward": Family(_shares, "dy"),
    "adaptive.max_pool_backward": Family(_sums, "dy argmax"),
}
