"""`gpuconv train`: from pictures to a folder with a trained network and all there is to know about it."""

import argparse
import shlex
import signal
import warnings
from pathlib import Path
from typing import Any

from gpuconv import distributed
from gpuconv.backends.cpu import threads
from gpuconv.cli import requirements
from gpuconv.cli.errors import UserError
from gpuconv.cli.interrupt import Interrupt
from gpuconv.cli.options import count, count_or_zero, not_negative, path, positive
from gpuconv.cli.plan import (
    ALGORITHM,
    CHECKPOINT,
    check_options,
    data_of,
    device_of,
    find_checkpoint,
    make_folder,
    settings_of,
)
from gpuconv.cli.results import write_results
from gpuconv.cli.together import by_the_first
from gpuconv.distributed import Communicator
from gpuconv.training import datasets
from gpuconv.training.checkpoint import CheckpointError, save_checkpoint
from gpuconv.training.run import ALGORITHMS, Diverged, Record, Run

DESCRIPTION = """\
Train a convolutional network and write it, its numbers and two pictures into a folder.

--algorithm adam and sgd train convolutions with batch normalisation on mini-batches (sgd with momentum 0.9).
batch-gd is the textbook's batch gradient descent: sigmoids, all pictures in every update, a fixed step alpha,
an end after MAX updates or as soon as no parameter moved by more than epsilon.
"""

EPILOG = """\
Ctrl-C stops after the update under way, writes what there is and says how to go on. A resumed run takes its
options from the checkpoint and equals one that was never stopped; only --epochs, --max-iterations and
--tolerance may change. A folder that holds a run is not written to without --resume or --overwrite.

Under mpirun (the extra mpi) the processes share every batch, and the result is that of one; a run may go on
with another number of them.
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "train",
        help="train a network on pictures",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_command)
    add = parser.add_argument
    add(
        "--data",
        type=path,
        help="mnist5k (default): 5,000 MNIST digits; digits: scikit-learn's 8 x 8; a folder of MNIST-format "
        "IDX files, plain or .gz; or an .npz with images ([N, H, W], [N, C, H, W] or [N, H, W, C]) and "
        "labels, perhaps test_images and test_labels",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto (default) is a GPU if usable")
    add("--algorithm", choices=tuple(ALGORITHMS), help=f"default {ALGORITHM}")
    add("--epochs", type=count, help="passes over the training pictures; default 12, digits 15")
    add("--batch-size", type=count, help="pictures per update; default 50; batch-gd takes all of them")
    add("--step", type=positive, help="step size alpha; default 0.003, sgd 0.02, batch-gd 2")
    add("--max-iterations", type=count, help="most updates (MAX); default for batch-gd 200")
    add(
        "--tolerance",
        type=not_negative,
        help="stop when no parameter moved by more than this (epsilon); default for batch-gd 1e-5",
    )
    add(
        "--shift",
        type=count_or_zero,
        help="move pictures by up to so many pixels; default 2 from 20 x 20 up",
    )
    add("--seed", type=count_or_zero, help="of weights, order and shifts, not of the split; default 0")
    add(
        "--out",
        type=lambda text: Path(path(text)),
        help="folder to write to; default runs/DATA-ALGORITHM, numbered if there is one",
    )
    add(
        "--resume",
        nargs="?",
        const=True,
        type=path,
        metavar="PATH",
        help="go on from a folder or checkpoint; without PATH, from --out or the last default folder",
    )
    add(
        "--local-batch-norm",
        action="store_true",
        default=None,
        help="under mpirun, let each process normalise its own part of a batch: faster, but the result then "
        "depends on their number",
    )
    add("--overwrite", action="store_true", help="begin anew in a folder that holds a run")


def run_command(options: argparse.Namespace) -> int:
    """Train as the options say, on all processes that mpirun has started; return the exit code."""
    try:
        world = distributed.world()
    except RuntimeError as error:
        raise UserError(str(error)) from None
    with world as comm:
        return _run_together(options, comm)


def _run_together(options: argparse.Namespace, comm: Communicator) -> int:
    check_options(options)
    devices = comm.everyone(device_of(options))
    device = "cuda" if set(devices) == {"cuda"} else "cpu"  # one for all: they add up arrays of one kind
    if comm.size > 1:
        comm = _with_means(comm, device)
    resumed = by_the_first(comm, lambda: find_checkpoint(options))
    data = data_of(options, resumed)
    requirements.check(data)
    try:
        dataset = datasets.load(data)
    except datasets.DataError as error:
        raise UserError(str(error)) from None
    settings = settings_of(options, resumed, dataset)
    try:
        run = Run(settings, dataset, device, comm=comm)
    except ValueError as error:  # this process has other options or pictures than another
        raise UserError(str(error)) from None
    if resumed:
        try:
            run.restore(resumed.checkpoint)
        except CheckpointError as error:
            raise UserError(f"{resumed.path}: {error}") from None
    return _train(run, by_the_first(comm, lambda: make_folder(options, resumed, data, settings.algorithm)))


def _with_means(comm: Communicator, device: str) -> Communicator:
    """Give each of several processes its cores, or its GPU."""
    if device == "cpu":
        distributed.share_cores(comm)
        return comm
    try:
        return distributed.on_gpus(comm)
    except RuntimeError as error:
        raise UserError(f"{error}; --device cpu does without") from None


def _train(run: Run, out: Path) -> int:
    from gpuconv.cli.progress import progress

    comm, first = run.comm, run.comm.rank == 0
    stragglers = distributed.Stragglers(comm)

    def save() -> None:
        checkpoint = run.checkpoint()
        by_the_first(comm, lambda: save_checkpoint(out / CHECKPOINT, checkpoint))

    if first:
        print(_description(run), flush=True)
    asked_by = (signal.SIGTERM,) if comm.size > 1 else ()
    with Interrupt(*asked_by) as interrupt, warnings.catch_warnings():
        # The way to a loss that is no number, which is reported as such. np.errstate would miss the threads.
        warnings.filterwarnings(
            "ignore", "(overflow|invalid value|divide by zero) encountered", RuntimeWarning
        )
        try:
            with progress(run) as shown:

                def on_update(iterations: int, loss: Any) -> bool:
                    shown.update(iterations, loss)
                    shown.say(stragglers.step())
                    return interrupt.requested

                def on_epoch(record: Record) -> None:
                    shown.say(stragglers.lap())
                    save()
                    shown.end_epoch(record)
                    stragglers.restart()  # to write is the first one's work alone

                run.train(on_update, on_epoch)
            save()
            write_results(run, out)
        except Diverged as error:
            raise UserError(f"{error} (--step)", exit_code=1) from None
    if run.stopped_by == "interrupted":
        if first:
            print(f"to go on: gpuconv train --resume {shlex.quote(str(out))}")
        return 130
    return 0


def _description(run: Run) -> str:
    data = run.dataset
    channels, height, width = data.image_shape
    size = f"{height} x {width}" + (f" x {channels}" if channels > 1 else "")
    weights = sum(p.size for p in run.network.params.values())
    return (
        f"{data.name}: {len(data.x_train):,} training and {len(data.x_test):,} test pictures, {size}, "
        f"{data.classes} classes\n"
        f"{run.settings.algorithm}: {weights:,} parameters, on {_device(run)}"
    )


def _device(run: Run) -> str:
    several = f"{run.comm.size} processes, each on " if run.comm.size > 1 else ""
    return several + ("the GPU" if run.device == "cuda" else f"the CPU with {threads.count()} threads")
