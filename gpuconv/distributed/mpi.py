"""Processes connected by MPI, which mpi4py calls. Nothing here blocks: waiting is asking, again and again.

So a rank that waits still hears Ctrl-C, answers those who ask whether it is there, leaves its core to other
ranks where these are more than cores, and can say after a while who it is that doesn't come.
"""

import contextlib
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from gpuconv.backends.dispatch import array_module
from gpuconv.distributed.sentinel import Sentinel

Array = Any

# Seconds of waiting after which a rank sleeps between two looks, first for about a tenth of a millisecond.
PATIENCE, NAP = 1e-3, 5e-5
# After so long it sleeps longer, and looks for calls of those who miss somebody.
LONG, LONG_NAP = 1.0, 1e-3
# What others have to answer such a call, and to fail where one fails.
GRACE, TOGETHER = 5.0, 2.0

CALL, HERE = 1, 2  # tags


class Mpi:
    """All processes of an MPI communicator, by default of those that mpirun has started.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Duplicated, so that nothing of the user's gets in between.
    timeout : float, default 300
        Seconds to wait for a rank before the run is ended, with a message that names it.
    cuda_aware : bool, default False
        Whether this MPI takes memory on a GPU. One that doesn't crashes on it, and MPI has no way to ask.
    """

    def __init__(self, comm: Any = None, *, timeout: float = 300.0, cuda_aware: bool = False) -> None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD if comm is None else comm
        self._mpi, self._comm, self._calls = MPI, comm.Dup(), comm.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        self.timeout, self.cuda_aware = timeout, cuda_aware
        self.waited = 0.0
        self._answers: list[Any] = []  # sent, and to be kept until they have arrived
        self._patience = 0.0
        places = self.everyone((socket.gethostname(), os.getpid()))
        hosts = [host for host, _ in places]
        self.names = [f"pid {pid} on {host}" for host, pid in places]
        # To spin is to keep a rank from working where there are more of them than cores.
        if hosts.count(socket.gethostname()) <= (os.cpu_count() or 1):
            self._patience = PATIENCE
        self._sentinel = Sentinel(self.rank, hosts, self.everyone)

    def start_sum(self, x: Array) -> "_Sum":
        """Begin an Iallreduce, in place."""
        self._ready(x)
        return _Sum(self, self._comm.Iallreduce(self._mpi.IN_PLACE, x), x)

    def sum(self, x: Array) -> None:
        """Add an array up over all ranks, in place."""
        self.start_sum(x).wait()

    def broadcast(self, x: Array) -> None:
        """Write rank 0's values into everyone's array."""
        self._ready(x)
        self.wait(self._comm.Ibcast(x).Test)

    def everyone(self, value: Any) -> list[Any]:
        """Return what each rank gave, in the order of ranks."""
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = np.empty(self.size, np.int64)
        length = np.array([own.size])
        self.wait(self._comm.Iallgather(length, lengths).Test)
        whole = np.empty(lengths.sum(), np.uint8)
        self.wait(self._comm.Iallgatherv(own, [whole, lengths.tolist()]).Test)
        return [pickle.loads(each.tobytes()) for each in np.split(whole, np.cumsum(lengths)[:-1])]

    def wait(self, arrived: Callable[[], bool]) -> None:
        """Ask until it has arrived; end the run where it doesn't in time."""
        begin = time.perf_counter()
        while not arrived():
            waited = time.perf_counter() - begin
            if waited < self._patience:
                _yield()
                continue
            time.sleep(NAP if waited < LONG else LONG_NAP)
            if waited > LONG:
                self._answer()
            if waited > self.timeout:
                self._end_without(self._missing(), waited)
        self.waited += time.perf_counter() - begin

    def _ready(self, x: Array) -> None:
        """Check that MPI can take an array, and let a GPU finish what it still does with it."""
        if array_module(x) is np:
            return
        if not self.cuda_aware:
            raise TypeError(
                "Mpi: the array is CuPy's, but this MPI is not known to take memory on a GPU: let NCCL do it "
                '(gpuconv.distributed.world("cuda")), or say cuda_aware=True where it does'
            )
        array_module(x).cuda.get_current_stream().synchronize()  # MPI knows nothing of streams

    # Who is missing

    def _answer(self) -> None:
        """Tell those who call that this rank is here, and waits too."""
        status = self._mpi.Status()
        while self._calls.iprobe(tag=CALL, status=status):
            self._calls.recv(source=status.source, tag=CALL)
            self._answers.append(self._calls.isend(None, status.source, tag=HERE))

    def _missing(self) -> list[int]:
        """Call all others; return those who don't answer."""
        self._answers += [self._calls.isend(None, rank, tag=CALL) for rank in self._others()]
        missing, end = set(self._others()), time.monotonic() + min(GRACE, self.timeout)
        status = self._mpi.Status()
        while missing and time.monotonic() < end:
            self._answer()
            while self._calls.iprobe(tag=HERE, status=status):
                self._calls.recv(source=status.source, tag=HERE)
                missing.discard(status.source)
            time.sleep(LONG_NAP)
        return sorted(missing)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _end_without(self, missing: list[int], waited: float) -> NoReturn:
        if missing:
            who = ", ".join(f"rank {rank} ({self.names[rank]})" for rank in missing)
            reason = f"{who} didn't come within {waited:.0f} s"
        else:
            reason = f"after {waited:.0f} s all ranks wait, but not for the same: their programs differ"
        if self.rank != min(set(range(self.size)) - set(missing)):
            time.sleep(TOGETHER)  # one of us says it
        self._abort(f"rank {self.rank} waits in vain: {reason}; all are stopped")

    # Ending

    def _abort(self, message: str, code: Any = 1) -> NoReturn:
        print(f"gpuconv: {message}", file=sys.stderr, flush=True)
        self._sentinel.dismiss()
        self._mpi.COMM_WORLD.Abort(code if isinstance(code, int) else 1)
        raise SystemExit(1)  # not reached

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the others; where this rank fails alone, say so and stop them.

        Where all fail, which they do alike, rank 0's error goes on, and the others leave in silence.
        """
        if error is None:
            failed, request = self._meet(False)
            self.wait(request.Test)
            if failed[0]:
                time.sleep(TOGETHER + GRACE)  # who failed says so, and stops this one
                self._abort(f"rank {self.rank} is done, but others have failed")
            self._sentinel.dismiss()
            return
        if not self._all_fail():
            traceback.print_exception(error)
            me = f"rank {self.rank} of {self.size} ({self.names[self.rank]})"
            code = error.code if isinstance(error, SystemExit) and error.code else 1  # it is a failure
            self._abort(f"{me} failed: {_line(error)}; the others are stopped", code)
        self._sentinel.dismiss()
        lines = self._calls.allgather(_line(error))  # all are here
        if lines[self.rank] != lines[0]:
            print(f"gpuconv: rank {self.rank} failed, too: {_line(error)}", file=sys.stderr, flush=True)
        if self.rank:
            raise SystemExit(0) from None

    def _all_fail(self) -> bool:
        """Tell whether the others come here within a moment, too."""
        (failed, request), end = self._meet(True), time.monotonic() + TOGETHER
        while not request.Test():
            if time.monotonic() > end:
                return False
            time.sleep(LONG_NAP)
        return bool(failed[0] == self.size)  # others may have come here because they are done

    def _meet(self, failing: bool) -> tuple[Any, Any]:
        """Begin to count the ranks that fail."""
        failed = np.array([failing], np.int64)
        return failed, self._calls.Iallreduce(self._mpi.IN_PLACE, failed)


class _Sum:
    """An Iallreduce under way; it holds the array, which MPI writes to."""

    def __init__(self, mpi: Mpi, request: Any, x: Array) -> None:
        self._mpi, self._request, self._x = mpi, request, x

    def advance(self) -> None:
        """Look, which is when MPI goes on: most have no thread for it."""
        self._request.Test()

    def wait(self) -> None:
        self._mpi.wait(self._request.Test)
        self._x = None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _yield() -> None:
    with contextlib.suppress(AttributeError):  # not on Windows
        os.sched_yield()
