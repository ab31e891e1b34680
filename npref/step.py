"""One training step: a mini-batch's noise, update and new parameters, and whether all of it is finite.

`train` is this loop and a log:

    state, moments = initial_state(config, network), input_moments(data, config.inputs)  # prepare, targets: npref.batches, too
    x_train, y_train = data.x_train, data.y_train
    n, B = len(x_train), min(config.batch_size, len(x_train))
    batches = -(-n // B)
    for epoch in range(config.epochs):  # both count from 0 here, and from 1 in a log
        state.epoch = epoch
        order = noise.permutation(config.seed, epoch, n)
        for i in range(batches):
            chosen = order[i * B : (i + 1) * B]
            x, t = prepare(x_train[chosen], config.dtype, moments), targets(y_train[chosen], network.units[-1], config.dtype)
            update, (total, right) = training_step(config, network, state, x, t, step=epoch * batches + i)

A network or a rule of one's own goes to `train(config, data, out, network=..., rule=...)`, or here to `training_step`. A rule is a function
such as `compute_update`, which also needs noise. For example NP by central differences; `layers.to_rows` lays (B, *shape) out as the
products are, (B*P, n_out), and x* is (B*P, n_in); its losses and δL may be of any loss (test losses are config.loss's):

    def central_differences(config, network, params, x, t, step):
        (group,) = noise_groups(config, network, step, range(len(x)), array_module(x), samples=range(1))
        eps = [eps_l[0] for eps_l in group]  # (B, *shape) per layer, of variance σ²
        clean, up, down = (forward(network, params, x, e) for e in (None, eps, [-e for e in eps]))
        losses, above, below = (loss(config.loss, trace.y, t) for trace in (clean, up, down))  # (B,), in float64
        dL = (above - below) / 2
        coefficient = (dL / (config.sigma2 * len(x))).astype(x.dtype)  # the mean over the batch is in it
        errors = [to_rows((e.T * coefficient).T) for e in eps]
        dW = [(error.T @ x_star).reshape(W.shape) for error, x_star, W in zip(errors, clean.x_star, params.W)]
        db = [None if b is None else error.sum(axis=0) for error, b in zip(errors, params.b)]
        return Update(tuple(dW), tuple(db), losses, dL[None], clean)
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from math import isfinite

import numpy as np

from . import noise, rules
from .backend import array_module, to_host, to_host_later
from .decorrelation import decorrelation_step
from .execution import mark_nonfinite, samples_budget
from .functions import correct, finite
from .network import Params, Trace, init_params
from .optim import adam_step, init_adam, sgd_step


class Diverged(RuntimeError):
    """A loss, an update, an R or, at an epoch's end, a weight is no longer finite; the message names method, epoch, step and the first
    such quantity."""


@dataclass
class State:
    """A run between two steps. totals: sums over the epoch's clean passes so far, and its seconds."""

    params: Params
    adam: object  # AdamState, or None for SGD
    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of this epoch done
    totals: dict = field(default_factory=lambda: {"loss": 0.0, "correct": 0.0, "seen": 0, "seconds": 0.0})
    rows: list = field(default_factory=list)


def learnable(params):
    """W and b in one list: what the optimiser changes (R has its own rule)."""
    return [p for p in (*params.W, *params.b) if p is not None]


def initial_state(config, network, xp=np):
    """The State before the first step, on the device of `xp`."""
    _, decorrelate = rules.split_method(config.method)
    params = init_params(network, init=config.init, seed=config.seed, dtype=config.dtype, decorrelate=decorrelate, xp=xp)
    return State(params, None if config.optimizer == "sgd" else init_adam(learnable(params)))


def noise_groups(config, network, step, rows, xp, samples=None):
    """The noise of one step as groups that fit a memory budget: an iterator of tuples, (k, B, *shape) per layer.
    samples: a range of the step's noise samples; None for the configured K, range(K)."""
    rule, _ = rules.split_method(config.method)
    samples = range(config.samples) if samples is None else samples
    size = rules.group_size(network, rule, len(rows), np.dtype(config.dtype).itemsize, len(samples), samples_budget(xp))
    for k in range(0, len(samples), size):
        yield _noise(config, network, step, samples[k : k + size], rows, xp, noise.NOISE)


