"""Winograd's convolution, by C kernels and by NumPy, beside sums in float64."""

from collections import Counter
from math import prod

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cpu import compiled, threads, winograd, winograd_blas
from gpuconv.backends.plans import Account
from gpuconv.geometry import sliding_window


@pytest.fixture(params=["kernels", "numpy"], autouse=True)
def by(request):
    """Who computes: our C kernels, where there is a compiler, or NumPy."""
    with gpuconv.config(compiled=request.param == "kernels"):
        if request.param == "kernels" and compiled.kernels(np.empty(0, np.float32)) is None:
            pytest.skip("no compiler")
        yield request.param


@pytest.fixture(params=["channels first", "channels last"])
def last(request):
    return request.param == "channels last"


def exact(x, w, b, window):
    """Return conv(x, w) + b in float64; w is [G, C_out/groups, C_in/groups, 3, 3]."""
    (top, left), (bottom, right) = window.before, window.after
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    groups, og, cg = w.shape[:3]
    h, width = window.out_size
    y = np.zeros((x.shape[0], groups, og, h, width))
    for i, j in np.ndindex(3, 3):
        part = x[:, :, i : i + h, j : j + width].reshape(-1, groups, cg, h, width)
        y += np.einsum("ngchw,gkc->ngkhw", part, w[..., i, j].astype(np.float64), optimize=True)
    return y.reshape(-1, groups * og, h, width) + b.reshape(-1, 1, 1)


