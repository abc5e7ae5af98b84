"""Calls of our C kernels, shared out to the threads by C (native/jobs.h).

Were each a call from Python, threads would wait for the interpreter's lock between them: two threads took as
long for 22 calls of 33 us as one.
"""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from itertools import chain

from gpuconv.backends.cpu.compiled import Kernels
from gpuconv.backends.cpu.threads import memory, parallel, used

Row = Sequence[int]  # a call's arguments: addresses and numbers

# Of a call's arguments, by their places: memory that each thread has for itself, by slot and bytes.
Own = dict[int, tuple[str, int]]

# Work that a thread does before it looks whether Ctrl-C was pressed: some hundredths of a second.
PATIENCE = 1e8

# Rows up to which one thread calls from Python: a call takes 3 us, to tell C of all 8.
FEW = 3

WORD = "q" if ctypes.sizeof(ctypes.c_ssize_t) == 8 else "i"


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
    own, threads = own or {}, used(jobs, work)
    if len(rows) <= FEW and threads == 1:
        _one_by_one(getattr(kernels, name), rows, own)
        return
    table, bounds = array(WORD, chain.from_iterable(rows)), array(WORD, begins or ())
    number = ctypes.c_ssize_t(0)
    most = max(1, int(jobs * PATIENCE / max(work, 1)))
    shared = (
        *(kernels.addresses[name], table.buffer_info()[0], len(rows[0])),
        *(bounds.buffer_info()[0] if begins else None, jobs, most, ctypes.addressof(number)),
    )

    def one(_: int) -> None:
        mine = [(at, memory(*each)) for at, each in own.items()]  # a large one lives as long as this does
        places = array(WORD, chain.from_iterable((at, each.address) for at, each in mine))
        try:
            while number.value < jobs:
                kernels.run_jobs(*shared, places.buffer_info()[0], len(own))
        except BaseException:
            number.value = jobs  # for the other threads
            raise

    parallel(one, range(threads), work)


def _one_by_one(kernel: Callable[..., None], rows: Sequence[Row], own: Own) -> None:
    mine = [(at, memory(*each)) for at, each in own.items()]
    for row in rows:
        arguments = list(row)
        for at, each in mine:
            arguments[at] = each.address
        kernel(*arguments)
