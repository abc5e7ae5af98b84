"""A small network of PyTorch's, and ours with its weights: the same outputs, without PyTorch from then on.

python docs/examples/pytorch_weights.py     # needs the extra `safetensors`, and PyTorch
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import gpuconv

torch.manual_seed(0)
theirs = torch.nn.Sequential(
    torch.nn.Conv2d(1, 8, 3, padding=1),
    torch.nn.BatchNorm2d(8),
    torch.nn.ReLU(),
    torch.nn.MaxPool2d(2),
    torch.nn.Flatten(),
    torch.nn.Linear(8 * 14 * 14, 10),
).eval()
ours = gpuconv.Sequential(
    gpuconv.Conv2d(1, 8, 3, padding=1),
    gpuconv.BatchNorm2d(8),
    gpuconv.ReLU(),
    gpuconv.MaxPool2d(2),
    gpuconv.Flatten(),
    gpuconv.Linear(8 * 14 * 14, 10),
).eval()

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "weights.safetensors")
    save_file(theirs.state_dict(), path)
    ours.load(path)

images = np.random.default_rng(0).random((16, 1, 28, 28), np.float32)
with torch.no_grad():
    want = theirs(torch.from_numpy(images)).numpy()
difference = float(np.abs(ours(images) - want).max())
print(f"largest difference of the outputs: {difference:.1e}")
