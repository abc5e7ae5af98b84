"""`gpuconv.compat.cs231n` beside layers in the assignment's style, written out here in plain NumPy."""

import numpy as np
import pytest
from anywhere import close, equal
from host import compiler, cupy_stand_in

from gpuconv.compat import cs231n

CONV = ["naive", "fast", "im2col", "strides"]
TILES = {"pool_height": 2, "pool_width": 2, "stride": 2}
# Image, kernel, stride, pad: with places left over, a kernel that isn't square, and no padding.
SHAPES = [
    ((3, 2, 7, 6), (4, 2, 3, 3), 1, 1),
    ((2, 3, 8, 7), (2, 3, 3, 2), 2, 1),
    ((2, 1, 5, 5), (3, 1, 2, 2), 2, 0),
]


class Plain:
    """The assignment's functions, as a student writes them: loops over the definitions."""

    @staticmethod
    def conv_forward_fast(x, w, b, conv_param):
        stride, pad = conv_param["stride"], conv_param["pad"]
        (n, _, height, width), (f, _, hh, ww) = x.shape, w.shape
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        out = np.zeros((n, f, 1 + (height + 2 * pad - hh) // stride, 1 + (width + 2 * pad - ww) // stride))
        for image, kernel, i, j in np.ndindex(out.shape):
            rows, columns = i * stride, j * stride
            patch = padded[image, :, rows : rows + hh, columns : columns + ww]
            out[image, kernel, i, j] = (patch * w[kernel]).sum() + b[kernel]
        return out, (x, w, b, conv_param)

    @staticmethod
    def conv_backward_fast(dout, cache):
        x, w, b, conv_param = cache
        stride, pad = conv_param["stride"], conv_param["pad"]
        hh, ww = w.shape[2:]
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        dpadded, dw, db = np.zeros(padded.shape), np.zeros(w.shape), np.zeros(b.shape)
        for image, kernel, i, j in np.ndindex(dout.shape):
            here = (
                image,
                slice(None),
                slice(i * stride, i * stride + hh),
                slice(j * stride, j * stride + ww),
            )
            dpadded[here] += dout[image, kernel, i, j] * w[kernel]
            dw[kernel] += dout[image, kernel, i, j] * padded[here]
            db[kernel] += dout[image, kernel, i, j]
        return dpadded[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]], dw, db

    @staticmethod
    def max_pool_forward_fast(x, pool_param):
        hh, ww, stride = pool_param["pool_height"], pool_param["pool_width"], pool_param["stride"]
        n, c, height, width = x.shape
        out = np.zeros((n, c, 1 + (height - hh) // stride, 1 + (width - ww) // stride))
        for image, channel, i, j in np.ndindex(out.shape):
            rows, columns = i * stride, j * stride
            out[image, channel, i, j] = x[image, channel, rows : rows + hh, columns : columns + ww].max()
        return out, (x, pool_param)

    @staticmethod
    def max_pool_backward_fast(dout, cache):
        x, pool_param = cache
        hh, ww, stride = pool_param["pool_height"], pool_param["pool_width"], pool_param["stride"]
        dx = np.zeros(x.shape)
        for image, channel, i, j in np.ndindex(dout.shape):
            rows, columns = i * stride, j * stride
            patch = x[image, channel, rows : rows + hh, columns : columns + ww]
            row, column = np.unravel_index(patch.argmax(), patch.shape)
            dx[image, channel, rows + row, columns + column] += dout[image, channel, i, j]
        return dx


def numbers(*shape):
    return np.random.default_rng([*shape]).standard_normal(shape)


# --- the assignment's numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONV)
def test_convolution_gives_the_numbers_that_the_notebook_expects(device, name):
    x = np.linspace(-0.1, 0.5, num=96).reshape(2, 3, 4, 4)
    w = np.linspace(-0.2, 0.3, num=144).reshape(3, 3, 4, 4)
    b = np.linspace(-0.1, 0.2, num=3)
    forward = getattr(cs231n, f"conv_forward_{name}")
    out, _ = forward(*map(device.to_array, (x, w, b)), {"stride": 2, "pad": 1})
    expected = [
        *([-0.08759809, -0.10987781], [-0.18387192, -0.2109216]),
        *([0.21027089, 0.21661097], [0.22847626, 0.23004637]),
        *([0.50813986, 0.54309974], [0.64082444, 0.67101435]),
        *([-0.98053589, -1.03143541], [-1.19128892, -1.24695841]),
        *([0.69108355, 0.66880383], [0.59480972, 0.56776003]),
        *([2.36270298, 2.36904306], [2.38090835, 2.38247847]),
    ]
    close(out, np.reshape(expected, (2, 3, 2, 2)), rtol=0, atol=6e-9)


@pytest.mark.parametrize("name", ["naive", "fast", "im2col", "reshape"])
def test_max_pooling_gives_the_numbers_that_the_notebook_expects(device, name):
    x = np.linspace(-0.3, 0.4, num=96).reshape(2, 3, 4, 4)
    out, _ = getattr(cs231n, f"max_pool_forward_{name}")(device.to_array(x), TILES)
    expected = [
        *([-0.26315789, -0.24842105], [-0.20421053, -0.18947368]),
        *([-0.14526316, -0.13052632], [-0.08631579, -0.07157895]),
        *([-0.02736842, -0.01263158], [0.03157895, 0.04631579]),
        *([0.09052632, 0.10526316], [0.14947368, 0.16421053]),
        *([0.20842105, 0.22315789], [0.26736842, 0.28210526]),
        *([0.32631579, 0.34105263], [0.38526316, 0.4]),
    ]
    close(out, np.reshape(expected, (2, 3, 2, 2)), rtol=0, atol=6e-9)


# --- against plain NumPy -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONV)
@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "pad"), SHAPES)
def test_convolution_and_its_gradients_are_the_loops(device, name, x_shape, w_shape, stride, pad):
    x, w, b = numbers(*x_shape), numbers(*w_shape), numbers(w_shape[0])
    conv_param = {"stride": stride, "pad": pad}
    out, cache = Plain.conv_forward_fast(x, w, b, conv_param)
    dout = numbers(*out.shape)
    here = [*map(device.to_array, (x, w, b))]
    our_out, our_cache = getattr(cs231n, f"conv_forward_{name}")(*here, conv_param)
    close(our_out, out)
    assert [a is given for a, given in zip(our_cache, (*here, conv_param), strict=True)] == [True] * 4
    grads = getattr(cs231n, f"conv_backward_{name}")(device.to_array(dout), our_cache)
    for got, want in zip(grads, Plain.conv_backward_fast(dout, cache), strict=True):
        close(got, want)


WINDOWS = [
    (name, window) for name in ("naive", "fast", "im2col") for window in ((2, 2, 2), (3, 3, 2), (2, 3, 1))
]


@pytest.mark.parametrize(("name", "window"), [*WINDOWS, ("reshape", (2, 2, 2))])
def test_max_pooling_and_its_gradient_are_the_loops(device, name, window):
    pool_param = dict(zip(("pool_height", "pool_width", "stride"), window, strict=True))
    x = numbers(2, 3, 6, 8)
    out, cache = Plain.max_pool_forward_fast(x, pool_param)
    our_out, our_cache = getattr(cs231n, f"max_pool_forward_{name}")(device.to_array(x), pool_param)
    equal(our_out, out)
    dout = numbers(*out.shape)
    dx = getattr(cs231n, f"max_pool_backward_{name}")(device.to_array(dout), our_cache)
    close(dx, Plain.max_pool_backward_fast(dout, cache))


def test_a_cache_of_ones_own_forward_will_do_for_our_backward(device):
    x, w, b = (device.to_array(numbers(*shape)) for shape in ((2, 1, 4, 4), (3, 1, 3, 3), (3,)))
    out, cache = cs231n.conv_forward_naive(x, w, b, {"stride": 1, "pad": 1})
    its_columns = "x_cols, which the assignment's fast functions keep"
    grads = cs231n.conv_backward_fast(out, (x, w, b, {"stride": 1, "pad": 1}, its_columns))
    for got, want in zip(grads, cs231n.conv_backward_naive(out, cache), strict=True):
        equal(got, want)


@pytest.mark.parametrize(
    ("name", "share"), [("naive", [1, 0, 0, 0]), ("im2col", [1, 0, 0, 0]), ("reshape", [0.25] * 4)]
)
def test_ties_are_shared_where_the_assignment_shares_them_and_else_go_to_the_first(device, name, share):
    x = device.to_array(np.full((1, 1, 2, 2), 3.0, np.float32))
    out, cache = getattr(cs231n, f"max_pool_forward_{name}")(x, TILES)
    dx = getattr(cs231n, f"max_pool_backward_{name}")(
        device.to_array(np.ones((1, 1, 1, 1), np.float32)), cache
    )
    equal(dx, np.reshape(share, (1, 1, 2, 2)))
    assert out.dtype == dx.dtype == np.float32


def test_fast_pooling_takes_the_way_that_the_assignment_takes(device):
    x = device.to_array(np.zeros((1, 1, 4, 4)))
    dout = device.to_array(np.ones((1, 1, 2, 2)))
    (_, tiled), (_, overlapping) = (
        cs231n.max_pool_forward_fast(x, {**TILES, "pool_height": height}) for height in (2, 3)
    )
    assert (tiled[0], overlapping[0]) == ("reshape", "im2col")
    equal(cs231n.max_pool_backward_fast(dout, tiled), np.full((1, 1, 4, 4), 0.25))
    first = cs231n.max_pool_backward_fast(device.to_array(np.ones((1, 1, 1, 2))), overlapping)
    equal(first[0, 0, 0], [1, 0, 1, 0])


def test_no_place_of_a_window_with_nan_gets_a_shared_gradient(device):
    x = np.array([[[[np.nan, 1.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]])
    out, cache = cs231n.max_pool_forward_reshape(device.to_array(x), TILES)
    equal(out, [[[[np.nan, 2]]]])
    dx = cs231n.max_pool_backward_reshape(device.to_array(np.ones((1, 1, 1, 2))), cache)
    equal(dx, [[[[0, 0, 1, 0], [0, 0, 0, 0]]]])


def test_columns_are_in_the_assignments_order_and_col2im_is_their_adjoint(device):
    x = numbers(2, 3, 5, 4)
    cols = cs231n.im2col_indices(device.to_array(x), 3, 2, stride=2)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    want = np.empty((3, 3, 2, 3, 3, 2))  # channel, tap, place, image
    for i, j, p, q in np.ndindex(3, 2, 3, 3):
        want[:, i, j, p, q] = padded[:, :, 2 * p + i, 2 * q + j].T
    equal(cols, want.reshape(18, 18))
    back = cs231n.col2im_indices(cols, x.shape, 3, 2, stride=2)
    assert back.shape == x.shape
    np.testing.assert_allclose((device.to_numpy(back) * x).sum(), (want**2).sum())


# --- a network ---------------------------------------------------------------------------------------


class ThreeLayerConvNet:
    """conv - relu - 2x2 max pool - affine - softmax, its layers taken from a module."""

    def __init__(self, layers, rng):
        self.layers = layers
        self.params = {"W1": 0.1 * rng.standard_normal((4, 1, 3, 3)), "b1": np.zeros(4)}
        self.params |= {"W2": 0.1 * rng.standard_normal((64, 3)), "b2": np.zeros(3)}

    def loss(self, x, y):
        w1, b1, w2, b2 = (self.params[name] for name in ("W1", "b1", "W2", "b2"))
        conv, conv_cache = self.layers.conv_forward_fast(x, w1, b1, {"stride": 1, "pad": 1})
        relu = np.maximum(0, conv)
        pooled, pool_cache = self.layers.max_pool_forward_fast(relu, TILES)
        flat = pooled.reshape(len(x), -1)
        scores = flat.dot(w2) + b2
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        rows = np.arange(len(x))
        loss = -np.log(probabilities[rows, y]).mean()
        dscores = probabilities.copy()
        dscores[rows, y] -= 1
        dscores /= len(x)
        dpooled = dscores.dot(w2.T).reshape(pooled.shape)
        dconv = self.layers.max_pool_backward_fast(dpooled, pool_cache) * (conv > 0)
        _, dw1, db1 = self.layers.conv_backward_fast(dconv, conv_cache)
        return loss, {"W1": dw1, "b1": db1, "W2": flat.T.dot(dscores), "b2": dscores.sum(axis=0)}


def losses(layers):
    rng = np.random.default_rng(231)
    model = ThreeLayerConvNet(layers, rng)
    y = np.arange(12) % 3
    x = rng.standard_normal((12, 1, 8, 8))
    x[np.arange(12), 0, 2 * y] += 1
    history = []
    for _ in range(15):
        loss, grads = model.loss(x, y)
        history.append(loss)
        for name, gradient in grads.items():
            model.params[name] -= 0.5 * gradient
    return history


def test_a_network_with_its_layers_swapped_learns_the_same():
    plain = losses(Plain)
    assert plain[-1] < 0.5 * plain[0]
    np.testing.assert_allclose(losses(cs231n), plain, rtol=1e-12)


def test_the_sandwiches_are_their_parts(device):
    x, w, b = (device.to_array(numbers(*shape)) for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    conv_param = {"stride": 1, "pad": 1}
    conv, conv_cache = cs231n.conv_forward_fast(x, w, b, conv_param)
    out, cache = cs231n.conv_relu_forward(x, w, b, conv_param)
    a, dout = device.to_numpy(conv), numbers(2, 4, 6, 6)
    equal(out, np.maximum(a, 0))
    for got, want in zip(
        cs231n.conv_relu_backward(device.to_array(dout), cache),
        cs231n.conv_backward_fast(device.to_array(dout * (a > 0)), conv_cache),
        strict=True,
    ):
        equal(got, want)

    pooled, cache = cs231n.conv_relu_pool_forward(x, w, b, conv_param, TILES)
    want, pool_cache = cs231n.max_pool_forward_fast(out, TILES)
    equal(pooled, want)
    dpooled = device.to_array(numbers(2, 4, 3, 3))
    da = device.to_numpy(cs231n.max_pool_backward_fast(dpooled, pool_cache)) * (a > 0)
    for got, want in zip(
        cs231n.conv_relu_pool_backward(dpooled, cache),
        cs231n.conv_backward_fast(device.to_array(da), conv_cache),
        strict=True,
    ):
        equal(got, want)


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
def test_on_cupys_arrays_nothing_waits_for_the_gpu():
    with cupy_stand_in.installed() as cupy:
        x, w, b = (cupy.asarray(numbers(*shape)) for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
        out, cache = cs231n.conv_relu_pool_forward(x, w, b, {"stride": 1, "pad": 1}, TILES)
        cs231n.conv_relu_pool_backward(out, cache)
        out, cache = cs231n.max_pool_forward_naive(x, TILES)
        cs231n.max_pool_backward_naive(out, cache)
        cols = cs231n.im2col_indices(x, 3, 3)
        back = cs231n.col2im_indices(cols, x.shape)
        assert isinstance(back, cupy.ndarray)
        assert not cupy_stand_in.waits


# --- wrong arguments ---------------------------------------------------------------------------------

X, W, B = np.ones((2, 3, 6, 6)), np.ones((4, 3, 3, 3)), np.ones(4)
PARAM = {"stride": 1, "pad": 1}
OUT, CACHE = cs231n.conv_forward_fast(X, W, B, PARAM)
POOLED, POOL_CACHE = cs231n.max_pool_forward_fast(X, TILES)
COLS = cs231n.im2col_indices(X, 3, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("conv_forward_naive", (X.tolist(), W, B, PARAM), TypeError, "x must be a NumPy or CuPy array"),
        ("conv_forward_naive", (X[0], W, B, PARAM), ValueError, "x must have 4 axes"),
        ("conv_forward_naive", (X, W[:, :2], B, PARAM), ValueError, "w has 2 input channels"),
        ("conv_forward_naive", (X, W, B[:3], PARAM), ValueError, r"b has shape \(3,\)"),
        (
            "conv_forward_naive",
            (X, W, B, {"stride": 1}),
            ValueError,
            "conv_param must have .* 'pad' is missing",
        ),
        ("conv_forward_naive", (X, W, B, (1, 1)), TypeError, "conv_param must be a dictionary"),
        (
            "conv_forward_naive",
            (X, W, B, {**PARAM, "stride": 0}),
            ValueError,
            r"conv_param\['stride'\] must be",
        ),
        (
            "conv_forward_naive",
            (X, W, B, {**PARAM, "pad": 0.5}),
            TypeError,
            r"conv_param\['pad'\] must be an int",
        ),
        (
            "conv_forward_naive",
            (X.astype(int), W.astype(int), B.astype(int), PARAM),
            TypeError,
            "promote to int",
        ),
        ("conv_backward_naive", (OUT[:, :2], CACHE), ValueError, r"dout has shape .* gradient of out"),
        ("conv_backward_naive", (OUT, CACHE[:3]), TypeError, "cache must be what conv_forward_fast returned"),
        ("conv_backward_naive", (OUT, None), TypeError, "cache must be .* not NoneType"),
        ("max_pool_forward_naive", (X, {"stride": 2}), ValueError, "pool_param must have"),
        ("max_pool_forward_fast", (X, {**TILES, "pool_width": 0}), ValueError, r"pool_param\['pool_width'\]"),
        ("max_pool_forward_fast", (X.tolist(), TILES), TypeError, "x must be a NumPy or CuPy array"),
        ("max_pool_forward_fast", (X, {**TILES, "pool_width": 9}), ValueError, r"window \(2, 9\)"),
        ("max_pool_forward_reshape", (X[:, :, 1:], TILES), ValueError, "must be equal and divide H and W"),
        ("max_pool_backward_fast", (OUT, POOL_CACHE), ValueError, "dout has shape"),
        ("max_pool_backward_fast", (POOLED, POOL_CACHE[1]), TypeError, "cache must begin"),
        ("max_pool_backward_fast", (POOLED, ("loops", ())), TypeError, 'begin with "reshape" or "im2col"'),
        ("max_pool_backward_reshape", (POOLED, (X, TILES, POOLED)), TypeError, "x_reshaped must be"),
        ("conv_relu_backward", (OUT[:1, :1, :1, :1], (CACHE, OUT)), ValueError, "dout has shape"),
        ("conv_relu_backward", (None, (CACHE, OUT)), TypeError, "dout must be a NumPy or CuPy array"),
        ("im2col_indices", (X, 9, 3), ValueError, r"field \(9, 3\)"),
        ("im2col_indices", (X, 0, 3), ValueError, "field_height must be at least 1"),
        ("im2col_indices", (X[0], 3, 3), ValueError, "x must have 4 axes"),
        ("col2im_indices", (COLS[1:], X.shape), ValueError, "cols has shape"),
        ("col2im_indices", (COLS, X.shape[1:]), ValueError, "x_shape must be the 4 sizes"),
    ],
)
def test_wrong_arguments_get_errors_in_the_assignments_terms(name, arguments, error, said):
    function = getattr(cs231n, name)
    with pytest.raises(error, match=f"^{function.__name__.rpartition('_')[0]}_\\w+: .*{said}"):
        function(*arguments)


def test_shares_of_many_equal_maxima_add_up_in_float16():
    pool_param = {"pool_height": 300, "pool_width": 300, "stride": 300}
    out, cache = cs231n.max_pool_forward_fast(np.zeros((1, 1, 300, 300), np.float16), pool_param)
    dx = cs231n.max_pool_backward_fast(np.ones_like(out), cache)
    assert dx.dtype == np.float16
    assert abs(dx.sum(dtype=float) - 1) < 0.01
