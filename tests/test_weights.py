"""Weights in files: PyTorch's names, both ways; whole files; clear errors."""

import errno
import os
import runpy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from anywhere import close, equal

from gpuconv import nn

pytest.importorskip("safetensors", reason="it reads and writes the files (extra `safetensors`)")
from safetensors import numpy as st


def network(seed=0, channels=4):
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, rng=seed),
        nn.BatchNorm2d(channels),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(channels * 4, 3, rng=seed),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def states_are_equal(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        equal(other[name], array)


def test_a_network_comes_back_from_its_file(path, device):
    saved, loaded = device.move(network(0)), device.move(network(1))
    saved(device.to_array(np.random.default_rng(0).random((5, 1, 4, 4), np.float32)))  # moves the statistics
    saved.save(path)
    held = loaded.params["0.weight"]
    loaded.load(str(path))
    states_are_equal(saved.state_dict(), loaded.state_dict())
    assert loaded.params["0.weight"] is held


def test_a_layer_alone_has_a_file_too(path):
    one, other = nn.Linear(4, 3, rng=0), nn.Linear(4, 3, rng=1)
    one.params["weight"] = np.asfortranarray(one.params["weight"])  # order in memory is no matter
    one.save(path)
    other.load(path)
    states_are_equal(one.state_dict(), other.state_dict())


@pytest.mark.oracle
def test_a_cnn_of_pytorch_gives_the_same_outputs_and_ours_goes_back(path, device):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here (extra `oracle`)")
    from safetensors.torch import load_file, save_file

    layers = torch.nn
    theirs = layers.Sequential(
        layers.Conv2d(1, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        layers.Sequential(layers.ReLU(), layers.MaxPool2d(2)),
        layers.Flatten(),
        layers.Linear(16, 3),
    )
    x = np.random.default_rng(0).standard_normal((5, 1, 4, 4), np.float32)
    theirs(torch.tensor(x))  # moves the statistics
    save_file(theirs.state_dict(), path)
    ours = device.move(network())
    ours.load(path)
    with torch.no_grad():
        want = theirs.eval()(torch.tensor(x)).numpy()
    close(ours.eval()(device.to_array(x)), want, rtol=1e-5, atol=1e-5)

    device.move(network(7)).save(path)
    theirs.load_state_dict(load_file(path))
    states_are_equal(network(7).state_dict(), {k: v.numpy() for k, v in theirs.state_dict().items()})


@pytest.mark.oracle
def test_the_example_with_pytorch_s_weights_finds_the_same_outputs():
    pytest.importorskip("torch", reason="the example takes its weights from there (extra `oracle`)")
    example = Path(__file__).parents[1] / "docs/examples/pytorch_weights.py"
    assert runpy.run_path(str(example))["difference"] < 1e-5


def refuses(loaded, path, kind, message):
    """Check the error, and that nothing was written."""
    before = loaded.state_dict()
    with pytest.raises(kind, match=message):
        loaded.load(path)
    states_are_equal(before, loaded.state_dict())


def test_missing_and_unexpected_names_and_other_shapes_and_dtypes_are_refused(path):
    state = network(1).state_dict()
    weight = state.pop("4.bias")
    st.save_file({**state, "5.bias": weight}, path)
    refuses(
        network(), path, ValueError, r"Sequential\.load: .*weights\.safetensors: .*missing 4\.bias.*5\.bias$"
    )
    network(1, channels=8).save(path)
    refuses(
        network(), path, ValueError, r'Sequential\.load: .*weights\.safetensors: "0\.weight" .*\(8, 1, 3, 3\)'
    )
    st.save_file({**network(1).state_dict(), "4.bias": weight.astype(np.float64)}, path)
    refuses(network(), path, TypeError, r'Sequential\.load: .*: "4\.bias" is float64')


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(path, left):
    network(1).save(path)
    path.write_bytes(path.read_bytes()[:left])
    refuses(network(), path, ValueError, r"^Sequential\.load: .*weights\.safetensors is no safetensors file")


def test_bfloat16_is_named(path):
    header = b'{"weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refuses(network(), path, ValueError, r"weights\.safetensors holds arrays of BF16, .* NumPy doesn't have$")


def test_a_file_that_is_not_there_is_named(path):
    refuses(network(), path, FileNotFoundError, r"weights\.safetensors")


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    network(1).save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*weights\.safetensors"):
        network(2).save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_ctrl_c_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    network(0).save(path)

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        network(1).save(path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    network(2).load(path)


def test_two_writers_leave_the_whole_file_of_one(path, monkeypatch):
    sync = os.fsync

    def other_writer(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        thread = threading.Thread(target=network(1).save, args=(path,))
        thread.start()
        thread.join()

    monkeypatch.setattr(os, "fsync", other_writer)
    network(0).save(path)
    loaded = network(2)
    loaded.load(path)
    states_are_equal(loaded.state_dict(), network(0).state_dict())


def test_a_link_and_permissions_stay(path):
    path.write_bytes(b"")
    path.chmod(0o600)
    link = path.with_name("link")
    link.symlink_to(path)
    network(0).save(link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    network(1).load(path)


def test_a_dtype_that_files_cannot_hold_is_named(path):
    layer = nn.Linear(2, 2)
    layer.params["weight"] = layer.params["weight"].astype(complex)
    with pytest.raises(TypeError, match=r'Linear.save: "weight" is complex128, which safetensors'):
        layer.save(path)


def test_a_pipe_is_not_replaced(path):
    os.mkfifo(path)
    with pytest.raises(OSError, match="Not a regular file"):
        network().save(path)
    assert path.is_fifo()


@pytest.mark.parametrize("method", ["save", "load"])
def test_a_missing_package_is_named_with_the_command(path, monkeypatch, method):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"^Sequential\.{method}: .*pip install 'gpuconv\[safetensors\]'"
    ):
        getattr(network(), method)(path)
    assert not path.exists()


def test_a_masked_array_is_refused_as_its_mask_would_be_lost():
    layer = nn.Linear(3, 2)
    state = {**layer.state_dict(), "weight": np.ma.masked_array(np.ones((2, 3), np.float32), True)}
    with pytest.raises(TypeError, match=r'Linear.load_state_dict: "weight" .*masked array; fill it first'):
        layer.load_state_dict(state)


@pytest.mark.parametrize("state", [None, [1], "weights.safetensors"])
def test_a_state_that_is_no_mapping_is_refused(state):
    for target in (nn.Linear(2, 3), nn.SGD(nn.Linear(2, 3), 0.1)):
        message = rf"{type(target).__name__}.load_state_dict: state is .*, but must be a mapping"
        with pytest.raises(TypeError, match=message):
            target.load_state_dict(state)


@pytest.mark.oracle
def test_tensors_that_are_no_arrays_are_refused_by_name():
    torch = pytest.importorskip("torch", reason="PyTorch's tensors are read here")
    layer = nn.Linear(3, 2)
    theirs = torch.nn.Linear(3, 2)
    before = layer.params["weight"].copy()
    for state in (dict(theirs.named_parameters()), theirs.bfloat16().state_dict()):
        with pytest.raises(TypeError, match=r'Linear.load_state_dict: "weight" can\'t be seen as an array: '):
            layer.load_state_dict(state)
    np.testing.assert_array_equal(layer.params["weight"], before)
