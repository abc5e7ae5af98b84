"""`gpuconv bench`: every operation on every shape, beside PyTorch and beside what the machine can do."""

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpuconv
from gpuconv.cli.errors import UserError
from gpuconv.cli.options import count, path, positive
from gpuconv.files import make_writable, write_whole
from gpuconv.measure import bench, charts, compare, devices, records, tables
from gpuconv.measure.cpu import DISTURBED, keep_memory
from gpuconv.measure.shapes import (
    DOUBLE,
    NUMBERS,
    Row,
    Shape,
    conv_shapes,
    pool_shapes,
    read,
    rows_of,
    rows_on_one_shape,
)

DESCRIPTION = """\
Time convolution and pooling, forward and backward, on the shapes of well-known networks or on your own,
beside PyTorch where it is installed (with the same arrays, in turns, each answer compared first) and beside
what a copy and a matrix product reach on the same device.
"""

EPILOG = """\
Exit status: 0; 1 where an answer is wrong or --compare found a row slower than --threshold; 2 for bad
input; 130 after Ctrl-C, with what was measured until then printed and written.
"""

PASSES = ("forward", "input_grad", "weight_grad", "backward")
PRECISIONS = {numbers[1]: numbers for numbers in (*NUMBERS, DOUBLE)}
ON_CPU = ("ieee", "fp64")  # NumPy multiplies float16 as float32, and there is no TF32
LAYOUTS = {"first": (False,), "last": (True,), "both": (False, True)}
IMAGES_ON_CPU = 8
SECONDS = {"cpu": 0.3, "gpu": 0.12}


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "bench",
        help="time every operation beside PyTorch and the hardware's limits",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_command)
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto (default) is a GPU if usable")
    add("--shapes", type=_file, metavar="FILE", help="a .csv or .npz of shapes in place of the built-in ones")
    add("--only", type=_pattern, default=re.compile(""), metavar="REGEX", help="shapes by name")
    add("--pass", dest="passes", type=_several(PASSES), default=PASSES, help=f"some of {','.join(PASSES)}")
    add(
        "--precision",
        type=_several(tuple(PRECISIONS)),
        help="some of ieee,fp16,tf32,fp64; default what suits",
    )
    add("--layout", choices=tuple(LAYOUTS), default="both", help="channels first, last or both (default)")
    add("--n", type=count, help=f"at most so many images a batch; default {IMAGES_ON_CPU} on a CPU")
    add("--seconds", type=positive, help="for each row, five turns at least; default 0.3, on a GPU 0.12")
    add("--budget", type=positive, metavar="SECONDS", help="begin no row after so long")
    add("--wait", type=positive, default=5.0, help="seconds a row may wait for idle cores (default 5)")
    add("--fresh-memory", action="store_true", help="let malloc return big results to the system (CPU)")
    add("--out", type=_file, metavar="DIR", help="write bench-DEVICE.json, .md and .png there")
    add("--compare", type=_file, metavar="OLD.json", help="show what moved since that run")
    add(
        "--threshold",
        type=positive,
        default=1.25,
        help="with --compare: too slow from here on (default 1.25)",
    )


def run_command(options: argparse.Namespace) -> int:
    """Run the rows; return the exit code."""
    try:
        device = devices.find(options.device)
    except RuntimeError as error:
        raise UserError(f"--device cuda: {error}") from None
    old = _old(options.compare, device)
    wanted = list(_rows(options, device))
    if not wanted:
        raise UserError(f"no row is left of --only {options.only.pattern!r} and the other options")
    if old is not None and not compare.common(old["rows"], [row.key for row in wanted]):
        raise UserError(f"--compare {options.compare}: the two runs have no row in common")
    if options.out is not None:
        make_writable(options.out)
    kept = device.gpu is not None or (not options.fresh_memory and keep_memory())
    torch = bench.peer(device)
    data = _facts(options, device, torch, kept)
    for line in _shown(data):
        print(line)
    data.update(bench.ceilings(device, tuple(dict.fromkeys(row.precision for row in wanted))))
    print(f"ceilings: copy {data['copy_gbps']} GB/s; matrix product, TFLOP/s: {data['gemm_tflops']}\n")
    interrupted = _measure(wanted, data, device, torch, options)
    found = data["rows"]
    timed = [row for row in found if row["us"]]
    for line in tables.columns(tables.MEAN_TITLES, tables.means(found)) if timed else ():
        print(line)
    disturbed = sum((row.get("others") or 0) > DISTURBED for row in found)
    if disturbed:
        print(f"{disturbed} of {len(found)} rows were disturbed by other programs: don't trust them")
    if options.out is not None and found:
        _write(options.out / f"bench-{device.stem}", data)
    wrong = [row for row in found if row.get("error")]
    slower = _compare(old, data, options) if old and timed else 0
    return 130 if interrupted else 1 if wrong or slower else 0


