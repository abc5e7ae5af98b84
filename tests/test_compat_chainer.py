"""`gpuconv.compat.chainer` beside Chainer's definitions, which are written out here in plain NumPy."""

import numpy as np
import pytest
from anywhere import close, equal
from host import compiler, cupy_stand_in

import gpuconv
from gpuconv.compat import chainer


class Plain:
    """What Chainer's functions are, over columns; a pad of stride - 1 more places after makes cover_all."""

    @staticmethod
    def windows(size, k, s, p, cover_all, d=1):
        """Count windows one by one: whole ones, and with cover_all more until the last place is read."""
        count, reach = 0, (k - 1) * d + 1
        while count * s + reach <= size + 2 * p:
            count += 1
        if cover_all and (count == 0 or (count - 1) * s + reach < size + 2 * p):
            count += 1
        return count

    @staticmethod
    def im2col_cpu(img, kh, kw, sy, sx, ph, pw, pval=0, cover_all=False, dy=1, dx=1):
        n, c, h, w = img.shape
        oh, ow = Plain.windows(h, kh, sy, ph, cover_all, dy), Plain.windows(w, kw, sx, pw, cover_all, dx)
        padded = np.full((n, c, h + 2 * ph + sy, w + 2 * pw + sx), pval, img.dtype)
        padded[:, :, ph : ph + h, pw : pw + w] = img
        col = np.empty((n, c, kh, kw, oh, ow), img.dtype)
        for i, j, p, q in np.ndindex(kh, kw, oh, ow):
            col[:, :, i, j, p, q] = padded[:, :, p * sy + i * dy, q * sx + j * dx]
        return col

    @staticmethod
    def col2im_cpu(col, sy, sx, ph, pw, h, w, dy=1, dx=1):
        n, c, kh, kw, oh, ow = col.shape
        padded = np.zeros((n, c, h + 2 * ph + sy, w + 2 * pw + sx), col.dtype)
        for i, j, p, q in np.ndindex(kh, kw, oh, ow):
            padded[:, :, p * sy + i * dy, q * sx + j * dx] += col[:, :, i, j, p, q]
        return padded[:, :, ph : ph + h, pw : pw + w]

    @staticmethod
    def convolution_2d(x, W, b=None, stride=1, pad=0, cover_all=False, *, dilate=1):
        col = Plain.im2col_cpu(x, *W.shape[2:], stride, stride, pad, pad, 0, cover_all, dilate, dilate)
        y = np.einsum("ncijpq,fcij->nfpq", col, W)
        return y if b is None else y + b.reshape(1, -1, 1, 1)

    @staticmethod
    def deconvolution_2d(x, W, b=None, stride=1, pad=0, outsize=None, *, dilate=1):
        if outsize is None:
            outsize = (
                stride * (n - 1) + dilate * (k - 1) + 1 - 2 * pad
                for n, k in zip(x.shape[2:], W.shape[2:], strict=True)
            )
        col = np.einsum("ncpq,cfij->nfijpq", x, W)
        y = Plain.col2im_cpu(col, stride, stride, pad, pad, *outsize, dilate, dilate)
        return y if b is None else y + b.reshape(1, -1, 1, 1)

    @staticmethod
    def max_pooling_2d(x, ksize, stride=None, pad=0, cover_all=True, return_indices=False):
        stride = ksize if stride is None else stride
        col = Plain.im2col_cpu(x, ksize, ksize, stride, stride, pad, pad, -np.inf, cover_all)
        n, c, _, _, oh, ow = col.shape
        col = col.reshape(n, c, -1, oh, ow)
        return (col.max(axis=2), col.argmax(axis=2)) if return_indices else col.max(axis=2)

    @staticmethod
    def average_pooling_2d(x, ksize, stride=None, pad=0):
        stride = ksize if stride is None else stride
        return Plain.im2col_cpu(x, ksize, ksize, stride, stride, pad, pad).mean(axis=(2, 3))

    @staticmethod
    def spread(col, ksize, stride, pad, outsize, cover_all):
        stride, sizes = ksize if stride is None else stride, col.shape[-2:]
        if outsize is None:
            outsize = (stride * (n - 1) + ksize - 2 * pad - (stride - 1) * cover_all for n in sizes)
        return Plain.col2im_cpu(col, stride, stride, pad, pad, *outsize)

    @staticmethod
    def unpooling_2d(x, ksize, stride=None, pad=0, outsize=None, cover_all=True):
        col = np.broadcast_to(x[:, :, None, None], (*x.shape[:2], ksize, ksize, *x.shape[2:]))
        return Plain.spread(col, ksize, stride, pad, outsize, cover_all)

    @staticmethod
    def upsampling_2d(x, indexes, ksize, stride=None, pad=0, outsize=None, cover_all=True):
        n, c, oh, ow = x.shape
        col = np.where(np.arange(ksize**2).reshape(-1, 1, 1) == indexes[:, :, None], x[:, :, None], 0)
        return Plain.spread(col.reshape(n, c, ksize, ksize, oh, ow), ksize, stride, pad, outsize, cover_all)


