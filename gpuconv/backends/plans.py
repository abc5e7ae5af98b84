"""How a primitive would be computed: what a backend says of itself when it is asked, without computing."""

from typing import NamedTuple


class Step(NamedTuple):
    """Something that is done with the same sizes so many times: a kernel, a matrix product, a copy.

    Attributes
    ----------
    what : str
        "gemm"; a kernel's name, as in cuda/; or what NumPy does.
    sizes : dict
        Of a product of matrices [m, k] and [k, n]: m, k, n and how many (batch). Of a kernel: its blocks. Of
        anything else: what it is done to.
    repeats : int
        How many times, with other steps between.
    result : str
        Of a function that returns several gradients, the one that it is for.
    """

    what: str
    sizes: dict[str, int]
    repeats: int
    result: str = ""


class Part(NamedTuple):
    """How one primitive would be computed; the attributes are those of `gpuconv.explain`'s plan."""

    algorithm: str
    why: str
    steps: tuple[Step, ...]
    chunks: int
    threads: int
    workspace: int


class Account:
    """Steps as they are found, equal ones counted, and buffers by name, each as large as it gets."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
        self._buffers: dict[str, int] = {}

    def step(self, what: str, repeats: int = 1, **sizes: int) -> None:
        """Add a step."""
        key = what, tuple(sizes.items())
        self._steps[key] = self._steps.get(key, 0) + repeats

    def buffer(self, name: str, size: int) -> None:
        """Add a buffer of so many bytes, or enlarge the one of this name."""
        self._buffers[name] = max(size, self._buffers.get(name, 0))

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in the order in which they were first found."""
        return tuple(Step(what, dict(sizes), repeats) for (what, sizes), repeats in self._steps.items())

    def part(self, algorithm: str, why: str, chunks: int, threads: int = 1, shared: int = 0) -> Part:
        """Return what was found: buffers are each thread's, `shared` bytes are there once."""
        workspace = threads * sum(self._buffers.values()) + shared
        return Part(algorithm, why, self.steps, chunks, threads, workspace)
