"""`gpuconv bench` and what it is made of: timing, shapes from files, records, tables, charts, comparisons."""

import contextlib
import io
import json
import re
import time
from itertools import cycle

import numpy as np
import pytest

import gpuconv
from gpuconv import cli
from gpuconv.cli import bench as command
from gpuconv.measure import bench, charts, compare, cpu, devices, shapes, tables
from gpuconv.measure.cpu import Cpu
from gpuconv.measure.shapes import ConvShape, PoolShape, Row
from gpuconv.measure.timing import Sample

CONV = ConvShape("tiny", 2, 4, 6, 6, 8, 3, 3, 1, 1)
POOL = PoolShape("pool", 2, 4, 6, 6, 2, 2)
CSV = "name,n,c_in,h,w,c_out,kh,kw,padding\ntiny,2,4,6,6,8,3,3,1\nother,1,2,5,5,2,1,1,0\n"
RATES = {"copy_gbps": 10.0, "gemm_tflops": {"ieee": 0.1, "fp64": 0.05}}


def row(op="conv2d", shape=CONV, dtype="float32", precision="ieee", channels_last=False):
    return Row(op, shape, dtype, precision, channels_last)


class Quick(Cpu):
    """The CPU with a clock that says what it is told and never waits."""

    us = 100.0

    def sampler(self, call):
        call()
        return lambda: Sample(self.us, self.us)

    def undisturbed(self, work, patience):
        return work(), 0.01

    def copy_gbps(self):
        return RATES["copy_gbps"]

    def gemm_tflops(self, precision):
        return RATES["gemm_tflops"][precision]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(devices, "find", lambda name: Quick())
    monkeypatch.setattr(bench, "peer", lambda device: None)
    monkeypatch.setattr(command, "keep_memory", lambda: True)


@pytest.fixture
def shapes_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(CSV)
    return path


# Timing on the CPU


def test_a_fast_call_is_repeated_until_a_turn_lasts_long_enough():
    calls = []
    sample = Cpu().sampler(lambda: (calls.append(1), time.sleep(0.001)))
    begun = len(calls)
    assert begun == 2  # the first may compile
    assert 1e3 <= sample().us < 1e5
    lead, turn = cpu.LEAD_SECONDS / 0.001, cpu.TURN_SECONDS / 0.001
    assert 0.2 * (lead + turn) < len(calls) - begun <= lead + turn + 2


def test_a_slow_call_is_called_once_a_turn():
    calls = []
    sample = Cpu().sampler(lambda: (calls.append(1), time.sleep(2 * cpu.LEAD_SECONDS)))
    begun = len(calls)
    sample()
    assert len(calls) == begun + 1


def test_work_is_done_again_while_others_are_at_it_until_patience_ends(monkeypatch):
    shares = iter([0.0, 0.5, 0.0, 0.5, 0.0, 0.01])
    monkeypatch.setattr(cpu.OtherPrograms, "__exit__", lambda self, *_: setattr(self, "share", next(shares)))
    monkeypatch.setattr(cpu, "QUIET_SECONDS", 0.0)
    done = []
    assert Cpu().undisturbed(lambda: done.append(1), 60) == (None, 0.01)
    assert len(done) == 3
    shares = iter([0.5, 0.5])
    assert Cpu().undisturbed(lambda: done.append(1), 0) == (None, 0.5)


def test_work_is_done_where_nobody_can_see_others(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu.OtherPrograms, "STAT", tmp_path / "none")
    assert Cpu().undisturbed(lambda: 3, 0) == (3, None)


