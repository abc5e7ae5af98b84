"""A ReLU and the max pooling behind it, run by a network the other way round: nothing of it is to be seen."""

import copy
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
import gpuconv.nn as nn

POOLINGS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


def pair(axes=2, **named):
    return nn.ReLU(), POOLINGS[axes](**{"kernel_size": 2, **named})


def taught(relu, pool, x):
    """Run the layers themselves, in their order."""
    return pool(relu(x))


def equal(a, b):
    """Compare values, and the signs of zeros."""
    same = a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return same and np.array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


@st.composite
def windows(draw):
    axes = draw(st.integers(1, 3))
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    span = (kernel - 1) * dilation + 1
    return axes, {
        "kernel_size": kernel,
        "stride": draw(st.integers(1, 3)),
        "padding": draw(st.integers(0, kernel // 2)) if dilation == 1 else 0,
        "dilation": dilation,
        "ceil_mode": draw(st.booleans()),
        "channels_last": draw(st.booleans()),
    }, tuple(draw(st.integers(span, span + 4)) for _ in range(axes))  # fmt: skip


@given(
    windows(),
    st.integers(0, 2**32),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from([(), (np.nan,), (np.inf, -np.inf), (-0.0,), (np.nan, np.inf, 0.0)]),
)
def test_results_and_gradients_are_those_of_the_layers_in_their_order(device, drawn, seed, dtype, specials):
    axes, named, sizes = drawn
    rng = np.random.default_rng(seed)
    shape = (2, *sizes, 3) if named["channels_last"] else (2, 3, *sizes)
    x = rng.integers(-4, 3, shape).astype(dtype)  # windows without a positive number, and with equal maxima
    for special in specials:
        x[rng.random(shape) < 0.2] = special
    relu, pool = pair(axes, **named)
    expected = taught(relu, pool, device.to_array(x))
    dy = device.to_array(rng.standard_normal(expected.shape).astype(dtype))
    expected_dx = relu.backward(pool.backward(dy))
    network = nn.Sequential(*pair(axes, **named))
    y = network(device.to_array(x))
    assert equal(device.to_numpy(y), device.to_numpy(expected))
    dx = network.backward(dy)
    assert equal(device.to_numpy(dx), device.to_numpy(expected_dx))
    for layer in reversed(network):  # one by one, behind the network's forward
        dy = layer.backward(dy)
    assert equal(device.to_numpy(dy), device.to_numpy(expected_dx))


def run_order(network, x):
    return [row.name for row in gpuconv.profile(network, x, passes=1).rows]


def test_pooling_runs_first():
    x = np.ones((1, 1, 4, 4), np.float32)
    network = nn.Sequential(nn.Tanh(), *pair(), *pair(), nn.ReLU(), nn.Tanh())
    assert run_order(network, x) == [
        "0.tanh", "2.maxpool2d", "1.relu", "4.maxpool2d", "3.relu", "5.relu", "6.tanh",
        "6.tanh", "5.relu", "3.relu", "4.maxpool2d", "1.relu", "2.maxpool2d", "0.tanh",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "layers",
    [
        (nn.ReLU(), nn.AvgPool2d(2)),
        (nn.MaxPool2d(2), nn.ReLU()),
        (nn.Tanh(), nn.MaxPool2d(2)),
        (type("MyReLU", (nn.ReLU,), {})(), nn.MaxPool2d(2)),
        (nn.ReLU(), type("MyPool", (nn.MaxPool2d,), {})(2)),
    ],
)
def test_anything_else_runs_in_its_order(layers):
    names = run_order(nn.Sequential(*layers), np.ones((1, 1, 4, 4), np.float32))
    assert [name[:2] for name in names] == ["0.", "1.", "1.", "0."]


def test_layers_called_one_by_one_may_be_followed_by_the_networks_backward():
    rng = np.random.default_rng(0)
    first, x = rng.standard_normal((2, 1, 1, 4, 4))
    network = nn.Sequential(*pair())
    network(first)
    y = x
    for layer in network:
        y = layer(y)
    expected = taught(*(layers := pair()), x)
    dy = rng.standard_normal(y.shape)
    assert equal(y, expected)
    assert equal(network.backward(dy), layers[0].backward(layers[1].backward(dy)))


def test_a_pooling_that_ran_alone_since_is_heeded():
    rng = np.random.default_rng(0)
    x, other, dy = rng.standard_normal((3, 1, 1, 4, 4))
    network, layers = nn.Sequential(*pair()), pair()
    network(x)
    taught(*layers, x)
    network[1](other)
    layers[1](other)
    dy = dy[..., :2, :2]
    assert equal(network.backward(dy), layers[0].backward(layers[1].backward(dy)))


def test_each_layer_keeps_what_it_would_have_kept():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 1, 1, 6, 6))
    network = nn.Sequential(*pair())
    network(x)
    network.backward(dy[..., :3, :3])
    assert equal(network[0].backward(dy), np.where(x > 0, dy, 0))


