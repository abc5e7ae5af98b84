"""Train small CNNs as codebases in plain NumPy do, and with gpuconv: the same losses, and how much faster.

    python profiling/naive_training.py --out profiling/results

The networks are those that such codebases teach with: some convolutions, each with relu and a pooling of
2x2, then one or two dense layers; softmax, cross-entropy, gradient descent. The plain way is the one taught
in courses: columns of the whole batch by fancy indexing and one matrix product, their gradient by
`np.add.at`, pooling on a copy whose windows are rows, by argmax; every layer computes its input's gradient,
which our first layer is told not to. Both begin with the same weights and are given the same batches.
Losses are compared in both precisions; steps of float32, one after the other, are timed in turns.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from math import exp, fsum, log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout, not another installed one

Array = np.ndarray[Any, Any]

CLASSES, RATE = 10, 0.002
BATCHES = 30  # whose losses are compared
# Of a turn, whose steps follow each other as in training. Behind a pause, or work of one thread such as the
# plain way's, the second core measured was slow for 0.1 s: in turns of 5 steps, ours took up to 1.5 times as
# long.
TURN_SECONDS = 1.5
SECONDS = 30.0  # of timing, for each network


class Network(NamedTuple):
    """A small CNN: pictures' channels and size, and (channels, kernel, padding) of each convolution."""

    like: str
    batch: int
    channels: int
    size: int
    convolutions: tuple[tuple[int, int, int], ...]
    hidden: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join(f"{k}x{k} {c}" for c, k, _ in self.convolutions)
        return f"{self.like}: {sizes}; {self.batch} pictures {self.channels}x{self.size}x{self.size}"


NETWORKS = (
    Network("digits, two layers", 64, 1, 28, ((16, 3, 1), (32, 3, 1))),
    Network("Deep Learning from Scratch", 100, 1, 28, ((30, 5, 0),), (100,)),
    Network("CS231n, three layers", 64, 3, 32, ((32, 7, 3),), (100,)),
    Network("colour, two layers", 64, 3, 32, ((32, 3, 1), (64, 3, 1))),
)


def main() -> None:
    from gpuconv.measure import devices, records, tables
    from gpuconv.measure.timing import in_turns

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write naive-training-cpu.json and .md there")
    options = parser.parse_args()
    device = devices.find("cpu")
    rows, shares = [], []
    for network in NETWORKS:
        apart = {}
        for dtype in (np.float64, np.float32):
            learners = ways(network, dtype)
            curves = [losses(network, step, dtype, BATCHES) for step in learners.values()]
            apart[np.dtype(dtype).name] = float(np.ptp(curves, axis=0).max())
        x, target = next(batches(network, np.float32))
        numbers = {name: steps_of_a_turn(partial(step, x, target)) for name, step in learners.items()}
        turns = {name: partial(steps, step, numbers[name], x, target) for name, step in learners.items()}
        timings, others = device.undisturbed(partial(in_turns, turns, device, SECONDS), 20.0)
        shares.append(others)
        of_step = {name: timing.us / numbers[name] for name, timing in timings.items()}
        rows.append(
            {
                "network": str(network),
                **{f"{name}_us": us for name, us in of_step.items()},
                **{f"{name}_spread": t.spread for name, t in timings.items()},
                "turns": timings["ours"].turns,
                "times_as_fast": of_step["plain"] / of_step["ours"],
                "losses_differ_by": apart,
                "losses": curves[0],
            }
        )
    mean = exp(fsum(log(row["times_as_fast"]) for row in rows) / len(rows))
    titles = (
        "network",
        "plain NumPy ms",
        "gpuconv ms",
        "± %",
        "times as fast",
        "losses differ by, float64, float32",
    )
    cells = [
        (
            row["network"],
            f"{row['plain_us'] / 1e3:.1f}",
            f"{row['ours_us'] / 1e3:.2f}",
            f"{100 * max(row['plain_spread'], row['ours_spread']):.0f}",
            f"{row['times_as_fast']:.1f}",
            ", ".join(f"{apart:.0e}" for apart in row["losses_differ_by"].values()),
        )
        for row in rows
    ]
    said = f"gpuconv takes a step {mean:.1f} times as fast (geometric mean)."
    if None not in shares:
        said += f" Other programs took {max(shares):.0%} of the cores meanwhile, at most."
    print("\n".join(tables.markdown(titles, cells)), said, sep="\n\n")
    if options.out:
        facts = device.facts() | {
            "commit": records.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "times_as_fast": mean, "others": shares, "rows": rows,
        }  # fmt: skip
        stem = options.out / f"naive-training-{device.stem}"
        stem.with_suffix(".json").write_text(records.text(facts))
        lines = [
            f"# A step of training small CNNs, in plain NumPy and with gpuconv, on {facts['cpu']}",
            *("", "Written by `profiling/naive_training.py`.", ""),
            *(f"* commit {facts['commit']}, {facts['date']}", f"* {facts['machine']['threads']} threads", ""),
            *tables.markdown(titles, cells),
            *("", said),
        ]
        stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


