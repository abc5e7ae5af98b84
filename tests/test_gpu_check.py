"""`profiling/gpu_check.py` without a GPU: its calls, bookkeeping and judgement, with NumPy for CuPy."""

import contextlib
import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gpuconv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "profiling"))

import gpu_check
from gpu import (
    algorithms,
    cases,
    children,
    determinism,
    distributed,
    graphs,
    outcomes,
    report,
    sanitizers,
    suite,
    timings,
    workspace,
)
from gpu.cases import Case
from gpu.children import Deadline
from gpu.results import PARTS, Results, faults

from gpuconv.backends import unmade
from gpuconv.backends.cuda import planning, pooling
from gpuconv.distributed import Alone, DataParallel
from gpuconv.measure import bench, calls, shapes
from gpuconv.measure import gpu as device
from gpuconv.measure.records import commit, file_stem, source_sha256, text
from gpuconv.measure.shapes import ConvShape, PoolShape, Row
from gpuconv.measure.tables import means
from gpuconv.measure.timing import MIN_TURNS, MOST_TURNS, Sample, Timing, in_turns
from gpuconv.measure.work import arrays

CONV = cases.SMALL_CONVS[0]
POOL = cases.SMALL_POOLS[0]
SCHEMA = [
    *("op", "kind", "pass", "name", "dtype", "precision", "layout", "algorithm", "chosen"),
    *("us", "cpu_us", "torch_us", "floor_us", "gbps", "tflops", "workspace_bytes"),
]


class FakeGpu:
    """NumPy in a GPU's place; a call takes 100 us, as long as nobody looks."""

    xp = np
    gpu = "NVIDIA Fake 1"
    sampler, undisturbed = device.Gpu.sampler, device.Gpu.undisturbed
    l2_bytes = 50 << 20
    workspace_bytes = 1000
    living = True

    def facts(self):
        return {"gpu": "NVIDIA Fake 1", "driver": "1.2", "versions": {"numpy": np.__version__}, "machine": {}}

    def time(self, call, wait_us, flush=True):
        call()
        return 100.0, 10.0

    def workspace(self, call):
        return call(), self.workspace_bytes

    def captured(self, call):
        result = call()

        def launch():
            for array, again in zip(arrays(result), arrays(call()), strict=True):
                array[...] = again

        return result, launch

    def poisoned(self, byte):
        return contextlib.nullcontext()

    def copy_gbps(self):
        return 4000.0

    def gemm_tflops(self, precision):
        return {"ieee": 50.0, "tf32": 400.0, "fp16": 800.0}[precision]

    def alive(self):
        return self.living

    def world(self):
        return Alone()

    def shares_with(self, torch):
        return True

    def synchronize(self):
        pass

    wake = release = synchronize


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path, "NVIDIA Fake 1", "sources")


def row_of(op="conv2d", shape=CONV, dtype="float32", precision="ieee", channels_last=False):
    return Row(op, shape, dtype, precision, channels_last)


def timed(results, seconds, wanted):
    state = timings.run(results, Deadline(seconds), FakeGpu(), wanted)
    results.note("timings", state)
    return state


# What is measured


def test_rows_come_in_order_of_priority_and_once():
    every = list(shapes.rows())
    keys = [row.key for row in every]
    assert len({tuple(key.values()) for key in keys}) == len(keys)
    tiers = [(row.chosen, row.kind != "other" and shapes.waits(row), row.precision) for row in every]
    tiers = [
        "other" if row.kind == "other" else f"chosen {precision}" if chosen
        else f"{precision} waited for" if waits else "confirming"
        for row, (chosen, waits, precision) in zip(every, tiers, strict=True)
    ]  # fmt: skip
    order = [(tier, row.channels_last) for tier, row in zip(tiers, every, strict=True)]
    numbers = [("ieee", False), ("fp16", True), ("ieee", True), ("fp16", False)]
    assert list(dict.fromkeys(order))[:4] == [(f"chosen {name}", last) for name, last in numbers]
    assert list(dict.fromkeys(order))[4:8] == [(f"{name} waited for", last) for name, last in numbers]
    assert list(dict.fromkeys(tiers))[4:] == [
        "chosen tf32", "tf32 waited for", "chosen 3xtf32", "3xtf32 waited for", "confirming", "other",
    ]  # fmt: skip
    of = {"chosen": 2 * (4 * 42 * 3 + 2 * 6 * 4), "other": 2 * 15}
    assert sum(tier.startswith("chosen") for tier in tiers) == of["chosen"]
    assert tiers.count("other") == of["other"]
    assert [key["pass"] for key in keys[:3]] == ["forward", "input_grad", "weight_grad"]
    # The kinds take turns: whatever is cut off, there is something of each.
    assert {row.kind for row in every[:13]} == {"dense", "grouped", "depthwise", "max pool", "avg pool"}


def test_algorithms_of_a_call_are_timed_one_after_the_other():
    every = list(shapes.rows())
    others = [(i, row) for i, row in enumerate(every) if not row.chosen]
    assert others
    calls = [(row.op, row.shape.name, row.precision, row.channels_last) for _, row in others]
    assert len(list(itertools.groupby(calls))) == len(set(calls))


def test_every_algorithm_that_can_compute_a_row_is_a_row():
    found = defaultdict(set)
    for row in shapes.rows():
        if row.kind == "other":
            continue
        names = shapes.candidates(row)
        assert row.algorithm in names and row.beside == ("" if row.algorithm == names[0] else names[0])
        found[row.op, row.shape.name, row.precision, row.channels_last].add(row.algorithm)
        assert found[row.op, row.shape.name, row.precision, row.channels_last] <= set(names)
        if isinstance(row.shape, PoolShape):
            assert names == (("tile", "vector") if row.shape.kernel <= 3 else ("vector",))
            continue
        small = max(row.shape.c_in, row.shape.c_out) <= 8 * row.shape.groups
        assert ("direct" in names) == (small and row.shape.kh * row.shape.kw <= 64)
        with gpuconv.config(algorithm=row.algorithm):
            assert shapes.candidates(row)[0] == row.algorithm
    asked = {row: shapes.candidates(row) for row in shapes.rows() if row.chosen and row.kind != "other"}
    for row, names in asked.items():
        assert found[row.op, row.shape.name, row.precision, row.channels_last] == set(names)


