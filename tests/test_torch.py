"""gpuconv.torch: gradients of every order, PyTorch's results, signatures and modules, no copy of a tensor."""

import copy
import inspect
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import draw, draw_transposed, in_layout, lay_out, weights_in_layout
from compare import assert_close
from conftest import BACKENDS

import gpuconv
from gpuconv import reference as define
from gpuconv.backends import cpu

torch = pytest.importorskip("torch", reason="gpuconv.torch is for PyTorch (extra `torch`)")
from torch import nn  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

import gpuconv.torch as ours  # noqa: E402

F = nn.functional

pytestmark = pytest.mark.oracle

AXES = (1, 2, 3)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])
FUNCTIONS = [name for name in ours.__all__ if name.islower() and name != "swap"]
MODULES = [name for name in ours.__all__ if not name.islower()]


@pytest.fixture(autouse=True)
def one_thread():
    """Small arrays: PyTorch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def assert_differentiable(call, tensors):
    """Check first and second derivatives against differences.

    Each element of the first; of the second, which are many, a random mean of them all.
    """
    assert gradcheck(call, tensors)
    assert gradgradcheck(call, tensors, fast_mode=True)


def wanting(x):
    """Return an array as a tensor that wants gradients."""
    return torch.tensor(x, requires_grad=True)


def drawn(*shape, dtype=np.float64):
    """Return normal random numbers, with distinct places, so that no two maxima tie."""
    rng = np.random.default_rng([*shape])
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else x).astype(dtype)


# Shapes by the number of axes, channels first: unlike along the axes, with two groups.
SIZES = {1: (5,), 2: (4, 3), 3: (3, 2, 3)}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 1, 2)}
PADDING = {1: ((2, 1),), 2: ((0, 1), (2, 1)), 3: ((1, 0), (0, 0), (1, 1))}


def convolution(name, axes, channels_last, dtype=np.float64):
    """Return a function of x, w and b, and these: with groups, strides, dilation, unlike padding."""
    options = {"stride": (2, 1, 1)[:axes], "dilation": (1, 2, 1)[:axes], "padding": PADDING[axes]}
    shape = (4, 1, *KERNEL[axes])
    c_out = 4
    if name == "conv_transpose":
        options["output_padding"] = (1, 1, 0)[:axes]  # along the second axis, dilation alone allows it
        shape, c_out = (2, 2, *KERNEL[axes]), 4
    tensors = (
        wanting(define.last(drawn(2, 2, *SIZES[axes], dtype=dtype), channels_last)),
        wanting(define.weights_last(drawn(*shape, dtype=dtype), channels_last)),
        wanting(drawn(c_out, dtype=dtype)),
    )
    function = getattr(ours, f"{name}{axes}d")

    def call(x, w, b=None):
        return function(x, w, b, groups=2, channels_last=channels_last, **options)

    return call, tensors


@LAYOUTS
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_gradients_of_convolutions_and_their_gradients(name, axes, channels_last):
    call, tensors = convolution(name, axes, channels_last)
    assert_differentiable(call, tensors)


@LAYOUTS
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_gradients_of_complex_convolutions_and_their_gradients(name, channels_last):
    call, tensors = convolution(name, 1, channels_last, np.complex128)
    assert_differentiable(call, tensors)


@pytest.mark.parametrize("real", [0, 1, 2], ids=["x", "w", "b"])
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_a_real_tensor_among_complex_ones_has_real_gradients(name, real):
    call, tensors = convolution(name, 1, False, np.complex128)
    tensors = list(tensors)
    tensors[real] = wanting(tensors[real].detach().real.numpy())
    assert_differentiable(call, tensors)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_third_derivatives_of_convolutions(name):
    call, (x, w, _) = convolution(name, 1, False)

    def gradients(x, w):
        return torch.autograd.grad((call(x, w) ** 3).sum(), (x, w), create_graph=True)

    assert gradgradcheck(gradients, (x, w))


@pytest.mark.parametrize("used", ["x", "w", "b", "xb"])
def test_second_derivatives_where_only_some_gradients_are_used(used):
    call, tensors = convolution("conv", 2, False)

    def gradients(*tensors):
        chosen = [t for t, name in zip(tensors, "xwb", strict=True) if name in used]
        return torch.autograd.grad((call(*tensors) ** 2).sum(), chosen, create_graph=True)

    assert gradcheck(gradients, tensors)


@LAYOUTS
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("max_pool", {"dilation": 2}),
        ("max_pool", {"ceil_mode": True}),
        ("avg_pool", {"count_include_pad": False}),
        ("avg_pool", {"ceil_mode": True}),
        ("avg_pool", {"divisor_override": 3}),
    ],
)
def test_gradients_of_poolings_and_their_gradients(name, options, axes, channels_last):
    x = wanting(define.last(drawn(2, 2, *(5, 4, 3)[:axes]), channels_last))
    function = getattr(ours, f"{name}{axes}d")
    padding = ((1, 0), (1, 1), (0, 1))[:axes]

    def call(x):  # windows overlap, so that one place is the maximum of several
        return function(x, 2, 1, padding, channels_last=channels_last, **options)

    assert_differentiable(call, [x])


def test_gradients_of_complex_averages():
    x = wanting(drawn(1, 2, 5, dtype=np.complex128))
    assert_differentiable(lambda x: ours.avg_pool1d(x, 2), [x])


# PyTorch's results.


def draws(make, fits, count=150, **options):
    """Yield configurations that PyTorch knows, and a source of random numbers."""
    rng = random.Random(0)
    while count:
        case = make(rng, free=True, axes=rng.choice(AXES), **options)
        symmetric = not isinstance(case.padding, str) and all(lo == hi for lo, hi in case.pads)
        if symmetric and fits(case):
            count -= 1
            yield case, rng


def compare(case, rng, name, arrays, call, oracle):
    """Compare a result and the gradients by every tensor."""
    dtype = rng.choice([np.float32, np.float64])
    arrays = [array.astype(dtype) for array in arrays]
    tensors = [torch.from_numpy(lay_out(rng, a).copy(order="K")).requires_grad_() for a in arrays]
    y = call(*tensors)
    firsts = [arrays[0], *arrays[1:]]
    if case.channels_last:
        firsts = [define.first(arrays[0], True), *(define.weights_first(w, True) for w in arrays[1:2])]
        firsts += arrays[2:]
    others = [wanting(np.ascontiguousarray(a, np.float64)) for a in firsts]
    want = oracle(*others)
    dy = drawn(*want.shape)
    want.backward(torch.from_numpy(dy))
    y.backward(torch.from_numpy(np.ascontiguousarray(in_layout(case, dy), dtype)))
    assert type(y) is torch.Tensor and y.dtype == tensors[0].dtype
    assert_close(y.detach().numpy(), in_layout(case, want.detach().numpy()))
    to = [in_layout, weights_in_layout, lambda case, b: b]
    for tensor, other, layout in zip(tensors, others, to, strict=False):
        assert tensor.grad.dtype == tensor.dtype
        assert_close(tensor.grad.numpy(), layout(case, other.grad.numpy()))


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_convolutions_are_pytorchs(name):
    make = draw if name == "conv" else draw_transposed
    for case, rng in draws(make, lambda case: case.n):
        name_here = f"{name}{len(case.kernel)}d"
        padding = tuple(lo for lo, _ in case.pads)
        window = (case.stride, padding, case.dilation, case.groups)
        if name == "conv_transpose":
            window = (case.stride, padding, case.output_padding, case.groups, case.dilation)
        compare(
            case,
            rng,
            name,
            [
                case.array("x", case.x_shape()),
                case.array("w", case.w_shape()),
                case.array("b", (case.c_out,)),
            ],
            lambda *xwb, name=name_here, window=window, last=case.channels_last: getattr(ours, name)(
                *xwb, *window, channels_last=last
            ),
            lambda *xwb, name=name_here, window=window: getattr(F, name)(*xwb, *window),
        )


def pads_at_most_half(case):
    """Tell whether PyTorch pools such a thing: padding within half the kernel, and a volume that holds it."""
    pads = [lo for lo, _ in case.pads]
    within = all(2 * p <= k for p, k in zip(pads, case.kernel, strict=True))
    return case.n and within and all(n >= k for n, k in zip(case.in_size, case.kernel, strict=True))


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_poolings_are_pytorchs(name):
    for case, rng in draws(draw, pads_at_most_half, pool=True, dilated=name == "max_pool"):
        name_here = f"{name}{len(case.kernel)}d"
        window = (case.kernel, case.stride, tuple(lo for lo, _ in case.pads))
        window += (case.dilation, case.ceil_mode) if name == "max_pool" else (case.ceil_mode, True)
        if name == "avg_pool":
            window = (*window[:-1], case.count_include_pad)
        compare(
            case,
            rng,
            name,
            [case.array("x", case.x_shape())],
            lambda x, name=name_here, window=window, last=case.channels_last: getattr(ours, name)(
                x, *window, channels_last=last
            ),
            lambda x, name=name_here, window=window: getattr(F, name)(x, *window),
        )


@LAYOUTS
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["one image", "a batch"])
def test_indices_of_maxima_are_pytorchs(axes, batch, channels_last):
    x = torch.from_numpy(drawn(*batch, 2, *(7, 6, 5)[:axes]))
    want = getattr(F, f"max_pool{axes}d")(x, 3, 2, 1, 1, False, True)
    given = x.movedim(len(batch), -1) if channels_last else x
    got = getattr(ours, f"max_pool{axes}d")(given, 3, 2, 1, 1, False, True, channels_last=channels_last)
    assert isinstance(got, tuple)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other.movedim(len(batch), -1) if channels_last else other)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_image_needs_no_batch_and_a_sequence_of_one_holds_for_every_axis(name):
    axes = int(name[-2])
    x = torch.from_numpy(drawn(4, *(7, 6, 5)[:axes])).requires_grad_()
    weights = [torch.from_numpy(drawn(4, 4, *(2, 3, 2)[:axes]))] if "conv" in name else [(2,)]
    y = getattr(ours, name)(x, *weights, stride=[2], padding=(1,))
    want = getattr(F, name)(x, *weights, stride=[2], padding=(1,))
    torch.testing.assert_close(y, want)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_batch_has_empty_gradients_in_x_and_zeros_in_w(name):
    axes = int(name[-2])
    x = torch.zeros(0, 4, *(7, 6, 5)[:axes], requires_grad=True)
    w = torch.ones(4, 4, *(2,) * axes, requires_grad=True)
    y = getattr(ours, name)(x, w if "conv" in name else 2)
    y.sum().backward()
    assert y.shape[0] == 0 and x.grad.shape == x.shape
    if "conv" in name:
        assert w.grad.shape == w.shape and not w.grad.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_have_pytorchs_names_order_and_defaults(name):
    lines = (line.strip() for line in getattr(F, name).__doc__.splitlines())
    said = next(line for line in lines if line.startswith(f"{name}("))
    theirs = inspect.signature(eval(f"lambda {said[len(name) + 1 : said.rindex(')')]}: None"))
    mine = inspect.signature(getattr(ours, name)).parameters.values()
    positional = [p.replace(annotation=p.empty) for p in mine if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs.parameters.values())


# Where tensors lie.


@pytest.fixture
def seen(monkeypatch):
    """Record the addresses of the arrays that the NumPy backend's primitives are given, by primitive."""
    record = {}
    for module in (cpu.convolution, cpu.pooling):
        for name in ("forward", "input_grad", "weight_grad", "bias_grad", "max_pool", "max_pool_backward"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, recording(record, name, getattr(module, name)))
        for name in ("avg_pool", "avg_pool_backward"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, recording(record, name, getattr(module, name)))
    return record


