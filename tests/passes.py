"""A convolution's three passes: by an algorithm that is asked for, and by the definition."""

import numpy as np
from cases import in_layout, weights_in_layout
from host import runtime as host_runtime

import gpuconv
from gpuconv import reference as define
from gpuconv.backends.cuda.problem import Problem


def problem_of(shape, dtype, channels_last):
    """Return what programs are planned for, of a line of the shared shapes."""
    return Problem(shape.window(), shape.n, shape.c_in, shape.c_out, np.dtype(dtype), channels_last, "ieee")


def arrays(case, dtype):
    """Return x, w, b and dy of whole numbers, whose sums are exact."""
    shapes = {"x": case.x_shape(), "w": case.w_shape(), "b": (case.c_out,), "dy": case.y_shape()}
    return [case.array(name, shape, dtype, whole=True) for name, shape in shapes.items()]


def computed(case, algorithm, x, w, b, dy):
    """Return y, dx and dw."""
    d, options = len(case.kernel), case.conv()
    with gpuconv.config(algorithm=algorithm):
        y = getattr(gpuconv, f"conv{d}d")(x, w, b, **options)
        dx = getattr(gpuconv, f"conv{d}d_input_grad")(dy, w, case.x_shape(), **options)
        dw = getattr(gpuconv, f"conv{d}d_weight_grad")(dy, x, case.kernel, **options)
    return y, dx, dw


def defined(case, x, w, b, dy):
    """Return y, dx and dw by the definition."""
    x, dy = (define.first(a.astype(np.float64), case.channels_last) for a in (x, dy))
    w, sliding = define.weights_first(w.astype(np.float64), case.channels_last), case.sliding()
    return (
        in_layout(case, define.conv(x, w, b, sliding, case.groups)),
        in_layout(case, define.conv_input_grad(dy, w, sliding, case.groups)),
        weights_in_layout(case, define.conv_weight_grad(dy, x, sliding, case.groups)),
    )


def check(case, algorithm, dtype, backend):
    """Compare all passes with the definition, on whole numbers: to the last bit."""
    given = arrays(case, dtype)
    found = computed(case, algorithm, *map(backend.to_array, given))
    for got, must in zip(found, defined(case, *given), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(got), must.astype(dtype))


def check_nothing_around_is_read(case, algorithm, rng, dtype=np.float32):
    """Compare all passes on arrays that lie within NaN with the same on arrays that lie alone."""
    given = arrays(case, dtype)
    alone = computed(case, algorithm, *map(host_runtime.to_device, given))
    within = computed(case, algorithm, *(host_runtime.within_nan(rng, a) for a in given))
    for got, must in zip(within, alone, strict=True):
        np.testing.assert_array_equal(host_runtime.to_host(got), host_runtime.to_host(must))
