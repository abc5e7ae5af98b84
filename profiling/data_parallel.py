"""Time a training step of several processes beside that of one, and what of a sum hides behind computing.

    OMP_NUM_THREADS=1 mpirun -n 2 python profiling/data_parallel.py

The first process trains alone on whole batches while the others sleep, then all train on their parts of them,
in turns, with one network and one optimiser each way. Medians of the turns' time a step, ± half of the
interquartile range; wait: of the slowest process, for others and their sums.

A sum is hidden as far as it and a computation beside it take less time than one after the other. MPI goes on
only while it is called, unless it has a thread for that (MPICH_ASYNC_PROGRESS=1), which takes a core.
"""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not another installed one

from gpuconv import distributed, nn
from gpuconv.backends.cpu import threads
from gpuconv.training.networks import modern_cnn

PICTURES = (1, 28, 28)
WARM_UP = 5  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=128, help="pictures in a batch, all processes together")
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--local-batch-norm", action="store_true")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write data-parallel-cpu.md there, too")
    options = parser.parse_args()
    with distributed.world() as comm:
        if comm.size == 1:
            parser.error("start it by mpirun, on two processes or more")
        lines = [*steps(comm, options), *hidden(comm, options.turns)]
        if comm.rank:
            return
        print("\n".join(lines))
        if options.out:
            report = options.out / "data-parallel-cpu.md"
            report.write_text("\n".join(recorded(lines, sys.argv[1:])), encoding="utf-8")


def recorded(lines: list[str], arguments: list[str]) -> list[str]:
    """Return a record of them: on what, when, of which commit."""
    from gpuconv.measure import devices, records

    cpu, when = devices.find("cpu").facts()["cpu"], datetime.now(UTC).isoformat(timespec="seconds")
    return [
        f"# Training by several processes, on {cpu}",
        "",
        f"Written by `profiling/data_parallel.py {' '.join(arguments)}`.",
        "",
        f"* commit {records.commit()}, {when}",
        "",
        *(f"* {line}" for line in lines),
        "",
    ]


def steps(comm: distributed.Communicator, options: argparse.Namespace) -> list[str]:
    """Return lines on steps of one process and of all."""
    one, many = _network(), _network()
    together = distributed.DataParallel(many, comm, sync_batch_norm=not options.local_batch_norm)
    rng = np.random.default_rng(1)
    x = rng.random((options.batch, *PICTURES), np.float32)
    y = rng.integers(0, 10, options.batch)
    own = together.part_of_batch(0, options.batch)
    alone = _trainer(one, x, y)
    shared = _trainer(together, x[own], y[own])
    times: dict[str, list[float]] = {"one": [], "all": [], "wait": []}
    for _ in range(options.turns + 1):  # the first warms up
        if comm.rank == 0:
            times["one"].append(_time(alone, options.steps))
        comm.everyone(None)
        waited = comm.waited
        times["all"].append(_time(shared, options.steps))
        times["wait"].append((comm.waited - waited) / options.steps)
        comm.everyone(None)
    waits = comm.everyone(median(times["wait"][1:]))
    if comm.rank:
        return []
    weights = sum(p.size for p in one.params.values())
    ratio = median(a / b for a, b in zip(times["one"][1:], times["all"][1:], strict=True))
    return [
        f"{weights:,} parameters, {options.batch} pictures a batch; {comm.size} processes of "
        f"{threads.count()} threads",
        f"a step of one process: {_shown(times['one'][1:])}",
        f"a step of all:         {_shown(times['all'][1:])}, wait at most {1e3 * max(waits):.2f} ms",
        f"{ratio:.2f} times as fast (median of the turns)",
    ]


def hidden(comm: distributed.Communicator, turns: int) -> list[str]:
    """Return lines on how much of a sum of some sizes is hidden."""
    lines = []
    a = np.ones((256, 256), np.float32)
    for size in (1 << 20, 4 << 20, 16 << 20):
        x = np.zeros(size // 4, np.float32)

        def both(products: int, looks: bool, x: Any = x) -> None:
            pending = comm.start_sum(x)
            for _ in range(products):
                a @ a
                if looks:
                    pending.advance()
            pending.wait()

        alone = _slowest(comm, turns, lambda x=x: comm.sum(x))
        one = _slowest(comm, turns, lambda: a @ a)
        products = 1 + int(alone / one)
        computing = _slowest(comm, turns, lambda n=products: _time(lambda: a @ a, n))
        line = (
            f"sum of {size >> 20} MiB: {1e3 * alone:.2f} ms, {1e3 * computing:.2f} ms of products beside it"
        )
        for looks, how in ((False, "never looked at"), (True, "looked at after each")):
            taken = _slowest(comm, turns, lambda n=products, looks=looks, both=both: both(n, looks))
            line += f"; {how}, {max(0.0, (alone + computing - taken) / min(alone, computing)):.0%} hidden"
        lines.append(line)
    return lines


def _network() -> nn.Sequential:
    return modern_cnn(PICTURES, 10, np.random.default_rng(0))


def _trainer(network: nn.Layer, x: Any, y: Any) -> Callable[[], None]:
    loss, optimizer = nn.SoftmaxCrossEntropy(), nn.Adam(network, 0.001)

    def step() -> None:
        loss.forward(network.forward(x), y)
        network.backward(loss.backward(), needs_dx=False)
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    return step


def _time(call: Callable[[], object], times: int) -> float:
    """Return the seconds of one call, of so many in a row."""
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def _slowest(comm: distributed.Communicator, turns: int, call: Callable[[], object]) -> float:
    """Return the median seconds of a call that all begin together, on the process that takes longest."""
    times = []
    for _ in range(turns):
        comm.everyone(None)
        times.append(_time(call, 1))
    return float(max(comm.everyone(median(times))))


def _shown(times: list[float]) -> str:
    low, _, high = quantiles(times, n=4)
    return f"{1e3 * median(times):.2f} ms ± {100 * (high - low) / 2 / median(times):.0f} %"


if __name__ == "__main__":
    main()