def numbers(*shape):
    return np.random.default_rng([*shape]).standard_normal(shape)


BOTH = pytest.mark.parametrize("cover_all", [False, True])


# --- against plain NumPy -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("k", "stride", "pad", "dilate"), [(3, 1, 1, 1), (3, 2, 0, 1), (2, 3, 1, 1), (3, 2, 1, 2)]
)
@pytest.mark.parametrize("size", [(7, 8), (9, 6)])
def test_convolution_is_chainers(device, size, k, stride, pad, dilate, cover_all):
    x, W, b = numbers(2, 3, *size), numbers(4, 3, k, k), numbers(4)
    y = chainer.convolution_2d(*map(device.to_array, (x, W, b)), stride, pad, cover_all, dilate=dilate)
    close(y, Plain.convolution_2d(x, W, b, stride, pad, cover_all, dilate=dilate))
    sizes = tuple(chainer.get_conv_outsize(n, k, stride, pad, cover_all, dilate) for n in size)
    assert y.shape == (2, 4, *sizes)


@pytest.mark.parametrize(
    ("k", "stride", "pad", "dilate"), [(3, 1, 1, 1), (3, 2, 1, 1), (2, 3, 0, 1), (3, 2, 1, 2)]
)
def test_deconvolution_is_chainers_and_the_gradient_for_every_outsize(device, k, stride, pad, dilate):
    x, W, b = numbers(2, 3, 4, 3), numbers(3, 2, k, k), numbers(2)
    here = [*map(device.to_array, (x, W, b))]
    y = chainer.deconvolution_2d(*here, stride, pad, dilate=dilate)
    close(y, Plain.deconvolution_2d(x, W, b, stride, pad, dilate=dilate))
    usual = tuple(chainer.get_deconv_outsize(n, k, stride, pad, d=dilate) for n in (4, 3))
    assert y.shape == (2, 2, *usual)
    for more in range(1 - stride, stride):
        outsize = (usual[0] + more, usual[1] - more)
        y = chainer.deconvolution_2d(*here, stride, pad, outsize, dilate=dilate)
        close(y, Plain.deconvolution_2d(x, W, b, stride, pad, outsize, dilate=dilate))


@BOTH
@pytest.mark.parametrize(("ksize", "stride", "pad"), [(2, None, 0), (3, 2, 1), (3, 3, 1), (3, 1, 0)])
@pytest.mark.parametrize("size", [(7, 9), (9, 6)])
def test_max_pooling_its_indexes_and_their_upsampling_are_chainers(
    device, size, ksize, stride, pad, cover_all
):
    x = np.maximum(numbers(2, 3, *size), 0) - 1  # many of -1, so that maxima are tied, and padding would win
    y, indexes = chainer.max_pooling_2d(device.to_array(x), ksize, stride, pad, cover_all, True)
    want, where = Plain.max_pooling_2d(x, ksize, stride, pad, cover_all, True)
    equal(y, want)
    equal(indexes, where)
    equal(chainer.max_pooling_2d(device.to_array(x), ksize, stride, pad, cover_all), want)
    gy = numbers(*want.shape)
    gx = chainer.upsampling_2d(device.to_array(gy), indexes, ksize, stride, pad, size, cover_all)
    close(gx, Plain.upsampling_2d(gy, where, ksize, stride, pad, size, cover_all))


