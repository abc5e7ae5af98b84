"""The command line: `gpuconv train`, `gpuconv profile`, `gpuconv bench` and `gpuconv info`.

Exit codes: 0, done; 1, training failed, or a benchmark found a fault; 2, bad input, in one line that says
what and where; 130, interrupted by Ctrl-C.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import gpuconv
from gpuconv import distributed
from gpuconv.cli import bench, info, profile, train
from gpuconv.cli.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the usage text that argparse puts before it.

        Where all ranks are told the same, which only they together know, the first one says it.
        """
        wrong = UserError(f"{self.prog}: {message} (see {self.prog} --help)")
        try:
            with distributed.world():
                raise wrong from None
        except (UserError, RuntimeError):  # the latter without MPI: then each says it
            print(wrong, file=sys.stderr)
            sys.exit(wrong.exit_code)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Give help, or the version; of several processes, the first one does."""
        try:
            with distributed.world() as comm:
                if comm.rank == 0:
                    super()._print_message(message, file)
        except RuntimeError:  # without MPI
            super()._print_message(message, file)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv
        The arguments after the program's name; None takes those of the process.
    """
    parser = _Parser(prog="gpuconv", description="Convolution and pooling layers for CuPy and NumPy arrays.")
    parser.add_argument("--version", action="version", version=f"gpuconv {gpuconv.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, profile, bench, info):
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # "±", or a path, that the terminal's encoding doesn't have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        return _fail(arguments.command, str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(arguments.command, where + (error.strerror or str(error)), 2)
    except KeyboardInterrupt:
        return _fail(arguments.command, "interrupted", 130)


def _fail(command: str, message: str, code: int) -> int:
    print(f"gpuconv {command}: {' '.join(message.split())}", file=sys.stderr)
    return code
