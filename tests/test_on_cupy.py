"""Networks, training and the command line on CuPy's arrays; a strict stand-in takes CuPy's place."""

import inspect
import json
import re
import sys

import numpy as np
import pytest
from anywhere import close, equal
from host import compiler, cupy_stand_in
from host.cupy_stand_in import FUNCTIONS, METHODS, waits

import gpuconv
import gpuconv.nn as nn
from gpuconv.backends import dispatch
from gpuconv.backends.cuda import runtime
from gpuconv.cli import main
from gpuconv.testing import check_gradients
from gpuconv.training import fit
from gpuconv.training.augment import random_shifts
from gpuconv.training.checkpoint import load_checkpoint, save_checkpoint
from gpuconv.training.datasets import Dataset
from gpuconv.training.run import ALGORITHMS, Run, Settings

if reason := compiler.missing():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture
def cupy():
    with cupy_stand_in.installed() as module:
        yield module


RNG = np.random.default_rng(0)
LABELS = np.arange(24) % 3
IMAGES = RNG.random((24, 1, 8, 8), np.float32)
IMAGES[np.arange(24), 0, 2 * LABELS] += 2


def numbers(*shape):
    return np.random.default_rng([*shape]).standard_normal(shape, np.float32)


def assert_close(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    close(got, want, rtol=1e-4, atol=1e-5)


def assert_states_close(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert_close(got[name], array)


# The stand-in.


def test_the_listed_functions_methods_and_keywords_are_cupy_s():
    cupy = pytest.importorskip("cupy", reason="needs CuPy (but no GPU), to ask what it has")
    for owner, listed in ((cupy, FUNCTIONS), (cupy.ndarray, METHODS)):
        for name, keywords in listed.items():
            function = getattr(owner, name)
            if inspect.isfunction(function):
                signature = str(inspect.signature(function))
            else:
                signature = inspect.getdoc(function).partition("\n")[0]
            assert set(keywords.split()) <= set(re.findall(r"\w+", signature)), (name, signature)
    of_python = {"_values", "__dict__", "__weakref__"}
    assert vars(cupy_stand_in.ndarray).keys() - of_python <= set(dir(cupy.ndarray))


def test_nothing_of_it_is_left():
    before = sys.modules.get("cupy"), dict(dispatch.KINDS), dict(runtime._RUNTIMES)
    with cupy_stand_in.installed() as cupy:
        x = cupy.asarray(IMAGES)
        gpuconv.avg_pool2d(x, 2)
        assert dispatch.KINDS[type(x)] == "CuPy"
    assert (sys.modules.get("cupy"), dispatch.KINDS, runtime._RUNTIMES) == before


MIXED = {
    "a conversion": lambda x, a: np.asarray(x),
    "a NumPy function": lambda x, a: np.exp(x),
    "another NumPy function": lambda x, a: np.concatenate([x]),
    "a CuPy function": lambda x, a: sys.modules["cupy"].maximum(x, a),
    "an argument in a list": lambda x, a: sys.modules["cupy"].stack([x, a]),
    "an operator": lambda x, a: x + a,
    "a reflected operator": lambda x, a: a + x,
    "an update": lambda x, a: x.__iadd__(a),
    "an update of NumPy's": lambda x, a: a.__iadd__(x),
    "a comparison": lambda x, a: x == a,
    "an index": lambda x, a: x[a.astype(int)],
    "a value to write": lambda x, a: x.__setitem__(0, a[0]),
    "a place to write to": lambda x, a: a.__setitem__(..., x),
    "a list": lambda x, a: x * [1, 2, 3],
    "a keyword that CuPy lacks": lambda x, a: x.sum(where=True),
}


@pytest.mark.parametrize("how", MIXED)
def test_arrays_of_numpy_s_and_cupy_s_do_not_mix(cupy, how):
    a = np.ones((3, 3))
    with pytest.raises(TypeError):
        MIXED[how](cupy.asarray(a), a)
    assert not waits


def test_what_is_not_listed_is_not_there(cupy):
    for thing in (
        lambda: cupy.matmul,
        lambda: cupy.asarray(1).partition,
        lambda: cupy.asarray(1).flags.writeable,
    ):
        with pytest.raises(AttributeError):
            thing()


def test_single_numbers_are_arrays_and_elements_are_views(cupy):
    x = cupy.asarray(np.arange(4.0))
    element, total = x[1], x.sum()
    element += 10
    x[2:] *= 2
    assert type(element) is type(total) is cupy.ndarray and total.shape == ()
    assert x.tolist() == [0, 11, 4, 6] and total.item() == 6


@pytest.mark.parametrize(
    "read",
    [bool, int, float, str, lambda x: x.get(), lambda x: x.item(), lambda x: x.tolist(), lambda x: x[x > 0]],
)
def test_reading_a_value_waits_for_the_gpu(cupy, read):
    x = cupy.asarray(np.ones((), np.float32))
    assert not waits
    read(x)
    assert len(waits) == 1


# The public functions.

WINDOW = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
X, W, B = (2, 4, 7, 6), (6, 2, 3, 2), (6,)
CONVOLUTION = {**WINDOW, "groups": 2}
Y = gpuconv.conv2d(numbers(*X), numbers(*W), **CONVOLUTION).shape
COLUMNS = gpuconv.im2col(numbers(*X), (3, 2), **WINDOW).shape
POOLING = {"stride": (2, 1), "padding": (1, 0), "ceil_mode": True}
POOLED = gpuconv.avg_pool2d(numbers(*X), (3, 2), **POOLING).shape


def _max_pool_and_back(x, dy):
    y, argmax = gpuconv.max_pool2d(x, (3, 2), **POOLING)
    dx = gpuconv.max_pool2d_backward(dy, argmax, x.shape, (3, 2), **POOLING)
    return y, argmax, dx, gpuconv.argmax_to_indices(argmax, x.shape, (3, 2), **POOLING)


def _into_every_other_channel(x, w):
    whole = dispatch.array_module(x).zeros((Y[0], 2 * Y[1], *Y[2:]), np.float32)
    return gpuconv.conv2d(x, w, **CONVOLUTION, out=whole[:, 1::2]), whole


OPERATIONS = {
    "conv2d": (lambda *a: [gpuconv.conv2d(*a, **CONVOLUTION)], X, W, B),
    "conv2d_backward": (lambda *a: gpuconv.conv2d_backward(*a, **CONVOLUTION), Y, X, W),
    "a result among others": (_into_every_other_channel, X, W),
    "a real x among complex arrays": (
        lambda dy, x, w: gpuconv.conv2d_backward(dy * 1j, x, w * (1 - 2j), **CONVOLUTION),
        *(Y, X, W),
    ),
    "conv2d_input_grad": (lambda *a: [gpuconv.conv2d_input_grad(*a, X, **CONVOLUTION)], Y, W),
    "conv2d_weight_grad": (lambda *a: [gpuconv.conv2d_weight_grad(*a, W[2:], **CONVOLUTION)], Y, X),
    "conv2d_bias_grad": (lambda *a: [gpuconv.conv2d_bias_grad(*a)], Y),
    "im2col": (lambda *a: [gpuconv.im2col(*a, (3, 2), **WINDOW)], X),
    "col2im": (lambda *a: [gpuconv.col2im(*a, X, (3, 2), **WINDOW)], COLUMNS),
    "max_pool2d and its gradient": (_max_pool_and_back, X, POOLED),
    "avg_pool2d": (lambda *a: [gpuconv.avg_pool2d(*a, (3, 2), **POOLING)], X),
    "avg_pool2d_backward": (lambda *a: [gpuconv.avg_pool2d_backward(*a, X, (3, 2), **POOLING)], POOLED),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_public_functions_agree_with_numpy_and_never_wait(cupy, name):
    compute, *shapes = OPERATIONS[name]
    arrays = [numbers(*shape) for shape in shapes]
    results = compute(*map(cupy.asarray, arrays))
    assert not waits
    for got, want in zip(results, compute(*arrays), strict=True):
        assert type(got) is cupy.ndarray
        assert_close(got, want)


@pytest.mark.parametrize("name", [name for name, (_, *shapes) in OPERATIONS.items() if len(shapes) > 1])
def test_public_functions_refuse_a_numpy_array_among_cupy_s(cupy, name):
    compute, first, *others = OPERATIONS[name]
    with pytest.raises(TypeError, match="must all be NumPy's or all be CuPy's"):
        compute(cupy.asarray(numbers(*first)), *(numbers(*shape) for shape in others))


# Layers.


def network():
    """Make a network of all kinds of layers, with the same parameters and masks each time."""
    rng = np.random.default_rng(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False, rng=rng),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25, rng=0),
        nn.Conv2d(4, 6, 3, padding="same", rng=rng),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 8, rng=rng),
        nn.Sigmoid(),
        nn.Linear(8, 3, rng=rng),
    )


