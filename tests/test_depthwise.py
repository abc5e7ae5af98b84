"""Depthwise convolution by the C kernels: against NumPy and PyTorch, memory around arrays, odd inputs."""

import random

import numpy as np
import pytest
from compare import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuconv
from gpuconv.backends.cpu import compiled, filters, threads
from gpuconv.geometry import sliding_window

pytestmark = pytest.mark.skipif(
    compiled.kernels(np.empty(1)) is None, reason=compiled.why_not() or "compiled kernels are turned off"
)

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])
CHANNELS = [1, 2, 3, 16, 17, 40]  # fewer than a vector's lanes, as many, more


class Case:
    """A depthwise convolution and its arrays: dense, reversed, every other element, within larger ones."""

    def __init__(self, rng, *, channels_last, dtype, axes=None, lay=None):
        self.axes = axes or rng.choice([1, 2, 2, 2, 3])
        self.channels_last, self.dtype, self._lay = channels_last, dtype, lay
        self._numbers = np.random.default_rng(rng.randrange(1 << 30))
        self.rng = rng
        largest = {1: 9, 2: 7, 3: 3}[self.axes]
        simple = rng.random() < 0.5  # what is shared between outputs is so at stride 1 and 2, not dilated
        step = rng.choice([1, 2])
        self.kernel = tuple(rng.randint(1, largest) for _ in range(self.axes))
        self.stride = tuple(step if simple else rng.choice([1, 1, 2, 3]) for _ in self.kernel)
        self.dilation = tuple(1 if simple else rng.choice([1, 1, 2, 3]) for _ in self.kernel)
        sizes = [1, 2, 5, 7, 8, 14, 17, 24, 37] if self.axes < 3 else [1, 3, 5, 9]
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        self.size = tuple(rng.choice(sizes) for _ in self.kernel)
        self.padding = tuple(
            (max(0, span - size, rng.randint(0, 3)), rng.randint(0, 3))
            for span, size in zip(spans, self.size, strict=True)
        )
        self.n, self.c = rng.choice([0, 1, 2, 3]), rng.choice(CHANNELS)
        out = tuple(
            (size + sum(pads) - span) // s + 1
            for size, pads, span, s in zip(self.size, self.padding, spans, self.stride, strict=True)
        )
        self.x, self.dy = self._images(self.size), self._images(out)
        w_shape = (*self.kernel, 1, self.c) if channels_last else (self.c, 1, *self.kernel)
        self.w, self.b = self._array(w_shape), self._numbers.standard_normal(self.c).astype(dtype)

    def _images(self, size):
        return self._array((self.n, *size, self.c) if self.channels_last else (self.n, self.c, *size))

    def _array(self, shape):
        array = self._numbers.standard_normal(shape).astype(self.dtype)
        return lay_out(
            array, self._lay or self.rng.choice(["dense", "dense", "reversed", "every other", "within"])
        )

    def options(self):
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.c,
            "channels_last": self.channels_last,
        }

    def passes(self):
        """Return y, dx (plus b, as a transposed convolution has it) and dw."""
        d = self.axes
        y = getattr(gpuconv, f"conv{d}d")(self.x, self.w, self.b, **self.options())
        dx = getattr(gpuconv, f"conv{d}d_input_grad")(self.dy, self.w, self.x.shape, **self.options())
        dw = getattr(gpuconv, f"conv{d}d_weight_grad")(self.dy, self.x, self.kernel, **self.options())
        return y, dx, dw

    def wide(self):
        """Make all arrays float64."""
        self.x, self.w, self.b, self.dy = (a.astype(np.float64) for a in (self.x, self.w, self.b, self.dy))
        return self


def lay_out(array, how):
    """Return equal values that lie in memory in another way, NaN around them."""
    if how == "dense":
        return array
    every = tuple(slice(None, None, -1) for _ in array.shape)
    if how == "reversed":
        return np.ascontiguousarray(array[every])[every]
    step, margin = (2, 0) if how == "every other" else (1, 3)
    large = np.full([step * n + 2 * margin for n in array.shape], np.nan, array.dtype)
    view = large[tuple(slice(margin, margin + step * n, step) for n in array.shape)]
    view[...] = array
    view.flags.writeable = False
    return view


@pytest.fixture(params=["whole", "small pieces"], autouse=True)
def pieces(request, monkeypatch):
    """Few large jobs, and many small ones on four threads."""
    if request.param == "small pieces":
        monkeypatch.setattr(threads, "SERIAL_WORK", 0)
        monkeypatch.setattr(threads, "count", lambda: 4)
        monkeypatch.setattr(filters, "AT_ONCE_BYTES", 2000)


@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False))
def test_the_kernels_give_what_numpy_gives(rng, dtype, channels_last):
    case = Case(rng, channels_last=channels_last, dtype=dtype)
    got = case.passes()
    with gpuconv.config(compiled=False):
        want = case.wide().passes()
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert_close(a, b, 1e-12 * case.dy.size + 1e-12 if dtype == np.float64 else None)