def _noise(config, network, step, samples, rows, xp, stream):
    return noise.draw_layers(xp, config.noise, list(enumerate(network.shapes[1:])), config.sigma2**0.5, seed=config.seed, step=step,
                             samples=samples, rows=rows, dtype=config.dtype, stream=stream)


def compute_update(config, network, params, x, t, step, samples=None):
    """The configured rule on one mini-batch x (B, *input_shape), t (B, n_out), with the noise of that step, which counts from 0: an
    `Update`. samples: as for `noise_groups`."""
    xp, rows = array_module(x, t), range(len(x))
    rule, _ = rules.split_method(config.method)
    if rule == "bp":
        return rules.bp_update(network, params, x, t, loss=config.loss)
    groups = noise_groups(config, network, step, rows, xp, samples)
    if rule == "inp":
        return rules.inp_update(network, params, x, t, groups, loss=config.loss)
    baseline = None
    if config.noisy_baseline:
        baseline = tuple(eps[0] for eps in _noise(config, network, step, range(1), rows, xp, noise.BASELINE))
    if rule == "np":
        return rules.np_update(network, params, x, t, groups, sigma2=config.sigma2, loss=config.loss, baseline=baseline)
    if rule == "anp":
        return rules.anp_update(network, params, x, t, groups, loss=config.loss, baseline=baseline, norm=config.anp_norm)
    raise ValueError(f"method {config.method!r} has no case in npref.step.compute_update")


def training_step(config, network, state, x, t, step, rule=compute_update):
    """One mini-batch: update W, b and R in place. Returns the `Update` and (summed loss, number correct) as floats.

    The one transfer to the host is a vector that also tells whether a loss, δL, an update or an R is no longer finite: then Diverged. (A
    weight shows in the next step's loss, but not behind step and sign; `train` looks at weights after every epoch.)
    """
    update, outcome = start_step(config, network, state, x, t, step, rule)
    return update, outcome()


@np.errstate(over="ignore", invalid="ignore")  # non-finite numbers are looked for, and reported as Diverged
def start_step(config, network, state, x, t, step, rule=compute_update):
    """`training_step` without waiting for a GPU: the second result is a function that waits, and returns or raises as that does."""
    update = rule(config, network, state.params, x, t, step)
    if rule is not compute_update:
        _check_update(update, state.params, t.shape, getattr(rule, "__name__", type(rule).__name__))
    apply_update(state.params, state.adam, update, lr=config.lr, alpha=config.decor_lr, eps_hat=config.optimizer == "adam-eps-hat")
    return update, _outcome(config, state, update, t, step)


def rule_name(rule):
    """What a log calls a rule of one's own, the same in every process. A partial's arguments are in it, arrays by a digest. Lambdas and
    objects of one place have one name. Raises TypeError for what is no function."""
    if not callable(rule):
        raise TypeError(f"rule must be a function as npref.step.compute_update is, got {rule!r}")
    if isinstance(rule, partial):
        named = [*map(_argument_name, rule.args), *(f"{name}={_argument_name(value)}" for name, value in rule.keywords.items())]
        return f"{rule_name(rule.func)} with {', '.join(named)}"
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{named.__module__}.{named.__qualname__}"


