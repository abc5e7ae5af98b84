"""Dask arrays: what a public function does with them, which is to say what it would do, block by block.

The function runs on stand-ins: it checks its arguments as ever, and its backend lays out a graph in the place
of computing (see `gpuconv.backends.dask`). Dask is imported by whoever made the array.
"""

import inspect
from collections.abc import Callable
from math import isnan
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import backend_of, is_dask
from gpuconv.offload import ARRAYS


def call(
    function: Callable[..., Any], signature: inspect.Signature, like: Any, /, *arguments: Any, **named: Any
) -> Any:
    """Call a public function, some of whose arrays are Dask's; return Dask arrays.

    Raises
    ------
    TypeError, ValueError
        As the function itself; for chunks of unknown size; and for `out` and `like`.
    """
    import dask
    from dask.array import asarray

    from gpuconv.backends.dask import Call, Later

    op = function.__name__
    if dask.config.get("array.query-planning", False):
        raise TypeError(
            f"{op}: Dask's arrays are expressions, an experiment of Dask's, and not yet taken; set its "
            '"array.query-planning" to False before dask.array is imported'
        )
    try:
        bound = signature.bind(*arguments, **named).arguments
    except TypeError:
        return function(*arguments, **named)  # it says itself what is wrong
    for name, value in {"out": bound.pop("out", None), "like": like}.items():
        if value is not None:
            raise TypeError(
                f"{op}: {name} can't be given with Dask arrays, which give new ones; leave it out"
            )
    arrays = {name: bound[name] for name in bound if name in ARRAYS and bound[name] is not None}
    lazy = {name: x for name, x in arrays.items() if is_dask(x)}
    for name, x in lazy.items():
        if any(map(isnan, x.shape)):
            raise ValueError(
                f"{op}: {name} has chunks of unknown size (shape {x.shape}); "
                f"{name}.compute_chunk_sizes() finds them out"
            )
        if isinstance(x._meta, np.ma.MaskedArray):
            raise TypeError(f"{op}: {name} is a masked array; fill it first: dask.array.ma.filled({name}, 0)")
    backend_of(op, **{name: x._meta if name in lazy else x for name, x in arrays.items()})  # of one kind
    described = Call(op, {x.shape: x.chunks for x in lazy.values()})
    # Dask divides by an array's size where it chooses chunks itself.
    whole = {name: asarray(x, chunks="auto" if x.size else -1) for name, x in arrays.items()}
    found = function(**bound | {name: Later.of(x, described) for name, x in whole.items()})
    if isinstance(found, tuple):
        # A named tuple stays one.
        return getattr(found, "_make", tuple)([y if y is None else y.array for y in found])
    return found.array
