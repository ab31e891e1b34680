"""Why a number is wrong, in the words of the checker."""

from dataclasses import replace

import numpy as np
import pytest
from golden import SMALL, first_sample, given, golden, judged, updates_only

from npref import oracle
from npref.oracle import checker as checking
from npref.oracle.conventions import CONVENTIONS
from npref.oracle.hints import _agree, hint, shape_hint
from npref.oracle.reference import Kink, reference


@pytest.mark.parametrize("rule, quantity, factor, words", [
    ("bp", "dW/1", -1, "the sign"),
    ("bp", "dW/1", 4, "summed over the batch: the mean is expected"),
    ("bp", "dW/1", 0.25, "averaged over the batch twice"),
    ("bp", "dW/1", 2, "a factor 2"),
    ("bp", "dW/1", -0.5, "the sign, and a factor 1/2"),
    ("bp", "dW/1", 1.7, "off by the constant factor 1.7"),
    ("np", "dW/1", 3, "summed over the K noise samples: their mean is expected"),
    ("np", "db/1", 12, "summed over batch and noise samples: their mean is expected"),
    ("np", "dW/1", 0.375, "σ in place of σ²"),
    ("np", "dW/1", 0.140625, "the division by σ² is missing"),
    ("anp", "dW/0", 1 / 8, "N, the units of the network, is missing"),
    ("anp", "dW/0", 8**-0.5, "the square root of N, the units of the network, in its place"),
    ("anp", "dW/0", 8, "N, the units of the network, once too often"),
    ("inp", "dW/0", 1 / 5, "N_l, the units of the layer, is missing"),
    ("inp", "dW/0", 5**-0.5, "the square root of N_l, the units of the layer, in its place"),
    ("inp", "db/0", 5, "N_l, the units of the layer, once too often"),
    ("anp", "dW/0", 5 / 8, "N_l in place of N"),
    ("inp", "dW/0", 8 / 5, "N in place of N_l"),
    ("np", "loss", 1 / 3, "off by the constant factor 0.333333"),
    ("np", "noisy_loss", 3.0000001, "off by the constant factor 3"),
    ("np", "a/0", 4, "off by the constant factor 4"),
    ("np", "a/0", 8, "off by the constant factor 8"),
    ("np", "dL", 0, "all numbers are 0"),
    ("np", "loss", 1 + 5e-6, "the error may be float32's"),
    ("np", "loss", 1 - 2e-5, "off by the constant factor 0.99998"),
])
def test_hints_name_known_factors(rule, quantity, factor, words):
    """Four samples, three noise samples, layers of five and three units, σ = 0.375."""
    case, outputs = golden(f"{rule}/dense2-bias" + "-k3" * (rule != "bp"))
    value, scale = outputs[quantity]
    said = hint(case, CONVENTIONS["paper"], quantity, factor * value, value, 1e-14 * scale, rerun=False)
    assert said.startswith(words) and (words or not said), said


def test_hints_say_nothing_of_what_they_do_not_know():
    case, outputs = golden("anp/dense2-bias-k3")
    value, scale = outputs["dW/0"]
    paper = CONVENTIONS["paper"]
    assert hint(case, paper, "dW/0", value + np.arange(20).reshape(5, 4), value, 1e-14 * scale) == ""
    assert shape_hint(value[:2], value, 1e-14 * scale) == shape_hint(2 * value.T, value, 1e-14 * scale) == ""
    assert shape_hint(value.T, value, 1e-14 * scale) == "transposed"
    assert hint(case, paper, "dW/0", 2 * value + 1, value, 1e-14 * scale, rerun=False) == ""
    assert hint(case, paper, "dW/0", 0 * value + 1, 0 * value, 1e-14 * scale, rerun=False) == ""
    assert hint(case, paper, "loss", np.array([2.7]), np.array([1.0]), np.array([1e-14]), rerun=False) == ""  # any number has a factor
    one = golden("bp/conv-stride-bias")[0]
    positions = hint(one, paper, "dW/0", np.ones(3) / 6, np.ones(3), np.full(3, 1e-14), rerun=False)
    assert positions == "averaged over a convolution's positions: their sum is expected"


