"""A training run that can stop after any update and go on later as if it had not stopped.

Everything random in epoch e is drawn from a generator made of the seed and e alone. So the position of a run
is two counters, not the inner state of a generator, and the pictures of a half-finished epoch come back in
their order when it goes on. Several processes draw the same, and each takes its part of every batch: their
number is no part of the run, and it may go on with another.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields
from itertools import accumulate, pairwise
from math import inf, isfinite
from typing import Any
from zlib import crc32

import numpy as np

import gpuconv.nn as nn
from gpuconv.backends.dispatch import array_module, to_host
from gpuconv.distributed import Alone, Communicator, DataParallel, part
from gpuconv.distributed.communicator import check_alike
from gpuconv.trace import training
from gpuconv.training.augment import shifted
from gpuconv.training.checkpoint import Checkpoint, CheckpointError
from gpuconv.training.datasets import Dataset
from gpuconv.training.fit import Batch, Callback, descend
from gpuconv.training.networks import modern_cnn, textbook_cnn

Array = Any


class Diverged(ArithmeticError):
    """The loss is no finite number any more; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """What determines a run, beside its pictures.

    Attributes
    ----------
    algorithm
        A name in `ALGORITHMS`.
    seed
        Of the first weights, the order of the pictures and their shifts.
    epochs, max_iterations
        Limits; the one that comes first ends the run. None is no limit, but one of them must be given.
    batch_size
        Pictures per update; None takes all.
    step
        Step size α of the first epoch.
    decay
        What the step is multiplied with from one epoch to the next, down to a hundredth of the first. It
        doesn't depend on `epochs`, so that a run can be prolonged.
    tolerance
        Stop when no parameter moved by more than this.
    shift
        Pictures are moved by up to this many pixels, anew in every epoch.
    local_batch_norm
        Whether each of several processes normalises its own part of a batch. The result then depends on
        their number.
    """

    algorithm: str
    seed: int
    epochs: int | None
    max_iterations: int | None
    batch_size: int | None
    step: float
    decay: float = 1.0
    tolerance: float | None = None
    shift: int = 0
    local_batch_norm: bool = False


def check_settings(settings: Settings) -> None:
    """Refuse settings that no run has had, as a foreign or an edited checkpoint may hold.

    Raises
    ------
    ValueError
        Naming the setting and what it was.
    """
    smallest = {"seed": 0, "shift": 0, "epochs": 1, "max_iterations": 1, "batch_size": 1}
    optional = ("epochs", "max_iterations", "batch_size", "tolerance")
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is None:
            good = field.name in optional
        elif field.name == "algorithm":
            good = isinstance(value, str) and value in ALGORITHMS
        elif field.name == "local_batch_norm":
            good = isinstance(value, bool)
        elif field.name in smallest:
            good = type(value) is int and value >= smallest[field.name]
        else:
            good = type(value) in (int, float) and 0 <= value < inf
        if not good:
            raise ValueError(f"{field.name} is {value!r}")
    if settings.epochs is None and settings.max_iterations is None:
        raise ValueError("neither epochs nor max_iterations is given")


@dataclass(frozen=True)
class Algorithm:
    """A kind of network and the rule that trains it."""

    network: Callable[[tuple[int, int, int], int, np.random.Generator], nn.Sequential]
    optimizer: Callable[[nn.Layer, float], Any]


ALGORITHMS = {
    "adam": Algorithm(modern_cnn, nn.Adam),
    "sgd": Algorithm(modern_cnn, lambda network, step: nn.SGD(network, step, momentum=0.9)),
    "batch-gd": Algorithm(textbook_cnn, nn.SGD),
}


@dataclass(frozen=True)
class Record:
    """One epoch in numbers.

    Attributes
    ----------
    epoch, iterations
        Counted from 1; updates so far, all epochs together.
    loss, train_accuracy
        Means over the epoch's own (shifted) pictures, each seen by the network as it was at that moment.
    test_accuracy
        Of the network as it was after the epoch.
    step
        The step size.
    seconds
        Since the run began, its interruptions left out.
    """

    epoch: int
    iterations: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    step: float
    seconds: float


