"""Time gpuconv's NumPy path beside PyTorch on the CPU, forward and backward, over the shared shape lists.

    python profiling/cpu_bench.py                          # all shapes, under five minutes on two cores
    python profiling/cpu_bench.py --only 'rn50_c2' --pass backward
    python profiling/cpu_bench.py --out profiling/results  # keep the figures: cpu.json and cpu.md

Both libraries get the same float32 arrays (PyTorch sees NumPy's memory, nothing is copied) and the same
number of threads, and take turns within one run. Autograd is off: a backward row calls the gradient
operators alone. Every answer is compared with PyTorch's before it is timed. `ratio` is PyTorch's time over
ours: more is better.
"""

import argparse
import csv
import ctypes
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the checkout whose commit the results name, not another installed one

from timing import DISTURBED, measure_in_quiet  # noqa: E402

import gpuconv  # noqa: E402

Array = np.ndarray[Any, Any]
Results = tuple[Any, ...]
aten = torch.ops.aten

# Geometric mean of PyTorch's time over ours, by class and pass; raised as the backend gets faster.
GOALS = {
    ("dense", "forward"): 0.6,
    ("dense", "backward"): 0.5,
    ("grouped or depthwise", "forward"): 0.15,
    ("grouped or depthwise", "backward"): 0.15,
    ("pooling", "forward"): 0.5,
    ("pooling", "backward"): 0.5,
}
MEMORY_GOAL_MB = 64
CLASSES = {
    "dense": ("dense",),
    "grouped or depthwise": ("grouped", "depthwise"),
    "grouped": ("grouped",),
    "depthwise": ("depthwise",),
    "pooling": ("max pool", "avg pool"),
    "max pool": ("max pool",),
    "avg pool": ("avg pool",),
}
PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Row:
    """One operation on one shape: two calls that must give the same arrays."""

    name: str
    kind: str
    group: str
    direction: str
    work: float
    unit: str  # what work / 1e9 a second is called
    ours: Callable[[], Results]
    theirs: Callable[[], Results]


def rows(only: re.Pattern[str], most_images: int) -> Iterator[Row]:
    """Read the shape lists; make the arrays of a shape when its turn comes."""
    for shape in _shapes("conv_shapes.csv", only, most_images):
        yield from conv_rows(**shape)
    for shape in _shapes("pool_shapes.csv", only, most_images):
        yield from pool_rows(**shape)


def _shapes(file: str, only: re.Pattern[str], most_images: int) -> Iterator[dict[str, Any]]:
    with open(HERE / file, newline="") as lines:
        for line in csv.DictReader(lines):
            shape = {key: int(value) if value.isdigit() else value for key, value in line.items()}
            if only.search(line["name"]):
                yield {**shape, "n": min(most_images, shape["n"])}


