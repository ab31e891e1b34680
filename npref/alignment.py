"""How well a rule's update agrees with backpropagation's: angles, their fall with the noise samples, bias and variance.

The reference G_l is BP's ΔW_l (Eq. 1) on the same network, parameters and batch (`rules.bp_update`). For a decorrelated method that is
DBP's: the gradient with respect to W_l where x* = R x is the layer's input. Updates come as ΔW_1 ... ΔW_L (`Update.dW`); biases are
not compared. Sums are in float64, whatever the updates are in.
"""

from dataclasses import dataclass
from math import pi

import numpy as np

from .backend import array_module, to_host


def angle(update, reference):
    """The angle between two updates of a layer, taken as vectors, in degrees: arrays of one shape -> 0-d float64 in [0, 180].

    2 arctan(‖u/‖u‖ - v/‖v‖‖ / ‖u/‖u‖ + v/‖v‖‖), which is as exact near 0 and 180 degrees as at 90; an arccos of the cosine
    is exact near 90 only. 90 if either is zero: such an update goes neither down nor up. Raises ValueError for unequal shapes, TypeError
    for what is no array of real numbers.
    """
    xp = array_module(update, reference)
    if any(a is None or a.dtype.kind not in "fiu" for a in (update, reference)):
        raise TypeError(f"expected arrays of real numbers, got {', '.join(str(getattr(a, 'dtype', None)) for a in (update, reference))}")
    if update.shape != reference.shape:
        raise ValueError(f"an update and its reference must have one shape, got {update.shape} and {reference.shape}")
    u, v = _unit(xp, update), _unit(xp, reference)
    minus, plus = xp.sqrt(xp.sum((u - v) ** 2)), xp.sqrt(xp.sum((u + v) ** 2))
    return xp.where(plus + minus == 0, 90.0, xp.arctan2(minus, plus) * (360 / pi))[()]  # a scalar, on NumPy


def angles(dW, reference):
    """The angle of every layer, in degrees: ΔW_1 ... ΔW_L of two updates -> (L,) float64 on the host.

    Raises ValueError for unequal numbers of layers, or shapes, TypeError for what is no list.
    """
    _check_layers(dW, reference)
    return to_host(array_module(*dW, *reference).stack([angle(u, g) for u, g in zip(dW, reference)]))


def running_means(update, samples):
    """A rule's update with K noise samples, for every K in `samples`, increasing: yields (K, (ΔW_1 ... ΔW_L)), float64.

    update(range) gives the `Update` averaged over those noise samples alone. Each is asked for once, so K = 1, 10, 1000 takes 1000
    noisy passes, and a smaller K has the first noise samples of a larger one. From j to K noise samples

        ū_K = ū_j + (K - j)/K (u_j:K - ū_j)

    Raises ValueError if `samples` is not increasing from at least 1.
    """
    samples = list(samples)
    if not samples or samples[0] < 1 or samples != sorted(set(samples)):
        raise ValueError(f"samples must be increasing numbers of noise samples, 1 or more, got {samples}")
    j, mean = 0, None
    for K in samples:
        dW = update(range(j, K)).dW
        mean = tuple(u.astype("float64") for u in dW) if mean is None else tuple(m + (u - m) * ((K - j) / K) for m, u in zip(mean, dW))
        yield K, mean
        j = K


@dataclass(frozen=True)
class Spread:
    """n estimates u_1 ... u_n so far: count = n; mean, ū per layer; squares (L,), Σ_i ‖u_i - ū‖². All float64."""

    count: int
    mean: tuple
    squares: object


@dataclass(frozen=True)
class Split:
    """An estimator's squared distance from G, split per layer: all (L,) float64 on the host, in the units of ‖G‖², or of nothing.

    variance  Σ_i ‖u_i - ū‖² / (n - 1)
    bias2     ‖ū - G‖² - variance / n, which is unbiased, and so below 0 now and then
    relative_variance, relative_bias2: both over ‖G‖² (not finite where G is 0).   snr  (‖ū‖² - variance / n) / variance
    """

    variance: np.ndarray
    bias2: np.ndarray
    relative_variance: np.ndarray
    relative_bias2: np.ndarray
    snr: np.ndarray


def add_estimate(spread, dW):
    """The Spread with one more independent estimate; `spread` is None before the first. Welford's update:

        ū ← ū + d/n,   squares ← squares + (n - 1)/n ‖d‖²,   d = u_n - ū

    which needs no earlier estimate, and no difference of large squares. Raises ValueError for unequal shapes.
    """
    _check_layers(dW, dW if spread is None else spread.mean)
    xp = array_module(*dW)
    if spread is None:
        return Spread(1, tuple(u.astype("float64") for u in dW), xp.zeros(len(dW)))
    n, d = spread.count + 1, [u - mean for u, mean in zip(dW, spread.mean)]
    return Spread(n, tuple(mean + d_l / n for mean, d_l in zip(spread.mean, d)), spread.squares + (n - 1) / n * _norm2(xp, d))


def bias_and_variance(spread, reference):
    """The Split of the estimates in `spread` about the reference G_1 ... G_L. Raises ValueError for fewer than two, or unequal shapes."""
    if spread is None or spread.count < 2:
        raise ValueError(f"a variance needs at least 2 independent estimates, got {0 if spread is None else spread.count}")
    _check_layers(spread.mean, reference)
    xp = array_module(*spread.mean, *reference)
    norms = [_norm2(xp, a) for a in ([m - G for m, G in zip(spread.mean, reference)], spread.mean, reference)]
    error, mean, G = to_host(xp.stack(norms))  # squares, (L,) each
    variance = to_host(spread.squares) / (spread.count - 1)
    bias2 = error - variance / spread.count
    with np.errstate(divide="ignore", invalid="ignore"):
        return Split(variance, bias2, variance / G, bias2 / G, (mean - variance / spread.count) / variance)


def _check_layers(dW, reference):
    for update in (dW, reference):
        if not hasattr(update, "__len__"):
            raise TypeError(f"expected a list of arrays, one a layer, got {type(update).__name__}; an Update has them as update.dW")
        if any(not hasattr(a, "shape") for a in update):
            raise TypeError(f"expected one array a layer, got {', '.join(type(a).__name__ for a in update)}")
    shapes = [[a.shape for a in update] for update in (dW, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"two updates must have the same layers, got {shapes[0]} and {shapes[1]}")


def _norm2(xp, arrays):
    """‖·‖² of every array, in float64: (L,)."""
    return xp.stack([xp.sum(a.astype("float64", copy=False) ** 2) for a in arrays])


def _unit(xp, update):
    """The direction as a float64 vector; a zero vector stays zero."""
    u = update.reshape(-1).astype(xp.float64)
    largest = abs(u).max()
    u = u / xp.where(largest > 0, largest, 1)  # so that no square overflows or vanishes
    length = xp.sqrt(xp.sum(u * u))
    return u / xp.where(length > 0, length, 1)
