"""Pictures of runs, from their logs, for cifar10.py, reproduce.py, lr_search.py and benchmark.py. Needs matplotlib."""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from npref.rules import split_method
from npref.runlog import replace_file

# One colour a rule, everywhere; decorrelated forms are solid, plain ones dashed.
COLOURS = {"bp": "black", "np": "C3", "inp": "C2", "anp": "C0"}
MARKERS = {"bp": "D", "np": "s", "inp": "^", "anp": "o"}  # full for decorrelated forms, hollow for plain ones: also readable in grey

VARIANTS = "x+*v<>1234hp"
BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml"}  # of files


def plot_run(log, path):
    """Accuracy, loss and, where there is decorrelation, correlation against epochs, as a PNG at `path`; returns the path."""
    rows = log["rows"]
    epochs = [row["epoch"] for row in rows]
    panels = [("accuracy", "accuracy"), ("loss", "loss per sample")]["test_accuracy" not in rows[0] :]
    if "correlation" in rows[0]:
        panels.append(("correlation", "mean squared correlation"))
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axes, (quantity, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        if quantity == "correlation":
            layers = [name for name in rows[0] if name.startswith("correlation_")]
            for i, name in enumerate(layers):
                axes.semilogy(epochs, [row[name] for row in rows], ".-", color=str(0.7 * i / len(layers)), label=f"$R_{i}$")
        else:
            axes.plot(epochs, [row[f"train_{quantity}"] for row in rows], ".-", color="C0", label="train, running mean")
            if f"eval_train_{quantity}" in rows[0]:
                axes.plot(epochs, [row[f"eval_train_{quantity}"] for row in rows], ".:", color="C2", label="train, fixed weights")
            axes.plot(epochs, [row[f"test_{quantity}"] for row in rows], ".--", color="C1", label="test")
        if quantity == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    config, environment = log["config"], log["environment"]
    method = environment.get("rule", config["method"]).rpartition(".")[2]  # a rule or network of one's own is not the configured one
    arch = "a network of one's own" if "network" in environment else config["arch"]
    figure.suptitle(f"{method} on {arch}, {config['dataset']}, lr {config['lr']:g}, seed {config['seed']}", fontsize="medium")
    _write(figure, path, "png", dpi=120)
    return path


def plot_curves(panels, path):
    """Train and test curves, a row of panels a network: mean over seeds with a band from least to most; returns the path.

    panels: as tables.curves gives them. PNG at `path`, and an SVG beside it.
    """
    heights = [max(3.2, 0.2 * len(lines) + 0.6) for *_, lines in panels]  # inches, of which a line of the legend takes 0.2
    longest = max(len(label) for *_, lines in panels for label, *_ in lines)
    figure = Figure(figsize=(9 + 0.08 * max(0, longest - 20), sum(heights)), layout="constrained")  # 0.08 a letter of the legend
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row", height_ratios=heights)
    for row, (title, quantity, lines) in zip(grid, panels):
        for axes, part, which in zip(row, ("train", "test"), (0, 1)):
            drawn = []
            for label, method, emphasis, runs in lines:
                shortest = min(len(run[which]) for run in runs)
                values = np.array([run[which][:shortest] for run in runs])  # (seeds, epochs)
                epochs = np.arange(1, shortest + 1)
                style = line_style(method)
                if emphasis == "noisy":
                    style |= dict(ls=":", marker="x")
                else:
                    style |= dict(color=blend(style["color"], emphasis))
                again = drawn.count((method, emphasis))  # a variant of what has been drawn
                drawn.append((method, emphasis))
                if again:
                    style |= dict(marker=VARIANTS[again % len(VARIANTS) - 1], color=blend(style["color"], max(0.3, 1 - again / 10)))
                axes.plot(epochs, values.mean(axis=0), label=label, lw=1.3, markevery=max(1, shortest // 8), **style)
                axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.2, lw=0)
            seeds = sorted({len(runs) for *_, runs in lines})
            of = f"{' to '.join(map(str, seeds))} seed{'s' if seeds != [1] else ''}"
            axes.set(title=f"{title}: {part}", xlabel="epoch", ylabel=("accuracy (%)" if quantity == "accuracy" else "loss") + f", {of}")
            if quantity == "loss":
                axes.set_yscale("log")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        row[1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, path)


def plot_searches(logs, path):
    """Training loss against learning rate, a panel an architecture and data set, a line a method; returns the path.

    The best rate is marked; a diverged one has no point.
    """
    places = list(dict.fromkeys((log["config"]["arch"], log["config"]["dataset"]) for log in logs.values()))
    figure = Figure(figsize=(4.5 * len(places), 3.6), layout="constrained")
    for axes, place in zip(figure.subplots(1, len(places), squeeze=False)[0], places):
        shown = [log for log in logs.values() if (log["config"]["arch"], log["config"]["dataset"]) == place]
        for log in shown:
            rows = [row for row in log["rows"] if row["train_loss"] == row["train_loss"]]
            best = min(rows, key=lambda row: row["train_loss"])
            method = log["config"]["method"]
            style = line_style(method)
            axes.loglog([row["lr"] for row in rows], [row["train_loss"] for row in rows], label=method.upper(), **style)
            axes.plot(best["lr"], best["train_loss"], "*", ms=12, color=style["color"])
        start = max(log["rows"][0]["train_loss"] for log in shown)
        axes.set(title=", ".join(place), xlabel="learning rate (star: the best)", ylabel="training loss")
        if axes.get_ylim()[1] > 10 * start:  # a rate too large may end at 1e60
            axes.set_ylim(0.8 * np.nanmin([row["train_loss"] for log in shown for row in log["rows"]]), 10 * start)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    return save(figure, path)


def line_style(method):
    """Colour and marker by rule; decorrelated methods solid with full markers, plain ones dashed with hollow ones."""
    rule, full = split_method(method)
    return dict(color=colour(method), marker=MARKERS.get(rule, "P"), ms=4, ls="-" if full else "--", mfc=None if full else "white")


def colour(method):
    """Its rule's, another for a method that is none of the eight."""
    return COLOURS.get(split_method(method)[0], "C4")


def blend(colour, share):
    """A colour mixed with white: all of it at share 1."""
    return tuple(1 - share * (1 - c) for c in to_rgb(colour))


def save(figure, path):
    """PNG at `path` and SVG beside it, with nothing in them that changes from one time to the next; returns the path."""
    beside = Path(path).with_suffix(".svg")
    _spare(beside, "svg")  # before either is written
    _write(figure, path, "png", dpi=120, metadata={"Software": None})
    with rc_context({"svg.hashsalt": "npref"}):
        _write(figure, beside, "svg", metadata={"Date": None})
    return path


def _spare(path, kind):
    """Raise FileExistsError for a file in a picture's place that is none."""
    if Path(path).is_file() and not Path(path).read_bytes().startswith(BEGINNINGS[kind]):
        raise FileExistsError(f"{path} is there already, and no picture: move it, or choose another folder")


def _write(figure, path, kind, **options):
    """The picture as a whole, or the one that is there stays."""
    _spare(path, kind)
    drawn = BytesIO()
    figure.savefig(drawn, format=kind, **options)
    replace_file(path, drawn.getvalue())


def plot_scaling(rows, path):
    """Seconds a training step against K, depth and batch size, with straight lines through the ends, and the floor; returns the path.

    rows: dicts of examples/benchmark.py; a panel takes those that differ in nothing else than its quantity.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    common = {"samples": 1, "arch": "fc3", "batch_size": 1000}
    panels = [("samples", "noise samples K", lambda row: row["samples"]), ("arch", "hidden layers", lambda row: int(row["arch"][2:])),
              ("batch_size", "batch size", lambda row: row["batch_size"])]
    for axes, (name, label, quantity) in zip(figure.subplots(1, 3), panels):
        for method in dict.fromkeys(row["method"] for row in rows):
            chosen = sorted((row for row in rows if row["method"] == method
                             and all(row[other] == value for other, value in common.items() if other != name)), key=quantity)
            x, step, floor = [quantity(row) for row in chosen], [row["step"] for row in chosen], [row["floor"] for row in chosen]
            marker = "o" if split_method(method)[1] else "s"
            axes.plot(x, step, marker, color=colour(method), label=method.upper())
            axes.plot([x[0], x[-1]], [step[0], step[-1]], "-", lw=0.7, color=colour(method))
            axes.plot(x, floor, "_", ms=10, color=colour(method))
        axes.set(xlabel=label, ylabel="seconds a step (dash: products alone)", ylim=(0, None), xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    _write(figure, path, "png", dpi=120)
    return path
