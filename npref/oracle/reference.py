"""Reference values: npref/equations.py, one sample at a time in float64, with a measure of what rounding does to every number.

Nothing here uses the batched code that it judges. The numbers are `Tracked`: how far their disturbed copies spread is the *scale* of
the tolerance |out - ref| <= c·eps·scale. It knows what cancels, and what follows from what, as no bound that goes forward does.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from .. import equations as eq
from ..layers import Conv
from .conventions import CONVENTIONS
from .tracked import Tracked, stack

PAPER = CONVENTIONS["paper"]
STEPS = (1, 10)  # parameters and optimiser state are kept after so many steps
BETA1 = 0.9
KINK_MARGIN = 64 * np.finfo(np.float32).eps


class Kink(ValueError):
    """A pre-activation is so close to 0 that float32 rounding could put it on the other side."""


def _side(a):
    """Where a > 0, if that is certain."""
    near = abs(a.value) < 0.01  # a cheap look first: KINK_MARGIN times the scale is smaller
    if near.any() and ((abs(a.value) <= KINK_MARGIN * a.scale) & (a.scale > 0)).any():
        raise Kink
    return a.value > 0


def activation(name, slope):
    """f and f' as functions of a Tracked array; f' is None where there is none."""
    def constant(a, x):  # without a rounding error, whatever a has
        return Tracked(np.broadcast_to(x, a.shape)[None], a.rng)

    match name:
        case "leaky_relu" | "relu":
            slope = slope if name == "leaky_relu" else 0.0
            return (lambda a: a * np.where(_side(a), 1.0, slope)), (lambda a: constant(a, np.where(_side(a), 1.0, slope)))
        case "identity":
            return (lambda a: a), (lambda a: constant(a, 1.0))
        case "tanh":
            return (lambda a: a.apply(np.tanh)), (lambda a: 1 - a.apply(np.tanh) ** 2)
        case "step":
            return (lambda a: constant(a, np.where(_side(a), 1.0, 0.0))), None
        case "sign":
            return (lambda a: constant(a, np.where(_side(a), 1.0, -1.0))), None


def loss_and_gradient(name, y, t):
    """One sample's loss and ∂L/∂y: y, t (n_L, 1)."""
    if name == "cce":
        exp = (y - y.value.max()).apply(np.exp)
        log_sum = exp.sum().apply(np.log) + y.value.max()
        return t.sum() * log_sum - (t * y).sum(), t.sum() * exp / exp.sum() - t
    error = y - t
    divisor = len(t) if name == "mse-mean" else 1
    return (error * error).sum() / divisor, 2 * error / divisor


def _patches(layer, shape):
    """Which input pixel (flat, -1 for padding) each tap of each position sees: (C kh kw, P), by loops over every number."""
    (C, H, W), (kh, kw), (sh, sw), (ph, pw) = shape, layer.kernel, layer.stride, layer.padding
    rows, columns = (H + 2 * ph - kh) // sh + 1, (W + 2 * pw - kw) // sw + 1
    index = np.full((C * kh * kw, rows * columns), -1)
    for c, i, j in np.ndindex(C, kh, kw):
        for r, s in np.ndindex(rows, columns):
            y, z = r * sh + i - ph, s * sw + j - pw
            if 0 <= y < H and 0 <= z < W:
                index[(c * kh + i) * kw + j, r * columns + s] = (c * H + y) * W + z
    return index


def _layouts(case, c):
    """unfold and unfold_adjoint for equations.py, per layer: from a layer's output as columns (n, P) to the next's patches, and back."""
    shapes = case.network.shapes

    def pair(layer, shape):
        if not isinstance(layer, Conv):
            if c.flattened_last:
                return (lambda x: x.T.reshape(-1, 1)), (lambda g: g.reshape(-1, shape[0]).T)
            return (lambda x: x.reshape(-1, 1)), (lambda g: g.reshape(shape[0], -1))
        index = _patches(layer, shape)
        if c.patches_last:
            index = index.reshape(shape[0], -1, index.shape[1]).swapaxes(0, 1).reshape(index.shape)

        def unfold(x):
            flat = x.reshape(-1).v
            return Tracked(np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)[:, index], x.rng)

        def unfold_adjoint(g):
            v, size = np.zeros((2, len(g.v), np.prod(shape) + 1))
            np.add.at(v, (slice(None), index), g.v)
            np.add.at(size, (slice(None), index), abs(g.v))
            return g._rounded(v[:, :-1], size[:, :-1]).reshape(shape[0], -1)

        return unfold, unfold_adjoint

    return tuple(zip(*(pair(q, s) for q, s in zip(case.layers, shapes))))


