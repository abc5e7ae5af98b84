"""`gpuconv.compat.coursera` beside the assignment's loops, which are written out here in plain NumPy."""

import numpy as np
import pytest
from anywhere import close, equal
from host import compiler, cupy_stand_in

from gpuconv.compat import coursera


class Plain:
    """The assignment's functions as they should be: with stride and pad=0 in the gradients, first maxima."""

    @staticmethod
    def conv_forward(A_prev, W, b, hparameters):
        stride, pad = hparameters["stride"], hparameters["pad"]
        f, _, _, channels = W.shape
        padded = np.pad(A_prev, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        n_H, n_W = ((n - f + 2 * pad) // stride + 1 for n in A_prev.shape[1:3])
        Z = np.zeros((len(A_prev), n_H, n_W, channels))
        for i, h, w, c in np.ndindex(Z.shape):
            slice_prev = padded[i, h * stride : h * stride + f, w * stride : w * stride + f]
            Z[i, h, w, c] = (slice_prev * W[..., c]).sum() + b[0, 0, 0, c]
        return Z, (A_prev, W, b, hparameters)

    @staticmethod
    def conv_backward(dZ, cache):
        A_prev, W, b, hparameters = cache
        stride, pad, f = hparameters["stride"], hparameters["pad"], len(W)
        padded = np.pad(A_prev, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        dpadded, dW, db = np.zeros(padded.shape), np.zeros(W.shape), np.zeros(b.shape)
        for i, h, w, c in np.ndindex(dZ.shape):
            here = (i, slice(h * stride, h * stride + f), slice(w * stride, w * stride + f))
            dpadded[here] += W[..., c] * dZ[i, h, w, c]
            dW[..., c] += padded[here] * dZ[i, h, w, c]
            db[..., c] += dZ[i, h, w, c]
        return dpadded[:, pad : pad + A_prev.shape[1], pad : pad + A_prev.shape[2]], dW, db

    @staticmethod
    def pool_forward(A_prev, hparameters, mode="max"):
        f, stride = hparameters["f"], hparameters["stride"]
        n_H, n_W = ((n - f) // stride + 1 for n in A_prev.shape[1:3])
        A = np.zeros((len(A_prev), n_H, n_W, A_prev.shape[3]))
        for i, h, w, c in np.ndindex(A.shape):
            window = A_prev[i, h * stride : h * stride + f, w * stride : w * stride + f, c]
            A[i, h, w, c] = window.max() if mode == "max" else window.mean()
        return A, (A_prev, hparameters)

    @staticmethod
    def pool_backward(dA, cache, mode="max"):
        A_prev, hparameters = cache
        f, stride = hparameters["f"], hparameters["stride"]
        dA_prev = np.zeros(A_prev.shape)
        for i, h, w, c in np.ndindex(dA.shape):
            here = (i, slice(h * stride, h * stride + f), slice(w * stride, w * stride + f), c)
            if mode == "max":
                share = np.arange(f * f).reshape(f, f) == A_prev[here].argmax()
            else:
                share = np.full((f, f), 1 / f**2)
            dA_prev[here] += share * dA[i, h, w, c]
        return dA_prev


def numbers(*shape):
    return np.random.default_rng([*shape]).standard_normal(shape)


# --- the assignment's numbers ------------------------------------------------------------------------


def seeded(*shapes):
    """Return the arrays that the assignment draws after `np.random.seed(1)`."""
    rng = np.random.RandomState(1)
    return [rng.randn(*shape) for shape in shapes]


def test_convolution_gives_the_numbers_that_the_assignment_expects(device):
    A_prev, W, b = map(device.to_array, seeded((10, 4, 4, 3), (2, 2, 3, 8), (1, 1, 1, 8)))
    Z, cache = coursera.conv_forward(A_prev, W, b, {"pad": 2, "stride": 2})
    assert float(Z.mean()) == pytest.approx(0.0489952035289, rel=1e-11)
    expected = [
        -0.61490741,
        -6.7439236,
        -2.55153897,
        1.75698377,
        3.56208902,
        0.53036437,
        5.18531798,
        8.75898442,
    ]
    close(Z[3, 2, 1], expected, rtol=0, atol=6e-9)
    close(cache[0][1][2][3], [-0.20075807, 0.18656139, 0.41005165], rtol=0, atol=6e-9)
    for gradient, mean in zip(
        coursera.conv_backward(Z, cache), [1.45243777754, 1.72699145831, 7.83923256462], strict=True
    ):
        close(gradient.mean(), mean, rtol=1e-11)


def test_one_step_gives_the_number_that_the_assignment_expects(device):
    Z = coursera.conv_single_step(*map(device.to_array, seeded((4, 4, 3), (4, 4, 3), (1, 1, 1))))
    assert float(Z) == pytest.approx(-6.99908945068, rel=1e-11)


def test_pooling_gives_the_numbers_that_the_assignment_expects(device):
    (A_prev,) = map(device.to_array, seeded((2, 4, 4, 3)))
    for mode, expected in (
        ("max", [1.74481176, 0.86540763, 1.13376944, 1.13162939, 1.51981682, 2.18557541]),
        ("average", [0.02105773, -0.20328806, -0.40389855, -0.22154621, 0.51716526, 0.48155844]),
    ):
        A, _ = coursera.pool_forward(A_prev, {"stride": 2, "f": 3}, mode)
        close(A, np.reshape(expected, (2, 1, 1, 3)), rtol=0, atol=6e-9)


def test_pooling_gradients_are_the_numbers_that_the_assignment_expects(device):
    A_prev, dA = map(device.to_array, seeded((5, 5, 3, 2), (5, 4, 2, 2)))
    _, cache = coursera.pool_forward(A_prev, {"stride": 1, "f": 2})
    for mode, expected in (
        ("max", [[0, 0], [5.05844394, -1.68282702], [0, 0]]),
        ("average", [[0.08485462, 0.2787552], [1.26461098, -0.25749373], [1.17975636, -0.53624893]]),
    ):
        close(coursera.pool_backward(dA, cache, mode)[1, 1], expected, rtol=0, atol=6e-9)


# --- against plain NumPy -----------------------------------------------------------------------------


@pytest.mark.parametrize(("f", "stride", "pad"), [(3, 1, 1), (3, 2, 1), (2, 2, 0)])
def test_convolution_and_its_gradients_are_the_loops(device, f, stride, pad):
    A_prev, W, b = numbers(2, 6, 7, 3), numbers(f, f, 3, 4), numbers(1, 1, 1, 4)
    hparameters = {"stride": stride, "pad": pad}
    Z, cache = Plain.conv_forward(A_prev, W, b, hparameters)
    here = [*map(device.to_array, (A_prev, W, b))]
    our_Z, our_cache = coursera.conv_forward(*here, hparameters)
    close(our_Z, Z)
    assert [a is given for a, given in zip(our_cache, (*here, hparameters), strict=True)] == [True] * 4
    dZ = numbers(*Z.shape)
    grads = coursera.conv_backward(device.to_array(dZ), our_cache)
    for got, want in zip(grads, Plain.conv_backward(dZ, cache), strict=True):
        assert got.shape == want.shape
        close(got, want)


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize(("f", "stride"), [(2, 2), (3, 2), (2, 1)])
def test_pooling_and_its_gradient_are_the_loops(device, f, stride, mode):
    A_prev = np.maximum(numbers(2, 6, 7, 3), 0)  # zeros, so that maxima are tied
    hparameters = {"f": f, "stride": stride}
    A, cache = Plain.pool_forward(A_prev, hparameters, mode)
    our_A, our_cache = coursera.pool_forward(device.to_array(A_prev), hparameters, mode)
    close(our_A, A)
    dA = numbers(*A.shape)
    close(coursera.pool_backward(device.to_array(dA), our_cache, mode), Plain.pool_backward(dA, cache, mode))


def test_the_gradient_of_tied_maxima_is_not_multiplied(device):
    ties = device.to_array(np.ones((1, 2, 2, 1)))
    A, cache = coursera.pool_forward(ties, {"f": 2, "stride": 2})
    equal(coursera.pool_backward(A, cache)[0, :, :, 0], [[1, 0], [0, 0]])
    equal(coursera.create_mask_from_window(ties[0, :, :, 0]), [[True, False], [False, False]])


def test_padding_is_zeros_around_the_images(device):
    X = numbers(2, 3, 4, 2)
    padded = device.to_numpy(coursera.zero_pad(device.to_array(X), 2))
    equal(padded[:, 2:-2, 2:-2], X)
    assert (padded.shape, np.count_nonzero(padded)) == ((2, 7, 8, 2), X.size)


def test_a_value_is_spread_evenly(device):
    for dz in (6, 6.0, np.float64(6), device.to_array(np.array(6.0))):
        equal(coursera.distribute_value(dz, (2, 3)), np.ones((2, 3)))


def test_float32_stays_float32():
    A_prev, W, b = (numbers(*shape).astype("f4") for shape in ((1, 4, 4, 2), (3, 3, 2, 3), (1, 1, 1, 3)))
    Z, cache = coursera.conv_forward(A_prev, W, b, {"stride": 1, "pad": 1})
    A, pool_cache = coursera.pool_forward(Z, {"f": 2, "stride": 2}, "average")
    results = (Z, A, *coursera.conv_backward(Z, cache), coursera.pool_backward(A, pool_cache, "average"))
    assert {a.dtype for a in results} == {np.dtype("f4")}


# --- a network ---------------------------------------------------------------------------------------


def losses(layers):
    """Train conv - relu - pool - dense - sigmoid, written out as the course writes its models."""
    rng = np.random.default_rng(3)
    Y = (np.arange(16) % 2).reshape(16, 1)
    X = rng.standard_normal((16, 6, 6, 2))
    X[:, :3] += Y.reshape(16, 1, 1, 1)
    parameters = {"W1": 0.3 * rng.standard_normal((3, 3, 2, 4)), "b1": np.zeros((1, 1, 1, 4))}
    parameters |= {"W2": 0.3 * rng.standard_normal((36, 1)), "b2": np.zeros((1, 1))}
    history = []
    for _ in range(20):
        W1, b1, W2, b2 = parameters.values()
        Z1, conv_cache = layers.conv_forward(X, W1, b1, {"stride": 1, "pad": 1})
        P1, pool_cache = layers.pool_forward(np.maximum(Z1, 0), {"f": 2, "stride": 2}, mode="max")
        flat = P1.reshape(16, -1)
        A2 = 1 / (1 + np.exp(-(flat @ W2 + b2)))
        history.append(-np.mean(Y * np.log(A2) + (1 - Y) * np.log(1 - A2)))
        dZ2 = (A2 - Y) / 16
        dZ1 = layers.pool_backward((dZ2 @ W2.T).reshape(P1.shape), pool_cache, mode="max") * (Z1 > 0)
        _, dW1, db1 = layers.conv_backward(dZ1, conv_cache)
        grads = {"W1": dW1, "b1": db1, "W2": flat.T @ dZ2, "b2": dZ2.sum(axis=0, keepdims=True)}
        parameters = {name: value - 0.3 * grads[name] for name, value in parameters.items()}
    return history


def test_a_network_with_its_layers_swapped_learns_the_same():
    plain = losses(Plain)
    assert plain[-1] < 0.5 * plain[0]
    np.testing.assert_allclose(losses(coursera), plain, rtol=1e-11)


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
def test_on_cupys_arrays_nothing_waits_for_the_gpu():
    with cupy_stand_in.installed() as cupy:
        A_prev, W, b = (cupy.asarray(numbers(*shape)) for shape in ((2, 4, 4, 3), (3, 3, 3, 4), (1, 1, 1, 4)))
        Z, cache = coursera.conv_forward(A_prev, W, b, {"stride": 1, "pad": 1})
        coursera.conv_backward(Z, cache)
        for mode in ("max", "average"):
            A, cache = coursera.pool_forward(Z, {"f": 2, "stride": 2}, mode)
            coursera.pool_backward(A, cache, mode)
        padded = coursera.zero_pad(A_prev, 1)
        one = coursera.conv_single_step(padded[0, :3, :3], W[:, :, :, 0], b[:, :, :, 0])
        mask = coursera.create_mask_from_window(Z[0, :, :, 0])
        assert {type(a) for a in (one, mask, coursera.distribute_value(one, (2, 2)))} == {cupy.ndarray}
        assert not cupy_stand_in.waits


# --- wrong arguments ---------------------------------------------------------------------------------

A_PREV, W, B = np.ones((2, 6, 6, 3)), np.ones((3, 3, 3, 4)), np.ones((1, 1, 1, 4))
CONV, POOL = {"stride": 1, "pad": 1}, {"f": 2, "stride": 2}
Z, CACHE = coursera.conv_forward(A_PREV, W, B, CONV)
A, POOL_CACHE = coursera.pool_forward(A_PREV, POOL)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "said"),
    [
        ("conv_forward", (A_PREV.tolist(), W, B, CONV), TypeError, "A_prev must be a NumPy or CuPy array"),
        ("conv_forward", (A_PREV[0], W, B, CONV), ValueError, "A_prev must have 4 axes"),
        ("conv_forward", (A_PREV, W[0], B, CONV), ValueError, "W must have 4 axes"),
        (
            "conv_forward",
            (A_PREV, W[:, :, :2], B, CONV),
            ValueError,
            "W has 2 .* but A_prev has 3",
        ),
        ("conv_forward", (A_PREV, W, B[0, 0, 0], CONV), ValueError, r"b has shape \(4,\), .* \(1, 1, 1, 4\)"),
        (
            "conv_forward",
            (A_PREV, W, B, {"stride": 1}),
            ValueError,
            "hparameters .* 'pad' is missing",
        ),
        ("conv_forward", (A_PREV, W, B, {**CONV, "pad": -1}), ValueError, r"hparameters\['pad'\] must be"),
        ("conv_forward", (A_PREV, W, B, None), TypeError, "hparameters must be a dictionary"),
        (
            "conv_forward",
            (A_PREV[:, :1], W, B, {**CONV, "pad": 0}),
            ValueError,
            "the kernel of W .* A_prev",
        ),
        ("conv_backward", (Z[:1], CACHE), ValueError, "dZ has shape .* gradient of Z"),
        ("conv_backward", (Z, CACHE[:2]), TypeError, "cache must be what conv_forward returned"),
        ("pool_forward", (A_PREV, POOL, "mean"), ValueError, 'mode must be "max" or "average", not \'mean\''),
        ("pool_forward", (A_PREV, {"f": 2}), ValueError, "hparameters must have .* 'stride' is missing"),
        ("pool_forward", (A_PREV, {**POOL, "f": 7}), ValueError, r"window \(7, 7\) .* of A_prev"),
        ("pool_forward", (A_PREV.astype(int), POOL, "average"), TypeError, "A_prev has dtype int64"),
        ("pool_backward", (Z, POOL_CACHE), ValueError, "dA has shape"),
        ("pool_backward", (A, POOL_CACHE, "first"), ValueError, "mode must be"),
        ("pool_backward", (A, POOL_CACHE[0]), TypeError, "cache must be what pool_forward returned"),
        ("zero_pad", (A_PREV[0], 1), ValueError, "X must have 4 axes"),
        ("zero_pad", (A_PREV, 0.5), TypeError, "pad must be an integer"),
        ("conv_single_step", (A_PREV[0], W[..., 0], B[0]), ValueError, "a_slice_prev has shape"),
        ("conv_single_step", (W[..., 0], W[..., 0], B[0]), ValueError, "b has shape"),
        ("create_mask_from_window", ([1, 2],), TypeError, "x must be a NumPy or CuPy array"),
        (
            "conv_single_step",
            (np.ones((2, 2, 3), int), np.ones((2, 2, 3), int), np.ones((1, 1, 1), int)),
            TypeError,
            "a_slice_prev is int64",
        ),
        ("distribute_value", ([1.0], (2, 2)), TypeError, "dz must be a NumPy or CuPy array"),
        ("distribute_value", (1.0, (0, 2)), ValueError, r"shape\[0\] must be at least 1"),
        ("distribute_value", (1.0, 2), ValueError, "shape must be the 2 sizes"),
    ],
)
def test_wrong_arguments_get_errors_in_the_assignments_terms(name, arguments, error, said):
    with pytest.raises(error, match=f"^{name}: .*{said}"):
        getattr(coursera, name)(*arguments)
