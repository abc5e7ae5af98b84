"""The CUDA sources: found wherever gpuconv runs from, and right when their threads are run on the CPU."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.cuda import sources

CHECKOUT = Path(gpuconv.__file__).resolve().parents[1]

# Just enough of CUDA's language for a kernel without barriers: a launch is a loop over blocks and threads.
HOST = """
struct Dim { unsigned x, y, z; };
static thread_local Dim gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __restrict__ __restrict
"""
LAUNCH = """
extern "C" void launch(unsigned grid, unsigned block, const T *x, T *col, INDEX planes, int h, int w, int oh,
                       int ow, int ph, int pw) {
    gridDim = {grid, 1, 1};
    blockDim = {block, 1, 1};
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
            gpuconv_im2col(x, col, planes, h, w, oh, ow, ph, pw);
}
"""


def test_every_source_is_found_and_read():
    assert "im2col" in sources.names()
    assert all("gpuconv_" in sources.read(name) for name in sources.names())


def _copy_of_the_package(to):
    shutil.copytree(
        CHECKOUT / "gpuconv", to / "gpuconv", ignore=shutil.ignore_patterns("__pycache__", "cuda")
    )
    shutil.copytree(CHECKOUT / "gpuconv/backends/cuda", to / "gpuconv/backends/cuda", dirs_exist_ok=True)


def _folder_seen_from(path):
    code = "from gpuconv.backends.cuda import sources; print(sources.folder())"
    environment = {"PYTHONPATH": str(path), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=path, capture_output=True, text=True
    )
    return run.stdout.strip(), run.stderr


def test_an_installed_package_carries_its_sources_inside(tmp_path):
    _copy_of_the_package(tmp_path)
    shutil.copytree(sources.folder(), tmp_path / "gpuconv/cuda")
    (tmp_path / "cuda").mkdir()  # what CuPy's dependency leaves in site-packages
    assert _folder_seen_from(tmp_path)[0] == str(tmp_path / "gpuconv/cuda")


def test_a_checkout_has_its_sources_beside_the_package(tmp_path):
    _copy_of_the_package(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "cuda").mkdir()
    assert _folder_seen_from(tmp_path)[0] == str(tmp_path / "cuda")


def test_a_foreign_folder_named_cuda_is_not_taken_for_ours(tmp_path):
    _copy_of_the_package(tmp_path)
    (tmp_path / "cuda").mkdir()
    out, error = _folder_seen_from(tmp_path)
    assert not out
    assert "install gpuconv again" in error


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to run CUDA threads on the CPU")
@pytest.mark.parametrize("kernel, stride, dilation", [((3, 3), (1, 1), (1, 1)), ((2, 3), (2, 1), (1, 2))])
def test_im2col_kernel_run_on_the_cpu_equals_im2col(tmp_path, kernel, stride, dilation):
    names = ("KH", "KW", "STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W")
    values = (*kernel, *stride, *dilation)
    defines = ["#define T float", "#define INDEX long long"]
    defines += [f"#define {name} {value}" for name, value in zip(names, values, strict=True)]
    source = tmp_path / "im2col.cpp"
    source.write_text("\n".join([HOST, *defines, sources.read("im2col"), LAUNCH]))
    library = tmp_path / "im2col.so"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    launch = ctypes.CDLL(str(library)).launch

    x = np.random.default_rng(0).standard_normal((2, 3, 7, 9)).astype(np.float32)
    options = {"stride": stride, "padding": ((1, 2), (2, 0)), "dilation": dilation}
    expected = gpuconv.im2col(x, kernel, **options)
    w = np.empty((1, 3, *kernel), np.float32)
    oh, ow = gpuconv.conv2d(x, w, **options).shape[2:]
    col = np.full(expected.shape, np.nan, np.float32)
    pointer = ctypes.POINTER(ctypes.c_float)
    sizes = (ctypes.c_longlong(6), 7, 9, oh, ow, 1, 2)
    launch(3, 8, x.ctypes.data_as(pointer), col.ctypes.data_as(pointer), *sizes)
    assert np.array_equal(col, expected)
