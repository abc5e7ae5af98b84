"""The passes of a network that a profile is made of: one is looked at, one weighed, the others are timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpuconv.explain import explain
from gpuconv.measure import devices
from gpuconv.measure.devices import Device
from gpuconv.measure.timing import Call, Sample, in_turns
from gpuconv.measure.watch import Event, Visit, Watch, in_order
from gpuconv.measure.work import Work, arrays
from gpuconv.nn.dense import Linear
from gpuconv.nn.sequential import Sequential

# A pass: it runs within a watch, to which a network shows itself.
Pass = Callable[[Watch], None]


@dataclass
class Note:
    """What an event must do, on what, and with how much memory beside arguments and results.

    `workspace` is, of a layer, the most that one of its calls or, where it makes none, the layer itself took.
    """

    work: Work
    dtype: str
    shape: tuple[int, ...]
    arguments: dict[str, Any]
    algorithm: str | None
    workspace: int = 0


@dataclass(frozen=True)
class Passes:
    """What was seen in all passes.

    `events` are in the order in which they began; `notes` are theirs. For each timed pass, `times` are their
    begins and durations, from the pass's begin on, and `whole` is its own duration, all in microseconds.
    """

    events: Sequence[Event]
    notes: Sequence[Note]
    times: Sequence[Sequence[tuple[float, float]]]
    whole: Sequence[float]
    turns: int
    others: float | None
    peak_bytes: int
    device: Device

    @cached_property
    def places(self) -> dict[Event, int]:
        """Where each event stands in `events`."""
        return {event: i for i, event in enumerate(self.events)}


def observe(run: Pass, turns: int | None, seconds: float) -> Passes:
    """Run passes until all is known.

    Raises
    ------
    ValueError
        Where nothing is seen, or no array.
    RuntimeError
        Where a pass differs from the one before.
    """
    _watched(run, _plainly)  # what is compiled, drawn or made at first use
    look = _Look()
    events = _watched(run, look)
    if look.kind is None:
        raise ValueError("profile: the function neither ran a layer nor called a public function on arrays")
    if all(type(event.layer) is Sequential for event in events):  # which has no row
        raise ValueError("profile: the network has no layers")
    notes = [look.notes[event] for event in events]
    device = devices.find(look.kind)

    def plain_pass() -> None:
        _watched(run, _plainly)

    _, peak = device.workspace(plain_pass)
    weigh = _Weigh(device, events)
    weighed = _watched(run, weigh)
    _check_same(events, weighed)
    for note, event in zip(notes, weighed, strict=True):
        note.workspace = weigh.found[event]

    stamped: list[tuple[Any, list[Event], Any]] = []

    def stamp(event: Event, run: Callable[[], Any], _: Any) -> Any:
        event.begin = device.stamp()
        result = run()
        event.end = device.stamp()
        return result

    def once() -> None:
        begin = device.stamp()
        found = _watched(run, stamp)
        stamped.append((begin, found, device.stamp()))

    timings, others = device.undisturbed(
        lambda: in_turns({"pass": once}, _Forgetting(device, stamped.clear), seconds, turns), 0.0
    )
    times, whole = [], []
    for begin, found, end in stamped:
        _check_same(events, found)
        times.append([(device.between(begin, e.begin), device.between(e.begin, e.end)) for e in found])
        whole.append(device.between(begin, end))
    return Passes(events, notes, times, whole, timings["pass"].turns, others, peak, device)


def _watched(run: Pass, visit: Visit) -> list[Event]:
    """Run a pass; return its events as they began."""
    with Watch(visit) as watch:
        run(watch)
    return list(in_order(watch.roots))


def _plainly(event: Event, run: Callable[[], Any], _: Any) -> Any:
    return run()


def _check_same(expected: Sequence[Event], found: Sequence[Event]) -> None:
    if [(event.name, event.direction) for event in expected] != [(e.name, e.direction) for e in found]:
        raise RuntimeError("profile: a pass didn't run the same layers and calls as the one before")


@dataclass(frozen=True)
class _Forgetting:
    """A device's clock, where what the calls before the first sample left is forgotten."""

    device: Device
    forget: Callable[[], None]

    def sampler(self, call: Call) -> Callable[[], Sample]:
        sample = self.device.sampler(call)
        self.forget()
        return sample


