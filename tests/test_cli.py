"""The command line, run as a user runs it: what it writes, says, and refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import gpuconv
from gpuconv.cli import main, progress, requirements
from gpuconv.training import checkpoint
from gpuconv.training.run import ALGORITHMS, Run

ROOT = Path(__file__).parents[1]
OUTPUTS = {"checkpoint.npz", "learning_curve.png", "metrics.json", "misclassified.png", "weights.safetensors"}


def bars(folder):
    """Write a small .npz that trains in no time, bright bars at one of four heights; return its path."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    images = rng.random((120, 8, 8))
    images[np.arange(120), 2 * labels] += 2
    path = folder / "bars.npz"
    np.savez(path, images=images, labels=labels)
    return str(path)


@pytest.fixture
def data(tmp_path):
    return bars(tmp_path)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epoch")
    train(bars(folder), folder / "out", "--epochs", 1)
    return folder / "out"


@pytest.fixture
def trained(epoch, out):
    """A folder with a run of one epoch."""
    return shutil.copytree(epoch, out)


def train(data, out, *options):
    return main(["train", "--data", str(data), "--out", str(out), *map(str, options)])


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def but_time(numbers):
    """Leave out what two equal runs may differ in."""
    history = {name: values for name, values in numbers["history"].items() if name != "seconds"}
    return {**numbers, "history": history, "seconds": None}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal_runs(one, two):
    assert but_time(metrics(one)) == but_time(metrics(two))
    assert (one / "weights.safetensors").read_bytes() == (two / "weights.safetensors").read_bytes()


def refused(capsys, *arguments):
    """Run a command that must fail with exit code 2 and one line; return that line."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        code = leaving.code
    shown = capsys.readouterr()
    assert code == 2 and shown.out == ""
    assert shown.err.count("\n") == 1 and shown.err.endswith("\n")
    return shown.err


def start(*arguments, cwd):
    """Start a process of its own, to be killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gpuconv", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(path, process, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


