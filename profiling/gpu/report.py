"""The results for reading: the tables that are printed and written beside the JSON."""

from typing import Any

from gpuconv.files import write_whole
from gpuconv.measure.tables import MEAN_TITLES, ROW_TITLES, columns, markdown, means, row_cells

from .results import PARTS, Results, faults


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
    lines += planner(data.get("rows", []))
    lines += [f"**wrong**: {fault}" for fault in faults(data)]
    return lines


def planner(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line that says where another algorithm was faster than the one that the planner chose."""
    timed = [row for row in rows if row["us"]]
    chosen = {_call(row): row["us"] for row in timed if row["chosen"]}
    others = [row for row in timed if not row["chosen"] and _call(row) in chosen]
    faster = [
        f"{' '.join(_call(row))} {chosen[_call(row)] / row['us']:.2f}"
        for row in others
        if row["us"] < chosen[_call(row)]
    ]
    told = "".join(f"; {row}" for row in faster)
    return (
        [f"planner: another algorithm is faster in {len(faster)} of {len(others)} rows{told}"]
        if others
        else []
    )


def _call(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[key] for key in ("op", "name", "dtype", "precision", "layout"))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


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
            *markdown(MEAN_TITLES, means(results.rows)),
            "",
            *markdown(ROW_TITLES, map(row_cells, results.rows)),
        ]
    write_whole(results.path.with_suffix(".md"), ("\n".join(lines) + "\n").encode())


def summary(results: Results) -> str:
    """Return what is printed last: facts and means; the rows were printed when they came."""
    shown = columns(MEAN_TITLES, means(results.rows)) if results.rows else []
    return "\n".join([*facts(results.data), *shown])
