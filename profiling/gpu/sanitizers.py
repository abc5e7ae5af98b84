"""compute-sanitizer over every operation, with CuPy's memory pool off."""

import os
import re
import shutil
import sys
from pathlib import Path

from . import children
from .children import Deadline
from .every_op import END
from .results import Results

# What each tool takes beside the common options. Racecheck looks at each kernel alone, and cuBLAS's races, or
# what it takes for one there, are not ours to mend; the others must see who wrote what.
TOOLS: dict[str, tuple[str, ...]] = {
    "memcheck": (),
    "racecheck": ("--kernel-name", "kns=gpuconv_"),
    "initcheck": (),
}
# CUDA calls that fail are CuPy's to report: libraries try some, and live with the failure.
COMMON = ("--report-api-errors", "no", "--print-limit", "20")
PROGRAM = (sys.executable, "-m", "gpu.every_op")

SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def run(results: Results, deadline: Deadline) -> str:
    """Run the tools that haven't given a number yet; return how far it came."""
    found = results.data.setdefault("sanitizer", {})
    reasons = results.data.setdefault("sanitizer_skipped_because", {})
    pending = [tool for tool in TOOLS if found.get(tool, "skipped") == "skipped"]
    if why := _plain_run(results.log("every_op"), deadline.left / 2):
        return why
    program = _find()
    for left, tool in zip(range(len(pending), 0, -1), pending, strict=True):
        if program is None:
            found[tool], why = "skipped", "compute-sanitizer is not installed"
        else:
            found[tool], why = _watch(program, tool, results.log(tool), deadline.left / left)
        reasons.pop(tool, None)
        if why:
            reasons[tool] = why
        print(f"{tool}: {found[tool]}{f' ({why})' if why else ''}", flush=True)
        results.save()
    return "complete" if "skipped" not in found.values() else "skipped: " + "; ".join(
        f"{tool}: {why}" for tool, why in reasons.items()
    )  # fmt: skip


def _plain_run(log: Path, seconds: float) -> str:
    """Run without a tool, which also fills CuPy's cache of compiled kernels; return what is wrong, or ""."""
    with open(log, "w") as output:
        status = children.run(list(PROGRAM), seconds, output)
    shown = log.read_text(errors="replace").splitlines()
    if status is None:
        return "stopped: out of time before the tools could begin"
    if status or END not in shown:
        return (
            f"failed: the operations fail without any tool: {shown[-1] if shown else status}, see {log.name}"
        )
    log.unlink()
    return ""


def _watch(program: str, tool: str, log: Path, seconds: float) -> tuple[int | str, str]:
    command = [program, "--tool", tool, *COMMON, *TOOLS[tool], *PROGRAM]
    with open(log, "w") as output:
        status = children.run(command, seconds - 3, output, polite=2)
    shown = log.read_text(errors="replace")
    errors, why = judge(shown, status is None)
    if errors == 0:
        log.unlink()
    return errors, why


def judge(shown: str, out_of_time: bool) -> tuple[int | str, str]:
    """Return the errors that a tool counted, or "skipped" and why: no errors count only if all was run."""
    errors = sum(int(a or b) for a, b in SUMMARY.findall(shown))
    if errors:
        return errors, ""
    if out_of_time:
        return "skipped", "out of time"
    if END in shown and SUMMARY.search(shown):
        return 0, ""
    complaints = [line for line in shown.splitlines() if "error" in line.lower() and not SUMMARY.search(line)]
    last = (complaints or shown.splitlines() or ["it said nothing"])[-1]
    return "skipped", last.lstrip("= ").strip()[:200]


def _find() -> str | None:
    """Return compute-sanitizer's path; CUDA's folder needn't be on the PATH."""
    homes = (os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda")
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(folders)
    )