PARTS = ("network/", "optimizer/")
FIELDS = tuple(field.name for field in fields(Record))
OnEpoch = Callable[[Record], None]

# Pictures that go through the network at once when it is evaluated: enough to keep it busy, little memory.
EVALUATED = 250

# An epoch's step size is at least this share of the first one's.
SMALLEST_DECAY = 0.01


class Run:
    """A network on its way.

    Parameters
    ----------
    settings
        What determines the run.
    dataset
        What to train on.
    device
        "cpu", or "cuda" for the current GPU. It is no part of the settings: a run may go on on another.
    comm
        The processes that train together; all of them must call the same methods. None is this one alone.

    Raises
    ------
    ValueError
        On all processes, where one has other settings or pictures.

    Attributes
    ----------
    network
        In training or evaluation mode, whichever came last.
    records
        One for each finished epoch.
    iterations
        Updates so far.
    stopped_by
        None while there is more to do, else `"max_iterations"`, `"tolerance"` or `"interrupted"`.

    Examples
    --------
    >>> from gpuconv.training.datasets import load
    >>> settings = Settings("adam", seed=0, epochs=1, max_iterations=None, batch_size=50, step=0.003)
    >>> run = Run(settings, load("digits"))
    >>> run.train()
    >>> run.iterations, run.stopped_by, run.records[0].test_accuracy > 0.8
    (29, 'max_iterations', True)
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        device: str = "cpu",
        *,
        comm: Communicator | None = None,
    ) -> None:
        self.comm = Alone() if comm is None else comm
        check_alike(self.comm, "Run", **asdict(settings), pictures=dataset.fingerprint)
        algorithm = ALGORITHMS[settings.algorithm]
        self.settings = settings
        self.dataset = dataset.to(device)
        self.device = device
        rng = np.random.default_rng([settings.seed, 0])  # the epochs take 1, 2, ...
        # Drawn on the host, so that a seed gives the same network everywhere.
        network: nn.Layer = algorithm.network(dataset.image_shape, dataset.classes, rng).to(device)
        if self.comm.size > 1:
            network = DataParallel(network, self.comm, sync_batch_norm=not settings.local_batch_norm)
        self.network = network
        self.optimizer = algorithm.optimizer(self.network, settings.step)
        self.records: list[Record] = []
        self.iterations = 0
        self.stopped_by: str | None = None
        self._batch_size = settings.batch_size or len(dataset.x_train)
        self._epoch = _Epoch(self.comm)
        self._seconds = 0.0
        self._started: float | None = None

    @property
    def updates_per_epoch(self) -> int:
        """Batches that the training pictures make; the last one may be smaller."""
        return -(-len(self.dataset.x_train) // self._batch_size)

    @property
    def total(self) -> int:
        """Updates after which the run ends at the latest."""
        limits = []
        if self.settings.max_iterations is not None:
            limits.append(self.settings.max_iterations)
        if self.settings.epochs is not None:
            limits.append(self.settings.epochs * self.updates_per_epoch)
        return min(limits)

    @property
    def seconds(self) -> float:
        """Time spent in `train`, in this process and in those that it goes on from."""
        now = time.perf_counter()
        return self._seconds + (now - self._started if self._started is not None else 0.0)

    def train(self, on_update: Callback | None = None, on_epoch: OnEpoch | None = None) -> None:
        """Train until a limit, the tolerance or `on_update` ends it; `stopped_by` says which.

        Parameters
        ----------
        on_update
            Called with the number of updates so far and the last loss (a 0-d array); True interrupts the run.
        on_epoch
            Called with the numbers of each epoch as it ends.

        Raises
        ------
        Diverged
            Where the mean loss of an epoch, whole or not, is not finite; `on_epoch` is not called then.
        """
        self._started = time.perf_counter()
        try:
            while self.stopped_by is None and self.iterations < self.total:
                with training("epoch", len(self.records) + 1):
                    how = self._finish_epoch(on_update)
                    if how == "tolerance":
                        self.stopped_by = how
                    elif how == "callback" and self.iterations < self.total:
                        self.stopped_by = "interrupted"
                    if self._epoch.updates == self.updates_per_epoch:
                        self._end_epoch(on_epoch)
            self._check_loss()
            self.stopped_by = self.stopped_by or "max_iterations"
        finally:
            self._seconds, self._started = self.seconds, None

    def accuracy(self, x: Array, y: Array) -> float:
        """Return the share of pictures whose highest score is that of their class; all processes look."""
        own = self._part(0, len(x))
        hits = np.array(int((self.scores(x[own]).argmax(axis=1) == y[own]).sum()))
        self.comm.sum(hits)
        return int(hits) / len(x)

    def scores(self, x: Array) -> Array:
        """Return the scores `[N, K]` of pictures, the network in evaluation mode."""
        self.network.eval()
        blocks = [self.network.forward(x[i : i + EVALUATED]) for i in range(0, max(len(x), 1), EVALUATED)]
        return array_module(x).concatenate(blocks)

    def current(self) -> Record:
        """Return the numbers of the epoch under way; it must have had an update."""
        return Record(
            epoch=len(self.records) + 1,
            iterations=self.iterations,
            loss=self._epoch.mean_loss(),
            train_accuracy=self._epoch.accuracy(),
            test_accuracy=self.accuracy(self.dataset.x_test, self.dataset.y_test),
            step=self.optimizer.lr,
            seconds=self.seconds,
        )

    @property
    def in_an_epoch(self) -> bool:
        """True where the epoch under way has had an update."""
        return self._epoch.updates > 0

    def checkpoint(self) -> Checkpoint:
        """Return all that `restore` needs."""
        arrays = {f"network/{name}": to_host(array) for name, array in self.network.state_dict().items()}
        for name, value in self.optimizer.state_dict().items():
            arrays[f"optimizer/{name}"] = np.asarray(value) if np.isscalar(value) else to_host(value)
        arrays["records"] = np.array([astuple(record) for record in self.records]).reshape(-1, len(FIELDS))
        arrays["epoch"] = self._epoch.as_array()
        state = {
            "iterations": self.iterations,
            "seconds": self.seconds,
            "stopped_by": self.stopped_by,
            "data": self.dataset.name,
            "pictures": self.dataset.fingerprint,
        }
        return Checkpoint(asdict(self.settings), arrays, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up where the run that made the checkpoint was.

        Raises
        ------
        CheckpointError
            Where it is of other pictures or of another network, or where its arrays or counters are not those
            of a run. The run is of no use then.
        ValueError
            On all processes, where one has another checkpoint.
        """
        iterations = checkpoint.state.get("iterations")
        check_alike(self.comm, "Run.restore", iterations=iterations, weights=_checksum(checkpoint))
        _check_contents(checkpoint)
        if checkpoint.state["pictures"] != self.dataset.fingerprint:
            raise CheckpointError(f"was trained on other pictures than {self.dataset.name}")
        parts: dict[str, dict[str, Array]] = {"network": {}, "optimizer": {}}
        for key, array in checkpoint.arrays.items():
            part, slash, name = key.partition("/")
            if slash:
                parts[part][name] = array
        try:
            self.network.load_state_dict(parts["network"])
            self.optimizer.load_state_dict(parts["optimizer"])
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"is of another network ({error})") from None
        self._check_position(checkpoint)
        self.records = [
            Record(int(epoch), int(iterations), *numbers)
            for epoch, iterations, *numbers in checkpoint.arrays["records"].tolist()
        ]
        self._epoch = _Epoch(self.comm, checkpoint.arrays["epoch"])
        self.iterations = checkpoint.state["iterations"]
        self._seconds = checkpoint.state["seconds"]
        if checkpoint.state["stopped_by"] == "tolerance":
            same = checkpoint.settings.get("tolerance") == self.settings.tolerance
            self.stopped_by = "tolerance" if same else None

    def _check_position(self, checkpoint: Checkpoint) -> None:
        """Check that what the checkpoint counts can be this run's, and adds up."""
        records, epoch = checkpoint.arrays["records"], checkpoint.arrays["epoch"]
        done = np.arange(1, len(records) + 1)
        if (records[:, 0] != done).any() or (records[:, 1] != done * self.updates_per_epoch).any():
            raise CheckpointError(
                f"its records are not of epochs 1 to {len(records)} of {self.updates_per_epoch} updates each"
            )
        left = len(self.dataset.x_train) - self._batch_size * np.arange(len(epoch))
        sizes, (_, hits, counts) = np.minimum(left, self._batch_size), epoch.T
        if len(epoch) >= self.updates_per_epoch or ((counts != sizes) | (hits < 0) | (hits > counts)).any():
            raise CheckpointError(f"its epoch is not one of batches of {self._batch_size}")
        iterations, steps = checkpoint.state["iterations"], self.optimizer.steps
        made = len(records) * self.updates_per_epoch + len(epoch)
        if iterations != made:
            raise CheckpointError(
                f"its iterations is {iterations}, but {len(records)} epochs of {self.updates_per_epoch} "
                f"updates and {len(epoch)} more make {made}"
            )
        if iterations != steps:
            raise CheckpointError(f"its iterations is {iterations}, but the optimizer made {steps} steps")

    def _finish_epoch(self, on_update: Callback | None) -> str | None:
        """Train to the end of the epoch under way, or less; return what stopped it, or None."""
        x, y = self._pictures()
        n, size = len(self.dataset.x_train), self._batch_size
        ends = [0, *accumulate(part.stop - part.start for part in self._places())]
        batches = [Batch(slice(*pair), min(size, n - i * size)) for i, pair in enumerate(pairwise(ends))]
        done = self._epoch.updates
        updates = min(self.updates_per_epoch - done, self.total - self.iterations)

        def after_update(iteration: int, loss: Array) -> bool:
            self.iterations = iteration
            return on_update is not None and bool(on_update(iteration, loss))

        decayed = self.settings.decay ** len(self.records)
        self.optimizer.lr = self.settings.step * max(decayed, SMALLEST_DECAY)
        self.network.train()
        return descend(
            self.network,
            x,
            y,
            batches[done : done + updates],
            loss=self._epoch,
            optimizer=self.optimizer,
            tolerance=self.settings.tolerance,
            callback=after_update,
            losses=[],
            before=self.iterations,
        )

    def _places(self) -> list[slice]:
        """Return where this process's part of each batch lies in an epoch's order."""
        n, size = len(self.dataset.x_train), self._batch_size
        return [self._part(start, min(start + size, n)) for start in range(0, n, size)]

    def _pictures(self) -> tuple[Array, Array]:
        """Return this process's pictures of the epoch under way, shuffled and shifted, and their classes."""
        x, y = self.dataset.x_train, self.dataset.y_train
        n = len(x)
        own: Any = slice(None)
        if self.comm.size > 1:
            own = np.concatenate([np.arange(part.start, part.stop) for part in self._places()])
        rng = np.random.default_rng([self.settings.seed, len(self.records) + 1])
        if self.settings.batch_size is not None:
            order = array_module(x).asarray(rng.permutation(n)[own])
            x, y = x[order], y[order]
        else:  # the sum over all pictures needs no order
            (own,) = self._places()
            x, y = x[own], y[own]
        if most := self.settings.shift:
            x = shifted(x, most, rng.integers(-most, most + 1, (2, n))[:, own])
        return x, y

    def _part(self, start: int, stop: int) -> slice:
        """Return those of some places that are this process's."""
        return part(start, stop, self.comm.rank, self.comm.size)

    def _check_loss(self) -> None:
        if self.in_an_epoch and not isfinite(loss := self._epoch.mean_loss()):
            raise Diverged(
                f"the mean loss of epoch {len(self.records) + 1} is {loss} with step {self.optimizer.lr:g}; "
                "try a smaller step"
            )

    def _end_epoch(self, on_epoch: OnEpoch | None) -> None:
        self._check_loss()
        with training("evaluation"):
            record = self.current()
        self.records.append(record)
        self._epoch = _Epoch(self.comm)
        if on_epoch is not None:
            on_epoch(record)


