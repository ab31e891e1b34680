"""The same training steps in PyTorch, for examples/benchmark.py to time npref against, on the CPU or on an NVIDIA GPU.

`torch` is written as PyTorch's users write it: the clean pass and all noisy passes stacked in one batch, an update product for each noise
sample, autograd for BP and for a convolution's update, torch.optim.Adam, the moment times R. `torch-compile` is that, compiled.
`torch-algebra` shares what npref shares: noisy passes start where their noise does and multiply by A = W R (always formed here), x* is left
out where npref leaves it out, K errors are summed before one product, R in its cheap form, the optimiser fused; all K noise samples are
held at once. Only DBP's errors go through W, then R, as autograd takes them, where npref's go through A. Before it is timed, each must give
npref's numbers (`check`, on the CPU). On a GPU convolutions are kept from TF32, as npref's products are: it buries δL.
"""

from dataclasses import replace
from math import prod

import numpy as np
import torch
import torch.nn.functional as F

from npref import init_params, split_method
from npref.decorrelation import decorrelation_step, moment_is_cheaper
from npref.layers import Conv
from npref.network import spares_x_star
from npref.noise import draw
from npref.step import compute_update

CHECKED = 16  # rows of a batch


class Net:
    """Parameters as tensors, and the functions that both forms use."""

    def __init__(self, config, network, params, device="cpu"):
        self.config, self.network, self.layers = config, network, network.layers
        self.rule, self.decorrelate = split_method(config.method)
        self.W = [torch.tensor(np.array(w), requires_grad=True, device=device) for w in params.W]
        self.R = [None if r is None else torch.tensor(np.array(r), device=device) for r in params.R]
        self.units, self.K = network.units, config.samples

    def spares(self, l, B):
        """Whether the algebra leaves x* of B samples out, as npref does."""
        return self.decorrelate and spares_x_star(self.row_count(l, B), len(self.W[l]), self.W[l][0].numel())

    def row_count(self, l, B):
        return B * prod(self.network.shapes[l + 1][1:])  # of a dense layer: one a sample

    def forms(self, B):
        """Which form the algebra takes in each layer for B samples: whether x* is left out, and whether R's update is by the moment."""
        return [(self.spares(l, B), moment_is_cheaper(self.row_count(l, B), self.W[l][0].numel())) for l in range(len(self.layers))]

    def fused(self, l):
        """A = W R, in W's shape."""
        return (self.W[l].flatten(1) @ self.R[l]).reshape(self.W[l].shape)

    def rows(self, l, x):
        """A layer's input as what R and W multiply: (B, n_in), or (B, P, n_in) for a convolution."""
        if isinstance(self.layers[l], Conv):
            q = self.layers[l]
            return F.unfold(x, q.kernel, stride=q.stride, padding=q.padding).transpose(1, 2)
        return x.flatten(1)

    def product(self, l, x, W, rows=None):
        """W times the input x of layer l, by PyTorch's convolution where there is one to do, or times its rows: (B, *shape)."""
        if isinstance(self.layers[l], Conv):
            q = self.layers[l]
            if rows is None:
                return F.conv2d(x, W, stride=q.stride, padding=q.padding)
            return (rows @ W.flatten(1).T).transpose(1, 2).reshape(-1, *self.network.shapes[l + 1])
        return F.linear(x.flatten(1) if rows is None else rows, W)

    def activate(self, l, a):
        return F.leaky_relu(a, self.layers[l].slope) if self.layers[l].activation == "leaky_relu" else a

    def update(self, l, error, seen, spare=False):
        """Σ errorᵀ x*, with error (B, *shape); seen is x* as rows, or the input of a convolution without R, or if x* is spared x's rows."""
        if spare:
            return (self.update(l, error, seen).flatten(1) @ self.R[l].T).reshape(self.W[l].shape)
        if isinstance(self.layers[l], Conv):
            q = self.layers[l]
            if not self.decorrelate:
                return torch.nn.grad.conv2d_weight(seen, self.W[l].shape, error, q.stride, q.padding)
            return (error.flatten(2).transpose(1, 2).flatten(0, 1).T @ seen.flatten(0, 1)).reshape(self.W[l].shape)
        return error.T @ seen


def draw_noise(net, B):
    """Per layer (K, B, *shape)."""
    sigma, dtype, device = net.config.sigma2**0.5, net.W[0].dtype, net.W[0].device
    sizes = [(net.K, B, *shape) for shape in net.network.shapes[1:]]
    if net.config.noise == "gaussian":
        return [sigma * torch.randn(size, dtype=dtype, device=device) for size in sizes]
    return [sigma * (2 * torch.randint(0, 2, size, dtype=torch.int8, device=device).to(dtype) - 1) for size in sizes]


def loss(y, t):
    """Of each sample, in float64 as npref's: y (..., n), t (B, n)."""
    y = y.double()
    return torch.logsumexp(y, -1) * t.sum(-1) - (t * y).sum(-1)


