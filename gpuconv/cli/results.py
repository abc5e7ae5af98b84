"""What a run leaves in its folder, beside the checkpoint, and what it says in the end."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gpuconv.cli.plan import METRICS, WEIGHTS
from gpuconv.cli.together import by_the_first
from gpuconv.files import write_whole
from gpuconv.training import pictures
from gpuconv.training.run import Record, Run

CURVE, MISTAKES = "learning_curve.png", "misclassified.png"

# What ended the run, in words.
ENDINGS = {
    "max_iterations": "the end of its iterations (max_iterations)",
    "tolerance": "the tolerance: no parameter moved by more (tolerance)",
    "interrupted": "Ctrl-C (interrupted)",
}


def write_results(run: Run, out: Path) -> None:
    """Write weights, numbers and pictures, each file whole or not at all, and print a summary.

    Of several processes all must call this, and the first one writes.

    Raises
    ------
    OSError
        Where one can't be written; on all processes.
    """
    data = run.dataset
    records = [*run.records, run.current()] if run.in_an_epoch else run.records
    train_accuracy = run.accuracy(data.x_train, data.y_train)
    by_the_first(run.comm, lambda: _write(run, out, records, train_accuracy))


def _write(run: Run, out: Path, records: list[Record], train_accuracy: float) -> None:
    data = run.dataset
    scores = run.scores(data.x_test)
    metrics: dict[str, Any] = {
        "test_accuracy": float((scores.argmax(axis=1) == data.y_test).mean()),
        "train_accuracy": train_accuracy,
        "seconds": run.seconds,
        "iterations": run.iterations,
        "stopped_by": run.stopped_by,
        "device": run.device,
        "ranks": run.comm.size,
        "data": data.name,
        **asdict(run.settings),
        "history": {f.name: [getattr(record, f.name) for record in records] for f in fields(Record)},
    }
    run.network.save(out / WEIGHTS)
    write_whole(out / METRICS, (json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    title = f"{data.name}, {run.settings.algorithm}, seed {run.settings.seed}"
    written = [WEIGHTS, METRICS, MISTAKES]
    if records:
        write_whole(out / CURVE, pictures.learning_curve(records, title))
        written.append(CURVE)
    write_whole(out / MISTAKES, pictures.misclassified(data.x_test, data.y_test, scores, title))
    print(
        f"test accuracy {100 * metrics['test_accuracy']:.1f} % of {len(data.x_test):,}, training accuracy "
        f"{100 * metrics['train_accuracy']:.1f} %, after {run.iterations:,} updates in {run.seconds:.0f} s\n"
        f"stopped by {ENDINGS[metrics['stopped_by']]}\n"
        f"written to {out}: checkpoint.npz, {', '.join(written)}"
    )
