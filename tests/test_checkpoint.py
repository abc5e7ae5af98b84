"""Checkpoints: whole or not there at all, and enough to go on bit for bit."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest

from gpuconv.files import write_whole
from gpuconv.training import checkpoint as module
from gpuconv.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from gpuconv.training.datasets import Dataset
from gpuconv.training.run import Diverged, Run, Settings

RNG = np.random.default_rng(0)
SETTINGS = Settings(
    "adam", seed=3, epochs=4, max_iterations=None, batch_size=16, step=0.01, decay=0.8, shift=1
)


def dataset(rng=None, size=8):
    rng = rng or np.random.default_rng(1)
    x = rng.random((72, 1, size, size), np.float32)
    y = np.arange(72) % 4
    return Dataset("random", x[:56], y[:56], x[56:], y[56:], 4)


def trained(settings, on_update=None, start=None, data=None):
    run = Run(settings, data or dataset())
    if start is not None:
        run.restore(start)
    run.train(on_update)
    return run


def assert_same_state(a, b):
    """All that training depends on, and all that is reported but the time, equal in every bit."""
    one, two = a.checkpoint(), b.checkpoint()
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        if name != "records":
            assert array.dtype == two.arrays[name].dtype and array.tobytes() == two.arrays[name].tobytes(), (
                name
            )
    assert [replace(r, seconds=0) for r in a.records] == [replace(r, seconds=0) for r in b.records]
    assert a.iterations == b.iterations


@pytest.fixture
def there(tmp_path):
    """A saved checkpoint of a run of two epochs."""
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, trained(replace(SETTINGS, epochs=2)).checkpoint())
    return path


@pytest.mark.parametrize("algorithm", ["adam", "sgd", "batch-gd"])
def test_two_epochs_and_two_more_equal_four_bit_for_bit(tmp_path, algorithm):
    settings = replace(SETTINGS, algorithm=algorithm, batch_size=None if algorithm == "batch-gd" else 16)
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, trained(replace(settings, epochs=2)).checkpoint())
    resumed = trained(settings, start=load_checkpoint(path))
    assert resumed.iterations == 4 * resumed.updates_per_epoch
    assert_same_state(resumed, trained(settings))


@pytest.mark.parametrize("at", [1, 3, 4, 5, 15])
def test_a_run_interrupted_inside_an_epoch_goes_on_bit_for_bit(tmp_path, at):
    path = tmp_path / "checkpoint.npz"
    first = trained(SETTINGS, on_update=lambda iterations, loss: iterations == at)
    assert (first.stopped_by, first.iterations) == ("interrupted", at)
    save_checkpoint(path, first.checkpoint())
    assert_same_state(trained(SETTINGS, start=load_checkpoint(path)), trained(SETTINGS))


def test_every_epoch_sees_other_shifts_and_another_order():
    run = Run(replace(SETTINGS, shift=0), dataset())
    _, first = run._pictures()
    run.train(lambda iterations, loss: iterations == 4)
    _, second = run._pictures()
    assert (first != second).any() and sorted(first) == sorted(second)


def test_seed_determines_the_run_and_another_gives_another():
    assert_same_state(trained(SETTINGS), trained(SETTINGS))
    other = trained(replace(SETTINGS, seed=4))
    assert other.records[0].loss != trained(SETTINGS).records[0].loss


def test_run_stops_by_max_iterations_inside_an_epoch_and_can_be_prolonged():
    short = trained(replace(SETTINGS, max_iterations=6))
    assert (short.stopped_by, short.iterations, short.in_an_epoch) == ("max_iterations", 6, True)
    assert_same_state(trained(SETTINGS, start=short.checkpoint()), trained(SETTINGS))


def test_run_stops_by_tolerance_and_stays_stopped_when_resumed():
    settings = replace(SETTINGS, algorithm="sgd", step=1e-9, tolerance=1e-6)
    run = trained(settings)
    assert (run.stopped_by, run.iterations) == ("tolerance", 1)
    assert trained(settings, start=run.checkpoint()).iterations == 1
    assert trained(replace(settings, tolerance=None), start=run.checkpoint()).iterations == 16


def test_step_decays_by_epoch_and_not_below_a_hundredth():
    run = trained(replace(SETTINGS, epochs=3, decay=0.05))
    assert [r.step for r in run.records] == pytest.approx([0.01, 0.01 * 0.05, 0.01 * 0.01])


def test_record_means_weigh_each_picture_equally():
    run = trained(replace(SETTINGS, step=1e-30, shift=0, epochs=1, algorithm="batch-gd"))
    whole = trained(replace(SETTINGS, step=1e-30, shift=0, epochs=1, algorithm="batch-gd", batch_size=None))
    assert run.records[0].loss == pytest.approx(whole.records[0].loss, rel=1e-6)
    assert run.records[0].train_accuracy == whole.records[0].train_accuracy


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_ends_the_run_before_its_epoch_is_recorded():
    run = Run(replace(SETTINGS, algorithm="sgd"), dataset())
    run.network.params["0.weight"][:] = np.inf
    with pytest.raises(Diverged, match=r"loss of epoch 1 is nan with step 0\.01; try a smaller step"):
        run.train()
    assert run.records == []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_ends_the_run_also_inside_an_epoch():
    run = Run(replace(SETTINGS, algorithm="sgd", max_iterations=2), dataset())
    run.network.params["0.weight"][:] = np.inf
    with pytest.raises(Diverged, match="loss of epoch 1 is nan"):
        run.train()


def test_checkpoint_of_other_pictures_is_refused(there):
    run = Run(SETTINGS, dataset(RNG))
    with pytest.raises(CheckpointError, match="was trained on other pictures than random"):
        run.restore(load_checkpoint(there))


def test_checkpoint_of_another_network_is_refused_with_the_parameter(there):
    saved = load_checkpoint(there)
    saved.arrays["network/0.weight"] = saved.arrays["network/0.weight"][:3]
    with pytest.raises(CheckpointError, match=r'is of another network .*"0.weight"'):
        Run(SETTINGS, dataset()).restore(saved)


def test_checkpoint_of_another_optimizer_is_refused(there):
    saved = load_checkpoint(there)
    del saved.arrays["optimizer/beta1"]
    with pytest.raises(CheckpointError, match=r"is of another network .*beta1"):
        Run(SETTINGS, dataset()).restore(saved)


def edited(array, place, value):
    array[place] = value
    return array


@pytest.mark.parametrize(
    "name, change, fault",
    [
        ("extra", lambda a: np.ones(1), "holds the unknown extra"),
        ("optimiser/lr", lambda a: np.ones(1), "holds the unknown optimiser/lr"),
        ("records", lambda a: a[:, :5], "its records are float64 (2, 5), not numbers in 7 columns"),
        ("records", lambda a: a.ravel(), "its records are float64 (14,), not numbers in 7 columns"),
        ("records", lambda a: a.astype("U9"), "its records are <U9 (2, 7), not numbers in 7 columns"),
        ("records", lambda a: edited(a, (0, 2), np.inf), "its records hold values that are not finite"),
        ("records", lambda a: a[::-1], "its records are not of epochs 1 to 2 of 4 updates each"),
        ("records", lambda a: edited(a, (1, 1), 7), "its records are not of epochs 1 to 2 of 4 updates each"),
        ("records", lambda a: a[:1], "iterations is 10, but 1 epochs of 4 updates and 2 more make 6"),
        ("epoch", lambda a: a[0], "its epoch is float64 (3,), not numbers in 3 columns"),
        ("epoch", lambda a: edited(a, (0, 0), np.nan), "its epoch holds values that are not finite"),
        ("epoch", lambda a: edited(a, (0, 2), 17), "its epoch is not one of batches of 16"),
        ("epoch", lambda a: edited(a, (1, 1), 17), "its epoch is not one of batches of 16"),
        ("epoch", lambda a: edited(a, (1, 1), -1), "its epoch is not one of batches of 16"),
        ("epoch", lambda a: np.repeat(a, 2, axis=0), "its epoch is not one of batches of 16"),
        ("epoch", lambda a: a[:1], "iterations is 10, but 2 epochs of 4 updates and 1 more make 9"),
        ("optimizer/steps", lambda a: a + 1, "iterations is 10, but the optimizer made 11 steps"),
    ],
)
def test_checkpoint_whose_arrays_are_not_those_of_a_run_is_refused_with_the_fault(name, change, fault):
    saved = trained(SETTINGS, on_update=lambda iterations, loss: iterations == 10).checkpoint()
    saved.arrays[name] = change(saved.arrays.get(name))
    with pytest.raises(CheckpointError) as caught:
        Run(SETTINGS, dataset()).restore(saved)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"iterations": 9.5}, "its iterations is 9.5"),
        ({"iterations": "x"}, "its iterations is 'x'"),
        ({"seconds": -1.0}, "its seconds is -1.0"),
        ({"seconds": None}, "its seconds is None"),
        ({"stopped_by": "boredom"}, "its stopped_by is 'boredom'"),
    ],
)
def test_checkpoint_whose_counters_are_none_is_refused_with_the_fault(there, change, fault):
    saved = load_checkpoint(there)
    saved.state.update(change)
    with pytest.raises(CheckpointError) as caught:
        Run(SETTINGS, dataset()).restore(saved)
    assert fault in str(caught.value)


def test_checkpoint_whose_state_is_no_mapping_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.npz", Checkpoint({}, {}, [1]))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "a.npz")


def test_cut_checkpoint_is_refused_wherever_it_is_cut(there):
    content = there.read_bytes()
    for length in [0, 1, 30, *RNG.integers(0, len(content), 40)]:
        there.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not a checkpoint, or a damaged one"):
            load_checkpoint(there)


def test_a_changed_byte_never_changes_what_is_read(there):
    content, good = there.read_bytes(), load_checkpoint(there)
    refused = 0
    for place in RNG.integers(0, len(content), 200):
        there.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            read = load_checkpoint(there)
        except CheckpointError as error:
            assert str(there) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        assert (read.settings, read.state) == (good.settings, good.state)
        for name, array in good.arrays.items():
            assert read.arrays[name].tobytes() == array.tobytes()
    assert refused > 100


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04 a pickle"])
def test_nobody_is_told_to_unpickle_what_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a checkpoint, or a damaged one \(((?!pickle).)*\)$"):
        load_checkpoint(tmp_path / "a.npz")


def test_another_npz_is_no_checkpoint(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "a.npz")


def test_checkpoint_of_another_version_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", "gpuconv checkpoint 99")
    save_checkpoint(tmp_path / "a.npz", Checkpoint({}, {}, {}))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="its format is 'gpuconv checkpoint 99', not 'gpuconv check"):
        load_checkpoint(tmp_path / "a.npz")


def test_checkpoint_never_holds_pickled_objects(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        save_checkpoint(tmp_path / "a.npz", Checkpoint({}, {"a": np.array([None])}, {}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else_and_names_it(tmp_path, monkeypatch, step):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_new_content_is_on_the_disk_before_it_takes_the_old_one_s_place(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    order = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(("fsync", path.read_bytes())), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (order.append(("replace", path.read_bytes())), rename(a, b))
    )
    write_whole(path, b"new")
    assert order == [("fsync", b"old"), ("replace", b"old")] and path.read_bytes() == b"new"