def test_a_poolings_kernel_is_the_one_asked_for():
    x = unmade.empty((2, 4, 12, 16), np.dtype(np.float32))
    shape = cases.SMALL_POOLS[1]
    y = unmade.empty((2, 4, 6, 8), x.dtype)
    argmax = unmade.empty(y.shape, np.dtype(np.uint8))
    ops = {
        "max_pool": (x, y, argmax), "max_pool_backward": (y, argmax, x),
        "avg_pool": (x, y), "avg_pool_backward": (y, x),
    }  # fmt: skip
    for op, given in ops.items():
        counts = (True, None) if op.startswith("avg") else ()

        def launched(op=op, given=given, counts=counts):
            notes = planning.noted(getattr(pooling, op), *given, shape.window(), False, *counts)
            return [note.arguments["kernel"].name for note in notes]

        assert launched() == [f"{op}_tile"]
        for kind, kernel in (("tile", f"{op}_tile"), ("vector", op)):
            with pooling.by(kind):
                assert launched() == [kernel]
        assert launched() == [f"{op}_tile"]


@pytest.mark.parametrize("case", list(cases.small_cases()), ids=str)
def test_every_case_calls_the_operation_it_names(case):
    ours = calls.Calls(case.op, case.shape, case.dtype, case.channels_last, np).ours()
    first = arrays(ours)[0]
    assert first.dtype == case.dtype
    expected = {
        "conv2d": case.shape.y_shape, "conv2d_input_grad": case.shape.x_shape, "col2im": case.shape.x_shape,
        "max_pool2d": case.shape.y_shape, "max_pool2d value only": case.shape.y_shape,
        "avg_pool2d": case.shape.y_shape, "lp_pool2d": case.shape.y_shape,
        "max_unpool2d_backward": case.shape.y_shape, "max_unpool2d": case.shape.x_shape,
    }  # fmt: skip
    if case.op.endswith("pool2d_backward") and "unpool" not in case.op:
        assert first.shape == case.shape.x_shape(case.channels_last)
    if case.op in expected:
        assert first.shape == expected[case.op](case.channels_last)
    with_mask = ("max_pool2d", "adaptive_max_pool2d", "global_max_pool")
    assert isinstance(ours, tuple) == (case.op in with_mask)


