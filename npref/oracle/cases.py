"""The oracle's cases: what each one is, and its inputs."""

from dataclasses import asdict, dataclass, replace
from math import prod, sqrt
from zlib import crc32

import numpy as np

from ..layers import Conv, Dense, weight_shape
from ..network import Network
from ..noise import WEIGHTS, uniforms
from ..rules import METHODS, split_method

LINEAR = dict(activation="identity")


@dataclass(frozen=True, eq=False)
class Case:
    """What an adapter is given: one mini-batch, a network, and a rule. All arrays are NumPy arrays of `dtype`.

    x (B, *input_shape), t (B, n_L).  Per layer, in tuples: W (n_l, n_in) or (C_out, C_in, kh, kw), b (n_l,) or (C_out,) or
    None, R (n_in, n_in), or None for I. A convolution's R acts on patches ordered (C_in, kh, kw); a dense layer takes an image in the order
    (C, H, W). eps: the noise itself, per layer (K, B, *shape of the layer's output), its sigma included; None for BP. baseline: the noise
    of the pass that stands in for the clean one (v2 §3.4), per layer (B, *shape), or None. Every input is a float32 number, so both dtypes
    see the same.

    layers are npref's Dense and Conv: activation and slope, bias, and for Conv channels, and kernel, stride and padding as pairs, vertical
    first; a kernel is not flipped.
    method: bp, np, inp, anp, or with a d before it; rule is the method without its d, decorrelate whether it has one. sigma2: the σ²
    that NP divides by. anp_norm: network, ‖δa‖² of Eq. 6, or layer, ‖δa_l‖² in its place.
    loss: cce, mse or mse-mean. alpha: the rate of R. optimizer (adam: β 0.9, 0.999, ε 1e-7; adam-eps-hat; sgd) with lr for W and b. In
    float32 take 1 - β₂ as 0.001: the difference of 1 and β₂ as float32 numbers is off by 5e-5 of it.
    """

    name: str
    text: str
    method: str
    input_shape: tuple
    layers: tuple
    loss: str = "cce"
    sigma2: float = 0.140625
    alpha: float = 0.125
    optimizer: str = "adam"
    lr: float = 0.015625
    anp_norm: str = "network"
    dtype: str = "float64"
    x: object = None
    t: object = None
    W: tuple = ()
    b: tuple = ()
    R: tuple = ()
    eps: tuple | None = None
    baseline: tuple | None = None

    @property
    def rule(self):
        """bp, np, inp or anp."""
        return split_method(self.method)[0]

    @property
    def decorrelate(self):
        """Whether R is used and learnt."""
        return split_method(self.method)[1]

    @property
    def network(self):
        """The shapes, as npref has them: network.shapes[l + 1] is the shape of layer l's output."""
        return Network(self.input_shape, self.layers)

    def settings(self):
        """Everything but the arrays, for JSON."""
        plain = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ARRAYS + ("layers", "dtype")}
        return plain | {"layers": [{"kind": type(q).__name__.lower(), **asdict(q)} for q in self.layers]}

    def cast(self, dtype):
        """The same case with its arrays in another dtype (a copy)."""
        def to(a):
            return a if a is None else tuple(map(to, a)) if isinstance(a, tuple) else a.astype(dtype)
        return replace(self, dtype=dtype, **{name: to(getattr(self, name)) for name in ARRAYS})


ARRAYS = ("x", "t", "W", "b", "R", "eps", "baseline")


def from_settings(settings, arrays):
    """The inverse of `Case.settings`, with the arrays by name."""
    kinds = {"dense": Dense, "conv": Conv}
    layers = tuple(kinds[q["kind"]](**{k: v for k, v in q.items() if k != "kind"}) for q in settings["layers"])
    return Case(**{**settings, "input_shape": tuple(settings["input_shape"]), "layers": layers, **arrays})


