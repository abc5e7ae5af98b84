"""GEMM on unfolded rows, beside GEMM on columns."""

from math import prod

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cpu import gemm, rows, threads
from gpuconv.geometry import sliding_window

# images, channels, sizes, kernels, kernel, stride, padding, dilation, groups
CASES = {
    "images side by side": (5, 3, (9, 7), 4, (3, 3), 1, 1, 1, 1),
    "one image, in place": (1, 3, (9, 40), 4, (3, 3), 1, 1, 1, 1),
    "rows apart by a dilation": (3, 2, (13, 9), 4, (3, 2), 1, 2, 3, 1),
    "dilation and stride": (3, 2, (17, 9), 4, (5, 2), 2, 3, 3, 1),
    "stride beyond dilation": (2, 2, (24, 9), 4, (7, 2), 3, 0, 2, 1),
    "groups": (3, 6, (8, 9), 4, (4, 3), 1, 1, 1, 2),
    "three axes": (2, 2, (7, 5, 6), 3, (3, 2, 2), 1, 1, 1, 1),
    "padding beyond the kernel": (2, 1, (3, 4), 2, (2, 2), 1, 4, 1, 1),
}


class Case:
    """Arrays of a convolution, as its algorithms take them."""

    def __init__(self, n, c, size, kernels, kernel, stride, padding, dilation, groups, dtype=np.float64):
        rng = np.random.default_rng(n + prod(size))
        self.window = sliding_window("conv", size, kernel, stride, padding, dilation, groups=groups)
        self.x = rng.standard_normal((n, c, *size)).astype(dtype)
        self.w = rng.standard_normal((groups, kernels // groups, c // groups, *kernel)).astype(dtype)
        self.b = rng.standard_normal(kernels).astype(dtype)

    def by(self, algorithm, *layout):
        y = np.full((len(self.x), len(self.b), *self.window.out_size), 7, self.x.dtype)
        algorithm.forward(self.x, self.w, self.b, self.window, y, *layout)
        return y


@pytest.fixture(params=["whole", "small pieces"])
def pieces(request, monkeypatch):
    """Run with everything at once, and with limits so low that all is cut up."""
    if request.param == "small pieces":
        for module, limit, value in (
            (rows, "BLOCK_BYTES", 256),
            (rows, "ENOUGH_COLUMNS", 8),
            (gemm, "SMALL_PRODUCT", 100),
            (gemm, "SMALL_COLUMNS", 2),
            (threads, "SERIAL_WORK", 0),
        ):
            monkeypatch.setattr(module, limit, value)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unfolded_rows_give_what_columns_give(case, pieces):
    case = Case(*case)
    np.testing.assert_allclose(case.by(rows), case.by(gemm, False), rtol=0, atol=1e-12)


def test_unfolded_rows_of_float16_are_summed_in_float32(pieces):
    case = Case(2, 40, (9, 9), 3, (3, 3), 1, 1, 1, 1, dtype=np.float16)
    exact = Case(2, 40, (9, 9), 3, (3, 3), 1, 1, 1, 1)
    exact.x, exact.w, exact.b = (a.astype(np.float64) for a in (case.x, case.w, case.b))
    np.testing.assert_allclose(case.by(rows), exact.by(gemm, False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kernels", "stride", "channels_last", "taken"),
    [(32, 1, False, True), (32, 1, True, False), (512, 1, False, False), (32, 3, False, False)],
    ids=["few kernels", "channels last", "many kernels", "rows that don't overlap"],
)
def test_rows_are_unfolded_where_that_saves_copies(kernels, stride, channels_last, taken):
    x, w = np.zeros((8, 32, 32, 3), np.float32), np.zeros((3, 3, 3, kernels), np.float32)
    if not channels_last:
        x, w = np.moveaxis(x, -1, 1), w.transpose(3, 2, 0, 1)
    with gpuconv.config(compiled=False):
        plan = gpuconv.explain("conv2d", x, w, stride=stride, channels_last=channels_last)
    assert (plan.algorithm, "unfolded" in plan.why) == ("gemm", taken)


def test_unfolded_rows_need_less_memory_than_columns():
    x, w = np.zeros((1, 8, 64, 64), np.float32), np.zeros((8, 8, 5, 5), np.float32)
    with gpuconv.config(compiled=False):
        plan = gpuconv.explain("conv2d", x, w)
    columns = 8 * 5 * 5 * 60 * 60 * x.itemsize
    assert plan.workspace < columns / 2


def test_products_take_all_columns_once(monkeypatch):
    a, b = np.ones((3, 5)), np.arange(5 * 11.0).reshape(5, 11)
    monkeypatch.setattr(gemm, "SMALL_PRODUCT", 60)
    monkeypatch.setattr(gemm, "SMALL_COLUMNS", 2)
    out = np.zeros((3, 11))
    gemm.multiply(a, b, out)
    assert gemm.products(3, 5, 11) == [(4, 2), (3, 1)]
    np.testing.assert_array_equal(out, a @ b)
