"""A compiled kernel, called as CuPy calls it; what CUDA forbids or a GPU may not forgive is an error."""

import ctypes
from functools import lru_cache
from math import prod

import numpy as np

from host.compiler import CONST_POINTER, CONSTANTS, POINTER, VALUE, Array, Launch, load
from host.memory import DeviceError, lock, memory

MOST_BLOCK, MOST_GRID = (1024, 1024, 64), (2**31 - 1, 65535, 65535)
MOST_THREADS, MOST_SHARED = 1024, 48 << 10
# A kernel that may write to more memory than this is run in one order only: its tests would take too long.
MOST_COMPARED = 4 << 20
SEEN = 16  # bytes that are noted of each byte (races.h)


class HostKernel:
    """A kernel on the CPU.

    Every launch is run in `orders` orders of its blocks, warps and threads (ascending, descending, then
    shuffled), each from the same memory, and must write the same bits. In the descending one asynchronous
    copies are done at once, in the others as late as they may be.

    With `races`, threads that touch the same byte with no barrier between, and not all to read, are an error.
    """

    def __init__(self, kernel, exact=False, orders=3, races=False):
        self._library, self._entry = load(kernel, exact, races)
        self._races = races
        self._name = kernel.function
        self._orders = orders
        self._barriers = "__sync" in kernel.text
        defines = dict(kernel.defines)
        self._constants = (ctypes.c_int * len(CONSTANTS))(*(int(defines.get(name, 0)) for name in CONSTANTS))

    def __call__(self, grid, block, args, shared_mem=0):
        """Launch."""
        grid, block = (tuple(sizes) + (1,) * (3 - len(sizes)) for sizes in (grid, block))
        self._check_limits(grid, block, shared_mem)
        values = [self._argument(i, value) for i, value in enumerate(args)]
        if len(values) != self._entry.count:
            raise TypeError(f"{self._name} takes {self._entry.count} arguments, not {len(values)}")
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        launch = Launch(self._entry.call, ctypes.addressof(pointers), grid, block, shared_size=shared_mem)
        with lock:
            self._run_in_all_orders(launch, args)

    def _run_in_all_orders(self, launch, args):
        written = self._bytes_of(args, POINTER)
        watched = self._bytes_of(args, POINTER, CONST_POINTER) if self._races else []
        before = [bytes_.copy() for bytes_ in written]
        first = []
        for order in _orders(prod(launch.grid), prod(launch.block), self._count_orders(written)):
            if first:
                for bytes_, old in zip(written, before, strict=True):
                    bytes_[:] = old
            self._run(launch, watched, *order)
            first = first or [bytes_.copy() for bytes_ in written]
            for bytes_, expected in zip(written, first, strict=True):
                if not np.array_equal(bytes_, expected):
                    at = int(np.flatnonzero(bytes_ != expected)[0])
                    raise DeviceError(
                        f"{self._name} depends on the order in which blocks and threads run: {order[0]}, "
                        f"byte {at} of {bytes_.size} differs from what the ascending order wrote"
                    )
        memory.check(self._name)

    def _run(self, launch, watched, order, blocks, threads):
        seen = [np.zeros(SEEN * bytes_.size, np.uint8) for bytes_ in watched]
        addresses = ((b.ctypes.data, b.size, s.ctypes.data) for b, s in zip(watched, seen, strict=True))
        arrays = (Array * len(watched))(*addresses)
        launch.arrays, launch.array_count = ctypes.addressof(arrays), len(arrays)
        launch.blocks, launch.block_count = blocks.ctypes.data, blocks.size
        launch.threads, launch.thread_count = threads.ctypes.data, threads.size
        launch.copies_at_once = order == "descending"
        self._library.gpuconv_host_constants(self._constants)
        if fault := self._library.gpuconv_host_run(ctypes.byref(launch), self._barriers):
            raise DeviceError(f"{self._name}, {order} order, {fault.decode(errors='replace')}")

    def _count_orders(self, written):
        return 1 if sum(bytes_.size for bytes_ in written) > MOST_COMPARED else self._orders

    def _check_limits(self, grid, block, shared):
        for name, sizes, most in (("grid", grid, MOST_GRID), ("block", block, MOST_BLOCK)):
            if not all(1 <= size <= limit for size, limit in zip(sizes, most, strict=True)):
                raise DeviceError(f"{self._name}: a {name} of {sizes} is beyond CUDA's limits, 1 to {most}")
        if prod(block) > MOST_THREADS:
            raise DeviceError(f"{self._name}: {prod(block)} threads a block, beyond {MOST_THREADS}")
        if not 0 <= shared <= MOST_SHARED:
            raise DeviceError(f"{self._name}: {shared} bytes of shared memory, beyond {MOST_SHARED}")

    def _argument(self, i, value):
        """Return an argument as an array whose bytes are passed, if it fits the signature."""
        if i >= self._entry.count:
            return np.zeros(1)
        size, kind = self._entry.size[i], self._entry.kind[i]
        pointer = isinstance(value, int)
        if pointer == (kind == VALUE):
            wanted = "a struct" if kind == VALUE else "an address"
            raise TypeError(f"{self._name}: argument {i} must be {wanted}, not {value!r}")
        if not pointer and (value.size != 1 or value.nbytes != size):
            raise TypeError(f"{self._name}: argument {i} has {value.nbytes} bytes, not {size}")
        if pointer and value:
            memory.find(value)
        return np.array(value, np.uint64) if pointer else value

    def _bytes_of(self, args, *kinds):
        """Return the bytes of the allocations that arguments of some kinds point to."""
        some = (value for value, kind in zip(args, self._entry.kind, strict=False) if kind in kinds and value)
        found = dict.fromkeys(map(memory.find, some))
        return [np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(start)) for start, size in found]


@lru_cache(64)  # a drawn launch comes again for each array and gradient
def _orders(blocks, threads, count):
    """Return names, and indices of blocks and threads, of so many orders."""
    ascending = tuple(np.arange(size, dtype=np.uint32) for size in (blocks, threads))
    orders = [("ascending", *ascending)]
    if count > 1:
        orders.append(("descending", *(np.ascontiguousarray(indices[::-1]) for indices in ascending)))
    for seed in range(count - 2):
        rng = np.random.default_rng(seed)
        warps = np.split(ascending[1], range(32, threads, 32))
        shuffled = np.concatenate([rng.permutation(warps[i]) for i in rng.permutation(len(warps))])
        orders.append((f"shuffled ({seed})", rng.permutation(ascending[0]), shuffled))
    return orders
