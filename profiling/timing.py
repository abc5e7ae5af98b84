"""Time two calls in turns, so that both meet the same machine, and notice when others were using it.

The benchmarks' only timing loop.
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MIN_TURNS = 3
TURN_SECONDS = 0.01  # a turn repeats a faster call until it lasts this long
# PyTorch's OpenMP threads spin for some 4 ms after a call, on the cores that the next one needs: without a
# pause a rn50_c2_3x3 forward of ours takes 17.7 ms in place of 13.8.
PAUSE_SECONDS = 0.01
LEAD_SECONDS = 0.005  # a faster call is repeated so long, untimed, to wake its threads again

# Share of the cores above which a measurement isn't worth having; two idle cores show under 2 %.
DISTURBED = 0.05
QUIET_SECONDS = 0.2


def measure_in_quiet(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float, most_turns: int, patience: float
) -> tuple["Timing", "Timing", float]:
    """Wait until other programs leave the cores alone, at most `patience` seconds, and measure.

    Returns
    -------
    tuple
        Our timing, theirs, and the share of the cores that other programs took during the last attempt.
    """
    give_up = time.perf_counter() + patience
    while True:
        with OtherPrograms() as before:
            time.sleep(QUIET_SECONDS)
        if before.share > DISTURBED and time.perf_counter() < give_up:
            continue
        with OtherPrograms() as meanwhile:
            timings = measure(ours, theirs, seconds, most_turns)
        if meanwhile.share <= DISTURBED or time.perf_counter() > give_up:
            return *timings, meanwhile.share


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over the turns of one library."""

    median: float
    first_quartile: float
    third_quartile: float
    turns: int
    calls_per_turn: int


def measure(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float, most_turns: int
) -> tuple[Timing, Timing]:
    """Time two calls in turns, ours first: until the budget is spent, at least MIN_TURNS each."""
    contenders = (ours, theirs)
    once = []
    for call in contenders:
        start = time.perf_counter()
        call()
        once.append(time.perf_counter() - start)
    calls = [max(1, math.ceil(TURN_SECONDS / t)) for t in once]
    leads = [math.ceil(LEAD_SECONDS / t) if t < LEAD_SECONDS else 0 for t in once]
    samples: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(samples[0]) < most_turns and (
        len(samples[0]) < MIN_TURNS or time.perf_counter() - begin < seconds
    ):
        for call, repeats, lead, times in zip(contenders, calls, leads, samples, strict=True):
            time.sleep(PAUSE_SECONDS)
            for _ in range(lead):
                call()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            times.append((time.perf_counter() - start) / repeats)
    first, second = (_timing(times, repeats) for times, repeats in zip(samples, calls, strict=True))
    return first, second


def _timing(times: list[float], calls: int) -> Timing:
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1, calls)
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, q1, q3, len(times), calls)


class OtherPrograms:
    """A `with` block's `share`: the part of our cores' time that other programs took meanwhile.

    One busy neighbour makes PyTorch's OpenMP loops wait for a thread that has no core: a hundredfold on
    small shapes, far more than it costs us, and so a flattering ratio.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._begin = self._now()

    def __enter__(self) -> Self:
        self._begin = self._now()
        return self

    def __exit__(self, *exception: object) -> None:
        wall, busy, own = (b - a for a, b in zip(self._begin, self._now(), strict=True))
        self.share = max(0.0, busy - own) / (wall * len(os.sched_getaffinity(0)))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
        # user, nice, system, idle, waiting, interrupts, soft interrupts, stolen: all but idle and waiting
        ticks = sum(int(t) for name, *times in lines if name in cores for t in times[:3] + times[5:8])
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
