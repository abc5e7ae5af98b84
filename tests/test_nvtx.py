"""Profiling ranges as a tool sees them: a library that NVTX loads writes down what it is told.

Each program runs in a process of its own, as NVTX looks for a tool once, when it is first called.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import pytest
from host import compiler

pytest.importorskip("nvtx", reason="needs nvtx, which has wheels for Linux and Windows only")
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to compile the tool that listens")
needs_kernels = pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing())

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).parent / "nvtx/recorder.cpp"
# What most programs begin with.
NETWORK = """
    import numpy as np
    import gpuconv
    from gpuconv import nn
    from gpuconv.training import fit

    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, rng=0),
        nn.ReLU(),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(36, 2, rng=0),
    )
    x, y = np.ones((4, 1, 8, 8), np.float32), np.zeros(4, int)
"""
FIT = """
    fit(network, x, y, loss=nn.SoftmaxCrossEntropy(), optimizer=nn.SGD(network, 0.1), max_iterations={})
"""


@dataclass
class Range:
    """A range, and those within."""

    name: str
    category: str | None
    payload: str
    inner: list["Range"] = field(default_factory=list)

    def all(self):
        """Yield the range and all within, as they began."""
        yield self
        for each in self.inner:
            yield from each.all()

    def tree(self):
        """Return the names, indented."""
        return "\n".join(
            [self.name, *("  " + line for each in self.inner for line in each.tree().split("\n"))]
        )


class Recording:
    """What a tool was told, of our domain alone."""

    def __init__(self, text):
        self.domains, self.strings, self.categories = [], [], {}
        stacks = {}
        for line in text.splitlines():
            kind, *rest = line.split("\t")
            if kind == "domain":
                self.domains += rest
            elif kind == "category":
                self.categories[rest[1]] = rest[2]
            elif kind == "string":
                self.strings.append(rest[1])
            elif kind == "push":
                thread, _, category, payload, name = rest
                stack = stacks.setdefault(thread, [Range("", None, "")])
                found = Range(name, self.categories.get(category), payload)
                stack[-1].inner.append(found)
                stack.append(found)
            else:
                stacks[rest[0]].pop()
                assert stacks[rest[0]], "a range ended that had not begun"
        assert all(len(stack) == 1 for stack in stacks.values()), "a range never ended"
        self.threads = [stack[0].inner for stack in stacks.values()]

    @property
    def ranges(self):
        """All ranges of the one thread, outer before inner."""
        (top,) = self.threads or [[]]
        return [each for outer in top for each in outer.all()]

    @property
    def tree(self):
        """The names of the one thread's ranges, indented."""
        (top,) = self.threads or [[]]
        return "\n".join(each.tree() for each in top)


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    """The library."""
    library = tmp_path_factory.mktemp("nvtx") / "recorder.so"
    flags = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(library)], check=True)
    return library


@pytest.fixture
def record(tool, tmp_path):
    """Run a program that the tool listens to, and return what it was told."""

    def run(*parts, **environment):
        told = tmp_path / "told.txt"
        environment = {"NVTX_INJECTION64_PATH": str(tool), "GPUCONV_NVTX_RECORD": str(told)} | environment
        _run(*parts, **environment)
        return Recording(told.read_text() if told.exists() else "")

    return run


def _run(*parts, **environment):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("NVTX_", "GPUCONV_R"))}
    subprocess.run(
        [sys.executable, "-c", "".join(map(dedent, parts))],
        check=True,
        env={**quiet, "PYTHONPATH": path, **environment},
    )


STEP = """
step
  0.conv2d
    conv2d x[4,1,8,8] w[4,1,3,3] b[4]
  1.relu
  2.sequential
    2.0.maxpool2d
      max_pool2d x[4,4,6,6]
    2.1.flatten
  3.linear
  loss
  3.linear backward
  2.sequential backward
    2.1.flatten backward
    2.0.maxpool2d backward
      max_pool2d_backward dy[4,4,3,3] argmax[4,4,3,3]
  1.relu backward
  0.conv2d backward
    conv2d_backward dy[4,4,6,6] x[4,1,8,8] w[4,1,3,3]
  update
""".strip()


