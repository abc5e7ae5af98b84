"""Convolution and pooling as CuPy's cuDNN module had them, until CuPy 14 dropped it; computed by gpuconv.

`install` puts this module where code written for CuPy 13 and older looks: ``cupy.cudnn``, ``cupyx.cudnn``,
``cupy.cuda.cudnn``. Names, arguments and the arrays that are written in place are those of CuPy 13.6. Arrays
are CuPy's, or all NumPy's; they have one to three spatial axes and are all float16, float32 or float64, whose
sums are taken in at least float32.

Where it differs from cuDNN:

=======================  ==========================================  ====================================
what                     cuDNN, as CuPy 13 called it                 here
=======================  ==========================================  ====================================
layouts                  NHWC for images with two spatial axes       for one to three (NWC, NHWC, NDHWC)
arrays written to        in C order                                  with any strides
spatial axes             two or three                                one, too
workspace                at most 8 MiB, unless set                   `config.workspace_limit`
``auto_tune``            tries algorithms on the first call          ignored
``deterministic``        False may sum in another order every time   ignored; sums have a fixed order
``tensor_core``          lets float16 use tensor cores               ignored once its spelling is checked;
                                                                     float32: `config.fp32_precision`
equal maxima             unspecified                                 the first has the whole gradient
NaN in max pooling       isn't propagated                            wins, so that it is seen
pooling windows of       unspecified                                 ValueError
nothing but padding
wrong arguments          CuDNNError                                  TypeError or ValueError, that say which
=======================  ==========================================  ====================================

>>> import numpy as np
>>> from gpuconv.compat import cudnn
>>> x, W, y = np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.empty((1, 4, 6, 6))
>>> flags = {"auto_tune": True, "tensor_core": "auto"}
>>> cudnn.convolution_forward(x, W, None, y, (0, 0), (1, 1), (1, 1), 1, **flags)
>>> float(y[0, 0, 0, 0])
27.0
"""

import importlib.util
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

from gpuconv import conv, geometry, pool
from gpuconv.backends.cuda.runtime import INSTALL
from gpuconv.backends.dispatch import backend_of, check_shape, float_result, given, result
from gpuconv.config import LEAST_WORKSPACE, config
from gpuconv.geometry import Ints
from gpuconv.trace import traced

__all__ = [
    "CUDNN_CONVOLUTION",
    "CUDNN_CROSS_CORRELATION",
    "CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING",
    "CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING",
    "CUDNN_POOLING_MAX",
    "CUDNN_POOLING_MAX_DETERMINISTIC",
    "CUDNN_TENSOR_NCHW",
    "CUDNN_TENSOR_NHWC",
    "Descriptor",
    "Installed",
    "available",
    "convolution_backward_data",
    "convolution_backward_filter",
    "convolution_forward",
    "create_convolution_descriptor",
    "create_filter_descriptor",
    "create_pooling_descriptor",
    "create_tensor_descriptor",
    "getConvolution2dForwardOutputDim",
    "getConvolutionNdForwardOutputDim",
    "getPooling2dForwardOutputDim",
    "getPoolingNdForwardOutputDim",
    "getVersion",
    "get_max_workspace_size",
    "install",
    "pooling_backward",
    "pooling_forward",
    "set_max_workspace_size",
    "uninstall",
]

Array = Any
Sizes = tuple[int, ...]

CUDNN_TENSOR_NCHW = 0
CUDNN_TENSOR_NHWC = 1

CUDNN_CONVOLUTION = 0
CUDNN_CROSS_CORRELATION = 1

CUDNN_POOLING_MAX = 0
CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING = 1
CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING = 2
CUDNN_POOLING_MAX_DETERMINISTIC = 3

# CuPy's flag of a library that could be loaded.
available = True


