import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import assert_close, naive_unfold

from npref import Conv, Dense
from npref.layers import fold, output_shape, to_rows, unfold, unfold_adjoint, weight_shape

seeds = st.integers(0, 2**32 - 1)


def random_conv(rng):
    pair = lambda low, high: tuple(map(int, rng.integers(low, high, 2)))  # noqa: E731
    layer = Conv(2, pair(1, 4), pair(1, 4), pair(0, 3))
    return layer, (int(rng.integers(1, 4)), *pair(3, 8))


@given(seed=seeds)
def test_unfold_is_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    layer, shape = random_conv(rng)
    x = rng.normal(size=(2, *shape))
    expected = np.concatenate([naive_unfold(image, layer).T for image in x])
    for given_x in (x, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):  # either memory order
        assert np.array_equal(unfold(layer, given_x), expected)


@given(seed=seeds)
def test_unfold_adjoint_is_the_transpose(seed):
    """⟨unfold x, y⟩ = ⟨x, unfold_adjoint y⟩ for all x and y."""
    rng = np.random.default_rng(seed)
    layer, shape = random_conv(rng)
    for q in (layer, Dense(3)):
        x = rng.normal(size=(2, *shape))
        rows = unfold(q, x)
        y = rng.normal(size=rows.shape)
        back = unfold_adjoint(q, y, shape)
        assert back.shape == x.shape
        assert_close(np.sum(rows * y), np.sum(x * back), np.sum(np.abs(rows * y)))


@given(seed=seeds)
def test_convolution_is_the_sliding_sum(seed):
    """The whole convolution, y[c, r, s] = Σ w[c, ...] · window, by loops: what a transposed kernel or a scrambled reshape breaks."""
    rng = np.random.default_rng(seed)
    layer, shape = random_conv(rng)
    x, w = rng.normal(size=(2, *shape)), rng.normal(size=weight_shape(layer, shape))
    out_shape = output_shape(layer, shape)
    y = fold(unfold(layer, x) @ w.reshape(len(w), -1).T, out_shape)
    padded = np.pad(x, ((0, 0), (0, 0), (layer.padding[0],) * 2, (layer.padding[1],) * 2))
    for c in range(out_shape[0]):
        for r in range(out_shape[1]):
            for s in range(out_shape[2]):
                top, left = r * layer.stride[0], s * layer.stride[1]
                window = padded[:, :, top : top + layer.kernel[0], left : left + layer.kernel[1]]
                assert_close(y[:, c, r, s], np.sum(window * w[c], axis=(1, 2, 3)), np.sum(np.abs(window * w[c])))


def test_fold_and_to_rows_are_inverse_views():
    rows = np.arange(2 * 12 * 3.0).reshape(24, 3)
    image = fold(rows, (3, 4, 3))
    assert image.shape == (2, 3, 4, 3) and image[1, 2, 3, 0] == rows[12 + 3 * 3, 2]
    assert np.shares_memory(image, rows) and np.shares_memory(to_rows(image), rows)
    assert np.array_equal(to_rows(image), rows)
    assert fold(rows, (3,)) is rows and to_rows(rows) is rows


def test_dense_flattens_channels_first():
    x = np.arange(12.0).reshape(1, 3, 2, 2)
    assert np.array_equal(unfold(Dense(1), x), [np.arange(12.0)])


@pytest.mark.parametrize("make, error, words", [
    (lambda: Dense(0), ValueError, "at least 1"),
    (lambda: Dense(2.5), TypeError, "must be an int"),
    (lambda: Dense(True), TypeError, "must be an int"),
    (lambda: Dense(3, activation="gelu"), ValueError, "unknown activation 'gelu': expected one of leaky_relu"),
    (lambda: Dense(3, slope=1.0), ValueError, "slope"),
    (lambda: Dense(3, slope=None), TypeError, "slope must be a number, got None"),
    (lambda: Conv(3, slope=float("nan")), ValueError, "slope must be finite, got nan"),
    (lambda: Dense(3, slope=-0.1), ValueError, "slope"),
    (lambda: Dense(3, bias="no"), TypeError, "bias must be True or False, got 'no'"),
    (lambda: Conv(0), ValueError, "at least 1"),
    (lambda: Conv(2, kernel=0), ValueError, "kernel must be at least 1"),
    (lambda: Conv(2, kernel=(3, 3, 3)), ValueError, "pair"),
    (lambda: Conv(2, stride=0), ValueError, "stride must be at least 1"),
    (lambda: Conv(2, padding=-1), ValueError, "padding must be at least 0"),
    (lambda: Conv(2, activation="x"), ValueError, "unknown activation"),
    (lambda: output_shape(Conv(2, 5), (3, 4, 8)), ValueError, r"kernel \(5, 5\) is larger than its input \(3, 4, 8\)"),
    (lambda: output_shape(Conv(2), (10,)), ValueError, "needs an image"),
])
def test_bad_layers_say_so(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_shapes():
    assert output_shape(Conv(16, 3, 2), (3, 32, 32)) == (16, 15, 15)
    assert output_shape(Conv(16, (3, 1), (1, 2), (1, 0)), (3, 8, 8)) == (16, 8, 4)
    assert weight_shape(Conv(16, (3, 2)), (5, 8, 8)) == (16, 5, 3, 2)
    assert weight_shape(Dense(7), (5, 2, 2)) == (7, 20)
    assert type(Dense(2, slope=np.float64(0.1)).slope) is type(Conv(2, slope=np.float64(0.1)).slope) is float
    conv = Conv(np.int64(2), np.int32(3), (np.uint8(2), 1), np.int64(0))  # as counts computed from data are
    assert conv == Conv(2, 3, (2, 1), 0) and {type(n) for n in (conv.channels, *conv.kernel, *conv.stride, *conv.padding)} == {int}
    assert type(Dense(np.int64(3)).units) is int
    assert Conv(2, [3, 2]).kernel == (3, 2) and Conv(2).n_out == 2 and Dense(4).n_out == 4


@pytest.mark.parametrize("make, error, words", [
    (lambda: Dense("3"), TypeError, "Dense units must be an int, got '3'"),
    (lambda: Dense(np.True_), TypeError, "Dense units must be an int, got .*True"),
    (lambda: Dense(np.float64(3)), TypeError, "Dense units must be an int, got .*3.0"),
    (lambda: Conv(0), ValueError, "Conv channels must be at least 1, got 0"),
    (lambda: output_shape(Conv(2), (10,)), ValueError, "got shape .*: put convolutions before dense layers, and give grey"),
    (lambda: output_shape(Conv(2, 6, 1, 1), (1, 3, 9)), ValueError, "larger than its input .* more padding"),
    (lambda: Dense(3, activation="gelu"), ValueError, "expected one of leaky_relu, relu, tanh"),
])
def test_messages_say_what_was_wrong_and_what_to_do(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_slope_may_be_zero_and_a_kernel_may_just_fit():
    assert Dense(3, slope=0).slope == 0
    assert output_shape(Conv(2, 5, 1, 1), (1, 3, 3)) == (2, 1, 1)


def test_dtype_is_kept():
    layer, shape = Conv(2, 3, 2, 1), (1, 5, 4)
    rows = unfold(layer, np.ones((2, *shape), dtype=np.float32))
    assert rows.dtype == unfold_adjoint(layer, rows, shape).dtype == np.float32
