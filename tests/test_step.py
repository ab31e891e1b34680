import re
import textwrap
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from reference import assert_close
from test_train import small_data

import npref
from npref import METHODS, anp_update, forward, loss, noise, one_hot, step
from npref.batches import input_moments, prepare, targets
from npref.config import Config
from npref.functions import LOSSES, loss_gradient
from npref.layers import to_rows
from npref.noise import draw
from npref.runlog import read_checkpoint
from npref.step import _outcome, apply_update, compute_update, initial_state, learnable, noise_groups, rule_name, training_step
from npref.train import Diverged, train


def test_all_decorrelation_matrices_change():
    data = small_data()
    config = Config(method="danp", arch="fc3", dataset="synthetic", batch_size=16)
    network = config.network((3, 10, 10), 10)
    state = initial_state(config, network)
    training_step(config, network, state, prepare(data.x_train, "float32"), one_hot(data.y_train, 10), 0)
    assert len(state.params.R) == 4 and not any(np.array_equal(R, np.eye(len(R))) for R in state.params.R)


def test_the_noise_is_that_of_the_step():
    config = Config(method="anp", arch="fc1", samples=3, dtype="float64", seed=5, sigma2=0.04)
    network = config.network((3, 4, 4), 10)
    params, x, t = initial_state(config, network).params, np.random.default_rng(0).uniform(size=(6, 3, 4, 4)), np.eye(10)[:6]
    update = compute_update(config, network, params, x, t, step=9)
    eps = noise.draw(np, "gaussian", (10,), 0.2, seed=5, step=9, layer=0, samples=range(3), rows=range(6), dtype="float64")
    a = forward(network, params, x).y
    assert np.allclose(update.dL, loss("cce", a + eps, t) - loss("cce", a, t), rtol=1e-10)


def test_the_noisy_baseline_has_noise_of_its_own():
    config = Config(method="np", arch="fc1", noisy_baseline=True, dtype="float64", sigma2=0.04)
    network = config.network((3, 4, 4), 10)
    params, x, t = initial_state(config, network).params, np.random.default_rng(0).uniform(size=(6, 3, 4, 4)), np.eye(10)[:6]
    update = compute_update(config, network, params, x, t, step=2)
    where = dict(seed=0, step=2, layer=0, samples=range(1), rows=range(6), dtype="float64")
    one, two = (noise.draw(np, "gaussian", (10,), 0.2, **where, stream=s)[0] for s in (noise.NOISE, noise.BASELINE))
    a = forward(network, params, x).y
    assert np.allclose(update.losses, loss("cce", a + two, t), rtol=1e-12)
    assert np.allclose(update.dL[0], loss("cce", a + one, t) - loss("cce", a + two, t), rtol=1e-9)


def test_k_samples_average_k_single_samples():
    config = Config(method="danp", arch="fc3", samples=4, dtype="float64", sigma2=1e-2)
    network = config.network((3, 4, 4), 10)
    params, x, t = initial_state(config, network).params, np.random.default_rng(0).uniform(size=(6, 3, 4, 4)), np.eye(10)[:6]
    together = compute_update(config, network, params, x, t, 0)
    eps = [noise.draw(np, "gaussian", s, 0.1, seed=0, step=0, layer=l, samples=range(4), rows=range(6), dtype="float64")
           for l, s in enumerate(network.shapes[1:])]
    alone = [anp_update(network, params, x, t, [[e[k : k + 1] for e in eps]]) for k in range(4)]
    for l in range(4):
        assert_close(together.dW[l], sum(u.dW[l] for u in alone) / 4, 100 * np.abs(together.dW[l]).max(), c=2000)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_configured_one(method):
    for name in LOSSES:
        config = Config(method=method, arch="sarcos", loss=name, dtype="float64", **({} if "bp" in method else dict(sigma2=0.04)))
        network = config.network((3, 4, 4), 10)
        params, x, t = initial_state(config, network).params, np.random.default_rng(0).uniform(size=(6, 3, 4, 4)), np.eye(10)[:6]
        update = compute_update(config, network, params, x, t, step=0)
        clean = loss(name, forward(network, params, x).y, t)
        assert np.allclose(update.losses, clean, rtol=1e-12)
        if "bp" in method:
            last = loss_gradient(name, update.trace.y, t)
            assert np.allclose(update.dW[-1], last.T @ update.trace.x_star[-1] / 6, rtol=1e-10)
            continue
        eps = [noise.draw(np, "gaussian", s, 0.2, seed=0, step=0, layer=l, samples=range(1), rows=range(6), dtype="float64")[0]
               for l, s in enumerate(network.shapes[1:])]
        alone = [[e if m == l else np.zeros_like(e) for m, e in enumerate(eps)] for l in range(len(eps))]
        passes = alone if "inp" in method else [eps]
        dL = np.array([loss(name, forward(network, params, x, noises).y, t) - clean for noises in passes])
        assert np.allclose(update.dL[0], dL if "inp" in method else dL[0], rtol=1e-9)


