"""What layers promise: PyTorch's results, names and states, and arrays that are held."""

import copy

import numpy as np
import pytest

import gpuconv
from gpuconv import nn

F64 = np.float64


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def network(rng):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, rng=rng),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(16, 3, rng=rng),
    )


@pytest.fixture
def images(rng):
    return rng.standard_normal((5, 1, 4, 4)).astype(np.float32)


# --- against PyTorch -------------------------------------------------------------------------------


def both_ways(ours, theirs, x, torch, rtol=1e-9, atol=1e-9):
    """Run forward and backward of both on x, ours with their parameters, and compare all that comes out."""
    ours.load_state_dict(theirs.state_dict())
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    y = ours(x)
    close = {"rtol": rtol, "atol": atol}
    np.testing.assert_allclose(y, ty.detach().numpy(), **close)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
    ty.backward(torch.tensor(dy))
    np.testing.assert_allclose(ours.backward(dy), tx.grad.numpy(), **close)
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(ours.grads[name], p.grad.numpy(), **close)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), **close)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "make",
    [
        lambda m, **k: m.Conv2d(4, 6, 3, **k),
        lambda m, **k: m.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False, **k),
        lambda m, **k: m.Conv2d(4, 6, 3, padding="same", **k),
        lambda m, **k: m.Linear(8, 5, **k),
        lambda m, **k: m.Linear(8, 5, False, **k),
        lambda m, **k: m.BatchNorm2d(4, **k),
        lambda m, **k: m.BatchNorm2d(4, 1e-3, 0.3, **k),
        lambda m, **k: m.BatchNorm2d(4, momentum=None, **k),
        lambda m, **k: m.BatchNorm2d(4, affine=False, **k),
        lambda m, **k: m.BatchNorm2d(4, track_running_stats=False, **k),
        lambda m, **k: m.MaxPool2d(3, 2, 1, 1),
        lambda m, **k: m.MaxPool2d(2, ceil_mode=True),
        lambda m, **k: m.AvgPool2d(3, 2, 1, True, False),
        lambda m, **k: m.AvgPool2d((2, 3)),
        lambda m, **k: m.ReLU(),
        lambda m, **k: m.Sigmoid(),
        lambda m, **k: m.Tanh(),
        lambda m, **k: m.Flatten(),
        lambda m, **k: m.Flatten(1, 2),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layers_give_what_pytorchs_give(make, training, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    ours, theirs = make(nn, dtype=F64), make(torch.nn, dtype=torch.float64)
    for _ in range(3):  # running statistics grow over batches
        x = rng.standard_normal((3, 4, 7, 8)) * 2 + 1
        both_ways(ours.train(), theirs.train(), x, torch)
        theirs.zero_grad()
    both_ways(ours.train(training), theirs.train(training), x, torch)


@pytest.mark.oracle
def test_float32_networks_agree_with_pytorchs(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")

    def make(m):
        return m.Sequential(
            m.Conv2d(2, 8, 3, padding=1, bias=False),
            m.BatchNorm2d(8),
            m.ReLU(),
            m.MaxPool2d(2),
            m.Sequential(m.Conv2d(8, 8, 3, groups=4), m.Tanh()),
            m.Flatten(),
            m.Linear(32, 5),
        )

    x = rng.standard_normal((6, 2, 8, 8)).astype(np.float32)
    ours, theirs = make(nn), make(torch.nn)
    both_ways(ours, theirs, x, torch, rtol=1e-4, atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})


# --- parameters, gradients, state ------------------------------------------------------------------


def test_gradients_are_sums_over_the_batch(rng):
    x = rng.standard_normal((2, 1, 5, 5))
    for layer in (nn.Conv2d(1, 2, 3, dtype=F64, rng=rng), nn.Linear(5, 2, dtype=F64, rng=rng)):
        dy = np.ones_like(layer(x))
        parts = []
        for i in (0, 1):
            layer(x[i : i + 1])
            layer.backward(dy[i : i + 1])
            parts.append(dict(layer.grads))
        layer(x)
        layer.backward(dy)
        for name in ("weight", "bias"):
            np.testing.assert_allclose(layer.grads[name], parts[0][name] + parts[1][name])


def test_in_place_edits_and_reassigned_parameters_are_both_seen(rng):
    layer, x = nn.Linear(3, 2, dtype=F64, rng=rng), rng.standard_normal((4, 3))
    held = np.ones((2, 3))
    layer.params["weight"] = held
    np.testing.assert_allclose(layer(x), x.sum(axis=1)[:, None] * [1, 1])
    held[1] = 2
    np.testing.assert_allclose(layer(x), x.sum(axis=1)[:, None] * [1, 2])
    layer.params["bias"] += 5
    np.testing.assert_allclose(layer(x), x.sum(axis=1)[:, None] * [1, 2] + 5)


def test_the_dicts_stay_the_same_objects(network, images):
    conv = network[0]
    before = conv.params, conv.grads, conv.buffers
    network.backward(np.ones_like(network(images)))
    network.load_state_dict(network.state_dict())
    network.eval()
    assert all(a is b for a, b in zip(before, (conv.params, conv.grads, conv.buffers), strict=True))


def test_networks_parameters_are_its_layers_own(network, images):
    assert list(network.params) == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]
    assert list(network.buffers) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert len(network.grads) == 0
    assert network.params["4.weight"] is network[4].params["weight"]
    new = np.zeros((3, 16), np.float32)
    network.params["4.weight"] = new
    assert network[4].params["weight"] is new
    with pytest.raises(KeyError, match=r"2\.weight"):
        network.params["2.weight"] = new
    for wrong in ("9.weight", "weight", "-1.weight", ""):
        assert wrong not in network.params


