"""`gpuconv.compat.dlfs` beside layers in the book's style, which are written out here in plain NumPy."""

import numpy as np
import pytest
from anywhere import close, equal
from host import compiler, cupy_stand_in

from gpuconv.compat import dlfs


class Plain:
    """The book's layers, written for this test: columns, a matrix product, and the way back."""

    @staticmethod
    def im2col(x, fh, fw, stride=1, pad=0):
        n, c, h, w = x.shape
        oh, ow = (h + 2 * pad - fh) // stride + 1, (w + 2 * pad - fw) // stride + 1
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        col = np.zeros((n, oh, ow, c, fh, fw))
        for p, q, i, j in np.ndindex(oh, ow, fh, fw):
            col[:, p, q, :, i, j] = padded[:, :, p * stride + i, q * stride + j]
        return col.reshape(n * oh * ow, -1)

    @staticmethod
    def col2im(col, shape, fh, fw, stride=1, pad=0):
        n, c, h, w = shape
        oh, ow = (h + 2 * pad - fh) // stride + 1, (w + 2 * pad - fw) // stride + 1
        padded = np.zeros((n, c, h + 2 * pad, w + 2 * pad))
        for p, q, i, j in np.ndindex(oh, ow, fh, fw):
            padded[:, :, p * stride + i, q * stride + j] += col.reshape(n, oh, ow, c, fh, fw)[
                :, p, q, :, i, j
            ]
        return padded[:, :, pad : pad + h, pad : pad + w]

    class Convolution:
        def __init__(self, W, b, stride=1, pad=0):
            self.W, self.b, self.stride, self.pad = W, b, stride, pad

        def forward(self, x):
            fn, _, fh, fw = self.W.shape
            self.x, self.col, self.col_W = (
                x,
                Plain.im2col(x, fh, fw, self.stride, self.pad),
                self.W.reshape(fn, -1).T,
            )
            oh = (x.shape[2] + 2 * self.pad - fh) // self.stride + 1
            out = self.col @ self.col_W + self.b
            return out.reshape(len(x), oh, -1, fn).transpose(0, 3, 1, 2)

        def backward(self, dout):
            rows = dout.transpose(0, 2, 3, 1).reshape(-1, len(self.W))
            self.db, self.dW = rows.sum(axis=0), (self.col.T @ rows).T.reshape(self.W.shape)
            return Plain.col2im(rows @ self.col_W.T, self.x.shape, *self.W.shape[2:], self.stride, self.pad)

    class Pooling:
        def __init__(self, pool_h, pool_w, stride=2, pad=0):
            self.window, self.stride = (pool_h, pool_w), stride

        def forward(self, x):
            n, c, h, _ = x.shape
            col = Plain.im2col(x, *self.window, self.stride).reshape(-1, self.window[0] * self.window[1])
            self.x, self.arg_max = x, col.argmax(axis=1)
            oh = (h - self.window[0]) // self.stride + 1
            return col.max(axis=1).reshape(n, oh, -1, c).transpose(0, 3, 1, 2)

        def backward(self, dout):
            rows = dout.transpose(0, 2, 3, 1)
            dmax = np.zeros((rows.size, self.window[0] * self.window[1]))
            dmax[np.arange(rows.size), self.arg_max] = rows.ravel()
            dcol = dmax.reshape(rows.size // rows.shape[3], -1)
            return Plain.col2im(dcol, self.x.shape, *self.window, self.stride)


def numbers(*shape):
    return np.random.default_rng([*shape]).standard_normal(shape)


# --- against plain NumPy -----------------------------------------------------------------------------

WINDOWS = [(3, 3, 1, 1), (3, 2, 2, 1), (2, 2, 2, 0)]  # height, width, stride, pad


@pytest.mark.parametrize(("fh", "fw", "stride", "pad"), WINDOWS)
def test_convolution_its_gradients_and_its_columns_are_the_books(device, fh, fw, stride, pad):
    x, W, b = numbers(2, 3, 8, 7), numbers(4, 3, fh, fw), numbers(4)
    plain = Plain.Convolution(W, b, stride, pad)
    ours = dlfs.Convolution(device.to_array(W), device.to_array(b), stride, pad)
    assert ours.x is ours.dW is ours.db is ours.col is ours.col_W is None
    out = plain.forward(x)
    close(ours.forward(device.to_array(x)), out)
    dout = numbers(*out.shape)
    close(ours.backward(device.to_array(dout)), plain.backward(dout))
    for name in ("x", "dW", "db", "col", "col_W"):
        close(getattr(ours, name), getattr(plain, name))


@pytest.mark.parametrize(("pool_h", "pool_w", "stride"), [(2, 2, 2), (3, 3, 2), (2, 3, 1)])
def test_pooling_its_gradient_and_its_arg_max_are_the_books(device, pool_h, pool_w, stride):
    x = np.maximum(numbers(2, 3, 8, 7), 0)  # zeros, so that maxima are tied
    plain, ours = Plain.Pooling(pool_h, pool_w, stride), dlfs.Pooling(pool_h, pool_w, stride)
    assert ours.x is ours.arg_max is None
    out = plain.forward(x)
    equal(ours.forward(device.to_array(x)), out)
    dout = numbers(*out.shape)
    close(ours.backward(device.to_array(dout)), plain.backward(dout))
    equal(ours.arg_max, plain.arg_max)
    assert ours.arg_max.dtype == np.int64


def test_pooling_steps_by_two_and_its_padding_never_wins(device):
    x = device.to_array(np.full((1, 1, 4, 4), -5.0))
    assert dlfs.Pooling(2, 2).forward(x).shape == (1, 1, 2, 2)
    layer = dlfs.Pooling(3, 3, stride=2, pad=1)
    equal(layer.forward(x), np.full((1, 1, 2, 2), -5.0))
    equal(layer.backward(device.to_array(np.ones((1, 1, 2, 2)))).sum(), 4)


@pytest.mark.parametrize(("fh", "fw", "stride", "pad"), WINDOWS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_im2col_and_col2im_are_the_books_and_keep_the_dtype(device, fh, fw, stride, pad, dtype):
    x = (9 * numbers(2, 3, 8, 7)).astype(int)
    col = dlfs.im2col(device.to_array(x.astype(dtype)), fh, fw, stride, pad)
    want = Plain.im2col(x, fh, fw, stride, pad)
    equal(col, want)
    back = dlfs.col2im(col, x.shape, fh, fw, stride, pad)
    equal(back, Plain.col2im(want, x.shape, fh, fw, stride, pad))
    assert col.dtype == back.dtype == dtype


# --- what the layer holds ----------------------------------------------------------------------------


def test_the_layer_holds_the_callers_arrays():
    x, W, b = numbers(1, 2, 5, 5), numbers(3, 2, 3, 3), numbers(3)
    layer = dlfs.Convolution(W, b)
    before = layer.forward(x)
    W *= 2
    b *= 2
    close(layer.forward(x), 2 * before)
    layer.W, layer.b = W / 2, b / 2
    close(layer.forward(x), before)


def test_an_element_that_the_numeric_gradient_moves_moves_the_loss():
    x, W = numbers(2, 1, 5, 5), numbers(2, 1, 3, 3)
    layer = dlfs.Convolution(W, np.zeros(2), stride=2, pad=1)

    def loss():
        return (layer.forward(x) ** 2).sum() / 2

    layer.backward(layer.forward(x))
    gradient, numeric = layer.dW, np.zeros_like(W)
    for place in np.ndindex(W.shape):
        kept, losses = W[place], []
        for step in (1e-4, -1e-4):
            W[place] = kept + step
            losses.append(loss())
        W[place] = kept
        numeric[place] = (losses[0] - losses[1]) / 2e-4
    np.testing.assert_allclose(gradient, numeric, rtol=1e-7)


def test_backward_uses_the_kernels_that_forward_saw_and_may_be_called_twice():
    x, W = numbers(1, 2, 5, 5), numbers(3, 2, 3, 3)
    layer = dlfs.Convolution(W, np.zeros(3))
    dout = numbers(*layer.forward(x).shape)
    dx, dW = layer.backward(dout), layer.dW
    layer.W = np.zeros_like(W)
    equal(layer.backward(dout), dx)
    equal(layer.dW, dW)
    assert layer.dW is not dW
    equal(layer.col_W, W.reshape(3, -1).T)
    W *= 2  # in place: the book's col_W is a view, too
    close(layer.backward(dout), 2 * dx)


def test_float32_stays_float32():
    W, b, x = (numbers(*shape).astype("f4") for shape in ((3, 2, 3, 3), (3,), (1, 2, 5, 5)))
    layer = dlfs.Convolution(W, b)
    out = layer.forward(x)
    assert {a.dtype for a in (out, layer.backward(out), layer.dW, layer.db)} == {np.dtype("f4")}
    assert dlfs.Convolution(W.astype("f8"), b).forward(x).dtype == np.float64


# --- a network ---------------------------------------------------------------------------------------


class Relu:
    def forward(self, x):
        self.mask = x <= 0
        out = x.copy()
        out[self.mask] = 0
        return out

    def backward(self, dout):
        dout[self.mask] = 0  # in place, as the book has it: what a layer returns must bear that
        return dout


class Affine:
    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, x):
        self.shape, self.x = x.shape, x.reshape(len(x), -1)
        return self.x @ self.W + self.b

    def backward(self, dout):
        self.dW, self.db = self.x.T @ dout, dout.sum(axis=0)
        return (dout @ self.W.T).reshape(self.shape)


class SimpleConvNet:
    """conv - relu - pool - affine - relu - affine, its layers built on arrays that the optimiser changes."""

    def __init__(self, layers, rng):
        self.params = {
            "W1": 0.1 * rng.standard_normal((4, 1, 3, 3)),
            "b1": np.zeros(4),
            "W2": 0.1 * rng.standard_normal((36, 8)),
            "b2": np.zeros(8),
            "W3": 0.1 * rng.standard_normal((8, 3)),
            "b3": np.zeros(3),
        }
        weights = [(self.params[f"W{i}"], self.params[f"b{i}"]) for i in (1, 2, 3)]
        self.with_weights = [layers.Convolution(*weights[0]), Affine(*weights[1]), Affine(*weights[2])]
        conv, hidden, last = self.with_weights
        self.layers = [conv, Relu(), layers.Pooling(pool_h=2, pool_w=2, stride=2), hidden, Relu(), last]

    def loss(self, x, t):
        for layer in self.layers:
            x = layer.forward(x)
        y = np.exp(x - x.max(axis=1, keepdims=True))
        self.y, self.t = y / y.sum(axis=1, keepdims=True), t
        return -np.log(self.y[np.arange(len(t)), t]).mean()

    def gradient(self):
        dout = (self.y - np.eye(3)[self.t]) / len(self.t)
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        grads = {f"W{i + 1}": layer.dW for i, layer in enumerate(self.with_weights)}
        return grads | {f"b{i + 1}": layer.db for i, layer in enumerate(self.with_weights)}


def losses(layers):
    rng = np.random.default_rng(1)
    network = SimpleConvNet(layers, rng)
    t = np.arange(30) % 3
    x = rng.standard_normal((30, 1, 8, 8))
    x[np.arange(30), 0, 2 * t] += 1.5
    history = []
    for step in range(20):
        batch = slice(10 * (step % 3), 10 * (step % 3) + 10)
        history.append(network.loss(x[batch], t[batch]))
        for key, gradient in network.gradient().items():
            network.params[key] -= 0.5 * gradient
    return history


def test_a_network_with_its_layers_swapped_learns_the_same():
    plain = losses(Plain)
    assert plain[-1] < 0.5 * plain[0]
    np.testing.assert_allclose(losses(dlfs), plain, rtol=1e-11)


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
def test_on_cupys_arrays_nothing_waits_for_the_gpu():
    with cupy_stand_in.installed() as cupy:
        x, W, b = (cupy.asarray(numbers(*shape)) for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
        conv, pool = dlfs.Convolution(W, b, pad=1), dlfs.Pooling(2, 2)
        out = pool.forward(conv.forward(x))
        conv.backward(pool.backward(out))
        dlfs.col2im(conv.col, x.shape, 3, 3, pad=1)
        assert {type(a) for a in (conv.dW, conv.db, conv.col_W, pool.arg_max)} == {cupy.ndarray}
        assert not cupy_stand_in.waits


# --- wrong arguments ---------------------------------------------------------------------------------

X, W, B = np.ones((2, 3, 6, 6)), np.ones((4, 3, 3, 3)), np.ones(4)


def convolved(x=X, W=W, b=B, dout=None, **options):
    layer = dlfs.Convolution(W, b, **options)
    layer.forward(x)
    layer.backward(dout)


def pooled(x=X, pool_h=2, pool_w=2, dout=None, **options):
    layer = dlfs.Pooling(pool_h, pool_w, **options)
    layer.forward(x)
    layer.backward(dout)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: convolved(x=X.tolist()), TypeError, "Convolution.forward: x must be a NumPy or CuPy array"),
        (lambda: convolved(x=X[0]), ValueError, "Convolution.forward: x must have 4 axes"),
        (lambda: convolved(W=W[:, :2]), ValueError, "Convolution.forward: W has 2 input channels"),
        (lambda: convolved(b=B[:3]), ValueError, r"Convolution.forward: b has shape \(3,\), but W has 4"),
        (lambda: convolved(b=0), TypeError, "Convolution.forward: b must be a NumPy or CuPy array"),
        (lambda: convolved(stride=0), ValueError, "Convolution.forward: stride must be at least 1"),
        (lambda: convolved(pad=0.5), TypeError, "Convolution.forward: pad must be an integer"),
        (lambda: convolved(dout=X), ValueError, "Convolution.backward: dout has shape .* gradient of out"),
        (lambda: pooled(pool_w=9), ValueError, r"Pooling.forward: window \(2, 9\)"),
        (lambda: pooled(pool_h=0), ValueError, "Pooling.forward: pool_h must be at least 1"),
        (lambda: pooled(pad=2), ValueError, "Pooling.forward: window 0 .* nothing but padding"),
        (lambda: pooled(dout=X), ValueError, "Pooling.backward: dout has shape"),
        (lambda: pooled(dout=None), TypeError, "Pooling.backward: dout must be a NumPy or CuPy array"),
        (
            lambda: dlfs.Convolution(W, B).backward(X),
            RuntimeError,
            "Convolution.backward: call forward first",
        ),
        (lambda: dlfs.Pooling(2, 2).backward(X), RuntimeError, "Pooling.backward: call forward first"),
        (lambda: dlfs.im2col(X[0], 2, 2), ValueError, "im2col: input_data must have 4 axes"),
        (lambda: dlfs.im2col(X, 9, 2), ValueError, r"im2col: filter \(9, 2\) .* the 6 of input_data"),
        (lambda: dlfs.im2col(X, 2, 2, pad=-1), ValueError, "im2col: pad must be at least 0"),
        (lambda: dlfs.col2im(X, X.shape, 2, 2), ValueError, "col2im: col has shape .* for input_shape"),
        (lambda: dlfs.col2im(X, X.shape[1:], 2, 2), ValueError, "col2im: input_shape must be the 4 sizes"),
    ],
)
def test_wrong_arguments_get_errors_in_the_books_terms(call, error, said):
    with pytest.raises(error, match=f"^{said}"):
        call()


def test_col_is_for_the_kernels_that_forward_saw():
    layer = dlfs.Convolution(W, B)
    layer.forward(X)
    before = layer.col
    layer.W = W[:, :, 1:, 1:]
    equal(layer.col, before)