def test_a_training_step_shows_layers_by_their_place_and_operations_with_their_shapes(record):
    told = record(NETWORK, FIT.format(1))
    assert told.domains == ["gpuconv"]
    assert told.tree == "epoch\n  " + STEP.replace("\n", "\n  ")


def test_epochs_and_steps_are_numbered(record):
    told = record(NETWORK, FIT.format("5, batch_size=2"))
    numbered = [(each.name, each.payload) for each in told.ranges if each.name in ("epoch", "step")]
    epochs = [[("epoch", "1"), ("step", "1"), ("step", "2")], [("epoch", "2"), ("step", "3"), ("step", "4")]]
    assert numbered == [*epochs[0], *epochs[1], ("epoch", "3"), ("step", "5")]


def test_a_run_numbers_its_epochs_and_steps_and_shows_the_evaluation(record):
    told = record("""
        from gpuconv.training.datasets import Dataset
        from gpuconv.training.run import Run, Settings
        import numpy as np
        x, y = np.ones((20, 1, 28, 28), np.float32), np.arange(20) % 10
        dataset = Dataset("ones", x, y, x, y, 10)
        settings = Settings("batch-gd", seed=0, epochs=2, max_iterations=None, batch_size=10, step=0.1)
        Run(settings, dataset).train(on_update=lambda *_: None)
    """)
    (top,) = told.threads
    assert [(each.name, each.payload) for each in top] == [("epoch", "1"), ("epoch", "2")]
    inner = [[(each.name, each.payload) for each in epoch.inner] for epoch in top]
    assert inner == [[("step", str(i)), ("step", str(i + 1)), ("evaluation", "-")] for i in (1, 3)]


def test_payloads_are_the_bytes_of_what_was_given(record):
    told = record(NETWORK, "gpuconv.conv2d(x[:2], np.ones((3, 1, 5, 5)), stride=2); network(x)")
    payloads = {each.name: each.payload for each in told.ranges}
    assert payloads["conv2d x[2,1,8,8] w[3,1,5,5]"] == str(2 * 64 * 4 + 75 * 8)
    assert payloads["0.conv2d"] == str(4 * 64 * 4)
    assert payloads["2.1.flatten"] == str(4 * 36 * 4)


def test_categories_are_named(record):
    told = record(NETWORK, FIT.format(1))
    categories = {each.name.partition(" ")[0]: each.category for each in told.ranges}
    assert categories == {
        **dict.fromkeys(("epoch", "step", "loss", "update"), "train"),
        **dict.fromkeys(("0.conv2d", "conv2d", "conv2d_backward"), "conv"),
        **dict.fromkeys(("2.0.maxpool2d", "max_pool2d", "max_pool2d_backward"), "pool"),
        "3.linear": "gemm",
        **dict.fromkeys(("1.relu", "2.sequential", "2.1.flatten"), None),
    }


def test_a_text_is_registered_once_for_each_shape(record):
    told = record(NETWORK, FIT.format(20))
    assert [each.payload for each in told.ranges if each.name == "step"] == [str(i) for i in range(1, 21)]
    assert set(Counter(told.strings).values()) == {1}
    assert set(told.strings) == {each.name for each in told.ranges}


def test_where_there_are_very_many_shapes_new_ones_are_ranges_without(record):
    told = record("""
        import numpy as np, gpuconv
        from gpuconv import trace
        trace.MOST_SIZES = 2
        for _ in range(2):
            for n in 1, 2, 3, 4:
                gpuconv.avg_pool2d(np.ones((n, 1, 4, 4)), 2)
    """)
    shown = [("avg_pool2d x[1,1,4,4]", "128"), ("avg_pool2d x[2,1,4,4]", "256"), ("avg_pool2d", "384")]
    assert [(each.name, each.payload) for each in told.ranges] == [*shown, ("avg_pool2d", "512")] * 2
    assert len(told.strings) == 3


