"""The machinery that runs CUDA kernels on the CPU: it runs right ones right, and catches planted faults."""

import gc
import inspect
from dataclasses import dataclass

import numpy as np
import pytest
from host import compiler, sanitized

import gpuconv
from gpuconv.backends.cuda import kernels, runtime

if reason := compiler.missing():
    pytest.skip(reason, allow_module_level=True)

from host.kernel import HostKernel
from host.memory import DeviceError
from host.runtime import DeviceArray, HostRuntime, host, to_device, to_host

SANITIZED = compiler.address_sanitized()
only_sanitized = pytest.mark.skipif(
    not SANITIZED, reason="only the address sanitizer sees this; it runs below"
)


@dataclass(frozen=True)
class Source:
    """A kernel of a test's own."""

    text: str
    name: str = "planted"
    function: str = "gpuconv_planted"
    defines: tuple = ()


def kernel(parameters, body, **options):
    text = f'extern "C" __global__ void gpuconv_planted({parameters}) {{ {body} }}'
    return HostKernel(Source(text), **options)


def launch(kernel, grid, block, *arguments, shared=0):
    """Launch on device arrays (or None), ints and structs."""
    sizes = (size if isinstance(size, tuple) else (size,) for size in (grid, block))
    kernel(*sizes, [_argument(value) for value in arguments], shared_mem=shared)


def _argument(value):
    if value is None:
        return 0
    if isinstance(value, DeviceArray):
        return host.address(value)
    return np.array(value, np.int32) if isinstance(value, int) else value


def floats(n):
    return host.empty((n,), np.float32)


# What is right runs right.


def test_blocks_and_threads_see_their_indices():
    y = host.empty((2, 3, 4, 5), np.int32)
    body = """const int block = blockIdx.y * gridDim.x + blockIdx.x;
    y[(block * blockDim.z + threadIdx.z) * blockDim.x + threadIdx.x] =
        ((1 + blockIdx.y) * 10 + blockIdx.x) * 100 + threadIdx.z * 10 + threadIdx.x;"""
    launch(kernel("int *y", body), (3, 2), (5, 1, 4), y)
    by, bx, tz, tx = np.indices(y.shape)
    assert np.array_equal(to_host(y), ((1 + by) * 10 + bx) * 100 + tz * 10 + tx)


REVERSE = """SHARED(float, s); s[threadIdx.x] = x[threadIdx.x]; {}
y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];"""


def test_threads_talk_through_shared_memory_across_a_barrier():
    x, y = to_device(np.arange(1024, dtype=np.float32)), floats(1024)
    reverse = kernel("const float *x, float *y", REVERSE.format("__syncthreads();"))
    launch(reverse, 1, 1024, x, y, shared=4096)
    assert np.array_equal(to_host(y), to_host(x)[::-1])


def test_barriers_in_a_loop_separate_its_passes():
    y = floats(2)
    body = """SHARED(float, s); s[threadIdx.x] = threadIdx.x;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads(); if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
    }
    if (threadIdx.x == 0) y[blockIdx.x] = s[0];"""
    launch(kernel("float *y", body), 2, 256, y, shared=1024)
    assert to_host(y).tolist() == [255 * 128] * 2


def test_threads_of_a_warp_talk_across_a_barrier_of_their_warp():
    x, y = to_device(np.arange(70, dtype=np.float32)), floats(70)
    body = """SHARED(float, s);
    s[threadIdx.x] = x[threadIdx.x]; __syncwarp();
    const int first = threadIdx.x / 32 * 32, last = first < 64 ? first + 31 : 69;
    y[threadIdx.x] = s[first + last - threadIdx.x];"""
    launch(kernel("const float *x, float *y", body), 1, 70, x, y, shared=280)
    expected = [np.arange(first, min(first + 32, 70))[::-1] for first in (0, 32, 64)]
    assert np.array_equal(to_host(y), np.concatenate(expected))


