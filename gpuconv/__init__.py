"""Convolution and pooling layers, forward and backward, for CuPy and NumPy arrays.

>>> import numpy as np, gpuconv
>>> y = gpuconv.conv2d(np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32), padding="same")
>>> y.shape
(1, 4, 8, 8)
"""

from typing import TYPE_CHECKING, Any

from gpuconv import nn, testing
from gpuconv.adaptive import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_max_pool2d,
    adaptive_max_pool2d_backward,
)
from gpuconv.buffers import release_buffers
from gpuconv.columns import col2im, im2col
from gpuconv.config import config
from gpuconv.conv import (
    ConvGrads,
    conv2d,
    conv2d_backward,
    conv2d_bias_grad,
    conv2d_input_grad,
    conv2d_weight_grad,
)
from gpuconv.conv1d import conv1d, conv1d_backward, conv1d_bias_grad, conv1d_input_grad, conv1d_weight_grad
from gpuconv.conv3d import conv3d, conv3d_backward, conv3d_bias_grad, conv3d_input_grad, conv3d_weight_grad
from gpuconv.conv_transpose import (
    conv_transpose1d,
    conv_transpose1d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose3d,
    conv_transpose3d_backward,
)
from gpuconv.explain import explain
from gpuconv.global_pool import (
    global_avg_pool,
    global_avg_pool_backward,
    global_max_pool,
    global_max_pool_backward,
)
from gpuconv.lp_pool import lp_pool2d, lp_pool2d_backward
from gpuconv.nn import (
    MSE,
    SGD,
    Adam,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Linear,
    LPPool2d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
    ReLU,
    Sequential,
    Sigmoid,
    SoftmaxCrossEntropy,
    Tanh,
    Upsample,
)
from gpuconv.offload import offload
from gpuconv.pool import (
    argmax_to_indices,
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from gpuconv.pool1d import avg_pool1d, avg_pool1d_backward, max_pool1d, max_pool1d_backward
from gpuconv.pool3d import avg_pool3d, avg_pool3d_backward, max_pool3d, max_pool3d_backward
from gpuconv.training import History, fit
from gpuconv.unpool import (
    max_unpool1d,
    max_unpool1d_backward,
    max_unpool2d,
    max_unpool2d_backward,
    max_unpool3d,
    max_unpool3d_backward,
)
from gpuconv.upsample import upsample, upsample_backward

if TYPE_CHECKING:
    from gpuconv.measure.profile import Profile, profile

__version__ = "0.1.0"

__all__ = [
    "MSE",
    "SGD",
    "Adam",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvGrads",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "History",
    "LPPool2d",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "Profile",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "Tanh",
    "Upsample",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward",
    "argmax_to_indices",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "col2im",
    "config",
    "conv1d",
    "conv1d_backward",
    "conv1d_bias_grad",
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d",
    "conv2d_backward",
    "conv2d_bias_grad",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_backward",
    "conv3d_bias_grad",
    "conv3d_input_grad",
    "conv3d_weight_grad",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "explain",
    "fit",
    "global_avg_pool",
    "global_avg_pool_backward",
    "global_max_pool",
    "global_max_pool_backward",
    "im2col",
    "lp_pool2d",
    "lp_pool2d_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "max_unpool1d",
    "max_unpool1d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "max_unpool3d",
    "max_unpool3d_backward",
    "nn",
    "offload",
    "profile",
    "release_buffers",
    "testing",
    "upsample",
    "upsample_backward",
]


def __getattr__(name: str) -> Any:
    """Import what measures when it is first asked for: that takes longer than all the rest."""
    if name in ("Profile", "profile"):
        from gpuconv.measure import profile as home

        return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
