"""The networks that `gpuconv train` trains, fitted to the size of the pictures."""

import numpy as np

import gpuconv.nn as nn

ImageShape = tuple[int, int, int]


def modern_cnn(image_shape: ImageShape, classes: int, rng: np.random.Generator) -> nn.Sequential:
    """Build stages of convolution, max pooling, batch normalisation and ReLU, and a dense layer.

    Pooling stands right behind the convolution, so that what follows works on a quarter of the places; the
    convolutions have no bias, as batch normalisation brings its own.

    Parameters
    ----------
    image_shape
        Channels, height and width.
    classes
        Scores to give for each picture.
    rng
        Draws the first weights.

    Returns
    -------
    Sequential
        From `[N, C, H, W]` to `[N, classes]`, with two stages, or as many as it takes to come down to
        7 x 7 places.

    Examples
    --------
    >>> network = modern_cnn((1, 28, 28), 10, np.random.default_rng(0))
    >>> network(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    channels, height, width = image_shape
    layers: list[nn.Layer] = []
    wide = 16
    while len(layers) < 2 * STAGE or max(height, width) > 7:
        layers.append(nn.Conv2d(channels, wide, 5, padding=2, bias=False, rng=rng))
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        layers.append(nn.BatchNorm2d(wide))
        layers.append(nn.ReLU())
        channels, height, width, wide = wide, -(-height // 2), -(-width // 2), 2 * wide
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, classes, rng=rng))


STAGE = 4  # layers


def textbook_cnn(image_shape: ImageShape, classes: int, rng: np.random.Generator) -> nn.Sequential:
    """Build the network of the textbook algorithm: convolution, pooling and dense layers with sigmoids.

    Parameters and result are those of `modern_cnn`. The softmax of the output is part of the loss.

    Examples
    --------
    >>> textbook_cnn((1, 8, 8), 10, np.random.default_rng(0))
    Sequential(
      (0): Conv2d(1, 8, kernel_size=3, padding=1)
      (1): Sigmoid()
      (2): MaxPool2d(kernel_size=2, ceil_mode=True)
      (3): Flatten()
      (4): Linear(128, 32)
      (5): Sigmoid()
      (6): Linear(32, 10)
    )
    """
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, rng=rng),
        nn.Sigmoid(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(8 * -(-height // 2) * -(-width // 2), 32, rng=rng),
        nn.Sigmoid(),
        nn.Linear(32, classes, rng=rng),
    )
