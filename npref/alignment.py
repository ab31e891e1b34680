"""How well an update points where backpropagation's does."""

from math import pi

from .backend import array_module


def angle(update, reference):
    """The angle between two updates of a layer, taken as vectors, in degrees: arrays of one shape -> 0-d float64 in [0, 180].

    2 arctan(‖u/‖u‖ - v/‖v‖‖ / ‖u/‖u‖ + v/‖v‖‖), which is as exact at 0 and 180 degrees as it is at 90, where an arccos of
    the cosine is exact alone. 90 if either is zero: such an update goes neither down nor up. Raises ValueError for unequal shapes.
    """
    if update.shape != reference.shape:
        raise ValueError(f"an update and its reference must have one shape, got {update.shape} and {reference.shape}")
    xp = array_module(update, reference)
    u, v = _unit(xp, update), _unit(xp, reference)
    half = xp.arctan2(xp.sqrt(xp.sum((u - v) ** 2)), xp.sqrt(xp.sum((u + v) ** 2)))
    return half * (360 / pi)


def _unit(xp, update):
    """The direction as a float64 vector; a zero vector stays zero."""
    u = update.reshape(-1).astype(xp.float64)
    largest = abs(u).max()
    u = u / xp.where(largest > 0, largest, 1)  # so that no square overflows or vanishes
    length = xp.sqrt(xp.sum(u * u))
    return u / xp.where(length > 0, length, 1)
