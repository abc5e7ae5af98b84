"""Several processes that train together: the same weights as one, whatever becomes of the others.

Most of it runs with threads for ranks, in one process; what is MPI's own, under mpirun.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ranks
import threadpoolctl
from host import cupy_stand_in, streams

import gpuconv
from gpuconv import distributed, nn
from gpuconv.cli import main
from gpuconv.cli.interrupt import Interrupt
from gpuconv.distributed import launch
from gpuconv.distributed.data_parallel import DataParallel
from gpuconv.distributed.mpi import Mpi
from gpuconv.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gpuconv.training.datasets import Dataset
from gpuconv.training.run import Run, Settings

# That of a package mpich in this environment, or the system's.
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
ROOT = Path(gpuconv.__file__).parents[1]


def mpirun(number, *arguments, timeout=120):
    """Run tests/ranks.py on so many ranks, each with a thread; return what became of it."""
    assert MPIEXEC, "no mpiexec: pip install mpich, which the extra test does"
    pythonpath = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [MPIEXEC, "-n", str(number), sys.executable, ranks.__file__, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": pythonpath,
            "OMP_NUM_THREADS": "1",
            # Of Open MPI, which else wants no root, and no more ranks than cores.
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# Ranks that are threads


class Threads:
    """What ranks that are threads have in common."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.given = [None] * size


class Thread:
    """A communicator whose ranks are threads; a sum is computed when it is waited for."""

    waited = 0.0

    def __init__(self, threads, rank):
        self._threads, self.rank, self.size = threads, rank, threads.size
        self.sums = []  # their bytes, in the order in which they began

    def everyone(self, value):
        self._threads.given[self.rank] = value
        self._threads.barrier.wait()
        values = list(self._threads.given)
        self._threads.barrier.wait()
        return values

    def start_sum(self, x):
        assert x.flags.c_contiguous
        self.sums.append(x.nbytes)
        parts = self.everyone(x.copy())
        x[...] = np.nan if x.dtype.kind == "f" else -1  # not there before it is waited for
        return SimpleNamespace(advance=lambda: None, wait=lambda: np.copyto(x, sum(parts[1:], parts[0])))

    def sum(self, x):
        self.start_sum(x).wait()

    def broadcast(self, x):
        x[...] = self.everyone(x.copy())[0]


