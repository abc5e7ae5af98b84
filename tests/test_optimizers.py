"""Optimisers: PyTorch's updates, parameters found by name, and states that resume bit for bit."""

import copy

import numpy as np
import pytest
from anywhere import close, equal

from gpuconv import nn

SETTINGS = [
    (nn.SGD, {"lr": 0.1}, "SGD"),
    (nn.SGD, {"lr": 0.1, "momentum": 0.9}, "SGD"),
    (nn.SGD, {"lr": 0.1, "weight_decay": 0.05}, "SGD"),
    (nn.SGD, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.05}, "SGD"),
    (nn.Adam, {"lr": 0.01}, "Adam"),
    (nn.Adam, {"lr": 0.01, "betas": (0.5, 0.8), "eps": 1e-3, "weight_decay": 0.1}, "Adam"),
    (nn.Adam, {"lr": 0.01, "betas": (0.0, 0.0)}, "Adam"),
]


def make_network(dtype=np.float64):
    rng = np.random.default_rng(2)
    return nn.Sequential(
        nn.Linear(3, 4, dtype=dtype, rng=rng), nn.Tanh(), nn.Linear(4, 2, dtype=dtype, rng=rng)
    )


def one_weight(device, gradient):
    """A layer of one row of weights, zero, with this gradient."""
    gradient = device.to_array(np.atleast_2d(np.asarray(gradient, np.float64)))
    layer = nn.Linear(gradient.shape[1], 1, bias=False, dtype=np.float64)
    layer.params["weight"], layer.grads["weight"] = gradient * 0, gradient
    return layer


@pytest.fixture
def descend(device):
    """Steps down the squared length of the output, from inputs that rng draws."""

    def descend(network, optimizer, steps, rng):
        for _ in range(steps):
            x = rng.standard_normal((5, 3)).astype(network.params["0.weight"].dtype)
            network.backward(network(device.to_array(x)))
            optimizer.step()

    return descend


@pytest.mark.oracle
@pytest.mark.parametrize("make, settings, name", SETTINGS)
def test_steps_are_pytorchs(make, settings, name, device, descend):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    network = make_network()
    params = [torch.nn.Parameter(torch.tensor(p)) for p in network.params.values()]
    optimizer = make(device.move(network), **settings)
    theirs = getattr(torch.optim, name)(params, **settings)
    rng = np.random.default_rng(4)
    for _ in range(10):
        descend(network, optimizer, 1, rng)
        for theirs_p, g in zip(params, network.grads.values(), strict=True):
            theirs_p.grad = torch.tensor(device.to_numpy(g))
        theirs.step()
        for p, theirs_p in zip(network.params.values(), params, strict=True):
            close(p, theirs_p.detach().numpy(), atol=1e-14)


def test_momentum_by_hand(device):
    layer = one_weight(device, 1)
    optimizer = nn.SGD(layer, 1.0, momentum=0.5)
    for expected in (-1, -2.5, -4.25):  # v = 1, 1.5, 1.75
        optimizer.step()
        assert layer.params["weight"].item() == expected


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_adams_first_step_is_lr_whatever_the_gradients_size(scale, device):
    layer = one_weight(device, [scale, -scale])
    nn.Adam(layer, 0.25).step()
    close(layer.params["weight"], [[-0.25, 0.25]], rtol=1e-4)


@pytest.mark.parametrize("make, settings, name", SETTINGS)
def test_steps_happen_in_place_and_leave_gradients_alone(make, settings, name, device, descend):
    network = device.move(make_network(np.float32))
    optimizer = make(network, **settings)
    arrays = dict(network.params)
    descend(network, optimizer, 1, np.random.default_rng(0))
    grads = {key: g.copy() for key, g in network.grads.items()}
    before = network.state_dict()
    optimizer.step()
    for key, p in network.params.items():
        assert p is arrays[key]
        assert p.dtype == np.float32
        assert (p != before[key]).any()
        equal(network.grads[key], grads[key])


def test_reassigned_parameters_are_the_ones_trained(device, descend):
    network = device.move(make_network())
    optimizer = nn.SGD(network, 0.5, momentum=0.9)
    descend(network, optimizer, 1, np.random.default_rng(0))
    old, new = network.params["0.weight"], device.to_array(np.ones((4, 3)))
    kept = old.copy()
    network[0].params["weight"] = new
    optimizer.step()
    assert (new != 1).all()
    equal(old, kept)


