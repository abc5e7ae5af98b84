"""Wrong arguments: each gets an error before any work, that names operation, argument, and what it was.

A call is kept here as good arguments by name; each case spoils one of them.
"""

import inspect
import re

import numpy as np
import pytest

import gpuconv


def _ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def _good(axes):
    """Return good arguments of the operations over this number of spatial axes."""
    six, four, three = ((size,) * axes for size in (6, 4, 3))
    convolution = {
        "dy": _ones(2, 6, *four),
        "x": _ones(2, 4, *six),
        "w": _ones(6, 2, *three),
        "b": _ones(6),
        "x_shape": (2, 4, *six),
        "kernel_size": 3,
        "groups": 2,
    }
    transposed = {
        "dy": _ones(2, 4, *six),
        "x": _ones(2, 6, *four),
        "w": _ones(6, 2, *three),
        "b": _ones(4),
        "groups": 2,
    }
    pooling = {
        "dy": _ones(2, 4, *three),
        "x": _ones(2, 4, *six),
        "argmax": np.zeros((2, 4, *three), np.uint8),
        "x_shape": (2, 4, *six),
        "kernel_size": 2,
    }
    unpooling = {**pooling, "x": pooling["dy"], "dy": pooling["x"]}
    return {
        name.format(axes): {argument: arguments[argument] for argument in needed.split()}
        for name, arguments, needed in [
            ("conv{}d", convolution, "x w b groups"),
            ("conv{}d_backward", convolution, "dy x w groups"),
            ("conv{}d_input_grad", convolution, "dy w x_shape groups"),
            ("conv{}d_weight_grad", convolution, "dy x kernel_size groups"),
            ("conv{}d_bias_grad", convolution, "dy"),
            ("conv_transpose{}d", transposed, "x w b groups"),
            ("conv_transpose{}d_backward", transposed, "dy x w groups"),
            ("max_pool{}d", pooling, "x kernel_size"),
            ("max_pool{}d_backward", pooling, "dy argmax x_shape kernel_size"),
            ("max_unpool{}d", unpooling, "x argmax x_shape kernel_size"),
            ("max_unpool{}d_backward", unpooling, "dy argmax kernel_size"),
            ("avg_pool{}d", pooling, "x kernel_size"),
            ("avg_pool{}d_backward", pooling, "dy x_shape kernel_size"),
        ]
    }


# These take one to three spatial axes; here two.
ANY_RANK = {
    "argmax_to_indices": {
        "argmax": np.zeros((2, 4, 3, 3), np.uint8),
        "x_shape": (2, 4, 6, 6),
        "kernel_size": 2,
    },
    "im2col": {"x": _ones(2, 4, 6, 6), "kernel_size": 3},
    "col2im": {"col": _ones(2, 36, 16), "x_shape": (2, 4, 6, 6), "kernel_size": 3},
}
NORMS = {
    "lp_pool2d": {"x": _ones(2, 4, 6, 6), "norm_type": 3, "kernel_size": 2},
    "lp_pool2d_backward": {
        "dy": _ones(2, 4, 3, 3),
        "x": _ones(2, 4, 6, 6),
        "y": _ones(2, 4, 3, 3),
        "norm_type": 3,
        "kernel_size": 2,
    },
}
# Other ranks' functions share the code of two axes': what is wrong in the numbers is tried on the plane's.
PLANE = {**_good(2), **ANY_RANK, **NORMS}
OTHERS = {**_good(1), **_good(3)}
GOOD = {**PLANE, **OTHERS}
ARRAYS = ("dy", "x", "y", "w", "b", "argmax", "col")
ARRAY_ARGUMENTS = [(op, name) for op, good in GOOD.items() for name in good if name in ARRAYS]
WINDOWED = [op for op in PLANE if op != "conv2d_bias_grad"]
POOLS = [op for op in GOOD if "pool" in op or op == "argmax_to_indices"]
MASKED = [op for op in PLANE if "argmax" in PLANE[op]]
# Operations whose x is the image that windows slide over.
IMAGED = [op for op in GOOD if "x" in GOOD[op] and "x_shape" not in GOOD[op]]
TRANSPOSED = [op for op in GOOD if "transpose" in op]


def call(op, **spoilt):
    """Call an operation with good arguments, but for those given."""
    return getattr(gpuconv, op)(**{**GOOD[op], **spoilt})


