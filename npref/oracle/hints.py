"""What a wrong array looks like: known transformations of the right one, and reruns of the reference with one thing changed."""

from dataclasses import replace
from itertools import permutations
from math import prod, sqrt

import numpy as np

from .conventions import CONVENTIONS, VARIANTS
from .reference import Kink, reference

ORDERS = {"a": "(B, *shape)", "g": "(B, *shape)", "da": "(K, B, *shape)", "a_tilde": "(K, B, *shape), of inp (K, L, B, *shape)",
          "noisy_loss": "(K, B), of inp (K, L, B)", "dL": "(K, B), of inp (K, L, B)"}
REST2 = float(1 - np.float32(0.999)) / 0.001  # what v is multiplied by where Adam's 1 - β₂ is a difference in float32


def hint(case, convention, name, out, value, tolerance, rerun=True, right=None, fitted=()):
    """Words on what `out`, not within `tolerance` of `value` of the same shape, may have come from; "" where nothing fits.

    rerun=False leaves out the explanations that need the reference computed again, but for those whose words are in `fitted`, as
    others of the adapter's differences have been explained by them. right: {quantity: (array, tolerance)} of what was found right:
    an explanation must leave it so.
    """
    right = right or {}
    turned = []
    if out.ndim == 2:
        turned = [(out.T, "transposed")]
    elif name.startswith("dW") and out.ndim == 4:
        turned = [(out[..., ::-1, ::-1], "kernels flipped: a convolution here is a cross-correlation"),
                  (out.swapaxes(2, 3), "vertical and horizontal taps exchanged")]
    for other, words in turned:
        if other.shape == value.shape and _agree(other, value, tolerance):
            return words
    if name.startswith("x_star") and np.all(abs(_sorted(out) - _sorted(value)) <= 4 * np.max(tolerance)):
        return "the right numbers in another order: a patch is (C_in, kh, kw), not flipped; an image is flattened as (C, H, W)"
    order = ORDERS.get(name.partition("/")[0])
    if order and not _agree(out, value, tolerance) and _agree(np.sort(out, axis=None), np.sort(value, axis=None), np.max(tolerance)):
        return f"the right numbers in another order: it is {order}, and an image's shape is (C, H, W)"
    if name == "a_tilde/0" and "a/0" in right and _agree(out, np.broadcast_to(right["a/0"][0], out.shape), tolerance):
        return "no noise in it: noise is added to the pre-activation, before the activation, and a_tilde includes it"
    if rerun and convention != CONVENTIONS["paper"]:
        papers = _rerun(case, CONVENTIONS["paper"], name).get(name)
        if papers is not None and papers.shape == out.shape and _agree(out, papers.value, tolerance):
            return "this is the paper's number, not this convention's"
    said = _decorrelation(case, convention, name, out, value, tolerance, rerun, right) \
        or _variant(case, convention, name, out, value, tolerance, rerun, right, fitted) \
        or _step(case, convention, name, out, value, tolerance, rerun, right)
    if said or not name.startswith("after_"):
        return said or _factor(case, name, out, value, tolerance) or _precision(case, out, value, tolerance)
    if "/v_" in name and case.dtype == "float32" and 8 * np.max(abs(out - REST2 * value)) < np.max(abs(out - value)):
        return "1 - β₂ computed in float32, in which β₂ rounds: it is 0.001"
    moments = {name.replace(f"/{kind}/", f"/{moment}_{kind}/") for kind in "Wb" for moment in "mv"} - {name}
    if moments <= right.keys() and moments:
        return "m and v are right: it is the last step's ε, bias correction or rate"
    return _factor(case, name, out, value, tolerance)  # no precision: a step makes errors of every size out of one in ΔW