def together(number, work):
    """Return what `work` returns on each of so many ranks."""
    threads, results = Threads(number), [None] * number

    def run(rank):
        try:
            results[rank] = work(Thread(threads, rank))
        except BaseException as error:
            results[rank] = error
            threads.barrier.abort()

    running = [threading.Thread(target=run, args=(rank,)) for rank in range(number)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results


def assert_close(one, other, tolerance=1e-12):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_the_weights_of_one(number):
    states = together(
        number,
        lambda comm: ranks.trained(DataParallel(ranks.network(comm.rank), comm, sync_batch_norm=True)),
    )
    assert_close(states[0], ranks.trained(ranks.network()))
    assert len({ranks.bits(state) for state in states}) == 1


def backward(comm, network, x, y, loss, part=None, **options):
    """Return the gradients that the ranks have of a batch, each of its own part."""
    network = DataParallel(network, comm, **options)
    own = network.part_of_batch(0, len(x)) if part is None else part[comm.rank]
    loss.forward(network.forward(x[own]), y[own])
    dx = network.backward(loss.backward())
    return dict(network.grads), dx


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parts_may_be_uneven_and_empty(reduction):
    x, y = ranks.X[:7], ranks.Y[:7]
    loss, network = nn.SoftmaxCrossEntropy(reduction), ranks.network()
    loss.forward(network.forward(x), y)
    dx = network.backward(loss.backward())
    part = [slice(0, 4), slice(4, 4), slice(4, 7)]
    results = together(
        3,
        lambda comm: backward(
            comm,
            ranks.network(),
            x,
            y,
            nn.SoftmaxCrossEntropy(reduction),
            part,
            sync_batch_norm=True,
            reduction=reduction,
        ),
    )
    for grads, _ in results:
        assert_close(grads, network.grads)
    np.testing.assert_allclose(np.concatenate([own for _, own in results]), dx, atol=1e-12)


def test_gradients_are_sent_in_full_buckets_last_layer_first_while_backward_goes_on():
    order = []

    class Conv(nn.Conv2d):
        def backward(self, dy, **named):
            if self.rank == 0:
                order.append("conv")
            return super().backward(dy, **named)

    def work(comm):
        conv = Conv(1, 4, 3, rng=0)
        conv.rank = comm.rank
        network = nn.Sequential(
            conv, nn.Flatten(), nn.Sequential(nn.Linear(144, 10, rng=1), nn.Linear(10, 2, rng=2))
        )
        if comm.rank == 0:
            start = comm.start_sum
            comm.start_sum = lambda x: (order.append(x.nbytes), start(x))[1]
        backward(comm, network, np.ones((4, 1, 8, 8), np.float32), np.zeros(4, int), nn.SoftmaxCrossEntropy(),
                 bucket_bytes=80)  # fmt: skip

    together(2, work)
    # The parts' sizes; the last weight; its bias and the next weight; a bias and the first weight; a bias.
    assert order == [2 * 8, 80, 8 + 4 * 1440, "conv", 40 + 144, 16]


def test_sums_under_way_are_looked_after_when_a_layer_has_been_gone_back_through():
    def work(comm):
        network = nn.Sequential(*(nn.Linear(2, 2, rng=i) for i in range(3)))
        start, looks = comm.start_sum, []

        def start_sum(x):
            pending = start(x)
            return SimpleNamespace(advance=lambda: looks.append(x.nbytes), wait=pending.wait)

        comm.start_sum = start_sum
        backward(comm, network, np.ones((2, 2), np.float32), np.zeros(2, int), nn.SoftmaxCrossEntropy(),
                 bucket_bytes=24)  # fmt: skip
        return looks

    assert together(2, work)[0] == [24] * (1 + 2 + 3)


def test_without_synchronisation_running_statistics_are_the_parts_means():
    x = ranks.X[:9]
    part = [slice(0, 6), slice(6, 9)]
    alone = [nn.BatchNorm2d(1, dtype=np.float64) for _ in part]
    for norm, own in zip(alone, part, strict=True):
        norm.forward(x[own])

    def work(comm):
        network = DataParallel(nn.BatchNorm2d(1, dtype=np.float64), comm)
        network.backward(network.forward(x[part[comm.rank]]))
        return dict(network.buffers)

    for buffers in together(2, work):
        for name in ("running_mean", "running_var"):
            mean = (6 * alone[0].buffers[name] + 3 * alone[1].buffers[name]) / 9
            np.testing.assert_allclose(buffers[name], mean)


def test_a_normalisation_over_all_parts_is_gone_back_through_by_all():
    def work(comm):
        network = DataParallel(nn.BatchNorm2d(1, dtype=np.float64), comm, sync_batch_norm=True)
        y = network.forward(ranks.X[:4])
        with pytest.raises(
            RuntimeError, match=r"forward was over a batch that several .* call DataParallel's"
        ):
            network.network.backward(y)
        network.eval()  # which changes nothing of what forward was
        network.backward(y)
        return network.grads["weight"]

    alone = nn.BatchNorm2d(1, dtype=np.float64)
    alone.backward(alone.forward(np.concatenate([ranks.X[:4]] * 2)))
    for grad in together(2, work):
        np.testing.assert_allclose(grad, alone.grads["weight"] / 2)


def test_evaluation_asks_nothing_of_other_ranks():
    def work(comm):
        network = DataParallel(ranks.network(), comm).eval()
        before = len(comm.sums)
        if comm.rank == 0:
            network.forward(ranks.X)
        return len(comm.sums) - before

    assert together(2, work) == [0, 0]


def test_training_after_a_forward_in_evaluation_is_refused_and_single_layers_may_be_frozen():
    def work(comm):
        network = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.BatchNorm2d(2))
        parallel = DataParallel(network, comm)
        parallel.eval()
        y = parallel(ranks.X[:4].astype(np.float32))
        with pytest.raises(RuntimeError, match="in evaluation, in which nothing is shared"):
            parallel.backward(y)
        parallel.train()
        network[1].eval()
        parallel.backward(parallel(ranks.X[:4].astype(np.float32)))
        return network[1].buffers["num_batches_tracked"]

    assert [int(found) for found in together(2, work)] == [0, 0]