def test_lr_may_change_between_steps(device):
    layer = one_weight(device, 1)
    optimizer = nn.SGD(layer, 1.0)
    optimizer.step()
    optimizer.lr = np.float64(0.25)
    optimizer.step()
    assert layer.params["weight"].item() == -1.25


@pytest.mark.parametrize("make, settings, name", SETTINGS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make, settings, name, device, descend):
    network = device.move(make_network(np.float32))
    optimizer = make(network, **settings)
    rng = np.random.default_rng(9)
    descend(network, optimizer, 3, rng)

    resumed = device.move(make_network(np.float32))
    resumed.load_state_dict(network.state_dict())
    other = make(resumed, lr=7.0, **({"momentum": 0.1} if make is nn.SGD else {}))
    saved = optimizer.state_dict()
    numbers = {key: value for key, value in saved.items() if isinstance(value, float | int)}
    arrays = {key: device.to_numpy(value) for key, value in saved.items() if key not in numbers}
    # As an .npz gives it.
    other.load_state_dict(arrays | {key: np.asarray(value) for key, value in numbers.items()})
    assert repr(other) == repr(optimizer)

    resumed_rng = copy.deepcopy(rng)
    descend(network, optimizer, 3, rng)
    descend(resumed, other, 3, resumed_rng)
    for key, p in network.params.items():
        equal(resumed.params[key], p)


def test_a_saved_state_does_not_change_with_the_optimizer(device, descend):
    network = device.move(make_network())
    optimizer = nn.Adam(network, 0.1)
    descend(network, optimizer, 1, np.random.default_rng(0))
    state = optimizer.state_dict()
    m = state["exp_avg.0.weight"].copy()
    descend(network, optimizer, 1, np.random.default_rng(1))
    assert state["steps"] == 1
    equal(state["exp_avg.0.weight"], m)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("lr"), "the state is missing lr$"),
        (lambda s: s.pop("exp_avg.0.bias"), r"the state is missing exp_avg\.0\.bias"),
        (lambda s: s.update({"exp_avg.9.bias": np.ones(1)}), r"has the unexpected exp_avg\.9\.bias"),
        (lambda s: s.update(momentum=0.5), "has the unexpected momentum"),
        (
            lambda s: s.update({"exp_avg_sq.0.bias": np.ones(3)}),
            r'"exp_avg_sq.0.bias" has shape \(3,\), but to fit the network it must be \(4,\)',
        ),
        (
            lambda s: s.update({"exp_avg.0.bias": np.ones(4) + 1j}),
            r'load_state_dict: "exp_avg.0.bias" is complex128, but to fit the network it must be float64',
        ),
        (lambda s: s.update({"exp_avg.0.bias": np.full(4, "1")}), r'"exp_avg.0.bias" is str32, but to fit'),
        (
            lambda s: s.update({"exp_avg.0.bias": np.ma.ones(4)}),
            r'Adam\.load_state_dict: "exp_avg.0.bias" can\'t be seen as an array: it is a masked array; fill',
        ),
        (lambda s: s.update(steps=0), r"has the unexpected exp_avg\.0\.bias, exp_avg"),
        (lambda s: s.update(steps=-1), r"Adam\.load_state_dict: steps must be at least 0, not -1"),
        (lambda s: s.update(steps=np.asarray(2.5)), r"load_state_dict: steps must be an integer, not float"),
        (lambda s: s.update(lr=-3.0), r"Adam\.load_state_dict: lr must be at least 0 .*, not -3\.0"),
        (lambda s: s.update(lr=np.ones(2)), r"Adam\.load_state_dict: lr must be a number, not ndarray"),
        (
            lambda s: s.update(eps=np.asarray("x")),
            r"Adam\.load_state_dict: eps must be a number, not str 'x'",
        ),
        (lambda s: s.update(beta2=np.asarray(1.0)), r"beta2 must be at least 0 and less than 1, not 1\.0"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_changes(change, message):
    network = make_network()
    optimizer = nn.Adam(network, 0.1)
    network.backward(network(np.ones((5, 3))))
    optimizer.step()
    before = optimizer.state_dict()
    state = {**optimizer.state_dict(), "steps": 5, "lr": 3.0}
    change(state)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.load_state_dict(state)
    for key, value in optimizer.state_dict().items():
        equal(value, before[key])


def test_a_step_before_backward_is_refused_and_changes_nothing():
    network = make_network()
    optimizer = nn.SGD(network, 0.1)
    with pytest.raises(RuntimeError, match=r"SGD\.step: 0\.weight has no gradient yet; call forward and"):
        optimizer.step()
    network[0].grads.update(weight=np.ones((4, 3)), bias=np.ones(4))
    before = network.state_dict()
    with pytest.raises(RuntimeError, match=r"2\.weight has no gradient yet"):
        optimizer.step()
    equal(network.params["0.weight"], before["0.weight"])
    assert optimizer.steps == 0


@pytest.mark.parametrize("make", [nn.SGD, nn.Adam])
@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (lambda p: np.broadcast_to(p, p.shape), ValueError, r'step: "2\.weight" is read-only; put a copy'),
        (lambda p: p.astype(int), TypeError, r'step: "2\.weight" has dtype int64; it must be one of: floats'),
    ],
)
def test_a_parameter_that_cannot_be_updated_is_refused_and_no_other_is_changed(make, spoil, error, message):
    network = make_network()
    optimizer = make(network, 0.1)
    network.backward(network(np.ones((5, 3))))
    network.params["2.weight"] = spoil(network.params["2.weight"])
    before = network.state_dict()
    with pytest.raises(error, match=message):
        optimizer.step()
    for name, p in network.params.items():
        equal(p, before[name])
    assert optimizer.steps == 0