def test_where_an_unpooling_reads_the_places_they_are_those_of_rectified_values():
    x = np.full((1, 1, 2, 2), -1.0)
    x[..., 1, 1] = -0.5
    relu, pool = pair()
    network = nn.Sequential(relu, pool, nn.Sigmoid(), nn.MaxUnpool2d(pool))
    assert network(x).ravel().tolist() == [0.5, 0, 0, 0]  # the first of four zeros
    assert run_order(network, x)[:2] == ["0.relu", "1.maxpool2d"]


def test_wrong_arguments_are_told_as_by_the_layers():
    network = nn.Sequential(*pair())
    with pytest.raises(RuntimeError, match="call forward first"):
        network.backward(np.ones((1, 1, 2, 2)))
    with pytest.raises(TypeError, match="ReLU: the arrays promote to int64"):
        network(np.ones((1, 1, 4, 4), int))
    network(np.ones((1, 1, 4, 4)))
    with pytest.raises(ValueError, match=r"MaxPool2d\.backward: dy has shape"):
        network.backward(np.ones((1, 1, 4, 4)))
    assert network.backward(np.ones((1, 1, 2, 2))).sum() == 4  # nothing is lost by it


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_goes_on_alone(copied):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 1, 1, 4, 4))
    network, dy = nn.Sequential(*pair()), dy[..., :2, :2]
    network(x)
    other = copied(network)
    expected = network.backward(dy)
    assert equal(other.backward(dy), expected)
    other(-x)
    assert equal(network.backward(dy), expected)


def test_what_was_kept_goes_when_the_network_is_moved():
    network = nn.Sequential(*pair())
    network(np.ones((1, 1, 4, 4)))
    with pytest.raises(RuntimeError, match="call forward first"):
        network.to("cpu").backward(np.ones((1, 1, 2, 2)))


def test_an_unpooling_made_afterwards_finds_the_places_of_rectified_values():
    x = np.full((1, 1, 2, 2), -1.0)
    x[..., 1, 1] = -0.5
    network = nn.Sequential(*pair())
    y = network(x)
    assert nn.MaxUnpool2d(network[1])(y + 7).ravel().tolist() == [7, 0, 0, 0]
    assert network.backward(np.ones_like(y)).sum() == 0
    network(x)  # and from now on
    assert nn.MaxUnpool2d(network[1])(y + 7).ravel().tolist() == [7, 0, 0, 0]


@pytest.mark.parametrize("wrong", [np.ones((1, 1, 4, 4), int), np.ones((1, 1, 4, 4), complex), [1.0], None])
def test_a_forward_that_fails_leaves_the_last_one_as_it_was(wrong):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 1, 1, 4, 4))
    network, dy = nn.Sequential(*pair()), dy[..., :2, :2]
    network(x)
    expected = network.backward(dy)
    with pytest.raises(TypeError, match="ReLU: "):
        network(wrong)
    assert equal(network.backward(dy), expected)


def test_what_was_kept_goes_with_the_next_forward_of_another_network_of_the_layers():
    network = nn.Sequential(*pair())
    part, x = network[:2], np.ones((1, 1, 4, 4))
    part(x)
    kept = weakref.ref(x)
    network(np.ones((1, 1, 2, 2)))
    del x
    assert kept() is None
