"""Complex numbers, on every backend: the definitions, norms, real arrays among complex ones."""

import random
from dataclasses import replace

import numpy as np
import pytest
from cases import draw, draw_transposed, in_layout, lay_out, weights_in_layout
from host import runtime as host_runtime
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv import reference as define

randoms = st.randoms(use_true_random=False)
ranks = pytest.mark.parametrize("axes", [1, 2, 3])
layouts = pytest.mark.parametrize("channels_last", [False, True])
DRAWS = {False: ("conv", draw), True: ("conv_transpose", draw_transposed)}
kinds = pytest.mark.parametrize("transposed", DRAWS, ids=["", "transposed"])
C16 = np.dtype("c16")


@pytest.fixture(scope="module", autouse=True)
def one_order():
    """Run kernels once: other tests show that the order of their threads doesn't matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_runtime.host, "orders", 1)
        yield


def _numbers(case, name, shape, dtype=C16, *, whole=True):
    """Return random numbers as a case gives them; complex ones have two parts of them."""
    numbers = case.array(name, shape, whole=whole)
    if np.dtype(dtype).kind == "c":
        numbers = numbers + 1j * case.array(f"{name}'s imaginary part", shape, whole=whole)
    return numbers.astype(dtype)


def _arrays(case, dtypes=C16, *, whole=True):
    """Return x, w, b and dy, of one dtype or of one each."""
    shapes = (case.x_shape(), case.w_shape(), (case.c_out,), case.y_shape())
    dtypes = dtypes if isinstance(dtypes, list) else [dtypes] * 4
    return [
        _numbers(case, *named, whole=whole)
        for named in zip(("x", "w", "b", "dy"), shapes, dtypes, strict=True)
    ]


def _defined(case, transposed, x, w, b, dy, flip=False):
    """Return y, dx, dw and db by the definition, in the case's layout."""
    x, dy = (define.first(a, case.channels_last) for a in (x, dy))
    turn = (..., *(slice(None, None, -1 if flip else None),) * len(case.kernel))
    w = define.weights_first(w, case.channels_last)[turn]
    names = ("", "_input_grad", "_weight_grad")
    conv, by_x, by_w = (getattr(define, DRAWS[transposed][0] + name) for name in names)
    window = case.sliding(), case.groups
    return (
        in_layout(case, conv(x, w, b, *window)),
        in_layout(case, by_x(dy, w.conj(), *window)),
        weights_in_layout(case, by_w(dy, x.conj(), *window)[turn]),
        define.conv_bias_grad(dy),
    )


def _computed(backend, case, transposed, x, w, b, dy, **options):
    """Return y and the gradients, from the public functions."""
    name = f"{DRAWS[transposed][0]}{len(case.kernel)}d"
    x, w, b, dy = (backend.to_array(a) if isinstance(a, np.ndarray) else a for a in (x, w, b, dy))
    y = getattr(gpuconv, name)(x, w, b, **case.conv(), **options)
    return [y, *getattr(gpuconv, f"{name}_backward")(dy, x, w, **case.conv(), **options)]


def _check_exact(backend, got, want, dtypes):
    for array, must, dtype in zip(got, want, dtypes, strict=True):
        assert array.dtype == dtype
        np.testing.assert_array_equal(backend.to_numpy(array), must)


@kinds
@ranks
@settings(max_examples=15)
@given(rng=randoms)
def test_convolution_and_gradients_are_exactly_the_definition_on_whole_numbers(
    backend, axes, transposed, rng
):
    case = DRAWS[transposed][1](rng, axes=axes)
    dtype, flip = rng.choice([np.complex64, C16]), bool(rng.randint(0, 1))
    arrays = _arrays(case, dtype)
    given_arrays = (lay_out(rng, backend.to_array(a)) for a in arrays)
    got = _computed(backend, case, transposed, *given_arrays, flip=flip)
    _check_exact(backend, got, _defined(case, transposed, *arrays, flip), [dtype] * 4)


