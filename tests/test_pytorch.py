"""PyTorch on the CPU as an oracle: convolution, plain and transposed, of one to three spatial axes.

Where PyTorch has no such padding, the image is padded first, or what PyTorch doesn't leave out of a
transposed convolution is cut off after.

Result and gradients of both are compared in 6 rounds of `DRAWS`: on NumPy's backend in 2,880 configurations
and as many again in small pieces, on the kernels in 720 and as many again; pooling (test_pytorch_pooling.py)
adds 3,720 and 930. In an eighth of them the batch is empty, in a quarter images are as small as they can be.
"""

import random

import numpy as np
import pytest
from cases import draw, draw_transposed, in_layout, lay_out, weights_in_layout
from compare import assert_close
from oracle import (
    AXES,
    COMPLEX,
    FLOATS,
    INTEGERS,
    ROUNDS,
    F,
    backward,
    draws,
    images,
    ours,
    own_padding,
    padded,
    tensor,
    theirs,
    torch,
)

import gpuconv
from gpuconv import reference as define

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

DRAWS = 240


def _draw_dtypes(rng):
    """Draw dtypes of x, w, b and dy, seldom all the same, that promote to dtypes of results."""
    choices = {
        "one": [rng.choice([*FLOATS, *COMPLEX])],
        "floats": FLOATS,
        "integers too": [*FLOATS, *INTEGERS],
        "complex too": [*FLOATS, *COMPLEX, *COMPLEX, rng.choice(INTEGERS)],
    }[rng.choice(["one", "floats", "integers too", "complex too"])]
    while True:
        x, w, b, dy = dtypes = [np.dtype(rng.choice(choices)) for _ in range(4)]
        y = np.result_type(x, w, b)
        results = [y, np.result_type(dy, w), np.result_type(dy, x), dy]
        # dy is complex where y is; but it may be real there too, as anyone's may who sums real parts
        if all(r.kind in "fc" for r in results) and (dy.kind == "f" or y.kind == "c"):
            return dtypes


CORNERS = {
    "one spatial axis": lambda c: len(c.kernel) == 1,
    "three spatial axes": lambda c: len(c.kernel) == 3,
    "channels last": lambda c: c.channels_last,
    "groups": lambda c: 1 < c.groups < c.c_in,
    "depthwise": lambda c: 1 < c.groups == c.c_in,
    "dilation": lambda c: any(k > 1 < d for k, d in zip(c.kernel, c.dilation, strict=True)),
    "stride": lambda c: max(c.stride) > 1,
    "a stride beyond the kernel": lambda c: any(s > k for s, k in zip(c.stride, c.kernel, strict=True)),
    "a word as padding": lambda c: isinstance(c.padding, str),
    "unlike paddings": lambda c: own_padding(c.sliding().pads) is None,
    "padding larger than the kernel": lambda c: any(
        max(pads) > k for pads, k in zip(c.sliding().pads, c.kernel, strict=True)
    ),
    "sizes that don't divide": lambda c: any(
        (n + sum(pads) - (k - 1) * d - 1) % s
        for n, pads, k, d, s in zip(c.in_size, c.sliding().pads, c.kernel, c.dilation, c.stride, strict=True)
    ),
    "batch 0": lambda c: c.n == 0,
    "one channel": lambda c: c.c_in == 1,
    "1x1 images": lambda c: len(c.in_size) > 1 and max(c.in_size) == 1,
}


def test_the_draws_reach_every_corner():
    rng = random.Random(0)
    cases = [draw(rng, free=rng.random() < 0.7, axes=rng.choice(AXES)) for _ in range(1000)]
    counts = {corner: sum(map(lies_there, cases)) for corner, lies_there in CORNERS.items()}
    dtypes = [_draw_dtypes(rng) for _ in range(1000)]
    counts["mixtures of dtypes"] = sum(len(set(some)) > 1 for some in dtypes)
    counts |= {kind: sum(any(d.kind == kind for d in some) for some in dtypes) for kind in "biufc"}
    assert min(counts.values()) >= 40, counts


