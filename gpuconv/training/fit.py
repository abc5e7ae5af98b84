"""Training by gradient descent: forward through every layer, back through every layer, update, until done."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from gpuconv.backends.dispatch import array_module, backend_of, to_host
from gpuconv.geometry import flag, integer
from gpuconv.trace import part_of_training, training

Callback = Callable[[int, Any], bool | None]

# Values of x, and of y, by which ranks find out whether theirs are the same: they take about a millisecond.
CHECKED = 1 << 16


class Batch(NamedTuple):
    """What to index x and y with, and of how many samples it is, other processes' included."""

    index: Any
    size: int


@dataclass
class History:
    """What happened during `fit`.

    Attributes
    ----------
    stopped_by
        `"max_iterations"`; `"tolerance"`, where no parameter moved by more than it; or `"callback"`, where
        that returned True.
    raw_losses
        The loss of each iteration, before its update, as the 0-d arrays that the loss gave.
    """

    stopped_by: str = "max_iterations"
    raw_losses: list[Any] = field(default_factory=list, repr=False)

    @property
    def iterations(self) -> int:
        """Updates made."""
        return len(self.raw_losses)

    @property
    def losses(self) -> list[float]:
        """`raw_losses` as numbers. With a GPU, reading them waits for it."""
        losses: Any = self.raw_losses
        if losses and hasattr(losses[0], "dtype"):  # not a loss of the user's own that gives plain numbers
            losses = to_host(array_module(losses[0]).stack(losses))  # in one piece: a GPU is waited for once
        return [float(loss) for loss in losses]


