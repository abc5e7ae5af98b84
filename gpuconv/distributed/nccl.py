"""Processes with a GPU each, connected by NCCL, which CuPy's own bindings call.

Sums run on a stream of their own: it waits for what has computed the array, and what uses the sum waits for
it, by events; the program waits for neither. What is no array on a GPU goes through MPI.
"""

import socket
from collections import deque
from types import TracebackType
from typing import Any, Self

import numpy as np

from gpuconv.backends.cuda import runtime
from gpuconv.distributed.communicator import Communicator, Pending

Array = Any

INSTALL = "pip install 'gpuconv[nccl13]' (or 'gpuconv[nccl12]', beside cupy-cuda12x) brings it"


class Nccl:
    """The same processes as `control`, each with a GPU of its own.

    Parameters
    ----------
    control : Communicator
        Spreads NCCL's id, and carries what lies on no GPU.

    Raises
    ------
    RuntimeError
        Without a GPU, CuPy or NCCL, and where two ranks would share a GPU, which NCCL refuses.
    """

    def __init__(self, control: Communicator) -> None:
        runtime.check_installed()
        import cupy
        from cupy.cuda import nccl

        if not nccl.available:
            raise RuntimeError(f"several GPUs need NCCL, which CuPy can't load; {INSTALL}")
        self._control, self._cuda, self._bindings = control, cupy.cuda, nccl
        self.rank, self.size = control.rank, control.size
        self._types: dict[np.dtype[Any], tuple[int, int]] = {
            np.dtype(np.float32): (nccl.NCCL_FLOAT32, 1),
            np.dtype(np.float64): (nccl.NCCL_FLOAT64, 1),
            np.dtype(np.float16): (nccl.NCCL_FLOAT16, 1),
            np.dtype(np.complex64): (nccl.NCCL_FLOAT32, 2),
            np.dtype(np.complex128): (nccl.NCCL_FLOAT64, 2),
            np.dtype(np.int64): (nccl.NCCL_INT64, 1),
        }
        self._take_device()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        identity = control.everyone(nccl.get_unique_id() if control.rank == 0 else None)[0]
        self._nccl = nccl.NcclCommunicator(control.size, identity, control.rank)
        self._waits: deque[tuple[Any, Any]] = deque()  # events around each wait of the GPU's
        self._waited = 0.0

    @property
    def waited(self) -> float:
        """Seconds that the GPU, and the program, have spent waiting for others; this waits for the GPU."""
        if self._waits:
            self._waits[-1][1].synchronize()
        self._read_waits()
        return self._waited + self._control.waited

    def start_sum(self, x: Array) -> Pending:
        """Begin an all-reduce, in place, beside what the current stream does next."""
        if isinstance(x, np.ndarray):
            return self._control.start_sum(x)
        address, count, kind = self._described(x)
        self._stream.wait_event(self._cuda.get_current_stream().record())
        self._nccl.allReduce(address, address, count, kind, self._bindings.NCCL_SUM, self._stream.ptr)
        return _Sum(self, self._stream.record(), x)

    def sum(self, x: Array) -> None:
        """Add an array up over all ranks, in place."""
        self.start_sum(x).wait()

    def broadcast(self, x: Array) -> None:
        """Write rank 0's values into everyone's array."""
        if isinstance(x, np.ndarray):
            self._control.broadcast(x)
            return
        address, count, kind = self._described(x)
        self._stream.wait_event(self._cuda.get_current_stream().record())
        self._nccl.broadcast(address, address, count, kind, 0, self._stream.ptr)
        self.hold(self._stream.record())

    def everyone(self, value: Any) -> list[Any]:
        """Return what each rank gave, in the order of ranks."""
        return self._control.everyone(value)

    def hold(self, event: Any) -> None:
        """Let the current stream wait for an event, and take the time."""
        current = self._cuda.get_current_stream()
        begin = current.record()
        current.wait_event(event)
        self._waits.append((begin, current.record()))
        self._read_waits()

    def _read_waits(self) -> None:
        while self._waits and self._waits[0][1].done:
            self._waited += 1e-3 * self._cuda.get_elapsed_time(*self._waits.popleft())

    def _described(self, x: Array) -> tuple[int, int, int]:
        """Return an array's address, and its size and type as NCCL counts them."""
        if x.dtype not in self._types or not x.flags.c_contiguous:
            known = ", ".join(dtype.name for dtype in self._types)
            raise TypeError(
                f"Nccl: the array must be in row-major order and one of {known}, not {x.dtype.name}"
            )
        kind, numbers = self._types[x.dtype]
        return runtime.of(x).address(x), numbers * x.size, kind

    def _take_device(self) -> None:
        """Make a GPU the current one that no other rank of this machine has."""
        host = socket.gethostname()
        hosts = self._control.everyone(host)
        count = self._cuda.runtime.getDeviceCount()
        device = self._cuda.Device(hosts[: self.rank].count(host) % count)
        device.use()
        taken = self._control.everyone((host, device.pci_bus_id))
        for where in taken:
            sharers = [rank for rank, other in enumerate(taken) if other == where]
            if len(sharers) > 1:
                raise RuntimeError(
                    f"ranks {', '.join(map(str, sharers))} would share a GPU of {where[0]}, which NCCL "
                    "refuses: start as many processes on a machine as it shows them GPUs"
                )

    def __enter__(self) -> Self:
        self._control.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End together, as `control` does."""
        if error is None:
            self._stream.synchronize()
        self._control.__exit__(kind, error, trace)


class _Sum:
    """An all-reduce under way on the stream; it holds the array."""

    def __init__(self, nccl: Nccl, done: Any, x: Array) -> None:
        self._nccl, self._done, self._x = nccl, done, x

    def advance(self) -> None:
        """Do nothing: NCCL goes on by itself."""

    def wait(self) -> None:
        self._nccl.hold(self._done)
        self._x = None