def test_a_network_computes_on_the_gpu_as_on_the_cpu(cupy):
    here, there = network(), network().to("cuda")
    dy = numbers(24, 3)
    assert_close(there(cupy.asarray(IMAGES)), here(IMAGES))
    assert_close(there.backward(cupy.asarray(dy)), here.backward(dy))
    assert_states_close(there.grads, here.grads)
    assert_states_close(there.buffers, here.buffers)
    assert_close(there.eval()(cupy.asarray(IMAGES)), here.eval()(IMAGES))


def test_a_network_moves_to_the_gpu_and_back_with_the_same_values(cupy):
    moved, want = network(), network().state_dict()
    for device, kind in (("cuda", cupy.ndarray), ("cuda", cupy.ndarray), ("cpu", np.ndarray)):
        moved.to(device)
        assert {type(array) for array in (*moved.params.values(), *moved.buffers.values())} == {kind}
    for name, array in moved.state_dict().items():
        assert array.dtype == want[name].dtype
        equal(array, want[name])


def test_a_network_on_the_gpu_refuses_numpy_s_pictures(cupy):
    there = network().to("cuda")
    with pytest.raises(TypeError, match="must all be NumPy's or all be CuPy's"):
        there(IMAGES)
    there(cupy.asarray(IMAGES))
    with pytest.raises(TypeError):
        there.backward(numbers(24, 3))


