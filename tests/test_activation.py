"""`activation="relu"`: what a convolution and a rectifier behind it give, bit by bit, on every backend."""

import copy
import pickle

import numpy as np
import pytest
from cases import draw, lay_out
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
import gpuconv.nn as nn
from gpuconv.backends.cpu import compiled
from gpuconv.backends.dispatch import backend_of
from gpuconv.testing import check_gradients

randoms = st.randoms(use_true_random=False)
DTYPES = [np.float16, np.float32, np.float64]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan]


def relu(y):
    """Return max(y, 0) by its definition; NaN passes, no zero has a sign."""
    return np.where(y <= 0, y.dtype.type(0), y)


def relu_input_grad(dy, y):
    return np.where(y <= 0, dy.dtype.type(0), dy)


def equal(got, want):
    """Compare dtypes and bits; a NaN is a NaN."""
    got, want = (np.where(np.isnan(a), a.dtype.type(np.nan), a) for a in (got, want))
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.tobytes() == want.tobytes()


def sprinkled(case, name, shape, dtype, values):
    """Return whole numbers with some of these values among them."""
    x = case.array(name, shape, dtype, whole=True)
    drawn = np.random.default_rng([case.seed, len(name)])
    return np.where(drawn.random(shape) < 0.05, drawn.choice(np.array(values, dtype), shape), x)


def function(axes, name=""):
    return getattr(gpuconv, f"conv{axes}d{name}")


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40)
@given(rng=randoms)
def test_y_and_gradients_are_those_of_a_rectifier_behind(backend, dtype, rng):
    axes = rng.choice([1, 2, 2, 2, 3])
    case = draw(rng, axes=axes)
    x, w, b = (
        lay_out(rng, backend.to_array(a))
        for a in (
            sprinkled(case, "x", case.x_shape(), dtype, [np.nan, np.inf]),
            case.array("w", case.w_shape(), dtype, whole=True),
            case.array("b", (case.c_out,), dtype, whole=True),
        )
    )
    b = rng.choice([b, None])
    options = {**case.conv(), "flip": bool(rng.randint(0, 1))}
    with np.errstate(invalid="ignore"):
        plain = backend.to_numpy(function(axes)(x, w, b, **options))
        y = function(axes)(x, w, b, activation="relu", **options)
    equal(backend.to_numpy(y), relu(plain))
    dy = sprinkled(case, "dy", y.shape, dtype, SPECIAL)
    needs = tuple(name for name in "xwb" if rng.randint(0, 3))
    through = backend.to_array(relu_input_grad(dy, plain))
    dy, y = (lay_out(rng, backend.to_array(a)) for a in (dy, backend.to_numpy(y)))
    backward = function(axes, "_backward")
    with np.errstate(invalid="ignore"):
        want = backward(through, x, w, needs=needs, **options)
        got = backward(dy, x, w, needs=needs, activation="relu", y=y, **options)
    for name, grad, must in zip("xwb", got, want, strict=True):
        assert (grad is None) == (name not in needs)
        if grad is not None:
            equal(backend.to_numpy(grad), backend.to_numpy(must))


ALGORITHMS = {  # channels and groups that each algorithm of the CPU is chosen for, and what is asked for
    "few channels": (3, 5, 1, "auto"),
    "kernels along vectors": (4, 32, 1, "direct"),
    "columns": (4, 6, 1, "gemm"),
    "Winograd": (8, 24, 1, "winograd"),
    "Winograd, groups": (32, 32, 2, "winograd"),
    "each channel alone": (20, 20, 20, "auto"),
    "each channel alone, twice": (5, 10, 5, "direct"),
}