def _rows(options: argparse.Namespace, device: devices.Device) -> Iterator[Row]:
    """Return what is to be timed, what matters most first."""
    on_cpu = device.gpu is None
    precisions = options.precision or (ON_CPU if on_cpu else tuple(PRECISIONS))
    if on_cpu and "tf32" in precisions:
        raise UserError("--precision tf32: a CPU has no TF32")
    most = options.n or (IMAGES_ON_CPU if on_cpu else None)
    numbers = [PRECISIONS[precision] for precision in precisions]
    if options.shapes is None:
        shapes: list[Shape] = [*conv_shapes(), *pool_shapes()]
        others = list(rows_on_one_shape()) if "ieee" in precisions else []
    else:
        try:
            shapes, others = read(options.shapes), []
        except ValueError as error:
            raise UserError(str(error)) from None
    layouts = LAYOUTS[options.layout]
    for row in (*rows_of(shapes, numbers, layouts), *others):
        key = row.key
        if (
            options.only.search(row.shape.name)
            and key["pass"] in options.passes
            and row.channels_last in layouts
        ):
            yield replace(row, shape=replace(row.shape, n=min(most or row.shape.n, row.shape.n)))


def _measure(
    wanted: list[Row], data: dict[str, Any], device: devices.Device, torch: Any, options: argparse.Namespace
) -> bool:
    """Put a record of each row into the data; return whether Ctrl-C came between."""
    seconds = options.seconds or SECONDS["cpu" if device.gpu is None else "gpu"]
    end = time.monotonic() + (options.budget or float("inf"))
    try:
        for i, row in enumerate(wanted):
            if time.monotonic() > end:
                data["left"] = len(wanted) - i
                print(f"out of time: {len(wanted) - i} rows are left")
                break
            found = bench.record(row, device, torch, data, seconds, options.wait)
            data["rows"].append(found)
            print(bench.line(found), flush=True)
            device.release()
    except KeyboardInterrupt:
        data["left"] = len(wanted) - len(data["rows"])
        print(f"\ninterrupted: {data['left']} rows are left")
        return True
    print()
    return False


def _facts(options: argparse.Namespace, device: devices.Device, torch: Any, kept: bool) -> dict[str, Any]:
    facts = device.facts()
    versions = {"gpuconv": gpuconv.__version__, **facts.pop("versions")}
    if torch is not None:
        versions["torch"] = torch.__version__
    return {
        **facts,
        "versions": versions,
        "commit": records.commit(),
        "source_sha256": records.source_sha256(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "shapes": str(options.shapes.name if options.shapes else "the shared ones"),
        "memory_of_results": "kept by malloc" if kept else "fresh for each call",
        "rows": [],
    }


def _shown(data: dict[str, Any]) -> list[str]:
    """Return the facts, a line each."""
    lines = []
    for key, value in data.items():
        if key not in ("rows", "gemm_tflops", "copy_gbps", "means"):
            pairs = isinstance(value, dict)
            lines.append(f"{key}: {', '.join(f'{k} {v}' for k, v in value.items()) if pairs else value}")
    return lines


def _write(stem: Path, data: dict[str, Any]) -> None:
    found = data["rows"]
    data["means"] = [dict(zip(tables.MEAN_TITLES, cells, strict=True)) for cells in tables.means(found)]
    written = [stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.md")]
    write_whole(written[0], records.text(data).encode())
    device = data["gpu"] or data["cpu"]
    ceilings = f"copy {data['copy_gbps']} GB/s, matrix product {data['gemm_tflops']} TFLOP/s"
    lines = [f"# gpuconv on {device}", "", "Written by `gpuconv bench`.", ""]
    lines += [f"* {line}" for line in (*_shown(data), f"ceilings: {ceilings}")]
    lines += [
        "",
        "Geometric means: PyTorch's time over ours, and the least possible over ours; more is better.",
    ]
    lines += ["", *tables.markdown(tables.MEAN_TITLES, tables.means(found))]
    lines += ["", *tables.markdown(tables.ROW_TITLES, map(tables.row_cells, found))]
    write_whole(written[1], ("\n".join(lines) + "\n").encode())
    if any(row["us"] and (row["torch_us"] or row["floor_us"]) for row in found):
        try:
            chart = charts.speed(found, f"gpuconv on {device}")
        except ImportError:
            print("no chart: matplotlib isn't installed (pip install 'gpuconv[train]' brings it)")
        else:
            written.append(stem.with_name(f"{stem.name}.png"))
            write_whole(written[-1], chart)
    print(f"written: {', '.join(map(str, written))}")


def _old(path: Path | None, device: devices.Device) -> dict[str, Any] | None:
    """Read the run that is compared with; it must be of this device."""
    if path is None:
        return None
    try:
        old = compare.read(path)
    except ValueError as error:
        raise UserError(str(error)) from None
    here = device.facts()
    for kind in ("gpu", "cpu"):
        if kind in old and old[kind] != here.get(kind):
            raise UserError(f"--compare {path}: its {kind} is {old[kind]}, but here is {here.get(kind)}")
    return old


def _compare(old: dict[str, Any], data: dict[str, Any], options: argparse.Namespace) -> int:
    """Print what moved; return how many rows are too slow."""
    try:
        found = compare.compare(old["rows"], data["rows"])
    except ValueError as error:
        raise UserError(f"--compare {options.compare}: {error}") from None
    print("\n".join([f"\nbeside {options.compare} of {old.get('date')}:", *found.lines(options.threshold)]))
    return len(found.slower(options.threshold))


def _file(text: str) -> Path:
    return Path(path(text))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None


def _several(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse
