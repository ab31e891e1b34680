"""The golden vectors, and the checker: it passes what is right, and names what is wrong and why."""

import fractions
import importlib
import os
import shutil
import signal
from dataclasses import replace
from functools import cache
from multiprocessing import active_children
from pathlib import Path

import h5py
import numpy as np
import pytest

from npref import oracle, rules
from npref.functions import derivative
from npref.oracle import checker as checking
from npref.oracle import files
from npref.oracle.__main__ import main
from npref.oracle.conventions import CONVENTIONS
from npref.oracle.files import case_list, case_names, flat, one_case, read, write
from npref.oracle.hints import _agree, hint, shape_hint
from npref.oracle.reference import Kink, reference

SMALL = Path(__file__).resolve().parents[1] / "data/oracle/small.h5"
BUILT_IN = {case.name for case, *_ in case_list()}


@cache
def golden(name):
    """One of the committed cases: (Case, outputs)."""
    return one_case(SMALL, name)


NAMES = case_names(SMALL)


def judged(name, adapter, convention="paper", dtype="float64"):
    case, outputs = golden(name)
    c = CONVENTIONS[convention]
    if convention != "paper":
        outputs = checking.expected(case, c)
    return oracle.compare(case.cast(dtype), c, outputs, adapter)


# --- what is right -----------------------------------------------------------------------------------------------------------

def test_hand_worked_numbers():
    """The numbers of the cases' own texts, typed in."""
    def outputs(name):
        return {q: value.ravel().tolist() for q, (value, _) in golden(f"hand/{name}")[1].items()}

    bp, np_, inp, anp, dbp = map(outputs, ("bp", "np", "inp", "anp", "dbp"))
    assert (bp["a/0"], bp["loss"], bp["g/0"], bp["dW/0"], bp["after_1/W/0"]) == ([3], [4], [4], [4, 8], [0.875, 0.75])
    assert (np_["a_tilde/0"], np_["a_tilde/1"], np_["noisy_loss"], np_["dL"]) == ([2], [6], [25], [24])
    assert (np_["dW/0"], np_["dW/1"]) == ([24], [48])
    assert (inp["dL"], inp["dW/0"], inp["dW/1"]) == ([8, 8], [8], [4])
    assert anp["da/0"] + anp["da/1"] == [1, 4]
    assert anp["dW/0"] + anp["dW/1"] == pytest.approx([48 / 17, 192 / 17], rel=1e-15)
    assert (dbp["x_star/0"], dbp["a/0"], dbp["dW/0"]) == ([1, 4], [5], [8, 32])
    assert (dbp["dR/0"], dbp["after_1/R/0"]) == ([0, 8, 4, 0], [1, -1, -0.5, 2])


def test_the_rules_pass_every_committed_case():
    for name in NAMES:
        for dtype in checking.DTYPES:
            result = judged(name, oracle.self, dtype=dtype)
            assert result.checked == len(golden(name)[1]) - len([q for q in golden(name)[1] if q.startswith("g/")])
            assert not result.wrong and not result.skipped, result