def refused(error, op, *said, **spoilt):
    """Check that a call is refused with this error, which names the operation and says all of this."""
    with pytest.raises(error) as caught:
        call(op, **spoilt)
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith(f"{op}: ")
    for words in said:
        assert re.search(words, message), f"{words!r} is not in {message!r}"


@pytest.mark.parametrize("op", GOOD)
def test_the_good_arguments_are_good_and_every_public_function_is_here(op):
    call(op)
    public = {
        name
        for name in gpuconv.__all__
        if inspect.isfunction(value := getattr(gpuconv, name))
        and value.__module__.rpartition(".")[0] == "gpuconv"
        # these have no sliding window: test_adaptive.py and test_upsample.py have their cases
        and value.__module__ not in ("gpuconv.adaptive", "gpuconv.global_pool", "gpuconv.upsample")
        # it computes nothing (test_explain.py); it takes nothing
        and value not in (gpuconv.explain, gpuconv.release_buffers)
    }
    assert public == set(GOOD)


# Arrays that are none, or not of a kind that can be worked on.


class FakeCupyArray:
    """Looks like a CuPy array to anyone who asks for its type, as all must who may not import CuPy."""

    dtype, ndim, shape = np.dtype(np.float32), 4, (2, 4, 6, 6)


FakeCupyArray.__name__, FakeCupyArray.__module__ = "ndarray", "cupy"


@pytest.mark.parametrize(("op", "name"), ARRAY_ARGUMENTS)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a: a.tolist(), r"must be a NumPy or CuPy array, not builtins\.list; numpy\.asarray\({}\)"),
        (lambda a: tuple(a.tolist()), r"not builtins\.tuple; numpy\.asarray\({}\)"),
        (lambda a: 1.0, r"not builtins\.float"),
        (lambda a: a.ravel()[0], r"not numpy\..*; numpy\.asarray\({}\)"),
        (lambda a: memoryview(a), r"not builtins\.memoryview"),
        (lambda a: np.ma.masked_array(a, a > 2), r"is a masked array; .*{}\.filled\(0\)"),
    ],
    ids=["list", "tuple", "float", "scalar", "memoryview", "masked array"],
)
def test_what_is_no_array_is_refused(op, name, spoil, said):
    refused(TypeError, op, rf"\b{name} ", said.format(name), **{name: spoil(GOOD[op][name])})


@pytest.mark.parametrize(("op", "name"), [pair for pair in ARRAY_ARGUMENTS if pair[1] != "b"])
def test_none_is_no_array(op, name):
    refused(TypeError, op, rf"\b{name} ", **{name: None})


@pytest.mark.parametrize(("op", "name"), ARRAY_ARGUMENTS)
@pytest.mark.parametrize("dtype", ["O", "U3", "M8[s]", "m8[s]", "V4", "S2"])
def test_arrays_of_no_numbers_are_refused_by_dtype(op, name, dtype):
    shape = GOOD[op][name].shape
    refused(TypeError, op, rf"\b{name} ", re.escape(np.dtype(dtype).name), **{name: np.zeros(shape, dtype)})


@pytest.mark.parametrize(("op", "name"), [pair for pair in ARRAY_ARGUMENTS if pair[1] != "argmax"])
def test_complex_is_refused_where_it_would_need_an_order_or_is_no_gradient(op, name):
    array = GOOD[op][name].astype(np.complex64)
    if op.startswith("max_") or (op == "lp_pool2d_backward" and name != "x"):
        refused(TypeError, op, rf"\b{name} .*complex64", **{name: array})
    elif op == "lp_pool2d_backward":
        dy = GOOD[op]["dy"].astype(np.float64)
        refused(TypeError, op, "dy has dtype float64, but for x of complex64", x=array, dy=dy)
    else:
        result = call(op, **{name: array})
        kinds = {r.dtype.kind for r in (result if isinstance(result, tuple) else [result])}
        if op == "lp_pool2d":
            assert kinds == {"f"}
        elif name == "dy" or not op.endswith("_backward"):  # a real array's gradient is real
            assert "c" in kinds


class Bfloat16(np.ndarray):
    """An array whose dtype calls itself bfloat16, as ml_dtypes' does, without needing ml_dtypes."""

    class Named:
        name, kind, itemsize = "bfloat16", "V", 2

        def __str__(self):
            return "bfloat16"

    dtype = Named()


