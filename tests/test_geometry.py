"""Windows as integers: sizes, paddings, the adjoint window, and the message for each impossible case."""

import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from cases import draw
from hypothesis import given
from hypothesis import strategies as st

from gpuconv import geometry
from gpuconv.geometry import sliding_window


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(rng=st.randoms(use_true_random=False), pool=st.booleans())
def test_output_sizes_and_paddings_are_those_counted_window_by_window(axes, rng, pool):
    case = draw(rng, axes=axes, pool=pool, free=True)
    sliding = case.sliding(pool=pool)
    window = sliding_window(
        "op",
        case.in_size,
        case.kernel,
        case.stride,
        case.padding,
        case.dilation,
        ceil_mode=pool and case.ceil_mode,
        needs_valid=pool,
    )
    assert window.out_size == sliding.out_size
    assert tuple(zip(window.before, window.after, strict=True)) == tuple(sliding.pads)


@given(rng=st.randoms(use_true_random=False))
def test_windows_with_no_valid_place_are_found_out(rng):
    n, k, s, d = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 6)
    before, after = rng.randint(0, 6), rng.randint(0, 6)
    try:
        window = sliding_window("op", (n,), k, s, ((before, after),), d)
    except ValueError:
        return
    blind = [
        o for o in range(window.out_size[0]) if not any(0 <= o * s - before + j * d < n for j in range(k))
    ]
    if blind:
        with pytest.raises(
            ValueError, match=f"window {blind[0]} along spatial axis 0 holds nothing but padding"
        ):
            sliding_window("op", (n,), k, s, ((before, after),), d, needs_valid=True)
    else:
        assert sliding_window("op", (n,), k, s, ((before, after),), d, needs_valid=True) == window


@pytest.mark.parametrize(
    ("n", "k", "s", "d", "same", "same_lower"),
    [
        (5, 3, 1, 1, (1, 1), (1, 1)),
        (5, 2, 1, 1, (0, 1), (1, 0)),  # the odd place goes after, or before
        (6, 3, 2, 1, (0, 1), (1, 0)),
        (7, 3, 2, 1, (1, 1), (1, 1)),
        (5, 3, 1, 2, (2, 2), (2, 2)),
        (5, 1, 3, 1, (0, 0), (0, 0)),  # never negative
        (1, 4, 1, 1, (1, 2), (2, 1)),
    ],
)
def test_same_padding_gives_ceil_of_size_over_stride(n, k, s, d, same, same_lower):
    for word, pads in (("same", same), ("same_lower", same_lower)):
        window = sliding_window("op", (n,), k, s, word, d)
        assert (window.before[0], window.after[0]) == pads
        assert window.out_size == (-(-n // s),)


@pytest.mark.parametrize(
    ("n", "k", "s", "p", "floor", "ceil"),
    [
        (5, 2, 2, 0, 2, 3),
        (6, 2, 2, 0, 3, 3),  # nothing left over
        (5, 3, 2, 1, 3, 3),
        (2, 1, 3, 1, 2, 1),  # the second starts in the padding after
        (1, 1, 1, 2, 5, 3),  # so do two of the five
        (4, 2, 3, 1, 2, 2),
        (7, 3, 3, 1, 3, 3),
        (3, 2, 4, 1, 1, 1),  # the second would start beyond the input
        (2, 3, 2, 0, None, 1),  # smaller than the kernel by less than a step
    ],
)
def test_ceil_mode_counts_a_partial_window_that_starts_inside_input_or_padding_before(
    n, k, s, p, floor, ceil
):
    if floor is None:
        with pytest.raises(ValueError, match="more than the 2 of x"):
            sliding_window("op", (n,), k, s, p)
    else:
        assert sliding_window("op", (n,), k, s, p).out_size == (floor,)
    assert sliding_window("op", (n,), k, s, p, ceil_mode=True).out_size == (ceil,)


def test_every_form_of_the_same_padding_gives_the_same_window():
    forms = [1, (1, 1), [1, 1], ((1, 1), (1, 1)), [[1, 1], 1], np.int64(1), (np.uint8(1), 1), range(1, 3)]
    windows = [sliding_window("op", (5, 6), 3, padding=form) for form in forms]
    assert len(set(windows[:-1])) == 1
    assert windows[-1].before == (1, 2)


def test_numpy_integers_lists_and_integer_arrays_of_no_axes_are_integers():
    plain = sliding_window("op", (9, 9), (2, 2), (3, 3), 1, (2, 2))
    odd = sliding_window("op", (9, 9), [np.int8(2), 2], np.uint16(3), np.array(1), np.int64(2))
    assert odd == plain
    assert all(type(v) is int for field in (odd.kernel, odd.stride, odd.dilation, odd.before) for v in field)


def test_window_is_frozen_and_a_cache_key():
    window = sliding_window("op", (5, 5), 3)
    assert {window: 1}[sliding_window("op", (5, 5), (3, 3))] == 1
    assert window != sliding_window("op", (5, 5), 3, groups=2)
    with pytest.raises(FrozenInstanceError):
        window.groups = 2


def test_properties_of_a_window():
    window = sliding_window("op", (9, 7, 5), (3, 2, 1), (2, 1, 1), dilation=(1, 3, 4))
    assert (window.axes, window.taps, window.span, window.out_size) == (3, 6, (3, 4, 1), (4, 4, 5))
    assert window.places == 80


@pytest.mark.parametrize(
    ("arguments", "pointwise"),
    [
        ({"kernel": 1}, True),
        ({"kernel": 1, "padding": "same"}, True),
        ({"kernel": 1, "dilation": 3}, True),
        ({"kernel": 1, "stride": 2}, False),
        ({"kernel": 1, "padding": 1}, False),
        ({"kernel": (1, 2)}, False),
    ],
)
def test_pointwise_means_one_tap_one_step_and_no_padding(arguments, pointwise):
    assert sliding_window("op", (4, 4), **arguments).is_pointwise is pointwise


def test_adjoint_windows_read_for_every_input_place_the_outputs_that_read_it():
    for seed in range(300):
        case = draw(random.Random(seed), free=True)
        window = sliding_window("op", case.in_size, case.kernel, case.stride, case.padding, case.dilation)
        readers = {}
        for o, j, i in case.sliding().reads():
            readers.setdefault(i, []).append((o, j))
        seen = {i: [] for i in np.ndindex(*case.in_size)}
        for places, taps, phase in window.adjoint():
            assert phase.stride == (1, 1)
            places_of, taps_of = [
                [range(*part.indices(size)) for part, size in zip(parts, sizes, strict=True)]
                for parts, sizes in ((places, case.in_size), (taps, case.kernel))
            ]
            for m in np.ndindex(*phase.out_size):
                i = tuple(axis[at] for axis, at in zip(places_of, m, strict=True))
                for t in np.ndindex(*phase.kernel):
                    o = tuple(
                        at - before + tap * d
                        for at, before, tap, d in zip(m, phase.before, t, phase.dilation, strict=True)
                    )
                    if all(0 <= at < size for at, size in zip(o, window.out_size, strict=True)):
                        # the taps are turned round
                        seen[i].append(
                            (o, tuple(axis[-1 - tap] for axis, tap in zip(taps_of, t, strict=True)))
                        )
        assert {i: sorted(found) for i, found in seen.items()} == {
            i: sorted(readers.get(i, [])) for i in seen
        }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel": 0}, ValueError, "op: kernel_size must be at least 1, not 0"),
        ({"kernel": (3, 0)}, ValueError, r"op: kernel_size\[1\] must be at least 1, not 0"),
        ({"kernel": (3,)}, ValueError, r"op: kernel_size must be an integer or 2 of them.*not \(3,\)"),
        ({"kernel": (3, 3, 3)}, ValueError, "op: kernel_size must be an integer or 2 of them"),
        ({"kernel": "3"}, TypeError, "op: kernel_size must be an integer, not str '3'"),
        ({"kernel": None}, TypeError, "op: kernel_size must be an integer, not NoneType None"),
        ({"kernel": 3.0}, TypeError, r"op: kernel_size must be an integer, not float 3\.0"),
        ({"kernel": True}, TypeError, "op: kernel_size must be an integer, not bool True"),
        ({"kernel": np.True_}, TypeError, "op: kernel_size must be an integer, not bool"),
        ({"kernel": (3, np.float32(3))}, TypeError, r"op: kernel_size\[1\] must be an integer, not float32"),
        ({"kernel": np.array([3, 3])}, TypeError, "op: kernel_size must be an integer, not ndarray"),
        (
            {"kernel": 9},
            ValueError,
            "op: kernel_size .* spans 9 places along spatial axis 0, more than the 6",
        ),
        ({"kernel": 3, "dilation": 3}, ValueError, "spans 7 places along spatial axis 0, more than the 6"),
        ({"kernel": 8, "padding": ((1, 0), 1)}, ValueError, r"more than the 6 of x plus 1 \+ 0 of padding"),
        ({"stride": 0}, ValueError, "op: stride must be at least 1, not 0"),
        ({"stride": (1, -2)}, ValueError, r"op: stride\[1\] must be at least 1, not -2"),
        ({"dilation": 0}, ValueError, "op: dilation must be at least 1, not 0"),
        ({"dilation": 1.5}, TypeError, r"op: dilation must be an integer, not float 1\.5"),
        ({"padding": -1}, ValueError, "op: padding must be at least 0, not -1"),
        ({"padding": (0, -1)}, ValueError, r"op: padding\[1\] must be at least 0, not -1"),
        ({"padding": ((0, 0), (0, -1))}, ValueError, r"op: padding\[1\]\[1\] must be at least 0, not -1"),
        (
            {"padding": (1, (1, 2, 3))},
            ValueError,
            r"op: padding\[1\] must be an integer or a \(before, after\)",
        ),
        ({"padding": (1, 2, 3)}, ValueError, r"op: padding must be an integer, 2 of them.*not \(1, 2, 3\)"),
        ({"padding": "full"}, ValueError, 'op: padding must be numbers or one of "valid".*not "full"'),
        ({"padding": "SAME"}, ValueError, 'not "SAME"'),
        ({"padding": b"same"}, TypeError, "op: padding must be an integer, not bytes"),
        ({"padding": True}, TypeError, "op: padding must be an integer, not bool True"),
        ({"padding": 1.0}, TypeError, r"op: padding must be an integer, not float 1\.0"),
        ({"padding": None}, TypeError, "op: padding must be an integer, not NoneType"),
        ({"ceil_mode": 1}, TypeError, "op: ceil_mode must be True or False, not int 1"),
    ],
)
def test_impossible_windows_say_what_was_given_and_what_must_be(arguments, error, message):
    with pytest.raises(error, match=message):
        sliding_window("op", (6, 7), **{"kernel": 3, **arguments})


def test_an_input_without_places_is_refused():
    with pytest.raises(ValueError, match="op: x has no places along spatial axis 1"):
        sliding_window("op", (3, 0), 1)


def test_true_is_not_taken_for_the_1_it_equals_even_after_1_was_cached():
    sliding_window("op", (4, 4), 1, 1, 1, 1)
    for name in ("stride", "padding", "dilation"):
        with pytest.raises(TypeError, match=f"{name} must be an integer, not bool True"):
            sliding_window("op", (4, 4), 1, **{name: True})


def test_shape_takes_lists_and_tuples_of_the_right_length_only():
    assert geometry.shape("op", "x_shape", [np.int64(0), 2, 3, 4], 4) == (0, 2, 3, 4)
    with pytest.raises(ValueError, match=r"op: x_shape must be the 4 sizes .* not \(1, 2, 3\)"):
        geometry.shape("op", "x_shape", (1, 2, 3), 4)
    with pytest.raises(ValueError, match=r"op: x_shape\[0\] must be at least 0, not -1"):
        geometry.shape("op", "x_shape", (-1, 2, 3, 4), 4)
    with pytest.raises(TypeError, match=r"op: x_shape\[3\] must be an integer, not float 4\.0"):
        geometry.shape("op", "x_shape", (1, 2, 3, 4.0), 4)
