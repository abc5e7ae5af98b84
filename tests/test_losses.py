"""Losses: values and gradients of the formula and of PyTorch, stability, and targets that don't fit."""

import numpy as np
import pytest
from anywhere import close, equal

from gpuconv import nn
from gpuconv.backends.dispatch import to_host

CE, MSE = nn.SoftmaxCrossEntropy, nn.MSE


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_cross_entropy_of_one_sample_by_hand(device):
    loss = CE()
    value = loss(device.to_array(np.log([[1.0, 2.0, 5.0]])), device.to_array(np.array([1])))
    assert value.item() == pytest.approx(np.log(8 / 2))
    close(loss.backward(), [[1 / 8, 2 / 8 - 1, 5 / 8]])


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, bool], ids=lambda d: np.dtype(d).name)
def test_classes_and_one_hot_rows_are_the_same_target(dtype, rng, device):
    scores, classes = device.to_array(rng.standard_normal((6, 4))), rng.integers(4, size=6)
    by_class, by_row = CE(), CE()
    assert by_class(scores, device.to_array(classes)) == by_row(
        scores, device.to_array(np.eye(4, dtype=dtype)[classes])
    )
    equal(by_class.backward(), by_row.backward())


def test_the_mean_carries_the_one_over_n(rng, device):
    scores, classes = device.to_array(rng.standard_normal((8, 3))), rng.integers(3, size=8)
    for target in (classes, np.eye(3)[classes]):
        mean, total, there = CE(), CE("sum"), device.to_array(target)
        close(mean(scores, there) * 8, total(scores, there))
        close(mean.backward() * 8, total.backward())
    mean, total = MSE(), MSE("sum")
    close(mean(scores, scores + 2) * 24, total(scores, scores + 2))
    close(mean.backward() * 24, total.backward())


def test_cross_entropy_neither_overflows_nor_takes_the_logarithm_of_zero(device):
    loss = CE("sum")
    scores = np.array([[1e30, 0, -1e30], [-1e30, 0, 1e30], [0, -np.inf, 0]])
    with np.errstate(all="raise", under="ignore"):
        value = loss(device.to_array(scores), device.to_array(np.array([0, 1, 2])))
    assert value.item() == pytest.approx(1e30)
    close(loss.backward(), [[0, 0, 0], [0, -1, 1], [0.5, 0, -0.5]])


@pytest.mark.oracle
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_give_what_pytorchs_give(reduction, dtype, rng, device):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    tolerances = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {}
    scores = (rng.standard_normal((7, 5)) * 4).astype(dtype)
    soft = rng.random((7, 5)).astype(dtype)
    cases = [
        (CE(reduction), torch.nn.CrossEntropyLoss(reduction=reduction), rng.integers(5, size=7)),
        (CE(reduction), torch.nn.CrossEntropyLoss(reduction=reduction), soft),
        (MSE(reduction), torch.nn.MSELoss(reduction=reduction), soft),
    ]
    for ours, theirs, target in cases:
        ts = torch.tensor(scores, requires_grad=True)
        value = theirs(ts, torch.tensor(target))
        value.backward()
        got = ours(device.to_array(scores), device.to_array(target))
        assert isinstance(to_host(got), np.ndarray)
        assert (got.shape, got.dtype) == ((), dtype)
        close(got, value.item(), **tolerances)
        close(ours.backward(), ts.grad.numpy(), **tolerances)


def test_the_gradient_has_the_scores_dtype_whatever_the_target_has(rng, device):
    for dtype in (np.float16, np.float32, np.float64):
        scores = device.to_array(rng.standard_normal((3, 4)).astype(dtype))
        for loss, target in ((CE(), np.eye(4)[:3]), (CE(), np.arange(3)), (MSE(), np.ones((3, 4)))):
            loss(scores, device.to_array(target))
            assert loss.backward().dtype == dtype


def test_float16_losses_are_summed_in_float32(device):
    scores = device.to_array(np.zeros((4096, 2), np.float16))
    assert CE()(scores, device.to_array(np.zeros(4096, int))).item() == np.float16(np.log(2))
    assert MSE("sum")(scores, device.to_array(np.ones((4096, 2), np.float16))).item() == 8192


def test_inputs_are_not_written_to_and_backward_repeats(rng, device):
    before = rng.standard_normal((3, 4)), np.eye(4)[:3]
    scores, target = map(device.to_array, (x.copy() for x in before))
    for loss in (CE(), MSE()):
        loss(scores, target)
        equal(loss.backward(), loss.backward())
    equal(scores, before[0])
    equal(target, before[1])


def test_empty_batches_lose_nothing(device):
    for loss, target in ((CE(), np.empty(0, int)), (MSE(), np.empty((0, 3)))):
        assert loss(device.to_array(np.empty((0, 3))), device.to_array(target)) == 0
        assert loss.backward().shape == (0, 3)


@pytest.mark.parametrize(
    "loss, scores, target, error, message",
    [
        (
            CE(),
            np.ones((2, 3)),
            np.array([0, 3]),
            ValueError,
            r"target\[1\] is 3, but the classes",
        ),
        (
            CE(),
            np.ones((2, 3)),
            np.array([-1, 0]),
            ValueError,
            r"target\[0\] is -1, but the classes",
        ),
        (
            CE(),
            np.ones((2, 3)),
            np.array([0, 1, 2]),
            ValueError,
            r"shape \(3,\).* it must be \(2,\)",
        ),
        (
            CE(),
            np.ones((2, 3)),
            np.ones((2, 4)),
            ValueError,
            r"shape \(2, 4\).* it must be \(2, 3\)",
        ),
        (CE(), np.ones((2, 3)), np.array(1), ValueError, r"target has shape \(\)"),
        (
            CE(),
            np.ones((2, 3)),
            np.array([0.0, 1.0]),
            TypeError,
            "target holds float64, but classes must be",
        ),
        (CE(), np.ones((2, 3)), np.array([True, False]), TypeError, "target holds bool"),
        (CE(), np.ones((2, 3)), [0, 1], TypeError, "target must be a NumPy or CuPy array, not builtins.list"),
        (CE(), np.ones((2, 3, 4, 4)), np.array([0, 1]), ValueError, r"scores must have 2 axes \[N, C\]"),
        (CE(), np.ones((2, 0)), np.array([0, 1]), ValueError, "C at least 1"),
        (
            CE(),
            np.ones((2, 3), int),
            np.array([0, 1]),
            TypeError,
            "scores has dtype int64; it must be",
        ),
        (
            MSE(),
            np.ones((2, 3)),
            np.ones((2, 1)),
            ValueError,
            r"shape \(2, 1\).* must be \(2, 3\)",
        ),
        (MSE(), np.ones((2, 3)), np.ones((2, 3), complex), TypeError, "complex128"),
        (MSE(), np.ones(3, int), np.ones(3), TypeError, "scores has dtype int64"),
    ],
)
def test_targets_that_do_not_fit_are_named(loss, scores, target, error, message):
    with pytest.raises(error, match=message):
        loss(scores, target)


def test_backward_before_forward_and_unknown_reductions_are_refused():
    for make in (CE, MSE):
        with pytest.raises(RuntimeError, match="call forward first"):
            make().backward()
        with pytest.raises(ValueError, match='reduction must be "mean" or "sum", not \'none\''):
            make("none")
        assert repr(make("sum")) == f"{make.__name__}(reduction='sum')"
