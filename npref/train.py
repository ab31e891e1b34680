"""Training: the mini-batch loop, evaluation, what a run leaves, resume."""

import time
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path

import numpy as np

from . import noise, rules, runlog
from .backend import array_module, get_backend, synchronize, to_host
from .batches import input_moments, prepare, resolved, targets
from .config import Config
from .datasets import Dataset
from .decorrelation import mean_squared_correlation, warn_of_overshoot
from .execution import keep_freed_memory
from .functions import check_derivative, correct
from .functions import loss as loss_of
from .network import Network, Params, forward, without_decorrelation
from .optim import AdamState
from .precision import MEASURED, rounding_error, warn_of_rounding
from .step import Diverged, State, compute_update, diverged, initial_state, learnable, rule_name, start_step

CORRELATION_IMAGES = 1000  # the first so many training images are measured for correlation after every epoch
AHEAD = 4  # how many steps Python may be ahead of a GPU: now and then it is held up for longer than a step takes there


class Interrupted(RuntimeError):
    """The run was asked to stop; it has saved itself and can be resumed. The message says where it stood."""


@np.errstate(over="ignore", invalid="ignore")
def evaluate(network, params, inputs, y, loss="cce", moments=None, batch=1000):
    """Mean loss and accuracy (nan for real targets) with fixed weights; no noise. moments: of `input_moments`. One transfer to the host.

    Raises ValueError for labels that no output stands for, and where inputs and y are not equally many, TypeError for what are no Params.
    """
    xp = array_module(inputs, y)
    if not isinstance(params, Params):
        raise TypeError(f"expected Params, got {type(params).__name__}: params_from makes them of a checkpoint's arrays")
    if not len(inputs) == len(y) > 0:
        raise ValueError(f"expected one label or target for each of at least one input, got {len(y)} for {len(inputs)}")
    cheaper = without_decorrelation(params)
    dtype, classes = params.W[0].dtype, network.units[-1]
    total = xp.zeros(3)
    for i in range(0, len(inputs), batch):
        t = targets(y[i : i + batch], classes, dtype)
        out = forward(network, cheaper, prepare(inputs[i : i + batch], dtype, moments)).y
        total += xp.stack([loss_of(loss, out, t).sum(), correct(out, t).sum().astype(xp.float64), t.sum(dtype=xp.float64)])
    mean_loss, accuracy, hot = to_host(total) / len(inputs)
    if y.ndim == 1 and hot != 1:
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {len(y) - round(hot * len(y))} others among {len(y)}")
    return float(mean_loss), float(accuracy) if y.ndim == 1 else float("nan")


