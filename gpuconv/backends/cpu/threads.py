"""One pool of threads for the NumPy backend, BLAS held to one thread inside it, and buffers to reuse.

NumPy and BLAS release the interpreter lock in their loops, so threads of Python scale over images and
channels. A BLAS that starts threads of its own inside them would fight them for the cores.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from math import prod
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

Item = TypeVar("Item")
Array = np.ndarray[Any, Any]

# A thread keeps a buffer for its next task up to this size; vgg3_2's largest is 9 MB.
KEPT_BYTES = 16 << 20


def count() -> int:
    """Threads to use: the cores this process may run on, or fewer where OMP_NUM_THREADS says so."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, min(cores, int(asked))) if asked.isdigit() and int(asked) else cores


def is_much(work: float) -> bool:
    """Tell whether so much work, in multiply-adds or elements, is worth waking threads for."""
    return work > SERIAL_WORK


def workers(work: float) -> int:
    """Threads that so much work is worth: all of them, or one."""
    return count() if is_much(work) else 1


def used(items: int, work: float) -> int:
    """Threads that `parallel` takes for so many items."""
    return min(workers(work), items) if items > 1 else 1


def parallel(
    task: Callable[[Item], None], items: Iterable[Item], work: float = float("inf"), *, blas: bool = False
) -> None:
    """Call `task` with each item, on all threads; return when all are done.

    Parameters
    ----------
    task
        Must write to places that no other item's call reads or writes.
    items
        Taken in order by whichever thread is free.
    work
        Multiply-adds or elements, all items together: too few are not worth waking a thread for.
    blas
        Whether a task multiplies matrices: BLAS is then held to one thread, which takes 7 us, and 100 us
        after a pause.
    """
    items = list(items)
    threads = used(len(items), work)
    with _single_threaded_blas() if blas else _NOTHING:
        if threads > 1:
            _Job(task, items).done_by(threads)
        else:
            for item in items:
                task(item)


_NOTHING = nullcontext()

# Below this, waking a thread and handing the interpreter lock to and fro cost more than the second core
# gains: two million multiply-adds of LeNet's second layer took 0.43 ms on two threads, 0.22 ms on one.
SERIAL_WORK = 3e6


class _Job:
    """A call of `parallel`: its caller and the threads that help take items until none is left."""

    def __init__(self, task: Callable[[Any], None], items: Iterable[Any]) -> None:
        self._task, self._items = task, deque(items)
        self._context = copy_context()  # the caller's numpy.errstate, for one
        self._lock, self._all_out = threading.Lock(), threading.Lock()
        self._inside, self._closed = 0, False
        self._errors: list[BaseException] = []

    def done_by(self, threads: int) -> None:
        """Do it, the calling thread being one of so many."""
        self._all_out.acquire()
        helpers().ask(self, threads - 1)
        try:
            self._drain()
        finally:
            self._close()
        if self._errors:
            raise self._errors[0]

    def help(self, number: int) -> None:
        """Take items on another thread than the caller's, unless it is done already."""
        with self._lock:
            if self._closed:
                return
            self._inside += 1
        try:
            self._context.copy().run(self._drain)
        except BaseException as error:
            self._errors.append(error)
            self._items.clear()
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._closed and not self._inside:
                self._all_out.release()

    def _drain(self) -> None:
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                return
            self._task(item)

    def _close(self) -> None:
        try:
            self._wait()
        except BaseException:  # Ctrl-C meanwhile: what is begun still writes to the caller's arrays
            self._wait()
            raise

    def _wait(self) -> None:
        # After Ctrl-C or an error nobody starts another item. A thread that has begun is waited for, unless
        # it is out already; one that hasn't, no more: a caller inside a helper would wait forever.
        self._items.clear()
        with self._lock:
            self._closed = True
            inside = self._inside
        if inside:
            self._all_out.acquire()


class Job(Protocol):
    """What several threads can do together."""

    def help(self, number: int) -> None:
        """Do a part of it, if any is left, on the thread of that number."""