@pytest.mark.oracle
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("op", "shape"),
    [
        *((op, shape) for shape in cases.SMALL_CONVS for op in shapes.CONV_PASSES),
        *((op, shape) for shape in cases.SMALL_POOLS for op in shapes.POOL_PASSES),
        ("conv_transpose2d", cases.SMALL_CONVS[1]),
        *(
            (op, cases.SMALL_POOLS[1])
            for op in shapes.ON_ONE_SHAPE
            if not op.startswith(("conv", "lp")) and not op.endswith("backward")
        ),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_pytorch_is_asked_for_the_same(op, shape, channels_last):
    torch = pytest.importorskip("torch")
    both = calls.Calls(op, shape, "float32", channels_last, np)
    ours = arrays(both.ours())[0]
    assert calls.difference(ours, both.compared(both.theirs(torch)()), np) < 1e-6


def test_difference_is_infinite_for_another_shape_and_nan_for_nan():
    one = np.ones((2, 2), np.float32)
    assert calls.difference(one, np.ones(4, np.float32), np) == float("inf")
    assert not calls.difference(one * np.nan, one, np) <= 1
    assert calls.difference(one * 1.5, one, np) == 0.5


def test_floor_is_the_larger_of_bytes_and_products():
    data = {"copy_gbps": 1000.0, "gemm_tflops": {"ieee": 10.0}}
    dense = ConvShape("dense", 1, 64, 10, 10, 64, 3, 3, 1, 1, 1, 1)
    assert bench.floor_us(row_of(shape=dense), data) == 2 * 64 * 64 * 9 * 100 / 10e6
    pool = PoolShape("pool", 1, 10, 10, 10, 2, 2, 0)
    moved = 4 * 1000 + (4 + 1) * 250
    assert bench.floor_us(row_of("max_pool2d", pool), data) == moved / 1e6
    assert bench.floor_us(row_of("avg_pool2d", pool), data) == (moved - 250) / 1e6
    assert bench.floor_us(row_of(precision="tf32"), data) is None


def test_places_between_strided_windows_need_not_be_read_but_their_gradient_must_be_written():
    shape = ConvShape("1x1 stride 2", 1, 1, 8, 8, 1, 1, 1, 2, 0, 1, 1)
    assert shape.least_bytes("conv2d", "float16") == 2 * (16 + 1 + 16)
    assert shape.least_bytes("conv2d_input_grad", "float16") == 2 * (64 + 1 + 16)
    overlapping = ConvShape("3x3 stride 2", 1, 1, 8, 8, 1, 3, 3, 2, 0, 1, 1)
    assert overlapping.least_bytes("conv2d", "float32") == 4 * (49 + 9 + 9)


# How it is measured


def test_workspace_leaves_out_the_result_and_what_was_freed():
    events = [(1, 100), (2, 50), (2, -1), (3, 70), (3, -1)]
    assert device.peak_beside({1}, events) == 70
    assert device.peak_beside(set(), events) == 170


def test_workspace_counts_a_buffer_whose_place_the_result_took_later():
    assert device.peak_beside({1}, [(1, 80), (1, -1), (1, 10), (9, -1)]) == 80


class StandIn:
    """What `device.Gpu` asks of CuPy beside arrays; writes down what it is asked."""

    def __init__(self):
        self.asked, self.hooks, self.next = [], [], 512
        self.cuda = self.runtime = self
        self.uint8, self.CUDARuntimeError = np.uint8, RuntimeError
        self.MemoryHook = type(
            "MemoryHook",
            (),
            {
                "__enter__": lambda hook: self.hooks.append(hook),
                "__exit__": lambda hook, *_: self.hooks.clear(),
            },
        )

    def getDeviceProperties(self, device):
        return {"name": b"NVIDIA Fake 1", "major": 9, "minor": 0, "multiProcessorCount": 132,
                "totalGlobalMem": 1 << 37, "l2CacheSize": 1 << 20}  # fmt: skip

    def RawKernel(self, code, name, options):
        assert f"void {name}(long long cycles)" in code
        return lambda blocks, threads, arguments: self.asked.append(("wait", int(arguments[0])))

    def Event(self):
        return SimpleNamespace(
            record=lambda: self.asked.append("event"), synchronize=lambda: self.asked.append("event's end")
        )

    def get_elapsed_time(self, begin, end):
        return 0.25

    def deviceSynchronize(self):
        self.asked.append("synchronize")

    def _malloc(self, size):
        address, self.next = self.next, self.next + size
        memory = SimpleNamespace(memset_async=lambda byte, size: self.asked.append(("memset", byte, size)))
        for hook in self.hooks:
            hook.malloc_postprocess(size=size, mem_size=size + 100, mem_ptr=address, device_id=0, pmem_id=1)
        return address, memory

    def get_allocator(self):
        return lambda size: self._malloc(size)[1]

    @contextlib.contextmanager
    def using_allocator(self, allocator):
        yield allocator(100), allocator(0)

    def empty(self, size, dtype):
        address, _ = self._malloc(size)
        return SimpleNamespace(
            data=SimpleNamespace(mem=SimpleNamespace(ptr=address)), fill=lambda _: self.asked.append("flush")
        )


@pytest.fixture
def stand_in(monkeypatch):
    cupy = StandIn()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_a_call_is_timed_between_events_behind_a_wait_and_a_flush(stand_in):
    gpu = device.Gpu()
    us, cpu_us = gpu.time(lambda: stand_in.asked.append("call"), 3.0)
    assert stand_in.asked == ["synchronize", ("wait", 6000), "flush", "event", "call", "event", "event's end"]
    assert us == 250 and 0 < cpu_us < 1e6
    gpu.time(lambda: None, 1e9, flush=False)
    assert stand_in.asked[8] == ("wait", 40_000_000) and "flush" not in stand_in.asked[8:]


def test_workspace_is_what_was_asked_for_beside_the_result(stand_in):
    gpu = device.Gpu()

    def call():
        stand_in.empty(300, np.uint8)
        return stand_in.empty(1000, np.uint8)

    _, taken = gpu.workspace(call)
    assert taken == 300


def test_poison_fills_what_is_allocated(stand_in):
    with device.Gpu().poisoned(0xAB):
        pass
    assert stand_in.asked == [("memset", 0xAB, 100)]


class Counting:
    """A clock that writes down whose turn it was."""

    def __init__(self):
        self.turns = []

    def sampler(self, call):
        call()
        return lambda: (self.turns.append(call()), Sample(float(len(self.turns)), 30.0))[1]


def test_contenders_take_turns():
    both = {"ours": lambda: "ours", "torch": lambda: "torch"}
    timings = in_turns(both, clock := Counting(), -1)
    assert clock.turns == ["ours", "torch"] * MIN_TURNS
    assert timings["torch"] == Timing(6.0, 30.0, 4.0, 8.0, MIN_TURNS)
    assert in_turns(both, Counting(), 60)["ours"].turns == MOST_TURNS


def test_a_call_on_a_gpu_is_timed_behind_a_wait_for_its_launches(monkeypatch):
    asked = []
    monkeypatch.setattr(FakeGpu, "time", lambda gpu, call, wait_us: (asked.append(wait_us), (1.0, 30.0))[1])
    sample = FakeGpu().sampler(lambda: None)
    assert sample() == Sample(1.0, 30.0) and asked == [0.0, 0.0, 110.0]


def test_spread_is_half_the_interquartile_range():
    times = [1.0, 2.0, 3.0, 4.0, 100.0]
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    assert Timing.of([Sample(us, 0.0) for us in times]).spread == (q3 - q1) / 2 / median == 1 / 3


def test_rows_hold_what_was_promised(results):
    wanted = [
        row_of(),
        row_of("max_pool2d", POOL),
        row_of(precision="tf32"),
        row_of(dtype="float16", precision="fp16"),
    ]
    assert timed(results, 60, wanted) == "complete"
    saved = json.loads(results.path.read_text())["rows"]
    assert [list(row)[: len(SCHEMA)] for row in saved] == [SCHEMA] * 4
    assert all(row["us"] == 100 and row["cpu_us"] == 10 and row["workspace_bytes"] == 1000 for row in saved)
    assert saved[0]["tflops"] == pytest.approx(CONV.flops / 100e6, rel=1e-3)
    assert saved[1]["tflops"] is None
    assert all(row["floor_us"] > 0 for row in saved)
    assert saved[1]["gbps"] == pytest.approx(POOL.least_bytes("max_pool2d", "float32") / 100e3, rel=1e-3)
    assert faults(results.data) == []


def test_a_row_knows_the_precision_that_it_is_timed_with(results, monkeypatch):
    seen = []
    monkeypatch.setattr(
        FakeGpu, "time", lambda *_: (seen.append(gpuconv.config.fp32_precision), (1.0, 1.0))[1]
    )
    timed(results, 60, [row_of(precision="tf32"), row_of()])
    assert list(dict.fromkeys(seen)) == ["tf32", "ieee"]


@pytest.mark.oracle
def test_a_wrong_answer_is_no_result(results, monkeypatch):
    pytest.importorskip("torch")
    right = gpuconv.conv2d
    monkeypatch.setattr(gpuconv, "conv2d", lambda *a, **k: right(*a, **k) * np.float32(1.01))
    timed(results, 60, [row_of()])
    assert "differs from PyTorch by 1.0e-02" in faults(results.data)[0]
    assert results.rows[0]["us"] is None


@pytest.mark.oracle
def test_where_pytorch_cannot_ours_is_timed_alone(results, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(calls.Calls, "theirs", lambda *_: 1 / 0)
    timed(results, 60, [row_of()])
    assert (results.rows[0]["us"], results.rows[0]["torch_us"]) == (100, None)
    assert results.rows[0]["torch_left_out"] == "division by zero"
    assert faults(results.data) == []


def test_timing_goes_on_where_it_stopped(results):
    wanted = [row_of(), row_of("conv2d_weight_grad")]
    timed(results, 60, wanted[:1])
    assert timed(results, 0, wanted) == "stopped: out of time, 1 rows are left"
    again = Results(results.folder, "NVIDIA Fake 1", "sources")
    assert timed(again, 60, wanted) == "complete"
    assert [row["op"] for row in again.rows] == ["conv2d", "conv2d_weight_grad"]


def test_a_row_without_memory_is_left_out_and_one_that_fails_is_a_fault(results, monkeypatch):
    errors = iter([MemoryError("64 GB"), ValueError("bad\nstride")])

    def fail(*_):
        raise next(errors)

    monkeypatch.setattr(FakeGpu, "workspace", fail)
    wanted = [row_of(), row_of("conv2d_weight_grad")]
    assert timed(results, 60, wanted) == "complete"
    assert results.rows[0]["left_out"] == "not enough memory: 64 GB"
    assert faults(results.data) == [
        "conv2d_weight_grad small 3x3 float32 ieee channels_first: ValueError: bad"
    ]


def test_nothing_is_timed_on_a_gpu_that_gave_up(results, monkeypatch):
    monkeypatch.setattr(FakeGpu, "living", False)
    monkeypatch.setattr(FakeGpu, "workspace", lambda *_: 1 / 0)
    assert timed(results, 60, [row_of(), row_of("conv2d_weight_grad")]).startswith("failed")
    assert len(results.rows) == 1


# Whether it is right


def test_determinism_passes_numpy(results):
    few = [case for case in cases.small_cases() if case.dtype != "float32"]
    assert determinism.run(results, Deadline(60), FakeGpu(), few) == "complete"
    assert results.data["determinism"] == {"runs": 10, "cases": len(few), "differing": [], "wrong": []}


def test_determinism_names_what_changes_and_what_is_wrong(results, monkeypatch):
    right, runs = gpuconv.conv2d, []

    def changing(*given, **options):
        runs.append(1)
        return right(*given, **options) + (np.float32(1e-6) if len(runs) == 10 else 0)

    monkeypatch.setattr(gpuconv, "conv2d", changing)
    case, other = Case("conv2d", CONV, "float32", False), Case("im2col", CONV, "float32", False)
    determinism.run(results, Deadline(60), FakeGpu(), [case, other])
    assert results.data["determinism"]["differing"] == ["conv2d, small 3x3, float32, channels first"]

    on_gpu = iter([True] * 10 + [False])
    monkeypatch.setattr(gpuconv, "conv2d", lambda *a, **k: right(*a, **k) + np.float32(next(on_gpu)))
    determinism.run(results, Deadline(60), FakeGpu(), [case])
    assert faults(results.data) == ["not what NumPy gives: conv2d, small 3x3, float32, channels first"]


def test_determinism_sees_a_place_that_nobody_wrote(results, monkeypatch):
    memory = np.zeros(1, np.float32)

    @contextlib.contextmanager
    def poisoned(_, byte):
        memory.view(np.uint8)[:] = byte
        yield

    monkeypatch.setattr(FakeGpu, "poisoned", poisoned)
    monkeypatch.setattr(gpuconv, "conv2d", lambda *a, **k: memory.copy())
    assert determinism.repeat(Case("conv2d", CONV, "float32", False), FakeGpu())[1] is False


def test_workspace_over_the_limit_is_a_fault(results, monkeypatch):
    asked = []
    monkeypatch.setattr(FakeGpu, "workspace_bytes", (1 << 20) + 1)
    plain = gpuconv.conv2d
    monkeypatch.setattr(
        gpuconv, "conv2d", lambda *a, **k: (asked.append(gpuconv.config.workspace_limit), plain(*a, **k))[1]
    )
    case = Case("conv2d", CONV, "float32", False)
    assert workspace.run(results, Deadline(60), FakeGpu(), [case]) == "complete"
    assert asked == [None, 1 << 20]
    assert [found["limit"] for found in results.data["workspace"]] == [25 << 20, 1 << 20]
    assert faults(results.data) == [f"workspace of {case}: 1048577 bytes, above 1048576"]


def test_another_result_with_less_workspace_is_a_fault(results, monkeypatch):
    def conv2d(x, *_, **__):
        return x * (1 if gpuconv.config.workspace_limit is None else np.float32(1.001))

    monkeypatch.setattr(gpuconv, "conv2d", conv2d)
    case = Case("conv2d", CONV, "float32", False)
    workspace.run(results, Deadline(60), FakeGpu(), [case])
    assert faults(results.data) == [f"{case} gives something else with a limit of 1048576 bytes"]


def test_graphs_are_replayed_with_the_inputs_of_the_day(results, monkeypatch):
    few = [Case(op, CONV, "float32", False) for op in ("conv2d", "im2col")]
    few.append(Case("max_pool2d", POOL, "float16", True))
    assert graphs.run(results, Deadline(60), FakeGpu(), few) == "complete"
    found = results.data["graphs"]
    assert found == {"captured": 3, "refused": [], "wrong": [], "call_us": 10.0, "launch_us": 10.0}
    assert report.graphs(found) == (
        "CUDA graphs: 3 cases replayed, 0 of them wrong; a launch takes 10.0 us of the CPU, a call 10.0"
    )
    captured = FakeGpu.captured
    monkeypatch.setattr(FakeGpu, "captured", lambda *a: (captured(*a)[0], lambda: None))
    graphs.run(results, Deadline(60), FakeGpu(), few[1:])
    assert faults(results.data) == [f"not replayed as called: {case}" for case in few[1:]]
    once = {}

    def stale(gpu, call):  # replays what was there when it was captured
        result = call()
        once["values"] = [array.copy() for array in arrays(result)]

        def launch():
            for array, old in zip(arrays(result), once["values"], strict=True):
                array[...] = old

        return result, launch

    monkeypatch.setattr(FakeGpu, "captured", stale)
    graphs.run(results, Deadline(60), FakeGpu(), few[1:2])
    assert len(faults(results.data)) == 1

    def maxima_alone(gpu, call):  # and not their places, which are the same as before
        y, argmax = call()
        return (y, argmax), lambda: y.__setitem__(..., call()[0])

    monkeypatch.setattr(FakeGpu, "captured", maxima_alone)
    graphs.run(results, Deadline(60), FakeGpu(), few[2:])
    assert len(faults(results.data)) == 1


def test_what_cannot_be_captured_is_told_and_no_fault(results, monkeypatch):
    captured = FakeGpu.captured
    monkeypatch.setattr(
        FakeGpu, "captured", lambda *a: captured(*a) if gpuconv.config.algorithm == "implicit" else None
    )
    case = Case("conv2d", CONV, "float32", False)
    asked = Case("conv2d", CONV, "float32", False, "implicit")
    assert graphs.run(results, Deadline(60), FakeGpu(), [case, asked]) == "complete"
    assert results.data["graphs"]["refused"] == [str(case)] and results.data["graphs"]["captured"] == 1
    assert faults(results.data) == []
    assert report.graphs(results.data["graphs"]).endswith("refused, for cuBLAS: some of conv2d")
    assert graphs.run(results, Deadline(0), FakeGpu(), [case]) == "stopped: out of time after 0 of 1 cases"


def test_a_graph_is_captured_on_a_stream_and_in_a_pool_of_its_own(stand_in):
    asked = stand_in.asked

    @contextlib.contextmanager
    def entered(name):
        asked.append(f"into {name}")
        yield
        asked.append(f"out of {name}")

    class Stream:
        def __init__(self, non_blocking):
            assert non_blocking
            self._within = entered("the stream")

        def __enter__(self):
            self._within.__enter__()

        def __exit__(self, *error):
            self._within.__exit__(None, None, None)

        def begin_capture(self):
            asked.append("begin")

        def end_capture(self):
            asked.append("end")
            return SimpleNamespace(launch=lambda: asked.append("launch"))

    stand_in.Stream = Stream
    stand_in.MemoryPool = lambda: SimpleNamespace(malloc="the pool's")
    stand_in.using_allocator = entered
    gpu = device.Gpu()
    result, launch = gpu.captured(lambda: (asked.append("call"), "y")[1])
    launch()
    inside = ["into the pool's", "into the stream", "call", "begin", "call", "end"]
    out = ["out of the stream", "out of the pool's"]
    assert result == "y" and asked == ["synchronize", *inside, *out, "synchronize", "launch"]

    def refused():
        if asked[-1] == "begin":
            raise NotImplementedError("calling cuBLAS")

    assert gpu.captured(refused) is None and asked[-3:] == ["end", *out]


def test_all_that_is_checked_for_workspace_is_known():
    assert len(list(workspace._cases())) == len(workspace.SHAPES) * 2 * 2 * 3
    assert len(list(determinism._large())) > 100


CLEAN = f"{sanitizers.END}\n========= ERROR SUMMARY: 0 errors\n"
REFUSED = """========= COMPUTE-SANITIZER
========= Error: process didn't terminate successfully
=========     The application may have hit an error when dereferencing Unified Memory from the host.
========= Error: Target application terminated before first instrumented API call
"""


@pytest.mark.parametrize(
    ("shown", "out_of_time", "errors", "why"),
    [
        (CLEAN, False, 0, ""),
        (
            f"{sanitizers.END}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
            False,
            0,
            "",
        ),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)", False, 3, ""),
        ("Traceback\n========= ERROR SUMMARY: 1 error\n========= ERROR SUMMARY: 2 errors", True, 3, ""),
        (CLEAN, True, "skipped", "out of time"),
        (
            "========= ERROR SUMMARY: 0 errors",
            False,
            "skipped",
            "========= ERROR SUMMARY: 0 errors".lstrip("= "),
        ),
        (sanitizers.END, False, "skipped", sanitizers.END),
        (
            REFUSED,
            False,
            "skipped",
            "Error: Target application terminated before first instrumented API call",
        ),
        ("========= Error: Device not supported", False, "skipped", "Error: Device not supported"),
        ("", False, "skipped", "it said nothing"),
    ],
)
def test_a_sanitizer_that_did_not_watch_everything_is_skipped_and_never_0(shown, out_of_time, errors, why):
    assert sanitizers.judge(shown, out_of_time) == (errors, why)


RUNS = (sys.executable, "-c", f"print('{sanitizers.END}')")


def _tool(tmp_path, monkeypatch, script):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_sanitizers_keep_the_log_of_what_they_found_and_run_again_where_skipped(
    results, tmp_path, monkeypatch
):
    monkeypatch.setattr(sanitizers, "PROGRAM", RUNS)
    _tool(
        tmp_path, monkeypatch,
        f'case $2 in memcheck) echo "{sanitizers.END}"; echo "ERROR SUMMARY: 0 errors";; '
        'racecheck) echo "RACECHECK SUMMARY: 2 hazards displayed";; *) echo "Error: $*";; esac',
    )  # fmt: skip
    state = sanitizers.run(results, Deadline(60))
    assert results.data["sanitizer"] == {"memcheck": 0, "racecheck": 2, "initcheck": "skipped"}
    assert state.startswith("skipped: initcheck: Error: --tool initcheck --report-api-errors no")
    assert state.endswith(sanitizers.END + "')")
    assert not results.log("memcheck").exists() and results.log("racecheck").exists()
    assert faults(results.data) == ["racecheck found 2 errors"]

    _tool(tmp_path, monkeypatch, f'echo "{sanitizers.END}"; echo "ERROR SUMMARY: 0 errors"')
    assert sanitizers.run(results, Deadline(60)) == "complete"
    assert results.data["sanitizer"] == {"memcheck": 0, "racecheck": 2, "initcheck": 0}


def test_sanitizers_are_not_asked_where_the_operations_fail_without_them(results, monkeypatch):
    monkeypatch.setattr(sanitizers, "PROGRAM", (sys.executable, "-c", "raise OSError('no such kernel')"))
    state = sanitizers.run(results, Deadline(60))
    assert state.startswith("failed: the operations fail without any tool: OSError: no such kernel, see")
    assert results.data["sanitizer"] == {} and results.log("every_op").exists()


def test_without_compute_sanitizer_its_tools_are_skipped(results, monkeypatch):
    monkeypatch.setattr(sanitizers, "PROGRAM", RUNS)
    monkeypatch.setattr(sanitizers, "_find", lambda: None)
    assert sanitizers.run(results, Deadline(60)).startswith(
        "skipped: memcheck: compute-sanitizer is not installed"
    )
    assert set(results.data["sanitizer"].values()) == {"skipped"}
    assert faults(results.data) == []


TESTS = """
import time, pytest
def test_right(): pass
def test_wrong(): assert False
@pytest.mark.skip(reason="no reason")
def test_not(): pass
@pytest.fixture
def broken(): raise OSError
def test_fixture(broken): pass
def test_endless(): time.sleep({seconds})
"""


def _suite(tmp_path, monkeypatch, seconds):
    (tmp_path / "test_some.py").write_text(TESTS.format(seconds=seconds))
    plugins = ["-p", outcomes.__name__, "-p", "no:cacheprovider", "-c", "/dev/null"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, str(tmp_path)]
    monkeypatch.setattr(suite, "command", lambda: command)


def test_the_suite_counts_what_ran(results, tmp_path, monkeypatch):
    _suite(tmp_path, monkeypatch, 0)
    assert suite.run(results, Deadline(60)) == "complete"
    assert results.data["tests"] == {"passed": 2, "failed": 2, "skipped": 1}
    assert results.data["tests_skipped_because"] == {"no reason": 1}
    assert "test_wrong" in results.log("tests").read_text()
    assert faults(results.data)[0].startswith("2 tests failed: ")


def test_a_suite_that_is_stopped_leaves_what_it_knew(results, tmp_path, monkeypatch):
    _suite(tmp_path, monkeypatch, 100)
    state = suite.run(results, Deadline(8 + 4))
    assert state.startswith("stopped: out of time in ") and state.endswith("test_endless")
    assert results.data["tests"] == {"passed": 1, "failed": 2, "skipped": 1}


def test_a_suite_without_tests_is_a_failure(results, tmp_path, monkeypatch):
    _suite(tmp_path, monkeypatch, 0)
    (tmp_path / "test_some.py").write_text("import no_such_module")
    assert suite.run(results, Deadline(60)).startswith("failed: pytest's status is 2 after 1 tests")
    assert results.data["tests_failed"][0].endswith("test_some.py")
    (tmp_path / "test_some.py").write_text("import pytest\n@pytest.mark.skip\ndef test_not(): pass")
    assert suite.run(results, Deadline(60)).startswith("failed: pytest's status is 0 after 0 tests")


def test_a_file_that_cannot_be_imported_keeps_no_other_from_its_tests(results, tmp_path, monkeypatch):
    (tmp_path / "test_lacking.py").write_text("import no_such_module")
    (tmp_path / "test_some.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_right(): pass")
    command = [str(tmp_path) if option == "tests" else option for option in suite.command()]
    monkeypatch.setattr(suite, "command", lambda: command)
    assert suite.run(results, Deadline(60)) == "complete"
    assert results.data["tests"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert faults(results.data)[0].startswith("1 tests failed: ") and results.log("tests").exists()


def test_the_suites_command_asks_for_the_tests_that_need_a_gpu():
    command = suite.command()
    assert command[command.index("-m", 3) + 1] == "gpu" and "tests" in command


def test_a_program_and_those_it_starts_end_in_time():
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    begin = time.monotonic()
    assert children.run([sys.executable, "-c", script], 0.5, polite=0.5) is None
    assert time.monotonic() - begin < 10
    assert children.run([sys.executable, "-c", "raise SystemExit(3)"], 30) == 3
    assert children.run([sys.executable, "-c", "import gpu, gpuconv"], 30) == 0


def test_training_by_nccl_is_compared_with_training_without(results, monkeypatch):
    assert distributed.run(results, Deadline(60), FakeGpu()) == "complete"
    assert results.data["distributed"]["wrong"] == [] == faults(results.data)
    assert report.distributed(results.data["distributed"]) == (
        "NCCL, a world of one: the same weights as without; "
        "a sum with nobody else: 1 MiB 100 us, 4 MiB 100 us, 64 MiB 100 us"
    )
    backward = DataParallel.backward
    monkeypatch.setattr(DataParallel, "backward", lambda self, dy, **named: backward(self, 1.5 * dy, **named))
    distributed.run(results, Deadline(60), FakeGpu())
    assert "NCCL trains otherwise: 0.weight" in faults(results.data)
    assert "other weights" in report.distributed(results.data["distributed"])


def test_without_nccl_that_is_said_and_no_fault(results, monkeypatch):
    def world(self):
        raise RuntimeError("several GPUs need NCCL")

    monkeypatch.setattr(FakeGpu, "world", world)
    assert distributed.run(results, Deadline(60), FakeGpu()) == "complete"
    assert report.distributed(results.data["distributed"]) == "NCCL: not run, several GPUs need NCCL"
    assert not faults(results.data)


# The whole


def test_results_of_other_sources_or_gpus_are_not_gone_on_with(tmp_path):
    first = Results(tmp_path, "NVIDIA Fake 1", "a")
    first.rows.append({"op": "conv2d"})
    first.note("suite", "complete")
    assert Results(tmp_path, "NVIDIA Fake 1", "a").state("suite") == "complete"
    assert Results(tmp_path, "NVIDIA Fake 1", "b").state("suite") == "not run"
    assert Results(tmp_path, "NVIDIA Fake 1", "b").rows == []
    assert [path.name for path in tmp_path.iterdir()] == ["fake-1.json"]


@pytest.mark.parametrize(
    ("gpu", "stem"),
    [("NVIDIA H200", "h200"), ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"), ("Tesla T4", "tesla-t4")],
)
def test_files_are_named_after_the_gpu(gpu, stem):
    assert file_stem(gpu) == stem


def test_json_has_a_row_a_line_and_is_what_was_written():
    for rows in ([], [{"op": "a", "us": 1.5}], [{"op": "a"}, {"op": "b"}]):
        data = {"gpu": "x", "tests": {"passed": 1}, "rows": rows}
        assert json.loads(text(data)) == data
    assert '\n  {"op": "a"},\n  {"op": "b"}\n' in text(data)


def test_the_hash_is_of_names_and_contents_of_sources(tmp_path):
    kernels, package = tmp_path / "cuda", tmp_path / "gpuconv"
    for path, content in ((kernels / "a.cu", "1"), (package / "b.py", "2")):
        path.parent.mkdir()
        path.write_text(content)

    def now():
        return source_sha256(package, kernels)

    first = now()
    (package / "__pycache__").mkdir()
    (package / "__pycache__/b.pyc").write_text("x")
    assert now() == first
    (kernels / "a.cu").write_text("3")
    changed = now()
    (kernels / "a.cu").rename(kernels / "c.cu")
    assert len({first, changed, now()}) == 3


def test_a_checkout_without_git_has_an_unknown_commit(tmp_path):
    assert commit(tmp_path) == "unknown"


@pytest.fixture
def whole(monkeypatch, tmp_path):
    """gpu_check's main with a fake GPU, small work, and the parts in this process."""
    few = [row_of(), row_of("avg_pool2d", shapes.pool_shapes()[0])]
    few[0] = Row(
        "conv2d", next(s for s in shapes.conv_shapes() if s.name == "digits_3x3"), "float32", "ieee", False
    )
    case = Case("conv2d", CONV, "float32", False)
    monkeypatch.setattr(device, "missing", lambda: None)
    monkeypatch.setattr(device, "name", lambda: "NVIDIA Fake 1")
    monkeypatch.setattr(device, "Gpu", FakeGpu)
    monkeypatch.setattr(timings, "rows", lambda: few[:1])
    monkeypatch.setattr(determinism, "small_cases", lambda: [case])
    monkeypatch.setattr(determinism, "_large", list)
    monkeypatch.setattr(workspace, "_cases", lambda: [case])
    monkeypatch.setattr(graphs, "small_cases", lambda: [case])
    monkeypatch.setattr(sanitizers, "_find", lambda: None)
    monkeypatch.setattr(sanitizers, "_plain_run", lambda *_: "")
    monkeypatch.setitem(gpu_check.OUTSIDE, "suite", _three_tests)
    begun = []

    def in_this_process(command, seconds):
        arguments = command[2:]
        begun.append(arguments[arguments.index("--only") + 1])
        assert float(arguments[-1]) > 0 and seconds > float(arguments[-1])
        return gpu_check.main(arguments)

    monkeypatch.setattr(children, "run", in_this_process)
    return lambda *arguments: (gpu_check.main(["--out", str(tmp_path), *arguments]), begun)


def _three_tests(results, deadline):
    results.data.update(
        tests={"passed": 3, "failed": 0, "skipped": 0}, tests_failed=[], tests_skipped_because={}
    )
    return "complete"


def test_all_parts_run_in_order_and_leave_a_report(whole, tmp_path, capsys):
    status, begun = whole("--commit", "abc123")
    assert (status, begun) == (0, list(PARTS))
    data = json.loads((tmp_path / "fake-1.json").read_text())
    promised = {
        *(
            "gpu",
            "driver",
            "versions",
            "commit",
            "source_sha256",
            "date",
            "tests",
            "sanitizer",
            "determinism",
        ),
        *("copy_gbps", "gemm_tflops", "rows"),
    }
    assert promised <= set(data)
    assert data["commit"] == "abc123" and data["source_sha256"] == source_sha256()
    assert data["sanitizer"] == dict.fromkeys(("memcheck", "racecheck", "initcheck"), "skipped")
    shown = (tmp_path / "fake-1.md").read_text()
    assert "* tests: passed 3, failed 0, skipped 0\n" in shown
    assert "| conv2d | digits_3x3 | float32 ieee | channels_first | 100.0 |" in shown
    assert "nothing wrong in what ran" in capsys.readouterr().out


def test_a_second_run_begins_with_what_is_not_complete(whole, tmp_path):
    whole()
    _, begun = whole()
    assert begun[len(PARTS) :] == ["sanitizers"]
    _, begun = whole("--only", "timings")
    assert begun[len(PARTS) :] == ["sanitizers"]
    _, begun = whole("--only", "timings", "--fresh")
    assert begun[len(PARTS) :] == ["sanitizers", "timings"]
    assert Results(tmp_path, "NVIDIA Fake 1", source_sha256()).state("workspace") == "complete"


def test_a_part_that_breaks_is_a_fault_and_the_others_still_run(whole, tmp_path, monkeypatch, capsys):
    def breaks(results, deadline, gpu):
        raise OSError("gone")

    monkeypatch.setitem(gpu_check.INSIDE, "workspace", breaks)
    ran = children.run
    monkeypatch.setattr(children, "run", lambda *given: _status_of(ran, *given))
    status, begun = whole()
    assert (status, begun) == (1, list(PARTS))
    assert "workspace: failed: OSError: gone" in faults(json.loads((tmp_path / "fake-1.json").read_text()))
    assert "faults: 1" in capsys.readouterr().out


def _status_of(ran, *given):
    try:
        return ran(*given)
    except OSError:
        return 1


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, "failed: still at work 10 s after its time"),
        (-11, "failed: it ended without a word, with status -11"),
    ],
)
def test_a_part_that_hangs_or_dies_is_a_fault(whole, results, monkeypatch, status, state):
    whole()
    monkeypatch.setattr(children, "run", lambda *_: status)
    gpu_check.supervise(["suite"], results, 60)
    assert results.state("suite") == state
    assert faults(results.data) == [f"suite: {state}"]