def shape_hint(out, value, tolerance):
    """Words on why `out` may have another shape than `value`, or ""."""
    if out.ndim == value.ndim:
        for axes in permutations(range(out.ndim)):
            turned = out.transpose(axes)
            if turned.shape == value.shape and _agree(turned, value, tolerance):
                return "transposed" if out.ndim == 2 else "the right numbers, but for the order of their axes"
    if out.size == value.size and _agree(out.reshape(value.shape), value, tolerance):
        return "the right numbers in another shape"
    whole = {"mean": value.mean(), "sum": value.sum()} if out.size == 1 and value.ndim else {}
    return next((f"one number, the {words} of all that are expected" for words, number in whole.items()
                 if _agree(out.reshape(()), number, np.max(tolerance) * value.size)), "")


def _agree(out, value, tolerance):
    return bool(np.all(abs(out - value) <= 4 * np.broadcast_to(tolerance, value.shape)))


def _sorted(a):
    """Each sample's numbers in order of size."""
    return np.sort(a.reshape(len(a), -1), axis=1)


def _decorrelation(case, convention, name, out, value, tolerance, rerun, right):
    """What dR is instead, where x* is right, or has not been returned."""
    kind, _, l = name.partition("/")
    if kind != "dR" or not (rerun or f"x_star/{l}" in right) or convention.R_transposed or convention.scaled_decorrelation:
        return ""
    if f"x_star/{l}" in right:
        x_star = right[f"x_star/{l}"][0]
    elif (run := _rerun(case, convention, name)):
        x_star = run[f"x_star/{l}"].value
    else:
        return ""
    R = np.eye(x_star.shape[1]) if case.R[int(l)] is None else case.R[int(l)].astype(float)
    rows = x_star.swapaxes(1, -1).reshape(-1, x_star.shape[1])  # (B*P, n_in)
    moment = rows.T @ rows / len(rows)
    C, C_demeaned = (m - np.diag(np.diag(m)) for m in (moment, moment - np.outer(rows.mean(0), rows.mean(0))))
    for other, words in ((moment @ R, "the moment's diagonal kept: ⟨(x*)²⟩ is to be taken off"),
                         ((moment - np.eye(len(R))) @ R, "1 in place of the moment's diagonal ⟨(x*)²⟩"),
                         (R @ C, "R times the moment: it is the moment times R"), (C, "the factor R is missing"),
                         (C_demeaned @ R, "the covariance of x*, its mean taken off: the moment is about 0")):
        if _agree(out, other, 2 * tolerance) and not _agree(value, other, tolerance):
            return words
    return ""


def _step(case, convention, name, out, value, tolerance, rerun, right):
    """What is wrong with the change that a step makes, of parameters after the first one."""
    after, kind, l = name.split("/") if name.count("/") == 2 else ("", "", "")
    if after != "after_1" or kind not in ("W", "b", "R"):
        return ""
    before, rate = getattr(case, kind)[int(l)], case.alpha if kind == "R" else case.lr
    before = np.eye(len(value)) if before is None else before.astype(float)
    before = before.T if kind == "W" and convention.transposed else before
    change, expected = before - out, before - value
    if not change.any():
        return "as it was before the step"
    if _agree(change, -expected, tolerance):
        return "the sign of its change: an update is subtracted"
    if kind == "R" and case.lr != case.alpha and _agree(change, case.lr / case.alpha * expected, tolerance):
        return "lr in place of alpha, which is R's own rate"
    if kind != "R" and case.optimizer != "sgd":  # Adam's first step has about lr's size, whatever dW has
        return ""
    scaled = f"d{kind}/{l}", change / rate, expected / rate, tolerance / rate
    return _decorrelation(case, convention, *scaled, rerun, right) or _factor(case, *scaled)


def _variant(case, convention, name, out, value, tolerance, rerun, right, fitted):
    for fields, words in VARIANTS:
        if all(getattr(convention, k) == v for k, v in fields.items()) or not (rerun or words in fitted):
            continue
        run = _rerun(case, replace(convention, **fields), name)
        if name not in run or _agree(value, run[name].value, tolerance):  # no variant changes a shape
            continue
        if _agree(out, run[name].value, tolerance) and all(_agree(a, run[n].value, t) for n, (a, t) in right.items() if n in run):
            return words
    return ""


