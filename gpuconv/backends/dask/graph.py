"""From a primitive to a graph: a task for each block of the result, which is given what it reads.

A block reads parts of others' chunks, those that its windows reach. Each part is a task, so that no more of a
neighbour's chunk travels to another machine or stays in memory; a chunk that is read as a whole needs none.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, product, repeat
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from dask.array import Array as DaskArray
from dask.array import map_blocks
from dask.array.chunk import getitem
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from gpuconv import blocks
from gpuconv.backends.dispatch import backend_of
from gpuconv.blocks import Part
from gpuconv.config import config
from gpuconv.geometry import Window

Array = Any
Shape = tuple[int, ...]
Chunks = tuple[tuple[int, ...], ...]
Along = Sequence[Part | None]  # the blocks along an axis; None for all of one that isn't cut
WHOLE: Along = (None,)

# On which side of the window arrays are cut: that of its input, or that of its output. The other arrays of
# these primitives are whole in every task; for primitives that aren't here, the batch alone is cut.
IN, OUT = "in", "out"
SIDES: dict[str, dict[str, str]] = {
    "convolution.forward": {"x": IN, "y": OUT},
    "convolution.input_grad": {"dy": OUT, "dx": IN},
    "convolution.weight_grad": {"dy": OUT, "x": IN},
    "pooling.max_pool": {"x": IN, "y": OUT, "argmax": OUT},
    "pooling.max_pool_backward": {"dy": OUT, "argmax": OUT, "dx": IN},
    "pooling.avg_pool": {"x": IN, "y": OUT},
    "pooling.avg_pool_backward": {"dy": OUT, "dx": IN},
    "pooling.lp_pool": {"x": IN, "y": OUT},
    "pooling.lp_pool_backward": {"dy": OUT, "x": IN, "y": OUT, "dx": IN},
    "pooling.max_unpool": {"x": OUT, "argmax": OUT, "y": IN},
    "pooling.max_unpool_backward": {"dy": IN, "argmax": OUT, "dx": OUT},
}


class Result(NamedTuple):
    """An array that a primitive writes to."""

    shape: Shape
    dtype: np.dtype[Any]


class Work(NamedTuple):
    """What the blocks of a call have in common."""

    primitive: str
    order: tuple[str, ...]
    sources: tuple[str, ...]
    results: dict[str, np.dtype[Any]]
    options: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """A task: a block of a primitive's results, from the pieces of chunks that it reads.

    `counts` tells into how many pieces each source is cut along each axis, `shapes` what the primitive writes
    to, and `kept` what of that is the block.
    """

    work: Work
    window: Window | None
    counts: tuple[Shape, ...]
    shapes: tuple[Shape, ...]
    kept: tuple[slice | None, ...]

    def __call__(self, *chunks: Array) -> Any:
        """Compute it, with the settings that held where the graph was laid out."""
        work, pieces = self.work, iter(chunks)
        arrays = {
            name: _joined(list(islice(pieces, prod(counts))), counts)
            for name, counts in zip(work.sources, self.counts, strict=True)
        }
        backend = backend_of(work.primitive, **arrays)
        beside = next(iter(arrays.values()))
        results = {
            name: backend.arrays.empty(shape, dtype, beside)
            for (name, dtype), shape in zip(work.results.items(), self.shapes, strict=True)
        }
        arguments = {**work.options, **arrays, **results}
        if self.window is not None:
            arguments["window"] = self.window
        module, _, name = work.primitive.partition(".")
        with config(**work.settings):
            getattr(getattr(backend, module), name)(*(arguments[each] for each in work.order))
        found = tuple(y[self.kept] for y in results.values())
        return found if len(found) > 1 else found[0]


def _joined(pieces: list[Array], counts: Shape) -> Array:
    """Return pieces, which are in row-major order, as one array: of their kind, each copied once."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    ends = [
        list(accumulate(pieces[i * prod(counts[axis + 1 :])].shape[axis] for i in range(count)))
        for axis, count in enumerate(counts)
    ]
    shape = tuple(along[-1] for along in ends)
    whole = backend_of("dask", pieces=first).arrays.empty(shape, first.dtype, first)
    for piece, place in zip(pieces, product(*map(range, counts)), strict=True):
        stops = [along[i] for along, i in zip(ends, place, strict=True)]
        whole[tuple(slice(stop - n, stop) for stop, n in zip(stops, piece.shape, strict=True))] = piece
    return whole


