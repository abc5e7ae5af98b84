"""Which rank the others wait for."""

import time
from statistics import median

from gpuconv.distributed.communicator import Communicator

# A rank is slow when it works this many times as long as the others' median.
FACTOR = 1.5
# Steps between two looks.
EVERY = 100


class Stragglers:
    """Watches how long each rank works for a step: all time but that in which it waits for others.

    Every rank must call the same methods, and all get the same answers.

    Parameters
    ----------
    comm : Communicator
    factor : float, default 1.5
        How many times as long as the median of the others is too long.
    every : int, default 100
        Steps between two looks.

    Examples
    --------
    >>> from gpuconv.distributed import Alone
    >>> stragglers = Stragglers(Alone(), every=1)
    >>> stragglers.step() is None       # nobody to wait for
    True
    """

    def __init__(self, comm: Communicator, *, factor: float = FACTOR, every: int = EVERY) -> None:
        self._comm, self._factor, self._every = comm, factor, every
        self.restart()

    def restart(self) -> None:
        """Begin anew: what has happened since the last look doesn't count."""
        self._steps = 0
        self._begin, self._waited = time.perf_counter(), self._comm.waited

    def step(self) -> str | None:
        """Count a step; return what `lap` does where it is time for it."""
        self._steps += 1
        return self.lap() if self._steps >= self._every else None

    def lap(self) -> str | None:
        """Return a line on the slowest rank, if it was too slow since the last look."""
        if not self._steps or self._comm.size == 1:
            self.restart()
            return None
        worked = time.perf_counter() - self._begin - (self._comm.waited - self._waited)
        times = self._comm.everyone(1e3 * worked / self._steps)
        self.restart()
        slowest = max(range(len(times)), key=times.__getitem__)
        usual = median(times[:slowest] + times[slowest + 1 :])
        if times[slowest] <= self._factor * usual:
            return None
        return (
            f"rank {slowest} is slow: it works {times[slowest]:.1f} ms a step, the others {usual:.1f} ms "
            "(median), and they wait for it"
        )