def test_gradients_of_another_shape_are_refused():
    layer = nn.Linear(2, 1, bias=False)
    layer.grads["weight"] = np.ones((1, 1))
    with pytest.raises(ValueError, match=r"the gradient of weight has shape \(1, 1\)"):
        nn.SGD(layer, 1).step()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda n: nn.SGD(n, -1), ValueError, "SGD: lr must be at least 0 .*not -1"),
        (lambda n: nn.SGD(n, float("nan")), ValueError, "SGD: lr must be at least 0"),
        (lambda n: nn.SGD(n, "1"), TypeError, "SGD: lr must be a number, not str '1'"),
        (lambda n: nn.SGD(n, True), TypeError, "SGD: lr must be a number, not bool"),
        (lambda n: nn.SGD(n, np.complex64(1)), TypeError, "SGD: lr must be a number, not complex64"),
        (lambda n: nn.SGD(n, 1, momentum=-0.1), ValueError, "SGD: momentum must be at least 0"),
        (
            lambda n: nn.Adam(n, 1, betas=(0.9, 1)),
            ValueError,
            r"betas\[1\] must be at least 0 and less than 1",
        ),
        (lambda n: nn.Adam(n, 1, betas=(0.9,)), ValueError, "betas must be two numbers"),
        (lambda n: nn.Adam(n, 1, betas=0.9), ValueError, "betas must be two numbers"),
        (lambda n: nn.Adam(n, 1, eps=-1), ValueError, "Adam: eps must be at least 0"),
        (lambda n: nn.Adam(n, 1, weight_decay=-1), ValueError, "Adam: weight_decay must be at least 0"),
        (
            lambda n: nn.SGD(n.params, 1),
            TypeError,
            "SGD: network must be a layer, with params and grads, not",
        ),
        (
            lambda n: nn.SGD([n], 1),
            TypeError,
            "SGD: network must be a layer, with params and grads, not list",
        ),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make(make_network())


@pytest.mark.parametrize("make", [nn.SGD, nn.Adam])
def test_float16_parameters_without_gradient_stay_where_they_are(make, device):
    layer = device.move(nn.Linear(2, 1, dtype=np.float16, rng=0))
    before = layer.params["weight"].copy()
    optimizer = make(layer, 1e-2)
    layer(device.to_array(np.array([[0, 1]], np.float16)))
    layer.backward(device.to_array(np.ones((1, 1), np.float16)))
    optimizer.step()
    assert layer.params["weight"].dtype == np.float16
    assert layer.params["weight"][0, 0] == before[0, 0]
    assert layer.params["weight"][0, 1] < before[0, 1]
    again = make(layer, 1e-2)
    again.load_state_dict(optimizer.state_dict())
    for key, value in optimizer.state_dict().items():
        equal(again.state_dict()[key], value)
