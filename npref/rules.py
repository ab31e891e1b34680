"""BP, NP, INP and ANP on mini-batches, with K noise samples, for Dense and Conv layers alike.

Every rule has the form ΔW_l = mean over samples of (error_l) x*ᵀ_{l-1}, with x* the clean pass's (with a noisy baseline: that pass's);
the rules differ in the error. An update has the gradient's sign: it is to be subtracted. The decorrelated forms are the same functions on
parameters that have R. x (B, *input_shape) is of the parameters' dtype, t (B, n_out) of any real one, and every rule returns an `Update`.

Noise comes in as arrays: `noise` is an iterable of groups, a group is one array per layer, (k, B, *shape of the layer's
output), and the k of all groups add up to K. Pass `[eps]` for a single group. Groups only bound memory; their results add, up to
rounding (`step.noise_groups` makes those of a training run). INP expects noise that is isotropic in each layer, ANP and NP one σ² in all.

What is shared, exactly: the noisy passes start from the clean pass's a_1; A_l = W_l R_{l-1} is formed once where many rows are multiplied
by both (`_multiplier`), and with very many it spares the clean pass x* too (`spares_x_star`); the K errors are summed before the one
product with x*. All that is elementwise goes block by block of samples (`in_blocks`).

Letters: B batch, K noise samples, k those of a group, P positions, n_in / n_out as in layers.py, N_l = P * n_out.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

from .backend import array_module
from .execution import elementwise, fused, squares, weighted_sums
from .functions import activate, derivative, finite, loss_gradient
from .functions import loss as loss_of
from .layers import Conv, fold, to_rows, unfold, unfold_adjoint, weight_shape
from .network import Trace, check_batch, check_noise, forward, matrix

ANP_NORMS = ("network", "layer")  # what Eq. 6 divides by: ‖δa‖² (v2), ‖δa_l‖² (v1's Eq. 6)
# Another goes here and into `step.compute_update`; into oracle/reference.py for golden vectors, into examples/plots.py for a colour.
METHODS = ("bp", "np", "inp", "anp", "dbp", "dnp", "dinp", "danp")


@dataclass(frozen=True)
class Update:
    """What a rule returns. dW and db per layer (db None without bias), averaged over the batch and the K noise samples.

    losses: (B,) of the clean pass (the baseline pass, if that is noisy). dL = noisy - clean: (K, B), for INP (K, L, B), None
    for BP. trace: that pass, for `decorrelation_step`; x* is left out of a layer with many rows, `forward(network, params, x,
    baseline)` has all, before R changes.
    """

    dW: tuple
    db: tuple
    losses: object
    dL: object
    trace: Trace


def split_method(method):
    """("danp") -> ("anp", True): the rule, and whether it decorrelates. Raises ValueError for another method."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    decorrelates = method.startswith("d") and method[1:] in METHODS
    return method[1:] if decorrelates else method, decorrelates


def bp_update(network, params, x, t, *, loss="cce"):
    """Backpropagation, Eq. 1 (v2 §2.1): error_l = g_l = ∂L/∂a_l, with g_{l-1} = f'(a_{l-1}) ⊙ (R_{l-1}ᵀ W_lᵀ g_l). Returns an `Update`.

    Raises as `network.check_batch`, and ValueError for an activation without a derivative.
    """
    check_batch(network, params, x, t)
    trace = forward(network, params, x, sparing=True)
    g = [None] * len(network.layers)
    dL_dx = loss_gradient(loss, trace.y, t) / len(x)  # (B, n_L); from here on g has the 1/B of the mean over samples
    for l in reversed(range(len(network.layers))):
        layer = network.layers[l]
        g[l] = _times_derivative(layer, to_rows(dL_dx), trace.a[l])  # (B*P, n_out)
        if l > 0:
            W, R, A = matrix(params.W[l]), params.R[l], trace.A[l]
            if R is not None and A is None and len(g[l]) > len(W):
                A = W @ R  # where there are more rows than units, as in `_multiplier`
            if A is not None:
                rows = g[l] @ A  # (B*P, n_in)
            else:
                rows = g[l] @ W if R is None else g[l] @ W @ R
            dL_dx = unfold_adjoint(layer, rows, network.shapes[l])
    return _update(params, trace, g, loss_of(loss, trace.y, t), [])


