"""A host's terms: its dictionaries of numbers, and errors that name its functions and arguments."""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import gpuconv
from gpuconv.geometry import integer

P = ParamSpec("P")
R = TypeVar("R")


def errors_say(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let errors from the public functions beneath a host's function name that function and its arguments.

    Parameters
    ----------
    **names
        What the host calls the public functions' arguments; those of the same name may be left out.
    """
    words = re.compile(rf"\b({'|'.join(names)})\b")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError) as error:
                op, _, said = str(error).partition(": ")
                if op in gpuconv.__all__:
                    said = words.sub(lambda word: names[word[0]], said)
                    error.args = (f"{function.__qualname__}: {said}",)
                raise

        return call

    return decorate


def numbers(op: str, name: str, values: Any, **least: int) -> tuple[int, ...]:
    """Return the integers that a host's dictionary holds under these keys, each at least so large.

    Raises
    ------
    TypeError
        Where it is no dictionary, or a value no integer.
    ValueError
        Where a key is missing, or a value too small.
    """
    keys = ", ".join(f"'{key}'" for key in least)
    if not isinstance(values, Mapping):
        raise TypeError(f"{op}: {name} must be a dictionary with {keys}, not {type(values).__name__}")
    if missing := least.keys() - values.keys():
        listed = ", ".join(f"'{key}'" for key in sorted(missing))
        raise ValueError(f"{op}: {name} must have {keys}, but {listed} is missing")
    return tuple(integer(op, f"{name}['{key}']", values[key], low) for key, low in least.items())


def unpacked(op: str, cache: Any, source: str, items: int) -> tuple[Any, ...]:
    """Return the first items of a cache, which must be the tuple that `source` returned."""
    if not isinstance(cache, tuple) or len(cache) < items:
        what = f"a tuple of {len(cache)}" if isinstance(cache, tuple) else type(cache).__name__
        raise TypeError(f"{op}: cache must be what {source} returned with its result, not {what}")
    return cache[:items]
