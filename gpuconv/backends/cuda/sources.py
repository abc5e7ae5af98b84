"""Where the CUDA sources are: in the installed package, or in the checkout's `cuda/` folder."""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]


def folder() -> Path:
    """Return the folder of the `.cu` files.

    A wheel carries them as `gpuconv/cuda/`; a checkout or an editable install has `cuda/` beside the package.
    The latter counts only beside a `pyproject.toml`: CuPy's dependencies put another folder `cuda` into
    site-packages.

    Raises
    ------
    FileNotFoundError
        Where neither is there: the installation lost files.
    """
    inside, beside = PACKAGE / "cuda", PACKAGE.parent / "cuda"
    if inside.is_dir():
        return inside
    if beside.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        return beside
    raise FileNotFoundError(
        f"gpuconv's CUDA sources are neither in {inside} nor in {beside}; install gpuconv again"
    )


def read(name: str) -> str:
    """Return the text of one source, named without `.cu`, with the headers of ours that it includes put in.

    CuPy's disk cache goes by the text that is compiled, and doesn't see a header change.
    """
    return _with_headers(f"{name}.cu")


def _with_headers(file: str) -> str:
    text = (folder() / file).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: _with_headers(match[1]), text)


_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)


def common() -> str:
    """Return the text that is put in front of every source."""
    return (folder() / "common.cuh").read_text(encoding="utf-8")


@cache
def sha256() -> str:
    """Return the SHA-256 of what computes on a GPU: this backend and its kernels."""
    files = [*Path(__file__).parent.glob("*.py"), *folder().glob("*.cu*")]
    return digest({path.name: path for path in files})


def digest(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 over the names and contents of files."""
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        found.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def names() -> list[str]:
    """Return the names of all sources, without `.cu`."""
    return sorted(path.stem for path in folder().glob("*.cu"))