def _compare(backend, rng, case, name, oracle):
    """Compare a result and its three gradients; each array has its own dtype and layout of memory."""
    shapes = {"x": case.x_shape(), "w": case.w_shape(), "b": (case.c_out,), "dy": case.y_shape()}
    x, w, b, dy = (
        case.array(name, shape, dtype)
        for (name, shape), dtype in zip(shapes.items(), _draw_dtypes(rng), strict=True)
    )
    flip = rng.random() < 0.25
    dtype, wide = np.result_type(x, w, b), np.result_type(x, w, b, np.float64)
    leaves = images(case, x), tensor(define.weights_first(w, case.channels_last)), tensor(b.astype(wide))
    x1, w1, b1 = (a.to(leaves[2].dtype) for a in leaves)
    want = oracle(x1, w1.flip(tuple(range(2, w1.ndim))) if flip else w1, b1)
    backward(want, dy, case.channels_last)
    gradients = [a.grad.numpy() for a in leaves]

    x0, w0, b0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, w, b, dy))
    y = ours(name, case)(x0, w0, b0, **case.conv(), flip=flip)
    dx, dw, db = ours(f"{name}_backward", case)(dy0, x0, w0, **case.conv(), flip=flip)
    assert y.dtype == dtype
    assert dx.dtype == _gradient_dtype(x, dy, w)
    assert dw.dtype == _gradient_dtype(w, dy, x)
    assert db.dtype == dy.dtype
    assert_close(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
    assert_close(backend.to_numpy(dx), in_layout(case, gradients[0]))
    assert_close(backend.to_numpy(dw), weights_in_layout(case, gradients[1]))
    assert_close(backend.to_numpy(db), gradients[2])


def _gradient_dtype(by, *arrays):
    """Return the dtype that the others promote to; of a real array, that of a real part."""
    dtype = np.result_type(*arrays)
    return dtype if by.dtype.kind == "c" else np.empty(0, dtype).real.dtype


@pytest.mark.parametrize("number", ROUNDS)
def test_convolution_and_its_gradients(backend, number):
    for rng in draws(backend, number, DRAWS):
        case = draw(rng, free=rng.random() < 0.7, axes=rng.choice(AXES))
        pads = case.sliding().pads
        own = own_padding(pads)
        if case.padding == "valid" or (case.padding == "same" and set(case.stride) == {1}):
            own = case.padding

        def oracle(x, w, b, case=case, own=own, pads=pads):
            image, padding = (padded(x, pads), 0) if own is None else (x, own)
            return theirs("conv{}d", case)(image, w, b, case.stride, padding, case.dilation, case.groups)

        _compare(backend, rng, case, "conv{}d", oracle)


@pytest.mark.parametrize("number", ROUNDS)
def test_transposed_convolution_and_its_gradients(backend, number):
    for rng in draws(backend, number, DRAWS):
        case = draw_transposed(rng, free=rng.random() < 0.7, axes=rng.choice(AXES))
        own = None if isinstance(case.padding, str) else own_padding(case.pads)

        def oracle(x, w, b, case=case, own=own):
            bias, padding = (None, 0) if own is None else (b, own)
            y = theirs("conv_transpose{}d", case)(
                x, w, bias, case.stride, padding, case.output_padding, case.groups, case.dilation
            )
            if own is not None:
                return y
            # the places before are cut off, and after that the result has the size it has
            sliding = case.sliding()
            rest = zip(sliding.pads, sliding.out_size, y.shape[2:], strict=True)
            y = padded(y, [(-before, size - have + before) for (before, _), size, have in rest])
            return y + b.reshape(-1, *(1,) * len(case.kernel))

        _compare(backend, rng, case, "conv_transpose{}d", oracle)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((4, 64, 28, 28), (64, 64, 3, 3), {"padding": 1}),
        ((4, 64, 28, 28), (128, 64, 1, 1), {"stride": 2}),
        ((4, 3, 64, 64), (32, 3, 7, 7), {"stride": 2, "padding": 3}),
        ((4, 96, 28, 28), (96, 1, 3, 3), {"padding": 1, "groups": 96}),
        ((4, 96, 28, 28), (96, 1, 5, 5), {"padding": 2, "stride": 2, "groups": 96}),
        ((4, 64, 28, 28), (64, 4, 3, 3), {"padding": 2, "dilation": 2, "groups": 16}),
        ((4, 128, 14, 14), (16, 128, 3, 3), {"padding": 1}),
    ],
)
def test_layers_large_enough_for_threads_and_blocks(x_shape, w_shape, options, channels_last):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    x1, w1 = tensor(x), tensor(w)
    want = F.conv2d(x1, w1, **options)
    dy = rng.standard_normal(want.shape, np.float32)
    want.backward(torch.tensor(dy, dtype=torch.float64))
    x, dy = (np.ascontiguousarray(define.last(a, channels_last)) for a in (x, dy))
    w = np.ascontiguousarray(define.weights_last(w, channels_last))
    y = gpuconv.conv2d(x, w, channels_last=channels_last, **options)
    dx, dw, db = gpuconv.conv2d_backward(dy, x, w, channels_last=channels_last, **options)
    # float32 alone: sums of up to 100,000 terms
    assert_close(y, define.last(want.detach().numpy(), channels_last), 1e-5)
    assert_close(dx, define.last(x1.grad.numpy(), channels_last), 1e-5)
    assert_close(dw, define.weights_last(w1.grad.numpy(), channels_last), 1e-5)
    assert_close(db, define.first(dy, channels_last).sum(axis=(0, 2, 3), dtype=np.float64), 1e-5)
