"""What `gpuconv profile` runs: a network of ours by name, one of the user's code, or the layers of a list."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import gpuconv.nn as nn
from gpuconv.cli.errors import UserError
from gpuconv.measure.shapes import ConvShape, Shape, read
from gpuconv.training.networks import modern_cnn, textbook_cnn

NETWORKS = {"modern": modern_cnn, "textbook": textbook_cnn}
CLASSES = 10
LISTS = (".csv", ".npz")


def is_list(target: str) -> bool:
    """Tell whether the target is a list of shapes."""
    return Path(target).suffix in LISTS


def shapes(target: str) -> list[Shape]:
    """Return the shapes of a list.

    Raises
    ------
    UserError
        Where it isn't one.
    OSError
        Where it can't be read.
    """
    try:
        found = read(Path(target))
    except ValueError as error:
        raise UserError(str(error)) from None
    names = [shape.name for shape in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{target}: {twice[0]!r} stands there more than once")
    return found


def layer(shape: Shape, channels_last: bool, dtype: str) -> nn.Layer:
    """Return the layer that a shape is of."""
    if isinstance(shape, ConvShape):
        return nn.Conv2d(
            shape.c_in,
            shape.c_out,
            (shape.kh, shape.kw),
            shape.stride,
            shape.padding,
            shape.dilation,
            shape.groups,
            bias=False,
            channels_last=channels_last,
            dtype=dtype,
            rng=0,
        )
    return nn.MaxPool2d(shape.kernel, shape.stride, shape.padding, channels_last=channels_last)


def network(target: str, input_shape: tuple[int, ...], dtype: str) -> tuple[Any, bool]:
    """Return a layer or function, and whether it takes an input.

    Raises
    ------
    UserError
        Where there is no such network.
    """
    if target in NETWORKS:
        if len(input_shape) != 4:
            raise UserError(f"--input: {target} takes N,C,H,W, not {','.join(map(str, input_shape))}")
        return _as_dtype(NETWORKS[target](input_shape[1:], CLASSES, np.random.default_rng(0)), dtype), True
    place, colon, attribute = target.rpartition(":")
    if not (place and colon and attribute):
        raise UserError(
            f"{target!r} is no network: give {', '.join(NETWORKS)}, module:attribute, file.py:attribute, or "
            f"a list of shapes ({', '.join(LISTS)})"
        )
    found = _attribute(target, _module(place), attribute)
    if isinstance(found, nn.Layer):
        return found, True
    if not callable(found):
        raise UserError(f"{target}: must be a layer or a function, not {type(found).__name__}")
    if _needs_input(found):
        return found, True
    made = _of_the_user(target, found)
    return (made, True) if isinstance(made, nn.Layer) else (found, False)


def _as_dtype(network: nn.Layer, dtype: str) -> nn.Layer:
    for arrays in (network.params, network.buffers):
        for name, array in arrays.items():
            if array.dtype.kind == "f":
                arrays[name] = array.astype(dtype)
    return network


def _module(place: str) -> ModuleType:
    """Import a module by name, also from the current folder, or a file."""
    if not place.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        module: ModuleType = _of_the_user(place, lambda: importlib.import_module(place))
        return module
    path = Path(place).resolve()
    if not path.is_file():
        raise UserError(f"{place}: no such file")
    sys.path.insert(0, str(path.parent))  # as `python file.py` does
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    load = spec.loader.exec_module
    _of_the_user(place, lambda: load(module))
    return module


def _attribute(target: str, module: ModuleType, names: str) -> Any:
    found: Any = module
    for name in names.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UserError(
                f"{target}: there is no {name!r} in {getattr(found, '__name__', found)}"
            ) from None
    return found


def _of_the_user(what: str, run: Callable[[], Any]) -> Any:
    """Run code of the user's; whatever it raises is theirs to mend."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {type(error).__name__}: {error}") from error


def _needs_input(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a builtin
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is p.empty for p in parameters)
