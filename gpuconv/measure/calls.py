"""An operation on a shape, ready to be called: ours on NumPy or CuPy arrays, PyTorch's on the same memory."""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

import gpuconv
from gpuconv.measure.shapes import ADAPTED, SCALE, ConvShape, PoolShape, Shape
from gpuconv.measure.work import arrays

Array = Any
Call = Callable[[], Array]

# A prime number of random values, repeated: no two rows of an array are alike, and making them takes no time.
PERIOD = 1_000_003


def random(xp: ModuleType, shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Return values in [-0.5, 0.5)."""
    size = prod(shape)
    repeated = xp.tile(_values(xp, dtype, seed), -(-size // PERIOD))
    return repeated[:size].reshape(shape).copy()


@lru_cache
def _values(xp: ModuleType, dtype: str, seed: int) -> Array:
    values = np.random.default_rng(seed).random(PERIOD, np.float32) - np.float32(0.5)
    return xp.asarray(values.astype(dtype))


class Calls:
    """Our call of an operation, and PyTorch's (`theirs`), on the same random arrays."""

    def __init__(self, op: str, shape: Shape, dtype: str, channels_last: bool, xp: ModuleType) -> None:
        self.op, self.shape, self.channels_last, self.xp = op, shape, channels_last, xp
        self.x = random(xp, shape.x_shape(channels_last), dtype, 1)
        self.dy = random(xp, shape.y_shape(channels_last), dtype, 2)
        if isinstance(shape, ConvShape):
            self.w = random(xp, shape.w_shape(channels_last), dtype, 3)
            self.ours = self._conv(shape)
        else:
            self.ours = self._pool(shape)

    def _conv(self, shape: ConvShape) -> Call:
        x, w, dy, last = self.x, self.w, self.dy, {"channels_last": self.channels_last}
        window: dict[str, Any] = {
            "stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation, **last,
        }  # fmt: skip
        taps, groups = (shape.kh, shape.kw), shape.groups
        # The transposed convolution from dy back to x's size, with a bias.
        self.b = bias = random(self.xp, (shape.c_in,), self.x.dtype.name, 4)
        extra = _output_padding(shape)
        if self.op == "col2im":
            col = gpuconv.im2col(x, taps, **window)
            return lambda: gpuconv.col2im(col, x.shape, taps, **window)
        return {
            "conv2d": lambda: gpuconv.conv2d(x, w, groups=groups, **window),
            "conv2d_input_grad": lambda: gpuconv.conv2d_input_grad(dy, w, x.shape, groups=groups, **window),
            "conv2d_weight_grad": lambda: gpuconv.conv2d_weight_grad(dy, x, taps, groups=groups, **window),
            "conv2d_bias_grad": lambda: gpuconv.conv2d_bias_grad(dy, **last),
            "conv_transpose2d": lambda: gpuconv.conv_transpose2d(
                dy, w, bias, output_padding=extra, groups=groups, **window
            ),
            "im2col": lambda: gpuconv.im2col(x, taps, **window),
        }[self.op]

    def _pool(self, shape: PoolShape) -> Call:
        op, x, dy, last = self.op, self.x, self.dy, {"channels_last": self.channels_last}
        place: dict[str, Any] = {
            "kernel_size": shape.kernel, "stride": shape.stride, "padding": shape.padding, **last,
        }  # fmt: skip
        if op.startswith(("global", "adaptive", "upsample")):
            forward, given = getattr(gpuconv, op.removesuffix("_backward")), []
            if not op.startswith("global"):
                given = [ADAPTED if op.startswith("adaptive") else SCALE]
            if not op.endswith("backward"):
                return lambda: forward(x, *given, **last)
            # A gradient of y's shape: another forward pass.
            gradient, *mask = arrays(forward(random(self.xp, x.shape, x.dtype.name, 2), *given, **last))
            backward = getattr(gpuconv, op)
            given = given if op.startswith("upsample") else [*mask, x.shape]
            return lambda: backward(gradient, *given, **last)
        if op.startswith("lp"):
            y = gpuconv.lp_pool2d(x, 2, **place)
            if op.endswith("backward"):
                return lambda: gpuconv.lp_pool2d_backward(dy, x, y, 2, **place)
            return lambda: gpuconv.lp_pool2d(x, 2, **place)
        _, argmax = gpuconv.max_pool2d(x, **place)
        return {
            "max_pool2d": lambda: gpuconv.max_pool2d(x, **place),
            "max_pool2d value only": lambda: gpuconv.max_pool2d(x, return_argmax=False, **place),
            "max_pool2d_backward": lambda: gpuconv.max_pool2d_backward(dy, argmax, x.shape, **place),
            "max_unpool2d": lambda: gpuconv.max_unpool2d(dy, argmax, x.shape, **place),
            "max_unpool2d_backward": lambda: gpuconv.max_unpool2d_backward(x, argmax, **place),
            "avg_pool2d": lambda: gpuconv.avg_pool2d(x, **place),
            "avg_pool2d_backward": lambda: gpuconv.avg_pool2d_backward(dy, x.shape, **place),
        }[op]

    def theirs(self, torch: ModuleType) -> Call:
        """Return PyTorch's call; its operators are called directly, so there is no autograd in it."""
        aten, op, shape = torch.ops.aten, self.op, self.shape
        x, dy = self._tensor(torch, self.x), self._tensor(torch, self.dy)
        if isinstance(shape, ConvShape):
            w = torch.from_dlpack(self.w)
            if self.channels_last:
                w = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            window: tuple[Any, ...] = (
                [shape.stride] * 2, [shape.padding] * 2, [shape.dilation] * 2, False, [0, 0], shape.groups,
            )  # fmt: skip
            if op == "conv2d":
                return lambda: aten.convolution(x, w, None, *window)
            if op == "conv_transpose2d":
                turned = (*window[:3], True, list(_output_padding(shape)), shape.groups)
                b = torch.from_dlpack(self.b)
                return lambda: aten.convolution(dy, w, b, *turned)
            wanted = op == "conv2d_input_grad"
            mask = [wanted, not wanted, False]
            return lambda: aten.convolution_backward(dy, x, w, None, *window, mask)[0 if wanted else 1]
        window = ([shape.kernel] * 2, [shape.stride] * 2, [shape.padding] * 2)
        if op == "max_pool2d_backward":
            _, indices = aten.max_pool2d_with_indices(x, *window)
            backward = aten.max_pool2d_with_indices_backward
            return lambda: backward(dy, x, *window, [1, 1], False, indices)
        if op == "max_unpool2d":
            _, indices = aten.max_pool2d_with_indices(x, *window)
            return lambda: aten.max_unpool2d(dy, indices, [shape.h, shape.w])
        calls = {
            "max_pool2d": lambda: aten.max_pool2d_with_indices(x, *window)[0],
            "avg_pool2d": lambda: aten.avg_pool2d(x, *window),
            "avg_pool2d_backward": lambda: aten.avg_pool2d_backward(dy, x, *window, False, True, None),
            "adaptive_avg_pool2d": lambda: aten._adaptive_avg_pool2d(x, ADAPTED),
            "adaptive_max_pool2d": lambda: aten.adaptive_max_pool2d(x, ADAPTED)[0],
            "global_avg_pool": lambda: aten.mean(x, (2, 3), True),
            "global_max_pool": lambda: aten.adaptive_max_pool2d(x, (1, 1))[0],
            "upsample": lambda: aten.upsample_nearest2d(x, [SCALE * shape.h, SCALE * shape.w]),
        }
        if op not in calls:
            raise LookupError(f"PyTorch has no one operator that is {op}")
        return calls[op]

    def _tensor(self, torch: ModuleType, array: Array) -> Any:
        """Show PyTorch the same memory; its channels-last tensors have the axes in channels-first order."""
        tensor = torch.from_dlpack(array)
        return tensor.permute(0, 3, 1, 2) if self.channels_last else tensor

    def compared(self, tensor: Any) -> Array:
        """Return PyTorch's result as an array whose axes are in our order."""
        if self.channels_last:
            tensor = (
                tensor.permute(2, 3, 1, 0) if self.op == "conv2d_weight_grad" else tensor.permute(0, 2, 3, 1)
            )
        return self.xp.from_dlpack(tensor.contiguous())


def _output_padding(shape: ConvShape) -> tuple[int, ...]:
    """Return what a transposed convolution from y's size must add to come back to x's."""
    return tuple(
        size - ((out - 1) * shape.stride - 2 * shape.padding + shape.dilation * (kernel - 1) + 1)
        for size, out, kernel in zip((shape.h, shape.w), shape.out, (shape.kh, shape.kw), strict=True)
    )


def difference(a: Array, b: Array, xp: ModuleType) -> float:
    """Return ||a - b|| / ||b||, summed in float32; infinite where shapes or dtypes differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    wide = np.promote_types(a.dtype, np.float32)
    apart = xp.subtract(a, b, dtype=wide)
    scale = float(xp.square(b, dtype=wide).sum())
    off = float(xp.square(apart).sum())
    return (off / scale) ** 0.5 if scale else off