@BOTH
@pytest.mark.parametrize(("ksize", "stride", "pad"), [(2, None, 0), (3, 2, 1), (4, 3, 1)])
def test_unpooling_is_chainers_for_the_least_size_and_a_larger_one(device, ksize, stride, pad, cover_all):
    x = numbers(2, 3, 3, 4)
    y = chainer.unpooling_2d(device.to_array(x), ksize, stride, pad, cover_all=cover_all)
    close(y, Plain.unpooling_2d(x, ksize, stride, pad, cover_all=cover_all))
    outsize = tuple(size + 1 for size in y.shape[2:])
    y = chainer.unpooling_2d(device.to_array(x), ksize, stride, pad, outsize, cover_all)
    close(y, Plain.unpooling_2d(x, ksize, stride, pad, outsize, cover_all))


def test_upsampling_takes_the_size_that_pooling_came_from_or_the_least_there_is(device):
    x = np.arange(9.0).reshape(1, 1, 3, 3)
    y, indexes = chainer.max_pooling_2d(device.to_array(x), 2, return_indices=True)
    least = chainer.upsampling_2d(y, indexes, 2)
    equal(least, np.where(np.isin(x, [4, 5, 7, 8]), x, 0))


@pytest.mark.parametrize(("ksize", "stride", "pad"), [(2, None, 0), (3, 2, 1), (3, 1, 0)])
def test_average_pooling_is_chainers(device, ksize, stride, pad):
    x = numbers(2, 3, 7, 8)
    close(
        chainer.average_pooling_2d(device.to_array(x), ksize, stride, pad),
        Plain.average_pooling_2d(x, ksize, stride, pad),
    )


@pytest.mark.parametrize("cover_all", [None, False])
def test_max_pooling_covers_all_unless_told(cover_all):
    told = {} if cover_all is None else {"cover_all": cover_all}
    assert chainer.max_pooling_2d(np.ones((1, 1, 5, 5)), 2, **told).shape[2] == (
        3 if cover_all is None else 2
    )
    assert chainer.max_pooling_nd(np.ones((1, 1, 5)), 2, **told).shape[2] == (3 if cover_all is None else 2)


def test_a_last_window_in_the_padding_gives_a_convolutions_bias_and_is_no_pooling(device):
    x, W, b = (device.to_array(np.full(shape, 2.0)) for shape in ((1, 1, 5, 5), (1, 1, 3, 3), (1,)))
    y = device.to_numpy(chainer.convolution_2d(x, W, b, stride=3, pad=1, cover_all=True))
    assert (y.shape, y[0, 0, 2].tolist()) == ((1, 1, 3, 3), [2, 2, 2])
    with pytest.raises(ValueError, match=r"max_pooling_2d: window 2 along .* nothing but padding"):
        chainer.max_pooling_2d(x, 3, pad=1)
    assert chainer.max_pooling_2d(x, 3, pad=1, cover_all=False).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_functions_of_any_number_of_axes_are_the_public_ones(device, axes):
    conv, transposed = getattr(gpuconv, f"conv{axes}d"), getattr(gpuconv, f"conv_transpose{axes}d")
    max_pool, avg_pool = getattr(gpuconv, f"max_pool{axes}d"), getattr(gpuconv, f"avg_pool{axes}d")
    x, W, b = (
        device.to_array(numbers(*shape)) for shape in ((2, 4, *(5,) * axes), (4, 2, *(3,) * axes), (4,))
    )
    equal(chainer.convolution_nd(x, W, b, 2, 1, False, 1, 2), conv(x, W, b, stride=2, padding=1, groups=2))
    covered = conv(x, W, b, stride=3, padding=((0, 1),) * axes, groups=2)
    equal(chainer.convolution_nd(x, W, b, 3, 0, True, groups=2), covered)
    outsize = (10,) * axes
    equal(
        chainer.deconvolution_nd(x, W, None, 2, 1, outsize, 1, 2),
        transposed(x, W, stride=2, padding=1, output_padding=1, groups=2),
    )
    y, indexes = chainer.max_pooling_nd(x, 2, return_indices=True)
    for got, want in zip((y, indexes), max_pool(x, 2, ceil_mode=True), strict=True):
        equal(got, want)
    equal(chainer.average_pooling_nd(x, 3, 2, 1), avg_pool(x, 3, 2, padding=1))
    equal(chainer.average_pooling_nd(x, 3, 2, 1, None), avg_pool(x, 3, 2, padding=1, count_include_pad=False))


