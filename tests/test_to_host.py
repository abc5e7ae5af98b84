"""What leaves a GPU leaves it through `to_host`, in few pieces; a stand-in takes CuPy's place."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from gpuconv.backends.dispatch import to_host
from gpuconv.distributed import Alone
from gpuconv.training.datasets import Dataset
from gpuconv.training.fit import History
from gpuconv.training.run import Run, Settings, _Epoch


class ndarray:
    """An array elsewhere: like CuPy's, it comes to the host by `get` alone, which is counted."""

    gets = 0

    def __init__(self, values):
        self.values = np.asarray(values)

    def get(self):
        ndarray.gets += 1
        return self.values

    @property
    def dtype(self):
        return self.values.dtype

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")


@pytest.fixture
def elsewhere(monkeypatch):
    cupy = ModuleType("cupy")
    cupy.stack = lambda arrays: ndarray(np.stack([a.values for a in arrays]))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(ndarray, "__module__", "cupy")
    monkeypatch.setattr(ndarray, "gets", 0)
    return ndarray


RNG = np.random.default_rng(0)
HERE = Dataset("random", RNG.random((20, 1, 8, 8), np.float32), np.arange(20) % 2, *[np.zeros(1)] * 2, 2)


def test_a_numpy_array_is_itself_and_another_s_values_are_got(elsewhere):
    x = np.ones(3)
    assert to_host(x) is x
    assert to_host(elsewhere(x)) is x


def test_losses_are_read_in_one_piece(elsewhere):
    history = History(raw_losses=[elsewhere(np.float32(loss)) for loss in (0.5, 0.25, 2)])
    assert history.losses == [0.5, 0.25, 2.0]
    assert elsewhere.gets == 1
    assert History(raw_losses=[0.5, 2]).losses == [0.5, 2.0] and History().losses == []


def test_an_epoch_s_numbers_are_moved_once(elsewhere):
    epoch = _Epoch(Alone())
    for loss, hits, count in ((0.5, 3, 4), (0.25, 1, 2)):
        epoch._newest.append((elsewhere(np.float32(loss)), elsewhere(hits), count))
    assert epoch.updates == 2
    assert (epoch.mean_loss(), epoch.accuracy()) == (2.5 / 6, 4 / 6)
    assert epoch.as_array().tolist() == [[0.5, 3, 4], [0.25, 1, 2]]
    assert elsewhere.gets == 2


def test_checkpoints_hold_the_host_s_arrays(elsewhere, monkeypatch):
    run = Run(Settings("adam", seed=0, epochs=1, max_iterations=None, batch_size=5, step=0.01), HERE)
    weights = {name: elsewhere(array) for name, array in run.network.state_dict().items()}
    monkeypatch.setattr(run.network, "state_dict", lambda: weights)
    monkeypatch.setattr(
        run.optimizer, "state_dict", lambda: {"lr": 0.5, "exp_avg.0.weight": elsewhere([1.0])}
    )
    arrays = run.checkpoint().arrays
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert arrays["optimizer/lr"] == 0.5 and arrays["optimizer/exp_avg.0.weight"].tolist() == [1.0]


def test_pictures_elsewhere_have_the_fingerprint_of_those_here_and_are_moved_once(elsewhere):
    there = replace(HERE, x_train=elsewhere(HERE.x_train), y_train=elsewhere(HERE.y_train))
    assert there.fingerprint == there.fingerprint == HERE.fingerprint
    assert elsewhere.gets == 2


def test_misclassified_pictures_elsewhere_are_drawn_as_those_here(elsewhere):
    pytest.importorskip("matplotlib", reason="it draws the pictures")
    from gpuconv.training.pictures import misclassified

    here = HERE.x_train, HERE.y_train, RNG.random((20, 2))
    assert misclassified(*map(elsewhere, here), "a run") == misclassified(*here, "a run")