def test_nested_networks_join_the_names():
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Linear(1, 1)))
    assert list(network.params) == list(network.state_dict()) == ["1.1.weight", "1.1.bias"]
    assert network.params["1.1.bias"] is network[1][1].params["bias"]


def test_backward_twice_gives_the_same(network, images):
    dy = np.ones_like(network(images))
    dx, grads = network.backward(dy), {}
    grads.update(network.grads)
    np.testing.assert_array_equal(network.backward(dy), dx)
    for name, grad in network.grads.items():
        np.testing.assert_array_equal(grad, grads[name])


def test_backward_works_in_evaluation_too(network, images):
    network(images)
    y = network.eval()(images)
    network.backward(np.ones_like(y))
    assert network.grads.keys() == network.params.keys()


def test_backward_without_dx_gives_the_same_gradients_and_skips_the_rest(network, images):
    dy = np.ones_like(network(images))
    network.backward(dy)
    grads = dict(network.grads)
    assert network.backward(dy, needs_dx=False) is None
    for name, grad in network.grads.items():
        np.testing.assert_array_equal(grad, grads[name])


def test_backward_without_dx_ends_at_the_first_layer_with_parameters(images):
    class Counts(nn.ReLU):
        calls = 0

        def backward(self, dy, *, needs_dx=True):
            self.calls += 1
            return super().backward(dy)

    first, last = Counts(), Counts()
    network = nn.Sequential(first, nn.Conv2d(1, 2, 3, rng=0), last)
    network.backward(np.ones_like(network(images)), needs_dx=False)
    assert (first.calls, last.calls) == (0, 1)
    assert nn.Sequential(nn.Sequential(nn.ReLU()))(images).shape == images.shape
    assert nn.Sequential(nn.ReLU()).backward(images, needs_dx=False) is None


def test_backward_without_dx_tells_the_first_layer_with_parameters_only(rng):
    asked = []

    class Asks(nn.Linear):
        def backward(self, dy, *, needs_dx=True):
            asked.append(needs_dx)
            return super().backward(dy, needs_dx=needs_dx)

    network = nn.Sequential(nn.Flatten(), nn.Sequential(Asks(4, 3, rng=rng), Asks(3, 2, rng=rng)))
    network.backward(network(np.ones((5, 2, 2))), needs_dx=False)
    assert asked == [True, False]  # from the last to the first


