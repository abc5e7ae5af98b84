"""`out=`: results go where the caller wants them, in whatever order that lies, and nowhere else."""

import inspect
import re
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
import pytest
from conftest import BACKENDS
from host import runtime as host_runtime
from hypothesis import given
from hypothesis import strategies as st

import gpuconv
from gpuconv.backends.dispatch import array_module

F4, U1, I8 = (np.dtype(name) for name in ("f4", "u1", "i8"))


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a public function: its arrays by name, what else it is given, and its results' names."""

    op: str
    arrays: dict
    options: dict
    results: tuple = ("",)  # "" for the one result, else those that `out` has in order
    label: str = ""

    def __str__(self):
        return f"{self.op} {self.label}".strip()

    def __call__(self, backend, arrays=None, **more):
        """Return the results as a tuple."""
        arrays = arrays or {name: backend.to_array(a) for name, a in self.arrays.items()}
        got = getattr(gpuconv, self.op)(**arrays, **{**self.options, **more})
        return got if isinstance(got, tuple) else (got,)

    def outs(self, arrays):
        """Return one or several arrays as `out` wants them."""
        return arrays[0] if self.results == ("",) else tuple(arrays)

    def without_images(self):
        """Return the call for an empty batch."""
        arrays = {name: a if name in ("w", "b") else a[:0] for name, a in self.arrays.items()}
        options = {k: (0, *v[1:]) if k == "x_shape" else v for k, v in self.options.items()}
        return Call(self.op, arrays, options, self.results, self.label)


def _numbers(*shape):
    """Return whole numbers, whose sums are exact: BLAS adds in an order that depends on where y lies."""
    return np.random.default_rng([*shape]).integers(-3, 4, shape).astype(F4)