@pytest.mark.parametrize("name, loss, quantity, factor, words", [
    ("danp/mse", "mse", "loss", 1 / 3, "averaged over the outputs: mse is their sum"),
    ("danp/mse", "mse", "noisy_loss", 1 / 3, "averaged over the outputs: mse is their sum"),
    ("danp/mse", "mse", "dL", -1 / 3, "the sign, and averaged over the outputs: mse is their sum"),
    ("danp/mse", "mse", "dL", -1, "the sign"),
    ("danp/mse", "mse-mean", "loss", 3, "summed over the outputs: mse-mean is their mean"),
    ("danp/mse", "mse-mean", "dL", 3, "summed over the outputs: mse-mean is their mean"),
    ("danp/mse", "mse", "a/1", 1 / 3, "off by the constant factor 0.333333"),
    ("bp/dense2-bias", "cce", "dW/1", 2, "a factor 2"),
    ("bp/dense2-bias", "cce", "a/0", 1 / 3, "off by the constant factor 0.333333"),
    ("inp/dense2-bias-k3", "cce", "dW/1", 3,
     "summed over the K noise samples: their mean is expected or N_l, the units of the layer, once too often"),
    ("anp/dense2-bias-k3", "cce", "dW/0", (1 + 4e-4) / 8, "off by the constant factor 0.12505"),
    ("anp/dense2-bias-k3", "cce", "dW/0", -(1 + 4e-4) / 8, "off by the constant factor -0.12505"),
    ("anp/dense2-bias-k3", "cce", "dW/0", 8 * (1 - 5e-5), "N, the units of the network, once too often"),
    ("anp/dense2-bias-k3", "cce", "dW/0", -8 * (1 - 5e-5), "the sign, and N, the units of the network, once too often"),
])
def test_hints_of_factors_are_these_words_and_no_others(name, loss, quantity, factor, words):
    case, outputs = golden(name)
    value, scale = outputs[quantity]
    case = replace(case, loss=loss)
    assert hint(case, CONVENTIONS["paper"], quantity, factor * value, value, 1e-14 * scale, rerun=False) == words


def test_a_factor_is_one_only_where_every_number_has_it():
    case, paper = golden("bp/dense2-bias")[0], CONVENTIONS["paper"]

    def said(out, value, tolerance=1e-3):
        value = np.array(value, dtype=float)
        return hint(case, paper, "a/0", np.array(out, dtype=float), value, np.full(value.shape, tolerance), rerun=False)

    assert said([0, 30, 60], [0, 10, 20]) == "off by the constant factor 3"  # whatever stands first
    assert said([30, 60], [10, 20]) == "off by the constant factor 3"
    assert said([30.003, 60], [10, 20]) == "off by the constant factor 3"  # within 4 tolerances, three times as wide
    assert said([30.013, 60], [10, 20]) == ""
    assert said([5.003, 10], [10, 20]) == "a factor 1/2"  # a small factor makes no tolerance smaller, or larger
    assert said([5.006, 10], [10, 20]) == ""
    assert said([10.003, 20.003], [10, 20]) == ""  # the numbers themselves, all but
    assert said([np.inf, np.inf], [10, 20]) == ""
    single = golden("hand/bp")[0]  # one layer, of one unit: its mean is its sum
    said = hint(single, paper, "loss", np.array([5.0, 10]), np.array([2.0, 4]), np.full(2, 1e-14), rerun=False)
    assert said == "off by the constant factor 2.5"


PAPERS = "this is the paper's number, not this convention's"


def test_hints_tell_the_papers_number_under_another_convention(monkeypatch):
    case, _ = golden("danp/sgd")
    for name in ("mtj", "danp_open_source"):
        c = CONVENTIONS[name]
        for quantity, (value, scale) in checking.expected(case, c).items():
            out, tolerance = reference(case)[quantity].value, 1e-13 * scale
            if out.shape == value.shape and not np.all(abs(out - value) <= 4 * tolerance) and quantity != "loss":
                assert hint(case, c, quantity, out, value, tolerance) == PAPERS
                assert hint(case, c, quantity, out, value, tolerance, rerun=False) != PAPERS
            assert PAPERS not in hint(case, c, quantity, 7 * value + 1, value, tolerance)  # (n_in, n_out) against the paper's (n_out, n_in)
    value, scale = reference(case)["dW/0"].value, reference(case)["dW/0"].scale
    assert hint(case, CONVENTIONS["paper"], "dW/0", value + 3e-13 * scale, value, 1e-13 * scale) == ""

    def kink(*_):
        raise Kink
    monkeypatch.setattr("npref.oracle.hints.reference", kink)
    assert hint(case, CONVENTIONS["mtj"], "dW/0", 7 * value, value, 1e-13 * scale) == "off by the constant factor 7"
    value, scale = golden("danp/sgd")[1]["dR/0"]
    assert hint(case, CONVENTIONS["paper"], "dR/0", value + 1, value, 1e-13 * scale) == ""


