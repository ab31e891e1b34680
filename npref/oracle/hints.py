"""What a wrong array looks like: known transformations of the right one, and reruns of the reference with one thing changed."""

from dataclasses import replace
from math import prod, sqrt

import numpy as np

from .conventions import CONVENTIONS, VARIANTS
from .reference import Kink, reference


def hint(case, convention, name, out, value, tolerance, rerun=True):
    """Words on what `out`, not within `tolerance` of `value` of the same shape, may have come from; "" where nothing fits.

    rerun=False leaves out the explanations that need the reference computed again.
    """
    turned = []
    if out.ndim == 2:
        turned = [(out.T, "transposed")]
    elif name.startswith("dW") and out.ndim == 4:
        turned = [(out[..., ::-1, ::-1], "kernels flipped: a convolution here is a cross-correlation"),
                  (out.swapaxes(2, 3), "vertical and horizontal taps exchanged")]
    for other, words in turned:
        if other.shape == value.shape and _agree(other, value, tolerance):
            return words
    if rerun and convention != CONVENTIONS["paper"]:
        papers = _rerun(case, CONVENTIONS["paper"], name)
        if papers is not None and papers.shape == out.shape and _agree(out, papers.value, tolerance):
            return "this is the paper's number, not this convention's"
    return (_variant(case, convention, name, out, value, tolerance) if rerun else "") or _factor(case, name, out, value, tolerance) \
        or _precision(case, out, value, tolerance)


def shape_hint(out, value, tolerance):
    """Words on why `out` may have another shape than `value`, or ""."""
    return "transposed" if out.shape == value.T.shape and _agree(out.T, value, tolerance) else ""


def _agree(out, value, tolerance):
    return bool(np.all(abs(out - value) <= 4 * np.broadcast_to(tolerance, value.shape)))


def _variant(case, convention, name, out, value, tolerance):
    for fields, words in VARIANTS:
        if all(getattr(convention, k) == v for k, v in fields.items()):
            continue
        other = _rerun(case, replace(convention, **fields), name)
        if other is None or _agree(value, other.value, tolerance):  # no variant changes a shape
            continue
        if _agree(out, other.value, tolerance):
            return words
    return ""


def _rerun(case, convention, name):
    try:
        return reference(case, convention, (10,) if name.startswith("after_10") else (1,)).get(name)
    except Kink:
        return None


def _factor(case, name, out, value, tolerance):
    kind, _, l = name.partition("/")
    top = np.unravel_index(np.argmax(abs(value)), value.shape)
    if value[top] == 0:
        return ""
    factor = out[top] / value[top]
    if not np.isfinite(factor) or _agree(out, value, tolerance) or not _agree(out, factor * value, max(1, abs(factor)) * tolerance):
        return ""
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
    known = [(number, words) for number, words in known if abs(number - 1) > 1e-9]  # one sample, or position, makes no difference
    fitting = [words for number, words in known if abs(factor - number) <= 1e-4 * abs(number)]
    fitting += [f"the sign, and {words}" for number, words in known if number > 0 and abs(factor + number) <= 1e-4 * number]
    return " or ".join(fitting) or (f"off by the constant factor {factor:.6g}" if value.size > 1 else "")


def _precision(case, out, value, tolerance):
    for dtype, bits, words in (("float64", 53 - 24, "the error is float32's: something is computed in single precision"),
                               ("float32", 24 - 11, "the error is that of 11 significant bits: a product in TF32 or float16"),
                               ("float32", 24 - 8, "the error is that of 8 significant bits: a product in bfloat16")):
        error, limit = abs(out - value), tolerance * 2.0**bits
        if case.dtype == dtype and np.all(error <= limit) and np.any(error > 2.0**-6 * limit):
            return words
    return ""
