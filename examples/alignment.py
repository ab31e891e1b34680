"""Measure how well NP, INP and ANP, with or without decorrelation, agree with backpropagation.

    python examples/alignment.py --samples 1 2 5 10 20 50 100 200 500 1000          angle against noise samples, Figures 2 and 6 (v2)
    python examples/alignment.py --sigma2 1e-10 1e-8 1e-6 1e-4 1e-2 1 --samples 1   angle against the noise's variance, Figure 7
    python examples/alignment.py --epochs 0 1 5 --methods np dnp                    angle along training
    python examples/alignment.py --split --repeats 20                               bias and variance

The batch is the first --batch-size training images. The reference is BP's gradient in the same network; at epoch 0, R is I, and a
decorrelated method is its plain form. A network for epoch E > 0 is trained by the method itself, at its default rate, in DIR/train-METHOD.
Each repeat is a step with noise of its own, which no training step has.
"""

import installed  # noqa: F401  isort: skip  says so in one line where npref is not
import argparse
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from cifar10 import (
    FLAGS,
    Bar,
    add_place_flags,
    any_letters,
    asked_folder,
    data_flag,
    exit_code,
    new_folder,
    note,
    plotter,
    say_data,
    spare_pictures,
    warn_in_lines,
)

from npref import METHODS, bp_update, datasets, get_backend, init_params, precision, split_method
from npref.alignment import add_estimate, angles, bias_and_variance, running_means
from npref.batches import input_moments, prepare, targets
from npref.command_line import Parser, quoted
from npref.config import Config
from npref.datasets import Dataset
from npref.runlog import changes, check_same_run, environment, going_on, lock, read_checkpoint, read_log, unlock, write_log
from npref.step import compute_update
from npref.train import Diverged, Interrupted, params_from, train

NOISY = [method for method in METHODS if split_method(method)[0] != "bp"]
FIRST_STEP = 2**63  # of the measurements' noise; training counts its steps from 0
PIECE = 50  # noise samples between two looks at the clock and the signals
MOST_SAMPLES = 10**8  # a list of so many pieces still fits the memory

# Flags that are part of the measurement's configuration: name -> (type, choices or None; default; help). A list default: a list of those.
MEASURED = {
    "methods": (str, NOISY, ["np", "anp", "inp"], "rules to measure"),
    "samples": (int, None, [1, 10, 100], "numbers K of noise samples; the largest is what is computed, the others on the way"),
    "sigma2": (float, None, [1e-6], "variances of the noise"),
    "epochs": (int, None, [0], "measure after so many epochs of training; 0 is initialisation"),
    "repeats": (int, None, 1, "independent repetitions"),
    "split": (bool, None, False, "also split the squared error, over ‖g‖², into bias and variance; needs --repeats of 2 or more"),
    **{name: (str, FLAGS[name][0], None, FLAGS[name][1]) for name in ("arch", "dataset", "backend", "dtype", "noise", "loss", "anp_norm")},
    "batch_size": (int, None, None, "images in the mini-batch, measured and trained on"),
    **{name: (int, None, None, FLAGS[name][1]) for name in ("seed", "limit_train")},
    "limit_test": (int, None, None, FLAGS["limit_test"][1] + ", after an epoch of training"),
    "train_samples": (int, None, 1, "noise samples K per update, in training"),
    "train_sigma2": (float, None, 1e-6, "variance of the noise, in training"),
}
DEFAULTS = {name: default if default is not None else Config.__dataclass_fields__[name].default
            for name, (_, _, default, _) in MEASURED.items()}
TRAINING_ONLY = ("limit_test", "train_samples", "train_sigma2")