def test_training_writes_everything_it_promises(data, out, capsys):
    assert train(data, out, "--epochs", 3, "--seed", 5) == 0
    assert set(files(out)) == OUTPUTS
    for name in ("learning_curve.png", "misclassified.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    written = metrics(out)
    for name in ("test_accuracy", "train_accuracy", "seconds", "iterations", "seed"):
        assert isinstance(written[name], int | float), name
    assert (written["stopped_by"], written["device"]) == ("max_iterations", "cpu")
    assert (written["data"], written["algorithm"], written["seed"]) == (data, "adam", 5)
    assert written["iterations"] == 3 * 2  # 96 training pictures, 50 a batch
    assert written["history"]["epoch"] == [1, 2, 3] and written["history"]["iterations"] == [2, 4, 6]
    assert {len(values) for values in written["history"].values()} == {3}
    assert written["history"]["test_accuracy"][-1] == written["test_accuracy"]
    assert "stopped by the end of its iterations (max_iterations)" in capsys.readouterr().out


def test_written_weights_are_those_that_were_measured_under_pytorch_s_names(data, out):
    train(data, out, "--epochs", 6)
    weights = load_file(out / "weights.safetensors")
    assert {"0.weight", "2.running_mean", "2.num_batches_tracked", "9.bias"} <= set(weights)
    set_aside = gpuconv.training.datasets.load(data)
    network = ALGORITHMS["adam"].network(set_aside.image_shape, 4, np.random.default_rng(99))
    network.load_state_dict(weights)
    right = network.eval()(set_aside.x_test).argmax(axis=1) == set_aside.y_test
    assert right.mean() == metrics(out)["test_accuracy"] > 0.5


def test_output_that_is_no_terminal_gets_plain_lines(data, out, capsys):
    train(data, out, "--epochs", 2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    pattern = r"epoch +\d  loss \d+\.\d{4}  train +[\d.]+ %  test +[\d.]+ %  +\d+ s, \d+ s left"
    assert len(lines) == 2 and all(re.fullmatch(pattern, line) for line in lines)


def test_many_short_epochs_print_few_lines(data, out, capsys):
    train(data, out, "--algorithm", "batch-gd", "--max-iterations", 100)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert 40 <= len(lines) <= 60 and lines[-1].startswith("epoch 100 ")


def test_a_terminal_gets_a_bar_with_loss_accuracy_and_time_left(data, out):
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gpuconv", "train", "--data", data, "--out", str(out), "--epochs", "30"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # Linux's way of saying that the other end is closed
            break
        if not block:
            break
        shown += block
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in text and re.search(r"epoch 30 .* 100 % loss 0\.\d{4}  test [\d.]+ % .* left 0:00:00", text)


def test_batch_gd_says_that_max_iterations_stopped_it(data, out, capsys):
    train(data, out, "--algorithm", "batch-gd", "--max-iterations", 5)
    assert (metrics(out)["stopped_by"], metrics(out)["iterations"]) == ("max_iterations", 5)
    assert "(max_iterations)" in capsys.readouterr().out


def test_batch_gd_says_that_the_tolerance_stopped_it(data, out, capsys):
    train(data, out, "--algorithm", "batch-gd", "--step", 0.1, "--tolerance", 0.05, "--max-iterations", 500)
    assert metrics(out)["stopped_by"] == "tolerance" and metrics(out)["iterations"] < 500
    assert "(tolerance)" in capsys.readouterr().out


def test_batch_gd_is_the_textbook_s_network_with_all_pictures_in_every_update(data, out):
    train(data, out, "--algorithm", "batch-gd", "--epochs", 2)
    assert metrics(out)["batch_size"] is None and metrics(out)["iterations"] == 2
    assert metrics(out)["decay"] == 1 and metrics(out)["shift"] == 0


def test_large_pictures_of_an_idx_folder_are_shifted_by_two_pixels(tmp_path, out):
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 22), np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 4
    for kind in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4) for size in images.shape)
        (tmp_path / f"{kind}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (tmp_path / f"{kind}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x28" + labels.tobytes())
    assert train(tmp_path, out, "--epochs", 1) == 0
    assert metrics(out)["shift"] == 2 and metrics(out)["data"] == str(tmp_path)


@pytest.mark.parametrize("algorithm", ["adam", "sgd", "batch-gd"])
def test_two_epochs_and_two_more_equal_four(data, tmp_path, algorithm):
    train(data, tmp_path / "whole", "--algorithm", algorithm, "--epochs", 4, "--shift", 1)
    train(data, tmp_path / "parts", "--algorithm", algorithm, "--epochs", 2, "--shift", 1)
    assert main(["train", "--resume", str(tmp_path / "parts"), "--epochs", "4"]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing_but_time(data, out):
    train(data, out, "--epochs", 2)
    before = metrics(out)
    assert train(data, out, "--resume") == 0
    assert but_time(metrics(out)) == but_time(before)


def test_ctrl_c_inside_an_epoch_writes_what_there_is_and_a_resumed_run_equals_one_never_stopped(
    data, tmp_path, monkeypatch, capsys
):
    train(data, tmp_path / "whole", "--epochs", 4, "--batch-size", 10)
    update = progress.Lines.update

    def press(lines, iterations, loss):
        if iterations == 13:  # the third update of the second epoch
            signal.raise_signal(signal.SIGINT)
        update(lines, iterations, loss)

    monkeypatch.setattr(progress.Lines, "update", press)
    capsys.readouterr()
    out = tmp_path / "parts"
    assert train(data, out, "--epochs", 4, "--batch-size", 10) == 130
    assert f"gpuconv train --resume {out}\n" in capsys.readouterr().out
    assert set(files(out)) == OUTPUTS
    assert (metrics(out)["stopped_by"], metrics(out)["iterations"]) == ("interrupted", 13)
    assert metrics(out)["history"]["iterations"] == [10, 13]
    monkeypatch.undo()
    assert main(["train", "--resume", str(out)]) == 0
    assert_equal_runs(tmp_path / "whole", out)


def test_ctrl_c_on_a_process_exits_130_without_a_traceback(data, out, tmp_path):
    process = start("train", "--data", data, "--out", out, "--epochs", 100_000, cwd=tmp_path)
    wait_for(out / "checkpoint.npz", process)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == b""
    assert b"to go on: gpuconv train --resume" in shown
    assert metrics(out)["stopped_by"] == "interrupted"


def test_a_second_ctrl_c_does_not_wait(data, out, monkeypatch, capsys):
    def press(lines, iterations, loss):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Lines, "update", press)
    usual = signal.getsignal(signal.SIGINT)
    assert train(data, out) == 130
    assert capsys.readouterr().err == "gpuconv train: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_killed_run_goes_on_and_equals_one_never_killed(data, tmp_path):
    options = ("--data", data, "--epochs", 25, "--batch-size", 10)
    main(["train", *map(str, options), "--out", str(tmp_path / "whole")])
    out = tmp_path / "killed"
    process = start("train", *options, "--out", out, cwd=tmp_path)
    wait_for(out / "checkpoint.npz", process)
    time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / "metrics.json").exists()
    assert main(["train", "--resume", str(out)]) == 0
    assert_equal_runs(tmp_path / "whole", out)