# dw is one product over both images: their columns and dy are copied side by side, rows of 9 padded to 10.
OPERATIONS_ON_KERNELS = """
conv2d x[2,2,5,5] w[2,2,3,3] b[2]
  bias
  im2col
  gemm a[2,18] b[18,9] x2
conv2d x[2,2,5,5] w[2,2,3,3]
  im2col
  gemm a[2,18] b[18,9] x2
  relu
conv2d_backward dy[2,2,3,3] x[2,2,5,5] w[2,2,3,3]
  gemm a[18,2] b[2,9] x2
  col2im
  im2col
  im2col
  gemm a[2,20] b[20,18]
  bias_grad
  sum_parts
max_pool2d x[2,2,5,5]
  max_pool_tile
0.linear
  gemm a[20,5] b[5,3]
""".strip()


@needs_kernels
def test_kernels_and_matrix_products_are_ranges_within_their_operation(record):
    told = record("""
        import numpy as np, gpuconv
        from host.runtime import to_device
        x, w, b = map(to_device, (np.ones((2, 2, 5, 5)), np.ones((2, 2, 3, 3)), np.ones(2)))
        y = gpuconv.conv2d(x, w, b)
        gpuconv.conv2d(x, w, activation="relu")
        gpuconv.conv2d_backward(y, x, w)
        gpuconv.max_pool2d(x, 2)
        dense = gpuconv.Linear(5, 3, bias=False, dtype=np.float64)
        dense.params["weight"] = to_device(dense.params["weight"])
        gpuconv.Sequential(dense)(x)
    """)
    assert told.tree == OPERATIONS_ON_KERNELS
    stages = {each.name.partition(" ")[0]: each.category for outer in told.threads[0] for each in outer.inner}
    conv = dict.fromkeys(("bias", "im2col", "col2im", "bias_grad", "sum_parts"), "conv")
    assert stages == {**conv, "gemm": "gemm", "relu": None, "max_pool_tile": "pool"}


