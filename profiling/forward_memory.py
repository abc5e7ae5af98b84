"""Print, as JSON, the memory that one forward pass on vgg3_2 takes at its peak beside x, w and y.

    python profiling/forward_memory.py 16        # 16 images; the benchmark runs it for 8 and 16

One process measures one call: buffers that a thread keeps for its next call would hide in a second one.
`resident` is what the system counts, BLAS's own buffers and the threads' stacks included; `traced` is what
NumPy asked for. Linux only: the peak is read from /proc.
"""

import json
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, not another installed one

import gpuconv

IMAGES, CHANNELS, SIZE = 16, 256, 56  # vgg3_2 of conv_shapes.csv: 3x3, as many channels out as in


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    tiny = np.ones((1, 1, 4, 4), np.float32)
    gpuconv.conv2d(
        tiny, tiny[:, :, :3, :3], padding=1
    )  # imports and the search for BLAS are no part of a pass
    x = np.ones((images, CHANNELS, SIZE, SIZE), np.float32)
    w = np.ones((CHANNELS, CHANNELS, 3, 3), np.float32)
    b = np.ones(CHANNELS, np.float32)

    Path("/proc/self/clear_refs").write_text("5")  # puts the peak down to what is resident now
    before = _status("VmRSS")
    tracemalloc.start()
    y = gpuconv.conv2d(x, w, b, padding=1)
    traced = tracemalloc.get_traced_memory()[1]
    resident = _status("VmHWM") - before
    print(
        json.dumps({
            "images": images,
            "resident_mb": round((resident - y.nbytes) / 1e6, 1),
            "traced_mb": round((traced - y.nbytes) / 1e6, 1),
        })
    )  # fmt: skip


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {key}")
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    main()
