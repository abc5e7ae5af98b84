"""No two threads of a CUDA kernel touch the same byte with no barrier between, unless both read."""

from dataclasses import replace

import numpy as np
import pytest
from cases import Case
from conftest import BACKENDS
from every_op import CALLS
from host import compiler
from passes import check

import gpuconv

if reason := compiler.missing():
    pytest.skip(reason, allow_module_level=True)

from host.runtime import host, to_device

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])


@pytest.fixture(autouse=True)
def looked_for(monkeypatch):
    monkeypatch.setattr(host, "races", True)
    monkeypatch.setattr(host, "orders", 2)  # copies as late as they may be, and at once
    host.reset()


@pytest.mark.parametrize("name", CALLS)
def test_of_every_operation(name):
    def there(values):
        return [to_device(value) if isinstance(value, np.ndarray) else value for value in values]

    arguments, options = CALLS[name]
    getattr(gpuconv, name)(*there(arguments), **dict(zip(options, there(options.values()), strict=True)))
    assert host.launches


# Sums of many slices, and of more terms than one table has; several tiles, parts and phases.
DENSE = Case(
    n=2, c_in=36, c_out=20, groups=1, in_size=(9, 10), kernel=(3, 3), stride=(1, 1), dilation=(1, 1),
    padding=1, ceil_mode=False, count_include_pad=True, channels_last=False, seed=0,
)  # fmt: skip
STRIDED = replace(DENSE, groups=2, stride=(2, 1), c_in=72, in_size=(11, 8))
DEPTHWISE = replace(DENSE, n=3, c_in=8, c_out=8, groups=8, in_size=(20, 19))


@LAYOUTS
@pytest.mark.parametrize(
    "algorithm, case, dtype, precision",
    [
        ("implicit", DENSE, "f2", "ieee"),
        ("implicit", DENSE, "f4", "ieee"),
        ("implicit", DENSE, "f4", "tf32"),
        ("implicit", STRIDED, "f4", "ieee"),
        ("winograd", DENSE, "f4", "ieee"),
        ("direct", DEPTHWISE, "f4", "ieee"),
    ],
)
def test_of_every_algorithm(algorithm, case, dtype, precision, channels_last):
    with gpuconv.config(fp32_precision=precision, workspace_limit=1 << 20):
        check(replace(case, channels_last=channels_last), algorithm, np.dtype(dtype), BACKENDS["kernels"])
    assert {name for name, _ in host.launches} & {"implicit_gemm", "winograd", "depthwise"}