@pytest.mark.parametrize(("op", "name"), [pair for pair in ARRAY_ARGUMENTS if pair[1] != "argmax"])
def test_bfloat16_is_refused_by_name(op, name):
    refused(TypeError, op, rf"\b{name} .*bfloat16", **{name: GOOD[op][name].view(Bfloat16)})


@pytest.mark.parametrize("op", [op for op in GOOD if "conv" in op])
def test_integers_alone_do_not_make_a_float(op):
    arrays = {name: a.astype(np.int32) for name, a in GOOD[op].items() if name in ARRAYS}
    first = next(iter(arrays))
    refused(
        TypeError,
        op,
        "int32",
        rf"\b{first} ",
        r"float16, float32, float64, complex64 or complex128",
        **arrays,
    )


@pytest.mark.parametrize(
    ("op", "name"),
    [(f"avg_pool{axes}d{end}", name) for axes in (1, 2, 3) for end, name in (("", "x"), ("_backward", "dy"))],
)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.longdouble])
def test_averages_are_of_floats_up_to_64_bits(op, name, dtype):
    if dtype is np.longdouble and np.dtype(np.longdouble) == np.dtype(np.float64):
        pytest.skip("this platform's long double is float64")
    refused(TypeError, op, name, np.dtype(dtype).name, **{name: GOOD[op][name].astype(dtype)})


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.complex64])
@pytest.mark.parametrize("op", MASKED)
def test_masks_are_integers(op, dtype):
    refused(TypeError, op, "argmax", np.dtype(dtype).name, argmax=np.zeros((2, 4, 3, 3), dtype))


@pytest.mark.parametrize("op", MASKED)
@pytest.mark.parametrize(("dtype", "offset"), [("u1", 4), ("u1", 200), ("i4", -1), ("i8", 2**40)])
def test_masks_hold_offsets_of_the_window(op, dtype, offset):
    argmax = np.zeros((2, 4, 3, 3), dtype)
    argmax[1, 2, 0, 1] = offset
    refused(ValueError, op, f"argmax holds {offset}", r"\(2, 2\)", argmax=argmax)


@pytest.mark.parametrize("op", MASKED)
@pytest.mark.parametrize(("p", "q", "offset"), [(0, 0, 0), (0, 0, 1), (1, 0, 2), (3, 3, 3), (2, 3, 1)])
def test_masks_that_name_padding_are_refused(op, p, q, offset):
    argmax = np.full((2, 4, 4, 4), 3, np.uint8)  # right for a window at the top left
    argmax[..., -1, :] = 1
    argmax[..., :, -1] -= 1
    spoilt = {"argmax": argmax, "padding": 1}
    pooled = {"max_pool2d_backward": "dy", "max_unpool2d": "x"}.get(op)
    if pooled:
        spoilt[pooled] = _ones(2, 4, 4, 4)
    call(op, **spoilt)
    argmax[1, 2, p, q] = offset
    refused(ValueError, op, "argmax", "padding", **spoilt)


@pytest.mark.parametrize(
    ("op", "name", "other"),
    [
        (op, name, other)
        for op, name in ARRAY_ARGUMENTS
        for other in [a for a in GOOD[op] if a in ARRAYS and a != name][:1]
    ],
)
def test_kinds_of_arrays_are_not_mixed(op, name, other):
    refused(
        TypeError,
        op,
        f"{name} is a CuPy array",
        f"{other} is a NumPy array",
        **{name: FakeCupyArray()},
    )


# Shapes.


@pytest.mark.parametrize(("op", "name"), [pair for pair in ARRAY_ARGUMENTS if pair[1] in ("dy", "x", "w")])
@pytest.mark.parametrize("change", ["axes more", "axes fewer", "none"])
def test_wrong_ranks_are_refused(op, name, change):
    good = GOOD[op][name]
    more, fewer = (good[None, None], good[0, 0]) if op in ANY_RANK else (good[None], good[0])
    bad = {"axes more": more, "axes fewer": fewer, "none": np.array(1, good.dtype)}[change]
    refused(ValueError, op, rf"\b{name} ", re.escape(str(bad.shape)), **{name: bad})


