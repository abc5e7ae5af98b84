"""Where the time of a network goes, layer by layer, beside the least time that each layer could take."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpuconv
from gpuconv import geometry
from gpuconv.backends.dispatch import is_dask
from gpuconv.config import config
from gpuconv.files import write_whole
from gpuconv.measure import ceilings, profile_charts, profile_table, records
from gpuconv.measure.ceilings import Ceiling
from gpuconv.measure.passes import Pass, Passes, observe
from gpuconv.measure.timeline import Span, trace
from gpuconv.measure.timing import Sample, Timing
from gpuconv.measure.watch import Event, Watch
from gpuconv.nn.layer import Array, Layer
from gpuconv.nn.sequential import Sequential

SECONDS = 2.0


@dataclass(frozen=True)
class Row:
    """A layer's forward or backward pass, or a call of a public function.

    Attributes
    ----------
    name : str
        Place and class, "3.conv2d"; "2.0.conv2d" in a `Sequential` that is layer 2. Of a call that no layer
        makes: its number and function.
    direction : "forward" or "backward"
    us, spread : float
        Microseconds, the median over the passes, and half of the interquartile range over it.
    share : float
        Of the time of all rows.
    flops, least_bytes : int
        What must be computed and moved at least.
    roofline : float or None
        The least time that the device's ceilings leave, over the time; None where nothing is to be done.
    workspace_bytes : int
        The most memory that was held beside arguments and results.
    algorithm : str or None
        What `gpuconv.explain` says of the calls; None without any.
    dtype, shape
        Of the result.
    """

    name: str
    direction: str
    us: float
    spread: float
    share: float
    flops: int
    least_bytes: int
    roofline: float | None
    workspace_bytes: int
    algorithm: str | None
    dtype: str
    shape: tuple[int, ...]

    @property
    def tflops(self) -> float:
        """TFLOP/s that were reached."""
        return self.flops / self.us / 1e6 if self.us else 0.0

    @property
    def gbps(self) -> float:
        """GB/s that were reached, of the bytes that must be moved."""
        return self.least_bytes / self.us / 1e3 if self.us else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON, rates included."""
        found = {**asdict(self), "tflops": self.tflops, "gbps": self.gbps}
        return {key: records.rounded(value) for key, value in found.items()}