def test_resume_takes_its_options_from_the_checkpoint(data, out):
    train(data, out, "--epochs", 1, "--algorithm", "sgd", "--seed", 7, "--batch-size", 30)
    main(["train", "--resume", str(out / "checkpoint.npz"), "--epochs", "2"])
    assert (metrics(out)["algorithm"], metrics(out)["seed"], metrics(out)["batch_size"]) == ("sgd", 7, 30)


def test_resume_from_one_folder_may_write_to_another(data, tmp_path):
    train(data, tmp_path / "a", "--epochs", 1)
    before = files(tmp_path / "a")
    assert train(data, tmp_path / "b", "--resume", tmp_path / "a", "--epochs", 2) == 0
    assert files(tmp_path / "a") == before and metrics(tmp_path / "b")["iterations"] == 4


def test_default_folders_are_numbered_and_resume_takes_the_last(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["train", "--data", data, "--epochs", "1"])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["bars-adam", "bars-adam-2"]
    main(["train", "--data", data, "--resume", "--epochs", "2"])
    assert metrics(Path("runs/bars-adam"))["iterations"] == 2
    assert metrics(Path("runs/bars-adam-2"))["iterations"] == 4


def test_a_folder_with_a_run_is_kept_unless_told_otherwise(data, out, capsys):
    train(data, out, "--epochs", 1)
    before = files(out)
    message = refused(capsys, "train", "--data", data, "--out", out, "--epochs", 2)
    assert message == (
        f"gpuconv train: {out}: holds a run; go on with --resume, begin anew with --overwrite, "
        "or choose another --out\n"
    )
    assert files(out) == before
    assert train(data, out, "--epochs", 2, "--overwrite") == 0
    assert metrics(out)["iterations"] == 4


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--algorithm", "sgd"], "--algorithm sgd: {} was made with --algorithm adam"),
        (["--seed", "1"], "--seed 1: {} was made with --seed 0"),
        (["--batch-size", "7"], "--batch-size 7: {} was made with --batch-size 50"),
        (["--step", "0.5"], "--step 0.5: {} was made with --step 0.003"),
        (["--shift", "2"], "--shift 2: {} was made with --shift 0"),
        (["--local-batch-norm"], "--local-batch-norm: {} was made without it"),
        (["--data", "digits"], "{}: was trained on other pictures than digits"),
    ],
)
def test_resuming_another_run_is_refused_and_nothing_is_written(trained, capsys, options, fault):
    before = files(trained)
    message = refused(capsys, "train", "--resume", trained, *options)
    assert message == f"gpuconv train: {fault.format(trained / 'checkpoint.npz')}\n"
    assert files(trained) == before


def test_checkpoint_of_another_network_is_refused_and_nothing_is_written(trained, capsys):
    saved = checkpoint.load_checkpoint(trained / "checkpoint.npz")
    saved.arrays["network/4.weight"] = saved.arrays["network/4.weight"][:-1]
    checkpoint.save_checkpoint(trained / "checkpoint.npz", saved)
    before = files(trained)
    assert "checkpoint.npz: is of another network" in refused(capsys, "train", "--resume", trained)
    assert files(trained) == before


def test_local_normalisation_is_kept_and_taken_from_the_option_where_an_old_checkpoint_does_not_say(
    trained, out, data
):
    def go_on(*options):
        assert main(["train", "--resume", str(trained), "--epochs", "2", *options]) == 0
        return metrics(trained)["local_batch_norm"]

    def make_old():
        saved = checkpoint.load_checkpoint(trained / "checkpoint.npz")
        del saved.settings["local_batch_norm"]
        checkpoint.save_checkpoint(trained / "checkpoint.npz", saved)

    make_old()
    assert go_on() is False
    make_old()
    assert go_on("--local-batch-norm") is True
    assert go_on() is True and go_on("--local-batch-norm") is True