def test_agreement_is_within_four_tolerances():
    assert _agree(np.array([4.0, -4]), np.zeros(2), 1.0) and not _agree(np.array([0, 4.5]), np.zeros(2), 1.0)


def test_hints_of_variants_hold_under_a_convention_and_after_any_step():
    """What the convention does anyway is passed over, and what comes after it is still tried; ten steps are computed where ten count."""
    case, _ = golden("danp/small-noise")
    for name in ("paper", "danp_open_source"):
        c = CONVENTIONS[name]
        expected, other, keras = checking.expected(case, c), reference(case, replace(c, root_n=True)), replace(c, beta2=0.9999)
        for quantity, out, words in (("dW/0", other, "√N in place of N (of INP: √N_l of N_l)"),
                                     ("after_1/v_W/0", reference(case, keras), "Adam with β₂ = 0.9999: it is 0.999"),
                                     ("after_10/v_W/1", reference(case, keras), "Adam with β₂ = 0.9999: it is 0.999")):
            value, scale = expected[quantity]
            assert hint(case, c, quantity, out[quantity].value, value, 1e-14 * scale) == words
            assert hint(case, c, quantity, out[quantity].value, value, 1e-14 * scale, rerun=False) != words


@pytest.mark.parametrize("dtype, least, most", [("float64", 2.0**23, 2.0**29), ("float32", 2.0**4, 2.0**14)])
def test_the_range_of_errors_that_reduced_precision_explains(dtype, least, most):
    """In tolerances; and at most a sixteenth of the largest number, beyond which a mistake is not one of rounding."""
    case = golden("np/dense2-bias-k3")[0].cast(dtype)

    def said(error, tolerance=(1.0, 1.0), largest=2.0**40):
        value = np.array([largest, largest])
        return hint(case, CONVENTIONS["paper"], "a/0", value + np.array(error), value, np.array(tolerance), rerun=False) != ""

    assert said([0, most]) and said([0, -most]) and said([most, 0]) and not said([0, 1.01 * most]) and not said([-1.01 * most, 0])
    assert said([0, 1.01 * least]) and said([-1.01 * least, 0]) and not said([least, least])
    assert not said([most, most / 2], (1.0, 0.0)) and said([most, 0], (1.0, 0.0))  # a number without rounding must be exact
    assert said([most, 0], largest=16.01 * most) and not said([most, 0], largest=16 * most)


def significant(bits):
    """npref's own adapter, given weights and inputs of so many significant bits, as a product in bfloat16 (8) or TF32 (11) rounds them."""
    def rounded(a):
        mantissa, exponent = np.frexp(a)
        return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(a.dtype)

    return given(x=lambda case: rounded(case.x), W=lambda case: tuple(map(rounded, case.W)))


@pytest.mark.parametrize("bits", [8, 11])
def test_hints_tell_reduced_precision(bits):
    for name in ("bp/dense2-bias", "np/conv-stride-bias-k3", "inp/dense2-bias-k3", "danp/kinks"):
        result = judged(name, lambda case: {"a": significant(bits)(case)["a"]}, dtype="float32")
        assert result.hint.startswith("the error may be that of 8 to 11 significant bits: a product in bfloat16, TF32 or float16"), result


@pytest.mark.parametrize("name", ["bp/dense2-bias", "danp/dense2-bias-k3", "bp/conv-stride-bias"])
def test_adams_rest_computed_in_float32(name):
    """1 - β₂ is a number beside 1, and a difference in float32 loses its last digits; not seen in float64, nor without it."""
    def v_of(rest2, case):
        return {"after_1/v_W": [(rest2 * d * d).astype(case.dtype) for d in oracle.self(case)["dW"]]}

    one, beta2 = np.float32(1), np.float32(0.999)
    result = judged(name, lambda case: v_of(one - beta2, case), dtype="float32")
    assert result.wrong.startswith("after_1/v_W/") and result.hint == "1 - β₂ computed in float32, in which β₂ rounds: it is 0.001"
    assert judged(name, lambda case: v_of(np.float32(0.001), case), dtype="float32").wrong == ""
    for other, words in ((0.0011, "off by the constant factor 1.1"), (1e-3 * (1 + 1e-4), "off by the constant factor 1.0001")):
        assert judged("bp/dense2-bias", lambda case: v_of(np.float32(other), case), dtype="float32").hint == words


