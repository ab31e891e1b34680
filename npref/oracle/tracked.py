"""Arrays that know how far rounding can move them (stochastic arithmetic, as CESTAC's: Vignes 1993)."""

from math import sqrt

import numpy as np

COPIES = 16
U = 2.0**-40  # far above float64's rounding, and small enough for every effect of it to be linear


class Tracked:
    """An array, v[0], and copies of it, v[1:], computed with every operation's result disturbed at random by U times its size.

    The size of a product or a sum is that over absolute values, for that is what rounding goes by. So the copies' spread over U is
    the rounding error, in units of eps, that any reasonable evaluation in any precision may have. rng draws the disturbances.
    """

    __array_ufunc__ = None  # NumPy arrays on the left leave the operation to us
    __slots__ = ("v", "rng")

    def __init__(self, v, rng):
        self.v, self.rng = v, rng

    @property
    def value(self):
        return self.v[0]

    @property
    def scale(self):
        return np.sqrt(np.mean(((self.v[1:] - self.v[0]) / U) ** 2, axis=0)) if len(self.v) > 1 else np.zeros(self.shape)

    def _rounded(self, v, size=None):
        if len(v) == 1:
            v = np.repeat(v, 1 + COPIES, axis=0)
        disturbance = self.rng.random((COPIES, *v.shape[1:]))
        disturbance -= 0.5
        disturbance *= 2 * U * sqrt(3)  # of variance U²
        disturbance *= v[1:] if size is None else size[-COPIES:]
        v[1:] += disturbance
        return Tracked(v, self.rng)

    def __add__(self, other):
        v, w = _aligned(self, other)
        return self._rounded(v + w)

    def __sub__(self, other):
        v, w = _aligned(self, other)
        return self._rounded(v - w)

    def __rsub__(self, other):
        return -self + other

    def __neg__(self):
        return Tracked(-self.v, self.rng)

    def __mul__(self, other):
        v, w = _aligned(self, other)
        return self._rounded(v * w)

    def __truediv__(self, other):
        v, w = _aligned(self, other)
        return self._rounded(v / w)

    def __matmul__(self, other):
        w = _copies(other)
        return self._rounded(self.v @ w, abs(self.v) @ abs(w))

    def __pow__(self, p):
        return self._rounded(self.v**p)

    __radd__, __rmul__ = __add__, __mul__

    def __getitem__(self, key):
        return Tracked(self.v[(slice(None), *(key if isinstance(key, tuple) else (key,)))], self.rng)

    def __setitem__(self, key, value):
        self.v[(slice(None), *key)] = value

    def __len__(self):
        return self.v.shape[1]

    @property
    def T(self):
        return Tracked(self.v.swapaxes(-1, -2), self.rng)

    @property
    def shape(self):
        return self.v.shape[1:]

    def reshape(self, *shape):
        return Tracked(self.v.reshape(len(self.v), *(shape[0] if isinstance(shape[0], tuple) else shape)), self.rng)

    def sum(self):
        axes = tuple(range(1, self.v.ndim))
        return self._rounded(self.v.sum(axes), abs(self.v).sum(axes))

    def constant(self, value):
        """A number that rounds like this array's."""
        return Tracked(np.array([value]), self.rng)._rounded(np.array([value]))

    def apply(self, f):
        """An elementwise function."""
        return self._rounded(f(self.v))


def _copies(a):
    return a.v if isinstance(a, Tracked) else np.asarray(a, dtype=np.float64)[None]


def _aligned(a, b):
    """Both arrays with their copies in front, and the numbers of their other axes made equal, as broadcasting wants."""
    a, b = _copies(a), _copies(b)
    if a.ndim < b.ndim:
        a = a.reshape(len(a), *(1,) * (b.ndim - a.ndim), *a.shape[1:])
    elif b.ndim < a.ndim:
        b = b.reshape(len(b), *(1,) * (a.ndim - b.ndim), *b.shape[1:])
    return a, b


def stack(items):
    copies = max(len(i.v) for i in items)
    return Tracked(np.stack([i.v if len(i.v) == copies else np.repeat(i.v, copies, axis=0) for i in items], axis=1), items[0].rng)