def test_workspace_counts_buffers_that_threads_kept_and_leaves_out_the_result(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of several, one may have done it all
    x, w = np.ones((4, 16, 32, 32), np.float32), np.ones((16, 16, 3, 3), np.float32)
    gpuconv.conv2d(x, w, padding=1)  # leaves buffers behind
    y, taken = Cpu().workspace(lambda: gpuconv.conv2d(x, w, padding=1))
    assert y.shape == x.shape
    columns = 9 * 16 * 32 * 32 * 4
    assert columns <= taken <= 4 * columns + (1 << 20)
    _, again = Cpu().workspace(lambda: gpuconv.conv2d(x, w, padding=1))
    assert abs(again - taken) < 1 << 20
    _, none = Cpu().workspace(lambda: np.ones(1 << 20, np.uint8))
    assert none < 1 << 14


@pytest.mark.parametrize("precision, dtype", [("ieee", "f4"), ("fp64", "f8")])
def test_ceilings_are_work_by_the_fastest_of_several_calls(precision, dtype, monkeypatch):
    device, seconds, multiplied, matmul = Cpu(), cycle([0.5, 0.25, 1.0]), [], np.matmul
    monkeypatch.setattr(cpu, "COPIED_BYTES", 1000)
    monkeypatch.setattr(cpu, "GEMM_SIZE", 10)
    monkeypatch.setattr(cpu, "_seconds", lambda call: (call(), next(seconds))[1])
    monkeypatch.setattr(np, "matmul", lambda a, b, out: multiplied.append(a.dtype) or matmul(a, b, out=out))
    assert device.copy_gbps() == pytest.approx(2 * 1000 / 0.25 / 1e9)
    assert device.gemm_tflops(precision) == pytest.approx(2 * 10**3 / 0.25 / 1e12)
    assert set(multiplied) == {np.dtype(dtype)}


# Shapes


def test_shapes_come_from_a_csv_with_defaults(shapes_file):
    assert shapes.read(shapes_file) == [CONV, ConvShape("other", 1, 2, 5, 5, 2, 1, 1)]


def test_shapes_come_from_an_npz_by_their_length(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, tiny=[2, 4, 6, 6, 8, 3, 3, 1, 1], pool=np.int8([2, 4, 6, 6, 2, 2]))
    assert shapes.read(path) == [CONV, POOL]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,n,c_in,h,w,c_out,kh\na,1,1,4,4,1,3\n", "line 2: kw is missing"),
        (CSV.replace("8,3", "8,x"), "line 2: kh must be an integer, not 'x'"),
        (CSV.replace("8,3", "8,0"), "line 2: kh must be at least 1, not 0"),
        (CSV.replace("8,3", "8,30"), "line 2: a kernel of (30, 3) is larger than the padded image"),
        (CSV.replace("padding", "groups").replace("3,1\n", "3,3\n"), "line 2: groups=3 must divide c_in=4"),
        (CSV.replace("padding", "pad"), "line 2: there is no 'pad'"),
        (CSV + "short,1\n", "line 4: has more or fewer fields"),
        ("name,n,c,h,w,kernel,stride,padding\na,1,1,4,4,2,2,2\n", "padding=2 must be less than kernel=2"),
        ("name,n\n", "holds no shapes"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(tmp_path, text, says):
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        shapes.read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x04 a pickle"])
def test_what_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "wrong.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.npz: is no \.npz of integers \(((?!pickle).)*\)$"):
        shapes.read(path)


def test_a_damaged_npz_is_refused_wherever_it_is_damaged(tmp_path):
    path = tmp_path / "wrong.npz"
    np.savez_compressed(path, layer=np.arange(5, 13))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        with contextlib.suppress(ValueError):
            shapes.read(path)


def test_an_array_without_a_name_is_no_npz(tmp_path):
    with open(tmp_path / "wrong.npz", "wb") as file:
        np.save(file, np.ones(8, int))
    with pytest.raises(ValueError, match=r"wrong\.npz: is no \.npz of integers"):
        shapes.read(tmp_path / "wrong.npz")


def test_an_npz_of_floats_is_refused(tmp_path):
    np.savez(tmp_path / "wrong.npz", layer=np.ones(8))
    with pytest.raises(ValueError, match="layer: must hold 5 to 11 integers"):
        shapes.read(tmp_path / "wrong.npz")


# Records


@pytest.mark.oracle
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["ieee", "fp64"])
@pytest.mark.parametrize("op", [*shapes.CONV_PASSES, *shapes.POOL_PASSES])
def test_a_record_compares_with_pytorch(op, precision, channels_last):
    torch = pytest.importorskip("torch")
    dtype = {"ieee": "float32", "fp64": "float64"}[precision]
    wanted = row(op, CONV if op.startswith("conv") else POOL, dtype, precision, channels_last)
    found = bench.record(wanted, Quick(), torch, RATES, 0.0)
    assert "error" not in found and "torch_left_out" not in found
    assert found["us"] == found["torch_us"] == 100
    assert found["difference"] < bench.TOLERANCE[precision] / 100
    assert found["others"] == 0.01 and found["allocated_bytes"] >= found["workspace_bytes"] >= 0


