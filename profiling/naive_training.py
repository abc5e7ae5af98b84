"""Train a small CNN as codebases in plain NumPy do, and with gpuconv: the same losses, and how much faster.

    python profiling/naive_training.py --out profiling/results

The network is conv 3x3 16 - relu - pool 2 - conv 3x3 32 - relu - pool 2 - linear, on batches of 64 pictures
of 28x28, with softmax, cross-entropy and gradient descent. The plain way is the one taught in courses:
columns of the whole batch by fancy indexing and one matrix product, their gradient by `np.add.at`, pooling on
a copy whose windows are rows, by argmax; every layer computes its input's gradient, which our first layer is
told not to. Both begin with the same weights and are given the same batches. Losses are compared in both
precisions; steps of float32 are timed, in turns.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout, not another installed one

Array = np.ndarray[Any, Any]

BATCH, SIZE, CLASSES = 64, 28, 10
WIDTHS = (16, 32)
BATCHES, RATE = 30, 0.01
SECONDS = 20.0


def main() -> None:
    from gpuconv.measure import devices, records, tables
    from gpuconv.measure.timing import in_turns

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write naive-training-cpu.json and .md there")
    options = parser.parse_args()
    device = devices.find("cpu")
    apart = {}
    for dtype in (np.float64, np.float32):
        ours, plain = learners(dtype)
        curves = {"gpuconv": losses(ours, dtype, BATCHES), "plain NumPy": losses(plain, dtype, BATCHES)}
        apart[np.dtype(dtype).name] = float(np.max(np.abs(np.subtract(*curves.values()))))
    x, target = next(batches(np.float32))
    steps = {"gpuconv": lambda: ours(x, target), "plain NumPy": lambda: plain(x, target)}
    timings, others = device.undisturbed(lambda: in_turns(steps, device, SECONDS), 20.0)
    times = timings["plain NumPy"].us / timings["gpuconv"].us
    titles = ("a step of training", "ms", "± %", "turns", "first loss", "last loss")
    rows = [
        {"what": name, "us": t.us, "spread": t.spread, "turns": t.turns, "losses": curves[name]}
        for name, t in timings.items()
    ]
    cells = [
        (r["what"], f"{r['us'] / 1e3:.2f}", f"{100 * r['spread']:.0f}", str(r["turns"]),
         *(f"{r['losses'][i]:.4f}" for i in (0, -1)))
        for r in rows
    ]  # fmt: skip
    differ = " and ".join(f"{difference:.0e} in {name}" for name, difference in apart.items())
    said = f"gpuconv takes a step {times:.1f} times as fast. {BATCHES} losses differ by {differ} at most."
    if others is not None:
        said += f" Other programs took {others:.0%} of the cores meanwhile."
    print("\n".join(tables.markdown(titles, cells)), said, sep="\n\n")
    if options.out:
        facts = device.facts() | {
            "commit": records.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "times_as_fast": times, "losses_differ_by": apart, "others": others, "rows": rows,
        }  # fmt: skip
        stem = options.out / f"naive-training-{device.stem}"
        stem.with_suffix(".json").write_text(records.text(facts))
        lines = [
            f"# Training a small CNN in plain NumPy and with gpuconv, on {facts['cpu']}",
            *("", "Written by `profiling/naive_training.py`.", ""),
            *(f"* commit {facts['commit']}, {facts['date']}", f"* {facts['machine']['threads']} threads", ""),
            *tables.markdown(titles, cells),
            *("", said),
        ]
        stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


Learner = Callable[[Array, Array], Any]


def learners(dtype: Any) -> tuple[Learner, Learner]:
    """Return what takes a step of training and returns the loss: ours, and the plain way's."""
    import gpuconv.nn as nn

    network = nn.Sequential(
        *(nn.Conv2d(1, WIDTHS[0], 3, padding=1, dtype=dtype, rng=0), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(*WIDTHS, 3, padding=1, dtype=dtype, rng=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(WIDTHS[1] * (SIZE // 4) ** 2, CLASSES, dtype=dtype, rng=2)),
    )
    loss, optimizer = nn.SoftmaxCrossEntropy(), nn.SGD(network, RATE)
    plain = Plain({name: array.copy() for name, array in network.params.items()})

    def step(x: Array, target: Array) -> Any:
        value = loss(network(x), target)
        network.backward(loss.backward(), needs_dx=False)
        optimizer.step()
        return value

    return step, plain.step


def losses(step: Learner, dtype: Any, number: int) -> list[float]:
    """Train on so many batches and return the losses."""
    return [float(step(*batch)) for batch in islice(batches(dtype), number)]


def batches(dtype: Any) -> Any:
    """Yield pictures and their classes: a class is a blurred pattern of its own, under noise."""
    rng = np.random.default_rng(0)
    patterns = np.kron(rng.standard_normal((CLASSES, 1, 7, 7)), np.ones((4, 4)))
    while True:
        target = rng.integers(CLASSES, size=BATCH)
        noise = rng.standard_normal((BATCH, 1, SIZE, SIZE))
        yield (0.3 * patterns[target] + noise).astype(dtype), target


class Plain:
    """The network in plain NumPy; parameters by the names that ours has."""

    def __init__(self, params: dict[str, Array]) -> None:
        self.params = params

    def step(self, x: Array, target: Array) -> Any:
        """Train on one batch and return the loss before."""
        p, caches = self.params, []
        for name in ("0", "3"):
            x, conv_cache = conv_forward(x, p[f"{name}.weight"], p[f"{name}.bias"])
            active = x > 0
            x, pool_cache = pool_forward(x * active)
            caches.append((name, conv_cache, active, pool_cache))
        flat = x.reshape(len(x), -1)
        scores = flat @ p["7.weight"].T + p["7.bias"]
        loss, dscores = softmax_loss(scores, target)
        grads = {"7.weight": dscores.T @ flat, "7.bias": dscores.sum(axis=0)}
        dx = (dscores @ p["7.weight"]).reshape(x.shape)
        for name, conv_cache, active, pool_cache in reversed(caches):
            dy = pool_backward(dx, pool_cache) * active
            dx, grads[f"{name}.weight"], grads[f"{name}.bias"] = conv_backward(
                dy, p[f"{name}.weight"], conv_cache
            )
        for name, grad in grads.items():
            p[name] -= RATE * grad
        return loss


def indices(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Return channel, row and column of what each place of the columns is read from in the padded picture."""
    _, c, h, w = shape
    i = np.repeat(np.arange(3), 3)[None].repeat(c, axis=0).reshape(-1, 1) + np.repeat(np.arange(h), w)
    j = np.tile(np.arange(3), 3 * c).reshape(-1, 1) + np.tile(np.arange(w), h)
    return np.repeat(np.arange(c), 9).reshape(-1, 1), i, j


def conv_forward(x: Array, w: Array, b: Array) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    """Convolve: the kernels as a matrix times the columns of all pictures."""
    n, c, h, wide = x.shape
    k, i, j = indices(x.shape)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    col = padded[:, k, i, j].transpose(1, 2, 0).reshape(9 * c, -1)
    y = w.reshape(len(w), -1) @ col + b.reshape(-1, 1)
    return y.reshape(len(w), h, wide, n).transpose(3, 0, 1, 2), (col, x.shape)


def conv_backward(dy: Array, w: Array, cache: tuple[Array, tuple[int, ...]]) -> tuple[Array, Array, Array]:
    """Return dx, dw and db."""
    col, (n, c, h, wide) = cache
    matrix = dy.transpose(1, 2, 3, 0).reshape(len(w), -1)
    dw, db = (matrix @ col.T).reshape(w.shape), dy.sum(axis=(0, 2, 3))
    k, i, j = indices((n, c, h, wide))
    dcol = (w.reshape(len(w), -1).T @ matrix).reshape(9 * c, -1, n).transpose(2, 0, 1)
    padded = np.zeros((n, c, h + 2, wide + 2), dy.dtype)
    np.add.at(padded, (slice(None), k, i, j), dcol)
    return padded[:, :, 1:-1, 1:-1], dw, db


def pool_forward(x: Array) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    """Take maxima of 2x2 windows, laid out as rows of four."""
    n, c, h, w = x.shape
    windows = x.reshape(n, c, h // 2, 2, w // 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(-1, 4)
    best = windows.argmax(axis=1)
    return windows[np.arange(len(best)), best].reshape(n, c, h // 2, w // 2), (best, x.shape)


def pool_backward(dy: Array, cache: tuple[Array, tuple[int, ...]]) -> Array:
    """Send each gradient to the maximum's place."""
    best, (n, c, h, w) = cache
    windows = np.zeros((len(best), 4), dy.dtype)
    windows[np.arange(len(best)), best] = dy.ravel()
    return windows.reshape(n, c, h // 2, w // 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


def softmax_loss(scores: Array, target: Array) -> tuple[Any, Array]:
    """Return the mean cross-entropy and its gradient."""
    rows = np.arange(len(scores))
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[rows, target]).mean()
    p[rows, target] -= 1
    return loss, p / len(scores)


if __name__ == "__main__":
    main()
