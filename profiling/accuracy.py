"""How far each algorithm's float32 results are from float64, by pass and by what the inputs look like.

    python profiling/accuracy.py --out profiling/results --docs docs/cpu.md

The error is the largest over the largest |y|, and the 2-norm of all over that of y; y is computed in float64,
by columns and NumPy's BLAS, from the same float32 inputs. These are drawn from a seed: two runs on a machine
give the same figures. What an algorithm doesn't compute (Winograd: all but 3x3 with stride 1) has no row.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout, not another installed one

Array = np.ndarray[Any, Any]
Record = dict[str, Any]


class Shape(NamedTuple):
    """A layer, of 2 images."""

    name: str
    c_in: int
    size: int
    c_out: int
    kernel: int
    stride: int = 1
    groups: int = 1


SHAPES = (
    Shape("64 channels 3x3", 64, 28, 64, 3),
    Shape("512 channels 3x3", 512, 14, 512, 3),
    Shape("512 channels 1x1", 512, 14, 256, 1),
    Shape("3 channels 7x7, stride 2", 3, 64, 64, 7, 2),
    Shape("depthwise 3x3", 128, 28, 128, 3, 1, 128),
    Shape("depthwise 7x7", 128, 14, 128, 7, 1, 128),
)

# What x, or for the input gradient dy, looks like; the other factor is normal.
INPUTS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "ReLU of normal": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
    "100 + normal": lambda rng, shape: 100 + rng.standard_normal(shape),
}

# What computes, the settings that make it, and the algorithm that a plan must then name.
ALGORITHMS = (
    ("gemm", "NumPy", "gemm"),
    ("direct", "C", "direct"),
    ("winograd", "NumPy", "winograd"),
    ("winograd", "C", "winograd"),
    ("auto", "NumPy", "depthwise"),
    ("auto", "C", "depthwise"),
)
PASSES = ("forward", "input gradient", "weight gradient")
IMAGES = 2


def main() -> None:
    from gpuconv.measure import devices, records

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write accuracy-cpu.json and .md there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table between its marks in FILE")
    options = parser.parse_args()
    rows = list(measured())
    table = summary(rows)
    print("\n".join(table))
    if options.out:
        device = devices.find("cpu")
        facts = device.facts() | {
            "commit": records.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows,
        }  # fmt: skip
        stem = options.out / f"accuracy-{device.stem}"
        stem.with_suffix(".json").write_text(records.text(facts))
        lines = [
            f"# Errors of float32 beside float64, on {facts['cpu']}",
            *(
                "",
                "Written by `profiling/accuracy.py`.",
                "",
                f"* commit {facts['commit']}, {facts['date']}",
                "",
            ),
            *("The largest error over the largest |y|, of all shapes:", "", *table, ""),
            *("Shape by shape:", "", *details(rows)),
        ]
        stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    if options.docs:
        options.docs.write_text(with_table(options.docs.read_text(), table))


def measured(shapes: tuple[Shape, ...] = SHAPES) -> Iterator[Record]:
    """Yield a record for each shape, input, pass and algorithm."""
    import gpuconv

    for shape in shapes:
        for inputs in INPUTS:
            for name, op, arguments in calls(shape, inputs):
                wide = {
                    k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in arguments.items()
                }
                with gpuconv.config(algorithm="gemm", compiled=False):
                    exact = getattr(gpuconv, op)(**wide)
                for asked, by, named in ALGORITHMS:
                    with gpuconv.config(algorithm=asked, compiled=by == "C"):
                        plan = gpuconv.explain(op, **arguments)
                        if plan.algorithm != named or (("C kernels" in plan.why) != (by == "C")):
                            continue
                        y = getattr(gpuconv, op)(**arguments)
                    off = np.abs(y - exact)
                    yield {
                        "algorithm": f"{named}, {by}", "pass": name, "inputs": inputs, "shape": shape.name,
                        "largest": float(f"{off.max() / np.abs(exact).max():.3g}"),
                        "norm": float(f"{np.linalg.norm(off) / np.linalg.norm(exact):.3g}"),
                    }  # fmt: skip


def calls(shape: Shape, inputs: str) -> Iterator[tuple[str, str, Record]]:
    """Yield the three passes: name, function and arguments."""
    import gpuconv

    rng = np.random.default_rng([SHAPES.index(shape), list(INPUTS).index(inputs)])
    cg = shape.c_in // shape.groups
    options = {"stride": shape.stride, "padding": shape.kernel // 2, "groups": shape.groups}
    x_shape = (IMAGES, shape.c_in, shape.size, shape.size)
    w_shape = (shape.c_out, cg, shape.kernel, shape.kernel)
    x = INPUTS[inputs](rng, x_shape).astype(np.float32)
    w = rng.standard_normal(w_shape).astype(np.float32)
    y_shape = gpuconv.conv2d(x, w, **options).shape
    dy = INPUTS[inputs](rng, y_shape).astype(np.float32)
    noise = rng.standard_normal(y_shape).astype(np.float32)
    yield "forward", "conv2d", {"x": x, "w": w, **options}
    yield "input gradient", "conv2d_input_grad", {"dy": dy, "w": w, "x_shape": x_shape, **options}
    yield (
        "weight gradient",
        "conv2d_weight_grad",
        {"dy": noise, "x": x, "kernel_size": shape.kernel, **options},
    )


def summary(rows: list[Record]) -> list[str]:
    """Return a Markdown table: the largest error of all shapes, by algorithm, pass and inputs."""
    from gpuconv.measure import tables

    worst: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        of = worst.setdefault((row["algorithm"], row["pass"]), {})
        of[row["inputs"]] = max(row["largest"], of.get(row["inputs"], 0.0))
    order = [f"{named}, {by}" for _, by, named in ALGORITHMS]
    keys = sorted(worst, key=lambda key: (order.index(key[0]), PASSES.index(key[1])))
    cells = [(*key, *(f"{worst[key][inputs]:.0e}" for inputs in INPUTS)) for key in keys]
    return tables.markdown(("algorithm", "pass", *INPUTS), cells)


def details(rows: list[Record]) -> list[str]:
    """Return a Markdown table of all rows."""
    from gpuconv.measure import tables

    titles = ("shape", "inputs", "pass", "algorithm", "largest", "2-norm")
    cells = [
        (r["shape"], r["inputs"], r["pass"], r["algorithm"], f"{r['largest']:.1e}", f"{r['norm']:.1e}")
        for r in rows
    ]
    return tables.markdown(titles, cells)


BEGIN, END = "<!-- written by profiling/accuracy.py -->", "<!-- until here -->"


def with_table(text: str, table: list[str]) -> str:
    """Return a document with the table between its marks.

    Raises
    ------
    ValueError
        Where it has none.
    """
    marked = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"the document lacks the lines {BEGIN} and {END}")
    return marked.sub(lambda _: "\n".join(["", *table, "", ""]), text, count=1)


if __name__ == "__main__":
    main()