def test_the_committed_file_is_what_is_written_today(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.h5", "b.h5", "c.h5"))
    write(a, ["hand/*", "*/dense2-bias*", "danp/conv-stride-bias-k3", "*/layer-norm", "danp/signs", "*p/noisy-baseline-dense2"])
    assert write(b, ["hand/*", "*bp/dense2-bias"]) == write(c, ["hand/*", "*bp/dense2-bias"], processes=2) == 7
    assert b.read_bytes() == c.read_bytes() or h5py.version.version_tuple < (3, 15)  # which writes the time into groups
    common = 0
    for case, outputs in read(a):
        if case.name not in NAMES:
            continue
        common += 1
        old_case, old = golden(case.name)
        assert case.settings() == old_case.settings() and list(outputs) == list(old)
        for name, x in flat({n: getattr(case, n) for n in ("x", "t", "W", "b", "R", "eps", "baseline")}).items():
            assert np.array_equal(x, flat({n: getattr(old_case, n) for n in ("x", "t", "W", "b", "R", "eps", "baseline")})[name])
        for name, (value, scale) in outputs.items():
            assert np.all(abs(value - old[name][0]) <= oracle.TOLERANCE * np.finfo(np.float64).eps * scale), (case.name, name)
            assert np.all(scale <= 3 * old[name][1]) and np.all(old[name][1] <= 3 * scale)
    assert common > 15


def test_the_cases_are_those_promised():
    """Eight methods x six networks x bias x K, and the others; every input a float32 number."""
    names = BUILT_IN
    for method in rules.METHODS:
        for arch in ("dense1", "dense2", "dense4", "conv-stride", "conv-padding", "conv-dense"):
            for k in ("",) if "bp" in method else ("-k1", "-k3"):
                assert {f"{method}/{arch}{k}", f"{method}/{arch}-bias{k}"} <= names
        assert f"{method}/batch-of-1" in names
    for name in ("np/mse", "danp/mse-mean", "danp/sgd", "danp/adam-eps-hat", "dnp/noisy-baseline-conv-dense", "anp/layer-norm", "np/step",
                 "danp/sign", "dbp/tanh", "inp/kinks", "anp/small-noise", "np/signs"):
        assert name in names


def test_inputs_are_float32_numbers_and_kinks_are_crossed():
    crossed = 0
    for case, outputs in map(golden, NAMES):
        for a in flat({n: getattr(case, n) for n in ("x", "t", "W", "b", "R", "eps", "baseline")}).values():
            assert np.array_equal(a, a.astype(np.float32))
        if case.name.endswith("/kinks"):
            crossed += np.sum((outputs["a/0"][0] > 0) != (outputs["a_tilde/0"][0] > 0))
    assert crossed > 5


def test_the_scale_is_the_size_of_rounding():
    """float32 results of the rules are within the tolerance, yet not far within: a scale ten times too wide would show here."""
    worst = [judged(name, oracle.self, dtype="float32").worst for name in NAMES if not name.startswith("hand")]
    assert 0.1 < max(worst) < 0.6 and np.median(worst) > 0.05


# --- what is wrong -----------------------------------------------------------------------------------------------------------

def changed(change):
    """npref's own adapter with its dict of results changed afterwards."""
    def adapter(case):
        out = oracle.self(case)
        out |= change(case, out)
        return out
    return adapter


def scaled(*names, factor):
    return changed(lambda case, out: {name: [None if a is None else a * factor(case) for a in out[name]] for name in names})


def given(**other):
    """npref's own adapter, given other inputs: name = function of the case."""
    return lambda case: oracle.self(replace(case, **{name: f(case) for name, f in other.items()}))


def updates_only(adapter):
    return lambda case: {name: a for name, a in adapter(case).items() if name in ("dW", "db")}


def first_sample(case):
    return tuple(np.repeat(e[:, :1], len(case.x), axis=1) for e in case.eps)


def mean_dL(case, out):
    return {"dL": np.broadcast_to(out["dL"].mean(-1, keepdims=True), out["dL"].shape)}


def noisy_x_star(case):
    """ANP's own update with the noisy pass's inputs, for two dense layers without R."""
    out = oracle.self(case)
    x1 = np.where(out["a_tilde"][0] > 0, out["a_tilde"][0], 0.2 * out["a_tilde"][0])  # (K, B, n)
    norm2 = sum((d**2).sum(-1) for d in out["da"])
    e = sum(case.network.units) * (out["dL"] / norm2)[..., None] * out["da"][1]
    return {"dW": [None, np.einsum("kbi,kbj->ij", e, x1) / out["dL"].size]}


def other_rule(case, name, fake):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, name, fake)
        return oracle.self(case)


def no_correction(case, out):
    """Adam whose first step is not corrected for its bias."""
    def step(w, g):
        return w - case.lr * 0.1 * g / (np.sqrt(0.001 * g * g) + 1e-7)
    return {"after_1/W": [step(w, g) for w, g in zip(case.W, out["dW"])]}


def inputs_counted(case):
    units = sum(case.network.units)
    return (units + np.prod(case.input_shape)) / units


