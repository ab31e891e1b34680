from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npref import functions as fn
from npref import to_host

A = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])


@pytest.mark.parametrize("name, expected", [
    ("leaky_relu", [-0.6, -0.15, 0, 0.5, 2]), ("relu", [0, 0, 0, 0.5, 2]), ("tanh", np.tanh(A)), ("identity", A),
    ("step", [0, 0, 0, 1, 1]), ("sign", [-1, -1, -1, 1, 1]),
])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations(name, expected, dtype):
    x = fn.activate(name, A.astype(dtype), slope=0.3)
    assert x.dtype == dtype and np.allclose(x, expected, rtol=1e-6)
    assert A.tolist() == [-2, -0.5, 0, 0.5, 2]  # not in place


@pytest.mark.parametrize("name", ["leaky_relu", "relu", "tanh", "identity"])
def test_derivatives_by_complex_step(name):
    a = A[A != 0]
    expected = fn.activate(name, a + 1e-30j, 0.3).imag / 1e-30
    d = fn.derivative(name, a, 0.3)
    assert np.allclose(d, expected, rtol=1e-14)
    for function in fn.activate, fn.derivative:
        assert function(name, a.astype(np.float32), np.float64(0.3)).dtype == np.float32


def test_the_derivative_belongs_to_the_pre_activation():
    """For slope 0 the output is 0 at every negative a: a derivative taken from the output could not tell."""
    assert fn.derivative("leaky_relu", np.array([-1.0, 0.0, 1e-300]), 0.2).tolist() == [0.2, 0.2, 1.0]
    assert fn.derivative("relu", np.array([-1.0, 0.0, 1e-300])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["step", "sign"])
def test_no_derivative(name):
    with pytest.raises(ValueError, match=f"the {name} activation does not have"):
        fn.derivative(name, A)


