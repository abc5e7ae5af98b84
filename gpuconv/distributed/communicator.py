"""What training asks of the processes' connection: a handful of calls that all of them make in one order."""

from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

Array = Any


class Pending(Protocol):
    """A sum that has begun; the array is not to be touched until it is there."""

    def advance(self) -> None:
        """Let what carries it go on, where nothing else does."""

    def wait(self) -> None:
        """Return when the sum is there for whatever is done with the array next."""


class Communicator(Protocol):
    """Processes that work together, numbered from 0: ranks.

    Every method but `abort` is called by all of them, in the same order and with arrays of the same shapes
    and dtypes. Arrays are in row-major order.

    Attributes
    ----------
    rank, size
        This process's number, and how many there are.
    """

    rank: int
    size: int

    @property
    def waited(self) -> float:
        """Seconds that this process, or its GPU, has spent waiting for others."""

    def start_sum(self, x: Array) -> Pending:
        """Begin to add an array up over all ranks, in place; each ends with the same bits."""

    def sum(self, x: Array) -> None:
        """Add an array up over all ranks, in place."""

    def broadcast(self, x: Array) -> None:
        """Write rank 0's values into everyone's array."""

    def everyone(self, value: Any) -> list[Any]:
        """Return what each rank gave, any object that can be pickled, in the order of ranks."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End together: where this rank fails and others don't, stop them, with a message that names it."""


def any_of(comm: Communicator, answer: bool) -> bool:
    """Tell whether any rank's answer is True."""
    answers = np.array([answer], np.int64)
    comm.sum(answers)
    return bool(answers[0])


def check_alike(comm: Communicator, op: str, **given: Any) -> None:
    """Check that every rank was given the same; all must ask.

    Raises
    ------
    ValueError
        On all ranks, naming the first one that has something else than rank 0.
    """
    first, *others = comm.everyone(given)
    for rank, other in enumerate(others, 1):
        for name, value in other.items():
            if value != first[name]:
                raise ValueError(
                    f"{op}: every rank must be given the same, but rank {rank} has {name} {value} "
                    f"where rank 0 has {first[name]}"
                )


class Alone:
    """The world of a single process: sums are what they are. Takes neither MPI nor a GPU."""

    rank, size, waited = 0, 1, 0.0

    def start_sum(self, x: Array) -> Pending:
        """Return a sum that is there already."""
        return self

    def sum(self, x: Array) -> None:
        """Do nothing: the only part is the sum."""

    def broadcast(self, x: Array) -> None:
        """Do nothing: the values are rank 0's."""

    def everyone(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def advance(self) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let an error go its way."""