@pytest.mark.parametrize("by", ["C", "NumPy"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_of_the_cpu_rectifies_alike(name, dtype, channels_last, by):
    c_in, c_out, groups, algorithm = ALGORITHMS[name]
    rng = np.random.default_rng(0)
    with gpuconv.config(compiled=by == "C", algorithm=algorithm):
        if by == "C" and compiled.kernels(np.zeros(1)) is None:
            pytest.skip(f"no C kernels: {compiled.why_not()}")
        for sizes in ((7, 9), (13, 34)):
            shape = (2, *sizes, c_in) if channels_last else (2, c_in, *sizes)
            w_shape = (3, 3, c_in // groups, c_out) if channels_last else (c_out, c_in // groups, 3, 3)
            x, w, b = (rng.standard_normal(s).astype(dtype) for s in (shape, w_shape, (c_out,)))
            for special in ((), SPECIAL):
                x.ravel()[: len(special)] = special
                for bias in (b, None):
                    options = {"padding": 1, "groups": groups, "channels_last": channels_last}
                    with np.errstate(invalid="ignore"):
                        y = gpuconv.conv2d(x, w, bias, **options)
                        got = gpuconv.conv2d(x, w, bias, activation="relu", **options)
                    assert (y < 0).any()
                    equal(got, relu(y))


# The rectifier itself, behind products with 1: sizes that are no multiples of a vector, all sorts of numbers.


@pytest.mark.parametrize("algorithm", ["gemm", "direct", "implicit", "winograd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_algorithm_rectifies_to_the_same_bits(backend, dtype, algorithm):
    tiny = np.finfo(dtype).smallest_normal
    numbers = np.array([*SPECIAL, 1, -1, tiny, -tiny, np.finfo(dtype).max, np.finfo(dtype).min], dtype)
    one = backend.to_array(np.ones((1, 1, 1), dtype))
    with gpuconv.config(algorithm=algorithm):
        for size in (*range(1, 34), 1000, 4096):
            values = np.random.default_rng(size).choice(numbers, size)
            y = gpuconv.conv1d(backend.to_array(values.reshape(1, 1, size)), one, activation="relu")
            equal(backend.to_numpy(y).ravel(), relu(values))


def test_a_product_of_columns_is_followed_by_a_rectifier_and_other_kernels_hold_it():
    shapes = (2, 8, 9, 9), (8, 8, 3, 3)
    for algorithm, steps in (("gemm", ["im2col", "gemm", "relu"]), ("implicit", ["implicit_gemm"])):
        with gpuconv.config(algorithm=algorithm):
            plan = gpuconv.explain("conv2d", *shapes, device="cuda", activation="relu")
        assert [step.what for step in plan.steps] == steps


# Options of the public functions.


def test_y_may_be_of_another_dtype_than_dy(device):
    rng, shapes = np.random.default_rng(0), ((2, 3, 4, 4), (2, 2, 6, 6), (3, 2, 3, 3))
    dy, x, w = map(rng.standard_normal, shapes)
    y = rng.standard_normal(dy.shape).astype(np.float16)
    want = gpuconv.conv2d_backward(*(device.to_array(a) for a in (relu_input_grad(dy, y), x, w)))
    arrays = [device.to_array(a) for a in (dy, x, w)]
    got = gpuconv.conv2d_backward(*arrays, activation="relu", y=device.to_array(y))
    for grad, must in zip(got, want, strict=True):
        equal(device.to_numpy(grad), device.to_numpy(must))


def test_what_is_not_needed_reads_neither_dy_nor_y(device, monkeypatch):
    dy, x, w = (device.to_array(np.ones(s)) for s in ((1, 1, 2, 2), (1, 1, 4, 4), (1, 1, 3, 3)))
    activations, calls = backend_of("test", x=x).activations, []
    original = activations.relu_input_grad
    monkeypatch.setattr(
        activations, "relu_input_grad", lambda *arrays: (calls.append(arrays), original(*arrays))[1]
    )
    for needs, times in ((), 0), (("b",), 1), (("x", "w", "b"), 2):
        gpuconv.conv2d_backward(dy, x, w, needs=needs, activation="relu", y=dy)
        assert len(calls) == times


@pytest.mark.parametrize("name", ["dx", "dw", "db"])
def test_a_gradient_that_is_written_over_y_is_refused(device, name):
    shapes = {"dx": (1, 1, 4, 4), "dw": (1, 1, 3, 3), "db": (1,)}
    dy, x, w = (device.to_array(np.ones(s)) for s in ((1, 1, 4, 4), shapes["dx"], shapes["dw"]))
    y = device.to_array(np.ones((1, 1, 4, 4)))
    part = y.reshape(-1)[: int(np.prod(shapes[name]))].reshape(shapes[name])
    out = tuple(part if each == name else None for each in shapes)
    with pytest.raises(ValueError, match="shares memory with y"):
        gpuconv.conv2d_backward(dy, x, w, padding=1, out=out, activation="relu", y=y)


def test_explain_shows_the_rectifier():
    x, w, y = (2, 4, 6, 6), (3, 4, 3, 3), (2, 3, 4, 4)
    for device, sizes in (("cpu", {"bytes": 2 * 3 * 16 * 4}), ("cuda", {"blocks": 1})):
        plan = gpuconv.explain("conv2d", x, w, activation="relu", device=device)
        assert plan.steps[-1] == ("relu", sizes, 1, "")
        plain = gpuconv.explain("conv2d", x, w, device=device)
        assert plan.steps[:-1] == plain.steps
        assert (plan.flops, plan.least_bytes) == (plain.flops, plain.least_bytes)
        plan = gpuconv.explain("conv2d_backward", y, x, w, activation="relu", y=y, device=device)
        plain = gpuconv.explain("conv2d_backward", y, x, w, device=device)
        assert plan.steps == (("relu_input_grad", {"bytes": 2 * 3 * 16 * 4}, 1, ""), *plain.steps)
        assert plan.least_bytes == plain.least_bytes + 2 * 3 * 16 * 4  # y's
        none = gpuconv.explain("conv2d_backward", y, x, w, activation="relu", y=y, needs=(), device=device)
        assert none.steps == ()


# Layers.

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(rng=randoms)
def test_a_layer_is_the_layer_and_a_relu(device, dtype, rng):
    axes = rng.choice([1, 2, 3])
    arguments = (4, 6, 3, rng.choice([1, 2]), 1, 1, rng.choice([1, 2]), rng.choice([True, False]))
    named = {
        "padding_mode": rng.choice(["zeros", "reflect", "circular"]),
        "channels_last": rng.choice([True, False]),
        "dtype": dtype,
    }
    conv, apart = (
        device.move(LAYERS[axes](*arguments, **named, **more, rng=0)) for more in ({"activation": "relu"}, {})
    )
    network = nn.Sequential(apart, nn.ReLU())
    sizes = (5, 4, 3)[:axes]
    drawn = np.random.default_rng(rng.randint(0, 2**32))
    x = drawn.standard_normal((2, *sizes, 4) if named["channels_last"] else (2, 4, *sizes)).astype(dtype)
    x.ravel()[drawn.integers(0, x.size, 2)] = drawn.choice(SPECIAL, 2)
    x = device.to_array(x)
    with np.errstate(invalid="ignore"):
        y, want = conv(x), network(x)
        equal(device.to_numpy(y), device.to_numpy(want))
        dy = drawn.standard_normal(y.shape).astype(dtype)
        dy[drawn.random(y.shape) < 0.2] = drawn.choice(SPECIAL)
        dy = device.to_array(dy)
        needs_dx = rng.choice([True, False])
        for _ in range(2):  # again, and the same
            dx = conv.backward(dy, needs_dx=needs_dx)
            must = network.backward(dy, needs_dx=needs_dx)
            assert (dx is None) == (not needs_dx)
            if needs_dx:
                equal(device.to_numpy(dx), device.to_numpy(must))
            assert conv.grads.keys() == apart.grads.keys()
            for name, grad in conv.grads.items():
                equal(device.to_numpy(grad), device.to_numpy(apart.grads[name]))


def test_a_network_that_is_moved_copied_or_saved_keeps_its_activation():
    conv = nn.Conv2d(2, 4, 3, activation="relu", rng=0)
    x, dy = np.random.default_rng(0).standard_normal((2, 1, 2, 5, 5)).astype(np.float32)
    y = conv(x)
    dy = np.resize(dy, y.shape)
    dx = conv.backward(dy)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        equal(other.backward(dy), dx)
        equal(other(x), y)
    assert list(conv.state_dict()) == ["weight", "bias"]
    plain = nn.Conv2d(2, 4, 3)
    plain.load_state_dict(conv.state_dict())
    equal(nn.ReLU()(plain(x)), y)


def test_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(0)
    layer = nn.Conv2d(2, 3, 3, padding=1, activation="relu", dtype=np.float64, rng=rng)
    assert check_gradients(layer, rng.standard_normal((2, 2, 5, 4))).passed


def test_a_relu_behind_stays_a_layer_of_its_own():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    network(np.ones((1, 1, 4, 4), np.float32))
    assert network[0].activation is None
    assert (network[0].backward(np.ones((1, 2, 2, 2), np.float32)) != 0).all()


@pytest.mark.parametrize("axes", LAYERS)
def test_a_layer_knows_relu_and_nothing_else(axes):
    with pytest.raises(ValueError, match=f'Conv{axes}d: activation must be "relu" or None, not 1'):
        LAYERS[axes](1, 1, 1, activation=1)
    conv = LAYERS[axes](1, 1, 1, activation="relu", rng=0)
    with pytest.raises(TypeError, match=f"conv{axes}d: x is complex64, but complex numbers have no order"):
        conv(np.ones((1,) * (axes + 2), np.complex64))