def test_layers_with_parameters_compute_no_dx_that_nobody_needs(images, rng):
    for layer in (nn.Conv2d(1, 2, 3, rng=rng), nn.Linear(4, 3, rng=rng), nn.BatchNorm2d(1)):
        y = layer(images)
        assert layer.backward(y, needs_dx=False) is None
        assert layer.grads.keys() == layer.params.keys()


def test_first_convolution_does_not_compute_dx(monkeypatch, images):
    conv = nn.Conv2d(1, 2, 3, rng=0)
    asked = []
    real = gpuconv.conv2d_backward

    def spy(*args, needs, **kwargs):
        asked.append(needs)
        return real(*args, needs=needs, **kwargs)

    monkeypatch.setattr(nn.Conv2d, "_gradients", staticmethod(spy))
    dy = np.ones_like(conv(images))
    conv.backward(dy)
    conv.backward(dy, needs_dx=False)
    assert asked == [("x", "w", "b"), ("w", "b")]


def test_inputs_and_dy_are_never_written_to(network, images):
    images.flags.writeable = False
    dy = np.ones((5, 3), np.float32)
    dy.flags.writeable = False
    for mode in (True, False):
        network.train(mode)(images)
        network.backward(dy)
    for layer in (nn.Dropout(rng=0), nn.Sigmoid(), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()):
        y = layer(images)
        y = y.copy()
        y.flags.writeable = False
        layer.backward(y)


def test_state_survives_the_round_trip(network, images, rng):
    network(images)
    state = network.state_dict()
    other = copy.deepcopy(network)
    for p in other.params.values():
        p += rng.standard_normal(p.shape).astype(np.float32)
    other(images)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.eval()(images), network.eval()(images))
    assert other.buffers["1.num_batches_tracked"] == 1


