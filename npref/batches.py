"""From a data set to what a step takes: inputs x and targets t of one mini-batch, scaled and in the run's dtype."""

import numpy as np

from .backend import array_module
from .functions import one_hot

INPUTS = ("auto", "unit", "standard", "raw")


def input_moments(data, how="auto"):
    """What `prepare` standardises by: (mean, std) of the training set, float64, that broadcast over its samples; or None.

    how: "standard" per channel of images (C, 1, 1), of [0, 1] pixels, or per feature (D,); "unit" and "raw" need none, "auto" is
    the data set's own (`Dataset.inputs`). A channel or feature that never changes is shifted only. Raises ValueError for "unit"
    where inputs are no pixels, for "raw" where they are, and for another name.
    """
    how = resolved(data, how)
    if how != "standard":
        return None
    x = data.x_train
    axes = (0, *range(2, x.ndim))  # all but the channels or features
    n, shape = x.size // x.shape[1], (-1,) + (1,) * (x.ndim - 2)
    parts = [slice(i, i + 1000) for i in range(0, len(x), 1000)]  # a float64 copy of 1.2 GB of pixels would take ten
    mean = (sum((x[part] / np.float64(_unit(x))).sum(axis=axes) for part in parts) / n).reshape(shape)
    squares = sum(((x[part] / np.float64(_unit(x)) - mean) ** 2).sum(axis=axes) for part in parts)
    std = np.sqrt(squares / n).reshape(shape)
    return mean, np.where(std > 1e-12 * abs(mean), std, 1)


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
    """uint8 pixels as [0, 1] in `dtype`; other arrays are cast and not scaled. With moments (mean, std), where x is or on the host:
    standardised."""
    xp = array_module(x)
    if moments is None:
        return xp.divide(x, 255, dtype=dtype) if x.dtype == "uint8" else x.astype(dtype)
    mean, std = (xp.asarray(m * _unit(x)) for m in moments)  # in the units of x
    wide = dtype if x.dtype == "uint8" else x.dtype  # subtract before rounding: features may be large, their spread small
    return xp.subtract(x, mean.astype(wide), dtype=wide).astype(dtype, copy=False) / std.astype(dtype)


def _unit(x):
    """What counts as 1: the largest pixel value, or 1 for other numbers."""
    return 255 if x.dtype == "uint8" else 1


def targets(y, classes, dtype):
    """Labels (B,) as one-hot rows, or real targets (B, n_out) as they are, in `dtype`: (B, n_out)."""
    return one_hot(y, classes, dtype) if y.ndim == 1 else y.astype(dtype)
