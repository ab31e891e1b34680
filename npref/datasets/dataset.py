"""What every loader returns."""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from ..backend import array_module

INPUTS = ("unit", "standard", "raw")


@dataclass(frozen=True)
class Dataset:
    """Samples for training and test; `source` says in words where they are from.

    Classification: images (n, C, H, W) or features (n, D), uint8 or float, and labels (n,) of ints in [0, classes). Regression: features
    (n, D) and targets (n, classes), both float. What is float is finite. inputs, how training scales them: "unit" is pixels / 255,
    "standard" is standardised per channel or feature with the training set's mean and standard deviation, "raw" is as they are; left out,
    it is "unit" for uint8 and "raw" for floats. official: (n_train, n_test) of the complete official set; None for a set that is made here.
    """

    name: str
    source: str
    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    classes: int
    inputs: str | None = None
    official: tuple[int, int] | None = None

    def __post_init__(self):
        if self.inputs is not None and self.inputs not in INPUTS:
            raise ValueError(f"{self.name}: inputs must be one of {', '.join(INPUTS)}, got {self.inputs!r}")
        for what in ("x_train", "y_train", "x_test", "y_test"):
            array = getattr(self, what)
            if not isinstance(array, np.ndarray):
                raise TypeError(f"{self.name}: {what} must be a NumPy array, got {type(array).__name__}")
            if not array.dtype.isnative:
                raise TypeError(f"{self.name}: {what} must be in this machine's byte order, got {array.dtype}: convert it with astype")
        array_module(self.x_train, self.y_train, self.x_test, self.y_test)  # which refuses masked ones
        for x, y in ((self.x_train, self.y_train), (self.x_test, self.y_test)):
            if self.regression:
                if len(x) == 0 or y.shape != (len(x), self.classes) or x.ndim != 2 or x.dtype.kind != "f" or y.dtype.kind != "f":
                    raise ValueError(f"{self.name}: expected float features (n, D) and float targets (n, {self.classes}), "
                                     f"got {x.shape} of {x.dtype} and {y.shape} of {y.dtype}")
            elif len(x) == 0 or y.shape != (len(x),) or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= self.classes:
                raise ValueError(f"{self.name}: expected one label from 0 to {self.classes - 1} for each of {len(x)} images, "
                                 f"got {y.shape} of {y.dtype}" + (f" from {y.min()} to {y.max()}" if y.size else "")
                                 + ("; real targets are (n, classes), y[:, None] where there is one" if y.dtype.kind == "f" else ""))
            if x.ndim not in (2, 4):
                raise ValueError(f"{self.name}: expected images (n, C, H, W) or features (n, D), got {x.shape}"
                                 + ("; images of one channel are x[:, None]" if x.ndim == 3 else ""))
            for what, a in (("features" if self.regression else "images", x), ("targets", y)):
                if a.dtype.kind == "f" and not np.isfinite(a).all():
                    place = tuple(map(int, np.argwhere(~np.isfinite(a))[0]))
                    raise ValueError(f"{self.name}: expected finite {what}, got {a[place]} at {place}, counted from 0")
        train, test = ((x.shape[1:], x.dtype) for x in (self.x_train, self.x_test))
        if train != test:
            raise ValueError(f"{self.name}: expected samples of one shape and dtype, got {train[0]} of {train[1]} for training and "
                             f"{test[0]} of {test[1]} for test")
        if self.x_train.dtype.kind != "f" and self.x_train.dtype != np.uint8:
            raise ValueError(f"{self.name}: expected uint8 pixels or floating-point numbers, got {self.x_train.dtype}")
        if self.inputs is None:
            object.__setattr__(self, "inputs", "unit" if self.x_train.dtype == np.uint8 else "raw")

    @property
    def regression(self):
        """Whether the targets are numbers to come close to, not classes."""
        return self.y_train.ndim == 2 and self.y_train.dtype.kind == "f"

    @property
    def completeness(self):
        """How much of the official set this is: "16000 of 100000 + 2000 of 10000" training and test samples."""
        train, test = len(self.x_train), len(self.x_test)
        if self.official is None:
            return f"{train} + {test}"
        return f"{train} of {self.official[0]} + {test} of {self.official[1]}"

    def limited(self, train=None, test=None):
        """The first `train` and `test` samples (None: all)."""
        for what, limit, n in (("limit_train", train, len(self.x_train)), ("limit_test", test, len(self.x_test))):
            check_limit(what, limit, n, self.name)
        return replace(self, x_train=self.x_train[:train], y_train=self.y_train[:train], x_test=self.x_test[:test],
                       y_test=self.y_test[:test])

    def fingerprint(self):
        """A sha256 over all of it: whether two runs saw the same data."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(str((array.shape, array.dtype)).encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def check_limit(what, limit, n, name):
    """ValueError unless `limit` is None or in [1, n]."""
    if limit is not None and not 1 <= limit <= n:
        raise ValueError(f"{what} must be between 1 and {n}, the size of {name}, got {limit}")