Learner = Callable[[Array, Array], Any]


def ways(network: Network, dtype: Any) -> dict[str, Learner]:
    """Return what takes a step and returns the loss: ours, and the plain way's."""
    ours, params = learner(network, dtype)
    return {"ours": ours, "plain": Plain(network, [array.copy() for array in params]).step}


def learner(network: Network, dtype: Any) -> tuple[Learner, list[Array]]:
    """Return what takes a step of our training, and the parameters."""
    import gpuconv.nn as nn

    layers: list[nn.Layer] = []
    channels, size, seeds = network.channels, network.size, count()
    for kernels, kernel, padding in network.convolutions:
        layers.append(nn.Conv2d(channels, kernels, kernel, padding=padding, dtype=dtype, rng=next(seeds)))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels, size = kernels, (size + 2 * padding - kernel + 1) // 2
    layers.append(nn.Flatten())
    width = channels * size * size
    for units in network.hidden:
        layers += [nn.Linear(width, units, dtype=dtype, rng=next(seeds)), nn.ReLU()]
        width = units
    ours = nn.Sequential(*layers, nn.Linear(width, CLASSES, dtype=dtype, rng=next(seeds)))
    loss, optimizer = nn.SoftmaxCrossEntropy(), nn.SGD(ours, RATE)

    def step(x: Array, target: Array) -> Any:
        value = loss(ours(x), target)
        ours.backward(loss.backward(), needs_dx=False)
        optimizer.step()
        return value

    return step, list(ours.params.values())


def losses(network: Network, step: Learner, dtype: Any, number: int) -> list[float]:
    """Train on so many batches and return the losses."""
    return [float(step(*batch)) for batch in islice(batches(network, dtype), number)]


def steps(step: Learner, number: int, x: Array, target: Array) -> None:
    """Take so many steps with one batch."""
    for _ in range(number):
        step(x, target)


def steps_of_a_turn(step: Callable[[], Any]) -> int:
    """Return how many steps take TURN_SECONDS."""
    step()
    begin, number = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < TURN_SECONDS / 2:
        step()
        number += 1
    return max(1, round(number * TURN_SECONDS / seconds))


def batches(network: Network, dtype: Any) -> Iterator[tuple[Array, Array]]:
    """Yield pictures and their classes: a class is a blurred pattern of its own, under noise."""
    rng, shape = np.random.default_rng(0), (network.channels, network.size, network.size)
    patterns = np.kron(rng.standard_normal((CLASSES, network.channels, 7, 7)), np.ones((5, 5)))
    patterns = patterns[..., : network.size, : network.size]
    while True:
        target = rng.integers(CLASSES, size=network.batch)
        yield (0.3 * patterns[target] + rng.standard_normal((network.batch, *shape))).astype(dtype), target