COPY = """SHARED(float, s); const unsigned i = threadIdx.x, n = blockDim.x;
host::copy_later(s + i, x + i, 4); host::end_copies();
host::copy_later(s + n + i, i % 2 ? x + i : nullptr, 4); host::end_copies();
{} y[i] = s[n - 1 - i] + s[2 * n - 1 - i];"""


RACES_OR_NOT = [False] if SANITIZED else [False, True]  # one sanitizer at a time


@pytest.mark.parametrize("races", RACES_OR_NOT)
def test_copies_are_there_when_they_were_waited_for_and_a_barrier_is_behind(races):
    x, y = to_device(np.arange(64, dtype=np.float32)), floats(64)
    body = COPY.format("host::await_copies(1); host::await_copies(0); __syncthreads();")
    launch(kernel("const float *x, float *y", body, races=races), 1, 64, x, y, shared=512)
    copied = to_host(x)[::-1]
    assert np.array_equal(to_host(y), copied + copied * (copied % 2))


def test_a_null_pointer_that_is_not_followed_is_fine():
    y = floats(1)
    launch(kernel("float *y, int *none", "y[0] = none == nullptr;"), 1, 1, y, None)
    assert to_host(y) == 1


def test_a_kernel_that_adds_to_memory_adds_once_whatever_the_number_of_orders():
    y = to_device(np.zeros(8, np.float32))
    launch(kernel("float *y", "y[threadIdx.x] += 1;", orders=5), 1, 8, y)
    assert to_host(y).tolist() == [1] * 8


# Planted faults.


@pytest.mark.parametrize("index, byte", [("threadIdx.x", "4[0-3]"), ("(int)threadIdx.x - 1", "-1")])
def test_a_write_one_element_too_far_is_caught_and_mended(index, byte):
    y = floats(10)
    message = "heap-buffer-overflow" if SANITIZED else f"wrote byte {byte} of an allocation of 40"
    with pytest.raises(DeviceError, match=message):
        launch(kernel("float *y", f"if (threadIdx.x <= 10) y[{index}] = 1;"), 1, 11, y)
    launch(kernel("float *y", "y[threadIdx.x] = 2;"), 1, 10, y)
    assert to_host(y).tolist() == [2] * 10


@only_sanitized
def test_a_read_out_of_bounds_is_caught():
    x, y = to_device(np.ones(10, np.float32)), floats(10)
    with pytest.raises(DeviceError, match="heap-buffer-overflow"):
        launch(kernel("const float *x, float *y", "y[threadIdx.x] = x[threadIdx.x + 1];"), 1, 10, x, y)


@only_sanitized
def test_a_read_beyond_shared_memory_is_caught():
    body = "SHARED(float, s); s[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = s[threadIdx.x + 1];"
    with pytest.raises(DeviceError, match="use-after-poison"):
        launch(kernel("float *y", body), 1, 4, floats(4), shared=16)


def test_an_index_beyond_a_thread_s_own_array_is_caught_in_a_fiber():
    body = "float own[4] = {}, *p = own; __syncthreads(); y[threadIdx.x] = p[threadIdx.x + n];"
    with pytest.raises(DeviceError, match=r"thread \(3, 0, 0\): access beyond an object in planted.cu:1"):
        launch(kernel("float *y, int n", body), 1, 4, floats(4), 1)


@only_sanitized
def test_a_read_beyond_what_a_caller_lends_is_caught_in_a_fiber():
    text = """__attribute__((noipa)) float at(const float *p, int i) { return p[i]; }
    extern "C" __global__ void gpuconv_planted(float *y, int n) {
        float own[4] = {}; __syncthreads(); y[threadIdx.x] = at(own, threadIdx.x + n);
    }"""
    with pytest.raises(DeviceError, match="stack-buffer-overflow"):
        launch(HostKernel(Source(text)), 1, 4, floats(4), 1)


def test_a_missing_barrier_is_caught():
    x, y = to_device(np.arange(64, dtype=np.float32)), floats(64)
    with pytest.raises(DeviceError, match="depends on the order"):
        launch(kernel("const float *x, float *y", REVERSE.format("")), 1, 64, x, y, shared=256)