def _plain(axes, channels_last, transposed, **changes):
    """Return a case of no difficulty but those given."""
    case = DRAWS[transposed][1](random.Random(0), axes=axes)
    plain = {
        "n": 2,
        "c_in": 4,
        "c_out": 4,
        "groups": 1,
        "in_size": (5,) * axes,
        "kernel": (3,) * axes,
        "stride": (1,) * axes,
        "dilation": (1,) * axes,
        "padding": 1,
        "channels_last": channels_last,
        **({"output_padding": (0,) * axes} if transposed else {}),
    }
    return replace(case, **{**plain, **changes})


@layouts
@kinds
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": (1,), "padding": 0},
        {"kernel": (1,), "padding": 0, "stride": (2,)},
        {"groups": 4},
        {"groups": 4, "c_out": 8, "stride": (2,)},
        {"groups": 2, "padding": "same"},
    ],
    ids=["1x1", "1x1 with a stride", "depthwise", "two outputs a channel", "groups"],
)
def test_the_ways_of_their_own_that_some_kernels_go(backend, axes, channels_last, transposed, changes):
    wide = {name: value * axes if isinstance(value, tuple) else value for name, value in changes.items()}
    case = _plain(axes, channels_last, transposed, **wide)
    if transposed:
        case = replace(case, c_in=case.c_out, c_out=case.c_in)
    arrays = _arrays(case)
    got = _computed(backend, case, transposed, *arrays)
    _check_exact(backend, got, _defined(case, transposed, *arrays), [C16] * 4)


# Real arrays among complex ones.


@layouts
@kinds
@pytest.mark.parametrize("complex_ones", ["x", "w", "b", "dy", "xb", "wb", "xw", "xdy", "wdy", "xwb", "xwdy"])
def test_a_real_arrays_gradient_is_the_real_part(backend, channels_last, transposed, complex_ones):
    case = _plain(2, channels_last, transposed, groups=2)
    dtypes = [C16 if name in complex_ones else np.dtype("f8") for name in ("x", "w", "b", "dy")]
    x, w, b, dy = _arrays(case, dtypes)
    y, dx, dw, db = _defined(case, transposed, x, w, b, dy)
    by_x, by_w = (
        np.result_type(dy, other) if a.dtype == C16 else np.dtype("f8") for a, other in ((x, w), (w, x))
    )
    want = (y, dx if x.dtype == C16 else dx.real, dw if w.dtype == C16 else dw.real, db)
    got = _computed(backend, case, transposed, x, w, b, dy)
    _check_exact(backend, got, want, [np.result_type(x, w, b), by_x, by_w, dy.dtype])


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype", "dtype"),
    [("c8", "f8", "c16"), ("f4", "c16", "c16"), ("f2", "c8", "c8"), ("c8", "f4", "c8"), ("i2", "c8", "c8")],
)
def test_dtypes_promote_as_numpys(backend, x_dtype, w_dtype, dtype):
    case = _plain(2, False, False)
    x, w, b, _ = _arrays(case, [np.dtype(x_dtype), np.dtype(w_dtype), np.dtype("f4"), C16])
    want = define.conv(x, w, b, case.sliding(), 1)
    y = gpuconv.conv2d(*map(backend.to_array, (x, w, b)), **case.conv())
    _check_exact(backend, [y], [want], [np.dtype(dtype)])


@layouts
def test_single_gradients_keep_both_parts_whatever_x_is(backend, channels_last):
    case = _plain(2, channels_last, False)
    x, w, _, dy = _arrays(case)
    _, dx, dw, db = _defined(case, False, x.real, w, None, dy)
    dy1, x1, w1 = (backend.to_array(a) for a in (dy, x.real.copy(), w))
    got = (
        gpuconv.conv2d_input_grad(dy1, w1, x.shape, **case.conv()),
        gpuconv.conv2d_weight_grad(dy1, x1, case.kernel, **case.conv()),
        gpuconv.conv2d_bias_grad(dy1, channels_last=channels_last),
    )
    _check_exact(backend, got, (dx, dw, db), [C16] * 3)


