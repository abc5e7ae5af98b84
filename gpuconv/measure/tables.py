"""A benchmark's records for reading: geometric means, a line a row, as Markdown or in columns."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cells = tuple[str, ...]
Record = Mapping[str, Any]

MEAN_TITLES = ("kind", "pass", "numbers", "layout", "rows", "PyTorch's time / ours", "floor / ours")
ROW_TITLES = (
    "op", "name", "numbers", "layout", "us", "± %", "CPU us", "PyTorch us", "its CPU us", "floor us",
    "floor / us", "GB/s", "TFLOP/s", "workspace MB",
)  # fmt: skip


def groups(records: Iterable[Record], *, chosen_only: bool = True) -> dict[Cells, list[Record]]:
    """Return the records that were timed, by kind of operation, pass, numbers and layout."""
    found: dict[Cells, list[Record]] = defaultdict(list)
    for row in records:
        if row["us"] and (row["chosen"] or not chosen_only):
            numbers = f"{row['dtype']} {row['precision']}"
            found[row["kind"], row["pass"], numbers, row["layout"]].append(row)
    return dict(found)


def means(records: Iterable[Record]) -> list[Cells]:
    """Return the geometric means of each group, as cells."""
    return [
        (*group, str(len(members)), shown(mean(members, "torch_us")), shown(mean(members, "floor_us")))
        for group, members in groups(records).items()
    ]


def mean(members: Sequence[Record], other: str, ours: str = "us") -> float | None:
    """Return the geometric mean of another time over ours; None where no row has both."""
    ratios = [row[other] / row[ours] for row in members if row.get(other) and row[ours]]
    return statistics.geometric_mean(ratios) if ratios else None


def shown(value: float | None) -> str:
    """Return a ratio as a cell; an empty one where there is none."""
    return "" if value is None else f"{value:.2f}"


def row_cells(row: Record) -> Cells:
    """Return one row's cells."""
    numbers = f"{row['dtype']} {row['precision']}"
    name = (row["op"], called(row), numbers, row["layout"])
    if row["us"] is None:
        return (*name, row.get("error") or row["left_out"], *[""] * 9)
    times = (row["cpu_us"], row["torch_us"], row.get("torch_cpu_us"), row["floor_us"])
    roofline = shown(row["floor_us"] and row["floor_us"] / row["us"])
    rates = (_figure(row["gbps"], 1), _figure(row["tflops"], 3 if (row["tflops"] or 0) < 10 else 1))
    spread = f"{100 * row['spread']:.0f}"
    workspace = f"{row['workspace_bytes'] / 1e6:.1f}"
    return (*name, _figure(row["us"]), spread, *map(_figure, times), roofline, *rates, workspace)


def called(row: Record) -> str:
    """Return a row's name, with the algorithm that it was asked for where it isn't the planner's choice."""
    name: str = row["name"]
    return name if row["chosen"] else f"{name} by {row['algorithm']}"


def _figure(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown(titles: Cells, cells: Iterable[Cells]) -> list[str]:
    """Return a table's lines."""
    return [f"| {' | '.join(line)} |" for line in (titles, ("---",) * len(titles), *cells)]


def columns(titles: Cells, cells: Iterable[Cells]) -> list[str]:
    """Return a table's lines for a terminal: words to the left, figures to the right."""
    table = [titles, *cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    numeric = [_is_numeric(column[1:]) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in table
    ]


def _is_numeric(column: Sequence[str]) -> bool:
    return all(cell.strip(" %x").replace(".", "", 1).lstrip("-+").isdigit() for cell in column if cell)