TARGETS = {
    "classes": (nn.SoftmaxCrossEntropy, LABELS),
    "one-hot rows": (nn.SoftmaxCrossEntropy, np.eye(3, dtype=np.float32)[LABELS]),
    "numbers": (nn.MSE, numbers(24, 3)),
}


@pytest.mark.parametrize("loss, target", TARGETS.values(), ids=TARGETS)
def test_losses_agree_with_numpy_s_and_never_wait(cupy, loss, target):
    scores = 3 * numbers(3, 24).T
    here, there = loss(), loss()
    got = there(cupy.asarray(scores), cupy.asarray(target))
    gradient = there.backward()
    assert type(got) is cupy.ndarray and not waits
    assert_close(got, here(scores, target))
    assert_close(gradient, here.backward())


def test_gradients_are_checked_on_the_gpu(cupy):
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.BatchNorm2d(2), nn.Tanh()).to("cuda")
    report = check_gradients(layers, cupy.asarray(numbers(2, 1, 5, 5)))
    assert report.compared == {"x": 50, "0.weight": 18, "0.bias": 2, "1.weight": 2, "1.bias": 2}
    with pytest.raises(AssertionError, match="analytic"):
        check_gradients(cupy.tanh, cupy.asarray(numbers(3)), backward=lambda dy, x: dy)


def test_pictures_are_shifted_as_on_the_cpu(cupy):
    here, there = (random_shifts(x, 2, np.random.default_rng(3)) for x in (IMAGES, cupy.asarray(IMAGES)))
    assert not waits
    equal(there, here)


# Training.


def train(cupy, make, **options):
    """Train a network on the GPU; return it with its optimiser and history."""
    there = network().to("cuda")
    optimizer = make(there)
    x, y = cupy.asarray(IMAGES), cupy.asarray(LABELS)
    history = fit(there, x, y, loss=nn.SoftmaxCrossEntropy(), optimizer=optimizer, **options)
    return there, optimizer, history


def adam(layer):
    return nn.Adam(layer, 0.01, weight_decay=1e-3)


