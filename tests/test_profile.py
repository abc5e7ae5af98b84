"""Profiles: what is seen, figures that can be told by hand, what is written, and that nothing is left."""

import contextvars
import dataclasses
import gc
import json
import re
import sys
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
from host import compiler, cupy_stand_in

import gpuconv
import gpuconv.nn as nn
from gpuconv.cli import main
from gpuconv.entry import PLACE
from gpuconv.measure import ceilings, devices, profile_charts, profile_table
from gpuconv.measure.ceilings import Ceiling
from gpuconv.measure.cpu import Cpu, OtherPrograms
from gpuconv.measure.timing import Sample
from gpuconv.trace import AROUND_LAYER

CEILING = Ceiling(1e9, 1e10)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    """Ceilings that aren't measured, and no waiting for other programs."""
    monkeypatch.setattr(ceilings, "present", lambda kind, dtype, precision="ieee": CEILING)
    monkeypatch.setattr(OtherPrograms, "can_be_seen", lambda: False)


def profile(network, x=None, **options):
    return gpuconv.profile(network, x, **{"passes": 1, **options})


def rows(found):
    return [(row.name, row.direction) for row in found.rows]


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5, rng=0)
    )


class Twice(nn.Layer):
    """A layer of the user's own: a body, and a call of a public function beside it."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x) + gpuconv.avg_pool2d(x, 3, 1, padding=1)

    def backward(self, dy, *, needs_dx=True):
        return self.body.backward(dy) + gpuconv.avg_pool2d_backward(dy, dy.shape, 3, 1, padding=1)


class Failing(nn.Layer):
    """Raises on the way forward or backward."""

    def __init__(self, direction, error):
        super().__init__()
        self.direction, self.error = direction, error

    def _pass(self, x, direction):
        if direction == self.direction:
            raise self.error
        return x

    def forward(self, x):
        return self._pass(x, "forward")

    def backward(self, dy, *, needs_dx=True):
        return self._pass(dy, "backward")


class Pair(nn.Layer):
    """Gives two arrays, of which the gradient can't be made up."""

    def forward(self, x):
        return x, x


def assert_no_trace(outer=None):
    assert AROUND_LAYER.get() is outer and PLACE.get() is None


def test_rows_are_the_layers_of_nested_networks_in_the_order_in_which_they_run(device):
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Sequential(nn.MaxPool2d(2)))
    )
    found = profile(device.move(network), device.to_array(images(2, 1, 6, 6)))
    forward = ["0.conv2d", "1.0.relu", "1.1.0.maxpool2d"]
    assert rows(found) == [(name, "forward") for name in forward] + [
        (name, "backward") for name in reversed(forward)
    ]
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert all(row.us > 0 for row in found.rows) and found.total_us >= max(row.us for row in found.rows)


def test_flops_and_bytes_are_those_told_by_hand(device):
    found = profile(device.move(small_network()), device.to_array(images(2, 1, 6, 6)))
    # x [2,1,6,6], 288 bytes; w [3,1,3,3], 108; b 12; y [2,3,4,4], 384; pooled [2,3,2,2], 96, with argmax 24
    assert [(row.name, row.flops, row.least_bytes) for row in found.rows] == [
        ("0.conv2d", 2 * 96 * 9, 288 + 108 + 12 + 384),
        ("2.maxpool2d", 24 * 4, 384 + 96 + 24),
        ("1.relu", 24, 96 + 96),
        ("3.flatten", 0, 0),
        ("4.linear", 2 * 2 * 12 * 5, 96 + 240 + 20 + 40),
        ("4.linear", 2 * (2 * 2 * 12 * 5), 40 + 96 + 96 + 2 * (240 + 20)),  # dy, x, dx; w and b, dw and db
        ("3.flatten", 0, 0),
        ("1.relu", 24, 3 * 96),
        ("2.maxpool2d", 24, 96 + 24 + 384),
        ("0.conv2d", 2 * (2 * 96 * 9) + 96, 384 + 288 + 108 + 288 + 108 + 12),
    ]
    for row in found.rows:
        least = max(row.least_bytes / 1e9, row.flops / 1e10) * 1e6
        assert row.roofline == (pytest.approx(least / row.us) if least else None)
        assert row.gbps == pytest.approx(row.least_bytes / row.us / 1e3)
        assert row.tflops == pytest.approx(row.flops / row.us / 1e6)


