"""The worked cases that the project grew from, as numbers: S1 to S8, one section each.

Letters with two digits are the cases' own entries: a12 stands in row 1, column 2.
"""

import numpy as np
import pytest
from anywhere import close, equal

import gpuconv
from gpuconv import nn
from gpuconv.training.fit import fit

F64 = np.float64


@pytest.fixture
def rng():
    return np.random.default_rng(42)


@pytest.fixture
def ops(device):
    """gpuconv's functions from NumPy arrays to NumPy arrays, computed on each device."""
    return Ops(device)


class Ops:
    def __init__(self, device):
        self._device = device

    def __getattr__(self, name):
        def call(*arguments, **options):
            there = (self._device.to_array(a) if isinstance(a, np.ndarray) else a for a in arguments)
            result = getattr(gpuconv, name)(*there, **options)
            if isinstance(result, tuple):
                return tuple(map(self._device.to_numpy, result))
            return self._device.to_numpy(result)

        return call


def plane(values):
    """One image with one channel."""
    return np.array(values, F64)[None, None]


# --- S1: convolution as a matrix product, by groups --------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_s1_grouped_convolution_and_its_gradients_are_products_with_im2cols_columns(groups, rng, ops):
    n, c, f, h, w = 3, 4, 8, 6, 5
    x, k = rng.standard_normal((n, c, h, w)), rng.standard_normal((f, c // groups, 3, 3))
    where = {"stride": (2, 1), "padding": 1}
    y = ops.conv2d(x, k, groups=groups, **where)
    dy = rng.standard_normal(y.shape)
    dx, dk, db = ops.conv2d_backward(dy, x, k, groups=groups, **where)

    cg, fg = c // groups, f // groups
    col = ops.im2col(x, 3, **where)  # once, for forward and weight gradient
    for g in range(groups):
        rows = slice(g * cg * 9, (g + 1) * cg * 9)  # the group's part of the column buffer
        outs = slice(g * fg, (g + 1) * fg)
        matrix = k[outs].reshape(fg, cg * 9)
        dy_g = dy[:, outs].reshape(n, fg, -1)
        close(y[:, outs].reshape(n, fg, -1), matrix @ col[:, rows])
        close(dk[outs].reshape(fg, -1), sum(dy_g[i] @ col[i, rows].T for i in range(n)))
        dcol = matrix.T @ dy_g
        close(dx[:, g * cg : (g + 1) * cg], ops.col2im(dcol, (n, cg, h, w), 3, **where))
    close(db, dy.reshape(n, f, -1).sum(axis=(0, 2)))


def test_s1_a_pointwise_kernel_needs_no_columns(rng, ops):
    x, k = rng.standard_normal((2, 6, 5, 4)), rng.standard_normal((3, 6, 1, 1))
    equal(ops.im2col(x, 1), x.reshape(2, 6, 20))
    y = ops.conv2d(x, k)
    close(y, np.einsum("fc,nchw->nfhw", k[:, :, 0, 0], x))
    dx, dk, _ = ops.conv2d_backward(y, x, k)
    close(dx, np.einsum("fc,nfhw->nchw", k[:, :, 0, 0], y))
    close(dk[:, :, 0, 0], np.einsum("nfhw,nchw->fc", y, x))


def test_s1_columns_of_the_gradient_fold_back_as_sums(rng, ops):
    x, col = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((2, 3 * 4, 4 * 5))
    # <im2col(x), col> = <x, col2im(col)> is what "adjoint" means.
    assert np.vdot(ops.im2col(x, 2), col) == pytest.approx(np.vdot(x, ops.col2im(col, x.shape, 2)))


# --- S2: the input gradient is a convolution, too ----------------------------------------------------


@pytest.mark.parametrize(
    "kernel, padding, dilation", [(3, 0, 1), (3, 1, 1), (2, 1, 1), (3, 2, 2), ((3, 1), (1, 0), 1)]
)
def test_s2_both_ways_to_the_input_gradient_agree(kernel, padding, dilation, rng, ops):
    kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    ph, pw = padding if isinstance(padding, tuple) else (padding, padding)
    x, w = rng.standard_normal((2, 3, 7, 8)), rng.standard_normal((4, 3, kh, kw))
    y = ops.conv2d(x, w, padding=padding, dilation=dilation)
    dy = rng.standard_normal(y.shape)

    dcol = w.reshape(4, -1).T @ dy.reshape(2, 4, -1)
    by_columns = ops.col2im(dcol, x.shape, (kh, kw), padding=padding, dilation=dilation)

    rotated = w[:, :, ::-1, ::-1].swapaxes(0, 1)  # turned by 180 degrees, in and out swapped
    ring = (dilation * (kh - 1) - ph, dilation * (kw - 1) - pw)
    by_convolution = ops.conv2d(dy, rotated, padding=ring, dilation=dilation)

    close(by_columns, by_convolution)
    grad = ops.conv2d_input_grad(dy, w, x.shape, padding=padding, dilation=dilation)
    close(grad, by_columns)


# --- S3: several channels, channels last --------------------------------------------------------------

# (B, H, W, k, C_in, C_out) = (1, 3, 3, 2, 3, 2). Entries are told apart by their digits: x and k by row,
# column, channel (and output channel), dy by row, column, output channel.
X3 = np.array([[[[100 * i + 10 * j + c for c in (1, 2, 3)] for j in (1, 2, 3)] for i in (1, 2, 3)]], F64)
K3 = np.array(
    [
        [[[1000 * f + 100 * i + 10 * j + c for f in (1, 2)] for c in (1, 2, 3)] for j in (1, 2)]
        for i in (1, 2)
    ],
    F64,
)
DY3 = np.array([[[[11, 211], [12, 212]], [[21, 221], [22, 222]]]], F64)


def test_s3_columns_hold_one_window_a_row_taps_before_channels(ops):
    col = ops.im2col(X3, 2, channels_last=True)
    assert col.shape == (1, 4, 2 * 2 * 3)
    equal(col[0, 0], [111, 112, 113, 121, 122, 123, 211, 212, 213, 221, 222, 223])
    equal(col[0, 3], [221, 222, 223, 231, 232, 233, 321, 322, 323, 331, 332, 333])
    two = np.concatenate([X3, X3 + 0.5])  # the batch is an axis of its own
    equal(ops.im2col(two, 2, channels_last=True), np.concatenate([col, col + 0.5]))


def test_s3_forward_is_columns_times_kernels(ops):
    y = ops.conv2d(X3, K3, channels_last=True)
    equal(y, (ops.im2col(X3, 2, channels_last=True) @ K3.reshape(12, 2)).reshape(1, 2, 2, 2))
    assert y[0, 0, 0, 0] == sum(
        X3[0, i, j, c] * K3[i, j, c, 0] for i in (0, 1) for j in (0, 1) for c in (0, 1, 2)
    )


def test_s3_kernel_gradient_is_transposed_columns_times_dy(ops):
    _, dk, db = ops.conv2d_backward(DY3, X3, K3, channels_last=True)
    equal(dk, (ops.im2col(X3, 2, channels_last=True)[0].T @ DY3.reshape(4, 2)).reshape(2, 2, 3, 2))
    equal(db, [11 + 12 + 21 + 22, 211 + 212 + 221 + 222])  # a sum: not divided by the batch


def test_s3_input_gradient_is_the_nine_by_eight_matrix_times_the_eight_by_three(ops):
    # Columns: taps 22, 21, 12, 11 of the first kernel, then of the second.
    big_dy = np.array(
        [
            [0, 0, 0, 11, 0, 0, 0, 211],
            [0, 0, 11, 12, 0, 0, 211, 212],
            [0, 0, 12, 0, 0, 0, 212, 0],
            [0, 11, 0, 21, 0, 211, 0, 221],
            [11, 12, 21, 22, 211, 212, 221, 222],
            [12, 0, 22, 0, 212, 0, 222, 0],
            [0, 21, 0, 0, 0, 221, 0, 0],
            [21, 22, 0, 0, 221, 222, 0, 0],
            [22, 0, 0, 0, 222, 0, 0, 0],
        ],
        F64,
    )
    big_k = np.array(
        [
            [1000 * f + 100 * i + 10 * j + c for c in (1, 2, 3)]
            for f in (1, 2)
            for i in (2, 1)
            for j in (2, 1)
        ],
        F64,
    )
    assert (big_dy.shape, big_k.shape) == ((9, 8), (8, 3))

    # The matrix is im2col of the padded dy, with (2 + 2P - 2)/1 + 1 = 3 solved by P = 1 ...
    col = ops.im2col(DY3, 2, padding=1, channels_last=True)  # [1, 9, 4 taps * 2 kernels]
    equal(col.reshape(9, 4, 2).swapaxes(1, 2).reshape(9, 8), big_dy)
    # ... the other is the kernels turned by 180 degrees, in and out swapped ...
    turned = K3[::-1, ::-1].swapaxes(2, 3)
    equal(turned.reshape(4, 2, 3).swapaxes(0, 1).reshape(8, 3), big_k)
    # ... and their product is dx.
    dx = ops.conv2d_input_grad(DY3, K3, X3.shape, channels_last=True)
    equal(dx.reshape(9, 3), big_dy @ big_k)
    equal(dx, ops.conv2d(DY3, turned, padding=1, channels_last=True))


def test_s3_entries_of_the_input_gradient_by_hand(ops):
    dx = ops.conv2d_input_grad(DY3, K3, X3.shape, channels_last=True)[0, :, :, 0]
    k = {(f, i, j): 1000 * f + 100 * i + 10 * j + 1 for f in (1, 2) for i in (1, 2) for j in (1, 2)}
    assert dx[0, 0] == 11 * k[1, 1, 1] + 211 * k[2, 1, 1]
    assert dx[1, 0] == 11 * k[1, 2, 1] + 21 * k[1, 1, 1] + 211 * k[2, 2, 1] + 221 * k[2, 1, 1]
    assert dx[2, 1] == 21 * k[1, 2, 2] + 22 * k[1, 2, 1] + 221 * k[2, 2, 2] + 222 * k[2, 2, 1]


# --- S4: pass the error back, get dW and db from it, update -------------------------------------------


def test_s4_error_goes_back_and_parameters_go_down_their_gradients(rng, device, ops):
    layer = nn.Conv2d(1, 1, 2, dtype=F64, rng=rng)
    w, b = layer.params["weight"].copy(), layer.params["bias"].copy()
    x, dy = rng.standard_normal((2, 1, 3, 3)), rng.standard_normal((2, 1, 2, 2))
    device.move(layer)(device.to_array(x))
    dx = layer.backward(device.to_array(dy))
    close(dx, ops.conv2d(dy, w[:, :, ::-1, ::-1], padding=1))  # a ring of zeros, the kernel turned
    dw = np.array([[np.vdot(x[:, 0, p : p + 2, q : q + 2], dy) for q in (0, 1)] for p in (0, 1)])
    nn.SGD(layer, 0.1).step()
    close(layer.params["weight"], w - 0.1 * dw)
    close(layer.params["bias"], b - 0.1 * dy.sum())


# --- S5: pooling --------------------------------------------------------------------------------------

DELTA5 = plane([[2, 8], [4, 6]])


def test_s5_max_pooling_sends_the_error_to_the_recorded_places(device, ops):
    x = plane([[9, 1, 2, 3], [4, 5, 6, 9], [1, 9, 2, 3], [4, 5, 9, 6]])  # maxima: ↖ ↘ ↗ ↙
    pool = nn.MaxPool2d(2)
    equal(pool(device.to_array(x)), plane([[9, 9], [9, 9]]))
    dx = pool.backward(device.to_array(DELTA5))
    equal(dx, plane([[2, 0, 0, 0], [0, 0, 0, 8], [0, 4, 0, 0], [0, 0, 6, 0]]))
    equal(ops.max_pool2d(x, 2)[1], np.array([[[[0, 3], [1, 2]]]]))


def test_s5_average_pooling_spreads_the_error_evenly(device):
    pool = nn.AvgPool2d(2)
    x = plane(np.arange(16).reshape(4, 4))
    equal(pool(device.to_array(x)), plane([[2.5, 4.5], [10.5, 12.5]]))
    dx = pool.backward(device.to_array(DELTA5))
    equal(dx, plane([[0.5, 0.5, 2, 2], [0.5, 0.5, 2, 2], [1, 1, 1.5, 1.5], [1, 1, 1.5, 1.5]]))


# --- S6: the error of a convolution layer and its kernel gradient -------------------------------------

A6 = plane([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
W6 = plane([[10, 20], [30, 40]])
D6 = plane([[1, 100], [10000, 1000000]])  # every product keeps its own digits


def test_s6_the_four_outputs_of_three_by_three_times_two_by_two(ops):
    (a11, a12, a13), (a21, a22, a23), (a31, a32, a33) = A6[0, 0]
    (w11, w12), (w21, w22) = W6[0, 0]
    z = [
        [a11 * w11 + a12 * w12 + a21 * w21 + a22 * w22, a12 * w11 + a13 * w12 + a22 * w21 + a23 * w22],
        [a21 * w11 + a22 * w12 + a31 * w21 + a32 * w22, a22 * w11 + a23 * w12 + a32 * w21 + a33 * w22],
    ]
    equal(ops.conv2d(A6, W6), plane(z))
    equal(z, [[370, 470], [670, 770]])


def test_s6_the_nine_input_gradients(ops):
    (d11, d12), (d21, d22) = D6[0, 0]
    (w11, w12), (w21, w22) = W6[0, 0]
    da = [
        [d11 * w11, d11 * w12 + d12 * w11, d12 * w12],
        [d11 * w21 + d21 * w11, d11 * w22 + d12 * w21 + d21 * w12 + d22 * w11, d12 * w22 + d22 * w12],
        [d21 * w21, d21 * w22 + d22 * w21, d22 * w22],
    ]
    equal(ops.conv2d_input_grad(D6, W6, A6.shape), plane(da))
    ringed = plane([[0, 0, 0, 0], [0, d11, d12, 0], [0, d21, d22, 0], [0, 0, 0, 0]])
    equal(ops.conv2d(ringed, plane([[w22, w21], [w12, w11]])), plane(da))


def test_s6_the_nine_kernel_gradients_of_four_by_four_and_three_by_three(ops):
    a = np.arange(1.0, 17).reshape(4, 4)
    d = D6[0, 0]
    dw = ops.conv2d_weight_grad(D6, plane(a), 3)
    assert dw[0, 0, 0, 0] == a[0, 0] * d[0, 0] + a[0, 1] * d[0, 1] + a[1, 0] * d[1, 0] + a[1, 1] * d[1, 1]
    equal(dw[0, 0], [[np.vdot(a[p : p + 2, q : q + 2], d) for q in range(3)] for p in range(3)])
    equal(dw, ops.conv2d(plane(a), D6))  # a convolution of a with δ, which is not rotated
    equal(ops.conv2d_bias_grad(D6), [1010101])


def test_s6_error_recursion_through_sigmoid_layers(rng, device, ops):
    first, second = nn.Conv2d(1, 2, 2, dtype=F64, rng=rng), nn.Conv2d(2, 3, 2, dtype=F64, rng=rng)
    w1, w2 = (layer.params["weight"] for layer in (first, second))
    network = device.move(nn.Sequential(first, nn.Sigmoid(), second, nn.Sigmoid()))
    x = rng.standard_normal((2, 1, 5, 5))
    a1 = 1 / (1 + np.exp(-ops.conv2d(x, w1)))
    a2 = device.to_numpy(network(device.to_array(x)))
    network.backward(device.to_array(np.ones_like(a2)))
    delta2 = a2 * (1 - a2)
    turned = w2[:, :, ::-1, ::-1].swapaxes(0, 1)
    delta1 = ops.conv2d(delta2, turned, padding=1) * a1 * (1 - a1)  # δ(l) * rot180(W) ⊙ σ'(z)
    close(second.grads["weight"], ops.conv2d_weight_grad(delta2, a1, 2))
    close(second.grads["bias"], delta2.sum(axis=(0, 2, 3)))
    close(first.grads["weight"], ops.conv2d_weight_grad(delta1, x, 2))
    close(first.grads["bias"], delta1.sum(axis=(0, 2, 3)))


def test_s6_with_s5_each_backward_holds_its_own_derivative_whatever_the_order(rng, device):
    # The sigmoid rises, so it may stand before or behind a max pooling; the derivative is counted once.
    x, dy = (device.to_array(rng.standard_normal((2, 3, size, size))) for size in (4, 2))
    before, behind = (
        nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(2)),
        nn.Sequential(nn.MaxPool2d(2), nn.Sigmoid()),
    )
    close(before(x), behind(x))
    close(before.backward(dy), behind.backward(dy))


# --- S7: dense layers ---------------------------------------------------------------------------------


def test_s7_dense_recursion_and_gradients_by_hand(device):
    w1, b1 = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([0.1, -0.2])
    w2, b2 = np.array([[2.0, -1.0]]), np.array([0.3])
    network = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Sigmoid())
    for name, value in {"0.weight": w1, "0.bias": b1, "2.weight": w2, "2.bias": b2}.items():
        network.params[name] = device.to_array(value)
    x, target = np.array([0.4, -0.7]), np.array([1.0])

    a1 = 1 / (1 + np.exp(-(w1 @ x + b1)))
    a2 = 1 / (1 + np.exp(-(w2 @ a1 + b2)))
    delta2 = 2 * (a2 - target) * a2 * (1 - a2)
    delta1 = w2.T @ delta2 * a1 * (1 - a1)  # δ = Wᵀδ ⊙ σ'

    loss = nn.MSE("sum")
    loss(network(device.to_array(x[None])), device.to_array(target[None]))
    dx = network.backward(loss.backward())
    close(network.grads["2.weight"], np.outer(delta2, a1))  # dW = δ aᵀ
    close(network.grads["2.bias"], delta2)
    close(network.grads["0.weight"], np.outer(delta1, x))
    close(network.grads["0.bias"], delta1)
    close(dx[0], w1.T @ delta1)


# --- S8: the whole algorithm --------------------------------------------------------------------------


@pytest.fixture
def s8_network(device):
    return lambda: device.move(every_kind_of_layer())


def every_kind_of_layer():
    """Convolution (K, F, P, S), both poolings (k), dense; sigmoids; then softmax."""
    rng = np.random.default_rng(8)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=1, padding=1, dtype=F64, rng=rng),
        nn.Sigmoid(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, stride=1, padding=1, dtype=F64, rng=rng),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6, dtype=F64, rng=rng),
        nn.Sigmoid(),
        nn.Linear(6, 2, dtype=F64, rng=rng),
    )


