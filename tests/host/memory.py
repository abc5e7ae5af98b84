"""The device's memory: allocations with guards around them, filled with NaN."""

import ctypes
import threading
import weakref

import numpy as np

from host.compiler import address_sanitized

ALIGNMENT = 256  # of what CUDA allocates
GUARD = 1024
PATTERN = b"\xa5" * GUARD
FILL = 0xFF  # NaN for every floating-point type

# One thread at a time uses the device, or changes what memory it has (within a use, if in a finalizer).
lock = threading.RLock()

_libc = ctypes.CDLL(None)
_libc.free.argtypes = [ctypes.c_void_p]
_libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]


class DeviceError(RuntimeError):
    """What a GPU would have done wrong, perhaps without a word."""


class Memory:
    """All live allocations of one device."""

    def __init__(self):
        # Bytes by start. The garbage collector may free some at any time: what is gone through is a copy.
        self._live = {}
        self._guarded = set()

    def allocate(self, size):
        """Return new memory as bytes, which lives as long as it is referred to.

        The address sanitizer guards memory itself, if it lies alone.
        """
        guard = 0 if address_sanitized() else GUARD
        block = ctypes.c_void_p()
        total = guard + max(size, 1) + guard
        if _libc.posix_memalign(ctypes.byref(block), ALIGNMENT, total):
            raise MemoryError(f"{size} bytes")
        start = block.value + guard
        owner = (ctypes.c_ubyte * size).from_address(start)
        weakref.finalize(owner, self._free, block.value, start).atexit = False
        with lock:
            self._live[start] = size
            if guard:
                self._paint(start)
                self._guarded.add(start)
        array = np.frombuffer(owner, np.uint8) if size else np.ndarray(0, np.uint8, buffer=owner)
        array.fill(FILL)
        return array

    def adopt(self, array):
        """Let kernels have an array that NumPy allocated: the result of an elementwise expression."""
        while isinstance(array.base, np.ndarray):
            array = array.base
        start, end = np.lib.array_utils.byte_bounds(array)
        with lock:
            if not self._holds(start) and start not in self._live:
                self._live[start] = end - start
                weakref.finalize(array, self._live.pop, start).atexit = False

    def find(self, address, size=1):
        """Return start and size of the live allocation that holds these bytes.

        Raises
        ------
        DeviceError
            Where there is none.
        """
        for start, length in self._live.copy().items():
            if start <= address and address + size <= start + length:
                return start, length
        raise DeviceError(f"{size} bytes at {address:#x} are not within one live allocation")

    def check(self, who):
        """Raise DeviceError where a guard was written to since the last check, and mend it."""
        for start in self._guarded.copy():
            size = self._live.get(start, 0)
            end = start + max(size, 1)
            before, after = ctypes.string_at(start - GUARD, GUARD), ctypes.string_at(end, GUARD)
            # One that the garbage collector frees in the midst of this has no guards any more.
            if before == PATTERN == after or start not in self._live:
                continue
            self._paint(start)
            wrong = [i - GUARD for i in range(GUARD) if before[i] != PATTERN[i]]
            wrong += [end - start + i for i in range(GUARD) if after[i] != PATTERN[i]]
            nearest = min(wrong, key=abs)
            raise DeviceError(f"{who} wrote byte {nearest} of an allocation of {size} bytes")

    def _holds(self, address):
        return any(start <= address < start + length for start, length in self._live.copy().items())

    def _end(self, start):
        return start + max(self._live[start], 1)

    def _paint(self, start):
        ctypes.memmove(start - GUARD, PATTERN, GUARD)
        ctypes.memmove(self._end(start), PATTERN, GUARD)

    def _free(self, block, start):
        with lock:
            self._guarded.discard(start)
            del self._live[start]
            _libc.free(block)


memory = Memory()
