"""Draw public calls and compare the C kernels with NumPy alone: `random_calls.py float32 300`.

A program of its own, for interpreters that were started in some other way (under a sanitizer, say). It prints
how many of the calls had C kernels, and fails at the first difference.
"""

import sys

import numpy as np

import gpuconv
from gpuconv.backends.cpu import compiled

# Winograd rounds sums of whole numbers, too.
CLOSE = {np.float32: {"rtol": 2e-6, "atol": 2e-3}, np.float64: {"rtol": 1e-14, "atol": 1e-11}}


def numbers(rng, shape, dtype):
    """Return whole numbers, whose sums are exact in any order."""
    return rng.integers(-3, 4, shape).astype(dtype)


def geometry(rng, axes):
    """Return sizes, kernel, and the options that convolution and pooling share."""
    most = {1: 70, 2: 21, 3: 9}[axes]
    sizes = rng.integers(1, most, axes)
    kernel = rng.integers(1, 1 + np.minimum(sizes, rng.choice([1, 3, 5, 8])))
    padding = [tuple(int(p) for p in rng.integers(0, k, 2)) for k in kernel]
    options = {"stride": int(rng.integers(1, 4)), "padding": padding, "dilation": int(rng.integers(1, 3))}
    if (
        axes == 2 and sizes.min() >= 3 and rng.integers(2)
    ):  # which networks have most, and Winograd alone takes
        kernel, options = (3, 3), {"stride": int(rng.integers(1, 3)), "padding": int(rng.integers(2))}
    return sizes.tolist(), [int(k) for k in kernel], options


def arranged(n, channels, sizes, channels_last):
    return (n, *sizes, channels) if channels_last else (n, channels, *sizes)


def convolution(rng, dtype):
    """Draw a convolution and its gradients; return what computes them."""
    axes, channels_last = int(rng.integers(1, 4)), bool(rng.integers(2))
    sizes, kernel, options = geometry(rng, axes)
    groups = int(rng.choice([1, 1, 2, 7, 20]))
    cg, og = (1, int(rng.integers(1, 3))) if groups > 2 else rng.integers(1, 20, 2).tolist()
    x = numbers(rng, arranged(rng.integers(1, 4), groups * cg, sizes, channels_last), dtype)
    w = numbers(rng, (*kernel, cg, groups * og) if channels_last else (groups * og, cg, *kernel), dtype)
    b = numbers(rng, groups * og, dtype) if rng.integers(2) else None
    options.update(groups=groups, channels_last=channels_last)
    forward = getattr(gpuconv, f"conv{axes}d")
    backward = getattr(gpuconv, f"conv{axes}d_backward")
    dy = numbers(rng, forward(x, w, **options).shape, dtype)
    algorithm = str(rng.choice(["auto", "direct", "winograd"]))
    activation, after = None, {}
    if rng.integers(2):  # y is not forward's: where the two differ by rounding, they may about a sign
        activation, after = "relu", {"activation": "relu", "y": numbers(rng, dy.shape, dtype)}

    def call():
        with gpuconv.config(algorithm=algorithm):
            y = forward(x, w, b, activation=activation, **options)
            return y, *backward(dy, x, w, **after, **options)

    return call


def max_pooling(rng, dtype):
    axes, channels_last = int(rng.integers(1, 4)), bool(rng.integers(2))
    sizes, kernel, options = geometry(rng, axes)
    x = numbers(rng, arranged(rng.integers(1, 4), rng.integers(1, 70), sizes, channels_last), dtype)
    options.update(channels_last=channels_last, ceil_mode=bool(rng.integers(2)))
    forward = getattr(gpuconv, f"max_pool{axes}d")
    backward = getattr(gpuconv, f"max_pool{axes}d_backward")
    unpool, unpool_backward = (getattr(gpuconv, f"max_unpool{axes}d{end}") for end in ("", "_backward"))
    dy = numbers(rng, forward(x, kernel, **options)[0].shape, dtype)

    def call():
        y, argmax = forward(x, kernel, **options)
        dx = backward(dy, argmax, x.shape, kernel, **options)
        back = unpool(dy, argmax, x.shape, kernel, **options)
        return y, argmax, dx, back, unpool_backward(x, argmax, kernel, **options)

    return call


def mean_pooling(rng, dtype):
    axes, channels_last = int(rng.integers(1, 4)), bool(rng.integers(2))
    sizes, kernel, options = geometry(rng, axes)
    x = numbers(rng, arranged(rng.integers(1, 4), rng.integers(1, 70), sizes, channels_last), dtype)
    options.update(channels_last=channels_last, ceil_mode=bool(rng.integers(2)))
    options.update(count_include_pad=bool(rng.integers(2)))
    forward = getattr(gpuconv, f"avg_pool{axes}d")
    backward = getattr(gpuconv, f"avg_pool{axes}d_backward")
    dy = numbers(rng, forward(x, kernel, **options).shape, dtype)
    return lambda: (forward(x, kernel, **options), backward(dy, x.shape, kernel, **options))


def adaptive_pooling(rng, dtype):
    channels_last, sizes, out = bool(rng.integers(2)), rng.integers(1, 40, 2), rng.integers(1, 20, 2).tolist()
    x = numbers(rng, arranged(rng.integers(1, 4), rng.integers(1, 70), sizes.tolist(), channels_last), dtype)
    last = {"channels_last": channels_last}

    def call():
        y, argmax = gpuconv.adaptive_max_pool2d(x, out, **last)
        dx = gpuconv.adaptive_max_pool2d_backward(y, argmax, x.shape, **last)
        mean = gpuconv.adaptive_avg_pool2d(x, out, **last)
        return y, argmax, dx, mean, gpuconv.adaptive_avg_pool2d_backward(mean, x.shape, **last)

    return call


def check(dtype, calls, seed=0):
    """Compare so many calls; return how many of them C kernels could compute."""
    taken = 0
    for number in range(calls):
        rng = np.random.default_rng([seed, number])
        draw = (convolution, max_pooling, mean_pooling, adaptive_pooling)[number % 4]
        with gpuconv.config(compiled=False):
            try:
                call = draw(rng, dtype)
                wanted = call()
            except ValueError:  # no such window
                continue
        with gpuconv.config(compiled=True):
            found = call()
        for got, want in zip(found, wanted, strict=True):
            told = f"call {number}, {draw.__name__}"
            np.testing.assert_allclose(got, want, **CLOSE[dtype], err_msg=told)
        taken += compiled.kernels(np.empty(0, dtype)) is not None
    return taken


if __name__ == "__main__":
    print(check(np.dtype(sys.argv[1]).type, int(sys.argv[2])))