def np_update(network, params, x, t, noise, *, sigma2, loss="cce", baseline=None):
    """Node perturbation, Eq. 3 (v2 §2.1.1): error_l = δL ε_l / σ². Every layer is perturbed in the one noisy pass. Returns an `Update`.

    noise: groups, [eps] for one; eps has an array (k, B, *shape) per layer. sigma2: the variance σ² that the noise was drawn with.
    baseline: noise of the pass that stands in for the clean one (v2 §3.4), one array (B, *shape) per layer; Eq. 3 keeps the noisy pass's
    own ε_l. Raises as `network.check_batch` and `check_noise`, and ValueError for σ² ≤ 0.
    """
    xp = check_batch(network, params, x, t)
    sigma2 = finite("sigma2", sigma2)
    if sigma2 <= 0:
        raise ValueError(f"sigma2 must be positive and finite, got {sigma2}")
    trace, clean_loss = _baseline_pass(network, params, x, t, loss, baseline)
    errors, dL, multiply = None, [], _multiplier(params, trace.A)
    for eps in _checked(network, x, noise):
        y, _ = _noisy_pass(network, multiply, trace, eps)
        dL.append(loss_of(loss, y, t) - clean_loss)  # (k, B)
        coefficient = (dL[-1] / (sigma2 * len(x))).astype(y.dtype)  # δL / σ² / B, (k, B)
        errors = weighted_sums(xp, [coefficient] * len(eps), eps, errors)  # (B, N_l) per layer
    return _update(params, trace, errors, clean_loss, dL)


def inp_update(network, params, x, t, noise, *, loss="cce"):
    """Iterative node perturbation, Eq. 5 (v2 §2.1.2): error_l = N_l δL_l v_l / ‖v_l‖², δL_l from a pass with noise v_l in layer l alone.

    noise: as for np_update. Returns an `Update`. The error is 0 where ‖v_l‖² rounds to 0, and NaN where it overflows. Raises as
    `network.check_batch` and `check_noise`.
    """
    xp = check_batch(network, params, x, t)
    trace, clean_loss = _baseline_pass(network, params, x, t, loss, None)
    errors, dL, multiply = None, [], _multiplier(params, trace.A)
    for v in _checked(network, x, noise):
        dL.append(_layerwise_losses(network, multiply, trace, v, t, loss) - clean_loss)  # (k, L, B)
        coefficients = [fused(xp, _quotient)(N_l / len(x), dL[-1][:, l], norm2_l)  # N_l δL_l / ‖v_l‖² / B, (k, B)
                        for l, (N_l, norm2_l) in enumerate(zip(network.units, squares(xp, v)))]
        errors = weighted_sums(xp, coefficients, v, errors)  # (B, N_l) per layer
    return _update(params, trace, errors, clean_loss, dL)


def anp_update(network, params, x, t, noise, *, loss="cce", baseline=None, norm="network"):
    """Activity-based node perturbation, Eq. 6 (v2 §2.1.3): error_l = N δL δa_l / ‖δa‖², with δa = ã - a and N = Σ_{l=1}^L N_l.

    norm="layer" divides by ‖δa_l‖² instead (v1's Eq. 6). noise, baseline: as for np_update; with a baseline δa is a difference of
    noisy passes. δa_l of noise sample k is forward(network, params, x, [e[k] for e in eps]).a[l] - trace.a[l], rows (B*P, n_out).

    Returns an `Update`. The error is 0 where ‖δa‖² rounds to 0, and NaN where it overflows. Where no noise has come in up to layer l,
    δa_l is rounding alone, as the noisy passes' products are not the clean one's: with norm="layer", or without any noise, ΔW_l then means
    nothing, and may be large. Raises as `network.check_batch` and `check_noise`, and ValueError for another norm.
    """
    xp = check_batch(network, params, x, t)
    if norm not in ANP_NORMS:
        raise ValueError(f"unknown norm {norm!r}: expected {' or '.join(ANP_NORMS)}")
    trace, clean_loss = _baseline_pass(network, params, x, t, loss, baseline)
    errors, dL, multiply, N = None, [], _multiplier(params, trace.A), sum(network.units)
    for eps in _checked(network, x, noise):
        y, da = _noisy_pass(network, multiply, trace, eps, differences=True)
        dL.append(loss_of(loss, y, t) - clean_loss)  # (k, B)
        norm2 = squares(xp, da)  # ‖δa_l‖², (k, B) per layer
        if norm == "network":
            coefficients = [fused(xp, _quotient)(N / len(x), dL[-1], *norm2)] * len(da)  # N δL / ‖δa‖² / B, (k, B)
        else:
            coefficients = [fused(xp, _quotient)(N / len(x), dL[-1], norm2_l) for norm2_l in norm2]
        errors = weighted_sums(xp, coefficients, da, errors)  # (B, N_l) per layer
    return _update(params, trace, errors, clean_loss, dL)