@pytest.mark.oracle
@LAYOUTS
@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False))
def test_the_kernels_give_what_pytorch_gives(rng, channels_last):
    torch = pytest.importorskip("torch")
    case = Case(rng, channels_last=channels_last, dtype=np.float64)
    y, dx, dw = case.passes()

    def first(a):
        return torch.from_numpy(np.array(np.moveaxis(a, -1, 1) if channels_last else a))

    w = np.moveaxis(case.w, (-1, -2), (0, 1)) if channels_last else case.w
    x, w = first(case.x).requires_grad_(), torch.from_numpy(np.array(w)).requires_grad_()
    pads = [p for pair in reversed(case.padding) for p in pair]
    want = getattr(torch.nn.functional, f"conv{case.axes}d")(
        torch.nn.functional.pad(x, pads), w, torch.from_numpy(case.b), case.stride, 0, case.dilation, case.c
    )
    want.backward(first(case.dy))
    dw = np.moveaxis(dw, (-1, -2), (0, 1)) if channels_last else dw
    for got, must in ((first(y), want.detach()), (first(dx), x.grad), (dw, w.grad)):
        assert_close(np.asarray(got), must.numpy(), 1e-12 * case.dy.size + 1e-12)


@LAYOUTS
@pytest.mark.parametrize("how", ["within", "every other"])
@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False))
def test_nothing_around_an_array_is_read_or_written(rng, how, channels_last):
    case = Case(rng, channels_last=channels_last, dtype=np.float32, lay=how)  # NaN around what is read
    y, dx, dw = case.passes()
    c = compiled.kernels(case.x, part="depthwise")
    window = _window(case)
    results = (("forward", y), ("input_grad", dx), ("weight_grad", dw))
    x, dy, w = _canonical(case, case.x), _canonical(case, case.dy), _canonical_weights(case, case.w)
    for name, want in results:
        assert np.isfinite(want).all()
        view = lay_out(np.zeros_like(want), how)
        view.base.flags.writeable = view.flags.writeable = True
        if name == "forward":
            filters.forward(c, x, w, case.b, window, _canonical(case, view))
        elif name == "input_grad":
            filters.input_grad(c, dy, w, None, window, _canonical(case, view))
        else:
            filters.weight_grad(c, dy, x, window, _canonical_weights(case, view))
        np.testing.assert_array_equal(view, want)
        assert np.isnan(view.base).sum() == view.base.size - view.size


def _canonical(case, a):
    return np.moveaxis(a, -1, 1) if case.channels_last else a


def _canonical_weights(case, w):
    return np.moveaxis(w, (-1, -2), (0, 1)) if case.channels_last else w


def _window(case):
    return sliding_window(
        "test", case.size, case.kernel, case.stride, case.padding, case.dilation, groups=case.c
    )


@LAYOUTS
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False))
def test_an_infinity_in_x_spoils_only_what_reads_it(rng, bad, channels_last):
    case = Case(rng, channels_last=channels_last, dtype=np.float64, lay="dense")
    if case.n == 0:
        return
    clean, _, clean_dw = case.passes()
    at = tuple(rng.randrange(n) for n in case.x.shape)
    marks = np.zeros_like(case.x)
    marks[at] = 1
    case.x[at] = bad
    y, _, dw = case.passes()
    # Where a lone 1 shows with kernels of ones, and with a dy of ones, the infinity is read.
    case.x, case.w, case.b, case.dy = (
        marks,
        np.ones_like(case.w),
        np.zeros_like(case.b),
        np.ones_like(case.dy),
    )
    read, _, read_dw = case.passes()
    for got, before, touched in ((y, clean, read), (dw, clean_dw, read_dw)):
        assert not np.isfinite(got[touched > 0]).any()
        np.testing.assert_array_equal(got[touched == 0], before[touched == 0])


@LAYOUTS
@settings(max_examples=25)
@given(rng=st.randoms(use_true_random=False))
def test_results_do_not_depend_on_the_number_of_threads(rng, channels_last):
    case = Case(rng, channels_last=channels_last, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "SERIAL_WORK", 0)
        results = []
        for number in (1, 2, 3, 7):
            patch.setattr(threads, "count", lambda number=number: number)
            results.append(case.passes())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@LAYOUTS
def test_a_plan_names_the_kernels_and_their_jobs(channels_last, monkeypatch):
    case = Case(random.Random(3), channels_last=channels_last, dtype=np.float32, axes=2)
    jobs = []
    monkeypatch.setattr(filters, "run", lambda kernels, name, rows, work, own: jobs.append(len(rows)))
    for op, arguments in (
        ("conv2d", {"x": case.x, "w": case.w}),
        ("conv2d_input_grad", {"dy": case.dy, "w": case.w, "x_shape": case.x.shape}),
        ("conv2d_weight_grad", {"dy": case.dy, "x": case.x, "kernel_size": case.kernel}),
    ):
        getattr(gpuconv, op)(**arguments, **case.options())
        plan = gpuconv.explain(op, **arguments, **case.options())
        assert plan.algorithm == "depthwise"
        assert plan.chunks == jobs.pop()
        assert {step.what for step in plan.steps} == {"filter"}
        with gpuconv.config(compiled=False):
            assert "filter" not in {
                step.what for step in gpuconv.explain(op, **arguments, **case.options()).steps
            }


def test_transposed_convolution_adds_its_bias_everywhere():
    # stride 3, kernel 1: most places have no window, and are the bias alone
    x, w, b = np.ones((1, 4, 2, 2), np.float32), np.ones((4, 1, 1, 1), np.float32), np.arange(4, dtype="f")
    y = gpuconv.conv_transpose2d(x, w, b, stride=3, output_padding=2, groups=4)
    want = np.broadcast_to(b.reshape(1, 4, 1, 1), y.shape).copy()
    want[:, :, ::3, ::3] += 1
    np.testing.assert_array_equal(y, want)
