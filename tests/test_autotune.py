"""`config.autotune`: the fastest algorithm by a clock that the tests set, kept in memory and in a file."""

import json
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BACKENDS
from host import compiler
from host.runtime import HostRuntime, host, to_device, to_host

import gpuconv
from gpuconv.backends.cuda import autotune, choice, runtime, sources
from gpuconv.backends.cuda.autotune import TURNS

needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())

GROUPS = 4
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, GROUPS, 9, 8)).astype(np.float32)
W = RNG.standard_normal((GROUPS, 1, 3, 3)).astype(np.float32)
OPTIONS = {"padding": 1, "groups": GROUPS}

# What the clock says of launches and products. The rules take the kernels of "direct" here.
EQUAL = {"others": 1.0}
FAST_GEMM = {**dict.fromkeys(("im2col", "col2im", "gemm"), 1.0), "others": 100.0}
FAST_DIRECT = {**dict.fromkeys(("depthwise", "depthwise_weight_grad", "sum_parts"), 1.0), "others": 100.0}


@pytest.fixture(autouse=True)
def anew(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(host, "us", EQUAL)
    monkeypatch.setattr(host, "orders", 1)
    autotune.forget()
    yield
    autotune.forget()


def conv2d(**settings):
    """Return y, and the kernels and products that were started for it."""
    x, w = to_device(X), to_device(W)
    host.reset()
    with gpuconv.config(**settings):
        y = gpuconv.conv2d(x, w, **OPTIONS)
    return to_host(y), [name for name, _ in host.launches] + ["gemm"] * len(host.gemms)


def file(tmp_path):
    (path,) = (tmp_path / "cache").glob("autotune-*.json")
    return path


def explained(**settings):
    with gpuconv.config(autotune=True, **settings):
        return gpuconv.explain("conv2d", to_device(X), to_device(W), **OPTIONS)


@needs_kernels
@pytest.mark.parametrize("us, algorithm", [(FAST_GEMM, "gemm"), (FAST_DIRECT, "direct")])
def test_the_fastest_is_measured_once_and_taken(us, algorithm, monkeypatch):
    monkeypatch.setattr(host, "us", us)
    want, alone = conv2d(algorithm=algorithm)
    y, started = conv2d(autotune=True)
    assert len(started) > 2 * TURNS
    np.testing.assert_array_equal(y, want)
    y, started = conv2d(autotune=True)
    assert started == alone
    np.testing.assert_array_equal(y, want)


@needs_kernels
@pytest.mark.parametrize("op", ["conv2d_input_grad", "conv2d_weight_grad"])
def test_each_gradient_has_its_own_choice(op, monkeypatch):
    arrays = {"conv2d_input_grad": (X, W, X.shape), "conv2d_weight_grad": (X, X, 3)}[op]
    arrays = [to_device(a) if isinstance(a, np.ndarray) else a for a in arrays]

    def computed(**settings):
        host.reset()
        with gpuconv.config(**settings):
            return to_host(getattr(gpuconv, op)(*arrays, **OPTIONS)), len(host.gemms)

    monkeypatch.setattr(host, "us", FAST_GEMM)
    want, products = computed(algorithm="gemm")
    assert products and computed()[1] == 0
    assert computed(autotune=True)[1] > products
    got, again = computed(autotune=True)
    assert again == products
    np.testing.assert_array_equal(got, want)
    assert conv2d(autotune=True)[1].count("depthwise") > TURNS  # the forward pass was not measured yet


@needs_kernels
def test_without_being_asked_for_what_was_measured_is_not_used(monkeypatch):
    before, alone = conv2d()
    monkeypatch.setattr(host, "us", FAST_GEMM)
    conv2d(autotune=True)
    assert conv2d(autotune=True)[1] != alone
    after, started = conv2d()
    assert started == alone == ["depthwise"]
    np.testing.assert_array_equal(after, before)
    assert conv2d(autotune=True, algorithm="direct")[1] == alone


@needs_kernels
def test_a_later_process_takes_what_an_earlier_one_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "us", FAST_GEMM)
    conv2d(autotune=True)
    kept = json.loads(file(tmp_path).read_text())
    assert (kept["device"], kept["sources"]) == (host.identity(), sources.sha256())
    ((key, entry),) = kept["choices"].items()
    assert "'forward', Problem(window=Window(" in key and entry["us"]["direct"] == 100
    autotune.forget()
    monkeypatch.setattr(host, "us", FAST_DIRECT)  # another choice, if it were measured again
    monkeypatch.setattr(HostRuntime, "time", lambda *_: pytest.fail("it was measured already"))
    assert "depthwise" not in conv2d(autotune=True)[1]


