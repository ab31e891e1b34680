"""The literal equations on numbers small enough to work out by hand."""

import re
import textwrap

import numpy as np
import pytest

from npref import Conv, Dense, Network, Params, anp_update, forward, layers, np_update
from npref import equations as eq

I2 = np.eye(2)


def column(*values):
    return np.array(values, dtype=float)[:, None]


def test_forward_pass_by_hand():
    """x0 = (1, 2), R_0 doubles the second input, W_1 = (1 1; 1 -1), f = ReLU, W_2 = (1 3)."""
    W, R, b = [np.array([[1.0, 1], [1, -1]]), np.array([[1.0, 3]])], [np.diag([1.0, 2]), I2], [column(0, 10), column(0.5)]
    f = [lambda a: np.maximum(a, 0), lambda a: a]
    x_star, a, x = eq.forward_pass(column(1, 2), W, R, b, f)
    assert x_star[0].ravel().tolist() == [1, 4] and a[0].ravel().tolist() == [5, 7]
    assert a[1].item() == 26.5 and x[2].item() == 26.5 and len(x) == 3
    _, a, x = eq.forward_pass(column(1, 2), W, R, b, f, eps=[column(0, -8), column(1)])
    assert a[0].ravel().tolist() == [5, -1] and x[1].ravel().tolist() == [5, 0] and a[1].item() == 6.5


def test_vectors_are_columns():
    with pytest.raises(AssertionError, match="are columns"):  # (n,) would give ΔW as one number
        eq.forward_pass(np.ones(2), [np.ones((2, 2))], [np.eye(2)], [0], [np.tanh])


def test_gradients_by_hand():
    """g_1 = f'(a_1) ⊙ R_1ᵀ W_2ᵀ g_2, with an R_1 that is not symmetric."""
    W, R = [I2, np.array([[1.0, 3]])], [I2, np.array([[1.0, 2], [0, 1]])]
    g = eq.gradients(column(2), W, R, [column(1, 1), column(1)], [lambda a: a * 0 + 0.5, lambda a: a * 0 + 1])
    assert g[1].item() == 2
    assert g[0].ravel().tolist() == [1.0, 5.0]  # W_2ᵀ g_2 = (2, 6); R_1ᵀ of it = (2, 4 + 6); halved


def test_updates_by_hand():
    x_star, e = column(1, 2, 0), column(3, 4)
    assert eq.bp_update(column(1, -1), x_star).tolist() == [[1, 2, 0], [-1, -2, 0]]
    assert eq.np_update(0.5, e, 0.25, x_star).tolist() == [[6, 12, 0], [8, 16, 0]]  # 0.5 * (3, 4) / 0.25
    assert np.allclose(eq.inp_update(2, 0.5, e, x_star), np.outer([3, 4], [1, 2, 0]) / 25)  # 2 * 0.5 / 5²
    da = [column(3, 4), column(12)]  # ‖δa‖² = 169, and N = 3
    assert np.allclose(eq.anp_update(3, 2.0, da, 0, x_star), 6 * np.outer([3, 4], [1, 2, 0]) / 169)
    assert np.allclose(eq.anp_update(3, 2.0, da, 1, x_star), 6 * np.outer([12], [1, 2, 0]) / 169)
    assert np.allclose(eq.anp_update(3, 2.0, da, 0, x_star, per_layer=True), 6 * np.outer([3, 4], [1, 2, 0]) / 25)


