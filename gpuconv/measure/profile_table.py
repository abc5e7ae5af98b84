"""A profile as text: a line a row, with a bar for its time."""

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuconv.measure.cpu import DISTURBED
from gpuconv.measure.tables import columns

if TYPE_CHECKING:
    from gpuconv.measure.profile import Profile, Row

# Characters of the longest bar.
SHORTEST, LONGEST = 6, 24
EIGHTHS = "▏▎▍▌▋▊▉█"

# Columns that go first where lines are too long.
DISPENSABLE = ("algorithm", "workspace", "MB", "MFLOP", "GB/s", "GFLOP/s", "TFLOP/s")

# What is spent outside of all rows is said from this share on.
NOTEWORTHY = 0.05

# Where the output is no terminal.
USUAL_WIDTH = 110


def table(profile: "Profile", width: int | None = None) -> str:
    """Return the text; `Profile.table` says more."""
    if width is None:
        width = shutil.get_terminal_size((USUAL_WIDTH, 0)).columns
    found = _columns(profile.rows)
    for dispensable in (*DISPENSABLE, ""):
        lines = columns(tuple(found), list(zip(*found.values(), strict=True)))
        room = width - max(map(len, lines)) - 2
        if room >= SHORTEST or not dispensable:
            break
        found.pop(dispensable, None)
    bars = _bars([row.us for row in profile.rows], max(SHORTEST, min(LONGEST, room)))
    shown: dict[str, list[str]] = {}
    for title, cells in found.items():
        shown[title] = cells
        if title == "share":
            shown[""] = bars
    body = columns(tuple(shown), list(zip(*shown.values(), strict=True)))
    text = "\n".join([*_heading(profile), "", *body])
    return text if _shows(text) else text.replace("±", "+-").encode("ascii", "replace").decode()


def _heading(profile: "Profile") -> list[str]:
    """Return what holds for the whole pass."""
    shares = {
        direction: sum(row.share for row in profile.rows if row.direction == direction)
        for direction in ("forward", "backward")
    }
    parts = ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items() if share)
    taken = f"{_time(profile.total_us)} (median of {profile.turns}, ± {100 * profile.spread:.0f} %)"
    lines = [f"a pass takes {taken}: {parts}; peak memory {profile.peak_bytes / 1e6:.1f} MB"]
    limits = [
        f"{dtype} {c.bytes_per_second / 1e9:.1f} GB/s, {c.flops_per_second / 1e9:,.0f} GFLOP/s"
        for dtype, c in profile.ceilings.items()
    ]
    cpu = f"{profile.device.get('cpu')}, {profile.device['machine'].get('threads')} threads"
    lines.append(f"on {profile.device['gpu'] or cpu}; ceilings: {'; '.join(limits)}")
    outside = profile.outside_us / profile.total_us if profile.total_us else 0.0
    if outside > NOTEWORTHY:
        lines.append(f"{100 * outside:.0f} % of the time is spent outside of these rows")
    others = profile.others or 0.0
    if others > DISTURBED:
        lines.append(f"other programs took {100 * others:.0f} % of the cores: don't trust the times")
    return lines


def _columns(rows: Sequence["Row"]) -> dict[str, list[str]]:
    """Return the cells by title."""
    # A GPU's rates in TFLOP/s, a CPU's in GFLOP/s: three digits of either say enough.
    unit, scale = ("TFLOP/s", 1.0) if max((row.tflops for row in rows), default=0) >= 1 else ("GFLOP/s", 1e3)
    return {
        "layer": [row.name for row in rows],
        "pass": [row.direction for row in rows],
        "us": [f"{row.us:.1f}" for row in rows],
        "share": [f"{100 * row.share:.1f} %" for row in rows],
        "MFLOP": [f"{row.flops / 1e6:.2f}" if row.flops else "" for row in rows],
        "MB": [f"{row.least_bytes / 1e6:.2f}" if row.least_bytes else "" for row in rows],
        unit: [f"{row.tflops * scale:.1f}" if row.flops else "" for row in rows],
        "GB/s": [f"{row.gbps:.1f}" if row.least_bytes else "" for row in rows],
        "roofline": ["" if row.roofline is None else f"{100 * row.roofline:.0f} %" for row in rows],
        "workspace": [f"{row.workspace_bytes / 1e6:.2f}" for row in rows],
        "algorithm": [row.algorithm or "" for row in rows],
    }


def _bars(values: Sequence[float], length: int) -> list[str]:
    most = max(values, default=0.0) or 1.0
    if not _shows(EIGHTHS):
        return ["#" * round(length * value / most) for value in values]
    bars = []
    for value in values:
        whole, eighths = divmod(round(8 * length * value / most), 8)
        bars.append(EIGHTHS[-1] * whole + (EIGHTHS[eighths - 1] if eighths else ""))
    return bars


def _shows(text: str) -> bool:
    """Tell whether the output's encoding has these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _time(us: float) -> str:
    """Return a duration in a unit that suits it."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}" if us / size < 1000 else f"{us / size:,.0f} {unit}"
    return f"{us:.3g} us"
