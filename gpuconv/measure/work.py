"""The work of an operation."""

from typing import NamedTuple


class Work(NamedTuple):
    """What a call must do at least."""

    flops: int
    bytes: int
