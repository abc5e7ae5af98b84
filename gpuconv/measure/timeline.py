"""One pass as a file for chrome://tracing and ui.perfetto.dev.

The format is the Trace Event Format's: complete events ("X") of one thread, which nest by their times, with
`ts` and `dur` in microseconds.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A layer's pass or a call: when it began, how long it took, and what is known of it."""

    name: str
    category: str
    begin_us: float
    us: float
    arguments: Mapping[str, Any]


def trace(spans: Iterable[Span], facts: Mapping[str, Any]) -> bytes:
    """Return the file.

    Parameters
    ----------
    spans
        Of one pass.
    facts
        What there is to know of it; the viewers show it under "metadata".
    """
    names = {"process_name": f"gpuconv on {facts.get('gpu') or facts.get('cpu')}", "thread_name": "pass"}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": kind, "pid": 1, "tid": 1, "args": {"name": name}} for kind, name in names.items()
    ]
    events += [
        {
            "ph": "X",
            "name": span.name,
            "cat": span.category,
            "pid": 1,
            "tid": 1,
            "ts": span.begin_us,
            "dur": span.us,
            "args": dict(span.arguments),
        }
        for span in spans
    ]
    lines = ",\n  ".join(json.dumps(event, allow_nan=False) for event in events)
    return (
        f'{{"displayTimeUnit": "ms",\n "otherData": {json.dumps(dict(facts))},\n'
        f' "traceEvents": [\n  {lines}\n ]}}\n'
    ).encode()