@pytest.mark.parametrize(
    "edit, fault",
    [
        (lambda saved: saved.state.pop("pictures"), "lacks pictures"),
        (lambda saved: saved.arrays.pop("records"), "lacks records"),
        (lambda saved: saved.settings.update(epochs="x"), "epochs is 'x'"),
        (lambda saved: saved.settings.update(algorithm="magic"), "algorithm is 'magic'"),
        (lambda saved: saved.settings.update(flavour=1), "flavour"),
        (lambda saved: saved.settings.pop("seed"), "seed"),
        (lambda saved: saved.settings.update(seed=-1), "seed is -1"),
        (lambda saved: saved.settings.update(batch_size=0), "batch_size is 0"),
        (lambda saved: saved.settings.update(step=float("nan")), "step is nan"),
        (lambda saved: saved.settings.update(local_batch_norm=1), "local_batch_norm is 1"),
        (lambda saved: saved.state.update(data=5), "its data is 5, not a name or a path"),
        (
            lambda saved: saved.state.update(iterations=3),
            "iterations is 3, but 1 epochs of 2 updates and 0 more",
        ),
        (lambda saved: saved.arrays.update(extra=np.ones(2)), "holds the unknown extra"),
    ],
)
def test_checkpoint_with_strange_contents_is_refused_and_nothing_is_written(trained, capsys, edit, fault):
    saved = checkpoint.load_checkpoint(trained / "checkpoint.npz")
    edit(saved)
    checkpoint.save_checkpoint(trained / "checkpoint.npz", saved)
    before = files(trained)
    message = refused(capsys, "train", "--resume", trained)
    assert "checkpoint.npz: " in message and fault in message
    assert files(trained) == before


def test_damaged_checkpoint_is_refused_and_nothing_is_written(trained, capsys):
    path = trained / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:1000])
    before = files(trained)
    assert f"{path}: not a checkpoint, or a damaged one" in refused(capsys, "train", "--resume", trained)
    assert files(trained) == before