def _argument_name(value):
    if getattr(value, "ndim", 0) > 0:
        with suppress(TypeError):  # another library's array
            return f"{value.dtype} {value.shape} {sha256(np.ascontiguousarray(to_host(value))).hexdigest()[:16]}"
    if callable(value):
        return rule_name(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        named = map(_argument_name, value)
        value = f"{type(value).__name__}({', '.join(named if isinstance(value, (list, tuple)) else sorted(named))})"
    elif isinstance(value, dict):
        value = f"dict({', '.join(f'{name}={_argument_name(v)}' for name, v in value.items())})"
    text = re.sub(" at 0x[0-9A-Fa-f]+", "", str(value))  # addresses
    return text if len(text) <= 1000 else f"{text[:20]}... of {len(text)} letters {sha256(text.encode()).hexdigest()[:16]}"


def _check_update(update, params, targets, rule):
    """Raise TypeError or ValueError, before anything changes, for what a rule of one's own must not return. targets: t's shape."""
    if not isinstance(update, rules.Update):
        raise TypeError(f"rule {rule} must return an Update, got {type(update).__name__}")
    for what, parameters in (("dW", params.W), ("db", params.b)):
        given, expected = getattr(update, what), [None if p is None else p.shape for p in parameters]
        shapes = [getattr(d, "shape", None) for d in given] if isinstance(given, (tuple, list)) else type(given).__name__
        if shapes != expected:
            raise ValueError(f"rule {rule} must return {what} of the shapes {expected}, got {shapes}")
    if getattr(update.losses, "shape", None) != targets[:1]:
        found = getattr(update.losses, "shape", update.losses)
        raise ValueError(f"rule {rule} must return losses {targets[:1]}, one a sample, got {found}")
    if update.dL is not None and not hasattr(update.dL, "shape"):
        raise TypeError(f"rule {rule} must return dL as an array, or None, got {type(update.dL).__name__}")
    if not isinstance(update.trace, Trace):
        raise TypeError(f"rule {rule} must return the trace of its clean pass, got {type(update.trace).__name__}")
    if update.trace.y.shape != targets:
        raise ValueError(f"rule {rule} must return the trace of one pass, with outputs {targets}, got {update.trace.y.shape}")


def apply_update(params, adam, update, *, lr, alpha=None, eps_hat=False):
    """What follows an `Update`, in place: W and b by Adam, or by SGD if `adam` is None, and R, where there is one, by its own rule, which
    needs `alpha`."""
    decorrelates = any(R is not None for R in params.R)
    if decorrelates:
        alpha = finite("alpha", alpha)  # before anything has changed
    updates = [d for d in (*update.dW, *update.db) if d is not None]
    if adam is None:
        sgd_step(learnable(params), updates, lr)
    else:
        adam_step(learnable(params), updates, adam, lr, eps_hat=eps_hat)
    if decorrelates:
        decorrelation_step(params.R, update.trace, alpha)


def _outcome(config, state, update, t, step):
    """`start_step`'s second result. The report of the step is made now, where the arrays are, and read when it is asked for."""
    xp = array_module(t)
    named = [("the loss of the clean pass", update.losses), ("the loss difference δL", update.dL),
             *((f"the update ΔW_{l + 1}", d) for l, d in enumerate(update.dW)),
             *((f"the bias update Δb_{l + 1}", d) for l, d in enumerate(update.db)),
             *((f"R_{l}", R) for l, R in enumerate(state.params.R))]
    named = [(name, a) for name, a in named if a is not None]
    B = len(t)
    report = xp.zeros(2 * B + len(named))  # each sample's loss, and whether it is right; a mark of each quantity
    report[:B] = update.losses
    report[B : 2 * B] = correct(update.trace.y, t)
    mark_nonfinite(xp, [a for _, a in named], report[2 * B :])
    report_on_host = to_host_later(report)
    if xp is not np:
        named = [(name, None) for name, _ in named]  # a GPU's arrays change and go before the report is read

    def outcome():
        numbers = report_on_host()
        for (name, a), mark in zip(named, numbers[2 * B :].tolist()):
            if not isfinite(mark) and (a is None or not np.isfinite(a).all()):  # a CPU's mark is a sum, which may overflow alone
                raise diverged(config, state, step, name)
        return float(numbers[:B].sum()), float(numbers[B : 2 * B].sum())

    return outcome


def diverged(config, state, step, quantity):
    """The Diverged that names this quantity and smaller rates to try."""
    rates = f"lr than {config.lr:g}" + (f" or decor_lr than {config.decor_lr:g}" if state.params.R[0] is not None else "")
    return Diverged(f"{config.method} diverged in epoch {state.epoch + 1}, step {step + 1}: {quantity} is not finite; "
                    f"try a smaller {rates}")