def test_a_saved_state_does_not_change_with_the_network(network, images):
    state = network.state_dict()
    network(images)
    network.params["0.weight"] += 1
    assert not state["1.running_mean"].any()
    assert not np.array_equal(state["0.weight"], network.params["0.weight"])


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda s: s.pop("0.weight"), ValueError, r"the state is missing 0\.weight$"),
        (lambda s: s.update(extra=1), ValueError, "the state has the unexpected extra$"),
        (
            lambda s: s.update({"5.weight": s.pop("4.weight")}),
            ValueError,
            r"is missing 4\.weight and has the unexpected 5\.weight",
        ),
        (
            lambda s: s.update({"4.bias": np.zeros(4, np.float32)}),
            ValueError,
            r'"4.bias" has shape \(4,\), but to fit the layer it must be \(3,\)',
        ),
        (
            lambda s: s.update({"4.bias": np.zeros(3)}),
            TypeError,
            r'"4.bias" is float64, but the layer\'s is float32, which can\'t hold it without loss',
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_is_written(network, change, error, message):
    before = network.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(error, match=message):
        network.load_state_dict(state)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_read_only_parameters_are_refused_before_a_state_is_written(network):
    network.params["4.bias"].flags.writeable = False
    before = network.state_dict()
    with pytest.raises(ValueError, match=r'"4.bias" is read-only'):
        network.load_state_dict({name: value + 1 for name, value in before.items()})
    np.testing.assert_array_equal(network.params["0.weight"], before["0.weight"])


def test_sequential_is_a_sequence(network):
    assert len(network) == 5
    assert [type(layer) for layer in network][-1] is nn.Linear
    assert network[-1] is network[4]
    part = network[1:3]
    assert isinstance(part, nn.Sequential)
    assert part[0] is network[1]
    with pytest.raises(IndexError):
        network[5]


def test_empty_sequential_passes_what_it_gets(images):
    network = nn.Sequential()
    assert network(images) is images
    assert network.backward(images) is images
    assert repr(network) == "Sequential()"


def test_a_layer_can_stand_in_one_place_only():
    relu = nn.ReLU()
    with pytest.raises(ValueError, match="layer 2 is the same object as layer 0"):
        nn.Sequential(relu, nn.Tanh(), relu)
    with pytest.raises(ValueError, match=r"layer 1\.0 is the same object as layer 0"):
        nn.Sequential(relu, nn.Sequential(relu))


def test_sequential_takes_layers_only():
    with pytest.raises(TypeError, match=r"layers\[0\] must be a layer, not list"):
        nn.Sequential([nn.ReLU()])


def test_train_and_eval_reach_every_layer_and_return_the_network(network):
    assert network.eval() is network
    assert not any(layer.training for layer in (*network, *network[2]))
    assert network.train() is network
    assert all(layer.training for layer in (*network, *network[2]))


def test_a_device_is_cpu_or_cuda(network):
    assert network.to("cpu") is network
    with pytest.raises(ValueError, match='device must be "cpu" or "cuda", not \'tpu\''):
        network.to("tpu")


def test_repr_is_the_call_that_made_the_layer():
    for text in (
        "Conv2d(2, 4, kernel_size=(3, 1), padding='same', groups=2, bias=False, channels_last=True)",
        "MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)",
        "AvgPool2d(kernel_size=3, padding=1, count_include_pad=False)",
        "Linear(3, 4, bias=False)",
        "Flatten(end_dim=2)",
        "Dropout(p=0.1)",
        "BatchNorm2d(3, eps=0.001, momentum=None, affine=False, track_running_stats=True)",
        "Sigmoid()",
    ):
        assert repr(eval(f"nn.{text}")) == text


# --- single layers ---------------------------------------------------------------------------------


def test_sigmoid_neither_overflows_nor_loses_small_values():
    with np.errstate(all="raise", under="ignore"):
        y = nn.Sigmoid()(np.array([-1e4, -700.0, -40.0, 40.0, 1e4]))
    np.testing.assert_allclose(y, [0, np.exp(-700.0), np.exp(-40.0), 1, 1], rtol=1e-12)
    assert np.isnan(nn.Sigmoid()(np.array([np.nan]))).all()


def test_relu_passes_nan_in_both_directions():
    relu = nn.ReLU()
    np.testing.assert_array_equal(relu(np.array([-1.0, np.nan, 2.0])), [0, np.nan, 2])
    np.testing.assert_array_equal(relu.backward(np.array([5.0, 3.0, np.nan])), [0, 3, np.nan])


def test_max_pool_layer_keeps_one_byte_per_window(images):
    pool = nn.MaxPool2d(2)
    pool(images)
    argmax, shape = pool._kept
    assert argmax.dtype == np.uint8
    assert shape == images.shape


def test_dropout_keeps_the_mean_and_draws_a_new_mask_each_time():
    dropout, x = nn.Dropout(0.8, rng=3), np.ones(100_000, np.float32)
    first, second = dropout(x), dropout(x)
    assert not np.array_equal(first, second)
    assert set(np.unique(first)) == {0, 5}
    assert abs(first.mean() - 1) < 0.03
    assert first.dtype == np.float32
    np.testing.assert_array_equal(dropout.backward(x), second)


def test_dropout_extremes_and_evaluation(images):
    assert not nn.Dropout(1)(images).any()
    np.testing.assert_array_equal(nn.Dropout(0)(images), images)
    dropout = nn.Dropout(0.5).eval()
    np.testing.assert_array_equal(dropout(images), images)
    np.testing.assert_array_equal(dropout.backward(images), images)


def test_batch_norm_runs_the_statistics_of_training_batches_only(rng):
    norm, x = nn.BatchNorm2d(2, momentum=0.5, dtype=F64), rng.standard_normal((4, 2, 3, 3))
    running = norm.buffers["running_mean"]
    norm(x)
    np.testing.assert_allclose(running, x.mean(axis=(0, 2, 3)) / 2)  # written in place
    np.testing.assert_allclose(norm.buffers["running_var"], 0.5 + x.var(axis=(0, 2, 3), ddof=1) / 2)
    norm.eval()(x)
    assert norm.buffers["num_batches_tracked"] == 1


def test_batch_norm_keeps_its_digits_far_from_zero(rng):
    x = rng.standard_normal((8, 1, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(nn.BatchNorm2d(1)(x + 1000), nn.BatchNorm2d(1)(x), atol=1e-3)


def test_batch_norm_refuses_a_single_value_per_channel():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match="a single value per channel"):
        norm(np.ones((1, 3, 1, 1)))
    assert norm.eval()(np.ones((1, 3, 1, 1))).shape == (1, 3, 1, 1)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_empty_batches_pass_through_every_layer(network, training):
    network.train(training)
    y = network(np.empty((0, 1, 4, 4), np.float32))
    assert y.shape == (0, 3)
    assert network.backward(y).shape == (0, 1, 4, 4)
    assert not any(grad.any() for grad in network.grads.values())
    assert not network.buffers["1.running_mean"].any()
    layer = nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.Dropout(), nn.AvgPool2d(2))
    assert layer.backward(layer(np.empty((0, 1, 4, 4)))).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: np.dtype(d).name)
