"""The CUDA sources are found wherever gpuconv runs from."""

import shutil
import subprocess
import sys
from pathlib import Path

import gpuconv
from gpuconv.backends.cuda import sources

CHECKOUT = Path(gpuconv.__file__).resolve().parents[1]


def test_every_source_is_found_and_read():
    assert {"im2col", "col2im", "max_pool", "avg_pool", "bias_grad"} <= set(sources.names())
    assert "struct Window" in sources.common()
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
