"""Activations with their derivatives, and per-sample losses with their gradients.

Every function keeps the dtype of its array (losses excepted, see `loss`), and accepts complex arrays on NumPy, so that derivatives can be
judged by complex steps. All are one text for NumPy and CuPy but cross-entropy and `correct`, which a GPU does by kernels.py.
"""

from math import inf, isfinite, prod
from numbers import Real

import numpy as np

from .backend import array_module
from .execution import fused
from .kernels import launch

ACTIVATIONS = ("leaky_relu", "relu", "tanh", "identity", "step", "sign")  # another goes here, into `activate` and, for BP, `derivative`
JUMPS = ("step", "sign")
LOSSES = ("cce", "mse", "mse-mean")  # another goes here, into `loss` and, for BP, `loss_gradient`


def activate(name, a, slope=0.2):
    """x = f(a), elementwise. `slope` is leaky_relu's for a < 0 (0 <= slope < 1).

    step is 1 for a > 0 and 0 elsewhere; sign is 1 for a > 0 and -1 elsewhere. Raises ValueError for another name or slope, TypeError for
    integers.
    """
    xp = _check_pre_activations(name, a, slope)
    match name:  # what is written here may be fused: see execution.py
        case "leaky_relu":
            x = a * float(slope)
            if isinstance(x, np.generic):  # of a number, or an array without axes
                return np.maximum(a, x)
            return xp.maximum(a, x, out=x)  # as slope < 1; complex arrays compare by their real parts first
        case "relu":
            return xp.maximum(a, 0)
        case "tanh":
            return xp.tanh(a)
        case "identity":
            return a
        case "step":
            return (xp.real(a) > 0).astype(a.dtype)
        case "sign":
            return (xp.real(a) > 0).astype(a.dtype) * 2 - 1
    raise _no_case("activation", name, ACTIVATIONS, "activate")


def derivative(name, a, slope=0.2):
    """f'(a), elementwise, from the pre-activation (at a kink: the left side's value). `slope` and errors as in `activate`.

    Raises ValueError for step and sign too, which have none: use a perturbation rule, which needs no derivative.
    """
    xp = _check_pre_activations(name, a, slope)
    match name:
        case "leaky_relu":
            return xp.maximum((xp.real(a) > 0).astype(a.dtype), float(slope))  # 0 <= slope < 1; faster than where
        case "relu":
            return (xp.real(a) > 0).astype(a.dtype)
        case "tanh":
            return 1 - xp.tanh(a) ** 2
        case "identity":
            return xp.ones_like(a)
    check_derivative("backpropagation", name)
    raise _no_case("activation", name, ACTIVATIONS, "derivative, which backpropagation needs")


def check_derivative(who, activation):
    """Raise ValueError for an activation that jumps. who: what needs a derivative, in words."""
    if activation in JUMPS:
        raise ValueError(f"{who} needs a derivative, which the {activation} activation does not have: "
                         "use np, inp, anp or their decorrelated forms, or another activation")


def loss(name, y, t):
    """One loss per sample, in float64 or wider (complex, of complex outputs): (..., n_out) and targets (B, n_out) -> (..., ) losses.

    cce       -sum_i t_i log softmax(y)_i    categorical cross-entropy on logits (v2)
    mse       sum_i (t_i - y_i)^2            Algorithm 1; the loss of v1's experiments
    mse-mean  the same, averaged over the outputs

    float64, because delta L is a small difference of two losses and its rounding should not be the loss's fault. Raises ValueError
    for another name, or targets that do not fit.
    """
    xp, axis = _check_targets(y, t), y.ndim - 1
    match name:
        case "cce":
            if xp is not np:
                return _row_by_row("cross_entropy", xp.empty(y.shape[:-1]), y, t)
            m, _, z = _of_softmax(y)
            return np.sum(t * (m - _wide(y) + np.log(z)), axis=-1)  # -Σ_i t_i log softmax(y)_i
        case "mse":
            return fused(xp, _sum_of_squares, axis)(t, y)
        case "mse-mean":
            return fused(xp, _sum_of_squares, axis)(t, y) / y.shape[-1]
    raise _no_case("loss", name, LOSSES, "loss")


def loss_gradient(name, y, t):
    """∂L/∂y for each sample, in y's dtype: (B, n_out), (B, n_out) -> (B, n_out). Raises as `loss`."""
    xp = _check_targets(y, t)
    if y.dtype.kind not in "fc":
        raise TypeError(f"outputs must be floating-point, as their gradient is, got {y.dtype}")
    match name:
        case "cce":
            if xp is not np:
                out = xp.empty(y.shape, dtype=_real(y).dtype)
                return _row_by_row("cross_entropy_gradient", out, y, t).astype(y.dtype, copy=False)
            total = t.sum(axis=-1, dtype=np.result_type(t.dtype, np.float64), keepdims=True)  # (B, 1)
            _, exponentials, z = _of_softmax(y)
            return (total * (exponentials / z) - t).astype(y.dtype)  # (Σ_i t_i) softmax(y) - t
        case "mse":
            return fused(xp, _mse_gradient)(t, y, 2.0)
        case "mse-mean":
            return fused(xp, _mse_gradient)(t, y, 2 / y.shape[-1])
    raise _no_case("loss", name, LOSSES, "loss_gradient, which backpropagation needs")


