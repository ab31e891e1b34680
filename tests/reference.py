"""Independent yardsticks for the tests: naive loops, random networks, and the literal equations run over a batch."""

import numpy as np

from npref import Conv, Dense, Network, Params, equations
from npref.functions import activate, derivative
from npref.layers import weight_shape

EPS = np.finfo(np.float64).eps


def assert_close(out, ref, scale, c=500, eps=EPS):
    """|out - ref| <= c eps scale, where scale is what ref would be if nothing in it cancelled."""
    out, ref, scale = np.asarray(out), np.asarray(ref), np.broadcast_to(np.asarray(scale), np.shape(ref))
    assert out.shape == ref.shape, (out.shape, ref.shape)
    worst = np.max(np.abs(out - ref) / (c * eps * scale + np.finfo(np.float64).tiny))
    assert worst <= 1, f"off by {worst:.3g} tolerances"


def naive_unfold(x, layer):
    """One image (C, H, W) -> columns (C*kh*kw, H'*W'), by loops over every number."""
    (kh, kw), (sh, sw), (ph, pw) = layer.kernel, layer.stride, layer.padding
    C, H, W = x.shape
    height, width = (H + 2 * ph - kh) // sh + 1, (W + 2 * pw - kw) // sw + 1
    columns = np.zeros((C * kh * kw, height * width), dtype=x.dtype)
    for r in range(height):
        for s in range(width):
            for c in range(C):
                for i in range(kh):
                    for j in range(kw):
                        y, z = r * sh + i - ph, s * sw + j - pw
                        if 0 <= y < H and 0 <= z < W:
                            columns[(c * kh + i) * kw + j, r * width + s] = x[c, y, z]
    return columns


def naive_fold(columns, layer, shape):
    """The transpose of naive_unfold, by the same loops: column (c, i, j) of position (r, s) adds to its pixel."""
    image = np.zeros(shape, dtype=columns.dtype)
    for n in range(image.size):
        unit = np.zeros(image.size)
        unit[n] = 1
        image.flat[n] = np.sum(naive_unfold(unit.reshape(shape), layer) * columns)
    return image


def random_network(rng, conv, activation="leaky_relu", bias=None, depth=None):
    """A small random network: convolutions (if conv) with random kernel, stride and padding, then dense layers."""
    layers, shape = [], (int(rng.integers(3, 8)),)
    bias = bool(rng.integers(2)) if bias is None else bias
    options = dict(activation=activation, slope=float(rng.uniform(0, 0.5)) if activation == "leaky_relu" else 0.2, bias=bias)
    if conv:
        shape = (int(rng.integers(1, 3)), int(rng.integers(5, 7)), int(rng.integers(5, 7)))
        for _ in range(rng.integers(1, 3)):
            layers.append(Conv(int(rng.integers(1, 4)), tuple(map(int, rng.integers(1, 4, 2))), tuple(map(int, rng.integers(1, 3, 2))),
                               tuple(map(int, rng.integers(0, 2, 2))), **options))
            try:
                Network(shape, (*layers, Dense(1)))
            except ValueError:  # the image is used up
                layers.pop()
                break
        if not layers:
            layers.append(Conv(2, 2, 1, 1, **options))
    for _ in range(depth if depth is not None else rng.integers(0, 3)):
        layers.append(Dense(int(rng.integers(1, 6)), **options))
    return Network(shape, (*layers, Dense(int(rng.integers(2, 5)), activation="identity", bias=bias)))


def random_params(rng, network, decorrelate=True, dtype=np.float64):
    W, b, R = [], [], []
    for layer, shape in zip(network.layers, network.shapes):
        w = weight_shape(layer, shape)
        n_in = int(np.prod(w[1:]))
        W.append(rng.normal(size=w) / np.sqrt(n_in))
        b.append(rng.normal(size=w[0]) if layer.bias else None)
        R.append(np.eye(n_in) + 0.3 * rng.normal(size=(n_in, n_in)) / np.sqrt(n_in) if decorrelate else None)
    cast = lambda arrays: tuple(None if a is None else a.astype(dtype) for a in arrays)  # noqa: E731
    return Params(cast(W), cast(b), cast(R))


def random_batch(rng, network, B, dtype=np.float64):
    x = rng.uniform(size=(B, *network.input_shape)).astype(dtype)
    t = np.eye(network.units[-1], dtype=dtype)[rng.integers(network.units[-1], size=B)]
    return x, t


def random_noise(rng, network, K, B, sigma=0.5, dtype=np.float64):
    return tuple((sigma * rng.normal(size=(K, B, *shape))).astype(dtype) for shape in network.shapes[1:])


class Literal:
    """A network for equations.py: matrices, functions and column layouts per layer."""

    def __init__(self, network, params):
        self.network = network
        self.W = [W.reshape(len(W), -1) for W in params.W]
        self.R = [np.eye(W.shape[1]) if R is None else R for W, R in zip(self.W, params.R)]
        self.b = [np.zeros((len(W), 1)) if b is None else b[:, None] for W, b in zip(self.W, params.b)]
        self.f = [lambda a, q=q: activate(q.activation, a, q.slope) for q in network.layers]
        self.f_prime = [lambda a, q=q: derivative(q.activation, a, q.slope) for q in network.layers]
        self.unfold = [lambda x, q=q, s=s: naive_unfold(x.reshape(s), q) if isinstance(q, Conv) else x.reshape(-1, 1)
                       for q, s in zip(network.layers, network.shapes)]
        self.fold = [lambda c, q=q, s=s: naive_fold(c, q, s).reshape(s[0], -1) if isinstance(q, Conv) else self.columns(c.reshape(s))
                     for q, s in zip(network.layers, network.shapes)]
        self.N = [int(np.prod(s)) for s in network.shapes[1:]]

    @staticmethod
    def columns(x):
        """An output (units,) or (C, H, W) as columns (n_out, P)."""
        return x.reshape(len(x), -1)

    def forward(self, x0, eps=None):
        eps = None if eps is None else [self.columns(e) for e in eps]
        return equations.forward_pass(x0, self.W, self.R, self.b, self.f, eps, self.unfold)

    def gradients(self, dL_dx, a):
        return equations.gradients(dL_dx, self.W, self.R, a, self.f_prime, self.fold)
