"""Streams, events and pinned memory on the CPU, where everything that is asked for happens as late as it may.

A copy on a stream is done when something waits for it, not before; until then its target holds NaN. What one
stream does to memory must be ordered, by events or by the program's waiting, after what others did there:
each knows of the others how far they have come ("vector clocks"), and an access that could fall together with
another's is an error. The default stream alone works at once; the program is one more actor.
"""

import ctypes
import weakref
from collections import deque

import numpy as np

from host.memory import FILL, DeviceError, lock, memory


class Actor:
    """Something that works in an order of its own, and what it knows of the others' progress."""

    def __init__(self, name):
        self.name = name
        self.knows = {self: 0}

    def learn(self, clock):
        with lock:
            for actor, time in clock.items():
                self.knows[actor] = max(self.knows.get(actor, 0), time)

    def step(self, *accesses):
        """Do one more thing; each access is an address, a number of bytes, and whether they are written."""
        with lock:
            self.knows[self] += 1
            for start, size, writes in accesses:
                new = _Access(self, self.knows[self], start, start + size, writes)
                for old in _accesses:
                    old.check(new)
                # One that comes after a write to all its bytes comes after what came before that, too.
                _accesses[:] = [old for old in _accesses if not (writes and old.within(new))]
                _accesses.append(new)


class _Access:
    def __init__(self, actor, time, start, end, writes):
        self.actor, self.time, self.start, self.end, self.writes = actor, time, start, end, writes

    def check(self, later):
        apart = later.end <= self.start or self.end <= later.start
        if apart or not (self.writes or later.writes) or later.actor.knows.get(self.actor, 0) >= self.time:
            return
        did, may = ("writes" if each.writes else "reads" for each in (later, self))
        raise DeviceError(
            f"{later.actor.name} {did} what {self.actor.name} perhaps still {may}: no event between"
        )

    def within(self, other):
        return other.start <= self.start and self.end <= other.end


class Event:
    """A point in a stream's work."""

    def __init__(self, stream):
        self._stream, self._time = stream, stream.knows[stream]
        self.clock = dict(stream.knows)

    def synchronize(self):
        self.happen()
        program.learn(self.clock)

    @property
    def done(self):
        """Whether it has been reached."""
        return self._stream.has_done(self._time)

    def happen(self):
        """Do what the stream was asked for before."""
        self._stream.run(self._time)


class Stream(Actor):
    """A stream beside the default one; its work waits until it is waited for."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if not non_blocking:
            raise DeviceError("a stream that isn't non-blocking waits for the default stream, and it for it")
        _names.append(f"stream {len(_names)}")
        super().__init__(_names[-1])
        self._waiting = deque()  # what to do, and its time
        self.ptr = id(self)
        _by_ptr[self.ptr] = self

    @property
    def busy(self):
        """Whether a copy has still to be done."""
        return bool(self._waiting)

    def record(self, event=None):
        assert event is None
        self.step()
        return Event(self)

    def wait_event(self, event):
        self.learn(event.clock)
        self.step()
        self._waiting.append((self.knows[self], event.happen))

    def synchronize(self):
        self.record().synchronize()

    def copy(self, target, source):
        """Ask for a copy of one address's bytes to another's."""
        (to, size), (of, _) = target, source

        def happen():
            for address in (to, of):
                memory.find(address, size)  # not freed meanwhile
            ctypes.memmove(to, of, size)

        self.do(happen, (to, size, True), (of, size, False))
        ctypes.memset(to, FILL, size)

    def do(self, happen, *accesses):
        """Ask for something that makes these accesses: address, number of bytes, whether they are written."""
        self.learn(program.knows)
        self.step(*accesses)
        self._waiting.append((self.knows[self], happen))

    def has_done(self, time):
        return not (self._waiting and self._waiting[0][0] <= time)

    def run(self, time):
        while self._waiting and self._waiting[0][0] <= time:
            self._waiting.popleft()[1]()


class DefaultStream(Actor):
    """The stream that kernels run on, at once."""

    def record(self, event=None):
        assert event is None
        self.step()
        return Event(self)

    def wait_event(self, event):
        event.happen()
        self.learn(event.clock)

    def synchronize(self):
        self.record().synchronize()

    def use(self, array):
        """Let a kernel, or one of CuPy's functions, read and write an array."""
        self.learn(program.knows)
        start, end = np.lib.array_utils.byte_bounds(array)
        self.step((start, end - start, True))

    def run(self, time):
        """Do nothing: it is done."""

    def has_done(self, time):
        return True


program = Actor("the program")
default = DefaultStream("the default stream")
_names, _accesses, _by_ptr = [], [], {}


def at(ptr):
    """Return the stream that a library was given by its address."""
    return _by_ptr[ptr]


def reset():
    """Forget all streams and what was done."""
    _names.clear()
    _accesses.clear()
    _by_ptr.clear()
    for actor in (program, default):
        actor.knows = {actor: 0}


_pinned = set()  # starts and ends


def alloc_pinned_memory(size):
    """Return pinned memory: something with a buffer."""
    array = memory.allocate(size)
    bounds = array.ctypes.data, array.ctypes.data + size
    _pinned.add(bounds)
    weakref.finalize(array, _pinned.discard, bounds).atexit = False
    return memoryview(array)


def span(array):
    """Return address and bytes of an array in row-major order, as copies must have it."""
    if not array.flags.c_contiguous:
        raise DeviceError("a copy of an array that isn't in order")
    return array.ctypes.data, array.nbytes


def check_pinned(array):
    """Raise DeviceError for other memory, whose copies make the program wait."""
    start, size = span(array)
    if not any(low <= start and start + size <= high for low, high in list(_pinned)):
        raise DeviceError("a copy on a stream to or from memory that isn't pinned")