def reference(case, convention=PAPER, steps=STEPS):
    """Every quantity of a case: {name: Tracked}, in the order of the computation, as `convention` has them.

    Raises Kink where a ReLU's, step's or sign's side is not certain.
    """
    c = convention
    case = replace(case, loss="mse-mean" if c.mse_mean and case.loss == "mse" else case.loss,
                   optimizer="adam-eps-hat" if c.eps_hat and case.optimizer == "adam" else case.optimizer)
    rng = np.random.Generator(np.random.Philox(key=1))

    def tracked(a):
        return Tracked(np.asarray(a, dtype=np.float64)[None], rng)

    W = [tracked(w.reshape(len(w), -1)) for w in case.W]
    b = [None if v is None else tracked(v[:, None]) for v in case.b]
    R = [tracked(np.eye(w.shape[1]) if r is None else r) for w, r in zip(W, case.R)]
    layouts, out, moments = _layouts(case, c), {}, {}
    for step in range(1, max(steps) + 1):
        step_out, dR = _one_step(case, c, W, b, R, layouts, tracked)
        if step == 1:
            out |= step_out
        for kind, parameters in (("W", W), ("b", b)):
            for l, p in enumerate(parameters):
                if p is not None:
                    d = step_out[f"d{kind}/{l}"].reshape(p.shape)
                    parameters[l] = _optimiser_step(case, c, p, d, moments.setdefault((kind, l), {}), step)
        if case.decorrelate:
            R = [r - case.alpha * d for r, d in zip(R, dR)]
        if step in steps:
            out |= _after(f"after_{step}", case, W, b, R, moments)
    return {name: a.T if c.transposed and _is_weight(name) else a for name, a in out.items()}


def _one_step(case, c, W, b, R, layouts, tracked):
    """All quantities of one mini-batch, {name: Tracked}, and dR per layer."""
    (unfold, unfold_adjoint), shapes, L, B = layouts, case.network.shapes, len(W), len(case.x)
    f, f_prime = zip(*(activation(q.activation, q.slope if c.slope is None else c.slope) for q in case.layers))
    R = [r.T for r in R] if c.R_transposed else R
    acting = R if c.R_forward else [tracked(np.eye(r.shape[0])) for r in R]
    bias = [0.0 if v is None else v for v in b]
    t = [tracked(case.t[i][:, None]) for i in range(B)]
    units = [int(np.prod(s)) for s in shapes[1:]]
    N = sum(units) + (int(np.prod(shapes[0])) if c.input_units else 0)
    root = np.sqrt if c.root_n else lambda n: n

    def columns(a):
        return tracked(a.reshape(len(a), -1))

    def forward(i, noise):
        x0 = tracked(case.x[i].reshape(len(case.x[i]), -1))
        return eq.forward_pass(x0, W, acting, bias, f, noise, unfold)

    def presynaptic(run, l):
        return unfold[l](run[2][l]) if c.raw_inputs else run[0][l]

    baseline = case.baseline if c.baseline else None
    clean = [forward(i, None if baseline is None else [columns(e[i]) for e in baseline]) for i in range(B)]
    judged = [loss_and_gradient(case.loss, clean[i][2][-1], t[i]) for i in range(B)]
    out = {}
    for l in range(L):
        out[f"x_star/{l}"] = stack([s[0][l] for s in clean])
        out[f"a/{l}"] = stack([s[1][l] for s in clean])
        out[f"x/{l}"] = stack([s[2][l + 1] for s in clean])
    out["loss"] = stack([loss for loss, _ in judged])
    terms = [[] for _ in range(L)]  # (rule, which waits for x*, and x*) of every sample and noise sample
    if case.rule == "bp":
        back = acting if c.R_backward else [tracked(np.eye(r.shape[0])) for r in R]
        g = [eq.gradients(judged[i][1], W, back, clean[i][1], f_prime, unfold_adjoint) for i in range(B)]
        for l in reversed(range(L)):
            out[f"g/{l}"] = stack([g[i][l] for i in range(B)])
            terms[l] = [(partial(eq.bp_update, g[i][l]), presynaptic(clean[i], l)) for i in range(B)]
    else:
        K = len(case.eps[0])
        passes = range(L) if case.rule == "inp" else (None,)  # None: noise in every layer
        noise = {(k, i): [columns(e[0 if c.first_noise else k, 0 if c.shared_noise else i]) for e in case.eps]
                 for k in range(K) for i in range(B)}

        def injected(k, i, p):
            return [e if (p in (None, l) or c.every_layer) and (c.output_noise or l < L - 1) else tracked(np.zeros(e.shape))
                    for l, e in enumerate(noise[k, i])]

        noisy = {(k, p, i): forward(i, injected(k, i, p)) for k in range(K) for p in passes for i in range(B)}
        noisy_loss = {key: loss_and_gradient(case.loss, run[2][-1], t[key[2]])[0] for key, run in noisy.items()}
        dL = {key: noisy_loss[key] - judged[key[2]][0] for key in noisy}
        if c.batch_loss:
            dL = {(k, p, i): sum(dL[k, p, j] for j in range(B)) / B for k, p, i in dL}
        da = {key: [p - q for p, q in zip(run[1], clean[key[2]][1])] for key, run in noisy.items()}

        def collect(values):  # (K, B, ...), for INP (K, L, B, ...)
            each = [[stack([values[k, p, i] for i in range(B)]) for p in passes] for k in range(K)]
            return stack([stack(e) if case.rule == "inp" else e[0] for e in each])

        for l in range(L):
            out[f"a_tilde/{l}"] = collect({key: run[1][l] for key, run in noisy.items()})
        out["noisy_loss"] = collect(noisy_loss)
        out["dL"] = c.delta * collect(dL)
        if case.rule == "anp":
            for l in range(L):
                out[f"da/{l}"] = c.delta * collect({key: d[l] for key, d in da.items()})
        per_layer = (case.anp_norm == "layer") != c.layer_norm

        def norm2(k, p, i, l):  # what the rule divides by
            vectors = [noise[k, i][l]] if case.rule == "inp" else da[k, p, i][l:l + 1] if per_layer else da[k, p, i]
            return sum(eq.norm(v) ** 2 for v in vectors)

        for (k, p, i), run in noisy.items():
            for l in range(L) if p is None else (p,):
                dL_i, e, x_star = dL[k, p, i], noise[k, i][l], presynaptic(run if c.noisy_inputs else clean[i], l)
                if c.norm_1 and case.rule != "np":
                    dL_i = dL_i * norm2(k, p, i, l) ** 0.5
                if (c.mean_norm or c.sum_norm) and case.rule != "np":
                    dL_i = dL_i * norm2(k, p, i, l) / (sum(norm2(k, p, j, l) for j in range(B)) / (B if c.mean_norm else 1))
                rules = {
                    "np": partial(eq.np_update, dL_i, e, case.sigma2),
                    "inp": partial(eq.inp_update, root(units[l]), dL_i, e),
                    "anp": partial(eq.anp_update, root(N), dL_i, da[k, p, i], l, per_layer=per_layer),
                }
                if case.rule not in rules:
                    raise ValueError(f"method {case.method!r} has no case in npref.oracle.reference")
                terms[l].append((rules[case.rule], x_star))
    for l in range(L):
        count = len(terms[l])
        out[f"dW/{l}"] = sum(rule(x) for rule, x in terms[l]) / (count / B if c.sum_W else count)
        if b[l] is not None:  # a bias is a weight whose input is 1 at every position
            ones = [rule(tracked(np.ones((1, x.shape[1])))) for rule, x in terms[l]]
            out[f"db/{l}"] = (sum(ones) / (count / B if c.sum_b else count)).reshape(-1)
    dR = [_dR(c, R[l], clean, l, unfold) for l in range(L)] if case.decorrelate else []
    out |= {f"dR/{l}": d for l, d in enumerate(dR)}
    return {name: a.reshape(_shape(case, name, a)) for name, a in out.items()}, dR