def test_the_parts_shares_fit_the_budget_and_unused_time_goes_on():
    left, spent = 420.0, []
    for i in range(len(PARTS)):
        spent.append(gpu_check.allowance(PARTS[i:], left))
        left -= spent[-1]
    assert left == pytest.approx(0) and min(spent) > 10
    assert gpu_check.allowance(PARTS[-1:], 400) == 400


def test_listing_needs_no_gpu(capsys):
    assert gpu_check.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[: len(PARTS)]] == list(PARTS)
    assert len(lines) == len(PARTS) + len(list(shapes.rows()))


def test_without_a_gpu_there_is_one_line_and_status_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("no GPU check: CuPy can't be imported")
    assert shown.err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [["--budget", "9"], ["--budget", "soon"], ["--only", "everything"]])
def test_a_wrong_option_is_refused(wrong):
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(wrong)


def test_means_are_geometric_and_by_kind():
    name = {
        "name": "rn50_c3_3x3",
        "kind": "dense",
        "dtype": "float32",
        "precision": "ieee",
        "layout": "channels_first",
        "chosen": True,
    }
    rows = [
        {**name, "op": "conv2d", "pass": "forward", "us": 10.0, "torch_us": other, "floor_us": 5.0}
        for other in (5.0, 20.0, None)
    ]
    rows.append({**name, "op": "conv2d", "pass": "forward", "us": None, "torch_us": None, "floor_us": None})
    pool = {**name, "name": "gap_7x7", "pass": "backward", "us": 10.0, "torch_us": 30.0, "floor_us": None}
    rows += [{**pool, "kind": "max pool"}, {**pool, "kind": "avg pool"}]
    rows.append({**rows[0], "us": 1e-3, "chosen": False})
    numbers = ("float32 ieee", "channels_first")
    assert means(rows) == [
        ("dense", "forward", *numbers, "3", "1.00", "0.50"),
        ("max pool", "backward", *numbers, "1", "3.00", ""),
        ("avg pool", "backward", *numbers, "1", "3.00", ""),
    ]


