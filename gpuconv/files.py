"""Files that survive a kill, weights in safetensors files, and the folder of the user's cache."""

import contextlib
import errno
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuconv.backends.dispatch import to_host

Array = Any


def write_weights(op: str, path: Path, state: Mapping[str, Array]) -> None:
    """Write arrays by name as a safetensors file, whole or not at all.

    Raises
    ------
    ModuleNotFoundError
        Without the package safetensors.
    OSError
        Where it can't be written; what was at `path` before is still there.
    TypeError
        Where the format has no such dtype (complex128).
    """
    package = _safetensors(op)
    arrays = {name: to_host(array) for name, array in state.items()}
    for name, array in arrays.items():
        if array.dtype.char in "gDG":
            raise TypeError(f'{op}: "{name}" is {array.dtype.name}, which safetensors files can\'t hold')
    write_whole(path, package.save(arrays))


def read_weights(op: str, path: Path) -> dict[str, Array]:
    """Read a safetensors file into NumPy arrays by name.

    Raises
    ------
    ModuleNotFoundError
        Without the package safetensors.
    OSError
        Where it can't be read.
    ValueError
        Where the file is something else, truncated, or holds a dtype that NumPy doesn't have.
    """
    package, content = _safetensors(op), path.read_bytes()
    try:
        state: dict[str, Array] = package.load(content)
    except KeyError as error:  # the package asks NumPy's table for the dtype
        raise ValueError(
            f"{op}: {path} holds arrays of {error.args[0]}, a dtype that NumPy doesn't have"
        ) from None
    except Exception as error:  # the package has its own error for the header, and any for the arrays
        raise ValueError(f"{op}: {path} is no safetensors file that can be read: {error!r}") from error
    return state


def _safetensors(op: str) -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{op}: needs the package safetensors: pip install 'gpuconv[safetensors]'", name=error.name
        ) from None
    return safetensors.numpy


def cache_folder() -> Path:
    """Return the folder for what can be made again: GPUCONV_CACHE_DIR, or gpuconv in the user's cache.

    Raises
    ------
    RuntimeError
        Where the user has no home.
    """
    if asked := os.environ.get("GPUCONV_CACHE_DIR"):
        return Path(asked).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "gpuconv" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpuconv"
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "gpuconv"


def make_writable(folder: Path) -> None:
    """Make a folder where there is none, and find out whether it takes files, before there is work to lose.

    Raises
    ------
    OSError
        Where it doesn't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".can-write"
    write_whole(probe, b"")
    probe.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside, push it to the disk, then rename it into place.

    A link stays one, to the new content, and a file that was there keeps its permissions.

    Raises
    ------
    OSError
        Where it can't be written, or is a device or pipe; what was at `path` before is still there.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):  # to rename would remove the device
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    # Of this writer alone: two at once would rename each other's halves.
    aside = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            shutil.copymode(target, aside)
        os.replace(aside, target)
    except BaseException as error:  # Ctrl-C, too
        with contextlib.suppress(OSError):
            aside.unlink()
        if not isinstance(error, OSError):
            raise
        # A full disk is reported without the file's name.
        raise OSError(error.errno, error.strerror, str(path)) from None