def _networks(bias, **hidden):
    """name -> (input shape, layers, what it is)."""
    d = lambda n: Dense(n, bias=bias, **hidden)  # noqa: E731
    c = lambda *a, **k: Conv(*a, bias=bias, **k, **hidden)  # noqa: E731
    out = Dense(3, bias=bias, **LINEAR)
    return {
        "dense1": ((5,), (out,), "one dense layer"),
        "dense2": ((4,), (d(5), out), "two dense layers"),
        "dense2-tanh": ((4,), (d(5), Dense(3, "tanh", bias=bias)), "two dense layers, tanh units in the last one, too"),
        "dense4": ((4,), (d(4), d(3), d(4), out), "four dense layers"),
        "conv-stride": ((2, 5, 4), (c(2, (3, 2), (2, 1)), out), "a convolution with stride (2, 1), then the dense output layer"),
        "conv-padding": ((1, 3, 4), (c(2, (2, 3), 1, (1, 0)), out), "a convolution with padding (1, 0), then the dense output layer"),
        "conv-conv": ((1, 5, 4), (c(2, 2), c(2, (2, 1), 1, (1, 0)), out), "two overlapping convolutions, then the dense output layer"),
        "conv-remainder": ((1, 4, 4), (c(2, 2, 1, (1, 0)), c(2, 2, 2), out),
                           "two convolutions, the second with stride 2 and a row and a column left over, then the dense output layer"),
        "conv-dense": ((2, 4, 4), (c(2, 2, 2), d(4), out), "a convolution, a dense layer, the dense output layer"),
    }


def case_list():
    """Every built-in case without its arrays, with its batch size B, its K and the kind of its noise: (Case, B, K, kind)."""
    out = []

    def add(name, method, arch, bias=False, K=1, B=4, kind="plain", why="", hidden=(), **options):
        shape, layers, what = _networks(bias, **dict(hidden))[arch]
        rule = split_method(method)[0]
        noise = "" if rule == "bp" else f", {K} noise sample{'s' * (K > 1)}"
        size = f"{B} sample{'s' * (B > 1)}"
        text = f"{method.upper()} on {what}, {'with biases' if bias else 'without biases'}, {size}{noise}{'; ' * bool(why)}{why}"
        out.append((Case(name, text, method, shape, layers, **options), B, K, kind))

    for method in METHODS:
        for arch in ("dense1", "dense2", "dense4", "conv-stride", "conv-padding", "conv-dense"):
            for bias in (False, True):
                for K in (1, 3) if "bp" not in method else (1,):
                    k = f"-k{K}" if "bp" not in method else ""
                    add(f"{method}/{arch}{'-bias' * bias}{k}", method, arch, bias, K)
    for method in ("bp", "dbp", "dinp", "danp"):
        add(f"{method}/conv-conv-bias", method, "conv-conv", True, alpha=0.015625)
        add(f"{method}/conv-remainder-bias", method, "conv-remainder", True, alpha=0.015625)
    for method in ("bp", "np", "dinp", "danp"):
        for loss in ("mse", "mse-mean"):
            add(f"{method}/{loss}", method, "dense2", True, loss=loss, why=f"squared error ({loss})")
    for method in ("bp", "danp"):
        add(f"{method}/output-tanh", method, "dense2-tanh", True, loss="mse", why="squared error")
    for method in ("dbp", "np", "danp"):
        add(f"{method}/sgd", method, "dense2", True, optimizer="sgd", lr=0.125, why="plain gradient descent")
        add(f"{method}/adam-eps-hat", method, "dense2", True, optimizer="adam-eps-hat", why="Adam's ε added before bias correction")
    for method in ("np", "anp", "dnp", "danp"):
        for arch in ("dense2", "conv-dense"):
            add(f"{method}/noisy-baseline-{arch}", method, arch, True, 3, kind="baseline", why="against a noisy baseline (v2 §3.4)")
    for method in ("anp", "danp"):
        add(f"{method}/layer-norm", method, "dense4", K=3, anp_norm="layer", why="norm of each layer by itself (v1)")
    for activation in ("relu", "tanh", "identity", "step", "sign"):
        for method in ("dbp",) * (activation not in ("step", "sign")) + ("np", "dinp", "danp"):
            add(f"{method}/{activation}", method, "conv-dense", True, hidden={"activation": activation}, why=f"{activation} units")
    for method in METHODS:
        add(f"{method}/batch-of-1", method, "dense2", True, B=1)
    for method in ("np", "inp", "anp", "danp"):
        add(f"{method}/kinks", method, "dense4", K=3, kind="kinks", sigma2=1.0, hidden={"activation": "relu"},
            why="noise so strong that many ReLUs switch")
        add(f"{method}/small-noise", method, "dense2", K=3, kind="small", sigma2=2.0**-20, why="noise of about the paper's σ = 1e-3")
        add(f"{method}/signs", method, "dense2", K=3, kind="signs", why="noise of ±σ")
    return out + [(case, 0, 0, "hand") for case in _by_hand()]