def train(config, data, out=None, *, network=None, rule=None, resume=False, progress=None, stop=None):
    """Train as configured: an iterator of one dict per epoch (epoch, step, train and test loss and accuracy, correlation, seconds).
    Without labels there is no accuracy.

    out: folder for log.h5 and checkpoint.h5, created if need be; one that holds a run already is refused unless resume.
    The process then keeps up to a gigabyte of what its arrays free (`execution.keep_freed_memory`).

    network: a Network of one's own; config's architecture and layer options then mean nothing, but for the default lr. rule: a function as
    `step.compute_update` is, in place of the method's own; whether there is an R follows config.method. Resume with the same ones (a log
    knows a rule by its name).

    progress(done, of): called after every batch. stop(): asked before every batch; if true the run saves itself and raises
    Interrupted. data: a Dataset; config's limits are applied to it.

    Raises ValueError and the like at once, for what cannot work; Diverged from the iterator; log and checkpoint then stay. Warns at
    once with NoiseFloorWarning where rounding is a large part of δL (of npref's own rules); its measure is in the log's environment, as
    `rounding`; and with OvershootWarning where α is so large that R's first step overshoots.
    """
    if not isinstance(config, Config):
        raise TypeError(f"expected a Config, got {type(config).__name__}")
    if not isinstance(data, Dataset):
        raise TypeError(f"expected a Dataset, as npref.datasets.load returns, got {type(data).__name__}")
    if out == "":
        raise ValueError("out must be a folder, got an empty name; the current one is .")
    if not isinstance(out, (str, PathLike, type(None))):
        raise TypeError(f"out must be a folder, a str or a Path, or None, got {type(out).__name__}")
    config = replace(config, dataset=data.name)
    backend = get_backend(config.backend)
    keep_freed_memory()
    data = data.limited(config.limit_train, config.limit_test)
    moments = input_moments(data, config.inputs)
    rule = None if rule is compute_update else rule
    own = {} if rule is None else {"rule": rule_name(rule)}
    own |= {} if network is None else {"network": str(_fitting(network, data, config, rule))}
    network = config.network(data.x_train.shape[1:], data.classes) if network is None else network
    if data.regression and config.loss == "cce":
        raise ValueError(f"{data.name} has real targets, not labels, and loss=cce needs labels: use mse or mse-mean")
    environment = {**runlog.environment(backend), "data": data.fingerprint(), "samples": data.completeness,
                   "inputs": resolved(data, config.inputs), "input_shape": list(network.input_shape), "outputs": data.classes, **own}
    out = None if out is None else Path(out)
    if out is not None and out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: expected a folder for the run, new or empty")
    if resume and out is None:
        raise ValueError("resume needs the folder of the run")

    def save(state, status, checkpoint=True):
        if out is not None:
            if checkpoint:
                _save_checkpoint(out / "checkpoint.h5", config, environment, state)
            runlog.write_log(out / "log.h5", asdict(config), environment, state.rows, status)

    with ExitStack() as held:  # the lock on the folder, until the last epoch or an error
        if out is not None and not resume:
            out.mkdir(parents=True, exist_ok=True)
        if out is not None and out.is_dir():
            held.callback(runlog.unlock, runlog.lock(out))
        taken = [name for name in ("log.h5", "checkpoint.h5") if out is not None and (out / name).exists()]
        if taken and not resume:
            remedy = "resume it" if "checkpoint.h5" in taken else "its checkpoint is gone: remove the log"
            raise FileExistsError(f"{out} holds a run already ({', '.join(taken)}): {remedy}, or choose another folder")
        if resume:
            state, before = _resumed(config, environment, out / "checkpoint.h5", backend.xp)
        else:
            state, before = initial_state(config, network, backend.xp), {}
        if state.epoch >= config.epochs:
            if _behind(out / "log.h5", state, config):  # should it have been killed before its last log
                status = "finished" if state.epoch == config.epochs else "running"
                runlog.write_log(out / "log.h5", asdict(config), before, state.rows, status)
            raise ValueError(f"{out} has finished {state.epoch} epochs already: ask for more than that to go on")
        if resume:
            environment |= runlog.going_on(before, environment)
        base, decorrelate = rules.split_method(config.method)
        x, y = (backend.xp.asarray(a[:MEASURED]) for a in (data.x_train, data.y_train))
        x, t = prepare(x, config.dtype, moments), targets(y, data.classes, config.dtype)
        if base != "bp" and rule is None:
            error = float(before["rounding"]) if "rounding" in before else rounding_error(config, network, state.params, x, t)
            environment["rounding"] = f"{error:.2g}"  # as the run started
            warn_of_rounding(config, error)
        if decorrelate and not resume:  # R is I
            with np.errstate(over="ignore", invalid="ignore"):
                trace = forward(network, state.params, x)
            warn_of_overshoot(config.decor_lr, trace)
        save(state, "running", checkpoint=not resume)
        rule = compute_update if rule is None else rule
        epochs = _epochs(held.pop_all(), config, network, rule, data, moments, backend.xp, state, save, progress, stop)
        next(epochs)
        return epochs