def test_real_parts_are_written_to_out(backend):
    case = _plain(2, False, False)
    x, w, _, dy = _arrays(case, [np.dtype("f8"), C16, C16, C16])
    _, dx, _, _ = _defined(case, False, x, w, None, dy)
    dy1, x1, w1 = map(backend.to_array, (dy, x, w))
    for where in (slice(None), slice(None, None, 2), slice(None, None, -1)):
        whole = backend.to_array(np.full((*x.shape[:-1], 2 * x.shape[-1]), 77.0))
        out = whole[..., where][..., : x.shape[-1]]
        got = gpuconv.conv2d_backward(dy1, x1, w1, **case.conv(), needs=("x",), out=(out, None, None))
        assert got.dx is out
        np.testing.assert_array_equal(backend.to_numpy(out), dx.real)
        assert (backend.to_numpy(whole) == 77).sum() >= x.size
    said = r"conv2d_backward: out\[0\] has dtype complex128, but the result is float64"
    with pytest.raises(TypeError, match=said):
        gpuconv.conv2d_backward(dy1, x1, w1, **case.conv(), out=(out.astype(C16), None, None))


# Adjoints, with the product <a, b> = sum of conj(a) * b.


def _check_adjoint(backend, y, dy, x, dx):
    y, dx = map(backend.to_numpy, (y, dx))
    want, got = np.vdot(dy, y), np.vdot(dx, x)
    scale = np.abs(y).sum() * np.abs(dy).max(initial=0) + 1
    assert abs(got - want) <= 1e-12 * scale


# Averages and the like are made of sums and real factors: the parts go through them each for itself.


def _linear(op, case, count_include_pad=True):
    """Return a linear operation with its gradient as functions of one array, and the shape of its result."""
    last, axes = {"channels_last": case.channels_last}, len(case.kernel)
    x_shape, some = case.x_shape(), tuple(range(2, 2 + axes))

    def laid(*sizes):
        return replace(case, in_size=sizes).x_shape()

    if op == "avg_pool":
        options = {**case.pool(), "count_include_pad": count_include_pad}
        forward, backward = (getattr(gpuconv, f"avg_pool{axes}d{name}") for name in ("", "_backward"))
        return (
            lambda x: forward(x, case.kernel, **options),
            lambda dy: backward(dy, x_shape, case.kernel, **options),
            case.y_shape(pool=True),
        )
    if op == "adaptive_avg_pool2d":
        return (
            lambda x: gpuconv.adaptive_avg_pool2d(x, some, **last),
            lambda dy: gpuconv.adaptive_avg_pool2d_backward(dy, x_shape, **last),
            laid(*some),
        )
    if op == "global_avg_pool":
        return (
            lambda x: gpuconv.global_avg_pool(x, **last),
            lambda dy: gpuconv.global_avg_pool_backward(dy, x_shape, **last),
            laid(*(1,) * axes),
        )
    return (
        lambda x: gpuconv.upsample(x, some, **last),
        lambda dy: gpuconv.upsample_backward(dy, some, **last),
        laid(*(n * times for n, times in zip(case.in_size, some, strict=True))),
    )


def _with_infinities(rng, x):
    """Put infinities and NaN into some real and some imaginary parts."""
    for part in (x.real, x.imag):
        for value in (np.inf, -np.inf, np.nan):
            if x.size and rng.randint(0, 1):
                part[tuple(rng.randrange(n) for n in x.shape)] = value
    return x


@pytest.mark.parametrize("op", ["avg_pool", "adaptive_avg_pool2d", "global_avg_pool", "upsample"])
@settings(max_examples=12)
@given(rng=randoms)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf - inf
def test_averages_are_those_of_the_parts_and_gradients_their_adjoints(backend, op, rng):
    case = draw(rng, pool=True, axes=2 if op.endswith("2d") else rng.randint(1, 3))
    forward, backward, y_shape = _linear(op, case, bool(rng.randint(0, 1)))
    dtype = rng.choice([np.complex64, C16])
    x, dy = (_numbers(case, n, shape, dtype) for n, shape in (("x", case.x_shape()), ("dy", y_shape)))
    x1, dy1 = (lay_out(rng, backend.to_array(a)) for a in (x, dy))
    y, dx = forward(x1), backward(dy1)
    assert (y.shape, y.dtype, dx.shape, dx.dtype) == (y_shape, dtype, x.shape, dtype)
    if dtype == C16:
        _check_adjoint(backend, y, dy, x, dx)
    for function, a in ((forward, x), (backward, dy)):
        a = _with_infinities(rng, a.copy())
        got = backend.to_numpy(function(backend.to_array(a)))
        for part, alone in ((got.real, a.real.copy()), (got.imag, a.imag.copy())):
            want = backend.to_numpy(function(backend.to_array(alone)))
            near = 32 * np.finfo(want.dtype).eps  # real arrays may go another way
            np.testing.assert_allclose(part, want, near, near)


