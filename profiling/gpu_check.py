"""Check and measure gpuconv on this machine's GPU: is it right, is it clean, how fast is it beside PyTorch.

    python profiling/gpu_check.py                        # what fits into 420 seconds, most valuable first
    python profiling/gpu_check.py                        # again: goes on, for the same sources
    python profiling/gpu_check.py --only timings --budget 550
    python profiling/gpu_check.py --list                 # parts and rows; needs no GPU

Runs from a bare checkout with CuPy and NumPy; the suite needs pytest and hypothesis besides, the sanitizers
compute-sanitizer, and the comparison PyTorch. Writes `<gpu>.json` after each row, `<gpu>.md` after each part,
and a log of what failed. Exit status: 0 where all that ran is right, 1 where not, 2 without a GPU.

Each part is a process of its own: a kernel that hangs or breaks the GPU's context costs its part and no more.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The checkout whose hash the results bear, not an installed one.
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gpu import (  # noqa: E402
    ceilings,
    children,
    determinism,
    distributed,
    environment,
    graphs,
    report,
    sanitizers,
    suite,
    timings,
    workspace,
)
from gpu.children import Deadline  # noqa: E402
from gpu.results import PARTS, Results, faults  # noqa: E402

from gpuconv.measure import gpu as device  # noqa: E402
from gpuconv.measure.records import commit, source_sha256  # noqa: E402
from gpuconv.measure.shapes import rows  # noqa: E402

# A part's share of what is left for it and those after it; what it doesn't use is theirs.
WEIGHTS = {
    "environment": 10,
    "suite": 24,
    "sanitizers": 22,
    "determinism": 8,
    "workspace": 6,
    "graphs": 4,
    "distributed": 3,
    "ceilings": 5,
    "timings": 25,
}

# These start processes of their own, the others compute in this one.
OUTSIDE: dict[str, Callable[[Results, Deadline], str]] = {"suite": suite.run, "sanitizers": sanitizers.run}
INSIDE = {
    "environment": environment.run,
    "determinism": determinism.run,
    "workspace": workspace.run,
    "graphs": graphs.run,
    "distributed": distributed.run,
    "ceilings": ceilings.run,
    "timings": timings.run,
}

# A part ends by itself when its time is over; so much later it is stopped.
GRACE = 10.0

UNFINISHED = "failed: it ended without a word"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print(listing(options.budget))
        return 0
    if why := device.missing():
        print(why, file=sys.stderr)
        return 2
    results = Results(options.out.resolve(), device.name(), source_sha256())
    if options.within:
        return work(options.only, results, options.budget)
    parts = [options.only] if options.only else list(PARTS)
    if options.fresh:
        results.forget(parts)
    results.data["commit"] = options.commit or commit()
    supervise(parts, results, options.budget)
    wrong = faults(results.data)
    print("\n" + report.summary(results))
    print(f"\n{results.path}: {f'faults: {len(wrong)}' if wrong else 'nothing wrong in what ran'}")
    return 1 if wrong else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--budget", type=float, default=420.0, metavar="SECONDS", help="for all (default 420)"
    )
    parser.add_argument("--only", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="where results go")
    parser.add_argument(
        "--commit", metavar="HASH", help="what the results are of, where there is no .git to tell"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what is complete for these sources"
    )
    parser.add_argument("--list", action="store_true", help="show the parts and the rows, and run nothing")
    parser.add_argument(
        "--within", action="store_true", help=argparse.SUPPRESS
    )  # how a part's process is called
    options = parser.parse_args(arguments)
    if options.budget <= 2 * GRACE and not options.within:
        parser.error(f"--budget must be more than {2 * GRACE:.0f} seconds, not {options.budget:g}")
    return options


def listing(budget: float) -> str:
    """Return the parts with the time that each may take at most, and the rows in order."""
    left, lines = budget - GRACE, []
    for i, part in enumerate(PARTS):
        lines.append(f"{part}: {(share := allowance(PARTS[i:], left)):.0f} s")
        left -= share
    return "\n".join([*lines, *(" ".join(row.key.values()) for row in rows())])


def allowance(parts: tuple[str, ...] | list[str], seconds: float) -> float:
    """Return how much of the time that is left is the first part's."""
    return seconds * WEIGHTS[parts[0]] / sum(WEIGHTS[part] for part in parts)


def supervise(parts: list[str], results: Results, budget: float) -> None:
    """Run the parts that aren't complete, each in a process that is stopped when its time is over."""
    deadline = Deadline(budget - GRACE)
    pending = [part for part in parts if results.state(part) != "complete"]
    for i, part in enumerate(pending):
        seconds = allowance(pending[i:], deadline.left)
        print(f"\n== {part}, at most {seconds:.0f} s", flush=True)
        results.note(part, UNFINISHED)
        options = ["--only", part, "--within", "--out", str(results.folder), "--budget", str(seconds)]
        status = children.run([sys.executable, str(HERE / "gpu_check.py"), *options], seconds + GRACE)
        results.reload()
        if status is None:
            results.note(part, f"failed: still at work {GRACE:.0f} s after its time")
        elif results.state(part) == UNFINISHED:
            results.note(part, f"{UNFINISHED}, with status {status}")
        print(f"{part}: {results.state(part)}", flush=True)
        report.write_markdown(results)


def work(part: str, results: Results, seconds: float) -> int:
    """Be the process of one part."""
    deadline = Deadline(seconds)
    try:
        if part in OUTSIDE:
            state = OUTSIDE[part](results, deadline)
        else:
            state = INSIDE[part](results, deadline, device.Gpu())
    except Exception as error:
        results.note(part, f"failed: {type(error).__name__}: {error}"[:400])
        raise
    results.note(part, state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