def recording(record, name, primitive):
    def call(*arguments):
        record[name] = [a.ctypes.data for a in arguments if isinstance(a, np.ndarray)]
        record.setdefault("calls", []).append(name)
        record["strides"] = arguments[0].strides
        return primitive(*arguments)

    return call


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_a_convolution_works_on_the_tensors_memory_and_returns_the_arrays(name, seen):
    x, w, b = torch.rand(2, 3, 6, 6), torch.rand(3, 3, 3, 3), torch.rand(3)
    parameters = [nn.Parameter(t) for t in (x, w, b)]
    primitives = ["forward", "input_grad"]
    y = getattr(ours, name)(*parameters)
    forward = primitives[name != "conv2d"]
    assert seen[forward] == [x.data_ptr(), w.data_ptr(), b.data_ptr(), y.data_ptr()]
    dy = torch.rand_like(y)
    dx, dw, db = torch.autograd.grad(y, parameters, dy)
    assert seen[primitives[name == "conv2d"]] == [dy.data_ptr(), w.data_ptr(), dx.data_ptr()]
    of_w = [dy, x] if name == "conv2d" else [x, dy]
    assert seen["weight_grad"] == [*(t.data_ptr() for t in of_w), dw.data_ptr()]
    assert seen["bias_grad"] == [dy.data_ptr(), db.data_ptr()]


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_a_pooling_works_on_the_tensors_memory_and_returns_the_arrays(name, seen):
    x = torch.rand(2, 3, 6, 6, requires_grad=True)
    y = getattr(ours, f"{name}2d")(x, 2)
    assert seen[name][:2] == [x.data_ptr(), y.data_ptr()]
    dy = torch.rand_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    addresses = seen[f"{name}_backward"]
    assert (addresses[0], addresses[-1]) == (dy.data_ptr(), dx.data_ptr())


