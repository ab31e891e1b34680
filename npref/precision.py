"""How much of the loss difference δL is rounding, measured on a few samples: what --sigma2 and --dtype decide between them."""

import warnings
from dataclasses import replace

import numpy as np

from .backend import to_host
from .functions import JUMPS
from .network import Params
from .step import compute_update

MEASURED = 100  # the first so many training images are measured: that takes less time than one step on 1,000
# Rounding adds the square of its relative error to the variance of an update: 1% at this error. The error goes as 1 / σ, so a
# hundredth of that σ² makes rounding as large as δL itself.
NOISE_FLOOR = 0.1
SIGMA_IN_FLOAT64 = 1e-10  # there float64 rounds δL by less than 1e-5 of it, and its curvature in ε is smaller still


class NoiseFloorWarning(UserWarning):
    """σ is so small that rounding in the run's dtype is a large part of δL; the message says how large."""


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is for the training step to find
def rounding_error(config, network, params, x, t):
    """The relative error that rounding gives to δL: the median over samples of ‖δL - δL_64‖ / ‖δL_64‖, a float.

    x (B, *input_shape), t (B, n_out), in the run's dtype. Norms run over INP's layers (other rules have one δL a sample). The noise is
    step 0's first noise sample; parameters and data are those of the run. A run whose many rows make it form W R (see rules.py) rounds up
    to twice as much, once R is not I any more.

    δL_64 is the same in float64, which rounds too: below σ = 1e-10 its noise is drawn at 1e-10, and δL scaled up to that, as it is
    linear in so small a noise. At larger σ float64's own error, below 1e-5, is given as 0; so it is for step and sign at any σ, as they
    jump and nothing may be scaled: unknown.

    The median, because one unit that rounding puts on the other side of a jump changes its sample's δL altogether, and with it a norm
    over all samples. A sample whose δL_64 is 0 counts with its absolute error, usually 0.
    """
    jumps = any(layer.activation in JUMPS for layer in network.layers)
    narrow = replace(config, samples=1)
    wide = replace(narrow, dtype="float64", sigma2=config.sigma2 if jumps else max(config.sigma2, SIGMA_IN_FLOAT64**2))
    params_64 = Params(*(_float64(arrays) for arrays in (params.W, params.b, params.R)))
    dL = to_host(compute_update(narrow, network, params, x, t, 0).dL)  # (1, B), for INP (1, L, B)
    dL_64 = to_host(compute_update(wide, network, params_64, *_float64((x, t)), 0).dL)
    error, size = (np.sqrt(np.sum(d**2, axis=tuple(range(d.ndim - 1))))  # (B,)
                   for d in ((wide.sigma2 / config.sigma2) ** 0.5 * dL - dL_64, dL_64))
    return float(np.median(error / np.where(size > 0, size, 1)))


def warn_of_rounding(config, error):
    """Warn with NoiseFloorWarning, on behalf of the caller's caller, if `rounding_error` found more than a tenth."""
    if NOISE_FLOOR < error < float("inf"):
        remedy = "take dtype float64 or a larger sigma2" if config.dtype == "float32" else "take a larger sigma2"
        warnings.warn(f"sigma2={config.sigma2:g} is too small for {config.dtype}: as this run starts, rounding changes the loss "
                      f"difference δL by {100 * error:.3g}%; {remedy}", NoiseFloorWarning, stacklevel=3)


def _float64(arrays):
    return tuple(None if a is None else a.astype("float64") for a in arrays)