@traced
def convolution_forward(
    x: Array,
    W: Array,
    b: Array | None,
    y: Array,
    pad: Ints,
    stride: Ints,
    dilation: Ints | None,
    groups: int,
    *,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the convolution of x with W, plus b, to y; see `gpuconv.conv2d` for the formula.

    Parameters
    ----------
    x : array [N, C, H, W]
        Images. With ``d_layout=CUDNN_TENSOR_NHWC``, here and for y: [N, H, W, C].
    W : array [K, C/groups, kh, kw]
        Kernels, not flipped. With ``w_layout=CUDNN_TENSOR_NHWC``: [K, kh, kw, C/groups].
    b : array of K elements, or None
        Bias, in any shape.
    y : array [N, K, OH, OW]
        Where the result goes.
    pad, stride, dilation : (int, int)
        One per spatial axis, as a tuple, a list or an integer for all. A dilation of None is 1.
    groups : int
        Groups of channels.
    auto_tune : bool
        Ignored.
    tensor_core : "always", "auto" or "never"
        Ignored.
    d_layout, w_layout : CUDNN_TENSOR_NCHW or CUDNN_TENSOR_NHWC
        Layouts of x and y, and of W.

    Raises
    ------
    TypeError
        For what is not an array or not an integer, for arrays of several kinds or dtypes, and for any dtype
        but float16, float32 and float64.
    ValueError
        For shapes that don't fit each other, and where y shares memory with another array.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x, W, y = np.arange(4.0).reshape(1, 1, 1, 4), np.ones((1, 1, 1, 2)), np.empty((1, 1, 1, 3))
    >>> flags = {"auto_tune": False, "tensor_core": "never"}
    >>> cudnn.convolution_forward(x, W, np.array([10.0]), y, (0, 0), (1, 1), (1, 1), 1, **flags)
    >>> y
    array([[[[11., 13., 15.]]]])
    """
    op = "convolution_forward"
    options = (pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    call = _describe(op, {"x": x, "W": W, "y": y}, b, "y", *options)
    flat = None if b is None else _flat(op, b, "y", W.shape[0])
    conv.convolve(op, call.axes, x, W.transpose(call.order), flat, *call.window, None, y)


@traced
def convolution_backward_data(
    W: Array,
    x: Array,
    b: Array | None,
    y: Array,
    pad: Ints,
    stride: Ints,
    dilation: Ints | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the gradient by the images to y, given the gradient x of the result; or a transposed convolution.

    The names are CuPy's: callers know x as gy and y as gx. See `gpuconv.conv2d_input_grad` for the formula.

    Parameters
    ----------
    W : array [K, C/groups, kh, kw]
        Kernels, as in `convolution_forward`.
    x : array [N, K, OH, OW]
        Gradient of what `convolution_forward` wrote.
    b : array of C elements, or None
        Bias that is added to y: that of a transposed convolution.
    y : array [N, C, H, W]
        Where the gradient by the images goes.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As in `convolution_forward`.
    deterministic : bool
        Ignored: results are always the same from run to run.

    Raises
    ------
    TypeError, ValueError
        As `convolution_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> W, gy, gx = np.array([[[[1.0, 10.0]]]]), np.ones((1, 1, 1, 2)), np.empty((1, 1, 1, 3))
    >>> flags = {"deterministic": False, "auto_tune": False, "tensor_core": "never"}
    >>> cudnn.convolution_backward_data(W, gy, None, gx, (0, 0), (1, 1), (1, 1), 1, **flags)
    >>> gx
    array([[[[ 1., 11., 10.]]]])
    """
    op = "convolution_backward_data"
    options = (pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    call = _describe(op, {"y": y, "W": W, "x": x}, b, "y", *options)
    flat = None if b is None else _flat(op, b, "y", call.channels)
    conv.input_grad(op, call.axes, x, W.transpose(call.order), y.shape, *call.window, y)
    if flat is not None:
        y += flat if d_layout == CUDNN_TENSOR_NHWC else flat.reshape(-1, *(1,) * call.axes)


@traced
def convolution_backward_filter(
    x: Array,
    gy: Array,
    gW: Array,
    pad: Ints,
    stride: Ints,
    dilation: Ints | None,
    groups: int,
    *,
    deterministic: bool,
    auto_tune: bool,
    tensor_core: str,
    d_layout: int = CUDNN_TENSOR_NCHW,
    w_layout: int = CUDNN_TENSOR_NCHW,
) -> None:
    """Write the gradient by the kernels to gW; see `gpuconv.conv2d_weight_grad` for the formula.

    Parameters
    ----------
    x : array [N, C, H, W]
        Images, as in `convolution_forward`.
    gy : array [N, K, OH, OW]
        Gradient of what `convolution_forward` wrote.
    gW : array [K, C/groups, kh, kw]
        Where the gradient by the kernels goes.
    pad, stride, dilation, groups, auto_tune, tensor_core, d_layout, w_layout
        As in `convolution_forward`.
    deterministic : bool
        Ignored: results are always the same from run to run.

    Raises
    ------
    TypeError, ValueError
        As `convolution_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x, gy, gW = np.arange(4.0).reshape(1, 1, 1, 4), np.ones((1, 1, 1, 3)), np.empty((1, 1, 1, 2))
    >>> flags = {"deterministic": False, "auto_tune": False, "tensor_core": "never"}
    >>> cudnn.convolution_backward_filter(x, gy, gW, (0, 0), (1, 1), (1, 1), 1, **flags)
    >>> gW
    array([[[[3., 6.]]]])
    """
    op = "convolution_backward_filter"
    options = (pad, stride, dilation, groups, tensor_core, d_layout, w_layout)
    call = _describe(op, {"x": x, "gW": gW, "gy": gy}, None, "gW", *options)
    conv.weight_grad(op, call.axes, gy, x, call.kernel, *call.window, gW.transpose(call.order))


@traced
def pooling_forward(x: Array, y: Array, ksize: Ints, stride: Ints, pad: Ints, mode: int) -> Array:
    """Write the maximum or the mean of every window of x to y.

    y says how many windows there are: those that fit, or one more along an axis that they don't exhaust,
    whose last window is then partial (Chainer's ``cover_all``).

    Parameters
    ----------
    x : array [N, C, H, W]
        Images.
    y : array [N, C, OH, OW]
        Where the result goes.
    ksize, stride, pad : (int, int)
        The windows: one integer per spatial axis, as a tuple, a list or an integer for all.
    mode : int
        One of the ``CUDNN_POOLING_`` constants. The two for maxima are the same here.

    Returns
    -------
    y : array
        The array that was given.

    Raises
    ------
    TypeError, ValueError
        As `convolution_forward`; for a mode that doesn't exist; and for windows of nothing but padding.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x = np.arange(10.0).reshape(1, 1, 2, 5)
    >>> cudnn.pooling_forward(x, np.empty((1, 1, 1, 2)), (2, 2), (2, 2), (0, 0), cudnn.CUDNN_POOLING_MAX)
    array([[[[6., 8.]]]])
    >>> cudnn.pooling_forward(x, np.empty((1, 1, 1, 3)), (2, 2), (2, 2), (0, 0), cudnn.CUDNN_POOLING_MAX)
    array([[[[6., 8., 9.]]]])
    """
    op = "pooling_forward"
    axes, window, maxima, counted = _describe_pooling(op, {"x": x, "y": y}, ksize, stride, pad, mode)
    _check_written(op, {"x": x, "y": y}, "y")
    if maxima:
        return pool.max_pool(op, axes, x, window, False, y)
    return pool.avg_pool(op, axes, x, window, counted, None, y)


@traced
def pooling_backward(x: Array, y: Array, gy: Array, ksize: Ints, stride: Ints, pad: Ints, mode: int) -> Array:
    """Return the gradient of `pooling_forward` by x.

    Parameters
    ----------
    x, y, ksize, stride, pad, mode
        As given to `pooling_forward`. Where the maxima were is looked up in x again; y's shape alone counts.
    gy : array [N, C, OH, OW]
        Gradient of y.

    Returns
    -------
    gx : array [N, C, H, W]
        A new array.

    Raises
    ------
    TypeError, ValueError
        As `pooling_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x, y, gy = np.array([[[[1.0, 3.0, 2.0]]]]), np.array([[[[3.0, 3.0]]]]), np.array([[[[5.0, 7.0]]]])
    >>> cudnn.pooling_backward(x, y, gy, (1, 2), (1, 1), (0, 0), cudnn.CUDNN_POOLING_MAX)
    array([[[[ 0., 12.,  0.]]]])
    """
    op = "pooling_backward"
    arrays = {"x": x, "y": y, "gy": gy}
    axes, window, maxima, counted = _describe_pooling(op, arrays, ksize, stride, pad, mode)
    if maxima:
        _, argmax = pool.max_pool(op, axes, x, window, True, None)
        return pool.max_pool_backward(op, axes, gy, argmax, x.shape, window, None)
    return pool.avg_pool_backward(op, axes, gy, x.shape, window, counted, None, None)


# Sizes of results, and the descriptors that cuDNN works them out from.


class Descriptor(NamedTuple):
    """What the ``create_*_descriptor`` functions return.

    Attributes
    ----------
    value : tuple
        The settings; CuPy had an address here, to hand to cuDNN's functions.
    """

    value: Any


class _Settings(NamedTuple):
    kernel: Any
    stride: Ints
    pad: Ints
    dilation: Ints | None
    groups: int


def create_tensor_descriptor(arr: Array, format: int = CUDNN_TENSOR_NCHW) -> Descriptor:
    """Describe images by their sizes.

    Parameters
    ----------
    arr : array
        The images.
    format : CUDNN_TENSOR_NCHW or CUDNN_TENSOR_NHWC
        Their layout.
    """
    return _describe_sizes("create_tensor_descriptor", arr, format)


def create_filter_descriptor(arr: Array, format: int = CUDNN_TENSOR_NCHW) -> Descriptor:
    """Describe kernels by their sizes; as `create_tensor_descriptor`."""
    return _describe_sizes("create_filter_descriptor", arr, format)


def create_convolution_descriptor(
    pad: Ints,
    stride: Ints,
    dtype: Any,
    mode: int = CUDNN_CROSS_CORRELATION,
    dilation: Ints | None = None,
    use_tensor_core: bool = False,
    groups: int = 1,
) -> Descriptor:
    """Describe a convolution; dtype, mode and use_tensor_core don't change its sizes and are ignored."""
    return Descriptor(_Settings(None, stride, pad, dilation, groups))


def create_pooling_descriptor(ksize: Ints, stride: Ints, pad: Ints, mode: int) -> Descriptor:
    """Describe a pooling; mode doesn't change its sizes and is ignored."""
    return Descriptor(_Settings(ksize, stride, pad, 1, 1))


def getConvolutionNdForwardOutputDim(convDesc: Any, inputTensorDesc: Any, filterDesc: Any) -> tuple[int, ...]:
    """Return the sizes (N, K, OH, OW) of a convolution's result; cuDNN has this function, CuPy had not.

    Parameters
    ----------
    convDesc, inputTensorDesc, filterDesc : Descriptor, or its value
        From `create_convolution_descriptor`, `create_tensor_descriptor` and `create_filter_descriptor`.

    Raises
    ------
    TypeError, ValueError
        As `convolution_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x = cudnn.create_tensor_descriptor(np.empty((8, 3, 32, 32)))
    >>> W = cudnn.create_filter_descriptor(np.empty((16, 3, 5, 5)))
    >>> window = cudnn.create_convolution_descriptor((2, 2), (2, 2), np.float32)
    >>> cudnn.getConvolutionNdForwardOutputDim(window.value, x.value, W.value)
    (8, 16, 16, 16)
    """
    op = "getConvolutionNdForwardOutputDim"
    settings, x, W = (getattr(each, "value", each) for each in (convDesc, inputTensorDesc, filterDesc))
    _check_channels(op, "inputTensorDesc", x, "filterDesc", W, settings.groups)
    numbers = _numbers(op, len(x) - 2, settings.stride, settings.pad, settings.dilation)
    return (x[0], W[0], *_out_sizes(op, "inputTensorDesc", x[2:], "filterDesc", W[2:], *numbers))


def getPoolingNdForwardOutputDim(poolingDesc: Any, inputTensorDesc: Any) -> tuple[int, ...]:
    """Return the sizes (N, C, OH, OW) of a pooling's result; cuDNN has this function, CuPy had not.

    Parameters
    ----------
    poolingDesc, inputTensorDesc : Descriptor, or its value
        From `create_pooling_descriptor` and `create_tensor_descriptor`.

    Raises
    ------
    TypeError, ValueError
        As `pooling_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpuconv.compat import cudnn
    >>> x = cudnn.create_tensor_descriptor(np.empty((8, 3, 32, 33)))
    >>> window = cudnn.create_pooling_descriptor((2, 2), (2, 2), (0, 0), cudnn.CUDNN_POOLING_MAX)
    >>> cudnn.getPoolingNdForwardOutputDim(window.value, x.value)
    (8, 3, 16, 16)
    """
    op = "getPoolingNdForwardOutputDim"
    settings, x = (getattr(each, "value", each) for each in (poolingDesc, inputTensorDesc))
    axes = len(x) - 2
    ksize = geometry.per_axis(op, "ksize", settings.kernel, axes, 1)
    numbers = _numbers(op, axes, settings.stride, settings.pad, settings.dilation)
    return (*x[:2], *_out_sizes(op, "inputTensorDesc", x[2:], "ksize", ksize, *numbers))


getConvolution2dForwardOutputDim = getConvolutionNdForwardOutputDim
getPooling2dForwardOutputDim = getPoolingNdForwardOutputDim


# What callers ask about the library.


def getVersion() -> int:
    """Return 8000, the cuDNN whose abilities these functions have; callers look for one not too old."""
    return 8000


def get_max_workspace_size() -> int:
    """Return `config.workspace_limit` in bytes; 0 where gpuconv is to choose one, as it does unless told."""
    return config.workspace_limit or 0


def set_max_workspace_size(size: int) -> None:
    """Set `config.workspace_limit`.

    Parameters
    ----------
    size : int
        Bytes; less than 1 MiB counts as 1 MiB, 0 lets gpuconv choose.

    Raises
    ------
    TypeError, ValueError
        Where size is no integer, or negative.

    Examples
    --------
    >>> from gpuconv.compat import cudnn
    >>> before = cudnn.get_max_workspace_size()
    >>> cudnn.set_max_workspace_size(32 << 20)
    >>> cudnn.get_max_workspace_size()
    33554432
    >>> cudnn.set_max_workspace_size(before)
    """
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"set_max_workspace_size: size must be a number of bytes, not {size!r}")
    if (size := int(size)) < 0:
        raise ValueError(f"set_max_workspace_size: size must not be negative, but is {size}")
    config.workspace_limit = max(size, LEAST_WORKSPACE) if size else None


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"gpuconv.compat.cudnn has no {name!r}: of CuPy's cuDNN functions it has convolution and pooling"
    )