def _calls(channels_last):
    """Return calls of every public function that returns arrays, on small arrays in this layout."""
    n, c, calls = 2, 4, []
    last = {"channels_last": channels_last}

    def image(channels, *sizes):
        return _numbers(n, *sizes, channels) if channels_last else _numbers(n, channels, *sizes)

    def kernels(c_out, c_in, *sizes):
        return _numbers(*sizes, c_in, c_out) if channels_last else _numbers(c_out, c_in, *sizes)

    def add(op, arrays, results=("",), label="", **options):
        calls.append(Call(op, arrays, {**last, **options}, results, label))

    def convolutions(axes, label="", in_size=6, out_size=3, kernel=3, og=3, cg=2, groups=2, **options):
        options = {"groups": groups, **options}
        x, dy = image(cg * groups, *(in_size,) * axes), image(og * groups, *(out_size,) * axes)
        w, b = kernels(og * groups, cg, *(kernel,) * axes), _numbers(og * groups)
        name, grads = f"conv{axes}d", ("dx", "dw", "db")
        add(name, {"x": x, "w": w, "b": b}, label=label, **options)
        add(f"{name}_backward", {"dy": dy, "x": x, "w": w}, grads, label, **options)
        add(f"{name}_input_grad", {"dy": dy, "w": w}, label=label, x_shape=x.shape, **options)
        add(f"{name}_weight_grad", {"dy": dy, "x": x}, label=label, kernel_size=kernel, **options)
        if not label:
            add(f"{name}_bias_grad", {"dy": dy})
            options["activation"] = "relu"
            add(name, {"x": x, "w": w, "b": b}, label="rectified", **options)
            add(f"{name}_backward", {"dy": dy, "x": x, "w": w, "y": -dy}, grads, "rectified", **options)
            del options["activation"]
        name, more = f"conv_transpose{axes}d", {"output_padding": 1} if "stride" in options else {}
        b = _numbers(cg * groups)
        add(name, {"x": dy, "w": w, "b": b}, label=label, **more, **options)
        add(f"{name}_backward", {"dy": x, "x": dy, "w": w}, grads, label, **more, **options)

    for axes in (1, 2, 3):
        convolutions(axes, stride=2, padding=1)
    convolutions(2, "1x1", out_size=6, kernel=1)
    convolutions(2, "of each channel alone, flipped", out_size=6, og=1, cg=1, groups=4, padding=1, flip=True)

    for axes in (1, 2, 3):
        x, y = image(c, *(6,) * axes), image(c, *(3,) * axes)
        mask = (np.abs(y) * 3 % 2**axes).astype(U1)
        size, pooled = {"kernel_size": 2}, ("y", "argmax")
        name = f"max_pool{axes}d"
        add(name, {"x": x}, pooled, **size)
        add(name, {"x": x}, label="alone", return_argmax=False, **size)
        add(f"{name}_backward", {"dy": y, "argmax": mask}, x_shape=x.shape, **size)
        add(f"max_unpool{axes}d", {"x": y, "argmax": mask}, x_shape=x.shape, **size)
        add(f"max_unpool{axes}d_backward", {"dy": x, "argmax": mask}, **size)
        add(f"avg_pool{axes}d", {"x": x}, kernel_size=3, stride=2, padding=1)
        add(f"avg_pool{axes}d_backward", {"dy": y}, x_shape=x.shape, kernel_size=3, stride=2, padding=1)

    x, y = image(c, 6, 6), image(c, 3, 3)
    mask = (np.abs(y) * 3 % 4).astype(U1)
    add("argmax_to_indices", {"argmax": mask}, x_shape=x.shape, kernel_size=2)
    norms = np.abs(y) + F4.type(1)
    add("lp_pool2d", {"x": x}, norm_type=2, kernel_size=2)
    add("lp_pool2d_backward", {"dy": y, "x": x, "y": norms}, norm_type=3, kernel_size=2)
    col = _numbers(n, 16, 9 * c) if channels_last else _numbers(n, 9 * c, 16)
    add("im2col", {"x": x}, kernel_size=3)
    add("col2im", {"col": col}, x_shape=x.shape, kernel_size=3)
    add("upsample", {"x": y}, scale_factor=2)
    add("upsample_backward", {"dy": x}, scale_factor=2)

    add("adaptive_avg_pool2d", {"x": x}, output_size=(4, 3))
    add("adaptive_avg_pool2d_backward", {"dy": y}, x_shape=x.shape)
    add("adaptive_max_pool2d", {"x": x}, pooled, output_size=3)
    add("adaptive_max_pool2d", {"x": x}, label="alone", return_argmax=False, output_size=3)
    first = np.arange(0, 36, 12)[:, None] + np.arange(0, 6, 2)  # the first place of each window
    places = np.zeros(y.shape, I8) + (first[..., None] if channels_last else first)
    add("adaptive_max_pool2d_backward", {"dy": y, "argmax": places}, x_shape=x.shape)
    for keepdims in (True, False):
        label, dims = "" if keepdims else "without axes", {"keepdims": keepdims}
        one = image(c, 1, 1) if keepdims else _numbers(n, c)
        place = (np.abs(one) * 11).astype(I8)
        add("global_avg_pool", {"x": x}, label=label, **dims)
        add("global_avg_pool_backward", {"dy": one}, label=label, x_shape=x.shape, **dims)
        add("global_max_pool", {"x": x}, pooled, label, **dims)
        add("global_max_pool_backward", {"dy": one, "argmax": place}, label=label, x_shape=x.shape, **dims)
    return calls


BOTH = [*_calls(False), *_calls(True)]
# What is refused is refused before anything else is asked: one call of each function will do.
ONE_EACH = list({call.op: call for call in reversed(_calls(False))}.values())
SEVERAL = [call for call in BOTH if call.results != ("",)]


def each(calls):
    """Parametrize a test by calls."""
    names = [f"{call}{', channels last' * call.options['channels_last']}" for call in calls]
    return pytest.mark.parametrize("call", calls, ids=names)