NAMES = {
    "op": "conv2d", "kind": "dense", "pass": "forward", "dtype": "float32", "precision": "ieee",
    "layout": "channels_first",
}  # fmt: skip


def measured(name, algorithm, us, *, chosen=False, **others):
    """Return a row: PyTorch's time is 12 us and its call's 30, ours 60, the floor 3."""
    figures = {"cpu_us": 60.0, "torch_us": 12.0, "torch_cpu_us": 30.0, "floor_us": 3.0}
    return {**NAMES, **figures, "name": name, "algorithm": algorithm, "us": us, "chosen": chosen, **others}


MEASURED = [
    measured("a", "gemm", 12.0, chosen=True),
    measured("b", "gemm", 12.0, chosen=True),
    measured("c", "gemm", 6.0, chosen=True),
    # In its turns the GPU was twice as slow as before: 8 us are 4 of those.
    measured("a", "implicit", 8.0, chosen_us=24.0),
    measured("b", "implicit", 24.0),
    measured("b", "winograd", 11.9, chosen_us=12.0),
    measured("c", "implicit", None),
]


def test_of_each_call_the_fastest_is_told_by_turns_where_there_were_some():
    a, b, c = algorithms.contests(MEASURED)
    assert (a.fastest["algorithm"], a.gain, a.agrees) == ("implicit", 3.0, False)
    assert (b.fastest["algorithm"], b.agrees) == ("winograd", True)  # by less than the noise
    assert (c.fastest["algorithm"], c.gain, c.others) == ("gemm", 1.0, ())
    numbers = ("float32 ieee", "channels_first")
    assert algorithms.contest_cells(MEASURED) == [
        ("conv2d", "a", *numbers, "gemm (slower)", "implicit", "3.00", "gemm 12.0, implicit 8.0"),
        ("conv2d", "b", *numbers, "gemm", "winograd", "1.01", "gemm 12.0, implicit 24.0, winograd 11.9"),
    ]
    assert algorithms.planner(MEASURED) == [
        "planner, dense forward, float32 ieee, channels_first: takes the fastest in 1 of 2; "
        "a implicit 3.00 times as fast as gemm"
    ]
    assert algorithms.planner(MEASURED[:3]) == []