def fit(
    network: Any,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: Any,
    max_iterations: int,
    tolerance: float | None = None,
    batch_size: int | None = None,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> History:
    r"""Train a network by gradient descent until it is done.

    One iteration is one update. For layers l = 1 .. L with input :math:`a^0 = x`:

    .. math::
        a^l = f^l(a^{l-1}), \quad \delta^L = \partial J / \partial a^L, \quad
        \delta^{l-1} = (\partial f^l / \partial a^{l-1})^T \delta^l, \quad
        W^l \leftarrow W^l - \alpha \, \partial J / \partial W^l

    where the optimizer may put another rule in the place of the last. It ends after `max_iterations`, or as
    soon as every change of every W and b was at most `tolerance`.

    Parameters
    ----------
    network
        A layer (`gpuconv.nn.Layer`), such as `Sequential`. It is put into training mode and left there:
        call `network.eval()` before you predict. Where it is a `gpuconv.distributed.DataParallel`, every rank
        must give the same x, y and rng, and as many iterations: of each batch it takes its part, of which its
        losses then are. A callback may be one rank's alone.
    x
        `[N, ...]`, what the network takes.
    y
        `[N, ...]`, what the loss compares with: for `SoftmaxCrossEntropy`, classes or one-hot rows.
    loss
        With `forward(scores, target)` and `backward()`; where it is a mean over the batch, the step doesn't
        depend on the number of pictures.
    optimizer
        Made for this network; its `step()` is one update.
    max_iterations
        Most updates to make.
    tolerance
        Stop when no parameter moved by more than this in one update. None, the default, never looks, which
        on a GPU would make the program wait for it.
    batch_size
        Pictures per update; None, the default, takes all of them each time (batch gradient descent). The
        last batch of a pass holds what is left.
    rng
        Shuffles the pictures before each pass. None, the default, takes them in their order.
    callback
        Called after each update with the number of updates so far and the loss before that update, a 0-d
        array; reading its value makes a GPU wait. It may return True to stop; of several ranks, one stops
        all.

    Returns
    -------
    History
        The losses, and what stopped it.

    Raises
    ------
    ValueError, TypeError
        Before any work, where the numbers of pictures and targets differ or are 0, where a count is no
        positive integer, where the tolerance is negative or no number, where rng is no Generator, where
        network, loss or optimizer lacks what is called here, where the optimizer was made for another
        network, or where one of several ranks was given something else.

    References
    ----------
    D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", Nature 323
    (1986).

    Examples
    --------
    >>> import gpuconv.nn as nn
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((64, 1, 4, 4)).astype(np.float32)
    >>> y = (x.mean(axis=(1, 2, 3)) > 0).astype(int)
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 2, rng=1))
    >>> history = fit(net, x, y, loss=nn.SoftmaxCrossEntropy(), optimizer=nn.SGD(net, 0.5), max_iterations=50)
    >>> history.stopped_by, history.iterations, history.losses[-1] < history.losses[0]
    ('max_iterations', 50, True)
    """
    max_iterations = integer("fit", "max_iterations", max_iterations, 0)
    if batch_size is not None:
        batch_size = integer("fit", "batch_size", batch_size, 1)
    _check(x, y, tolerance, rng, callback)
    _check_parts(network, loss, optimizer)
    if hasattr(network, "check_alike"):
        network.check_alike(
            "fit", **_alike(x, y, loss, optimizer, max_iterations, tolerance, batch_size, rng)
        )
    history = History()
    network.train()
    part = getattr(network, "part_of_batch", slice)
    for number, batches in enumerate(_epochs(x, batch_size, rng, max_iterations, part), 1):
        with training("epoch", number):
            stopped_by = descend(
                network,
                x,
                y,
                batches,
                loss=loss,
                optimizer=optimizer,
                tolerance=tolerance,
                callback=callback,
                losses=history.raw_losses,
            )
        if stopped_by is not None:
            history.stopped_by = stopped_by
            break
    return history


def descend(
    network: Any,
    x: Any,
    y: Any,
    batches: Iterable[Batch],
    *,
    loss: Any,
    optimizer: Any,
    tolerance: float | None,
    callback: Callback | None,
    losses: list[Any],
    before: int = 0,
) -> str | None:
    """Make one update for each batch, as `fit` does; return what stopped it, or None.

    The losses join those that are there; `before` counts updates whose losses are not.
    """
    measure = tolerance is not None
    any_rank = getattr(network, "any_rank", bool)  # ranks stop together; each has a loss of its own
    asked = any_rank(callback is not None)  # perhaps another rank's
    for number, batch in enumerate(batches, before + len(losses) + 1):
        value, moved = _step(network, x, y, batch, loss, optimizer, measure, number=number)
        losses.append(value)
        asked_to_stop = asked and any_rank(callback is not None and _answer(callback(number, value)))
        if tolerance is not None and moved <= tolerance:
            return "tolerance"
        if asked_to_stop:
            return "callback"
    return None


def _check(x: Any, y: Any, tolerance: Any, rng: Any, callback: Any) -> None:
    backend_of("fit", x=x, y=y)
    if not x.ndim or not y.ndim or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"fit: x and y must hold equally many samples, one or more, but x has "
            f"shape {x.shape} and y {y.shape}"
        )
    if tolerance is not None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float | np.number):
            raise TypeError(f"fit: tolerance must be a number or None, not {type(tolerance).__name__}")
        if not tolerance >= 0:
            raise ValueError(f"fit: tolerance must be at least 0, not {tolerance}")
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"fit: rng must be a numpy.random.Generator or None, not {type(rng).__name__}")
    if callback is not None and not callable(callback):
        raise TypeError(f"fit: callback must be callable or None, not {type(callback).__name__}")


def _alike(
    x: Any, y: Any, loss: Any, optimizer: Any, max_iterations: int, tolerance: Any, batch_size: Any, rng: Any
) -> dict[str, Any]:
    """Return what must be the same on all ranks, or their steps would not be the same."""
    state = None if rng is None else str(rng.bit_generator.state)
    return {
        "x": f"{x.dtype.name} {x.shape}",
        "y": f"{y.dtype.name} {y.shape}",
        "checksum of x": _checksum(x),
        "checksum of y": _checksum(y),
        "loss": type(loss).__name__,
        "optimizer": _numbers(optimizer),
        "max_iterations": max_iterations,
        "tolerance": tolerance,
        "batch_size": batch_size,
        "rng": None if state is None else f"in state {crc32(state.encode()):08x}",
    }


