"""Networks, their parameters, and the forward pass.

A network is an input shape and a tuple of layers. Layer l = 0 ... L-1 of the code is layer l + 1 of the paper: it takes the
paper's x_l, decorrelates it with R_l, and multiplies by W_{l+1}. So R[l] has the paper's index, and W[l] is its W_{l+1}.

Letters: B batch, P positions (1 for Dense), n_in and n_out as in layers.py, N_l = P * n_out units of a layer.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from numbers import Integral

import numpy as np

from .backend import array_module
from .execution import elementwise
from .functions import activate
from .layers import Conv, Dense, Layer, fold, output_shape, to_rows, unfold, weight_shape
from .noise import WEIGHTS, draw, uniforms

DTYPES = ("float32", "float64")  # float16 would bury δL in rounding
INITS = ("he", "glorot", "uniform")
ARCHITECTURES = ("fc1", "fc3", "fc6", "fc9", "conv", "conv-tiny", "sarcos")


@dataclass(frozen=True)
class Network:
    """Input shape (one sample's, without the batch) and layers; shapes that do not fit raise ValueError here."""

    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]

    def __post_init__(self):
        for name, such_as in (("input_shape", "(3, 32, 32) or (21,)"), ("layers", '(Dense(10, activation="identity"),)')):
            try:
                object.__setattr__(self, name, tuple(getattr(self, name)))
            except TypeError:
                raise TypeError(f"{name} must be a tuple such as {such_as}, got {getattr(self, name)!r}") from None
        if not self.layers:
            raise ValueError("a network needs at least one layer, got an empty list")
        if not self.input_shape or any(not isinstance(n, Integral) or n < 1 for n in self.input_shape):
            raise ValueError(f"input_shape must be positive ints such as (3, 32, 32) or (21,), got {self.input_shape}")
        object.__setattr__(self, "input_shape", tuple(map(int, self.input_shape)))  # NumPy's would overflow
        for layer in self.layers:
            if not isinstance(layer, (Dense, Conv)):
                raise TypeError(f"a layer must be Dense or Conv, got {layer!r}")
        if len(self.shapes[-1]) != 1:
            raise ValueError(f"the last layer must be Dense: its outputs are the logits, got {self.layers[-1]}")

    @cached_property
    def shapes(self):
        """The shape of x_0 ... x_L, without the batch."""
        shapes = [self.input_shape]
        for index, layer in enumerate(self.layers):
            try:
                shapes.append(output_shape(layer, shapes[-1]))
            except ValueError as error:
                raise ValueError(f"layer {index + 1}: {error}") from None
        return tuple(shapes)

    @cached_property
    def units(self):
        """N_1 ... N_L: every unit of a layer, a convolution's channels times its positions."""
        return tuple(prod(shape) for shape in self.shapes[1:])


@dataclass(frozen=True)
class Params:
    """Plain arrays, one entry per layer: W, b (None without bias) and R (None without decorrelation, that is R = I). Steps change them
    in place; `copy.deepcopy` keeps them."""

    W: tuple
    b: tuple
    R: tuple


@dataclass(frozen=True)
class Trace:
    """What a forward pass leaves, per layer; see `forward`. A layer has x_star or, if that was left out, x_rows and A; the rest is None."""

    x_star: list  # x*_0 ... x*_{L-1}, (B*P, n_in)
    x_rows: list  # x_0 ... x_{L-1}, unfolded, (B*P, n_in)
    A: list  # W_1 R_0 ... W_L R_{L-1}, (n_out, n_in)
    a: list  # a_1 ... a_L, (B*P, n_out), with the noise if there was any
    x: list  # x_1 ... x_L, (B, *shape); equations.forward_pass's begin with x_0
    drive: object  # a_1 before any noise

    @property
    def y(self):
        """The network's output, (B, n_out). It is a[-1] itself where the last activation is the identity: do not change it."""
        return self.x[-1]


