"""The golden vectors, and the checker: it passes what is right, and names what is wrong."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from golden import BUILT_IN, NAMES, SMALL, first_sample, given, golden, judged, updates_only

from npref import oracle, rules
from npref.functions import derivative
from npref.layers import Conv, Dense, output_shape
from npref.oracle import checker as checking
from npref.oracle.conventions import CONVENTIONS
from npref.oracle.files import case_list, flat, read, write


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


def changed(change):
    """npref's own adapter with its dict of results changed afterwards."""
    def adapter(case):
        out = oracle.self(case)
        out |= change(case, out)
        return out
    return adapter


def scaled(*names, factor):
    return changed(lambda case, out: {name: [None if a is None else a * factor(case) for a in out[name]] for name in names})


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


def demeaned(case, out):
    """R's update by the covariance of x* without its diagonal."""
    def off_diagonal(x):
        rows = x.swapaxes(1, -1).reshape(-1, x.shape[1])
        C = np.cov(rows.T, bias=True)
        return C - np.diag(np.diag(C))
    return {"dR": [off_diagonal(x) @ r for x, r in zip(out["x_star"], case.R)]}


def inputs_counted(case):
    units = sum(case.network.units)
    return (units + np.prod(case.input_shape)) / units


def test_what_is_not_implemented_is_skipped():
    def adapter(case):
        raise NotImplementedError("no convolutions here")

    said = judged("bp/dense2-bias", adapter).skipped
    assert said.startswith("the adapter does not support it (NotImplementedError: no convolutions here (") and __file__ in said


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
    "norm per layer": (given(anp_norm=lambda c: "layer"), "danp/dense2-bias-k3", "dW/0", "the other norm of δa"),
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
    "noise after the activation": (changed(lambda c, o: {"a_tilde": [np.broadcast_to(o["a"][0], o["a_tilde"][0].shape), None]}),
                                   "dinp/conv-stride-bias-k3", "a_tilde/0", "no noise in it"),
    "R's moment demeaned": (changed(demeaned), "danp/conv-dense-bias-k3", "dR/0", "its mean taken off: the moment is about 0"),
    "weights after ten steps": (changed(lambda c, o: {"after_1/m_W": o["after_10/m_W"]}), "danp/dense2-bias-k3", "after_1/m_W/0",
                                "the number after ten steps: copy what later steps change in place"),
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


def test_the_cases_leave_no_room_for_a_wrong_convolution_or_output():
    """A stride that leaves something over, a strided convolution behind another, an output layer that is not linear."""
    over, behind, output = set(), set(), set()
    for case, *_ in case_list():
        for l, (layer, shape) in enumerate(zip(case.layers, case.network.shapes)):
            if isinstance(layer, Conv):
                over |= {(n + 2 * p - k) % s for n, p, k, s in zip(shape[1:], layer.padding, layer.kernel, layer.stride)}
                behind |= set(layer.stride) if l else set()
        output.add(case.layers[-1].activation)
    assert over == {0, 1} and behind == {1, 2} and output == {"identity", "tanh"}


def test_cases_beyond_the_committed_ones_tell_wrong_code(tmp_path, monkeypatch):
    write(tmp_path / "v.h5", ["*/conv-remainder-bias", "*/output-tanh"])
    cases = ["*bp/conv-remainder-bias", "*/output-tanh"]
    right = list(oracle.check(tmp_path / "v.h5", oracle.self, cases="*"))
    assert len(right) == 12 and not any(r.wrong or r.skipped for r in right), right

    def linear(case):
        return oracle.self(replace(case, layers=(*case.layers[:-1], replace(case.layers[-1], activation="identity"))))

    first = {r.name: r.wrong for r in oracle.check(tmp_path / "v.h5", linear, cases=cases, dtypes="float64")}
    assert first == {"bp/conv-remainder-bias": "", "dbp/conv-remainder-bias": "", "bp/output-tanh": "x/1", "danp/output-tanh": "x/1"}

    def without_stride(layer, rows, in_shape):
        """A convolution's dL/dx, its patches laid down as if the stride were 1."""
        if isinstance(layer, Dense):
            return rows.reshape(-1, *in_shape)
        (kh, kw), (_, H, W) = layer.kernel, output_shape(layer, in_shape)
        patches, out = rows.reshape(-1, H, W, in_shape[0], kh, kw), np.zeros((len(rows) // (H * W), *in_shape), rows.dtype)
        for y, x in np.ndindex(H, W):
            out[:, :, y : y + kh, x : x + kw] += patches[:, y, x]
        return out

    monkeypatch.setattr(rules, "unfold_adjoint", without_stride)
    wrong = [r.wrong for r in oracle.check(tmp_path / "v.h5", oracle.self, cases=cases[:1])]
    assert wrong == ["dW/0"] * 4


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
    assert beyond.details == f"[3] is {1 + 3 * tolerance:.17g}, expected 1; 3 of 5 numbers are wrong"
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


def test_a_method_without_a_case_in_the_reference_is_named(tmp_path, monkeypatch):
    for module in ("npref.rules", "npref.oracle.cases"):
        monkeypatch.setattr(f"{module}.METHODS", (*rules.METHODS, "wp"))
    with pytest.raises(ValueError, match="method 'wp' has no case in npref.oracle.reference"):
        write(tmp_path / "a.h5", "wp/dense1-k1")


def test_what_is_asked_for_is_there(tmp_path):
    with pytest.raises(ValueError, match="no case built in is asked for"):
        write(tmp_path / "a.h5", [])
    assert not (tmp_path / "a.h5").exists()
    for dtypes in ("float32", ["float32"]):
        assert [r.dtype for r in checking.check(SMALL, oracle.self, cases="hand/bp", dtypes=dtypes)] == ["float32"]
    for dtypes in ([], ["float32", "float16"], "f4"):
        with pytest.raises(oracle.CannotRun, match="dtypes must be among float64 and float32, got"):
            checking.check(SMALL, oracle.self, dtypes=dtypes)


@pytest.mark.parametrize("arguments, error, words", [
    (("nowhere.h5", oracle.self), FileNotFoundError, "no file nowhere.h5"),
    ((SMALL, None), oracle.CannotRun, "an adapter must be a function of a case, got NoneType"),
    ((SMALL, oracle.self, "keras"), oracle.CannotRun, "unknown convention"),
    ((SMALL, oracle.self, "paper", "nope"), ValueError, "matches 'nope'"),
    ((__file__, oracle.self), ValueError, "another kind of file"),
])
def test_arguments_are_judged_at_the_call(arguments, error, words):
    """Not when the first result is asked for, which a test that never does would not see."""
    with pytest.raises(error, match=words):
        oracle.check(*arguments)
