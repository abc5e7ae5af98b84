"""PyTorch on the CPU as an oracle, over thousands of drawn configurations.

It computes in float64 what ours computes in the drawn dtypes; the dtype of the result sets how near it must
come. Where PyTorch has no such padding, the image is padded first.
"""

import random

import definitions as define
import numpy as np
import pytest
from cases import draw, in_layout, lay_out, weights_in_layout
from compare import assert_close

import gpuconv

torch = pytest.importorskip("torch", reason="PyTorch is the oracle here (extra `oracle`)")
F = torch.nn.functional

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

DTYPES = (np.float64, np.float32, np.float16)
ROUNDS, DRAWS = range(6), 250


@pytest.fixture(autouse=True)
def one_thread():
    """Small arrays: PyTorch's threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _tensor(x):
    return torch.tensor(np.ascontiguousarray(x, np.float64), requires_grad=True)


def _padded(x, pads, value=0.0):
    (top, bottom), (left, right) = pads
    return F.pad(x, (left, right, top, bottom), value=value)


def _own_padding(case):
    """Return the padding as PyTorch takes it, or None where it can't."""
    pads = case.sliding().pads
    return tuple(p for p, _ in pads) if all(before == after for before, after in pads) else None


def _half_a_kernel_at_most(padding, kernel):
    return all(p <= k // 2 for p, k in zip(padding, kernel, strict=True))


@pytest.mark.parametrize("number", ROUNDS)
def test_convolution_and_its_gradients(backend, number):
    rng = random.Random(number)
    for _ in range(DRAWS):
        case = draw(rng, free=rng.random() < 0.7)
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
        x1, w1 = _tensor(define.first(x, last)), _tensor(define.weights_first(w, last))
        b1, dy1 = _tensor(b), torch.tensor(np.ascontiguousarray(define.first(dy, last), np.float64))
        own = _own_padding(case)
        if case.padding == "valid" or (case.padding == "same" and case.stride == (1, 1)):
            own = case.padding
        image, padding = (_padded(x1, case.sliding().pads), 0) if own is None else (x1, own)
        want = F.conv2d(image, w1, b1, case.stride, padding, case.dilation, case.groups)
        want.backward(dy1)

        x0, w0, b0, dy0 = (lay_out(rng, backend.to_array(a)) for a in (x, w, b, dy))
        y = gpuconv.conv2d(x0, w0, b0, **case.conv())
        dx, dw, db = gpuconv.conv2d_backward(dy0, x0, w0, **case.conv())
        assert y.dtype == np.result_type(x, w, b)
        assert (dx.dtype, dw.dtype) == (np.result_type(dy, w), np.result_type(dy, x))
        assert_close(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        assert_close(backend.to_numpy(dx), in_layout(case, x1.grad.numpy()))
        assert_close(backend.to_numpy(dw), weights_in_layout(case, w1.grad.numpy()))
        assert_close(backend.to_numpy(db), b1.grad.numpy())


@pytest.mark.parametrize("number", ROUNDS)
def test_max_pooling_and_its_gradient(backend, number):
    rng = random.Random(number)
    for _ in range(DRAWS):
        case = draw(rng, pool=True, free=rng.random() < 0.7)
        dtype = rng.choice(DTYPES)
        x = case.array("x", case.x_shape(), dtype, whole=rng.random() < 0.3)  # whole numbers tie
        sliding = case.sliding(pool=True)
        own = _own_padding(case)
        if own is None or not _half_a_kernel_at_most(own, case.kernel):
            if case.ceil_mode:
                continue  # padding first would move the end that ceil mode looks at
            own = None
        x1 = _tensor(define.first(x, case.channels_last))
        image, padding = (_padded(x1, sliding.pads, -torch.inf), 0) if own is None else (x1, own)
        want, indices = F.max_pool2d(
            image, case.kernel, case.stride, padding, case.dilation, case.ceil_mode, return_indices=True
        )
        if own is None:  # from the padded plane's numbering to that of x
            (top, _), (left, _) = sliding.pads
            rows, columns = np.divmod(indices.numpy(), image.shape[3])
            indices = (rows - top) * case.in_size[1] + columns - left
        else:
            indices = indices.numpy()
        dy = case.array("dy", case.y_shape(pool=True), dtype)
        want.backward(torch.tensor(np.ascontiguousarray(define.first(dy, case.channels_last), np.float64)))

        y, argmax = gpuconv.max_pool2d(lay_out(rng, backend.to_array(x)), case.kernel, **case.pool())
        dx = gpuconv.max_pool2d_backward(
            lay_out(rng, backend.to_array(dy)), argmax, case.x_shape(), case.kernel, **case.pool()
        )
        got = gpuconv.argmax_to_indices(argmax, case.x_shape(), case.kernel, **case.pool())
        np.testing.assert_array_equal(backend.to_numpy(y), in_layout(case, want.detach().numpy()))
        np.testing.assert_array_equal(backend.to_numpy(got), in_layout(case, indices))
        assert_close(backend.to_numpy(dx), in_layout(case, x1.grad.numpy()))


@pytest.mark.parametrize("number", ROUNDS)
def test_average_pooling_and_its_gradient(backend, number):
    rng = random.Random(number)
    for _ in range(DRAWS):
        case = draw(rng, pool=True, free=rng.random() < 0.7, dilated=False)  # PyTorch's can't dilate
        dtype = rng.choice(DTYPES)
        x, dy = (
            case.array(name, shape, dtype)
            for name, shape in (("x", case.x_shape()), ("dy", case.y_shape(pool=True)))
        )
        own = _own_padding(case)
        x1 = _tensor(define.first(x, case.channels_last))
        if own is not None and _half_a_kernel_at_most(own, case.kernel):
            want = F.avg_pool2d(x1, case.kernel, case.stride, own, case.ceil_mode, case.count_include_pad)
        elif case.ceil_mode:
            continue  # padding first would move the end that ceil mode looks at
        else:
            pads = case.sliding(pool=True).pads
            want = F.avg_pool2d(_padded(x1, pads), case.kernel, case.stride)
            if not case.count_include_pad:
                want = want / F.avg_pool2d(_padded(torch.ones_like(x1), pads), case.kernel, case.stride)
        want.backward(torch.tensor(np.ascontiguousarray(define.first(dy, case.channels_last), np.float64)))

        options = {**case.pool(), "count_include_pad": case.count_include_pad}
        y = gpuconv.avg_pool2d(lay_out(rng, backend.to_array(x)), case.kernel, **options)
        dx = gpuconv.avg_pool2d_backward(
            lay_out(rng, backend.to_array(dy)), case.x_shape(), case.kernel, **options
        )
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
