"""`gpuconv info`: what there is on this machine, what is missing, and the command that installs it."""

import argparse
import importlib.util
import platform
import shutil
import subprocess
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import gpuconv
from gpuconv.backends.cpu import compiled, threads
from gpuconv.cli import requirements


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "info",
        help="show versions, BLAS, threads, C kernels, GPU, and what is missing",
        description="Show versions, BLAS, threads, C kernels, GPU and driver, and what is missing with the "
        "command that installs it.",
    )
    parser.set_defaults(run=run_command)


def run_command(options: argparse.Namespace) -> int:
    """Print the lines; return the exit code."""
    gpus = _gpus()
    rows = [
        ("gpuconv", gpuconv.__version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("NumPy", np.__version__),
        ("BLAS", _blas()),
        ("threads", f"{threads.count()} (OMP_NUM_THREADS and the process's cores set it)"),
        ("C kernels", _c_kernels()),
        ("GPU", gpus[0] if gpus else "none found (nvidia-smi lists none); convolutions run on the CPU"),
        *(("", gpu) for gpu in gpus[1:]),
        ("CuPy", _cupy(bool(gpus))),
        ("nvtx", _version("nvtx") or _missing("nvtx", "profiling ranges")),
        ("mpi4py", _version("mpi4py") or _missing("gpuconv[mpi]", "training by several processes")),
        ("training", _training()),
    ]
    for name, text in rows:
        print(f"{name:10}{text}")
    return 0


def _blas() -> str:
    if importlib.util.find_spec("threadpoolctl") is None:
        return "unknown: " + _missing("threadpoolctl", "BLAS kept to one thread per thread of ours")
    from threadpoolctl import threadpool_info

    found = [
        f"{info['internal_api']} {info['version'] or ''} ({info.get('architecture', 'unknown kernels')}), "
        f"{info['num_threads']} threads"
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]
    return "; ".join(found) or "one that threadpoolctl doesn't know: it keeps its own threads"


def _c_kernels() -> str:
    # Compiled if need be: a compiler that is there may still fail, and this is where people look.
    if not gpuconv.config.compiled:
        return "off (GPUCONV_COMPILED=0); NumPy computes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which would say the same
        found = compiled.kernels(np.empty(0, np.float32))
    if found is None:
        return f"none: {compiled.why_not()}"
    bytes_ = np.zeros(1, np.intp)
    found.vector_bytes(compiled.address(bytes_))
    path = Path(found.path)
    kept = f"kept in {path.parent}" if path.exists() else "not kept: GPUCONV_CACHE_DIR names another folder"
    return f"compiled by {found.compiler}, vectors of {bytes_[0]} bytes; {kept}"


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = (line.split(", ") for line in answer.splitlines() if line.count(", ") == 2)
    return [f"{name}, {memory}, driver {driver}" for name, memory, driver in lines]


def _cupy(has_gpu: bool) -> str:
    # Not imported: that takes seconds, and may fail on a machine without a driver.
    names = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
    found = [f"{name} {_version(name)}" for name in names if _version(name)]
    if found:
        return f"{', '.join(found)}; gpuconv train --device cuda says what it lacks, if anything"
    if has_gpu:
        return _missing("gpuconv[cuda13]", "arrays on the GPU; gpuconv[cuda12] for drivers older than 580")
    return "not installed, and of no use without a GPU"


def _training() -> str:
    absent = requirements.missing(requirements.TRAINING)
    if absent:
        return f"missing {', '.join(absent)}: {requirements.install_command(absent)}"
    return ", ".join(f"{package} {_version(package)}" for package in requirements.TRAINING.values())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _missing(package: str, purpose: str) -> str:
    return f"not installed ({purpose}): {requirements.install_command([package])}"
