"""Calls of our C kernels, shared out to the threads by C (native/jobs.h).

Were each a call from Python, threads would wait for the interpreter's lock between them: two threads took as
long for 22 calls of 33 us as one. Nor does a thread return to Python as soon as it has nothing to do: one
that waits in C for the next call is there at once.
"""

import ctypes
import os
import time
from array import array
from collections.abc import Callable, Sequence
from itertools import chain

from gpuconv.backends.cpu.compiled import Kernels, fields
from gpuconv.backends.cpu.threads import Helpers, count, helpers, memory, used

Row = Sequence[int]  # a call's arguments: addresses and numbers

# Of a call's arguments, by their places: memory that each thread has for itself, by slot and bytes.
Own = dict[int, tuple[str, int]]

# Work that a thread does before it looks whether Ctrl-C was pressed: some hundredths of a second.
PATIENCE = 1e8

# Work above which other threads take part where calls follow one another within so many seconds: those are
# waiting then. Waking one for a single call takes longer.
EASY_WORK, SOON = 5e5, 1e-3

# Rows up to which one thread calls from Python: a call takes 3 us, to tell C of all 8.
FEW = 3

# Pauses of the processor's (25 ns each where this was measured) for which a caller waits for the last jobs of
# others, before it naps; and a thread for another call, before it sleeps: steps of training small networks
# take 2 to 6 % less, and 32000 give no more. OpenMP's threads wait, too, and heed the same variable.
LAST = 8000
LINGER = 0 if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" else 8000
NAP = 1e-4  # seconds

WORD = "q" if ctypes.sizeof(ctypes.c_ssize_t) == 8 else "i"


class Together(ctypes.Structure):
    """A call of `run`, for C."""

    _fields_ = fields("jobs.h", "Together")


def run(
    kernels: Kernels,
    name: str,
    rows: Sequence[Row],
    work: float,
    own: Own | None = None,
    begins: Sequence[int] | None = None,
) -> None:
    """Call a kernel with each row of arguments, on all threads; return when all are done.

    Parameters
    ----------
    rows
        Calls may write to no places that another one reads or writes, unless they are one job.
    work
        As in `parallel`.
    own
        What the rows leave open.
    begins
        Where each job's rows begin, and the last one's end: a thread does these in order. By default each row
        is a job.
    """
    jobs = len(rows) if begins is None else len(begins) - 1
    own, most = own or {}, used(jobs, work)
    if most == 1 < jobs and work > EASY_WORK and _follows_another():
        most = min(jobs, count())
    if len(rows) <= FEW and most == 1:
        _one_by_one(getattr(kernels, name), rows, own)
        return
    table, bounds = array(WORD, chain.from_iterable(rows)), array(WORD, begins or ())
    mine = [
        (at, memory(f"{slot} {thread}", size)) for thread in range(most) for at, (slot, size) in own.items()
    ]
    places = array(WORD, chain.from_iterable((at, each.address) for at, each in mine))
    nexts = array(WORD, chain.from_iterable((jobs * share // most, *_REST) for share in range(most)))
    together = Together(
        kernel=kernels.addresses[name],
        rows=table.buffer_info()[0],
        words=len(rows[0]) if rows else 0,
        begin=bounds.buffer_info()[0] if begins else 0,
        jobs=jobs,
        own=places.buffer_info()[0],
        owned=len(own),
        threads=most,
        next=nexts.buffer_info()[0],
    )
    _Call(kernels, together, (table, bounds, places, nexts, mine)).done(
        max(1, int(jobs * PATIENCE / max(work, 1)))
    )


class _Call:
    """A call of `run`, and what C reads of it."""

    def __init__(self, kernels: Kernels, together: Together, kept: object) -> None:
        self._kernels, self._together, self._kept = kernels, together, kept
        self._address = ctypes.addressof(together)

    def done(self, most: int) -> None:
        """Do it, looking every so many jobs whether Ctrl-C was pressed."""
        together, address, count = self._together, 0, 0
        try:
            if together.threads > 1:
                desks = Desks.of(helpers(), self._kernels)
                desks.helpers.ask(self, together.threads - 1 - desks.waiting())
                address, count = desks.address, desks.helpers.count
            while not together.ended:
                self._kernels.run_jobs(self._address, most, address, count, LAST)
        except BaseException:
            self._kernels.end_jobs(self._address)
            self._wait()
            raise
        self._wait()

    def help(self, number: int) -> None:
        """Do jobs on another thread than the caller's, if any are left."""
        self._kernels.join_jobs(self._address, number)

    def _wait(self) -> None:
        # Others write to the caller's arrays as long as they are inside: Ctrl-C waits, too.
        interrupted: BaseException | None = None
        while self._together.inside:
            try:
                time.sleep(NAP)
            except BaseException as error:
                interrupted = error
        if interrupted:
            raise interrupted


class Desks:
    """Where helpers wait in C, each at its own, to help with calls of any kernels."""

    def __init__(self, helpers: Helpers, kernels: Kernels) -> None:
        self.helpers, self._kernels = helpers, kernels
        self._words = array(WORD, [AWAY]) * (LINE * (helpers.count + 1))
        # When Python ends, a thread may be waiting still: its desk outlives what else Python takes apart.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._words))
        begin = self._words.buffer_info()[0]
        self._first = -begin % (LINE * self._words.itemsize) // self._words.itemsize
        self.address = begin + self._first * self._words.itemsize

    @classmethod
    def of(cls, helpers: Helpers, kernels: Kernels) -> "Desks":
        """Return these helpers' desks, made when there are the first kernels."""
        found = _desks.get(helpers)
        if found is None:
            found = _desks.setdefault(helpers, cls(helpers, kernels))
            helpers.linger, helpers.hurry = found._linger, found._hurry
        return found

    def waiting(self) -> int:
        """Return how many wait at the moment."""
        return self._words[self._first :: LINE].count(WAITING)

    def _linger(self, number: int) -> None:
        self._kernels.wait_at(self.address, number, LINGER)

    def _hurry(self, number: int) -> None:
        self._kernels.send_away(self.address, self.helpers.count, number)


_desks: dict[Helpers, Desks] = {}

# As in native/jobs.h.
AWAY, WAITING, LINE = 0, 1, 16
_REST = (0,) * (LINE - 1)


_begun = 0.0


def _follows_another() -> bool:
    """Tell whether the last call that asked this began a short while ago."""
    global _begun
    before, _begun = _begun, time.perf_counter()
    return _begun - before < SOON


def _one_by_one(kernel: Callable[..., None], rows: Sequence[Row], own: Own) -> None:
    mine = [(at, memory(*each)) for at, each in own.items()]
    for row in rows:
        arguments = list(row)
        for at, each in mine:
            arguments[at] = each.address
        kernel(*arguments)
