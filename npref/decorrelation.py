"""Decorrelation of a layer's input: the update of R, and a measure of what is left to do (v2 §2.2)."""

import warnings

import numpy as np

from .backend import array_module
from .execution import column_squares, elementwise
from .functions import finite

STRIP = 1024  # rows of R that one product changes on a CPU


class OvershootWarning(UserWarning):
    """α is so large that R's first step overshoots, after which R nearly always grows without end; the message has a limit that it must
    stay below, and well below."""


def update_decorrelation(R, x_star, alpha):
    """R ← R - α (⟨x* x*ᵀ⟩ - diag⟨(x*)²⟩) R, in place (`equations.decorrelation_update` returns the new R); ⟨·⟩ is the mean over the
    rows of x* (M, n_in), the clean pass's.

    For a convolution the rows are the patches of all samples and positions. With M rows and n inputs the moment times R costs
    M n² / 2 + n³ multiply-adds; with few rows X*ᵀ (X* R) / M costs 2 M n² instead. `_change` takes the diagonal out of either.

    On inputs that stay the same its first step from R = I overshoots where α exceeds `overshoot_limit`, and R then nearly always grows
    without end. Raises ValueError for shapes, TypeError for dtypes that do not fit; ValueError for an R that cannot change and an α that is
    not finite.
    """
    xp, alpha = _check(R, x_star), finite("alpha", alpha)
    M, n = x_star.shape
    if moment_is_cheaper(M, n):
        _change_by_moment(R, x_star.T @ x_star, alpha / M)  # (n_in, n_in), BLAS computes one half
        return
    squares, projected = column_squares(xp, x_star), x_star @ R  # (n_in,), (M, n_in)
    rows = STRIP if xp is np else n  # of R at a time: no second matrix of R's size
    for i in range(0, n, rows):
        product = x_star[:, i : i + rows].T @ projected  # (rows, n_in)
        elementwise(xp, _change, (R[i : i + rows], squares[i : i + rows, None], product), (alpha / M,))


def _change(R, squares, product, rate):
    """R ← R - rate (product - squares R), where product is moment R, and is overwritten, and squares are the moment's diagonal."""
    R *= 1 + rate * squares
    product *= rate
    R -= product


def decorrelation_step(Rs, trace, alpha):
    """`update_decorrelation` of every R, in place. Rs: one a layer, None is passed over (so that without any this does nothing); trace: an
    update's, with these R.

    Where that has left x* out, the moment is taken from x: Σ x* x*ᵀ = R (Σ x xᵀ) Rᵀ. That rounds as x does before R: in float32 and on
    images, its elements to some 1e-4 of the largest. Raises as `update_decorrelation`, and ValueError for another number of layers.
    """
    if not hasattr(trace, "x_star"):
        raise TypeError(f"expected an update's trace, got {type(trace).__name__}")
    if not isinstance(Rs, (list, tuple)):
        raise TypeError(f"expected a list of R (or None), one a layer, got {type(Rs).__name__}; a Params has them as params.R")
    alpha = finite("alpha", alpha)
    if len(Rs) != len(trace.x_star):
        raise ValueError(f"expected an R (or None) for each of {len(trace.x_star)} layers, got {len(Rs)}")
    layers = [(R, x_star, x) for R, x_star, x in zip(Rs, trace.x_star, trace.x_rows) if R is not None]
    for R, x_star, x in layers:  # nothing changes before all fits
        _check(R, x if x_star is None else x_star)
    for R, x_star, x in layers:
        if x_star is None:
            _change_by_moment(R, R @ (x.T @ x) @ R.T, alpha / len(x))
        else:
            update_decorrelation(R, x_star, alpha)


def _change_by_moment(R, moment, rate):
    """R ← R - rate (moment - diag) R, in place."""
    elementwise(array_module(R), _change, (R, moment.diagonal()[:, None], moment @ R), (rate,))


def _check(R, rows):
    """The array module of R and of x* (or x), if they fit."""
    if R is None:
        raise TypeError("R is None: this layer's input is not decorrelated, or R is what update_decorrelation returned, which is nothing")
    if rows is None:
        raise TypeError("x_star is None, as a rule leaves it out of a layer with many rows: use decorrelation_step(params.R, trace, alpha)")
    xp = array_module(R, rows)
    if rows.ndim != 2 or R.shape != (rows.shape[1],) * 2:
        raise ValueError(f"R must be (n_in, n_in) and x_star (M, n_in), got {R.shape} and {rows.shape}")
    if len(rows) == 0:
        raise ValueError("x_star must have at least one row")
    if rows.dtype != R.dtype or R.dtype.kind not in "fc" or R.dtype.itemsize < 4:
        raise TypeError(f"R and x_star must share one dtype, float32 or wider, got {R.dtype} and {rows.dtype}")
    if not getattr(R.flags, "writeable", True):
        raise ValueError("R must be writable, as it changes in place: copy it")
    return xp