# Where old code looks.

PLACES = ("cupy.cudnn", "cupyx.cudnn", "cupy.cuda.cudnn")


class Installed:
    """What `install` returns; as a context manager it takes away again what that call has put in place."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = places

    def __enter__(self) -> None:
        """Do nothing: the module is in place."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the module away, unless it was there before."""
        _remove(self._places)


def install() -> Installed:
    """Let ``cupy.cudnn``, ``cupyx.cudnn`` and ``cupy.cuda.cudnn`` be this module, until `uninstall`.

    Both ``import`` and ``importlib.util.find_spec`` find it there, and ``cupy.cuda.cudnn_enabled`` is True.
    Programs look when they are imported, so this comes first. A second call changes nothing.

    Returns
    -------
    Installed
        For a ``with`` statement, at whose end the module goes away if this call has brought it.

    Raises
    ------
    RuntimeError
        Where CuPy can't be imported, or has a cuDNN module of its own (before CuPy 14), which is left alone.

    Examples
    --------
    >>> from gpuconv.compat import cudnn
    >>> with cudnn.install():  # doctest: +SKIP
    ...     import sigpy
    """
    try:
        parents = {place: importlib.import_module(place.rpartition(".")[0]) for place in PLACES}
    except ImportError as error:
        raise RuntimeError(f"install: CuPy can't be imported ({error}); {INSTALL}") from error
    this = sys.modules[__name__]
    absent = [place for place in PLACES if sys.modules.get(place) is not this]
    for place in absent:
        if getattr(parents[place], "cudnn", this) is not this or importlib.util.find_spec(place) is not None:
            raise RuntimeError(
                f"install: CuPy {sys.modules['cupy'].__version__} has its own {place}, which stays; "
                "gpuconv.compat.cudnn stands in for what CuPy 14 dropped"
            )
    for place in absent:
        sys.modules[place] = this
        vars(parents[place]).update(_attributes(place))
    return Installed(absent)


