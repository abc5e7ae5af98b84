"""Cutting a convolution into blocks whose columns fit the cache: batches of groups, images, output rows."""

from typing import NamedTuple

from gpuconv.geometry import Window

Job = tuple[slice, "Block"]  # groups (or channels) and places


class Block(NamedTuple):
    """Output places whose columns are built at once: rows r0..r1 of images n0..n1."""

    n0: int
    n1: int
    r0: int
    r1: int


# With fewer columns than this a GEMM is slow, so small images are taken several at once.
GEMM_COLUMNS = 512


def cut_groups(groups: int, group_bytes: int, places: int, share: int, budget: int) -> list[slice]:
    """Cut the groups into batches: one batched GEMM takes several groups if they are small.

    `group_bytes` is the size of one group's column, `places` the number of columns in all, `share` how many
    batches are wanted at least.
    """
    columns = min(max(1, places), GEMM_COLUMNS)
    together = max(1, min(budget // (group_bytes * columns), groups // share))
    return [slice(g, min(groups, g + together)) for g in range(0, groups, together)]


def cut_places(images: int, window: Window, column_bytes: int, share: int, budget: int) -> list[Block]:
    """Cut the output into blocks whose columns fit the budget: whole images if one fits, else rows.

    `column_bytes` is the size of one column, `share` how many blocks are wanted at least.
    """
    rows = window.out_size[0]
    row_bytes = column_bytes * (window.places // rows)
    at_once = min(rows, max(1, budget // row_bytes))
    if images < share:
        at_once = min(at_once, max(1, rows * images // share))
    if at_once == rows:
        per_block = _evenly(images, min(max(1, budget // (row_bytes * rows)), max(1, images // share)), share)
        return [Block(n, min(images, n + per_block), 0, rows) for n in range(0, images, per_block)]
    at_once = -(-rows // -(-rows // at_once))  # even blocks: 14 rows as 7 + 7, not as 12 + 2
    return [
        Block(n, n + 1, r, min(rows, r + at_once)) for n in range(images) for r in range(0, rows, at_once)
    ]


def _evenly(number: int, each: int, share: int) -> int:
    """Return a size of at most `each` that cuts `number` into blocks equal in size and a multiple of `share`.

    Three blocks on two threads take as long as four.
    """
    blocks = -(-number // each)
    return max(1, -(-number // (-(-blocks // share) * share))) if blocks else 1


def cut_channels(channels: int, number: int) -> list[slice]:
    """Cut a group's input channels into `number` parts (or as many as there are), the first the largest."""
    size = -(-channels // max(1, min(number, channels)))
    return [slice(c, min(channels, c + size)) for c in range(0, channels, size)]


def length(part: slice) -> int:
    """Return how many indices a slice from start to stop takes."""
    return int(part.stop - part.start)


def channels(groups: slice, each: int) -> slice:
    """Return the channels of these groups."""
    return slice(groups.start * each, groups.stop * each)


def alike(jobs: list[Job]) -> list[tuple[Job, int]]:
    """Return, of all jobs on the same rows of as many images and groups, one and how many they are."""
    found: dict[tuple[int, int, int, int], tuple[Job, int]] = {}
    for job in jobs:
        groups, (n0, n1, r0, r1) = job
        key = length(groups), n1 - n0, r0, r1
        first, number = found.get(key, (job, 0))
        found[key] = first, number + 1
    return list(found.values())
