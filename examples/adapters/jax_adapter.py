"""All eight methods in JAX, for npref's oracle to check. Nothing here is npref's code.

    cd examples/adapters && python -m npref.oracle check VECTORS.h5 --adapter jax_adapter:adapter

`forward` is one sample's pass with noise in its pre-activations: vmap makes it a batch's, the noise samples', and INP's passes'. dL/da,
where backpropagation needs it, is the gradient with respect to that noise. One training step is one jitted function.
"""
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax import lax

jax.config.update("jax_enable_x64", True)  # float32 inputs stay float32
jax.config.update("jax_default_matmul_precision", "highest")  # no TF32

ACTIVATIONS = {"leaky_relu": jax.nn.leaky_relu, "relu": lambda a, _: jax.nn.relu(a), "tanh": lambda a, _: jnp.tanh(a),
               "identity": lambda a, _: a, "step": lambda a, _: (a > 0).astype(a.dtype), "sign": lambda a, _: jnp.sign(a)}
LOSSES = {"cce": lambda y, t: -jnp.sum(t * jax.nn.log_softmax(y)),  # of one sample
          "mse": lambda y, t: jnp.sum((t - y) ** 2), "mse-mean": lambda y, t: jnp.mean((t - y) ** 2)}


def preactivation(layer, p, x):
    """x* and the pre-activation of one sample: (n_in,) and (n_l,), or (n_in, P) and (C_out, H, W)."""
    W, b, R = p["W"], p["b"], p["R"]
    if W.ndim == 2:
        x_star = x.ravel() if R is None else R @ x.ravel()
        return x_star, W @ x_star + (0 if b is None else b)
    patches = lax.conv_general_dilated_patches(x[None], W.shape[2:], layer.stride, [(q, q) for q in layer.padding])[0]
    x_star = patches.reshape(len(patches), -1) if R is None else R @ patches.reshape(len(patches), -1)  # (C_in kh kw, P)
    a = (W.reshape(len(W), -1) @ x_star).reshape(len(W), *patches.shape[1:])
    return x_star, a + (0 if b is None else b[:, None, None])


def forward(layers, loss, noise, params, x, t):
    """The loss of one sample, and each layer's x*, a and x."""
    seen = []
    for layer, p, e in zip(layers, params, noise):
        x_star, a = preactivation(layer, p, x)
        a += e
        x = ACTIVATIONS[layer.activation](a, layer.slope)
        seen.append((x_star, a, x))
    return LOSSES[loss](x, t), dict(zip(("x_star", "a", "x"), map(list, zip(*seen))))


def perturb(run, rule, anp_norm, sigma2, eps, a, loss):
    """Estimates of each sample's dL/da, a mean over noise samples, and what the oracle may ask. run(noise): a batch's noisy pass."""
    if rule == "inp":  # in pass l, layer l's noise alone
        only = [jax.nn.one_hot(l, len(eps), dtype=e.dtype)[(...,) + (None,) * (e.ndim - 1)] for l, e in enumerate(eps)]
        noisy_loss, seen = jax.vmap(lambda noise: jax.vmap(run)([m * e for m, e in zip(only, noise)]))(eps)
    else:
        noisy_loss, seen = jax.vmap(run)(eps)
    dL = noisy_loss - loss
    v = [q - clean for q, clean in zip(seen["a"], a)] if rule == "anp" else eps
    squares = [jnp.sum(q**2, axis=tuple(range(2, q.ndim))) for q in v]  # (K, B)
    N, dLs = [prod(q.shape[1:]) for q in a], [dL[:, l] for l in range(len(v))] if rule == "inp" else [dL] * len(v)
    if rule == "anp":
        N, squares = [sum(N)] * len(v), squares if anp_norm == "layer" else [sum(squares)] * len(v)
    factors = [d / sigma2 if rule == "np" else n * d / s for n, d, s in zip(N, dLs, squares)]
    g = [jnp.einsum("kb,kb...->b...", f, q) / len(q) for f, q in zip(factors, v)]
    return g, {"a_tilde": seen["a"], "noisy_loss": noisy_loss, "dL": dL} | ({"da": v} if rule == "anp" else {})


def columns(q):  # (B, units, positions)
    return q.reshape(*q.shape[:2], -1)


@partial(jax.jit, static_argnums=0)
def gradients(static, sigma2, params, x, t, eps, baseline):
    """The updates of each layer's W and b, and what the oracle may ask."""
    layers, loss_name, rule, anp_norm = static
    one, axes = partial(forward, layers, loss_name), (0, None, 0, 0)
    if rule == "bp":
        (loss, seen), (g, grads) = jax.vmap(jax.value_and_grad(one, argnums=(0, 1), has_aux=True), axes)(baseline, params, x, t)
        return jax.tree.map(lambda d: d.mean(0), grads), seen | {"loss": loss, "g": g}
    batch = jax.vmap(one, axes)
    loss, seen = batch(baseline, params, x, t)
    g, more = perturb(lambda noise: batch(noise, params, x, t), rule, anp_norm, sigma2, eps, seen["a"], loss)
    grads = [{"W": jnp.einsum("bop,bip->oi", columns(q), columns(r)).reshape(p["W"].shape) / len(x),
              "b": columns(q).sum((0, 2)) / len(x)} for p, q, r in zip(params, g, seen["x_star"])]
    return grads, seen | more | {"loss": loss}


@partial(jax.jit, static_argnums=0)
def optimise(optimizer, lr, i, q, m, v, d):
    """The i-th step of one array, and its moments."""
    if optimizer == "sgd":
        return q - lr * d, m, v
    m, v, c1, c2 = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d**2, 1 - 0.9**i, 1 - 0.999**i
    epsilon = 1e-7 / c2**0.5 if optimizer == "adam-eps-hat" else 1e-7
    return (q - lr * (m / c1) / (jnp.sqrt(v / c2) + epsilon)).astype(q.dtype), m, v


@jax.jit
def decorrelation(R, x_star):
    C = jnp.einsum("bip,bjp->ij", x_star, x_star) / x_star[:, 0].size
    return (C - jnp.diag(jnp.diag(C))) @ R


def adapter(case):
    params = [dict(W=W, b=b, R=R) for W, b, R in zip(case.W, case.b, case.R)]
    silence = [jnp.zeros((len(case.x), *shape), case.dtype) for shape in case.network.shapes[1:]]
    moments = [{f"{k}_{q}": p[q] if p[q] is None else 0 * p[q] for q in "Wb" for k in "mv"} for p in params]
    static, out = (case.layers, case.loss, case.rule, case.anp_norm), {}
    for i in range(1, 11):
        grads, seen = gradients(static, case.sigma2, params, case.x, case.t, case.eps, case.baseline or silence)
        out = out or seen | {"dW": [d["W"] for d in grads], "db": [d["b"] for d in grads]}
        dR = [decorrelation(p["R"], columns(r)) for p, r in zip(params, seen["x_star"]) if case.decorrelate]
        out.setdefault("dR", dR)
        for p, q, d in zip(params, moments, grads):
            for n in "W" if p["b"] is None else "Wb":
                p[n], q["m_" + n], q["v_" + n] = optimise(case.optimizer, case.lr, i, p[n], q["m_" + n], q["v_" + n], d[n])
        for p, d in zip(params, dR):
            p["R"] = p["R"] - case.alpha * d
        if i in (1, 10):
            out |= {f"after_{i}/{n}": [q[n] for q in group] for group in (params, moments) for n in group[0]}
    return out