class Plain:
    """A network in plain NumPy; `params` are weights and biases, layer by layer."""

    def __init__(self, network: Network, params: list[Array]) -> None:
        self.network = network
        self.pairs = list(zip(params[::2], params[1::2], strict=True))

    def step(self, x: Array, target: Array) -> Any:
        """Train on one batch and return the loss before."""
        caches, dense, grads = [], [], []
        convolutions = list(zip(self.network.convolutions, self.pairs, strict=False))
        for (_, _, padding), (w, b) in convolutions:
            x, conv_cache = conv_forward(x, w, b, padding)
            active = x > 0
            x, pool_cache = pool_forward(x * active)
            caches.append((conv_cache, active, pool_cache))
        shape, last = x.shape, len(self.pairs) - 1
        x = x.reshape(len(x), -1)
        for i, (w, b) in enumerate(self.pairs[len(caches) :], len(caches)):
            y = x @ w.T + b
            active = y > 0 if i < last else np.ones_like(y)
            dense.append((x, active))
            x = y * active
        loss, dx = softmax_loss(x, target)
        for (w, _), (x, active) in zip(self.pairs[: -len(dense) - 1 : -1], reversed(dense), strict=True):
            dy = dx * active
            grads.append((dy.T @ x, dy.sum(axis=0)))
            dx = dy @ w
        dx = dx.reshape(shape)
        for ((_, _, padding), (w, _)), (conv_cache, active, pool_cache) in zip(
            reversed(convolutions), reversed(caches), strict=True
        ):
            dy = pool_backward(dx, pool_cache) * active
            dx, dw, db = conv_backward(dy, w, padding, conv_cache)
            grads.append((dw, db))
        for pair, pair_grads in zip(self.pairs, reversed(grads), strict=True):
            for array, grad in zip(pair, pair_grads, strict=True):
                array -= RATE * grad
        return loss


def indices(shape: tuple[int, ...], kernel: int) -> tuple[Array, Array, Array]:
    """Return channel, row and column of what each place of the columns is read from in the padded picture."""
    _, c, h, w = shape
    out_h, out_w = h - kernel + 1, w - kernel + 1
    i = np.tile(np.repeat(np.arange(kernel), kernel), c)[:, None] + np.repeat(np.arange(out_h), out_w)
    j = np.tile(np.arange(kernel), kernel * c)[:, None] + np.tile(np.arange(out_w), out_h)
    return np.repeat(np.arange(c), kernel * kernel)[:, None], i, j


def conv_forward(x: Array, w: Array, b: Array, padding: int) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
    """Convolve: the kernels as a matrix times the columns of all pictures."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, c, h, wide = padded.shape
    kernels, _, kernel, _ = w.shape
    k, i, j = indices(padded.shape, kernel)
    col = padded[:, k, i, j].transpose(1, 2, 0).reshape(kernel * kernel * c, -1)
    y = (w.reshape(kernels, -1) @ col + b[:, None]).reshape(kernels, h - kernel + 1, wide - kernel + 1, n)
    return y.transpose(3, 0, 1, 2), (col, padded.shape)


def conv_backward(
    dy: Array, w: Array, padding: int, cache: tuple[Array, tuple[int, ...]]
) -> tuple[Array, Array, Array]:
    """Return dx, dw and db."""
    col, shape = cache
    n, _, h, wide = shape
    matrix = dy.transpose(1, 2, 3, 0).reshape(len(w), -1)
    dw, db = (matrix @ col.T).reshape(w.shape), dy.sum(axis=(0, 2, 3))
    k, i, j = indices(shape, w.shape[-1])
    dcol = (w.reshape(len(w), -1).T @ matrix).reshape(len(col), -1, n).transpose(2, 0, 1)
    padded = np.zeros(shape, dy.dtype)
    np.add.at(padded, (slice(None), k, i, j), dcol)
    return padded[:, :, padding : h - padding, padding : wide - padding], dw, db


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