def parse(arguments):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (kind, choices, _, text) in MEASURED.items():
        default = DEFAULTS[name]
        options = dict(default=argparse.SUPPRESS)  # so that the namespace tells which flags were given
        if kind is bool:
            options |= dict(action="store_true", help=f"{text} (default: no)")
        else:
            shown = " ".join(map(str, default)) if isinstance(default, list) else "all" if default is None else default
            options |= dict(type=kind, help=f"{text} (default: {shown})", **(dict(nargs="+") if isinstance(default, list) else {}))
            options |= dict(choices=choices) if choices else dict(metavar=kind.__name__.upper())
        parser.add_argument("--" + name.replace("_", "-"), **options)
    add_place_flags(parser, "alignment.h5 and pictures (default: runs/TIME-alignment-ARCH-DATASET)", "pictures",
                    "the measurement in DIR, or in --out; its configuration is kept")
    args = parser.parse_args(arguments)
    return args, {name: getattr(args, name) for name in MEASURED if hasattr(args, name)}


def main(arguments=None):
    any_letters()
    args, given = parse(arguments)
    return exit_code(lambda stop: run(args, given, stop))


def run(args, given, stop):
    with ExitStack() as held:
        return measure_in(asked_folder(args), held, args, given, stop)


def measure_in(out, held, args, given, stop):
    """Measure in this folder, made if need be (None: a new one). held: an ExitStack for its lock."""
    there = out is not None and out.is_dir()
    if there:  # what is read there from here on, nobody else is writing
        held.callback(unlock, lock(out))
    say, saved = (lambda *words: None) if args.quiet else lambda *words: print(*words, flush=True), None
    if args.resume is not None:
        saved = read_log(out / "alignment.h5")
        if not saved["config"].keys() <= DEFAULTS.keys():
            raise ValueError(f"{out / 'alignment.h5'} is not of a measurement of angles, or of another version of npref")
    config = checked({**DEFAULTS, **(saved["config"] if saved else {}), **given})
    plots = plotter(args.plot, "alignment_plots")
    backend = get_backend(config["backend"])  # before any work, to say so if it cannot work
    data = datasets.load(config["dataset"], args.data_dir, config["limit_train"], config["limit_test"])
    say_data(f"{data.source}; {len(data.x_train)} training samples", config["dataset"], data, args.quiet)
    config["dataset"] = data.name
    if data.regression and config["loss"] == "cce":
        raise ValueError(f"{data.name} has real targets, not labels, and loss=cce needs labels: use mse or mse-mean")
    record = {**environment(backend), "data": data.fingerprint(), "samples": data.completeness,
              "batch": str(min(config["batch_size"], len(data.x_train)))}  # images measured
    groups = {}  # finished by an earlier call: {(method, epoch, sigma2): rows}
    if saved:
        check_same_run(saved, config, record["data"], out, apart=())
        for row in saved["rows"]:
            groups.setdefault((row["method"], row["epoch"], row["sigma2"]), []).append(row)
    if saved and saved["status"] == "finished":
        record = saved["environment"]  # nothing is left to do
    elif saved:
        if changed := changes(saved["environment"], record):
            note(f"{changed}: angles may differ in their last digits from those kept", args.quiet)
        record = going_on(saved["environment"], record)
    if 0 in config["epochs"] and any(split_method(method)[1] for method in config["methods"]):
        say("note: at epoch 0 R is I, so that a decorrelated method gives its plain form's angles")
    if not there:
        if out is None:
            out = new_folder(Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-alignment-{config['arch']}-{data.name}")
            held.callback(remove_empty, out)
        out.mkdir(parents=True, exist_ok=True)
        held.callback(unlock, lock(out))
    if not saved and (out / "alignment.h5").exists():
        raise FileExistsError(f"{out} holds a measurement already (alignment.h5): resume it, or choose another folder")
    if plots is not None:
        spare_pictures(out, ("alignment.h5",), *(f"{name}.{kind}" for kind in ("png", "svg")
                                                for name in ("alignment", "alignment-epoch*", "sigma2", "training", "split")))
    bar = Bar(args.quiet, unit="pass")
    try:
        with warn_in_lines():
            log = measure_all(Work(config, data, backend.xp, out, record, bar, stop, say, args.quiet), groups)
    except Interrupted as error:
        raise Interrupted(f"{error}; what is finished is saved, go on with --resume {quoted(out)}{data_flag(args)}") from None
    except Diverged as error:
        raise Diverged(f"{error}; what is finished is in {out}") from None
    finally:
        bar.close()
    print(table(log))
    print(f"log: {out / 'alignment.h5'}")
    for picture in draw(plots, log, out) if plots else []:
        print(f"picture: {picture}")
    if plots is None and args.plot is None:
        print("picture: none, matplotlib cannot be imported; pip install -e \".[examples]\"")
    return 0


def remove_empty(folder):
    with suppress(OSError):  # it is not, once a measurement has begun
        folder.rmdir()


def checked(config):
    """The configuration with its lists in order. ValueError for what cannot be measured, or would change nothing."""
    for name in ("methods", "samples", "sigma2", "epochs"):
        values = config[name]
        if len(set(values)) < len(values):
            raise ValueError(f"{name} must be different ones, got {' '.join(map(str, values))}")
        config[name] = values if name == "methods" else sorted(values)
    for name, least, most in (("samples", 1, MOST_SAMPLES), ("epochs", 0, 2**63 - 1), ("repeats", 1, 2**63 - 1)):
        values = config[name] if isinstance(config[name], list) else [config[name]]
        if not least <= values[0] <= values[-1] <= most:
            raise ValueError(f"{name} must be at least {least} and at most {most}, got {' '.join(map(str, values))}")
    if config["split"] and config["repeats"] < 2:
        raise ValueError(f"split needs repeats of 2 or more, got {config['repeats']}: a variance takes two independent estimates")
    for name in TRAINING_ONLY:
        if config["epochs"] == [0] and config[name] != DEFAULTS[name]:
            raise ValueError(f"{name}={config[name]} has no effect: epochs are 0, nothing is trained; leave it out")
    if config["anp_norm"] != "network" and not {"anp", "danp"} & set(config["methods"]):
        raise ValueError(f"anp_norm={config['anp_norm']} has no effect: neither anp nor danp is measured; leave it out")
    for method in config["methods"]:
        for sigma2 in config["sigma2"]:
            measured_config(config, method, sigma2)
        try:
            trained_config(config, method, 1)
        except (ValueError, TypeError) as error:  # the same names are checked before, as what is measured
            raise type(error)(f"train_{error}") from None
    return config


COMMON = ("arch", "dataset", "backend", "dtype", "batch_size", "noise", "loss", "seed", "limit_train", "limit_test")


def measured_config(config, method, sigma2):
    return Config(method=method, sigma2=sigma2, samples=config["samples"][-1], **common(config, method))


def trained_config(config, method, epochs):
    return Config(method=method, epochs=epochs, sigma2=config["train_sigma2"], samples=config["train_samples"], **common(config, method))


def common(config, method):
    """What measuring and training share."""
    return {name: config[name] for name in (*COMMON, *(["anp_norm"] if split_method(method)[0] == "anp" else []))}


@dataclass(frozen=True)
class Work:
    """What a measurement needs besides its numbers; see `measure_in`."""

    config: dict
    data: Dataset
    xp: object
    out: Path
    record: dict
    bar: Bar
    stop: object
    say: object
    quiet: bool


def measure_all(work, groups):
    """Measure every group that is not in `groups` yet; the log is written after each. Returns it."""
    config, xp = work.config, work.xp
    network = measured_config(config, config["methods"][0], config["sigma2"][0]).network(work.data.x_train.shape[1:], work.data.classes)
    B = min(config["batch_size"], len(work.data.x_train))
    x = prepare(xp.asarray(work.data.x_train[:B]), config["dtype"], input_moments(work.data))
    t = targets(xp.asarray(work.data.y_train[:B]), work.data.classes, config["dtype"])
    todo = [(m, epoch, sigma2) for m in range(len(config["methods"])) for epoch in config["epochs"] for sigma2 in config["sigma2"]
            if (m, epoch, sigma2) not in groups]
    for m, epoch in {m: epoch for m, epoch, _ in reversed(todo) if epoch > 0}.items():  # a method's first
        check_trained(work, config["methods"][m], epoch)
    cost = lambda m: passes(config["methods"][m], config["samples"][-1], network) * config["repeats"]  # noqa: E731
    total, done, at, params = sum(cost(m) for m, _, _ in todo), 0, None, None

    def save(status):
        write_log(work.out / "alignment.h5", config, work.record, [row for rows in groups.values() for row in rows], status)

    try:
        save("running")
        for m, epoch, sigma2 in todo:
            method = config["methods"][m]
            if at != (m, epoch):
                params = None  # so that two networks need not fit the memory
                at, params = (m, epoch), network_after(work, network, method, epoch)
            tick = lambda n, done=done: work.bar.show(done + n, total)  # noqa: E731
            groups[m, epoch, sigma2] = measure(work, network, params, x, t, (m, epoch, sigma2), tick)
            done += cost(m)
            save("running")
            work.bar.close()
            work.say(f"measured: {method} after {epoch} epochs, sigma2 {sigma2:g}")
        save("finished")
    except (Interrupted, Diverged) as error:
        save("interrupted" if isinstance(error, Interrupted) else f"diverged: {error}")
        raise
    return read_log(work.out / "alignment.h5")


def passes(method, K, network):
    """Noisy passes of K noise samples: INP's are one a layer."""
    return K * len(network.layers) if split_method(method)[0] == "inp" else K


def network_after(work, network, method, epoch):
    """The parameters after so many epochs of the method's own training, which DIR/train-METHOD keeps: trained further if need be."""
    config = trained_config(work.config, method, max(epoch, 1))
    if epoch == 0:
        return init_params(network, init=config.init, seed=config.seed, dtype=config.dtype, decorrelate=split_method(method)[1], xp=work.xp)
    folder = work.out / f"train-{method}"
    checkpoint, bar = folder / "checkpoint.h5", Bar(work.quiet)
    begun = checkpoint.exists()
    if not begun or read_checkpoint(checkpoint)["counters"]["epoch"] < epoch:
        rows = train(config, work.data, folder, resume=begun, progress=bar.show, stop=work.stop)
        try:
            for row in rows:
                bar.close()
                work.say(f"trained: {method}, epoch {row['epoch']}, test loss {row['test_loss']:.4f}, {row['seconds']:.1f} s")
        finally:
            bar.close()
    return params_from(read_checkpoint(checkpoint)["arrays"], work.xp)


def check_trained(work, method, epoch):
    """Raise ValueError if DIR/train-METHOD is there and cannot become the network after so many epochs."""
    folder = work.out / f"train-{method}"
    if (folder / "checkpoint.h5").exists():
        saved = read_checkpoint(folder / "checkpoint.h5")
        check_same_run(saved, asdict(trained_config(work.config, method, epoch)), work.record["data"], folder)
        if saved["counters"]["epoch"] > epoch:
            raise ValueError(f"{folder} is trained for {saved['counters']['epoch']} epochs, and epoch {epoch} is not measured: "
                             "choose another --out")


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is looked for
def measure(work, network, params, x, t, group, tick):
    """The rows of one (method, epoch, sigma2): angles over the repeats, and bias and variance, for every K and layer."""
    (m, epoch, sigma2), config = group, work.config
    method = config["methods"][m]
    rule = measured_config(config, method, sigma2)
    if epoch == config["epochs"][0]:
        few = slice(precision.MEASURED)
        precision.warn_of_rounding(rule, precision.rounding_error(rule, network, params, x[few], t[few]))
    exact = bp_update(network, params, x, t, loss=config["loss"]).dW
    found, spreads = {K: [] for K in config["samples"]}, {}
    stops = sorted({*found, *range(PIECE, config["samples"][-1], PIECE)})
    for r in range(config["repeats"]):
        def update(samples, step=FIRST_STEP + r):
            if work.stop():
                raise Interrupted(f"stopped while measuring {method} after {epoch} epochs at sigma2 {sigma2:g}")
            return compute_update(rule, network, params, x, t, step, samples)

        for K, mean in running_means(update, stops):
            if K in found:
                found[K].append(angles(mean, exact))  # (L,)
                if not np.isfinite(found[K][-1]).all():
                    raise ValueError(f"the update of {method} after {epoch} epochs is not finite at sigma2={sigma2:g}: take a smaller "
                                     "sigma2, or dtype float64")
                if config["split"]:
                    spreads[K] = add_estimate(spreads.get(K), mean)
            tick(passes(method, r * config["samples"][-1] + K, network))
    rows = []
    for K, repeats in found.items():
        a = np.array(repeats)  # (repeats, L)
        sem = a.std(axis=0, ddof=1) / len(a) ** 0.5 if len(a) > 1 else np.full(len(network.layers), np.nan)
        parts = bias_and_variance(spreads[K], exact) if config["split"] else None
        for l in range(len(network.layers)):
            bias2, variance = (parts.relative_bias2[l], parts.relative_variance[l]) if parts else (np.nan, np.nan)
            rows.append({"method": m, "sigma2": sigma2, "samples": K, "passes": passes(method, K, network), "epoch": epoch, "layer": l + 1,
                         "angle": float(a[:, l].mean()), "angle_min": float(a[:, l].min()), "angle_max": float(a[:, l].max()),
                         "angle_sem": float(sem[l]), "bias2": float(bias2), "variance": float(variance)})
    return rows


def table(log):
    """Angles in degrees, and bias² and variance over ‖g‖², a line a method, epoch, σ² and K, a column a layer."""
    config, rows = log["config"], log["rows"]
    L = max(row["layer"] for row in rows)
    quantities = [("angle", "8.2f")] + ([("bias2", "8.3g"), ("variance", "8.3g")] if config["split"] else [])
    head = f"{'method':<6} {'epoch':>5} {'sigma2':>9} {'K':>5} {'passes':>6}  {'':<8} "
    lines = [head + "".join(f"{f'layer {l}':>9}" for l in range(1, L + 1))]
    for i in range(0, len(rows), L):  # the layers of a K stand together
        row = rows[i]
        for name, form in quantities:
            start = (f"{config['methods'][row['method']]:<6} {row['epoch']:>5} {row['sigma2']:>9.4g} {row['samples']:>5} {row['passes']:>6}"
                     if name == "angle" else " " * 35)
            lines.append(f"{start}  {name:<8} " + "".join(f" {format(rows[i + l][name], form)}" for l in range(L)))
    return "\n".join(lines)


def draw(plots, log, out):
    """The pictures that the measurement has the numbers for: their paths."""
    config = log["config"]
    several = {name: len(config[name]) > 1 for name in ("samples", "sigma2", "epochs")}
    if several["samples"] or not (several["sigma2"] or several["epochs"]):
        for epoch in config["epochs"]:
            name = f"alignment-epoch{epoch}.png" if several["epochs"] else "alignment.png"
            yield (plots.plot_alignment if several["samples"] else plots.plot_angles)(log, out / name, epoch=epoch)
    if several["sigma2"]:
        yield plots.plot_sigma2(log, out / "sigma2.png")
    if several["epochs"]:
        yield plots.plot_alignment_training(log, out / "training.png")
    if config["split"]:
        yield plots.plot_split(log, out / "split.png")


if __name__ == "__main__":
    sys.exit(main())