def test_algorithms_are_those_that_explain_tells(device):
    x, w = device.to_array(images(2, 1, 6, 6)), device.to_array(images(3, 1, 3, 3))
    network = device.move(nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU()))
    dy = gpuconv.conv2d(x, w)
    assert [row.algorithm for row in profile(network, x).rows] == [
        gpuconv.explain("conv2d", x, w).algorithm,
        None,
        None,
        gpuconv.explain("conv2d_backward", dy, x, w, needs=("x", "w")).algorithm,
    ]


def test_without_dx_the_first_layer_has_less_to_do():
    whole, less = (
        profile(small_network(), images(2, 1, 6, 6), needs_dx=needs).rows[-1] for needs in (True, False)
    )
    assert whole.name == less.name == "0.conv2d"
    assert whole.flops - less.flops == 2 * 96 * 9 and whole.least_bytes - less.least_bytes == 288 + 108


def test_forward_alone_has_no_backward_rows():
    found = profile(small_network(), images(2, 1, 6, 6), backward=False)
    assert {row.direction for row in found.rows} == {"forward"} and len(found.rows) == 5


def test_a_layer_alone_is_a_network_of_one():
    assert rows(profile(nn.ReLU(), images(2, 3))) == [("relu", "forward"), ("relu", "backward")]


def test_rows_of_a_function_are_its_calls_and_the_layers_that_it_runs(device):
    x, w = (device.to_array(images(*shape)) for shape in ((2, 1, 6, 6), (3, 1, 3, 3)))
    network = device.move(nn.Sequential(nn.AvgPool2d(2)))

    def function(x):
        y = gpuconv.conv2d(x, w)
        network(y)
        gpuconv.conv2d_weight_grad(y, x, 3)

    assert rows(profile(function, x)) == [
        ("0.conv2d", "forward"),
        ("0.avgpool2d", "forward"),
        ("1.conv2d_weight_grad", "backward"),
    ]
    assert rows(profile(lambda: function(x))) == rows(profile(function, x))


class Ticking(Cpu):
    """A device whose clock goes on only when told; it says what was asked of it while passes ran."""

    def __init__(self):
        self.now, self.turns = 0.0, 0

    def stamp(self):
        return self.now

    def between(self, begin, end):
        return (end - begin) * 1e6

    def sampler(self, call):
        call()  # warm, and forgotten

        def sample():
            self.turns += 1
            call()
            return Sample(0.0, 0.0)

        return sample


class Takes(nn.Layer):
    """Takes a known time, a little more each time, forward; twice that backward. May have a body."""

    def __init__(self, clock, seconds, body=None):
        super().__init__()
        self.clock, self.seconds, self.body = clock, seconds, body

    def forward(self, x):
        self.clock.now += self.seconds + self.clock.turns
        return x.copy() if self.body is None else self.body(x)

    def backward(self, dy, *, needs_dx=True):
        self.clock.now += 2 * self.seconds
        return dy.copy() if self.body is None else self.body.backward(dy)


def test_times_are_medians_over_the_turns_and_those_of_layers_within_are_taken_away(monkeypatch):
    clock = Ticking()
    monkeypatch.setattr(devices, "find", lambda kind: clock)
    inner = nn.Sequential(Takes(clock, 100.0))
    found = profile(nn.Sequential(Takes(clock, 10.0, inner), Takes(clock, 20.0)), images(2), passes=3)
    assert clock.turns == found.turns == 3
    assert {(row.name, row.direction): row.us for row in found.rows} == {
        ("0.takes", "forward"): 12e6,  # 11, 12 and 13: the first passes don't count
        ("0.0.takes", "forward"): 102e6,
        ("1.takes", "forward"): 22e6,
        ("1.takes", "backward"): 40e6,
        ("0.0.takes", "backward"): 200e6,
        ("0.takes", "backward"): 20e6,
    }
    assert (found.total_us, found.outside_us) == (396e6, 0)
    assert [row.share for row in found.rows] == [pytest.approx(row.us / 396e6) for row in found.rows]


def test_work_of_a_layer_of_one_s_own_is_that_of_its_calls_and_its_body_has_rows_of_its_own():
    found = profile(Twice(nn.Sequential(nn.ReLU())), images(1, 1, 4, 4))
    assert [(row.name, row.direction, row.flops) for row in found.rows] == [
        ("twice", "forward", 16 * 9),
        ("0.relu", "forward", 16),
        ("twice", "backward", 16 * 9),
        ("0.relu", "backward", 16),
    ]