def test_a_record_fits_into_json_and_says_what_was_allocated():
    found = bench.record(row(), Quick(), None, RATES, 0.0)
    assert json.loads(json.dumps(found)) == found
    y = 4 * 2 * 8 * 6 * 6
    assert found["allocated_bytes"] == pytest.approx(found["workspace_bytes"] + y, abs=1e3)
    assert found["floor_us"] == pytest.approx(CONV.least_bytes("conv2d", "float32") / 10e3, rel=1e-3)
    assert found["torch_us"] is None and "torch_us" in found


# Tables and charts


def records(ratio=2.0, **changed):
    kept = {"dtype": "float32", "layout": "channels_first", "algorithm": "gemm", "spread": 0.01, **changed}
    base = {"op": "conv2d", "kind": "dense", "pass": "forward", "precision": "ieee", "cpu_us": 5.0, **kept}
    figures = {"chosen": True, "floor_us": 10.0, "gbps": 1.0, "tflops": 0.5, "workspace_bytes": 1000}
    return [{**base, **figures, "name": f"s{i}", "us": 50.0, "torch_us": 50.0 * ratio} for i in range(6)]


def test_columns_are_aligned_and_figures_to_the_right():
    lines = tables.columns(("name", "us"), [("a", "5.0"), ("long name", "10.0"), ("b", "")])
    assert lines == ["name         us", "a           5.0", "long name  10.0", "b"]


def test_a_chart_is_a_png_with_and_without_pytorch():
    pytest.importorskip("matplotlib")
    for given in (
        records(),
        [{**r, "torch_us": None} for r in records()],
        records() + records(precision="fp64"),
    ):
        assert charts.speed(given, "title").startswith(b"\x89PNG")


def test_a_chart_of_one_row_has_a_scale(monkeypatch):
    figures, png = [], charts.png
    monkeypatch.setattr(charts, "png", lambda figure: figures.append(figure) or png(figure))
    charts.speed(records(ratio=0.8)[:1], "title")
    (axes,) = figures[0].axes
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 3


# Comparisons


def slower(rows, by, torch_by=1.0):
    return [{**r, "us": r["us"] * by, "torch_us": r["torch_us"] * torch_by} for r in rows]


def test_the_machines_own_drift_is_taken_out():
    found = compare.compare(records(), slower(records(), 1.5, 1.5))
    assert found.drift == pytest.approx(1.5)
    assert [move.ratio for move in found.moves] == pytest.approx([1.0] * 6)
    assert not found.slower(1.01)


def test_what_got_slower_beyond_the_noise_is_found_and_noise_is_not():
    new = slower(records(), 1.02)
    new[3] = {**new[3], "us": 80.0}
    found = compare.compare(records(), new)
    assert [move.row["name"] for move in found.slower(1.25)] == ["s3"]
    assert not found.slower(2.0)
    noisy = [{**r, "spread": 0.3} for r in new]
    assert not compare.compare(records(), noisy).slower(1.25)
    assert any("1.60" in line and "s3" in line for line in found.lines(1.25))