def test_gradients_that_are_kept_stay_and_those_not_written_are_not_summed_again():
    class Half(nn.Linear):
        """Writes the gradient of its bias once."""

        def backward(self, dy, *, needs_dx=True):
            kept = self.grads.get("bias")
            dx = super().backward(dy, needs_dx=needs_dx)
            self.grads["bias"] = self.grads["bias"] if kept is None else kept
            return dx

    def work(comm):
        network = nn.Sequential(Half(3, 2, rng=0), nn.Linear(2, 2, rng=1))
        parallel = DataParallel(network, comm, reduction="sum")
        found = []
        for turn in range(3):
            y = parallel(np.full((2, 3), comm.rank + turn + 1.0, np.float32))
            parallel.backward(np.ones_like(y), needs_dx=False)
            found.append((network.grads["0.weight"], network.grads["0.bias"].copy()))
        return found

    first, second = together(2, work)
    weights = [[weight.sum() for weight, _ in found] for found in (first, second)]
    assert weights[0] == weights[1] and len(set(weights[0])) == 3
    for found in (first, second):
        for _, bias in found[1:]:
            np.testing.assert_array_equal(bias, found[0][1])


def test_a_layer_without_a_gradient_holds_nobody_up():
    class Frozen(nn.Linear):
        def backward(self, dy, *, needs_dx=True):
            dx = super().backward(dy, needs_dx=needs_dx)
            self.grads.clear()
            return dx

    def work(comm):
        network = nn.Sequential(Frozen(3, 2, rng=0), nn.Linear(2, 2, rng=1))
        parallel = DataParallel(network, comm)
        parallel.backward(np.ones_like(parallel(np.ones((2, 3), np.float32))))
        return sorted(network.grads)

    assert together(2, work) == [["1.bias", "1.weight"]] * 2


def test_an_empty_part_counts_the_batch():
    def work(comm):
        network = nn.BatchNorm2d(1, momentum=None)
        parallel = DataParallel(network, comm)
        for batch in (np.arange(4.0).reshape(1, 1, 2, 2), np.arange(16.0).reshape(4, 1, 2, 2)):
            y = parallel(batch[parallel.part_of_batch(0, len(batch))])
            parallel.backward(y)
        return int(network.buffers["num_batches_tracked"]), float(network.buffers["running_mean"][0])

    assert together(2, work) == [(2, (1.5 + 7.5) / 2)] * 2


def test_statistics_of_the_whole_batch_need_its_samples():
    def work(comm):
        network = nn.Sequential(Rows(), nn.BatchNorm2d(1))
        DataParallel(network, comm, sync_batch_norm=True)(np.ones((2, 4, 2, 2), np.float32))

    class Rows(nn.Layer):
        def forward(self, x):
            return x.reshape(-1, 1, *x.shape[2:])

    with pytest.raises(ValueError, match=r"x has 8 samples .* this process's part of the batch 2"):
        together(1, work)


@pytest.mark.parametrize(
    "callback_of",
    [
        lambda rank: lambda iteration, loss: iteration == 3 + rank,
        lambda rank: (lambda iteration, loss: iteration == 3) if rank == 1 else None,  # one rank's alone
    ],
)
def test_a_callback_that_stops_one_rank_stops_all(callback_of):
    def work(comm):
        network = DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, rng=0)), comm)
        history = gpuconv.fit(
            network, ranks.X, ranks.Y, loss=nn.SoftmaxCrossEntropy(), optimizer=nn.SGD(network, 0.01),
            max_iterations=9, callback=callback_of(comm.rank),
        )  # fmt: skip
        return history.iterations, history.stopped_by

    assert together(3, work) == [(3, "callback")] * 3


def test_ranks_ask_for_the_sizes_of_parts_once_where_they_are_told_the_batch_s():
    def work(comm):
        network = DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, rng=0)), comm)
        before = len(comm.sums)
        gpuconv.fit(
            network, ranks.X, ranks.Y, loss=nn.SoftmaxCrossEntropy(), optimizer=nn.SGD(network, 0.01),
            max_iterations=12, batch_size=9, rng=np.random.default_rng(0),
        )  # fmt: skip
        return [size for size in comm.sums[before:] if size == 8 * comm.size]

    assert together(3, work) == [[24] * 2] * 3  # for batches of 9, and for the last one, of 1