def test_a_number_added_within_a_logarithm():
    def adapter(case):
        return {"loss": -np.log(np.exp(-oracle.self(case)["loss"]) + 1e-7)}

    assert "or a small number added, as in log(p + 1e-7)" in judged("bp/dense2-bias", adapter).hint


@pytest.mark.parametrize("name, fields, quantity, words", [
    ("danp/dense2-bias-k3", dict(norm_1=True), "dW/0", "a norm in place of its square: ‖δa‖², of INP ‖v_l‖²"),
    ("anp/layer-norm", dict(norm_1=True), "dW/1", "a norm in place of its square: ‖δa‖², of INP ‖v_l‖²"),
    ("dinp/conv-stride-bias-k3", dict(norm_1=True), "db/0", "a norm in place of its square: ‖δa‖², of INP ‖v_l‖²"),
    ("danp/dense2-bias-k3", dict(mean_norm=True), "dW/1", "a squared norm averaged over the batch: "),
    ("dinp/conv-stride-bias-k3", dict(mean_norm=True), "dW/0", "a squared norm averaged over the batch: "),
    ("anp/layer-norm", dict(layer_norm=True), "dW/0", "the other norm of δa: "),
    ("danp/dense2-bias-k3", dict(sum_norm=True), "dW/0", "a squared norm summed over the batch: "),
    ("anp/dense2-bias-k3", dict(first_noise=True), "dW/0", "the first noise sample in place of every one"),
    ("danp/dense2-bias-k3", dict(raw_inputs=True), "dW/1", "R is missing in the update: it multiplies x* = R x"),
    ("dbp/conv-dense-bias", dict(R_forward=False), "g/1", "R is missing: W multiplies x* = R x"),
    ("dbp/conv-dense-bias", dict(R_backward=False), "g/1", "R is missing on the way back"),
])
def test_what_a_rule_lacks_is_told_in_either_dtype(name, fields, quantity, words):
    case, outputs = golden(name)
    value, scale = outputs[quantity]
    out = reference(case, replace(CONVENTIONS["paper"], **fields), (1,))[quantity].value
    for dtype in checking.DTYPES:
        assert hint(case.cast(dtype), CONVENTIONS["paper"], quantity, out, value, 8 * np.finfo(dtype).eps * scale).startswith(words)


@pytest.mark.parametrize("field", ["norm_1", "mean_norm", "sum_norm"])
def test_np_has_no_norm(field):
    case, outputs = golden("np/sgd")
    found = reference(case, replace(CONVENTIONS["paper"], **{field: True}), (1,))
    assert all(np.array_equal(found[name].value, value) for name, (value, _) in outputs.items() if name in found)


@pytest.mark.parametrize("field", ["norm_1", "mean_norm", "sum_norm"])
def test_other_divisors_are_what_they_say(field):
    """By hand, with ‖v‖, or the batch's mean or sum of ‖v‖², for ‖v‖²: INP's update; ANP's, of each layer and of the network."""
    anp = "anp/dense2-bias-k3"
    for name, fields, units in (("inp/dense2-bias-k3", {}, None), (anp, {}, 8), (anp, dict(layer_norm=True), 8)):
        case, paper = golden(name)[0], oracle.self(golden(name)[0])
        found = reference(case, replace(CONVENTIONS["paper"], **{field: True}, **fields))
        for l in (0, 1):
            v = case.eps[l] if units is None else paper["da"][l]
            of = [v] if units is None or fields else paper["da"]
            dL = paper["dL"][:, l] if units is None else paper["dL"]  # (K, B)
            norm2 = sum((d**2).sum(-1) for d in of)  # (K, B)
            divisor = {"norm_1": np.sqrt(norm2), "mean_norm": norm2.mean(1, keepdims=True), "sum_norm": norm2.sum(1, keepdims=True)}[field]
            e = (units or case.network.units[l]) * dL / divisor
            expected = np.einsum("kb,kbi->i", e, v) / e.size
            np.testing.assert_allclose(found[f"db/{l}"].value, expected, rtol=1e-12)


