"""Charts of a benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpuconv.drawing import BLUE, GREEN, GREY, INK, OCHRE, PALE, RED, figure, png
from gpuconv.measure.tables import groups, mean

Record = Mapping[str, Any]

COLORS = {"ieee": BLUE, "fp16": RED, "tf32": OCHRE, "fp64": GREEN}
NAMES = {"ieee": "float32", "fp16": "float16", "tf32": "float32 as TF32", "fp64": "float64"}


def speed(records: Sequence[Record], title: str) -> bytes:
    """Draw each row's speed beside PyTorch's, or beside the least time where there is none; return a PNG.

    Parameters
    ----------
    records
        As `gpuconv.measure.bench.record` gives them; one at least was timed.
    title
        Stands above.
    """
    other = "torch_us" if any(row.get("torch_us") for row in records) else "floor_us"
    shown = [row for row in records if row["us"] and row[other]]
    kinds = list(dict.fromkeys((row["kind"], row["pass"]) for row in shown))
    layouts = list(dict.fromkeys(row["layout"] for row in shown))
    precisions = list(dict.fromkeys(row["precision"] for row in shown))
    drawn = figure(4.6 * len(layouts) + 1.2, 0.36 * len(kinds) + 1.9)
    what = "times PyTorch's speed" if other == "torch_us" else "share of the roofline"
    drawn.suptitle(f"{title}\n{what}, a dot a shape, bars: geometric means", color=INK, x=0.02, ha="left")
    panels = drawn.subplots(1, len(layouts), squeeze=False, sharex=True, sharey=True)[0]
    for axes, layout in zip(panels, layouts, strict=True):
        _panel(axes, [row for row in shown if row["layout"] == layout], kinds, precisions, other)
        axes.set_title(layout.replace("_", " "), color=GREY, fontsize=10)
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(min(low, 0.45), max(high, 2.2))  # of few rows too, 1/2, 1 and 2 are a scale
    panels[0].set_yticks(range(len(kinds)), [" ".join(kind).replace("_", " ") for kind in kinds])
    panels[0].invert_yaxis()
    if len(precisions) > 1:
        handles = [panels[-1].plot([], [], "o", color=COLORS[p], label=NAMES[p])[0] for p in precisions]
        drawn.legend(handles=handles, loc="outside lower right", ncols=len(handles), frameon=False)
    return png(drawn)


def _panel(
    axes: Any, records: list[Record], kinds: list[tuple[str, str]], precisions: list[str], other: str
) -> None:
    axes.axvline(1, color=INK, linewidth=1)
    for (kind, direction, _, _), members in groups(records).items():
        precision = members[0]["precision"]
        offset = (precisions.index(precision) - (len(precisions) - 1) / 2) * 0.7 / len(precisions)
        y = kinds.index((kind, direction)) + offset
        ratios = [row[other] / row["us"] for row in members]
        axes.plot(ratios, [y] * len(ratios), "o", color=COLORS[precision], alpha=0.35, markersize=4, mew=0)
        middle = mean(members, other)
        axes.plot([middle], [y], "|", color=COLORS[precision], markersize=13, markeredgewidth=3)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{1 / x:g}")
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