def _by_hand():
    """Cases whose numbers can be worked out with a pencil; the text says how."""
    a, c = lambda *v: np.array(v, dtype=float), lambda *v: tuple(np.array(w, dtype=float) for w in v)  # noqa: E731
    one = dict(input_shape=(2,), layers=(Dense(1, **LINEAR),), x=a([1, 2]), t=a([1]), W=c([[1, 1]]), b=(None,), loss="mse",
               optimizer="sgd", lr=0.03125)
    two = dict(input_shape=(1,), layers=(Dense(1, **LINEAR), Dense(1, **LINEAR)), x=a([1]), t=a([1]), W=c([[1]], [[2]]), b=(None,) * 2,
               R=(None,) * 2, loss="mse", optimizer="sgd", lr=0.03125, eps=c([[[1]]], [[[2]]]), sigma2=1.0)
    pass_ = "a = (1, 2), L = (1 - 2)² = 1; noise (1, 2): ã_1 = 2, ã_2 = 2·2 + 2 = 6, L̃ = (1 - 6)² = 25, δL = 24; "
    return [
        Case("hand/bp", "a = 1 + 2 = 3, L = (1 - 3)² = 4, g = 2 (3 - 1) = 4, ΔW = 4 (1, 2) = (4, 8); "
             "W becomes (1, 1) - (4, 8)/32 = (0.875, 0.75)",
             "bp", R=(None,), **one),
        Case("hand/np", pass_ + "ΔW_1 = 24 · 1 / 1 · x = 24 · 1, ΔW_2 = 24 · 2 / 1 · x_1 = 48 · 1", "np", **two),
        Case("hand/inp", "noise in layer 1 alone: y = 2 (1 + 1) = 4, δL = 9 - 1 = 8, ΔW_1 = 1 · 8 · 1/1² · 1 = 8; in layer 2 alone: "
             "y = 2 + 2 = 4, δL = 8, ΔW_2 = 1 · 8 · 2/2² · 1 = 4", "inp", **two),
        Case("hand/anp", pass_ + "δa = (1, 4), ‖δa‖² = 17, N = 2, ΔW_1 = 2 · 24 · 1/17 = 48/17, "
             "ΔW_2 = 2 · 24 · 4/17 = 192/17", "anp", **two),
        Case("hand/dbp", "R_0 = diag(1, 2): x* = (1, 4), a = 5, g = 2 (5 - 1) = 8, ΔW = 8 (1, 4); ⟨x* x*ᵀ⟩ without its diagonal is "
             "(0 4; 4 0), times R_0 it is (0 8; 4 0); R_0 becomes R_0 - 1/8 of it, (1 -1; -0.5 2)", "dbp", R=c([[1, 0], [0, 2]]), **one),
    ]


def with_inputs(case, B, K, kind, attempt=0):
    """The case with arrays, a function of its name alone; `attempt` draws others. Multiples of 2^-20, or σ 2^-16: exact in float32."""
    if kind == "hand":
        return case
    seed, count = crc32(case.name.encode()) + (attempt << 32), iter(range(10**6))

    def draw(shape, low, high, grid=2.0**-20):
        u = uniforms(seed, WEIGHTS, next(count), prod(shape)).reshape(shape)
        return np.round((low + (high - low) * u) / grid) * grid

    sigma = sqrt(case.sigma2)

    def noise(*shape):
        if kind == "signs":
            return sigma * np.where(draw(shape, -1, 1) > 0, 1.0, -1.0)
        e = draw(shape, -2 * sigma, 2 * sigma, sigma * 2.0**-16)
        return np.where(e == 0, sigma, e)

    net = case.network
    W, b, R = [], [], []
    for layer, shape in zip(net.layers, net.shapes):
        w = weight_shape(layer, shape)
        n_in = prod(w[1:])
        W.append(draw(w, -2 / sqrt(n_in), 2 / sqrt(n_in)))
        b.append(draw((w[0],), -0.5, 0.5) if layer.bias else None)
        R.append(np.eye(n_in) + draw((n_in, n_in), -0.3, 0.3) if case.decorrelate else None)
    t = np.eye(net.units[-1])[[int(u * net.units[-1]) for u in uniforms(seed, WEIGHTS, next(count), B)]]
    x = draw((B, *case.input_shape), 0, 1)
    eps = None if case.rule == "bp" else tuple(noise(K, B, *shape) for shape in net.shapes[1:])
    baseline = tuple(noise(B, *shape) for shape in net.shapes[1:]) if kind == "baseline" else None
    return replace(case, x=x, t=t, W=tuple(W), b=tuple(b), R=tuple(R), eps=eps, baseline=baseline)