def test_expected_values_end_where_a_kink_comes_too_close(monkeypatch):
    """After one step alone, or the case is skipped."""
    case, outputs = golden("danp/sgd")
    mtj, whole = CONVENTIONS["mtj"], checking.reference

    def kink_after(n):
        def fake(case, convention, steps):
            if max(steps) > n:
                raise Kink
            return whole(case, convention, steps)
        monkeypatch.setattr(checking, "reference", fake)

    assert list(checking.expected(case, mtj)) == list(outputs)
    kink_after(1)
    assert list(checking.expected(case, mtj)) == [name for name in outputs if "after_10" not in name]
    kink_after(0)
    assert checking.expected(case, mtj) == {}
    results = list(oracle.check(SMALL, oracle.self, "mtj", "danp/sgd"))
    assert [r.skipped for r in results] == ["by this convention a unit comes too close to its kink"] * 2


def test_after_ten_differences_only_what_has_fitted_is_tried():
    """An eleventh is still explained as others have been, but a new one by its looks alone."""
    cases = ["*/dense2-bias-k3", "*/conv-stride-bias-k3"]

    def shared(case):
        return updates_only(given(eps=first_sample))(case) if case.rule != "bp" else None

    results = [r for r in oracle.check(SMALL, shared, cases=cases) if r.wrong]
    assert len(results) > 12 and all("one noise draw" in r.hint for r in results)
    calls = []

    def unknown_at_first(case):
        calls.append(case)
        found = shared(case)
        return found and {"dW": [7 * d + 1 for d in found["dW"]]} if len(calls) <= 10 else found

    results = [r for r in oracle.check(SMALL, unknown_at_first, cases=cases) if r.wrong]
    assert len(results) > 12 and not any("one noise draw" in r.hint for r in results)


def dR_of(x_star, R):
    rows = x_star.swapaxes(1, -1).reshape(-1, x_star.shape[1])
    moment = rows.T @ rows / len(rows)
    return moment, np.diag(np.diag(moment)), R