def test_workspace_is_what_is_held_beside_arguments_and_results():
    class Wasteful(nn.Layer):
        def forward(self, x):
            return x * float(np.ones(1 << 20, np.uint8).max())

    found = profile(nn.Sequential(Wasteful(), nn.ReLU()), images(1000), backward=False)
    assert found.rows[0].workspace_bytes == pytest.approx(1 << 20, rel=0.05)
    assert found.rows[1].workspace_bytes < 1 << 14
    assert found.peak_bytes == pytest.approx((1 << 20) + 4000, rel=0.05)


def test_a_call_s_workspace_is_its_layer_s():
    found = profile(nn.Sequential(nn.Conv2d(8, 8, 3)), images(2, 8, 16, 16), backward=False)
    call = next(span for span in found.timeline if span.category == "call")
    assert found.rows[0].workspace_bytes == call.arguments["workspace_bytes"] > 1000


def test_parameters_statistics_and_mode_are_left_as_they_were_and_gradients_are_there():
    class Counting(Failing):
        def __init__(self):
            super().__init__(None, None)
            self.buffers["count"] = np.zeros(())

        def forward(self, x):
            self.buffers["count"] = self.buffers["count"] + 1  # another array
            return x

    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Counting())
    before, arrays = network.state_dict(), dict(network.buffers)
    profile(network, images(2, 1, 5, 5))
    assert all((network.state_dict()[name] == values).all() for name, values in before.items())
    assert all(network.buffers[name] is array for name, array in arrays.items())
    assert network.training and set(network.grads) == set(network.params)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_an_exception_in_a_layer_comes_through_and_leaves_nothing_behind(direction, error):
    network = nn.Sequential(nn.BatchNorm2d(2), Failing(direction, error))
    before, outer = network.state_dict(), AROUND_LAYER.get()
    with pytest.raises(type(error)):
        profile(network, images(2, 2, 4, 4))
    assert_no_trace(outer)
    assert all((network.state_dict()[name] == values).all() for name, values in before.items())


def test_afterwards_nothing_is_watched_and_no_array_is_held():
    outer, made = AROUND_LAYER.get(), []

    def function():
        made.append(weakref.ref(y := gpuconv.conv2d(images(1, 1, 5, 5), images(1, 1, 3, 3))))
        gpuconv.avg_pool2d(y, 2)

    found = profile(function)
    gc.collect()
    assert_no_trace(outer)
    assert len(found.rows) == 2 and not any(reference() is not None for reference in made)


def test_what_was_hung_around_layers_before_goes_on():
    seen = []

    def around(function, i, layer, direction, *arguments, **named):
        seen.append((i, direction))
        return function(*arguments, **named)

    token = AROUND_LAYER.set(around)
    try:
        profile(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU())), images(2, 3))
        assert AROUND_LAYER.get() is around
    finally:
        AROUND_LAYER.reset(token)
    one = [(0, "forward"), (1, "forward"), (0, "forward"), (1, "backward"), (0, "backward"), (0, "backward")]
    assert seen[:6] == one and len(seen) % 6 == 0


def test_calls_of_other_threads_are_not_seen():
    x = images(1, 1, 4, 4)

    def function():
        gpuconv.avg_pool2d(x, 2)
        for run in (contextvars.copy_context().run, lambda call: call()):
            thread = threading.Thread(target=run, args=(lambda: gpuconv.max_pool2d(x, 2),))
            thread.start()
            thread.join()

    assert rows(profile(function)) == [("0.avg_pool2d", "forward")]


def test_offload_on_the_cpu_within_a_profile_is_seen_and_ends():
    x = images(2, 1, 4, 4)

    def function():
        with gpuconv.offload("cpu"), gpuconv.offload("cpu"):
            gpuconv.avg_pool2d(x, 2)
        gpuconv.max_pool2d(x, 2)

    assert rows(profile(function)) == [("0.avg_pool2d", "forward"), ("1.max_pool2d", "forward")]
    assert_no_trace(AROUND_LAYER.get())


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_offload_to_a_gpu_outside_or_inside_computes_there_and_is_seen(where):
    x, seen = images(4, 1, 6, 6), []
    w = images(2, 1, 3, 3)

    def convolve():
        seen.append(gpuconv.conv2d(x, w))

    def offloaded():
        with gpuconv.offload("cuda"):
            convolve()
        with gpuconv.offload("cuda"), gpuconv.offload("cpu"):
            convolve()

    with cupy_stand_in.installed() as cupy:
        asked = []
        asarray = cupy.asarray
        cupy.asarray = lambda *arguments, **named: asked.append(1) or asarray(*arguments, **named)
        if where == "inside":
            found = profile(offloaded)
            assert len(asked) == len(seen)  # two arrays for every other call
        else:
            with gpuconv.offload("cuda"):
                found = profile(convolve)
            assert len(asked) == 2 * len(seen)
    assert [row.name for row in found.rows] == ["0.conv2d", "1.conv2d"][: 1 + (where == "inside")]
    assert all(type(y) is np.ndarray and np.allclose(y, gpuconv.conv2d(x, w), atol=1e-5) for y in seen)


