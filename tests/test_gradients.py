"""Every gradient against central differences in float64, for every layer, option and device; the checker."""

import numpy as np
import pytest

import gpuconv
from gpuconv import nn
from gpuconv.testing import check_gradients

F64 = np.float64

CONV_OPTIONS = [
    {},
    {"stride": 2},
    {"stride": (2, 1), "padding": (1, 2)},
    {"padding": ((0, 1), (2, 0))},
    {"padding": "same", "dilation": 2},
    {"padding": "same_lower", "stride": 3},
    {"padding": 4},  # wider than the kernel's reach: the rotated kernel can't be used
    {"dilation": (1, 3), "padding": "valid"},
    {"groups": 2, "padding": 1},
    {"groups": 4, "stride": 2},  # depthwise, two outputs per channel
    {"groups": 4, "stride": 2, "padding": 1, "dilation": 2},
    {"bias": False},
    {"padding": (2, 3), "padding_mode": "reflect", "stride": 2},
    {"padding": ((6, 0), (3, 7)), "padding_mode": "reflect"},
    {"padding": ((9, 0), (3, 12)), "padding_mode": "replicate", "groups": 2},
    {"padding": ((7, 1), (0, 8)), "padding_mode": "circular", "dilation": (1, 3)},
    {"padding": "same_lower", "padding_mode": "circular", "stride": 2},
]

POOL_OPTIONS = [
    {},
    {"stride": 1},
    {"stride": (1, 3)},
    {"stride": 2, "padding": 1},
    {"padding": ((1, 0), (0, 2))},
    {"padding": "same", "stride": 3},
    {"dilation": 2, "stride": 1},
    {"ceil_mode": True},
    {"ceil_mode": True, "padding": 1, "stride": 2},
]


def name(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "defaults"


def image(rng, channels, channels_last, n=2, h=7, w=8):
    return rng.standard_normal((n, h, w, channels) if channels_last else (n, channels, h, w))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def check(device):
    """`check_gradients`, with the layer and its input moved to the device first."""
    return lambda layer, x: check_gradients(device.move(layer), device.to_array(x))


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("options", CONV_OPTIONS, ids=name)
def test_conv2d_gradients_are_the_slopes(options, channels_last, rng, check):
    layer = nn.Conv2d(4, 8, 3, **options, channels_last=channels_last, dtype=F64, rng=rng)
    if "bias" in layer.params:
        layer.params["bias"] = rng.standard_normal(8)
    report = check(layer, image(rng, 4, channels_last))
    assert report.compared.keys() == {"x", *layer.params}


@pytest.mark.parametrize("kernel", [1, (1, 3), (4, 2), (7, 8)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
def test_conv2d_gradients_are_the_slopes_for_every_kernel_size(kernel, channels_last, rng, check):
    layer = nn.Conv2d(3, 2, kernel, channels_last=channels_last, dtype=F64, rng=rng)
    check(layer, image(rng, 3, channels_last))


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("options", POOL_OPTIONS, ids=name)
def test_max_pool_gradient_is_the_slope(options, channels_last, rng, check):
    check(nn.MaxPool2d(3, **options, channels_last=channels_last), image(rng, 2, channels_last, h=5, w=6))


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d, (7,)),
        (nn.Conv3d, (3, 4, 3)),
        (nn.ConvTranspose1d, (4,)),
        (nn.ConvTranspose2d, (3, 4)),
        (nn.ConvTranspose3d, (2, 2, 3)),
    ],
)
def test_gradients_of_other_ranks_and_transposed_are_the_slopes(layer, size, channels_last, rng, check):
    made = layer(4, 6, 2, stride=2, padding=1, groups=2, channels_last=channels_last, dtype=F64, rng=rng)
    made.params["bias"] = rng.standard_normal(6)
    check(made, rng.standard_normal((2, *size, 4) if channels_last else (2, 4, *size)))


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("kind", [nn.MaxPool1d, nn.AvgPool1d, nn.MaxPool3d, nn.AvgPool3d])
def test_pooling_gradients_of_other_ranks_are_the_slopes(kind, channels_last, rng, check):
    size = (6,) if "1d" in kind.__name__ else (3, 4, 3)
    shape = (2, *size, 3) if channels_last else (2, 3, *size)
    check(kind(2, stride=1, padding=1, channels_last=channels_last), rng.standard_normal(shape))


