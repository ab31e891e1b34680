"""The batched rules against the literal equations; what the equations claim is in test_claims.py."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Literal, assert_close, random_batch, random_network, random_noise, random_params

from npref import Conv, Dense, Network, Params, equations, execution, forward, rules
from npref.config import Config
from npref.functions import LOSSES, loss, loss_gradient
from npref.step import compute_update

seeds = st.integers(0, 2**32 - 1)
CONV = pytest.mark.parametrize("conv", [False, True], ids=["dense", "conv"])


def setting(seed, conv, **options):
    rng = np.random.default_rng(seed)
    network = random_network(rng, conv, **options)
    params = random_params(rng, network, decorrelate=bool(rng.integers(2)))
    B, K = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    return rng, network, params, *random_batch(rng, network, B), K


def literal_update(rule, network, params, x, t, eps, sigma2, which_loss, baseline=None, per_layer=False):
    """ΔW, Δb (matrices) and their scales, averaged over samples and noise samples, one sample at a time by equations.py."""
    net = Literal(network, params)
    L, B = len(net.W), len(x)
    K = 1 if rule == "bp" else len(eps[0])
    dW, db = [np.zeros_like(W) for W in net.W], [np.zeros_like(b) for b in net.b]
    scale_W, scale_b = [np.zeros_like(W) for W in net.W], [np.zeros_like(b) for b in net.b]
    all_dL = np.zeros((K, L, B))

    def add(l, update, scale):
        for total, x_l in ((dW, x_star[l]), (db, np.ones((1, x_star[l].shape[1])))):
            total[l] += update(x_l) / (K * B)
        for total, x_l in ((scale_W, x_star[l]), (scale_b, np.ones((1, x_star[l].shape[1])))):
            total[l] += np.sum(scale(np.abs(x_l))) / (K * B)

    def measure(output, b):
        return loss(which_loss, output.reshape(1, -1), t[b : b + 1])[0]

    for b in range(B):
        x_star, a, out = net.forward(x[b], None if baseline is None else [e[b] for e in baseline])
        clean = measure(out[-1], b)
        if rule == "bp":
            g = net.gradients(loss_gradient(which_loss, out[-1].reshape(1, -1), t[b : b + 1]).T, a)
            for l in range(L):
                add(l, lambda x_l, l=l: equations.bp_update(g[l], x_l), lambda x_l, l=l: np.abs(g[l]) @ x_l.T)
            continue
        for k in range(K):
            for l in range(L):
                noise = [e[k, b] if rule != "inp" or m == l else np.zeros_like(e[k, b]) for m, e in enumerate(eps)]
                _, a_tilde, noisy_out = net.forward(x[b], noise)
                noisy = measure(noisy_out[-1], b)
                dL, size = noisy - clean, abs(noisy) + abs(clean)
                all_dL[k, l, b] = dL
                e = net.columns(eps[l][k, b])
                da = [p - q for p, q in zip(a_tilde, a)]
                if rule == "np":
                    add(l, lambda x_l: equations.np_update(dL, e, sigma2, x_l), lambda x_l: size * np.abs(e) / sigma2 @ x_l.T)
                elif rule == "inp":
                    add(l, lambda x_l: equations.inp_update(net.N[l], dL, e, x_l),
                        lambda x_l: net.N[l] * size * np.abs(e) / np.sum(e**2) @ x_l.T)
                else:
                    N, n2 = sum(net.N), np.sum(da[l] ** 2) if per_layer else sum(np.sum(d**2) for d in da)
                    moved = np.abs(a_tilde[l]) + np.abs(a[l])
                    add(l, lambda x_l: equations.anp_update(N, dL, da, l, x_l, per_layer),
                        lambda x_l: N * size * (np.abs(da[l]) * (1 + np.sqrt(np.sum(moved**2) / n2)) + moved) / n2 @ x_l.T)
    return dW, db, scale_W, scale_b, all_dL


def batched_update(rule, network, params, x, t, eps, sigma2, which_loss, baseline=None, norm="network"):
    if rule == "bp":
        return rules.bp_update(network, params, x, t, loss=which_loss)
    if rule == "np":
        return rules.np_update(network, params, x, t, [eps], sigma2=sigma2, loss=which_loss, baseline=baseline)
    if rule == "inp":
        return rules.inp_update(network, params, x, t, [eps], loss=which_loss)
    return rules.anp_update(network, params, x, t, [eps], loss=which_loss, baseline=baseline, norm=norm)


def assert_agree(update, literal, params, rule):
    dW, db, scale_W, scale_b, dL = literal
    for l, W in enumerate(params.W):
        assert update.dW[l].shape == W.shape
        assert_close(update.dW[l].reshape(len(W), -1), dW[l], scale_W[l])
        if params.b[l] is None:
            assert update.db[l] is None
        else:
            assert_close(update.db[l][:, None], db[l], scale_b[l])
    if rule != "bp":
        assert_close(update.dL, dL if rule == "inp" else dL[:, 0], 10)


@CONV
@pytest.mark.parametrize("rule", ["bp", "np", "inp", "anp"])
@given(seed=seeds, which_loss=st.sampled_from(LOSSES))
def test_rules_are_the_equations(rule, conv, seed, which_loss):
    rng, network, params, x, t, K = setting(seed, conv)
    eps = random_noise(rng, network, K, len(x))
    literal = literal_update(rule, network, params, x, t, eps, 0.25, which_loss)
    assert_agree(batched_update(rule, network, params, x, t, eps, 0.25, which_loss), literal, params, rule)


@CONV
@pytest.mark.parametrize("rule", ["np", "anp"])
@given(seed=seeds)
def test_noisy_baseline_is_the_clean_pass_of_the_equations(rule, conv, seed):
    rng, network, params, x, t, K = setting(seed, conv)
    eps, baseline = random_noise(rng, network, K, len(x)), [e[0] for e in random_noise(rng, network, 1, len(x))]
    literal = literal_update(rule, network, params, x, t, eps, 0.25, "cce", baseline)
    assert_agree(batched_update(rule, network, params, x, t, eps, 0.25, "cce", baseline), literal, params, rule)


@given(seed=seeds)
def test_anp_per_layer_norm(seed):
    rng, network, params, x, t, K = setting(seed, False)
    eps = random_noise(rng, network, K, len(x))
    literal = literal_update("anp", network, params, x, t, eps, 0.25, "cce", per_layer=True)
    assert_agree(batched_update("anp", network, params, x, t, eps, 0.25, "cce", norm="layer"), literal, params, "anp")


@pytest.mark.parametrize("activation", ["relu", "tanh", "step", "sign"])
@pytest.mark.parametrize("rule", ["np", "inp", "anp"])
def test_perturbation_rules_with_every_activation(rule, activation):
    rng, network, params, x, t, K = setting(5, True, activation=activation, depth=2)
    eps = random_noise(rng, network, K, len(x))
    literal = literal_update(rule, network, params, x, t, eps, 0.25, "cce")
    assert_agree(batched_update(rule, network, params, x, t, eps, 0.25, "cce"), literal, params, rule)


@pytest.mark.parametrize("rule", ["np", "inp", "anp"])
def test_groups_of_noise_add_up(rule):
    rng, network, params, x, t, _ = setting(11, True)
    eps = random_noise(rng, network, 5, len(x))

    def run(groups):
        options = dict(sigma2=0.25) if rule == "np" else {}
        return getattr(rules, f"{rule}_update")(network, params, x, t, groups, **options)

    whole, parts = run([eps]), run([[e[:2] for e in eps], [e[2:3] for e in eps], [e[3:] for e in eps]])
    for d, e in zip(whole.dW, parts.dW):
        assert_close(d, e, 10 * np.abs(d).max(), c=1000)
    assert_close(whole.dL, parts.dL, 10)
    assert whole.dL.shape == ((5, len(network.layers), len(x)) if rule == "inp" else (5, len(x)))


def test_many_rows_use_one_product_and_few_rows_do_not_change_the_result():
    """A = W R is formed when a layer sees more rows than it has units; both ways give the same numbers."""
    rng, network, params, x, t, _ = setting(3, False, depth=2)
    params = random_params(rng, network, decorrelate=True)
    x, t = random_batch(rng, network, 12)
    eps = random_noise(rng, network, 3, 12)
    whole = rules.anp_update(network, params, x, t, [eps])
    parts = [rules.anp_update(network, params, x[b : b + 1], t[b : b + 1], [[e[:, b : b + 1] for e in eps]]) for b in range(12)]
    for l in range(len(network.layers)):
        assert_close(whole.dW[l], sum(p.dW[l] for p in parts) / 12, 100 * np.abs(whole.dW[l]).max(), c=1000)


def test_a_perturbation_that_is_rounded_away_changes_nothing():
    rng, network, params, x, t, _ = setting(3, False, depth=1)
    update = rules.anp_update(network, params, x, t, [random_noise(rng, network, 1, len(x), sigma=1e-30)])
    assert all((d == 0).all() for d in update.dW)


def test_every_sample_and_unit_has_its_own_noise_and_loss_difference():
    config = Config(method="np", arch="fc3", dtype="float64", sigma2=0.01)
    network = Network((6,), (Dense(5), Dense(4), Dense(3, activation="identity")))
    rng = np.random.default_rng(0)
    params, x = random_params(rng, network, decorrelate=False), np.ones((4, 6))
    t = np.eye(3)[[0, 0, 0, 0]]  # four equal samples: whatever differs between them is noise
    update = compute_update(config, network, params, x, t, step=0)
    assert len(np.unique(update.dL)) == 4
    again = compute_update(config, network, params, x, t, step=1)
    assert not np.intersect1d(update.dL, again.dL).size


def test_errors_of_input():
    rng, network, params, x, t, _ = setting(1, False, depth=1)
    eps = random_noise(rng, network, 2, len(x))
    with pytest.raises(ValueError, match="x must be"):
        rules.bp_update(network, params, x[:, 1:], t)
    with pytest.raises(ValueError, match=r"x must be \(B >= 1"):
        rules.bp_update(network, params, x[:0], t[:0])
    whole = Params(*(tuple(None if a is None else a.astype(int) for a in p) for p in (params.W, params.b, params.R)))
    with pytest.raises(TypeError, match="must be float32 or float64, got int64"):
        rules.bp_update(network, whole, x.astype(int), t)
    with pytest.raises(ValueError, match="sigma2 must be positive and finite, got 0"):
        rules.np_update(network, params, x, t, [eps], sigma2=0)
    with pytest.raises(ValueError, match="sigma2 must be finite, got inf"):
        rules.np_update(network, params, x, t, [eps], sigma2=np.inf)
    with pytest.raises(ValueError, match="one-hot"):
        rules.bp_update(network, params, x, t.argmax(1))
    with pytest.raises(TypeError, match="one dtype"):
        rules.bp_update(network, params, x.astype(np.float32), t)
    with pytest.raises(ValueError, match="one array per layer"):
        rules.inp_update(network, params, x, t, [eps[:1]])
    with pytest.raises(ValueError, match="noise of layer 2"):
        rules.anp_update(network, params, x, t, [(eps[0], eps[1][:, :, :-1])])
    with pytest.raises(TypeError, match="noise of layer 1"):
        rules.anp_update(network, params, x, t, [[e.astype(np.float32) for e in eps]])
    with pytest.raises(ValueError, match="no group"):
        rules.anp_update(network, params, x, t, [])
    with pytest.raises(TypeError, match=r"pass \[eps\]"):
        rules.anp_update(network, params, x, t, eps[0])
    with pytest.raises(ValueError, match="unknown norm"):
        rules.anp_update(network, params, x, t, [eps], norm="sample")
    with pytest.raises(ValueError, match="unknown method"):
        rules.split_method("xnp")
    with pytest.raises(ValueError, match="unknown loss"):
        rules.bp_update(network, params, x, t, loss="hinge")


def test_bp_refuses_an_activation_without_a_derivative():
    rng, network, params, x, t, _ = setting(1, False, activation="step", depth=1)
    with pytest.raises(ValueError, match="needs a derivative, which the step activation does not have"):
        rules.bp_update(network, params, x, t)


def test_group_size_respects_the_budget():
    network = Network((8,), (Dense(100), Dense(10, activation="identity")))
    assert rules.group_size(network, "anp", 50, 8, 7, budget=10**9) == 7
    assert rules.group_size(network, "anp", 50, 8, 7, budget=1) == 1
    small, large = (rules.group_size(network, "anp", 50, 8, 10**6, budget=b) for b in (10**7, 2 * 10**7))
    assert 1 < small < large
    assert rules.group_size(network, "inp", 50, 8, 10**6, budget=10**7) < small


def test_split_method():
    assert {m: rules.split_method(m) for m in rules.METHODS} == {
        "bp": ("bp", False), "np": ("np", False), "inp": ("inp", False), "anp": ("anp", False),
        "dbp": ("bp", True), "dnp": ("np", True), "dinp": ("inp", True), "danp": ("anp", True)}


@pytest.mark.parametrize("rule", ["bp", "np", "inp", "anp"])
def test_the_output_may_have_an_activation_of_its_own(rule):
    rng = np.random.default_rng(4)
    network = Network((5,), (Dense(4, activation="tanh"), Dense(3, slope=0.4)))
    params, (x, t) = random_params(rng, network), random_batch(rng, network, 3)
    eps = random_noise(rng, network, 2, 3)
    literal = literal_update(rule, network, params, x, t, eps, 0.25, "mse")
    update = batched_update(rule, network, params, x, t, eps, 0.25, "mse")
    assert_agree(update, literal, params, rule)
    assert (update.trace.a[-1] < 0).any()  # else its slope would not show


@CONV
@pytest.mark.parametrize("rule", ["bp", "np", "inp", "anp"])
def test_losses_and_dtypes_of_an_update(rule, conv):
    """losses are the clean pass's; whatever has the parameters' kind has their dtype, and losses are float64."""
    rng, network, params, x, t, _ = setting(7, conv, depth=1, bias=True)
    for dtype in (np.float32, np.float64):
        cast = Params(*(tuple(None if a is None else a.astype(dtype) for a in p) for p in (params.W, params.b, params.R)))
        update = batched_update(rule, network, cast, x.astype(dtype), t, random_noise(rng, network, 2, len(x), dtype=dtype), 0.25, "cce")
        assert {a.dtype for a in (*update.dW, *update.db, *update.trace.a)} == {np.dtype(dtype)}
        assert np.array_equal(update.losses, loss("cce", forward(network, cast, x.astype(dtype)).y, t))
        assert update.losses.dtype == np.float64 and (rule == "bp" or update.dL.dtype == np.float64)


def test_noise_whose_square_vanishes_changes_nothing():
    rng, network, params, x, t, _ = setting(3, False, depth=1)
    update = rules.inp_update(network, params, x, t, [random_noise(rng, network, 1, len(x), sigma=1e-200)])
    assert all((d == 0).all() for d in update.dW)


@pytest.mark.parametrize("rule", ["inp", "anp"])
def test_noise_whose_square_overflows_is_no_update_of_zero(rule):
    rng, network, params, x, t, _ = setting(3, False, depth=1)
    with np.errstate(all="ignore"):
        update = getattr(rules, f"{rule}_update")(network, params, x, t, [random_noise(rng, network, 1, len(x), sigma=1e200)])
    assert all(np.isnan(d).all() for d in update.dW)


def test_the_product_with_R_is_formed_when_more_rows_than_units_have_come():
    """W R overflows here and W (R x) does not, which tells the two apart: 2 units, so the third row changes the form."""
    params = Params((np.full((2, 1), 1e200),), (None,), (np.full((1, 1), 1e200),))
    multiply, rows = rules._multiplier(params, [None]), np.full((1, 1), 1e-200)
    with np.errstate(over="ignore"):
        results = [multiply(0, rows)[0, 0], multiply(0, rows)[0, 0], multiply(0, rows)[0, 0]]
    assert np.isfinite(results[:2]).all() and np.isinf(results[2])


def test_group_size_by_hand():
    """Bytes of one noise sample: (3 ΣN + passes (patches + 3 max N)) numbers a batch row, and 4 float64 an output for the loss."""
    dense = Network((8,), (Dense(100), Dense(20), Dense(10)))  # no patches: a dense layer's rows are its input
    conv = Network((1, 6, 6), (Conv(2, 3), Conv(3, 2), Dense(10)))  # (2, 4, 4), then (3, 3, 3): 9 patches of 8 numbers
    one, two = Network((8,), (Dense(10),)), Network((8,), (Dense(30), Dense(10)))
    for network, rule, bytes_a_row in ((dense, "np", (3 * 130 + 300) * 4 + 320), (conv, "anp", (3 * 69 + 72 + 96) * 4 + 320),
                                       (dense, "inp", (3 * 130 + 3 * 300) * 4 + 3 * 320), (one, "np", (30 + 30) * 4 + 320),
                                       (two, "np", (3 * 40 + 90) * 4 + 320)):
        for samples in (2, 3):
            budget = samples * 5 * bytes_a_row
            assert rules.group_size(network, rule, 5, 4, 9, budget=budget) == samples
            assert rules.group_size(network, rule, 5, 4, 9, budget=budget - 1) == samples - 1
    assert type(rules.group_size(dense, "np", 5, 4, 9, budget=10**5)) is int


@CONV
@pytest.mark.parametrize("rule", ["np", "inp", "anp"])
def test_a_group_keeps_within_its_budget(rule, conv):
    """What a rule takes at its peak, the noise included, against what group_size allowed for it; and not by a wide margin."""
    layers = (Conv(6, 1), Conv(4, 3, 1, 1)) if conv else (Dense(300), Dense(200))
    network = Network((2, 12, 12) if conv else (8,), (*layers, Dense(10, activation="identity")))
    rng, budget = np.random.default_rng(0), 2 * 10**7
    params, (x, t) = random_params(rng, network), random_batch(rng, network, 16)
    k = rules.group_size(network, rule, 16, 8, 10**6, budget=budget)
    options = dict(sigma2=1.0) if rule == "np" else {}
    tracemalloc.start()
    try:
        groups = ([rng.standard_normal((k, 16, *shape)) for shape in network.shapes[1:]] for _ in range(1))
        getattr(rules, f"{rule}_update")(network, params, x, t, groups, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert k > 3 and 0.25 * budget < peak < budget, (k, peak)


def test_noise_of_another_backend_is_refused(fake_cupy):
    rng, network, params, x, t, _ = setting(1, False, depth=1)
    eps = random_noise(rng, network, 2, len(x))
    with pytest.raises(TypeError, match="mixed"):
        rules.np_update(network, params, x, t, [(eps[0], fake_cupy.asarray(eps[1]))], sigma2=0.25)


def test_messages_about_noise_say_what_was_expected():
    rng = np.random.default_rng(0)
    network = Network((1, 4, 4), (Conv(2, 3), Dense(5)))
    params, (x, t) = random_params(rng, network), random_batch(rng, network, 3)
    eps = random_noise(rng, network, 1, 3)
    for bad, words in (([(eps[0][..., :-1], eps[1])], r"noise of layer 1 must be \(1, 3, 2, 2, 2\), got \(1, 3, 2, 2, 1\)"),
                       ([[e[:0] for e in eps]], r"no noise sample: a group's arrays must be \(k >= 1, B, \*shape\), got \(0, 3, 2"),
                       ([[eps[0], eps[1][:0]]], "noise of layer 2 has no noise sample"),
                       ([(eps[0], np.concatenate([eps[1]] * 2))], r"noise of layer 2 must be \(1, 3, 5\), got \(2, 3, 5\)"),
                       ([eps[:1]], r"one array per layer, 2, got 1; an iterable of groups is expected, pass \[eps\]")):
        with pytest.raises(ValueError, match=words):
            rules.anp_update(network, params, x, t, bad)
    with pytest.raises(TypeError, match="a group of noise must be a list or tuple of arrays, got NoneType; .* pass \\[eps\\]"):
        rules.anp_update(network, params, x, t, [None])
    for l, bad in enumerate(((None, eps[1]), (eps[0], None)), 1):
        with pytest.raises(TypeError, match=f"noise of layer {l} is None: expected an array for each layer"):
            rules.anp_update(network, params, x, t, [bad])
    words = r"^noise of layer 1 must be \(k, 3, 2, 2, 2\), for k noise samples, got \(3, 2, 2, 2\); .* eps_l\[None\]$"
    with pytest.raises(ValueError, match=words):
        rules.anp_update(network, params, x, t, [[e[0] for e in eps]])
    for noise in None, eps[0], 3:
        with pytest.raises(TypeError, match=rf"noise must be an iterable of groups, .* pass \[eps\], not {type(noise).__name__}$"):
            rules.anp_update(network, params, x, t, noise)
    for sigma2 in None, "x", "1e-6":
        with pytest.raises(TypeError, match=f"sigma2 must be a number, got {sigma2!r}"):
            rules.np_update(network, params, x, t, [eps], sigma2=sigma2)
    for baseline, words in ((True, "^baseline must be a list or tuple of arrays, got bool$"),
                            (eps, r"^baseline of layer 1 must be \(3, 2, 2, 2\), got \(1, 3, 2, 2, 2\)$")):
        with pytest.raises((TypeError, ValueError), match=words):
            rules.np_update(network, params, x, t, [eps], sigma2=1, baseline=baseline)
    with pytest.raises(ValueError, match=r"^baseline of layer 2 must be \(3, 5\), got \(1, 5\)"):
        rules.anp_update(network, params, x, t, [eps], baseline=(eps[0][0], eps[1][0, :1]))
    with pytest.raises(ValueError, match="unknown method 'xnp': expected one of bp, np, inp, anp, dbp"):
        rules.split_method("xnp")


@pytest.mark.parametrize("method", rules.METHODS)
@pytest.mark.parametrize("layers", [(Conv(3, 2, padding=1), Conv(4, 3, 2), Dense(5)), (Dense(6), Dense(7, activation="tanh"), Dense(5))],
                         ids=["conv", "dense"])
def test_no_result_depends_on_the_blocks(method, layers, monkeypatch):
    """Samples one by one, as if a cache held no more, on two threads: the very numbers of one block."""
    rng, network = np.random.default_rng(0), Network((2, 6, 6), layers)
    params, (x, t), eps = random_params(rng, network), random_batch(rng, network, 7), random_noise(rng, network, 3, 7)
    if not method.startswith("d"):
        params = Params(params.W, params.b, (None,) * len(layers))

    def update():
        match rules.split_method(method)[0]:
            case "bp":
                return rules.bp_update(network, params, x, t)
            case "np":
                return rules.np_update(network, params, x, t, [eps], sigma2=0.25)
            case "inp":
                return rules.inp_update(network, params, x, t, [eps])
            case "anp":
                return rules.anp_update(network, params, x, t, [eps])

    whole = update()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.setattr(execution, "CACHE_BLOCK", 1)
    parts = update()
    for a, b in zip((*whole.dW, whole.losses, *whole.trace.x, *(() if whole.dL is None else (whole.dL,))),
                    (*parts.dW, parts.losses, *parts.trace.x, *(() if parts.dL is None else (parts.dL,))), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_group_has_one_k():
    rng, network = np.random.default_rng(0), Network((4,), (Dense(3), Dense(2)))
    params, (x, t), eps = random_params(rng, network), random_batch(rng, network, 5), random_noise(rng, network, 2, 5)
    with pytest.raises(ValueError, match=r"noise of layer 2 must be \(2, 5, 2\), got \(1, 5, 2\)"):
        rules.np_update(network, params, x, t, [(eps[0], eps[1][:1])], sigma2=0.25)
    with pytest.raises(ValueError, match="one target vector a sample"):
        rules.np_update(network, params, x, t[:4], [eps], sigma2=0.25)
