"""Run every operation once on small arrays, for compute-sanitizer to watch; says at the end that it got there."""

from .calls import Call, Calls
from .shapes import CONV_OPS, POOL_OPS, SMALL_CONVS, SMALL_POOLS, Shape

END = "every operation ran"


def cases(convs: tuple[Shape, ...] = SMALL_CONVS, pools: tuple[Shape, ...] = SMALL_POOLS):  # type: ignore[no-untyped-def]
    """Yield operation, shape, dtype and layout; float64 on the first of each kind, where it differs in nothing else."""
    for dtype in ("float32", "float16", "float64"):
        for shapes, ops in ((convs, CONV_OPS), (pools, POOL_OPS)):
            for shape in shapes[:1] if dtype == "float64" else shapes:
                for channels_last in (False, True):
                    for op in ops:
                        yield op, shape, dtype, channels_last