@pytest.mark.parametrize("dtype", [np.complex64, C16])
@settings(max_examples=12)
@given(rng=randoms)
def test_averages_are_the_definition(backend, dtype, rng):
    case = draw(rng, pool=True)
    x = _numbers(case, "x", case.x_shape(), dtype)
    dy = _numbers(case, "dy", case.y_shape(pool=True), dtype)
    options = {**case.pool(), "count_include_pad": case.count_include_pad}
    y = gpuconv.avg_pool2d(backend.to_array(x), case.kernel, **options)
    dx = gpuconv.avg_pool2d_backward(backend.to_array(dy), x.shape, case.kernel, **options)
    window = case.sliding(pool=True), case.count_include_pad
    first = [define.first(a.astype(C16), case.channels_last) for a in (x, dy)]
    want = define.avg_pool(first[0], *window), define.avg_pool_backward(first[1], *window)
    for got, must in zip((y, dx), want, strict=True):
        rtol = 1e-6 if dtype == np.complex64 else 1e-14
        must = in_layout(case, must)
        np.testing.assert_allclose(backend.to_numpy(got), must, rtol=rtol, atol=10 * rtol)


@settings(max_examples=12)
@given(rng=randoms)
def test_columns_are_exactly_the_definition(backend, rng):
    case = draw(rng, axes=rng.randint(1, 3))
    dtype = rng.choice([np.complex64, C16])
    x = _numbers(case, "x", case.x_shape(), dtype)
    col = define.im2col(define.first(x, case.channels_last), case.sliding())
    last = case.channels_last
    want = define.columns_last(col, case.c_in) if last else col
    got = gpuconv.im2col(lay_out(rng, backend.to_array(x)), case.kernel, **case.columns())
    again = gpuconv.col2im(lay_out(rng, backend.to_array(want)), x.shape, case.kernel, **case.columns())
    x_again = in_layout(case, define.col2im(col, case.c_in, case.sliding()))
    _check_exact(backend, (got, again), (want, x_again), [dtype] * 2)


@layouts
def test_upsampling_repeats_both_parts_and_its_gradient_adds_them_up(backend, channels_last):
    case = _plain(2, channels_last, False)
    x, last = _numbers(case, "x", case.x_shape()), {"channels_last": channels_last}
    axes = (1, 2) if channels_last else (2, 3)
    want = x.repeat(3, axes[0]).repeat(2, axes[1])
    y = gpuconv.upsample(backend.to_array(x), (3, 2), **last)
    np.testing.assert_array_equal(backend.to_numpy(y), want)
    dx = gpuconv.upsample_backward(y, (3, 2), **last)
    np.testing.assert_array_equal(backend.to_numpy(dx), 6 * x)


def test_infinite_parts_are_copied_as_they_are(backend):
    x = np.array([complex(np.inf, 1), complex(2, np.nan), complex(-np.inf, np.inf), 3]).reshape(1, 2, 2)
    x1 = backend.to_array(x)
    for copy in (gpuconv.im2col(x1, 1), gpuconv.col2im(x1, x.shape, 1), gpuconv.upsample(x1, 1)):
        np.testing.assert_array_equal(backend.to_numpy(copy).view("f8"), x.view("f8"))


# Norms.


def _norms(x, norm, sliding):
    """y[n, c, o] = (sum over j of |x[n, c, i]| ** norm) ** (1 / norm)."""
    total = np.zeros((*x.shape[:2], *sliding.out_size))
    for o, _, i in sliding.reads():
        total[:, :, *o] += abs(x[:, :, *i]) ** norm
    return total ** (1 / norm)


