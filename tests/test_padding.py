"""Convolution layers whose padding is taken from x: the definition, the adjoint, PyTorch, wrong arguments."""

import random
from dataclasses import replace

import numpy as np
import pytest
from anywhere import close, equal
from cases import draw, in_layout, lay_out, weights_in_layout
from compare import assert_close
from hypothesis import given
from hypothesis import strategies as st

from gpuconv import nn
from gpuconv import reference as define
from gpuconv.nn.padding import pad, pad_backward

F64 = np.float64
MODES = ("reflect", "replicate", "circular")
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

randoms = st.randoms(use_true_random=False)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def torch():
    """PyTorch with one thread, as for small arrays its threads would only wait for each other."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


def sources(n, before, after, mode):
    """Return, for each place of the padded axis, which place of x it copies: the definition."""
    places = range(-before, n + after)
    if mode == "replicate":
        return [min(max(i, 0), n - 1) for i in places]
    if mode == "circular":
        return [i % n for i in places]
    return [abs(i) if i < n else 2 * (n - 1) - i for i in places]


def draw_pads(rng, mode):
    """Draw a shape of one to five axes, some of them padded, and how much."""
    shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 5)))
    most = {"reflect": -1, "replicate": 4, "circular": 0}[mode]
    return shape, tuple((rng.randint(0, n + most), rng.randint(0, n + most)) for n in shape)


@pytest.mark.parametrize("mode", MODES)
@given(rng=randoms)
def test_padded_places_are_copies_of_those_that_the_definition_names(mode, rng):
    shape, pads = draw_pads(rng, mode)
    x = lay_out(rng, np.random.default_rng(0).standard_normal(shape))
    index = [sources(n, *around, mode) for n, around in zip(shape, pads, strict=True)]
    equal(pad(x, pads, mode), x[np.ix_(*index)])


@pytest.mark.parametrize("mode", MODES)
@given(rng=randoms)
def test_padding_gradient_is_the_adjoint(mode, rng):
    shape, pads = draw_pads(rng, mode)
    numbers = np.random.default_rng(rng.randrange(2**32))
    x = numbers.standard_normal(shape)
    dy = lay_out(
        rng, numbers.standard_normal([n + sum(around) for n, around in zip(shape, pads, strict=True)])
    )
    dx = pad_backward(dy, pads, mode)
    assert dx.shape == shape
    scale = float(abs(dy).sum()) + 1
    assert float((pad(x, pads, mode) * dy).sum()) == pytest.approx(float((x * dx).sum()), abs=1e-12 * scale)


def test_padding_gradient_of_float16_is_summed_in_float32():
    dy = np.ones(4096, np.float16)  # ones added one by one in float16 stop at 2048
    dx = pad_backward(dy, ((2048, 2047),), "replicate")
    assert dx.dtype == np.float16
    assert dx.item() == 4096
    dy = np.array([0.0004, 1, 0.0004], np.float16)  # each too small to change the one
    assert pad_backward(dy, ((1, 1),), "circular").item() == np.float16(1.0008) > 1


def draw_conv(rng, mode, axes):
    """Draw a configuration whose images are large enough for its padding, often only just."""
    case = draw(rng, free=True, axes=axes)
    if isinstance(case.padding, str):
        least = [(k - 1) * d + 1 for k, d in zip(case.kernel, case.dilation, strict=True)]
    else:
        least = [max(around) + (mode == "reflect") for around in case.pads]
    if mode == "replicate":
        return case
    return replace(case, in_size=tuple(max(n, m) for n, m in zip(case.in_size, least, strict=True)))


def made(case, mode, bias=True, dtype=F64):
    """Return the layer that a case describes."""
    return CONVS[len(case.kernel)](
        *(case.c_in, case.c_out, case.kernel, case.stride, case.padding, case.dilation, case.groups, bias),
        padding_mode=mode,
        channels_last=case.channels_last,
        dtype=dtype,
        rng=case.seed,
    )


@pytest.mark.oracle
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", CONVS)
def test_convolutions_with_every_padding_give_what_pytorchs_give(axes, mode, device, torch):
    rng = random.Random(f"{axes} {mode}")
    for i in range(60 if device.is_numpy else 12):
        case = draw_conv(rng, mode, axes)
        dtype = (np.float64, np.float32, np.float16)[i % 3]
        layer = device.move(made(case, mode, bool(i % 4), dtype))
        x = case.array("x", case.x_shape(), dtype)
        y = layer(lay_out(rng, device.to_array(x)))
        dy = case.array("dy", y.shape, dtype)
        there = lay_out(rng, device.to_array(dy))
        dx = layer.backward(there)
        assert {dtype} == {a.dtype.type for a in (y, dx, *layer.grads.values())}
        equal(layer.backward(there), dx)

        w = device.to_numpy(layer.params["weight"])
        tx, tw = (
            torch.tensor(np.ascontiguousarray(a, F64), requires_grad=True)
            for a in (define.first(x, case.channels_last), define.weights_first(w, case.channels_last))
        )
        borders = [places for around in reversed(case.sliding().pads) for places in around]
        padded = torch.nn.functional.pad(tx, borders, mode)
        convolve = getattr(torch.nn.functional, f"conv{axes}d")
        ty = convolve(padded, tw, None, case.stride, 0, case.dilation, case.groups)
        ty.backward(torch.tensor(np.ascontiguousarray(define.first(dy, case.channels_last), F64)))
        assert_close(device.to_numpy(y), in_layout(case, ty.detach().numpy()))
        assert_close(device.to_numpy(dx), in_layout(case, tx.grad.numpy()))
        assert_close(device.to_numpy(layer.grads["weight"]), weights_in_layout(case, tw.grad.numpy()))


def test_padding_taken_from_x_makes_a_constant_image_constant(device):
    x = device.to_array(np.full((2, 1, 5, 6), 3.0))
    for mode in MODES:
        layer = device.move(nn.Conv2d(1, 2, 5, padding=((4, 1), (0, 3)), padding_mode=mode, dtype=F64, rng=0))
        y = device.to_numpy(layer(x))
        close(y, np.broadcast_to(y[:1, :, :1, :1], y.shape))


def test_circular_convolution_moves_with_the_image(rng, device):
    layer = device.move(nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular", dtype=F64, rng=0))
    x = rng.standard_normal((2, 2, 9))
    y = device.to_numpy(layer(device.to_array(x)))
    close(layer(device.to_array(np.roll(x, 2, axis=-1))), np.roll(y, 2, axis=-1))


def test_no_padding_is_no_padding_in_every_mode(rng, monkeypatch):
    monkeypatch.setattr("gpuconv.nn.convolution.pad", None)  # nothing is copied, either
    x = rng.standard_normal((2, 1, 5, 6))
    want = nn.Conv2d(1, 2, 3, dtype=F64, rng=0)(x)
    for mode in MODES:
        for padding in (0, "valid", ((0, 0), (0, 0))):
            equal(nn.Conv2d(1, 2, 3, padding=padding, padding_mode=mode, dtype=F64, rng=0)(x), want)


def test_same_padding_follows_weights_of_another_size(rng):
    layer = nn.Conv2d(1, 2, 3, padding="same", padding_mode="reflect", dtype=F64)
    layer.params["weight"] = rng.standard_normal((2, 1, 5, 1))
    assert layer(np.ones((1, 1, 6, 7))).shape == (1, 2, 6, 7)


def test_padding_modes_have_the_same_states(rng):
    x = rng.standard_normal((2, 3, 5, 6))
    one, other = (nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular", dtype=F64, rng=s) for s in (1, 2))
    other.load_state_dict(one.state_dict())
    equal(other(x), one(x))
    zeros = nn.Conv2d(3, 4, 3, padding=2, dtype=F64)
    zeros.load_state_dict(one.state_dict())
    assert (zeros(x) != one(x)).any()


@pytest.mark.parametrize(
    "mode, padding, message",
    [
        (
            "reflect",
            (1, 5),
            r"Conv2d: padding along spatial axis 1 is 5 \+ 5, but with padding_mode",
        ),
        ("reflect", ((0, 4), (0, 0)), r"axis 0 is 0 \+ 4, .* x's 4 places give at most 3 on each side"),
        ("circular", ((5, 0), (0, 0)), r"axis 0 is 5 \+ 0, .* x's 4 places give at most 4 on each side"),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
def test_images_too_small_for_their_padding_are_refused(mode, padding, message, channels_last):
    layer = nn.Conv2d(1, 1, 3, padding=padding, padding_mode=mode, channels_last=channels_last)
    with pytest.raises(ValueError, match=message):
        layer(np.ones((1, 4, 5, 1) if channels_last else (1, 1, 4, 5)))


@pytest.mark.parametrize(
    "x, error, message",
    [
        ([[1.0]], TypeError, "Conv2d: x must be a NumPy or CuPy array, not builtins.list"),
        (np.ones((1, 4, 4)), ValueError, r"conv2d: x must have 4 axes \[N, C, H, W\], not 3"),
        (np.ones((1, 3, 9, 4)), ValueError, "x has 3 channels and groups=1"),
        (
            np.ones((1, 1, 2, 4)),
            ValueError,
            r"Conv2d: the kernel of weight \(9, 1\) .* the 2 of x plus 1 \+ 1",
        ),
        (np.ones((1, 1, 0, 4)), ValueError, "Conv2d: x has no places along spatial axis 0"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_every_mode(x, error, message):
    for mode in MODES:
        with pytest.raises(error, match=message):
            nn.Conv2d(1, 1, (9, 1), padding=1, padding_mode=mode)(x)


def test_transposed_convolutions_have_no_padding_mode():
    with pytest.raises(TypeError, match="padding_mode"):
        nn.ConvTranspose2d(1, 1, 3, padding_mode="zeros")
