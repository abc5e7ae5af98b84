"""`gpuconv profile`: where the time of a network goes, as a table, JSON, a trace and pictures."""

import argparse
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import gpuconv
from gpuconv.backends.dispatch import to_device
from gpuconv.cli import targets
from gpuconv.cli.errors import UserError
from gpuconv.cli.options import count, path, positive
from gpuconv.cli.plan import device_of
from gpuconv.files import make_writable
from gpuconv.measure import devices
from gpuconv.measure.calls import random
from gpuconv.measure.profile import SECONDS, joined
from gpuconv.nn.layer import Layer

DESCRIPTION = """\
Run a network forward and backward, and print what time each layer takes, how fast that is, and what share of
the device's limits it reaches.

TARGET is one of
  modern, textbook   the networks of `gpuconv train`, for pictures as large as --input says
  module:attribute   a layer; a function without arguments that makes one; a function to be called with the
  file.py:attribute    input, or without arguments: its rows are the convolutions and poolings that it calls
  list.csv, .npz     shapes of layers (docs/profile.md): each is a row, and runs on an input of its own
"""

EPILOG = """\
Exit status: 0; 2 for bad input, in one line that says what and where; 130 after Ctrl-C.
"""

INPUT = (64, 1, 28, 28)


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "profile",
        help="show where the time of a network goes, and how far from the hardware's limits it is",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_command)
    add = parser.add_argument
    add("target", type=path, metavar="TARGET", help="what to run")
    add("--input", type=_shape, metavar="N,C,H,W", help="shape of x; default 64,1,28,28")
    add("--dtype", choices=("float16", "float32", "float64"), default="float32", help="of x; default float32")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto (default) is a GPU if usable")
    add("--no-backward", action="store_true", help="forward only")
    add("--no-dx", action="store_true", help="without the gradient of the input, as in training")
    add("--channels-last", action="store_true", help="of a list of shapes: arrays are [N, H, W, C]")
    add("--passes", type=count, help="how many turns to time; default what --seconds allow, 5 to 25")
    add("--seconds", type=positive, default=SECONDS, help=f"for the timed passes; default {SECONDS:g}")
    add(
        "--out",
        type=_folder,
        metavar="DIR",
        help="write profile-TARGET-DEVICE.json, .trace.json and two .png",
    )


def run_command(options: argparse.Namespace) -> int:
    """Measure and print; return the exit code."""
    of_shapes = targets.is_list(options.target)
    if options.channels_last and not of_shapes:
        raise UserError("--channels-last: only for a list of shapes; a network has its own layout")
    if options.input is not None and of_shapes:
        raise UserError("--input: not for a list of shapes, which says what each layer takes")
    device = device_of(options)
    if options.out is not None:
        make_writable(options.out)
    try:
        found = _of_shapes(options, device) if of_shapes else _of_network(options, device)
    except (UserError, OSError):
        raise
    # Ours, whose messages are enough: a layer without a backward pass raises NotImplementedError.
    except (TypeError, ValueError, NotImplementedError, MemoryError) as error:
        raise UserError(f"{options.target}: {error or type(error).__name__}") from error
    except (Exception, SystemExit) as error:  # of the user's code, which the message alone needn't tell
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        raise UserError(f"{options.target}: {type(error).__name__}: {error} ({where})") from error
    print(found)
    if options.out is not None:
        name = Path(options.target.replace(":", "-")).name.removesuffix(".csv").removesuffix(".npz")
        try:
            written = found.save(options.out, f"profile-{name}-{devices.find(device).stem}")
        except ModuleNotFoundError as error:
            print(f"\n{error}")
        else:
            print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _of_network(options: argparse.Namespace, device: str) -> gpuconv.Profile:
    shape = options.input or INPUT
    network, takes_input = targets.network(options.target, shape, options.dtype)
    if isinstance(network, Layer):
        network.to(device)
    x = None
    if takes_input:
        x = to_device(random(np, shape, options.dtype, 0), device)
    elif options.input is not None:
        raise UserError(f"--input: {options.target} takes no argument")
    return _profile(options, network, x)


def _of_shapes(options: argparse.Namespace, device: str) -> gpuconv.Profile:
    found = {}
    for shape in targets.shapes(options.target):
        layer = targets.layer(shape, options.channels_last, options.dtype).to(device)
        x = to_device(random(np, shape.x_shape(options.channels_last), options.dtype, 0), device)
        found[shape.name] = _profile(options, layer, x)
    return joined(found)


def _profile(options: argparse.Namespace, network: Any, x: Any) -> gpuconv.Profile:
    return gpuconv.profile(
        network,
        x,
        backward=not options.no_backward,
        needs_dx=not options.no_dx,
        passes=options.passes,
        seconds=options.seconds,
    )


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(map(int, text.replace("x", ",").split(",")))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"must be integers of at least 1, as in 8,3,224,224, not {text!r}")
    return shape


def _folder(text: str) -> Path:
    return Path(path(text))
