"""What a run has to show: its learning curve, and the pictures that it got wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import to_host
from gpuconv.drawing import BLUE, GREY, INK, PALE, RED, figure, plain, png
from gpuconv.training.run import Record

Array = np.ndarray[Any, Any]

COLUMNS, ROWS = 10, 4


def learning_curve(records: Sequence[Record], title: str) -> bytes:
    """Draw loss and accuracies over the epochs; return a PNG.

    Parameters
    ----------
    records
        One or more.
    title
        Stands above.
    """
    from matplotlib.ticker import LogLocator

    epochs = [record.epoch for record in records]
    marker = "o" if len(records) <= 40 else None  # a dot an epoch, until they would run together
    drawn = figure(9, 3.8)
    drawn.suptitle(plain(title), color=INK, fontsize=12, x=0.02, ha="left")
    left, right = drawn.subplots(1, 2)
    left.plot(epochs, [record.loss for record in records], color=INK, marker=marker, markersize=3.5)
    left.set_ylabel("training loss (log)")
    left.set_yscale("log", subs=())
    left.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter("{x:g}")
    test = [100 * record.test_accuracy for record in records]
    train = [100 * record.train_accuracy for record in records]
    for name, values, color, above in (
        ("train", train, GREY, train[-1] > test[-1]),
        ("test", test, BLUE, train[-1] <= test[-1]),
    ):
        right.plot(epochs, values, color=color, marker=marker, markersize=3.5)
        right.annotate(
            f"{name} {values[-1]:.1f} %",
            (epochs[-1], values[-1]),
            xytext=(7, 1 if above else -1),
            textcoords="offset points",
            va="bottom" if above else "top",
            color=color,
        )
    # The training accuracy of the first updates, before anything was learnt, would squeeze all the rest.
    lowest = min(test)
    margin = 0.06 * (100 - lowest) + 0.1
    right.set_ylim(lowest - margin, 100 + margin)
    right.set_ylabel("accuracy, %")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(color=PALE, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return png(drawn)


def misclassified(images: Array, labels: Array, scores: Array, title: str) -> bytes:
    """Draw the wrongly classified pictures, the surest mistakes first; return a PNG.

    Parameters
    ----------
    images
        `[N, C, H, W]`; drawn in colour where C is 3, else the first channel in grey.
    labels, scores
        `[N]` and `[N, K]`: the true classes, and what the network made of the pictures.
    title
        Stands above.

    Notes
    -----
    Where none is wrong, the pictures of which the network was least sure are drawn instead.
    """
    images, labels, scores = to_host(images), to_host(labels), to_host(scores)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    guesses, sureness = p.argmax(axis=1), p.max(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    if len(wrong):
        chosen = wrong[np.argsort(-sureness[wrong], kind="stable")][: COLUMNS * ROWS]
        what = f"{len(wrong):,} of {len(labels):,} test pictures misclassified"
        if len(wrong) > len(chosen):
            what += f", the {len(chosen)} surest mistakes"
    else:
        chosen = np.argsort(sureness, kind="stable")[:COLUMNS]
        what = f"none of {len(labels):,} test pictures misclassified; the least certain ones"
    rows = -(-len(chosen) // COLUMNS)
    drawn = figure(COLUMNS * 1.1, rows * 1.55 + 0.7)  # as wide for few pictures: the title needs it
    drawn.suptitle(
        f"{plain(title)}\n{what} (true → given, how sure)", color=INK, fontsize=12, x=0.02, ha="left"
    )
    for axes, i in zip(drawn.subplots(rows, COLUMNS, squeeze=False).flat, chosen, strict=False):
        image = images[i]
        axes.imshow(
            image.transpose(1, 2, 0) if len(image) == 3 else image[0], cmap="gray_r", **_limits(images)
        )
        right = guesses[i] == labels[i]
        axes.set_title(f"{labels[i]} → {guesses[i]}", color=BLUE if right else RED, fontsize=11, pad=3)
        axes.set_xlabel(f"{100 * sureness[i]:.0f} %", color=GREY, fontsize=8, labelpad=2)
    for axes in drawn.axes:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(PALE)
        axes.spines[:].set_visible(axes.has_data())
    return png(drawn)


def _limits(images: Array) -> dict[str, float]:
    return {"vmin": min(0.0, float(images.min())), "vmax": float(images.max())}