class Helpers:
    """The threads beside the callers', numbered from 1.

    A queue that is C wakes one in 14 us, 65 us after a pause; a ThreadPoolExecutor takes 19 us and 89 us.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._asked: SimpleQueue[Job] = SimpleQueue()
        # What each does, told its number, before it sleeps; and what ends that for so many (jobs.py).
        self.linger: Callable[[int], None] | None = None
        self.hurry: Callable[[int], None] | None = None
        for number in range(1, count + 1):
            threading.Thread(target=self._help, args=(number,), name="gpuconv", daemon=True).start()

    def ask(self, job: Job, number: int) -> None:
        """Have so many help, as soon as they are free."""
        for _ in range(number):
            self._asked.put(job)
        if self.hurry and number > 0:
            self.hurry(number)

    def _help(self, number: int) -> None:
        while True:
            self._asked.get().help(number)  # no name for it: it would keep the last job's arrays
            if self.linger and self._asked.empty():
                self.linger(number)


_lock = threading.Lock()
_helpers: Helpers | None = None


def helpers() -> Helpers:
    """Return the threads that help, of which there are as many as are to be used, but for the caller's."""
    global _helpers
    with _lock:
        if _helpers is None:
            _helpers = Helpers(max(1, count() - 1))
        return _helpers


def _after_fork() -> None:
    # A child has none of its parent's threads, and perhaps a lock or a BLAS that nobody will free.
    global _helpers, _lock, _blas
    if _blas.inside:
        _blas.give_back()
    _helpers, _lock, _blas = None, threading.Lock(), _Blas()


class _Blas:
    """The loaded BLAS libraries' thread counts: put down by the first caller in, put back by the last out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._libraries: list[Any] | None = None
        self.inside = 0
        self._held: list[tuple[Any, int]] = []

    def enter(self) -> None:
        with self._lock:
            if self._libraries is None:
                self._libraries = _blas_libraries()
            if self.inside == 0:
                self._held = []
                for library in self._libraries:
                    threads = library.get_num_threads()
                    library.set_num_threads(1)
                    if threads != library.get_num_threads():
                        self._held.append((library, threads))
            self.inside += 1

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1
            if self.inside == 0:
                self.give_back()

    def give_back(self) -> None:
        # Since threadpoolctl 3.8, only the thread that limited OpenBLAS may set it again, until let go; the
        # last caller out need not be the first one in.
        for library, threads in self._held:
            _let_go(library)
            library.set_num_threads(threads)
            _let_go(library)


def _let_go(library: Any) -> None:
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)


def _blas_libraries() -> list[Any]:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:  # a bare checkout: BLAS keeps its own threads
        return []
    controllers = ThreadpoolController().select(user_api="blas").lib_controllers
    return list(controllers)


_blas = _Blas()


@contextmanager
def _single_threaded_blas() -> Iterator[None]:
    blas = _blas
    blas.enter()
    try:
        yield
    finally:
        blas.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_kept = threading.local()


def buffer(slot: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an uninitialised array that is this thread's until it asks for the same slot again."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    return memory(slot, size).array[:size].view(dtype).reshape(shape)


class Memory(NamedTuple):
    """Bytes that are a thread's as long as it holds the array."""

    array: Array
    address: int  # of the first


def memory(slot: str, size: int) -> Memory:
    """Return so many bytes, from a multiple of VECTOR_BYTES on, as `buffer` does."""
    slots: dict[str, Memory | None] = _kept.__dict__
    found = slots.get(slot)
    if found is not None and found.array.nbytes >= size:
        return found
    keep = size <= KEPT_BYTES
    if keep:
        found = slots[slot] = None  # before there is a larger one, not beside it
    array = np.empty(size + VECTOR_BYTES, np.uint8)
    begin = -array.__array_interface__["data"][0] % VECTOR_BYTES
    found = Memory(array[begin : begin + size], array.__array_interface__["data"][0] + begin)
    if keep:
        slots[slot] = found
    return found


# Bytes of the largest vectors.
VECTOR_BYTES = 64


def release_buffers() -> None:
    """Give back what the threads keep for their next calls; calls under way keep theirs until they end."""
    global _kept
    _kept = threading.local()
