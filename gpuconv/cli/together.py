"""What the first of several processes does for all."""

from collections.abc import Callable
from typing import TypeVar, cast

from gpuconv.cli.errors import UserError
from gpuconv.distributed import Communicator

T = TypeVar("T")


def by_the_first(comm: Communicator, work: Callable[[], T]) -> T:
    """Let the first process do something with files; return its result, or raise its error, on all."""
    done: tuple[T | None, Exception | None] = None, None
    if comm.rank == 0:
        try:
            done = work(), None
        except (UserError, OSError) as error:
            done = None, error
    result, failed = comm.everyone(done)[0]
    if failed is not None:
        raise failed
    return cast(T, result)