def test_a_network_stays_in_its_dtype(dtype, rng):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, dtype=dtype, rng=rng),
        nn.BatchNorm2d(4, dtype=dtype),
        nn.Sigmoid(),
        nn.Dropout(0.1, rng=rng),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 2, dtype=dtype, rng=rng),
        nn.Tanh(),
        nn.ReLU(),
    )
    x = rng.standard_normal((3, 1, 4, 4)).astype(dtype)
    y = network(x)
    dx = network.backward(y)
    found = {a.dtype for a in (y, dx, *network.params.values(), *network.grads.values())}
    assert found == {np.dtype(dtype)}


def test_float16_is_summed_in_float32():
    x = np.full((1, 4096), 1.0, np.float16)
    dense = nn.Linear(4096, 1, dtype=np.float16)
    dense.params["weight"] = x
    assert dense(x).item() == 4096  # ones added one by one in float16 stop at 2048
    dense = nn.Linear(2, 1, dtype=np.float16)
    dense.params["weight"][:], dense.params["bias"][:] = 1, -2048
    assert dense(np.array([[2048, 1]], np.float16)).item() == 1  # 2049 is no float16: rounded after b
    dense = nn.Linear(1, 2, dtype=np.float16)
    dense.backward(np.ones_like(dense(np.zeros((4096, 1), np.float16))))
    assert (dense.grads["bias"] == 4096).all()
    norm = nn.BatchNorm2d(1, dtype=np.float16)
    norm(np.full((1, 1, 64, 64), 1000, np.float16))
    assert norm.buffers["running_mean"].item() == 100
    norm.backward(np.ones((1, 1, 64, 64), np.float16))
    assert norm.grads["bias"].item() == 4096


def test_integer_images_are_promoted_as_numpy_does():
    image = np.ones((1, 1, 4, 4), np.uint8)
    assert nn.Conv2d(1, 2, 3, rng=0)(image).dtype == np.float32
    assert nn.Linear(4, 2, rng=0)(image).dtype == np.float32


# --- initial values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw, bound, variance",
    [
        (nn.he_normal, np.inf, 2 / (32 * 9)),
        (nn.he_uniform, np.sqrt(6 / (32 * 9)), 2 / (32 * 9)),
        (nn.glorot_uniform, np.sqrt(6 / ((32 + 64) * 9)), 2 / ((32 + 64) * 9)),
    ],
)
def test_initial_weights_have_the_promised_variance_in_both_layouts(draw, bound, variance):
    for shape, last in (((64, 32, 3, 3), False), ((3, 3, 32, 64), True)):
        w = draw(shape, channels_last=last, rng=0, dtype=F64)
        assert w.shape == shape
        assert abs(w).max() <= bound
        assert abs(w).max() > bound * 0.99 or bound == np.inf
        np.testing.assert_allclose(w.var(), variance, rtol=0.03)
        assert abs(w.mean()) < 3 * np.sqrt(variance / w.size)