WRONG = {  # what is wrong: (adapter, case, the first wrong quantity, words of the hint)
    "clean minus noisy": (changed(lambda c, o: {"dL": -o["dL"]}), "anp/dense2-bias-k3", "dL", "clean minus noisy"),
    "one loss difference": (changed(mean_dL), "np/dense2-bias-k3", "dL", "one δL for the whole batch"),
    "one noise for all": (given(eps=first_sample), "np/conv-dense-bias-k3", "a_tilde/0", "one noise draw for all samples"),
    "one noise for all, seen in the update": (updates_only(given(eps=first_sample)), "danp/dense2-bias-k3", "dW/0", "one noise draw"),
    "no noise on the output": (given(eps=lambda c: (*c.eps[:-1], 0 * c.eps[-1])), "danp/conv-stride-bias-k3", "a_tilde/1",
                               "no noise on the output"),
    "noise not in ã": (changed(lambda c, o: {"da": [d - e for d, e in zip(o["da"], c.eps)]}), "anp/dense2-bias-k3", "da/0", ""),
    "noise has half its size": (given(eps=lambda c: tuple(e / 2 for e in c.eps)), "inp/dense2-bias-k3", "a_tilde/0", ""),
    "√N for N": (scaled("dW", "db", factor=lambda c: sum(c.network.units) ** -0.5), "danp/dense2-bias-k3", "dW/0", "√N in place of N"),
    "√N_l for N_l": (scaled("dW", factor=lambda c: c.network.units[0] ** -0.5), "dinp/dense2-bias-k3", "dW/0", "N_l"),
    "input units counted": (scaled("dW", factor=inputs_counted), "anp/dense2-bias-k3", "dW/0", "counts the input's units"),
    "N missing": (scaled("dW", factor=lambda c: 1 / sum(c.network.units)), "anp/dense2-bias-k3", "dW/0", "the network, is missing"),
    "norm per layer": (given(anp_norm=lambda c: "layer"), "danp/dense2-bias-k3", "dW/0", "of each layer by itself"),
    "summed over the batch": (scaled("dW", "db", factor=lambda c: len(c.x)), "bp/conv-dense-bias", "dW/0", "summed over the batch"),
    "bias summed over the batch": (scaled("db", factor=lambda c: len(c.x)), "inp/dense2-bias-k3", "db/0", "summed over the batch"),
    "summed over K": (scaled("dW", factor=lambda c: 3), "dnp/dense2-bias-k3", "dW/0", "summed over the K noise samples"),
    "averaged over positions": (scaled("dW", factor=lambda c: 1 / np.prod(c.network.shapes[1][1:])), "bp/conv-stride-bias", "dW/0",
                                "positions"),
    "σ for σ²": (scaled("dW", factor=lambda c: c.sigma2**0.5), "np/dense2-bias-k3", "dW/0", "σ in place of σ²"),
    "no division by σ²": (scaled("dW", factor=lambda c: c.sigma2), "dnp/dense2-bias-k3", "dW/0", "division by σ² is missing"),
    "update has the other sign": (scaled("dW", factor=lambda c: -1), "danp/conv-dense-bias-k3", "dW/0", "the sign"),
    "noisy presynaptic activity": (noisy_x_star, "anp/dense2-bias-k3", "dW/1", "noisy presynaptic activity"),
    "transposed": (changed(lambda c, o: {"dW": [o["dW"][0].T, None]}), "bp/dense4-bias", "dW/0", "transposed"),
    "transposed shape": (changed(lambda c, o: {"dW": [d.T for d in o["dW"]]}), "bp/dense2-bias", "dW/0", "transposed"),
    "kernel flipped": (changed(lambda c, o: {"dW": [d[..., ::-1, ::-1] for d in o["dW"]]}), "dbp/conv-dense-bias", "dW/0",
                       "kernels flipped: a convolution here is a cross-correlation"),
    "taps exchanged": (changed(lambda c, o: {"dW": [o["dW"][0].swapaxes(2, 3), None]}), "dbp/conv-dense-bias", "dW/0",
                       "vertical and horizontal taps exchanged"),
    "R transposed": (given(R=lambda c: tuple(r.T for r in c.R)), "danp/dense2-bias-k3", "x_star/0", "Rᵀ in place of R"),
    "R ignored": (changed(lambda c, o: {"x_star": [c.x, None]}), "dbp/dense2-bias", "x_star/0", ""),
    "R ignored on the way back": (lambda c: other_rule(c, "matrix", lambda W: W.reshape(len(W), -1) * 0.9), "dbp/dense2-bias", "dW/0", ""),
    "diagonal of R's moment kept": (changed(lambda c, o: {"dR": [(x.T @ x / len(x)) @ r for x, r in zip(o["x_star"], c.R)]}),
                                    "dnp/dense2-bias-k3", "dR/0", ""),
    "R's update has the other sign": (scaled("dR", factor=lambda c: -1), "dinp/conv-stride-bias-k3", "dR/0", "the sign"),
    "other slope": (given(layers=lambda c: tuple(replace(q, slope=0.01) for q in c.layers)), "inp/conv-stride-bias-k3", "x/0", ""),
    "no derivative": (lambda c: other_rule(c, "derivative", lambda n, a, s: derivative("identity", a, s)), "bp/dense2-bias", "dW/0", ""),
    "mse averaged": (given(loss=lambda c: "mse-mean"), "danp/mse", "loss", "squared errors averaged"),
    "ε-hat": (given(optimizer=lambda c: "adam-eps-hat"), "dbp/dense2-bias", "after_1/W/0", ""),
    "no bias correction": (changed(no_correction), "danp/dense2-bias-k3", "after_1/W/0", ""),
    "twice the learning rate": (given(lr=lambda c: 2 * c.lr), "np/sgd", "after_1/W/0", ""),
    "wrong only later": (changed(lambda c, o: {"after_10/W": o["after_1/W"]}), "danp/dense2-bias-k3", "after_10/W/0", ""),
    "single precision": (lambda c: oracle.self(c.cast("float32")), "bp/conv-stride-bias", "a/0", "single precision"),
    "not finite": (changed(lambda c, o: {"dL": o["dL"] * np.nan}), "np/dense2-bias-k3", "dL", "not finite"),
    "wrong shape": (changed(lambda c, o: {"loss": o["loss"].mean()}), "np/dense2-bias-k3", "loss", ""),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_implementations_are_caught_and_the_first_wrong_quantity_named(kind):
    adapter, name, first, words = WRONG[kind]
    result = judged(name, adapter)
    assert result.wrong == first, result
    whole = words.startswith(("transposed", "kernels", "vertical"))
    assert words == result.hint if whole else words in result.hint, result
    assert result.details and result.worst > 1


def test_an_error_of_a_few_tolerances_is_seen_and_one_within_it_is_not():
    case, outputs = golden("np/dense2-bias-k3")
    for factor, verdict in ((0.9, ""), (1.1, "dW/1")):
        def adapter(case, factor=factor):
            value, scale = outputs["dW/1"]
            off = value.copy()
            off[1, 2] += factor * oracle.TOLERANCE * np.finfo(np.float64).eps * scale[1, 2]
            return {"dW": [None, off]}
        result = judged("np/dense2-bias-k3", adapter)
        assert result.wrong == verdict
        assert not verdict or result.details.startswith("[1, 2] is ")


def compared(*arrays):
    """The `Result` of (out, value, scale) for a/0, a/1, ... in float64."""
    case, outputs = golden("bp/dense4-bias")[0], {}
    for l, (_, value, scale) in enumerate(arrays):
        outputs[f"a/{l}"] = (np.array(value, dtype=float), np.array(scale, dtype=float))
    found = {"a": [np.array(out, dtype=float) for out, _, _ in arrays]}
    return oracle.compare(case, CONVENTIONS["paper"], outputs, lambda case: found, rerun=False)


def test_errors_are_counted_in_tolerances():
    """A tolerance is 8 eps·scale: an error of one is within it, and where nothing rounds nothing may differ."""
    tolerance = 8 * 2.0**-52
    exact = compared(([1, 0], [1, 0], [1, 0]))
    assert (exact.worst, exact.worst_at, exact.wrong) == (0, "", "")
    at_it = compared(([1 + tolerance], [1], [1]))
    assert (at_it.worst, at_it.worst_at, at_it.wrong, at_it.checked) == (1, "a/0", "", 1)
    equal = compared(([1 + tolerance / 2], [1], [1]), ([1, 1 - tolerance / 2], [1, 1], [1, 1]))
    assert (equal.worst, equal.worst_at, equal.checked) == (0.5, "a/0", 2)
    beyond = compared(([1, 1 + tolerance, 1 + 1.5 * tolerance, 1 + 3 * tolerance, 1 - 2 * tolerance], [1] * 5, [1] * 5), ([2], [1], [1]))
    assert (beyond.worst, beyond.worst_at, beyond.wrong) == (3, "a/0", "a/0")
    assert beyond.details == "[3] is 1, expected 1; 3 of 5 numbers are wrong"
    inexact = compared(([1, 2**-60], [1, 0], [1, 0]))
    assert (inexact.worst, inexact.wrong, inexact.details) == (np.inf, "a/0", f"[1] is {2**-60:.9g}, expected 0; 1 of 2 numbers are wrong")
    shape = compared(([1, 2], [[1, 2]], [[1, 1]]))
    assert (shape.worst, shape.worst_at, shape.wrong, shape.details) == (np.inf, "a/0", "a/0", "shape (2,), expected (1, 2)")
    lost = compared(([np.nan, np.inf, 1], [1, 1, 1], [1, 1, 1]))
    assert (lost.worst, lost.wrong, lost.hint) == (np.inf, "a/0", "not finite")


@pytest.mark.parametrize("dtype", checking.DTYPES)
def test_an_adapter_is_given_a_copy_in_the_dtype_that_is_asked_for(dtype):
    case = golden("danp/sgd")[0].cast(dtype)

    def adapter(given):
        assert given.dtype == dtype and {str(a.dtype) for a in (given.x, given.t, *given.W, *given.R, *given.eps)} == {dtype}
        given.x[:] = 0
        return {"loss": np.zeros(len(given.x))}

    oracle.compare(case, CONVENTIONS["paper"], golden("danp/sgd")[1], adapter)
    assert case.x.any()


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
])
def test_hints_name_known_factors(rule, quantity, factor, words):
    """Four samples, three noise samples, layers of five and three units, σ = 0.375."""
    case, outputs = golden(f"{rule}/dense2-bias" + "-k3" * (rule != "bp"))
    value, scale = outputs[quantity]
    said = hint(case, CONVENTIONS["paper"], quantity, factor * value, value, 1e-14 * scale, rerun=False)
    assert said.startswith(words), said


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