def test_one_sample_from_the_input_to_the_updates():
    """The lines in the module's docstring, run as they stand, are `rules.py`'s updates."""
    rng, network = np.random.default_rng(0), Network((1, 1, 3), (Dense(4, activation="tanh"), Dense(2, activation="identity")))
    W, R = [rng.normal(size=s) for s in ((4, 3), (2, 4))], [rng.normal(size=(n, n)) for n in (3, 4)]
    x0, eps, t, sigma2 = rng.normal(size=(3, 1)), [0.1 * rng.normal(size=(n, 1)) for n in (4, 2)], column(1, 0), 0.01
    names = dict(vars(eq), x0=x0, W=W, R=R, b=[0, 0], f=[np.tanh, lambda a: a], eps=eps, sigma2=sigma2, loss=lambda y: ((t - y) ** 2).sum())
    exec(textwrap.dedent(re.search(r"^( {4}x_star.*\n)( {4}.*\n)+", eq.__doc__, re.M)[0]), names)
    batch = (Params(tuple(W), (None,) * 2, tuple(R)), x0.reshape(1, 1, 1, 3), t.T, [[e.reshape(1, 1, -1) for e in eps]])
    for name, update in (("np_updates", np_update(network, *batch, sigma2=sigma2, loss="mse")),
                         ("anp_updates", anp_update(network, *batch, loss="mse"))):
        assert all(np.allclose(a, b, rtol=1e-14, atol=0) for a, b in zip(names[name], update.dW, strict=True))


def test_a_convolution_sums_over_positions():
    x_star, g = np.array([[1.0, 2], [3, 4]]), np.array([[10.0, 1]])
    assert eq.bp_update(g, x_star).tolist() == [[12, 34]]
    assert np.isclose(eq.norm(x_star), np.sqrt(30))


def test_directional_derivatives_along_a_basis_give_the_gradient():
    g = column(3, -1, 2)
    v = [column(2, 0, 0), column(0, 5, 0), column(0, 0, -1)]
    derivatives = [(g.T @ d / eq.norm(d)).item() for d in v]
    assert np.allclose(eq.gradient_from_directional_derivatives(3, derivatives, v), g)


def test_decorrelation_by_hand():
    """⟨x* x*ᵀ⟩ of (1, 2) and (1, 0) is (1 1; 1 2); off the diagonal (0 1; 1 0), times R = diag(1, 3)."""
    R = eq.decorrelation_update(np.diag([1.0, 3]), [column(1, 2), column(1, 0)], 0.1)
    assert np.allclose(R, [[1, -0.3], [-0.1, 3]])


def test_a_derivative_for_every_direction():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        eq.gradient_from_directional_derivatives(2, [1.0], [column(1, 0), column(0, 1)])


def test_a_bias_or_noise_that_is_no_column_is_refused():
    """NumPy would make a matrix of it and a column."""
    W, R, f, x0 = [np.ones((5, 3))], [np.eye(3)], [np.tanh], np.ones((3, 1))
    for b, eps in ((np.ones(5), None), (0, np.ones(5)), (np.ones((1, 5)), None)):
        with pytest.raises(AssertionError, match="b is a column"):
            eq.forward_pass(x0, W, R, [b], f, eps if eps is None else [eps])
    assert eq.forward_pass(x0, W, R, [np.ones((5, 1))], f, [np.ones((5, 1))])[1][0].tolist() == [[5]] * 5


def test_a_convolution_by_the_unfold_that_is_described():
    conv, rng = Conv(2, 3, stride=2, padding=1), np.random.default_rng(0)
    W, x = rng.normal(size=(2, 3, 3, 3)), rng.normal(size=(3, 5, 4))
    network = Network((3, 5, 4), (conv, Dense(1, activation="identity")))
    names = {"layers": layers, "conv": conv, "C": 3, "H": 5, "W": 4}
    unfold = eval(re.search(r"lambda x: layers.*\.T", eq.forward_pass.__doc__)[0], names)
    a = eq.forward_pass(x.reshape(3, 20), [W.reshape(2, 27)], [np.eye(27)], [0], [np.tanh], unfold=[unfold])[1][0]
    params = Params((W, np.zeros((1, network.units[0]))), (None,) * 2, (None,) * 2)
    assert np.allclose(a, forward(network, params, x[None]).a[0].T, rtol=1e-13, atol=1e-13)