def settings() -> dict[str, Any]:
    """Return the settings that hold here, for blocks that are computed elsewhere."""
    found = config.as_dict()
    del found["ranges"]  # what a profiler sees is the worker's affair
    return found


class Layout:
    """A primitive with its arguments, and where the blocks of its results are.

    Parameters
    ----------
    primitive
        Its name, as in "convolution.forward".
    arguments
        What it is called with, by name: Dask arrays, and a `Result` for each array that it writes to.
    like
        Chunks to cut results of these shapes into. Others are cut as what they are computed from, along each
        axis as the array that has the most chunks.
    """

    def __init__(self, primitive: str, arguments: dict[str, Any], like: dict[Shape, Chunks]) -> None:
        sides = SIDES.get(primitive) or dict.fromkeys(arguments, OUT)
        self.primitive, self.order, self.sides = primitive, tuple(arguments), sides
        self.results = {name: x for name, x in arguments.items() if isinstance(x, Result)}
        self.sources = {
            name: x if name in sides else x.rechunk(-1)
            for name, x in arguments.items()
            if isinstance(x, DaskArray)
        }
        self.options = {
            name: x for name, x in arguments.items() if name not in self.results and name not in self.sources
        }
        first, result = next(iter(self.results.items()))
        self.side = sides.get(first)  # None: what each block gives is summed
        if self.side is not None and result.shape in like:
            self.leading = [(self.side, like[result.shape])]
        else:
            self.leading = [(sides[name], x.chunks) for name, x in self.sources.items() if name in sides]
        self.grid = self._grid()

    def arrays(self, op: str) -> list[Any]:
        """Return the results as Dask arrays, whose keys begin with the public function's name.

        A result to be summed is [blocks, *shape].
        """
        dtypes = {name: result.dtype for name, result in self.results.items()}
        work = Work(self.primitive, self.order, tuple(self.sources), dtypes, self.options, settings())
        token = tokenize(work, self.results, self.grid, *(x.name for x in self.sources.values()))
        name = "-".join((op, *self.results, token))
        sources = list(self.sources.values())
        chunks = [self._chunks(result.shape) for result in self.results.values()]
        metas = [
            meta_from_array(sources[0]._meta, len(sizes), dtype)
            for sizes, dtype in zip(chunks, dtypes.values(), strict=True)
        ]
        tasks = dict(self._tasks(name, token, work, len(chunks[0])))
        graph = HighLevelGraph.from_collections(name, tasks, dependencies=sources)
        found = DaskArray(graph, name, chunks[0], meta=metas[0])
        if len(metas) == 1:
            return [found]
        return [
            map_blocks(itemgetter(i), found, name=f"{op}-{result}-{token}", meta=metas[i])
            for i, result in enumerate(self.results)
        ]

    # Where blocks are.

    def _grid(self) -> list[Along]:
        if self.primitive not in SIDES:
            return [self._plain(0)]
        window, last = self.options["window"], self.options["channels_last"]
        spatial = [self._spatial(window, axis, axis + (1 if last else 2)) for axis in range(window.axes)]
        mixes_channels = self.primitive.startswith("convolution")
        channels = WHOLE if mixes_channels else self._plain(-1 if last else 1)
        return [self._plain(0), *spatial, channels] if last else [self._plain(0), channels, *spatial]

    def _plain(self, axis: int) -> Along:
        cuts = [blocks.ends_of(accumulate(chunks[axis]), sum(chunks[axis])) for _, chunks in self.leading]
        return [blocks.plain(*block) for block in blocks.between(_most(cuts))]

    def _spatial(self, window: Window, axis: int, number: int) -> Along:
        ends = [(side, list(accumulate(chunks[number]))) for side, chunks in self.leading]
        if self.side == IN:
            cuts = [
                blocks.cuts_of_input(window, axis, each)
                if side == OUT
                else blocks.ends_of(each, window.in_size[axis])
                for side, each in ends
            ]
            # A pooling's maxima and divisors depend on their whole window.
            whole = self.primitive.startswith("pooling")
            return [blocks.reached(window, axis, *block, whole) for block in blocks.between(_most(cuts))]
        cuts = [
            blocks.cuts_of_output(window, axis, each)
            if side == IN
            else blocks.with_places(window, axis, each)
            for side, each in ends
        ]
        # Whether another window wrote over a value decides about its gradient.
        overwrites = self.primitive == "pooling.max_unpool_backward"
        part = blocks.among_neighbours if overwrites else blocks.reading
        return [part(window, axis, *block) for block in blocks.between(_most(cuts))]

    def _chunks(self, shape: Shape) -> Chunks:
        if self.side is None:
            return ((1,) * prod(map(len, self.grid)), *((n,) for n in shape))
        return tuple(
            tuple(n if part is None else part.kept[1] - part.kept[0] for part in along)
            for along, n in zip(self._along_all(), shape, strict=False)
        )

    def _along_all(self) -> Iterator[Along]:
        """Return the blocks along each axis, of arrays with however many."""
        return chain(self.grid, repeat(WHOLE))

    # What is done for them.

    def _tasks(self, name: str, token: str, work: Work, axes: int) -> Iterator[tuple[Any, Any]]:
        """Yield keys and tasks: of parts of chunks, and of blocks."""
        read = {n: self._pieces(x, self.sides.get(n)) for n, x in self.sources.items()}
        for number, place in enumerate(product(*(range(len(along)) for along in self.grid))):
            counts, chunks = [], []
            for n, x in self.sources.items():
                at = chain(place if n in self.sides else (), repeat(0))
                pieces = [along[i] for along, i in zip(read[n], at, strict=False)]
                counts.append(tuple(map(len, pieces)))
                for piece in product(*pieces):
                    chunk = (x.name, *(i for i, _ in piece))
                    if any(part for _, part in piece):
                        key = (f"{n}-part-{token}", *place, *chunk[1:])
                        yield key, (getitem, chunk, tuple(part or slice(None) for _, part in piece))
                        chunk = key
                    chunks.append(chunk)
            block = self._block(work, [along[i] for along, i in zip(self.grid, place, strict=True)], counts)
            index = (number,) if self.side is None else place
            yield (name, *index, *(0,) * (axes - len(index))), (block, *chunks)

    def _pieces(self, x: Any, side: str | None) -> "list[list[list[Piece]]]":
        """Return the pieces of an array's chunks that blocks read: for each axis, for each block, a list."""
        grid = self._along_all() if side else repeat(WHOLE)
        return [
            [_pieces(sizes, *((0, n) if part is None else _range(part, side))) for part in along]
            for along, sizes, n in zip(grid, x.chunks, x.shape, strict=False)
        ]

    def _block(self, work: Work, parts: list[Part | None], counts: list[Shape]) -> Block:
        window = None
        if self.primitive in SIDES:
            spatial = parts[1:-1] if self.options["channels_last"] else parts[2:]
            window = blocks.window_of(self.options["window"], [part for part in spatial if part])
        shapes = [result.shape for result in self.results.values()]
        kept: tuple[slice | None, ...] = (None,)
        if self.side is not None:
            for axis, part in enumerate(parts):
                if part is not None:
                    start, stop = _range(part, self.side)
                    shapes = [(*shape[:axis], stop - start, *shape[axis + 1 :]) for shape in shapes]
            kept = tuple(slice(None) if part is None else slice(*part.kept) for part in parts)
        return Block(work, window, tuple(counts), tuple(shapes), kept)


# Of a chunk, along an axis: its number, and what is read of it; None for all.
Piece = tuple[int, slice | None]


def _pieces(sizes: tuple[int, ...], start: int, stop: int) -> list[Piece]:
    """Return the pieces of chunks of these sizes that have the places from start to stop; at least one."""
    ends = list(accumulate(sizes))
    found: list[Piece] = []
    for i in range(bisect_right(ends, start), bisect_left(ends, stop) + 1):
        begin = ends[i] - sizes[i]
        part = slice(max(start - begin, 0), min(stop - begin, sizes[i]))
        if part.start < part.stop:
            found.append((i, None if part == slice(0, sizes[i]) else part))
    return found or [(0, slice(0, 0))]


def _range(part: Part, side: str | None) -> blocks.Range:
    return part.places if side == IN else part.outputs


def _most(cuts: list[list[int]]) -> list[int]:
    """Return where the most blocks end, of several ways to cut an axis."""
    return max(cuts, key=len)