@pytest.mark.parametrize("norm", [1, 2, 3.5])
@settings(max_examples=15)
@given(rng=randoms)
def test_norms_are_real_and_their_gradient_is_the_slope(backend, norm, rng):
    case = draw(rng, pool=True)
    x = _numbers(case, "x", case.x_shape(), whole=False) + 2
    x1 = backend.to_array(x)
    arguments = (norm, case.kernel), case.pool()
    y = gpuconv.lp_pool2d(x1, *arguments[0], **arguments[1])
    want = in_layout(case, _norms(define.first(x, case.channels_last), norm, case.sliding(pool=True)))
    assert y.dtype == np.float64
    np.testing.assert_allclose(backend.to_numpy(y), want, rtol=1e-12)
    dy = _numbers(case, "dy", y.shape, np.float64, whole=False)
    dx = gpuconv.lp_pool2d_backward(backend.to_array(dy), x1, y, *arguments[0], **arguments[1])
    step = 1e-6 * _numbers(case, "step", x.shape, whole=False)
    sides = (gpuconv.lp_pool2d(backend.to_array(x + s), *arguments[0], **arguments[1]) for s in (step, -step))
    up, down = (backend.to_numpy(side) for side in sides)
    slope = ((up - down) * dy).sum() / 2
    assert np.vdot(backend.to_numpy(dx), step).real == pytest.approx(slope, rel=1e-4, abs=1e-11)


def test_norms_of_swapped_bytes_are_real():
    x = np.full((1, 1, 2, 2), 3 + 4j)
    for dtype in (">c8", ">c16", "<c8"):
        y = gpuconv.lp_pool2d(x.astype(dtype), 2, 2)
        assert (y.dtype.kind, y.item()) == ("f", 10)


# What does not end, and what is not allowed.


@layouts
@kinds
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("value", [complex(-np.inf, 0), complex(1, np.nan)])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinities_stay_where_they_are_read(backend, channels_last, transposed, groups, value):
    case = _plain(2, channels_last, transposed, groups=groups, in_size=(7, 7))
    x, w, b, dy = _arrays(case, whole=False)
    bad_x, bad_dy = x.copy(), dy.copy()
    for a in (bad_x, bad_dy):
        define.first(a, channels_last)[1, 2, 3, 4] = value

    # Where one of x reaches: which numbers change if that one does.
    def reached(a, b):
        return [np.abs(one - other) > 1e-9 for one, other in zip(a, b, strict=True)]

    def moved(a):
        return np.where(np.isfinite(a), a, 100 + 100j)

    want = _computed(backend, case, transposed, x, w, b, dy)
    want = [backend.to_numpy(a) for a in want]
    for arrays in ((bad_x, w, b, dy), (x, w, b, bad_dy)):
        with np.errstate(all="ignore"):
            got = [backend.to_numpy(a) for a in _computed(backend, case, transposed, *arrays)]
            other = _computed(backend, case, transposed, *map(moved, arrays))
        for y, good, spoilt in zip(got, want, reached(want, map(backend.to_numpy, other)), strict=True):
            assert not np.isfinite(y[spoilt]).any()
            np.testing.assert_allclose(y[~spoilt], good[~spoilt], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.complex64, C16])
def test_maxima_of_complex_numbers_are_refused_by_name(backend, dtype):
    def array(*shape):
        return backend.to_array(np.zeros(shape, dtype))

    for axes in (1, 2, 3):
        x, y = array(2, 3, *(4,) * axes), array(2, 3, *(2,) * axes)
        mask = backend.to_array(np.zeros(y.shape, np.uint8))
        pool, unpool = (f"max_{name}{axes}d" for name in ("pool", "unpool"))
        calls = {
            (pool, "x"): lambda f, x=x: f(x, 2),
            (f"{pool}_backward", "dy"): lambda f, x=x, y=y, mask=mask: f(y, mask, x.shape, 2),
            (unpool, "x"): lambda f, x=x, y=y, mask=mask: f(y, mask, x.shape, 2),
            (f"{unpool}_backward", "dy"): lambda f, x=x, mask=mask: f(x, mask, 2),
        }
        calls |= {
            ("global_max_pool", "x"): lambda f, x=x: f(x),
            ("adaptive_max_pool2d", "x"): lambda f: f(array(2, 3, 4, 4), 2),
            ("adaptive_max_pool2d_backward", "dy"): lambda f: f(
                array(2, 3, 2, 2), backend.to_array(np.zeros((2, 3, 2, 2), int)), (2, 3, 4, 4)
            ),
        }
        for (op, name), call in calls.items():
            must = rf"^{op}: {name} has dtype {np.dtype(dtype).name}; it must be one of: integers"
            with pytest.raises(TypeError, match=must):
                call(getattr(gpuconv, op))


