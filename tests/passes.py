"""A convolution's three passes: by an algorithm that is asked for, and by the definition."""

import numpy as np
from cases import in_layout, weights_in_layout

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
