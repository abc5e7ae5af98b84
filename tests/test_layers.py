"""What layers promise: PyTorch's results, names and states, and arrays that are held."""

import copy

import numpy as np
import pytest
from anywhere import close, equal

import gpuconv
from gpuconv import nn
from gpuconv.backends.cpu import activations
from gpuconv.backends.cpu.compiled import why_not

F64 = np.float64


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def made(rng):
    """A network as it was made, in NumPy."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, rng=rng),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(16, 3, rng=rng),
    )


@pytest.fixture
def network(made, device):
    return device.move(made)


@pytest.fixture
def images(rng, device):
    return device.to_array(rng.standard_normal((5, 1, 4, 4)).astype(np.float32))


@pytest.fixture
def ones_like(device):
    return lambda y: device.to_array(np.ones(y.shape, y.dtype))


# --- against PyTorch -------------------------------------------------------------------------------


def both_ways(ours, theirs, x, torch, device, rtol=1e-9, atol=1e-9):
    """Run forward and backward of both on x, ours with their parameters, and compare all that comes out."""
    ours.load_state_dict(theirs.state_dict())
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    y = ours(device.to_array(x))
    tolerances = {"rtol": rtol, "atol": atol}
    close(y, ty.detach().numpy(), **tolerances)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
    ty.backward(torch.tensor(dy))
    close(ours.backward(device.to_array(dy)), tx.grad.numpy(), **tolerances)
    for name, p in theirs.named_parameters():
        close(ours.grads[name], p.grad.numpy(), **tolerances)
    for name, value in theirs.state_dict().items():
        close(ours.state_dict()[name], value.numpy(), **tolerances)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "make",
    [
        lambda m, **k: m.Conv2d(4, 6, 3, **k),
        lambda m, **k: m.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False, **k),
        lambda m, **k: m.Conv2d(4, 6, 3, padding="same", **k),
        lambda m, **k: m.Conv2d(4, 6, 3, 2, (4, 5), 1, 2, True, "reflect", **k),
        lambda m, **k: m.Conv2d(4, 6, (3, 2), padding=(3, 9), padding_mode="replicate", **k),
        lambda m, **k: m.Conv2d(4, 6, (2, 4), padding="same", dilation=2, padding_mode="circular", **k),
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
        lambda m, **k: m.AvgPool2d(3, 2, 1, False, True, 4),
        lambda m, **k: m.LPPool2d(2, 3, 2),
        lambda m, **k: m.LPPool2d(4, (2, 3)),
        lambda m, **k: m.Upsample(scale_factor=2),
        lambda m, **k: m.AdaptiveAvgPool2d((3, None)),
        lambda m, **k: m.AdaptiveAvgPool2d(9),
        lambda m, **k: m.AdaptiveMaxPool2d((None, 5)),
        lambda m, **k: m.AdaptiveMaxPool2d(1),
        lambda m, **k: m.ReLU(),
        lambda m, **k: m.Sigmoid(),
        lambda m, **k: m.Tanh(),
        lambda m, **k: m.Flatten(),
        lambda m, **k: m.Flatten(1, 2),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layers_give_what_pytorchs_give(make, training, rng, device):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    ours, theirs = device.move(make(nn, dtype=F64)), make(torch.nn, dtype=torch.float64)
    for _ in range(3):  # running statistics grow over batches
        x = rng.standard_normal((3, 4, 7, 8)) * 2 + 1
        both_ways(ours.train(), theirs.train(), x, torch, device)
        theirs.zero_grad()
    both_ways(ours.train(training), theirs.train(training), x, torch, device)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda m, **k: m.Conv1d(4, 6, 3, 2, 1, 2, 2, **k), (9,)),
        (lambda m, **k: m.Conv3d(4, 6, (3, 2, 1), (1, 2, 1), 1, groups=2, **k), (3, 4, 5)),
        (lambda m, **k: m.Conv1d(4, 6, 3, 2, 8, padding_mode="reflect", **k), (9,)),
        (lambda m, **k: m.Conv1d(4, 6, 3, padding=9, padding_mode="circular", **k), (9,)),
        (lambda m, **k: m.Conv3d(4, 6, 2, padding=(2, 3, 4), padding_mode="reflect", **k), (3, 4, 5)),
        (lambda m, **k: m.Conv3d(4, 6, 2, 2, (4, 1, 0), padding_mode="replicate", **k), (3, 4, 5)),
        (lambda m, **k: m.Conv3d(4, 6, 3, padding="same", padding_mode="circular", **k), (3, 4, 5)),
        (lambda m, **k: m.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, False, 2, **k), (5,)),
        (lambda m, **k: m.ConvTranspose2d(4, 6, 4, 2, 1, **k), (3, 4)),
        (lambda m, **k: m.ConvTranspose3d(4, 6, 2, (1, 2, 2), output_padding=(0, 1, 0), **k), (2, 3, 2)),
        (lambda m, **k: m.MaxPool1d(3, 2, 1, 1), (9,)),
        (lambda m, **k: m.MaxPool3d(2, ceil_mode=True), (3, 4, 5)),
        (lambda m, **k: m.AvgPool1d(3, 2, 1, True, False), (9,)),
        (lambda m, **k: m.AvgPool3d((2, 1, 3)), (3, 4, 5)),
    ],
)
def test_layers_of_other_ranks_give_what_pytorchs_give(make, size, rng, device):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    ours, theirs = device.move(make(nn, dtype=F64)), make(torch.nn, dtype=torch.float64)
    both_ways(ours, theirs, rng.standard_normal((3, 4, *size)), torch, device)


@pytest.mark.oracle
def test_float32_networks_agree_with_pytorchs(rng, device):
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
    ours, theirs = device.move(make(nn)), make(torch.nn)
    both_ways(ours, theirs, x, torch, device, rtol=1e-4, atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(
        {name: torch.tensor(device.to_numpy(value)) for name, value in ours.state_dict().items()}
    )


# --- parameters, gradients, state ------------------------------------------------------------------


def test_gradients_are_sums_over_the_batch(rng, device, ones_like):
    x = device.to_array(rng.standard_normal((2, 1, 5, 5)))
    for layer in (nn.Conv2d(1, 2, 3, dtype=F64, rng=rng), nn.Linear(5, 2, dtype=F64, rng=rng)):
        dy = ones_like(device.move(layer)(x))
        parts = []
        for i in (0, 1):
            layer(x[i : i + 1])
            layer.backward(dy[i : i + 1])
            parts.append(dict(layer.grads))
        layer(x)
        layer.backward(dy)
        for name in ("weight", "bias"):
            close(layer.grads[name], parts[0][name] + parts[1][name])


def test_in_place_edits_and_reassigned_parameters_are_both_seen(rng, device):
    layer, x = device.move(nn.Linear(3, 2, dtype=F64, rng=rng)), rng.standard_normal((4, 3))
    sums, there = x.sum(axis=1)[:, None], device.to_array(x)
    held = device.to_array(np.ones((2, 3)))
    layer.params["weight"] = held
    close(layer(there), sums * [1, 1])
    held[1] = 2
    close(layer(there), sums * [1, 2])
    layer.params["bias"] += 5
    close(layer(there), sums * [1, 2] + 5)


def test_the_dicts_stay_the_same_objects(network, images, ones_like):
    conv = network[0]
    before = conv.params, conv.grads, conv.buffers
    network.backward(ones_like(network(images)))
    network.load_state_dict(network.state_dict())
    network.eval()
    assert all(a is b for a, b in zip(before, (conv.params, conv.grads, conv.buffers), strict=True))


def test_networks_parameters_are_its_layers_own(made):
    assert list(made.params) == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]
    assert list(made.buffers) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert len(made.grads) == 0
    assert made.params["4.weight"] is made[4].params["weight"]
    new = np.zeros((3, 16), np.float32)
    made.params["4.weight"] = new
    assert made[4].params["weight"] is new
    with pytest.raises(KeyError, match=r"2\.weight"):
        made.params["2.weight"] = new
    for wrong in ("9.weight", "weight", "-1.weight", ""):
        assert wrong not in made.params


def test_nested_networks_join_the_names():
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Linear(1, 1)))
    assert list(network.params) == list(network.state_dict()) == ["1.1.weight", "1.1.bias"]
    assert network.params["1.1.bias"] is network[1][1].params["bias"]


def test_backward_twice_gives_the_same(network, images, ones_like):
    dy = ones_like(network(images))
    dx, grads = network.backward(dy), {}
    grads.update(network.grads)
    equal(network.backward(dy), dx)
    for name, grad in network.grads.items():
        equal(grad, grads[name])


def test_backward_works_in_evaluation_too(network, images, ones_like):
    network(images)
    y = network.eval()(images)
    network.backward(ones_like(y))
    assert network.grads.keys() == network.params.keys()


def test_backward_without_dx_gives_the_same_gradients_and_skips_the_rest(network, images, ones_like):
    dy = ones_like(network(images))
    network.backward(dy)
    grads = dict(network.grads)
    assert network.backward(dy, needs_dx=False) is None
    for name, grad in network.grads.items():
        equal(grad, grads[name])


def test_backward_without_dx_ends_at_the_first_layer_with_parameters(device, images, ones_like):
    class Counts(nn.ReLU):
        calls = 0

        def backward(self, dy, *, needs_dx=True):
            self.calls += 1
            return super().backward(dy)

    first, last = Counts(), Counts()
    network = device.move(nn.Sequential(first, nn.Conv2d(1, 2, 3, rng=0), last))
    network.backward(ones_like(network(images)), needs_dx=False)
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


def test_layers_with_parameters_compute_no_dx_that_nobody_needs(device, images, rng):
    for layer in (nn.Conv2d(1, 2, 3, rng=rng), nn.Linear(4, 3, rng=rng), nn.BatchNorm2d(1)):
        y = device.move(layer)(images)
        assert layer.backward(y, needs_dx=False) is None
        assert layer.grads.keys() == layer.params.keys()


def test_first_convolution_does_not_compute_dx(monkeypatch, device, images):
    conv = device.move(nn.Conv2d(1, 2, 3, rng=0))
    asked = []
    real = gpuconv.conv2d_backward

    def spy(*args, needs, **kwargs):
        asked.append(needs)
        return real(*args, needs=needs, **kwargs)

    monkeypatch.setattr(nn.Conv2d, "_gradients", staticmethod(spy))
    dy = conv(images)
    conv.backward(dy)
    conv.backward(dy, needs_dx=False)
    assert asked == [("x", "w", "b"), ("w", "b")]


def pools():
    """Return a layer of each kind of pooling."""
    pool = nn.MaxPool2d(2)
    return [
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        nn.GlobalAvgPool(),
        nn.GlobalMaxPool(keepdims=False),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveMaxPool2d(3),
        nn.AvgPool2d(2, divisor_override=3),
        nn.LPPool2d(2, 2),
        nn.Upsample(2),
        nn.Sequential(pool, nn.MaxUnpool2d(pool)),
    ]


OTHERS = [nn.Dropout(rng=0), nn.ReLU(), nn.Sigmoid(), nn.Tanh(), *pools()]


def read_only(x):
    if hasattr(x.flags, "writeable"):  # CuPy's arrays are always writeable
        x.flags.writeable = False
    return x


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_inputs_and_dy_are_never_written_to(training, network, images, ones_like):
    for layer in (network, *OTHERS):
        y = layer.train(training)(images)
        x, dy = read_only(images.copy()), read_only(ones_like(y))
        layer(x)
        layer.backward(dy)
        equal(x, images)
        assert (dy == 1).all()


def test_moving_keeps_the_state_and_forgets_the_last_pass(network, images):
    y = network(images)
    network.backward(y)
    state = network.state_dict()
    for place in ("cpu",) if isinstance(images, np.ndarray) else ("cpu", "cuda"):
        assert network.to(place) is network
        for name, array in network.state_dict().items():
            assert isinstance(array, np.ndarray) == (place == "cpu")
            equal(array, state[name])
        assert not network.grads
        with pytest.raises(RuntimeError, match="call forward first"):
            network.backward(y)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_results_live_where_the_images_do(training, network, images):
    for layer in (network, *OTHERS):
        y = layer.train(training)(images)
        arrays = y, layer.backward(y), *layer.grads.values(), *layer.state_dict().values()
        assert {type(array) for array in arrays} == {type(images)}


def test_state_survives_the_round_trip(device, network, images, rng):
    network(images)
    state = network.state_dict()
    other = copy.deepcopy(network)
    for p in other.params.values():
        p += device.to_array(rng.standard_normal(p.shape).astype(np.float32))
    other(images)
    other.load_state_dict(state)
    equal(other.eval()(images), network.eval()(images))
    assert other.buffers["1.num_batches_tracked"] == 1


def test_a_state_is_taken_from_another_device(device, network, images):
    network(images)
    state = network.state_dict()
    here = {name: device.to_numpy(array) for name, array in state.items()}
    for p in network.params.values():
        p += 1
    network.load_state_dict(here)
    assert {type(p) for p in network.params.values()} == {type(images)}
    other = nn.Sequential(*(copy.deepcopy(layer) for layer in network)).to("cpu")
    other.load_state_dict(state)
    for name, array in state.items():
        equal(network.state_dict()[name], array)
        equal(other.state_dict()[name], array)


def test_a_saved_state_does_not_change_with_the_network(network, images):
    state = network.state_dict()
    network(images)
    network.params["0.weight"] += 1
    assert not state["1.running_mean"].any()
    assert (state["0.weight"] != network.params["0.weight"]).all()


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
        equal(value, before[name])


def test_read_only_parameters_are_refused_before_a_state_is_written(made):
    made.params["4.bias"].flags.writeable = False
    before = made.state_dict()
    with pytest.raises(ValueError, match=r'"4.bias" is read-only'):
        made.load_state_dict({name: value + 1 for name, value in before.items()})
    equal(made.params["0.weight"], before["0.weight"])


def test_sequential_is_a_sequence(made):
    assert len(made) == 5
    assert [type(layer) for layer in made][-1] is nn.Linear
    assert made[-1] is made[4]
    part = made[1:3]
    assert isinstance(part, nn.Sequential)
    assert part[0] is made[1]
    with pytest.raises(IndexError):
        made[5]


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


def test_train_and_eval_reach_every_layer_and_return_the_network(made):
    assert made.eval() is made
    assert not any(layer.training for layer in (*made, *made[2]))
    assert made.train() is made
    assert all(layer.training for layer in (*made, *made[2]))


def test_a_device_is_cpu_or_cuda(made):
    assert made.to("cpu") is made
    with pytest.raises(ValueError, match='device must be "cpu" or "cuda", not \'tpu\''):
        made.to("tpu")


def test_repr_is_the_call_that_made_the_layer():
    for text in (
        "Conv2d(2, 4, kernel_size=(3, 1), padding='same', groups=2, bias=False, channels_last=True)",
        "MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)",
        "AvgPool2d(kernel_size=3, padding=1, count_include_pad=False)",
        "Conv1d(2, 4, kernel_size=3, padding=((2, 0),), padding_mode='reflect')",
        "Conv3d(2, 4, kernel_size=3, activation='relu', channels_last=True)",
        "MaxUnpool2d(MaxPool2d(kernel_size=3, stride=2))",
        "GlobalAvgPool()",
        "GlobalMaxPool(channels_last=True, keepdims=False)",
        "AdaptiveAvgPool2d(output_size=(None, 7), channels_last=True)",
        "AdaptiveMaxPool2d(output_size=None)",
        "AvgPool2d(kernel_size=2, divisor_override=1)",
        "LPPool2d(norm_type=2, kernel_size=3, stride=1, ceil_mode=True)",
        "Upsample((2, 3), channels_last=True)",
        "Linear(3, 4, bias=False)",
        "Flatten(end_dim=2)",
        "Dropout(p=0.1)",
        "BatchNorm2d(3, eps=0.001, momentum=None, affine=False, track_running_stats=True)",
        "Sigmoid()",
    ):
        assert repr(eval(text, dict(vars(nn)))) == text


# --- single layers ---------------------------------------------------------------------------------


def test_sigmoid_neither_overflows_nor_loses_small_values(device):
    x = np.array([-1e4, -700.0, -40.0, 40.0, 1e4, np.nan])
    with np.errstate(all="raise", under="ignore"):
        y = nn.Sigmoid()(device.to_array(x))
    close(y, [0, np.exp(-700.0), np.exp(-40.0), 1, 1, np.nan], atol=0)


def test_relu_passes_nan_in_both_directions(device):
    relu = nn.ReLU()
    equal(relu(device.to_array(np.array([-1.0, np.nan, 2.0]))), [0, np.nan, 2])
    equal(relu.backward(device.to_array(np.array([5.0, 3.0, np.nan]))), [0, 3, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compiled", [True, False])
def test_relu_gives_the_same_in_c_and_in_numpy(compiled, dtype):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45], dtype)
    x = np.random.default_rng(0).standard_normal(3 * 70_003).astype(dtype)  # several jobs and a tail
    x[-7:] = special
    dy = np.resize([np.inf, 2.0, np.nan, -3.0], x.shape).astype(dtype)
    relu = nn.ReLU()
    y = np.where(x <= 0, 0, x).astype(dtype)
    dx = np.where(x <= 0, 0, dy).astype(dtype)
    with gpuconv.config(compiled=compiled):
        if compiled and activations._kernels(x) is None:
            pytest.skip(f"no C kernels: {why_not()}")
        for view in (lambda a: a, lambda a: a.reshape(3, -1).T, lambda a: a[::-2], lambda a: a[1:1]):
            result = relu(view(x))
            assert result.dtype == dtype and np.array_equal(result, view(y), equal_nan=True)
            grad = relu.backward(view(dy))
            assert grad.dtype == dtype and np.array_equal(grad, view(dx), equal_nan=True)


def test_max_pool_layer_keeps_one_byte_per_window(images):
    pool = nn.MaxPool2d(2)
    pool(images)
    argmax, shape = pool._kept
    assert argmax.dtype == np.uint8
    assert shape == images.shape


def test_dropout_keeps_the_mean_and_draws_a_new_mask_each_time(device):
    dropout, x = nn.Dropout(0.8, rng=3), device.to_array(np.ones(100_000, np.float32))
    first, second = (device.to_numpy(dropout(x)) for _ in range(2))
    assert set(np.unique(first)) == {0, 5}
    assert abs(first.mean() - 1) < 0.03
    assert first.dtype == np.float32
    equal(dropout.backward(x), second)
    # Neighbours, and the same place in two masks, know nothing of each other.
    for one, other in ((first, second), (first[1:], first[:-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.015


def test_dropout_masks_are_splitmix64s_wherever_they_are_computed(device):
    # What 1234567 starts in other implementations of that generator; they leave out the first number.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    dropout = nn.Dropout(0.3)
    dropout.rng = Gives(1234567)
    y = device.to_numpy(dropout(device.to_array(np.ones(5))))
    equal(y[1:] != 0, [number / 2**64 >= 0.3 for number in known])


class Gives:
    """A generator of one number."""

    def __init__(self, value):
        self.value = value

    def integers(self, high, dtype):
        return dtype(self.value)


def test_dropout_extremes_and_evaluation(images):
    assert not nn.Dropout(1)(images).any()
    equal(nn.Dropout(0)(images), images)
    dropout = nn.Dropout(0.5).eval()
    equal(dropout(images), images)
    equal(dropout.backward(images), images)


def test_batch_norm_runs_the_statistics_of_training_batches_only(rng, device):
    x = rng.standard_normal((4, 2, 3, 3))
    norm = device.move(nn.BatchNorm2d(2, momentum=0.5, dtype=F64))
    running = norm.buffers["running_mean"]
    norm(device.to_array(x))
    close(running, x.mean(axis=(0, 2, 3)) / 2)  # written in place
    close(norm.buffers["running_var"], 0.5 + x.var(axis=(0, 2, 3), ddof=1) / 2)
    norm.eval()(device.to_array(x))
    assert norm.buffers["num_batches_tracked"] == 1


def test_batch_norm_keeps_its_digits_far_from_zero(rng, device):
    x = device.to_array(rng.standard_normal((8, 1, 9, 9)).astype(np.float32))
    far, near = (device.move(nn.BatchNorm2d(1)) for _ in range(2))
    close(far(x + 1000), near(x), atol=1e-3)


def test_batch_norm_refuses_a_single_value_per_channel():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match="a single value per channel"):
        norm(np.ones((1, 3, 1, 1)))
    assert norm.eval()(np.ones((1, 3, 1, 1))).shape == (1, 3, 1, 1)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_empty_batches_pass_through_every_layer(network, training, device):
    network.train(training)
    y = network(device.to_array(np.empty((0, 1, 4, 4), np.float32)))
    assert y.shape == (0, 3)
    assert network.backward(y).shape == (0, 1, 4, 4)
    assert not any(grad.any() for grad in network.grads.values())
    assert not network.buffers["1.running_mean"].any()
    layer = nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.Dropout(), nn.AvgPool2d(2))
    assert layer.backward(layer(device.to_array(np.empty((0, 1, 4, 4))))).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: np.dtype(d).name)
def test_a_network_stays_in_its_dtype(dtype, rng, device):
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
    x = device.to_array(rng.standard_normal((3, 1, 4, 4)).astype(dtype))
    y = device.move(network)(x)
    dx = network.backward(y)
    found = {a.dtype for a in (y, dx, *network.params.values(), *network.grads.values())}
    assert found == {np.dtype(dtype)}


def test_float16_is_summed_in_float32(device):
    def half(values):
        return device.to_array(np.asarray(values, np.float16))

    dense = device.move(nn.Linear(4096, 1, dtype=np.float16))
    dense.params["weight"] = x = half(np.ones((1, 4096)))
    assert dense(x).item() == 4096  # ones added one by one in float16 stop at 2048
    dense = device.move(nn.Linear(2, 1, dtype=np.float16))
    dense.params["weight"][:], dense.params["bias"][:] = 1, -2048
    assert dense(half([[2048, 1]])).item() == 1  # 2049 is no float16: rounded after b
    dense = device.move(nn.Linear(1, 2, dtype=np.float16))
    dense(half(np.zeros((4096, 1))))
    dense.backward(half(np.ones((4096, 2))))
    assert (dense.grads["bias"] == 4096).all()
    norm = device.move(nn.BatchNorm2d(1, dtype=np.float16))
    norm(half(np.full((1, 1, 64, 64), 1000)))
    assert norm.buffers["running_mean"].item() == 100
    norm.backward(half(np.ones((1, 1, 64, 64))))
    assert norm.grads["bias"].item() == 4096


def test_integer_images_are_promoted_as_numpy_does(device):
    image = device.to_array(np.ones((1, 1, 4, 4), np.uint8))
    assert device.move(nn.Conv2d(1, 2, 3, rng=0))(image).dtype == np.float32
    assert device.move(nn.Linear(4, 2, rng=0))(image).dtype == np.float32


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
        (
            lambda: nn.Conv2d(1, 1, 3, padding_mode="same"),
            ValueError,
            'Conv2d: padding_mode must be one of "zeros", "reflect", "replicate", "circular", not \'same\'',
        ),
        (lambda: nn.Conv2d(1, 1, 3, padding_mode=1), ValueError, 'padding_mode must be one of "zeros", .* 1'),
        (
            lambda: nn.MaxUnpool2d(2),
            TypeError,
            "MaxUnpool2d: pool must be the MaxPool2d layer to undo, not int 2",
        ),
        (lambda: nn.MaxUnpool2d(nn.MaxPool1d(2)), TypeError, "must be the MaxPool2d layer .* not MaxPool1d"),
        (lambda: nn.GlobalAvgPool(keepdims=1), TypeError, "GlobalAvgPool: keepdims must be True or False"),
        (lambda: nn.GlobalMaxPool(channels_last=1), TypeError, "GlobalMaxPool: channels_last must be True"),
        (
            lambda: nn.LPPool2d(0.5, 2),
            ValueError,
            "LPPool2d: norm_type must be a number from 1 to .*, not 0.5",
        ),
        (lambda: nn.Upsample(0), ValueError, "Upsample: scale_factor must be at least 1, not 0"),
        (
            lambda: nn.Upsample((2, 2, 2, 2)),
            ValueError,
            "Upsample: scale_factor must be an integer, or 1 to 3 of them",
        ),
        (lambda: nn.Upsample(()), ValueError, "Upsample: scale_factor must be an integer, or 1 to 3"),
        (
            lambda: nn.Upsample((2, 1.5)),
            TypeError,
            r"Upsample: scale_factor\[1\] must be an integer, not float 1.5",
        ),
        (
            lambda: nn.AvgPool2d(2, divisor_override=0),
            ValueError,
            "AvgPool2d: divisor_override must be at least 1",
        ),
        (lambda: nn.AdaptiveAvgPool2d(0), ValueError, "AdaptiveAvgPool2d: output_size must be at least 1"),
        (
            lambda: nn.AdaptiveMaxPool2d((2, 2, 2)),
            ValueError,
            "AdaptiveMaxPool2d: output_size must be an integer or 2 of them",
        ),
        (
            lambda: nn.AdaptiveAvgPool2d((None,)),
            ValueError,
            r"2 of them, one per spatial axis, not \(None,\)",
        ),
        (lambda: nn.AdaptiveAvgPool2d((None, 1.0)), TypeError, r"output_size\[1\] must be an integer, not"),
        (lambda: nn.AdaptiveAvgPool2d("7"), TypeError, "output_size must be an integer, not str '7'"),
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
    nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
    *pools(),
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


def test_relu_stops_an_infinite_gradient_where_x_is_not_positive(device):
    relu = nn.ReLU()
    relu(device.to_array(np.array([-1.0, 0.0, 1.0])))
    equal(relu.backward(device.to_array(np.array([np.inf, np.inf, 2.0]))), [0, 0, 2])