def test_grouped_weights_count_only_their_groups_channels():
    w = nn.Conv2d(64, 64, 3, groups=64, rng=0).params["weight"]
    np.testing.assert_allclose(w.var(), 2 / 9, rtol=0.2)


def test_one_seed_gives_the_same_weights_and_none_gives_others():
    a, b, c = (nn.Linear(4, 4, rng=rng).params["weight"] for rng in (5, np.random.default_rng(5), None))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    for dtype in (np.float16, np.float32, np.float64):
        assert nn.he_normal((2, 2), dtype=dtype, rng=0).dtype == dtype
        assert nn.glorot_uniform((2, 2), dtype=dtype, rng=0).dtype == dtype


# --- wrong arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: nn.Conv2d(0, 1, 3), ValueError, "Conv2d: in_channels must be at least 1, not 0"),
        (lambda: nn.Conv2d(1, True, 3), TypeError, "Conv2d: out_channels must be an integer, not bool True"),
        (lambda: nn.Conv2d(1, 1, 3.0), TypeError, "Conv2d: kernel_size must be an integer, not float"),
        (lambda: nn.Conv2d(1, 1, 3, 0), ValueError, "Conv2d: stride must be at least 1, not 0"),
        (lambda: nn.Conv2d(1, 1, 3, padding="full"), ValueError, "Conv2d: padding must be numbers or one of"),
        (lambda: nn.Conv2d(1, 1, 3, dilation=-1), ValueError, "Conv2d: dilation must be at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "in_channels=3 doesn't divide into groups=2"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "out_channels=3 doesn't divide into groups=2"),
        (lambda: nn.Conv2d(1, 1, 3, bias=1), TypeError, "Conv2d: bias must be True or False"),
        (lambda: nn.Conv2d(1, 1, 3, dtype=int), TypeError, "dtype must be float16, float32 or float64"),
        (lambda: nn.Conv2d(1, 1, 3, dtype=None), TypeError, "dtype must be float16, float32 or float64"),
        (lambda: nn.Conv2d(1, 1, 3, rng="0"), TypeError, "rng must be a numpy.random.Generator, an int"),
        (lambda: nn.Conv2d(1, 1, 3, rng=-1), TypeError, "rng must be a numpy.random.Generator, an int >= 0"),
        (lambda: nn.MaxPool2d((2, 2, 2)), ValueError, "kernel_size must be an integer or 2 of them"),
        (lambda: nn.MaxPool2d(2, 0), ValueError, "MaxPool2d: stride must be at least 1"),
        (lambda: nn.AvgPool2d(2, ceil_mode=1), TypeError, "AvgPool2d: ceil_mode must be True or False"),
        (lambda: nn.Linear(2.0, 1), TypeError, "Linear: in_features must be an integer"),
        (lambda: nn.Dropout(1.5), ValueError, "Dropout: p must be a number from 0 to 1, not 1.5"),
        (lambda: nn.Dropout(float("nan")), ValueError, "Dropout: p must be a number from 0 to 1"),
        (lambda: nn.Dropout("a"), ValueError, "Dropout: p must be a number from 0 to 1"),
        (lambda: nn.BatchNorm2d(2, eps=-1), ValueError, "BatchNorm2d: eps must be at least 0"),
        (lambda: nn.BatchNorm2d(2, eps="x"), TypeError, "BatchNorm2d: eps must be a number, not str 'x'"),
        (lambda: nn.BatchNorm2d(2, eps=np.inf), ValueError, "BatchNorm2d: eps must be .* less than inf, not"),
        (
            lambda: nn.BatchNorm2d(2, momentum=2),
            ValueError,
            "BatchNorm2d: momentum must be from 0 to 1, not 2",
        ),
        (lambda: nn.BatchNorm2d(2, momentum="x"), TypeError, "momentum must be a number, not str 'x'"),
        (lambda: nn.BatchNorm2d(2, momentum=True), TypeError, "momentum must be a number, not bool True"),
        (lambda: nn.Flatten(0.5), TypeError, "Flatten: start_dim must be an integer"),
        (lambda: nn.he_normal((3,)), ValueError, r"he_normal: shape must have at least two axes, not \(3,\)"),
        (lambda: nn.he_uniform((3, 0)), ValueError, r"he_uniform: shape\[1\] must be at least 1, not 0"),
        (lambda: nn.glorot_uniform((3.0, 1)), TypeError, r"glorot_uniform: shape\[0\] must be an integer"),
    ],
)
def test_wrong_constructor_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "layer, x, error, message",
    [
        (nn.Linear(3, 2), np.ones((4, 2)), ValueError, r"x has shape \(4, 2\), but its last axis must be 3"),
        (nn.Linear(3, 2), np.array(1.0), ValueError, r"x has shape \(\), but its last axis must be 3"),
        (nn.Linear(3, 2), [[1.0] * 3], TypeError, r"x must be a NumPy or CuPy array, not builtins.list"),
        (nn.Conv2d(3, 2, 1), np.ones((1, 4, 2, 2)), ValueError, "x has 4 channels and groups=1"),
        (nn.BatchNorm2d(3), np.ones((2, 2, 4, 4)), ValueError, "x has 2 channels .* num_features=3"),
        (nn.BatchNorm2d(3), np.ones((2, 3, 4)), ValueError, r"x must have 4 axes \[N, C, H, W\], not 3"),
        (nn.Flatten(2, 1), np.ones((2, 3, 4)), ValueError, "start_dim=2 and end_dim=1 must name two"),
        (nn.Flatten(), np.ones(3), ValueError, "x has 1 axes"),
        (nn.ReLU(), np.array(["a"]), TypeError, "ReLU: x has dtype str"),
        (nn.ReLU(), np.array([1], dtype=object), TypeError, "ReLU: x has dtype object"),
        (nn.Sigmoid(), np.arange(3), TypeError, "Sigmoid: the arrays promote to int64"),
        (nn.Tanh(), 1.0, TypeError, "Tanh: x must be a NumPy or CuPy array"),
        (nn.Dropout(), np.ones(3, complex), TypeError, "Dropout: x has dtype complex128"),
    ],
)
def test_wrong_inputs_are_named(layer, x, error, message):
    with pytest.raises(error, match=message):
        layer(x)