def sgd(layer):
    return nn.SGD(layer, 0.1, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("make", [adam, sgd])
def test_training_never_waits_and_reading_the_losses_waits_once(cupy, make):
    batches = {"max_iterations": 7, "batch_size": 10, "rng": np.random.default_rng(0)}
    there, _, history = train(cupy, make, **batches)
    assert not waits
    losses = history.losses
    assert len(waits) == 1
    here, batches["rng"] = network(), np.random.default_rng(0)
    want = fit(here, IMAGES, LABELS, loss=nn.SoftmaxCrossEntropy(), optimizer=make(here), **batches)
    np.testing.assert_allclose(losses, want.losses, rtol=1e-4)
    assert_states_close(there.state_dict(), here.state_dict())


def test_a_tolerance_waits_once_an_update(cupy):
    _, _, history = train(cupy, adam, max_iterations=5, tolerance=0.0)
    assert history.iterations == 5 and len(waits) == 5
    _, _, history = train(cupy, adam, max_iterations=5, tolerance=1.0)
    assert (history.stopped_by, history.iterations) == ("tolerance", 1)


def test_pictures_and_labels_in_two_places_are_refused_by_fit(cupy):
    there = network().to("cuda")
    with pytest.raises(TypeError, match="must all be NumPy's or all be CuPy's"):
        fit(
            there,
            cupy.asarray(IMAGES),
            LABELS,
            loss=nn.SoftmaxCrossEntropy(),
            optimizer=adam(there),
            max_iterations=1,
        )


@pytest.mark.parametrize("make", [adam, sgd])
def test_states_are_taken_over_from_the_other_device(cupy, make):
    there, optimizer, _ = train(cupy, make, max_iterations=2)
    here = network()
    theirs = make(here)
    here.load_state_dict(there.state_dict())
    theirs.load_state_dict(optimizer.state_dict())
    back = network().to("cuda")
    ours = make(back)
    back.load_state_dict(here.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for first, second, third in ((there, here, back), (optimizer, theirs, ours)):
        states = [part.state_dict() for part in (first, second, third)]
        for name, value in states[0].items():
            equal(states[1][name], value)
            equal(states[2][name], value)
            assert type(states[2][name]) is type(value)
    arrays = (*here.state_dict().values(), *theirs.state_dict().values())
    assert cupy.ndarray not in map(type, arrays)


# Runs and the command line.

DATA = Dataset("bars", IMAGES, LABELS, IMAGES[:6], LABELS[:6], 3)
SETTINGS = {
    "adam": Settings("adam", 0, None, 6, 10, 0.003, decay=0.9, shift=1),
    "sgd": Settings("sgd", 0, None, 6, 10, 0.02, decay=0.9, shift=1),
    "batch-gd": Settings("batch-gd", 0, None, 6, None, 2.0, tolerance=1e-9),
}
PLACES = [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")]


def in_two_parts(first, then, algorithm, path):
    """Train for two updates on one device, and go on from the checkpoint on another."""
    run = Run(SETTINGS[algorithm], DATA, first)
    run.train(on_update=lambda iterations, loss: iterations == 2)
    save_checkpoint(path, run.checkpoint())
    run = Run(SETTINGS[algorithm], DATA, then)
    run.restore(load_checkpoint(path))
    run.train()
    return run


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("places", PLACES, ids=" then ".join)
def test_a_run_that_goes_on_elsewhere_is_one_that_stayed_on_the_cpu(cupy, algorithm, places, tmp_path):
    run = in_two_parts(*places, algorithm, tmp_path / "checkpoint.npz")
    want = Run(SETTINGS[algorithm], DATA)
    want.train()
    assert (run.iterations, run.stopped_by) == (want.iterations, want.stopped_by) == (6, "max_iterations")
    assert_states_close(run.network.state_dict(), want.network.state_dict())
    for got, record in zip(run.records, want.records, strict=True):
        assert got.loss == pytest.approx(record.loss, rel=1e-4)
        assert (got.train_accuracy, got.test_accuracy) == (record.train_accuracy, record.test_accuracy)


def test_a_run_waits_once_an_epoch_and_not_once_an_update(cupy):
    counts = []
    for batch_size in (12, 3):
        waits.clear()
        Run(Settings("adam", 0, 2, None, batch_size, 0.003, shift=1), DATA, "cuda").train()
        counts.append(len(waits))
    assert counts == [2 * 3] * 2  # losses, hits, and the accuracy of the test


def command(out, *options):
    pytest.importorskip("sklearn", reason="the digits come with it")
    assert main(["train", "--data", "digits", "--max-iterations", "3", "--out", str(out), *options]) == 0
    return json.loads((out / "metrics.json").read_text())


def test_gpuconv_train_on_cuda_trains_as_on_the_cpu(cupy, tmp_path, capsys):
    load_file = pytest.importorskip("safetensors.numpy", reason="it reads the weights").load_file
    there = command(tmp_path / "cuda", "--device", "cuda")
    assert "on the GPU" in capsys.readouterr().out and waits
    here = command(tmp_path / "cpu", "--device", "cpu")
    assert (there["device"], here["device"]) == ("cuda", "cpu")
    assert there["iterations"] == here["iterations"] == 3
    assert there["history"]["loss"] == pytest.approx(here["history"]["loss"], rel=1e-4)
    assert_states_close(*(load_file(tmp_path / device / "weights.safetensors") for device in ("cuda", "cpu")))


def test_gpuconv_train_takes_a_gpu_unless_told_otherwise(cupy, tmp_path):
    assert command(tmp_path, "--algorithm", "batch-gd")["device"] == "cuda"
