"""Which algorithm computes a convolution: rules with their reasons, from its geometry alone.

Two equal calls are computed by the same algorithm, so that their results are the same to the last bit.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from gpuconv.backends.cuda import depthwise, gemm, implicit, winograd
from gpuconv.backends.cuda.problem import Problem
from gpuconv.config import config

# By the names that `config.algorithm` has for them.
ALGORITHMS: dict[str, ModuleType] = {
    "direct": depthwise,
    "gemm": gemm,
    "implicit": implicit,
    "winograd": winograd,
}


class Choice(NamedTuple):
    """An algorithm, its name, and why it is taken."""

    name: str
    why: str

    @property
    def algorithm(self) -> ModuleType:
        """The module."""
        return ALGORITHMS[self.name]


class Rule(NamedTuple):
    """Which algorithm is taken where `holds` says so of a problem; only what it can compute is asked.

    `settled` rules need no measurement of the others to stand.
    """

    name: str
    why: str
    holds: Callable[[Problem], bool]
    settled: bool = False


# The first that holds is taken. What no measurement has shown to be the faster one isn't here: it is taken
# where `config.algorithm` asks for it.
RULES = (
    Rule(
        "direct",
        "groups are so small that columns would be most of what is moved: a kernel of our own reads the "
        "image itself, each thread a tile of places",
        # Bytes decide there, and columns are taps times as many. Groups of several channels compute more for
        # each byte: which way is faster then waits for a measurement.
        lambda problem: problem.cg == 1,
        settled=True,
    ),
    Rule(
        "gemm",
        "a 1x1 kernel's columns are the image itself, so cuBLAS multiplies what is there",
        lambda problem: problem.window.is_pointwise,
        settled=True,
    ),
    Rule(
        "gemm",
        "cuBLAS multiplies columns in the workspace, laid out or collected by our kernels",
        lambda problem: True,
    ),
)


def candidates(problem: Problem, which: str) -> tuple[str, ...]:
    """Return the names of all that can compute it, the one that is taken first."""
    taken = choose(problem, which).name
    others = (name for name, algorithm in ALGORITHMS.items() if algorithm.takes(problem, which))
    return tuple(dict.fromkeys((taken, *others)))


def choose(problem: Problem, which: str) -> Choice:
    """Choose the algorithm for "forward", "input_grad" or "weight_grad"."""
    asked = config.algorithm
    if asked in ALGORITHMS and ALGORITHMS[asked].takes(problem, which):
        return Choice(asked, f'config.algorithm is "{asked}"')
    return by_rules(problem, which)


def by_rules(problem: Problem, which: str) -> Choice:
    """Choose by geometry alone."""
    rule = _rule(problem, which)
    return Choice(rule.name, rule.why)


def is_settled(problem: Problem, which: str) -> bool:
    """Tell whether the rules wait for no measurement of this problem."""
    return _rule(problem, which).settled


def _rule(problem: Problem, which: str) -> Rule:
    return next(rule for rule in RULES if rule.holds(problem) and ALGORITHMS[rule.name].takes(problem, which))
