from dataclasses import replace
from functools import reduce
from types import SimpleNamespace

import numpy as np
import pytest
from claims import run, setting, signs
from claims import split as layers_of
from hypothesis import given
from hypothesis import strategies as st
from reference import EPS, assert_close

from npref import Update, bp_update, rules, split_method, to_host
from npref.alignment import add_estimate, angle, angles, bias_and_variance, running_means
from npref.config import Config
from npref.step import compute_update


@given(seed=st.integers(0, 2**32 - 1), degrees=st.floats(0, 180), shape=st.sampled_from([(2,), (3, 4), (2, 3, 1, 2)]))
def test_a_known_angle_is_found_whatever_the_lengths(seed, degrees, shape):
    """cos θ u + sin θ v for orthonormal u, v lies at θ from u, however long or short the two are."""
    rng = np.random.default_rng(seed)
    u, v = np.linalg.qr(rng.normal(size=(np.prod(shape), 2)))[0].T.reshape(2, *shape)
    turned = np.cos(np.radians(degrees)) * u + np.sin(np.radians(degrees)) * v
    lengths = 10.0 ** rng.uniform(-200, 200, 2)
    assert_close(angle(lengths[0] * turned, lengths[1] * u), degrees, 180)


def test_small_angles_are_not_lost_in_a_cosine():
    assert np.isclose(angle(np.array([1, 1e-12]), np.array([1.0, 0])), np.degrees(1e-12), rtol=4 * EPS, atol=0)


def test_a_zero_update_is_at_right_angles():
    assert angle(np.zeros(3), np.ones(3)) == pytest.approx(90, abs=1e-13)
    assert angle(np.zeros(3), np.zeros(3)) == 90 and np.isnan(angle(np.array([np.nan, 0]), np.ones(2)))
    assert isinstance(angle(np.zeros(3), np.ones(3)), float)


def test_float32_gives_float64_and_shapes_must_agree():
    assert angle(np.ones(3, np.float32), np.ones(3, np.float32)).dtype == np.float64
    with pytest.raises(ValueError, match="one shape"):
        angle(np.ones((3, 2)), np.ones((2, 3)))


def test_on_the_stand_in(fake_cupy):
    u, v = np.array([[1.0, 2]]), np.array([[2.0, 1]])
    assert to_host(angle(fake_cupy.asarray(u), fake_cupy.asarray(v))) == angle(u, v)


def test_every_layer_has_its_angle():
    g = [np.array([[1.0, 0]]), np.array([3.0, 4]), np.array([1.0, 1])]
    u = [np.array([[0.0, 5]]), np.array([-6.0, -8]), np.array([1.0, 0])]
    found = angles(u, g)
    assert found.dtype == np.float64 and np.allclose(found, [90, 180, 45], rtol=1e-14)
    assert np.allclose(angles([-a for a in u], g), 180 - found, rtol=1e-13)
    for wrong in (u[:2], [u[0], u[2], u[1][:1]]):
        with pytest.raises(ValueError, match="the same layers"):
            angles(wrong, g)


def scenario(method, K=12, dtype="float64"):
    """A Config of K noise samples with a small problem for it: R is I unless the method decorrelates."""
    network, params, x, t = setting(2, [4, 3], conv=1, B=3, out=4)
    if not split_method(method)[1]:
        params = replace(params, R=(None,) * len(params.W))
    return Config(method=method, samples=K, dtype=dtype, sigma2=1e-4, seed=5), (network, params, x, t)


@pytest.mark.parametrize("method", ["np", "inp", "anp", "dnp", "dinp", "danp"])
@pytest.mark.parametrize("held", [1, 3, 100])
def test_running_means_are_the_updates_with_the_first_k_samples(method, held, monkeypatch):
    config, problem = scenario(method)
    monkeypatch.setattr(rules, "group_size", lambda *args, **kwargs: held)  # whatever the division into groups
    asked = []

    def update(samples):
        asked.append(samples)
        return compute_update(config, *problem, 7, samples)

    means = dict(running_means(update, [1, 5, 12]))
    assert asked == [range(0, 1), range(1, 5), range(5, 12)]  # 12 noise samples in all
    for K, mean in means.items():
        whole = compute_update(replace(config, samples=K), *problem, 7)
        for u, v in zip(mean, whole.dW):
            assert u.dtype == np.float64 and np.allclose(u, v, rtol=1e-10, atol=1e-10 * np.abs(v).max())
    other = compute_update(config, *problem, 8).dW
    assert not np.allclose(other[0], means[12][0], rtol=0.01)


