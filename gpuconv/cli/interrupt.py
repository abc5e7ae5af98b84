"""Ctrl-C as a wish that is granted at the next good moment."""

import signal
from types import FrameType
from typing import Any, Self


class Interrupt:
    """While it is entered, the first Ctrl-C only sets `requested`; a second one interrupts as usual.

    So do other signals that are named: Open MPI's mpirun, where Ctrl-C is meant for it, asks by SIGTERM.
    """

    def __init__(self, *others: signal.Signals) -> None:
        self.requested = False
        self._usual: dict[int, Any] = dict.fromkeys((signal.SIGINT, *others))

    def __enter__(self) -> Self:
        for number in self._usual:
            self._usual[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._usual[number])
