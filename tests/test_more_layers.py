"""Unpooling layers, which are tied to their pooling, and layers of global and adaptive pooling."""

import copy
import pickle

import numpy as np
import pytest
from anywhere import close, equal
from host import compiler, cupy_stand_in
from host.cupy_stand_in import waits

from gpuconv import nn
from gpuconv import reference as define
from gpuconv.testing import check_gradients
from gpuconv.training import fit

F64 = np.float64
POOLS = {
    1: (nn.MaxPool1d, nn.MaxUnpool1d),
    2: (nn.MaxPool2d, nn.MaxUnpool2d),
    3: (nn.MaxPool3d, nn.MaxUnpool3d),
}

layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])


@pytest.fixture
def rng():
    return np.random.default_rng(5)


# --- unpooling -----------------------------------------------------------------------------------------


def autoencoder():
    """Return an encoder that pools twice and a decoder that unpools twice."""
    outer, inner = nn.MaxPool2d(2), nn.MaxPool2d((1, 2))
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect", dtype=F64, rng=0),
        outer,
        nn.Sequential(nn.Conv2d(3, 4, 1, dtype=F64, rng=1), inner, nn.Tanh()),
        nn.MaxUnpool2d(inner),
        nn.Conv2d(4, 3, 1, dtype=F64, rng=2),
        nn.MaxUnpool2d(outer),
        nn.ConvTranspose2d(3, 1, 3, padding=1, dtype=F64, rng=3),
    )


@pytest.mark.oracle
@layouts
@pytest.mark.parametrize("axes", POOLS)
def test_unpooling_gives_what_pytorchs_gives(axes, channels_last, rng, device):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle here")
    pooling, unpooling = POOLS[axes]
    pool = pooling(2, (3, 2, 2)[:axes], ceil_mode=True, channels_last=channels_last)
    unpool = unpooling(pool)
    x = rng.standard_normal((2, 3, *(7, 5, 3)[:axes]))
    y, there = getattr(torch.nn.functional, f"max_pool{axes}d")(
        torch.tensor(x), 2, (3, 2, 2)[:axes], ceil_mode=True, return_indices=True
    )
    pool(device.to_array(define.last(x, channels_last)))
    values = torch.tensor(rng.standard_normal(y.shape), requires_grad=True)
    want = getattr(torch.nn, f"MaxUnpool{axes}d")(2, (3, 2, 2)[:axes])(values, there, x.shape)
    equal(
        unpool(device.to_array(define.last(values.detach().numpy(), channels_last))),
        define.last(want.detach().numpy(), channels_last),
    )
    dy = rng.standard_normal(x.shape)
    want.backward(torch.tensor(dy))
    equal(
        unpool.backward(device.to_array(define.last(dy, channels_last))),
        define.last(values.grad.numpy(), channels_last),
    )


@layouts
@pytest.mark.parametrize("axes", POOLS)
def test_unpooling_gradients_are_the_slopes(axes, channels_last, rng, device):
    pooling, unpooling = POOLS[axes]
    pool = pooling(3, 2, 1, channels_last=channels_last)  # windows share places
    size = (5, 4, 3)[:axes]
    x = device.to_array(rng.standard_normal((2, *size, 2) if channels_last else (2, 2, *size)))
    check_gradients(nn.Sequential(pool, nn.Tanh(), unpooling(pool)), x)
    y = pool(x)
    assert check_gradients(unpooling(pool), y).compared == {"x": y.size}


def test_autoencoder_gradients_are_the_slopes(rng, device):
    network = device.move(autoencoder())
    x = device.to_array(rng.standard_normal((2, 1, 5, 6)))
    assert network(x).shape == x.shape
    assert check_gradients(network, x).compared.keys() == {"x", *network.params}


def test_an_autoencoder_learns(rng):
    network, x = autoencoder(), rng.standard_normal((8, 1, 8, 8))
    adam = nn.Adam(network, 0.01)
    losses = fit(network, x, x, loss=nn.MSE(), optimizer=adam, max_iterations=60).losses
    assert losses[-1] < losses[0] / 2


def test_unpooling_takes_the_pools_last_argmax_and_keeps_it_for_backward(device):
    pool = nn.MaxPool1d(2)
    unpool = nn.MaxUnpool1d(pool)
    one, other = (device.to_array(np.array([[x]])) for x in ([1.0, 2, 2, 1], [2.0, 1, 1, 2]))
    y = pool(one)
    equal(unpool(y), [[[0, 2, 2, 0]]])
    pool(other)
    equal(unpool.backward(device.to_array(np.arange(4.0).reshape(1, 1, 4))), [[[1, 2]]])
    equal(unpool(y), [[[2, 0, 0, 2]]])
    equal(unpool.backward(device.to_array(np.arange(4.0).reshape(1, 1, 4))), [[[0, 3]]])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))], ids=["copy", "pickle"]
)
def test_a_networks_copy_unpools_by_its_own_pools(duplicate, rng):
    network = autoencoder()
    x, other = rng.standard_normal((2, 2, 1, 4, 4))
    twin = duplicate(network)
    assert twin[5].pool is twin[1]
    y = network(x)
    equal(twin(x), y)
    code = network[:3](x)
    twin(other)
    equal(network[3:](code), y)


