"""`profiling/compile_report.py`: what it compiles, and that it lets no fault pass. No GPU needed."""

import sys
from pathlib import Path

import pytest

from gpuconv.backends.cuda import sources
from gpuconv.backends.cuda.kernels import Kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "profiling"))

import compile_report
from compile_report import Nvrtc, NvrtcMissing, Resources, Specialisation, parse

try:
    Nvrtc()
    missing = ""
except NvrtcMissing as error:
    missing = str(error)
needs_nvrtc = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="module")
def specialisations():
    return compile_report.specialisations()


def test_every_source_is_compiled(specialisations):
    assert {each.kernel.name for each in specialisations} == set(sources.names())


def test_no_source_is_compiled_twice(specialisations):
    assert len({each.kernel.text for each in specialisations}) == len(specialisations)


def test_every_kernel_is_compiled_with_64_bit_indices_and_for_single_elements(specialisations):
    groups = {each.group for each in specialisations}
    assert {each.group for each in specialisations if ("INDEX", "long long") in each.kernel.defines} == groups
    assert {each.group for each in specialisations if each.vector == 1} == groups


def test_windows_of_one_to_three_axes_beyond_64_taps_and_dilated_are_compiled(specialisations):
    defines = [
        dict(each.kernel.defines)
        for each in specialisations
        if each.kernel.name in ("max_pool", "max_pool_tile")
    ]
    assert {each["AXES"] for each in defines} == {"1", "2", "3"}
    assert {each["UNROLL"] for each in defines} == {"1", "256"}
    assert {each["D2"] for each in defines} == {"1", "2"}


def test_the_dynamic_shared_memory_of_a_launch_is_counted(specialisations):
    sharing = {"bias_grad", "depthwise_weight_grad", "implicit_gemm", "implicit_weight_grad", "sum_parts"}
    sharing |= {"winograd"}
    for each in specialisations:  # and the teams of adaptive pooling
        shares = each.kernel.name in sharing or dict(each.kernel.defines).get("TEAM", "1") != "1"
        assert (each.shared > 0) == shares, each


CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gpuconv_bias' for 'sm_90'
ptxas info    : Function properties for gpuconv_bias
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 1024 bytes smem
"""
SPILLING = """\
ptxas info    : Function properties for gpuconv_bias
    48 bytes stack frame, 44 bytes spill stores, 52 bytes spill loads
