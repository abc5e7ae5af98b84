"""PyTorch on the CPU as an oracle, over thousands of drawn configurations of one to three spatial axes.

It computes in float64 what ours computes in the drawn dtypes; the dtype of the result sets how near it must
come. Where PyTorch has no such padding, the image is padded first, or what PyTorch doesn't leave out of a
transposed convolution is cut off after.

Each of the four operations is compared, forward and every gradient, `ROUNDS` times `DRAWS` times: NumPy's
backend in 7,200 configurations and as many again in small pieces, the kernels in 1,800 and as many again. In
a quarter of them the batch is empty.
"""

import random

import definitions as define
import numpy as np
import pytest
from cases import draw, draw_transposed, in_layout, lay_out, weights_in_layout
from compare import assert_close

import gpuconv

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here (extra `oracle`)")
F = torch.nn.functional

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

DTYPES = (np.float64, np.float32, np.float16)
AXES = (1, 2, 2, 3)
ROUNDS = range(6)
DRAWS, DRAWS_OF_KERNELS = 300, 75


@pytest.fixture(autouse=True)
def one_thread():
    """Small arrays: PyTorch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _draws(backend, number):
    """Yield a source of random numbers for each draw of a round."""
    rng = random.Random(number)
    for _ in range(DRAWS if backend.is_numpy else DRAWS_OF_KERNELS):
        yield rng


def _draw_pool(rng, **options):
    """Draw a pooling that PyTorch can do; and its padding, None where the image must be padded first."""
    while True:
        case = draw(rng, pool=True, free=rng.random() < 0.7, axes=rng.choice(AXES), **options)
        own = _own_padding(case.sliding(pool=True).pads)
        # In 3-D it refuses averages of a volume smaller than the kernel, padded or not.
        small = len(case.kernel) == 3 and any(n < k for n, k in zip(case.in_size, case.kernel, strict=True))
        if own is not None and not small and all(p <= k // 2 for p, k in zip(own, case.kernel, strict=True)):
            return case, own
        if not case.ceil_mode:  # padding first would move the end that ceil mode looks at
            return case, None


def _own_padding(pads):
    """Return the padding as PyTorch takes it, or None where it can't."""
    return tuple(p for p, _ in pads) if all(before == after for before, after in pads) else None


def _tensor(x):
    return torch.tensor(np.ascontiguousarray(x, np.float64), requires_grad=True)


def _padded(x, pads, value=0.0):
    """Pad the spatial axes, or cut where negative; PyTorch begins with the last."""
    return F.pad(x, [p for pair in reversed(pads) for p in pair], value=value)


def _public(name, case):
    return getattr(gpuconv, name.format(len(case.kernel)))


def _oracle(name, case):
    return getattr(F, name.format(len(case.kernel)))