def uninstall() -> None:
    """Undo `install`; where nothing is installed, do nothing.

    What was imported meanwhile keeps the module that it has got.

    Examples
    --------
    >>> from gpuconv.compat import cudnn
    >>> cudnn.uninstall()
    """
    _remove(PLACES)


def _remove(places: Sequence[str]) -> None:
    this = sys.modules[__name__]
    for place in places:
        if sys.modules.get(place) is this:
            del sys.modules[place]
        parent = vars(sys.modules.get(place.rpartition(".")[0], object))
        if parent.get("cudnn") is this:
            for name in _attributes(place):
                parent.pop(name, None)


def _attributes(place: str) -> dict[str, Any]:
    """Return what the package that a place lies in gets."""
    this = {"cudnn": sys.modules[__name__]}
    return {**this, "cudnn_enabled": True} if place == "cupy.cuda.cudnn" else this


# Checks, in the terms of the functions above.

TENSOR_CORE = ("always", "auto", "never")


class _Convolution(NamedTuple):
    """A convolution as gpuconv's functions take it.

    `channels` are those of the images; `order` is that of W's axes; `window` holds stride, padding, dilation,
    groups, channels_last and flip.
    """

    axes: int
    channels: int
    kernel: tuple[int, ...]
    order: tuple[int, ...]
    window: tuple[Sizes, Sizes, Sizes, int, bool, bool]


