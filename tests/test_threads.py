"""Threads of the NumPy backend: errors, Ctrl-C, forks, BLAS's own threads, results for any number."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cpu import rows, threads
from gpuconv.backends.cpu.threads import buffer, parallel
from gpuconv.nn import Linear

threadpoolctl = pytest.importorskip("threadpoolctl", reason="asks BLAS for its number of threads")


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    """Four threads, whatever the machine has, in a pool of this test's own."""
    monkeypatch.setattr(threads, "count", lambda: 4)
    monkeypatch.setattr(threads, "_helpers", None)


def blas_threads():
    """Threads of NumPy's BLAS; SciPy may have loaded one of its own later, which is none of ours."""
    parallel(lambda _: None, [0], blas=True)  # the first call looks for libraries
    return [library.get_num_threads() for library in threads._blas._libraries]


def run(program, **environment):
    """Run a Python program on its own and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def test_every_item_is_done_once_and_several_threads_take_part():
    together = threading.Barrier(4, timeout=30)
    done, workers = [], set()

    def task(item):
        if item < 4:
            together.wait()  # passes only if four threads are in here at once
        workers.add(threading.get_ident())
        done.append(item)

    parallel(task, iter(range(100)))
    assert sorted(done) == list(range(100))
    assert len(workers) == 4


def test_little_work_stays_on_the_callers_thread():
    workers = set()
    parallel(lambda _: workers.add(threading.get_ident()), range(50), work=10)
    assert workers == {threading.get_ident()}


def test_no_items_are_no_work():
    parallel(pytest.fail, [])


@pytest.mark.parametrize("guilty", ["caller", "worker"])
def test_an_error_in_any_thread_reaches_the_caller_and_stops_the_rest(guilty):
    caller, begun = threading.get_ident(), []
    together = threading.Barrier(4, timeout=30)

    def task(item):
        begun.append(item)
        if item < 4:
            together.wait()
            if (threading.get_ident() == caller) == (guilty == "caller"):
                raise ZeroDivisionError("from the task")
        time.sleep(0.001)

    with pytest.raises(ZeroDivisionError, match="from the task"):
        parallel(task, range(400))
    finished = len(begun)
    time.sleep(0.02)
    assert len(begun) == finished  # nobody works on after the error was raised
    if guilty == "caller":
        assert finished < 100
    parallel(begun.append, range(4))  # and the pool is still good
    assert len(begun) == finished + 4


def test_blas_has_one_thread_inside_and_its_own_number_afterwards():
    before = blas_threads()
    inside = []
    with threadpoolctl.threadpool_limits(3, "blas"):
        limited = blas_threads()
        parallel(lambda _: inside.append(blas_threads()), range(8), blas=True)
        assert blas_threads() == limited
        with pytest.raises(KeyError):
            parallel({}.__getitem__, range(8), blas=True)
        assert blas_threads() == limited
    assert blas_threads() == before
    assert {number for numbers in inside for number in numbers} == {1}


def _big_and_small_convolutions():
    """Yield every pass whose algorithms on NumPy alone multiply matrices, and a dense layer's."""
    for groups, *size in ((1, 12, 12), (8, 12, 12), (1, 40, 40), (1, 12, 700)):
        x, w = np.ones((2, 8, *size), np.float32), np.ones((8, 8 // groups, 3, 3), np.float32)
        y = gpuconv.conv2d(x, w, padding=1, groups=groups)
        gpuconv.conv2d_backward(y, x, w, padding=1, groups=groups)
    dense = Linear(5, 4)
    dense.backward(dense(np.ones((3, 5), np.float32)))


@pytest.mark.parametrize("algorithm", ["gemm", "winograd"])
def test_wherever_large_matrices_are_multiplied_blas_has_one_thread(monkeypatch, algorithm):
    seen, matmul = set(), np.matmul

    def noting(a, b, **options):
        if a.shape[-2] * a.shape[-1] * b.shape[-1] > rows.ONE_THREAD:
            seen.update(library.get_num_threads() for library in threads._blas._libraries)
        return matmul(a, b, **options)

    before = blas_threads()
    with gpuconv.config(compiled=False, algorithm=algorithm), threadpoolctl.threadpool_limits(3, "blas"):
        monkeypatch.setattr(np, "matmul", noting)
        _big_and_small_convolutions()
    assert blas_threads() == before
    assert seen == {1}


def test_blas_threads_come_back_only_when_the_last_of_two_callers_is_out():
    before = blas_threads()
    first_is_in, second_is_out = threading.Event(), threading.Event()
    seen = []

    def slow(_):
        first_is_in.set()
        assert second_is_out.wait(30)
        seen.extend(blas_threads())

    caller = threading.Thread(target=parallel, args=(slow, [0]), kwargs={"blas": True})
    caller.start()
    assert first_is_in.wait(30)
    parallel(lambda _: None, [0], blas=True)
    second_is_out.set()
    caller.join(30)
    assert set(seen) == {1}
    assert blas_threads() == before


def test_a_call_from_inside_a_worker_ends():
    outer, inner = [], []

    def task(item):
        parallel(inner.append, range(8))
        outer.append(item)

    caller = threading.Thread(target=parallel, args=(task, range(8)), daemon=True)
    caller.start()
    caller.join(30)
    assert not caller.is_alive()
    assert (len(outer), len(inner)) == (8, 64)


def test_concurrent_callers_get_right_results(monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(-3, 4, (3, 4, 9 + i, 12)).astype(np.float32) for i in range(6)]
    w = rng.integers(-3, 4, (6, 4, 3, 3)).astype(np.float32)

    def work(x):
        y = gpuconv.conv2d(x, w, padding=1)
        pooled, argmax = gpuconv.max_pool2d(y, 2)
        back = gpuconv.max_pool2d_backward(pooled, argmax, y.shape, 2)
        mean = gpuconv.avg_pool2d(y, 3, 1, padding=1)
        return [y, pooled, argmax, mean, *gpuconv.conv2d_backward(back, x, w, padding=1)]

    alone = [work(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(10):
            for got, want in zip(pool.map(work, inputs), alone, strict=True):
                for a, b in zip(got, want, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_a_threads_buffer_is_its_own_and_kept_for_its_next_task():
    mine = buffer("slot", (10,), np.float32)
    others = []
    thread = threading.Thread(target=lambda: others.append(buffer("slot", (10,), np.float32)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, others[0])
    assert np.shares_memory(mine, buffer("slot", (2, 5), np.int32))
    assert not np.shares_memory(mine, buffer("another slot", (10,), np.float32))
    huge = buffer("slot", (threads.KEPT_BYTES + 1,), np.uint8)
    assert not np.shares_memory(huge, buffer("slot", (threads.KEPT_BYTES + 1,), np.uint8))


@pytest.mark.parametrize("compiled", [False, True])
def test_nobody_writes_beyond_the_buffer_that_it_asked_for(monkeypatch, compiled):
    given = []

    def guarded(slot, size):
        array = np.full(size + 2 * GUARD, 0xAB, np.uint8)
        begin = GUARD - array.ctypes.data % threads.VECTOR_BYTES
        given.append((slot, array[:begin], array[begin + size :]))
        return threads.Memory(array[begin : begin + size], array.ctypes.data + begin)

    for name, module in list(sys.modules.items()):
        if name.startswith("gpuconv.backends.cpu.") and hasattr(module, "memory"):
            monkeypatch.setattr(module, "memory", guarded)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 9), np.float32)
    with gpuconv.config(compiled=compiled):
        for size, stride in ((2, 2), (3, 1), ((5, 9), 1), ((4, 8), 1), ((5, 1), 3)):
            y, argmax = gpuconv.max_pool2d(x, size, stride)
            gpuconv.max_pool2d_backward(y, argmax, x.shape, size, stride)
            gpuconv.avg_pool2d_backward(gpuconv.avg_pool2d(x, size, stride), x.shape, size, stride)
        for groups, padding in ((1, 0), (1, 1), (3, 2)):
            w = np.ones((6, 3 // groups, 3, 3), np.float32)
            dy = gpuconv.conv2d(x, w, padding=padding, groups=groups)
            gpuconv.conv2d_backward(dy, x, w, padding=padding, groups=groups)
    assert given
    for slot, *around in given:
        assert all((part == 0xAB).all() for part in around), slot


GUARD = 4096


@pytest.mark.parametrize(
    ("asked", "most"), [("1", 1), ("1,4", 1), ("", None), ("0", None), ("many", None), ("100000", None)]
)
def test_omp_num_threads_lowers_the_number_of_threads(asked, most):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    program = "from gpuconv.backends.cpu.threads import count; print(count())"
    assert int(run(program, OMP_NUM_THREADS=asked)) == (cores if most is None else most)


GRADIENTS = """
import hashlib
import numpy as np, gpuconv
from gpuconv.backends.cpu import threads
threads.SERIAL_WORK = 0
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for groups, channels_last in ((1, False), (1, True), (16, False), (16, True), (4, False)):
    x = rng.standard_normal((4, 20, 21, 16) if channels_last else (4, 16, 20, 21), np.float32)
    dy = rng.standard_normal((4, 20, 21, 32) if channels_last else (4, 32, 20, 21), np.float32)
    dw = gpuconv.conv2d_weight_grad(dy, x, 3, padding=1, groups=groups, channels_last=channels_last)
    digest.update(dw.tobytes())
    digest.update(gpuconv.conv2d_bias_grad(dy, channels_last=channels_last).tobytes())
print(digest.hexdigest())
"""


def test_weight_and_bias_gradients_are_bit_identical_for_any_number_of_threads():
    assert len({run(GRADIENTS, OMP_NUM_THREADS=number) for number in ("1", "2", "2")}) == 1


INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np, gpuconv
from gpuconv.backends.cpu import threads
threads.count = lambda: 4
x, w = np.ones((512, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
gpuconv.conv2d(x[:8], w)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.perf_counter()
try:
    while True:
        gpuconv.conv2d(x, w)
except KeyboardInterrupt:
    print("stopped", flush=True)
assert time.perf_counter() - start < 5
np.testing.assert_allclose(gpuconv.conv2d(x[:8], w), 576, rtol=1e-4)
print("works")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals as on POSIX")
def test_ctrl_c_ends_a_running_call_and_the_next_one_works():
    assert run(INTERRUPTED).split() == [b"stopped", b"works"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_the_caller_waits_for_the_others_neither_leaves_them_nor_waits_forever(when):
    helping, waiting, caller, done = threading.Event(), threading.Event(), threading.get_ident(), []

    class AllOut:
        """Lets all out, with Ctrl-C before or after that, where the interpreter looks for it."""

        def __init__(self):
            self.lock = threading.Lock()
            self.release = self.lock.release

        def acquire(self):
            interrupted = helping.is_set() and not waiting.is_set()
            if interrupted and when == "before":
                waiting.set()
                raise KeyboardInterrupt
            waiting.set() if interrupted else None
            assert self.lock.acquire(timeout=10), "nobody lets out any more"
            if interrupted:
                raise KeyboardInterrupt

    def task(item):
        if threading.get_ident() == caller:
            helping.wait()
        else:
            helping.set()
            waiting.wait()
            time.sleep(0.05)
            done.append(item)

    job = threads._Job(task, range(2))
    job._all_out = AllOut()
    with pytest.raises(KeyboardInterrupt):
        job.done_by(2)
    assert len(done) == 1


# The other thread sleeps rather than multiplies: OpenBLAS itself can't be forked in the middle of a product.
FORKED = """
import os, threading, time
import numpy as np, gpuconv
from gpuconv.backends.cpu import threads
from threadpoolctl import threadpool_info
threads.count, threads.SERIAL_WORK = lambda: 4, 0
x, w = np.ones((8, 16, 20, 20), np.float32), np.ones((16, 16, 3, 3), np.float32)

def right():
    return (gpuconv.conv2d(x, w) == 144).all() and (gpuconv.max_pool2d(x, 2)[0] == 1).all()

def blas():
    return [library["num_threads"] for library in threadpool_info()]

def child_is_right():
    child = os.fork()
    if not child:
        try:
            together = threading.Barrier(4, timeout=10)
            threads.parallel(lambda _: together.wait(), range(4))  # passes only with four threads at once
            os._exit(0 if right() and blas() == before else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0

before = blas()
assert right()
print(child_is_right())
inside = threading.Event()
other = threading.Thread(target=threads.parallel, args=(lambda _: (inside.set(), time.sleep(0.5)), range(8)))
other.start()
inside.wait()
print(child_is_right())
other.join()
print(right())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_computes_on_threads_of_its_own():
    assert run(FORKED).split() == [b"True"] * 3


def test_threads_heed_the_callers_errstate():
    large = np.full(4, 3e38, np.float32)
    begun = threading.Barrier(2, timeout=10)

    def overflow(_):
        begun.wait()  # so that another thread than the caller's has one
        large * large

    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        parallel(overflow, range(2))