def test_a_missing_second_barrier_is_caught():
    body = """SHARED(float, s);
    for (int pass = 0; pass < 2; ++pass) {
        s[threadIdx.x] = pass * 100 + threadIdx.x; __syncthreads();
        y[pass * blockDim.x + threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
    }"""
    with pytest.raises(DeviceError, match="depends on the order"):
        launch(kernel("float *y", body), 1, 64, floats(128), shared=256)


@pytest.mark.parametrize("races", RACES_OR_NOT)
def test_a_barrier_of_the_warp_where_the_block_needs_one_is_caught(races):
    x, y = to_device(np.arange(64, dtype=np.float32)), floats(64)
    reverse = kernel("const float *x, float *y", REVERSE.format("__syncwarp();"), races=races)
    with pytest.raises(DeviceError, match="no barrier between" if races else "depends on the order"):
        launch(reverse, 1, 64, x, y, shared=256)


@pytest.mark.parametrize("races", RACES_OR_NOT)
@pytest.mark.parametrize("wait", ["", "host::await_copies(1); __syncthreads();", "host::await_copies(0);"])
def test_a_copy_that_is_read_too_early_is_caught(wait, races):
    x, y = to_device(np.arange(64, dtype=np.float32)), floats(64)
    early = kernel("const float *x, float *y", COPY.format(wait), races=races)
    with pytest.raises(DeviceError, match="still being|no barrier" if races else "depends on the order"):
        launch(early, 1, 64, x, y, shared=512)


@pytest.mark.parametrize(
    "at, size, message",
    [("y", 4, "not to shared memory"), ("s + 1", 16, "misaligned"), ("s + 8", 4, "not to")],
)
def test_a_copy_to_where_none_may_go_is_caught(at, size, message):
    body = f"SHARED(float, s); host::copy_later({at}, x, {size}); __syncthreads();"
    with pytest.raises(DeviceError, match=message):
        launch(kernel("const float *x, float *y", body), 1, 1, floats(8), floats(8), shared=32)


def test_a_barrier_of_a_warp_that_only_some_of_its_threads_reach_is_caught():
    body = "if (threadIdx.x < 5) __syncwarp();"
    with pytest.raises(DeviceError, match=r"waits at a barrier \(line 1\), but thread \d+ has ended"):
        launch(kernel("float *y", body), 1, 64, floats(8))


# Not seen by what is written, whatever the order.
RACES = {
    "all write the same": ("y[0] = 1;", 1, 32, "writes byte 0 of array 0, which thread 0 wrote"),
    "blocks write the same": ("y[0] = 1;", 2, 1, "which another block wrote"),
    "a block reads": ("if (blockIdx.x) y[1] = 0; else s = y[1];", 2, 1, "array 0, which another block read"),
    "two blocks read": (
        "if (blockIdx.x == 3) __syncthreads(), s = y[1], y[1] = 0; else __syncthreads(), s = y[1];",
        4, 1, "another block read",
    ),
    "several read": ("s = y[0]; if (threadIdx.x == 3) y[0] = s;", 1, 4, "which other threads read"),
    "one byte of a word": ("((char *)y)[threadIdx.x / 2] = 0;", 1, 4, "byte 0 .* thread 0 wrote"),
}  # fmt: skip


@pytest.mark.skipif(SANITIZED, reason="one sanitizer at a time")
@pytest.mark.parametrize("body, blocks, threads, message", RACES.values(), ids=RACES)
def test_a_race_that_changes_nothing_is_caught(body, blocks, threads, message):
    launched = kernel("float *y", f"volatile float s; {body}", orders=1, races=True)
    with pytest.raises(DeviceError, match=rf"{message}, with no barrier between"):
        launch(launched, blocks, threads, floats(4))


def test_what_barriers_keep_apart_is_no_race():
    y = to_device(np.zeros(64, np.float32))
    body = """float *mine = y + 32 * blockIdx.x;
    mine[(threadIdx.x + 1) % 32] = threadIdx.x; __syncthreads(); mine[threadIdx.x] += 1; __syncthreads();
    if (threadIdx.x == 0) for (int i = 1; i < 32; ++i) mine[0] += mine[i];"""
    launch(kernel("float *y", body, races=True), 2, 32, y)
    assert to_host(y)[[0, 32]].tolist() == [31 * 16 + 32] * 2


