"""Ctrl-C as a wish that is granted at the next good moment."""

import signal
from types import FrameType
from typing import Any, Self


class Interrupt:
    """While it is entered, the first Ctrl-C only sets `requested`; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._usual: Any = None

    def __enter__(self) -> Self:
        self._usual = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._usual)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._usual)