@pytest.mark.parametrize("known", [False, True])
def test_a_part_that_is_not_that_of_the_batch_is_refused(known):
    def work(comm):
        network = DataParallel(nn.Linear(3, 2, rng=0), comm)
        x = np.ones((5, 3), np.float32)
        if known:
            network.forward(x[network.part_of_batch(0, 5)], batch=5)
        network.forward(x[: 2 if comm.rank == 0 else 1], batch=5)

    with pytest.raises(ValueError, match=r"batch=5 gives rank [01] a part of [23], but its x has [12] samp"):
        together(2, work)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"x": ranks.X[:36], "y": ranks.Y[:36]}, r"rank 1 has x float64 \(36, 1, 8, 8\) where"),
        ({"x": ranks.X[::-1]}, "rank 1 has checksum of x [0-9a-f]{8} where rank 0 has [0-9a-f]{8}"),
        ({"y": 9 - ranks.Y}, "rank 1 has checksum of y"),
        ({"loss": nn.MSE()}, "rank 1 has loss MSE where rank 0 has SoftmaxCrossEnt"),
        ({"lr": 0.02}, "rank 1 has optimizer SGD with lr 0.02, .* where rank 0 has SGD with lr 0.01"),
        ({"momentum": 0.5}, "rank 1 has optimizer SGD with .*momentum 0.5.* where rank 0 has .*momentum 0.0"),
        ({"steps": 7}, "rank 1 has optimizer SGD with .*steps 7.* where rank 0 has .*steps 0"),
        ({"batch_size": 4}, "rank 1 has batch_size 4 where rank 0 has 3"),
        ({"max_iterations": 4}, "rank 1 has max_iterations 4"),
        ({"rng": np.random.default_rng(1)}, "rank 1 has rng in state .* where rank 0 has in state"),
        ({"rng": None}, "rank 1 has rng None"),
    ],
)
def test_ranks_that_fit_something_else_are_refused(other, message):
    def work(comm):
        network = DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, rng=0)), comm)
        own = {"x": ranks.X, "y": ranks.Y, "batch_size": 3, "max_iterations": 3, "lr": 0.01,
               "momentum": 0.0, "steps": 0, "loss": nn.SoftmaxCrossEntropy(),
               "rng": np.random.default_rng(0)} | (other if comm.rank else {})  # fmt: skip
        optimizer = nn.SGD(network, own.pop("lr"), momentum=own.pop("momentum"))
        optimizer.steps = own.pop("steps")
        gpuconv.fit(network, optimizer=optimizer, **own)

    with pytest.raises(ValueError, match="fit: every rank must be given the same, but " + message):
        together(2, work)


def test_float16_gradients_are_summed_in_float32():
    def work(comm):
        network = DataParallel(nn.Linear(2, 1, dtype=np.float16, rng=0), comm, reduction="sum")
        network.forward(np.full((1, 2), 200, np.float16))
        network.backward(np.full((1, 1), 200, np.float16))
        return network.grads["weight"]

    for grad in together(2, work):
        assert grad.dtype == np.float32 and (grad == 80_000).all()  # above float16's largest