def _checksum(checkpoint: Checkpoint) -> str:
    """Return a checksum of the weights and the optimizer, and not of seconds, which each process counts."""
    total = 0
    for key, array in checkpoint.arrays.items():
        if key.startswith(PARTS):
            total = crc32(array.tobytes(), crc32(key.encode(), total))
    return f"with checksum {total:08x}"


def _check_contents(checkpoint: Checkpoint) -> None:
    """Check names, kinds and shapes of what a checkpoint holds beside its settings."""
    state, arrays = checkpoint.state, checkpoint.arrays
    missing = {"pictures", "iterations", "seconds", "stopped_by"} - set(state)
    missing |= {"records", "epoch"} - set(arrays)
    if missing:
        raise CheckpointError(f"lacks {', '.join(sorted(missing))}")
    unknown = [key for key in arrays if key not in ("records", "epoch") and not key.startswith(PARTS)]
    if unknown:
        raise CheckpointError(f"holds the unknown {', '.join(sorted(unknown))}")
    for name, columns, verbs in (("records", len(FIELDS), ("are", "hold")), ("epoch", 3, ("is", "holds"))):
        array = arrays[name]
        if array.ndim != 2 or array.shape[1] != columns or array.dtype.kind != "f":
            raise CheckpointError(
                f"its {name} {verbs[0]} {array.dtype} {array.shape}, not numbers in {columns} columns"
            )
        if not np.isfinite(array).all():
            raise CheckpointError(f"its {name} {verbs[1]} values that are not finite")
    good = {
        "iterations": type(state["iterations"]) is int,
        "seconds": type(state["seconds"]) in (int, float) and 0 <= state["seconds"] < inf,
        "stopped_by": state["stopped_by"] in (None, "max_iterations", "tolerance", "interrupted"),
    }
    for name, fits in good.items():
        if not fits:
            raise CheckpointError(f"its {name} is {state[name]!r}")


