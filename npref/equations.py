"""The paper's equations, one literal function each, on one sample, in the paper's symbols.

Read this file beside the paper (v2: "Effective Learning with Node Perturbation in Multi-Layer Neural Networks", Dalm, van
Gerven & Ahmad); examples/equations.ipynb steps through it. It is written for the eye and as the yardstick that `rules.py` is
tested against; it shares no code with it.

Every vector is a column, (n, 1). A convolution fits in without a change when its columns are positions: x* is then
(n_in, P), one im2col patch a column, eps and a are (n_out, P), and x*ᵀ sums over positions. W is always a matrix (n_out, n_in),
R a matrix (n_in, n_in), the identity without decorrelation, and b a column (n_out, 1), or 0. f[l] and f_prime[l] are functions of
an array. Lists run over layers and count from 0: W[0] is the paper's W_1, R[0] its R_0, a[0] its a_1, da[0] its δa_1, g[0] its g_1.
A bias is a weight whose input is 1 at every position: its update is any of the rules with a row of ones for x*.

One sample from the input to Eq. 3 and 6, with noise eps[l] of variance sigma2 and any loss of the output:

    x_star, a, x = forward_pass(x0, W, R, b, f)  # the clean pass
    _, a_noisy, x_noisy = forward_pass(x0, W, R, b, f, eps)  # the noisy pass
    dL = loss(x_noisy[-1]) - loss(x[-1])  # δL
    da = [noisy - clean for noisy, clean in zip(a_noisy, a)]  # δa
    N = sum(a_l.size for a_l in a)
    np_updates = [np_update(dL, eps[l], sigma2, x_star[l]) for l in range(len(W))]  # to be averaged over samples and noise,
    anp_updates = [anp_update(N, dL, da, l, x_star[l]) for l in range(len(W))]  # and subtracted from W
"""


def forward_pass(x0, W, R, b, f, eps=None, unfold=None):
    """Eq. 2 and Algorithm 1: the clean pass, or with `eps` the noisy one. Returns lists x* (L), a (L) and x (L + 1).

    unfold[l] lays x_l out as the columns that W[l] multiplies; without it x_l is used as it is. For a convolution whose input of shape
    (C, H, W) is held as (C, H * W) that is lambda x: layers.unfold(conv, x.reshape(1, C, H, W)).T, with the transpose
    lambda c: layers.unfold_adjoint(conv, c.T, (C, H, W)).reshape(C, H * W). A dense layer behind a convolution, whose output has the
    shape (n_out, P), has lambda x: x.reshape(-1, 1), with lambda c: c.reshape(n_out, P).
    """
    x_star, a, x = [], [], [x0]
    for l in range(len(W)):
        columns = x[l] if unfold is None else unfold[l](x[l])
        assert len(columns.shape) == 2, "vectors are columns, (n, 1)"
        x_star.append(R[l] @ columns)  # x*_l = R_l x_l
        a.append(W[l] @ x_star[l] + b[l])  # a_{l+1} = W_{l+1} x*_l
        if eps is not None:
            a[l] = a[l] + eps[l]  # ã includes the noise, as in Algorithm 1
        assert a[l].shape == (len(W[l]), columns.shape[1]), "b is a column, (n, 1), or 0, and eps has the shape of a"
        x.append(f[l](a[l]))  # x_{l+1} = f(a_{l+1})
    return x_star, a, x


def gradients(dL_dx, W, R, a, f_prime, unfold_adjoint=None):
    """g_l = ∂L/∂a_l for every layer, by the chain rule through W and R: g_{l-1} = f'(a_{l-1}) ⊙ R_{l-1}ᵀ W_lᵀ g_l.

    dL_dx is the loss's gradient at the network's output; unfold_adjoint[l] is the transpose of unfold[l].
    """
    g = [None] * len(W)
    g[-1] = f_prime[-1](a[-1]) * dL_dx
    for l in range(len(W) - 1, 0, -1):
        columns = R[l].T @ W[l].T @ g[l]  # R_lᵀ W_{l+1}ᵀ g_{l+1}
        g[l - 1] = f_prime[l - 1](a[l - 1]) * (columns if unfold_adjoint is None else unfold_adjoint[l](columns))
    return g


def bp_update(g_l, x_star):
    """Eq. 1, v2 §2.1: ΔW_l = g_l x*ᵀ_{l-1}."""
    return g_l @ x_star.T


def np_update(dL, eps_l, sigma2, x_star):
    """Eq. 3, v2 §2.1.1: ΔW_l = δL (ε_l / σ²) x*ᵀ_{l-1}, every layer perturbed at once."""
    return dL * (eps_l / sigma2) @ x_star.T


def gradient_from_directional_derivatives(N_l, derivatives, directions):
    """Eq. 4, v2 §2.1.2: g_l = N_l ⟨∇_v L · v_l / ‖v‖⟩_v, where ∇_v L is the derivative along v / ‖v‖ in layer l alone."""
    terms = [derivative * v / norm(v) for derivative, v in zip(derivatives, directions, strict=True)]
    return N_l * sum(terms) / len(terms)


def inp_update(N_l, dL, v_l, x_star):
    """Eq. 5, v2 §2.1.2: ΔW_l = N_l δL (v_l / ‖v_l‖²) x*ᵀ_{l-1}, δL from a pass with noise v_l in layer l alone (so that ‖v‖ = ‖v_l‖)."""
    return N_l * dL * (v_l / norm(v_l) ** 2) @ x_star.T


def anp_update(N, dL, da, l, x_star, per_layer=False):
    """Eq. 6, v2 §2.1.3: ΔW_l = N δL (δa_l / ‖δa‖²) x*ᵀ_{l-1}, with δa = (δa_1 … δa_L) and N = Σ_{l=1}^L N_l.

    per_layer=True (norm="layer" in rules.py) divides by ‖δa_l‖² instead, as v1's Eq. 6 has it (not its Appendix C); N stays the
    whole network's.
    """
    norm2 = norm(da[l]) ** 2 if per_layer else sum(norm(da_m) ** 2 for da_m in da)
    return N * dL * (da[l] / norm2) @ x_star.T


def decorrelation_update(R, x_stars, alpha):
    """v2 §2.2: R ← R - α (⟨x* x*ᵀ⟩ - diag⟨(x*)²⟩) R, ⟨·⟩ over the mini-batch (and a convolution's positions). The new R."""
    samples = [x[:, i : i + 1] for x in x_stars for i in range(x.shape[1])]
    moment = sum(x @ x.T for x in samples) / len(samples)
    for i in range(len(moment)):
        moment[i, i] = 0
    return R - alpha * moment @ R


def norm(v):
    """‖v‖ over all units, and positions, of a layer."""
    return (v * v).sum() ** 0.5