@pytest.mark.parametrize("op", ["conv2d_backward", "conv2d_input_grad", "conv2d_weight_grad"])
@pytest.mark.parametrize(
    "shape", [(1, 6, 4, 4), (2, 4, 4, 4), (2, 6, 3, 4), (2, 6, 4, 5), (2, 6, 1, 1), (2, 4, 4, 6)]
)
def test_dy_of_a_convolution_must_be_shaped_like_y(op, shape):
    if op == "conv2d_weight_grad" and shape == (2, 4, 4, 4):
        assert call(op, dy=_ones(*shape)).shape == (4, 2, 3, 3)  # another number of outputs is another w
    else:
        refused(ValueError, op, r"\bdy ", re.escape(str(shape)), dy=_ones(*shape))


@pytest.mark.parametrize("op", ["max_pool2d_backward", "avg_pool2d_backward"])
@pytest.mark.parametrize("shape", [(1, 4, 3, 3), (2, 1, 3, 3), (2, 4, 3, 1), (2, 4, 6, 6), (2, 3, 3, 4)])
def test_dy_of_a_pooling_must_be_shaped_like_y(op, shape):
    refused(ValueError, op, r"\bdy ", re.escape(str(shape)), re.escape("(2, 4, 3, 3)"), dy=_ones(*shape))


@pytest.mark.parametrize("op", MASKED)
@pytest.mark.parametrize("shape", [(1, 4, 3, 3), (2, 4, 3, 1), (2, 4, 9), ()])
def test_masks_must_be_shaped_like_y(op, shape):
    argmax = np.zeros(shape, np.uint8)
    refused(ValueError, op, "argmax", re.escape(str(shape)), re.escape("(2, 4, 3, 3)"), argmax=argmax)


@pytest.mark.parametrize("shape", [(2, 36, 15), (2, 4, 9, 16), (1, 36, 16), (2, 16, 36), (36, 16)])
def test_columns_must_be_shaped_like_those_of_x(shape):
    refused(
        ValueError, "col2im", r"\bcol ", re.escape(str(shape)), re.escape("(2, 36, 16)"), col=_ones(*shape)
    )


@pytest.mark.parametrize("shape", [(5,), (1,), (6, 1), (1, 6, 1, 1), (), (0,)])
def test_bias_must_hold_one_number_for_each_output_channel(shape):
    refused(ValueError, "conv2d", r"\bb has shape " + re.escape(str(shape)), r"\(6,\)", b=_ones(*shape))