def test_a_tensor_of_any_strides_is_seen_with_them(seen):
    x = torch.rand(2, 3, 9, 8)
    w = torch.rand(4, 3, 3, 3)
    want = F.conv2d(x, w)
    for form in (
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 3).contiguous().transpose(0, 3),
        torch.rand(2, 3, 18, 8)[:, :, ::2].copy_(x),
    ):
        assert not form.is_contiguous()
        form.requires_grad_()
        y = ours.conv2d(form, w)
        assert seen["forward"][0] == form.data_ptr()
        assert seen["strides"] == tuple(4 * step for step in form.stride())
        torch.testing.assert_close(y, want)
        y.sum().backward()  # whose dy is one number, broadcast
        torch.testing.assert_close(form.grad, torch.autograd.grad(F.conv2d(form, w).sum(), form)[0])


def test_a_tensor_that_is_conjugated_or_negated_only_in_name_is_taken_at_its_value():
    x, w = torch.from_numpy(drawn(1, 2, 6, dtype=np.complex128)), torch.from_numpy(drawn(3, 2, 2) + 0j)
    assert x.conj().is_conj() and x.conj().imag.is_neg()
    torch.testing.assert_close(ours.conv1d(x.conj(), w), F.conv1d(x.conj().resolve_conj(), w))
    torch.testing.assert_close(ours.avg_pool1d(x.conj().imag, 2), -F.avg_pool1d(x.imag, 2))