def _describe(
    op: str,
    arrays: dict[str, Array],
    b: Array | None,
    written: str,
    pad: Ints,
    stride: Ints,
    dilation: Ints | None,
    groups: int,
    tensor_core: str,
    d_layout: int,
    w_layout: int,
) -> _Convolution:
    """Check the numbers and the arrays: images, kernels and results, by the names that the caller knows."""
    if tensor_core not in TENSOR_CORE:
        listed = ", ".join(f'"{word}"' for word in TENSOR_CORE)
        raise ValueError(f"{op}: tensor_core must be one of {listed}, not {tensor_core!r}")
    axes = _check_arrays(op, {**arrays, **given(b=b)})
    images, kernels, results = arrays
    x = _first(op, "d_layout", arrays[images].shape, d_layout)
    w = _first(op, "w_layout", arrays[kernels].shape, w_layout)
    _check_channels(op, images, x, kernels, w, groups)
    numbers = _numbers(op, axes, stride, pad, dilation)
    sizes = _out_sizes(op, images, x[2:], kernels, w[2:], *numbers)
    last = d_layout == CUDNN_TENSOR_NHWC
    because = (
        f"for {images} {arrays[images].shape} and {kernels} {arrays[kernels].shape}, "
        f"with stride {numbers[0]}, pad {numbers[1]} and dilation {numbers[2]},"
    )
    must = geometry.array_shape(x[0], w[0], sizes, last)
    check_shape(op, results, arrays[results].shape, must, because)
    _check_written(op, {**arrays, **given(b=b)}, written)
    taps = tuple(range(1, axes + 1) if w_layout == CUDNN_TENSOR_NHWC else range(2, axes + 2))
    inner = axes + 1 if w_layout == CUDNN_TENSOR_NHWC else 1
    order = (*taps, inner, 0) if last else (0, inner, *taps)
    return _Convolution(axes, x[1], w[2:], order, (*numbers, groups, last, False))