def _rerun(case, convention, name):
    try:
        return reference(case, convention, (10,) if name.startswith("after_10") else (1,))
    except Kink:
        return {}


def _factor(case, name, out, value, tolerance):
    kind, _, l = name.partition("/")
    top = np.unravel_index(np.argmax(abs(value)), value.shape)
    if value[top] == 0:
        return ""
    factor = out[top] / value[top]
    if not np.isfinite(factor) or _agree(out, value, tolerance) or not _agree(out, factor * value, max(1, abs(factor)) * tolerance):
        return ""
    if factor == 0:
        return "all numbers are 0"
    units, B, K = case.network.units, len(case.x), 1 if case.eps is None else len(case.eps[0])
    known = [(-1, "the sign"), (2, "a factor 2"), (0.5, "a factor 1/2")]
    if kind in ("loss", "noisy_loss", "dL") and case.loss.startswith("mse"):
        known += [(1 / units[-1], "averaged over the outputs: mse is their sum"),
                  (units[-1], "summed over the outputs: mse-mean is their mean")]
    if kind in ("dW", "db"):
        N, N_l, positions = sum(units), units[int(l)], prod(case.network.shapes[int(l) + 1][1:])
        known += [(B, "summed over the batch: the mean is expected"), (1 / B, "averaged over the batch twice"),
                  (K, "summed over the K noise samples: their mean is expected"),
                  (B * K, "summed over batch and noise samples: their mean is expected"),
                  (1 / positions, "averaged over a convolution's positions: their sum is expected")]
        if case.rule == "np":
            known += [(sqrt(case.sigma2), "σ in place of σ²"), (case.sigma2, "the division by σ² is missing")]
        for rule, n, words in (("anp", N, "N, the units of the network"), ("inp", N_l, "N_l, the units of the layer")):
            if case.rule == rule:
                known += [(1 / n, f"{words}, is missing"), (1 / sqrt(n), f"the square root of {words}, in its place"),
                          (n, f"{words}, once too often")]
        known += {"anp": [(N_l / N, "N_l in place of N")], "inp": [(N / N_l, "N in place of N_l")]}.get(case.rule, [])
    if kind == "g":
        known += [(1 / B, "divided by the batch: g is each sample's own, not of the mean loss")]
    if kind == "dR":
        positions = prod(case.network.shapes[int(l) + 1][1:])
        n = B * positions
        known += [(B, "summed over the batch: the mean is expected"), (n / max(1, n - 1), "n - 1 in place of n: ⟨·⟩ is the mean")]
        if positions > 1:
            known += [(positions, "summed over positions: their mean is expected"),
                      (n, "summed over samples and positions: their mean is expected")]
    known = [(number, words) for number, words in known if abs(number - 1) > 1e-9]  # one sample, or position, makes no difference
    fitting = [words for number, words in known if abs(factor - number) <= 1e-4 * abs(number)]
    fitting += [f"the sign, and {words}" for number, words in known if number > 0 and abs(factor + number) <= 1e-4 * number]
    return " or ".join(fitting) or (f"off by the constant factor {factor:.6g}" if value.size > 1 and abs(factor - 1) > 1e-5 else "")


def _precision(case, out, value, tolerance):
    """What an error of that many tolerances is typical of, if it is small beside the numbers: a gross mistake may be as large."""
    error = abs(out - value)
    if 16 * np.max(error) >= np.max(abs(value)):
        return ""
    for dtype, least, most, words in (  # most: of a bfloat16 product 2^13.1 was seen
            ("float64", 2.0**23, 2.0**29, "the error may be float32's: something is computed in single precision, or a small number added, "
                                          "as in log(p + 1e-7)"),
            ("float32", 2.0**4, 2.0**14, "the error may be that of 8 to 11 significant bits: a product in bfloat16, TF32 or float16; "
                                         "or of a small number added, as in log(p + 1e-7)")):
        if case.dtype == dtype and np.all(error <= most * tolerance) and np.any(error > least * tolerance):
            return words
    return ""
