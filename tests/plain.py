"""The plain form of every rule: each noisy pass in full, a product for every noise sample's update, the literal rule for R.

What npref's rules are timed against (`examples/benchmark.py --against plain`), and, by a test, the same numbers.
"""

from npref import adam_step, bp_update, forward, loss, sgd_step, split_method
from npref.backend import array_module
from npref.layers import to_rows
from npref.step import learnable, noise_groups


def plain_update(config, network, params, x, t, groups):
    """(dW, db, δL, x*) with the shapes that the rules give them. groups: of noise, per layer (k, B, *shape)."""
    xp, (rule, _) = array_module(x), split_method(config.method)
    if rule == "bp":
        update = bp_update(network, params, x, t, loss=config.loss)
        x_star = update.trace.x_star
        if any(rows is None for rows in x_star):  # left out of a convolution with R: another pass has them
            x_star = forward(network, params, x).x_star
        return list(update.dW), list(update.db), None, x_star
    L, K, B, N = len(network.layers), config.samples, len(x), sum(network.units)
    clean = forward(network, params, x)
    clean_loss = loss(config.loss, clean.y, t)
    dW = [xp.zeros_like(W) for W in params.W]
    db = [None if b is None else xp.zeros_like(b) for b in params.b]
    dL = []
    for eps in (tuple(e[k] for e in group) for group in groups for k in range(len(group[0]))):
        for p in range(L) if rule == "inp" else (None,):  # the layer that is perturbed; None: all
            noise = [e if p in (None, l) else xp.zeros_like(e) for l, e in enumerate(eps)]
            noisy = forward(network, params, x, noise)
            dL.append(loss(config.loss, noisy.y, t) - clean_loss)  # (B,)
            if rule == "anp":
                da = [(a_tilde - a).reshape(B, -1) for a_tilde, a in zip(noisy.a, clean.a)]
            for l in range(L) if p is None else (p,):
                v = to_rows(noise[l]).reshape(B, -1)  # (B, N_l)
                if rule == "np":
                    error = (dL[-1] / config.sigma2)[:, None] * v  # Eq. 3
                elif rule == "inp":
                    error = (network.units[l] * dL[-1] / (v * v).sum(1))[:, None] * v  # Eq. 5
                else:
                    norm2 = sum((d * d).sum(1) for d in (da if config.anp_norm == "network" else [da[l]]))
                    error = (N * dL[-1] / norm2)[:, None] * da[l]  # Eq. 6
                error = error.astype(x.dtype).reshape(len(clean.x_star[l]), -1)  # (B*P, n_out)
                dW[l] += (error.T @ clean.x_star[l]).reshape(dW[l].shape) / (K * B)
                if db[l] is not None:
                    db[l] += error.sum(0) / (K * B)
    return dW, db, xp.stack(dL).reshape((K, L, B) if rule == "inp" else (K, B)), clean.x_star


def plain_decorrelation(R, x_star, alpha):
    """R ← R - α (⟨x* x*ᵀ⟩ - diag⟨(x*)²⟩) R, in place."""
    moment = x_star.T @ x_star / len(x_star)
    array_module(R).fill_diagonal(moment, 0)
    R -= alpha * (moment @ R)


def plain_step(config, network, state, x, t, step):
    """A whole training step, as `npref.step.training_step`: noise, update, optimiser, R. Returns δL."""
    rule, _ = split_method(config.method)
    groups = None if rule == "bp" else noise_groups(config, network, step, range(len(x)), array_module(x))
    dW, db, dL, x_star = plain_update(config, network, state.params, x, t, groups)
    updates = [d for d in (*dW, *db) if d is not None]
    if state.adam is None:
        sgd_step(learnable(state.params), updates, config.lr)
    else:
        adam_step(learnable(state.params), updates, state.adam, config.lr, eps_hat=config.optimizer == "adam-eps-hat")
    for R, rows in zip(state.params.R, x_star):
        if R is not None:
            plain_decorrelation(R, rows, config.decor_lr)
    return dL
