"""The results' file: kept up to date after every row, read again when a check goes on, judged at the end."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]

# In order of value: first whether it is right, then how fast it is.
PARTS = ("environment", "suite", "sanitizers", "determinism", "workspace", "ceilings", "timings")


class Results:
    """What is known so far about one GPU and one state of the sources; a file `<gpu>.json`."""

    def __init__(self, folder: Path, gpu: str, source: str) -> None:
        self.folder, self.stem = folder, file_stem(gpu)
        self.data: dict[str, Any] = {"gpu": gpu, "source_sha256": source}
        self.reload()

    def reload(self) -> None:
        """Read what another process has added; a file about another GPU or other sources is none."""
        if self.path.is_file():
            known = json.loads(self.path.read_text())
            if all(known.get(key) == self.data[key] for key in ("gpu", "source_sha256")):
                self.data = known

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{self.stem}.json"

    def log(self, name: str) -> Path:
        """Return the path of a part's log, which is only kept where there is something to read in it."""
        return self.folder / f"{self.stem}.{name}.log"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was timed; to be appended to."""
        rows: list[dict[str, Any]] = self.data.setdefault("rows", [])
        return rows

    def state(self, part: str) -> str:
        """Return "complete", or why a part isn't."""
        return str(self.data.get("parts", {}).get(part, "not run"))

    def note(self, part: str, state: str) -> None:
        """Write down how far a part came."""
        self.data.setdefault("parts", {})[part] = state
        self.save()

    def forget(self, parts: list[str]) -> None:
        """Let these parts begin anew."""
        gone_on_with = {"sanitizers": "sanitizer", "timings": "rows"}
        for part in parts:
            self.data.get("parts", {}).pop(part, None)
            self.data.pop(gone_on_with.get(part), None)

    def save(self) -> None:
        """Write the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.path, text(self.data))


def write(path: Path, content: str) -> None:
    """Replace a file in one step: whoever is killed meanwhile leaves the old one."""
    beside = path.with_suffix(f"{path.suffix}.{os.getpid()}")
    beside.write_text(content)
    beside.replace(path)


def text(data: dict[str, Any]) -> str:
    """Return JSON with the rows last, a line each."""
    facts = json.dumps({key: value for key, value in data.items() if key != "rows"}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in data.get("rows", ()))
    return f'{facts[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'


def file_stem(gpu: str) -> str:
    """Return a name for files: "NVIDIA H200" becomes "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-") or "gpu"


def source_sha256(checkout: Path = CHECKOUT) -> str:
    """Return the SHA-256 over the names and contents of what computes: cuda/ and gpuconv/."""
    digest = hashlib.sha256()
    files = (path for folder in ("cuda", "gpuconv") for path in (checkout / folder).rglob("*"))
    for path in sorted(path for path in files if path.suffix in (".py", ".cu", ".cuh", ".h")):
        digest.update(f"{path.relative_to(checkout).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def commit(checkout: Path = CHECKOUT) -> str:
    """Return the checkout's commit, as far as git and a `.git` are there to tell."""
    try:
        head = _git(checkout, "rev-parse", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--", "gpuconv", "cuda")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" with changes" if changed else "")


def _git(checkout: Path, *command: str) -> str:
    git = ["git", "-C", str(checkout), *command]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def faults(data: dict[str, Any]) -> list[str]:
    """Return a line for each thing that is wrong; what wasn't run, or not to its end, is none."""
    found = [
        f"{part}: {state}" for part, state in data.get("parts", {}).items() if state.startswith("failed")
    ]
    tests = data.get("tests")
    if tests and tests["failed"]:
        found.append(f"{tests['failed']} tests failed: {', '.join(data['tests_failed'][:5])} …")
    for tool, errors in data.get("sanitizer", {}).items():
        if errors not in (0, "skipped"):
            found.append(f"{tool} found {errors} errors")
    determinism = data.get("determinism", {})
    found += [f"not the same from run to run: {case}" for case in determinism.get("differing", ())]
    found += [f"not what NumPy gives: {case}" for case in determinism.get("wrong", ())]
    for case in data.get("workspace", ()):
        if case["bytes"] > case["limit"]:
            found.append(f"workspace of {case['case']}: {case['bytes']} bytes, above {case['limit']}")
        if not case["agrees"]:
            found.append(f"{case['case']} gives something else with a limit of {case['limit']} bytes")
    found += [f"{_name(row)}: {row['error']}" for row in data.get("rows", ()) if row.get("error")]
    return found


def _name(row: dict[str, Any]) -> str:
    return " ".join(row[key] for key in ("op", "name", "dtype", "precision", "layout"))
