"""The results' file: kept up to date after every row, read again when a check goes on, judged at the end."""

import json
from pathlib import Path
from typing import Any

from gpuconv.files import write_whole
from gpuconv.measure.records import file_stem, text

CHECKOUT = Path(__file__).resolve().parents[2]

# In order of value: first whether it is right, then how fast it is.
PARTS = (
    *("environment", "suite", "sanitizers", "determinism", "workspace", "graphs", "distributed"),
    *("ceilings", "timings"),
)


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
        write_whole(self.path, text(self.data).encode())


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
    found += [f"not replayed as called: {case}" for case in data.get("graphs", {}).get("wrong", ())]
    found += [f"NCCL trains otherwise: {name}" for name in data.get("distributed", {}).get("wrong", ())]
    found += [f"{_name(row)}: {row['error']}" for row in data.get("rows", ()) if row.get("error")]
    return found


def _name(row: dict[str, Any]) -> str:
    return " ".join(row[key] for key in ("op", "name", "dtype", "precision", "layout"))