class _Epoch:
    """The loss of an epoch's updates, which also counts the pictures that were classified well.

    It is the loss that `fit` sees; what it counts stays where the scores are until somebody asks, and is
    moved to the host, and added up over the processes, once.
    """

    def __init__(self, comm: Communicator, rows: Array | None = None) -> None:
        self._comm = comm
        self._loss = nn.SoftmaxCrossEntropy()
        # Mean loss, hits, pictures of each update; those on the host.
        self._rows = np.empty((0, 3)) if rows is None else np.array(rows, np.float64)
        self._newest: list[tuple[Any, Any, int]] = []  # the updates since

    @property
    def updates(self) -> int:
        return len(self._rows) + len(self._newest)

    def forward(self, scores: Array, target: Array) -> Array:
        loss = self._loss.forward(scores, target)
        self._newest.append((loss, (scores.argmax(axis=1) == target).sum(), len(target)))
        return loss

    def backward(self) -> Array:
        return self._loss.backward()

    def mean_loss(self) -> float:
        rows = self.as_array()
        return float(rows[:, 0] @ rows[:, 2] / rows[:, 2].sum())

    def accuracy(self) -> float:
        rows = self.as_array()
        return float(rows[:, 1].sum() / rows[:, 2].sum())

    def as_array(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        if self._newest:
            losses, hits, counts = zip(*self._newest, strict=True)
            stack = array_module(losses[0]).stack  # one copy of each from a GPU, not one an update
            newest = np.stack([to_host(stack(losses)), to_host(stack(hits)), counts], axis=1)
            if self._comm.size > 1:
                newest[:, 0] *= newest[:, 2]
                self._comm.sum(newest)
                newest[:, 0] /= newest[:, 2]
            self._rows = np.concatenate([self._rows, newest])
            self._newest = []
        return self._rows