def one_hot(labels, classes, dtype="float32"):
    """Labels (B,) of ints in [0, classes) as rows of targets (B, classes). Others give a row of zeros, whose cce is 0 and which `correct`
    takes for class 0: a Dataset has none, and `train.evaluate` refuses them.

    Raises ValueError for labels that are not (B,) ints, and for a number of classes that is not whole and positive.
    """
    xp = array_module(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be (B,) ints, got {labels.shape} of {labels.dtype}")
    if not isinstance(classes, Real) or classes % 1 != 0 or classes < 1:  # infinity % 1 is NaN
        raise ValueError(f"classes must be a whole number, at least 1, got {classes!r}")
    return (labels[:, None] == xp.arange(classes)[None, :]).astype(dtype)


def correct(y, t):
    """Whether the largest output is at the largest target: (..., B, n_out), (B, n_out) -> (..., B) of bool. Raises as `loss`."""
    xp = _check_targets(y, t)
    if xp is not np:
        return _row_by_row("correct", xp.empty(y.shape[:-1], dtype=bool), y, t)
    return y.argmax(axis=-1) == t.argmax(axis=-1)


def _check_pre_activations(name, a, slope):
    xp = array_module(a)
    if a.dtype.kind not in "fc":
        raise TypeError(f"pre-activations must be floating-point, got {a.dtype}")
    if name == "leaky_relu":
        check_slope(slope)
    return xp


def check_slope(slope):
    """Raise ValueError for a slope that leaky_relu cannot have, as it takes the larger of a and slope a."""
    if not 0 <= slope < 1:
        raise ValueError(f"slope must be in [0, 1), got {slope}")


def finite(name, number):
    """The number as Python's float, because a NumPy number would promote what it multiplies. Raises ValueError if it is not finite,
    TypeError if it is no number."""
    try:
        if isinstance(number, (str, bytes)):
            raise TypeError
        number = float(number)
    except OverflowError:  # an integer beyond floating-point numbers
        number = inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {number!r}") from None
    if not isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _check_targets(y, t):
    if y is None or t is None:
        raise TypeError(f"expected outputs and targets, got {'None' if y is None else 'no targets, None'}")
    xp = array_module(y, t)
    if t.ndim != 2 or y.shape[-2:] != t.shape:  # labels would be broadcast where there are as many samples as outputs
        raise ValueError(f"outputs must be (..., B, n_out) and targets (B, n_out), got {y.shape} and {t.shape}"
                         + ("; turn labels into one-hot rows with npref.one_hot" if y.ndim > 1 else ""))
    if t.shape[1] == 0:
        raise ValueError(f"outputs must be at least one a sample, got {y.shape}")
    return xp


def _of_softmax(y):
    """m, the largest output of each sample, exp(y_i - m), and z, their sum; m, z (..., 1): log softmax(y)_i is y_i - m - log z."""
    m = y.real.max(axis=-1)[..., None]
    exponentials = np.exp(_wide(y) - m)  # (..., n_out)
    return m, exponentials, exponentials.sum(axis=-1)[..., None]


def _row_by_row(function, out, y, t):
    """out, filled by that function of kernels.py, one thread for each row of y."""
    rows = prod(y.shape[:-1])
    launch(array_module(y), function, [(out, _real(y).ravel(), _real(t).ravel(), *map(np.uint64, (rows, *t.shape)))], threads=rows)
    return out


def _real(a):
    """What kernels.py takes: float32 or float64. Integers beyond 2^53 are rounded, which NumPy's argmax does not do."""
    if a.dtype.kind == "c":
        raise TypeError(f"a GPU takes no complex outputs and targets, got {a.dtype}")
    return a if a.dtype.char in "fd" else a.astype("float64")


# What follows is fused, see execution.py.


def _mse_gradient(t, y, factor):
    return ((_wide(y) - t) * factor).astype(y.dtype)


def _sum_of_squares(axis, a, b):
    return array_module(a).sum((_wide(a) - b) ** 2, axis=axis)


def _wide(y):
    xp = array_module(y)
    return y.astype(xp.result_type(y.dtype, xp.float64), copy=False)


def _no_case(what, name, known, function):
    if name in known:  # somebody's own
        return ValueError(f"{what} {name!r} has no case in npref.functions.{function}")
    return ValueError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