@pytest.mark.parametrize("counts", [True, False], ids=["pad-counts", "pad-does-not-count"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("options", POOL_OPTIONS, ids=name)
def test_avg_pool_gradient_is_the_slope(options, channels_last, counts, rng, check):
    layer = nn.AvgPool2d((2, 3), **options, count_include_pad=counts, channels_last=channels_last)
    check(layer, image(rng, 2, channels_last, h=5, w=6))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)], ids=str)
def test_linear_gradients_are_the_slopes(shape, bias, rng, check):
    check(nn.Linear(5, 3, bias, dtype=F64, rng=rng), rng.standard_normal(shape))


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Flatten(), nn.Flatten(0, 1)], ids=str
)
def test_activation_and_flatten_gradients_are_the_slopes(layer, rng, check):
    check(layer, 3 * rng.standard_normal((3, 4, 5)))


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}, {"eps": 0.5}],
    ids=name,
)
def test_batch_norm_gradients_are_the_slopes(options, training, channels_last, rng, device, check):
    layer = nn.BatchNorm2d(3, **options, channels_last=channels_last, dtype=F64)
    if layer.affine:
        layer.params["weight"], layer.params["bias"] = rng.standard_normal((2, 3))
    x = image(rng, 3, channels_last, h=3, w=4) * 2 + 1
    device.move(layer)(device.to_array(x))  # gives evaluation statistics of its own
    check(layer.train(training), x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dropout_gradient_is_the_slope_under_one_mask(training, rng, device):
    layer = nn.Dropout(0.4).train(training)

    def forward(x):
        layer.rng = np.random.default_rng(3)
        return layer(x)

    x = device.to_array(rng.standard_normal((6, 7)))
    check_gradients(forward, x, backward=lambda dy, x: layer.backward(dy))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_gradients_are_the_slopes(reduction, rng, device):
    scores = device.to_array(rng.standard_normal((5, 4)))
    targets = {
        nn.SoftmaxCrossEntropy(reduction): [
            np.array([0, 3, 1, 1, 2]),
            np.eye(4)[[0, 3, 1, 1, 2]],
            rng.random((5, 4)),  # rows that don't even sum to one
        ],
        nn.MSE(reduction): [rng.standard_normal((5, 4))],
    }
    for loss, choices in targets.items():
        for target in map(device.to_array, choices):

            def backward(dy, s, loss=loss, target=target):
                loss(s, target)
                return dy * loss.backward()

            check_gradients(lambda s, loss=loss, t=target: loss(s, t), scores, backward=backward)


def test_network_gradients_are_the_slopes_through_all_layers(rng, check):
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, rng=rng),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, padding="same", rng=rng), nn.Tanh()),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3, rng=rng),
        nn.Sigmoid(),
    )
    report = check(network, rng.standard_normal((3, 2, 8, 8)))
    assert report.compared.keys() == {"x", *network.params}


def test_function_gradients_are_checked_for_every_input(rng, device):
    shapes = (2, 2, 5, 5), (4, 1, 3, 3), (4,)
    x, w, b = (device.to_array(rng.standard_normal(shape)) for shape in shapes)
    report = check_gradients(
        lambda x, w, b: gpuconv.conv2d(x, w, b, groups=2, stride=2),
        x,
        w,
        b,
        backward=lambda dy, x, w, b: gpuconv.conv2d_backward(dy, x, w, groups=2, stride=2),
    )
    assert report.compared == {"inputs[0]": 100, "inputs[1]": 36, "inputs[2]": 4}


class Wrong(nn.Layer):
    """y = factor * x, with one entry of dx and all of dfactor off by a chosen amount."""

    def __init__(self, dx_off=0.0, dfactor_off=0.0, dtype=np.float64):
        super().__init__()
        self.params["factor"] = np.array(2, dtype)
        self.dx_off, self.dfactor_off = dx_off, dfactor_off

    def forward(self, x):
        self.x = x
        return self.params["factor"] * x

    def backward(self, dy, *, needs_dx=True):
        self.grads["factor"] = (dy * self.x).sum() + self.dfactor_off
        dx = self.params["factor"] * dy
        dx[1, 0] += self.dx_off
        return dx