def test_networks_that_differ_are_refused_by_every_rank():
    with pytest.raises(ValueError, match=r"rank 1 has weight \(3, 2\) <f4, bias .* where rank 0 has weight"):
        together(2, lambda comm: DataParallel(nn.Linear(2, 2 + comm.rank), comm))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "net"}, "network must be a layer, not str"),
        ({"reduction": "none"}, "reduction must be"),
        ({"bucket_bytes": 0}, "bucket_bytes must be at least 1"),
        ({"sync_batch_norm": 1}, "sync_batch_norm must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DataParallel(**{"network": nn.Linear(2, 2), "comm": distributed.Alone(), **arguments})


def test_a_world_of_one_needs_no_mpi(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    for name in (*launch.SIZES, *launch.RANKS):
        monkeypatch.delenv(name, raising=False)
    with distributed.world() as comm:
        assert (comm.rank, comm.size, comm.everyone(3)) == (0, 1, [3])
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"several processes need MPI, which fails .* 'gpuconv\[mpi\]'"):
        distributed.world()


def test_parts_cover_a_batch_once_and_in_order():
    for n in range(12):
        for size in range(1, 6):
            parts = [distributed.part(5, 5 + n, rank, size) for rank in range(size)]
            places = [place for part in parts for place in range(part.start, part.stop)]
            lengths = [part.stop - part.start for part in parts]
            assert places == list(range(5, 5 + n)) and max(lengths) - min(lengths) <= 1


def dataset():
    rng = np.random.default_rng(1)
    x, y = rng.random((70, 1, 8, 8), np.float32), np.arange(70) % 4
    x[np.arange(70), 0, 2 * y] += 1
    return Dataset("bars", x[:52], y[:52], x[52:], y[52:], 4)


def run(comm, settings, checkpoint=None, stop=None, **options):
    """Train as `gpuconv train` does, from a checkpoint or the start, up to so many updates."""
    run = Run(settings, dataset(), comm=comm, **options)
    if checkpoint is not None:
        run.restore(checkpoint)
    run.train(lambda iterations, loss: iterations == stop)
    return run.records, run.checkpoint()


def numbers(records):
    return np.array([astuple(replace(record, seconds=0)) for record in records])


SETTINGS = {
    "adam": Settings("adam", seed=3, epochs=3, max_iterations=None, batch_size=8, step=0.002, shift=1),
    "batch-gd": Settings("batch-gd", seed=3, epochs=3, max_iterations=None, batch_size=None, step=1.0),
}


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_a_run_is_the_same_whatever_the_number_of_ranks_also_between_two_updates(algorithm):
    settings = SETTINGS[algorithm]
    records, _ = run(None, settings)
    many = together(5, lambda comm: run(comm, settings))  # more than a part of the last batch, which holds 4
    for other, _ in many:
        np.testing.assert_allclose(numbers(other), numbers(records), atol=1e-3)
    stop = 9 if algorithm == "adam" else 2  # two updates into the second epoch
    _, checkpoint = together(2, lambda comm: run(comm, settings, stop=stop))[0]
    assert checkpoint.state["iterations"] == stop
    for other, _ in together(3, lambda comm: run(comm, settings, checkpoint)):
        np.testing.assert_allclose(numbers(other), numbers(records), atol=1e-3)


def test_ranks_with_other_settings_or_pictures_are_refused():
    def work(comm):
        run(comm, replace(SETTINGS["adam"], seed=comm.rank))

    with pytest.raises(ValueError, match=r"Run: .* but rank 1 has seed 1 where rank 0 has 0$"):
        together(2, work)


def test_ranks_that_go_on_from_other_checkpoints_are_refused():
    one = together(1, lambda comm: [run(comm, SETTINGS["adam"], stop=n)[1] for n in (2, 3)])[0]
    with pytest.raises(ValueError, match=r"Run\.restore: .* but rank 1 has iterations 3 where rank 0 has 2$"):
        together(2, lambda comm: run(comm, SETTINGS["adam"], one[comm.rank]))
    moved = replace(one[0], arrays={name: array + 1 for name, array in one[0].arrays.items()})
    with pytest.raises(ValueError, match=r"Run\.restore: .* but rank 1 has weights "):
        together(2, lambda comm: run(comm, SETTINGS["adam"], [one[0], moved][comm.rank]))


def test_parts_that_are_normalised_by_themselves_train_too():
    settings = SETTINGS["adam"]
    synchronised, local = (
        together(2, lambda comm, local=local: run(comm, replace(settings, local_batch_norm=local)))[0][0]
        for local in (False, True)
    )
    assert numbers(local)[:, 2].tolist() != numbers(synchronised)[:, 2].tolist()
    assert local[-1].loss < local[0].loss


@pytest.mark.parametrize(
    ("ranks_here", "asked", "threads"), [(2, None, "4"), (16, None, "1"), (2, "3", "3"), (1, None, None)]
)
def test_ranks_on_the_same_cores_share_them(monkeypatch, ranks_here, asked, threads):
    limits = []
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", limits.append)
    monkeypatch.setattr(launch, "_cores", lambda: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", asked or "")
    distributed.share_cores(
        SimpleNamespace(everyone=lambda own: [own] * ranks_here + [("elsewhere", own[1])])
    )
    assert os.environ["OMP_NUM_THREADS"] == (threads or "")
    assert limits == ([int(threads)] if threads and not asked else [])


# Under mpirun


@pytest.mark.parametrize("number", [1, 2, 4])
def test_ranks_of_mpi_give_the_weights_of_one_process(number, tmp_path):
    result = mpirun(number, "weights", tmp_path / "weights.npz")
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "weights.npz") as state:
        assert_close(dict(state), ranks.trained(ranks.network()), 1e-10)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("is killed", r"gpuconv: rank 1 \(pid \d+ on .*\) has died; the other ranks are stopped"),
        (
            "raises",
            r"gpuconv: rank 1 of 3 \(pid .*\) failed: ValueError: no more bread; the others are stopped",
        ),
        (
            "hangs",
            r"gpuconv: rank 0 waits in vain: rank 1 \(pid .*\) didn't come within 2 s; all are stopped",
        ),
        ("leaves", r"gpuconv: rank 1 of 3 \(pid .*\) failed: SystemExit: 5; the others are stopped"),
    ],
)
def test_a_rank_that_ends_ends_the_run_within_seconds_with_a_message_that_names_it(how, message):
    result = mpirun(3, "fails", how, 1, 2, timeout=60)
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize(
    "how, message",
    [
        ("others are done", "rank 1 of 3 .* failed: ValueError: rank 1 has no bread; the others are stopped"),
        ("all fail", "ValueError: rank 0 has no bread"),
        ("all fail", "rank 2 failed, too: ValueError: rank 2 has no bread"),
        ("leaves with 0", "rank 1 of 3 .* failed: SystemExit: 0"),
        ("dies at once", "rank 1 .* has died; the other ranks are stopped"),
    ],
)
def test_whoever_fails_at_the_begin_or_the_end_is_named_and_the_run_has_failed(how, message):
    result = mpirun(3, "late", how, timeout=60)
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr


def test_a_slow_rank_is_named():
    result = mpirun(3, "slow", 2)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("rank 2 is slow: it works ") for line in lines), lines


@pytest.fixture
def data(tmp_path):
    """A small .npz that trains in no time: bright bars at one of four heights."""
    rng = np.random.default_rng(0)
    labels = np.arange(130) % 4
    images = rng.random((130, 8, 8))
    images[np.arange(130), 2 * labels] += 2
    np.savez(tmp_path / "bars.npz", images=images, labels=labels)
    return str(tmp_path / "bars.npz")


def history(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: values for name, values in metrics["history"].items() if name != "seconds"}


def test_a_run_whose_rank_is_killed_or_interrupted_goes_on_with_another_number_of_ranks(data, tmp_path):
    options = ["--data", data, "--device", "cpu", "--epochs", 4, "--batch-size", 16, "--shift", 1]
    one, many = tmp_path / "one", tmp_path / "many"
    assert main(["train", *map(str, options), "--out", str(one)]) == 0
    killed = mpirun(2, "hears", "SIGKILL", 10, *options, "--out", many)  # seven updates an epoch
    assert "gpuconv: rank 1 (pid " in killed.stderr, killed.stderr
    assert load_checkpoint(many / "checkpoint.npz").state["iterations"] == 7
    interrupted = mpirun(3, "hears", "SIGINT", 17, "--resume", many, "--device", "cpu")
    assert "on 3 processes, each on the CPU with 1 threads" in interrupted.stdout
    assert "stopped by Ctrl-C" in interrupted.stdout, interrupted.stderr
    assert load_checkpoint(many / "checkpoint.npz").state["iterations"] == 17
    assert main(["train", "--resume", str(many), "--device", "cpu"]) == 0
    expected = history(one)
    for name, values in history(many).items():
        np.testing.assert_allclose(values, expected[name], atol=2e-3, err_msg=name)


def test_sigterm_is_a_wish_too_where_that_is_said():
    usual = signal.getsignal(signal.SIGTERM)
    with Interrupt(signal.SIGTERM) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested and signal.getsignal(signal.SIGTERM) is usual


def test_what_is_wrong_on_all_ranks_is_said_once(tmp_path):
    result = mpirun(2, "train", "--data", tmp_path / "nothing.npz")
    assert result.returncode == 2
    assert result.stderr.count("gpuconv train: ") == 1 and "no folder or file" in result.stderr