@pytest.mark.parametrize("dtype, bits", [("float64", 29), ("float32", 13)])
def test_the_range_of_errors_that_reduced_precision_explains(dtype, bits):
    """From 2^-6 tolerances of that precision, which smaller errors than its own would be, to one."""
    case = golden("np/dense2-bias-k3")[0].cast(dtype)

    def said(error, tolerance=(1.0, 1.0)):
        out = np.array(error) * 2.0**bits
        return hint(case, CONVENTIONS["paper"], "a/0", out, np.zeros(2), np.array(tolerance), rerun=False) != ""

    assert said([0, 1]) and said([0, -1]) and said([0, 2.0**-5.5]) and said([2.0**-5.9, 0])
    assert not said([0, 2.0**-6]) and not said([0, 2.0**-6.5])
    assert not said([1, 1], (1.0, 0.0)) and said([1, 0], (1.0, 0.0))  # a number without rounding must be exact


@pytest.mark.parametrize("dtype, bits, words", [
    ("float64", 24, "the error is float32's: something is computed in single precision"),
    ("float32", 11, "the error is that of 11 significant bits: a product in TF32 or float16"),
    ("float32", 8, "the error is that of 8 significant bits: a product in bfloat16"), ("float64", 20, ""), ("float32", 6, "")])