@pytest.fixture
def s8_pictures(device):
    """Horizontal and vertical bars, with some noise, and which they are."""
    rng = np.random.default_rng(1)
    x, y = 0.1 * rng.standard_normal((8, 1, 8, 8)), np.arange(8) % 2
    for i in range(8):
        bar = 1 + i // 2
        x[i, 0, bar, :] += 5 * (1 - y[i])
        x[i, 0, :, bar] += 5 * y[i]
    return device.to_array(x), device.to_array(y)


def test_s8_stops_at_max_iterations(s8_network, s8_pictures):
    network, (x, y) = s8_network(), s8_pictures
    optimizer = nn.SGD(network, 1.0)
    history = fit(network, x, y, loss=nn.SoftmaxCrossEntropy(), optimizer=optimizer, max_iterations=7)
    assert (history.stopped_by, history.iterations) == ("max_iterations", 7)


def test_s8_stops_when_every_change_is_under_epsilon(s8_network, s8_pictures):
    network, (x, y) = s8_network(), s8_pictures
    moves, last = [], network.state_dict()

    def watch(iteration, loss):
        now = network.state_dict()
        moves.append(max(float(abs(now[name] - last[name]).max()) for name in now))
        last.update(now)

    epsilon = 0.01
    history = fit(
        network,
        x,
        y,
        loss=nn.SoftmaxCrossEntropy(),
        optimizer=nn.SGD(network, 1.0),
        max_iterations=5000,
        tolerance=epsilon,
        callback=watch,
    )
    assert history.stopped_by == "tolerance"
    assert 1 < history.iterations < 5000
    assert moves[-1] <= epsilon < min(moves[:-1])


def test_s8_batch_gradient_descent_learns_bars_and_each_update_is_the_algorithms(s8_network, s8_pictures):
    network, (x, y) = s8_network(), s8_pictures
    by_hand, alpha = s8_network(), 1.5
    loss = nn.SoftmaxCrossEntropy("sum")

    # One iteration as the algorithm writes it: each picture on its own, its gradients added up.
    total = {name: 0 * p for name, p in by_hand.params.items()}
    for i in range(8):
        loss(by_hand(x[i : i + 1]), y[i : i + 1])
        by_hand.backward(loss.backward())
        for name, grad in by_hand.grads.items():
            total[name] += grad
    fit(
        network,
        x,
        y,
        loss=loss,
        optimizer=nn.SGD(network, alpha / 8),
        max_iterations=1,
    )
    for name, p in by_hand.params.items():
        close(network.params[name], p - alpha / 8 * total[name])

    history = fit(
        network,
        x,
        y,
        loss=nn.SoftmaxCrossEntropy(),
        optimizer=nn.SGD(network, alpha),
        max_iterations=80,
    )
    assert history.losses[-1] < 0.1 < history.losses[0]
    assert (network.eval()(x).argmax(axis=1) == y).all()
