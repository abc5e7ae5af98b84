"""C kernels' jobs, which C itself hands to the threads."""

import re
import threading

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cpu import compiled, jobs, threads
from gpuconv.backends.cpu.compiled import address


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
    given, together = [], threading.Barrier(2, timeout=30)

    def memory(slot, size):
        assert (slot, size) == ("own", 256)
        given.append(np.zeros(64, np.float32))
        together.wait()  # both are here before the first begins
        return threads.Memory(given[-1], address(given[-1]))

    monkeypatch.setattr(jobs, "memory", memory)
    x = np.ones((4000, 64), np.float32)
    rows = [(64, address(x), 0)] * 4000
    jobs.run(kernels, "relu", rows, 1e9, {2: ("own", 256)})
    assert len(given) == 2
    assert any(own.all() for own in given)


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


@pytest.mark.parametrize("part", compiled.PARTS)
def test_every_kernel_takes_words_and_no_more_than_there_are(part):
    functions = compiled._functions(part)
    assert functions.pop("run_jobs")
    words = int(re.search(r"#define WORDS (\d+)", compiled._sources(part)["jobs.h"])[1])
    for name, parameters in functions.items():
        assert len(parameters) <= words, name
        assert all("*" in each or each.startswith("ptrdiff_t ") for each in parameters), name