def _epochs(held, *arguments):
    """The rows of `_epochs_of`, after None: a generator that has begun gives the folder back when it is closed or dropped."""
    with held:
        yield None
        yield from _epochs_of(*arguments)


def _epochs_of(config, network, rule, data, moments, xp, state, save, progress, stop):
    x_train, y_train, x_test, y_test = (xp.asarray(a) for a in (data.x_train, data.y_train, data.x_test, data.y_test))
    moments = moments and tuple(map(xp.asarray, moments))
    n, batch_size = len(x_train), min(config.batch_size, len(x_train))
    batches = -(-n // batch_size)
    outcomes = deque()  # of steps that a GPU may still be at, while Python launches more

    def settle(most):
        while len(outcomes) > most:
            loss, right = outcomes.popleft()()
            state.totals["loss"] += loss
            state.totals["correct"] += right

    try:
        while state.epoch < config.epochs:
            order = xp.asarray(noise.permutation(config.seed, state.epoch, n))
            while state.batch < batches:
                if stop is not None and stop():
                    settle(0)
                    save(state, "interrupted")
                    raise Interrupted(f"stopped in epoch {state.epoch + 1} after {state.batch} of {batches} steps")
                began = time.perf_counter()
                chosen = order[state.batch * batch_size : (state.batch + 1) * batch_size]
                x, t = prepare(x_train[chosen], config.dtype, moments), targets(y_train[chosen], data.classes, config.dtype)
                step = state.epoch * batches + state.batch
                outcomes.append(start_step(config, network, state, x, t, step, rule)[1])
                state.batch += 1
                settle(0 if xp is np or state.batch == batches else AHEAD)
                state.totals["seen"] += len(t)
                state.totals["seconds"] += time.perf_counter() - began
                if progress is not None:
                    progress(state.batch, batches)
            row = _epoch_row(config, network, state, step, (x_train, y_train), (x_test, y_test), moments)
            state = State(state.params, state.adam, epoch=state.epoch + 1, rows=[*state.rows, row])
            save(state, "running" if state.epoch < config.epochs else "finished")
            yield dict(row)  # the caller's to change
    except Diverged as error:
        synchronize(xp)  # reports of steps after this one are on their way to memory of the host that is given back unread
        save(state, f"diverged: {error}", checkpoint=False)
        raise


@np.errstate(over="ignore", invalid="ignore")
def _epoch_row(config, network, state, step, train_set, test_set, moments):
    began, totals = time.perf_counter(), state.totals
    test_loss, test_accuracy = evaluate(network, state.params, *test_set, config.loss, moments)
    if not np.isfinite(test_loss):
        raise diverged(config, state, step, "the test loss")
    xp = array_module(state.params.W[0])
    names = [f"{name}_{l}" for name in "Wb" for l, a in enumerate(getattr(state.params, name), 1) if a is not None]  # as `learnable`
    for of, arrays in (("", learnable(state.params)), ("Adam's second moment of ", state.adam.v if state.adam else ())):
        for name, array in zip(names, arrays):  # v overflows first where updates are huge, and would freeze its weight
            if not bool(xp.isfinite(array).all()):
                raise diverged(config, state, step, of + name)
    row = {"epoch": state.epoch + 1, "step": step + 1, "train_loss": totals["loss"] / totals["seen"],
           "train_accuracy": totals["correct"] / totals["seen"], "test_loss": test_loss, "test_accuracy": test_accuracy}
    if config.eval_train:
        row["eval_train_loss"], row["eval_train_accuracy"] = evaluate(network, state.params, *train_set, config.loss, moments)
    if state.params.R[0] is not None:  # on the same images every epoch, as the measure depends on their number
        trace = forward(network, state.params, prepare(train_set[0][:CORRELATION_IMAGES], config.dtype, moments))
        c = [float(to_host(mean_squared_correlation(x_star))) for x_star in trace.x_star]
        row |= {"correlation": sum(c) / len(c), **{f"correlation_{l}": c_l for l, c_l in enumerate(c)}}
    row["seconds"] = totals["seconds"] + time.perf_counter() - began
    return row if train_set[1].ndim == 1 else {name: value for name, value in row.items() if not name.endswith("accuracy")}


def _save_checkpoint(path, config, environment, state):
    arrays = {f"params/{name}/{l}": to_host(a) for name in ("W", "b", "R")
              for l, a in enumerate(getattr(state.params, name)) if a is not None}
    counters = {"epoch": state.epoch, "batch": state.batch, **{f"total_{k}": v for k, v in state.totals.items()}}
    if state.adam is not None:
        arrays |= {f"optimizer/{name}/{i}": to_host(a) for name in ("m", "v") for i, a in enumerate(getattr(state.adam, name))}
        counters["t"] = state.adam.t
    runlog.write_checkpoint(path, asdict(config), environment, state.rows, arrays, counters)


def _behind(path, state, config):
    """Whether the log lacks epochs that the checkpoint has, or does not say that these are all; not if the run has diverged since."""
    try:
        log = runlog.read_log(path)
    except (OSError, ValueError):  # missing or damaged
        return True
    if log["status"].startswith("diverged"):
        return False
    return len(log["rows"]) < state.epoch or state.epoch == config.epochs and log["status"] != "finished"


def params_from(arrays, xp=np):
    """The Params among a checkpoint's arrays, `runlog.read_checkpoint(path)["arrays"]`, on the device of `xp`.

    Raises ValueError where there are none. Their network is Config(**saved["config"]).network(shape, outputs), which the checkpoint's
    environment has as input_shape and outputs; or one's own, if the environment has a network.
    """
    if "params/W/0" not in arrays:
        raise ValueError(f"expected a checkpoint's arrays, params/W/0 and so on, got {', '.join(arrays) or 'none'}")
    layers = range(sum(name.startswith("params/W/") for name in arrays))
    return Params(*(tuple(xp.asarray(arrays[f"params/{name}/{l}"]) if f"params/{name}/{l}" in arrays else None for l in layers)
                    for name in ("W", "b", "R")))


def _fitting(network, data, config, rule):
    """The network, if it can be trained on these data by this rule."""
    if not isinstance(network, Network):
        raise TypeError(f"expected a Network, got {type(network).__name__}")
    if (network.input_shape, network.units[-1]) != (data.x_train.shape[1:], data.classes):
        raise ValueError(f"network must take {data.x_train.shape[1:]} to {data.classes} outputs, as {data.name} has them, got "
                         f"{network.input_shape} to {network.units[-1]}")
    if rule is None and rules.split_method(config.method)[0] == "bp":
        for layer in network.layers:
            check_derivative(config.method, layer.activation)
    return network


def _resumed(config, environment, path, xp):
    """The state and the environment in a checkpoint, once it is sure that it is of this very run, which goes on in `environment`."""
    saved = runlog.read_checkpoint(path)
    try:
        runlog.check_same_run(saved, asdict(config), environment["data"], path.parent, own=environment)
        counters, arrays = saved["counters"], saved["arrays"]
        params, adam = params_from(arrays, xp), None
        if config.optimizer != "sgd":
            count = range(len(learnable(params)))
            adam = AdamState(*([xp.asarray(arrays[f"optimizer/{name}/{i}"]) for i in count] for name in ("m", "v")), t=counters["t"])
        totals = {name: counters[f"total_{name}"] for name in ("loss", "correct", "seen", "seconds")}
        if len(saved["rows"]) != counters["epoch"]:
            raise KeyError(f"row of each of {counters['epoch']} epochs")
        return State(params, adam, counters["epoch"], counters["batch"], totals, saved["rows"]), saved["environment"]
    except KeyError as error:
        raise ValueError(f"{path}: a checkpoint without {error.args[0]}; start a new run, or use a copy of it") from error
