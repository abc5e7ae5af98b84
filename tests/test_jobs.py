"""C kernels' jobs, which C itself hands to the threads."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cpu import compiled, jobs, threads
from gpuconv.backends.cpu.compiled import address

SIZE = 1 << 16  # of a job that takes as long as a thread to come


@pytest.fixture
def kernels():
    with gpuconv.config(compiled=True):
        found = compiled.kernels(np.zeros(1, np.float32), part="relu")
    return found or pytest.skip(f"no C kernels: {compiled.why_not()}")


@pytest.mark.parametrize("number", [1, 2, 5, 40])
def test_every_job_is_done_once_whatever_the_number_of_threads(kernels, monkeypatch, number):
    monkeypatch.setattr(threads, "count", lambda: number)
    x, y = np.arange(1, 1001, dtype=np.float32), np.zeros(1000, np.float32)
    for patience in (1e8, 1.0):  # one call for all jobs of a thread, or for each
        monkeypatch.setattr(jobs, "PATIENCE", patience)
        y[...] = 0
        jobs.run(kernels, "relu", [(1, address(x) + 4 * i, address(y) + 4 * i) for i in range(1000)], 1e7)
        assert (y == x).all()


@pytest.mark.parametrize("patience", [1e8, 1.0])
def test_the_caller_does_all_alone_where_nobody_comes(kernels, monkeypatch, patience):
    monkeypatch.setattr(threads, "count", lambda: 3)
    monkeypatch.setattr(threads, "_helpers", None)
    monkeypatch.setattr(threads.Helpers, "ask", lambda self, job, number: None)
    monkeypatch.setattr(jobs, "PATIENCE", patience)
    for number in (2, 3, 10):
        x, y = np.arange(1, number + 1, dtype=np.float32), np.zeros(number, np.float32)
        rows = [(1, address(x) + 4 * i, address(y) + 4 * i) for i in range(number)]
        jobs.run(kernels, "relu", rows, 1e7)
        assert (y == x).all()


def test_no_rows_are_no_job(kernels):
    jobs.run(kernels, "relu", [], 1e9)


def test_a_jobs_rows_are_done_in_order_by_one_thread(kernels, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 4)
    places, turns = 50, 40
    chain = np.zeros((places, turns + 1, 64), np.float32)
    chain[:, 0] = np.arange(1, places + 1)[:, None]
    rows = [
        (64, address(chain[i, turn]), address(chain[i, turn + 1]))
        for i in range(places)
        for turn in range(turns)
    ]
    jobs.run(kernels, "relu", rows, 1e9, begins=range(0, places * turns + 1, turns))
    assert (chain == chain[:, :1]).all()


def test_each_thread_has_memory_of_its_own(kernels, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 2)
    given = {}

    def memory(slot, size):
        assert size == 4 * SIZE
        given[slot] = np.zeros(SIZE, np.float32)
        return threads.Memory(given[slot], address(given[slot]))

    monkeypatch.setattr(jobs, "memory", memory)
    x = np.ones(SIZE, np.float32)
    for _ in range(100):
        jobs.run(kernels, "relu", [(SIZE, address(x), 0)] * 40, 1e9, {2: ("own", 4 * SIZE)})
        assert list(given) == ["own 0", "own 1"]
        if all(own.all() for own in given.values()):  # the second thread may come late
            return
    pytest.fail("a second thread never took part")


def test_memory_too_large_to_be_kept_lives_until_the_jobs_are_done(kernels, monkeypatch):
    monkeypatch.setattr(threads, "KEPT_BYTES", 0)
    size = 1 << 20
    x = np.ones(size, np.float32)
    with gpuconv.config(compiled=True):
        jobs.run(kernels, "relu", [(size, address(x), 0)] * 20, 1.0, {2: ("own", 4 * size)})


def test_an_interrupted_call_begins_no_more_jobs(kernels, monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 1)
    monkeypatch.setattr(jobs, "PATIENCE", 1.0)
    y, calls = np.zeros(10, np.float32), []
    real = kernels.run_jobs

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(kernels, "run_jobs", interrupted)
    x = np.ones(10, np.float32)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(kernels, "relu", [(1, address(x) + 4 * i, address(y) + 4 * i) for i in range(10)], 1e7)
    assert y.sum() == 3


@pytest.fixture
def desks(kernels, monkeypatch):
    """Desks of two helpers of this test's own, who wait for half a minute."""
    monkeypatch.setattr(threads, "count", lambda: 3)
    monkeypatch.setattr(threads, "_helpers", None)
    monkeypatch.setattr(jobs, "LINGER", 1 << 30)
    found = jobs.Desks.of(threads.helpers(), kernels)
    while found.waiting() < 2:  # one may have done all before the other came
        relu_of_each(kernels, np.ones(1000, np.float32))
    yield found
    time.sleep(0.01)  # until nobody is on the way to a desk
    found.helpers.hurry(2)