def test_hints_tell_reduced_precision(dtype, bits, words):
    """Errors up to a tolerance of that precision earn its hint, and larger ones another or none."""
    case, outputs = golden("np/dense2-bias-k3")
    value, scale = outputs["dW/0"]
    tolerance = oracle.TOLERANCE * np.finfo(dtype).eps * scale
    sign = np.where(np.arange(20).reshape(5, 4) % 2, 1, -0.9)

    def said(size):
        off = tolerance * 2.0 ** ((53 if dtype == "float64" else 24) - bits) * size * sign
        return hint(case.cast(dtype), CONVENTIONS["paper"], "dW/0", value + off, value, tolerance, rerun=False)

    assert said(0.99) == words and said(1.2) != words or not words and said(0.99) == ""


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


def test_after_ten_differences_only_nothing_else_is_reasoned_about():
    """The tenth difference is still explained by recomputing the reference, the eleventh by its looks alone."""
    def shared(case):
        return updates_only(given(eps=first_sample))(case) if case.rule != "bp" else None
    results = [r for r in oracle.check(SMALL, shared, cases=["*/dense2-bias-k3", "*/conv-stride-bias-k3"]) if r.wrong]
    assert ["one noise draw" in r.hint for r in results] == [True] * 10 + [False] * (len(results) - 10) and len(results) > 12


# --- conventions, each implemented by itself on dense layers, from its description -------------------------------------------

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
        next(oracle.check(SMALL, oracle.self, "keras"))


