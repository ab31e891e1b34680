"""Every method on CuPy: on a stand-in as strict as CuPy everywhere, and on CuPy itself where there is a GPU."""

import numpy as np
import pytest

from npref import METHODS, Conv, Dense, Network, execution, noise, rules, to_host
from npref.batches import prepare
from npref.config import Config
from npref.datasets import Dataset
from npref.layers import unfold
from npref.step import initial_state, noise_groups, training_step
from npref.train import train

NETWORK = Network((2, 6, 6), (Conv(3, 3, 2, 1, bias=True), Dense(7), Dense(4, activation="identity", bias=True)))


def _configs():
    for method in METHODS:
        yield Config(method=method, dtype="float64", bias=True)
    yield Config(method="danp", samples=3, noise="rademacher", noisy_baseline=True, optimizer="sgd", lr=0.1)
    yield Config(method="np", samples=2, noisy_baseline=True, loss="mse", optimizer="adam-eps-hat")
    yield Config(method="anp", anp_norm="layer", activation="step", loss="mse-mean")
    yield Config(method="dinp", samples=3, activation="sign")
    yield Config(method="dbp", activation="tanh", init="glorot")
    yield Config(method="inp", activation="relu", init="uniform")


configs = list(_configs())


def steps(config, xp, n=3):
    rng = np.random.default_rng(0)
    state = initial_state(config, NETWORK, xp)
    images, t = rng.integers(0, 256, size=(n, 5, 2, 6, 6)).astype(np.uint8), np.eye(4, dtype=config.dtype)[rng.integers(4, size=(n, 5))]
    batches = [(prepare(xp.asarray(images[i]), config.dtype), xp.asarray(t[i])) for i in range(n)]
    if xp is not np and hasattr(xp, "counts"):
        xp.counts.clear()
    sums = [training_step(config, NETWORK, state, *batch, step)[1] for step, batch in enumerate(batches)]
    return state, sums


@pytest.mark.parametrize("config", [c for c in configs if c.samples > 1], ids=lambda c: c.method)
def test_groups_of_noise_samples_add_up_on_the_stand_in(fake_cupy, monkeypatch, config):
    monkeypatch.setattr(rules, "group_size", lambda *arguments: 1)
    compare(config, fake_cupy, exact=True)


def sum_of_products(subscripts, a, b):
    """einsum as the stand-in for a fused kernel adds: NumPy's own adds in another order."""
    operands, kept = subscripts.split("->")
    of_a, of_b = operands.split(",")
    a = np.expand_dims(a, tuple(i for i, letter in enumerate(of_b) if letter not in of_a))
    return (a * b).sum(axis=tuple(i for i, letter in enumerate(of_b) if letter not in kept))


def compare(config, xp, exact=False):
    with pytest.MonkeyPatch.context() as patch:
        if exact:  # a kernel's log is the C library's, NumPy's its own, and sums are of another order: these have tests of their own
            patch.setattr(np, "einsum", sum_of_products)
            patch.setattr(noise, "draw_layers", xp.numpys(noise.draw_layers))
            for name in "loss_of", "loss_gradient", "squares":
                patch.setattr(rules, name, xp.numpys(getattr(rules, name)))
        expected, expected_sums = steps(config, np)
        state, sums = steps(config, xp)
    transfers = dict(xp.counts) if hasattr(xp, "counts") else None
    # The stand-in computes with NumPy, so it must give the very same numbers. On a GPU delta L amplifies rounding by 1/sigma = 1e3,
    # and Adam's first steps have the size of lr whatever the size of the update: three steps of 1e-3 or 0.1 either way.
    tolerance = 0 if exact else 1e-7 if config.dtype == "float64" else 2e-2
    for a, b in zip((*state.params.W, *state.params.R), (*expected.params.W, *expected.params.R)):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == config.dtype and np.abs(to_host(a) - b).max() <= tolerance * max(1, np.abs(b).max())
    assert np.allclose(sums, expected_sums, rtol=0 if exact else 1e-3, atol=0)
    return transfers


@pytest.mark.parametrize("config", configs, ids=lambda c: c.method)
def test_a_training_step_on_the_stand_in(fake_cupy, config):
    transfers = compare(config, fake_cupy, exact=True)
    del transfers["kernels"]
    assert transfers == {"to_host": 3}, "one transfer to the host a step, and none to the device"


@pytest.mark.parametrize("method, kernels", [("bp", 5), ("np", 7), ("inp", 9), ("anp", 9)])
def test_our_kernels_are_launched_once_for_all_layers(fake_cupy, method, kernels):
    """BP: loss, its gradient, correct, marks, Adam. Others: noise, two losses, weighted sums, the last three; squares are two more."""
    config = Config(method=method, samples=1)
    for layers in 1, 5:
        network = Network((6,), (*[Dense(5)] * layers, Dense(4, activation="identity")))
        state, x = initial_state(config, network, fake_cupy), fake_cupy.asarray(np.ones((3, 6), "float32"))
        fake_cupy.counts.clear()
        training_step(config, network, state, x, fake_cupy.asarray(np.eye(3, 4, dtype="float32")), 0)
        assert fake_cupy.counts["kernels"] == kernels


