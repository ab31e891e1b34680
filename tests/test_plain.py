"""The plain form of the rules, which benchmarks compare with, gives the fast form's numbers."""

import numpy as np
import pytest
from plain import plain_decorrelation, plain_step, plain_update
from reference import assert_close, random_batch, random_noise, random_params

from npref import METHODS, Conv, Dense, Network, split_method
from npref.config import Config
from npref.decorrelation import decorrelation_step
from npref.rules import anp_update, bp_update, inp_update, np_update
from npref.step import initial_state, training_step

DENSE = Network((7,), (Dense(9, bias=True), Dense(6), Dense(4, activation="identity", bias=True)))
CONV = Network((2, 7, 6), (Conv(3, 3, 2, 1, bias=True), Conv(4, 2), Dense(6), Dense(4, activation="identity", bias=True)))


def fast_update(config, network, params, x, t, groups):
    match split_method(config.method)[0]:
        case "bp":
            return bp_update(network, params, x, t)
        case "np":
            return np_update(network, params, x, t, groups, sigma2=config.sigma2)
        case "inp":
            return inp_update(network, params, x, t, groups)
        case "anp":
            return anp_update(network, params, x, t, groups, norm=config.anp_norm)


@pytest.mark.parametrize("network, B, spared", [(DENSE, 6, []), (DENSE, 31, [1, 2]), (CONV, 2, []), (CONV, 6, [0, 1])],
                         ids=["dense", "dense-many-rows", "conv", "conv-many-rows"])
@pytest.mark.parametrize("options", [*({"method": m} for m in METHODS), {"method": "danp", "anp_norm": "layer"}],
                         ids=lambda o: "-".join(o.values()))
def test_the_plain_and_the_fast_form_agree(options, network, B, spared):
    """spared: the layers whose rows are so many that a decorrelated method leaves x* out."""
    rng, sigma = np.random.default_rng(0), 0.25
    K = 1 if "bp" in options["method"] else 5
    config = Config(**options, dtype="float64", **({} if K == 1 else dict(samples=K, sigma2=sigma**2)))
    params, (x, t) = random_params(rng, network, config.method.startswith("d")), random_batch(rng, network, B)
    eps = random_noise(rng, network, K, B, sigma)
    groups = [[e[:2] for e in eps], [e[2:] for e in eps]]
    dW, db, dL, x_star = plain_update(config, network, params, x, t, groups)
    update = fast_update(config, network, params, x, t, groups)
    # Every error is a δL, which rounds as a loss of size 1 does, times at most N / ‖·‖, and the products sum over rows.
    for l, (W, d) in enumerate(zip(dW, update.dW)):
        assert_close(d, W, np.abs(W).max() * 20)
        assert (db[l] is None) == (update.db[l] is None)
        if db[l] is not None:
            assert_close(update.db[l], db[l], np.abs(db[l]).max() * 20)
        assert (update.trace.x_star[l] is None) == (params.R[l] is not None and l in spared)
        if update.trace.x_star[l] is not None:
            assert_close(update.trace.x_star[l], x_star[l], 10)
    fast, plain = ([None if R is None else R.copy() for R in params.R] for _ in range(2))
    decorrelation_step(fast, update.trace, 0.5)
    for R_fast, R, rows in zip(fast, plain, x_star):
        if R is not None:
            plain_decorrelation(R, rows, 0.5)
            assert_close(R_fast, R, 20 * np.abs(R).max())
    assert dL is None and update.dL is None or dL.shape == update.dL.shape
    if dL is not None:
        assert_close(update.dL, dL, 10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_plain_step_is_a_training_step(method, optimizer):
    """Noise, optimiser and R too. One Adam step has the size of lr, so parameters say little there: R and SGD do."""
    noisy = {} if "bp" in method else dict(samples=3, sigma2=0.01)
    config = Config(method=method, dtype="float64", optimizer=optimizer, lr=0.01, **noisy)
    for network in (DENSE, CONV):
        rng = np.random.default_rng(1)
        x, t = random_batch(rng, network, 5)
        fast, plain = (initial_state(config, network) for _ in range(2))
        for step in range(2):
            training_step(config, network, fast, x, t, step)
            plain_step(config, network, plain, x, t, step)
        for a, b in zip((*fast.params.W, *fast.params.b, *fast.params.R), (*plain.params.W, *plain.params.b, *plain.params.R)):
            assert (a is None) == (b is None) and (a is None or np.allclose(a, b, rtol=1e-9, atol=1e-9))
        if method.startswith("d"):
            assert all(np.abs(r - np.eye(len(r))).max() > 1e-6 for r in plain.params.R)