def conv_rows(
    name: str, group: str, n: int, c_in: int, h: int, w: int, c_out: int, kh: int, kw: int,
    stride: int, padding: int, dilation: int, groups: int,
) -> Iterator[Row]:  # fmt: skip
    """Give y with bias, then dx, dw and db in one call."""
    images, weights, bias = _random(n, c_in, h, w), _random(c_out, c_in // groups, kh, kw), _random(c_out)
    window: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    theirs = ([stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups)
    tx, tw, tb = _tensors(images, weights, bias)
    y_shape = tuple(aten.convolution(tx, tw, tb, *theirs).shape)
    kind = "dense" if groups == 1 else "depthwise" if groups == c_in else "grouped"
    flops = 2.0 * math.prod(y_shape) * (c_in // groups) * kh * kw
    yield Row(
        name, kind, group, "forward", flops, "GFLOP/s",
        lambda: (gpuconv.conv2d(images, weights, bias, **window),),
        lambda: _arrays(aten.convolution(tx, tw, tb, *theirs)),
    )  # fmt: skip
    dy = _random(*y_shape)
    (tdy,) = _tensors(dy)
    yield Row(
        name, kind, group, "backward", 2 * flops, "GFLOP/s",
        lambda: gpuconv.conv2d_backward(dy, images, weights, **window),
        lambda: _arrays(*aten.convolution_backward(tdy, tx, tw, [c_out], *theirs, [True] * 3)),
    )  # fmt: skip


def pool_rows(
    name: str, n: int, c: int, h: int, w: int, kernel: int, stride: int, padding: int
) -> Iterator[Row]:
    """Give maximum with argmax, then average, both passes; their work is the bytes of x and y, once each."""
    x = _random(n, c, h, w)
    (tx,) = _tensors(x)
    place: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding}
    sizes = ([kernel] * 2, [stride] * 2, [padding] * 2)
    ty, tindices = aten.max_pool2d_with_indices(tx, *sizes)
    traffic = 4.0 * (x.size + ty.numel())
    dy = _random(*ty.shape)
    (tdy,) = _tensors(dy)
    _, argmax = gpuconv.max_pool2d(x, **place)
    if not np.array_equal(gpuconv.argmax_to_indices(argmax, x.shape, **place), tindices.numpy()):
        raise SystemExit(f"{name}: the maxima are not at the places where PyTorch finds them")
    yield Row(
        name, "max pool", "pooling", "forward", traffic, "GB/s",
        lambda: gpuconv.max_pool2d(x, **place)[:1],
        lambda: _arrays(aten.max_pool2d_with_indices(tx, *sizes)[0]),
    )  # fmt: skip
    yield Row(
        name, "max pool", "pooling", "backward", traffic, "GB/s",
        lambda: (gpuconv.max_pool2d_backward(dy, argmax, x.shape, **place),),
        lambda: _arrays(aten.max_pool2d_with_indices_backward(tdy, tx, *sizes, [1, 1], False, tindices)),
    )  # fmt: skip
    yield Row(
        name, "avg pool", "pooling", "forward", traffic, "GB/s",
        lambda: (gpuconv.avg_pool2d(x, **place),),
        lambda: _arrays(aten.avg_pool2d(tx, *sizes)),
    )  # fmt: skip
    yield Row(
        name, "avg pool", "pooling", "backward", traffic, "GB/s",
        lambda: (gpuconv.avg_pool2d_backward(dy, x.shape, **place),),
        lambda: _arrays(aten.avg_pool2d_backward(tdy, tx, *sizes, False, True, None)),
    )  # fmt: skip


_generator = np.random.default_rng(0)


def _random(*shape: int) -> Array:
    values = _generator.random(shape, np.float32)
    values -= 0.5
    return values


def _tensors(*arrays: Array) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


def _arrays(*tensors: torch.Tensor) -> Results:
    return tuple(tensor.numpy() for tensor in tensors)


def largest_error(ours: Results, theirs: Results) -> float:
    """Largest difference between two answers, over the largest value of each array."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape or mine.dtype != other.dtype:
            return math.inf
        difference = np.subtract(mine, other)
        error = float(np.abs(difference, out=difference).max() / max(other.max(), -other.min()))
        worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst


# float32 sums of 400,000 products (vgg1_2's dw) in two orders differ by some 1e-6 of the largest.
TOLERANCE = 1e-4


def run(row: Row, seconds: float, turns: int, patience: float) -> dict[str, Any]:
    """Compare one row's answers; time both while nobody else is at work; return the row's record."""
    error = largest_error(row.ours(), row.theirs())
    if error > TOLERANCE:
        raise SystemExit(
            f"{row.name} {row.direction}: differs from PyTorch by {error:.1e} of the largest value"
        )
    ours, theirs, others = measure_in_quiet(row.ours, row.theirs, seconds, turns, patience)
    return {
        "name": row.name, "class": row.kind, "group": row.group, "pass": row.direction,
        "ours": asdict(ours), "torch": asdict(theirs), "ratio": theirs.median / ours.median,
        "ours_rate": row.work / ours.median / 1e9, "torch_rate": row.work / theirs.median / 1e9,
        "unit": row.unit, "error": error, "others": others,
    }  # fmt: skip


ROW_TITLES = (
    "name",
    "class",
    "pass",
    "ours ms",
    "torch ms",
    "ratio",
    "ours",
    "torch",
    "rate",
    "turns",
    "others",
)
ROW_WIDTHS = (18, 10, 9, 16, 16, 6, 7, 7, 8, 6, 7)


def row_cells(record: dict[str, Any]) -> tuple[str, ...]:
    """Return one record's cells; ± is half of the interquartile range over the median."""
    return (
        record["name"], record["class"], record["pass"],
        _milliseconds(record["ours"]), _milliseconds(record["torch"]), f"{record['ratio']:.2f}",
        f"{record['ours_rate']:.1f}", f"{record['torch_rate']:.1f}", record["unit"],
        str(record["ours"]["turns"]), f"{record['others']:.0%}",
    )  # fmt: skip


def _milliseconds(timing: dict[str, Any]) -> str:
    spread = (timing["third_quartile"] - timing["first_quartile"]) / (2 * timing["median"])
    return f"{timing['median'] * 1e3:.3f} ±{spread:.0%}"


MEAN_TITLES = ("class", "pass", "shapes", "ratio", "goal")
MEAN_WIDTHS = (21, 9, 7, 6, 6)


def mean_cells(mean: dict[str, Any]) -> tuple[str, ...]:
    """Return one class's cells."""
    goal = "" if mean["goal"] is None else str(mean["goal"])
    return (mean["class"], mean["pass"], str(mean["shapes"]), f"{mean['ratio']:.2f}", goal)


def _line(cells: tuple[str, ...], widths: tuple[int, ...]) -> str:
    return " ".join(
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means of the ratio by class and pass, with the goal where there is one."""
    means = []
    for name, kinds in CLASSES.items():
        for direction in PASSES:
            ratios = [r["ratio"] for r in records if r["class"] in kinds and r["pass"] == direction]
            if ratios:
                means.append({
                    "class": name, "pass": direction, "shapes": len(ratios),
                    "ratio": statistics.geometric_mean(ratios), "goal": GOALS.get((name, direction)),
                })  # fmt: skip
    return means


def environment(threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Gather what a reader must know to compare these figures with others."""
    commit = _git("rev-parse", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--", "../gpuconv")
    return {
        "commit": commit + (" with changes" if changed else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "gpu": None,
        "threads": threads,
        "memory_of_results": "fresh for each call" if options.fresh_memory else "kept by malloc",
        "shapes": options.only.pattern or "all",
        "most_images": options.n,
        "seconds_a_row": options.seconds,
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "blas": [
            f"{b['internal_api']} {b['version']} {b.get('architecture', '')}".strip()
            for b in threadpool_info()
            if b["user_api"] == "blas"
        ],
    }


def _git(*command: str) -> str:
    git = ["git", "-C", str(HERE), *command]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor()


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write cpu.json, everything, and cpu.md, the same for reading."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = ["# gpuconv beside PyTorch on the CPU", ""]
    lines += ["Written by `profiling/cpu_bench.py`. Ratio: PyTorch's time over ours, so more is better.", ""]
    facts = {key: value for key, value in results.items() if key not in ("means", "rows", "memory")}
    lines += [f"* {key}: {', '.join(v) if isinstance(v, list) else v}" for key, v in facts.items()]
    lines += [
        f"* a forward pass on vgg3_2, {m['images']} images, takes {m['resident_mb']} MB beside x, w and y "
        f"(NumPy asked for {m['traced_mb']} MB)"
        for m in results["memory"]
    ]
    lines += ["", "Geometric means", "", *_markdown(MEAN_TITLES, map(mean_cells, results["means"]))]
    lines += ["", *_markdown(ROW_TITLES, map(row_cells, results["rows"]))]
    (folder / "cpu.md").write_text("\n".join(lines) + "\n")


def _markdown(titles: tuple[str, ...], table: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (titles, ("---",) * len(titles), *table)]


def keep_memory() -> None:
    """Have malloc keep what is freed, so that a timed call finds its results' pages in place.

    By default large results go back to the system after every call and fault in again in the next, 4 KiB at a
    time for PyTorch but 2 MiB for NumPy, which asks for huge pages. On the two cores of a virtual machine
    this tripled PyTorch's time on the 1x1 layers: the page tables' time, and no convolution's.
    """
    c = ctypes.CDLL(None)
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    if not (c.mallopt(mmap_max, 0) and c.mallopt(trim_threshold, -1)):
        raise SystemExit("this C library has no such mallopt; --fresh-memory does without")


def forward_memory(images: int) -> dict[str, Any]:
    """Measure, in a fresh process, a forward pass's peak memory beside x, w and y."""
    command = [sys.executable, str(HERE / "forward_memory.py"), str(images)]
    figures: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="shapes by name"
    )
    parser.add_argument("--pass", dest="direction", choices=(*PASSES, "all"), default="all")
    parser.add_argument("--n", type=int, default=8, help="at most so many images a batch (default 8)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="budget a row (default 1), three turns at least"
    )
    parser.add_argument("--repeats", type=int, default=25, help="at most so many turns a row (default 25)")
    parser.add_argument(
        "--wait", type=float, default=5.0, help="seconds a row may wait for idle cores (default 5)"
    )
    parser.add_argument(
        "--fresh-memory", action="store_true", help="let malloc return big results to the system"
    )
    parser.add_argument("--memory", action="store_true", help="measure a forward pass's memory first")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write cpu.json and cpu.md there")
    options = parser.parse_args()

    if not options.fresh_memory:
        keep_memory()
    threads = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # gpuconv heeds it at every call
    torch.set_num_threads(threads)
    facts = environment(threads, options)
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    memory = [forward_memory(images) for images in (8, 16)] if options.memory else []
    for figures in memory:
        print("forward pass on vgg3_2, beside x, w and y:", figures, f"(goal: under {MEMORY_GOAL_MB} MB)")

    print("\n" + _line(ROW_TITLES, ROW_WIDTHS))
    records = []
    with torch.no_grad():
        for row in rows(options.only, options.n):
            if options.direction in (row.direction, "all"):
                records.append(run(row, options.seconds, options.repeats, options.wait))
                print(_line(row_cells(records[-1]), ROW_WIDTHS), flush=True)
    means = summarise(records)
    print("\nGeometric means\n" + _line(MEAN_TITLES, MEAN_WIDTHS))
    for mean in means:
        print(_line(mean_cells(mean), MEAN_WIDTHS))
    disturbed = sum(record["others"] > DISTURBED for record in records)
    if disturbed:
        print(f"\n{disturbed} of {len(records)} rows were disturbed by other programs: don't trust them")
    if options.out:
        write(options.out, {**facts, "memory": memory, "means": means, "rows": records})


if __name__ == "__main__":
    main()