# --- the command line and its inputs -----------------------------------------------------------------------------------------

def run(capsys, *arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def broken(case):
    return broken_within(case)


def broken_within(case):
    return broken_deep_within(case)


def broken_deep_within(case):
    raise RuntimeError("my code\nis broken")


BROKEN = broken_deep_within.__code__.co_firstlineno + 1


def broken_elsewhere(case):
    return fractions.Fraction("one half")


def test_an_error_is_told_with_the_last_place_that_is_not_pythons_machinery():
    with pytest.raises(oracle.CannotRun) as raised:
        oracle.compare(*golden("hand/bp")[:1], CONVENTIONS["paper"], golden("hand/bp")[1], broken_elsewhere)
    assert f"Invalid literal for Fraction: 'one half' ({fractions.__file__}:" in str(raised.value)
    with pytest.raises(oracle.CannotRun) as raised:
        checking.load_adapter("no_such_module:f")
    assert "<frozen" not in str(raised.value) and importlib.__file__ in str(raised.value)


def test_an_error_without_a_place_is_told_without_one():
    assert checking._where(ValueError("what")) == "ValueError: what"


def nothing(case):
    return None


def misnamed(case):
    return {"dw": [0]}


def too_many(case):
    return {"dW": [0, 0, 0]}


def listed_dL(case):
    return {"dL": [1.0]}


def one_dW(case):
    return {"dW": case.W[0]}


def int_keys(case):
    return {0: case.W[0]}


def leaving(case):
    raise SystemExit(0)


def empty(case):
    return {}


def listed(case):
    return [1]


def complex_numbers(case):
    return {"loss": np.ones(len(case.x)) * 1j}


def flipped(case):
    return {"dL": -oracle.self(case)["dL"]} if case.rule != "bp" else None


def test_check_prints_a_table_and_tells_by_its_exit_code(capsys):
    code, out, err = run(capsys, "check", SMALL, "--adapter", "npref.oracle:self", "--cases", "hand/*", "danp/dense2*")
    assert code == 0 and err == "" and "danp/dense2-bias-k3" in out and out.splitlines()[-1].startswith("14 ok, 0 wrong, 0 skipped")
    code, out, err = run(capsys, "check", SMALL, "--adapter", "test_oracle:flipped", "--cases", "*/dense2-bias*", "--dtype", "float32")
    assert code == 1 and "first wrong: dL[" in out and "hint: the sign: clean minus noisy" in out and "float64" not in out
    assert "skipped: the adapter does not support it" in out
    code, quiet, _ = run(capsys, "check", SMALL, "--adapter", "test_oracle:flipped", "--cases", "*/dense2-bias*", "--quiet")
    assert code == 1 and "skipped:" not in quiet and "WRONG" in quiet


@pytest.mark.parametrize("arguments, words", [
    (["check", SMALL, "--adapter", "npref"], "named module:object, such as npref.oracle:self, got 'npref'"),
    (["check", SMALL, "--adapter", "npref.oracle:"], "named module:object"),
    (["check", SMALL, "--adapter", ":self"], "named module:object"),
    (["check", SMALL, "--adapter", "npref.oracle:self:twice"], "module npref.oracle has no self:twice"),
    (["check", SMALL, "--adapter", "no_such_module:f"], "cannot import no_such_module"),
    (["check", SMALL, "--adapter", "npref.oracle:nothing"], "has no nothing"),
    (["check", SMALL, "--adapter", "npref.oracle:TOLERANCE"], "npref.oracle:TOLERANCE must be a function of a case, got int"),
    (["check", SMALL, "--adapter", "test_oracle:broken"],
     f"bp/dense2-bias in float64: the adapter raised RuntimeError: my code is broken ({__file__}:{BROKEN})"),
    (["check", SMALL, "--adapter", "test_oracle:nothing"], "every case was skipped"),
    (["check", SMALL, "--adapter", "test_oracle:misnamed"],
     "bp/dense2-bias: the adapter returned 'dw/0'; expected x_star, a, x, loss, g, dW, db"),
    (["check", SMALL, "--adapter", "test_oracle:too_many"], "returned 'dW/2'"),
    (["check", SMALL, "--adapter", "test_oracle:empty"],
     "returned nothing that can be checked; expected any of x_star, a, x, loss, g, dW, db"),
    (["check", SMALL, "--adapter", "test_oracle:listed"], "returns a dict of arrays, or None if it does not support a case, got list"),
    (["check", SMALL, "--adapter", "test_oracle:complex_numbers"],
     "loss cannot be made a NumPy array: TypeError: expected real numbers, got complex128"),
    (["check", SMALL, "--adapter", "npref.oracle:self", "--cases", "nope*"], "no case in"),
    (["check", SMALL, "--adapter", "npref.oracle:self", "--cases", "hand/bp", "nope*"], "matches 'nope*'"),
    (["check", SMALL, "--adapter", "test_oracle:listed_dL", "--cases", "hand/np"], "returned 'dL/0'; dL is one array"),
    (["check", SMALL, "--adapter", "test_oracle:one_dW", "--cases", "hand/np"], "returned 'dW'; dW is a list of 2 arrays, one a layer"),
    (["check", SMALL, "--adapter", "test_oracle:int_keys", "--cases", "hand/np"], "returned 0; expected x_star"),
    (["check", SMALL, "--adapter", "test_oracle:leaving", "--cases", "hand/np"], "the adapter raised SystemExit: 0"),
    (["check", SMALL, "--adapter", "npref.oracle:self", "--convention", "keras"], "invalid choice: 'keras'"),
    (["check", "nowhere.h5", "--adapter", "npref.oracle:self"], "no file nowhere.h5"),
    (["check", __file__, "--adapter", "npref.oracle:self"], "got another kind of file"),
    (["list", __file__], "got another kind of file"),
    (["show", SMALL, "nope"], "no case in"),
    (["write", "no/such/folder/a.h5"], "no folder"),
    (["write", "a.h5", "--cases", "nope"], "no case built in matches"),
    (["write", __file__], "is not a file of golden vectors"),
    (["frobnicate"], "invalid choice"),
    ([], "required"),
], ids=str)
def test_mistakes_are_one_line_and_exit_code_2(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1, (code, out, err)


def test_a_header_that_cannot_be_read_is_said_to_be_so(capsys, tmp_path):
    whole, path = SMALL.read_bytes().partition(files.SEAL)[0], tmp_path / "v.h5"  # or nothing would get as far as HDF5
    for byte in range(0, 2000, 97):  # signature, superblock, and what the root group's attributes lie in
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 8]) + whole[byte + 1 :])
        code, _, err = run(capsys, "show", path, "hand/bp")
        assert code == 0 and err == "" or code == 2 and err.count("\n") == 1, byte
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "npref oracle"
    code, _, err = run(capsys, "list", path)
    assert code == 2 and "v.h5: damaged" in err and "write it anew" in err and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_write_after_a_case(capsys, tmp_path, monkeypatch, number):
    handlers, written, write_case = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], [], files._write_case

    def signalled(*arguments):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # in a hurry
        written.append(write_case(*arguments))

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(files, "_write_case", signalled)
    code, _, err = run(capsys, "write", tmp_path / "v.h5", "--cases", "hand/*")
    assert code == 128 + number and err == "" and len(written) == 1 and not list(tmp_path.iterdir())
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_stop_ends_the_processes_that_compute(tmp_path, monkeypatch):
    """After the cases that they are at, and before all others."""
    before, ours, ends = set(active_children()), [], []

    class Kept(files.ProcessPoolExecutor):
        def shutdown(self, **how):
            ends.append(how)
            super().shutdown(**how)

    def stop(done, of):
        ours.extend(set(active_children()) - before)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "ProcessPoolExecutor", Kept)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "v.h5", "hand/*", stop, processes=2)
    assert ends[0] == {"cancel_futures": True} and len(ours) == 2 and {process.exitcode for process in ours} == {0}
    assert set(active_children()) <= before and not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused_before_hdf5_sees_it(capsys, tmp_path, monkeypatch):
    """Which would go round in circles with some blocks lost. It may be written anew, other files may not."""
    path = tmp_path / "v.h5"
    assert run(capsys, "write", path, "--cases", "hand/*")[0] == 0
    whole = path.read_bytes()
    assert whole.count(files.SEAL) == 1 and run(capsys, "list", path)[0] == 0
    monkeypatch.setattr(files.h5py, "File", lambda *arguments, **named: pytest.fail("HDF5 was asked to read it"))
    end = whole.index(files.SEAL)
    for start in (at for at in range(0, end, 2048) if any(whole[at:end][:2048])):
        path.write_bytes(whole[:start] + bytes(len(whole[start:end][:2048])) + whole[start:end][2048:] + whole[end:])
        code, out, err = run(capsys, "list", path)
        assert (code, out) == (2, "") and "v.h5: damaged, its sha256 is not the one at its end: write it anew" in err
    monkeypatch.undo()
    assert run(capsys, "write", path, "--cases", "hand/*")[0] == 0 and len(list(read(path))) == 5
    path.write_bytes(b"mine")
    assert run(capsys, "write", path)[0] == 2 and path.read_bytes() == b"mine"


