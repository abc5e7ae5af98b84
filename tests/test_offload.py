"""`gpuconv.offload`: NumPy arrays computed on a GPU; on the strict stand-in for CuPy, and on a GPU."""

import asyncio
import inspect
import re
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from anywhere import close, equal
from conftest import STAND_IN
from every_op import CALLS, N, listed, numbers
from host import cupy_stand_in, streams
from host.memory import DeviceError

import gpuconv
import gpuconv.nn as nn
from gpuconv import entry
from gpuconv.backends.cpu import threads
from gpuconv.backends.cuda import runtime, staging
from gpuconv.offload import LEAST_CHUNK


@pytest.fixture(autouse=True)
def own_functions(monkeypatch):
    """What a test makes public is no public function of the next one's."""
    monkeypatch.setattr(entry, "OPERATIONS", dict(entry.OPERATIONS))


@pytest.fixture(params=[STAND_IN])
def stand_in(request):
    with cupy_stand_in.installed() as module:
        yield module


def by_hand(cupy, function, *arguments, **options):
    """Move the arrays, call, and move the results back."""

    def move(a):
        return cupy.asarray(a) if isinstance(a, np.ndarray) else a

    results = function(*map(move, arguments), **{name: move(a) for name, a in options.items()})
    return [y if y is None else y.get() for y in listed(results)]


# Of the chunks tried, one is less than an image, one several images; None: no chunks.
CHUNKS = {"as it comes": {}, "never": {"chunk_bytes": None}, "less": {"chunk_bytes": LEAST_CHUNK}}
CHUNKS["images"] = {"chunk_bytes": 1100}


def test_every_public_function_is_tried():
    functions = {name: getattr(gpuconv, name) for name in gpuconv.__all__}
    ours = {name for name, f in functions.items() if "like" in (getattr(f, "__kwdefaults__", None) or ())}
    assert CALLS.keys() == ours


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_moving_by_hand(cupy, name, chunks):
    function, (arguments, options) = getattr(gpuconv, name), CALLS[name]
    want = by_hand(cupy, function, *arguments, **options)
    with gpuconv.offload("cuda", **CHUNKS[chunks]):
        got = function(*arguments, **options)
    assert type(got) is type(function(*arguments, **options))
    # cuBLAS may sum in another order for another number of images.
    compare = equal if is_stand_in(cupy) or not name.startswith("conv") else close_by_rounding
    for here, there in zip(listed(got), want, strict=True):
        assert type(here) is np.ndarray and here.dtype == there.dtype
        compare(here, there)


def is_stand_in(cupy):
    return isinstance(cupy.cuda, SimpleNamespace)


def close_by_rounding(got, want):
    close(got, want, 1e-5, 1e-5)


def trying(**options):
    """Return an offload that cuts at every image."""
    return gpuconv.offload("cuda", chunk_bytes=LEAST_CHUNK, **options)


X, W = numbers(N, 4, 6, 5), numbers(6, 4, 3, 3)


# How calls are cut.


@pytest.mark.parametrize(
    ("images", "chunk", "sizes"), [(5, 100, [1] * 5), (5, 240, [2, 2, 1]), (6, 240, [2, 2, 2]), (5, 400, [5])]
)
def test_a_call_is_cut_into_as_many_images_as_fit_a_chunk(stand_in, images, chunk, sizes):
    seen = []

    @entry.public
    def shapes(x, x_shape):
        seen.append((len(x), x_shape))
        return gpuconv.avg_pool2d(x, 2)

    x = numbers(images, 1, 5, 5)
    with gpuconv.offload("cuda", chunk_bytes=chunk):
        equal(shapes(x, x.shape), by_hand(stand_in, gpuconv.avg_pool2d, x, 2)[0])
    assert seen == [(n, (n, 1, 5, 5)) for n in sizes]


class Steps:
    """What a lane's copies and a function did, in their order."""

    def __init__(self, monkeypatch):
        self.done = []
        for name in ("up", "down"):
            monkeypatch.setattr(staging.Lane, name, self._noting(name, getattr(staging.Lane, name)))

    def _noting(self, name, copy):
        def noted(*arguments):
            self.done.append(name)
            return copy(*arguments)

        return noted