def forward(network, params, x, noise=None, *, sparing=False):
    """One pass through the network (Eq. 2): x (B, *input_shape), optional noise per layer (B, *shape) -> Trace.

    For every layer  x* = R x,  a = W x* + b + eps,  x = f(a)   -- for rows of samples, the matrices act from the right.

    sparing: where a step costs less without x* (`spares_x_star`), leave it out, and take a = A x with A = W R.

    Raises ValueError for shapes that do not fit the network, TypeError for dtypes that differ, integers and float16 (complex numbers and
    longer floats are taken, by which derivatives and rounding are judged).
    """
    _check_fits(network, params, x)
    if noise is not None:
        check_noise(network, x, noise)
    x_star, x_rows, A, a, xs = [], [], [], [], []
    for l, layer in enumerate(network.layers):
        x_l, W, R = unfold(layer, x), matrix(params.W[l]), params.R[l]  # (B*P, n_in)
        spare = sparing and R is not None and spares_x_star(len(x_l), *W.shape)
        x_rows.append(x_l if spare else None)
        if spare:
            x_star.append(None)
            A.append(W @ R)  # (n_out, n_in)
            a_l = x_l @ A[l].T  # (B*P, n_out)
        else:
            x_star.append(x_l if R is None else x_l @ R.T)  # (B*P, n_in)
            A.append(None)
            a_l = x_star[l] @ W.T  # (B*P, n_out)
        if params.b[l] is not None:
            a_l += params.b[l]
        if l == 0:
            drive = a_l
        if noise is not None:
            a_l = a_l + to_rows(noise[l])  # ã_l, Eq. 2 with the noise inside, as in Algorithm 1
        a.append(a_l)
        x = fold(_activated(layer, a_l), network.shapes[l + 1])
        xs.append(x)
    return Trace(x_star, x_rows, A, a, xs, drive)


def spares_x_star(M, n_out, n):
    """Whether a decorrelated method's step costs less without x* of a layer's M rows: a convolution has many.

    The M n² multiply-adds of x* = R x then go to A = W R, to (Σ error xᵀ) Rᵀ = Σ error x*ᵀ and to R ⟨x xᵀ⟩ Rᵀ = ⟨x* x*ᵀ⟩,
    2 n_out n² + 2 n³ at most: noisy and backward passes may need A anyway.
    """
    return M > 2 * (n_out + n)


def _activated(layer, a):
    """x = f(a) for rows, (B*P, n_out)."""
    if layer.activation == "identity":
        return a
    xp = array_module(a)
    x = xp.empty(a.shape, dtype=a.dtype)
    elementwise(xp, _activate, (a, x), constants=(layer.activation, layer.slope))
    return x


def _activate(name, slope, a, x):
    x[...] = activate(name, a, slope)


def matrix(W):
    """A weight as the matrix that multiplies rows: (n_out, n_in), a view."""
    return W.reshape(len(W), -1)


def without_decorrelation(params):
    """The same function with W R in W's place and R = I: the cheaper form for evaluating many samples."""
    W = tuple(w if r is None else (matrix(w) @ r).reshape(w.shape) for w, r in zip(params.W, params.R))
    return Params(W, params.b, (None,) * len(W))


def check_batch(network, params, x, t):
    """Raise ValueError or TypeError when a batch or the parameters do not fit the network; return the array module."""
    if t is None:
        raise TypeError("t must be one target vector a sample, got None")
    xp = array_module(x, t)
    _check_fits(network, params, x)
    if t.dtype.kind not in "fiub":
        raise TypeError(f"t must be of real numbers, got {t.dtype}")
    if str(x.dtype) not in DTYPES:
        raise TypeError(f"x and the parameters must be float32 or float64, got {x.dtype}: use x.astype(\"float32\")")
    if t.shape != (len(x), *network.shapes[-1]):
        raise ValueError(f"t must be one target vector a sample, {(len(x), *network.shapes[-1])}, got {t.shape}; "
                         "turn labels into one-hot rows with npref.one_hot")
    return xp


