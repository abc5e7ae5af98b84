"""The gradient by the bias on NumPy arrays: C and NumPy, any view, any number of threads, small errors."""

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cpu import bias, compiled


@pytest.fixture(params=[True, False], ids=["C", "NumPy"], autouse=True)
def by(request):
    """Relative error of a sum of 2^22 equal numbers."""
    with gpuconv.config(compiled=request.param):
        if request.param and compiled.kernels(np.zeros(1)) is None:
            pytest.skip(f"no C kernels: {compiled.why_not()}")
        # NumPy's way channels last adds up 2^11 numbers and then 2^11 sums, each rounded by 2^-24 at most;
        # 2^22 numbers one by one would be 1e-2 off.
        yield 1e-6 if request.param else 2 * 2**11 * 2**-24


VIEWS = {
    "whole": lambda x: x,
    "every other image": lambda x: x[::2],
    "some channels": lambda x: x[:, 1:],
    "every other channel": lambda x: x[:, ::2],
    "a part of each plane": lambda x: x[..., 1:-1, 2:],
    "every other column": lambda x: x[..., ::2],
    "turned": lambda x: x[:, :, ::-1, ::-1],
    "backwards": lambda x: x[::-1, ::-1],
    "transposed": lambda x: x.swapaxes(0, 1),
    "Fortran": np.asfortranarray,
    "spread": lambda x: np.broadcast_to(x[:, :, :1, :1], x.shape),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 11), (2, 33, 1, 1), (1, 3, 70, 71), (4, 2, 2, 2), (2, 16, 40, 50)]
)
@pytest.mark.parametrize("view", VIEWS)
def test_any_view_is_summed(view, shape, last, dtype, monkeypatch):
    monkeypatch.setattr(bias, "BLOCK", 200)
    dy = VIEWS[view](np.random.default_rng(0).standard_normal(shape).astype(dtype))
    expected = dy.sum(axis=(0, 2, 3), dtype=np.float64)
    if last:
        dy = np.ascontiguousarray(dy.transpose(0, 2, 3, 1)) if view == "whole" else dy.transpose(0, 2, 3, 1)
    db = gpuconv.conv2d_bias_grad(dy, channels_last=last)
    bound = (1e-13 if dtype == np.float64 else 1e-6) * abs(dy).sum(dtype=np.float64)
    assert db.dtype == dtype
    np.testing.assert_allclose(db, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_long_sums_stay_exact(last, by):
    dy = np.full((1, 1 << 11, 1 << 11, 2) if last else (1, 2, 1 << 22, 1), 0.1, np.float32)
    db = gpuconv.conv2d_bias_grad(dy, channels_last=last)
    np.testing.assert_allclose(db, (1 << 22) * float(np.float32(0.1)), rtol=by)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_nothing_sums_to_zeros(shape):
    assert (gpuconv.conv2d_bias_grad(np.ones(shape, np.float32)) == np.zeros(shape[1])).all()


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_nan_and_infinities_stay_in_their_channel(last):
    dy = np.ones((2, 3, 40, 40), np.float32)
    dy[1, 0, 39, 39], dy[0, 1, 0, 0] = np.nan, np.inf
    db = gpuconv.conv2d_bias_grad(dy.transpose(0, 2, 3, 1) if last else dy, channels_last=last)
    assert np.isnan(db[0])
    assert (db[1:] == [np.inf, 3200]).all()


def test_jobs_cover_every_plane_once(monkeypatch):
    monkeypatch.setattr(bias, "MOST_JOBS", 4)
    for block in (1, 50, 1000, 1 << 30):
        monkeypatch.setattr(bias, "BLOCK", block)
        for x in (np.zeros((5, 7, 10)), np.zeros((5, 9, 10))[:, 1:8], np.zeros((5, 10, 7)).swapaxes(1, 2)):
            planes = sorted(7 * i + j + k for i, j, count in bias._jobs(x) for k in range(count))
            assert planes == list(range(35))