class Case:
    """A convolution's arrays, canonical views of either layout."""

    def __init__(self, x_shape, kernels, padding=1, groups=1, last=False, dtype=np.float32, draw=None):
        rng = np.random.default_rng(prod(x_shape) + kernels)
        n, c, *size = x_shape
        self.window = sliding_window("conv2d", tuple(size), (3, 3), 1, padding, 1, groups=groups)
        self.x = (draw or np.random.Generator.standard_normal)(rng, size=x_shape).astype(dtype)
        self.w = rng.standard_normal((groups, kernels // groups, c // groups, 3, 3)).astype(dtype)
        self.b = rng.standard_normal(kernels).astype(dtype)
        self.y = np.full((n, kernels, *self.window.out_size), 7, dtype)
        if last:
            self.x, self.y = (by_channels(array) for array in (self.x, self.y))
        self.again = []  # images that were computed again

    def run(self):
        winograd.forward(self.x, self.w, self.b, self.window, self.y, self._exactly)
        return self.y

    def _exactly(self, x, y):
        self.again.append(x)
        with np.errstate(over="ignore", invalid="ignore"):
            y[...] = exact(x, self.w, self.b, self.window)

    def exact(self):
        with np.errstate(invalid="ignore"):
            return exact(self.x, self.w, self.b, self.window)

    def error(self):
        wanted = self.exact()
        return np.abs(self.run() - wanted).max() / np.abs(wanted).max()


def by_channels(x):
    """Return the same numbers with channels last in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


SHAPES = [  # x, C_out, padding, groups
    ((1, 1, 4, 4), 1, 1, 1),
    ((2, 3, 7, 9), 5, 1, 1),
    ((1, 20, 3, 3), 20, 2, 1),
    ((2, 34, 13, 11), 42, ((0, 2), (3, 1)), 2),
    ((8, 24, 14, 14), 40, 1, 1),
    ((3, 70, 7, 7), 130, 1, 1),
    ((2, 5, 70, 67), 9, 0, 1),
    ((5, 12, 6, 80), 24, ((4, 1), (0, 7)), 3),
    ((1, 2, 1, 5), 3, 1, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_those_of_sums_in_float64(shape, last):
    assert Case(*shape, last=last).error() < 1e-5
    assert Case(*shape, last=last, dtype=np.float64).error() < 1e-13


def test_without_a_bias_nothing_is_added(last):
    case = Case((2, 5, 9, 9), 6, last=last)
    biased = case.run() - case.b.reshape(-1, 1, 1)
    case.b = None
    np.testing.assert_allclose(case.run(), biased, atol=1e-5)


def test_weights_are_read_where_they_lie(last):
    case = Case((2, 12, 9, 9), 16, groups=2, last=last)
    straight = case.run().copy()
    turned = np.ascontiguousarray(case.w.transpose(0, 2, 1, 4, 3)[..., ::-1, ::-1])
    case.w = turned[..., ::-1, ::-1].transpose(0, 2, 1, 4, 3)
    np.testing.assert_array_equal(case.run(), straight)
    lying = np.ascontiguousarray(case.w.transpose(3, 4, 2, 0, 1))  # as channels last has them
    case.w = lying.transpose(3, 4, 2, 0, 1)
    np.testing.assert_array_equal(case.run(), straight)


@pytest.mark.parametrize("step", [(1, 1, 1, 2), (1, 1, 2, -1), (1, -2, 1, 1), (2, 1, -1, -3)])
def test_images_of_any_strides_are_taken(step, last):
    case = Case((2, 20, 10, 21), 18, last=last)
    for name in ("x", "y"):
        dense = getattr(case, name)
        wide = np.zeros([size * 3 for size in dense.shape], dense.dtype)
        view = (by_channels(wide) if last else wide)[tuple(slice(None, None, s) for s in step)]
        view = view[tuple(slice(0, size) for size in dense.shape)]
        view[...] = dense
        setattr(case, name, view)
    assert case.error() < 1e-5


@pytest.mark.parametrize(
    "shape",
    [((2, 20, 13, 30), 9, 1), ((1, 5, 5, 7), 70, ((1, 0), (0, 2))), ((3, 20, 13, 14), 37, ((1, 0), (2, 1)))],
)
def test_what_lies_around_the_arrays_is_neither_read_nor_written(shape, last):
    case = Case(*shape, last=last)
    wanted, around = case.exact(), []
    for name in ("x", "w", "b", "y"):
        array = getattr(case, name)
        lying = array.transpose(0, 2, 3, 1) if last and array.ndim == 4 else array
        memory = np.full(lying.size + 200, np.nan, lying.dtype)
        inside = memory[100:-100].reshape(lying.shape)
        inside[...] = lying
        setattr(
            case,
            name,
            inside.transpose(0, 3, 1, 2) if last and array.ndim == 4 else inside,
        )
        around.append(memory)
    assert np.abs(case.run() - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert not case.again
    for memory in around:
        assert np.isnan(memory[:100]).all()
        assert np.isnan(memory[-100:]).all()
        assert np.isfinite(memory[100:-100]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_only_the_windows_that_read_it(value, last):
    case = Case((3, 6, 10, 11), 9, last=last)
    clean = case.run().copy()
    case.x[1, 2, 5, 6] = value
    y = case.run()
    reads = np.zeros((10, 11), bool)
    reads[4:7, 5:8] = True
    assert not np.isfinite(y[1][:, reads]).any()
    np.testing.assert_allclose(y[1][:, ~reads], clean[1][:, ~reads], atol=1e-4)
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])
    assert len(case.again) == 1


def test_weights_that_are_not_finite_spoil_only_their_kernels(last):
    case = Case((2, 6, 10, 11), 9, last=last)
    case.w[0, 4, 2, 1, 1] = np.inf
    y = case.run()
    np.testing.assert_array_equal(np.isfinite(y).all(axis=(0, 2, 3)), np.arange(9) != 4)


def test_sums_that_overflow_only_in_between_do_not_spoil_the_result(last):
    case = Case((2, 3, 9, 9), 4, last=last)
    case.x[1] *= 1e37
    case.w *= 0.01
    wanted = case.exact()
    assert np.abs(wanted).max() < 3e38
    np.testing.assert_allclose(case.run(), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_a_batch_may_be_empty(last):
    case = Case((0, 20, 9, 9), 18, last=last)
    assert case.run().shape == (0, 18, 9, 9)


def test_every_way_to_cut_the_work_gives_the_same(by, last, monkeypatch):
    if by == "numpy":
        pytest.skip("BLAS rounds as its blocks are")
    case = Case((3, 40, 30, 29), 72, groups=1, last=last)
    straight = case.run().copy()
    for count, shared_u, shared_v in [(1, 0, 1 << 20), (4, 0, 1 << 30), (3, 1 << 30, 0), (1, 1 << 30, 0)]:
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        monkeypatch.setattr(winograd, "SHARED_U_BYTES", shared_u)
        monkeypatch.setattr(winograd, "SHARED_V_BYTES", shared_v)
        np.testing.assert_array_equal(case.run(), straight)


# Numbers whose results are compared: errors relative to the largest result, and of 2-norms.
DRAWN = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "uniform": lambda rng, size: rng.random(size),
    "relu": lambda rng, size: np.maximum(0, rng.standard_normal(size)),
    "offset": lambda rng, size: 100 + rng.standard_normal(size),
}


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("channels", [64, 512])
def test_float32_is_exact_to_1e_4(drawn, channels, last):
    case = Case((1, channels, 14, 14), 32, last=last, draw=DRAWN[drawn])
    wanted, y = case.exact(), case.run()
    assert np.abs(y - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.linalg.norm(y - wanted) < 1e-4 * np.linalg.norm(wanted)


def _pays(x_shape, kernels, dtype=np.float32, groups=1, **options):
    window = sliding_window(
        "conv2d", x_shape[2:], (3, 3), **{"stride": 1, "padding": 1, "dilation": 1, **options}, groups=groups
    )
    x, y = np.empty(x_shape, dtype), np.empty((x_shape[0], kernels, *window.out_size), dtype)
    return winograd.pays(x, (groups, kernels // groups, x_shape[1] // groups, 3, 3), window, y)


def test_it_pays_for_many_channels_and_tiles(by):
    assert _pays((8, 64, 56, 56), 64)
    assert _pays((8, 256, 14, 14), 256)
    assert _pays((8, 384, 14, 14), 384, groups=2)
    assert _pays((8, 512, 7, 7), 512) == (by == "kernels")
    assert not _pays((8, 3, 56, 56), 64)
    assert not _pays((8, 128, 56, 56), 128, groups=32)
    assert not _pays((100, 64, 1, 56), 64)
    assert not _pays((1, 64, 4, 4), 64)


def test_it_is_only_for_float32_and_windows_that_overlap_at_every_place():
    assert not _pays((8, 64, 56, 56), 64, np.float64)
    assert not _pays((8, 64, 56, 56), 64, np.float16)
    assert not _pays((8, 64, 56, 56), 64, stride=2)
    assert not _pays((8, 64, 56, 56), 64, dilation=2)


@pytest.mark.parametrize("shape", [*SHAPES, ((9, 64, 28, 28), 64, 1, 1), ((1, 128, 14, 14), 128, 1, 1)])
def test_the_plan_is_what_runs(shape, last, by, monkeypatch):
    case = Case(*shape, last=last)
    jobs, most, products = [], [1], Counter()
    parallel, run, matmul = threads.parallel, winograd.run, np.matmul

    def noting_parallel(task, items, work, **options):
        jobs.append(len(items))
        most.append(threads.used(len(items), work))
        return parallel(task, items, work, **options)

    def noting_run(kernels, name, rows, work, own=None):
        jobs.append(len(rows))
        most.append(threads.used(len(rows), work))
        return run(kernels, name, rows, work, own)

    def noting_matmul(a, b, out):
        products[(a.shape[-2], a.shape[-1], b.shape[-1], prod(out.shape[:-2]))] += 1
        return matmul(a, b, out=out)

    monkeypatch.setattr(winograd, "run", noting_run)
    monkeypatch.setattr(winograd_blas, "parallel", noting_parallel)
    monkeypatch.setattr(np, "matmul", noting_matmul)
    case.run()
    account = Account()
    chunks, used, _ = winograd.plan_forward(case.x, case.w.shape, case.window, case.y, account)
    assert chunks == sum(jobs)
    assert used == max(most)
    planned = Counter()
    for what, sizes, repeats, _ in account.steps:
        if what == "gemm":
            planned[(sizes["m"], sizes["k"], sizes["n"], sizes["batch"])] += repeats
    assert planned == products
    assert bool(planned) == (by == "numpy")
    if by == "kernels":
        assert sum(step.repeats for step in account.steps) == chunks