def test_means_are_of_the_chosen_of_each_algorithm_alone_and_of_the_fastest():
    group = ("dense", "forward", "float32 ieee", "channels_first")
    assert algorithms.means(MEASURED) == [
        (*group, "as chosen", "3", "1.26", "0.50", "0.31", "1.00"),
        (*group, "gemm", "3", "1.26", "0.50", "0.31", "1.00"),
        (*group, "implicit", "2", "0.87", "0.50", "0.22", "1.73"),
        (*group, "winograd", "1", "1.01", "0.50", "0.25", "1.01"),
        (*group, "fastest of each", "3", "1.45", "0.50", "0.36", "1.45"),
    ]
    assert algorithms.means(MEASURED[:3]) == [(*group, "as chosen", "3", "1.26", "0.50", "0.31", "1.00")]


def test_goals_say_whether_they_hold():
    told = dict(line.split(" of PyTorch's speed", 1) for line in algorithms.goals(MEASURED))
    assert told["goal, dense forward ieee, 1"] == ": 1.26 in 3 rows, holds"
    assert told["goal, dense forward ieee by implicit, 0.8"] == ": 0.87 in 2 rows, holds"
    assert told["goal, dense weight_grad ieee, 1"] == ": not measured"
    assert told["goal, depthwise weight_grad fp16, 4"] == ": not measured"
    assert len(told) == 2 * 2 + 2 + 2 * 2 * 2 + 3 * 2 + 3 + 3 + 3 * 2

    slow = [{**row, "torch_us": 6.0} for row in MEASURED]
    told = dict(line.split(" of PyTorch's speed", 1) for line in algorithms.goals(slow))
    assert told["goal, dense forward ieee, 1"] == ": 0.63 in 3 rows, missed"
    assert told["goal, dense forward ieee by implicit, 0.8"] == ": 0.43 in 2 rows, missed"
    between = [{**row, "torch_us": 9.0} for row in MEASURED]
    told = dict(line.split(" of PyTorch's speed", 1) for line in algorithms.goals(between))
    assert told["goal, dense forward ieee, 1"] == (
        ": 0.94 in 3 rows; 1.08 with the fastest algorithm of each, would hold if the planner took it"
    )


