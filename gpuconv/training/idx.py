"""The IDX format of MNIST: how many axes, their sizes, then the values.

    0x00 0x00, type (0x08 is unsigned byte), number of axes D, D sizes (32 bits, big endian), values

Source: http://yann.lecun.com/exdb/mnist/, "The IDX file format".
"""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

UNSIGNED_BYTE = 0x08


class IdxError(ValueError):
    """A file that is not the IDX file it should be."""


def find_idx(folder: Path, stem: str, axes: int) -> Path:
    """Return the file `stem` of a folder, under whichever of its usual names it goes.

    Raises
    ------
    FileNotFoundError
        Where the folder has none of them.
    """
    plain = f"{stem}-idx{axes}-ubyte"
    dotted = f"{stem}.idx{axes}-ubyte"
    for name in (plain, dotted, f"{plain}.gz", f"{dotted}.gz"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: has no {plain} (nor {dotted}, nor either with .gz)")


def read_idx(path: Path, axes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an IDX file of unsigned bytes with this many axes; compressed if its first bytes are gzip's.

    Raises
    ------
    IdxError
        Where it is something else, or holds fewer or more values than its own header says.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise IdxError(f"{path}: damaged or truncated gzip file ({error})") from None
    if len(data) < 4 or data[:2] != b"\0\0":
        raise IdxError(f"{path}: not an IDX file (it must begin with two zero bytes)")
    if data[2] != UNSIGNED_BYTE or data[3] != axes:
        raise IdxError(
            f"{path}: holds {data[3]} axes of type 0x{data[2]:02x}; it must hold {axes} axes of "
            f"unsigned bytes (0x{UNSIGNED_BYTE:02x})"
        )
    start = 4 + 4 * axes
    if len(data) < start:
        raise IdxError(f"{path}: truncated in its header, after {len(data)} bytes")
    sizes = struct.unpack(f">{axes}I", data[4:start])
    if len(data) - start != prod(sizes):
        verb = "truncated" if len(data) - start < prod(sizes) else "too long"
        raise IdxError(
            f"{path}: {verb}: its header says {' x '.join(map(str, sizes))} values, "
            f"but {len(data) - start} follow"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)