def _check_fits(network, params, x):
    if not isinstance(network, Network) or not isinstance(params, Params):
        raise TypeError(f"expected a Network and its Params, got {type(network).__name__} and {type(params).__name__}")
    for name in "WbR":
        if not isinstance(getattr(params, name), (list, tuple)):
            raise TypeError(f"params.{name} must be a list or tuple with one entry a layer (of b and R, None where there is none), "
                            f"got {type(getattr(params, name)).__name__}")
    if any(a is None for a in (x, *params.W)):
        raise TypeError("x and every W must be arrays, got None")
    array_module(x, *params.W, *params.b, *params.R)
    if x.shape[1:] != network.input_shape or len(x) == 0:
        raise ValueError(f"x must be (B >= 1, {', '.join(map(str, network.input_shape))}), got {x.shape}")
    if not len(params.W) == len(params.b) == len(params.R) == len(network.layers):
        raise ValueError(f"params must have one W, b and R (or None) for each of {len(network.layers)} layers, "
                         f"got {len(params.W)}, {len(params.b)} and {len(params.R)}")
    for l, layer in enumerate(network.layers):
        expected = weight_shape(layer, network.shapes[l])
        if params.W[l].shape != expected:
            raise ValueError(f"W of layer {l + 1} must be {expected}, got {params.W[l].shape}")
        if (params.b[l] is not None) != layer.bias:
            raise ValueError(f"layer {l + 1} has bias={layer.bias}, but its b is {'given' if not layer.bias else 'None'}")
        if layer.bias and params.b[l].shape != (layer.n_out,):
            raise ValueError(f"b of layer {l + 1} must be {(layer.n_out,)}, got {params.b[l].shape}")
        n_in = prod(expected[1:])
        if params.R[l] is not None and params.R[l].shape != (n_in, n_in):
            raise ValueError(f"R of layer {l + 1}'s input must be {(n_in, n_in)}, got {params.R[l].shape}")
    found = {p.dtype for p in (*params.W, *params.b, *params.R) if p is not None}
    if x.dtype.kind not in "fc" or x.dtype.itemsize < 4:
        dtype = "float64" if found == {np.dtype("float64")} else "float32"
        remedy = f"npref.batches.prepare(x, {dtype!r}), which divides pixels by 255" if x.dtype == "uint8" else f"x.astype({dtype!r})"
        raise TypeError(f"x and the parameters must be float32 or float64, got {x.dtype}: use {remedy}")
    if found != {x.dtype}:
        found = sorted(map(str, found))
        remedy = f"use x.astype({found[0]!r})" if len(found) == 1 else "give all parameters one"
        raise TypeError(f"x and the parameters must share one dtype, got x in {x.dtype} and parameters in {', '.join(found)}: {remedy}"
                        + (f", or init_params(..., dtype={str(x.dtype)!r})" if str(x.dtype) in DTYPES else ""))


def check_noise(network, x, noise, group=False, name="noise"):
    """Raise ValueError or TypeError when noise, one array per layer, is not (B, *shape), or for a `group` (k >= 1, B, *shape), of one k."""
    if not isinstance(noise, (list, tuple)):
        raise TypeError(f"{'a group of noise' if group else name} must be a list or tuple of arrays, got {type(noise).__name__}"
                        + ("; noise is a list of groups, pass [eps] for a single one" if group else ""))
    if len(noise) != len(network.layers):
        raise ValueError(f"{name} needs one array per layer, {len(network.layers)}, got {len(noise)}"
                         + ("; an iterable of groups is expected, pass [eps] for a single one" if group else ""))
    for l, eps_l in enumerate(noise):
        if eps_l is None:
            raise TypeError(f"{name} of layer {l + 1} is None: expected an array for each layer, zeros for one that is not perturbed")
        array_module(x, eps_l)
        one = (len(x), *network.shapes[l + 1])
        if group and eps_l.ndim == len(one):
            raise ValueError(f"{name} of layer {l + 1} must be (k, {', '.join(map(str, one))}), for k noise samples, got {eps_l.shape}; "
                             "for a single one give each layer's array an axis of length 1 in front, eps_l[None]")
        if group and eps_l.shape[:1] == (0,):
            raise ValueError(f"{name} of layer {l + 1} has no noise sample: a group's arrays must be (k >= 1, B, *shape), "
                             f"got {eps_l.shape}")
        expected = (*noise[0].shape[:1], *one) if group else one
        if eps_l.shape != expected:
            raise ValueError(f"{name} of layer {l + 1} must be {expected}, got {eps_l.shape}")
        if eps_l.dtype != x.dtype:
            raise TypeError(f"{name} of layer {l + 1} must have x's dtype {x.dtype}, got {eps_l.dtype}")


