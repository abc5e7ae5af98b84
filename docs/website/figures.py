"""A hook of MkDocs: it draws the figures of mathematics.md from what the library computes."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mkdocs.structure.files import File

import gpuconv
from gpuconv import reference

INK, BLUE, RED, GREEN = "#333333", "#4c78a8", "#e45756", "#54a24b"


def on_files(files, config):
    """Add the figures."""
    for draw in (window, columns, pooling):
        files.append(File.generated(config, f"figures/{draw.__name__}.svg", content=svg(draw())))
    return files


def window():
    """Draw where two windows read, and what a place of x is read by."""
    x, w = np.arange(16.0).reshape(1, 1, 4, 4) % 7, np.array([[[[1.0, 2.0], [0.0, -1.0]]]])
    y = gpuconv.conv2d(x, w)
    figure = Figure((7.5, 2.9))
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 2, 3))
    grid(left, x[0, 0], "x")
    grid(middle, w[0, 0], "w")
    grid(right, y[0, 0], "y = conv2d(x, w)")
    for (p, q), colour in (((0, 1), BLUE), ((1, 2), RED)):
        frame(left, p, q, 2, 2, colour)
        frame(right, p, q, 1, 1, colour)
    return figure


def columns():
    """Draw the matrix that a convolution is: its rows are windows; transposed, it gives dx."""
    sliding = reference.Sliding((4, 4), 2)
    w = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    units = np.eye(16).reshape(16, 1, 4, 4)
    matrix = reference.conv(units, w, None, sliding).reshape(16, 9).T
    figure = Figure((7.5, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(16, 9))
    for axes, values, title in (
        (left, matrix, "forward: y = K x"),
        (right, matrix.T, "input gradient: dx = Kᵀ dy"),
    ):
        axes.imshow(np.where(values == 0, np.nan, values), cmap="Blues", vmin=-1, vmax=8)
        for i, j in zip(*np.nonzero(values), strict=True):
            axes.text(j, i, f"{values[i, j]:g}", ha="center", va="center", fontsize=7, color=INK)
        bare(axes, title)
        axes.set_xlabel("places of x" if axes is left else "places of y", color=INK)
        axes.set_ylabel("places of y" if axes is left else "places of x", color=INK)
    return figure


def pooling():
    """Draw maxima, and the way of the gradient back to them."""
    x = np.array([[[[1.0, 5, 2, 2], [3, 0, 2, 1], [4, 1, 0, 7], [0, 2, 6, 3]]]])
    y, argmax = gpuconv.max_pool2d(x, 2)
    dy = np.array([[[[10.0, 20], [30, 40]]]])
    dx = gpuconv.max_pool2d_backward(dy, argmax, x.shape, 2)
    figure = Figure((7.5, 2.4))
    panels = figure.subplots(1, 5, width_ratios=(4, 2, 2, 2, 4))
    arrays = (x, y, argmax, dy, dx)
    for axes, values, title in zip(panels, arrays, ("x", "y", "argmax", "dy", "dx"), strict=True):
        grid(axes, values[0, 0], title)
    for (p, q), colour in zip(np.ndindex(2, 2), (BLUE, RED, GREEN, INK), strict=True):
        i, j = divmod(int(argmax[0, 0, p, q]), 2)
        for axes in (panels[0], panels[-1]):
            frame(axes, 2 * p + i, 2 * q + j, 1, 1, colour)
        for axes in panels[1:-1]:
            frame(axes, p, q, 1, 1, colour)
    return figure


def grid(axes, values, title):
    """Draw a plane of numbers."""
    h, w = values.shape
    for i, j in np.ndindex(h, w):
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor="none", edgecolor="#bbbbbb", linewidth=0.8))
        axes.text(j + 0.5, i + 0.5, f"{values[i, j]:g}", ha="center", va="center", fontsize=9, color=INK)
    axes.set(xlim=(-0.1, w + 0.1), ylim=(h + 0.1, -0.1), aspect="equal")
    bare(axes, title)


def frame(axes, i, j, h, w, colour):
    """Draw a frame around places of a plane."""
    axes.add_patch(Rectangle((j, i), w, h, facecolor=colour, alpha=0.18))
    axes.add_patch(Rectangle((j, i), w, h, facecolor="none", edgecolor=colour, linewidth=2))


def bare(axes, title):
    """Take ticks and spines away."""
    axes.set_title(title, fontsize=10, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def svg(figure):
    """Return a figure as SVG text, the same each time it is drawn."""
    figure.tight_layout()
    memory = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gpuconv", "svg.fonttype": "none"}):
        figure.savefig(memory, format="svg", facecolor="white", metadata={"Date": None})
    return memory.getvalue().decode()