def test_indexes_are_as_wide_as_chainers():
    indexes = chainer.max_pooling_2d(np.ones((1, 1, 4, 4), np.float32), 2, return_indices=True)[1]
    assert indexes.dtype == np.int64


@BOTH
@pytest.mark.parametrize("pval", [0, -7])
@pytest.mark.parametrize("dtype", ["f4", "i4"])
@pytest.mark.parametrize("window", [(3, 2, 2, 1, 1, 0, 1, 1), (2, 3, 3, 2, 1, 2, 2, 1)])
def test_columns_are_chainers_and_col2im_is_their_adjoint(device, window, dtype, pval, cover_all):
    kh, kw, sy, sx, ph, pw, dy, dx = window
    img = (9 * numbers(2, 3, 7, 6)).astype(dtype)
    col = chainer.im2col_cpu(device.to_array(img), kh, kw, sy, sx, ph, pw, pval, cover_all, dy, dx)
    want = Plain.im2col_cpu(img, kh, kw, sy, sx, ph, pw, pval, cover_all, dy, dx)
    equal(col, want)
    if pval == 0:
        for im2col in (chainer.im2col_gpu, chainer.im2col):
            equal(im2col(device.to_array(img), kh, kw, sy, sx, ph, pw, cover_all, dy, dx), want)
    whole = (9 * numbers(*want.shape)).round().astype(dtype)
    for col2im in (chainer.col2im_cpu, chainer.col2im_gpu, chainer.col2im):
        back = col2im(device.to_array(whole), sy, sx, ph, pw, 7, 6, dy, dx)
        equal(back, Plain.col2im_cpu(whole, sy, sx, ph, pw, 7, 6, dy, dx))
        assert back.dtype == dtype


def test_columns_may_be_asked_for_by_their_number():
    img = np.arange(6.0).reshape(1, 1, 1, 6)
    for out_w, cover_all in ((2, False), (3, True)):
        col = chainer.im2col_cpu(img, 1, 3, 1, 2, 0, 0, out_w=out_w)
        equal(col, chainer.im2col_cpu(img, 1, 3, 1, 2, 0, 0, cover_all=cover_all))


def test_sizes_are_chainers():
    for size in range(1, 9):
        for k, s, p, d in np.ndindex(4, 4, 3, 3):
            k, s, d = k + 1, s + 1, d + 1
            if (k - 1) * d + 1 > size + 2 * p:
                continue
            for cover_all in (False, True):
                windows = Plain.windows(size, k, s, p, cover_all, d)
                assert chainer.get_conv_outsize(size, k, s, p, cover_all, d) == windows
                least = chainer.get_deconv_outsize(windows, k, s, p, cover_all, d)
                assert least <= size
                assert Plain.windows(least, k, s, p, cover_all, d) in (windows, 0)


# --- a network ---------------------------------------------------------------------------------------


class Network:
    """A program that has left Chainer's graph: functions forward, and the gradients that are functions."""

    def __init__(self, F, rng):
        self.F = F
        self.W1, self.b1 = 0.3 * rng.standard_normal((4, 1, 3, 3)), np.zeros(4)
        self.W2, self.b2 = 0.3 * rng.standard_normal((36, 3)), np.zeros(3)

    def update(self, x, t, lr):
        F = self.F
        h = F.convolution_2d(x, self.W1, self.b1, pad=1)
        p, indexes = F.max_pooling_2d(np.maximum(h, 0), 3, stride=2, return_indices=True)
        p2 = F.convolution_2d(p, np.eye(4).reshape(4, 4, 1, 1), stride=2, cover_all=True)
        flat = p2.reshape(len(x), -1)
        y = flat @ self.W2 + self.b2
        y = np.exp(y - y.max(axis=1, keepdims=True))
        y /= y.sum(axis=1, keepdims=True)
        loss = -np.log(y[np.arange(len(t)), t]).mean()
        gy = (y - np.eye(3)[t]) / len(t)
        gp2 = (gy @ self.W2.T).reshape(p2.shape)
        gp = F.deconvolution_2d(gp2, np.eye(4).reshape(4, 4, 1, 1), stride=2, outsize=p.shape[2:])
        gh = F.upsampling_2d(gp, indexes, 3, stride=2, outsize=h.shape[2:]) * (h > 0)
        gW1 = np.tensordot(gh, F.im2col_cpu(x, 3, 3, 1, 1, 1, 1), ((0, 2, 3), (0, 4, 5)))
        self.W1 -= lr * gW1
        self.b1 -= lr * gh.sum(axis=(0, 2, 3))
        self.W2 -= lr * flat.T @ gy
        self.b2 -= lr * gy.sum(axis=0)
        return loss


