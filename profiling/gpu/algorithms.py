"""Which algorithm is the fastest, of each call and on average, and whether that reaches the goals.

From these tables the planner's rules are set (gpuconv/backends/cuda/choice.py).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from gpuconv.measure.compare import LEAST_NOISE
from gpuconv.measure.tables import Cells, groups, mean, shown

Row = dict[str, Any]

CHOSEN, FASTEST = "as chosen", "fastest of each"

MEAN_TITLES = (
    "kind", "pass", "numbers", "layout", "algorithm", "rows", "PyTorch's time / ours",
    "PyTorch's call / ours", "floor / ours", "chosen's time / ours",
)  # fmt: skip
CONTEST_TITLES = ("op", "name", "numbers", "layout", "planner takes", "fastest", "by", "us")


class Contest(NamedTuple):
    """One call's rows, by algorithm: the planner's choice and the others."""

    chosen: Row
    others: tuple[Row, ...]

    def time(self, row: Row) -> float:
        """Return a row's time over the chosen one's, in turns with it where it was."""
        return 1.0 if row is self.chosen else row["us"] / (row.get("chosen_us") or self.chosen["us"])

    @property
    def fastest(self) -> Row:
        """The row that took least."""
        return min((self.chosen, *self.others), key=self.time)

    @property
    def gain(self) -> float:
        """How many times as fast the fastest is as the chosen one."""
        return 1 / self.time(self.fastest)

    @property
    def agrees(self) -> bool:
        """Tell whether the planner's choice is the fastest, to the noise."""
        return self.gain <= 1 + LEAST_NOISE


def contests(rows: Iterable[Row]) -> list[Contest]:
    """Return all calls whose chosen algorithm was timed."""
    calls: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["us"]:
            calls[tuple(row[key] for key in ("op", "name", "dtype", "precision", "layout"))].append(row)
    return [
        Contest(chosen, tuple(row for row in found if not row["chosen"]))
        for found in calls.values()
        for chosen in found
        if chosen["chosen"]
    ]


def contest_cells(rows: Iterable[Row]) -> list[Cells]:
    """Return the cells of each call that several algorithms were timed on."""
    return [_contest_cells(contest) for contest in contests(rows) if contest.others]


def _contest_cells(contest: Contest) -> Cells:
    row, fastest = contest.chosen, contest.fastest
    times = ", ".join(f"{each['algorithm']} {each['us']:.1f}" for each in (row, *contest.others))
    taken = f"{row['algorithm']}{'' if contest.agrees else ' (slower)'}"
    where = (row["op"], row["name"], f"{row['dtype']} {row['precision']}", row["layout"])
    return (*where, taken, fastest["algorithm"], f"{contest.gain:.2f}", times)


def planner(rows: Iterable[Row]) -> list[str]:
    """Return lines that say where the planner agrees with the measurements, kind by kind."""
    kinds: dict[str, list[Contest]] = defaultdict(list)
    for contest in contests(rows):
        if contest.others:
            row = contest.chosen
            kinds[f"{row['kind']} {row['pass']}, {row['dtype']} {row['precision']}, {row['layout']}"].append(
                contest
            )
    return [f"planner, {kind}: {_verdict(found)}" for kind, found in kinds.items()]


def _verdict(found: list[Contest]) -> str:
    agreeing = sum(contest.agrees for contest in found)
    wrong = sorted((contest for contest in found if not contest.agrees), key=lambda c: -c.gain)
    told = ", ".join(
        f"{c.chosen['name']} {c.fastest['algorithm']} {c.gain:.2f} times as fast as {c.chosen['algorithm']}"
        for c in wrong
    )
    return f"takes the fastest in {agreeing} of {len(found)}" + (f"; {told}" if told else "")


def means(rows: Iterable[Row]) -> list[Cells]:
    """Return geometric means: of what the planner takes, of each algorithm alone, of each call's fastest."""
    rows = list(rows)
    return [
        (*group, algorithm, *_means(members))
        for group, chosen in groups(rows).items()
        for algorithm, members in _algorithms(group, chosen, rows).items()
    ]


def _algorithms(group: Cells, chosen: list[Row], rows: list[Row]) -> dict[str, list[Row]]:
    """Return a group's rows by algorithm; of one that has no other, what the planner takes alone."""
    found = {CHOSEN: chosen}
    every = groups(rows, chosen_only=False)[group]
    names = dict.fromkeys(row["algorithm"] for row in every)
    if any(not row["chosen"] for row in every):
        found |= {name: [row for row in every if row["algorithm"] == name] for name in names}
        found[FASTEST] = [contest.fastest for contest in contests(every)]
    return found


def _means(members: list[Row]) -> Cells:
    relative = [{**row, "chosen_us": row.get("chosen_us") or row["us"]} for row in members]
    others = (mean(members, "torch_us"), mean(members, "torch_cpu_us", "cpu_us"), mean(members, "floor_us"))
    return (str(len(members)), *map(shown, others), shown(mean(relative, "chosen_us")))


class Goal(NamedTuple):
    """A share of PyTorch's speed that kinds of operations should have: geometric means over both layouts."""

    kinds: tuple[str, ...]
    passes: tuple[str, ...]
    precisions: tuple[str, ...]
    speed: float
    algorithm: str = CHOSEN


ALL = ("forward", "input_grad", "weight_grad")
GOALS = (
    Goal(("depthwise",), ALL[:2], ("ieee", "fp16"), 2.0),
    Goal(("depthwise",), ALL[2:], ("ieee", "fp16"), 4.0),
    Goal(("max pool", "avg pool"), ("forward", "backward"), ("ieee", "fp16"), 1.5),
    Goal(("grouped",), ALL, ("ieee", "fp16"), 1.5),
    Goal(("dense",), ALL, ("ieee",), 0.8, "implicit"),
    Goal(("dense",), ALL, ("ieee",), 1.0),
    Goal(("dense",), ALL, ("fp16", "tf32"), 0.6),
)


def goals(rows: Iterable[Row]) -> list[str]:
    """Return a line for each goal, kind, pass and precision: whether it holds."""
    rows = list(rows)
    return [
        _goal(goal, f"{kind} {which} {precision}", [
            row for row in rows
            if row["us"] and (row["kind"], row["pass"], row["precision"]) == (kind, which, precision)
        ])
        for goal in GOALS for kind in goal.kinds for which in goal.passes for precision in goal.precisions
    ]  # fmt: skip


def _goal(goal: Goal, what: str, rows: list[Row]) -> str:
    if goal.algorithm == CHOSEN:
        compared = [row for row in rows if row["chosen"]]
    else:
        compared, what = (
            [row for row in rows if row["algorithm"] == goal.algorithm],
            f"{what} by {goal.algorithm}",
        )
    told, found = f"goal, {what}, {goal.speed:g} of PyTorch's speed", mean(compared, "torch_us")
    if found is None:
        return f"{told}: not measured"
    told += f": {found:.2f} in {sum(bool(row['torch_us']) for row in compared)} rows"
    if found >= goal.speed:
        return f"{told}, holds"
    best = mean([contest.fastest for contest in contests(rows)], "torch_us")
    if goal.algorithm == CHOSEN and best is not None and best >= goal.speed:
        return f"{told}; {best:.2f} with the fastest algorithm of each, would hold if the planner took it"
    return f"{told}, missed"