# Work that is not asked for is not done.


@pytest.mark.parametrize(
    ("wants", "calls"),
    [
        ("x", ["input_grad"]),
        ("w", ["weight_grad"]),
        ("b", ["bias_grad"]),
        ("wb", ["weight_grad", "bias_grad"]),
        ("xwb", ["input_grad", "weight_grad", "bias_grad"]),
    ],
)
def test_only_the_gradients_that_are_wanted_are_computed(wants, calls, seen):
    tensors = {"x": torch.rand(2, 3, 6, 6), "w": torch.rand(4, 3, 3, 3), "b": torch.rand(4)}
    for name in wants:
        tensors[name].requires_grad_()
    y = ours.conv2d(*tensors.values())
    assert seen.pop("calls") == ["forward"]
    y.sum().backward()
    assert seen["calls"] == calls
    assert {name for name, t in tensors.items() if t.grad is not None} == set(wants)


def test_second_derivatives_compute_only_what_is_wanted(seen):
    x, w = torch.rand(2, 3, 6, 6, requires_grad=True), torch.rand(4, 3, 3, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(ours.conv2d(x, w).sum(), x, create_graph=True)
    del seen["calls"]
    torch.autograd.grad(dx.sum(), w)
    assert seen["calls"] == ["weight_grad"]


@pytest.mark.parametrize("how", ["no gradient wanted", "no_grad", "gradient", "indices"])
def test_the_mask_of_maxima_is_computed_only_where_it_is_needed(how, monkeypatch):
    masks = []
    pool = cpu.pooling.max_pool
    monkeypatch.setattr(
        cpu.pooling, "max_pool", lambda x, y, mask, *rest: masks.append(mask) or pool(x, y, mask, *rest)
    )
    x = torch.rand(2, 3, 6, 6, requires_grad=how != "no gradient wanted")
    with torch.set_grad_enabled(how == "gradient"):
        ours.max_pool2d(x, 2, return_indices=how == "indices")
    assert (masks[0] is not None) == (how in ("gradient", "indices"))


def test_a_tensor_that_changed_since_forward_is_noticed():
    x, w = torch.rand(1, 2, 5), torch.rand(3, 2, 2, requires_grad=True)
    y = ours.conv1d(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Modules.

X = {axes: (2, 4, *(9, 8, 7)[:axes]) for axes in AXES}
MADE = [
    *(("Conv", arguments) for arguments in [(4, 6, 3), (4, 6, 3, 2, 1, 2, 2, False)]),
    *(("Conv", (4, 6, 3, 1, 1, 1, 1, True, mode)) for mode in ("reflect", "replicate", "circular")),
    *(("Conv", (4, 6, 2, 1, padding)) for padding in ("same", "valid")),
    *(("ConvTranspose", arguments) for arguments in [(4, 6, 3), (4, 6, 3, 2, 1, 1, 2, False, 2)]),
    *(
        ("MaxPool", arguments)
        for arguments in [(2,), (3, 2, 1, 1), (2, 2, 0, 2), (2, None, 0, 1, False, True)]
    ),
    *(("AvgPool", arguments) for arguments in [(2,), (3, 2, 1, True, False)]),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(("name", "arguments"), MADE)
def test_a_module_is_the_originals_twin(name, arguments, axes):
    """Constructor, state dict, representation, result and gradients."""
    original = getattr(nn, f"{name}{axes}d")(*arguments)
    twin = getattr(ours, f"{name}{axes}d")(*arguments)
    assert isinstance(twin, type(original)) and repr(twin) == repr(original)
    assert str(twin.load_state_dict(original.state_dict())) == "<All keys matched successfully>"
    twin, original = twin.double(), original.double()
    x, x1 = wanting(drawn(*X[axes])), wanting(drawn(*X[axes]))
    y, want = twin(x), original(x1)
    torch.testing.assert_close(y, want)
    dy = torch.rand_like(want)
    y.backward(dy)
    want.backward(dy)
    torch.testing.assert_close(x.grad, x1.grad)
    for mine, theirs in zip(twin.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("axes", AXES)
def test_a_transposed_module_takes_an_output_size(axes):
    original = getattr(nn, f"ConvTranspose{axes}d")(4, 6, 3, stride=2)
    twin = getattr(ours, f"ConvTranspose{axes}d")(4, 6, 3, stride=2)
    twin.load_state_dict(original.state_dict())
    x = torch.rand(X[axes])
    size = [2 * n + 2 for n in X[axes][2:]]
    torch.testing.assert_close(twin(x, output_size=size), original(x, output_size=size))
    with pytest.raises(ValueError, match="requested an output size"):
        twin(x, output_size=[1] * axes)


def test_a_max_pooling_module_returns_indices():
    x = torch.rand(2, 3, 6, 6)
    for got, want in zip(
        ours.MaxPool2d(2, return_indices=True)(x), nn.MaxPool2d(2, return_indices=True)(x), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_an_average_pooling_module_overrides_the_divisor():
    x = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(
        ours.AvgPool2d(2, divisor_override=3)(x), nn.AvgPool2d(2, divisor_override=3)(x)
    )


def network(dtype):
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding="same"), nn.Tanh(), nn.AvgPool2d(2), nn.ConvTranspose2d(6, 2, 2)),
        *(nn.Flatten(), nn.Linear(2 * 4 * 4, 3)),
    ).to(dtype)


def curve(model, optimizer, steps=15):
    """Train on fixed random images, and return the losses."""
    first = next(model.parameters())
    x = torch.from_numpy(drawn(12, 1, 12, 12)).to(first.dtype)
    target = torch.arange(12) % 3
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_a_network_that_was_swapped_trains_as_the_original(dtype, tolerance):
    original = network(dtype)
    swapped = copy.deepcopy(original)
    optimizer = torch.optim.Adam(swapped.parameters(), 0.01)  # made before: it must see the same parameters
    assert ours.swap(swapped) is swapped
    assert [type(m) for m in swapped if type(m).__name__ in MODULES] == [
        *(ours.Conv2d, ours.MaxPool2d, ours.Conv2d, ours.AvgPool2d, ours.ConvTranspose2d)
    ]
    want = curve(original, torch.optim.Adam(original.parameters(), 0.01))
    assert want[-1] < 0.8 * want[0]
    np.testing.assert_allclose(curve(swapped, optimizer), want, rtol=tolerance)
    assert swapped.state_dict().keys() == original.state_dict().keys()


def test_tensors_of_a_subclass_are_taken():
    class Picture(torch.Tensor):
        pass

    x, w = torch.rand(1, 2, 5, 5), torch.rand(3, 2, 3, 3)
    y = ours.max_pool2d(ours.conv2d(x.as_subclass(Picture), w), 2)
    assert torch.equal(y.as_subclass(torch.Tensor), ours.max_pool2d(ours.conv2d(x, w), 2))


def test_swap_keeps_hooks_and_shared_modules_and_leaves_subclasses():
    class Own(nn.Conv2d):
        pass

    shared, calls = nn.Conv2d(3, 3, 1), []
    shared.register_forward_hook(lambda *_: calls.append(1))
    model = nn.ModuleDict(
        {"a": shared, "b": nn.Sequential(shared, Own(3, 3, 1)), "lazy": nn.LazyConv2d(3, 1)}
    )
    ours.swap(model)
    assert model["a"] is shared and model["b"][0] is shared and type(shared) is ours.Conv2d
    assert type(model["b"][1]) is Own and type(model["lazy"]) is nn.LazyConv2d
    model["b"](torch.rand(1, 3, 2, 2))
    assert calls == [1]


def test_swap_takes_a_single_module():
    assert type(ours.swap(nn.MaxPool3d(2))) is ours.MaxPool3d


@pytest.mark.parametrize("name", MODULES)
def test_swap_knows_every_module(name):
    module = getattr(nn, name)(*((2, 2, 2) if "Conv" in name else (2,)))
    assert type(ours.swap(module)) is getattr(ours, name)


def test_the_compiler_leaves_the_arrays_beneath_alone(seen):
    model = nn.Sequential(ours.Conv2d(3, 4, 3), nn.ReLU(), ours.MaxPool2d(2), ours.AvgPool2d(2))
    x, compiled = torch.rand(2, 3, 10, 10), torch.compile(model, backend="eager")
    y = compiled(x)
    assert seen["forward"][:2] == [x.data_ptr(), model[0].weight.data_ptr()]
    assert seen["calls"] == ["forward", "max_pool", "avg_pool"]
    (dw,) = torch.autograd.grad(y.sum(), model[0].weight)
    torch.testing.assert_close(dw, torch.autograd.grad(model(x).sum(), model[0].weight)[0])


# Bad input.


@pytest.mark.parametrize("name", FUNCTIONS)
def test_messages_name_the_function(name):
    axes = int(name[-2])
    x = torch.rand(2, 4, *(6,) * axes)
    second = torch.rand(4, 4, *(2,) * axes) if "conv" in name else 2
    function = getattr(ours, name)
    with pytest.raises(TypeError, match=f"^{name}: input must be a tensor, not numpy.ndarray"):
        function(x.numpy(), second)
    with pytest.raises(TypeError, match=f"^{name}: x, a torch.Tensor of torch.bfloat16, "):
        function(x.bfloat16(), second)
    with pytest.raises(ValueError, match=f"^{name}: stride must be at least 1, not 0"):
        function(x, second, stride=0)
    with pytest.raises(ValueError, match=f"^{name}: (x|w) "):
        function(torch.rand(3), second)
    with pytest.raises(TypeError, match=f"^{name}: channels_last must be True or False"):
        function(x, second, channels_last=1)


@pytest.mark.parametrize(
    ("weight", "bias", "said"), [(1, None, "weight"), (torch.rand(1, 1, 1), [0.0], "bias")]
)
def test_weights_must_be_tensors(weight, bias, said):
    with pytest.raises(TypeError, match=f"conv1d: {said} must be a tensor, not builtins"):
        ours.conv1d(torch.rand(1, 1, 3), weight, bias)


def test_maxima_of_complex_numbers_are_refused():
    with pytest.raises(TypeError, match="max_pool1d: x has dtype complex64"):
        ours.max_pool1d(torch.zeros(1, 1, 4, dtype=torch.complex64), 2)


def test_float16_is_taken():
    x, w = torch.rand(2, 3, 6, 6).half().requires_grad_(), torch.rand(4, 3, 3, 3).half()
    y = ours.conv2d(x, w)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float16
    assert_close(y.detach().numpy(), F.conv2d(x.detach().float(), w.float()).numpy())


def test_without_pytorch_the_extra_is_named():
    program = """
import sys
sys.modules["torch"] = None
import gpuconv
try:
    import gpuconv.torch
except ImportError as error:
    print(error, error.name)
"""
    checkout = str(Path(gpuconv.__file__).parents[1])
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": checkout},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith("gpuconv.torch needs PyTorch, which can't be imported (")
    assert said.endswith("); pip install 'gpuconv[torch]' torch\n")


# On a GPU, of which only the order can be looked at here.


def test_on_a_gpu_cupy_works_in_pytorchs_current_stream_of_the_tensors_device(monkeypatch):
    entered = []

    @contextmanager
    def entering(*what):
        entered.append(what)
        yield
        entered.remove(what)

    cuda = SimpleNamespace(
        Device=lambda number: entering("device", number),
        Stream=SimpleNamespace(from_external=lambda stream: entering("stream", stream)),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(ours, "check_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the current one of {device.index}")
    tensor = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=1))
    with ours._current_stream(tensor):
        assert entered == [("device", 1), ("stream", "the current one of 1")]
    assert not entered


def test_every_computation_is_in_the_stream_of_its_tensors(monkeypatch):
    inside, computed = [], []

    @contextmanager
    def stream(x):
        inside.append(x.data_ptr())
        yield
        inside.pop()

    monkeypatch.setattr(ours, "_current_stream", stream)
    for name in ("conv2d", "conv2d_backward", "max_pool2d", "max_pool2d_backward", "argmax_to_indices"):
        function = getattr(gpuconv, name)

        def call(first, *rest, name=name, function=function, **options):
            assert inside == [first.data_ptr()]
            computed.append(name)
            return function(first, *rest, **options)

        monkeypatch.setattr(gpuconv, name, call)
    x = torch.rand(1, 2, 6, 6, requires_grad=True)
    y = ours.max_pool2d(ours.conv2d(x, torch.rand(2, 2, 3, 3)), 2)
    (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    dx.sum().backward()
    assert set(computed) == {
        "conv2d",
        "conv2d_backward",
        "max_pool2d",
        "max_pool2d_backward",
        "argmax_to_indices",
    }


def test_a_gpu_without_cupy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    tensor = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=0))
    with pytest.raises(RuntimeError, match="CUDA needs CuPy"), ours._current_stream(tensor):
        pass