@dataclass(frozen=True)
class Profile:
    """What `gpuconv.profile` found; `print` it.

    Attributes
    ----------
    rows : tuple of Row
        In the order in which they ran.
    total_us, spread : float
        A whole pass: the median, and half of the interquartile range over it.
    outside_us : float
        How much of a pass belongs to no row: the median of the time between layers and calls.
    turns : int
        How often a pass was timed.
    peak_bytes : int
        The most memory that a pass held beside its input and what the layers had before.
    ceilings : dict
        By dtype, `bytes_per_second` and `flops_per_second` of a copy and a matrix product.
    device : dict
        What there is to know of the machine; `device["gpu"]` is None where all ran on the CPU.
    others : float or None
        The share of the CPU's cores that other programs took meanwhile.
    timeline : tuple of Span
        One pass, the one that took most nearly `total_us`, calls included.
    """

    rows: tuple[Row, ...]
    total_us: float
    spread: float
    outside_us: float
    turns: int
    peak_bytes: int
    ceilings: Mapping[str, Ceiling]
    device: Mapping[str, Any]
    others: float | None
    timeline: tuple[Span, ...]

    def __str__(self) -> str:
        return self.table()

    def table(self, width: int | None = None) -> str:
        """Return the rows as text, with a bar for the time of each.

        Parameters
        ----------
        width : int, optional
            Characters a line; columns are left out until it fits. Default: the terminal's.
        """
        return profile_table.table(self, width)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the timeline, for JSON."""
        return {
            **self.device,
            "total_us": records.rounded(self.total_us),
            "spread": records.rounded(self.spread),
            "outside_us": records.rounded(self.outside_us),
            "turns": self.turns,
            "peak_bytes": self.peak_bytes,
            "others": records.rounded(self.others),
            "ceilings": {
                dtype: {key: records.rounded(value) for key, value in ceiling._asdict().items()}
                for dtype, ceiling in self.ceilings.items()
            },
            "rows": [row.as_dict() for row in self.rows],
        }

    def save(self, folder: str | Path, name: str = "profile") -> list[Path]:
        """Write NAME.json, NAME.trace.json, NAME-time.png and NAME-roofline.png; return their paths.

        The trace is one for chrome://tracing and ui.perfetto.dev.

        Parameters
        ----------
        folder : str or path
            It is made where it isn't there.
        name : str
            What the files' names begin with.

        Raises
        ------
        OSError
            Where a file can't be written. Each is written whole or not at all.
        ModuleNotFoundError
            Without matplotlib; the JSON files are there then.
        """
        stem = Path(folder) / name
        stem.parent.mkdir(parents=True, exist_ok=True)
        facts = {"commit": records.commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        contents: dict[str, Callable[[], bytes]] = {
            ".json": lambda: records.text({"profile": name, **facts, **self.as_dict()}).encode(),
            ".trace.json": lambda: trace(self.timeline, {"profile": name, **facts, **self.device}),
            "-time.png": lambda: profile_charts.time_by_layer(self, name),
            "-roofline.png": lambda: profile_charts.roofline(self, name),
        }
        written: list[Path] = []
        for ending, content in contents.items():
            path = stem.with_name(stem.name + ending)
            try:
                write_whole(path, content())
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "profile: charts need the package matplotlib: pip install 'gpuconv[train]'; there are "
                    + " and ".join(map(str, written)),
                    name=error.name,
                ) from None
            written.append(path)
        return written


def profile(
    network: Layer | Callable[..., Any],
    x: Array = None,
    *,
    backward: bool = True,
    dy: Array = None,
    needs_dx: bool = True,
    passes: int | None = None,
    seconds: float = SECONDS,
) -> Profile:
    """Measure where the time of a network goes.

    The network runs forward and backward again and again, on the device that x lies on, as often as takes
    `seconds`. Times are medians over the passes: the CPU's clock, or a GPU's events, for which nothing waits
    within a pass. Memory is counted in passes of its own, before.

    Parameters
    ----------
    network : Layer or callable
        A layer, a `Sequential`, also of others; or any function, whose rows are the calls of public functions
        that it makes, and the layers that it runs.
    x : array
        The input: a batch. Of a function: what it is called with; without it, it gets no argument.
    backward : bool, default True
        Also measure the backward pass. A function does itself what it does.
    dy : array, optional
        The gradient of the result. Default: the result itself, the gradient of half its squared sum.
    needs_dx : bool, default True
        Whether the gradient of x is computed. In training it is not.
    passes : int, optional
        How many turns to time. Default: what `seconds` allow, 5 to 25. In a turn, a pass that takes less
        than 10 ms on the CPU is repeated.
    seconds : float, default 2
        For the timed passes; 2 are enough for most networks to be timed 25 times.

    Returns
    -------
    Profile
        Its `rows`; `print` shows them, `save` writes them as JSON, a trace and pictures.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument; and what the network itself raises.
    RuntimeError
        Where it doesn't do the same in each pass.

    Notes
    -----
    A row's least time is that of the roofline model [1]_, max(bytes / bandwidth, FLOPs / rate), with the
    bandwidth of a large copy and the rate of a large matrix product on the same device, measured before.
    Bytes and FLOPs are those that no algorithm does without: arguments as far as they are read and results,
    once each. Of a layer that calls no public function (`Linear`, `ReLU`, yours) they are its input, output
    and parameters, backward also their gradients; 2·m·n·k FLOPs of a `Linear`, else one an element. What is a
    view of its input moves nothing. More than 1 is possible where arrays stay in a cache.

    The network stays in its mode, and its parameters are not changed. `grads` are those of the last pass,
    and running statistics are put back. A layer that contains others has a row for the rest of its time;
    a `Sequential` has none. Only calls of this thread are seen.

    References
    ----------
    .. [1] S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
       multicore architectures", Communications of the ACM 52 (2009).

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> network = gpuconv.Sequential(gpuconv.Conv2d(1, 4, 3), gpuconv.ReLU())
    >>> found = gpuconv.profile(network, np.ones((2, 1, 8, 8), np.float32), passes=1)
    >>> [(row.name, row.direction, row.flops) for row in found.rows]  # doctest: +NORMALIZE_WHITESPACE
    [('0.conv2d', 'forward', 5184), ('1.relu', 'forward', 288),
     ('1.relu', 'backward', 288), ('0.conv2d', 'backward', 10656)]
    """
    backward = geometry.flag("profile", "backward", backward)
    needs_dx = geometry.flag("profile", "needs_dx", needs_dx)
    if passes is not None:
        passes = geometry.integer("profile", "passes", passes, 1)
    if not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ValueError(f"profile: seconds must be a number above 0, not {seconds!r}")
    if is_dask(x):
        raise TypeError("profile: x must be an array in memory, not Dask's; a chunk, or x.compute(), is one")
    if isinstance(network, Layer):
        if not hasattr(x, "dtype"):
            raise TypeError(f"profile: x must be the array that the network takes, not {type(x).__name__}")
        if dy is not None and not backward:
            raise ValueError("profile: dy was given, but backward is False")
        run = _network_pass(network, x, dy, backward, needs_dx)
    elif callable(network):
        if dy is not None:
            raise ValueError("profile: dy must not be given with a function, which does itself what it does")
        run = _function_pass(network, x)
    else:
        raise TypeError(f"profile: network must be a layer or a function, not {type(network).__name__}")
    with _buffers_kept(network):
        return _profile(observe(run, passes, float(seconds)))


@contextmanager
def _buffers_kept(network: Any) -> Iterator[None]:
    """Put running statistics back, in place."""
    buffers = network.buffers if isinstance(network, Layer) else {}
    kept = {name: (array, array.copy()) for name, array in buffers.items()}
    try:
        yield
    finally:
        for name, (array, values) in kept.items():
            array[...] = values
            buffers[name] = array


def _network_pass(network: Layer, x: Array, dy: Array, backward: bool, needs_dx: bool) -> Pass:
    named = {} if needs_dx else {"needs_dx": False}

    def run(watch: Watch) -> None:
        nonlocal dy
        y = watch.layer(network.forward, None, network, "forward", x)
        if backward:
            if dy is None:
                if not hasattr(y, "dtype"):
                    raise TypeError(
                        f"profile: {type(network).__name__}.forward gave {type(y).__name__}, of which no dy "
                        "can be made: give dy, or backward=False"
                    )
                dy = y.copy()  # once: every pass has the same
            watch.layer(network.backward, None, network, "backward", dy, **named)

    return run


def _function_pass(function: Callable[..., Any], x: Any) -> Pass:
    arguments = () if x is None else (x,)

    def run(watch: Watch) -> None:
        function(*arguments)

    return run


def _profile(found: Passes) -> Profile:
    kind = "cpu" if found.device.gpu is None else "cuda"
    dtypes = dict.fromkeys(note.dtype for note in found.notes if note.work.bytes)
    limits = {dtype: ceilings.present(kind, dtype, config.fp32_precision) for dtype in dtypes}
    rates = {dtype: ceiling for dtype, ceiling in limits.items() if ceiling is not None}
    names = _names(found.events)
    own = {event: _own(found, event) for event in names}
    outside = [whole - sum(rows) for whole, *rows in zip(found.whole, *own.values(), strict=True)]
    whole = _timing(found.whole)
    facts = found.device.facts()
    return Profile(
        _shared([_row(name, event, own[event], found, rates) for event, name in names.items()]),
        whole.us,
        whole.spread,
        max(0.0, statistics.median(outside)),
        found.turns,
        found.peak_bytes,
        rates,
        {**facts, "versions": {"gpuconv": gpuconv.__version__, **facts["versions"]}},
        found.others,
        _timeline(found, whole.us),
    )


def _names(events: Sequence[Event]) -> dict[Event, str]:
    """Return the events that have a row, and its name."""
    within = {inner for event in events for inner in event.inner}
    calls = [event for event in events if event.layer is None and event not in within]
    numbered = {event: f"{i}.{event.name}" for i, event in enumerate(calls)}
    return {
        event: numbered.get(event, event.name)
        for event in events
        if event in numbered or (event.layer is not None and type(event.layer) is not Sequential)
    }


def _own(found: Passes, event: Event) -> list[float]:
    """Return an event's microseconds in each pass, those of layers within taken away."""
    own, *layers = (found.places[each] for each in (event, *event.layers))
    return [times[own][1] - sum(times[i][1] for i in layers) for times in found.times]


