"""How a run shows that it moves: a bar on a terminal, plain lines elsewhere, and of several processes."""

import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpuconv.training.run import Record, Run

# Seconds between two looks at the loss: reading it makes a GPU wait.
INTERVAL = 0.2

# Lines for a whole run, at most about this many: an epoch of batch gradient descent is a single update.
LINES = 50


class Bar:
    """One line of a terminal, drawn again and again."""

    def __init__(self, run: Run, console: Console) -> None:
        self._run = run
        self._looked = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("loss {task.fields[loss]}  test {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(
            "starting", total=run.total, completed=run.iterations, loss="-", accuracy=self._accuracy()
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, iterations: int, loss: Any) -> None:
        """Show a new update."""
        now = time.monotonic()
        if now - self._looked < INTERVAL and iterations < self._run.total:
            return
        self._looked = now
        epoch = f"epoch {len(self._run.records) + 1}"
        self._bar.update(self._task, completed=iterations, description=epoch, loss=f"{float(loss):.4f}")

    def end_epoch(self, record: Record) -> None:
        """Show a new test accuracy."""
        self._bar.update(self._task, accuracy=self._accuracy())

    def say(self, line: str | None) -> None:
        """Print a line above the bar, if there is one."""
        if line:
            self._bar.console.print(line, highlight=False)

    def _accuracy(self) -> str:
        return f"{100 * self._run.records[-1].test_accuracy:.1f} %" if self._run.records else "-"


class Lines:
    """A line for an epoch, or for several where they are many."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._first = run.iterations
        self._next = run.iterations
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, iterations: int, loss: Any) -> None:
        """Say nothing: an update is too small a thing for a line."""

    def end_epoch(self, record: Record) -> None:
        """Print the epoch's numbers, if enough has happened since the last line."""
        if record.iterations < min(self._next, self._run.total):
            return
        self._next = record.iterations + self._run.total // LINES
        spent = time.monotonic() - self._started
        left = spent * (self._run.total - record.iterations) / (record.iterations - self._first)
        print(
            f"epoch {record.epoch:3}  loss {record.loss:.4f}  train {100 * record.train_accuracy:5.1f} %  "
            f"test {100 * record.test_accuracy:5.1f} %  {record.seconds:4.0f} s, {left:.0f} s left",
            flush=True,
        )

    def say(self, line: str | None) -> None:
        """Print a line, if there is one."""
        if line:
            print(line, flush=True)


class Silence(Lines):
    """What all processes but the first show."""

    def end_epoch(self, record: Record) -> None:
        """Say nothing."""

    def say(self, line: str | None) -> None:
        """Say nothing."""


def progress(run: Run) -> Bar | Lines:
    """Return what suits the place where the output goes."""
    if run.comm.rank:
        return Silence(run)
    console = Console()
    # What mpirun passes on is no terminal, though Open MPI's says so.
    if run.comm.size == 1 and sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
        return Bar(run, console)
    return Lines(run)
