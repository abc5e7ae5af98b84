"""Which places of a batch are whose."""


def part(start: int, stop: int, rank: int, size: int) -> slice:
    """Return the places from start to stop that are this rank's: one run each, in the order of ranks.

    The parts differ by one place at most, the first ranks having the larger ones; where there are fewer
    places than ranks, the last have none.

    Examples
    --------
    >>> [part(100, 110, rank, 4) for rank in range(4)]
    [slice(100, 103, None), slice(103, 106, None), slice(106, 108, None), slice(108, 110, None)]
    """
    least, more = divmod(stop - start, size)
    first = start + rank * least + min(rank, more)
    return slice(first, first + least + (rank < more))