def _row(name: str, event: Event, own: Sequence[float], found: Passes, rates: Mapping[str, Ceiling]) -> Row:
    note, timing = found.notes[found.places[event]], _timing(own)
    least = rates[note.dtype].seconds(note.work) * 1e6 if note.dtype in rates else 0.0
    return Row(
        name=name,
        direction=event.direction,
        us=timing.us,
        spread=timing.spread,
        share=0.0,
        flops=note.work.flops,
        least_bytes=note.work.bytes,
        roofline=least / timing.us if least and timing.us else None,
        workspace_bytes=note.workspace,
        algorithm=note.algorithm,
        dtype=note.dtype,
        shape=note.shape,
    )


def _timing(durations: Sequence[float]) -> Timing:
    return Timing.of([Sample(us, us) for us in durations])


def _shared(rows: Sequence[Row]) -> tuple[Row, ...]:
    total = sum(row.us for row in rows) or 1.0
    return tuple(replace(row, share=row.us / total) for row in rows)


def _timeline(found: Passes, usual: float) -> tuple[Span, ...]:
    """Return the pass that took most nearly as long as usual."""
    typical = min(zip(found.whole, found.times, strict=True), key=lambda one: abs(one[0] - usual))[1]
    return tuple(
        Span(
            event.name,
            event.direction if event.layer is not None else "call",
            begin,
            us,
            {
                **note.arguments,
                "result": f"{note.dtype}[{', '.join(map(str, note.shape))}]",
                "flops": note.work.flops,
                "least_bytes": note.work.bytes,
                "workspace_bytes": note.workspace,
            },
        )
        for event, note, (begin, us) in zip(found.events, found.notes, typical, strict=True)
    )


def joined(profiles: Mapping[str, Profile]) -> Profile:
    """Return the profiles of layers of their own as one, whose rows have their names."""
    parts = list(profiles.values())
    spans: list[Span] = []
    for name, part in profiles.items():
        begin = max((span.begin_us + span.us for span in spans), default=0.0)
        for span in part.timeline:
            named = name if span.category != "call" else span.name
            spans.append(span._replace(name=named, begin_us=begin + span.begin_us))
    return Profile(
        _shared([replace(row, name=name) for name, part in profiles.items() for row in part.rows]),
        sum(part.total_us for part in parts),
        statistics.mean(part.spread for part in parts),
        sum(part.outside_us for part in parts),
        min(part.turns for part in parts),
        max(part.peak_bytes for part in parts),
        {dtype: ceiling for part in parts for dtype, ceiling in part.ceilings.items()},
        parts[0].device,
        max((part.others for part in parts if part.others is not None), default=None),
        tuple(spans),
    )
