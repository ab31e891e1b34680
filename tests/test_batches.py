"""From a data set to x and t: scaling and targets."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npref.batches import input_moments, prepare, resolved, targets
from npref.datasets import Dataset


def images(seed=0, n=30):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, 3, 4, 5)).astype(np.uint8)
    x[:, 1] //= 3
    return Dataset("made", "here", x, np.arange(n) % 10, x[:5], np.arange(5), 10)


def features(seed=0, n=30):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(3, [1, 20, 0.1], (n, 3)), rng.normal(size=(n, 2))
    return Dataset("made", "here", x, y, x[:5], y[:5], 2, inputs="raw")


@given(st.integers(0, 99), st.sampled_from([30, 2500]), st.sampled_from([images, features]))
def test_standardised(seed, n, make):
    data = make(seed, n)
    x = prepare(data.x_train, "float64", input_moments(data, "standard"))
    axes = (0, 2, 3)[: x.ndim - 1]
    assert np.allclose(x.mean(axis=axes), 0, atol=1e-9) and np.allclose(x.std(axis=axes), 1, atol=1e-9)
    unit = data.x_train / 255 if make is images else data.x_train
    again = (unit - unit.mean(axis=axes, keepdims=True)) / unit.std(axis=axes, keepdims=True)
    assert np.allclose(x, again, atol=1e-9) and x.dtype == np.float64
    assert prepare(data.x_train, "float32", input_moments(data, "standard")).dtype == np.float32


def test_a_small_spread_about_a_large_mean():
    """Neither the moments nor float32 lose what tells the samples apart."""
    data = features()
    spread = data.x_train[:, 0] - data.x_train[:, 0].mean()
    data.x_train[:, 0] = 1.7e9 + 100 * spread
    x = prepare(data.x_train, "float32", input_moments(data, "standard"))[:, 0]
    assert np.allclose(x, spread / spread.std(), atol=1e-5) and x.dtype == np.float32


def test_a_channel_that_never_changes():
    """Whether its mean is exact, as of 7, or rounded, as of 0.1: what rounding leaves is not blown up to a spread of 1."""
    data = features()
    for value in (7.0, 0.1, -1 / 3):
        data.x_train[:, 1] = value
        x = prepare(data.x_train, "float64", input_moments(data, "standard"))
        assert np.abs(x[:, 1]).max() <= (0 if value == 7 else 1e-15) and np.isfinite(x).all()


def test_unit_and_raw():
    assert input_moments(images()) is None and input_moments(features()) is None
    assert prepare(np.array([0, 51, 255], dtype=np.uint8), "float32").tolist() == [0.0, np.float32(0.2), 1.0]
    assert prepare(np.array([2.5]), "float32").tolist() == [2.5] and prepare(np.array([510], dtype=np.uint16), "float32").tolist() == [510]
    assert input_moments(replace(images(), inputs="standard")) is not None  # auto is the data set's own


@pytest.mark.parametrize("data, how, message", [
    (images(), "raw", "inputs=raw does not fit made, whose inputs are uint8: use unit or standard"),
    (features(), "unit", "inputs=unit does not fit made, whose inputs are float64: use raw or standard"),
    (features(), "whitened", "inputs must be one of auto, unit, standard, raw, got 'whitened'"),
])
def test_what_does_not_fit(data, how, message):
    with pytest.raises(ValueError, match=message):
        resolved(data, how)


def test_targets():
    assert targets(np.array([1, 0]), 3, "float32").tolist() == [[0, 1, 0], [1, 0, 0]]
    y = np.array([[0.5, -2.0]])
    assert targets(y, 2, "float32").tolist() == y.tolist() and targets(y, 2, "float32").dtype == np.float32