def test_a_barrier_that_only_some_threads_reach_is_caught():
    body = "if (threadIdx.x < 5) __syncthreads(); y[threadIdx.x] = 1;"
    with pytest.raises(DeviceError, match=r"waits at a barrier \(line 1\), but thread \d has ended"):
        launch(kernel("float *y", body), 1, 8, floats(8))


def test_threads_at_two_different_barriers_are_caught():
    body = "if (threadIdx.x < 5) __syncthreads(); else {\n __syncthreads(); }"
    with pytest.raises(DeviceError, match="waits at the barrier in line 1, but thread 5 at that in line 2"):
        launch(kernel("int *y", body), 1, 8, None)


def test_a_misaligned_vector_load_is_caught():
    x, y = to_device(np.ones(12, np.float32)), floats(4)
    load = kernel("const float *x, float *y, int offset", "*(float4 *)y = *(const float4 *)(x + offset);")
    launch(load, 1, 1, x, y, 4)
    assert to_host(y).tolist() == [1] * 4
    with pytest.raises(DeviceError, match=r"misaligned access in planted.cu:1: .*alignment 16"):
        launch(load, 1, 1, x, y, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_element_that_is_not_written_stays_nan(dtype):
    y = host.empty((10,), dtype)
    body = "for (int i = 0; i < size; ++i) y[size * threadIdx.x + i] = 0;"
    launch(kernel("char *y, int size", body), 1, 9, y, y.itemsize)
    assert np.isnan(to_host(y)).tolist() == [False] * 9 + [True]


def test_a_race_between_threads_is_caught():
    with pytest.raises(DeviceError, match="depends on the order in which blocks and threads run: descending"):
        launch(kernel("float *y", "y[0] = threadIdx.x;"), 1, 32, floats(1))


def test_a_race_between_blocks_is_caught():
    with pytest.raises(DeviceError, match="depends on the order"):
        launch(kernel("float *y", "y[0] = blockIdx.x;"), 2, 1, floats(1))


def test_a_race_that_ascending_and_descending_order_hide_is_caught_by_a_shuffled_one():
    body = "y[0] = threadIdx.x == 2;"  # of five, the middle one is last in neither of the two
    with pytest.raises(DeviceError, match="shuffled"):
        launch(kernel("float *y", body, orders=20), 1, 5, floats(1))


def test_shared_memory_that_nobody_wrote_is_nan_in_every_block():
    y = floats(2)
    launch(kernel("float *y", "SHARED(float, s); y[blockIdx.x] = s[0]; s[0] = 1;"), 2, 1, y, shared=4)
    assert np.isnan(to_host(y)).all()


def test_a_write_beyond_shared_memory_is_caught():
    body = "SHARED(float, s); s[threadIdx.x] = 1; y[threadIdx.x] = 1;"
    with pytest.raises(
        DeviceError, match="use-after-poison" if SANITIZED else "byte 12 of 12 bytes of shared"
    ):
        launch(kernel("float *y", body), 1, 4, floats(4), shared=12)


@pytest.mark.parametrize(
    "grid, block, shared",
    [
        ((1,), (2048,), 0),
        ((1,), (64, 32), 0),
        ((1,), (1, 1, 65), 0),
        ((1,), (0,), 0),
        ((0,), (1,), 0),
        ((2**31,), (1,), 0),
        ((1, 65536), (1,), 0),
        ((1, 1, 65536), (1,), 0),
        ((1,), (1,), (48 << 10) + 1),
    ],
)
def test_launches_beyond_cuda_s_limits_are_refused(grid, block, shared):
    with pytest.raises(DeviceError, match=r"limits|beyond"):
        launch(kernel("int *y", ""), grid, block, None, shared=shared)


def test_launches_at_cuda_s_limits_run():
    launch(kernel("int *y", ""), (2, 65535), 1, None)
    launch(kernel("int *y", "__syncthreads();"), 1, (4, 4, 64), None, shared=48 << 10)


UNDEFINED = {
    "y[0] = n / zero;": "division by zero",
    "y[0] = n + 1;": "integer overflow",
    "y[0] = -n * 2;": "integer overflow",
    "y[0] = 1 << (32 + zero);": "shift out of bounds",
    "int a[4] = {}; y[0] = a[4 + zero];": "index out of an array's bounds",
    "int *p = nullptr; p += zero; y[0] = *p;": "null pointer",
    "y[(long long)n * 1000] = 1;": "where there is no memory",
}
CASES = " ".join(f"case {i}: {{ {body} }} break;" for i, body in enumerate(UNDEFINED))


@pytest.mark.parametrize("case, message", list(enumerate(UNDEFINED.values())))
@pytest.mark.parametrize("barrier", ["", "__syncthreads();"])
def test_undefined_behaviour_is_an_exception_and_not_a_crash(case, message, barrier):
    undefined = kernel("int *y, int which, int n, int zero", f"{barrier} switch (which) {{ {CASES} }}")
    with pytest.raises(DeviceError, match=message):
        launch(undefined, 1, 1, host.empty((1,), np.int32), case, 2**31 - 1, 0)


def test_addresses_of_no_live_memory_are_refused():
    y = floats(4)
    address = host.address(y)
    nothing = kernel("float *y", "")
    nothing((1,), (1,), (address + 12,))
    with pytest.raises(DeviceError, match="not within one live allocation"):
        nothing((1,), (1,), (address + 16,))
    del y
    gc.collect()
    with pytest.raises(DeviceError, match="not within one live allocation"):
        nothing((1,), (1,), (address,))


def test_arguments_that_do_not_fit_the_signature_are_refused():
    pair = np.zeros((), np.dtype([("a", "i4"), ("b", "i8")], align=True))
    text = 'struct P { int a; long long b; }; extern "C" __global__ void gpuconv_planted(float *y, P p) {}'
    takes_pair = HostKernel(Source(text))
    y = floats(1)
    launch(takes_pair, 1, 1, y, pair)
    for arguments, message in [
        ((y,), "takes 2 arguments"),
        ((y, pair, pair), "takes 2 arguments"),
        ((y, np.array(1, np.int64)), "has 8 bytes, not 16"),
        ((y, y), "must be a struct"),
        ((pair, pair), "must be an address"),
    ]:
        with pytest.raises(TypeError, match=message):
            launch(takes_pair, 1, 1, *arguments)


def test_a_kernel_that_does_not_compile_says_so():
    with pytest.raises(RuntimeError, match=r"planted.cu:1"):
        kernel("float *y", "y = nonsense;")


def test_static_shared_memory_is_refused():
    with pytest.raises(RuntimeError, match="declared by SHARED"):
        kernel("float *y", "__shared__ float s[4]; y[0] = s[0];")


def test_libraries_are_cached_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCONV_TEST_CACHE", str(tmp_path))
    kernel("float *cached", "")
    kernel("float *cached", "")
    assert len(list(tmp_path.iterdir())) == 1
    kernel("float *cached", "cached = nullptr;")
    assert len(list(tmp_path.iterdir())) == 2


def test_the_sources_run_the_same_with_their_windows_compiled_in(monkeypatch):
    x = to_device(np.random.default_rng(0).standard_normal((1, 2, 7, 6)).astype(np.float32))
    expected = gpuconv.im2col(x, (3, 2), stride=2, padding=1)
    monkeypatch.setattr(host, "exact", True)
    assert np.array_equal(to_host(gpuconv.im2col(x, (3, 2), stride=2, padding=1)), to_host(expected))


# The project's kernel, through the project's launch code.


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "size, kernel_size, options",
    [
        ((7, 9), (3, 2), {"stride": (2, 1), "padding": ((1, 2), (2, 0)), "dilation": (1, 2)}),
        ((8, 8), 3, {"padding": "same"}),
        ((12, 12), 9, {"padding": 4}),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.complex128])
