"""`profiling/naive_training.py`: the plain way that it compares with learns what ours does."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "profiling"))

import naive_training
from naive_training import NETWORKS, losses, ways

from gpuconv.measure.timing import Sample

SMALL = [network._replace(batch=8) for network in NETWORKS]


@pytest.mark.parametrize("network", SMALL, ids=[network.like for network in NETWORKS])
@pytest.mark.parametrize(("dtype", "apart"), [(np.float64, 1e-12), (np.float32, 2e-2)])
def test_the_plain_way_and_ours_learn_the_same(network, dtype, apart):
    ours, plain = (losses(network, step, dtype, 3) for step in ways(network, dtype).values())
    np.testing.assert_allclose(ours, plain, rtol=0, atol=apart)
    assert len(set(ours)) == 3


def test_a_turn_has_as_many_steps_as_fill_it(monkeypatch):
    seconds = 0.0

    def step():
        nonlocal seconds
        seconds += 0.125

    monkeypatch.setattr(naive_training.time, "perf_counter", lambda: seconds)
    monkeypatch.setattr(naive_training, "TURN_SECONDS", 1.0)
    assert naive_training.steps_of_a_turn(step) == 8


def test_what_is_written_says_how_much_faster_and_how_alike(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(naive_training, "BATCHES", 2)
    monkeypatch.setattr(naive_training, "NETWORKS", SMALL[:2])
    monkeypatch.setattr("gpuconv.measure.cpu.Cpu.sampler", lambda self, call: lambda: Sample(2.0, 2.0))
    monkeypatch.setattr(naive_training, "steps_of_a_turn", lambda step: 5)
    monkeypatch.setattr("gpuconv.measure.cpu.Cpu.undisturbed", lambda self, work, patience: (work(), None))
    monkeypatch.setattr(sys, "argv", ["naive_training.py", "--out", str(tmp_path)])
    naive_training.main()
    assert "1.0 times as fast (geometric mean)" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "naive-training-cpu.json",
        "naive-training-cpu.md",
    ]
