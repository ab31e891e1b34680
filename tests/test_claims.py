"""What the paper says of the rules, one claim a test: exact where a sum over all noise can be taken, to an order elsewhere.

Most tests are limits σ -> 0, taken by Richardson's extrapolation: halve σ and cancel the powers of σ that the claim allows. What is
left agrees to rounding, and only if no other power is there: an estimate "exact but for O(σ²)" is extrapolated in σ², σ⁴, ...
claims.py has the notation; test_figures.py the claims that figures make.
"""

import math
from itertools import product

import numpy as np
import pytest
from claims import (
    CONV,
    CONVS,
    NOISY,
    SEEDS,
    SHORT,
    WIDTHS,
    amplitude,
    complex_step,
    few,
    flat,
    joined,
    limit,
    linear,
    outer,
    run,
    second_moment,
    setting,
    signs,
    split,
    widen,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import EPS, assert_close
from scipy.linalg import block_diag, hadamard

from npref import Params, forward, rules, update_decorrelation, without_decorrelation
from npref.functions import LOSSES, loss

# Claim 1, Eq. 4 and 5

def isotropic(kind, rng, N):
    """Rows v of length √N whose v vᵀ average to I."""
    if kind == "signs":
        return signs(N)
    if kind == "hadamard":
        return hadamard(1 << (N - 1).bit_length())[:, :N].astype(float)
    return math.sqrt(N) * (np.eye(N) if kind == "basis" else np.linalg.qr(rng.normal(size=(N, N)))[0])


@CONVS
@pytest.mark.parametrize("antithetic", [False, True], ids=["one-sided", "antithetic"])
@pytest.mark.parametrize("kind", ["basis", "orthogonal", "hadamard", "signs"])
@settings(max_examples=15)
@given(seed=SEEDS, widths=WIDTHS, which_loss=st.sampled_from(LOSSES))
def test_inp_is_the_gradient_up_to_sigma_or_with_antithetic_pairs_sigma_squared(conv, antithetic, kind, seed, widths, which_loss):
    """δL = g·v + vᵀHv/2 + ..., so N ⟨δL v⟩/‖v‖² = N ⟨v vᵀ⟩/‖v‖² g + O(σ) = g + O(σ); v and -v cancel the odd powers of σ."""
    network, *data = setting(seed, widths, conv, B=2)
    designs = [isotropic(kind, np.random.default_rng(seed), N) for N in network.units]
    K, h = math.lcm(*map(len, designs)), 2.0**-5  # h = ‖v‖
    v = np.concatenate([np.tile(d / math.sqrt(N), (K // len(d), 1)) for d, N in zip(designs, network.units)], axis=1)
    v = np.concatenate([v, -v]) if antithetic else v
    powers = (2, 4, 6, 8) if antithetic else (1, 2, 3, 4, 5, 6, 7)
    found = limit(lambda h: flat(rules.inp_update(network, *data, [split(network, h * v, B=2)], loss=which_loss)), h, powers)
    exact = flat(rules.bp_update(network, *data, loss=which_loss))
    assert_close(found, exact, amplitude((network, *data), smallest=h / 2 ** len(powers)))


# Claim 2, Appendix D

@CONV
@few
@given(seed=SEEDS, widths=SHORT, which_loss=st.sampled_from(LOSSES))
def test_np_is_the_gradient_in_expectation(conv, seed, widths, which_loss):
    """δL = Σ_m g_m·ε_m + O(ε²), and ⟨ε_m ε_lᵀ⟩ = σ² δ_ml I: over all 2^N sign vectors ⟨δL ε_l⟩/σ² = g_l + O(σ²)."""
    network, *data = setting(seed, widths, conv, B=2)
    s, h = signs(sum(network.units)), 2.0**-6
    found = limit(lambda h: flat(rules.np_update(network, *data, [split(network, h * s, B=2)], sigma2=h**2, loss=which_loss)),
                  h, (2, 4, 6, 8))
    exact = flat(rules.bp_update(network, *data, loss=which_loss))
    assert_close(found, exact, amplitude((network, *data), smallest=h / 16))


@CONV
@few
@given(seed=SEEDS, widths=SHORT, which_loss=st.sampled_from(LOSSES))
def test_anp_before_normalisation_is_the_gradient_times_the_covariance_of_propagated_noise(conv, seed, widths, which_loss):
    """δa_l = Σ_m≤l J_lm ε_m and g_m = J_lmᵀ g_l, so ⟨δL δa_l⟩/σ² = Σ_m≤l J_lm g_m = (I + Σ_m<l J_lm J_lmᵀ) g_l, up to O(σ²)."""
    network, params, x, t = problem = setting(seed, widths, conv)
    trace, N = forward(network, params, x), sum(network.units)

    def estimate(h):
        total = 0
        for eps in (split(network, h * s[None]) for s in signs(N)):
            da = joined(network, forward(network, params, x, [e[0] for e in eps])) - joined(network, trace)
            total = total + flat(rules.anp_update(*problem, [eps], loss=which_loss)) * np.sum(da**2) / N
        return total / 2**N / h**2

    J, g = complex_step(problem, which_loss)
    ends = np.cumsum(network.units)
    biased = [J[b:e, :e] @ J[b:e, :e].T @ g[b:e] for b, e in zip(ends - network.units, ends)]
    h = 2.0**-6
    assert_close(limit(estimate, h, (2, 4, 6, 8)), outer(network, trace, np.concatenate(biased)),
                 amplitude(problem, np.abs(J).sum(axis=1).max(), h / 16))


@CONV
@few
@given(seed=SEEDS, widths=SHORT, which_loss=st.sampled_from(LOSSES))
def test_anp_tends_to_its_finite_sum(conv, seed, widths, which_loss):
    """Eq. 6 as σ -> 0, ε = σ s: N ⟨(g·s) J s / ‖J s‖²⟩ over all sign vectors s, with one norm and one N for the whole network."""
    network, params, x, t = problem = setting(seed, widths, conv)
    J, g = complex_step(problem, which_loss)
    s, h = signs(sum(network.units)), 2.0**-7
    moved = s @ J.T
    expected = np.mean(len(g) * (s @ g / np.sum(moved**2, axis=1))[:, None] * moved, axis=0)
    found = limit(lambda h: flat(rules.anp_update(*problem, [split(network, h * s)], loss=which_loss)), h, (2, 4, 6, 8))
    assert_close(found, outer(network, forward(network, params, x), expected), amplitude(problem, np.abs(J).max() * len(g), h / 16))


# Claim 3, §2.1.3 and §3.1

@given(seed=SEEDS, out=st.integers(2, 6), sigma2=st.floats(0.01, 1))
def test_in_a_single_layer_the_rules_have_one_direction(seed, out, sigma2):
    """δa = ε = v: INP = ANP = N δL ε xᵀ/‖ε‖² (N has no input units, or they would differ), and NP = δL ε xᵀ/σ² points there too."""
    problem = setting(seed, [], out=out)
    eps = math.sqrt(sigma2) * np.random.default_rng(seed).normal(size=(1, 1, out))
    by_np, inp, anp = (flat(run(rule, problem, [[eps]], sigma2)) for rule in ("np", "inp", "anp"))
    norm2 = np.sum(eps**2)
    scale = amplitude(problem, 1 + np.abs(eps).max(), norm2) * (1 + 1 / math.sqrt(norm2))
    assert_close(anp, inp, scale)
    assert_close(by_np * out * sigma2 / norm2, inp, scale)


@CONVS
@given(seed=SEEDS, widths=WIDTHS, sigma2=st.floats(0.01, 1))
def test_in_layer_1_np_and_anp_have_one_direction(conv, seed, widths, sigma2):
    """No noise arrives there: δa_1 = ε_1, and per sample ANP's ΔW_1 is NP's times N σ²/‖δa‖²."""
    network, params, x, t = problem = setting(seed, widths, conv)
    eps = split(network, math.sqrt(sigma2) * np.random.default_rng(seed).normal(size=(1, sum(network.units))))
    clean, noisy = (joined(network, forward(network, params, x, e)) for e in (None, [e[0] for e in eps]))
    norm2 = np.sum((noisy - clean) ** 2)
    scale = amplitude(problem, 1 + np.abs(noisy - clean).max(), norm2) * (1 + 1 / math.sqrt(norm2))
    by_np, anp = (run(rule, problem, [eps], sigma2) for rule in ("np", "anp"))
    assert_close(by_np.dW[0] * sum(network.units) * sigma2 / norm2, anp.dW[0], scale)


# Claim 4, Appendix A and §2.2

def cubature(n, gaussian):
    """Points (S, n) and weights: all sign vectors, or Gauss-Hermite's rule, exact up to degree 7 in every variable."""
    if not gaussian:
        return signs(n), np.full(2**n, 0.5**n)
    z, w = np.polynomial.hermite_e.hermegauss(4)
    return np.array(list(product(z, repeat=n))), np.prod(list(product(w / w.sum(), repeat=n)), axis=1)


@given(seed=SEEDS, widths=WIDTHS)
def test_weights_correlate_the_noise_that_passes_through_them(seed, widths):
    """cov(W R ε) = σ² W R Rᵀ Wᵀ for noise in one layer, and Σ_m J_lm J_lmᵀ σ² for noise in all: exact over all sign vectors."""
    network, params, x, t = problem = setting(seed, widths, activation="identity")
    J, sigma = complex_step(problem)[0], 0.5
    s = signs(sum(network.units))
    eps = [e[:, 0] for e in split(network, sigma * s)]
    x = np.repeat(x, len(s), axis=0)
    a, ends = forward(network, params, x).a, np.cumsum(network.units)

    def covariance(l, noise):
        da = forward(network, params, x, noise).a[l] - a[l]
        return da.T @ da / len(s)

    for l, (W, R, b, e) in enumerate(zip(params.W, params.R, ends - network.units, ends)):
        scale = 10 * np.abs(J[b:e]).sum() ** 2 * (1 + np.abs(a[l]).max())
        assert_close(covariance(l, eps), sigma**2 * J[b:e] @ J[b:e].T, scale)
        if l > 0:
            alone = [e if m == l - 1 else np.zeros_like(e) for m, e in enumerate(eps)]
            assert_close(covariance(l, alone), sigma**2 * W @ R @ R.T @ W.T, scale)


@pytest.mark.parametrize("gaussian", [True, False], ids=["gaussian", "signs"])
@settings(max_examples=5)
@given(seed=SEEDS, widths=st.sampled_from([[], [1], [2], [1, 1]]), sigma=st.floats(0.1, 1))
def test_covariance_of_np_is_twice_sgds_and_all_layers_noise(gaussian, seed, widths, sigma):
    """The formula quoted in §2.2, exact for a linear network: of one sample drawn from x,

    C^np = 2 C^sgd + m mᵀ + ⟨Σ_{m=1}^L ‖g_m‖² I ⊗ x* x*ᵀ⟩ δ_kl + O(σ²), m the mean update; signs lose 2 ⟨diag(g²) ⊗ x* x*ᵀ⟩.
    The sum runs over all L layers, as all noise is in δL (the text stops at k), and m mᵀ is there because C is centred: the
    second moments double, Isserlis, without it. NP's mean is exactly SGD's, and the O(σ²) is known (second_moment).
    """
    network, params, xs, ts = setting(seed, widths, activation="identity", bias=False, B=2)
    points, weights = cubature(sum(network.units), gaussian)
    mean, moment, sgd, sgd_moment, rest, scale = 0, 0, 0, 0, 0, 0
    for b in range(len(xs)):
        problem = network, params, xs[b : b + 1], ts[b : b + 1]
        u = np.array([flat(rules.np_update(*problem, [split(network, sigma * p[None])], sigma2=sigma**2, loss="mse")) for p in points])
        mean, moment = mean + weights @ u / len(xs), moment + (u.T * weights) @ u / len(xs)
        _, g, A = linear(problem)
        E = block_diag(*[np.kron(np.eye(n), x.T) for n, x in zip(network.units, forward(network, params, problem[2]).x_star)])
        sgd, sgd_moment = sgd + E @ g / len(xs), sgd_moment + E @ np.outer(g, g) @ E.T / len(xs)
        rest = rest + E @ (second_moment(g, A, sigma, gaussian) - 2 * np.outer(g, g)) @ E.T / len(xs)
        scale = max(scale, (u**2).max() * amplitude(problem, smallest=sigma))
    assert_close(mean, sgd, scale)
    C_np, C_sgd = moment - np.outer(mean, mean), sgd_moment - np.outer(sgd, sgd)
    assert_close(C_np, 2 * C_sgd + np.outer(sgd, sgd) + rest, scale)


# Claim 7, §2.2's decorrelation

@given(seed=SEEDS, M=st.integers(1, 7), n=st.integers(1, 5), alpha=st.floats(0.001, 0.5))
def test_one_step_of_decorrelation_acts_on_the_second_moment_from_both_sides(seed, M, n, alpha):
    """x* -> (I - αO) x*, so C -> (I - αO) C (I - αO) = C - α (OC + CO) + α² OCO, O = C off the diagonal. R need not be square to I."""
    rng = np.random.default_rng(seed)
    x, R = rng.normal(size=(M, n)), np.eye(n) + 0.3 * rng.normal(size=(n, n))
    x_star = x @ R.T
    C = x_star.T @ x_star / M
    step = np.eye(n) - alpha * (C - np.diag(np.diag(C)))
    update_decorrelation(R, x_star, alpha)
    after = x @ R.T
    size = np.eye(n) + np.abs(C)
    assert_close(after.T @ after / M, step @ C @ step, np.sum(size @ size @ size) * (1 + np.abs(x).max() ** 2 * np.sum(R**2)))


@given(seed=SEEDS, n=st.integers(1, 5))
def test_decorrelation_rests_where_the_second_moment_is_diagonal(seed, n):
    """R stays iff offdiag(C) R = 0, for an invertible R iff C is diagonal: there by the eigenvectors of C, and in the end from I."""
    rng = np.random.default_rng(seed)
    E = rng.normal(size=(n, n))  # x / √n is orthogonal but for half of E's direction: C has eigenvalues in [1/4, 9/4]
    x = math.sqrt(n) * (np.linalg.qr(rng.normal(size=(n, n)))[0] + E / np.linalg.norm(E, 2) / 2)
    V = np.linalg.eigh(x.T @ x)[1]
    R = np.diag(rng.uniform(1, 2, n)) @ V.T
    before = R.copy()
    update_decorrelation(R, x @ R.T, 0.1)
    assert_close(R, before, 10 * np.sum(x**2))
    R = np.eye(n)
    for _ in range(500):  # at D = diag C a small c_ij falls by the factor 1 - α (d_i + d_j) < 0.9
        update_decorrelation(R, x @ R.T, 0.2)
    C = R @ x.T @ x @ R.T / n
    assert_close(C, np.diag(np.diag(C)), 10 * np.sum(x**2))
    assert np.linalg.matrix_rank(R) == n


@pytest.mark.parametrize("c", [0.7, -0.4])
def test_correlation_falls_at_the_rate_of_theory(c):
    """Two inputs of mean square v and product c: dc/dn = -2α v c, dv/dn = -2α c², so v² - c² = p² stays and c = p / sinh(2α p n + s_0).

    The 1/α steps per unit of αn are Euler's for that equation, so the trajectory tends to it as α, α², ...; late, c ~ exp(-2α p n).
    """
    v = 1.0
    p = math.sqrt(v**2 - c**2)
    x = math.sqrt(2) * np.linalg.cholesky(np.array([[v, c], [c, v]])).T  # xᵀx / 2 is the second moment

    def moment(alpha, time):
        R = np.eye(2)
        for _ in range(round(time / alpha)):
            update_decorrelation(R, x @ R.T, alpha)
        return (x @ R.T).T @ (x @ R.T) / 2

    first = limit(lambda alpha: (moment(alpha, alpha) - moment(alpha, 0)) / alpha, 2.0**-5, (1,))
    assert_close(first, -2 * np.array([[c * c, v * c], [v * c, c * c]]), 2.0**5)
    for time in (0.5, 2, 4):
        found = limit(lambda alpha: moment(alpha, time), 2.0**-5, (1, 2, 3, 4, 5))
        phase = 2 * p * time + math.asinh(p / abs(c))
        off, on = math.copysign(p / math.sinh(phase), c), p / math.tanh(phase)
        assert np.abs(found - [[on, off], [off, on]]).max() < 1e-8 * abs(off)


@CONVS
@given(seed=SEEDS, widths=WIDTHS)
def test_decorrelation_never_changes_what_a_network_can_represent(conv, seed, widths):
    """W R acts as one matrix: (W, R) is (W R, I), and for any invertible R' the weights W R R'⁻¹ give the same function."""
    network, params, x, t = problem = setting(seed, widths, conv, B=3)
    y, moved = forward(network, params, x).y, [R.copy() for R in params.R]
    for R, x_star in zip(moved, forward(network, params, x).x_star):
        update_decorrelation(R, x_star, 0.01)
    W = tuple((w.reshape(len(w), -1) @ R @ np.linalg.inv(S)).reshape(w.shape) for w, R, S in zip(params.W, params.R, moved))
    scale = amplitude(problem, math.prod(np.linalg.cond(S) * (1 + np.abs(w).sum()) for w, S in zip(params.W, moved)))
    assert_close(forward(network, without_decorrelation(params), x).y, y, scale)
    assert_close(forward(network, Params(W, params.b, tuple(moved)), x).y, y, scale)


# Claim 8, Eq. 1

@CONVS
@pytest.mark.parametrize("which_loss", LOSSES)
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "tanh", "identity"])
@few
@given(seed=SEEDS, widths=WIDTHS, bias=st.booleans())
def test_bp_is_the_derivative_by_complex_step_and_central_differences(conv, which_loss, activation, seed, widths, bias):
    """Of every weight and bias, through every R: Im L(w + ih)/h, and (L(w + h) - L(w - h))/2h extrapolated in h², h⁴; no kinks near."""
    network, params, x, t = problem = setting(seed, widths, conv, activation, 2, bias)
    if "relu" in activation:
        assume(min(np.abs(a).min() for a in forward(network, params, x).a[:-1] or [np.ones(1)]) > 0.02)
    update, h = rules.bp_update(*problem, loss=which_loss), 1e-30
    arrays = [a for a in (*params.W, *params.b) if a is not None]
    wide = widen(params)
    values = lambda p, dtype: loss(which_loss, forward(network, p, x.astype(dtype)).y, t).mean()  # noqa: E731
    stepped, differences = [], []
    for a, z in zip(arrays, [a for a in (*wide.W, *wide.b) if a is not None]):
        for i in np.ndindex(a.shape):
            z[i] += 1j * h
            stepped.append(values(wide, complex).imag / h)
            z[i] = old = a[i]

            def central(h):
                a[i] = old + h
                above = values(params, float)
                a[i] = old - h
                difference = (above - values(params, float)) / (2 * h)
                a[i] = old
                return difference

            differences.append(limit(central, 2.0**-10, (2, 4)))
    assert_close(flat(update), stepped, amplitude(problem))
    assert_close(flat(update), differences, amplitude(problem, smallest=2.0**-12))


# Claim 9

def noise_for(problem, rng, K):
    """Between 0.2 and 0.7 in size, so that no norm is near zero; numbers that float32 has too."""
    network, _, x, _ = problem
    shapes = [(K, len(x), *s) for s in network.shapes[1:]]
    return [(rng.choice([-1, 1], s) * rng.uniform(0.2, 0.7, s)).astype("float32").astype(float) for s in shapes]


def rounding_scale(problem, eps):
    return amplitude(problem, 10, min(0.25, *[np.sum(e**2, axis=tuple(range(2, e.ndim))).min() for e in eps]))


@CONVS
@NOISY
@given(seed=SEEDS, widths=WIDTHS, K=st.integers(1, 5), B=st.integers(1, 5), data=st.data())
def test_no_split_of_a_batch_and_no_order_of_noise_samples_changes_an_update(rule, conv, seed, widths, K, B, data):
    """Every sample has its own error, and an update is their mean: parts of a batch count by their size, noise in any order."""
    network, params, x, t = problem = setting(seed, widths, conv, B=B)
    eps = noise_for(problem, np.random.default_rng(seed), K)
    whole, scale = flat(run(rule, problem, [eps], 0.25)), rounding_scale(problem, eps)
    rows, order = data.draw(st.permutations(range(B))), data.draw(st.permutations(range(K)))
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, B - 1)))), B] if B > 1 else [0, 1]
    k = data.draw(st.integers(0, K - 1))
    total = 0
    for part in (rows[a:b] for a, b in zip(cuts, cuts[1:])):
        noise = [e[order][:, part] for e in eps]
        groups = [[e[:k] for e in noise], [e[k:] for e in noise]] if k else [noise]
        total = total + len(part) / B * flat(run(rule, (network, params, x[part], t[part]), groups, 0.25))
    assert_close(total, whole, scale)


@CONVS
@pytest.mark.parametrize("rule", ["bp", "np", "inp", "anp"])
@given(seed=SEEDS, widths=WIDTHS, K=st.integers(1, 3), which_loss=st.sampled_from(LOSSES))
def test_float32_gives_the_update_of_float64(rule, conv, seed, widths, K, which_loss):
    """On the same numbers, to float32's rounding, and in float32."""
    network, params, x, t = setting(seed, widths, conv, B=2)
    narrow = network, Params(*(tuple(a.astype("float32") for a in group) for group in (params.W, params.b, params.R))), \
        x.astype("float32"), t.astype("float32")
    wide = network, Params(*(tuple(a.astype(float) for a in group) for group in (narrow[1].W, narrow[1].b, narrow[1].R))), \
        narrow[2].astype(float), t
    eps = noise_for(wide, np.random.default_rng(seed), K)
    if rule == "bp":
        results = [rules.bp_update(*p, loss=which_loss) for p in (narrow, wide)]
    else:
        results = [run(rule, p, [[e.astype(p[2].dtype) for e in eps]], 0.25, loss=which_loss) for p in (narrow, wide)]
    assert all(d.dtype == np.float32 for d in (*results[0].dW, *results[0].db))
    assert_close(flat(results[0]), flat(results[1]), rounding_scale(wide, eps), c=2, eps=EPS * 2**29)
