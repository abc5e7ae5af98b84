"""The file that training goes on from.

A checkpoint is an .npz of plain arrays (never pickled objects), whose members carry checksums: damage is
noticed when it is read, wherever it is.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.files import write_whole

Array = np.ndarray[Any, Any]

FORMAT = "gpuconv checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint that can't be read, or belongs to something else; the message is one line."""


@dataclass
class Checkpoint:
    """What is needed to go on as if nothing had happened.

    Attributes
    ----------
    settings
        The run's options, all of them numbers, words or None.
    arrays
        Arrays by name: parameters, running statistics, the optimiser's moments, losses so far.
    state
        Whatever else JSON can hold: counters, history.
    """

    settings: dict[str, Any]
    arrays: dict[str, Array]
    state: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; at every moment the file is either the old one or the new one, whole.

    Raises
    ------
    OSError
        Where it can't be written; the old file is as it was.
    """
    text = json.dumps({"format": FORMAT, "settings": checkpoint.settings, "state": checkpoint.state})
    members = {f"array/{name}": array for name, array in checkpoint.arrays.items()}
    memory = io.BytesIO()
    np.savez(memory, allow_pickle=False, json=np.frombuffer(text.encode(), np.uint8), **members)
    write_whole(path, memory.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    CheckpointError
        Where the file is something else, truncated or damaged.
    """
    content = path.read_bytes()
    try:
        # np.load takes what is no archive for a pickle, and would advise to load it as one.
        with np.lib.npyio.NpzFile(io.BytesIO(content), allow_pickle=False) as archive:
            text = json.loads(archive["json"].tobytes())
            arrays = {name.removeprefix("array/"): archive[name] for name in archive.files if name != "json"}
        known, settings, state = text["format"] == FORMAT, dict(text["settings"]), dict(text["state"])
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({reason})") from None
    if not known:
        raise CheckpointError(f"{path}: its format is {text['format']!r}, not {FORMAT!r}")
    return Checkpoint(settings, arrays, state)