def test_an_algorithm_that_is_not_chosen_has_its_turns_with_the_one_that_is(results, monkeypatch):
    seen = []
    monkeypatch.setattr(FakeGpu, "time", lambda *_: (_[1](), (1.0, 1.0))[1])
    plain = gpuconv.conv2d
    monkeypatch.setattr(
        gpuconv, "conv2d", lambda *a, **k: (seen.append(gpuconv.config.algorithm), plain(*a, **k))[1]
    )
    depthwise = cases.SMALL_CONVS[2]
    timed(results, 60, [Row("conv2d", depthwise, "float32", "ieee", False, "gemm", beside="direct")])
    (row,) = results.rows
    assert (row["algorithm"], row["chosen"], row["chosen_us"], row["us"]) == ("gemm", False, 1.0, 1.0)
    assert seen[-2:] == ["gemm", "direct"] and seen.count("direct") > MIN_TURNS


def test_where_there_is_no_memory_for_the_chosen_one_the_other_is_timed_alone(results, monkeypatch):
    plain = gpuconv.conv2d

    def conv2d(*arrays, **options):
        if gpuconv.config.algorithm == "direct":
            raise MemoryError("64 GB")
        return plain(*arrays, **options)

    monkeypatch.setattr(gpuconv, "conv2d", conv2d)
    timed(results, 60, [Row("conv2d", CONV, "float32", "ieee", False, "gemm", beside="direct")])
    assert results.rows[0]["us"] == 100 and "chosen_us" not in results.rows[0]