def test_an_autoencoders_state_survives_the_round_trip(rng):
    network, other = autoencoder(), autoencoder()
    for p in network.params.values():
        p += 1
    assert list(network.state_dict()) == [
        f"{i}.{n}" for i in ("0", "2.0", "4", "6") for n in ("weight", "bias")
    ]
    other.load_state_dict(network.state_dict())
    x = rng.standard_normal((2, 1, 4, 4))
    equal(other(x), network(x))


def test_unpooling_before_its_pool_has_run_is_refused():
    pool = nn.MaxPool2d(2)
    unpool = nn.MaxUnpool2d(pool)
    x = np.ones((1, 1, 2, 2))
    with pytest.raises(RuntimeError, match=r"MaxUnpool2d: call MaxPool2d\(kernel_size=2\) first"):
        unpool(x)
    pool(np.ones((1, 1, 4, 4)))
    unpool(x)
    nn.Sequential(pool, unpool).to("cpu")  # forgets the last pass
    with pytest.raises(RuntimeError, match="call MaxPool2d"):
        unpool(x)


def test_values_of_another_shape_than_the_pools_are_refused():
    pool = nn.MaxPool2d(2)
    pool(np.ones((2, 1, 4, 4)))
    for shape in ((1, 1, 2, 2), (2, 1, 4, 4), (2, 2, 2, 2)):
        with pytest.raises(ValueError, match=r"max_unpool2d: x has shape .* it must be \(2, 1, 2, 2\)"):
            nn.MaxUnpool2d(pool)(np.ones(shape))


# --- global and adaptive pooling -------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("kind", [nn.GlobalAvgPool, nn.GlobalMaxPool])
def test_global_pooling_gradients_are_the_slopes(kind, size, channels_last, rng, device):
    x = device.to_array(rng.standard_normal((2, *size, 3) if channels_last else (2, 3, *size)))
    for keepdims in (True, False):
        layer = kind(channels_last=channels_last, keepdims=keepdims)
        check_gradients(layer, x)
        flat = (
            (2, 3)
            if not keepdims
            else (2, *[1] * len(size), 3)
            if channels_last
            else (2, 3, *[1] * len(size))
        )
        assert layer(x).shape == flat


@layouts
@pytest.mark.parametrize("size", [1, (3, 2), (7, 9), (None, 2), None], ids=str)
@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_adaptive_pooling_gradients_are_the_slopes(kind, size, channels_last, rng, device):
    x = rng.standard_normal((2, 5, 6, 2) if channels_last else (2, 2, 5, 6))
    check_gradients(kind(size, channels_last=channels_last), device.to_array(x))


def test_global_pooling_makes_a_network_for_images_of_any_size(rng, device):
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding="same", padding_mode="replicate", dtype=F64, rng=0),
        nn.GlobalAvgPool(keepdims=False),
        nn.Linear(3, 2, dtype=F64, rng=0),
    )
    device.move(network)
    for size in ((4, 4), (5, 7)):
        x = device.to_array(rng.standard_normal((2, 1, *size)))
        assert network(x).shape == (2, 2)
        assert network.backward(network(x)).shape == x.shape


# --- on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(compiler.missing()), reason=str(compiler.missing()))
def test_these_layers_never_make_a_gpu_wait(rng):
    def network():
        pool = nn.MaxPool2d(2)
        return nn.Sequential(
            *(
                nn.Conv2d(2, 2, 3, padding=2, padding_mode=mode, dtype=F64, rng=0)
                for mode in ("reflect", "replicate", "circular")
            ),
            *(pool, nn.Tanh(), nn.MaxUnpool2d(pool), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d((2, 3))),
            *(nn.GlobalAvgPool(), nn.GlobalMaxPool(keepdims=False)),
        )

    x = rng.standard_normal((2, 2, 6, 7))
    with cupy_stand_in.installed() as cupy:
        there, on_cpu = network().to("cuda"), network()
        y = there(cupy.asarray(x))
        dx = there.backward(y)
        assert not waits
        assert {type(a) for a in (y, dx, *there.grads.values())} == {cupy.ndarray}
        close(y, on_cpu(x))
        close(dx, on_cpu.backward(on_cpu(x)))
        for name, grad in there.grads.items():
            close(grad, on_cpu.grads[name])