@needs_kernels
@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(host, "name", "another GPU"),
        lambda patch: patch.setattr(sources, "sha256", lambda: "others"),
        lambda patch: patch.setattr(gpuconv.config, "workspace_limit", 2 << 20),
        lambda patch: patch.setattr(gpuconv.config, "fp32_precision", "tf32"),
    ],
    ids=["device", "sources", "workspace", "precision"],
)
def test_elsewhere_it_is_measured_again(change, monkeypatch):
    monkeypatch.setattr(gpuconv.config, "workspace_limit", None)
    monkeypatch.setattr(gpuconv.config, "fp32_precision", "ieee")
    conv2d(autotune=True)
    autotune.forget()
    assert len(conv2d(autotune=True)[1]) <= 3
    with monkeypatch.context() as patch:
        change(patch)
        autotune.forget()
        assert len(conv2d(autotune=True)[1]) > 2 * TURNS


@needs_kernels
def test_where_arrays_lie_is_no_part_of_a_choice():
    conv2d(autotune=True)
    x = to_device(np.concatenate([X, X], 3))[:, :, ::-1, 1:9]
    host.reset()
    with gpuconv.config(autotune=True):
        gpuconv.conv2d(x, to_device(W), **OPTIONS)
    assert len(host.launches) + len(host.gemms) <= 3


NONSENSE = ["", "{", "[]", "7", '{"device": 1}', "\xff\xfe", "[" * 100_000]


@needs_kernels
@pytest.mark.parametrize("content", NONSENSE, ids=range(len(NONSENSE)))
def test_a_broken_file_is_made_anew(content, tmp_path):
    conv2d(autotune=True)
    whole = json.loads(file(tmp_path).read_text())
    file(tmp_path).write_bytes(content.encode("latin-1"))
    autotune.forget()
    assert len(conv2d(autotune=True)[1]) > 2 * TURNS
    assert json.loads(file(tmp_path).read_text()) == whole