def _dR(c, R, clean, l, unfold):
    """R ← R - α dR."""
    x_stars = [unfold[l](s[2][l]) if c.raw_moment else s[0][l] for s in clean]
    if not c.scaled_decorrelation:
        return R - eq.decorrelation_update(R, x_stars, 1.0)
    part = len(clean) // 10 + 1
    pairs = [(unfold[l](s[2][l])[:, [p]], x[:, [p]]) for s, x in zip(clean[:part], x_stars) for p in range(x.shape[1])]
    moment = sum(x @ x.T for _, x in pairs) / len(pairs)
    return moment @ (R * (sum(eq.norm(x) / eq.norm(y) for x, y in pairs) / len(pairs)))


def _optimiser_step(case, c, p, d, state, step):
    """Kingma & Ba (2015), Algorithm 1, or its ε-hat form; or plain descent."""
    if case.optimizer == "sgd":
        return p - case.lr * d
    beta1, beta2 = BETA1, c.beta2
    correction1, correction2 = (1 - p.constant(beta) ** step for beta in (beta1, beta2))  # β in the dtype has a rounding error, too
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * d
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * (d * d)
    if case.optimizer == "adam-eps-hat":
        rate = case.lr * correction2**0.5 / correction1
        return p - rate * state["m"] / (state["v"] ** 0.5 + c.adam_eps)
    m_hat, v_hat = state["m"] / correction1, state["v"] / correction2
    return p - case.lr * m_hat / (v_hat**0.5 + c.adam_eps)


def _after(prefix, case, W, b, R, moments):
    out = {}
    for kind, parameters in (("W", W), ("b", b)):
        for l, p in enumerate(parameters):
            if p is not None:
                shape = case.W[l].shape if kind == "W" else (-1,)
                out[f"{prefix}/{kind}/{l}"] = p.reshape(shape)
                for name, m in moments[kind, l].items():
                    out[f"{prefix}/{name}_{kind}/{l}"] = m.reshape(shape)
    return out | ({f"{prefix}/R/{l}": r for l, r in enumerate(R)} if case.decorrelate else {})


def _shape(case, name, a):
    """Public shapes: columns (n, P) of a layer's units become the shape of its output, and a dense x* loses its position."""
    kind, _, l = name.partition("/")
    if kind in ("a", "x", "g", "a_tilde", "da"):
        return (*a.shape[:-2], *case.network.shapes[int(l) + 1])
    if kind == "x_star" and not isinstance(case.layers[int(l)], Conv):
        return a.shape[:-1]
    return case.W[int(l)].shape if kind == "dW" else a.shape


def _is_weight(name):
    return any(part in ("dW", "W", "m_W", "v_W") for part in name.split("/"))
