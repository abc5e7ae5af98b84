"""What happens while a network runs: passes of layers and calls of public functions, in order and nested."""

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Token
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from gpuconv.entry import PLACE, Place
from gpuconv.trace import AROUND_LAYER


@dataclass(eq=False, slots=True)
class Event:
    """A pass of a layer, or a call of a public function; `begin` and `end` are its visitor's."""

    name: str  # "3.conv2d", in a Sequential within: "3.0.conv2d"; a function's own
    direction: str  # "forward" or "backward"
    layer: Any = None  # None: a call
    place: str = ""  # of layers within: "3."
    begin: Any = None
    end: Any = None
    inner: "list[Event]" = field(default_factory=list)

    @property
    def layers(self) -> "list[Event]":
        """The passes of layers within."""
        return [event for event in self.inner if event.layer is not None]

    @property
    def calls(self) -> "list[Event]":
        """The calls within, those of layers within left out."""
        return [event for event in self.inner if event.layer is None]


# visit(event, run, arguments) does what it is given as `run`. `arguments()` gives arguments by name; arrays
# among them are not to be kept.
Visit = Callable[[Event, Callable[[], Any], Callable[[], dict[str, Any]]], Any]


class Watch:
    """While it is entered, every layer's pass and public call of this thread goes through `visit`.

    `roots` are the outermost of what was seen. What was hung in there before, NVTX's ranges or an `offload`,
    goes on within; an `offload` that begins meanwhile computes, and is seen.
    """

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._thread = threading.get_ident()
        self.roots: list[Event] = []
        self._open: list[Event] = []
        self._around: Callable[..., Any] | None = None
        self._tokens: tuple[Token[Any], Token[Any]] | None = None

    def __enter__(self) -> Self:
        self._around, outer = AROUND_LAYER.get(), PLACE.get()
        self._tokens = AROUND_LAYER.set(self.layer), PLACE.set(_Seen(self, outer, outer))
        return self

    def __exit__(self, *error: object) -> None:
        assert self._tokens is not None
        AROUND_LAYER.reset(self._tokens[0])
        PLACE.reset(self._tokens[1])

    def layer(
        self,
        function: Callable[..., Any],
        i: int | None,
        layer: Any,
        direction: str,
        *arguments: Any,
        **named: Any,
    ) -> Any:
        """Run a layer's pass; `i` is None for the network itself."""
        if i is None or self._around is None:
            run = partial(function, *arguments, **named)
        else:
            run = partial(self._around, function, i, layer, direction, *arguments, **named)
        outer = next((event.place for event in reversed(self._open) if event.layer is not None), "")
        place = outer if i is None else f"{outer}{i}."
        event = Event(place + type(layer).__name__.lower(), direction, layer, place)
        return self._see(event, run, lambda: {"x" if direction == "forward" else "dy": arguments[0]})

    def call(self, op: str, run: Callable[[], Any], arguments: Callable[[], dict[str, Any]]) -> Any:
        """Run a public function; those that it calls itself are part of it."""
        if self._open and self._open[-1].layer is None:
            return run()
        direction = "backward" if op.endswith(("_backward", "_grad")) else "forward"
        return self._see(Event(op, direction), run, arguments)

    def _see(self, event: Event, run: Callable[[], Any], arguments: Callable[[], dict[str, Any]]) -> Any:
        if threading.get_ident() != self._thread:  # one that was started with a copy of this context
            return run()
        (self._open[-1].inner if self._open else self.roots).append(event)
        self._open.append(event)
        try:
            return self._visit(event, run, arguments)
        finally:
            self._open.pop()


@dataclass(frozen=True)
class _Seen:
    """Shows a watch the calls, and has them computed by what was there before it or began within it."""

    watch: Watch
    inner: Place | None
    outer: Place | None

    def __call__(
        self, function: Callable[..., Any], signature: inspect.Signature, /, *arguments: Any, **named: Any
    ) -> Any:
        run = partial(function, *arguments, **named)
        if self.inner is not None:
            run = partial(self.inner, function, signature, *arguments, **named)
        return self.watch.call(function.__name__, run, lambda: signature.bind(*arguments, **named).arguments)

    def around(self, place: Place) -> Place:
        return _Seen(self.watch, place, self)


def in_order(events: Iterable[Event]) -> Iterator[Event]:
    """Yield events and those within, as they began."""
    for event in events:
        yield event
        yield from in_order(event.inner)