def test_im2col_kernel_equals_im2col(channels_last, wide, size, kernel_size, options, dtype, monkeypatch):
    if wide:
        monkeypatch.setattr(kernels, "needs_wide", lambda *extents: True)
    shape = (2, *size, 8) if channels_last else (2, 8, *size)
    x = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    options = {**options, "channels_last": channels_last}
    columns = gpuconv.im2col(to_device(x), kernel_size, **options)
    assert type(columns) is DeviceArray
    assert np.array_equal(to_host(columns), gpuconv.im2col(x, kernel_size, **options))


# The device's memory and accounts.


def test_expressions_of_device_arrays_stay_on_the_device_and_can_be_launched_on():
    x = to_device(np.arange(6, dtype=np.float32)) * 2
    assert type(x) is type(x.sum()) is type(x[1:]) is DeviceArray
    launch(kernel("float *y", "y[threadIdx.x] += 1;"), 1, 5, x[1:])
    assert type(to_host(x)) is np.ndarray
    assert to_host(x).tolist() == [0, 3, 5, 7, 9, 11]


def test_the_host_s_runtime_has_every_method_of_the_protocol():
    methods = {
        name: f for name, f in vars(runtime.Runtime).items() if inspect.isfunction(f) and name[0] != "_"
    }
    assert "gemm" in methods
    for name, method in methods.items():
        own = inspect.signature(getattr(HostRuntime, name))
        assert list(own.parameters) == list(inspect.signature(method).parameters), name


