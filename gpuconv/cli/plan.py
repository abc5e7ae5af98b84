"""From options, defaults and perhaps a checkpoint to what is to be trained, and in which folder."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, takewhile
from pathlib import Path

from gpuconv.backends.dispatch import check_gpu
from gpuconv.cli.errors import UserError
from gpuconv.files import make_writable
from gpuconv.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from gpuconv.training.datasets import Dataset
from gpuconv.training.run import Settings, check_settings

CHECKPOINT, WEIGHTS, METRICS = "checkpoint.npz", "weights.safetensors", "metrics.json"
OUTPUTS = (CHECKPOINT, WEIGHTS, METRICS)

DATA, ALGORITHM = "mnist5k", "adam"

# Step sizes that suit the networks of training/networks.py; batch-gd's is that of a mean loss, so that of the
# textbook, which sums over the pictures, is this over their number.
STEPS = {"adam": 0.003, "sgd": 0.02, "batch-gd": 2.0}

BATCH_SIZE = 50

# batch-gd's own ends, MAX and epsilon.
MAX_ITERATIONS, TOLERANCE = 200, 1e-5

# Epochs after which the test accuracy has stopped rising.
EPOCHS, DIGITS_EPOCHS = 12, 15

# The step comes down to this share over the default epochs. A fixed rate per epoch, not a curve that knows
# its end: a run that is prolonged is then the same as one that was longer from the start.
LAST_STEP = 0.03

# Pictures of this size and more are moved by up to two pixels; on 8 x 8 a pixel is an eighth of the digit.
LARGE, SHIFT = 20, 2

# Options that a resumed run can't change: it would not be the same run.
FIXED = ("algorithm", "seed", "batch_size", "step", "shift")
LIMITS = ("epochs", "max_iterations", "tolerance")


@dataclass(frozen=True)
class Resumed:
    """A checkpoint and where it was found."""

    path: Path
    checkpoint: Checkpoint


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that don't go together, before anything is read."""
    if options.algorithm == "batch-gd" and options.batch_size is not None:
        raise UserError("--batch-size: batch-gd takes all pictures in every update; sgd takes batches")
    if options.resume and options.overwrite:
        raise UserError("--overwrite begins anew and --resume goes on: give one of them")


def device_of(options: argparse.Namespace) -> str:
    """Return "cpu" or "cuda"; "auto" is a GPU where one can be used."""
    if options.device == "cpu":
        return "cpu"
    try:
        check_gpu()
    except RuntimeError as error:
        if options.device == "cuda":
            raise UserError(f"--device cuda: {error}") from None
        return "cpu"
    return "cuda"


def find_checkpoint(options: argparse.Namespace) -> Resumed | None:
    """Read the checkpoint that `--resume` asks for."""
    if not options.resume:
        return None
    if options.resume is not True:
        path = Path(options.resume)
    elif options.out is not None:
        path = options.out
    else:
        data, algorithm = options.data or DATA, options.algorithm or ALGORITHM
        folders = list(takewhile(Path.exists, _default_folders(data, algorithm)))
        if not folders:
            raise UserError("--resume: there is no run in the default folder; say where: --resume PATH")
        path = folders[-1]
    if path.is_dir() or options.resume is True:
        path /= CHECKPOINT
    try:
        return Resumed(path, load_checkpoint(path))
    except CheckpointError as error:
        raise UserError(str(error)) from None


def data_of(options: argparse.Namespace, resumed: Resumed | None) -> str:
    """Return the name or path of the pictures."""
    if options.data is not None or resumed is None:
        return options.data or DATA
    data = resumed.checkpoint.state.get("data", DATA)
    if not isinstance(data, str):
        raise UserError(f"{resumed.path}: its data is {data!r}, not a name or a path")
    return data


def settings_of(options: argparse.Namespace, resumed: Resumed | None, dataset: Dataset) -> Settings:
    """Return what determines the run."""
    if resumed is None:
        return _new_settings(options, dataset)
    try:
        # A checkpoint from before this was kept doesn't say.
        saved = Settings(**{"local_batch_norm": bool(options.local_batch_norm)} | resumed.checkpoint.settings)
        check_settings(saved)
    except (TypeError, ValueError) as error:
        raise UserError(f"{resumed.path}: its settings are not those of a run ({error})") from None
    for name in FIXED:
        given, was = getattr(options, name), getattr(saved, name)
        if given is not None and given != was:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {given}: {resumed.path} was made with {option} {was}")
    if options.local_batch_norm and not saved.local_batch_norm:
        raise UserError(f"--local-batch-norm: {resumed.path} was made without it")
    changed = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
    return replace(saved, **changed)


def _new_settings(options: argparse.Namespace, dataset: Dataset) -> Settings:
    algorithm = options.algorithm or ALGORITHM
    whole_batch = algorithm == "batch-gd"
    epochs = None if whole_batch else DIGITS_EPOCHS if dataset.name == "digits" else EPOCHS
    defaults = Settings(
        algorithm=algorithm,
        seed=0,
        epochs=epochs,
        max_iterations=MAX_ITERATIONS if whole_batch else None,
        batch_size=None if whole_batch else BATCH_SIZE,
        step=STEPS[algorithm],
        decay=LAST_STEP ** (1 / epochs) if epochs else 1.0,
        tolerance=TOLERANCE if whole_batch else None,
        shift=SHIFT if min(dataset.image_shape[1:]) >= LARGE and not whole_batch else 0,
    )
    given = {name: getattr(options, name, None) for name in asdict(defaults)}
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def make_folder(options: argparse.Namespace, resumed: Resumed | None, data: str, algorithm: str) -> Path:
    """Return the folder to write to, made where it was not there, and known to take files.

    Raises
    ------
    UserError
        Where it holds another run.
    OSError
        Where it can't be made or written to.
    """
    if options.out is not None:
        out: Path = options.out
    elif resumed is not None:
        out = resumed.path.parent
    else:
        folders = _default_folders(data, algorithm)
        out = next(folders if options.overwrite else (f for f in folders if not f.exists()))
    goes_on = resumed is not None and resumed.path.parent.resolve() == out.resolve()
    if not goes_on and not options.overwrite and any((out / name).exists() for name in OUTPUTS):
        raise UserError(
            f"{out}: holds a run; go on with --resume, begin anew with --overwrite, or choose another --out"
        )
    make_writable(out)
    return out


def _default_folders(data: str, algorithm: str) -> Iterator[Path]:
    name = f"{Path(data).resolve().stem}-{algorithm}"
    yield Path("runs", name)
    yield from (Path("runs", f"{name}-{number}") for number in count(2))