@pytest.mark.parametrize("config", configs, ids=lambda c: c.method)
def test_a_training_step_on_a_gpu(real_cupy, config):
    compare(config, real_cupy)


@pytest.mark.parametrize("layer", [Conv(4, 3, 2, 1), Conv(4, (3, 2), (1, 2), (0, 2)), Conv(4, (1, 4), (3, 1))])
def test_patches_on_a_device(fake_cupy, layer):
    """Whether channels lie innermost in memory, as behind a layer, or not."""
    x = np.random.default_rng(0).normal(size=(3, 2, 6, 7))
    for there in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        assert np.array_equal(unfold(layer, fake_cupy.ndarray(there)).get(), unfold(layer, x))


def test_a_device_holds_more_noise_samples_at_a_time(fake_cupy):
    config = Config(method="anp", samples=40, batch_size=100)
    network = config.network((3, 32, 32), 10)
    parts = [[len(group[0]) for group in noise_groups(config, network, 0, range(100), xp)] for xp in (np, fake_cupy)]
    assert len(parts[0]) > 1 and sum(parts[0]) == 40 and parts[1] == [40]


@pytest.mark.parametrize("memory, budget", [(64 << 30, 2 << 30), (16 << 30, 2 << 30), (8 << 30, 1 << 30)])
def test_noise_samples_take_an_eighth_of_a_small_devices_memory(fake_cupy, monkeypatch, memory, budget):
    monkeypatch.setattr(fake_cupy._Device, "mem_info", (memory // 16, memory))
    execution.samples_budget.cache_clear()
    try:
        assert execution.samples_budget(fake_cupy) == budget
    finally:
        execution.samples_budget.cache_clear()


def small_data():
    rng = np.random.default_rng(1)
    return Dataset("synthetic", "", rng.integers(0, 256, (40, 3, 12, 12)).astype(np.uint8), rng.integers(0, 10, 40),
                   rng.integers(0, 256, (20, 3, 12, 12)).astype(np.uint8), rng.integers(0, 10, 20), 10)


def robot_data():
    rng = np.random.default_rng(2)
    x, y = rng.normal(3, 2, (60, 21)), rng.normal(0, 1, (60, 7))
    return Dataset("synthetic-sarcos", "", x[:40], y[:40], x[40:], y[40:], 7, inputs="raw")


WHOLE_RUNS = [(small_data, dict(method="danp", arch="fc1")), (small_data, dict(method="np", arch="fc1", inputs="standard")),
              (robot_data, dict(method="dnp", arch="sarcos", loss="mse-mean", optimizer="sgd", lr=1e-3, inputs="standard"))]


def compare_whole_run(tmp_path, data, options):
    rows, expected = ([*train(Config(backend=backend, dtype="float64", epochs=2, batch_size=20, **options), data(), tmp_path / backend)]
                      for backend in ("cupy", "numpy"))
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys() and ("test_accuracy" in row) == (data is small_data)
        assert all(np.isclose(row[k], other[k], rtol=1e-5) for k in row if k != "seconds")


@pytest.mark.parametrize("data, options", WHOLE_RUNS)
def test_a_whole_run_on_the_stand_in(fake_cupy, tmp_path, data, options):
    compare_whole_run(tmp_path, data, options)


@pytest.mark.parametrize("data, options", WHOLE_RUNS)
def test_a_whole_run_on_a_gpu(real_cupy, tmp_path, data, options):
    compare_whole_run(tmp_path, data, options)


def test_the_stand_in_is_strict(fake_cupy):
    a, b = fake_cupy.asarray(np.ones(3)), np.ones(3)
    for refused in (lambda: a + b, lambda: b + a, lambda: np.add(b, a), lambda: np.asarray(a), lambda: fake_cupy.exp(b),
                    lambda: a.__iadd__(b), lambda: a[np.array([0])], lambda: fake_cupy.stack([a, b])):
        with pytest.raises(TypeError):
            refused()
    with pytest.raises(AttributeError):
        fake_cupy.fft  # noqa: B018
    for refused in (lambda x, n: 1 - n, lambda x, n: n * n, lambda x, n: x[0], lambda x, n: x.real, lambda x, n: x.shape,
                    lambda x, n: fake_cupy.multiply(x, n, dtype=np.float64), lambda x, n: x.reshape(-1)):
        with pytest.raises((TypeError, AttributeError)):
            fake_cupy.fuse()(refused)(a, 2.0)
    with pytest.raises(TypeError):
        fake_cupy.fuse()(lambda x, n: x * n)(a, np.float32(2))
    assert fake_cupy.fuse()(lambda x, n: 1 - n * x)(a, 2.0).get().tolist() == [-1, -1, -1]
    fake_cupy.counts.clear()
    assert float(a.sum()) == 3 and bool((a > 0).all())
    assert fake_cupy.counts["to_host"] == 2