def test_arrays_without_elements_take_no_memory_and_do_no_harm():
    x = host.empty((0, 3), np.float32)
    assert to_host(x).shape == (0, 3)
    launch(kernel("float *y", "y[0] = 1;"), 1, 1, floats(1))


def test_workspace_is_counted_and_limited():
    own = HostRuntime()
    work = own.workspace(1000)
    more = own.workspace(500)
    assert own.peak_workspace == own.live_workspace == 1500
    del work
    gc.collect()
    assert (own.peak_workspace, own.live_workspace) == (1500, 500)
    own.reset()
    assert own.peak_workspace == 500
    own.capacity = 1000
    with pytest.raises(MemoryError, match="501 bytes, but 500 of 1000"):
        own.workspace(501)
    own.workspace(500)
    assert own.peak_workspace == 1000
    assert np.isnan(to_host(more.view(np.float32))).all()


def test_launches_and_products_are_recorded():
    host.reset()
    x, w = (to_device(np.ones(shape, np.float32)) for shape in ((2, 3, 5, 5), (4, 3, 3, 3)))
    gpuconv.conv2d(x, w)
    assert ("im2col", 1) in host.launches
    assert host.gemms == [(9, 4, 27, 2)]


# Matrix products.

GEMM_TYPES = [(np.float16, np.float16), (np.float16, np.float32), (np.float32,) * 2, (np.float64,) * 2]


def by_columns(matrices, leading, step):
    """Lay [batch, rows, columns] out by columns; NaN between."""
    batch, rows, columns = matrices.shape
    memory = np.full((batch - 1) * step + leading * (columns - 1) + rows, np.nan, matrices.dtype)
    for i in range(batch):
        for j in range(columns):
            memory[i * step + j * leading :][:rows] = matrices[i, :, j]
    return to_device(memory)


