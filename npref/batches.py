"""From a data set to what a step takes: inputs x and targets t of one mini-batch, scaled and in the run's dtype."""

import numpy as np

from .backend import array_module
from .functions import one_hot

INPUTS = ("auto", "unit", "standard", "raw")


def input_moments(data, how="auto"):
    """What `prepare` standardises by: (mean, std) of the training set, float64, that broadcast over its samples; or None.

    how: "standard" per channel of images (C, 1, 1), of [0, 1] pixels, or per feature (D,); "unit" and "raw" need none, "auto" is
    the data set's own (`Dataset.inputs`). A channel or feature that never changes is shifted only. Raises ValueError for "unit"
    where inputs are no pixels.
    """
    how = resolved(data, how)
    if how != "standard":
        return None
    x = data.x_train
    axes = (0, *range(2, x.ndim))  # all but the channels or features
    n, first, second = x.size // x.shape[1], 0, 0
    for i in range(0, len(x), 1000):  # a float64 copy of 1.2 GB of pixels would take ten
        part = x[i : i + 1000].astype(np.float64) / _unit(x)
        first, second = first + part.sum(axis=axes), second + (part**2).sum(axis=axes)
    mean = first / n
    variance = second / n - mean**2
    std = np.sqrt(np.where(variance > 1e-12 * mean**2, variance, 1))
    shape = (-1,) + (1,) * (x.ndim - 2)
    return mean.reshape(shape), std.reshape(shape)


def resolved(data, how):
    """The name of the scaling that "auto" stands for, and the others as they are."""
    how = data.inputs if how == "auto" else how
    if how not in INPUTS:
        raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, got {how!r}")
    if (how == "unit") != (data.x_train.dtype.kind == "u") and how != "standard":
        expected = "raw or standard" if how == "unit" else "unit or standard"
        raise ValueError(f"inputs={how} does not fit {data.name}, whose inputs are {data.x_train.dtype}: use {expected}")
    return how


def prepare(x, dtype, moments=None):
    """uint8 pixels as [0, 1] in `dtype`; other arrays are cast and not scaled. With moments (mean, std): standardised."""
    xp = array_module(x)
    if moments is None:
        return xp.divide(x, 255, dtype=dtype) if x.dtype.kind == "u" else x.astype(dtype)
    mean, std = (xp.asarray((m * _unit(x)), dtype=dtype) for m in moments)  # in the units of x, so that one pass does it
    out = xp.subtract(x, mean, dtype=dtype)
    out /= std
    return out


def _unit(x):
    """What counts as 1: the largest pixel value, or 1 for other numbers."""
    return 255 if x.dtype.kind == "u" else 1


def targets(y, classes, dtype):
    """Labels (B,) as one-hot rows, or real targets (B, n_out) as they are, in `dtype`: (B, n_out)."""
    return one_hot(y, classes, dtype) if y.ndim == 1 else y.astype(dtype)
