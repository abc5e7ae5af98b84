"""A volume ten times as large as the memory that this process may have, blurred from Zarr to Zarr.

python docs/examples/volume.py                # on Linux, with the extras `dask` and `fast`; writes 5 GB
python docs/examples/volume.py --limit 192    # megabytes for everything: interpreter, libraries, data
"""

import argparse
import re
import resource
import tempfile
import threading
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from dask.diagnostics import ProgressBar

import gpuconv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--limit", type=int, default=256, help="megabytes that the process may have")
parser.add_argument("--times", type=float, default=10, help="how many times as large the volume is")
parser.add_argument("--folder", help="where to write the volumes; a temporary folder if not given")
parser.add_argument("--workers", type=int, default=2, help="chunks to compute at a time")
options = parser.parse_args()

# A chunk has 2 MB. They lie along one axis, so that some ten of them are in memory at a time, however many
# there are: see docs/collections.md.
CHUNK = (2, 512, 512)
shape = (round(options.limit * options.times), *CHUNK[1:])


def megabytes(what):
    """Return how much memory the process has: VmHWM, the most that it had; VmData, all that is its own."""
    return int(re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def limit(total):
    """Let the system refuse what would exceed so many megabytes, of which the libraries have some."""
    most = int((megabytes("VmData") + total - megabytes("VmHWM")) * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    threading.stack_size(1 << 20)  # of every thread to come: it counts, touched or not


def gaussian(size, sigma):
    """Return a kernel [1, 1, size, size, size] whose weights add up to 1."""
    line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    kernel = line[:, None, None] * line[:, None] * line
    return (kernel / kernel.sum()).astype(np.float32)[None, None]


def blurred(volume):
    """Return a volume [D, H, W] blurred; of a Dask array, lazily."""
    return gpuconv.conv3d(volume[None, None], gaussian(3, 0.8), padding="same")[0, 0]


with tempfile.TemporaryDirectory(dir=options.folder) as folder, dask.config.set(num_workers=options.workers):
    print(f"volume: {np.prod(shape) / 2**18:.0f} MB {shape}; libraries: {megabytes('VmHWM'):.0f} MB")
    limit(options.limit)
    noise, result = Path(folder, "noise.zarr"), Path(folder, "blurred.zarr")
    with ProgressBar():
        da.random.default_rng(0).random(shape, np.float32, chunks=CHUNK).to_zarr(noise)
        blurred(da.from_zarr(noise)).to_zarr(result)
    print(f"peak: {megabytes('VmHWM'):.0f} MB of {options.limit} MB")
    # A part from the middle, computed from the part of the volume that it depends on.
    inside = (slice(shape[0] // 2, shape[0] // 2 + 9), slice(100, 180), slice(0, 80))
    around = (slice(inside[0].start - 1, inside[0].stop + 1), slice(99, 181), slice(0, 81))
    want = blurred(zarr.open_array(noise)[around])[1:-1, 1:-1, :-1]
    difference = np.abs(zarr.open_array(result)[inside] - want).max()
    print(f"largest difference from a part computed alone: {difference:.1e}")