class FakeGpu(Ticking):
    """Events that nobody may read before the pass is over."""

    gpu, stem = "Fake", "fake"

    def __init__(self, xp):
        super().__init__()
        self.xp = xp

    def stamp(self):
        self.now += 1e-6
        return self.now


@pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())
def test_arrays_on_a_gpu_are_timed_there_and_nothing_waits(monkeypatch):
    with cupy_stand_in.installed() as cupy:
        kinds = []
        monkeypatch.setattr(devices, "find", lambda kind: kinds.append(kind) or FakeGpu(cupy))
        network = small_network()
        for arrays in (network.params, network.buffers):
            for name, array in arrays.items():
                arrays[name] = cupy.asarray(array)
        x = cupy.asarray(images(2, 1, 6, 6))
        cupy_stand_in.waits.clear()
        found = profile(network, x)
        assert kinds == ["cuda"] and cupy_stand_in.waits == []
    assert len(found.rows) == 10 and found.as_dict()["gpu"] is None  # as Cpu's facts say
    # A layer that makes a call has two stamps within; each takes a microsecond.
    assert [round(row.us) for row in found.rows] == [3, 3, 1, 1, 1, 1, 1, 1, 3, 3]


def test_what_differs_from_pass_to_pass_is_refused():
    x, calls = images(1, 1, 4, 4), []

    def function():
        calls.append(1)
        for _ in calls:
            gpuconv.avg_pool2d(x, 2)

    with pytest.raises(RuntimeError, match="didn't run the same"):
        profile(function)


@pytest.mark.parametrize(
    ("arguments", "named", "error", "message"),
    [
        ((3, images(2)), {}, TypeError, "network must be a layer or a function, not int"),
        ((nn.ReLU(),), {}, TypeError, "x must be"),
        ((nn.ReLU(), [1.0]), {}, TypeError, "x must be .* not list"),
        ((nn.ReLU(), images(2)), {"backward": 1}, TypeError, "backward must be True or False"),
        ((nn.ReLU(), images(2)), {"needs_dx": None}, TypeError, "needs_dx"),
        ((nn.ReLU(), images(2)), {"passes": 0}, ValueError, "passes must be at least 1"),
        ((nn.ReLU(), images(2)), {"seconds": 0}, ValueError, "seconds must be a number above 0, not 0"),
        ((nn.ReLU(), images(2)), {"seconds": "1"}, ValueError, "seconds"),
        ((nn.ReLU(), images(2)), {"backward": False, "dy": images(2)}, ValueError, "dy was given"),
        ((print, images(2)), {"dy": images(2)}, ValueError, "dy must not be given with a function"),
        ((lambda: None,), {}, ValueError, "neither ran a layer nor called"),
        ((nn.Sequential(), images(2)), {}, ValueError, "the network has no layers"),
        ((nn.Sequential(nn.Sequential()), images(2)), {}, ValueError, "the network has no layers"),
        ((Pair(), images(2)), {}, TypeError, "Pair.forward gave tuple.* backward=False"),
    ],
)
def test_wrong_arguments_are_refused(arguments, named, error, message):
    with pytest.raises(error, match=f"profile: .*{message}"):
        gpuconv.profile(*arguments, **named)


