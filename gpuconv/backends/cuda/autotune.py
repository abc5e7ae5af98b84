"""Which algorithm is the fastest, measured where the rules only have reasons: `config.autotune`.

The first call of a pass on a shape tries all algorithms that can compute it, on its own arrays. What was the
fastest is remembered by the process, and for later ones in a file of the user's cache.

A choice is made for all that the rules see, and for the workspace's limit; not for strides or addresses.
These change how fast each algorithm is, seldom which is the fastest; and of calls that are equal but for
where memory was free, none is computed in another way.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

from gpuconv.backends.cuda import choice, sources
from gpuconv.backends.cuda.choice import ALGORITHMS, Choice
from gpuconv.backends.cuda.problem import Problem
from gpuconv.backends.cuda.runtime import Runtime
from gpuconv.config import config
from gpuconv.files import cache_folder, write_whole

TURNS = 5


class Measured(NamedTuple):
    """The fastest algorithm, and the microseconds of all that were tried: of a single one, none."""

    name: str
    us: dict[str, float]

    @property
    def why(self) -> str:
        """The reason, as `gpuconv.explain` gives it."""
        return "measured: " + ", ".join(f"{name} {us:.4g} us" for name, us in self.us.items())


# The device, the pass, what is computed, and the workspace's limit.
Key = tuple[str, str, Problem, int]

_memory: dict[Key, Measured] = {}
_lock = threading.Lock()  # one measurement at a time: two would disturb each other


def wanted() -> bool:
    """Tell whether measurements decide: an algorithm that is asked for wins over them."""
    return config.autotune and config.algorithm == "auto"


def choose(runtime: Runtime, problem: Problem, which: str) -> Choice:
    """Choose the algorithm: as it was measured, where that is wanted and known, else by the rules."""
    if wanted():
        found = _known(_key(runtime, problem, which))
        if found is not None and found.us:
            return Choice(found.name, found.why)
    return choice.choose(problem, which)


def compute(runtime: Runtime, problem: Problem, which: str, by: Callable[[ModuleType], None]) -> None:
    """Compute by the algorithm that is chosen; where that is wanted and not yet known, measure them first."""
    if wanted():
        _measure_once(runtime, _key(runtime, problem, which), by)
    chosen = choose(runtime, problem, which)
    try:
        by(chosen.algorithm)
    except MemoryError:  # what one that was asked for or measured takes isn't what the call must
        usual = choice.by_rules(problem, which)
        if chosen.name == usual.name:
            raise
        by(usual.algorithm)


def forget() -> None:
    """Forget what this process knows; files stay."""
    _memory.clear()


def _key(runtime: Runtime, problem: Problem, which: str) -> Key:
    return runtime.identity(), which, problem, config.workspace_limit or runtime.default_workspace()


def _known(key: Key) -> Measured | None:
    found = _memory.get(key)
    if found is None:
        found = _parsed(_read(key[0]).get(_written(key)), key)
        if found is not None:
            found = _memory.setdefault(key, found)
    return found


def _measure_once(runtime: Runtime, key: Key, by: Callable[[ModuleType], None]) -> None:
    if key in _memory:
        return
    with _lock:
        if _known(key) is not None:  # another thread or process was faster
            return
        names = choice.candidates(key[2], key[1])
        if len(names) == 1:
            _memory[key] = Measured(names[0], {})
            return
        us = _times(runtime, names, by)
        if not us:  # no time can be taken now, or no algorithm finds memory: the rules decide
            return
        _memory[key] = found = Measured(min(us, key=us.__getitem__), us)
        if len(us) == len(names):  # else memory was short: later processes may have more
            _write(key, found)


def _times(runtime: Runtime, names: tuple[str, ...], by: Callable[[ModuleType], None]) -> dict[str, float]:
    """Return each algorithm's median microseconds, taken in turns; without those that fail."""
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(1 + TURNS):
        for name in tuple(samples):
            try:
                us = runtime.time(partial(by, ALGORITHMS[name]))
            except MemoryError:
                del samples[name]
                continue
            except RuntimeError:  # it doesn't compile here, say
                if name == names[0]:  # what the rules take: so the call would fail, too
                    raise
                del samples[name]
                continue
            if us is None:
                return {}
            samples[name].append(us)
    return {name: median(taken[1:]) for name, taken in samples.items()}  # the first may have compiled


# The file: one for a device, begun anew by other sources. Nothing here is needed for computing.


def _path(device: str) -> Path:
    return cache_folder() / f"autotune-{hashlib.sha256(device.encode()).hexdigest()[:16]}.json"


def _read(device: str) -> dict[str, Any]:
    """Return what is kept for a device and these sources; nothing where no such file can be read."""
    with suppress(OSError, RuntimeError, ValueError, LookupError, TypeError):
        kept = json.loads(_path(device).read_text(encoding="utf-8"))
        if (kept["device"], kept["sources"]) == (device, sources.sha256()):
            return dict(kept["choices"])
    return {}


def _write(key: Key, found: Measured) -> None:
    """Keep a choice beside the others; where nothing can be kept, each process measures for itself."""
    choices = _read(key[0]) | {_written(key): found._asdict()}
    kept = {"device": key[0], "sources": sources.sha256(), "choices": choices}
    with suppress(OSError, RuntimeError):
        path = _path(key[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(kept, indent=1).encode())


def _written(key: Key) -> str:
    return repr(key[1:])


def _parsed(entry: Any, key: Key) -> Measured | None:
    """Return a choice as the file has it, if it is one: somebody may have edited it."""
    match entry:
        case {"name": str(name), "us": dict(us)} if (
            {name, *us} <= {*choice.candidates(key[2], key[1])}
            and us
            and all(isinstance(time, int | float) for time in us.values())
        ):
            return Measured(name, us)
    return None