@needs_kernels
@pytest.mark.parametrize(
    "entry",
    [
        None, "direct", {}, {"name": "fft", "us": {"fft": 1.0}}, {"name": "direct", "us": {}},
        {"name": "direct", "us": {"direct": "1"}}, {"name": "direct", "us": {"fft": 1.0}},
        {"name": "winograd", "us": {"winograd": 1.0}},
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_measured_again(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(gpuconv.config, "fp32_precision", "tf32")  # which Winograd's kernels can't
    conv2d(autotune=True)
    kept = json.loads(file(tmp_path).read_text())
    kept["choices"] = dict.fromkeys(kept["choices"], entry)
    file(tmp_path).write_text(json.dumps(kept))
    autotune.forget()
    assert len(conv2d(autotune=True)[1]) > 2 * TURNS


@needs_kernels
@pytest.mark.parametrize("below", ["", "folder"])
def test_where_nothing_can_be_kept_the_process_remembers(below, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path / "file" / below))
    want, _ = conv2d()
    y, started = conv2d(autotune=True)
    assert len(started) > 2 * TURNS
    assert len(conv2d(autotune=True)[1]) <= 3
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_other_choices_in_the_file_are_kept(tmp_path):
    conv2d(autotune=True)
    with gpuconv.config(autotune=True):
        gpuconv.conv2d(to_device(X[:1]), to_device(W), **OPTIONS)
    assert len(json.loads(file(tmp_path).read_text())["choices"]) == 2


@needs_kernels
def test_while_a_graph_is_captured_the_rules_decide_and_nothing_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "us", {"implicit_gemm": 1.0, "others": 100.0})
    monkeypatch.setattr(host, "capturing", True)
    assert conv2d(autotune=True)[1] == ["depthwise"]
    assert not list((tmp_path / "cache").glob("*"))
    monkeypatch.setattr(host, "capturing", False)
    conv2d(autotune=True)
    monkeypatch.setattr(host, "capturing", True)
    assert conv2d(autotune=True)[1] == ["implicit_gemm"]


@needs_kernels
def test_an_algorithm_without_memory_is_left_out_and_others_may_have_it_later(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "us", FAST_GEMM)
    monkeypatch.setattr(host, "capacity", host.live_workspace)
    assert "gemm" not in conv2d(autotune=True)[1]
    assert len(conv2d(autotune=True)[1]) == 1
    assert not list((tmp_path / "cache").glob("*"))
    assert "gemm" not in explained().why
    monkeypatch.setattr(host, "capacity", None)
    autotune.forget()
    assert conv2d(autotune=True)[1][-1] == "gemm"


@needs_kernels
def test_threads_measure_once_and_compute_alike(monkeypatch):
    clock = iter([10.0, 20.0, 30.0] * 1000)
    monkeypatch.setattr(HostRuntime, "time", lambda self, call: (call(), next(clock))[1])
    x, w = to_device(X), to_device(W)
    want, _ = conv2d()
    host.reset()
    results, start = [], threading.Barrier(4)

    def work():
        start.wait()
        with gpuconv.config(autotune=True):
            results.append(to_host(gpuconv.conv2d(x, w, **OPTIONS)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for y in results:
        np.testing.assert_array_equal(y, results[0])
    assert len(results) == 4
    np.testing.assert_allclose(results[0], want, rtol=1e-5, atol=1e-5)
    measured = [name for name, _ in host.launches]
    assert measured.count("depthwise") in (1 + TURNS, 1 + TURNS + 4)  # as often again, if it is the fastest


@needs_kernels
def test_a_plan_says_what_was_measured(monkeypatch):
    ruled = explained()
    assert (ruled.algorithm, "measured" in ruled.why) == ("direct", False)
    monkeypatch.setattr(host, "us", FAST_GEMM)
    conv2d(autotune=True)
    plan = explained()
    assert plan.algorithm == "gemm" and plan.why.startswith("measured: direct 100 us, gemm 3 us, ")
    assert {step.what for step in plan.steps} == {"im2col", "gemm"}
    assert explained(algorithm="direct").why == 'config.algorithm is "direct"'
    assert gpuconv.explain("conv2d", to_device(X), to_device(W), **OPTIONS).algorithm == "direct"


def test_without_a_gpu_plans_are_the_rules(monkeypatch):
    monkeypatch.setattr(runtime, "present", lambda: None)
    shapes = (2, 4, 9, 8), (4, 1, 3, 3)
    with gpuconv.config(autotune=True):
        measured = gpuconv.explain("conv2d", *shapes, groups=4, device="cuda")
    assert measured == gpuconv.explain("conv2d", *shapes, groups=4, device="cuda")


# CuPy's side.


class Stream:
    capturing = False

    def is_capturing(self):
        return self.capturing


@pytest.fixture
def cupy(monkeypatch):
    """A CuPy of which a `CupyRuntime` can be made; `done` is what its stream was asked for."""
    stream, done = Stream(), []

    class Event:
        def record(self):
            done.append("record")

        def synchronize(self):
            done.append("synchronize")

    properties = {"name": b"NVIDIA Fake 1", "major": 9, "minor": 0}
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            getDevice=lambda: 0, getDeviceCount=lambda: 1, is_hip=False, CUDARuntimeError=RuntimeError,
            getDeviceProperties=lambda device: properties,
        ),
        nvrtc=SimpleNamespace(getVersion=lambda: (13, 2)),
        get_current_stream=lambda: stream, Event=Event, get_elapsed_time=lambda begin, end: 0.25,
    )  # fmt: skip
    module = SimpleNamespace(cuda=cuda, stream=stream, done=done)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_a_call_is_timed_behind_another_of_its_kind(cupy):
    us = runtime.CupyRuntime().time(lambda: cupy.done.append("call"))
    assert us == 250 and cupy.done == ["call", "record", "call", "record", "synchronize"]


def test_while_the_stream_is_captured_nothing_is_called(cupy):
    cupy.stream.capturing = True
    assert runtime.CupyRuntime().time(lambda: cupy.done.append("call")) is None
    assert not cupy.done


def test_a_device_is_called_by_all_that_makes_it_fast(cupy):
    assert runtime.CupyRuntime().identity() == "NVIDIA Fake 1, compute capability 9.0, CUDA 13.2"


@pytest.mark.gpu
@pytest.mark.skipif(bool(BACKENDS["cupy"].missing), reason=BACKENDS["cupy"].missing)
def test_on_a_gpu_the_fastest_is_measured_and_remembered():
    there = BACKENDS["cupy"]
    x, w = there.to_array(X), there.to_array(W)
    with gpuconv.config(autotune=True):
        y = gpuconv.conv2d(x, w, **OPTIONS)
        again = gpuconv.conv2d(x, w, **OPTIONS)
        plan = gpuconv.explain("conv2d", x, w, **OPTIONS)
    assert plan.why.startswith("measured: ") and "direct" in plan.why
    with gpuconv.config(algorithm=plan.algorithm):
        want = gpuconv.conv2d(x, w, **OPTIONS)
    for found in (y, again):
        np.testing.assert_array_equal(there.to_numpy(found), there.to_numpy(want))


@needs_kernels
def test_an_algorithm_that_does_not_compile_here_is_left_out(monkeypatch):
    def fails(*arguments):
        raise RuntimeError("it doesn't compile")

    monkeypatch.setattr(choice.ALGORITHMS["implicit"], "plan_forward", fails)
    want, _ = conv2d()
    y, _ = conv2d(autotune=True)
    np.testing.assert_array_equal(y, want)
    assert "implicit" not in explained().why
    autotune.forget()
    monkeypatch.setattr(choice.ALGORITHMS["direct"], "plan_forward", fails)
    with pytest.raises(RuntimeError, match="doesn't compile"):  # as without a measurement
        conv2d(autotune=True)


@needs_kernels
def test_where_an_algorithm_finds_no_memory_the_rules_decide(monkeypatch):
    monkeypatch.setattr(host, "us", {"winograd": 1.0, "winograd_weights": 1.0, "others": 100.0})
    want, usual = conv2d()
    conv2d(autotune=True)
    assert conv2d(autotune=True)[1] == ["winograd_weights", "winograd"]
    monkeypatch.setattr(host, "workspace", refuse)
    for settings in ({"autotune": True}, {"algorithm": "winograd"}):
        y, started = conv2d(**settings)
        np.testing.assert_array_equal(y, want)
        assert started == usual


def refuse(size):
    raise MemoryError(size)


def test_an_algorithm_that_the_limit_is_too_small_for_is_none_that_can():
    shapes = (1, 512, 8, 8), (8, 512, 3, 3)
    with gpuconv.config(algorithm="winograd"):
        assert gpuconv.explain("conv2d", *shapes, device="cuda").algorithm == "winograd"
        with gpuconv.config(workspace_limit=1 << 20):
            assert gpuconv.explain("conv2d", *shapes, device="cuda").algorithm == "gemm"