@pytest.mark.parametrize("l", [0, 3])
def test_a_bias_update_is_named_by_its_layer(l):
    config, data = Config(method="bp", arch="fc3", bias=True), small_data()
    network = config.network((3, 10, 10), 10)
    state, t = initial_state(config, network), one_hot(data.y_train, 10)
    update = compute_update(config, network, state.params, prepare(data.x_train, "float32"), t, 0)
    update.db[l][2] = np.nan
    with pytest.raises(Diverged, match=rf"the bias update Δb_{l + 1} is not finite"):
        _outcome(config, state, update, t, 0)()


@pytest.mark.parametrize("spoil, quantity", [
    (lambda s: s.params.W[0].__setitem__((0, 0), np.inf), "the loss of the clean pass"),
    (lambda s: s.params.R[1].__setitem__((0, 0), np.nan), "the loss of the clean pass"),
])
def test_the_first_quantity_is_named(spoil, quantity):
    config, data = Config(method="danp", arch="fc3"), small_data()
    network = config.network((3, 10, 10), 10)
    state = initial_state(config, network)
    spoil(state)
    with pytest.raises(Diverged, match=f"epoch 1, step 4: {quantity} is not finite"):
        training_step(config, network, state, prepare(data.x_train, "float32"), one_hot(data.y_train, 10), 3)


def test_an_overflowing_sum_of_finite_numbers_is_not_divergence():
    config, data = Config(method="bp", arch="fc1", optimizer="sgd", lr=1e-6), small_data()
    network = config.network((3, 10, 10), 10)
    state = initial_state(config, network)
    update = compute_update(config, network, state.params, prepare(data.x_train, "float32"), one_hot(data.y_train, 10), 0)
    big = (np.full((10, 300), 3e38, dtype=np.float32),)
    with np.errstate(over="ignore"):
        _outcome(config, state, replace(update, dW=big), one_hot(data.y_train, 10), 0)()
        big[0][3, 7] = np.nan
        with pytest.raises(Diverged, match="the update ΔW_1 is not finite"):
            _outcome(config, state, replace(update, dW=big), one_hot(data.y_train, 10), 0)()