def losses(F):
    rng = np.random.default_rng(7)
    network, t = Network(F, rng), np.arange(18) % 3
    x = rng.standard_normal((18, 1, 10, 10))
    x[np.arange(18), 0, 3 * t + 1] += 2
    return [network.update(x, t, 0.3) for _ in range(20)]


def test_a_network_with_its_functions_swapped_learns_the_same():
    plain = losses(Plain)
    assert plain[-1] < 0.5 * plain[0]
    np.testing.assert_allclose(losses(chainer), plain, rtol=1e-11)


def test_the_gradients_that_the_docs_name_are_those_of_the_public_functions(device):
    x, W, gy = (device.to_array(numbers(*shape)) for shape in ((2, 3, 8, 7), (4, 3, 3, 3), (2, 4, 4, 4)))
    gx = chainer.deconvolution_2d(gy, W, None, 2, 1, outsize=x.shape[2:])
    close(gx, gpuconv.conv2d_input_grad(gy, W, x.shape, stride=2, padding=1))
    y = chainer.average_pooling_2d(x, 3, 2, 1)
    spread = chainer.unpooling_2d(y, 3, 2, 1, outsize=x.shape[2:], cover_all=False) / 9
    close(spread, gpuconv.avg_pool2d_backward(y, x.shape, 3, 2, padding=1))


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
def test_on_cupys_arrays_nothing_waits_for_the_gpu():
    with cupy_stand_in.installed() as cupy:
        x, W, b = (cupy.asarray(numbers(*shape)) for shape in ((2, 3, 7, 7), (4, 3, 3, 3), (4,)))
        h = chainer.convolution_2d(x, W, b, 1, 1)
        y, indexes = chainer.max_pooling_2d(h, 2, return_indices=True)
        gh = chainer.upsampling_2d(y, indexes, 2, outsize=(7, 7))
        gx = chainer.deconvolution_2d(gh, W, None, 1, 1, outsize=(7, 7))
        col = chainer.im2col_cpu(x, 3, 3, 1, 1, 1, 1, -np.inf)
        back = chainer.col2im_gpu(col, 1, 1, 1, 1, 7, 7)
        results = (gx, back, chainer.average_pooling_2d(x, 2), chainer.unpooling_2d(y, 2))
        assert {type(a) for a in results} == {cupy.ndarray}
        assert indexes.dtype == np.int32
        assert not cupy_stand_in.waits


# --- wrong arguments ---------------------------------------------------------------------------------