def test_few_rows_of_pytorch_say_nothing_of_the_machine():
    found = compare.compare(records()[:3], slower(records()[:3], 1.5, 1.5))
    assert found.drift == 1 and len(found.slower(1.25)) == 3


def test_runs_without_a_common_row_are_not_compared():
    with pytest.raises(ValueError, match="no row in common"):
        compare.compare(records(), records(layout="channels_last"))


# The command


def run(*arguments):
    return cli.main(["bench", "--device", "cpu", *map(str, arguments)])


def test_bench_prints_and_writes_everything(quick, shapes_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--shapes", shapes_file, "--out", out) == 0
    shown = capsys.readouterr().out
    assert "ceilings: copy 10.0 GB/s" in shown and "depthwise" not in shown
    data = json.loads((out / "bench-cpu.json").read_text())
    assert data["gpu"] is None and data["cpu"] and len(data["source_sha256"]) == 64
    assert len(data["rows"]) == 2 * 2 * 2 * 3  # shapes, layouts, precisions, passes
    assert {r["precision"] for r in data["rows"]} == {"ieee", "fp64"}
    assert all(r["us"] == 100 for r in data["rows"])
    text = (out / "bench-cpu.md").read_text()
    assert "| conv2d_weight_grad | tiny | float64 fp64 | channels_last | 100.0 |" in text
    assert {path.name for path in out.iterdir()} >= {"bench-cpu.json", "bench-cpu.md"}


def test_bench_takes_only_what_is_asked_for(quick, shapes_file, tmp_path):
    chosen = ("--only", "^tiny$", "--pass", "forward,weight_grad", "--layout", "last", "--precision", "fp64")
    run("--shapes", shapes_file, *chosen, "--n", "1", "--out", tmp_path)
    rows = json.loads((tmp_path / "bench-cpu.json").read_text())["rows"]
    assert [(r["op"], r["name"], r["dtype"], r["layout"]) for r in rows] == [
        (op, "tiny", "float64", "channels_last") for op in ("conv2d", "conv2d_weight_grad")
    ]


def test_bench_cuts_the_batches_of_the_shared_shapes_on_a_cpu(monkeypatch):
    options = cli_options("--only", "rn50_c2_3x3")
    assert {row.shape.n for row in command._rows(options, Quick())} == {command.IMAGES_ON_CPU}
    assert {r.shape.n for r in command._rows(cli_options("--only", "rn50_c2_3x3", "--n", "3"), Quick())} == {
        3
    }
    names = {(r.op, r.channels_last) for r in command._rows(cli_options("--precision", "ieee"), Quick())}
    assert {op for op, _ in names} == {*shapes.CONV_PASSES, *shapes.POOL_PASSES, *shapes.ON_ONE_SHAPE}


def cli_options(*arguments):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *arguments])


def test_bench_compares_and_fails_where_it_got_slower(quick, shapes_file, tmp_path, capsys, monkeypatch):
    run("--shapes", shapes_file, "--out", tmp_path)
    old = tmp_path / "old.json"
    (tmp_path / "bench-cpu.json").rename(old)
    assert run("--shapes", shapes_file, "--compare", old) == 0
    monkeypatch.setattr(Quick, "us", 150.0)
    capsys.readouterr()
    assert run("--shapes", shapes_file, "--compare", old) == 1
    assert "24 of them take more than 1.25 times as long" in capsys.readouterr().out
    assert run("--shapes", shapes_file, "--compare", old, "--threshold", "2") == 0


def test_bench_refuses_to_compare_machines(quick, shapes_file, tmp_path, capsys):
    run("--shapes", shapes_file, "--out", tmp_path)
    path = tmp_path / "bench-cpu.json"
    path.write_text(path.read_text().replace('"gpu": null', '"gpu": "NVIDIA H200"'))
    assert run("--shapes", shapes_file, "--compare", path) == 2
    assert "its gpu is NVIDIA H200, but here is None" in capsys.readouterr().err


