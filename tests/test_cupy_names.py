"""What is asked of CuPy is there, under these names and with these arguments: seen in CuPy, without a GPU.

Stand-ins show what is done with CuPy; they can't show that CuPy has it. So every dotted name in the sources
that leads to something of CuPy's is looked up there, and every call of it is bound to its signature.
"""

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

pytest.importorskip("cupy", reason="needs CuPy (but no GPU), to ask what it has")

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for path in (*ROOT.glob("gpuconv/**/*.py"), *ROOT.glob("profiling/**/*.py"))
    if re.search(r"\b(cupy|xp)\b", path.read_text(encoding="utf-8"))
]

# A module, and names behind it; of an instance, those of its class.
Path_ = tuple[str, ...]
Names = dict[str, Path_]

CUBLAS, NCCL = "cupy_backends.cuda.libs.cublas", "cupy.cuda.nccl"
# What these names stand for, whoever sets them; others are followed from imports and assignments.
KNOWN: Names = {**dict.fromkeys(("cupy", "xp", "self.xp", "gpu.xp"), ("cupy",)), "cublas": (CUBLAS,)}
# Libraries beside CuPy, without which its bindings can't be imported.
NEEDS = {CUBLAS: "nvidia-cublas", NCCL: "nvidia-nccl-cu13"}


class Use(NamedTuple):
    """A place where something of CuPy's is named, and the call, where it is called."""

    where: str
    path: Path_
    call: ast.Call | None

    def __str__(self) -> str:
        return f"{self.where}: {'.'.join(self.path)}"


def uses(file: Path) -> Iterator[Use]:
    """Yield the uses in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}

    def visit(node: ast.AST, known: Names) -> Iterator[Use]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            known = _within(node, known)
        if isinstance(node, ast.Attribute) and (path := _of(node, known)):
            yield Use(f"{file.relative_to(ROOT)}:{node.lineno}", path, calls.get(id(node)))
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, known)

    yield from visit(tree, KNOWN)


def _within(scope: ast.FunctionDef | ast.ClassDef, known: Names) -> Names:
    """Return what names stand for within a function or, with `self` in front, within a class."""
    if isinstance(scope, ast.ClassDef):
        inner = [_within(each, known) for each in scope.body if isinstance(each, ast.FunctionDef)]
        return known | {n: path for names in inner for n, path in names.items() if n.startswith("self.")}
    parameters = {each.arg for each in ast.walk(scope.args) if isinstance(each, ast.arg)}
    known = {name: path for name, path in known.items() if name in KNOWN or name not in parameters}
    for node in ast.walk(scope):
        known |= dict(_aliases(node, known))
    return known


def _aliases(node: ast.AST, known: Names) -> Iterator[tuple[str, Path_]]:
    """Yield the names that a statement gives to CuPy's modules, and to instances of its classes."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cupy"):
        yield from ((each.asname or each.name, (f"{node.module}.{each.name}",)) for each in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
        pairs = zip(target.elts, node.value.elts, strict=True) if both else [(target, node.value)]
        for name, value in pairs:
            made = isinstance(value, ast.Call)
            path = _of(value.func if made else value, known)
            if path and isinstance(_look_up(path), type if made else ModuleType):
                yield ast.unparse(name), path


def _of(node: ast.AST, known: Names) -> Path_ | None:
    """Return what a dotted name stands for."""
    names: list[str] = []
    while True:
        if path := known.get(ast.unparse(node)):
            return (*path, *reversed(names))
        if not isinstance(node, ast.Attribute):
            return None
        names.append(node.attr)
        node = node.value


MISSING = object()


def _look_up(path: Path_) -> object:
    """Return what is there, or MISSING; what instances alone have, for a class, is in its docstring."""
    found = _imported(path[0])
    for name in path[1:]:
        if not isinstance(found, ModuleType | type):
            return found
        documented = isinstance(found, type) and any(f".{name} (" in (c.__doc__ or "") for c in found.__mro__)
        found = getattr(found, name, None if documented else MISSING)
    return found


@cache
def _imported(module: str) -> object:
    package, _, name = module.rpartition(".")
    try:
        # As `from package import name`: asked for the name, CuPy loads the library that it needs.
        return getattr(importlib.import_module(package), name) if package else importlib.import_module(name)
    except AttributeError:
        return importlib.import_module(module)
    except ImportError:
        return MISSING


def signature(function: object) -> inspect.Signature | None:
    """Return a signature as a caller sees it, read from the docstring where Cython has put it there."""
    parameters = None
    if type(function).__name__ == "ufunc":
        inputs = ", ".join(f"in{i}" for i in range(function.nin))
        parameters = f"{inputs}, out=None, *, dtype=None, casting='same_kind'"
    for documented in (function.__init__ if isinstance(function, type) else None, function):
        line = (inspect.getdoc(documented) or "").partition("\n")[0]
        if parameters is None and (match := re.fullmatch(r"[\w.]+\((.*?)\)(?: ->.*)?", line)):
            parameters = ", ".join(_without_type(each) for each in match[1].split(", ") if each)
    try:
        found = inspect.signature(
            function if parameters is None else eval(f"lambda {parameters}: None", vars(builtins))
        )
    except (TypeError, ValueError):
        return None
    seen = [each for name, each in found.parameters.items() if name not in ("self", "cls")]
    return found.replace(parameters=seen)


def _without_type(parameter: str) -> str:
    """Return one of Cython's parameters as Python writes it: "long long strideA" as "strideA"."""
    name, equals, default = parameter.partition("=")
    return name.split()[-1] + equals + ("None" if default else "")


ALL = [use for file in SOURCES for use in uses(file)]
MODULES = ("cupy", *NEEDS)


def of_module(module: str) -> list[Use]:
    """Return the uses of a module, or skip; of "cupy", those of all others but those in NEEDS."""
    if _imported(module) is MISSING or not getattr(_imported(module), "available", True):
        pytest.skip(f"needs {NEEDS[module]} (but no GPU)")
    found = [use for use in ALL if use.path[0] == module or (module == "cupy" and use.path[0] not in NEEDS)]
    assert found
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_cupy_s_is_there(module):
    assert not [str(use) for use in of_module(module) if _look_up(use.path) is MISSING]


@pytest.mark.parametrize("module", MODULES)
def test_every_call_binds_to_cupy_s_signature(module):
    wrong = []
    for use in of_module(module):
        if use.call is None or not (expected := signature(_look_up(use.path))):
            continue
        given = [each for each in use.call.args if not isinstance(each, ast.Starred)]
        named = {each.arg: each.value for each in use.call.keywords}
        all_seen = len(given) == len(use.call.args) and None not in named
        try:
            (expected.bind if all_seen else expected.bind_partial)(*given, **named)
        except TypeError as error:
            wrong.append(f"{use}{expected}: {error}")
    assert not wrong


def test_what_is_known_to_be_asked_for_is_seen():
    called = {".".join(use.path) for use in ALL if use.call}
    assert called >= {
        "cupy.RawModule",
        "cupy.RawModule.get_function",
        "cupy.cuda.Stream.begin_capture",
        "cupy.cuda.device.get_cublas_handle",
        "cupy.cuda.nccl.NcclCommunicator.allReduce" if _imported(NCCL).available else "cupy.RawModule",
        "cupy_backends.cuda.libs.cublas.gemmStridedBatchedEx",
    }