def test_sums_in_parts_are_among_what_is_checked():
    asked = [case for case in cases.asked_cases() if case.shape is cases.IN_PARTS]
    assert {case.dtype for case in asked if case.algorithm == "implicit"} == {"float16", "float32"}
    for case in asked:
        x, w = case.shape.x_shape(case.channels_last), case.shape.w_shape(case.channels_last)
        options = {"padding": 1, "dtype": case.dtype, "channels_last": case.channels_last, "device": "cuda"}
        with case.settings():
            y = gpuconv.explain("conv2d", x, w, **options)
            dx = gpuconv.explain("conv2d_input_grad", x, w, x, **options)
        for plan in (y, dx):
            assert ("sum_parts" in [step.what for step in plan.steps]) == (case.algorithm == "implicit")


def test_algorithms_that_have_to_be_asked_for_are_checked_too():
    asked = list(cases.asked_cases())
    found = {(case.op, (case.algorithm, case.dtype, case.precision)) for case in asked}
    for wanted in cases.ASKED:
        ops = set(shapes.CONV_PASSES) - ({"conv2d_weight_grad"} if wanted[0] == "winograd" else set())
        assert {op for op, how in found if how == wanted} == ops
    for case in asked:
        row = Row(case.op, case.shape, case.dtype, case.precision, case.channels_last)
        assert shapes.candidates(row)[0] != case.algorithm
        with case.settings():
            assert shapes.candidates(row)[0] == case.algorithm
