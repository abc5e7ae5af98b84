"""What can be measured on: the CPU, or a GPU through CuPy, behind the same methods."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol, TypeVar

from gpuconv.backends.dispatch import check_gpu
from gpuconv.measure.cpu import Cpu
from gpuconv.measure.timing import Clock

R = TypeVar("R")


class Device(Clock, Protocol):
    """A device: `gpuconv.measure.cpu.Cpu` or `gpuconv.measure.gpu.Gpu`."""

    xp: ModuleType
    gpu: str | None  # the GPU's name
    stem: str  # for names of files

    def facts(self) -> dict[str, Any]:
        """Return what a reader must know to compare figures with others."""

    def stamp(self) -> Any:
        """Mark this moment in what the device does, without waiting for it."""

    def between(self, begin: Any, end: Any) -> float:
        """Return the microseconds between two stamps, once the device has come to both."""

    def undisturbed(self, work: Callable[[], R], patience: float) -> tuple[R, float | None]:
        """Do it while no other program is at work, waiting `patience` seconds at most."""

    def workspace(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Return a call's result and the most bytes that it held beside it."""

    def poisoned(self, byte: int) -> AbstractContextManager[None]:
        """Fill all memory that is allocated meanwhile, where that can be done."""

    def copy_gbps(self) -> float:
        """Measure the bandwidth of a large copy, bytes read and bytes written."""

    def gemm_tflops(self, precision: str) -> float:
        """Measure a large matrix product."""

    def shares_with(self, torch: ModuleType) -> bool:
        """Tell whether this PyTorch can work on the device's arrays."""

    def alive(self) -> bool:
        """Tell whether the device still takes work."""

    def synchronize(self) -> None:
        """Wait until all is done."""

    def wake(self) -> None:
        """Bring the device up to its speed."""

    def release(self) -> None:
        """Give unused memory back."""


def find(name: str) -> Device:
    """Return the device "cpu", "cuda" or, of "auto", a GPU where one can be used.

    Raises
    ------
    RuntimeError
        For "cuda" where it can't be used; the message says what is missing.
    """
    if name != "cpu":
        try:
            check_gpu()
        except RuntimeError:
            if name == "cuda":
                raise
        else:
            from gpuconv.measure.gpu import Gpu

            return Gpu()
    return Cpu()
