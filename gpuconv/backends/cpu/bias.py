"""The gradient of a convolution by its bias: dy, summed over images and places.

First within an image, then over images, so that the result depends on no number of threads.
"""

from math import prod
from typing import Any

import numpy as np

from gpuconv.backends.cpu import compiled
from gpuconv.backends.cpu.columns import channels_first, view_as
from gpuconv.backends.cpu.compiled import address
from gpuconv.backends.cpu.jobs import run
from gpuconv.backends.cpu.threads import is_much, parallel, used
from gpuconv.backends.dispatch import accumulator
from gpuconv.backends.plans import Account, Part

Array = np.ndarray[Any, Any]


def grad(dy: Array, db: Array, channels_last: bool) -> None:
    """Write db."""
    source = channels_first(dy, channels_last)
    planes = _places_as_one(source)
    if (c := _kernels(planes)) is not None:
        db[...] = _sums(c, planes).sum(axis=0)
        return
    if planes.strides[-1] == source.itemsize:
        source = planes
    wide = accumulator(db.dtype)
    partial = np.empty(source.shape[:2], wide)

    def one(images: slice) -> None:
        # NumPy sums an innermost axis pairwise but outer axes one by one; axis by axis, no sum gets long.
        part = source[images]
        while part.ndim > 2:
            part = part.sum(axis=-1, dtype=wide)
        partial[images] = part

    parallel(one, _cut(dy), dy.size)
    db[...] = partial.sum(axis=0)


def plan_grad(dy: Array, db: Array, channels_last: bool) -> Part:
    """Return how `grad` would compute."""
    account, dtype = Account(), accumulator(db.dtype)
    source = channels_first(dy, channels_last)
    planes = _places_as_one(source)
    if _kernels(planes) is not None:
        jobs_of_c = _jobs(planes)
        for _, _, count in jobs_of_c:
            account.step("sum", planes=count, places=planes.shape[2])
        shared = prod(planes.shape[:2]) * 8  # sums as doubles
        return account.part("sum", WHY_COMPILED, len(jobs_of_c), used(len(jobs_of_c), dy.size), shared)
    images, *sizes = (planes if planes.strides[-1] == source.itemsize else source).shape
    jobs = _cut(dy)
    each = len(range(images)[jobs[0]]) if jobs else 0
    account.step("sum", len(jobs), images=each, places=prod(sizes[1:]), channels=sizes[0])
    account.buffer("sums", each * prod(sizes[:-1]) * dtype.itemsize)
    return account.part("sum", WHY, len(jobs), used(len(jobs), dy.size), images * sizes[0] * dtype.itemsize)


# Elements of a C kernel's job: enough that a thread comes for it. And jobs at most, of an image or of all.
BLOCK, MOST_JOBS = 1 << 16, 256

WHY = "axis by axis and image by image, so that no sum gets long"
WHY_COMPILED = "our C kernels: blocks of numbers, then planes, then images, so that no sum gets long"


def _sums(c: compiled.Kernels, source: Array) -> Array:
    """Return the sums over [N, C, places] of the places."""
    (images, channels, places), (image, channel, place) = source.shape, compiled.strides(source)
    sums = np.empty((images, channels))
    x, out = address(source), address(sums)
    planes = place == 1 or places == 1
    name, step = ("sum_planes", channel) if planes else ("sum_channels", place)
    rows = [
        (count, places, x + (i * image + j * channel) * source.itemsize, step, out + (i * channels + j) * 8)
        for i, j, count in _jobs(source)
    ]
    run(c, name, rows, source.size)
    return sums


def _jobs(source: Array) -> list[tuple[int, int, int]]:
    """Cut [N, C, places] into jobs of some BLOCK elements: image, first channel, number of channels.

    Where all planes are evenly spaced, they count as the first image's channels.
    """
    (images, channels, places), (image, channel, place) = source.shape, source.strides
    each = max(1, channels)
    if place == source.itemsize or places == 1:
        if image == channels * channel:
            images, channels = 1, images * channels
        each = max(1, BLOCK // max(1, places), channels // MOST_JOBS)
    return [(i, j, min(each, channels - j)) for i in range(images) for j in range(0, channels, each)]


def _kernels(source: Array) -> compiled.Kernels | None:
    """Return C kernels where they can read [N, C, places]: places of a channel, or channels, side by side."""
    beside = source.ndim == 3 and source.itemsize in source.strides[1:]
    return compiled.kernels(source) if beside else None


def _places_as_one(x: Array) -> Array:
    """View [N, C, *places] as [N, C, places] where these are evenly spaced; else return it as it is."""
    planes = view_as(x, (*x.shape[:2], prod(x.shape[2:])))
    return x if planes is None else planes


def _cut(dy: Array) -> list[slice]:
    """Cut images into jobs: one of each, or, where it isn't worth waking threads for, of all."""
    return [slice(n, n + 1) for n in range(len(dy))] if is_much(dy.size) else [slice(0, len(dy))]