def _compare_convolution(backend, rng, case, name, oracle):
    """Compare a result and its three gradients; each array has its own dtype and layout of memory."""
    x, w, b, dy = (
        case.array(name, shape, rng.choice(DTYPES))
        for name, shape in (
            ("x", case.x_shape()),
            ("w", case.w_shape()),
            ("b", (case.c_out,)),
            ("dy", case.y_shape()),
        )
    )
    last = case.channels_last
    x1, w1, b1 = _tensor(define.first(x, last)), _tensor(define.weights_first(w, last)), _tensor(b)
    want = oracle(x1, w1, b1)
    want.backward(torch.tensor(np.ascontiguousarray(define.first(dy, last), np.float64)))

    x0, w0, b0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, w, b, dy))
    y = _public(name, case)(x0, w0, b0, **case.conv())
    dx, dw, db = _public(f"{name}_backward", case)(dy0, x0, w0, **case.conv())
    assert y.dtype == np.result_type(x, w, b)
    assert (dx.dtype, dw.dtype, db.dtype) == (np.result_type(dy, w), np.result_type(dy, x), dy.dtype)
    assert_close(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
    assert_close(backend.to_numpy(dx), in_layout(case, x1.grad.numpy()))
    assert_close(backend.to_numpy(dw), weights_in_layout(case, w1.grad.numpy()))
    assert_close(backend.to_numpy(db), b1.grad.numpy())


@pytest.mark.parametrize("number", ROUNDS)
def test_convolution_and_its_gradients(backend, number):
    for rng in _draws(backend, number):
        case = draw(rng, free=rng.random() < 0.7, axes=rng.choice(AXES))
        pads = case.sliding().pads
        own = _own_padding(pads)
        if case.padding == "valid" or (case.padding == "same" and set(case.stride) == {1}):
            own = case.padding

        def oracle(x, w, b, case=case, own=own, pads=pads):
            image, padding = (_padded(x, pads), 0) if own is None else (x, own)
            return _oracle("conv{}d", case)(image, w, b, case.stride, padding, case.dilation, case.groups)

        _compare_convolution(backend, rng, case, "conv{}d", oracle)


@pytest.mark.parametrize("number", ROUNDS)
def test_transposed_convolution_and_its_gradients(backend, number):
    for rng in _draws(backend, number):
        case = draw_transposed(rng, free=rng.random() < 0.7, axes=rng.choice(AXES))
        own = None if isinstance(case.padding, str) else _own_padding(case.pads)

        def oracle(x, w, b, case=case, own=own):
            bias, padding = (None, 0) if own is None else (b, own)
            y = _oracle("conv_transpose{}d", case)(
                x, w, bias, case.stride, padding, case.output_padding, case.groups, case.dilation
            )
            if own is not None:
                return y
            # the places before are cut off, and after that the result has the size it has
            sliding = case.sliding()
            rest = zip(sliding.pads, sliding.out_size, y.shape[2:], strict=True)
            y = _padded(y, [(-before, size - have + before) for (before, _), size, have in rest])
            return y + b.reshape(-1, *(1,) * len(case.kernel))

        _compare_convolution(backend, rng, case, "conv_transpose{}d", oracle)


@pytest.mark.parametrize("number", ROUNDS)
def test_max_pooling_and_its_gradient(backend, number):
    for rng in _draws(backend, number):
        case, own = _draw_pool(rng)
        dtype = rng.choice(DTYPES)
        x = case.array("x", case.x_shape(), dtype, whole=rng.random() < 0.3)  # whole numbers tie
        pads = case.sliding(pool=True).pads
        x1 = _tensor(define.first(x, case.channels_last))
        image, padding = (_padded(x1, pads, -torch.inf), 0) if own is None else (x1, own)
        want, indices = _oracle("max_pool{}d", case)(
            image, case.kernel, case.stride, padding, case.dilation, case.ceil_mode, return_indices=True
        )
        indices = indices.numpy()
        if own is None:  # from the padded plane's numbering to that of x
            places = np.unravel_index(indices, image.shape[2:])
            places = [place - before for place, (before, _) in zip(places, pads, strict=True)]
            indices = np.ravel_multi_index(places, case.in_size)
        dy = case.array("dy", case.y_shape(pool=True), dtype)
        want.backward(torch.tensor(np.ascontiguousarray(define.first(dy, case.channels_last), np.float64)))

        x0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
        y, argmax = _public("max_pool{}d", case)(x0, case.kernel, **case.pool())
        given = (case.x_shape(), case.kernel)
        dx = _public("max_pool{}d_backward", case)(dy0, argmax, *given, **case.pool())
        got = gpuconv.argmax_to_indices(argmax, *given, **case.pool())
        np.testing.assert_array_equal(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        np.testing.assert_array_equal(backend.to_numpy(got), in_layout(case, indices))
        assert_close(backend.to_numpy(dx), in_layout(case, x1.grad.numpy()))


@pytest.mark.parametrize("number", ROUNDS)
def test_average_pooling_and_its_gradient(backend, number):
    for rng in _draws(backend, number):
        case, own = _draw_pool(rng, dilated=False)  # PyTorch's can't dilate
        dtype = rng.choice(DTYPES)
        x, dy = (
            case.array(name, shape, dtype)
            for name, shape in (("x", case.x_shape()), ("dy", case.y_shape(pool=True)))
        )
        pool, x1 = _oracle("avg_pool{}d", case), _tensor(define.first(x, case.channels_last))
        if own is not None:
            want = pool(x1, case.kernel, case.stride, own, case.ceil_mode, case.count_include_pad)
        else:
            pads = case.sliding(pool=True).pads
            want = pool(_padded(x1, pads), case.kernel, case.stride)
            if not case.count_include_pad:
                want = want / pool(_padded(torch.ones_like(x1), pads), case.kernel, case.stride)
        want.backward(torch.tensor(np.ascontiguousarray(define.first(dy, case.channels_last), np.float64)))

        options = {**case.pool(), "count_include_pad": case.count_include_pad}
        x0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
        y = _public("avg_pool{}d", case)(x0, case.kernel, **options)
        dx = _public("avg_pool{}d_backward", case)(dy0, case.x_shape(), case.kernel, **options)
        assert_close(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        assert_close(backend.to_numpy(dx), in_layout(case, x1.grad.numpy()))


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
    x1, w1 = _tensor(x), _tensor(w)
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
