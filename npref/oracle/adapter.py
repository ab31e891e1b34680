"""npref's own batched rules as an adapter, `npref.oracle:self`: they and the oracle's literal route judge each other."""

import numpy as np

from .. import rules
from ..backend import array_module
from ..decorrelation import decorrelation_step
from ..layers import Conv, fold
from ..network import Params, forward
from ..optim import init_adam
from ..step import apply_update, learnable
from .reference import STEPS


def self(case, xp=np):
    """Every quantity of a case by npref.rules, decorrelation and optim, computed by `xp`; see `npref.oracle`."""
    network, x, t = case.network, xp.array(case.x), xp.array(case.t)
    W, b, R, eps, baseline = (arrays and tuple(None if a is None else xp.array(a) for a in arrays)
                              for arrays in (case.W, case.b, case.R, case.eps, case.baseline))
    params = Params(W, b, R)
    adam = None if case.optimizer == "sgd" else init_adam(learnable(params))
    out = {}
    for step in range(1, max(STEPS) + 1):
        update = _update(case, network, params, x, t, eps, baseline)
        if step == 1:
            out |= _one_step(case, network, params, x, eps, baseline, update)
        apply_update(params, adam, update, lr=case.lr, alpha=case.alpha, eps_hat=case.optimizer == "adam-eps-hat")
        if step in STEPS:
            out |= _after(f"after_{step}", params, adam)
    return out


def _update(case, network, params, x, t, eps, baseline):
    match case.rule:
        case "bp":
            return rules.bp_update(network, params, x, t, loss=case.loss)
        case "np":
            return rules.np_update(network, params, x, t, [eps], sigma2=case.sigma2, loss=case.loss, baseline=baseline)
        case "inp":
            return rules.inp_update(network, params, x, t, [eps], loss=case.loss)
        case "anp":
            return rules.anp_update(network, params, x, t, [eps], loss=case.loss, baseline=baseline, norm=case.anp_norm)


def _one_step(case, network, params, x, eps, baseline, update):
    trace, B, L = update.trace, len(x), len(network.layers)
    x_star = [rows.reshape(B, -1, rows.shape[1]).transpose(0, 2, 1) if isinstance(q, Conv) else rows
              for q, rows in zip(network.layers, forward(network, params, x, baseline).x_star)]  # (B, n_in, P) or (B, n_in)
    a = [fold(a_l, shape) for a_l, shape in zip(trace.a, network.shapes[1:])]
    moved = [None if r is None else r.copy() for r in params.R]
    decorrelation_step(moved, trace, 1.0)
    dR = [r - m for r, m in zip(params.R, moved) if r is not None]
    out = {"x_star": x_star, "a": a, "x": trace.x, "loss": update.losses, "dW": update.dW, "db": update.db, "dR": dR}
    if case.rule == "bp":
        return out
    K, passes = len(eps[0]), range(L) if case.rule == "inp" else (None,)
    shape = (K, L, B) if case.rule == "inp" else (K, B)
    noisy = [forward(network, params, x, [e[k] * (p in (None, l)) for l, e in enumerate(eps)]).a for k in range(K) for p in passes]
    out["a_tilde"] = [array_module(x).stack([fold(run[l], s) for run in noisy]).reshape(*shape, *s)
                      for l, s in enumerate(network.shapes[1:])]
    out |= {"dL": update.dL, "noisy_loss": update.dL + update.losses}
    if case.rule == "anp":
        out["da"] = [a_tilde - a_l for a_tilde, a_l in zip(out["a_tilde"], a)]
    return out


def _after(prefix, params, adam):
    out = {f"{prefix}/{name}": [None if a is None else a.copy() for a in getattr(params, name)] for name in ("W", "b", "R")}
    if adam is not None:
        L = len(params.W)
        with_bias = [l for l in range(L) if params.b[l] is not None]
        for name in ("m", "v"):
            moments = [a.copy() for a in getattr(adam, name)]
            out[f"{prefix}/{name}_W"] = moments[:L]
            out[f"{prefix}/{name}_b"] = [moments[L + with_bias.index(l)] if l in with_bias else None for l in range(L)]
    return out