def _checksum(array: Any) -> str:
    """Return a checksum of values from everywhere in an array, of all where they are few."""
    # An odd step meets other columns in other rows, and not the borders of pictures alone. Made flat, an
    # array that isn't contiguous would be copied.
    xp = array_module(array)
    places = xp.unravel_index(xp.arange(0, array.size, array.size // CHECKED | 1), array.shape)
    return f"{crc32(to_host(array[places]).tobytes()):08x}"


def _numbers(optimizer: Any) -> str:
    """Return an optimizer's kind, settings and steps, as far as it tells them."""
    known = {"lr": getattr(optimizer, "lr", None)}
    if hasattr(optimizer, "state_dict"):
        state = optimizer.state_dict()
        known |= {name: value for name, value in state.items() if isinstance(value, int | float | np.number)}
    return f"{type(optimizer).__name__} with " + ", ".join(f"{name} {value}" for name, value in known.items())


def _check_parts(network: Any, loss: Any, optimizer: Any) -> None:
    for name, part, needed in (
        ("network", network, ("params", "train", "forward", "backward")),
        ("loss", loss, ("forward", "backward")),
        ("optimizer", optimizer, ("step",)),
    ):
        if isinstance(part, type):
            cls = part.__name__
            raise TypeError(f"fit: {name} must be an object, not the class {cls}; {cls}(...) makes one")
        for attribute in needed:
            if not hasattr(part, attribute):
                raise TypeError(
                    f"fit: {name} must have {' and '.join(', '.join(needed).rsplit(', ', 1))}, "
                    f"but {type(part).__name__} has no {attribute}"
                )
    if not hasattr(optimizer, "network"):  # one of the user's own
        return
    own, held = ({id(p) for p in part.params.values()} for part in (network, optimizer.network))
    if own.isdisjoint(held) and (own or held):
        raise ValueError("fit: optimizer must hold parameters of this network, but was made for another")


def _epochs(
    x: Any,
    batch_size: int | None,
    rng: np.random.Generator | None,
    updates: int,
    part: Callable[[int, int], slice],
) -> Iterator[Iterable[Batch]]:
    """Yield the batches of each pass, until there were so many updates.

    `part` gives of a batch's places, from a start to a stop, those of this process: all, for a single one.
    """
    n = len(x)
    size = n if batch_size is None else min(batch_size, n)
    starts = range(0, n, size)
    for left in range(updates, 0, -len(starts)):
        order = None if rng is None else array_module(x).asarray(rng.permutation(n))
        ranges = ((start, min(start + size, n)) for start in starts[:left])
        yield (
            Batch(part(*each) if order is None else order[part(*each)], each[1] - each[0]) for each in ranges
        )


@part_of_training("step")
def _step(
    network: Any, x: Any, y: Any, batch: Batch, loss: Any, optimizer: Any, measure: bool, *, number: int
) -> tuple[Any, float]:
    """Make the update of this number; return the loss before it, and by how much the parameters moved."""
    whole = {"batch": batch.size} if hasattr(network, "part_of_batch") else {}
    value, dy = _loss(loss, network.forward(x[batch.index], **whole), y[batch.index])
    network.backward(dy, needs_dx=False)
    return value, _update(network, optimizer, measure)


@part_of_training("loss")
def _loss(loss: Any, scores: Any, y: Any) -> tuple[Any, Any]:
    """Return the loss, and its gradient by the scores."""
    return loss.forward(scores, y), loss.backward()


@part_of_training("update")
def _update(network: Any, optimizer: Any, measure: bool) -> float:
    """Update the parameters; return by how much the one that moved most has moved, where asked to."""
    if not measure:
        optimizer.step()
        return np.inf
    before = {name: p.copy() for name, p in network.params.items()}
    optimizer.step()
    changes = [abs(network.params[name] - p).max() for name, p in before.items() if p.size]
    # One number at the end, so that a GPU is waited for once. A change that isn't a number is no small one.
    return float(array_module(changes[0]).stack(changes).max()) if changes else 0.0


def _answer(answer: Any) -> bool:
    return answer is not None and flag("fit", "the callback's answer", answer)