X, W, B = np.ones((2, 3, 6, 6)), np.ones((4, 3, 3, 3)), np.ones(4)
WT = np.ones((3, 4, 3, 3))
Y, INDEXES = chainer.max_pooling_2d(X, 2, return_indices=True)
COL = chainer.im2col_cpu(X, 3, 3, 1, 1, 0, 0)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda F: F.convolution_2d(X.tolist(), W),
            TypeError,
            "convolution_2d: x must be a NumPy or CuPy array",
        ),
        (lambda F: F.convolution_2d(X[0], W), ValueError, "convolution_2d: x must have 4 axes, 2 of them"),
        (lambda F: F.convolution_2d(X, W[:, :2]), ValueError, "convolution_2d: W has 2 input channels"),
        (lambda F: F.convolution_2d(X, W, B[:3]), ValueError, "convolution_2d: b has shape .* but W has 4"),
        (lambda F: F.convolution_2d(X, W, B, 0), ValueError, "convolution_2d: stride must be at least 1"),
        (lambda F: F.convolution_2d(X, W, B, 1, "same"), TypeError, "convolution_2d: pad must be an integer"),
        (
            lambda F: F.convolution_2d(X, W, B, 1, 0, 1),
            TypeError,
            "convolution_2d: cover_all must be True or",
        ),
        (lambda F: F.convolution_2d(X, W, dilate=0), ValueError, "convolution_2d: dilate must be at least 1"),
        (lambda F: F.convolution_2d(X, W, dilate=3), ValueError, "convolution_2d: a kernel of 3 .* spans 7"),
        (lambda F: F.convolution_2d(X, W, groups=2), ValueError, "convolution_2d: W has 3 .* and groups=2"),
        (lambda F: F.convolution_nd(X[0, 0], W), ValueError, "convolution_nd: x must have 3, 4 or 5 axes"),
        (
            lambda F: F.deconvolution_2d(X, WT, stride=2, outsize=(15, 9)),
            ValueError,
            "outsize is 15 .* 12 to 14",
        ),
        (
            lambda F: F.deconvolution_2d(X, WT, outsize=(8, 8, 8)),
            ValueError,
            "deconvolution_2d: outsize must be",
        ),
        (lambda F: F.deconvolution_2d(X, WT, pad=4), ValueError, "deconvolution_2d: pad leaves the sizes"),
        (lambda F: F.deconvolution_2d(X, W), ValueError, "deconvolution_2d: W is for 4 input channels"),
        (lambda F: F.max_pooling_2d(X, 0), ValueError, "max_pooling_2d: ksize must be at least 1"),
        (lambda F: F.max_pooling_2d(X, 7, cover_all=False), ValueError, "max_pooling_2d: a kernel of 7"),
        (
            lambda F: F.max_pooling_2d(X, 2, return_indices=1),
            TypeError,
            "return_indices must be True or False",
        ),
        (lambda F: F.average_pooling_nd(X, 2, pad_value=1), ValueError, "pad_value must be 0 or None, not 1"),
        (
            lambda F: F.average_pooling_2d(X.astype(int), 2),
            TypeError,
            "average_pooling_2d: x has dtype int64",
        ),
        (
            lambda F: F.unpooling_2d(Y, 2, outsize=(8, 8)),
            ValueError,
            r"unpooling_2d: x has .* \(2, 3, 8, 8\)",
        ),
        (lambda F: F.upsampling_2d(Y, INDEXES[:1], 2), ValueError, "upsampling_2d: indexes has shape"),
        (lambda F: F.upsampling_2d(Y, INDEXES + 4, 2), ValueError, "upsampling_2d: indexes"),
        (lambda F: F.im2col_cpu(X[0], 3, 3, 1, 1, 0, 0), ValueError, "im2col_cpu: img must have 4 axes"),
        (lambda F: F.im2col_gpu(X, 3, 3, 0, 1, 0, 0), ValueError, "im2col_gpu: sy must be at least 1"),
        (
            lambda F: F.im2col_cpu(X, 3, 3, 1, 1, 0, 0, out_h=0),
            ValueError,
            "im2col_cpu: out_h must be at least 1",
        ),
        (lambda F: F.im2col(X, 3, 3, 1, 1, 0, 0, out_w=4.0), TypeError, "out_w must be an integer"),
        (
            lambda F: F.im2col_cpu(X, 3, 3, 1, 1, 0, 0, out_h=9),
            ValueError,
            "im2col_cpu: 9 windows along .* axis 0",
        ),
        (
            lambda F: F.col2im_cpu(COL, 1, 1, 0, 0, 9, 6),
            ValueError,
            "col2im_cpu: 4 windows along .* there are 7",
        ),
        (lambda F: F.col2im_cpu(COL[0], 1, 1, 0, 0, 6, 6), ValueError, "col2im_cpu: col must have 6 axes"),
    ],
)
def test_wrong_arguments_get_errors_in_chainers_terms(call, error, said):
    with pytest.raises(error, match=said):
        call(chainer)
