"""What the paper's Figures 2 and 7 claim of angles to BP. Notation: claims.py."""

import math
from itertools import product

import numpy as np
import pytest
from claims import NOISY, SEEDS, complex_step, linear, run, second_moment, setting, signs, split
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close
from scipy.stats import binom

from npref import Network, Params, forward, rules
from npref.alignment import angle

# Claim 5, Figure 2

@pytest.mark.parametrize("rule, K", [("np", 1), ("np", 2), ("np", 3), ("inp", 1), ("inp", 2), ("inp", 3)])
@settings(max_examples=3)
@given(seed=SEEDS, sigma=st.floats(0.1, 1))
def test_the_error_of_k_noise_samples_falls_as_one_over_k(rule, K, seed, sigma):
    """⟨‖ĝ_l‖²⟩ = ‖g_l‖² + (⟨‖ĝ_l‖²⟩_1 - ‖g_l‖²)/K, over all K-tuples of sign vectors; K = 1 is the trace of second_moment.

    To lowest order that is (N_l ‖g‖² - ‖g_l‖²)/K for NP and (N_l - 1) ‖g_l‖²/K for INP, the same with layer l's noise alone.
    """
    network, params, x, t = problem = setting(seed, [1], activation="identity", bias=False)
    trace, (_, g, A) = forward(network, params, x), linear(problem)
    total = np.zeros(2)
    tuples = list(product(signs(3), repeat=K))
    for s in tuples:
        update = run(rule, problem, [split(network, sigma * np.array(s))], sigma**2, loss="mse")
        total += [np.sum(d**2) / np.sum(x**2) for d, x in zip(update.dW, trace.x_star)]
    for l, part in enumerate([slice(0, 1), slice(1, 3)]):
        g_l = g[part]
        S = second_moment(g, A, sigma, False)[part, part] if rule == "np" else second_moment(g_l, A[part, part], sigma, False)
        assert_close(total[l] / len(tuples), g_l @ g_l + (np.trace(S) - g_l @ g_l) / K, 100 * (1 + np.trace(S)) / sigma)


def gaussian_estimates(rule, K, rows, calls, seed):
    """(rows * calls, N_1) independent estimates of g_1 from K noise samples each, and g, all through the rule itself.

    Every row of a batch is the same sample with a tag of its own, on inputs that no unit listens to: column b of ΔW_1's part
    for the tags is row b's error.
    """
    rng, sigma = np.random.default_rng(seed), 1e-4
    network, params, x, t = setting(seed, [6, 4], B=1, bias=False, out=3)
    params = Params(params.W, params.b, (None,) * 3)
    g = complex_step((network, params, x, t))[1]
    tagged = Network((3 + rows,), network.layers)
    params = Params((np.hstack([params.W[0], np.zeros((6, rows))]), *params.W[1:]), params.b, params.R)
    x, t = np.hstack([np.repeat(x, rows, axis=0), np.eye(rows)]), np.repeat(t, rows, axis=0)
    estimates = []
    for _ in range(calls):
        eps = [sigma * rng.normal(size=(K, rows, n)) for n in network.units]
        estimates.append(run(rule, (tagged, params, x, t), [eps], sigma**2).dW[0][:, 3:].T * rows)
    return np.concatenate(estimates), g


@pytest.mark.parametrize("K", [8, 32])
@pytest.mark.parametrize("rule", ["np", "inp"])
def test_the_angle_falls_with_k_as_the_law_says(rule, K):
    """cos = ⟨ĝ_1⟩·g_1/(‖g_1‖ ⟨‖ĝ_1‖²⟩^½) = (1 + c/K)^-½, c = N_1 ‖g‖²/‖g_1‖² + 1 for NP, N_1 - 1 for INP, with Gaussian noise.

    The cosine of 8,000 estimates, linearised, is a mean: |z| < 5, a false alarm in 1.7 million; its standard error is small
    enough that an error of 5% in the cosine lies at z > 10.
    """
    estimates, g = gaussian_estimates(rule, K, 500, 16, seed=7)  # its c is 16 for NP: a larger c needs more estimates for 5%
    g_1 = g[:6]
    c = 6 * (g @ g) / (g_1 @ g_1) + 1 if rule == "np" else 5
    p, q = estimates @ g_1 / (g_1 @ g_1), np.sum(estimates**2, axis=1) / (g_1 @ g_1)
    relative = (p - 1) - (q / (1 + c / K) - 1) / 2  # of the cosine: p's mean is 1, q's 1 + c/K
    error = relative.std() / math.sqrt(len(relative))
    assert abs(relative.mean()) < 5 * error and 0.05 > 10 * error


def angles(rule, problem, eps, sigma2):
    """The angle to BP of every layer, in degrees."""
    exact = rules.bp_update(*problem).dW
    return np.array([angle(d, e) for d, e in zip(run(rule, problem, [eps], sigma2).dW, exact)])


def test_inp_is_closer_to_bp_than_anp_and_np():
    """Figure 2's order, K = 30 noise samples, as a sign test on 30 independent networks: 27 wins of the mean angle.

    Were a rule as good as INP, 27 wins would come by chance once in 230,000. The same test of INP against INP, with other noise,
    must find nothing.
    """
    wins = {"np": 0, "anp": 0, "inp": 0}
    for seed in range(30):
        problem = setting(seed, [12, 12], 0, "leaky_relu", B=4, out=6)
        rng = np.random.default_rng(seed)
        draw = lambda: [1e-4 * rng.normal(size=(30, 4, n)) for n in problem[0].units]  # noqa: E731
        eps = draw()
        ours = angles("inp", problem, eps, 1e-8).mean()
        for rule, noise in (("np", eps), ("anp", eps), ("inp", draw())):
            wins[rule] += ours < angles(rule, problem, noise, 1e-8).mean()
    assert binom.sf(26, 30, 0.5) < 1 / 230_000
    assert wins["np"] >= 27 and wins["anp"] >= 27 and wins["inp"] < 27, wins


# Claim 6, Figure 7

@NOISY
def test_the_angle_is_flat_in_sigma_between_rounding_and_nonlinearity(rule):
    """With the noise's directions held, the angle to BP is one number for σ² from 1e-18 (float32: 1e-8) to 1e-4, and rises beyond.

    Rounding hides δL where σ |g| ~ eps L, so from σ² ~ eps² on, 3e-18 times lower in float64 than in float32; the nonlinearity
    above is the same for both. No sampling error to judge: what is random is the same in the middle and at the ends.
    """
    problem = setting(3, [10, 10], B=4, out=5)
    s = [np.random.default_rng(l).choice([-1.0, 1.0], size=(100, 4, n)) for l, n in enumerate(problem[0].units)]

    def curve(dtype, exponents):
        network, params, x, t = problem
        cast = lambda group: tuple(a.astype(dtype) for a in group)  # noqa: E731
        narrow = network, Params(cast(params.W), cast(params.b), cast(params.R)), x.astype(dtype), t.astype(dtype)
        found = [angles(rule, narrow, [(10 ** (e / 2) * v).astype(dtype) for v in s], 10.0**e).mean() for e in exponents]
        return np.array(found)

    middle = curve("float64", [-6])
    assert middle < 60
    assert np.abs(curve("float64", range(-18, -3, 2)) - middle).max() < 1
    assert np.abs(curve("float32", [-8, -6, -4]) - middle).max() < 1
    assert (curve("float32", [-18, -16, -15]) > middle + 10).all()
    assert (curve("float64", [-34, -33]) > middle + 10).all()
    for dtype in ("float32", "float64"):
        assert (np.diff(curve(dtype, [-2, 0, 1, 2])) > 1).all()
