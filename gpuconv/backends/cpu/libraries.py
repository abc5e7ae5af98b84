"""Compiled libraries, kept in a folder of the user's for later processes.

A file's name says what it was compiled from and what it holds: a damaged one is seen and made again. Nothing
here is needed for computing: where nothing can be kept, a process has its own library and loses it.
"""

import ctypes
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpuconv.files import cache_folder

# Libraries that are kept, those used last: some versions of the package, dtypes and machines.
KEPT = 32

# Seconds to wait for another process that compiles the same; then this one does it, too.
PATIENCE = 200

SUFFIX = ".dll" if sys.platform == "win32" else ".so"


def load(key: str, make: Callable[[Path], None]) -> tuple[ctypes.CDLL, str]:
    """Return the library of this key, and why it couldn't be kept, or "".

    Parameters
    ----------
    key
        Of everything that the library depends on.
    make
        Writes the library to a path, where none was kept.
    """
    try:
        place = cache_folder()
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        place, trouble = None, str(error)
    if place is None:
        return _made(key, make, None, trouble)
    found = _kept(place, key)
    if found is None:
        with _alone(place):
            found = _kept(place, key)
            if found is None:
                return _made(key, make, place, "")
    return found, ""


def _made(
    key: str, make: Callable[[Path], None], place: Path | None, trouble: str
) -> tuple[ctypes.CDLL, str]:
    # A library that is loaded can lose its file, but on Windows, where the folder then stays.
    with tempfile.TemporaryDirectory(prefix="gpuconv-", ignore_cleanup_errors=True) as scratch:
        built = Path(scratch) / f"kernels{SUFFIX}"
        make(built)
        if place is not None:
            try:
                return ctypes.CDLL(str(_keep(place, key, built))), ""
            except OSError as error:  # read-only, full, or nothing there may be executed
                trouble = str(error)
        return ctypes.CDLL(str(built)), trouble


def _kept(place: Path, key: str) -> ctypes.CDLL | None:
    """Return the kept library, if it is there, whole, and nobody else's."""
    for path in place.glob(f"kernels-{key}-*{SUFFIX}"):
        with suppress(OSError):
            if path.name == _name(key, path.read_bytes()) and _is_ours(path):
                found = ctypes.CDLL(str(path))
                os.utime(path)  # used: see _prune
                return found
    return None


def _is_ours(path: Path) -> bool:
    """Tell whether only this user, or root, can have written a file."""
    if sys.platform == "win32":  # which has no owners of this kind; the user's folders are the user's
        return True
    state = path.stat()
    return state.st_uid in (0, os.geteuid()) and not state.st_mode & 0o022


def _name(key: str, content: bytes) -> str:
    return f"kernels-{key}-{hashlib.sha256(content).hexdigest()[:24]}{SUFFIX}"


def _keep(place: Path, key: str, built: Path) -> Path:
    """Copy a library to the folder, whole or not at all; return its place there."""
    content = built.read_bytes()
    path = place / _name(key, content)
    descriptor, unfinished = tempfile.mkstemp(prefix="kernels-", suffix=".new", dir=place)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
    _prune(place, key, path)
    return path


def _prune(place: Path, key: str, newest: Path) -> None:
    """Delete what of this key is damaged, and all but the libraries used last."""
    paths = []
    for path in place.glob("kernels-*"):
        with suppress(OSError):
            paths.append((path.stat().st_mtime, path))
    paths.sort(reverse=True)
    for number, (_, path) in enumerate(paths):
        if path != newest and (number >= KEPT or path.name.startswith(f"kernels-{key}-")):
            with suppress(OSError):  # another process was faster, or Windows has it loaded
                path.unlink()


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Let one process at a time compile: the others find what it kept. Without locks, each does."""
    try:
        import fcntl

        file = (place / "lock").open("a")
    except (ImportError, OSError):
        yield
        return
    with file:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        try:
            yield
        finally:
            with suppress(OSError):  # by name: a process forked meanwhile has the file open, too
                fcntl.flock(file, fcntl.LOCK_UN)