def init_params(network, *, init="he", seed=0, dtype="float32", decorrelate=False, xp=np):
    """Random W, zero b, and R = I (if decorrelating).

    he       normal with variance 2 / n_in (He et al. 2015, without a correction for the leaky slope)
    glorot   uniform on +-sqrt(6 / (n_in + n_out)), n_out counting a kernel's taps (Glorot & Bengio 2010, Eq. 16)
    uniform  uniform on +-1 / sqrt(n_in)

    Numbers are drawn in float64 on the host, layer by layer, from the seed's own stream: the same for every dtype and backend.
    Raises ValueError for an unknown init, seed or dtype, TypeError for what is no dtype.
    """
    if not isinstance(network, Network):
        raise TypeError(f"expected a Network, got {type(network).__name__}")
    if dtype is None or str(np.dtype(dtype)) not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
    W, b, R = [], [], []
    for l, layer in enumerate(network.layers):
        shape = weight_shape(layer, network.shapes[l])
        n_in, n_out = prod(shape[1:]), shape[0] * prod(shape[2:])
        match init:
            case "he":
                w = draw(np, "gaussian", (n_in,), sqrt(2 / n_in), seed=seed, step=0, layer=l, samples=range(1),
                         rows=range(shape[0]), dtype="float64", stream=WEIGHTS)
            case "glorot" | "uniform":
                bound = sqrt(6 / (n_in + n_out)) if init == "glorot" else 1 / sqrt(n_in)
                w = (2 * uniforms(seed, WEIGHTS, l, prod(shape)) - 1) * bound
            case _:
                raise ValueError(f"unknown init {init!r}: expected one of {', '.join(INITS)}")
        W.append(xp.asarray(w.reshape(shape).astype(dtype)))
        b.append(xp.zeros(shape[0], dtype=dtype) if layer.bias else None)
        R.append(xp.eye(n_in, dtype=dtype) if decorrelate else None)
    return Params(tuple(W), tuple(b), tuple(R))


def architecture(name, input_shape=(3, 32, 32), n_out=10, *, activation="leaky_relu", slope=0.2, bias=False, padding=0):
    """Table 1's networks by name, and Appendix J's, for any input shape and number of outputs; the last layer has no activation.

    Raises ValueError for an unknown name, and for padding where there is no convolution.
    """
    hidden = dict(activation=activation, slope=slope, bias=bias)
    conv = dict(hidden, padding=padding)
    match name:
        case "fc1" | "fc3" | "fc6" | "fc9" | "sarcos":
            if padding != 0:
                raise ValueError(f"padding={padding} needs a convolution, and {name} has none: leave it out, or use conv")
            width, depth = (32, 2) if name == "sarcos" else (1024, int(name[2:]))
            layers = [Dense(width, **hidden)] * (depth if name != "fc1" else 0)
        case "conv":
            layers = [Conv(16, 3, 2, **conv), Conv(32, 3, 2, **conv), Conv(64, 3, 1, **conv), Dense(1024, **hidden)]
        case "conv-tiny":
            layers = [Conv(32, 5, 2, **conv), Conv(64, 3, 2, **conv), Conv(128, 5, 1, **conv),
                      Dense(512, **hidden), Dense(512, **hidden)]
        case _:
            raise ValueError(f"unknown architecture {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    return Network(input_shape, (*layers, Dense(n_out, activation="identity", slope=slope, bias=bias)))