def _check_arrays(op: str, arrays: dict[str, Array]) -> int:
    """Check that arrays are of one kind, of one dtype, and have as many axes; return the spatial ones."""
    backend_of(op, **arrays)
    if len({x.dtype for x in arrays.values()}) > 1:
        listed = ", ".join(f"{name} is {x.dtype.name}" for name, x in arrays.items())
        raise TypeError(f"{op}: arrays must all be of one dtype, but {listed}")
    float_result(op, **arrays)
    first, *others = (name for name in arrays if name != "b")
    axes = geometry.spatial_axes(op, first, arrays[first].shape)
    for name in others:
        if arrays[name].ndim != axes + 2:
            raise ValueError(
                f"{op}: {name} must have {axes + 2} axes, as {first} has, not {arrays[name].ndim} "
                f"(shapes {arrays[name].shape} and {arrays[first].shape})"
            )
    return axes


def _check_written(op: str, arrays: dict[str, Array], name: str) -> None:
    """Check that one of the arrays can be written to and shares no memory with the others."""
    out = arrays[name]
    others = {other: x for other, x in arrays.items() if other != name}
    result(op, backend_of(op, **arrays), out, out.shape, out.dtype, name=name, **others)


def _first(op: str, name: str, shape: tuple[int, ...], layout: int) -> tuple[int, ...]:
    """Return a shape with the channels, which a layout puts second or last, second."""
    if layout not in (CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC):
        raise ValueError(
            f"{op}: {name} must be CUDNN_TENSOR_NCHW ({CUDNN_TENSOR_NCHW}) or CUDNN_TENSOR_NHWC "
            f"({CUDNN_TENSOR_NHWC}), not {layout!r}"
        )
    return tuple(shape) if layout == CUDNN_TENSOR_NCHW else (shape[0], shape[-1], *shape[1:-1])


def _describe_sizes(op: str, arr: Array, format: int) -> Descriptor:
    geometry.spatial_axes(op, "arr", arr.shape)
    return Descriptor(_first(op, "format", arr.shape, format))