def forward(net, x, noise=None, A=None):
    """Inputs of the products (x* as rows, or a convolution's input where there is no R), pre-activations, output.

    A: if given, of each layer; where npref leaves x* out, x is multiplied by it, and x's rows are in x*'s place.
    """
    seen, a = [], []
    for l in range(len(net.layers)):
        if A is not None and net.spares(l, len(x)):
            seen.append(net.rows(l, x))
            a.append(net.product(l, x, A[l]))
        elif net.decorrelate or not isinstance(net.layers[l], Conv):
            rows = net.rows(l, x)
            seen.append(rows @ net.R[l].T if net.decorrelate else rows)
            a.append(net.product(l, x, net.W[l], seen[-1]))
        else:
            seen.append(x)
            a.append(net.product(l, x, net.W[l]))
        if noise is not None:
            a[-1] = a[-1] + noise[l]
        x = net.activate(l, a[-1])
    return seen, a, x


def gradients_bp(net, x, t, algebra):
    """dW by autograd, and x* for R."""
    A = [net.fused(l) if net.spares(l, len(x)) else None for l in range(len(net.layers))] if algebra else None
    seen, _, y = forward(net, x, A=A)
    mean = F.cross_entropy(y, t)
    return list(torch.autograd.grad(mean, net.W)), [s.detach() for s in seen]


@torch.no_grad()
def gradients_stacked(net, x, t, eps):
    """dW with all passes in one batch: first the clean one, then for each noise sample one, or one a layer (INP)."""
    B, K, L, N = len(x), net.K, len(net.layers), sum(net.units)
    passes = L if net.rule == "inp" else 1
    noise = []
    for l, e in enumerate(eps):
        stacked = e.new_zeros(1 + K * passes, *e.shape[1:])
        for k in range(K):
            stacked[1 + k * passes + (l if net.rule == "inp" else 0)] = e[k]
        noise.append(stacked.flatten(0, 1))
    seen, a, y = forward(net, x.repeat(1 + K * passes, *[1] * (x.ndim - 1)), noise)
    losses = loss(y.reshape(1 + K * passes, B, -1), t)  # (1 + K passes, B)
    dL = (losses[1:] - losses[0]).reshape(K, passes, B)
    clean = [s[:B] for s in seen]
    if net.rule == "anp":
        v = [q.reshape(1 + K, B, -1)[1:] - q[:B].reshape(B, -1) for q in a]  # δa
        norm2 = sum(q.square().sum(2) for q in v)
    else:
        v = [e.flatten(2) for e in eps]
    dW = []
    for l, v_l in enumerate(v):
        scale = {"np": lambda: dL[:, 0] / net.config.sigma2, "anp": lambda: N * dL[:, 0] / norm2,
                 "inp": lambda l=l, v_l=v_l: net.units[l] * dL[:, l] / v_l.square().sum(2)}[net.rule]()
        error = (scale.to(x.dtype)[..., None] * v_l).reshape(K * B, *net.network.shapes[l + 1])
        dW.append(net.update(l, error, clean[l].repeat(K, *[1] * (clean[l].ndim - 1))) / (K * B))
    return dW, clean


@torch.no_grad()
def gradients_algebra(net, x, t, eps):
    """dW with npref's algebra."""
    B, K, L, N, shapes = len(x), net.K, len(net.layers), sum(net.units), net.network.shapes
    A = [net.fused(l) if net.decorrelate and (l > 0 or net.spares(l, B)) else net.W[l] for l in range(L)]
    seen, a, y = forward(net, x, A=A)
    clean_loss = loss(y, t)
    v, x_tilde = [], None
    for l, e in enumerate(eps):
        e = e.flatten(0, 1)
        under_way = net.product(l, x_tilde, A[l]) if l > 0 else None
        begun = (a[l].expand(K, *a[l].shape).flatten(0, 1) + e) if net.rule == "inp" or l == 0 else under_way.add_(e)
        a_tilde = torch.cat([under_way, begun]) if net.rule == "inp" and l > 0 else begun
        x_tilde = net.activate(l, a_tilde)
        v.append((a_tilde.reshape(K, *a[l].shape) - a[l] if net.rule == "anp" else e).reshape(K, B, -1))
    dL = (loss(x_tilde.reshape(-1, *y.shape), t) - clean_loss).reshape(-1, K, B)  # (L or 1, K, B)
    norm2 = sum(q.square().sum(2) for q in v) if net.rule == "anp" else None
    dW = []
    for l, v_l in enumerate(v):
        scale = {"np": lambda: dL[0] / net.config.sigma2, "anp": lambda: N * dL[0] / norm2,
                 "inp": lambda l=l, v_l=v_l: net.units[l] * dL[l] / v_l.square().sum(2)}[net.rule]()
        error = torch.einsum("kb,kbn->bn", scale.to(x.dtype), v_l).reshape(B, *shapes[l + 1])
        dW.append(net.update(l, error, seen[l], net.spares(l, B)) / (K * B))
    return dW, seen


