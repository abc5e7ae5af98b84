"""Training: `fit`, the pictures that feed it, and runs that can be stopped and taken up again."""

from gpuconv.training.fit import History, fit

__all__ = ["History", "fit"]