def test_a_damaged_file_is_refused(capsys, tmp_path):
    copy = tmp_path / "copy.h5"
    shutil.copy(SMALL, copy)
    with h5py.File(copy, "r+") as file:
        file["hand/np/outputs/dW/0"][...] = 25
    code, _, err = run(capsys, "check", copy, "--adapter", "npref.oracle:self", "--cases", "hand/*")
    assert code == 2 and "damaged" in err and "sha256" in err
    with h5py.File(copy, "r+") as file:
        file.attrs["version"] = 2
    code, _, err = run(capsys, "list", copy)
    assert code == 2 and "expected version 1" in err


def test_list_and_show(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0 and len(out.splitlines()) == len(BUILT_IN)
    code, out, _ = run(capsys, "list", SMALL)
    assert code == 0 and "hand/anp" in out and "‖δa‖² = 17" in out
    code, out, _ = run(capsys, "show", SMALL, "danp/conv-stride-bias-k3")
    assert code == 0 and "Conv(channels=2, kernel=(3, 2), stride=(2, 1)" in out and "dW/0                 (2, 2, 3, 2)" in out
    code, out, _ = run(capsys, "show", SMALL, "hand/bp", "--values")
    assert code == 0 and "[[4. 8.]]" in out


def test_write_prints_its_count(capsys, tmp_path):
    code, out, _ = run(capsys, "write", tmp_path / "a.h5", "--cases", "hand/*")
    assert code == 0 and out.startswith("5 cases written")
    code, _, _ = run(capsys, "write", tmp_path / "a.h5", "--cases", "hand/bp")  # golden vectors may be replaced
    assert code == 0 and [case.name for case, _ in read(tmp_path / "a.h5")] == ["hand/bp"]


class Tensor:
    """As PyTorch's: an array only once it has left graph, device and lazy sign, in this order."""

    def __init__(self, a, left=()):
        self.a, self.left = a, left

    detach, cpu, resolve_neg = (lambda self, name=name: Tensor(self.a, (*self.left, name)) for name in ("detach", "cpu", "resolve_neg"))

    def __array__(self, dtype=None, copy=None):
        assert self.left == ("detach", "cpu", "resolve_neg")
        return self.a

    def __dlpack__(self, **options):
        raise BufferError("__array__ comes first")


class DLPackOnly:
    def __init__(self, a):
        self.a = a

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


@pytest.mark.parametrize("library", ["number", "dlpack", "tensor", "torch", "jax", "cupy", "cupy._core.core"])
def test_arrays_of_other_libraries(library, request):
    a = np.array([[1.5, -2.0]], dtype=np.float32)
    if library == "number":
        assert checking.to_numpy(3) == 3.0
        return
    if library == "dlpack":
        b = DLPackOnly(a)
    elif library == "tensor":
        b = Tensor(a)
    elif library.startswith("cupy"):
        module = request.getfixturevalue("fake_cupy")
        b = type("ndarray", (module.ndarray,), {"__module__": library})(a)
    elif library == "torch":
        torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[adapters]"')
        b = torch.tensor(a, requires_grad=True)
        assert np.array_equal(checking.to_numpy(b.bfloat16()), a)
    else:
        jnp = pytest.importorskip("jax", reason='needs JAX: pip install -e ".[adapters]"').numpy
        b = jnp.asarray(a)
        assert np.array_equal(checking.to_numpy(b.astype(jnp.bfloat16)), a)
    out = checking.to_numpy(b)
    assert type(out) is np.ndarray and out.dtype == np.float64 and np.array_equal(out, a)


def test_a_masked_array_is_refused():
    with pytest.raises(TypeError, match="^expected an array without a mask$"):
        checking.to_numpy(np.ma.masked_invalid([1.0, np.nan]))