@pytest.fixture(scope="module", autouse=True)
def one_order():
    """Run kernels once: other tests show that the order of their threads doesn't matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_runtime.host, "orders", 1)
        yield


# How a result may lie: in a larger array, and where in that.


def _with_gaps(shape):
    return tuple(size + 2 for size in shape), lambda a: a[tuple(slice(1, size + 1) for size in shape)]


def _channels_of_a_larger(shape):
    axis = min(1, len(shape) - 1)
    larger = (*shape[:axis], 3 * shape[axis], *shape[axis + 1 :])
    return larger, lambda a: a[(slice(None),) * axis + (slice(shape[axis], 2 * shape[axis]),)]


def _last_axis_of_a_larger(shape):
    return (*shape[:-1], 3 * shape[-1]), lambda a: a[..., shape[-1] : 2 * shape[-1]]


LAID = {
    "in order": lambda shape: (shape, lambda a: a),
    "with gaps": _with_gaps,
    "channels of a larger array": _channels_of_a_larger,
    "channels of a larger array, at the end": _last_axis_of_a_larger,
    "every other": lambda shape: (
        tuple(2 * n for n in shape),
        lambda a: a[(slice(1, None, 2),) * len(shape)],
    ),
    "backwards": lambda shape: (shape, lambda a: a[(slice(None, None, -1),) * len(shape)]),
    "Fortran": lambda shape: (shape[::-1], lambda a: a.T),
    # one element after an address that is a multiple of 16
    "unaligned": lambda shape: ((prod(shape) + 1,), lambda a: a[1:].reshape(shape)),
}
UNTOUCHED = 77  # what out holds before


class Laid:
    """An array for a result somewhere in a larger one."""

    def __init__(self, backend, like, how):
        shape, where = LAID[how](like.shape)
        self.whole = backend.to_array(np.full(shape, UNTOUCHED, like.dtype))
        self.out = where(self.whole)
        assert self.out.shape == like.shape
        self._inside = np.zeros(shape, bool)
        where(self._inside)[...] = True
        self._backend = backend

    def check(self, want, how="with gaps"):
        """Check that it holds just the bits wanted, and that nothing around it was written to."""
        whole = self._backend.to_numpy(self.whole)
        assert (whole[~self._inside] == UNTOUCHED).all(), how
        assert self._backend.to_numpy(self.out).tobytes() == want.tobytes(), how

    def check_untouched(self):
        """Check that nothing was written at all."""
        assert (self._backend.to_numpy(self.whole) == UNTOUCHED).all()


def _wanted(backend, call, arrays=None, **more):
    """Return the results of a call without `out`, in NumPy."""
    return [None if y is None else backend.to_numpy(y) for y in call(backend, arrays, **more)]


ELSEWHERE = (
    "gpuconv.training",
    "gpuconv.measure",
    "gpuconv.explain",
    "gpuconv.buffers",
)  # these return no arrays


def test_every_public_function_that_returns_arrays_takes_out_and_is_here():
    modules = set()
    for name in gpuconv.__all__:
        function = getattr(gpuconv, name)
        if not inspect.isfunction(function) or function.__module__.startswith(ELSEWHERE):
            continue
        modules.add(function.__module__)
        out = inspect.signature(function).parameters["out"]
        assert (out.default, out.kind) == (None, inspect.Parameter.KEYWORD_ONLY), name
        assert name in {call.op for call in BOTH}
    assert {"gpuconv.conv", "gpuconv.pool3d", "gpuconv.columns"} < modules


def _check_every_way(backend, call):
    """Check that results go to the arrays given, however these lie; return what the results are."""
    want = _wanted(backend, call)
    for how in LAID:
        laid = [Laid(backend, y, how) for y in want]
        got = call(backend, out=call.outs([one.out for one in laid]))
        for y, one, values in zip(got, laid, want, strict=True):
            assert y is one.out, how
            one.check(values, how)
    return want


@each(BOTH)
def test_the_result_is_the_given_array_and_holds_what_a_new_one_would(backend, call):
    assert any((y != 0).any() for y in _check_every_way(backend, call))


@each(BOTH)
def test_an_empty_batch_has_results_too(backend, call):
    for y in _check_every_way(backend, call.without_images()):
        assert (y == 0).all()  # there is none, or it is the gradient of weights: a sum of nothing


@each(ONE_EACH)
def test_numpys_results_may_lie_between_bytes(call):
    backend = BACKENDS["numpy"]
    with gpuconv.config(compiled=False):  # as for results that C kernels can't write
        want = _wanted(backend, call)
    outs = [np.empty(y.nbytes + 1, U1)[1:].view(y.dtype).reshape(y.shape) for y in want]
    for y, out, values in zip(call(backend, out=call.outs(outs)), outs, want, strict=True):
        assert y is out
        np.testing.assert_array_equal(y, values)


@each(SEVERAL)
def test_of_several_results_each_may_be_given_or_new(backend, call):
    want = _wanted(backend, call)
    for chosen in range(2 ** len(want)):
        laid = [Laid(backend, y, "with gaps") if chosen >> i & 1 else None for i, y in enumerate(want)]
        got = call(backend, out=tuple(one and one.out for one in laid))
        for y, one, values in zip(got, laid, want, strict=True):
            if one is None:
                np.testing.assert_array_equal(backend.to_numpy(y), values)
            else:
                assert y is one.out
                one.check(values)


@each([call for call in SEVERAL if call.results == ("dx", "dw", "db")])
def test_of_gradients_only_those_needed_are_written(backend, call):
    want = _wanted(backend, call)
    for needs in ((), ("x",), ("w",), ("b",), ("w", "b"), ("b", "x")):
        laid = [Laid(backend, y, "in order") for y in want]
        got = call(backend, needs=needs, out=tuple(one.out for one in laid))
        assert type(got) is gpuconv.ConvGrads
        for name, y, one, values in zip("xwb", got, laid, want, strict=True):
            if name in needs:
                assert y is one.out
                one.check(values)
            else:
                assert y is None
                one.check_untouched()


@each([call for call in ONE_EACH if call.results == ("dx", "dw", "db")])
def test_the_last_steps_gradients_can_be_written_over(backend, call):
    grads = call(backend)
    want = [backend.to_numpy(y).copy() for y in grads]
    for y in grads:
        y[...] = UNTOUCHED
    again = call(backend, out=grads)
    for y, same, values in zip(grads, again, want, strict=True):
        assert y is same
        np.testing.assert_array_equal(backend.to_numpy(y), values)


# What is refused. Nothing is written then.


@cache
def _alike(call):
    """Return arrays of NumPy like the results."""
    return _wanted(BACKENDS["numpy"], call)


def _refused(device, call, error, said, spoil, arrays=None, **more):
    """Check that each result spoilt in turn, with the others good, is refused by its name."""
    shapes = _alike(call)
    for i, result in enumerate(call.results):
        laid = [Laid(device, y, "in order") for y in shapes]
        outs = [one.out for one in laid]
        outs[i] = spoil(outs[i])
        with pytest.raises(error) as caught:
            call(device, arrays, out=call.outs(outs), **more)
        assert caught.type is error
        name = re.escape(f"out[{i}]" if result else "out")
        message = str(caught.value)
        assert message.startswith(f"{call.op}: ")
        assert re.search(said.format(out=name), message), message
        for one in laid:
            one.check_untouched()


SHAPES = (
    lambda y: y.repeat(2, 0),
    lambda y: y[1:],
    lambda y: y[None],
    lambda y: y[0, ...],
    lambda y: y.reshape(1, -1),
)


@each(ONE_EACH)
def test_another_shape_is_refused(device, call):
    for spoil in SHAPES:
        _refused(device, call, ValueError, r"{out} has shape \(.*it must be \(", spoil)


@each(ONE_EACH)
def test_another_dtype_is_refused(device, call):
    for dtype in ("float64", "float16", "int32", "complex64"):
        said = f"{{out}} has dtype {dtype}, but the result is "
        _refused(device, call, TypeError, said, lambda y, dtype=dtype: y.astype(dtype))
    if device.is_numpy:  # CuPy has no other order of bytes

        def swapped(y):
            return y.astype(f">{y.dtype.kind}{max(2, y.itemsize)}")

        _refused(device, call, TypeError, "{out} has dtype >..?, but the result is ", swapped)


@each(ONE_EACH)
def test_what_is_no_array_is_refused(device, call):
    said = "{out} must be a NumPy or CuPy array, not "
    for spoil in (lambda y: y.shape, lambda y: [1.0], lambda y: 0.0, lambda y: "y", lambda y: True):
        _refused(device, call, TypeError, said, spoil)
    _refused(device, call, TypeError, "{out} is a masked array", lambda y: np.ma.masked_array([0.0]))


@each(ONE_EACH)
def test_several_results_take_a_tuple_and_one_takes_none(device, call):
    y = [device.to_array(values) for values in _alike(call)]
    if call.results == ("",):
        wrong, said = [(y[0],), (y[0], None), ()], "out must be a NumPy or CuPy array, not builtins.tuple"
    else:
        wrong, said = (
            [y[0], y, (*y, None), tuple(y[:1]), ()],
            f"out must be a tuple ({', '.join(call.results)})",
        )
    for out in wrong:
        with pytest.raises(TypeError, match=re.escape(f"{call.op}: {said}")) as caught:
            call(device, out=out)
        assert "asarray" not in str(caught.value), "what would be written to a copy is lost"


@each(ONE_EACH)
def test_an_array_of_another_kind_is_refused(device, call):
    if device.is_numpy:
        pytest.skip("on NumPy's side there is only one kind without a GPU")
    said = r"arrays must all be NumPy's or all be CuPy's, but .*is a CuPy array, .*{out} is a NumPy array"
    _refused(device, call, TypeError, said, lambda y: np.zeros(y.shape, y.dtype))


@each(ONE_EACH)
def test_a_read_only_array_is_refused(device, call):
    if not device.is_numpy:
        pytest.skip("CuPy's arrays can always be written to")

    def read_only(y):
        y.setflags(write=False)
        return y

    _refused(device, call, ValueError, "{out} is read-only", read_only)


@each(ONE_EACH)
def test_an_array_whose_elements_share_memory_is_refused(device, call):
    def one_for_all(y):
        subclasses = {"subok": True} if isinstance(y, np.ndarray) else {}  # CuPy asks for none
        as_strided = array_module(y).lib.stride_tricks.as_strided
        return as_strided(y, y.shape, (0, *y.strides[1:]), **subclasses)

    _refused(device, call, ValueError, "{out} overlaps itself", one_for_all)


def _places(first, second):
    """Return offsets of two arrays, of so many bytes and itemsize, that share memory, by how they lie."""
    (size, item), (other, step) = first, second
    return {
        "from the start": (0, 0),
        "the first's end": (0, (size - 1) // step * step),
        "the second's end": ((other - 1) // item * item, 0),
    }


def _view(memory, offset, like):
    return memory[offset : offset + like.nbytes].view(like.dtype).reshape(like.shape)


@pytest.mark.parametrize("how", ["from the start", "the first's end", "the second's end"])
@each(ONE_EACH)
def test_an_array_that_shares_memory_with_an_input_is_refused(device, call, how):
    shapes = _alike(call)
    for name, array in call.arrays.items():
        for i, (result, like) in enumerate(zip(call.results, shapes, strict=True)):
            at, out_at = _places((array.nbytes, array.itemsize), (like.nbytes, like.itemsize))[how]
            memory = device.to_array(np.zeros(array.nbytes + like.nbytes, U1))
            arrays = {other: device.to_array(a) for other, a in call.arrays.items()}
            arrays[name] = _view(memory, at, array)
            arrays[name][...] = device.to_array(array)
            before = device.to_numpy(memory).copy()
            outs = [None] * len(shapes)
            outs[i] = _view(memory, out_at, like)
            said = re.escape(f"{call.op}: out{f'[{i}]' if result else ''} shares memory with {name}")
            with pytest.raises(ValueError, match=said):
                call(device, arrays, out=call.outs(outs))
            np.testing.assert_array_equal(device.to_numpy(memory), before)


@pytest.mark.parametrize("how", ["from the start", "the first's end", "the second's end"])
@each([call for call in ONE_EACH if call.results != ("",)])
def test_results_that_share_memory_are_refused(device, call, how):
    shapes = _alike(call)
    for j in range(1, len(shapes)):
        for i in range(j):
            first, second = shapes[i], shapes[j]
            places = _places((first.nbytes, first.itemsize), (second.nbytes, second.itemsize))[how]
            memory = device.to_array(np.full(first.nbytes + second.nbytes, UNTOUCHED, U1))
            outs = [None] * len(shapes)
            outs[i], outs[j] = (_view(memory, at, y) for at, y in zip(places, (first, second), strict=True))
            said = re.escape(f"{call.op}: out[{j}] shares memory with out[{i}]")
            with pytest.raises(ValueError, match=said):
                call(device, out=tuple(outs))
            assert (device.to_numpy(memory) == UNTOUCHED).all()


@each(ONE_EACH)
def test_nothing_is_written_where_another_argument_is_wrong(device, call):
    laid = [Laid(device, y, "in order") for y in _alike(call)]
    out = call.outs([one.out for one in laid])
    with pytest.raises(TypeError, match=f"{call.op}: channels_last must be True or False"):
        call(device, out=out, channels_last="no")
    if "argmax" in call.arrays and device.is_numpy:
        argmax = call.arrays["argmax"].copy()
        argmax.flat[-1] = 200
        with pytest.raises(ValueError, match=f"{call.op}: argmax holds 200"):
            call(device, {**call.arrays, "argmax": argmax}, out=out)
    for one in laid:
        one.check_untouched()


# What is not refused: memory between that of others.


@each(ONE_EACH)
def test_elements_between_an_inputs_elements_are_free(device, call):
    shapes = _alike(call)
    for name, array in call.arrays.items():
        for i, like in enumerate(shapes):
            if like.dtype != array.dtype:
                continue
            memory = device.to_array(np.full(2 * max(array.size, like.size), UNTOUCHED, like.dtype))
            arrays = {other: device.to_array(a) for other, a in call.arrays.items()}
            arrays[name] = memory[: 2 * array.size : 2].reshape(array.shape)
            arrays[name][...] = device.to_array(array)
            outs = [None] * len(shapes)
            outs[i] = memory[1 : 2 * like.size : 2].reshape(like.shape)
            got = call(device, arrays, out=call.outs(outs))
            assert got[i] is outs[i]
            # Numbers may differ in their last digits: arrays that lie otherwise are summed otherwise.
            np.testing.assert_allclose(device.to_numpy(got[i]), like, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(device.to_numpy(arrays[name]), array)
            assert (device.to_numpy(memory)[1 + 2 * like.size :: 2] == UNTOUCHED).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_may_grow_channels_in_one_array(device, channels_last):
    def part(a, *which):
        return a[..., slice(*which)] if channels_last else a[:, slice(*which)]

    shape = (2, 5, 6, 12) if channels_last else (2, 12, 5, 6)
    numbers, w = _numbers(*shape), _numbers(3, 3, 4, 4) if channels_last else _numbers(4, 4, 3, 3)
    options = {"padding": 1, "channels_last": channels_last}
    for read, written in (
        ((0, 4), (4, 8)),
        ((8, 12), (4, 8)),
        ((0, 8, 2), (1, 8, 2)),
        ((0, 12, 3), (2, 12, 3)),
    ):
        whole = device.to_array(numbers)
        want = device.to_numpy(gpuconv.conv2d(part(whole, *read), device.to_array(w), **options))
        gpuconv.conv2d(part(whole, *read), device.to_array(w), **options, out=part(whole, *written))
        expected = numbers.copy()
        part(expected, *written)[...] = want
        np.testing.assert_array_equal(device.to_numpy(whole), expected)


@given(rng=st.randoms(use_true_random=False))
def test_slices_of_one_array_are_refused_if_and_only_if_they_share_an_element(backend, rng):
    size = (4, 6, 9)
    shape = tuple(rng.randint(1, 3) for _ in size)
    elements = np.arange(prod(size), dtype=F4).reshape(size)
    one, other = (tuple(_slice(rng, n, length) for n, length in zip(size, shape, strict=True)) for _ in "xy")
    whole = backend.to_array(elements)
    x, out = whole[one], whole[other]
    if set(elements[one].flat) & set(elements[other].flat):
        with pytest.raises(ValueError, match="max_pool1d: out shares memory with x"):
            gpuconv.max_pool1d(x, 1, return_argmax=False, out=out)
        np.testing.assert_array_equal(backend.to_numpy(whole), elements)
    else:
        want = elements.copy()
        want[other] = elements[one]
        assert gpuconv.max_pool1d(x, 1, return_argmax=False, out=out) is out
        np.testing.assert_array_equal(backend.to_numpy(whole), want)


def _slice(rng, size, length):
    """Draw a slice of so many of `size` places, forwards or backwards."""
    step = rng.randint(1, max(1, (size - 1) // max(1, length - 1)))
    start = rng.randint(0, size - 1 - step * (length - 1))
    if rng.randint(0, 1):
        return slice(start, start + step * (length - 1) + 1, step)
    last = start + step * (length - 1)
    return slice(last, start - 1 if start else None, -step)
