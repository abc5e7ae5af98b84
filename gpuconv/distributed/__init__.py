"""Training on several processes, each with a part of every batch: the same weights as one process.

    with distributed.world() as comm:                       # mpirun -n 4 python train.py
        network = distributed.DataParallel(network, comm)
        fit(network, x, y, loss=..., optimizer=Adam(network, 0.003), ...)

`DataParallel` sums the gradients of all processes while the backward pass goes on; MPI carries NumPy arrays,
NCCL CuPy's. mpi4py and CuPy are imported when a world of several processes, or of GPUs, is asked for.
"""

from gpuconv.distributed.communicator import Alone, Communicator
from gpuconv.distributed.data_parallel import DataParallel
from gpuconv.distributed.launch import on_gpus, share_cores, world
from gpuconv.distributed.shards import part
from gpuconv.distributed.stragglers import Stragglers

__all__ = [
    "Alone",
    "Communicator",
    "DataParallel",
    "Stragglers",
    "on_gpus",
    "part",
    "share_cores",
    "world",
]