def test_the_rule_in_the_docstring_is_nps_with_two_opposite_noise_samples():
    names = {**vars(npref), "to_rows": to_rows, "noise_groups": noise_groups}
    exec(textwrap.dedent(re.search(r"^ {4}def central_differences.*\n( {8}.*\n)+", step.__doc__, re.M)[0]), names)
    rng, config = np.random.default_rng(0), Config(method="np", sigma2=0.25, loss="mse", samples=3)
    network = npref.Network((2, 6, 6), (npref.Conv(3, 2, stride=2, bias=True), npref.Conv(4, 2), npref.Dense(5, bias=True), npref.Dense(
        3, activation="identity")))
    params = npref.init_params(network, dtype="float64", decorrelate=True)
    params = replace(params, R=tuple(R + 0.1 * rng.standard_normal(R.shape) for R in params.R))
    x, t = rng.random((7, 2, 6, 6)), np.eye(3)[rng.integers(3, size=7)]
    (eps,) = noise_groups(replace(config, dtype="float64"), network, 5, range(7), np, samples=range(1))
    own = names["central_differences"](replace(config, dtype="float64"), network, params, x, t, 5)
    paired = npref.np_update(network, params, x, t, [[np.concatenate([e, -e]) for e in eps]], sigma2=0.25, loss="mse")
    for a, b in zip((*own.dW, *own.db), (*paired.dW, *paired.db)):
        assert a is b is None or a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-13 * abs(b).max())
    assert np.allclose(own.losses, paired.losses, rtol=1e-14, atol=0) and own.dL.shape == (1, 7)
    narrow = [npref.Params(*(tuple(None if a is None else a.astype("float32") for a in p) for p in (params.W, params.b, params.R)))]
    single = names["central_differences"](config, network, *narrow, x.astype("float32"), t.astype("float32"), 5)
    assert {a.dtype for a in (*single.dW, *single.db) if a is not None} == {np.dtype("float32")} and single.dL.dtype == np.float64
    before = [p.copy() for p in (*learnable(params), *params.R)]
    apply_update(params, npref.init_adam(learnable(params)), own, lr=1e-3, alpha=1e-3)
    assert all((a != b).any() for a, b in zip(before, (*learnable(params), *params.R)))


def test_a_method_without_a_case_is_not_taken_for_another(monkeypatch):
    """Its name may begin with a d, too."""
    known = ("wp", "dfa", "dwp")
    monkeypatch.setattr("npref.rules.METHODS", (*npref.METHODS, *known))
    assert [npref.split_method(method) for method in known] == [("wp", False), ("dfa", False), ("wp", True)]
    data = small_data()
    for method in known:
        with pytest.raises(ValueError, match=f"method '{method}' has no case in npref.step.compute_update"):
            next(train(Config(method=method, arch="fc1", sigma2=1e-4), data))
        assert npref.config.default_lr(method, "fc3") == (1e-3 if method == "dwp" else 1e-4)


def test_a_rule_has_one_name_in_every_process():
    """A log knows a rule by it: no address, nothing elided, all that is given to a partial in it."""
    class Estimator:
        pass

    @dataclass
    class Settings:
        f: object

    def named(*arguments, **more):
        return rule_name(partial(compute_update, *arguments, **more))

    noise = np.arange(3000, dtype="float32").reshape(3, 1000)
    inner = partial(draw, "gaussian")
    assert named(0.5, kind="a", f=draw) == "npref.step.compute_update with 0.5, kind=a, f=npref.noise.draw"
    assert named(f=inner) == "npref.step.compute_update with f=npref.noise.draw with gaussian"
    assert named([draw, 1], {"f": (draw,)}).endswith("with list(npref.noise.draw, 1), dict(f=tuple(npref.noise.draw))")
    assert named(Estimator()).endswith(f"with <{__name__}.{Estimator.__qualname__} object>") and named(np.float64(0.5)) == named(0.5)
    assert named(Settings(draw)).endswith(f"with {Settings.__qualname__}(f=<function draw>)")
    assert named({"b", "a", "c"}).endswith("with set(a, b, c)")
    changed = noise.copy()
    changed[1, 500] += 1
    many = [0.5] * 10_000
    names = [named(noise), named(changed), named(noise.astype("float64")), named(noise.reshape(1000, 3)), named([noise, changed]),
             named([changed, noise]), named(many), named([*many[1:], 0.25])]
    assert len(set(names)) == len(names) and max(map(len, names)) < 200 and not any(" at 0x" in name for name in names)
    assert named(np.ma.masked_array([1, 2])).endswith("with [1 2]")  # no array of npref's, but no reason to stop
    assert named(noise) == named(noise.copy()) == named(np.asfortranarray(noise)) and named(many) == named(list(many))
    with pytest.raises(TypeError, match="rule must be a function as npref.step.compute_update is, got 3"):
        rule_name(3)


def test_rates_are_looked_at_before_anything_changes():
    config, data = Config(method="danp", arch="fc1"), small_data()
    network, t = config.network((3, 10, 10), 10), one_hot(data.y_train, 10)
    plain = replace(config, method="anp", decor_lr=1e-3)
    for some, alpha, error in ((config, None, TypeError), (config, np.nan, ValueError), (plain, None, None)):
        state = initial_state(some, network)
        update = compute_update(some, network, state.params, prepare(data.x_train, "float32"), t, 0)
        before = state.params.W[0].copy()
        if error is None:
            apply_update(state.params, None, update, lr=0.1)
            assert (state.params.W[0] == before - np.float32(0.1) * update.dW[0]).all()
            continue
        with pytest.raises(error, match="alpha must be"):
            apply_update(state.params, None, update, lr=0.1, **({} if alpha is None else {"alpha": alpha}))
        assert (state.params.W[0] == before).all()


def test_the_docstrings_loop_and_rule_go_together(tmp_path):
    """In one module, as they are copied; and `train` does the same with the rule."""
    config, data = Config(method="dnp", arch="fc1", dataset="synthetic", batch_size=20, epochs=1), small_data()
    names = {**vars(step), **vars(npref), "config": config, "network": config.network((3, 10, 10), 10), "data": data, "prepare": prepare,
             "targets": targets, "input_moments": input_moments, "to_rows": to_rows, "noise": noise}
    rule, loop = (textwrap.dedent(re.search(pattern, step.__doc__, re.M)[0]) for pattern in (
        r"^ {4}def central_differences.*\n( {8}.*\n)+", r"^( {4}state, moments = .*\n)( {4}.*\n)+"))
    assert "step=epoch * batches + i)" in loop
    exec(rule + loop.replace("batches + i)", "batches + i, rule=central_differences)"), names)
    list(train(config, data, tmp_path, rule=names["central_differences"]))
    arrays = read_checkpoint(tmp_path / "checkpoint.h5")["arrays"]
    assert (arrays["params/W/0"] == names["state"].params.W[0]).all() and (arrays["params/R/0"] == names["state"].params.R[0]).all()


@pytest.mark.parametrize("method, arch, inputs", [("np", "fc1", "unit"), ("danp", "fc3", "standard")])
def test_the_loop_in_the_docstring_is_what_training_does(method, arch, inputs):
    config = Config(method=method, arch=arch, dataset="synthetic", batch_size=17, epochs=2, samples=2, inputs=inputs)
    data, network = small_data(), config.network((3, 10, 10), 10)
    x_train, rows = data.x_train, list(train(config, data))
    names = {**vars(step), "config": config, "network": network, "data": data, "prepare": prepare, "targets": targets,
             "input_moments": input_moments, "seen": []}
    loop = textwrap.dedent(re.search(r"^( {4}state, moments = .*\n)( {4}.*\n)+", step.__doc__, re.M)[0])
    exec(loop + "        seen.append((epoch, total, right))\n", names)
    for epoch, row in enumerate(rows):
        loss = right = 0.0  # `sum` rounds otherwise from Python 3.12 on
        for _, *numbers in (s for s in names["seen"] if s[0] == epoch):
            loss, right = loss + numbers[0], right + numbers[1]
        assert (loss / len(x_train), right / len(x_train)) == (row["train_loss"], row["train_accuracy"])
    assert len(names["seen"]) == 2 * -(-len(x_train) // 17) and names["state"].epoch == 1  # which Diverged would name