def group_size(network, rule, batch, itemsize, samples, budget):
    """How many of the K noise samples to hold at a time so that their arrays stay within `budget` bytes (at least 1)."""
    patches = max((prod(weight_shape(layer, shape)[1:]) * prod(out[1:]) for layer, shape, out in
                   zip(network.layers[1:], network.shapes[1:], network.shapes[2:]) if isinstance(layer, Conv)), default=0)
    passes = len(network.layers) if rule == "inp" else 1
    numbers = 3 * sum(network.units) + passes * (patches + 3 * max(network.units))  # noise, last group's, δa; patches, x, padded, next a
    row = numbers * itemsize + passes * 4 * network.units[-1] * 8  # and the loss, in float64
    return max(1, min(samples, budget // (row * batch)))


def _times_derivative(layer, g, a):
    """g ⊙ f'(a), in g's place: rows (B*P, n_out)."""
    if layer.activation == "identity":
        return g
    elementwise(array_module(g), _chain, (g, a), constants=(layer.activation, layer.slope))
    return g


def _chain(activation, slope, g, a):
    g *= derivative(activation, a, slope)


def _baseline_pass(network, params, x, t, loss, baseline):
    if baseline is not None:  # to call it by its name; to `forward` it is noise
        check_noise(network, x, baseline, name="baseline")
    trace = forward(network, params, x, baseline, sparing=True)
    return trace, loss_of(loss, trace.y, t)


def _noisy_pass(network, multiply, trace, eps, differences=False):
    """A noisy pass for each noise sample of a group: outputs (k, B, n_L), and if asked for δa_l (k, B, N_l) per layer.

    The first layer's product is the clean pass's.
    """
    xp, x, da = array_module(trace.y), None, []
    for l, (layer, eps_l) in enumerate(zip(network.layers, eps)):  # (k, B, N_l)
        if l == 0:
            product, a_tilde = trace.drive.reshape(eps_l.shape[1:]), xp.empty(eps_l.shape, dtype=eps_l.dtype)
        else:
            product, a_tilde = None, multiply(l, _rows_of(network, l, x)).reshape(eps_l.shape)
        if differences:
            x = xp.empty(eps_l.shape, dtype=eps_l.dtype)
            _perturb(xp, layer, a_tilde, eps_l, product, x, minus=trace.a[l].reshape(eps_l.shape[1:]))
            da.append(a_tilde)  # δa_l by now
        else:
            _perturb(xp, layer, a_tilde, eps_l, product)
            x = a_tilde
    return x, da


def _layerwise_losses(network, multiply, trace, v, t, loss):
    """The losses of INP's L passes, (k, L, B). The pass for layer l begins at layer l with a_l + v_l; passes under way are
    stacked, so each layer is one product; that for layer m (from 0) with noise sample j is at m*k + j."""
    xp, k, x = array_module(trace.y), len(v[0]), None
    for l, (layer, v_l) in enumerate(zip(network.layers, v)):
        a = xp.empty(((l + 1) * k, *v_l.shape[1:]), dtype=v_l.dtype)  # (passes, B, N_l)
        under_way, new = a[: l * k], a[l * k :]
        if l > 0:
            multiply(l, _rows_of(network, l, x), out=under_way.reshape(-1, layer.n_out))
            if layer.activation != "identity":
                elementwise(xp, _activate_in_place, (under_way,), constants=(layer.activation, layer.slope))
        _perturb(xp, layer, new, v_l, trace.a[l].reshape(v_l.shape[1:]))
        x = a
    return loss_of(loss, x, t).reshape(len(v), k, -1).transpose(1, 0, 2)


def _activate_in_place(activation, slope, a):
    a[...] = activate(activation, a, slope)


def _perturb(xp, layer, a_tilde, eps_l, product=None, x=None, minus=None):
    """ã ← product + ε and x ← f(ã), then ã ← ã - minus; ã, ε and x (k, B, N_l), product and minus (B, N_l).

    No product: ã itself is the product. No x: f(ã) takes ã's place, and nothing is subtracted.
    """
    elementwise(xp, _perturbation, (a_tilde, eps_l, x, product, minus), constants=(layer.activation, layer.slope))


def _perturbation(activation, slope, a_tilde, eps, x, product, minus):
    array_module(eps).add(a_tilde if product is None else product, eps, out=a_tilde)  # ã_l = W_l x̃*_{l-1} + ε_l
    if x is None:
        a_tilde[...] = activate(activation, a_tilde, slope)
    else:
        x[...] = activate(activation, a_tilde, slope)
        a_tilde -= minus  # δa_l = ã_l - a_l, in ã's place


def _rows_of(network, l, x):
    """The rows that layer l multiplies, from the outputs (passes, B, N_{l-1}) of the layer before: (passes*B*P, n_in)."""
    return unfold(network.layers[l], fold(x.reshape(-1, network.layers[l - 1].n_out), network.shapes[l]))


def _multiplier(params, formed):
    """A function (l, rows) -> W_l R_{l-1} rows + b_l for the noisy passes of one update, (M, n_in) -> (M, n_out).

    A_l = W_l R_{l-1} costs as much as n_out rows' products with R, and saves one for each row: it is formed once more rows than
    that have come, in this call or in all so far. formed: those that the clean pass has formed, the others None.
    """
    A, seen = {l: A_l for l, A_l in enumerate(formed) if A_l is not None}, Counter()

    def multiply(l, rows, out=None):
        xp, W, R, b = array_module(rows), matrix(params.W[l]), params.R[l], params.b[l]
        seen[l] += len(rows)
        if R is not None and l not in A and seen[l] > len(W):
            A[l] = W @ R
        if R is not None and l not in A:
            rows = rows @ R.T
        a = xp.matmul(rows, A.get(l, W).T, out=out)
        if b is not None:
            a += b
        return a

    return multiply


def _update(params, trace, errors, losses, dL):
    """ΔW_l = Σ_rows errorᵀ x*, Δb_l = Σ_rows error. errors: sums over the K noise samples, that have 1/B already.
    dL: of every group (k, B) or (k, L, B); none for BP."""
    xp = array_module(trace.y)
    dL = (dL[0] if len(dL) == 1 else xp.concatenate(dL)) if dL else None
    K = 1 if dL is None else len(dL)
    dW, db = [], []
    for l, x_star in enumerate(trace.x_star):
        e = errors[l].reshape(trace.a[l].shape)  # (B*P, n_out)
        if K > 1:
            e /= K
        dW_l = e.T @ x_star if x_star is not None else (e.T @ trace.x_rows[l]) @ params.R[l].T  # (n_out, n_in)
        dW.append(dW_l.reshape(params.W[l].shape))
        db.append(None if params.b[l] is None else e.sum(axis=0))
    return Update(tuple(dW), tuple(db), losses, dL, trace)


def _quotient(factor, dL, *parts):
    """factor δL / ‖·‖², ‖·‖² the sum of parts, in their dtype; 0 where rounding left no perturbation at all, for then δL says nothing;
    NaN where ‖·‖² is beyond its dtype, for 0 would pass for an update. Fused, see execution.py."""
    xp, norm2 = array_module(dL), sum(parts[1:], parts[0])
    moved = norm2 > 0
    return (factor * (xp.where(moved, dL, 0) / xp.where(moved, norm2, 1)) + (norm2 - norm2)).astype(norm2.dtype)  # + 0, or NaN


def _checked(network, x, noise):
    """The groups of noise, checked; every array laid out by sample, (k, B, N_l)."""
    if not hasattr(noise, "__iter__") or hasattr(noise, "shape"):
        raise TypeError(f"noise must be an iterable of groups, each one array per layer; pass [eps], not {type(noise).__name__}")
    count = 0
    for group in noise:
        check_noise(network, x, group, group=True)
        count += 1
        yield [to_rows(eps_l.reshape(-1, *eps_l.shape[2:])).reshape(*eps_l.shape[:2], -1)  # (k, B, C, H, W) -> (k*B*P, C) -> (k, B, N_l)
               for eps_l in group]
    if count == 0:
        raise ValueError("noise has no group: a perturbation rule needs at least one noise sample")
