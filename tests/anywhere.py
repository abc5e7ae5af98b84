"""Comparisons of arrays wherever they are: NumPy's, the kernels', CuPy's; of numbers, too."""

import numpy as np

from gpuconv.backends.dispatch import to_host


def here(x):
    """Return an array's values in NumPy; anything else as it is."""
    return to_host(x) if hasattr(x, "dtype") else x


def equal(got, want):
    """Check that all values are the same; NaN is NaN."""
    np.testing.assert_array_equal(here(got), here(want))


def close(got, want, rtol=1e-12, atol=1e-12):
    """Check that all values are the same but for rounding, float64's unless told."""
    np.testing.assert_allclose(here(got), here(want), rtol=rtol, atol=atol)