@pytest.mark.parametrize("types", GEMM_TYPES)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm_is_that_of_cublas(types, transposed, accumulate):
    rng = np.random.default_rng(0)
    m, n, k, batch = 3, 4, 50, 2
    a = rng.standard_normal((batch, k, m) if transposed[0] else (batch, m, k)).astype(types[0])
    b = rng.standard_normal((1, n, k) if transposed[1] else (1, k, n)).astype(types[0])
    c = (
        rng.standard_normal((batch, m, n)).astype(types[1])
        if accumulate
        else np.full((batch, m, n), np.nan, types[1])
    )
    ours = by_columns(a, 60, 4000), by_columns(b, 51, 0), by_columns(c, 5, 21)
    places = [
        (host.address(x), *pitch) for x, pitch in zip(ours, ((60, 4000), (51, 0), (5, 21)), strict=True)
    ]
    dtypes = tuple(map(np.dtype, types))
    host.gemm(transposed, (m, n, k), *places, batch, dtypes, accumulate, "ieee")

    left = (a.swapaxes(1, 2) if transposed[0] else a).astype(np.float64)
    right = (b.swapaxes(1, 2) if transposed[1] else b).astype(np.float64)
    expected = left @ right + (c if accumulate else 0)
    result = to_host(ours[2])
    got = np.stack([[result[i * 21 + j * 5 :][:m] for j in range(n)] for i in range(batch)]).swapaxes(1, 2)
    assert got.dtype == types[1]
    rounding = {np.float16: 1e-3, np.float32: 2e-6, np.float64: 1e-14}[types[1]]
    assert np.allclose(
        got, expected, rtol=rounding, atol=20 * np.finfo(np.promote_types(types[0], np.float32)).eps
    )
    assert np.isnan(result[3:5]).all()  # between the columns


def test_gemm_writes_matrices_that_interleave():
    a, b = to_device(np.ones(4, np.float32)), to_device(np.arange(6, dtype=np.float32))
    c = host.empty((3, 4), np.float32)
    at = host.address
    host.gemm((False, False), (2, 3, 1), (at(a), 2, 2), (at(b), 1, 3), (at(c), 4, 2), 2, F32, False, "ieee")
    assert to_host(c).tolist() == [[0, 0, 3, 3], [1, 1, 4, 4], [2, 2, 5, 5]]


F32 = (np.dtype(np.float32),) * 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": (0, 1, 0)}, "leading dimension of 1, but columns of 2"),
        ({"transposed": (True, False)}, "leading dimension of 2, but columns of 3"),
        ({"a": (4, 2, 0)}, "A leaves its memory"),
        ({"a": (-4, 2, 0)}, "A leaves its memory"),
        ({"a": (2, 2, 0)}, "not aligned"),
        ({"c": (0, 2, 5)}, "C leaves its memory"),
        ({"c": (0, 2, 3)}, "elements of C overlap"),
        ({"c": (0, 2, 0)}, "elements of C overlap"),
        ({"b": (0, 3, -1)}, "batch stride of -1"),
        ({"sizes": (2, -2, 3)}, "is no size"),
        ({"dtypes": (np.dtype(np.float32), np.dtype(np.float64))}, "no product of float32 gives float64"),
    ],
)
def test_gemm_refuses_what_cublas_would_not_forgive(change, message):
    memory = {"a": to_device(np.ones(6, np.float32)), "b": to_device(np.ones(6, np.float32)), "c": floats(8)}
    call = {"transposed": (False, False), "sizes": (2, 2, 3), "a": (0, 2, 0), "b": (0, 3, 0), "c": (0, 2, 4)}
    call = {**call, "batch": 2, "dtypes": F32, "accumulate": False, "precision": "ieee", **change}
    for name, x in memory.items():
        offset, *pitches = call[name]
        call[name] = (host.address(x) + offset, *pitches)
    with pytest.raises(DeviceError, match=message):
        host.gemm(**call)


def test_gemm_refuses_to_write_over_its_factors():
    x = to_device(np.ones(4, np.float32))
    y = to_device(np.ones(4, np.float32))
    a, b = (host.address(x), 2, 0), (host.address(y), 2, 0)
    with pytest.raises(DeviceError, match="overlaps"):
        host.gemm((False, False), (2, 2, 2), a, b, a, 1, F32, False, "ieee")


# Under the address sanitizer.


@pytest.mark.skipif(SANITIZED, reason="runs the others under the address sanitizer")
@pytest.mark.skipif(bool(sanitized.missing_sanitizer()), reason=sanitized.missing_sanitizer())
def test_all_of_this_holds_under_the_address_sanitizer():
    run = sanitized.run(__file__, "-q", "-k", "(not im2col_kernel or float16) and not changes_nothing")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 skipped" in run.stdout