@pytest.mark.parametrize(
    "most, fault",
    [(50_000, "checkpoint.npz: File too large"), (10**9, "learning_curve.png: Is a directory")],
)
def test_a_file_that_the_first_rank_can_not_write_is_named_once(data, tmp_path, most, fault):
    out = tmp_path / "out"
    (out / "learning_curve.png").mkdir(parents=True)
    result = mpirun(2, "confined", most, "--data", data, "--device", "cpu", "--epochs", 1, "--out", out)
    assert result.returncode == 2
    (said,) = (line for line in result.stderr.splitlines() if line.startswith("gpuconv"))
    assert said == f"gpuconv train: {out}/{fault}" and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (["--bad"], "gpuconv: unrecognized arguments: --bad"),
        (["--epochs", "0"], "gpuconv train: argument --epochs: must be an integer of at least 1"),
        (["--algorithm", "batch-gd", "--batch-size", 3], "gpuconv train: --batch-size: batch-gd takes all"),
    ],
)
def test_a_wrong_option_is_said_once(options, message):
    result = mpirun(3, "train", *options)
    assert result.returncode == 2
    (said,) = (line for line in result.stderr.splitlines() if line.startswith("gpuconv"))
    assert said.startswith(message)


@pytest.mark.parametrize("options", [["train", "--help"], ["--version"]])
def test_help_is_given_once(options):
    result = mpirun(2, "command", *options)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(re.findall("^(usage: )?gpuconv ", result.stdout, re.MULTILINE)) == 1


def test_a_wrong_option_of_one_rank_alone_ends_the_run_with_its_message():
    result = mpirun(2, "strays", "--epochs", "x")
    assert result.returncode != 0 and result.stderr.count("Traceback") == 1
    assert "argument --epochs: must be an integer of at least 1, not 'x'" in result.stderr
    assert re.search("rank 1 of 2 .* failed: UserError: .*; the others are stopped", result.stderr)


