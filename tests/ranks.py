"""What tests let each of several processes do: mpirun python tests/ranks.py TASK ARGUMENTS."""

import os
import signal
import sys
import time
import zlib

import numpy as np

import gpuconv
from gpuconv import distributed, nn
from gpuconv.cli import main, progress

RNG = np.random.default_rng(1)
X = RNG.standard_normal((37, 1, 8, 8))
Y = RNG.integers(0, 10, 37)


def network(seed=0):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        # No bias: before a normalisation its gradient is rounding's alone, and Adam makes steps of that.
        nn.Conv2d(1, 4, 3, bias=False, rng=rng, dtype=np.float64),
        nn.BatchNorm2d(4, dtype=np.float64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3, rng=5),
        nn.Linear(36, 10, rng=rng, dtype=np.float64),
    )


def trained(network):
    """Make twenty updates with batches of 9 pictures and, every fifth time, 1: other ranks then have none."""
    gpuconv.fit(
        network,
        X,
        Y,
        loss=nn.SoftmaxCrossEntropy(),
        optimizer=nn.Adam(network, 0.01),
        max_iterations=20,
        batch_size=9,
        rng=np.random.default_rng(3),
    )
    return network.state_dict()


def bits(state):
    return zlib.crc32(b"".join(array.tobytes() for array in state.values()))


def weights(out):
    """Train twice, from weights of which rank 0's alone count; write them, if all agree in every bit."""
    with distributed.world() as comm:
        states = [
            trained(distributed.DataParallel(network(seed), comm, sync_batch_norm=True, bucket_bytes=300))
            for seed in (comm.rank, 2 * comm.rank)
        ]
        found = comm.everyone([bits(state) for state in states])
        assert len({one for both in found for one in both}) == 1, found
        if comm.rank == 0:
            np.savez(out, **states[0])


def fails(how, who, timeout):
    """Let one rank end in some way while the others go on."""
    with distributed.world(timeout=float(timeout)) as comm:
        for step in range(1000):
            if step == 20 and comm.rank == int(who):
                WAYS[how]()
            comm.sum(np.ones(1000))
            time.sleep(0.002)


def _raises():
    raise ValueError("no more bread")


WAYS = {
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": _raises,
    "hangs": lambda: time.sleep(1000),
    "leaves": lambda: sys.exit(5),
}


def late(how):
    """Let a rank fail where the others are done, or every rank in a way of its own, or one die at once."""
    with distributed.world(timeout=2.0) as comm:
        if how == "dies at once" and comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.sum(np.ones(10))
        if how == "leaves with 0" and comm.rank == 1:
            sys.exit(0)
        if how == "all fail" or comm.rank == 1:
            raise ValueError(f"rank {comm.rank} has no bread")


def slow(who):
    """Let one rank take its time."""
    with distributed.world() as comm:
        stragglers = distributed.Stragglers(comm, every=10)
        lines = []
        for _ in range(20):
            time.sleep(0.02 if comm.rank == int(who) else 0.002)
            comm.sum(np.ones(10))
            lines.append(stragglers.step())
        if comm.rank == 0:
            print(*filter(None, lines), sep="\n")


def hears(what, iteration, *arguments):
    """Be `gpuconv train`, whose second rank gets a signal after so many updates."""
    from mpi4py import MPI

    update = progress.Silence.update

    def until(self, iterations, loss):
        if iterations == int(iteration) and MPI.COMM_WORLD.rank == 1:
            os.kill(os.getpid(), signal.Signals[what])
        update(self, iterations, loss)

    progress.Silence.update = until
    train(*arguments)


def confined(*arguments):
    """Be `gpuconv train` where no file may have more than so many bytes, as on a disk that is full."""
    import resource

    from mpi4py import MPI  # noqa: F401  whose own files are there then

    most, *arguments = arguments
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
    train(*arguments)


def strays(*options):
    """Be `gpuconv train`, whose second rank has been given other options besides."""
    from mpi4py import MPI

    train("--data", "nothing", *options * MPI.COMM_WORLD.rank)


def train(*arguments):
    """Be `gpuconv train`."""
    command("train", *arguments)


def command(*arguments):
    """Be `gpuconv`."""
    sys.exit(main(arguments))


if __name__ == "__main__":
    tasks = (weights, fails, late, slow, hears, confined, strays, train, command)
    {task.__name__: task for task in tasks}[sys.argv[1]](*sys.argv[2:])
