"""Every public function once, on small arrays: what the tests of all of them call."""

import numpy as np

import gpuconv


def numbers(*shape, dtype=np.float32):
    return np.random.default_rng([*shape]).standard_normal(shape).astype(dtype)


N = 5
SIZES = {1: (9,), 2: (6, 5), 3: (3, 4, 3)}


def _convolutions(axes, prefix, x, w, **options):
    """Yield the calls of a convolution of one rank and of its gradients, by name."""
    forward = getattr(gpuconv, prefix)
    y = forward(x, w, **options)
    dy, b = numbers(*y.shape), numbers(y.shape[1])
    after = {"activation": "relu"} if prefix == "conv1d" else {}
    yield prefix, (x, w, b), options | after
    yield f"{prefix}_backward", (dy, x, w), options | (after and after | {"y": y})
    if prefix == f"conv{axes}d":
        yield f"{prefix}_input_grad", (dy, w, x.shape), options
        yield f"{prefix}_weight_grad", (dy, x, w.shape[2:]), options
        yield f"{prefix}_bias_grad", (dy,), {}


def _poolings(axes, x):
    window = {"stride": 2, "padding": 1}
    y, argmax = getattr(gpuconv, f"max_pool{axes}d")(x, 3, **window)
    dy = numbers(*y.shape)
    yield f"max_pool{axes}d", (x, 3), window
    yield f"max_pool{axes}d_backward", (dy, argmax, x.shape, 3), window
    yield f"avg_pool{axes}d", (x, 3), window
    yield f"avg_pool{axes}d_backward", (dy, list(x.shape), 3), window
    yield f"max_unpool{axes}d", (y, argmax, x.shape, 3), window
    yield f"max_unpool{axes}d_backward", (x, argmax, 3), window


def _others(x):
    window = {"kernel_size": (3, 2), "padding": 1}
    col, (y, argmax) = gpuconv.im2col(x, **window), gpuconv.max_pool2d(x, **window)
    yield "im2col", (x,), window
    yield "col2im", (col, x.shape), window
    yield "argmax_to_indices", (argmax, x.shape), window
    small, indices = gpuconv.adaptive_max_pool2d(x, (2, 3))
    yield "adaptive_max_pool2d", (x, (2, 3)), {}
    yield "adaptive_max_pool2d_backward", (small, indices, x.shape), {}
    yield "adaptive_avg_pool2d", (x, (2, 3)), {}
    yield "adaptive_avg_pool2d_backward", (small, x.shape), {}
    top, place = gpuconv.global_max_pool(x)
    yield "global_max_pool", (x,), {"keepdims": False}
    yield "global_max_pool_backward", (top, place, x.shape), {}
    yield "global_avg_pool", (x,), {}
    yield "global_avg_pool_backward", (top, x.shape), {}
    y = gpuconv.lp_pool2d(x, 2, 2)
    yield "lp_pool2d", (x, 2, 2), {}
    yield "lp_pool2d_backward", (numbers(*y.shape), x, y, 2, 2), {}
    yield "upsample", (x, 2), {}
    yield "upsample_backward", (numbers(N, 4, 6, 4), 2), {}


def _calls():
    for axes, sizes in SIZES.items():
        x, window = numbers(N, 4, *sizes), {"stride": 2, "padding": 1, "groups": 2}
        yield from _convolutions(axes, f"conv{axes}d", x, numbers(6, 2, *(3,) * axes), **window)
        yield from _convolutions(axes, f"conv_transpose{axes}d", x, numbers(4, 3, *(3,) * axes), **window)
        yield from _poolings(axes, x)
    yield from _others(numbers(N, 4, 6, 5))


CALLS = {name: (arguments, options) for name, arguments, options in _calls()}


def listed(results):
    return results if isinstance(results, tuple) else (results,)