@torch.no_grad()
def decorrelate(net, seen):
    """R ← R - α (moment without its diagonal) R."""
    for R, rows in zip(net.R, seen):
        rows = rows.flatten(0, -2)
        C = rows.T @ rows / len(rows)
        C.fill_diagonal_(0)
        R -= net.config.decor_lr * (C @ R)


@torch.no_grad()
def decorrelate_algebra(net, seen):
    for l, (R, rows) in enumerate(zip(net.R, seen)):
        B, rows, alpha = len(rows), rows.flatten(0, -2), net.config.decor_lr
        if moment_is_cheaper(*rows.shape):
            C = R @ (rows.T @ rows) @ R.T if net.spares(l, B) else rows.T @ rows
            C.fill_diagonal_(0)
            R.addmm_(C, R.clone(), alpha=-alpha / len(rows))
        else:
            projected = rows @ R
            R *= (1 + alpha * rows.square().mean(0))[:, None]
            R.addmm_(rows.T, projected, alpha=-alpha / len(rows))


def gradients(name, net, x, t, eps):
    if net.rule == "bp":
        return gradients_bp(net, x, t, name == "torch-algebra")
    return (gradients_algebra if name == "torch-algebra" else gradients_stacked)(net, x, t, eps)


def step(name, config, network, params, x, t, threads, device="cpu"):
    """A function without arguments: one training step on x, t (NumPy's, as params are), with new noise each time, on a device.

    Tensors are told their device: in a `with` block of one every call of PyTorch takes longer, and Adam keeps its counters there and waits
    for them.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    net = Net(config, network, params, device)
    x, t = (torch.tensor(np.array(a), device=device) for a in (x, t))
    optimizer = torch.optim.Adam(net.W, lr=config.lr, eps=1e-7, fused=name == "torch-algebra" or None)
    whole = decorrelate_algebra if name == "torch-algebra" else decorrelate

    def update():
        dW, seen = gradients(name, net, x, t, None if net.rule == "bp" else draw_noise(net, len(x)))
        if net.decorrelate:
            whole(net, seen)
        return dW

    update = torch.compile(update) if name == "torch-compile" else update

    def run():
        for w, d in zip(net.W, update()):
            w.grad = d
        optimizer.step()

    return run


def check(name, config, network):
    """Raise ValueError unless this form's updates of W and R are npref's, in float64, on a small batch with npref's noise; those of the
    algebra also on a batch, with one noise sample, that is just large enough for the forms that they take in one of the size that is timed
    (for some networks that is some seconds and a gigabyte)."""
    if config.loss != "cce":
        raise ValueError(f"PyTorch's steps have the cross-entropy loss, got {config.loss}")
    _check(name, config, network, CHECKED)
    net = Net(config, network, init_params(network, decorrelate=split_method(config.method)[1]))
    if name == "torch-algebra" and net.decorrelate and net.forms(config.batch_size) != net.forms(CHECKED):
        rows = next(B for B in range(1, config.batch_size + 1) if net.forms(B) == net.forms(config.batch_size))
        _check(name, replace(config, samples=1), network, rows)


def _check(name, config, network, rows):
    config = replace(config, dtype="float64", batch_size=rows)
    rng = np.random.default_rng(1)
    params = init_params(network, dtype="float64", decorrelate=split_method(config.method)[1])
    params = replace(params, R=tuple(None if r is None else r + 0.01 * rng.standard_normal(r.shape) / len(r) ** 0.5 for r in params.R))
    x, t = rng.random((rows, *network.input_shape)), np.eye(network.units[-1])[rng.integers(network.units[-1], size=rows)]
    update = compute_update(config, network, params, x, t, 0)
    net = Net(config, network, params)
    eps = None if net.rule == "bp" else [
        torch.tensor(np.ascontiguousarray(draw(np, config.noise, shape, config.sigma2**0.5, seed=config.seed, step=0, layer=l,
                                               samples=range(config.samples), rows=range(rows), dtype="float64")))
        for l, shape in enumerate(network.shapes[1:])]
    dW, seen = gradients(name, net, torch.tensor(x), torch.tensor(t), eps)
    pairs = [(f"dW_{l + 1}", d, e) for l, (d, e) in enumerate(zip(update.dW, dW))]
    if net.decorrelate:
        R = [r.copy() for r in params.R]
        decorrelation_step(R, update.trace, config.decor_lr)
        before = [r.clone() for r in net.R]
        (decorrelate_algebra if name == "torch-algebra" else decorrelate)(net, seen)
        pairs += [(f"R_{l}'s change", r - r0, s.numpy() - s0.numpy()) for l, (r, r0, s, s0) in enumerate(zip(R, params.R, net.R, before))]
    for what, ours, theirs in pairs:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        off = np.abs(ours - theirs).max() / np.abs(ours).max()
        if not off < 1e-8:
            raise ValueError(f"{name} {config.method} on {config.arch}: {what} differs from npref's by {off:.2g} of its largest number")
