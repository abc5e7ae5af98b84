"""Pictures from packages, IDX files and .npz archives: what they hold, and what is said of bad ones."""

import gzip
import struct

import numpy as np
import pytest

from gpuconv.training.augment import random_shifts
from gpuconv.training.datasets import DataError, load, stratified_split

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 5, 4), np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 3


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[:6]),
    "t10k-labels-idx1-ubyte": idx(LABELS[:6]),
}


def write(folder, files=FILES):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture
def idx_folder(tmp_path):
    write(tmp_path)
    return tmp_path


def fails(data):
    with pytest.raises((DataError, FileNotFoundError)) as caught:
        load(str(data))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_digits_have_exactly_360_test_pictures_in_the_classes_own_shares():
    digits = load("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8) and digits.x_test.shape == (360, 1, 8, 8)
    everything = np.bincount(np.concatenate([digits.y_train, digits.y_test]))
    shares = everything * 360 / 1797
    assert (np.abs(np.bincount(digits.y_test) - shares) < 1).all()


def test_mnist5k_has_a_hundred_test_pictures_of_each_digit():
    mnist = load("mnist5k")
    assert mnist.x_train.shape == (4000, 1, 28, 28) and mnist.x_test.shape == (1000, 1, 28, 28)
    assert (np.bincount(mnist.y_test) == 100).all() and (np.bincount(mnist.y_train) == 400).all()
    assert mnist.x_train.dtype == np.float32 and mnist.x_train.min() == 0 and mnist.x_train.max() == 1


def test_split_shares_nothing_and_loses_nothing():
    labels = RNG.integers(0, 7, 101)
    train, test = stratified_split(labels, 20)
    assert len(test) == 20
    assert sorted([*train, *test]) == list(range(101))


def test_idx_folder_holds_what_was_written(idx_folder):
    data = load(str(idx_folder))
    np.testing.assert_allclose(data.x_train[:, 0], IMAGES / IMAGES.max(), rtol=1e-6)
    assert (data.y_train == LABELS).all() and len(data.x_test) == 6 and data.classes == 3


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_may_be_dotted_and_gzipped(tmp_path, idx_folder, dotted, packed):
    other = tmp_path / "other"
    other.mkdir()
    for name, content in FILES.items():
        name = name.replace("-idx", ".idx") if dotted else name
        (other / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    assert load(str(other)).fingerprint == load(str(idx_folder)).fingerprint


@pytest.mark.parametrize("name", FILES)
def test_missing_idx_file_is_named(idx_folder, name):
    (idx_folder / name).unlink()
    assert name in fails(idx_folder) and str(idx_folder) in fails(idx_folder)


def spoil(content):
    return {
        "cut in its values": (content[:-1], "truncated: its header says 30 x 5 x 4 values, but 599 follow"),
        "cut in its header": (content[:9], "truncated in its header, after 9 bytes"),
        "too long": (content + b"x", "too long: its header says 30 x 5 x 4 values, but 601 follow"),
        "empty": (b"", "not an IDX file"),
        "something else": (b"\x89PNG\r\n" + content, "not an IDX file"),
        "of floats": (content[:2] + b"\x0d" + content[3:], "holds 3 axes of type 0x0d"),
        "of labels": (FILES["train-labels-idx1-ubyte"], "holds 1 axes of type 0x08; it must hold 3 axes"),
        "cut gzip": (gzip.compress(content)[:-20], "damaged or truncated gzip file"),
        "damaged gzip": (gzip.compress(content)[:40] + b"\xff" * 40, "damaged or truncated gzip file"),
    }


@pytest.mark.parametrize("how", spoil(b"").keys())
def test_damaged_idx_file_is_named_with_the_fault(idx_folder, how):
    path = idx_folder / "train-images-idx3-ubyte"
    content, fault = spoil(path.read_bytes())[how]
    path.write_bytes(content)
    message = fails(idx_folder)
    assert message.startswith(f"{path}: {fault}"), message


def test_number_of_labels_must_be_that_of_images(idx_folder):
    (idx_folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:5]))
    assert fails(idx_folder) == f"{idx_folder}: 6 test images, but 5 labels"


