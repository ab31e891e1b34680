"""Decorrelation of a layer's input: the update of R, and a measure of what is left to do (v2 §2.2)."""

import numpy as np

from .backend import array_module, in_blocks

STRIP = 1024  # rows of R that one product changes on a CPU


def update_decorrelation(R, x_star, alpha):
    """R ← R - α (⟨x* x*ᵀ⟩ - diag⟨(x*)²⟩) R, in place; ⟨·⟩ is the mean over the rows of x* (M, n_in), the clean pass's.

    For a convolution the rows are the patches of all samples and positions. With M rows and n inputs the moment times R costs
    M n² / 2 + n³ multiply-adds; with few rows X*ᵀ (X* R) / M - diag(s) R, s = ⟨(x*)²⟩, costs 2 M n² instead.

    On inputs that stay the same it overshoots from R = I on, and R grows without end, where α times the largest eigenvalue of ⟨x xᵀ⟩
    without its diagonal exceeds 2.
    """
    xp = array_module(R, x_star)
    if x_star.ndim != 2 or R.shape != (x_star.shape[1],) * 2:
        raise ValueError(f"R must be (n_in, n_in) and x_star (M, n_in), got {R.shape} and {x_star.shape}")
    M, n = x_star.shape
    if moment_is_cheaper(M, n):
        moment = x_star.T @ x_star  # (n_in, n_in), BLAS computes one half
        xp.fill_diagonal(moment, 0)
        moment *= alpha / M
        R -= moment @ R
        return
    mean_square = xp.einsum("mi,mi->i", x_star, x_star) / M  # s, (n_in,)
    projected = x_star @ R  # (M, n_in)
    projected *= alpha / M
    rows = STRIP if xp is np else n  # of R at a time: no second matrix of R's size
    for i in range(0, n, rows):
        strip, scale = R[i : i + rows], (1 + alpha * mean_square[i : i + rows])[:, None]
        product = x_star[:, i : i + rows].T @ projected  # (rows, n_in)

        def change(blocks, strip=strip, scale=scale, product=product):
            for b in blocks:
                strip[b] *= scale[b]
                strip[b] -= product[b]

        in_blocks(xp, change, len(strip), n)


def moment_is_cheaper(M, n):
    """Which form of the update costs fewer multiply-adds for M rows of n inputs: M n² / 2 + n³, or 2 M n²?"""
    return n <= 1.5 * M


def mean_squared_correlation(x_star):
    """The mean of c_ij² over i ≠ j, with c_ij = ⟨x_i x_j⟩ / √(⟨x_i²⟩⟨x_j²⟩) over the rows of x* (M, n_in); 0-d, dimensionless.

    1 when all inputs are multiples of one; 1/M on average for independent zero-mean inputs, for M rows cannot tell less from
    nothing: compare values of equal M. The moments are about zero, not about the mean, because those are what the rule for R
    drives to zero. An input that is always 0 counts as uncorrelated.
    """
    xp = array_module(x_star)
    M, n = x_star.shape
    if n < 2:
        return xp.zeros(())
    largest = abs(x_star).max(axis=0)
    x_star = x_star / xp.where(largest > 0, largest, 1)  # so that no square overflows or vanishes
    length2 = xp.einsum("mi,mi->i", x_star, x_star)
    z = x_star / xp.sqrt(xp.where(length2 > 0, length2, 1))  # columns of length 1 (or 0)
    gram = z.T @ z if n <= M else z @ z.T  # both have the same sum of squares, Σ_ij c_ij²
    return xp.maximum(xp.sum(gram * gram) - xp.sum(length2 > 0), 0) / (n * (n - 1))
