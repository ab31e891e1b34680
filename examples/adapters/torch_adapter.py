"""All eight methods in PyTorch, for npref's oracle to check. Nothing here is npref's code.

    cd examples/adapters && python -m npref.oracle check VECTORS.h5 --adapter torch_adapter:adapter

Forward hooks add noise to pre-activations and record them. Autograd turns dL/da into the gradient of W and b: backpropagation starts it
from the loss; NP, INP and ANP start it from their estimate of dL/da, and detach a layer's input so that nothing flows further back.
"""
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {"leaky_relu": F.leaky_relu, "relu": lambda a, _: torch.relu(a), "tanh": lambda a, _: torch.tanh(a),
               "identity": lambda a, _: a, "step": lambda a, _: (a > 0).to(a.dtype), "sign": lambda a, _: torch.sign(a)}
LOSSES = {"cce": lambda y, t: F.cross_entropy(y, t, reduction="none"),  # of each sample
          "mse": lambda y, t: (t - y).square().sum(1), "mse-mean": lambda y, t: (t - y).square().mean(1)}


class Layer(nn.Module):
    """From a layer's input to its pre-activation, W R x + b."""

    def __init__(self, spec, shape, W, b, R):
        super().__init__()
        self.spec, self.shape, self.is_conv = spec, shape, W.ndim == 4
        self.W, self.b = nn.Parameter(torch.tensor(W)), None if b is None else nn.Parameter(torch.tensor(b))
        self.R = None if R is None else torch.tensor(R)
        self.register_forward_hook(observe)

    def x_star(self, x):
        """What W multiplies: (B, n_in), or (B, n_in, P) for a convolution."""
        x = F.unfold(x, self.W.shape[2:], stride=self.spec.stride, padding=self.spec.padding) if self.is_conv else x.flatten(1)
        return x if self.R is None else self.R @ x if self.is_conv else F.linear(x, self.R)

    def forward(self, x):
        if self.is_conv and self.R is None:
            return F.conv2d(x, self.W, self.b, self.spec.stride, self.spec.padding)
        a = F.linear(self.x_star(x).movedim(1, -1), self.W.flatten(1), self.b)
        return a.movedim(-1, 1).reshape(-1, *self.shape)


def observe(layer, inputs, a):
    """A forward hook: adds the layer's noise to its pre-activation, and keeps that and x*."""
    layer.seen = layer.x_star(inputs[0]).detach(), a if layer.noise is None else a + layer.noise
    return layer.seen[1]


def forward(case, net, x, noise=None):
    """The output, and each layer's x* and a, of a pass with this noise in the pre-activations."""
    for l, layer in enumerate(net):
        layer.noise = None if noise is None else noise[l]
        x = ACTIVATIONS[layer.spec.activation](layer(x if case.rule == "bp" else x.detach()), layer.spec.slope)
    return x, *zip(*(layer.seen for layer in net))


@torch.no_grad()
def perturb(case, net, x, t, eps, a, loss):
    """An estimate of the batch's dL/da, and what the oracle may ask. All noisy passes are one batch: K noise samples, INP's L passes."""
    K, inp, units = len(eps[0]), case.rule == "inp", [prod(q.shape[1:]) for q in a]
    active = torch.eye(len(eps)).to(x) if inp else torch.ones(1, len(eps)).to(x)  # (passes, layers)
    noise = [torch.einsum("p,kb...->kpb...", active[:, l], e) for l, e in enumerate(eps)]
    n = K * len(active)
    y, _, a_tilde = forward(case, net, x.repeat(n, *[1] * (x.ndim - 1)), [e.flatten(0, 2) for e in noise])
    noisy_loss = LOSSES[case.loss](y, t.repeat(n, 1)).reshape(K, len(active), -1)
    a_tilde, dL = [q.reshape(e.shape) for q, e in zip(a_tilde, noise)], noisy_loss - loss
    v = [q[:, 0] - clean for q, clean in zip(a_tilde, a)] if case.rule == "anp" else eps
    squares = [q.flatten(2).square().sum(2) for q in v]  # (K, B)
    norms = squares if inp or case.anp_norm == "layer" else [sum(squares)] * len(v)
    scale = [1 / case.sigma2] * len(v) if case.rule == "np" else [(N if inp else sum(units)) / s for N, s in zip(units, norms)]
    g = [torch.einsum("kb,kb...->b...", s * dL[:, l * inp] / K / len(x), q) for l, (s, q) in enumerate(zip(scale, v))]
    a_tilde, noisy_loss, dL = (a_tilde, noisy_loss, dL) if inp else ([q[:, 0] for q in a_tilde], noisy_loss[:, 0], dL[:, 0])
    return g, {"a_tilde": a_tilde, "noisy_loss": noisy_loss, "dL": dL} | ({"da": v} if case.rule == "anp" else {})


def step(case, net, optimizer, i, x, t, eps, baseline):
    """The i-th mini-batch (from 1): changes the network; returns what the oracle may ask."""
    y, x_star, a = forward(case, net, x, baseline)
    loss = LOSSES[case.loss](y, t)
    if case.rule == "bp":
        start, signal, seen = [loss.mean()], None, {"g": torch.autograd.grad(loss.sum(), a, retain_graph=True)}
    else:
        start, signal, seen = a, *perturb(case, net, x, t, eps, a, loss)
    optimizer.zero_grad()
    torch.autograd.backward(start, signal)
    if case.optimizer == "adam-eps-hat":
        optimizer.param_groups[0]["eps"] = 1e-7 / sqrt(1 - 0.999**i)
    optimizer.step()
    rows = [q.movedim(1, -1).flatten(0, -2) for q in x_star if case.decorrelate]  # one for each sample and position
    C = [q.T @ q / len(q) for q in rows]
    dR = [(c - c.diag().diag()) @ layer.R for c, layer in zip(C, net)]
    for layer, d in zip(net, dR):
        layer.R = layer.R - case.alpha * d
    grads = {f"d{p}": each(net, p, lambda q: q.grad.clone()) for p in "Wb"}
    return seen | grads | {"x_star": x_star, "a": [q.detach() for q in a], "loss": loss.detach(), "dR": dR}


def each(net, name, function):
    return [None if q is None else function(q) for q in (getattr(layer, name) for layer in net)]


def adapter(case):
    net = nn.ModuleList(map(Layer, case.layers, case.network.shapes[1:], case.W, case.b, case.R))
    out, sgd = {}, case.optimizer == "sgd"
    optimizer = torch.optim.SGD(net.parameters(), case.lr) if sgd else torch.optim.Adam(net.parameters(), case.lr, eps=1e-7)
    eps, baseline = ([torch.tensor(e) for e in q] if q else None for q in (case.eps, case.baseline))
    for i in range(1, 11):
        seen = step(case, net, optimizer, i, torch.tensor(case.x), torch.tensor(case.t), eps, baseline)
        out = out or seen
        if i in (1, 10):
            out |= {f"after_{i}/{p}": each(net, p, lambda q: q.detach().clone()) for p in "WbR"}
            for m, key in (("m", "exp_avg"), ("v", "exp_avg_sq")) if not sgd else ():
                out |= {f"after_{i}/{m}_{p}": each(net, p, lambda q, key=key: optimizer.state[q][key].clone()) for p in "Wb"}
    return out
