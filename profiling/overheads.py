"""What calls cost beside their work: import, first calls, cached calls, profiling ranges. One table.

    python profiling/overheads.py                              # on a GPU where one can be used
    python profiling/overheads.py --device cpu --out profiling/results

The cost of a cached call is the time of a convolution so small that nothing else counts: [1, 1, 4, 4] with
one 3x3 kernel; beside it PyTorch's, where it is installed. First calls and imports are those of fresh
processes; on a GPU with an empty folder of compiled kernels and with a full one. What a tool that listens to
NVTX costs is measured with the small one of the tests, where a C compiler is there to build it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout, not another installed one

SECONDS = 3.0
RECORDER = HERE.parent / "tests/nvtx/recorder.cpp"
NO_NVTX = "import sys; sys.modules['nvtx'] = None; "


class Told:
    """A clock for calls that measure themselves: they return microseconds."""

    def sampler(self, call: Callable[[], float]) -> Callable[[], Any]:
        """Return what calls it; a first time to warm the disk's cache up."""
        from gpuconv.measure.timing import Sample

        call()
        return lambda: Sample(*[call()] * 2)


def main() -> None:
    from gpuconv.measure import devices, records, tables
    from gpuconv.measure.cpu import Cpu
    from gpuconv.measure.timing import Timing, in_turns

    options = parse()
    if options.child:
        print(json.dumps(child(options.child, options.device)))
        return
    device = devices.find(options.device)
    kind = "cpu" if device.gpu is None else "cuda"
    found: dict[str, Timing] = {}

    def take(name: str, timings: dict[str, Timing]) -> None:
        for what, timing in timings.items():
            found[f"{name}: {what}"] = timing
            print(f"{name}: {what}: {timing.us:.1f} us ±{timing.spread:.0%}", flush=True)

    imports = {"python alone": "pass", "numpy": "import numpy", "gpuconv": "import gpuconv"}
    take("import", in_turns({name: python(code) for name, code in imports.items()}, Cpu(), SECONDS))
    with tempfile.TemporaryDirectory() as scratch:
        cold = iter(range(10**6))
        caches = {"disk cache empty": lambda: f"{scratch}/{next(cold)}", "disk cache full": lambda: scratch}
        for cache, folder in caches.items() if kind == "cuda" else (("in a fresh process", lambda: scratch),):
            for what in ("first call", "new shape"):
                take(cache, in_turns({what: told(what, kind, folder)}, Told(), SECONDS))
        both = {"gpuconv": tiny(device.xp), **peer(device)}
        take("cached call", device.undisturbed(lambda: in_turns(both, device, SECONDS), 20.0)[0])
        take("cached call, in a fresh process", in_turns(listeners(kind, Path(scratch)), Told(), 2 * SECONDS))
    titles = ("what", "us", "± %", "turns")
    cells = [(n, f"{t.us:.1f}", f"{100 * t.spread:.0f}", str(t.turns)) for n, t in found.items()]
    facts = device.facts() | {
        "commit": records.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [{"what": n, "us": t.us, "spread": t.spread, "turns": t.turns} for n, t in found.items()],
    }  # fmt: skip
    if options.out:
        stem = options.out / f"overheads-{device.stem}"
        stem.with_suffix(".json").write_text(records.text(facts))
        lines = [f"# What calls cost on {device.gpu or facts['cpu']}", ""]
        lines += [
            "Written by `profiling/overheads.py`.",
            "",
            f"* commit {facts['commit']}, {facts['date']}",
            "",
        ]
        stem.with_suffix(".md").write_text("\n".join([*lines, *tables.markdown(titles, cells)]) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write overheads-DEVICE.json and .md there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def python(code: str) -> Callable[[], object]:
    """Return a call that runs a fresh interpreter."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment, with this checkout in front and bytecode kept, as pip keeps it."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "", **variables}


def told(
    what: str, kind: str, folder: Callable[[], str], before: str = "", **variables: str
) -> Callable[[], float]:
    """Return a call that asks a fresh process how long something took it."""
    script = f"import runpy, sys; sys.argv = ['x', '--device', {kind!r}, '--child', {what!r}]; "
    script += f"runpy.run_path({str(HERE / 'overheads.py')!r}, run_name='__main__')"

    def ask() -> float:
        env = environment(CUPY_CACHE_DIR=folder(), **variables)
        command = [sys.executable, "-c", before + script]
        return float(subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE).stdout)

    return ask


def child(what: str, kind: str) -> float:
    """Be the fresh process: return the microseconds."""
    from gpuconv.measure import devices
    from gpuconv.measure.timing import in_turns

    device = devices.find(kind)
    call = tiny(device.xp)
    if what == "cached":
        return in_turns({"ours": call}, device, 0.2)["ours"].cpu_us
    if what == "new shape":
        tiny(device.xp, 6)()
    device.synchronize()
    begin = time.perf_counter()
    call()
    device.synchronize()
    return (time.perf_counter() - begin) * 1e6


def tiny(xp: Any, size: int = 4) -> Callable[[], object]:
    """Return a convolution that takes no time."""
    import gpuconv

    x, w = xp.ones((1, 1, size, size), xp.float32), xp.ones((1, 1, 3, 3), xp.float32)
    return lambda: gpuconv.conv2d(x, w, padding=1)


def peer(device: Any) -> dict[str, Callable[[], object]]:
    """Return the same of PyTorch, where it is installed."""
    from gpuconv.measure import bench

    torch = bench.peer(device)
    if torch is None:
        return {}
    x = torch.from_dlpack(device.xp.ones((1, 1, 4, 4), "f4"))
    w = torch.from_dlpack(device.xp.ones((1, 1, 3, 3), "f4"))
    return {"PyTorch": lambda: torch.conv2d(x, w, padding=1)}


def listeners(kind: str, scratch: Path) -> dict[str, Callable[[], float]]:
    """Return fresh processes that time a cached call: without nvtx, without a tool, and with one."""
    found = {
        "nvtx not installed": told("cached", kind, lambda: str(scratch), NO_NVTX),
        "no tool listens": told("cached", kind, lambda: str(scratch)),
    }
    library = scratch / "recorder.so"
    build = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", str(RECORDER), "-o", str(library)]
    try:
        subprocess.run(build, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"no tool to listen: {error}")
        return found
    tool = {"GPUCONV_NVTX_RECORD": str(scratch / "ranges.txt"), "NVTX_INJECTION64_PATH": str(library)}
    return {**found, "a tool records": told("cached", kind, lambda: str(scratch), **tool)}


if __name__ == "__main__":
    main()
