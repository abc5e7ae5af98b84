"""A small network library: layers, losses and optimisers over the functions of `gpuconv`.

>>> import numpy as np
>>> import gpuconv.nn as nn
>>> rng = np.random.default_rng(0)
>>> network = nn.Sequential(nn.Conv2d(1, 4, 3, rng=rng), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, rng=rng))
>>> loss, optimizer = nn.SoftmaxCrossEntropy(), nn.Adam(network, lr=0.02)
>>> x = rng.standard_normal((8, 1, 4, 4), np.float32)
>>> target = (x.mean(axis=(1, 2, 3)) > 0).astype(np.int64)
>>> for _ in range(50):
...     value = loss(network(x), target)
...     dx = network.backward(loss.backward(), needs_dx=False)
...     optimizer.step()
>>> bool(value < 0.05)
True
"""

from gpuconv.nn.activations import ReLU, Sigmoid, Tanh
from gpuconv.nn.adaptive_pooling import AdaptiveAvgPool2d, AdaptiveMaxPool2d, GlobalAvgPool, GlobalMaxPool
from gpuconv.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from gpuconv.nn.dense import Dropout, Flatten, Linear
from gpuconv.nn.initializers import glorot_uniform, he_normal, he_uniform
from gpuconv.nn.layer import Layer
from gpuconv.nn.losses import MSE, SoftmaxCrossEntropy
from gpuconv.nn.normalization import BatchNorm2d
from gpuconv.nn.optimizers import SGD, Adam
from gpuconv.nn.pooling import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    LPPool2d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)
from gpuconv.nn.sequential import Sequential
from gpuconv.nn.upsample import Upsample

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
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "LPPool2d",
    "Layer",
    "Linear",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "Tanh",
    "Upsample",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
]