class _Look:
    """Takes a note of each event; `kind` becomes the device's."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self.notes: dict[Event, Note] = {}
        self._inputs: dict[int, int] = {}  # bytes of each layer's last x

    def __call__(self, event: Event, run: Callable[[], Any], arguments: Callable[[], dict[str, Any]]) -> Any:
        result = run()
        given = arguments()
        seen = [value for value in (*arrays(result), *given.values()) if _kind(value)]
        if seen and self.kind is None:
            self.kind = _kind(seen[-1])
        work, algorithm = self._work(event, given, result)
        self.notes[event] = Note(
            work,
            seen[0].dtype.name if seen else "float32",
            seen[0].shape if seen else (),
            {name: _described(value) for name, value in given.items()},
            algorithm,
        )
        return result

    def _work(self, event: Event, given: dict[str, Any], result: Any) -> tuple[Work, str | None]:
        """Return what must be done, and how gpuconv does it."""
        if event.layer is None:
            plan = explain(event.name, **{name: value for name, value in given.items() if name != "out"})
            return Work(plan.flops, plan.least_bytes), plan.algorithm
        x = next(iter(given.values()))
        if event.direction == "forward":
            self._inputs[id(event.layer)] = _bytes(x)
        if event.calls:
            calls = [self.notes[call] for call in event.calls]
            work = Work(sum(call.work.flops for call in calls), sum(call.work.bytes for call in calls))
            return work, ", ".join(dict.fromkeys(call.algorithm for call in calls if call.algorithm))
        if type(event.layer) is Sequential or _is_view(result, x):
            return Work(0, 0), None
        return self._elementwise(event, x, result), None

    def _elementwise(self, event: Event, x: Any, result: Any) -> Work:
        """Return the least work of a layer that calls no public function; backward, x is dy."""
        layer, forward = event.layer, event.direction == "forward"
        touched = [x, result]
        if not event.layers:  # else its parameters are those of the layers within
            touched += [*layer.params.values(), *(() if forward else layer.grads.values())]
        moved = _bytes(*touched) + (0 if forward else self._inputs.get(id(layer), 0))
        if isinstance(layer, Linear):
            products = 1 if forward else 1 + (result is not None)
            return Work(2 * products * x.size // x.shape[-1] * layer.params["weight"].size, moved)
        return Work(getattr(x if result is None else result, "size", 0), moved)


class _Weigh:
    """Counts the memory of what has nothing within: of calls, and of layers that make none."""

    def __init__(self, device: Device, events: Sequence[Event]) -> None:
        self._device, self._left = device, iter(events)
        self.found: dict[Event, int] = {}

    def __call__(self, event: Event, run: Callable[[], Any], _: Any) -> Any:
        expected = next(self._left, event)
        if expected.inner:
            result = run()
            self.found[event] = max((self.found[call] for call in event.calls), default=0)
        else:
            result, self.found[event] = self._device.workspace(run)
        return result


def _kind(value: Any) -> str | None:
    """Return the device that an array lies on, "cpu" or "cuda"; None for anything else."""
    if isinstance(value, np.ndarray):
        return "cpu"
    return "cuda" if type(value).__module__.partition(".")[0] == "cupy" and hasattr(value, "shape") else None


def _bytes(*values: Any) -> int:
    return sum(int(getattr(value, "nbytes", 0)) for value in values)


def _is_view(y: Any, x: Any) -> bool:
    """Tell whether y is x's memory: nothing was moved."""
    base = getattr(y, "base", None)
    return y is x or (base is not None and (base is x or base is getattr(x, "base", None)))


def _described(value: Any) -> Any:
    if _kind(value):
        return f"{value.dtype.name}[{', '.join(map(str, value.shape))}]"
    return value if isinstance(value, bool | int | float | str | None) else str(value)