def test_a_wrong_answer_fails_the_run(quick, shapes_file, monkeypatch, capsys):
    monkeypatch.setattr(gpuconv, "conv2d", lambda *a, **k: 1 / 0)
    assert run("--shapes", shapes_file) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_ctrl_c_leaves_what_was_measured(quick, shapes_file, tmp_path, monkeypatch, capsys):
    right, seen = bench.record, []

    def interrupted(*arguments):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return right(*arguments)

    monkeypatch.setattr(bench, "record", interrupted)
    assert run("--shapes", shapes_file, "--out", tmp_path) == 130
    data = json.loads((tmp_path / "bench-cpu.json").read_text())
    assert len(data["rows"]) == 3 and data["left"] == 21
    assert "interrupted: 21 rows are left" in capsys.readouterr().out


def test_a_budget_ends_the_run(quick, shapes_file, capsys):
    assert run("--shapes", shapes_file, "--budget", "1e-9") == 0
    assert "out of time: 24 rows are left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "("), "is no regular expression"),
        (("--only", "no such shape"), "no row is left"),
        (("--pass", "sideways"), "'sideways' is none of forward, input_grad, weight_grad, backward"),
        (("--precision", "tf32"), "a CPU has no TF32"),
        (("--shapes", "nowhere.csv"), "nowhere.csv: No such file"),
        (("--compare", "nowhere.json"), "nowhere.json: No such file"),
        (("--n", "0"), "an integer of at least 1"),
        (("--seconds", "nan"), "a number above 0"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(quick, capsys, arguments, says):
    try:
        status = run(*arguments)
    except SystemExit as error:
        status = error.code
    shown = capsys.readouterr()
    assert status == 2 and says in shown.err and shown.err.count("\n") == 1


def test_what_is_no_benchmark_is_not_compared_with(quick, tmp_path, capsys):
    for content in ("", "[]", '{"rows": [{"op": 1}]}', '{"rows": 5}'):
        path = tmp_path / "old.json"
        path.write_text(content)
        assert run("--compare", path) == 2
        assert "holds no results of a benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        {"us": -1.0},
        {"us": float("nan")},
        {"us": True},
        {"us": "1"},
        {"spread": None},
        {"spread": float("inf")},
        {"torch_us": "1"},
        {"torch_us": -1.0},
        {"name": ["a"]},
    ],
)
def test_figures_that_nothing_can_take_are_not_compared_with(tmp_path, damage):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"rows": [*records(), {**records()[0], **damage}]}))
    with pytest.raises(
        ValueError, match=rf"old\.json: holds no results of a benchmark .*{next(iter(damage))}"
    ):
        compare.read(path)


def test_nesting_that_no_reader_takes_is_no_benchmark(tmp_path):
    path = tmp_path / "old.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="holds no results of a benchmark"):
        compare.read(path)


def test_runs_without_a_common_row_are_refused_before_anything_is_timed(
    quick, shapes_file, tmp_path, monkeypatch, capsys
):
    run("--shapes", shapes_file, "--layout", "first", "--out", tmp_path)
    monkeypatch.setattr(bench, "record", lambda *arguments: pytest.fail("a row was timed"))
    old = tmp_path / "bench-cpu.json"
    assert run("--shapes", shapes_file, "--layout", "last", "--compare", old) == 2
    assert "no row in common" in capsys.readouterr().err


def test_output_that_has_no_plus_minus_gets_an_escape(quick, shapes_file, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    assert run("--shapes", shapes_file) == 0
    shown.flush()
    assert rb"us \xb1" in shown.buffer.getvalue()


def test_without_a_gpu_cuda_is_refused_in_one_line(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("gpuconv bench: --device cuda: CUDA needs CuPy")