def test_cupy_takes_the_streams_of_pytorch():
    """As far as it can be seen without a GPU: their classes know the same protocol."""
    cupy = pytest.importorskip("cupy")
    assert callable(torch.cuda.Stream.__cuda_stream__)
    default = SimpleNamespace(__cuda_stream__=lambda: (0, 0))
    assert cupy.cuda.Stream.from_external(default).ptr == 0


OFF = BACKENDS["cupy"].missing or ("" if torch.cuda.is_available() else "needs a PyTorch with CUDA")


@pytest.mark.gpu
@pytest.mark.skipif(bool(OFF), reason=OFF)
@pytest.mark.parametrize("of_its_own", [False, True], ids=["default stream", "stream of its own"])
def test_tensors_on_a_gpu_stay_there_and_give_pytorchs_results_in_their_stream(of_its_own):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32, device="cuda", dtype=torch.float64)
    w = torch.randn(8, 3, 3, 3, device="cuda", dtype=torch.float64)
    torch.cuda.synchronize()
    results = []
    for library in (ours, F):
        values = [each.clone().requires_grad_() for each in (x, w)]
        with torch.cuda.stream(torch.cuda.Stream() if of_its_own else torch.cuda.current_stream()):
            torch.cuda._sleep(10_000_000)  # what is started before this ends would read what isn't there yet
            shifted = values[0] + 1
            y = library.max_pool2d(library.conv2d(shifted, values[1], None, 2, 1), 2)
            y.square().sum().backward()
            y = y * 1
        torch.cuda.synchronize()
        results.append((y.detach(), *(each.grad for each in values)))
    for a, b in zip(*results, strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