@pytest.mark.parametrize(
    "names", [("images", "labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")]
)
def test_npz_with_its_own_test_pictures(tmp_path, names):
    arrays = dict(zip(names, (IMAGES, LABELS, IMAGES[:6], LABELS[:6]), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(str(tmp_path / "a.npz"))
    assert len(data.x_train) == 30 and len(data.x_test) == 6


def test_npz_without_test_pictures_sets_a_fifth_of_each_class_aside(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    data = load(str(tmp_path / "a.npz"))
    assert np.bincount(data.y_test).tolist() == [2, 2, 2] and len(data.x_train) == 24


def test_npz_of_colour_pictures_keeps_its_channels(tmp_path):
    np.savez(tmp_path / "a.npz", images=RNG.random((30, 3, 5, 6)), labels=LABELS)
    assert load(str(tmp_path / "a.npz")).image_shape == (3, 5, 6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_npz_of_pictures_with_channels_last_is_that_with_channels_first(tmp_path, channels):
    images = RNG.random((30, channels, 5, 6))
    np.savez(tmp_path / "first.npz", images=images, labels=LABELS)
    np.savez(tmp_path / "last.npz", images=np.moveaxis(images, 1, -1), labels=LABELS)
    first, last = (load(str(tmp_path / f"{name}.npz")) for name in ("first", "last"))
    assert last.image_shape == (channels, 5, 6) and last.fingerprint == first.fingerprint


@pytest.mark.parametrize("shape", [(3, 8, 3), (1, 3, 3), (4, 4, 3), (1, 8, 1)])
def test_npz_whose_channels_may_be_on_either_side_is_refused_with_the_layouts(tmp_path, shape):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.ones((30, *shape)), labels=LABELS)
    assert fails(path) == (
        f"{path}: images of shape {(30, *shape)} may have their channels first or last; understood are "
        "[N, H, W], [N, C, H, W], and [N, H, W, C] where C, but not H, is 1, 3 or 4"
    )


def test_pixels_are_scaled_by_the_largest_magnitude_of_the_training_pictures(tmp_path):
    images = np.full((30, 4, 4), -8.0)
    images[0] = 2
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS)
    assert load(str(tmp_path / "a.npz")).x_train.min() == -1


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({"images": IMAGES}, "holds images, but must hold images and labels"),
        ({"pixels": IMAGES, "labels": LABELS}, "holds pixels, labels, but must hold images and labels"),
        ({"images": IMAGES, "labels": LABELS[:4]}, "30 images, but 4 labels"),
        ({"images": IMAGES[0], "labels": LABELS}, "images must have shape [N, H, W], [N, C, H, W] or [N, H"),
        ({"images": IMAGES[:, :0], "labels": LABELS}, "[N, H, W, C], none of them 0, not (30, 0, 4)"),
        ({"images": IMAGES.astype("U3"), "labels": LABELS}, "images must be numbers"),
        ({"images": np.full((30, 4, 4), np.nan), "labels": LABELS}, "images hold values that are not finite"),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, "labels of the images must be one integer each"),
        ({"images": IMAGES, "labels": LABELS.astype(int) - 1}, "label -1 of the images is negative"),
        ({"images": IMAGES, "labels": LABELS * 0}, "every label is 0"),
        ({"images": IMAGES, "labels": LABELS.astype(int) * 10**9}, "labels must count from 0"),
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES}, "must have both or none"),
        (
            {"images": IMAGES, "labels": LABELS, "test_images": IMAGES, "test_labels": LABELS + 1},
            "test label 3 is not among the training labels",
        ),
        (
            {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:, 1:], "test_labels": LABELS},
            "training images are (5, 4), but test images are (4, 4)",
        ),
        ({"images": IMAGES[:3], "labels": LABELS[:3]}, "too few images to set a fifth of them aside"),
        ({"images": np.array([None] * 30), "labels": LABELS}, "not an .npz file of plain arrays"),
    ],
)
def test_unfit_npz_is_named_with_the_fault(tmp_path, arrays, fault):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    message = fails(path)
    assert str(path) in message and fault in message, message


@pytest.mark.parametrize("where", [10, 200, -30])
def test_truncated_npz_is_named(tmp_path, where):
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:where])
    assert fails(path).startswith(f"{path}: not an .npz file of plain arrays, or a damaged one (")


def test_npy_and_text_are_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "a.csv").write_text("1,2,3\n")
    assert "a single array (.npy)" in fails(tmp_path / "a.npy")
    assert "not an .npz file" in fails(tmp_path / "a.csv")
    assert "pickle" not in fails(tmp_path / "a.csv")  # NumPy would advise to load it as one


def test_missing_path_is_named_with_the_collections():
    assert fails("nowhere/at/all") == (
        "no folder or file nowhere/at/all, and it isn't one of mnist5k, digits"
    )


def test_shifts_move_by_at_most_two_pixels_and_each_step_occurs():
    x = np.zeros((500, 2, 9, 9), np.float32)
    x[:, :, 4, 4] = 1
    shifted = random_shifts(x, 2, np.random.default_rng(0))
    assert shifted.shape == x.shape and shifted.dtype == x.dtype
    assert (shifted.sum(axis=(2, 3)) == 1).all()
    assert (shifted[:, 0] == shifted[:, 1]).all()  # all channels of a picture move together
    _, rows, columns = np.nonzero(shifted[:, 0])
    steps = set(zip(rows - 4, columns - 4, strict=True))
    assert steps == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_shift_fills_the_gap_with_zeros_and_leaves_its_input_alone():
    x = np.ones((50, 1, 4, 4))
    shifted = random_shifts(x, 2, np.random.default_rng(0))
    assert (x == 1).all() and set(np.unique(shifted)) == {0, 1}