def test_no_checkpoint_is_torn_by_a_kill_in_fifty(tmp_path):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, _checkpoint(0))
    seen = set()
    for attempt in range(50):
        child = os.fork()
        if not child:
            number = 1
            while True:
                save_checkpoint(path, _checkpoint(number))
                number += 1
        time.sleep(0.005 * (attempt % 8 + 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = load_checkpoint(path)
        number = there.state["number"]
        assert (there.arrays["w"] == number).all()
        seen.add(number)
    assert len(seen) > 2


def _checkpoint(number):
    return Checkpoint({}, {"w": np.full(20_000, number)}, {"number": number})


# NCCL, with stand-ins for CuPy and its bindings


class Twin:
    """A control communicator of two ranks that always give the same."""

    rank, size, waited = 0, 2, 0.0

    def everyone(self, value):
        if isinstance(value, tuple) and value[-1] == "0000:01:00.0":
            return [value, (*value[:-1], "0000:02:00.0")]
        return [value, value]

    def start_sum(self, x):
        x *= 2
        return SimpleNamespace(wait=lambda: None, advance=lambda: None)


@pytest.fixture
def gpus(monkeypatch):
    """CuPy's stand-in with two GPUs and NCCL, whose sum with a twin doubles an array, on a stream, later."""
    with cupy_stand_in.installed() as cupy:
        calls = []

        class NcclCommunicator:
            def __init__(self, size, identity, rank):
                assert identity == ("an id",)
                calls.append(("made", size, rank))

            def allReduce(self, send, receive, count, kind, op, stream):
                assert send == receive and op == 0
                self._later(send, count, kind, stream, 2)
                calls.append(("sum", count))

            def broadcast(self, send, receive, count, kind, root, stream):
                assert send == receive and root == 0
                self._later(send, count, kind, stream, 1)
                calls.append(("broadcast", count))

            def _later(self, address, count, kind, number, factor):
                dtype = np.dtype(kind)
                size = count * dtype.itemsize
                streams.at(number).do(lambda: _multiply(address, size, dtype, factor), (address, size, True))

        class Device:
            def __init__(self, number):
                self.pci_bus_id = f"0000:0{number + 1}:00.0"

            def use(self):
                calls.append(("device", self.pci_bus_id))

        nccl = SimpleNamespace(
            available=True,
            get_unique_id=lambda: ("an id",),
            NcclCommunicator=NcclCommunicator,
            NCCL_SUM=0,
            NCCL_FLOAT16="e",
            NCCL_FLOAT32="f",
            NCCL_FLOAT64="d",
            NCCL_INT64="q",
        )
        cupy.cuda.nccl, cupy.cuda.Device = nccl, Device
        cupy.cuda.get_elapsed_time = lambda begin, end: 1.0
        cupy.cuda.runtime.getDeviceCount = lambda: 2
        monkeypatch.setitem(sys.modules, "cupy.cuda", cupy.cuda)
        yield SimpleNamespace(cupy=cupy, calls=calls, nccl=nccl)


def _multiply(address, size, dtype, factor):
    values = np.frombuffer((ctypes.c_char * size).from_address(address), dtype)
    values *= factor


def test_nccl_sums_on_a_stream_beside_the_network_s(gpus):
    x, y = ranks.X[:6].astype(np.float32), ranks.Y[:6]
    alone = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.Flatten(), nn.Linear(144, 10, rng=1))
    loss = nn.SoftmaxCrossEntropy()
    loss.forward(alone.forward(x), y)
    alone.backward(loss.backward(), needs_dx=False)
    expected = dict(alone.grads)

    comm = distributed.on_gpus(Twin())
    network = DataParallel(alone.to("cuda"), comm, bucket_bytes=50)
    loss.forward(network.forward(gpus.cupy.asarray(x)), gpus.cupy.asarray(y))
    network.backward(loss.backward(), needs_dx=False)
    assert_close({name: grad.get() for name, grad in network.grads.items()}, expected, 1e-5)
    assert gpus.calls[:2] == [("device", "0000:01:00.0"), ("made", 2, 0)]
    assert gpus.calls[2:] == [("broadcast", 4 * 9 + 4 + 1450), ("sum", 1440), ("sum", 10 + 36), ("sum", 4)]
    assert comm.waited == pytest.approx(4e-3)


def test_nccl_s_sums_are_waited_for_by_the_stream_and_not_by_the_program(gpus):
    comm = distributed.on_gpus(Twin())
    x = gpus.cupy.asarray(np.ones(3, np.float32))
    cupy_stand_in.waits.clear()
    pending = comm.start_sum(x)
    assert x._values.tolist() == [1, 1, 1]  # nothing has waited
    pending.wait()
    assert x._values.tolist() == [2, 2, 2] and not cupy_stand_in.waits
    with pytest.raises(TypeError, match=r"float16, .* not int32"):
        comm.start_sum(gpus.cupy.asarray(np.ones(3, np.int32)))
    here = np.ones(2)
    comm.sum(here)
    assert here.tolist() == [2, 2]


def test_a_gpu_without_nccl_or_with_two_ranks_is_refused(gpus):
    gpus.nccl.available = False
    with pytest.raises(RuntimeError, match=r"NCCL, which CuPy can't load; pip install 'gpuconv\[nccl13\]'"):
        distributed.on_gpus(Twin())
    gpus.nccl.available = True
    control = Twin()
    control.everyone = lambda value: [value, value]
    with pytest.raises(RuntimeError, match=r"ranks 0, 1 would share a GPU of .*, which NCCL refuses"):
        distributed.on_gpus(control)


def test_mpi_takes_arrays_on_a_gpu_where_that_is_said_and_when_the_gpu_has_done(gpus, monkeypatch):
    mpi, x, waited = Mpi.__new__(Mpi), gpus.cupy.asarray(np.ones(3)), []
    mpi.cuda_aware = False
    with pytest.raises(TypeError, match="not known to take memory on a GPU: let NCCL do it"):
        mpi.start_sum(x)
    mpi.cuda_aware = True
    monkeypatch.setattr(streams.DefaultStream, "synchronize", lambda self: waited.append("stream"))
    mpi._mpi, mpi._comm = (
        SimpleNamespace(IN_PLACE=None),
        SimpleNamespace(Iallreduce=lambda place, x: waited.append("sum")),
    )
    mpi.start_sum(x)
    assert waited == ["stream", "sum"]