def test_channels_of_x_and_w_must_fit_and_the_message_shows_both():
    message = (
        "conv2d: w has 3 input channels per group (shape (8, 3, 3, 3)), but x has 4 channels and groups=1"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        gpuconv.conv2d(_ones(1, 4, 5, 5), _ones(8, 3, 3, 3))


@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward", "conv2d_input_grad"])
def test_channels_of_w_must_be_those_of_the_groups(op):
    refused(ValueError, op, r"\bw ", re.escape("(6, 3, 3, 3)"), "groups=2", w=_ones(6, 3, 3, 3))
    refused(ValueError, op, r"\bw ", "7 output channels", "groups=2", w=_ones(7, 2, 3, 3))


@pytest.mark.parametrize("op", [op for op in GOOD if "groups" in GOOD[op]])
@pytest.mark.parametrize(
    ("groups", "error", "said"),
    [
        (0, ValueError, "groups must be at least 1, not 0"),
        (-1, ValueError, "groups must be at least 1, not -1"),
        (4, ValueError, "groups=4"),
        (7, ValueError, "groups=7"),
        (2.0, TypeError, r"groups must be an integer, not float 2\.0"),
        (True, TypeError, "groups must be an integer, not bool True"),
        ((1, 2), TypeError, "groups must be an integer, not tuple"),
        (None, TypeError, "groups must be an integer, not NoneType"),
        ("2", TypeError, "groups must be an integer, not str"),
    ],
)
def test_groups_must_divide_the_channels(op, groups, error, said):
    refused(error, op, said, groups=groups)


@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward", "conv2d_weight_grad"])
def test_a_convolution_has_at_least_one_channel_in_and_out(op):
    options = {"groups": 1}
    no_inputs = {"x": _ones(2, 0, 6, 6)}
    if "w" in GOOD[op]:
        no_inputs["w"] = _ones(6, 0, 3, 3)
        refused(ValueError, op, "w has 0 output channels", w=_ones(0, 4, 3, 3), **options)
    refused(ValueError, op, "x has 0 channels", **no_inputs, **options)


@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward", "conv2d_input_grad"])
@pytest.mark.parametrize("kernel", [(7, 3), (3, 9), (0, 3)])
def test_the_kernel_of_w_must_fit_the_image(op, kernel):
    refused(ValueError, op, r"\bw\b", str(next(k for k in kernel if k != 3)), w=_ones(6, 2, *kernel))


@pytest.mark.parametrize("op", [op for op in WINDOWED if "kernel_size" in PLANE[op]])
@pytest.mark.parametrize(
    ("kernel_size", "error", "said"),
    [
        (7, ValueError, r"kernel_size \(7, 7\) .*more than the 6 of x plus 0 \+ 0 of padding"),
        ((2, 8), ValueError, r"kernel_size \(2, 8\) .*spatial axis 1, more than the 6"),
        (0, ValueError, "kernel_size must be at least 1, not 0"),
        (-3, ValueError, "kernel_size must be at least 1, not -3"),
        ((2, 0), ValueError, r"kernel_size\[1\] must be at least 1, not 0"),
        ((2,), ValueError, r"kernel_size must be an integer or 2 of them, .*not \(2,\)"),
        ((2, 2, 2), ValueError, r"kernel_size must be an integer or 2 of them, .*not \(2, 2, 2\)"),
        ((), ValueError, r"kernel_size must be an integer or 2 of them, .*not \(\)"),
        (2.0, TypeError, r"kernel_size must be an integer, not float 2\.0"),
        (True, TypeError, "kernel_size must be an integer, not bool True"),
        ((2, True), TypeError, r"kernel_size\[1\] must be an integer, not bool True"),
        ("2", TypeError, "kernel_size must be an integer, not str '2'"),
        (None, TypeError, "kernel_size must be an integer, not NoneType None"),
        (np.array([2, 2]), TypeError, "kernel_size must be an integer, not ndarray"),
        (np.float32(2), TypeError, "kernel_size must be an integer, not float32"),
    ],
)
def test_kernel_sizes(op, kernel_size, error, said):
    refused(error, op, said, kernel_size=kernel_size)


@pytest.mark.parametrize("op", WINDOWED)
@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0, ValueError, "{} must be at least 1, not 0"),
        (-1, ValueError, "{} must be at least 1, not -1"),
        ((1, -2), ValueError, r"{}\[1\] must be at least 1, not -2"),
        ((1, 1, 1), ValueError, r"{} must be an integer or 2 of them, .*not \(1, 1, 1\)"),
        (1.0, TypeError, r"{} must be an integer, not float 1\.0"),
        ((1, 1.5), TypeError, r"{}\[1\] must be an integer, not float 1\.5"),
        (False, TypeError, "{} must be an integer, not bool False"),
        (np.True_, TypeError, "{} must be an integer, not bool"),
        ("1", TypeError, "{} must be an integer, not str '1'"),
        (10**30, ValueError, "{} must be at most .*, not 1000000"),
    ],
)
def test_strides_and_dilations(op, name, value, error, said):
    refused(error, op, said.format(name), **{name: value})


@pytest.mark.parametrize("op", [op for op in WINDOWED if op not in POOLS])
def test_strides_and_dilations_of_none_are_refused_where_there_is_no_default(op):
    for name in ("stride", "dilation"):
        refused(TypeError, op, f"{name} must be an integer, not NoneType", **{name: None})


@pytest.mark.parametrize("op", WINDOWED)
@pytest.mark.parametrize(
    ("padding", "error", "said"),
    [
        (-1, ValueError, "padding must be at least 0, not -1"),
        ((0, -1), ValueError, r"padding\[1\] must be at least 0, not -1"),
        (((0, 0), (-2, 0)), ValueError, r"padding\[1\]\[0\] must be at least 0, not -2"),
        ("full", ValueError, 'padding must be numbers or one of .*"same".*, not "full"'),
        ("Valid", ValueError, 'not "Valid"'),
        ((1, 1, 1), ValueError, r"padding must be an integer, 2 of them.*not \(1, 1, 1\)"),
        (((1, 1, 1), 0), ValueError, r"padding\[0\] must be an integer or a \(before, after\) pair"),
        (1.0, TypeError, r"padding must be an integer, not float 1\.0"),
        ((0, 0.5), TypeError, r"padding\[1\] must be an integer, not float 0\.5"),
        (True, TypeError, "padding must be an integer, not bool True"),
        (("same", "same"), TypeError, r"padding\[0\] must be an integer, not str 'same'"),
        (None, TypeError, "padding must be an integer, not NoneType None"),
    ],
)
def test_paddings(op, padding, error, said):
    refused(error, op, said, padding=padding)