def test_wrong_parameters_are_named(rng):
    dense = nn.Linear(3, 2)
    dense.params["bias"] = np.zeros(1)
    with pytest.raises(ValueError, match=r"bias has shape \(1,\).* it must be \(2,\)"):
        dense(np.ones((4, 3)))
    norm = nn.BatchNorm2d(2)
    norm.params["weight"] = np.ones(1)
    with pytest.raises(ValueError, match=r"BatchNorm2d: weight has shape \(1,\)"):
        norm(np.ones((2, 2, 2, 2)))


LAYERS = [
    nn.Conv2d(1, 1, 1),
    nn.MaxPool2d(2),
    nn.AvgPool2d(2),
    nn.Linear(4, 4),
    nn.Flatten(),
    nn.ReLU(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Dropout(),
    nn.BatchNorm2d(1),
    nn.Sequential(nn.ReLU()),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_backward_before_forward_and_mismatched_dy_are_refused(layer):
    layer = copy.deepcopy(layer)
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(np.ones((2, 1, 4, 4)))
    y = layer(np.ones((2, 1, 4, 4), np.float32))
    for wrong in (y[:1], y[..., None], y[0]):
        with pytest.raises(ValueError, match=r"backward: dy has shape .* y of the last forward it must be"):
            layer.backward(wrong)
    with pytest.raises(TypeError, match="dy must be a NumPy or CuPy array"):
        layer.backward(y.tolist())
    with pytest.raises(TypeError, match="int64"):
        layer.backward(y.astype(np.int64))


def test_relu_stops_an_infinite_gradient_where_x_is_not_positive():
    relu = nn.ReLU()
    relu(np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(relu.backward(np.array([np.inf, np.inf, 2.0])), [0, 0, 2])
