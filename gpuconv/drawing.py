"""Figures as PNGs: the colours and the canvas that all pictures here share."""

import io
from typing import Any

INK, GREY, PALE, BLUE, RED = "#222222", "#888888", "#dddddd", "#2b6cb0", "#c53030"
GREEN, OCHRE = "#2f855a", "#b7791f"


def figure(width: float, height: float) -> Any:
    """Return a figure of so many inches; not pyplot's, which looks for a screen and keeps all figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    """Return a text from outside so that matplotlib sees no formula between its dollar signs."""
    return text.replace("$", r"\$")


def png(drawn: Any) -> bytes:
    """Return a figure as a PNG."""
    memory = io.BytesIO()
    drawn.savefig(memory, format="png", dpi=130)
    return memory.getvalue()
