"""Time calls in turns, so that all of them meet the same machine. Nothing else here times calls in a loop."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Call = Callable[[], object]

MIN_TURNS, MOST_TURNS = 5, 25


class Sample(NamedTuple):
    """Microseconds that a call took on its device, and of the CPU until it returned."""

    us: float
    cpu_us: float


class Clock(Protocol):
    """What times one call: a device."""

    def sampler(self, call: Call) -> Callable[[], Sample]:
        """Warm a call up and return what takes one sample of it."""


@dataclass(frozen=True)
class Timing:
    """Microseconds a call over all turns: medians, and the quartiles of the device's time."""

    us: float
    cpu_us: float
    first_quartile: float
    third_quartile: float
    turns: int

    @classmethod
    def of(cls, samples: list[Sample]) -> "Timing":
        """Sum samples up."""
        us = [sample.us for sample in samples]
        q1, median, q3 = statistics.quantiles(us, n=4, method="inclusive") if len(us) > 1 else us * 3
        return cls(median, statistics.median(sample.cpu_us for sample in samples), q1, q3, len(samples))

    @property
    def spread(self) -> float:
        """Half of the interquartile range over the median."""
        return (self.third_quartile - self.first_quartile) / (2 * self.us) if self.us else 0.0


def in_turns(
    contenders: Mapping[str, Call], clock: Clock, seconds: float, turns: int | None = None
) -> dict[str, Timing]:
    """Time the contenders in turns for so many seconds: MIN_TURNS turns at least, MOST_TURNS at most.

    Or in as many turns as `turns` says.
    """
    least, most = (MIN_TURNS, MOST_TURNS) if turns is None else (turns, turns)
    samplers = {name: clock.sampler(call) for name, call in contenders.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        for name, sample in samplers.items():
            samples[name].append(sample())
    return {name: Timing.of(taken) for name, taken in samples.items()}