def test_resume_of_nothing_names_what_is_missing(data, out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{out / 'checkpoint.npz'}: No such file" in refused(capsys, "train", "--resume", "--out", out)
    assert "nowhere: No such file" in refused(capsys, "train", "--resume", "nowhere")
    assert "there is no run in the default folder" in refused(capsys, "train", "--resume")
    assert not out.exists()


def test_data_that_is_missing_or_damaged_is_named_and_no_folder_is_made(tmp_path, out, capsys):
    assert "no folder or file nowhere" in refused(capsys, "train", "--data", "nowhere", "--out", out)
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK\x03\x04")
    assert f"{bad}: not an .npz" in refused(capsys, "train", "--data", bad, "--out", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    message = refused(capsys, "train", "--data", empty, "--out", out)
    assert f"{empty}: has no train-images-idx3-ubyte" in message
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_named_before_training(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Run, "train", lambda *args: pytest.fail("trained"))
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert f"{taken}: File exists" in refused(capsys, "train", "--data", data, "--out", taken)
    assert "Not a directory" in refused(capsys, "train", "--data", data, "--out", taken / "below")
    if os.geteuid() != 0:  # to the superuser every folder is open
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert "Permission denied" in refused(capsys, "train", "--data", data, "--out", closed)


def test_a_disk_that_fills_up_is_named_and_the_last_checkpoint_stays_whole(data, out, capsys, monkeypatch):
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(1)
        if len(calls) > 3:  # the probe and two checkpoints
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert train(data, out, "--epochs", 5) == 2
    where = out / "checkpoint.npz"
    assert capsys.readouterr().err == f"gpuconv train: {where}: No space left on device\n"
    assert set(files(out)) == {"checkpoint.npz"}
    assert checkpoint.load_checkpoint(where).state["iterations"] == 4


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_run_that_diverges_says_so_and_keeps_the_last_good_checkpoint(data, out, capsys):
    train(data, out, "--epochs", 1)
    before = files(out)
    saved = checkpoint.load_checkpoint(out / "checkpoint.npz")
    saved.arrays["network/0.weight"][:] = np.inf
    checkpoint.save_checkpoint(out / "checkpoint.npz", saved)
    before = files(out)
    assert main(["train", "--resume", str(out), "--epochs", "2"]) == 1
    assert "the mean loss of epoch 2 is nan" in capsys.readouterr().err
    assert files(out) == before


@pytest.mark.parametrize("options", [(), ("--max-iterations", 2), ("--algorithm", "sgd")])
def test_far_too_large_a_step_is_named_in_one_line_and_nothing_else_is_said(data, out, tmp_path, options):
    command = ("train", "--data", data, "--out", out, "--step", 1e30, "--batch-size", 10, *options)
    process = start(*command, cwd=tmp_path)  # worker threads too must keep NumPy's warnings to themselves
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1
    assert errors == (
        "gpuconv train: the mean loss of epoch 1 is nan with step 1e+30; try a smaller step (--step)\n"
    )


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--algorithm", "lbfgs"], "argument --algorithm: invalid choice: 'lbfgs'"),
        (["--epochs", "0"], "argument --epochs: must be an integer of at least 1, not '0'"),
        (["--epochs", "1.5"], "argument --epochs: must be an integer of at least 1, not '1.5'"),
        (["--batch-size", "-4"], "argument --batch-size: must be an integer of at least 1, not '-4'"),
        (["--seed", "-1"], "argument --seed: must be an integer of at least 0, not '-1'"),
        (["--shift", "x"], "argument --shift: must be an integer of at least 0, not 'x'"),
        (["--step", "0"], "argument --step: must be a number above 0, not '0'"),
        (["--step", "nan"], "argument --step: must be a number above 0, not 'nan'"),
        (["--step", "inf"], "argument --step: must be a number above 0, not 'inf'"),
        (["--tolerance", "-1"], "argument --tolerance: must be a number of at least 0, not '-1'"),
        (["--max-iterations", "0"], "argument --max-iterations: must be an integer of at least 1, not '0'"),
        (["--algorithm", "batch-gd", "--batch-size", "9"], "--batch-size: batch-gd takes all pictures"),
        (["--resume", "--overwrite"], "--overwrite begins anew and --resume goes on: give one of them"),
        (["--data", ""], "argument --data: must be a name or a path, not ''"),
        (["--resume", ""], "argument --resume: must be a name or a path, not ''"),
        (["--out", ""], "argument --out: must be a name or a path, not ''"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_wrong_options_are_refused_in_one_line(data, out, capsys, options, fault):
    message = refused(capsys, "train", "--data", data, "--out", out, *options)
    assert fault in message
    assert not out.exists()


def test_without_a_gpu_device_cuda_says_what_is_missing(data, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    message = refused(capsys, "train", "--data", data, "--out", out, "--device", "cuda")
    assert "--device cuda: CUDA needs CuPy" in message
    assert "pip install 'gpuconv[cuda13]'" in message
    assert not out.exists()


def test_without_the_train_extra_the_command_that_installs_it_is_named(data, out, capsys, monkeypatch):
    find = requirements.importlib.util.find_spec
    absent = ("rich", "sklearn")
    monkeypatch.setattr(
        requirements.importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    assert refused(capsys, "train", "--data", data, "--out", out) == (
        f"gpuconv train: needs rich: {sys.executable} -m pip install rich\n"
    )
    assert "needs rich, scikit-learn: " in refused(capsys, "train", "--data", "digits", "--out", out)
    assert not out.exists()


def test_required_packages_are_those_of_the_train_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [requirement.partition(">=")[0] for requirement in project["optional-dependencies"]["train"]]
    assert sorted(requirements.TRAINING.values()) == sorted(extra)


def test_info_works_without_any_extra_and_imports_none():
    code = (
        "import sys; from gpuconv.cli import main; code = main(['info']); "
        "extras = {'rich', 'matplotlib', 'sklearn', 'mlxtend', 'safetensors', 'torch', 'cupy'}; "
        "assert not extras & set(sys.modules), extras & set(sys.modules); sys.exit(code)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for word in (gpuconv.__version__, np.__version__, "BLAS", "threads", "GPU", "CuPy", "training"):
        assert word in shown.stdout


def test_info_names_what_is_missing_and_the_command_that_installs_it(capsys, monkeypatch):
    find = requirements.importlib.util.find_spec
    monkeypatch.setattr(
        requirements.importlib.util, "find_spec", lambda name: None if name == "rich" else find(name)
    )
    assert main(["info"]) == 0
    assert f"missing rich: {sys.executable} -m pip install rich\n" in capsys.readouterr().out


def test_info_shows_gpus_and_driver_as_nvidia_smi_lists_them(tmp_path, capsys, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 580.65.06'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    main(["info"])
    assert "GPU       NVIDIA H200, 143771 MiB, driver 580.65.06\n" in capsys.readouterr().out


def test_info_survives_an_nvidia_smi_that_fails(tmp_path, capsys, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["info"]) == 0
    assert "none found" in capsys.readouterr().out


def test_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"gpuconv {gpuconv.__version__}\n"


def test_without_a_command_the_way_to_the_help_is_shown(capsys):
    assert "see gpuconv --help" in refused(capsys)
