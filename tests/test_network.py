from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Literal, assert_close, random_batch, random_network, random_noise, random_params
from scipy import stats

from npref import Conv, Dense, Network, Params, architecture, bp_update, forward, init_params, noise, without_decorrelation
from npref.network import ARCHITECTURES, check_batch, spares_x_star


def drawn(seed, conv, noisy, B):
    """A random network, its parameters, a batch, and noise for one pass or None."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, conv)
    params, (x, _) = random_params(rng, network), random_batch(rng, network, B)
    return network, params, x, [e[0] for e in random_noise(rng, network, 1, B)] if noisy else None


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
@given(seed=st.integers(0, 2**32 - 1))
def test_forward_is_the_equation(conv, noisy, seed):
    network, params, x, noise = drawn(seed, conv, noisy, 2)
    trace, net = forward(network, params, x, noise), Literal(network, params)
    for b in range(2):
        x_star, a, xs = net.forward(x[b], None if noise is None else [e[b] for e in noise])
        for l in range(len(network.layers)):
            P = x_star[l].shape[1]
            scale = 10 * (1 + np.abs(x_star[l]).max() + np.abs(a[l]).max())
            assert_close(trace.x_star[l][b * P : (b + 1) * P], x_star[l].T, scale)
            assert_close(trace.a[l][b * P : (b + 1) * P], a[l].T, scale)
            assert_close(trace.x[l][b], xs[l + 1].reshape(network.shapes[l + 1]), scale)
    assert trace.y is trace.x[-1]
    drive = forward(network, params, x).a[0]
    assert np.array_equal(trace.drive, drive)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
@given(seed=st.integers(0, 2**32 - 1), B=st.integers(1, 40))
def test_a_sparing_pass_is_the_same_without_x_star(conv, noisy, seed, B):
    network, params, x, noise = drawn(seed, conv, noisy, B)
    full, spared = forward(network, params, x, noise), forward(network, params, x, noise, sparing=True)
    assert full.x_rows == full.A == [None] * len(network.layers)
    growth = 1.0  # of what a layer's rounding has become
    for l, (W, R) in enumerate(zip(params.W, params.R)):
        W = W.reshape(len(W), -1)
        if len(full.a[l]) > 2 * sum(W.shape):
            assert spared.x_star[l] is None and np.array_equal(spared.A[l], W @ R)
            assert_close(spared.x_rows[l] @ R.T, full.x_star[l], growth * (1 + np.abs(spared.x_rows[l]) @ np.abs(R.T)))
        else:
            assert spared.x_rows[l] is spared.A[l] is None
            assert_close(spared.x_star[l], full.x_star[l], growth * (1 + np.abs(full.x_star[l]).max()))
        growth *= 1 + np.abs(W).sum(1).max() * np.abs(R).sum(1).max()
        assert_close(spared.a[l], full.a[l], growth)
        assert_close(spared.x[l], full.x[l], growth)
    plain = without_decorrelation(params)  # no R: x* is x, and nothing to spare
    assert all(x_star is not None for x_star in forward(network, plain, x, noise, sparing=True).x_star)


def test_without_decorrelation_is_the_same_function():
    rng = np.random.default_rng(0)
    network = random_network(rng, True)
    params, (x, _) = random_params(rng, network), random_batch(rng, network, 3)
    fused = without_decorrelation(params)
    assert all(r is None for r in fused.R) and [w.shape for w in fused.W] == [w.shape for w in params.W]
    y = forward(network, params, x).y
    assert_close(forward(network, fused, x).y, y, 100 * (1 + np.abs(y)))


def sizes(name, **options):
    network = architecture(name, **options)
    return network, [w.shape for w in init_params(network).W]


def test_table_1():
    assert sizes("fc1")[1] == [(10, 3072)]
    for name, depth in (("fc3", 3), ("fc6", 6), ("fc9", 9)):
        assert sizes(name)[1] == [(1024, 3072)] + [(1024, 1024)] * (depth - 1) + [(10, 1024)]
    assert sizes("sarcos", input_shape=(21,), n_out=7)[1] == [(32, 21), (32, 32), (7, 32)]  # Appendix J
    network, weights = sizes("conv")
    assert weights == [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (1024, 1600), (10, 1024)]
    assert network.shapes == ((3, 32, 32), (16, 15, 15), (32, 7, 7), (64, 5, 5), (1024,), (10,))
    assert network.units == (3600, 1568, 1600, 1024, 10)
    network, weights = sizes("conv-tiny", input_shape=(3, 64, 64), n_out=200)
    assert network.shapes == ((3, 64, 64), (32, 30, 30), (64, 14, 14), (128, 10, 10), (512,), (512,), (200,))
    assert weights[:3] == [(32, 3, 5, 5), (64, 32, 3, 3), (128, 64, 5, 5)]
    for name in ARCHITECTURES:
        layers = architecture(name, bias=True, slope=0.1, activation="relu").layers
        assert layers[-1].activation == "identity" and all(q.bias for q in layers)
        assert all(q.activation == "relu" and q.slope == 0.1 for q in layers[:-1])
    assert architecture("conv", padding=1).shapes[1:4] == ((16, 16, 16), (32, 8, 8), (64, 8, 8))


@pytest.mark.parametrize("make, error, words", [
    (lambda: Network((3,), ()), ValueError, "at least one layer"),
    (lambda: Network((), (Dense(1),)), ValueError, "input_shape"),
    (lambda: Network((3, 0, 2), (Dense(1),)), ValueError, "input_shape"),
    (lambda: Network((3,), ("dense",)), TypeError, "must be Dense or Conv"),
    (lambda: Network((3, 8, 8), (Conv(2, 9), Dense(1))), ValueError, "layer 1: kernel"),
    (lambda: Network((3, 8, 8), (Conv(2, 5), Conv(2, 5), Dense(1))), ValueError, "layer 2: kernel"),
    (lambda: Network((8,), (Dense(4), Conv(2), Dense(1))), ValueError, "layer 2: Conv needs an image"),
    (lambda: Network((3, 8, 8), (Conv(2),)), ValueError, "last layer must be Dense"),
    (lambda: architecture("fc2"), ValueError, "unknown architecture 'fc2': expected one of fc1"),
    (lambda: architecture("fc3", padding=1), ValueError, "padding=1 needs a convolution"),
    (lambda: architecture("conv", (3, 8, 8)), ValueError, "layer 3: kernel"),
    (lambda: forward(architecture("fc1"), init_params(architecture("fc1")), np.ones((1, 3, 8, 8))), ValueError, "x must be"),
    (lambda: init_params(architecture("fc1"), init="zeros"), ValueError, "unknown init 'zeros'"),
])
def test_bad_networks_say_so_when_built(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_is_no_network_and_no_batch_is_refused():
    network = Network((3,), (Dense(2, activation="identity"),))
    params, x, t = init_params(network, dtype="float64"), np.ones((4, 3)), np.ones((4, 2))
    for arguments, words in (((network, tuple(params.W), x, t), "expected a Network and its Params, got Network and tuple"),
                             ((params, network, x, t), "got Params and Network"),
                             ((network, params, None, t), "x and every W must be arrays, got None"),
                             ((network, Params((None,), (None,), (None,)), x, t), "every W must be arrays, got None"),
                             ((network, params, x, None), "one target vector a sample, got None"),
                             ((network, params, x, t + 0j), "t must be of real numbers, got complex128"),
                             ((network, params, x, t.astype(object)), "t must be of real numbers, got object")):
        with pytest.raises(TypeError, match=words):
            check_batch(*arguments)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
def test_targets_may_be_of_any_real_dtype(dtype):
    network, rng = Network((3,), (Dense(2, activation="identity"),)), np.random.default_rng(0)
    params, x, t = random_params(rng, network), rng.normal(size=(4, 3)), np.eye(2)[[0, 1, 1, 0]]
    dW, expected = (bp_update(network, params, x, targets).dW[0] for targets in (t.astype(dtype), t))
    assert np.array_equal(dW, expected)


def test_parameters_that_do_not_fit_are_named():
    network = Network((4,), (Dense(3, bias=True), Dense(2, activation="identity")))
    rng = np.random.default_rng(0)
    p, (x, t) = random_params(rng, network), random_batch(rng, network, 2)
    for params, words in (
        (Params((p.W[0].T, p.W[1]), p.b, p.R), r"W of layer 1 must be \(3, 4\), got \(4, 3\)"),
        (Params(p.W, (None, None), p.R), "layer 1 has bias=True, but its b is None"),
        (Params(p.W, (p.b[0], np.zeros(2)), p.R), "layer 2 has bias=False, but its b is given"),
        (Params(p.W, (np.zeros(1), None), p.R), r"b of layer 1 must be \(3,\), got \(1,\)"),
        (Params(p.W, (np.zeros((3, 1)), None), p.R), r"b of layer 1 must be \(3,\), got \(3, 1\)"),
        (Params(p.W[:1], p.b, p.R), "got 1, 2 and 2"),
        (Params(p.W, p.b, (*p.R, None)), "got 2, 2 and 3"),
        (Params(p.W, p.b, (p.R[0], np.eye(4))), r"R of layer 2's input must be \(3, 3\), got \(4, 4\)"),
    ):
        with pytest.raises(ValueError, match=words):
            bp_update(network, params, x, t)


def test_initial_weights():
    network = Network((2, 9, 9), (Conv(40, 3, bias=True), Dense(30), Dense(10, activation="identity")))
    n_in, n_out = (18, 40 * 49, 30), (40 * 9, 30, 10)
    he = init_params(network, seed=1, dtype="float64", decorrelate=True)
    for l in range(3):
        w = he.W[l].ravel()
        assert stats.kstest(w / np.sqrt(2 / n_in[l]), "norm").pvalue > 1e-4
        for init, bound in (("glorot", np.sqrt(6 / (n_in[l] + n_out[l]))), ("uniform", 1 / np.sqrt(n_in[l]))):
            u = init_params(network, init=init, seed=1, dtype="float64").W[l].ravel()
            assert stats.kstest(u / bound, stats.uniform(-1, 2).cdf).pvalue > 1e-4, (init, l)
        assert np.array_equal(he.R[l], np.eye(n_in[l]))
    assert (he.b[0] == 0).all() and he.b[0].shape == (40,) and he.b[1] is None
    single = init_params(network, seed=1)
    assert single.W[0].dtype == np.float32 and np.array_equal(single.W[0], he.W[0].astype(np.float32)) and single.R == (None,) * 3
    assert not np.array_equal(init_params(network, seed=2).W[0], single.W[0])
    assert not np.array_equal(he.W[1].ravel()[:100], he.W[2].ravel()[:100])


def test_lists_are_taken_and_become_tuples():
    network = Network([4], [Dense(3), Dense(2)])
    assert network == Network((4,), (Dense(3), Dense(2))) and hash(network) and network.shapes == ((4,), (3,), (2,))


def test_weights_without_decorrelation_are_left_as_they_are():
    network = Network((4,), (Dense(3), Dense(2)))
    params = random_params(np.random.default_rng(0), network, decorrelate=False)
    assert all(a is b for a, b in zip(without_decorrelation(params).W, params.W))


@pytest.mark.parametrize("name", ["x", "t", "W", "b", "R"])
def test_a_batch_and_parameters_of_two_backends_are_refused(fake_cupy, name):
    network, rng = Network((4,), (Dense(3, bias=True),)), np.random.default_rng(0)
    params, (x, t) = random_params(rng, network), random_batch(rng, network, 2)
    arrays = dict(x=x, t=t, W=params.W[0], b=params.b[0], R=params.R[0])
    arrays[name] = fake_cupy.asarray(arrays[name])
    with pytest.raises(TypeError, match="mixed"):
        check_batch(network, Params(*((arrays[q],) for q in "WbR")), arrays["x"], arrays["t"])


def test_initial_parameters_share_one_dtype():
    network = Network((4,), (Dense(3, bias=True), Dense(2)))
    for dtype in ("float32", "float64"):
        params = init_params(network, dtype=dtype, decorrelate=True)
        assert {str(a.dtype) for group in (params.W, params.b, params.R) for a in group if a is not None} == {dtype}


@pytest.mark.parametrize("init", ["he", "glorot", "uniform"])
def test_initial_weights_have_their_own_numbers(init):
    """Seed 0 by default; drawn from the stream of the weights, at step 0, so that they share nothing with the noise."""
    network = Network((50,), (Dense(40),))
    w = init_params(network, init=init, dtype="float64").W[0]
    assert np.array_equal(w, init_params(network, init=init, seed=0, dtype="float64").W[0])
    where = dict(seed=0, step=0, layer=0, samples=range(1), rows=range(40), dtype="float64")
    drawn = {stream: noise.draw(np, "gaussian", (50,), 0.2, **where, stream=stream)[0] for stream in range(5)}
    assert [np.allclose(w, z, rtol=1e-14, atol=0) for z in drawn.values()] == [init == "he" and s == noise.WEIGHTS for s in drawn]


def test_numpys_ints_make_a_network():
    network = Network(tuple(np.array([3, 32, 32], dtype=np.uint8)), (Dense(np.int64(4)),))
    assert network == Network((3, 32, 32), (Dense(4),)) and all(type(n) is int for n in network.input_shape)


def test_architectures_take_their_options():
    for name in ARCHITECTURES:
        assert not any(q.bias for q in architecture(name).layers)
        assert {q.slope for q in architecture(name, slope=0.1).layers} == {0.1}


@pytest.mark.parametrize("make, words", [
    (lambda n, p, x, t: forward(n, p, x[:, 1:]), r"x must be \(B >= 1, 2, 3\), got \(2, 1, 3\)"),
    (lambda n, p, x, t: forward(n, p, x.tolist()), "expected numpy.ndarray or cupy.ndarray arguments"),
    (lambda n, p, x, t: forward(Network((2, 3), n.layers[:1]), p, x), "one W, b and R .or None. for each of 1 layers, got 2, 2 and 2$"),
    (lambda n, p, x, t: forward(n, p, x.astype("float32")),
     r"share one dtype, got x in float32 and parameters in float64: use x.astype\('float64'\), or init_params\(..., dtype='float32'\)$"),
    (lambda n, p, x, t: forward(n, p, x.astype(int)), r"must be float32 or float64, got int64: use x.astype\('float64'\)$"),
    (lambda n, p, x, t: forward(n, p, x[:0]), r"x must be \(B >= 1, 2, 3\), got \(0, 2, 3\)"),
    (lambda n, p, x, t: forward(n, replace(p, W=(p.W[0], p.W[1][1:])), x), r"W of layer 2 must be \(5, 4\), got \(4, 4\)"),
    (lambda n, p, x, t: forward(n, replace(p, W=(p.W[0], p.W[1].astype("float32"))), x),
     r"parameters in float32, float64: give all parameters one, or init_params\(..., dtype='float64'\)$"),
    (lambda n, p, x, t: forward(n, p, x.astype(complex)), r"got x in complex128 and parameters in float64: use x.astype\('float64'\)$"),
    (lambda n, p, x, t: forward(n, replace(p, R=(p.R[0], p.R[0])), x), r"R of layer 2's input must be \(4, 4\), got \(6, 6\)"),
    (lambda n, p, x, t: forward(n, replace(p, b=(None, t[0])), x), "layer 2 has bias=False, but its b is given"),
    (lambda n, p, x, t: forward(n, Params([a.astype(int) for a in p.W], (None, None), (None, None)), x.astype(int)),
     "must be float32 or float64, got int64"),
    (lambda n, p, x, t: forward(n, p, x, [t[:, :4], None]), "noise of layer 2 is None: expected an array for each layer"),
    (lambda n, p, x, t: forward(n, p, x, [x[:, 0, 0]]), "noise needs one array per layer, 2, got 1$"),
    (lambda n, p, x, t: forward(n, p, x, [t[:, :4], t[:1]]), r"noise of layer 2 must be \(2, 5\), got \(1, 5\)$"),
    (lambda n, p, x, t: forward(n, p, x, [t[:, :4], t.astype("float32")]), "noise of layer 2 must have x's dtype float64, got float32$"),
    (lambda n, p, x, t: forward(n, p, x, t), "^noise must be a list or tuple of arrays, got ndarray$"),
    (lambda n, p, x, t: forward(n, p, x.astype("uint8")), r"got uint8: use npref.batches.prepare\(x, .float64.\), which divides"),
    (lambda n, p, x, t: check_batch(n, p, x[:, 1:], t), r"x must be \(B >= 1, 2, 3\), got \(2, 1, 3\)"),
    (lambda n, p, x, t: check_batch(n, p, x, t[:, 1:]), r"one target vector a sample, \(2, 5\), got \(2, 4\); turn labels into one-hot"),
    (lambda n, p, x, t: check_batch(n, p, x.astype("float32"), t), "share one dtype, got x in float32 and parameters in float64: "),
    (lambda n, p, x, t: forward(n, replace(p, b=None), x), "params.b must be a list or tuple with one entry a layer .*, got NoneType$"),
    (lambda n, p, x, t: forward(n, replace(p, R=None), x), "params.R must be a list or tuple"),
    (lambda n, p, x, t: check_batch(n, p, x.astype("float16"), t), "must be float32 or float64, got float16"),
    (lambda n, p, x, t: init_params((2, 3)), "expected a Network, got tuple$"),
    (lambda n, p, x, t: init_params(n, dtype="foo"), "'foo'"),
    (lambda n, p, x, t: init_params(n, seed=np.random.default_rng(0)), "seed must be a whole number in .*, got Generator"),
    (lambda n, p, x, t: Network(784, (Dense(4),)), r"^input_shape must be a tuple such as \(3, 32, 32\) or \(21,\), got 784$"),
    (lambda n, p, x, t: Network((6,), Dense(4)),
     r"^layers must be a tuple such as \(Dense\(10, activation=\"identity\"\),\), got Dense\(units=4"),
    (lambda n, p, x, t: init_params(n, dtype="int32"), "dtype must be float32 or float64, got 'int32'"),
    (lambda n, p, x, t: init_params(n, dtype=None), "dtype must be float32 or float64, got None"),
    (lambda n, p, x, t: init_params(n, seed=0.5), "seed must be a whole number"),
    (lambda n, p, x, t: init_params(n, init="zeros"), "expected one of he, glorot, uniform$"),
    (lambda n, p, x, t: architecture("fc2"), "expected one of fc1, fc3, fc6, fc9, conv, conv-tiny, sarcos$"),
])
def test_messages_say_what_was_expected_and_what_came(make, words):
    network, rng = Network((2, 3), (Dense(4), Dense(5))), np.random.default_rng(0)
    with pytest.raises((ValueError, TypeError), match=words):
        make(network, random_params(rng, network), *random_batch(rng, network, 2))


def test_layers_and_shapes_may_come_in_any_sequence():
    assert Network([3], (Dense(n) for n in (4, 2))) == Network((3,), [Dense(4), Dense(2)])


@pytest.mark.parametrize("init", ["he", "glorot", "uniform"])
def test_layers_of_one_shape_begin_with_other_weights(init):
    W = init_params(Network((6,), (Dense(6), Dense(6), Dense(6))), init=init).W
    assert not (W[0] == W[1]).any() and not (W[1] == W[2]).any() and not (W[0] == W[2]).any()


@pytest.mark.parametrize("n_out, n", [(1, 1), (16, 27), (64, 288), (1024, 3072)])
def test_x_star_is_spared_where_that_is_cheaper(n_out, n):
    """M n² against 2 n_out n² + 2 n³."""
    equal = 2 * n_out + 2 * n
    assert not spares_x_star(equal, n_out, n) and spares_x_star(equal + 1, n_out, n)
