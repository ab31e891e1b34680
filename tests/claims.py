"""What the tests of the paper's claims share: small networks, noise as vectors, and limits σ -> 0.

The noise of all N units of a network is one vector, layer after layer, an image as (C, H, W). J is the matrix δa = J ε to first
order: its block (l, m) is J_lm = ∂a_l/∂a_m, the identity for l = m and zero for l < m. g stacks all g_l = ∂L/∂a_l.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from reference import random_batch, random_params

from npref import Conv, Dense, Network, Params, forward, rules
from npref.functions import LOSSES, loss
from npref.layers import fold, to_rows

SEEDS, WIDTHS, SHORT = st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), max_size=2), st.lists(st.integers(1, 2), max_size=2)
CONV = pytest.mark.parametrize("conv", [0, 1], ids=["dense", "conv"])  # for sums over all signs: few units
CONVS = pytest.mark.parametrize("conv", [0, 2], ids=["dense", "conv"])  # a convolution also has one behind it
NOISY = pytest.mark.parametrize("rule", ["np", "inp", "anp"])
few = settings(max_examples=8)


def setting(seed, widths, conv=0, activation="tanh", B=1, bias=True, out=2):
    """(network, params, x, t): `conv` (0 to 2) convolutions, strided, padded, oblong, then dense layers; R everywhere."""
    rng = np.random.default_rng(seed)
    first = [Conv(int(rng.integers(1, 3)), (3, 2), (2, 1), (1, 0), activation, 0.3, bias)] if conv else []
    first += [Conv(1, 2, 1, (0, 1), activation, 0.3, bias)] * (conv == 2)
    hidden = [Dense(n, activation, 0.3, bias) for n in widths]
    network = Network((2, 4, 2) if conv else (3,), (*first, *hidden, Dense(out, "identity", bias=bias)))
    return network, random_params(rng, network), *random_batch(rng, network, B)


def run(rule, problem, noise, sigma2=None, **options):
    return getattr(rules, f"{rule}_update")(*problem, noise, **options, **(dict(sigma2=sigma2) if rule == "np" else {}))


def flat(update):
    return np.concatenate([a.ravel() for a in (*update.dW, *update.db) if a is not None])


def split(network, v, B=1):
    """Noise vectors (K, N) as one array a layer, (K, B, *shape), the same for every batch row."""
    parts = np.split(v, np.cumsum(network.units)[:-1], axis=1)
    return [np.repeat(p.reshape(len(v), 1, *s), B, axis=1) for p, s in zip(parts, network.shapes[1:])]


def joined(network, trace):
    """a_1 ... a_L of a single sample as one vector (N,)."""
    return np.concatenate([fold(a, s).ravel() for a, s in zip(trace.a, network.shapes[1:])])


def signs(n):
    return np.array(list(product((-1.0, 1.0), repeat=n)))


def outer(network, trace, e):
    """The flat update e_l x*ᵀ_{l-1}, and its bias's, of one error a unit, (N,): what g is to BP."""
    rows = [to_rows(e_l[0]) for e_l in split(network, e[None])]
    biases = [r.sum(axis=0) for r, layer in zip(rows, network.layers) if layer.bias]
    return np.concatenate([*[(r.T @ x).ravel() for r, x in zip(rows, trace.x_star)], *biases])


def complex_step(problem, which_loss="cce", h=1e-30):
    """J (N, N) and g (N,) of a single sample: an imaginary perturbation ih of a unit leaves h times the derivatives."""
    network, params, x, t = problem
    J, g = [], []
    for column in np.eye(sum(network.units)):
        trace = forward(network, widen(params), x.astype(complex), [e[0] for e in split(network, 1j * h * column[None])])
        J.append(joined(network, trace).imag / h)
        g.append(loss(which_loss, trace.y, t)[0].imag / h)
    return np.array(J).T, np.array(g)


def widen(params):
    return Params(*(tuple(None if a is None else a.astype(complex) for a in group) for group in (params.W, params.b, params.R)))


def limit(estimate, sigma, powers):
    """estimate(σ) as σ -> 0 by Richardson: from σ, σ/2, σ/4, ... the terms σ^p are cancelled, p in powers."""
    table = [estimate(sigma / 2**i) for i in range(len(powers) + 1)]
    for p in powers:
        table = [b + (b - a) / (2**p - 1) for a, b in zip(table, table[1:])]
    return table[0]


def amplitude(problem, e=1.0, smallest=1.0):
    """What the terms of an update are at most, so what rounding is relative to: N L |e| |x*| / smallest, summed over positions.

    e: the largest noise (δa, gradient); smallest: the least of what it is divided by, σ² or ‖e‖².
    """
    network, params, x, t = problem
    trace = forward(network, params, x)
    size = 10 + max(loss(which, trace.y, t).max() for which in LOSSES)
    inputs = 1 + max(np.abs(v).max() * len(v) / len(x) for v in trace.x_star)
    return sum(network.units) * size * inputs * e / smallest


def linear(problem):
    """J, g and the Hessian/2 A of the summed squared error over all noise, of a network without activations: δL = g·ε + εᵀAε.

    J_lm = W_l R_{l-1} ... W_{m+1} R_m, and with P the last rows of J, g = 2 Pᵀ(y - t) and A = PᵀP.
    """
    network, params, x, t = problem
    J = [[np.eye(n) if l == m else np.zeros((n, k)) for m, k in enumerate(network.units)] for l, n in enumerate(network.units)]
    y = x[0]
    for l, (W, R) in enumerate(zip(params.W, params.R)):
        y = W @ R @ y
        for m in range(l):
            J[l][m] = W @ R @ J[l - 1][m]
    P = np.hstack(J[-1])
    return np.block(J), 2 * P.T @ (y - t[0]), P.T @ P


def second_moment(g, A, sigma, gaussian):
    """⟨ĝ ĝᵀ⟩ of ĝ = δL ε/σ² for δL = g·ε + εᵀAε, exactly: fourth and sixth moments of ε (odd ones vanish).

    Gaussian, by Isserlis: ‖g‖² I + 2 g gᵀ + σ² ((τ² + 2‖A‖²) I + 4 τ A + 8 A²), τ = tr A.
    Signs: ε_i² = σ² is certain, so index pairs must cancel: with B = A off the diagonal and zero on it,
    ‖g‖² I + 2 (g gᵀ off the diagonal) + σ² ((τ² + 2‖B‖²) I + 4 τ B + 8 (B² off the diagonal)).
    """
    keep = (lambda M: M) if gaussian else (lambda M: M - np.diag(np.diag(M)))
    tau, B = np.trace(A), keep(A)
    curved = (tau**2 + 2 * np.sum(B**2)) * np.eye(len(g)) + 4 * tau * B + 8 * keep(B @ B)
    return g @ g * np.eye(len(g)) + 2 * keep(np.outer(g, g)) + sigma**2 * curved