@layouts
def test_rounded_products_are_an_option_for_complex64_too(backend, channels_last):
    case = _plain(2, channels_last, False, groups=2)
    arrays = _arrays(case, np.complex64)  # whole numbers, which TF32 has
    with gpuconv.config(fp32_precision="tf32"):
        got = _computed(backend, case, False, *arrays)
    _check_exact(backend, got, _defined(case, False, *arrays), [np.complex64] * 4)


def test_a_layer_with_real_parameters_trains_on_complex_images(device):
    rng = np.random.default_rng(0)
    layer = device.move(gpuconv.nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", rng=0))
    x = (rng.standard_normal((2, 2, 5, 5)) + 1j * rng.standard_normal((2, 2, 5, 5))).astype(np.complex64)
    y = layer(device.to_array(x))
    dx = layer.backward(y)
    assert y.dtype == dx.dtype == np.complex64
    assert {grad.dtype for grad in layer.grads.values()} == {np.dtype(np.float32)}
    want = device.to_numpy(y).real.sum((0, 2, 3))
    np.testing.assert_allclose(device.to_numpy(layer.grads["bias"]), want, rtol=1e-4, atol=1e-4)
    gpuconv.SGD(layer, 0.1).step()


@pytest.mark.parametrize(
    "layer",
    [gpuconv.nn.ReLU(), gpuconv.nn.BatchNorm2d(2), gpuconv.nn.AvgPool2d(2), gpuconv.nn.Conv2d(2, 2, 2)],
)
def test_a_complex_gradient_of_a_real_result_is_refused(layer):
    y = layer(np.random.default_rng(0).standard_normal((2, 2, 4, 4)))
    with pytest.raises(TypeError, match=r"\.backward: dy has dtype complex128; it must be float16"):
        layer.backward(y.astype(complex))


def test_complex_parameters_are_for_sgd():
    layer = gpuconv.nn.Conv2d(1, 1, 1)
    layer.params["weight"], layer.grads["weight"] = (np.full((1, 1, 1, 1), z) for z in (1 + 1j, 3 + 4j))
    layer.grads["bias"] = np.zeros(1, np.float32)
    gpuconv.SGD(layer, 0.1).step()
    np.testing.assert_allclose(layer.params["weight"], 0.7 + 0.6j)
    with pytest.raises(TypeError, match=r'Adam\.step: "weight" is complex128, but it takes real parameters'):
        gpuconv.Adam(layer, 0.1).step()


def test_a_gradient_that_is_not_needed_needs_no_dtype():
    x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    dy = np.ones((1, 1, 2, 2), int)
    dx = gpuconv.conv2d_backward(dy, x, w, needs=("x",)).dx
    np.testing.assert_array_equal(dx, gpuconv.conv2d_input_grad(dy, w, x.shape))
    with pytest.raises(TypeError, match="conv2d_backward: the arrays promote to int64"):
        gpuconv.conv2d_backward(dy, x, w, needs=("b",))


# PyTorch.


@pytest.fixture(scope="module")
def torch():
    """PyTorch with one thread: more wait for each other where the cores are shared."""
    module = pytest.importorskip("torch", reason="PyTorch is the oracle here (extra `oracle`)")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)


@pytest.mark.oracle
def test_norms_and_their_gradient_are_pytorchs(torch):
    rng = np.random.default_rng(0)
    for norm, kernel, stride in ((1, 2, 2), (2, 3, 1), (4, (2, 3), (1, 2))):
        x = rng.standard_normal((2, 3, 7, 8)) + 1j * rng.standard_normal((2, 3, 7, 8))
        tensor = torch.tensor(x, requires_grad=True)
        sums = torch.nn.functional.avg_pool2d(tensor.abs() ** norm, kernel, stride, divisor_override=1)
        want = sums ** (1 / norm)
        dy = rng.standard_normal(want.shape)
        want.backward(torch.tensor(dy))
        y = gpuconv.lp_pool2d(x, norm, kernel, stride)
        np.testing.assert_allclose(y, want.detach().numpy(), rtol=1e-12)
        dx = gpuconv.lp_pool2d_backward(dy, x, y, norm, kernel, stride)
        np.testing.assert_allclose(dx, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)