def test_checker_names_the_wrong_place_and_both_numbers(check):
    with pytest.raises(AssertionError, match=r"Wrong: x\[1, 0\]: analytic .*, numeric .*1 of 6 comparisons"):
        check(Wrong(dx_off=1e-3), np.ones((2, 3)))
    with pytest.raises(AssertionError, match=r"Wrong: factor: analytic"):
        check(Wrong(dfactor_off=1e-3), np.ones((2, 3)))


def test_checker_finds_one_wrong_entry_of_a_large_array_along_random_directions(check):
    check(Wrong(), np.ones((300, 2)))
    with pytest.raises(AssertionError, match="x along random direction"):
        check(Wrong(dx_off=1e-2), np.ones((300, 2)))


def test_checker_takes_nan_for_wrong(check):
    with pytest.raises(AssertionError, match="analytic nan"):
        check(Wrong(dx_off=np.nan), np.ones((2, 3)))


def test_checker_says_where_a_kink_lies(check):
    with pytest.raises(AssertionError, match=r"on one side and .* on the other: a kink lies here"):
        check(nn.ReLU(), np.array([1.0, 0.0]))


def test_checker_leaves_a_layer_as_it_was(rng, device):
    layer = device.move(nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.BatchNorm2d(2)))
    arrays = {**layer.params, **layer.buffers}
    values = layer.state_dict()
    check_gradients(layer, device.to_array(rng.standard_normal((2, 1, 5, 5))))
    for key, array in {**layer.params, **layer.buffers}.items():
        assert array is arrays[key]
        np.testing.assert_array_equal(device.to_numpy(array), device.to_numpy(values[key]))


def test_checker_leaves_a_layer_as_it_was_after_a_failure(device):
    layer = device.move(Wrong(dfactor_off=1, dtype=np.float32))
    factor = layer.params["factor"]
    with pytest.raises(AssertionError):
        check_gradients(layer, device.to_array(np.ones((2, 3))))
    assert layer.params["factor"] is factor
    assert factor == 2


def test_checker_takes_a_users_own_layer_that_shares_nothing_with_ours(device):
    class Shift:
        def __init__(self):
            self.params, self.grads = {"by": device.to_array(np.ones(3))}, {}

        def forward(self, x):
            return x + self.params["by"]

        def backward(self, dy):
            self.grads["by"] = dy.sum(axis=0)
            return dy

    assert check_gradients(Shift(), device.to_array(np.ones((2, 3)))).compared == {"x": 6, "by": 3}


def test_checker_refuses_what_it_cannot_check():
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match="y changes from one call to the next"):
        check_gradients(nn.Dropout(), np.ones(100))
    with pytest.raises(ValueError, match="y is float32 though all inputs are float64"):
        check_gradients(lambda x: x.astype(np.float32), x, backward=lambda dy, x: dy)
    with pytest.raises(ValueError, match="a function needs its gradient"):
        check_gradients(np.sin, x)
    with pytest.raises(ValueError, match="one input"):
        check_gradients(nn.ReLU(), x, x)
    with pytest.raises(ValueError, match="at least one input"):
        check_gradients(nn.ReLU())
    with pytest.raises(ValueError, match=r"gradient of x has shape \(3,\), not \(2, 3\)"):
        check_gradients(np.sin, x, backward=lambda dy, x: dy[0])
    with pytest.raises(ValueError, match="2 inputs, but backward gave 1"):
        check_gradients(np.multiply, x, x, backward=lambda dy, x, y: dy)
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a NumPy or CuPy array, not builtins.list"):
        check_gradients(nn.ReLU(), [1.0])
    with pytest.raises(TypeError, match=r"inputs\[0\] has dtype complex128"):
        check_gradients(nn.AvgPool2d(1), np.full((1, 1, 1, 1), 1 + 2j))


def test_report_prints_what_was_compared():
    report = check_gradients(nn.Linear(2, 3, rng=0), np.ones((1, 2)))
    assert str(report).splitlines()[1].startswith("weight: 6 compared, largest difference")