def _check_rows(x):
    """The array module of x, if it is (M >= 1, n_in) of real numbers in float32 or wider."""
    if x is None:
        raise TypeError("x_star is None, as a rule leaves it out of a layer with many rows: forward(network, params, x).x_star has all")
    xp = array_module(x)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"expected at least one row of inputs, (M, n_in), got {x.shape}")
    if x.dtype.kind != "f" or x.dtype.itemsize < 4:
        raise TypeError(f"expected inputs in float32 or wider, got {x.dtype}")
    return xp


def moment_is_cheaper(M, n):
    """Which form of the update costs fewer multiply-adds for M rows of n inputs: M n² / 2 + n³, or 2 M n²?"""
    return n <= 1.5 * M


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is for the training step to find
def overshoot_limit(x, iterations=30):
    """The α beyond which R's update overshoots from R = I: 2 / λ, λ the largest eigenvalue of ⟨x xᵀ⟩ - diag⟨x²⟩, x (M, n_in); a float.

    From R = I a step multiplies the part of the inputs along λ's eigenvector by 1 - αλ, which is below -1 where αλ > 2. A smaller α may
    be too large as well, since R changes, and the moment with it: for two inputs of unit variance and correlation 0.5 the limit is 4, and
    R grows without end above 2. λ is approached from below, by power iteration on C + max⟨x²⟩ I, which has no negative eigenvalue (C is
    that matrix). Infinite for uncorrelated inputs. Raises as `mean_squared_correlation`.
    """
    xp = _check_rows(x)
    M, n = x.shape
    mean_square = column_squares(xp, x) / M  # (n_in,)
    shift = float(mean_square.max()) or 1.0
    v = xp.asarray(np.random.default_rng(0).standard_normal(n).astype(x.dtype))
    for _ in range(iterations):
        v /= xp.sqrt(v @ v)
        Cv = x.T @ (x @ v) / M - mean_square * v  # (n_in,)
        largest = v @ Cv  # λ so far
        v = Cv + shift * v
    return 2 / float(largest) if largest > 0 else float("inf")


def warn_of_overshoot(alpha, trace):
    """Warn with OvershootWarning, on behalf of the caller's caller, if α exceeds the `overshoot_limit` of a layer's input.

    trace: a clean pass with R = I.
    """
    limits = [overshoot_limit(x) for x in trace.x_star]
    if alpha > min(limits):
        warnings.warn(f"decor_lr={alpha:g} is too large for the inputs of layer {limits.index(min(limits)) + 1} as this run starts: beyond "
                      f"{min(limits):.2g} the updates of R overshoot, and R grows; take a smaller decor_lr", OvershootWarning, stacklevel=3)


def mean_squared_correlation(x_star):
    """The mean of c_ij² over i ≠ j, with c_ij = ⟨x_i x_j⟩ / √(⟨x_i²⟩⟨x_j²⟩) over the rows of x* (M, n_in); 0-d, dimensionless.

    1 when all inputs are multiples of one; 1/M on average for independent zero-mean inputs, for M rows cannot tell less from
    nothing: compare values of equal M. The moments are about zero, not about the mean, because those are what the rule for R
    drives to zero. An input that is always 0 counts as uncorrelated. Raises ValueError for another shape, TypeError for another dtype than
    float32 or a wider one.
    """
    xp = _check_rows(x_star)
    M, n = x_star.shape
    if n < 2:
        return xp.zeros(())
    largest = abs(x_star).max(axis=0)
    x_star = x_star / xp.where(largest > 0, largest, 1)  # so that no square overflows or vanishes
    if n <= M:
        gram = x_star.T @ x_star  # (n, n)
        length2 = gram.diagonal()
        length = xp.sqrt(xp.where(length2 > 0, length2, 1))
        c = gram / length[:, None] / length
        c.reshape(-1)[:: n + 1] = 0  # ones, that would round away what is left
        total = xp.sum(c * c, dtype=xp.float64)
    else:
        length2 = column_squares(xp, x_star)
        z = x_star / xp.sqrt(xp.where(length2 > 0, length2, 1))  # columns of length 1 (or 0)
        gram = z @ z.T  # (M, M), with the same sum of squares as zᵀz, Σ_ij c_ij²
        total = xp.maximum(xp.sum(gram * gram, dtype=xp.float64) - xp.sum(length2 > 0), 0)
    return total / (n * (n - 1))
