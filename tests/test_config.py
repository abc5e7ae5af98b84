"""gpuconv.config: settings for the process, for a block, for a thread; wrong ones are refused by name."""

import asyncio
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import gpuconv
from gpuconv import config


@pytest.fixture(autouse=True)
def as_it_was():
    before = config.as_dict()
    yield
    for name, value in before.items():
        setattr(config, name, value)


def test_defaults():
    assert config.workspace_limit is None
    assert config.fp32_precision == "ieee"
    assert config.ranges == "stages"
    assert config.compiled is True
    assert config.algorithm == "auto"
    assert config.autotune is False
    assert repr(config) == (
        "gpuconv.config(workspace_limit=None, fp32_precision='ieee', ranges='stages', "
        "compiled=True, algorithm='auto', autotune=False)"
    )


def test_an_assignment_holds_for_every_thread():
    config.workspace_limit = 2 << 20
    config.fp32_precision = "tf32"
    seen = []
    thread = threading.Thread(target=lambda: seen.append((config.workspace_limit, config.fp32_precision)))
    thread.start()
    thread.join()
    assert seen == [(2 << 20, "tf32")]
    config.workspace_limit = None
    assert config.workspace_limit is None


def test_a_block_holds_for_its_thread_and_ends_with_an_exception_too():
    seen = []
    with pytest.raises(ZeroDivisionError), config(workspace_limit=np.int64(3 << 20)):
        thread = threading.Thread(target=lambda: seen.append(config.workspace_limit))
        thread.start()
        thread.join()
        assert config.workspace_limit == 3 << 20
        assert type(config.workspace_limit) is int
        with config(fp32_precision="tf32"):
            assert (config.workspace_limit, config.fp32_precision) == (3 << 20, "tf32")
        with config(workspace_limit=None):
            assert config.workspace_limit is None
        assert config.fp32_precision == "ieee"
        raise ZeroDivisionError
    assert seen == [None]
    assert config.workspace_limit is None


def test_settings_by_name_make_another_thread_like_this_one():
    seen = []

    def elsewhere(settings):
        with config(**settings):
            seen.append(config.as_dict())

    with config(algorithm="gemm", workspace_limit=1 << 20):
        here = config.as_dict()
        thread = threading.Thread(target=elsewhere, args=(here,))
        thread.start()
        thread.join()
    assert seen == [here] and here != config.as_dict()
    assert (here["algorithm"], here["workspace_limit"]) == ("gemm", 1 << 20)


def test_tasks_of_one_thread_have_their_own():
    async def task(limit):
        with config(workspace_limit=limit):
            await asyncio.sleep(0)
            return config.workspace_limit

    async def both():
        return await asyncio.gather(task(1 << 20), task(2 << 20))

    assert asyncio.run(both()) == [1 << 20, 2 << 20]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (
            "workspace_limit",
            1000,
            ValueError,
            r"workspace_limit must be at least 1048576 bytes \(1 MiB\), not 1000",
        ),
        ("workspace_limit", -1, ValueError, "at least 1048576"),
        (
            "workspace_limit",
            2e6,
            TypeError,
            r"workspace_limit must be a number of bytes or None, not 2000000\.0",
        ),
        ("workspace_limit", True, TypeError, "number of bytes"),
        ("workspace_limit", "2MB", TypeError, "number of bytes"),
        (
            "fp32_precision",
            "TF32",
            ValueError,
            r'fp32_precision must be "ieee", "3xtf32" or "tf32", not \'TF32\'',
        ),
        ("fp32_precision", None, ValueError, "fp32_precision"),
        ("fp32_precision", [], ValueError, "fp32_precision"),
        (
            "ranges",
            "all",
            ValueError,
            'ranges must be "none", "layers", "operations" or "stages", not \'all\'',
        ),
        ("ranges", None, ValueError, "ranges"),
        ("compiled", 1, TypeError, "compiled must be True or False, not 1"),
        ("autotune", None, TypeError, "autotune must be True or False, not None"),
        (
            "algorithm",
            "fft",
            ValueError,
            'algorithm must be "auto", "gemm", "direct", "implicit" or "winograd", not \'fft\'',
        ),
        ("algorithm", None, ValueError, "algorithm"),
    ],
)
def test_wrong_values_are_refused_by_name(name, value, error, message):
    with pytest.raises(error, match=message):
        setattr(config, name, value)
    with pytest.raises(error, match=message), config(**{name: value}):
        pytest.fail("the block must not begin")
    test_defaults()


def test_unknown_settings_are_refused():
    message = r"no setting 'workspace'; there are workspace_limit, fp32_precision, ranges"
    with pytest.raises(TypeError, match=message), config(workspace=5):
        pytest.fail("the block must not begin")
    with pytest.raises(AttributeError):
        config.workspace = 5


def test_numpy_arrays_are_not_touched_by_it():
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with gpuconv.config(fp32_precision="tf32", workspace_limit=1 << 20):
        assert gpuconv.conv2d(x, w).tolist() == [[[[9, 9], [9, 9]]]]


@pytest.mark.parametrize("strict", [(), ("-W", "error")])
def test_a_wrong_word_in_the_environment_is_warned_of_once_and_no_import_fails(strict):
    program = "import gpuconv; gpuconv.config.ranges; print(gpuconv.config.ranges)"
    command = [sys.executable, *strict, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GPUCONV_RANGES": "all"})
    assert (run.returncode, run.stdout) == (0, "stages\n"), run.stderr
    assert run.stderr.count('GPUCONV_RANGES: config: ranges must be "none"') == (0 if strict else 1)


def test_the_environment_gives_the_first_value_of_ranges():
    command = [sys.executable, "-c", "import gpuconv; print(gpuconv.config.ranges)"]
    environment = {**os.environ, "GPUCONV_RANGES": "layers"}
    assert subprocess.run(command, capture_output=True, text=True, env=environment).stdout == "layers\n"