def relu_of_each(kernels, x, own=None):
    """Return relu(x), each element as a job; written elsewhere where the threads' own memory is given."""
    y = np.zeros_like(x)
    rows = [(1, address(x) + 4 * i, address(y) + 4 * i) for i in range(x.size)]
    jobs.run(kernels, "relu", rows, 1e9, own)
    return y


def wait_for(number, desks):
    """Return when so many helpers wait."""
    end = time.monotonic() + 20
    while desks.waiting() != number:
        assert time.monotonic() < end, f"{desks.waiting()} wait"


def test_who_waits_helps_without_being_woken(kernels, desks, monkeypatch):
    woken, seen = [], set()
    given = {f"own {thread}": np.zeros(1, np.float32) for thread in range(3)}
    monkeypatch.setattr(desks.helpers, "ask", lambda job, number: woken.append(number))
    monkeypatch.setattr(jobs, "memory", lambda slot, size: threads.Memory(given[slot], address(given[slot])))
    while len(seen) < 2:  # beside the caller one of two, where there are two cores
        wait_for(2, desks)
        relu_of_each(kernels, np.ones(5000, np.float32), {2: ("own", 4)})
        seen |= {slot for slot, own in given.items() if own[0]}
    assert set(woken) == {0}


def test_who_waits_goes_where_python_needs_it(desks):
    wait_for(2, desks)
    together = threading.Barrier(3)
    threads.parallel(lambda _: together.wait(timeout=10), range(3))


def test_several_callers_share_those_who_wait(kernels, desks):
    def call(seed):
        for size in range(2, 300):
            x = np.random.default_rng((seed, size)).standard_normal(size, np.float32)
            assert (relu_of_each(kernels, x) == np.maximum(x, 0)).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(8)))


def test_who_comes_when_all_is_done_does_nothing(kernels, monkeypatch):
    calls, real = [], jobs._Call.__init__
    monkeypatch.setattr(jobs._Call, "__init__", lambda self, *given: calls.append(self) or real(self, *given))
    x = np.ones(5, np.float32)
    y = relu_of_each(kernels, x)
    y[...] = 7
    calls[0].help(1)
    assert (y == 7).all()


@pytest.mark.parametrize("end", ["", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_program_ends_while_threads_wait(kernels, end):
    program = (
        "import numpy as np, gpuconv\n"
        "from gpuconv.backends.cpu import compiled, jobs, threads\n"
        "threads.count, jobs.LINGER = lambda: 3, 1 << 40\n"
        "x, w = np.ones((8, 16, 64, 64), np.float32), np.ones((16, 16, 3, 3), np.float32)\n"
        "kernels = compiled.kernels(x)\n"
        f"while jobs.Desks.of(threads.helpers(), kernels).waiting() < 1: gpuconv.conv2d(x, w)\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM if end else 0, b"")


def test_openmps_wait_policy_is_heeded():
    program = "from gpuconv.backends.cpu import jobs; print(jobs.LINGER)"
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    assert subprocess.check_output([sys.executable, "-c", program], env=environment) == b"0\n"


@pytest.mark.parametrize("part", compiled.PARTS)
def test_every_kernel_takes_words_and_no_more_than_there_are(part):
    functions = compiled._functions(part)
    assert functions.pop("run_jobs")
    words = int(re.search(r"#define WORDS (\d+)", compiled._sources(part)["jobs.h"])[1])
    for name, parameters in functions.items():
        assert len(parameters) <= words, name
        assert all("*" in each or each.startswith("ptrdiff_t ") for each in parameters), name


@pytest.mark.parametrize("pause, most", [(0.0, 2), (1.0, 1)])
def test_small_work_is_shared_where_calls_follow_one_another(kernels, monkeypatch, pause, most):
    clock, threads_of = itertools.count(0, pause), []
    monkeypatch.setattr(threads, "count", lambda: 2)
    monkeypatch.setattr(jobs, "count", lambda: 2)
    monkeypatch.setattr(jobs.time, "perf_counter", lambda: float(next(clock)))
    real = jobs._Call.done
    monkeypatch.setattr(
        jobs._Call, "done", lambda self, n: threads_of.append(self._together.threads) or real(self, n)
    )
    x = np.arange(10, dtype=np.float32)
    rows = [(1, address(x) + 4 * i, address(x) + 4 * i) for i in range(10)]
    for work in (2 * jobs.EASY_WORK, 2 * jobs.EASY_WORK, 0.5 * jobs.EASY_WORK):
        jobs.run(kernels, "relu", rows, work)
    assert threads_of[1:] == [most, 1]
