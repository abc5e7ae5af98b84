"""Two runs of a benchmark side by side: what moved beyond the noise."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpuconv.measure.bench import identity

Record = Mapping[str, Any]

# Half interquartile ranges; for a normal distribution one is two thirds of a standard deviation, and a median
# of ten is known to a fifth of that.
NOISE = 3.0
LEAST_NOISE = 0.03  # no machine repeats itself better from one run to another
ENOUGH = 5  # rows of PyTorch's whose common drift is the machine's


class Move(NamedTuple):
    """A row in both runs: its time now over its time then, the machine's drift taken out."""

    row: Record
    ratio: float
    noise: float

    @property
    def is_real(self) -> bool:
        """Tell whether it moved by more than the noise of both runs."""
        return abs(math.log(self.ratio)) > self.noise


class Comparison(NamedTuple):
    """What two runs have in common."""

    moves: list[Move]
    drift: float  # PyTorch's own time now over then: the machine's

    def slower(self, threshold: float) -> list[Move]:
        """Return what takes more than `threshold` times as long, beyond the noise; the worst first."""
        found = [move for move in self.moves if move.is_real and move.ratio > threshold]
        return sorted(found, key=lambda move: -move.ratio)

    def lines(self, threshold: float) -> list[str]:
        """Return it for reading."""
        moved = sorted((move for move in self.moves if move.is_real), key=lambda move: -move.ratio)
        middle = statistics.geometric_mean(move.ratio for move in self.moves)
        return [
            f"{len(self.moves)} rows are in both runs; PyTorch took {self.drift:.2f} times as long as then, "
            "which is the machine and taken out",
            f"ours takes {middle:.3f} times as long (geometric mean); {len(moved)} rows moved beyond the "
            f"noise, {len(self.slower(threshold))} of them take more than {threshold:g} times as long:",
            *(f"  {move.ratio:5.2f} ±{move.noise:.2f}  {' '.join(identity(move.row))}" for move in moved),
        ]


def common(old: Sequence[Record], new: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the old run timed any row of the new one, of which the keys are enough."""
    return not {identity(row) for row in old if row["us"]}.isdisjoint(map(identity, new))


def compare(old: Sequence[Record], new: Sequence[Record]) -> Comparison:
    """Compare the rows that both runs timed.

    Where both have PyTorch's times, the median change of these is the machine's (another clock, another
    neighbour), and no change of ours.

    Raises
    ------
    ValueError
        Where they have no row in common.
    """
    then = {identity(row): row for row in old if row["us"]}
    pairs = [(then[identity(row)], row) for row in new if row["us"] and identity(row) in then]
    if not pairs:
        raise ValueError("the two runs have no row in common")
    peers = [b["torch_us"] / a["torch_us"] for a, b in pairs if a["torch_us"] and b["torch_us"]]
    drift = statistics.median(peers) if len(peers) >= ENOUGH else 1.0
    moves = []
    for a, b in pairs:
        noise = max(LEAST_NOISE, NOISE * math.hypot(a["spread"], b["spread"]))
        moves.append(Move(b, b["us"] / a["us"] / drift, noise))
    return Comparison(moves, drift)


def _check(row: Record) -> None:
    """Raise ValueError where a row's name or a figure is none that can be compared."""
    if not all(isinstance(part, str) for part in identity(row)):
        raise ValueError(f"a row is named by {identity(row)}")
    if row["us"] is None:
        return
    figures = {key: row[key] for key in ("us", "spread", "torch_us")}
    if figures["torch_us"] is None:  # there was no PyTorch
        del figures["torch_us"]
    for key, value in figures.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf or (key != "spread" and not value):
            raise ValueError(f"{key} is {value!r}")


def read(path: Path) -> dict[str, Any]:
    """Read the results of a run.

    Raises
    ------
    OSError
        Where there is no such file.
    ValueError
        Where it is no benchmark's.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data["rows"]
        for row in rows:
            _check(row)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: holds no results of a benchmark ({type(error).__name__}: {error})"
        ) from None
    result: dict[str, Any] = data
    return result
