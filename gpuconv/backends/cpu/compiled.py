"""C kernels for NumPy arrays (native/*.c): compiled for this machine when first used, and kept.

NumPy alone does everything, but neither a convolution of few channels nor a pooling fast: each of its
operations passes over memory again. The extra `fast` brings a C compiler (ziglang, a package of its own),
with which the kernels are compiled once, for this processor's own vectors, in about a second.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.config import config

Array = np.ndarray[Any, Any]

SOURCES = Path(__file__).parent / "native"
SUFFIXES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}

# -ffp-contract: a multiply-add rounds once. Nothing else is given up: no sum is reordered but where the
# sources do it themselves, infinities and NaN are what they are. Without the C library they load anywhere.
FLAGS = [
    *("-std=c11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffreestanding", "-nostdlib", "-fno-stack-protector", "-shared", "-fPIC", "-fvisibility=hidden"),
    "-g0",  # ziglang would write debug information, which takes longer than the code
]


class Kernels:
    """The compiled functions for one dtype, as attributes by the names that the sources give them."""

    def __init__(self, library: ctypes.CDLL, suffix: str, number: type) -> None:
        for name, parameters in _functions().items():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes = [_ctype(kind, number) for kind in parameters]
            function.restype = None
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(f"no kernel is called {name!r}")


def kernels(*arrays: Array) -> Kernels | None:
    """Return the kernels for these arrays, all of one dtype; None where there are none or none are wanted."""
    dtype = arrays[0].dtype
    if dtype not in SUFFIXES or not config.compiled or any(x.dtype != dtype for x in arrays):
        return None
    found = _loaded.get(dtype)
    if found is None and not _tried:
        _load()
        found = _loaded.get(dtype)
    if found is None or any(step % dtype.itemsize for x in arrays for step in x.strides):
        return None
    return found


def why_not() -> str:
    """Return why there are no compiled kernels; "" where there are, or nobody asked for them yet."""
    return _why_not


def address(x: Array) -> int:
    """Return where an array's first element lies."""
    found: int = x.__array_interface__["data"][0]
    return found


def strides(x: Array) -> list[int]:
    """Return an array's steps along its axes, in elements."""
    return [step // x.itemsize for step in x.strides]


_lock = threading.Lock()
_loaded: dict[Any, Kernels] = {}
_tried = False
_why_not = ""


def _load() -> None:
    global _tried, _why_not
    with _lock:
        if _tried:
            return
        try:
            command = compiler()
            library = ctypes.CDLL(str(_library(command))) if command else None
        except (OSError, subprocess.SubprocessError) as error:
            library, _why_not = None, _reason(error)
            warnings.warn(
                f"gpuconv: its C kernels can't be compiled, so NumPy computes, slower: {_why_not}",
                RuntimeWarning,
                stacklevel=4,
            )
        else:
            if library is None:
                _why_not = "there is no compiler: pip install 'gpuconv[fast]' brings one"
        if library is not None:
            for dtype, suffix in SUFFIXES.items():
                _loaded[dtype] = Kernels(
                    library, suffix, {"f32": ctypes.c_float, "f64": ctypes.c_double}[suffix]
                )
        _tried = True


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return f"{shlex.join(error.cmd[:4])}… said: {said[0] if said else f'exit status {error.returncode}'}"
    return f"{type(error).__name__}: {error}"


def compiler() -> list[str]:
    """Return the compiler's command: GPUCONV_CC's, or that of the extra `fast`; empty where there is none."""
    asked = os.environ.get("GPUCONV_CC")
    if asked is not None:
        return shlex.split(asked)
    if importlib.util.find_spec("ziglang") is None:
        return []
    return [sys.executable, "-m", "ziglang", "cc"]


def _library(command: list[str]) -> Path:
    """Return the compiled kernels for this processor, from the cache or compiled now."""
    key = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".c", ".h"):
            key.update(source.read_bytes())
    key.update(repr((command, FLAGS, _compiler_version(command), _processor())).encode())
    name = f"kernels-{key.hexdigest()[:32]}{'.dll' if sys.platform == 'win32' else '.so'}"
    folder = cache_folder()
    if (folder / name).is_file():
        return folder / name
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / name
        # Zig keeps what it compiles, beside the sources unless told: nothing that we would use again.
        caches = {"ZIG_LOCAL_CACHE_DIR": scratch, "ZIG_GLOBAL_CACHE_DIR": scratch}
        subprocess.run(
            [*command, *FLAGS, "-o", str(built), str(SOURCES / "all.c")],
            check=True,
            capture_output=True,
            env={**os.environ, **caches},
            timeout=300,
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(built.read_bytes())
            os.replace(file.name, folder / name)  # whole or not at all, whoever else compiles it now
            return folder / name
        except OSError:  # read-only or full: this process has them, the next compiles again
            kept = Path(tempfile.mkdtemp(prefix="gpuconv-")) / name
            shutil.copy(built, kept)
            return kept


def cache_folder() -> Path:
    """Return the folder for compiled kernels: GPUCONV_CACHE_DIR, or gpuconv in the user's cache."""
    if asked := os.environ.get("GPUCONV_CACHE_DIR"):
        return Path(asked)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "gpuconv" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpuconv"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuconv"


def _compiler_version(command: list[str]) -> str:
    program = shutil.which(command[0]) or command[0]
    if "ziglang" in command:
        from importlib import metadata

        return metadata.version("ziglang")
    try:
        return str(os.stat(program).st_mtime_ns)
    except OSError:
        return ""


def _processor() -> str:
    """Return what tells processors apart: a folder may be shared by machines whose vectors differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    named = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(named)}))


def _functions() -> dict[str, list[str]]:
    """Return the kernels and the types of their parameters, read from the sources, so declared once."""
    text = "".join(source.read_text() for source in sorted(SOURCES.glob("*.c")))
    found = re.findall(r"EXPORT void NAME\((\w+)\)\(([^)]*)\)", text)
    return {name: [part.strip() for part in parameters.split(",")] for name, parameters in found}


def _ctype(parameter: str, number: type) -> Any:
    if "*" in parameter:
        return ctypes.c_void_p
    return {"ptrdiff_t": ctypes.c_ssize_t, "int": ctypes.c_int, "T": number}[parameter.split()[-2]]


def fields(name: str) -> list[tuple[str, Any]]:
    """Return the fields of a struct of the sources, all of type ptrdiff_t, for a ctypes structure."""
    text = "".join(source.read_text() for source in sorted(SOURCES.glob("*.h")))
    match = re.search(rf"typedef struct {{([^}}]*)}} {name};", text)
    if match is None:
        raise LookupError(f"native/*.h declare no struct {name}")
    body = re.sub(r"//[^\n]*", "", match[1]).replace("ptrdiff_t", "")
    found: list[tuple[str, Any]] = []
    for field in re.split(r"[,;]", body):
        if field.strip():
            word, _, count = field.strip().rstrip("]").partition("[")
            found.append((word, ctypes.c_ssize_t * int(count) if count else ctypes.c_ssize_t))
    return found