ptxas info    : Function properties for called
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 48 bytes cumulative stack size, 400 bytes cmem[0]
"""


@pytest.mark.parametrize(
    "log, resources", [(CLEAN, Resources(28, 1024, 0, 0)), (SPILLING, Resources(255, 0, 48, 52))]
)
def test_a_log_gives_the_most_that_any_function_takes(log, resources):
    assert parse(log) == resources


@pytest.mark.parametrize("word", ["registers", "stack frame", "spill"])
def test_a_log_without_figures_is_not_taken_for_a_clean_one(word):
    with pytest.raises(ValueError, match=word):
        parse(CLEAN.replace(word, "..."))


DYNAMIC_INDEX = """
extern "C" __global__ void gpuconv_planted(const int *at, T *y) {
    T local[64];
    for (int i = 0; i < 64; ++i) local[at[i]] = i;
    y[threadIdx.x] = local[at[threadIdx.x]];
}
"""
TOO_FEW_REGISTERS = """
extern "C" __global__ void __launch_bounds__(1024, 2) gpuconv_planted(const T *x, T *y) {
    T local[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) local[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = local[127 - i] * local[i];
}
"""
NOT_CPP = """
extern "C" __global__ void gpuconv_planted(T *y) { y[0] = undeclared; }
"""


@needs_nvrtc
@pytest.mark.parametrize(
    "source, fault, in_log, last",
    [
        (DYNAMIC_INDEX, "stack frame: ", "256 bytes stack frame", "no errors, 1 stack frame, no spills"),
        (TOO_FEW_REGISTERS, "stack frame and spill: ", "spill stores", "no errors, 1 stack frame, 1 spill"),
        (NOT_CPP, "error: ", '"undeclared" is undefined', "1 error, no stack frames, no spills"),
    ],
)
def test_a_faulty_kernel_is_named_with_its_log(
    source, fault, in_log, last, specialisations, monkeypatch, capsys
):
    like = next(each for each in specialisations if each.element == "float32")
    planted = Specialisation(Kernel("planted", like.kernel.defines), 0)
    monkeypatch.setattr(compile_report, "specialisations", lambda: [planted])
    monkeypatch.setattr(sources, "read", lambda name: source)
    assert compile_report.main(["--arch", "sm_90"]) == 1
    out = capsys.readouterr().out
    assert f"{fault}planted, float32" in out
    assert in_log in out
    assert out.splitlines()[-1] == f"1 specialisation compiled for 1 architecture, {last}"


@needs_nvrtc
def test_the_last_line_is_the_count(capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    arguments = ["--only", "^sum_parts$", "--arch", "sm_75", "--arch", "sm_90", "--out", str(lines)]
    assert compile_report.main(arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "19 specialisations compiled for 2 architectures, no stack frames, no spills"
    assert len(lines.read_text().splitlines()) == 1 + 19 * 2


@needs_nvrtc
def test_what_compiled_without_a_fault_is_kept_until_source_or_options_change(
    specialisations, monkeypatch, capsys, tmp_path
):
    runs = []
    compile_once = Nvrtc.compile
    monkeypatch.setattr(Nvrtc, "compile", lambda *given: runs.append(given[2:]) or compile_once(*given))

    def again(*architectures, code=0):
        runs.clear()
        asked = [word for arch in architectures for word in ("--arch", arch)]
        kept = ["--kept", str(tmp_path / "kept.json")]
        assert compile_report.main(["--only", "^winograd_weights$", "--all", *asked, *kept]) == code
        return capsys.readouterr().out.partition("\n\n")[2], len(runs)

    first, number = again("sm_90")
    assert number == 2
    assert again("sm_90") == (first, 0)
    assert again("sm_90", "sm_80")[1] == 2  # the other's
    assert again("sm_90", "sm_80")[1] == 0
    monkeypatch.setattr(compile_report.runtime, "OPTIONS", (*compile_report.runtime.OPTIONS, "-lineinfo"))
    assert again("sm_90") == (first, 2)
    assert again("sm_90") == (first, 0)
    like = next(each.kernel for each in specialisations if each.kernel.name == "winograd_weights")
    changed = Specialisation(Kernel(like.name, like.defines), 0)
    monkeypatch.setattr(compile_report, "specialisations", lambda: [changed])
    monkeypatch.setattr(sources, "read", lambda name: NOT_CPP)
    for _ in range(2):  # a fault isn't kept
        assert again("sm_90", code=1)[1] == 1


@needs_nvrtc
def test_every_architecture_gets_each_kernel(specialisations):
    chosen = [each for each in specialisations if each.kernel.name == "argmax_to_indices"]
    outcomes = compile_report.compile_all(Nvrtc(), chosen, ("sm_80", "sm_90", "sm_120"), everywhere=False)
    of = {
        arch: [o.specialisation for o in outcomes if o.architecture == arch]
        for arch in ("sm_80", "sm_90", "sm_120")
    }
    assert of["sm_90"] == chosen
    assert [each.group for each in of["sm_80"]] == [each.group for each in of["sm_120"]]
    assert {each.group for each in of["sm_80"]} == {each.group for each in chosen}
    assert not set(of["sm_80"]) & set(of["sm_120"])


@needs_nvrtc
def test_an_architecture_that_nvrtc_does_not_know_is_said_in_one_line(capsys):
    assert compile_report.main(["--arch", "sm_1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sm_1" in line


def test_without_nvrtc_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(compile_report, "_found", lambda pattern, *folders: None)
    assert compile_report.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'gpuconv[compile]'" in line
