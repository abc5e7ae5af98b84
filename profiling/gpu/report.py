"""The results for reading: the tables that are printed and written beside the JSON."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from .results import PARTS, Results, faults, write
from .shapes import rows

KIND = {(row.op, row.shape.name): row.kind for row in rows()}

MEAN_TITLES = ("kind", "pass", "numbers", "layout", "rows", "PyTorch's time / ours", "floor / ours")
ROW_TITLES = (
    "op", "name", "numbers", "layout", "us", "± %", "CPU us", "PyTorch us", "its CPU us", "floor us", "GB/s",
    "TFLOP/s", "workspace MB",
)  # fmt: skip


def means(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return geometric means by kind of operation, pass, numbers and layout, as cells."""
    groups = defaultdict(list)
    for row in records:
        if row["us"]:
            kind = KIND[row["op"], row["name"]]
            groups[kind, row["pass"], f"{row['dtype']} {row['precision']}", row["layout"]].append(row)
    return [
        (*group, str(len(members)), _mean(members, "torch_us"), _mean(members, "floor_us"))
        for group, members in groups.items()
    ]


def _mean(members: list[dict[str, Any]], other: str) -> str:
    ratios = [row[other] / row["us"] for row in members if row[other]]
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else ""


def facts(data: dict[str, Any]) -> list[str]:
    """Return the lines above the tables."""
    tests = data.get("tests")
    lines = [f"GPU: {data['gpu']}, driver {data.get('driver')}; {_pairs(data.get('machine', {}))}"]
    lines += [f"versions: {_pairs(data.get('versions', {}))}"]
    lines += [f"commit {data.get('commit')}, sources' SHA-256 {data['source_sha256']}, {data.get('date')}"]
    lines += [f"{part}: {data.get('parts', {}).get(part, 'not run')}" for part in PARTS]
    if tests:
        lines += [f"tests: {_pairs(tests)}"]
        lines += [f"{count} skipped: {why}" for why, count in data["tests_skipped_because"].items()]
    if "sanitizer" in data:
        lines += [f"sanitizers' errors: {_pairs(data['sanitizer'])}"]
    if "determinism" in data:
        found = data["determinism"]
        lines += [
            f"determinism: {found['cases']} cases {found['runs']} times, {len(found['differing'])} differ"
        ]
    if data.get("workspace"):
        share = max(case["bytes"] / case["limit"] for case in data["workspace"])
        lines += [f"workspace: at most {share:.0%} of the limit in {len(data['workspace'])} calls"]
    if "copy_gbps" in data:
        lines += [f"ceilings: copy {data['copy_gbps']} GB/s; GEMM in TFLOP/s: {_pairs(data['gemm_tflops'])}"]
    lines += [f"**wrong**: {fault}" for fault in faults(data)]
    return lines


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def row_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return one row's cells."""
    numbers = f"{row['dtype']} {row['precision']}"
    if row["us"] is None:
        return (
            row["op"],
            row["name"],
            numbers,
            row["layout"],
            row.get("error") or row["left_out"],
            *[""] * 8,
        )
    workspace = f"{row['workspace_bytes'] / 1e6:.1f}"
    figures = (
        row["cpu_us"],
        row["torch_us"],
        row.get("torch_cpu_us"),
        row["floor_us"],
        row["gbps"],
        row["tflops"],
    )
    spread = f"{100 * row['spread']:.0f}"
    timed = (_figure(row["us"]), spread, *map(_figure, figures))
    return (row["op"], row["name"], numbers, row["layout"], *timed, workspace)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def write_markdown(results: Results) -> None:
    """Write `<gpu>.md`."""
    data = results.data
    lines = [f"# gpuconv on {data['gpu']}", "", "Written by `profiling/gpu_check.py`.", ""]
    lines += [f"* {fact}" for fact in facts(data)]
    if results.rows:
        lines += [
            "",
            "Geometric means: PyTorch's time over ours, and the least possible over ours; more is better.",
            "",
        ]
        lines += [
            *_table(MEAN_TITLES, means(results.rows)),
            "",
            *_table(ROW_TITLES, map(row_cells, results.rows)),
        ]
    write(results.path.with_suffix(".md"), "\n".join(lines) + "\n")


def _table(titles: tuple[str, ...], cells: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (titles, ("---",) * len(titles), *cells)]


def summary(results: Results) -> str:
    """Return what is printed last: facts and means; the rows were printed when they came."""
    table = [MEAN_TITLES, *means(results.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join([*facts(results.data), *(shown if results.rows else ())])