@pytest.fixture(scope="module")
def found():
    """A profile to be shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "present", lambda kind, dtype, precision="ieee": CEILING)
        patch.setattr(OtherPrograms, "can_be_seen", lambda: False)
        network = nn.Sequential(small_network()[:3], nn.Flatten(), nn.Linear(12, 5))
        return profile(network, images(2, 1, 6, 6), passes=2)


def test_table_has_a_line_a_row_with_figures_and_a_bar(found):
    heading, body = found.table(200).split("\n\n")
    assert heading.startswith("a pass takes ") and "ceilings: float32 1.0 GB/s, 10 GFLOP/s" in heading
    titles, *lines = body.splitlines()
    assert re.split(r"  +", titles)[:4] == ["layer", "pass", "us", "share"]
    assert len(lines) == len(found.rows)
    for row, line in zip(found.rows, lines, strict=True):
        assert line.split()[:3] == [row.name, row.direction, f"{row.us:.1f}"]
    longest = max(range(len(lines)), key=lambda i: found.rows[i].us)
    assert lines[longest].count("█") == profile_table.LONGEST == max(line.count("█") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_table_fits_the_width_that_there_is(found, width):
    body = found.table(width).split("\n\n")[1]
    assert max(map(len, body.splitlines())) <= width
    assert body.splitlines()[0].split()[:4] == ["layer", "pass", "us", "share"] and "roofline" in body


def test_table_is_ascii_where_the_output_is(found, monkeypatch):
    class Plain:
        encoding = "ascii"

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Plain())
        text = str(found)
    assert text.isascii() and "#" in text


def test_what_is_outside_of_the_rows_and_other_programs_are_told(monkeypatch):
    clock, x = Ticking(), images(1, 1, 4, 4)
    clock.undisturbed = lambda work, patience: (work(), 0.3)
    monkeypatch.setattr(devices, "find", lambda kind: clock)

    def function():
        nn.Sequential(Takes(clock, 3.0)).forward(x)
        clock.now += 1

    found = profile(function)
    assert (found.total_us, found.outside_us, found.others) == (5e6, 1e6, 0.3)
    assert "20 % of the time is spent outside of these rows" in str(found)
    assert "other programs took 30 % of the cores" in str(found)


def test_saved_files_are_json_a_trace_and_pictures(found, tmp_path):
    written = found.save(tmp_path / "new", "mine")
    assert [path.name for path in written] == [
        "mine.json", "mine.trace.json", "mine-time.png", "mine-roofline.png",
    ]  # fmt: skip
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    data = json.loads(written[0].read_text())
    assert data["gpu"] is None and data["commit"] and data["date"] and data["cpu"]
    assert data["rows"] == json.loads(json.dumps([row.as_dict() for row in found.rows]))
    assert set(data["rows"][0]) >= {"name", "direction", "us", "flops", "least_bytes", "roofline"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[2:])


def test_trace_holds_both_passes_as_complete_events_with_calls_inside_layers(found, tmp_path):
    trace = json.loads(found.save(tmp_path)[1].read_text())
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["ph"] for event in trace["traceEvents"]} == {"X", "M"}
    for event in events:
        assert set(event) == {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"}
        assert event["ts"] >= 0 and event["dur"] > 0 and event["pid"] == event["tid"] == 1
        assert {"flops", "least_bytes", "result"} <= set(event["args"])
    assert {event["cat"] for event in events} == {"forward", "backward", "call"}

    def parent(event):
        end = event["ts"] + event["dur"]
        around = [
            other for other in events
            if other is not event and other["ts"] <= event["ts"] and end <= other["ts"] + other["dur"]
        ]  # fmt: skip
        return min(around, key=lambda other: other["dur"])["name"] if around else None

    tree = [(event["name"], parent(event)) for event in events if event["cat"] != "backward"]
    assert tree == [
        ("sequential", None),
        ("0.sequential", "sequential"),
        ("0.0.conv2d", "0.sequential"),
        ("conv2d", "0.0.conv2d"),
        ("0.2.maxpool2d", "0.sequential"),
        ("max_pool2d", "0.2.maxpool2d"),
        ("0.1.relu", "0.sequential"),
        ("1.flatten", "sequential"),
        ("2.linear", "sequential"),
        ("max_pool2d_backward", "0.2.maxpool2d"),
        ("conv2d_backward", "0.0.conv2d"),
    ]


def test_without_matplotlib_the_rest_is_written_and_the_package_named(found, tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"matplotlib: pip install .*profile\.json"):
        found.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"profile.json", "profile.trace.json"}


def test_names_in_the_roofline_picture_stand_apart(found, monkeypatch):
    from matplotlib.text import Text

    figures, png = [], profile_charts.png
    monkeypatch.setattr(profile_charts, "png", lambda figure: figures.append(figure) or png(figure))
    profile_charts.roofline(found, "mine")
    (axes,) = figures[0].axes
    names = [text for text in axes.texts if text.get_text() in {row.name for row in found.rows}]
    boxes = [Text.get_window_extent(text) for text in names]  # not with the lines that lead to dots
    assert len(names) >= 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_pictures_of_many_layers_and_of_one_that_does_nothing(monkeypatch):
    from matplotlib.axes import Axes

    many = profile(nn.Sequential(*(nn.ReLU() for _ in range(70))), images(8))
    assert profile_charts.time_by_layer(many, "many").startswith(b"\x89PNG")
    with monkeypatch.context() as patched:  # a call for each dot takes 10 s of 4000 of them
        scatter, drawn = Axes.scatter, []
        patched.setattr(Axes, "scatter", lambda *a, **named: drawn.append(a) or scatter(*a, **named))
        assert profile_charts.roofline(many, "many").startswith(b"\x89PNG")
    assert len(drawn) == 2 and sum(len(x) for _, x, _ in drawn) == len(many.rows)
    nothing = profile(nn.Flatten(), images(8, 2))
    for draw in (profile_charts.time_by_layer, profile_charts.roofline):
        assert draw(nothing, "nothing").startswith(b"\x89PNG")


def test_names_and_titles_with_dollar_signs_are_no_formulas(found):
    odd = dataclasses.replace(found, rows=tuple(dataclasses.replace(r, name=r"$\bad$") for r in found.rows))
    for draw in (profile_charts.time_by_layer, profile_charts.roofline):
        assert draw(odd, r"a $\bad$ title").startswith(b"\x89PNG")


# ---- the command


MODULE = """\
import gpuconv
import gpuconv.nn as nn
import numpy as np

network = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU())

def make():
    return network

def forward(x):
    return gpuconv.max_pool2d(x, 2)

def alone():
    return gpuconv.avg_pool2d(np.ones((1, 1, 4, 4)), 2)

def raising(x):
    return [][x.ndim]

def leaving(x):
    raise SystemExit("left")

turns = []

def growing(x):
    turns.append(1)
    for _ in turns:
        gpuconv.max_pool2d(x, 2)

number = 3
"""


def command(capsys, *arguments):
    """Run `gpuconv profile`; return its exit code, and what it printed."""
    try:
        code = main(["profile", *map(str, arguments), "--passes", "1", "--device", "cpu"])
    except SystemExit as leaving:
        code = leaving.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    path = tmp_path / "my_network.py"
    path.write_text(MODULE)
    return path


@pytest.mark.parametrize("target", ["modern", "textbook"])
def test_command_prints_the_table_and_where_files_went(capsys, tmp_path, target):
    code, out, err = command(capsys, target, "--input", "2,1,8,8", "--out", tmp_path / "new")
    assert (code, err) == (0, "") and "0.conv2d" in out
    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    stem = f"profile-{target}-cpu"
    assert written == [f"{stem}-roofline.png", f"{stem}-time.png", f"{stem}.json", f"{stem}.trace.json"]
    assert all(name in out for name in written)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("my_network:network", ["0.conv2d", "1.relu"]),
        ("my_network.py:network", ["0.conv2d", "1.relu"]),
        ("my_network:make", ["0.conv2d", "1.relu"]),
        ("my_network:forward", ["0.max_pool2d"]),
        ("my_network:alone", ["0.avg_pool2d"]),
        ("gpuconv.nn:ReLU", ["relu"]),
    ],
)
def test_command_takes_networks_and_functions_of_modules_and_files(capsys, module, target, names):
    given = [] if target.endswith("alone") else ["--input", "2,1,6,6"]
    code, out, err = command(capsys, target, *given, "--no-backward")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.split("\n\n")[1].splitlines()[1:]] == names


@pytest.mark.parametrize("ending", ["csv", "npz"])
@pytest.mark.parametrize("more", [[], ["--channels-last", "--dtype", "float64"]])
def test_command_takes_a_list_of_shapes_and_names_rows_after_them(capsys, tmp_path, ending, more):
    path = tmp_path / f"layers.{ending}"
    if ending == "csv":
        path.write_text("name,n,c_in,h,w,c_out,kh,kw\nfirst,2,1,6,6,3,3,3\nsecond,1,3,4,4,2,1,1\n")
    else:
        np.savez(path, first=[2, 1, 6, 6, 3, 3, 3, 1, 0, 1, 1], second=[1, 3, 4, 4, 2, 2])
    code, _, err = command(capsys, path, *more, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    data = json.loads((tmp_path / "out" / "profile-layers-cpu.json").read_text())
    named = [(row["name"], row["direction"]) for row in data["rows"]]
    assert named == [(name, way) for name in ("first", "second") for way in ("forward", "backward")]
    assert sum(row["share"] for row in data["rows"]) == pytest.approx(1, abs=1e-3)
    assert data["rows"][0]["flops"] == 1728 and {row["dtype"] for row in data["rows"]} == {
        "float64" if more else "float32"
    }
    spans = json.loads((tmp_path / "out" / "profile-layers-cpu.trace.json").read_text())["traceEvents"]
    outer = [span for span in spans if span["ph"] == "X" and span["cat"] != "call"]
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(outer))


def write_broken(path):
    (path / "broken.py").write_text("import gpuconv\nnetwork = (")
    (path / "raising.py").write_text("raise RuntimeError('two\\nlines')")
    (path / "leaving.py").write_text("import sys; sys.exit(3)")
    (path / "twice.csv").write_text("name,n,c,h,w,kernel\na,1,1,4,4,2\na,1,1,4,4,2\n")
    np.savez(path / "whole.npz", layer=[1, 1, 4, 4, 2])
    (path / "cut.npz").write_bytes((path / "whole.npz").read_bytes()[:150])
    (path / "file").write_text("")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing' is no network: give modern, textbook, module:attribute"),
        (["no_such_module:network"], "no_such_module: ModuleNotFoundError"),
        (["nowhere.py:network"], "nowhere.py: no such file"),
        (["broken.py:network"], "broken.py: SyntaxError"),
        (["raising.py:network"], "raising.py: RuntimeError: two lines"),
        (["leaving.py:network"], "leaving.py: SystemExit: 3"),
        (["my_network:absent"], "my_network:absent: there is no 'absent' in my_network"),
        (["my_network:number"], "must be a layer or a function, not int"),
        (["my_network:network", "--input", "2,3,6,6"], "conv2d: w has 1 input channels"),
        (["my_network:network", "--input", "2,6"], "conv2d: x must have 4 axes"),
        (["my_network:alone", "--input", "2,6"], "--input: my_network:alone takes no argument"),
        (
            ["my_network:raising"],
            "my_network:raising: IndexError: list index out of range (my_network.py, line 17)",
        ),
        (["my_network:leaving"], "my_network:leaving: SystemExit: left"),
        (["my_network:growing"], "didn't run the same layers and calls"),
        (["my_network:network", "--channels-last"], "--channels-last: only for a list of shapes"),
        (["modern", "--input", "2,6"], "--input: modern takes N,C,H,W, not 2,6"),
        (["modern", "--input", "2,0,6,6"], "--input: must be integers of at least 1"),
        (["modern", "--input", "a"], "--input: must be integers of at least 1"),
        (["modern", "--passes", "0"], "--passes: must be an integer of at least 1"),
        (["modern", "--out", "file"], "file: File exists"),
        (["absent.npz"], "absent.npz: No such file"),
        (["cut.npz"], "cut.npz: is no .npz"),
        (["twice.csv"], "twice.csv: 'a' stands there more than once"),
        (["whole.npz", "--input", "1,1,4,4"], "--input: not for a list of shapes"),
    ],
)
def test_command_refuses_bad_input_in_one_line(capsys, module, arguments, message):
    write_broken(module.parent)
    code, out, err = command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("gpuconv profile: ") and message in err


def test_command_says_that_matplotlib_is_missing_and_writes_the_rest(capsys, module, monkeypatch):
    def missing(profile, title):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(profile_charts, "time_by_layer", missing)
    code, out, _ = command(capsys, "my_network:network", "--input", "2,1,6,6", "--out", "out")
    assert code == 0 and "pip install 'gpuconv[train]'" in out
    assert sorted(path.suffix for path in (module.parent / "out").iterdir()) == [".json", ".json"]


def test_command_ends_with_130_after_ctrl_c(capsys, module):
    module.write_text(MODULE.replace("return gpuconv.max_pool2d(x, 2)", "raise KeyboardInterrupt"))
    code, out, err = command(capsys, "my_network:forward", "--input", "2,1,6,6")
    assert (code, out, err) == (130, "", "gpuconv profile: interrupted\n")
