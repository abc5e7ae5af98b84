"""Training by NCCL in a world of one: the weights that it gives without, and what a sum with nobody costs."""

from typing import Any

import numpy as np

import gpuconv
from gpuconv import nn
from gpuconv.distributed import DataParallel
from gpuconv.measure.calls import difference

from .children import Deadline
from .results import Results

STEPS = 20
TOLERANCE = 1e-9  # of float64, the sums of batch normalisation being made otherwise
BYTES = (1 << 20, 4 << 20, 64 << 20)
WAIT_US = 100.0  # before a call that is timed


def run(results: Results, deadline: Deadline, gpu: Any) -> str:
    """Train, then time sums; where there is no NCCL, say why not."""
    results.data["distributed"] = found = {}
    try:
        world = gpu.world()
    except RuntimeError as error:
        found["skipped"] = str(error)
        return "complete"
    with world as comm:
        alone = _trained(_network(gpu), gpu)
        network = DataParallel(_network(gpu), comm, sync_batch_norm=True, bucket_bytes=1 << 10)
        together = _trained(network, gpu)
        found["wrong"] = [
            name for name, w in alone.items() if not difference(together[name], w, np) <= TOLERANCE
        ]
        found["us"] = {}
        for size in BYTES:
            x = gpu.xp.zeros(size // 4, np.float32)
            comm.sum(x)
            found["us"][str(size)] = gpu.time(lambda x=x: comm.sum(x), WAIT_US)[0]
    return "complete"


def _network(gpu: Any) -> nn.Sequential:
    rng = np.random.default_rng(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False, rng=rng, dtype=np.float64),
        nn.BatchNorm2d(8, dtype=np.float64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2, rng=1),
        nn.Linear(8 * 8 * 8, 10, rng=rng, dtype=np.float64),
    )
    return network.to("cpu" if gpu.xp is np else "cuda")


def _trained(network: nn.Layer, gpu: Any) -> dict[str, Any]:
    """Return the weights after some steps, on the host."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((64, 3, 16, 16)), rng.integers(0, 10, 64)
    gpuconv.fit(
        network,
        gpu.xp.asarray(x),
        gpu.xp.asarray(y),
        loss=nn.SoftmaxCrossEntropy(),
        optimizer=nn.SGD(network, 0.05, momentum=0.9),
        max_iterations=STEPS,
        batch_size=20,
    )
    return {name: p if gpu.xp is np else p.get() for name, p in network.state_dict().items()}
