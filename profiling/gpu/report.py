"""The results for reading: the tables that are printed and written beside the JSON."""

from typing import Any

from gpuconv.files import write_whole
from gpuconv.measure.tables import ROW_TITLES, columns, markdown, row_cells

from .algorithms import CONTEST_TITLES, MEAN_TITLES, contest_cells, goals, means, planner
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
    if "graphs" in data:
        lines += [graphs(data["graphs"])]
    if "distributed" in data:
        lines += [distributed(data["distributed"])]
    if "copy_gbps" in data:
        lines += [f"ceilings: copy {data['copy_gbps']} GB/s; GEMM in TFLOP/s: {_pairs(data['gemm_tflops'])}"]
    if data.get("rows"):
        lines += [*planner(data["rows"]), *goals(data["rows"])]
    lines += [f"**wrong**: {fault}" for fault in faults(data)]
    return lines


def graphs(found: dict[str, Any]) -> str:
    """Return the line on CUDA graphs."""
    refused = sorted({case.partition(",")[0] for case in found["refused"]})
    line = f"CUDA graphs: {found['captured']} cases replayed, {len(found['wrong'])} of them wrong"
    if "launch_us" in found:
        line += f"; a launch takes {found['launch_us']:.1f} us of the CPU, a call {found['call_us']:.1f}"
    return line + (f"; refused, for cuBLAS: some of {', '.join(refused)}" if refused else "")


def distributed(found: dict[str, Any]) -> str:
    """Return the line on NCCL."""
    if "skipped" in found:
        return f"NCCL: not run, {found['skipped']}"
    sums = ", ".join(f"{int(size) >> 20} MiB {us:.0f} us" for size, us in found.get("us", {}).items())
    weights = "other weights" if found.get("wrong") else "the same weights"
    return f"NCCL, a world of one: {weights} as without; a sum with nobody else: {sums}"


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
            "Geometric means over ours, more is better: of PyTorch's time on the GPU, of its call's time on",
            "the CPU, of the least possible, of what the planner takes. An algorithm's are of its own rows.",
            "",
            *markdown(MEAN_TITLES, means(results.rows)),
            "",
            "Calls with several algorithms: what the planner takes, what was fastest, and by how much.",
            "",
            *markdown(CONTEST_TITLES, contest_cells(results.rows)),
            "",
            *markdown(ROW_TITLES, map(row_cells, results.rows)),
        ]
    write_whole(results.path.with_suffix(".md"), ("\n".join(lines) + "\n").encode())


def summary(results: Results) -> str:
    """Return what is printed last: facts and means; the rows were printed when they came."""
    shown = columns(MEAN_TITLES, means(results.rows)) if results.rows else []
    return "\n".join([*facts(results.data), *shown])