@pytest.mark.parametrize("op", [op for op in PLANE if "x_shape" in PLANE[op]])
@pytest.mark.parametrize(
    ("x_shape", "error", "said"),
    [
        ((4, 6, 6), ValueError, r"x_shape must .*\(4, 6, 6\)"),
        ((2, 4, 6, 6, 1), ValueError, r"x_shape must .*\(2, 4, 6, 6, 1\)"),
        ((2, 4, 6, 6.0), TypeError, r"x_shape\[3\] must be an integer, not float 6\.0"),
        ((2, True, 6, 6), TypeError, r"x_shape\[1\] must be an integer, not bool True"),
        ((2, 4, 6, None), TypeError, r"x_shape\[3\] must be an integer, not NoneType"),
        ((2, 4, -6, 6), ValueError, r"x_shape\[2\] must be at least 0, not -6"),
        ((2, 4, 0, 6), ValueError, r"no places along spatial axis 0"),
        (None, ValueError, "x_shape must .*None"),
        (6, ValueError, "x_shape must .*6"),
        ("2466", ValueError, "x_shape must .*'2466'"),
        ((3, 4, 6, 6), ValueError, r"shape \(2, "),
        ((2, 5, 6, 6), ValueError, "5|45"),
        ((2, 4, 9, 9), ValueError, r"shape \(2, "),
    ],
)
def test_shapes_of_x(op, x_shape, error, said):
    if op in ANY_RANK and isinstance(x_shape, tuple) and len(x_shape) != 4:
        x_shape, said = (
            x_shape[:2] if len(x_shape) == 3 else (*x_shape, 1),
            "x_shape must have 3, 4 or 5 axes",
        )
    refused(error, op, said, x_shape=x_shape)


@pytest.mark.parametrize("op", [op for op in WINDOWED if op in IMAGED])
def test_an_image_without_places_is_refused(op):
    refused(ValueError, op, "x has no places along spatial axis 1", x=GOOD[op]["x"][..., :0])


# Transposed convolution.


@pytest.mark.parametrize("op", ["conv_transpose2d", "conv_transpose2d_backward"])
@pytest.mark.parametrize(
    ("output_padding", "error", "said"),
    [
        (
            1,
            ValueError,
            "less than stride or dilation, .* spatial axis 0 it is 1, with stride 1 and dilation 1",
        ),
        ((0, 3), ValueError, "less than stride or dilation, .* axis 1 it is 3, with stride 1 and dilation 1"),
        (-1, ValueError, "output_padding must be at least 0, not -1"),
        ((0, -2), ValueError, r"output_padding\[1\] must be at least 0, not -2"),
        ((0,), ValueError, r"output_padding must be an integer or 2 of them, .*not \(0,\)"),
        ((0, 0, 0), ValueError, r"output_padding must be an integer or 2 of them, .*not \(0, 0, 0\)"),
        (((0, 0), 0), TypeError, r"output_padding\[0\] must be an integer, not tuple"),
        (0.0, TypeError, r"output_padding must be an integer, not float 0\.0"),
        (False, TypeError, "output_padding must be an integer, not bool False"),
        (None, TypeError, "output_padding must be an integer, not NoneType None"),
        ("same", TypeError, "output_padding must be an integer, not str 'same'"),
    ],
)
def test_output_paddings(op, output_padding, error, said):
    refused(error, op, said, output_padding=output_padding)


@pytest.mark.parametrize("op", TRANSPOSED)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": 2, "dilation": 1}, "it is 3, with stride 2 and dilation 1"),
        ({"stride": 1, "dilation": 3}, "it is 3, with stride 1 and dilation 3"),
        ({"stride": 3, "padding": "same"}, "it is 3, with stride 3 and dilation 1"),
    ],
)
def test_output_padding_must_be_less_than_stride_or_dilation(op, options, said):
    refused(ValueError, op, "output_padding must be less", said, output_padding=3, **options)


@pytest.mark.parametrize("op", TRANSPOSED)
@pytest.mark.parametrize("padding", [3, 100])
def test_padding_of_a_transposed_convolution_leaves_something(op, padding):
    said = rf"along spatial axis 0 padding takes {padding} \+ {padding} of the result's 6 places"
    refused(ValueError, op, said, padding=padding)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_dy_of_a_transposed_convolution_must_be_shaped_like_y(axes):
    op, six = f"conv_transpose{axes}d_backward", (6,) * axes
    for bad in [(1, 4, *six), (2, 6, *six), (2, 4, *six[1:], 5), (2, *six, 4), (2, 4, *six, 1)]:
        refused(ValueError, op, r"\bdy ", re.escape(str(bad)), dy=_ones(*bad))
    # of the sizes that a convolution would make x's from, output_padding says which is that of y
    for size, extra in [(9, 0), (10, 1)]:
        dy, other = _ones(2, 4, *(size,) * axes), _ones(2, 4, *(19 - size,) * axes)
        call(op, dy=dy, stride=2, output_padding=extra)
        refused(ValueError, op, r"\bdy ", str(size), dy=other, stride=2, output_padding=extra)


def test_bias_of_a_transposed_convolution_must_hold_one_number_for_each_output_channel():
    for shape in [(6,), (2,), (1,), (4, 1), ()]:
        said = (r"\bb has shape " + re.escape(str(shape)), r"\(4,\)", "w gives 4 output channels")
        refused(ValueError, "conv_transpose2d", *said, b=_ones(*shape))


@pytest.mark.parametrize("op", TRANSPOSED)
def test_weights_of_a_transposed_convolution_must_be_for_the_channels_of_x(op):
    w, x = GOOD[op]["w"], GOOD[op]["x"]
    for bad in (w[:3], w.repeat(2, 0)):
        said = f"w is for {len(bad)} input channels (shape {bad.shape}), but x has 6 (shape {x.shape})"
        refused(ValueError, op, re.escape(said), w=bad)
    refused(ValueError, op, "w gives no output channels", w=w[:, :0])
    refused(ValueError, op, "x has 0 channels", w=w[:0], x=x[:, :0])


@pytest.mark.parametrize("op", TRANSPOSED)
def test_a_transposed_kernel_has_places(op):
    refused(ValueError, op, r"the kernel of w\[.\] must be at least 1, not 0", w=GOOD[op]["w"][..., :0])


# One and three spatial axes.


@pytest.mark.parametrize("op", [op for op in OTHERS if not op.endswith("bias_grad")])
@pytest.mark.parametrize("name", ["stride", "dilation"])
def test_steps_are_one_for_each_axis_that_there_is(op, name):
    axes = 1 if "1d" in op else 3
    call(op, **{name: (1,) * axes} if name == "dilation" or op not in POOLS else {"stride": (2,) * axes})
    for count in {1, 2, 3, 4} - {axes}:
        bad = (1,) * count
        said = rf"{name} must be an integer or {axes} of them, .*not {re.escape(str(bad))}"
        refused(ValueError, op, said, **{name: bad})
    refused(ValueError, op, rf"{name}\[0\] must be at least 1, not 0", **{name: (0,) * axes})


@pytest.mark.parametrize("op", [op for op in OTHERS if not op.endswith("bias_grad")])
def test_paddings_are_one_or_a_pair_for_each_axis_that_there_is(op):
    axes = 1 if "1d" in op else 3
    for bad in (((0, 0),) * 2, (0,) * (axes + 1), ()):
        said = rf"padding must be an integer, {axes} of them.*not {re.escape(str(bad))}"
        refused(ValueError, op, said, padding=bad)
    refused(ValueError, op, 'not "full"', padding="full")


@pytest.mark.parametrize("op", [op for op in OTHERS if op in IMAGED or op.endswith("bias_grad")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_messages_show_the_layout_of_the_rank(op, channels_last):
    sizes = "L" if "1d" in op else "D, H, W"
    layout = f"[N, {sizes}, C]" if channels_last else f"[N, C, {sizes}]"
    bad = {"dy" if op.endswith("bias_grad") else "x": _ones(2, 4, 6, 6)}
    refused(ValueError, op, re.escape(layout), re.escape("(2, 4, 6, 6)"), **bad, channels_last=channels_last)


@pytest.mark.parametrize("op", [op for op in OTHERS if "x_shape" in OTHERS[op]])
def test_shapes_of_x_have_the_axes_of_the_rank(op):
    sizes = 3 if "1d" in op else 5
    refused(ValueError, op, rf"x_shape must be the {sizes} sizes .*\(2, 4, 6, 6\)", x_shape=(2, 4, 6, 6))


# Flags and words.


@pytest.mark.parametrize(
    ("op", "name"),
    [
        *((op, "channels_last") for op in GOOD),
        *((op, "ceil_mode") for op in POOLS),
        *((f"max_pool{axes}d", "return_argmax") for axes in (1, 2, 3)),
        *((op, "count_include_pad") for op in POOLS if op.startswith("avg")),
    ],
)
@pytest.mark.parametrize("value", [1, 0, None, "NHWC", 1.0, np.array([True, False])], ids=str)
def test_flags_are_true_or_false(op, name, value):
    refused(TypeError, op, f"{name} must be True or False, not {type(value).__name__}", **{name: value})


@pytest.mark.parametrize("op", [op for op in GOOD if "conv" in op and op.endswith("_backward")])
@pytest.mark.parametrize("needs", ["x", "xwb", ("x", "y"), ("dx",), None, 1, ([],), (None,)])
def test_needs_are_names_of_arguments(op, needs):
    refused(ValueError, op, 'needs must be .*"x", "w" and "b"', re.escape(repr(needs)), needs=needs)


# What follows a convolution.

RECTIFIED = [f"conv{axes}d{end}" for axes in (1, 2, 3) for end in ("", "_backward")]


def rectified(op, **spoilt):
    """Return the arguments of a rectified convolution, or of its gradients."""
    return {"activation": "relu", **({"y": GOOD[op]["dy"]} if "dy" in GOOD[op] else {}), **spoilt}


@pytest.mark.parametrize("op", RECTIFIED)
def test_an_activation_is_relu_or_none(op):
    call(op, **rectified(op))
    for bad in ("ReLU", "gelu", "", b"relu", 1, True, False, ["relu"], np.array(["relu", "relu"])):
        said = f'activation must be "relu" or None, not {bad!r}'
        refused(ValueError, op, re.escape(said), **rectified(op, activation=bad))


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in RECTIFIED for name in {**GOOD[op], **rectified(op)} if name in ARRAYS],
)
def test_complex_numbers_have_no_activation(op, name):
    x = {**GOOD[op], **rectified(op)}[name].astype(np.complex64)
    said = f"{name} is complex64, but complex numbers have no order, and so no activation='relu'"
    refused(TypeError, op, said, **rectified(op, **{name: x}))


@pytest.mark.parametrize("op", [op for op in RECTIFIED if op.endswith("_backward")])
def test_an_activation_and_its_y_come_together(op):
    refused(ValueError, op, "activation='relu' needs y", activation="relu")
    refused(ValueError, op, "y is for an activation", y=GOOD[op]["dy"])


@pytest.mark.parametrize("op", [op for op in RECTIFIED if op.endswith("_backward")])
@pytest.mark.parametrize("needs", [(), ("x", "w", "b")], ids=str)
def test_y_is_an_array_of_floats_shaped_like_dy(op, needs):
    good = GOOD[op]["dy"]
    for shape in (good.shape[1:], (1, *good.shape[1:]), (*good.shape[:-1], 1), ()):
        said = rf"y has shape {re.escape(str(shape))}, .*must be {re.escape(str(good.shape))}"
        refused(ValueError, op, said, **rectified(op, y=_ones(*shape), needs=needs))
    for dtype in (bool, np.int64, object, np.longdouble):
        refused(TypeError, op, r"\by\b", **rectified(op, y=good.astype(dtype), needs=needs))
    for bad in (good.tolist(), 1.0, "y", FakeCupyArray()):
        refused(TypeError, op, r"\by\b", **rectified(op, y=bad, needs=needs))


@pytest.mark.parametrize("op", GOOD)
def test_options_are_given_by_name(op):
    positional = [*GOOD[op].values(), 1, 1, 1, 1, 1]
    with pytest.raises(TypeError, match="positional"):
        getattr(gpuconv, op)(*positional)


@pytest.mark.parametrize("op", GOOD)
def test_inputs_are_never_written_to(op):
    arguments = {name: a.copy() if name in ARRAYS else a for name, a in GOOD[op].items()}
    for name in arguments:
        if name in ARRAYS:
            arguments[name].setflags(write=False)
    result = getattr(gpuconv, op)(**arguments)
    for name, before in GOOD[op].items():
        if name in ARRAYS:
            np.testing.assert_array_equal(arguments[name], before)
            for part in result if isinstance(result, tuple) else (result,):
                assert not np.shares_memory(arguments[name], part)