def test_losses_by_hand():
    y, t = np.array([[0.0, np.log(3.0)], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert np.allclose(fn.loss("cce", y, t), [np.log(4 / 3), np.log(2)], rtol=1e-14)
    assert np.allclose(fn.loss("mse", y, t), [(1 - np.log(3)) ** 2, 1], rtol=1e-14)
    assert np.allclose(fn.loss("mse-mean", y, t), [(1 - np.log(3)) ** 2 / 2, 0.5], rtol=1e-14)
    assert np.allclose(fn.loss_gradient("cce", y, t), [[0.25, -0.25], [-0.5, 0.5]], rtol=1e-14)
    assert np.allclose(fn.loss_gradient("mse", y, t)[1], [0, 2])
    assert np.allclose(fn.loss_gradient("mse-mean", y, t)[1], [0, 1])


@pytest.mark.parametrize("name", fn.LOSSES)
@given(seed=st.integers(0, 2**32 - 1))
def test_loss_gradients_by_complex_step(name, seed):
    rng = np.random.default_rng(seed)
    y, t = rng.normal(size=(3, 4)) * 3, rng.uniform(size=(3, 4))  # targets need not sum to 1
    for j in range(4):
        step = np.zeros((3, 4), dtype=complex)
        step[:, j] = 1e-30j
        assert np.allclose(fn.loss_gradient(name, y, t)[:, j], fn.loss(name, y + step, t).imag / 1e-30, rtol=1e-10, atol=1e-13)


def test_losses_are_per_sample_and_in_float64():
    y, t = np.ones((2, 3, 4), dtype=np.float32), np.ones((3, 4), dtype=np.float32)
    for name in fn.LOSSES:
        assert fn.loss(name, y, t).dtype == np.float64 and fn.loss(name, y, t).shape == (2, 3)
        assert fn.loss_gradient(name, y[0], t).dtype == np.float32
    big = np.array([[1e4, 0.0]], dtype=np.float32)
    assert fn.loss("cce", big, np.array([[0.0, 1.0]], dtype=np.float32)) == 1e4  # no overflow


def test_a_loss_adds_no_rounding_of_float32():
    """Float32 logits lose what they lose; what their loss computes is as of the same numbers in float64, and of differences first."""
    rng = np.random.default_rng(0)
    y, t = rng.normal(size=(50, 10)).astype(np.float32), rng.uniform(size=(50, 10)).astype(np.float32)
    for name in fn.LOSSES:
        assert np.allclose(fn.loss(name, y, t), fn.loss(name, y.astype(np.float64), t.astype(np.float64)), rtol=1e-14, atol=0)
    whole, t = rng.integers(-9, 10, (50, 10)).astype(np.float64), np.eye(10)[rng.integers(0, 10, 50)]
    assert np.array_equal(fn.loss("cce", whole + 2.0**40, t), fn.loss("cce", whole, t))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_loss_gradient_rounds_once(dtype):
    """To the outputs' dtype, at its end; targets of any dtype are the numbers that they are."""
    rng = np.random.default_rng(0)
    y, t = rng.normal(size=(50, 10)).astype(np.float32), rng.uniform(size=(50, 10)).astype(dtype)
    for name in fn.LOSSES:
        exact = fn.loss_gradient(name, y.astype(np.float64), t.astype(np.float64))
        assert np.array_equal(fn.loss_gradient(name, y, t), exact.astype(np.float32))


@pytest.mark.parametrize("name", fn.ACTIVATIONS)
def test_one_number_is_activated_as_an_array_is(name):
    for dtype in (np.float32, np.float64):
        for number in (-2.0, 3.0):
            a = np.array([number], dtype=dtype)
            for one in (a[0], a.reshape(())):
                x = fn.activate(name, one, 0.25)
                assert x.dtype == dtype and x == fn.activate(name, a, 0.25)[0]


def test_one_hot_and_correct():
    t = fn.one_hot(np.array([2, 0]), 3)
    assert t.tolist() == [[0, 0, 1], [1, 0, 0]] and t.dtype == np.float32
    assert fn.correct(np.array([[0, 1, 5.0], [0, 3, 1]]), t).tolist() == [True, False]


@pytest.mark.parametrize("t_dtype", ["float32", "float64", "float16", "int64", "bool"])
@pytest.mark.parametrize("y_dtype", ["float32", "float64", "float16"])
def test_a_device_computes_cross_entropy_as_a_cpu_does(device, y_dtype, t_dtype):
    rng, eps = np.random.default_rng(0), np.finfo(float).eps
    y = (3 * rng.normal(size=(70, 5, 12))).astype(y_dtype).transpose(1, 0, 2)  # not contiguous
    t = (3 * rng.uniform(size=(12, 70))).astype(t_dtype).T  # targets that do not sum to 1
    y_there, t_there = device.asarray(y.transpose(1, 0, 2)).transpose(1, 0, 2), device.asarray(t.T).T
    wide, T = y.astype(float), t.astype(float)
    m, log_z = wide.max(axis=-1, keepdims=True), np.log(np.exp(wide - wide.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True))
    losses, scale = fn.loss("cce", y_there, t_there), (T * (m - wide + log_z)).sum(axis=-1)
    assert losses.shape == (5, 70) and losses.dtype == np.float64
    assert (np.abs(to_host(losses) - fn.loss("cce", y, t)) <= 12 * eps * scale).all()
    gradient, expected = to_host(fn.loss_gradient("cce", y_there[1], t_there)), fn.loss_gradient("cce", y[1], t)
    assert gradient.dtype == y_dtype and gradient.shape == (70, 12)
    scale = T.sum(axis=-1, keepdims=True) * np.exp(wide - m - log_z)[1] + T
    rounding = 12 * eps * scale + (y_dtype != "float64") * np.spacing(np.abs(expected))  # which the last rounding may make of it
    assert (np.abs(gradient.astype(float) - expected) <= rounding).all()


def test_a_device_computes_cross_entropy_of_large_outputs_and_of_what_is_not_finite(device):
    y = np.array([[1e4, 0.0], [-1e4, 0.0], [np.nan, 0.0], [0.0, np.nan], [np.inf, 0.0]], dtype=np.float32)
    t = np.array([[0.0, 1.0]] * 5, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        expected = fn.loss("cce", y, t)
        expected_gradient = fn.loss_gradient("cce", y, t)
    assert np.array_equal(to_host(fn.loss("cce", device.asarray(y), device.asarray(t))), expected, equal_nan=True)
    assert np.array_equal(to_host(fn.loss_gradient("cce", device.asarray(y), device.asarray(t))), expected_gradient, equal_nan=True)
    assert expected[:2].tolist() == [1e4, 0] and expected_gradient[:2].tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_a_device_finds_what_is_correct_as_a_cpu_does(device, dtype):
    """Of equals the first counts; so does what is not a number, of all."""
    rng = np.random.default_rng(0)
    y, t = rng.integers(0, 3, (4, 90, 5)).astype(dtype), rng.integers(0, 2, (90, 5)).astype("float32")
    if dtype != "int64":
        y[rng.random(y.shape) < 0.1] = np.nan
    expected = fn.correct(y, t)
    assert expected.shape == (4, 90) and 0 < expected.sum() < expected.size
    assert np.array_equal(expected, y.argmax(axis=-1) == t.argmax(axis=-1))
    found = fn.correct(device.asarray(y), device.asarray(t))
    assert found.dtype == bool and np.array_equal(to_host(found), expected)
    large = np.array([[2**24, 2**24 + 1]])  # which float32 cannot tell apart
    for one, other in (large, large[:, ::-1]), (large[:, ::-1], large), (large, large), (large[:, ::-1], large[:, ::-1]):
        assert to_host(fn.correct(device.asarray(one.copy()), device.asarray(other.copy()))).tolist() == fn.correct(one, other).tolist()


def test_what_a_device_cannot_take_is_refused(device):
    t = device.asarray(np.ones((2, 3)))
    for call in partial(fn.loss, "cce"), partial(fn.loss_gradient, "cce"), fn.correct:
        for pair in (t.astype(complex), t), (t, t.astype(complex)):
            with pytest.raises(TypeError, match="a GPU takes no complex outputs and targets, got complex128"):
                call(*pair)


def test_samples_without_outputs_are_refused(fake_cupy):
    for xp in np, fake_cupy:
        empty = xp.asarray(np.ones((2, 0)))
        for call in partial(fn.loss, "cce"), partial(fn.loss_gradient, "mse"), fn.correct:
            with pytest.raises(ValueError, match=r"outputs must be at least one a sample, got \(2, 0\)"):
                call(empty, empty)


def test_shapes_that_would_only_broadcast_are_refused():
    y = np.ones((2, 3))
    for t in (np.ones((2, 1)), np.ones((1, 3)), np.ones(3)[None]):
        for call in (fn.loss, fn.loss_gradient):
            with pytest.raises(ValueError, match=r"targets \(B, n_out\), got \(2, 3\)"):
                call("cce", y, t)
    for labels in (np.array([[1], [2]]), np.array([1.5])):
        with pytest.raises(ValueError, match=r"labels must be \(B,\) ints"):
            fn.one_hot(labels, 3)


def test_unknown_names():
    for call in (fn.activate, fn.derivative):
        with pytest.raises(ValueError, match="unknown activation 'gelu': expected one of leaky_relu"):
            call("gelu", A)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fn, "ACTIVATIONS", (*fn.ACTIVATIONS, "gelu"))
        with pytest.raises(ValueError, match="activation 'gelu' has no case in npref.functions.derivative, which backpropagation needs"):
            fn.derivative("gelu", A)
        with pytest.raises(ValueError, match="activation 'gelu' has no case in npref.functions.activate$"):
            fn.activate("gelu", A)
    for call in (fn.loss, fn.loss_gradient):
        with pytest.raises(ValueError, match="unknown loss 'hinge': expected one of cce"):
            call("hinge", A[None], A[None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fn, "LOSSES", (*fn.LOSSES, "hinge"))
        for call, where in ((fn.loss, "loss$"), (fn.loss_gradient, "loss_gradient, which backpropagation needs$")):
            with pytest.raises(ValueError, match=f"loss 'hinge' has no case in npref.functions.{where}"):
                call("hinge", A[None], A[None])


def test_the_default_slope_is_a_fifth():
    a = np.array([-1.0, 1.0])
    assert fn.activate("leaky_relu", a).tolist() == fn.activate("leaky_relu", a, 0.2).tolist() == [-0.2, 1]
    assert fn.derivative("leaky_relu", a).tolist() == [0.2, 1]


def test_a_samples_loss_does_not_depend_on_its_neighbours():
    """Logits of very different size in one batch: a maximum taken over the whole batch would leave log 0 behind."""
    y, t = np.array([[1e4, 0.0], [0.0, 1.0], [-1e4, -1e4]]), np.array([[1.0, 0], [0, 1], [1, 0]])
    assert np.allclose(fn.loss("cce", y, t), [0, np.log1p(np.exp(-1)), np.log(2)], rtol=1e-12)
    for b in range(3):
        assert np.array_equal(fn.loss("cce", y, t)[b : b + 1], fn.loss("cce", y[b : b + 1], t[b : b + 1]))


def test_correct_looks_at_every_row_by_itself():
    y, t = np.array([[0, 9.0], [8, 0], [1, 0]]), np.array([[0, 1.0], [0, 2], [3, 0]])
    assert fn.correct(y, t).tolist() == [True, False, True]


def test_numbers_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"outputs must be \(\.\.\., B, n_out\)"):
        fn.loss("mse", np.array(1.0), np.array(1.0))
    with pytest.raises(ValueError, match=r"labels must be \(B,\) ints, got \(\) of int64"):
        fn.one_hot(np.array(1), 3)


def test_arrays_of_two_backends_are_refused(fake_cupy):
    y = np.ones((2, 3))
    for call in (fn.loss, fn.loss_gradient):
        for pair in ((y, fake_cupy.asarray(y)), (fake_cupy.asarray(y), y)):
            with pytest.raises(TypeError, match="mixed"):
                call("mse", *pair)


def test_messages_name_the_choices_and_the_way_out():
    with pytest.raises(ValueError, match="expected one of cce, mse, mse-mean$"):
        fn.loss("hinge", A[None], A[None])
    with pytest.raises(ValueError, match=r"got \(1, 3\) and \(1,\); turn labels into one-hot rows"):
        fn.loss("mse", np.ones((1, 3)), np.ones(1))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(3,\)$"):
        fn.loss("mse", np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="use np, inp, anp or .* another activation"):
        fn.derivative("step", A)


def test_integers_are_refused_where_they_would_round():
    y, t = np.array([[1, 2]]), np.array([[0, 1]])
    with pytest.raises(TypeError, match="outputs must be floating-point, as their gradient is, got int64"):
        fn.loss_gradient("cce", y, t)
    for function in fn.activate, fn.derivative:
        with pytest.raises(TypeError, match="pre-activations must be floating-point, got int64"):
            function("leaky_relu", y)
    with pytest.raises(ValueError, match="classes must be a whole number, at least 1, got 2.5"):
        fn.one_hot(np.array([0, 1]), 2.5)
    for classes in (np.inf, None, 0, -3):
        with pytest.raises(ValueError, match=f"classes must be a whole number, at least 1, got {classes}"):
            fn.one_hot(np.array([0, 1]), classes)
    assert fn.one_hot(np.array([0]), np.int8(2)).shape == fn.one_hot(np.array([0]), 2.0).shape == (1, 2)
    with pytest.raises(ValueError, match="classes must be a whole number, at least 1, got '3'"):
        fn.one_hot(np.array([0, 1]), "3")
    with pytest.raises(TypeError, match="expected numpy.ndarray"):
        fn.loss("cce", [[1.0, 2.0]], t)


@pytest.mark.parametrize("slope", [-0.1, 1, float("nan")])
def test_slopes_that_leaky_relu_cannot_have(slope):
    for function in fn.activate, fn.derivative:
        with pytest.raises(ValueError, match=r"slope must be in \[0, 1\), got"):
            function("leaky_relu", A, slope)
        function("tanh", A, slope)  # it has none


def test_labels_are_no_targets_even_where_there_are_as_many_as_outputs():
    y, labels = np.eye(3), np.array([0.0, 2.0, 1.0])
    for call in partial(fn.loss, "cce"), partial(fn.loss_gradient, "mse"), fn.correct:
        with pytest.raises(ValueError, match=r"targets \(B, n_out\), got \(3, 3\) and \(3,\); turn labels into one-hot rows"):
            call(y, labels)
        with pytest.raises(ValueError, match=r"got \(3,\) and \(3,\)"):
            call(labels, labels)


def test_a_label_that_is_none_has_no_one():
    assert fn.one_hot(np.array([1, 3, -1]), 3).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_nothing_in_place_of_outputs_or_targets():
    a = np.ones((2, 3))
    for function in (lambda y, t: fn.loss("cce", y, t), lambda y, t: fn.loss_gradient("mse", y, t), fn.correct):
        for y, t, words in ((None, a, "got None"), (a, None, "got no targets, None")):
            with pytest.raises(TypeError, match=f"expected outputs and targets, {words}"):
                function(y, t)
