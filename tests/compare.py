"""How near a result must be, by the dtype it was computed in."""

import numpy as np

# Relative to the largest value that was expected.
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4, np.dtype(np.float16): 5e-3}


def assert_close(got, want, tolerance=None):
    """Check shape and values; the tolerance is that of got's dtype, or as given."""
    assert got.shape == want.shape
    if tolerance is None:
        tolerance = TOLERANCE[got.real.dtype]
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    wide = np.promote_types(got.dtype, np.float64)
    np.testing.assert_allclose(got.astype(wide), want, rtol=0, atol=tolerance * scale)