@pytest.mark.parametrize("wrong, words", [
    (lambda M, D, R: M @ R, "the moment's diagonal kept"),
    (lambda M, D, R: (M - np.eye(len(M))) @ R, "1 in place of the moment's diagonal"),
    (lambda M, D, R: R @ (M - D), "R times the moment"),
    (lambda M, D, R: M - D, "the factor R is missing"),
    (lambda M, D, R: 4 * (M - D) @ R, "summed over the batch: the mean is expected"),
    (lambda M, D, R: 3 * (M - D) @ R, "off by the constant factor 3"),
    (lambda M, D, R: (M - D) @ R + 1, None),
])
@pytest.mark.parametrize("name, l", [("danp/dense2-bias-k3", 1), ("danp/conv-stride-bias-k3", 0)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_hints_know_the_rule_for_R(name, l, dtype, wrong, words):
    """x* is found right before."""
    def adapter(case):
        found = oracle.self(case)
        return {"x_star": found["x_star"], "dR": [None] * l + [wrong(*dR_of(found["x_star"][l], case.R[l]))]}

    case, outputs = golden(name)
    result = oracle.compare(case.cast(dtype), CONVENTIONS["paper"], outputs, adapter, rerun=False)
    assert result.wrong == f"dR/{l}" and (result.hint.startswith(words) if words else result.hint == "")


def test_hints_know_sums_over_positions_in_R():
    def adapter(case, factor):
        return {"dR": [factor * d for d in oracle.self(case)["dR"]]}

    case, outputs = golden("danp/conv-stride-bias-k3")
    P = int(np.prod(case.network.shapes[1][1:]))
    for factor, words in ((P, "summed over positions"), (4 * P, "summed over samples and positions")):
        said = oracle.compare(case, CONVENTIONS["paper"], outputs, lambda case: adapter(case, factor)).hint
        assert words in said, said


@pytest.mark.parametrize("wrong", [
    lambda x: x.reshape(len(x), 2, 3, 2, -1)[:, :, ::-1, ::-1].reshape(x.shape),  # a true convolution's
    lambda x: x.reshape(len(x), 2, 6, -1).swapaxes(1, 2).reshape(x.shape),  # channels innermost
])
def test_hints_know_patches_in_another_order(wrong):
    case, outputs = golden("anp/conv-stride-bias-k3")
    said = oracle.compare(case, CONVENTIONS["paper"], outputs, lambda case: {"x_star": [wrong(oracle.self(case)["x_star"][0])]})
    assert said.wrong == "x_star/0" and said.hint.startswith("the right numbers in another order: a patch is (C_in, kh, kw)")
    said = oracle.compare(case, CONVENTIONS["paper"], outputs, lambda case: {"x_star": [oracle.self(case)["x_star"][0] + 1]})
    assert said.wrong == "x_star/0" and "order" not in said.hint


def test_an_explanation_leaves_right_what_is_right():
    """√N in ΔW is what a √N in ΔW would be, but not if the moments that come of ΔW are right."""
    case, outputs = golden("danp/small-noise")
    paper, other = CONVENTIONS["paper"], reference(case, replace(CONVENTIONS["paper"], root_n=True))
    value, scale = outputs["dW/0"]
    m, m_scale = outputs["after_1/m_W/0"]
    right = {"after_1/m_W/0": (m, 1e-14 * m_scale)}
    assert hint(case, paper, "dW/0", other["dW/0"].value, value, 1e-14 * scale).startswith("√N in place of N")
    assert not hint(case, paper, "dW/0", other["dW/0"].value, value, 1e-14 * scale, right=right).startswith("√N in place of N")
    right = {"after_1/m_W/0": (other["after_1/m_W/0"].value, 1e-14 * m_scale)}
    assert hint(case, paper, "dW/0", other["dW/0"].value, value, 1e-14 * scale, right=right).startswith("√N in place of N")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_moments_are_judged_before_the_step_that_they_make(dtype):
    """A step without bias correction from right moments; its error, whatever its size, is not taken for rounding."""
    case, outputs = golden("danp/dense2-bias-k3")

    def step(case, moments):
        found = oracle.self(case)
        wrong = [w - case.lr * m / (np.sqrt(v) + 1e-7) for w, m, v in zip(case.W, found["after_1/m_W"], found["after_1/v_W"])]
        return {"after_1/W": wrong} | {name: found[name] for name in ("after_1/m_W", "after_1/v_W") if moments}

    for moments in (True, False):
        result = oracle.compare(case.cast(dtype), CONVENTIONS["paper"], outputs, lambda case: step(case, moments))
        assert result.wrong == "after_1/W/0"
        assert (result.hint == "m and v are right: it is the last step's ε, bias correction or rate") == moments
        assert "the error is" not in result.hint


def rows_of(x_star):
    return x_star.swapaxes(1, -1).reshape(-1, x_star.shape[1])  # (B*P, n_in)


without_R = given(R=lambda case: tuple(np.eye(len(r), dtype=r.dtype) for r in case.R))


def raw(case):
    """x of the pass with R, shaped as x*: (B, n_in) or (B, n_in, P)."""
    return [np.linalg.solve(r, x) if x.ndim == 3 else np.linalg.solve(r, x.T).T for r, x in zip(case.R, oracle.self(case)["x_star"])]


def in_the_update(case):
    """ΔW by hand, from x and not x*: BP's error is g."""
    g = [rows_of(g.reshape(*g.shape[:2], -1)) for g in (golden(case.name)[1][f"g/{l}"][0] for l in range(len(case.W)))]
    return {"dW": [(g_l.T @ rows_of(x) / len(case.x)).reshape(w.shape) for g_l, x, w in zip(g, raw(case), case.W)]}


def in_its_rule(case):
    return {"dR": [(moment - diagonal) @ R for moment, diagonal, R in map(dR_of, raw(case), case.R)]}


def all_at_once(case):
    """INP's passes with every layer's noise, by npref's other rule."""
    a_tilde = oracle.self(replace(case, method="anp", eps=case.eps))["a_tilde"]
    return {"a_tilde": [np.repeat(a[:, None], len(case.layers), axis=1) for a in a_tilde]}


def sloping(case):
    layers = tuple(replace(q, slope=0.01) if q.activation == "leaky_relu" else q for q in case.layers)
    return oracle.self(replace(case, layers=layers))


def flattened_last(case):
    """The dense layer's inputs in the order (H, W, C), before R."""
    x = oracle.self(case)["x"][0]  # (B, C, H, W)
    return {"x_star": [None, x.transpose(0, 2, 3, 1).reshape(len(x), -1) @ case.R[1].T]}


def flattened_last_on_the_way_back(case):
    """The first layer's BP update then; it is that of weights whose columns stand in the other order."""
    order = np.arange(case.W[1].shape[1]).reshape(case.network.shapes[1]).transpose(1, 2, 0).ravel()
    W = np.empty_like(case.W[1])
    W[:, order] = case.W[1]
    return {"dW": [oracle.self(replace(case, W=(case.W[0], W)))["dW"][0]]}


def patches_last(case):
    x = raw(case)[0]  # (B, C kh kw, P)
    C = case.input_shape[0]
    return {"x_star": [case.R[0] @ x.reshape(len(x), C, -1, x.shape[2]).swapaxes(1, 2).reshape(x.shape)]}


def kinds(adapter, *kept):
    return lambda case: {name: a for name, a in adapter(case).items() if name in kept}


SLOPE = "leaky ReLUs of slope 0.01, as many libraries' are: a layer's is case.layers[l].slope"


@pytest.mark.parametrize("name, adapter, wrong, words", [
    ("dbp/conv-dense-bias", in_the_update, "dW/0", "R is missing in the update: it multiplies x* = R x, not x"),
    ("danp/dense2-bias-k3", in_its_rule, "dR/0", "R is missing in its own rule: the moment is of x* = R x, not of x"),
    ("danp/conv-stride-bias-k3", in_its_rule, "dR/0", "R is missing in its own rule: the moment is of x* = R x, not of x"),
    ("danp/dense2-bias-k3", without_R, "x_star/0", "R is missing: W multiplies x* = R x"),
    ("dnp/dense2-bias-k3", kinds(without_R, "dW"), "dW/0", "R is missing: W multiplies x* = R x"),
    ("inp/dense2-bias-k3", all_at_once, "a_tilde/0", "noise in every layer: the pass for layer l has it in layer l alone"),
    ("np/dense2-bias-k3", given(eps=lambda case: tuple(np.repeat(e[:1], len(e), axis=0) for e in case.eps)), "a_tilde/0",
     "the first noise sample in place of every one"),
    ("danp/noisy-baseline-dense2", given(baseline=lambda case: None), "a/0",
     "the baseline's noise is left out: with case.baseline a noisy pass takes the clean one's place"),
    ("np/noisy-baseline-dense2", kinds(given(baseline=lambda case: None), "dW"), "dW/0",
     "the baseline's noise is left out: with case.baseline a noisy pass takes the clean one's place"),
    ("anp/dense2-bias-k3", sloping, "x/0", SLOPE),
    ("dbp/conv-dense-bias", kinds(sloping, "dW"), "dW/0", SLOPE),
    ("danp/conv-stride-bias-k3", flattened_last, "x_star/1", "an image flattened as (H, W, C): it is (C, H, W)"),
    ("bp/conv-stride-bias", flattened_last_on_the_way_back, "dW/0", "an image flattened as (H, W, C): it is (C, H, W)"),
    ("danp/conv-stride-bias-k3", patches_last, "x_star/0", "patches as (kh, kw, C_in): they are (C_in, kh, kw)"),
    ("bp/dense2-bias", lambda case: {"g": [golden(case.name)[1][f"g/{l}"][0] / 4 for l in (0, 1)]}, "g/1",
     "divided by the batch: g is each sample's own, not of the mean loss"),
    ("danp/dense2-bias-k3", lambda case: {"dR": [d * 4 / 3 for d in oracle.self(case)["dR"]]}, "dR/0",
     "n - 1 in place of n: ⟨·⟩ is the mean"),
])
def test_hints_tell_what_is_easily_forgotten(name, adapter, wrong, words):
    """By hand, where npref's own adapter does not take it as an input."""
    result = judged(name, adapter)
    assert (result.wrong, result.hint) == (wrong, words), result


@pytest.mark.parametrize("quantity, turn, words", [
    ("a/0", lambda a: a.transpose(0, 2, 3, 1).reshape(a.shape), "the right numbers in another order: it is (B, *shape), and an image's "),
    ("a_tilde/0", lambda a: a[::-1], "the right numbers in another order: it is (K, B, *shape), of inp (K, L, B, *shape), and an image's "),
    ("dL", lambda a: a[::-1], "the right numbers in another order: it is (K, B), of inp (K, L, B), and an image's "),
    ("a/0", lambda a: a + 1, ""),
])
def test_hints_know_the_right_numbers_in_another_order(quantity, turn, words):
    case, outputs = golden("np/conv-stride-bias-k3")
    value, scale = outputs[quantity]
    said = hint(case, CONVENTIONS["paper"], quantity, turn(value), value, 1e-14 * scale, rerun=False)
    assert said.startswith(words) and (words or not said), said


@pytest.mark.parametrize("turn, words", [
    (lambda a: a.swapaxes(0, 1), "the right numbers, but for the order of their axes"),
    (lambda a: a[..., None], "the right numbers in another shape"),
    (lambda a: a.mean(), "one number, the mean of all that are expected"),
    (lambda a: a.sum(), "one number, the sum of all that are expected"),
    (lambda a: a.max(), ""),
    (lambda a: a.swapaxes(0, 1) + 1, ""),
    (lambda a: a[..., None] + 1, ""),
])
def test_hints_on_shapes(turn, words):
    value = golden("inp/dense2-bias-k3")[1]["dL"][0]  # (3, 2, 4)
    assert shape_hint(np.asarray(turn(value)), value, np.full(value.shape, 1e-14)) == words
    one = np.array([1.0])
    assert shape_hint(np.array(2.0), np.array(1.0), np.array(1e-14)) == shape_hint(one, 2 * one[:, None], 1e-14 * one[:, None]) == ""


@pytest.mark.parametrize("name, kind, step, words", [
    ("danp/dense2-bias-k3", "R", lambda case, p, d: p, "as it was before the step"),
    ("danp/dense2-bias-k3", "R", lambda case, p, d: p + case.alpha * d, "the sign of its change: an update is subtracted"),
    ("danp/dense2-bias-k3", "R", lambda case, p, d: p - case.lr * d, "lr in place of alpha, which is R's own rate"),
    ("danp/dense2-bias-k3", "R", lambda case, p, d: p - 4 * case.alpha * d, "summed over the batch: the mean is expected"),
    ("danp/dense2-bias-k3", "R", lambda case, p, d: p - case.alpha * d.T, ""),
    ("danp/sgd", "W", lambda case, p, d: p, "as it was before the step"),
    ("danp/sgd", "W", lambda case, p, d: p + case.lr * d, "the sign of its change: an update is subtracted"),
    ("danp/sgd", "W", lambda case, p, d: p - case.lr * 4 * d, "summed over the batch: the mean is expected"),
    ("danp/sgd", "W", lambda case, p, d: p - case.lr * (d + 1), ""),
])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_hints_on_a_parameter_after_a_step(name, kind, step, words, dtype):
    """Where it alone is returned."""
    def adapter(case):
        return {f"after_1/{kind}": [step(case, p, d) for p, d in zip(getattr(case, kind), oracle.self(case)[f"d{kind}"])]}

    result = judged(name, adapter, dtype=dtype)
    assert result.wrong == f"after_1/{kind}/0" and result.hint == words, result


def test_the_sign_of_adams_first_step():
    def adapter(case):
        found = oracle.self(case)
        return {"after_1/W": [2 * w - after for w, after in zip(case.W, found["after_1/W"])]}

    assert judged("danp/dense2-bias-k3", adapter).hint == "the sign of its change: an update is subtracted"
    assert judged("danp/dense2-bias-k3", lambda case: {"after_1/W": [w + 1 for w in oracle.self(case)["after_1/W"]]}).hint == ""


def test_the_rule_for_R_is_known_without_x_star():
    """And from R after the step alone."""
    def diagonal_kept(case):
        return [moment @ R for moment, _, R in map(dR_of, oracle.self(case)["x_star"], case.R)]

    for name in ("danp/dense2-bias-k3", "danp/conv-stride-bias-k3"):
        for adapter in (lambda case: {"dR": diagonal_kept(case)},
                        lambda case: {"after_1/R": [r - case.alpha * d for r, d in zip(case.R, diagonal_kept(case))]}):
            assert judged(name, adapter).hint == "the moment's diagonal kept: ⟨(x*)²⟩ is to be taken off"