@pytest.mark.parametrize("samples", [[], [0, 1], [2, 1], [1, 1]])
def test_running_means_refuse_samples_that_do_not_grow(samples):
    with pytest.raises(ValueError, match="increasing"):
        next(running_means(None, samples))


@given(seed=st.integers(0, 2**32 - 1), R=st.integers(2, 9), mean=st.sampled_from([0, 1, 1e6]))
def test_the_streamed_split_is_the_direct_one(seed, R, mean):
    rng = np.random.default_rng(seed)
    shapes = [(3, 2), (4,), (2, 1, 2, 2)]
    u = [[mean + rng.normal(size=s) for s in shapes] for _ in range(R)]
    g = [mean + rng.normal(size=s) for s in shapes]
    found = bias_and_variance(reduce(add_estimate, u, None), g)
    for l, g_l in enumerate(g):
        all_u = np.array([u_r[l].ravel() for u_r in u])
        variance = all_u.var(axis=0, ddof=1).sum()
        error2, mean2, norm2 = (np.sum(v**2) for v in (all_u.mean(0) - g_l.ravel(), all_u.mean(0), g_l))
        size = EPS * (1 + mean) * (variance + 1)  # of the rounding of u - mean
        assert np.isclose(found.variance[l], variance, rtol=100 * EPS, atol=100 * size)
        assert np.isclose(found.bias2[l], error2 - variance / R, rtol=100 * EPS, atol=1000 * size)
        assert np.isclose(found.relative_variance[l] * norm2, found.variance[l], rtol=100 * EPS)
        assert np.isclose(found.relative_bias2[l] * norm2, found.bias2[l], rtol=100 * EPS)
        assert np.isclose(found.snr[l] * found.variance[l], mean2 - found.variance[l] / R, rtol=100 * EPS, atol=1e-13 * mean2)


def test_float32_estimates_are_summed_in_float64():
    u = [[np.full(3, v, np.float32)] for v in (1, 1 + 2**-20, 1 - 2**-20)]
    spread = reduce(add_estimate, u, None)
    assert spread.mean[0].dtype == np.float64
    assert np.isclose(bias_and_variance(spread, [np.ones(3, np.float32)]).variance[0], 3 * 2.0**-40, rtol=1e-8)


def test_a_split_needs_two_estimates_of_the_same_layers():
    one = add_estimate(None, [np.ones(2)])
    for spread in (None, one):
        with pytest.raises(ValueError, match="at least 2"):
            bias_and_variance(spread, [np.ones(2)])
    with pytest.raises(ValueError, match="the same layers"):
        add_estimate(one, [np.ones(3)])
    with pytest.raises(TypeError, match="expected a list of arrays, one a layer, got Update; an Update has them as update.dW"):
        add_estimate(None, Update(None, None, None, None, None))
    with pytest.raises(ValueError, match="the same layers"):
        bias_and_variance(add_estimate(one, [np.ones(2)]), [np.ones((1, 2))])


def test_a_layer_without_gradient_has_no_relative_bias():
    found = bias_and_variance(reduce(add_estimate, [[np.ones(2)], [np.zeros(2)]], None), [np.zeros(2)])
    assert found.variance == 1 and found.bias2 == 0 and not np.isfinite(found.relative_variance).any()


def estimates(rule, problem, noise, sigma2=None):
    """One noise sample at a time: the updates of every vector in `noise`, (R, N)."""
    return [run(rule, problem, [layers_of(problem[0], e[None])], sigma2).dW for e in noise]


def test_inp_on_an_orthonormal_design_is_exact():
    """v_i = σ √N e_i, i = 1 ... N, in a single layer of N units: u_i = N g_i e_i x*ᵀ, whose mean is g exactly.

    So Σ‖u_i - g‖² = N(N - 1)‖g‖², variance = N ‖g‖², ‖ū - g‖² = 0, cos of the angle of u_i = |g_i|/‖g‖. Central differences would
    be exact on a quadratic loss; these one-sided ones are off by O(σ).
    """
    problem = setting(4, [], activation="identity", bias=False, out=5)
    sigma, N = 1e-7, 5
    g = bp_update(*problem, loss="mse").dW
    u = [run("inp", problem, [layers_of(problem[0], v[None])], loss="mse").dW for v in sigma * N**0.5 * np.eye(N)]
    found = bias_and_variance(reduce(add_estimate, u, None), g)
    assert np.isclose(found.relative_variance[0], N, rtol=1e-5) and np.isclose(found.relative_bias2[0], -1, rtol=1e-5)
    lengths = np.linalg.norm(g[0], axis=1) / np.linalg.norm(g[0])  # of g_i x*ᵀ
    assert np.allclose([np.cos(np.radians(angles(u_i, g)[0])) for u_i in u], np.where(lengths > 0, lengths, 0), atol=1e-5)
    assert angles(reduce(add_estimate, u, None).mean, g)[0] < 1e-3


@pytest.mark.parametrize("rule", ["np", "inp"])
def test_all_sign_vectors_have_the_variance_of_the_linear_theory(rule):
    """Over all 2^N sign vectors, to lowest order: ⟨u⟩ = g, ⟨‖u_l - g_l‖²⟩ = N_l ‖g‖² - ‖g_l‖² (NP), (N_l - 1)‖g_l‖² (INP), times ‖x*‖²."""
    problem = setting(6, [3], bias=False, out=3)
    sigma = 1e-7
    exact = bp_update(*problem)
    noise = sigma * signs(6)
    spread = reduce(add_estimate, estimates(rule, problem, noise, sigma**2), None)
    found, R = bias_and_variance(spread, exact.dW), len(noise)
    x2 = np.array([np.sum(x**2) for x in exact.trace.x_star])
    g2 = np.array([np.sum(g**2) for g in exact.dW]) / x2
    expected = x2 * (3 * g2.sum() - g2 if rule == "np" else 2 * g2)
    assert np.allclose(found.variance * (R - 1) / R, expected, rtol=1e-4)
    assert np.allclose(found.bias2, -found.variance / R, rtol=1e-3)
    assert np.allclose(found.snr, (x2 * g2 - found.variance / R) / found.variance, rtol=1e-3)


def test_a_flipped_sign_or_a_wrong_scale_is_a_bias():
    problem = setting(6, [3], bias=False, out=3)
    exact = bp_update(*problem).dW
    u = estimates("inp", problem, 1e-7 * signs(6))
    for factor, expected in ((-1, 4), (2, 1), (0.5, 0.25)):
        found = bias_and_variance(reduce(add_estimate, [[factor * a for a in u_r] for u_r in u], None), exact)
        assert np.allclose(found.relative_bias2 + found.relative_variance / len(u), expected, rtol=1e-4)


def test_inp_is_unbiased_and_five_percent_would_show():
    """The mean of 80 bias² of 10 Gaussian estimates each: |z| < 5, a false alarm in 1.7 million; a bias of 5% in every
    component, or in the length alone, is 0.0025 ‖g‖² and lies at z > 8."""
    problem, rng = setting(2, [3], out=3), np.random.default_rng(0)
    exact = bp_update(*problem).dW
    noise = lambda: layers_of(problem[0], 1e-5 * rng.normal(size=(300, 6)))  # noqa: E731
    groups = [[run("inp", problem, [noise()]).dW for _ in range(10)] for _ in range(80)]

    def scores(factor):
        b = np.array([bias_and_variance(reduce(add_estimate, [[factor * a for a in u] for u in group], None), exact).relative_bias2
                      for group in groups])
        return b.mean(axis=0) / (b.std(axis=0, ddof=1) / len(b) ** 0.5)

    assert np.abs(scores(1)).max() < 5 and scores(1.05).min() > 8, (scores(1), scores(1.05))


@pytest.mark.parametrize("conv", [0, 1], ids=["dense", "conv"])
def test_np_and_anp_are_the_same_in_layer_1_up_to_scale(conv):
    """δa_1 = ε_1, so with one sample and one noise sample the two are parallel there, and only there."""
    problem = setting(8, [4, 3], conv=conv, out=4)
    noise = 1e-4 * np.random.default_rng(0).normal(size=(1, sum(problem[0].units)))
    (u,), (v,) = estimates("np", problem, noise, 1e-8), estimates("anp", problem, noise)
    between = angles(u, v)
    assert between[0] < 1e-4 and (between[1:] > 1).all()  # ã_1 - a_1 rounds ε_1 off by eps |a| / σ
    exact = bp_update(*problem).dW
    assert np.isclose(angles(u, exact)[0], angles(v, exact)[0], atol=1e-4)


def test_a_decorrelated_rule_estimates_its_own_networks_gradient_not_the_plain_ones():
    """Through R the gradient is another one; DINP, which is unbiased, tells with many noise samples which of the two is meant."""
    config, (network, params, x, t) = scenario("dinp", K=2000)
    dW = compute_update(replace(config, sigma2=1e-8), network, params, x, t, 0).dW
    plain = replace(params, R=(None,) * len(params.W))
    own, other = (angles(dW, bp_update(network, p, x, t).dW) for p in (params, plain))
    assert (own < 5).all() and (other > 2 * own).all(), (own, other)


def test_means_and_split_on_the_stand_in(fake_cupy):
    rng = np.random.default_rng(0)
    u = [[rng.normal(size=(2, 3)), rng.normal(size=4)] for _ in range(3)]
    g = [rng.normal(size=(2, 3)), rng.normal(size=4)]

    class Fixed:
        def __init__(self, xp):
            self.xp = xp

        def __call__(self, samples):
            return rules.Update(tuple(self.xp.asarray(a) for a in u[samples.start]), None, None, None, None)

    found = []
    for xp in (np, fake_cupy):
        reference = [xp.asarray(a) for a in g]
        means = [mean for _, mean in running_means(Fixed(xp), [1, 2, 3])]
        parts = bias_and_variance(reduce(add_estimate, means, None), reference)
        found.append([angles(means[-1], reference), *vars(parts).values()])
    assert all(type(a) is np.ndarray and np.array_equal(a, b) for a, b in zip(*found))


def test_an_update_in_place_of_its_arrays():
    update = bp_update(*setting(1, (4,)))
    for pair in ((update, update), (update.dW, update), (update, update.dW)):
        with pytest.raises(TypeError, match="expected a list of arrays, one a layer, got Update; an Update has them as update.dW"):
            angles(*pair)
    for lists in ((None,), [[1.0], [2.0]]):
        with pytest.raises(TypeError, match="expected one array a layer, got (NoneType|list, list)$"):
            angles(lists, lists)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_means_are_float64_and_share_no_memory_with_the_updates(dtype):
    updates = [SimpleNamespace(dW=(np.full((2, 3), float(i), dtype=dtype),)) for i in (1, 4)]
    found = [(K, mean[0], mean[0].copy()) for K, mean in running_means(lambda samples: updates[samples.start], [1, 2])]
    spread = add_estimate(None, updates[0].dW)
    for update in updates:
        update.dW[0][...] = 9
    assert [K for K, *_ in found] == [1, 2] and [mean[0, 0] for _, mean, _ in found] == [1, 2.5] and spread.mean[0][0, 0] == 1
    assert all(np.array_equal(mean, copy) for _, mean, copy in found)
    assert {mean.dtype for _, mean, _ in found} == {spread.mean[0].dtype} == {np.dtype("float64")}


def test_a_gradient_whose_square_float32_does_not_hold():
    g = (np.full(4, 1e25, dtype=np.float32),)
    spread = add_estimate(add_estimate(None, (g[0] * np.float32(1.5),)), (g[0] * np.float32(0.5),))
    split = bias_and_variance(spread, g)
    assert split.relative_variance == pytest.approx(0.5, rel=1e-6) and split.relative_bias2 == pytest.approx(-0.25, rel=1e-6)


def test_only_real_arrays_have_an_angle():
    u = np.ones(3)
    for other in (u * 1j, u * (1 + 1j), u.astype(bool), np.array(["a"] * 3), None):
        for pair in ((u, other), (other, u)):
            with pytest.raises(TypeError, match="expected arrays of real numbers, got "):
                angle(*pair)
    with pytest.raises(TypeError, match="expected numpy.ndarray or cupy.ndarray arguments"):
        angle([1.0], [1.0])
    assert angle(np.ones(3, dtype=int), u) == 0
