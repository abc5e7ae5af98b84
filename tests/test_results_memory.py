"""Large results on the CPU take over the memory of those that nobody refers to any more."""

import gc
import os
import pickle
import threading
import tracemalloc

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cpu import arrays

SHAPE = (64, 1024)  # of float32: 256 KiB


@pytest.fixture(autouse=True)
def nothing_kept():
    gpuconv.release_buffers()


def new(shape, dtype):
    return arrays.empty(shape, dtype, np.empty(0))


def start(x):
    return x.__array_interface__["data"][0]


def test_a_result_takes_the_memory_of_one_that_is_gone():
    x = new(SHAPE, np.float32)
    place = start(x)
    del x
    assert start(new((1024, 32), np.float64)) == place


@pytest.mark.parametrize(
    "of",
    [
        lambda x: x,
        lambda x: x[3:, ::2],
        lambda x: x.reshape(-1).view(np.uint8),
        memoryview,
        np.from_dlpack,
        lambda x: np.asarray(memoryview(x[:1])),
        lambda x: x.view(np.recarray),
    ],
)
def test_memory_is_taken_by_no_other_while_something_refers_to_it(of):
    x = new(SHAPE, np.float32)
    place, kept = start(x), of(x)
    del x
    gc.collect()
    assert start(new(SHAPE, np.float32)) != place
    del kept
    assert start(new(SHAPE, np.float32)) == place


def test_results_begin_where_vectors_do_and_look_like_any_array():
    x = new(SHAPE, np.float32)
    assert start(x) % 64 == 0
    assert type(x) is np.ndarray
    assert x.flags.c_contiguous and x.flags.writeable and x.flags.aligned
    x[...] = 2
    assert (pickle.loads(pickle.dumps(x)) == 2).all()


def test_no_more_is_kept_than_is_said(monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        several = [new((size, 1024), np.float32) for size in (64, 65, 66, 64, 65, 66, 64)]
        del several
        kept = tracemalloc.get_traced_memory()[0]
        larger = new((1025, 256), np.float32)
        assert larger.base is None
        del larger
        assert 1 << 19 < kept < 1.01 * (1 << 20)
        gpuconv.release_buffers()
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


def test_what_was_wanted_last_is_kept(monkeypatch):
    monkeypatch.setattr(arrays, "KEPT_BYTES", 1 << 19)
    first, second, third = (new((size, 1024), np.float32) for size in (60, 61, 62))
    places = start(second), start(third)
    del first
    del second
    del third
    assert {start(new((61, 1024), np.float32)), start(new((62, 1024), np.float32))} == set(places)


def test_threads_never_share_a_result():
    wrong = []

    def work(number):
        for turn in range(300):
            x = new(SHAPE, np.float32)
            x[...] = number
            y = new(SHAPE, np.float32)
            y[...] = -turn
            if not (x == number).all():
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_no_memory_that_another_thread_was_taking():
    with arrays._idle._lock:  # as if by a thread that the child hasn't
        child = os.fork()
        if not child:
            done = threading.Thread(target=new, args=(SHAPE, np.float32), daemon=True)
            done.start()
            done.join(10)
            os._exit(done.is_alive())
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_convolution_writes_all_of_memory_that_held_something_else(dtype):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 8, 40, 40)).astype(dtype), rng.standard_normal((16, 8, 3, 3)).astype(dtype)
    first = gpuconv.conv2d(x, w, padding=1)
    right, place = first.copy(), start(first)
    first[...] = np.nan
    del first
    again = gpuconv.conv2d(x, w, padding=1)
    assert start(again) == place
    assert np.array_equal(again, right)
