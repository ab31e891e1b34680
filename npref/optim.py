"""SGD and Adam, in place on lists of arrays. An update ΔW is subtracted."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from .backend import array_module
from .execution import elementwise
from .functions import finite
from .kernels import launch

OPTIMIZERS = ("adam", "adam-eps-hat", "sgd")


@dataclass
class AdamState:
    """First and second moments m and v, one array per parameter, and t, the number of steps taken."""

    m: list
    v: list
    t: int = 0


def init_adam(parameters):
    """Zero moments for the given arrays. Raises TypeError for None among them."""
    xp = _module_of_all(parameters)
    return AdamState([xp.zeros_like(p) for p in parameters], [xp.zeros_like(p) for p in parameters])


def sgd_step(parameters, updates, lr):
    """W ← W - η ΔW, in place. Raises ValueError or TypeError for arrays or a rate that do not fit; then nothing has changed."""
    xp, lr = _check(parameters, updates), finite("lr", lr)
    updates = _wide_enough(xp, parameters, updates)
    if xp is not np:
        launch(xp, "sgd", [(p, d.ravel(), np.uint64(p.size)) for p, d in zip(parameters, updates)], [np.float64(lr)])
        return
    for p, d in zip(parameters, updates):
        p -= lr * d


def adam_step(parameters, updates, state, lr, *, beta1=0.9, beta2=0.999, eps=1e-7, eps_hat=False):
    """One step of Adam (Kingma & Ba 2015), in place on the parameters and the state.

        m ← β₁ m + (1 - β₁) ΔW        v ← β₂ v + (1 - β₂) ΔW²        t ← t + 1
        W ← W - η m̂ / (√v̂ + ε),       m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)        Algorithm 1, the default
        W ← W - η_t m / (√v + ε̂),     η_t = η √(1 - β₂ᵗ) / (1 - β₁ᵗ)                eps_hat=True, as Keras computes it

    The second's ε̂ does what ε̂ / √(1 - β₂ᵗ), a larger one at first, would do in the first. ε = 0 makes NaN of a weight whose updates have
    all been 0. Raises ValueError or TypeError for arrays or numbers that do not fit; then nothing has changed.
    """
    if not isinstance(state, AdamState):
        raise TypeError(f"expected the AdamState of init_adam, got {type(state).__name__}")
    xp = _check(parameters, updates, state.m, state.v)
    lr, beta1, beta2, eps = (finite(name, number) for name, number in (("lr", lr), ("beta1", beta1), ("beta2", beta2), ("eps", eps)))
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"beta1 and beta2 must be in [0, 1), got {beta1} and {beta2}")
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    state.t += 1
    correction1, correction2 = 1 - beta1**state.t, sqrt(1 - beta2**state.t)
    if not eps_hat:
        # √v̂ + ε = (√v + ε √(1-β₂ᵗ)) / √(1-β₂ᵗ): the same elementwise work serves both forms.
        eps = eps * correction2
    rate = lr * correction2 / correction1
    numbers = (beta1, 1 - beta1, beta2, 1 - beta2, eps, rate)
    layers = zip(parameters, _wide_enough(xp, parameters, updates), state.m, state.v)
    if xp is not np:
        launch(xp, "adam", [(p, d.ravel(), m, v, np.uint64(p.size)) for p, d, m, v in layers], [*map(np.float64, numbers)])
        return
    for arrays in layers:
        elementwise(xp, _adam, [a.reshape(-1, 1) for a in arrays], numbers)  # (n, 1): blocks cut the last axis but one


def _wide_enough(xp, parameters, updates):
    """The updates in a dtype that holds their squares, and their product with a rate: half precision and small integers may not."""
    return [d.astype(xp.result_type(d.dtype, p.dtype), copy=False) for p, d in zip(parameters, updates)]


def _adam(p, d, m, v, beta1, rest1, beta2, rest2, eps, rate):
    """m ← β₁ m + rest₁ d, v ← β₂ v + rest₂ d², p ← p - rate m / (√v + eps)."""
    work = d * rest1
    m *= beta1
    m += work
    np.multiply(d, d, out=work)
    work *= rest2
    v *= beta2
    v += work
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    work *= rate
    p -= work


def _check(parameters, *others):
    """Raise ValueError or TypeError, before anything has changed, for lists that do not fit; return the array module."""
    xp = _module_of_all(parameters, *others)
    if any(len(group) != len(parameters) for group in others):
        raise ValueError(f"expected an update and moments for each of {len(parameters)} parameters, got {[len(group) for group in others]}")
    for p, *fitting in zip(parameters, *others):
        if any(a.shape != p.shape for a in fitting):
            raise ValueError(f"a parameter of shape {p.shape} needs an update and moments of that shape, got {[a.shape for a in fitting]}")
        narrow = p.dtype.kind != "f" or p.dtype.itemsize < 4
        if narrow or any(a.dtype != p.dtype for a in fitting[1:]) or fitting[0].dtype.kind not in "fiub":
            raise TypeError("a parameter and its moments must share a dtype, float32 or wider, and its update be real, "
                            f"got {', '.join(str(a.dtype) for a in (p, *fitting))}")
        for a in (p, *fitting[1:]):  # what changes in place
            if not a.flags.c_contiguous or not getattr(a.flags, "writeable", True):
                raise ValueError("parameters and moments must be C-contiguous and writable, as they change in place: copy them")
    return xp


def _module_of_all(*groups):
    """The array module of lists of arrays. Raises TypeError for what is none."""
    for group in groups:
        if not hasattr(group, "__len__"):
            raise TypeError(f"expected a list of arrays, as npref.step.learnable makes of a Params and an Update has in dW, "
                            f"got {type(group).__name__}")
    if any(a is None for group in groups for a in group):
        raise TypeError("expected arrays, got None: leave out biases that a layer does not have")
    return array_module(*(a for group in groups for a in group))
