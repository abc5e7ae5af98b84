"""`fit`: which pictures each update sees, and what ends it."""

from itertools import chain

import numpy as np
import pytest
from anywhere import close, equal
from host import compiler
from host.runtime import DeviceArray

import gpuconv.nn as nn
from gpuconv.training import fit


@pytest.fixture
def dense():
    return nn.Linear(3, 2, rng=0, dtype=np.float64)


X = np.random.default_rng(0).standard_normal((10, 3))
Y = np.arange(10) % 2


def run(network, x=X, y=Y, lr=0.1, **options):
    return fit(
        network, x, y, **{"loss": nn.SoftmaxCrossEntropy(), "optimizer": nn.SGD(network, lr), **options}
    )


@pytest.fixture
def train(device):
    """`run`, with network and data moved to the device."""

    def train(network, x=X, y=Y, **options):
        return run(device.move(network), device.to_array(x), device.to_array(y), **options)

    return train


class Watched(nn.Linear):
    """Remembers how many rows each forward saw, and which."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def forward(self, x):
        self.seen.append(x[:, 0].tolist())
        return super().forward(x)


def test_one_full_batch_update_is_the_textbook_rule(dense, train):
    w, b = dense.params["weight"].copy(), dense.params["bias"].copy()
    scores = X @ w.T + b
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    delta = (p - np.eye(2)[Y]) / len(X)
    train(dense, lr=0.5, max_iterations=1)
    close(dense.params["weight"], w - 0.5 * delta.T @ X)
    close(dense.params["bias"], b - 0.5 * delta.sum(axis=0))


def test_stops_at_max_iterations_and_says_so(dense, train):
    history = train(dense, max_iterations=7, tolerance=1e-12)
    assert (history.stopped_by, history.iterations, len(history.losses)) == ("max_iterations", 7, 7)
    assert all(isinstance(loss, float) for loss in history.losses)


def test_stops_by_tolerance_at_the_first_update_that_moves_no_parameter_further(dense, device, train):
    still = nn.Linear(3, 2, rng=0, dtype=np.float64)
    tolerance = 0.012
    history = train(dense, max_iterations=1000, tolerance=tolerance)
    assert history.stopped_by == "tolerance"
    changes = []
    for _ in range(history.iterations):
        before = device.move(still).state_dict()
        train(still, max_iterations=1)
        changes.append(max(float(abs(p - before[name]).max()) for name, p in still.params.items()))
    assert all(change > tolerance for change in changes[:-1])
    assert changes[-1] <= tolerance


def test_a_bias_that_still_moves_keeps_tolerance_from_stopping_it(train):
    network = nn.Linear(3, 2, rng=0, dtype=np.float64)
    x = np.zeros((4, 3))  # no gradient for w at all
    history = train(network, x, np.zeros(4, int), max_iterations=5, tolerance=1e-3)
    assert history.stopped_by == "max_iterations"


def test_zero_tolerance_stops_when_nothing_moves(train):
    network = nn.Linear(3, 1, rng=0)
    history = train(network, X.astype(np.float32), np.zeros(10, int), max_iterations=5, tolerance=0)
    assert (history.stopped_by, history.iterations) == ("tolerance", 1)  # one class: softmax is always right


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_parameters_that_are_not_finite_never_count_as_standing_still(dense, train):
    dense.params["weight"][:] = np.nan
    assert train(dense, max_iterations=3, tolerance=1.0).stopped_by == "max_iterations"


def test_without_batch_size_each_update_sees_every_picture(train):
    network = Watched(3, 2, rng=0, dtype=np.float64)
    train(network, max_iterations=3)
    assert network.seen == [X[:, 0].tolist()] * 3


def test_without_rng_batches_come_in_order_and_the_last_holds_the_rest(train):
    network = Watched(3, 2, rng=0, dtype=np.float64)
    train(network, max_iterations=4, batch_size=4)
    order = X[:, 0].tolist()
    assert network.seen == [order[:4], order[4:8], order[8:], order[:4]]


def test_rng_shuffles_every_pass_anew_and_a_pass_holds_every_picture_once(train):
    network = Watched(3, 2, rng=0, dtype=np.float64)
    train(network, max_iterations=6, batch_size=4, rng=np.random.default_rng(5))
    first, second = (list(chain(*seen)) for seen in (network.seen[:3], network.seen[3:]))
    assert sorted(first) == sorted(second) == sorted(X[:, 0])
    assert first != second


def test_shuffled_pictures_keep_their_labels(device, train):
    network = nn.Linear(3, 2, rng=0, dtype=np.float64)
    y = (X[:, 0] > 0).astype(int)
    train(network, X, y, lr=1.0, max_iterations=300, batch_size=3, rng=np.random.default_rng(0))
    equal(network(device.to_array(X)).argmax(axis=1), y)


def test_callback_sees_each_update_and_can_stop(dense, train):
    seen = []

    def callback(iteration, loss):
        seen.append((iteration, float(loss)))
        return iteration == 3

    history = train(dense, max_iterations=10, callback=callback)
    assert (history.stopped_by, history.iterations) == ("callback", 3)
    assert seen == list(enumerate(history.losses, 1))


def test_callback_that_returns_nothing_does_not_stop(dense, train):
    assert train(dense, max_iterations=2, callback=lambda iteration, loss: None).iterations == 2


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
@pytest.mark.parametrize("device", ["kernels"], indirect=True)
@pytest.mark.parametrize("make", [nn.SGD, nn.Adam])
def test_updates_read_nothing_that_a_gpu_would_have_to_be_waited_for(make, device, monkeypatch):
    rng = np.random.default_rng(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, rng=rng), nn.BatchNorm2d(4, momentum=None), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Dropout(0.1, rng=rng), nn.Conv2d(4, 4, 2, groups=2, rng=rng), nn.Tanh()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2, rng=rng), nn.Sigmoid()),
    )
    x, y = (device.to_array(rng.random(shape, np.float32)) for shape in ((6, 1, 6, 6), (6, 2)))
    optimizer = make(device.move(network), 0.1)

    def refuse(array, *arguments):
        raise AssertionError(f"read: {np.asarray(array)}")

    for read in ("__bool__", "__float__", "__int__", "__index__", "item", "tolist"):
        monkeypatch.setattr(DeviceArray, read, refuse, raising=False)
    with pytest.raises(AssertionError, match="read: True"):
        bool((x >= 0).all())
    # Not SoftmaxCrossEntropy, which looks at classes that the CPU holds.
    fit(network, x, y, loss=nn.MSE(), optimizer=optimizer, max_iterations=3, batch_size=4, rng=rng)


def test_network_is_put_into_training_mode(train):
    network = nn.Sequential(nn.Linear(3, 2, rng=0, dtype=np.float64)).eval()
    train(network, max_iterations=1)
    assert network.training and network[0].training


def test_inputs_are_never_written_to(dense, device):
    x, y = device.to_array(X.copy()), device.to_array(Y.copy())
    run(device.move(dense), x, y, max_iterations=3, batch_size=4, rng=np.random.default_rng(0))
    equal(x, X)
    equal(y, Y)


def test_no_iterations_change_nothing(dense, train):
    before = dense.params["weight"].copy()
    assert train(dense, max_iterations=0).losses == []
    equal(dense.params["weight"], before)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"y": Y[:9]},
            ValueError,
            "fit: x and y must hold equally many samples, one or more, but x has shape (10, 3) and y (9,)",
        ),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "but x has shape (0, 3) and y (0,)"),
        ({"max_iterations": -1}, ValueError, "fit: max_iterations must be at least 0, not -1"),
        ({"max_iterations": 1.5}, TypeError, "fit: max_iterations must be an integer"),
        ({"max_iterations": True}, TypeError, "fit: max_iterations must be an integer"),
        ({"batch_size": 0}, ValueError, "fit: batch_size must be at least 1, not 0"),
        ({"tolerance": -1e-3}, ValueError, "fit: tolerance must be at least 0, not -0.001"),
        ({"tolerance": float("nan")}, ValueError, "fit: tolerance must be at least 0, not nan"),
        ({"tolerance": "small"}, TypeError, "fit: tolerance must be a number or None, not str"),
        ({"rng": 0}, TypeError, "fit: rng must be a numpy.random.Generator or None, not int"),
        ({"callback": 1}, TypeError, "fit: callback must be callable or None, not int"),
        ({"callback": lambda i, loss: 1}, TypeError, "fit: the callback's answer must be True or False"),
        ({"x": X.tolist()}, TypeError, "fit: x must be a NumPy or CuPy array, not builtins.list"),
        ({"y": Y.tolist()}, TypeError, "fit: y must be a NumPy or CuPy array, not builtins.list"),
        ({"loss": "mse"}, TypeError, "fit: loss must have forward and backward, but str has no forward"),
        ({"loss": nn.MSE}, TypeError, "fit: loss must be an object, not the class MSE; MSE(...) makes one"),
        ({"optimizer": 0.1}, TypeError, "fit: optimizer must have step, but float has no step"),
        (
            {"optimizer": nn.SGD(nn.Linear(3, 2, rng=0), 0.1)},
            ValueError,
            "fit: optimizer must hold parameters of this network, but was made for another",
        ),
    ],
)
def test_wrong_arguments_are_named_before_any_update(dense, options, kind, message):
    before = dense.params["weight"].copy()
    with pytest.raises(kind) as caught:
        run(dense, **{"max_iterations": 1, **options})
    assert message in str(caught.value)
    if "answer" not in message:
        assert (dense.params["weight"] == before).all()


@pytest.mark.parametrize(
    ("network", "fault"),
    [
        (nn.Linear, "fit: network must be an object, not the class Linear; Linear(...) makes one"),
        (
            [nn.Linear(3, 2)],
            "fit: network must have params, train, forward and backward, but list has no params",
        ),
    ],
)
def test_wrong_networks_are_named(dense, network, fault):
    with pytest.raises(TypeError) as caught:
        fit(network, X, Y, loss=nn.MSE(), optimizer=nn.SGD(dense, 0.1), max_iterations=1)
    assert fault in str(caught.value)


def test_an_optimizer_may_hold_a_part_of_the_network_and_be_of_any_kind(dense, device, train):
    network = nn.Sequential(dense, nn.Tanh(), nn.Linear(2, 2, rng=1, dtype=np.float64))
    first, last = (layer.params["weight"].copy() for layer in (network[0], network[2]))
    train(network, optimizer=nn.SGD(network[2], 0.1), max_iterations=1)
    equal(network[0].params["weight"], first)
    assert (device.to_numpy(network[2].params["weight"]) != last).any()

    class Counter:
        steps = 0

        def step(self):
            self.steps += 1

    counter = Counter()
    train(network, optimizer=counter, max_iterations=2)
    assert counter.steps == 2
