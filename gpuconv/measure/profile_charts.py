"""Pictures of a profile: the time of each layer, and each layer under the roofline."""

from collections.abc import Sequence
from math import atan2, degrees
from typing import TYPE_CHECKING, Any

from gpuconv.drawing import BLUE, GREY, INK, PALE, RED, figure, plain, png

if TYPE_CHECKING:
    from gpuconv.measure.profile import Profile, Row

COLORS = {"forward": BLUE, "backward": RED}

# More lines, or more names among the dots, can't be read.
MOST_LINES, MOST_NAMES = 60, 24

# Where a dot's name may stand, in points from the dot, in order of preference.
PLACES = [(dx, dy) for dy in (0, 9, -9, 18, -18, 28, -28, 40, -40) for dx in (7, -7)]
NAME_SIZE = 8


def time_by_layer(profile: "Profile", title: str) -> bytes:
    """Draw a bar for each layer's time, forward and backward; return a PNG.

    Parameters
    ----------
    profile
        What to draw; of more than `MOST_LINES` layers, those that take longest.
    title
        Stands above.
    """
    lines = _by_layer(profile.rows)
    longest = sorted(lines, key=lambda line: -sum(row.us for row in line.values()))[:MOST_LINES]
    shown = [line for line in lines if line in longest]
    scale, unit = (1e3, "ms") if max(row.us for row in profile.rows) >= 1e3 else (1.0, "us")
    drawn = figure(8, 0.27 * len(shown) + 1.5)
    heading = f"{plain(title)}: {profile.total_us / scale:,.4g} {unit} a pass"
    if len(shown) < len(lines):
        heading += f", the {len(shown)} longest of {len(lines)} layers"
    drawn.suptitle(heading, color=INK, fontsize=12, x=0.02, ha="left")
    axes = drawn.subplots()
    for i, line in enumerate(shown):
        left = 0.0
        for direction, row in line.items():
            axes.barh(i, row.us / scale, left=left, height=0.72, color=COLORS[direction])
            left += row.us / scale
        share = 100 * sum(row.share for row in line.values())
        axes.annotate(
            f"{share:.1f} %" if share < 10 else f"{share:.0f} %",
            (left, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=GREY,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [plain(_name_of(line)) for line in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.09)
    axes.set_xlabel(unit)
    _bare(axes, "x")
    _legend(drawn, axes, profile.rows, "s")
    return png(drawn)


def roofline(profile: "Profile", title: str) -> bytes:
    """Draw FLOP/s over FLOPs a byte, a dot a row, under the device's ceilings; return a PNG.

    Parameters
    ----------
    profile
        What to draw; rows that compute or move nothing have no place there.
    title
        Stands above.
    """
    rows = [row for row in profile.rows if row.flops and row.least_bytes and row.us]
    scale, unit = (1.0, "TFLOP/s") if any(row.tflops >= 1 for row in rows) else (1e3, "GFLOP/s")
    drawn = figure(8, 5.2)
    drawn.suptitle(
        f"{plain(title)}: speed, and what the device allows", color=INK, fontsize=12, x=0.02, ha="left"
    )
    axes = drawn.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    dots = [(row.flops / row.least_bytes, row.tflops * scale, row) for row in rows]
    per_second = scale / 1e12
    tops = [
        (ceiling.bytes_per_second * per_second, ceiling.flops_per_second * per_second)
        for ceiling in profile.ceilings.values()
    ]
    across = [x for x, _, _ in dots] + [rate / copy for copy, rate in tops]
    left, right = min(across, default=1) / 2.5, max(across, default=1) * 6
    axes.set_xlim(left, right)
    for (copy, rate), dtype in zip(tops, profile.ceilings, strict=True):
        ridge = rate / copy
        axes.plot([left, ridge, right], [copy * left, rate, rate], color=INK, linewidth=1.2, zorder=1)
        axes.annotate(
            f"{dtype}: {rate:,.3g} {unit}", (right, rate), xytext=(-4, 4), textcoords="offset points",
            ha="right", color=INK, fontsize=9,
        )  # fmt: skip
    for direction, color in COLORS.items():
        # All at once: 4000 dots one by one take 15 s. The area shows the time: what is small and low costs
        # nothing.
        among = [dot for dot in dots if dot[2].direction == direction]
        axes.scatter(
            [x for x, _, _ in among],
            [y for _, y, _ in among],
            s=[18 + 500 * row.share for _, _, row in among],
            color=color,
            alpha=0.75,
            linewidths=0,
            zorder=2,
        )
    lows = [y for _, y, _ in dots] + [copy * left for copy, _ in tops]
    highs = [y for _, y, _ in dots] + [rate for _, rate in tops]
    axes.set_ylim(min(lows, default=1) / 2, max(highs, default=1) * 2)
    axes.set_xlabel("FLOPs a byte that must be moved")
    axes.set_ylabel(unit)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    _bare(axes, "both")
    _legend(drawn, axes, rows, "o")
    if tops:
        copy, rate = tops[0]
        _along(drawn, axes, left, copy, f"{copy * 1e3 / scale:,.3g} GB/s")
    _name(drawn, axes, dots)
    return png(drawn)


def _by_layer(rows: Sequence["Row"]) -> list[dict[str, "Row"]]:
    """Return each layer's rows by direction, in the order of the forward pass."""
    lines: list[dict[str, Row]] = []
    for row in rows:
        # Layers of one name, in two parts of a network of the user's own, come back in reverse.
        alike = (line for line in reversed(lines) if row.direction not in line and _name_of(line) == row.name)
        line = next(alike, None)
        if line is None:
            lines.append(line := {})
        line[row.direction] = row
    return lines


def _name_of(line: dict[str, "Row"]) -> str:
    return next(iter(line.values())).name


def _bare(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", length=0)


def _legend(drawn: Any, axes: Any, rows: Sequence["Row"], marker: str) -> None:
    directions = [direction for direction in COLORS if any(row.direction == direction for row in rows)]
    handles = [axes.plot([], [], marker, color=COLORS[d], label=d)[0] for d in directions]
    drawn.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=9)


def _along(drawn: Any, axes: Any, left: float, copy: float, text: str) -> None:
    """Write the bandwidth along its line."""
    drawn.draw_without_rendering()  # the layout is made here; before it, the slope isn't known
    x = left * 1.3
    (x0, y0), (x1, y1) = axes.transData.transform([(x, copy * x), (2 * x, copy * 2 * x)])
    axes.annotate(
        text, (x, copy * x), xytext=(0, 3), textcoords="offset points", color=INK, fontsize=9,
        rotation=degrees(atan2(y1 - y0, x1 - x0)), rotation_mode="anchor",
    )  # fmt: skip


Box = tuple[float, float, float, float]


def _name(drawn: Any, axes: Any, dots: Sequence[tuple[float, float, "Row"]]) -> None:
    """Write names beside the dots, the slowest rows' first, where no other name or dot stands."""
    from matplotlib.patheffects import withStroke

    drawn.draw_without_rendering()
    point = drawn.dpi / 72  # in pixels
    frame = axes.get_window_extent()
    inside = (frame.x0 / point, frame.y0 / point, frame.x1 / point, frame.y1 / point)
    places = [tuple(axes.transData.transform((x, y)) / point) for x, y, _ in dots]
    radii = [(18 + 500 * row.share) ** 0.5 / 2 for _, _, row in dots]
    taken: list[Box] = [(x - 2, y - 2, x + 2, y + 2) for x, y in places]
    named = sorted(range(len(dots)), key=lambda i: -dots[i][2].us)[:MOST_NAMES]
    for i in named:
        (x, y), row = places[i], dots[i][2]
        width = 0.56 * NAME_SIZE * len(row.name)
        for dx, dy in PLACES:
            apart = dx + radii[i] * (1 if dx > 0 else -1) * (abs(dy) < NAME_SIZE)
            left = x + apart - (0 if dx > 0 else width)
            box = (left, y + dy - NAME_SIZE / 2, left + width, y + dy + NAME_SIZE / 2)
            if _within(box, inside) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    plain(row.name),
                    dots[i][:2],
                    xytext=(apart, dy),
                    textcoords="offset points",
                    ha="left" if dx > 0 else "right",
                    va="center",
                    fontsize=NAME_SIZE,
                    color=COLORS[row.direction],
                    path_effects=[withStroke(linewidth=2, foreground="white")],  # over a ceiling's line
                    arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5} if abs(dy) > 9 else None,
                )
                break


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _within(one: Box, other: Box) -> bool:
    return other[0] <= one[0] and one[2] <= other[2] and other[1] <= one[1] and one[3] <= other[3]