def _check_channels(
    op: str, images: str, x: tuple[int, ...], kernels: str, w: tuple[int, ...], groups: int
) -> None:
    groups = geometry.integer(op, "groups", groups, 1)
    if len(w) != len(x):
        raise ValueError(f"{op}: {kernels} must have {len(x)} axes, as {images} has, not {len(w)}")
    if w[0] < 1 or w[0] % groups:
        raise ValueError(f"{op}: {kernels} has {w[0]} kernels, which don't divide into groups={groups}")
    if w[1] < 1 or w[1] * groups != x[1]:
        raise ValueError(
            f"{op}: {kernels} has {w[1]} channels per group, but {images} has {x[1]} channels "
            f"and groups={groups}"
        )


def _numbers(
    op: str, axes: int, stride: Ints, pad: Ints, dilation: Ints | None
) -> tuple[Sizes, Sizes, Sizes]:
    return (
        geometry.per_axis(op, "stride", stride, axes, 1),
        geometry.per_axis(op, "pad", pad, axes, 0),
        geometry.per_axis(op, "dilation", 1 if dilation is None else dilation, axes, 1),
    )


def _out_sizes(
    op: str,
    images: str,
    sizes: Sizes,
    kernels: str,
    kernel: Sizes,
    stride: Sizes,
    pad: Sizes,
    dilation: Sizes,
) -> Sizes:
    """Return how many windows fit along each axis."""
    geometry.check_places(op, images, sizes)
    geometry.check_places(op, kernels, kernel)
    found = []
    for axis, (n, k, s, p, d) in enumerate(zip(sizes, kernel, stride, pad, dilation, strict=True)):
        span = (k - 1) * d + 1
        if span > n + 2 * p:
            raise ValueError(
                f"{op}: {kernels} spans {span} places along spatial axis {axis} (size {k}, dilation {d}), "
                f"more than the {n} of {images} with {p} of pad on either side"
            )
        found.append((n + 2 * p - span) // s + 1)
    return tuple(found)


def _flat(op: str, b: Array, images: str, channels: int) -> Array:
    """Return a bias, which may have any shape, with one axis."""
    if b.size != channels:
        raise ValueError(
            f"{op}: b has {b.size} elements (shape {b.shape}), but must have {channels}, "
            f"one per channel of {images}"
        )
    return b.reshape(-1)


def _describe_pooling(
    op: str, arrays: dict[str, Array], ksize: Ints, stride: Ints, pad: Ints, mode: int
) -> tuple[int, pool.Options, bool, bool]:
    """Check x, y and perhaps gy, and the numbers.

    Returns the spatial axes, the window, whether it takes maxima, and whether means count padding.
    """
    axes = _check_arrays(op, arrays)
    x, y = arrays["x"].shape, arrays["y"].shape
    mode = geometry.integer(op, "mode", mode, 0)
    if mode > CUDNN_POOLING_MAX_DETERMINISTIC:
        raise ValueError(f"{op}: mode must be one of the CUDNN_POOLING_ constants, 0 to 3, not {mode}")
    ksize = geometry.per_axis(op, "ksize", ksize, axes, 1)
    strides, pads, dilations = numbers = _numbers(op, axes, stride, pad, 1)
    fitting = _out_sizes(op, "x", x[2:], "ksize", ksize, *numbers)
    # One window more reaches beyond what the others leave over; what it lacks is made up by padding.
    covering = tuple(
        -(-(n + 2 * p - k) // s) + 1 for n, k, s, p in zip(x[2:], ksize, strides, pads, strict=True)
    )
    if y[:2] != x[:2] or not all(o in both for o, *both in zip(y[2:], fitting, covering, strict=True)):
        raise ValueError(
            f"{op}: y has shape {y}, but for x {x}, with ksize {ksize}, stride {strides} and pad {pads}, "
            f"it must be {(*x[:2], *fitting)}, or with partial windows {(*x[:2], *covering)}"
        )
    if "gy" in arrays:
        check_shape(op, "gy", arrays["gy"].shape, y, "as the gradient of y")
    padding = tuple(
        (p, max(p, (o - 1) * s + k - n - p))
        for n, o, k, s, p in zip(x[2:], y[2:], ksize, strides, pads, strict=True)
    )
    window = pool.Options(ksize, strides, padding, dilations, False, False)
    maxima = mode in (CUDNN_POOLING_MAX, CUDNN_POOLING_MAX_DETERMINISTIC)
    return axes, window, maxima, mode == CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING
