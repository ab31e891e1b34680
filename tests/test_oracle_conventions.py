"""Conventions, each implemented by itself on dense layers, from its description."""

from dataclasses import replace

import numpy as np
import pytest
from golden import NAMES, SMALL, golden, judged

from npref import oracle
from npref.oracle import checker as checking
from npref.oracle.conventions import CONVENTIONS


def dense_pass(case, weights, biases, eps=None, decorrelate=True):
    """Inputs and pre-activations of every layer, (B, n)."""
    xs, activities, x = [], [], case.x
    for l, (W, b, q) in enumerate(zip(weights, biases, case.layers)):
        x = x @ case.R[l].T if case.R[l] is not None and decorrelate else x
        a = x @ W.T + (0 if b is None else b) + (0 if eps is None else eps[l])
        xs.append(x)
        activities.append(a)
        x = a if q.activation == "identity" else np.where(a > 0, a, q.slope * a)
    return xs, activities


def cross_entropy(y, t):
    y = y - y.max(1, keepdims=True)
    return np.log(np.exp(y).sum(1)) - (t * y).sum(1)


def loss(case, y, mean=False):
    if case.loss == "cce":
        return cross_entropy(y, case.t)
    return ((y - case.t) ** 2).mean(1) if mean or case.loss == "mse-mean" else ((y - case.t) ** 2).sum(1)


def danp_open_source(case):
    """K gradients stacked, then averaged; ΔW = -mean of (clean - noisy) N δa / ‖δa‖², kernels (n_in, n_out); Keras's Adam."""
    xs, clean = dense_pass(case, case.W, case.b)
    dLs, gradients = [], []
    for eps in zip(*case.eps):
        _, noisy = dense_pass(case, case.W, case.b, eps)
        dL = loss(case, clean[-1], mean=True) - loss(case, noisy[-1], mean=True)
        da = [a - b for a, b in zip(clean, noisy)]
        norm2 = sum((d**2).sum(1) for d in da)
        gradients.append([x.T @ (d * (sum(case.network.units) * dL / norm2)[:, None]) / len(x) for x, d in zip(xs, da)])
        dLs.append(dL)
    dW = [np.mean(g, axis=0) for g in zip(*gradients)]
    out = {"dL": np.array(dLs), "dW": dW}
    if case.optimizer != "sgd":
        rate = case.lr * np.sqrt(1 - 0.999) / (1 - 0.9)
        out["after_1/W"] = [W.T - rate * 0.1 * g / (np.sqrt(0.001 * g * g) + 1e-7) for W, g in zip(case.W, dW)]
    return out


def decorbp(case):
    """delta_loss is the loss function's, a batch mean; gradients are summed for weights, averaged for biases, times √N."""
    xs, clean = dense_pass(case, case.W, case.b)
    _, noisy = dense_pass(case, case.W, case.b, [e[0] for e in case.eps])
    delta_loss = loss(case, noisy[-1]).mean() - loss(case, clean[-1]).mean()
    da = [b - a for a, b in zip(clean, noisy)]
    factor = delta_loss * np.sqrt(sum(case.network.units)) / sum((d**2).sum(1) for d in da)[:, None]
    return {"dL": np.full((1, len(case.x)), delta_loss), "dW": [(factor * d).T @ x for d, x in zip(da, xs)],
            "db": [None if b is None else (factor * d).mean(0) for b, d in zip(case.b, da)]}


def mtj(case):
    """Both halves noisy (the first with the case's baseline, if it has one); first minus second; einsum over the batch."""
    xs, first = dense_pass(case, case.W, case.b, case.baseline)
    _, second = dense_pass(case, case.W, case.b, [e[0] for e in case.eps])
    diff = [a - b for a, b in zip(first, second)]
    dL = loss(case, first[-1]) - loss(case, second[-1])
    scaling = sum(case.network.units) * dL / sum((d**2).sum(1) for d in diff)
    return {"dL": dL[None], "da": [d[None] for d in diff], "dW": [np.einsum("n,ni,nj->ij", scaling, d, x) for d, x in zip(diff, xs)],
            "db": [None if b is None else np.einsum("n,ni->i", scaling, d) for b, d in zip(case.b, diff)]}


def crgd(case):
    """NP with ε/σ² and first minus second; R times ⟨‖x‖/‖x*‖⟩, its moment whole, on a tenth of the batch and one more."""
    xs, clean = dense_pass(case, case.W, case.b)
    _, noisy = dense_pass(case, case.W, case.b, [e[0] for e in case.eps])
    dL = loss(case, clean[-1]) - loss(case, noisy[-1])
    dW = [(-dL[:, None] * e[0] / case.sigma2).T @ x / len(x) for e, x in zip(case.eps, xs)]
    m, dR = int(0.1 * len(case.x)) + 1, []
    for l, (R, x) in enumerate(zip(case.R, xs)):
        if R is not None:
            before = case.x if l == 0 else np.where(clean[l - 1] > 0, clean[l - 1], case.layers[l - 1].slope * clean[l - 1])
            gain = np.mean(np.linalg.norm(before[:m], axis=1) / np.linalg.norm(x[:m], axis=1))
            dR.append(x[:m].T @ x[:m] / m @ (R * gain))
    return {"dL": dL[None], "dW": dW, "dR": dR, "after_1/v_W": [(1 - 0.9999) * g * g for g in dW] if case.optimizer != "sgd" else []}


def nodepert(case):
    """One key for the batch, so one noise; loss difference of batch means; gradient of Σ (a + ξ) ξ / σ² through the noisy pass."""
    _, clean = dense_pass(case, case.W, case.b)
    xi = [e[0, 0] for e in case.eps]
    inputs, noisy = dense_pass(case, case.W, case.b, xi)
    lossdiff = loss(case, noisy[-1], mean=True).mean() - loss(case, clean[-1], mean=True).mean()
    return {"a_tilde": [a[None] for a in noisy], "dL": np.full((1, len(case.x)), lossdiff),
            "dW": [np.outer(lossdiff * e / case.sigma2, h.mean(0)) for e, h in zip(xi, inputs)],
            "db": [None if b is None else lossdiff * e / case.sigma2 for b, e in zip(case.b, xi)]}


IMPLEMENTED = {  # implementation: (its cases, the first wrong quantity by the paper's convention, the hint for it)
    danp_open_source: (["anp/dense2-bias-k3", "danp/dense4-bias-k3", "danp/mse", "danp/sgd"], "dL", "clean minus noisy"),
    decorbp: (["anp/dense2-bias-k1", "danp/dense2-bias-k1", "danp/sgd", "danp/mse"], "dL", "one δL for the whole batch"),
    mtj: (["anp/dense2-bias-k1", "danp/dense4-bias-k1", "danp/mse"], "dL", "clean minus noisy"),
    crgd: (["np/dense2-bias-k1", "dnp/dense2-bias-k1", "np/sgd"], "dL", "clean minus noisy"),
    nodepert: (["np/dense2-bias-k1", "dnp/dense2-bias-k1", "np/sgd", "np/mse"], "a_tilde/0", "one noise draw for all samples"),
}


@pytest.mark.parametrize("implementation", IMPLEMENTED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", checking.DTYPES)
def test_conventions(implementation, dtype):
    names, first, words = IMPLEMENTED[implementation]
    for name in names:
        own = judged(name, implementation, implementation.__name__, dtype)
        assert own.checked >= 3 and not own.wrong, own
        papers = judged(name, implementation, "paper", dtype)
        assert papers.wrong == first and (words in papers.hint or name == "danp/mse" and "the outputs" in papers.hint), papers


@pytest.mark.parametrize("implementation, change, words", [
    (decorbp, "dW", "√N in place of N"),
    (mtj, "dW", "summed over the batch"),
], ids=["decorbp", "mtj"])
def test_hints_on_the_updates_alone(implementation, change, words):
    """With one sample decorbp's sums and batch means are no difference, and √N is what is left."""
    name = "anp/batch-of-1" if implementation is decorbp else "anp/dense2-bias-k1"
    papers = judged(name, lambda case: {change: implementation(case)[change]})
    assert papers.wrong == "dW/0" and words in papers.hint, papers


def test_the_noisy_baseline_of_mtj():
    case, _ = golden("anp/noisy-baseline-dense2")
    one = replace(case, eps=tuple(e[:1] for e in case.eps))
    c = CONVENTIONS["mtj"]
    assert not oracle.compare(one, c, checking.expected(one, c), mtj).wrong


def test_cases_outside_a_convention_are_skipped_with_the_reason_and_the_others_are_checked():
    def any_case(case):
        return mtj(case) if case.rule == "anp" and len(case.eps[0]) == 1 and case.input_shape == (4,) else 1 / 0
    results = list(oracle.check(SMALL, any_case, "mtj", ["*p/dense2-bias-k?", "*/conv-dense-bias-k3", "danp/sgd"]))
    assert {r.name: r.skipped for r in results if r.skipped} == {
        **{f"{m}/dense2-bias-k{k}": f"this convention has no {m[-2:]}" for m in ("np", "dnp") for k in (1, 3)},
        **{f"{m}/dense2-bias-k{k}": f"this convention has no {m[-3:]}" for m in ("inp", "dinp") for k in (1, 3)},
        **{f"{m}/conv-dense-bias-k3": "this convention has no " + m.removeprefix("d") for m in ("np", "inp", "dnp", "dinp")},
        **{f"{m}/conv-dense-bias-k3": "this convention has dense layers only" for m in ("anp", "danp")},
        **{f"{m}/dense2-bias-k3": "this convention has one noise sample" for m in ("anp", "danp")}}
    checked = [(r.name, r.dtype, r.wrong) for r in results if not r.skipped]
    assert checked == [(name, dtype, "") for name in ("anp/dense2-bias-k1", "danp/dense2-bias-k1", "danp/sgd") for dtype in checking.DTYPES]
    assert [r.dtype for r in results] == list(checking.DTYPES) * (len(results) // 2)


def test_more_than_one_noise_sample_is_outside_some_conventions():
    case = golden("anp/dense2-bias-k3")[0]
    for K, words in ((1, ""), (2, "this convention has one noise sample")):
        assert checking._outside(replace(case, eps=tuple(e[:K] for e in case.eps)), CONVENTIONS["mtj"]) == words


def test_the_papers_numbers_are_the_files_own(monkeypatch):
    """Only another convention's are computed anew; and all cases are meant unless some are named."""
    monkeypatch.setattr(checking, "expected", None)
    results = list(oracle.check(SMALL, lambda case: {"a": [case.x @ case.W[0].T + case.b[0]]} if case.name == "bp/dense2-bias" else None))
    assert [(r.name, r.dtype) for r in results] == [(name, dtype) for name in NAMES for dtype in checking.DTYPES]
    assert [r.checked for r in results if not r.skipped] == [1, 1] and not any(r.wrong for r in results)


def test_an_unknown_convention_is_refused():
    with pytest.raises(oracle.CannotRun, match="unknown convention 'keras': expected one of paper, danp_open_source, decorbp, mtj, "):
        oracle.check(SMALL, oracle.self, "keras")


def test_a_convention_of_ones_own():
    mine = oracle.Convention("sums", sum_W=True)
    [result] = oracle.check(SMALL, lambda case: {"dW": [len(case.x) * d for d in oracle.self(case)["dW"]]}, mine, "danp/sgd", "float64")
    assert result.checked == 2 and not result.wrong
    [result] = oracle.check(SMALL, oracle.self, mine, "danp/sgd", "float64")
    assert result.wrong == "dW/0" and result.hint == "this is the paper's number, not this convention's"
    assert not any(r.wrong for r in oracle.check(SMALL, oracle.self, oracle.CONVENTIONS["paper"], "danp/sgd"))