def test_the_next_chunk_is_on_its_way_before_the_program_waits_for_a_result(stand_in, monkeypatch):
    steps = Steps(monkeypatch)
    with trying():
        gpuconv.avg_pool2d(X[:3], 2)
    assert steps.done == ["up", "up", "down", "up", "down", "down"]


def test_sums_over_the_batch_are_computed_by_one_call_from_arguments_in_pieces(stand_in, monkeypatch):
    steps = Steps(monkeypatch)
    with trying():
        gpuconv.conv2d_backward(numbers(N, 6, 4, 3), X, W)
    assert steps.done == ["up"] * 3 + ["down"] * 3


def test_a_small_call_has_no_streams_and_a_large_result_of_it_one(stand_in, monkeypatch):
    steps = Steps(monkeypatch)
    with gpuconv.offload("cuda", chunk_bytes=X.nbytes // 2 + 1):
        gpuconv.avg_pool2d(X, 2)
        assert steps.done == []
        gpuconv.upsample(X, 2)
    assert steps.done == ["down"]


@pytest.mark.parametrize("what", ["Stream.wait_event", "DefaultStream.wait_event", "Event.synchronize"])
@pytest.mark.parametrize("name", ["max_pool2d", "conv2d", "conv2d_backward"])
def test_the_stand_in_finds_every_missing_wait(stand_in, monkeypatch, name, what):
    owner, _, method = what.partition(".")
    monkeypatch.setattr(getattr(streams, owner), method, lambda *arguments: None)
    arguments, options = CALLS[name]
    want = by_hand(stand_in, getattr(gpuconv, name), *arguments, **options)
    with pytest.raises((DeviceError, AssertionError)), trying():
        for got, there in zip(listed(getattr(gpuconv, name)(*arguments, **options)), want, strict=True):
            equal(got, there)


def test_after_an_error_nothing_is_still_copied(stand_in, monkeypatch):
    lanes = []
    make = staging.Lane.__init__
    monkeypatch.setattr(
        staging.Lane, "__init__", lambda self, size: (make(self, size), lanes.append(self))[0]
    )

    @entry.public
    def third(x):
        if x[0, 0, 0, 0].item() == X[2, 0, 0, 0]:
            raise ArithmeticError("the third image")
        return gpuconv.avg_pool2d(x, 2)

    with pytest.raises(ArithmeticError, match="the third"), trying():
        third(X)
    assert len(lanes) == 2 and not any(lane.stream.busy for lane in lanes)
    assert entry.PLACE.get() is None


# What is moved, and where it goes.

LAYOUTS = {
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "from behind": lambda x: x[::-1].copy()[::-1],
    "transposed": lambda x: np.asfortranarray(x),
    "the other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "one image for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "a matrix's subclass": lambda x: x.view(type("Mine", (np.ndarray,), {})),
}


@pytest.mark.parametrize("chunk", [LEAST_CHUNK, 1000, None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_may_lie_in_any_way_and_are_not_written_to(cupy, layout, chunk):
    x, w = LAYOUTS[layout](X), LAYOUTS[layout](W)
    x.flags.writeable = w.flags.writeable = False
    with gpuconv.offload("cuda", chunk_bytes=chunk):
        close_by_rounding(gpuconv.conv2d(x, w), gpuconv.conv2d(np.array(x), np.array(w)))
        y, argmax = gpuconv.max_pool2d(x, 2)
    for got, want in zip((y, argmax), gpuconv.max_pool2d(np.array(x, np.float32), 2), strict=True):
        equal(got, want)
    equal(x, LAYOUTS[layout](X))


@pytest.mark.parametrize("chunk", [LEAST_CHUNK, None])
def test_out_is_filled_and_returned_whatever_its_strides(cupy, chunk):
    whole = np.zeros((N, 6, 4, 6), np.float32)
    grads = np.zeros_like(X), None, np.zeros(6, np.float32)
    with gpuconv.offload("cuda", chunk_bytes=chunk):
        assert np.shares_memory(gpuconv.conv2d(X, W, out=whole[..., ::2]), whole)
        got = gpuconv.conv2d_backward(whole[..., ::2], X, W, out=grads)
    want = gpuconv.conv2d(X, W)
    close_by_rounding(whole[..., ::2], want)
    assert not whole[..., 1::2].any()
    assert got.dx is grads[0] and got.db is grads[2] and type(got) is gpuconv.ConvGrads
    for here, there in zip(got, gpuconv.conv2d_backward(want, X, W), strict=True):
        close(here, there, 1e-4, 1e-4)


Y = (N, 6, 4, 3)
WRONG = {
    "another shape": lambda: gpuconv.conv2d(X, W, out=np.zeros((N, 6, 4, 4), np.float32)),
    "too few images": lambda: gpuconv.conv2d(X, W, out=np.zeros((N - 1, *Y[1:]), np.float32)),
    "another dtype": lambda: gpuconv.conv2d(X, W, out=np.zeros(Y)),
    "no array": lambda: gpuconv.conv2d(X, W, out=[0]),
    "no tuple": lambda: gpuconv.max_pool2d(X, 2, out=np.zeros((N, 4, 3, 2), np.float32)),
    "read-only": lambda: gpuconv.conv2d(X, W, out=np.broadcast_to(np.float32(0), Y)),
    "overlaps x": lambda: gpuconv.conv2d(X, W[:4, :, :1, :1], out=X),
    "overlaps dy": lambda: gpuconv.conv2d_backward(X, X.copy(), W[:4, :, :1, :1], out=(X, None, None)),
    "two in one": lambda: _two_in_one(np.zeros((N, 4, 6, 5), np.float32)),
    "a missing argument": lambda: gpuconv.conv2d(X),
    "an unknown one": lambda: gpuconv.conv2d(X, W, strides=2),
    "twice": lambda: gpuconv.conv2d(X, W, x=X),
    "channels": lambda: gpuconv.conv2d(X, W[:, :2]),
    "images": lambda: gpuconv.conv2d_backward(numbers(N - 1, *Y[1:]), X, W),
    "images of a shape": lambda: gpuconv.conv2d_input_grad(numbers(*Y), W, (N + 1, *X.shape[1:])),
    "a shape of lists": lambda: gpuconv.conv2d_input_grad(numbers(*Y), W, ([N], [4], [6], [5])),
    "no shape": lambda: gpuconv.conv2d_input_grad(numbers(*Y), W, 3),
    "no axes": lambda: gpuconv.max_pool2d(np.float32(3) + np.zeros(()), 2),
    "a list": lambda: gpuconv.conv2d(X.tolist(), W),
    "a mask": lambda: gpuconv.max_pool2d(np.ma.masked_array(X), 2),
    "objects": lambda: gpuconv.max_pool2d(X.astype(object), 2),
}


def _two_in_one(out):
    part = np.lib.stride_tricks.as_strided(out, (4, 4, 1, 1), (16, 4, 4, 4))
    return gpuconv.conv2d_backward(X, X, W[:4, :, :1, :1], out=(out, part, None))


@pytest.mark.parametrize("chunk", [LEAST_CHUNK, 1 << 20])
@pytest.mark.parametrize("how", WRONG)
def test_errors_are_those_of_the_cpu(cupy, how, chunk):
    with pytest.raises((TypeError, ValueError)) as here:
        WRONG[how]()
    message = "^" + re.escape(str(here.value)) + "$"
    with pytest.raises(here.type, match=message), gpuconv.offload("cuda", chunk_bytes=chunk):
        WRONG[how]()


def test_no_images_give_no_results(cupy):
    with trying():
        assert gpuconv.conv2d(X[:0], W).shape == (0, 6, 4, 3)
        equal(gpuconv.conv2d_weight_grad(numbers(0, 6, 4, 3), X[:0], 3), np.zeros_like(W))


def test_what_no_gpu_holds_is_computed_on_the_cpu(cupy):
    x = X.astype(np.longdouble)
    with trying():
        y, _ = gpuconv.max_pool2d(x, 2)
    equal(y, gpuconv.max_pool2d(x, 2)[0])
    assert y.dtype == np.longdouble


@pytest.mark.parametrize("chunk", [LEAST_CHUNK, None])
def test_a_call_with_cupy_s_arrays_alone_is_as_ever(cupy, chunk):
    x, w = cupy.asarray(X), cupy.asarray(W)
    with gpuconv.offload("cuda", chunk_bytes=chunk):
        y = gpuconv.conv2d(x, w)
        with pytest.raises(TypeError, match="must all be NumPy's or all be CuPy's"):
            gpuconv.conv2d(x, w, out=np.zeros(Y, np.float32))
    assert type(y) is cupy.ndarray
    equal(y, gpuconv.conv2d(x, w).get())


@pytest.mark.parametrize("chunk", [LEAST_CHUNK, None])
def test_the_first_array_says_where_results_go_and_out_where_it_lies(cupy, chunk):
    x, w, want = cupy.asarray(X), cupy.asarray(W), gpuconv.conv2d(X, W)
    out, there = np.zeros(Y, np.float32), cupy.empty(Y, np.float32)
    with gpuconv.offload("cuda", chunk_bytes=chunk):
        kinds = [gpuconv.conv2d(x, W), gpuconv.conv2d(X, w), gpuconv.conv2d(x, W, out=out)]
        kinds.append(gpuconv.conv2d(X, w, out=there))
    assert [type(y) for y in kinds] == [cupy.ndarray, np.ndarray, np.ndarray, cupy.ndarray]
    assert kinds[2] is out and kinds[3] is there
    for y in kinds:
        close_by_rounding(y, want)


def test_what_was_moved_may_be_changed_although_the_result_stays_on_the_gpu(stand_in):
    x = stand_in.asarray(X)
    with gpuconv.offload("cuda"):
        gpuconv.avg_pool2d(x, 2)
        assert not cupy_stand_in.waits
        gpuconv.conv2d(x, W)
    assert cupy_stand_in.waits == ["asarray"]


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_large_pieces_are_copied_by_all_threads(monkeypatch, rows):
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    monkeypatch.setattr(threads, "count", lambda: 3)
    x = numbers(rows, 4)
    y = np.zeros_like(x)
    staging._copy(y, x)
    equal(y, x)


def test_like_gives_results_of_another_library(cupy):
    torch = pytest.importorskip("torch")
    with trying():
        y, argmax = gpuconv.max_pool2d(torch.from_numpy(X), 2, like=torch.from_numpy(X))
    assert type(y) is type(argmax) is torch.Tensor
    equal(y.numpy(), gpuconv.max_pool2d(X, 2)[0])


# Blocks.


def place():
    """Return where a call is computed at present."""
    return None if (now := entry.PLACE.get()) is None else now.device


def test_the_innermost_block_counts_and_errors_leave_it(stand_in):
    block = gpuconv.offload("cuda")
    with block as device:
        assert place() == device == "cuda"
        with gpuconv.offload("cpu") as inner, pytest.raises(KeyError):
            assert place() == inner == "cpu"
            with block:
                assert place() == "cuda"
                raise KeyError
        assert place() == "cuda"
    assert place() is None


def test_on_the_cpu_again_nothing_is_moved(stand_in):
    host = runtime._RUNTIMES[stand_in.ndarray]
    with gpuconv.offload("cuda"):
        with gpuconv.offload("cpu"):
            gpuconv.avg_pool2d(X, 2)
        assert not host.launches
        gpuconv.avg_pool2d(X, 2)
        assert host.launches


def test_a_function_and_a_method_are_decorated(stand_in):
    class Model:
        @gpuconv.offload("cuda")
        def run(self, x, *, size):
            """Say where."""
            return place(), gpuconv.avg_pool2d(x, size).shape

    assert Model().run(X, size=2) == ("cuda", (N, 4, 3, 2))
    assert place() is None and Model.run.__doc__ == "Say where."


def test_a_decorated_function_may_call_itself_and_run_in_several_threads(stand_in):
    @gpuconv.offload("cuda")
    def down(n):
        equal(gpuconv.avg_pool2d(X, 2), want)
        return [place(), *(down(n - 1) if n else [])]

    want = by_hand(stand_in, gpuconv.avg_pool2d, X, 2)[0]
    seen = []
    workers = [threading.Thread(target=lambda: seen.append((*down(3), place()))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [("cuda",) * 4 + (None,)] * 4


def test_a_block_holds_for_its_thread_alone(stand_in):
    seen = []
    with gpuconv.offload("cuda"):
        thread = threading.Thread(target=lambda: seen.append(place()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_block_holds_for_its_task_alone(stand_in):
    @gpuconv.offload("cuda")
    async def inside(turn):
        await turn.wait()
        return place()

    async def both():
        turn = asyncio.Event()
        task = asyncio.create_task(inside(turn))
        await asyncio.sleep(0)
        before = place()
        turn.set()
        return before, await task, place()

    assert asyncio.run(both()) == (None, "cuda", None)


def test_generators_are_not_decorated():
    def some():
        yield 1

    async def others():
        yield 1

    for function in (some, others):
        with pytest.raises(TypeError, match=f"offload: {function.__name__} is a generator.*without a yield"):
            gpuconv.offload("cuda")(function)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["gpu"], {}, """offload: device must be "cuda" or "cpu", not 'gpu'"""),
        ([0], {}, """offload: device must be "cuda" or "cpu", not 0"""),
        ([], {"fallback": 1}, "offload: fallback must be"),
        ([], {"chunk_bytes": 8}, "offload: chunk_bytes must be"),
        ([], {"chunk_bytes": 1e6}, "offload: chunk_bytes must be"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        gpuconv.offload(*arguments, **options)


def test_without_a_gpu_a_block_says_what_is_missing_or_computes_on_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    decorated = gpuconv.offload("cuda")(lambda: 1)
    for enter in (decorated, gpuconv.offload("cuda").__enter__):
        with pytest.raises(RuntimeError, match="CUDA needs CuPy, which can't be imported"):
            enter()
    assert entry.PLACE.get() is None
    with gpuconv.offload("cuda", fallback=True) as device:
        y = gpuconv.conv2d(X, W)
    assert device == "cpu"
    equal(y, gpuconv.conv2d(X, W))


# What is built on the public functions.


def network():
    rng = np.random.default_rng(1)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, rng=rng),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 3 * 2, 3, rng=rng),
    )


@pytest.mark.parametrize("chunk", [500, None])
def test_training_with_numpy_s_parameters_goes_as_on_the_cpu(cupy, chunk):
    def train():
        layers = network()
        options = {"loss": nn.SoftmaxCrossEntropy(), "optimizer": nn.SGD(layers, 0.1, momentum=0.9)}
        return layers, gpuconv.fit(layers, X, np.arange(N) % 3, max_iterations=3, **options)

    with gpuconv.offload("cuda", chunk_bytes=chunk):
        there, history = train()
    here, want = train()
    close(history.losses, want.losses, 1e-4)
    for name, array in here.state_dict().items():
        assert type(there.state_dict()[name]) is np.ndarray
        close(there.state_dict()[name], array, 1e-4, 1e-5)


# The stand-in's streams are CuPy's.


def test_streams_events_and_their_keywords_are_cupy_s():
    cupy = pytest.importorskip("cupy", reason="needs CuPy (but no GPU), to ask what it has")
    for ours, theirs in ((streams.Stream, cupy.cuda.Stream), (streams.Event, cupy.cuda.Event)):
        for name in ("record", "wait_event", "synchronize"):
            if name in vars(ours):
                assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(theirs, name))
    assert inspect.signature(streams.Stream) == inspect.signature(cupy.cuda.Stream)
    assert {"blocking", "a"} <= set(inspect.signature(cupy.asarray).parameters)
    for function, parameters in (
        (cupy.ndarray.get, "(self, stream=None, order='C', out=None, blocking=True)"),
        (cupy.ndarray.set, "(self, arr, stream=None)"),
        (cupy.cuda.alloc_pinned_memory, "(size_t size) -> PinnedMemoryPointer"),
        (cupy.cuda.get_current_stream, "(int device_id=-1)"),
    ):
        assert inspect.getdoc(function).partition("\n")[0].endswith(parameters)
    for name in ("get", "set"):
        ours = inspect.signature(getattr(cupy_stand_in.ndarray, name))
        assert str(ours) in inspect.getdoc(getattr(cupy.ndarray, name))


def test_streams_that_the_default_one_waits_for_are_refused():
    with pytest.raises(DeviceError, match="non-blocking"):
        streams.Stream()


def test_memory_that_is_not_pinned_is_not_copied_beside_the_program(stand_in):
    x, stream = stand_in.asarray(X), streams.Stream(non_blocking=True)
    for copy in (lambda: x.set(X, stream=stream), lambda: x.get(stream=stream, out=X.copy(), blocking=False)):
        with pytest.raises(DeviceError, match="isn't pinned"):
            copy()