@needs_kernels
@pytest.mark.parametrize("chunk_bytes", [None, 512])
def test_copies_both_ways_are_ranges_with_their_bytes(record, chunk_bytes):
    told = record(f"""
        import numpy as np, gpuconv
        from host.cupy_stand_in import installed
        x = np.ones((4, 2, 8, 8), np.float32)
        with installed(), gpuconv.offload("cuda", chunk_bytes={chunk_bytes}):
            gpuconv.avg_pool2d(x, 2)
    """)
    copies = [(each.name, each.payload) for each in told.ranges if each.category == "copy"]
    up, down = ("copy to the GPU", 4 * 2 * 64 * 4), ("copy from the GPU", 4 * 2 * 16 * 4)
    chunks = 1 if chunk_bytes is None else 4
    assert Counter(copies) == {(name, str(size // chunks)): chunks for name, size in (up, down)}


def test_ranges_end_where_an_exception_passes(record):
    told = record(
        NETWORK,
        """
    class Broken(nn.ReLU):
        def backward(self, dy, *, needs_dx=True):
            return gpuconv.conv2d(dy, np.ones((1, 7, 1, 1)))

    inner = nn.Sequential(Broken(), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), inner, nn.Linear(144, 2))
    parts = {"loss": nn.SoftmaxCrossEntropy(), "optimizer": nn.SGD(network, 0.1)}
    for _ in range(2):
        try:
            fit(network, x, y, **parts, max_iterations=1)
        except ValueError:
            pass
    """,
    )
    assert [each.name for each in told.threads[0]] == ["epoch", "epoch"]
    names = [each.name for each in told.ranges]
    half = names[: len(names) // 2]
    assert half[-2:] == ["1.0.broken backward", "conv2d x[4,4,6,6] w[1,7,1,1]"]
    assert half == names[len(names) // 2 :]


@pytest.mark.parametrize(
    "level, kept",
    [
        ("none", ()),
        ("layers", ("epoch", "step", "loss", "update", *"0123")),
        ("operations", ("epoch", "step", "loss", "update", *"0123", "conv", "max_pool")),
    ],
)
def test_config_ranges_says_how_deep(record, level, kept):
    told = record(NETWORK, FIT.format(1), GPUCONV_RANGES=level)
    names = [line.strip() for line in ("epoch\n" + STEP).splitlines()]
    assert [each.name for each in told.ranges] == [name for name in names if name.startswith(kept)]
    assert set(told.strings) == {each.name for each in told.ranges}


@needs_kernels
def test_config_ranges_is_heeded_within_a_block_and_an_open_range_still_ends(record):
    told = record("""
        import numpy as np, gpuconv
        from gpuconv import nn
        from host.runtime import to_device

        class Quiet(nn.ReLU):
            def forward(self, x):
                gpuconv.config.ranges = "none"
                return gpuconv.max_pool2d(x, 2)[0]

        x = to_device(np.ones((1, 1, 4, 4)))
        with gpuconv.config(ranges="operations"):
            gpuconv.max_pool2d(x, 2)
        nn.Sequential(nn.MaxPool2d(2), Quiet(), nn.ReLU())(x)
        gpuconv.config.ranges = "layers"
        nn.Sequential(nn.MaxPool2d(2))(x)
    """)
    operation = "max_pool2d x[1,1,4,4]"
    names = [operation, "0.maxpool2d", operation, "max_pool_tile", "1.quiet", "0.maxpool2d"]
    assert [each.name for each in told.ranges] == names


def test_each_thread_has_its_own_ranges(record):
    told = record(
        NETWORK,
        """
    import threading
    from copy import deepcopy
    together = threading.Barrier(2)

    def train(network):
        for _ in range(10):
            together.wait()
            network.backward(network(x))

    threads = [threading.Thread(target=train, args=(deepcopy(network),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    """,
    )
    passes = [
        line[2:] for line in STEP.splitlines() if line.startswith("  ") and line[2:] not in ("loss", "update")
    ]
    trees = ["\n".join(each.tree() for each in top) for top in told.threads]
    assert trees == ["\n".join(passes * 10)] * 2


def test_who_stands_around_layers_calls_who_stood_there_before(record):
    told = record(
        NETWORK,
        """
    from gpuconv.trace import AROUND_LAYER
    before, seen = AROUND_LAYER.get(), []

    def around(function, i, layer, which, *arguments, **named):
        seen.append((i, type(layer).__name__, which, named))
        return before(function, i, layer, which, *arguments, **named)

    AROUND_LAYER.set(around)
    dy = network(x)
    network.backward(dy, needs_dx=False)
    assert seen[:2] == [(0, "Conv2d", "forward", {}), (1, "ReLU", "forward", {})], seen
    assert seen[-1] == (0, "Conv2d", "backward", {"needs_dx": False}), seen
    assert len(seen) == 12
    """,
    )
    assert [each.name for each in told.threads[0]][:2] == ["0.conv2d", "1.relu"]


@pytest.mark.parametrize("why", ["no tool", "switched off"])
def test_where_no_tool_listens_functions_stay_as_they_are(record, why):
    program = """
        import gpuconv
        from gpuconv import trace
        function = lambda x: x
        assert trace.traced(function) is function
        assert trace.AROUND_LAYER.get() is None
        assert trace.stage("gemm") is trace.training("epoch", 1) is trace.training("step", 2)
        assert not trace.LISTENING
    """
    if why == "no tool":
        _run(program)
    else:
        assert not record(program, NVTX_DISABLE="1").strings
