"""Results on disk: what code they are of, and JSON that a reader and a diff can follow."""

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

from gpuconv.backends.cuda import sources

PACKAGE = Path(__file__).resolve().parents[1]


def source_sha256(package: Path = PACKAGE, kernels: Path | None = None) -> str:
    """Return the SHA-256 over the names and contents of what computes: the package and its kernels."""
    kernels = kernels or sources.folder()
    files = {f"gpuconv/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.py")}
    files |= {f"cuda/{path.name}": path for path in kernels.glob("*.cu*")}
    return sources.digest(files)


def commit(checkout: Path = PACKAGE.parent) -> str:
    """Return the checkout's commit, as far as git and a `.git` are there to tell."""
    if not (checkout / "pyproject.toml").is_file():  # installed: a `.git` further up is another project's
        return "unknown"
    try:
        head = _git(checkout, "rev-parse", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--", "gpuconv", "cuda")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" with changes" if changed else "")


def _git(checkout: Path, *command: str) -> str:
    git = ["git", "-C", str(checkout), *command]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def text(data: dict[str, Any]) -> str:
    """Return JSON with the rows last, a line each."""
    facts = json.dumps({key: value for key, value in data.items() if key != "rows"}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in data.get("rows", ()))
    return f'{facts[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'


def file_stem(gpu: str) -> str:
    """Return a name for files: "NVIDIA H200" becomes "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-") or "gpu"


def rounded(value: Any) -> Any:
    """Return a figure as it goes into JSON, which has no infinity; nothing is measured to more digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
