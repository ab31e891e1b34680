"""Pictures of angles, bias and variance, from the logs of examples/alignment.py. Needs matplotlib."""

from matplotlib.figure import Figure
from plots import colour, line_style, save

from npref.config import Config
from npref.rules import split_method

HATCHES = {"np": "", "inp": "//", "anp": ".."}  # for bars, so that they are told apart in grey


def plot_alignment(log, path, epoch=None, sigma2=None):
    """Angle to BP's update against noise samples K (above) and noisy passes (below), a panel a layer, a line a method; returns the path.

    Bands run from the least to the greatest of the repeats. log: of examples/alignment.py; epoch, sigma2: as `_measured` takes them.
    """
    config, rows = log["config"], _measured(log, epoch=epoch, sigma2=sigma2)
    layers = sorted({row["layer"] for row in rows})
    figure = Figure(figsize=(max(2.7 * len(layers) + 0.8, 5), 5.4), layout="constrained")
    grid = figure.subplots(2, len(layers), sharey=True, squeeze=False)
    for axes_row, quantity, label in zip(grid, ("samples", "passes"), ("noise samples K", "noisy passes")):
        for axes, layer in zip(axes_row, layers):
            _angle_lines(axes, config, [row for row in rows if row["layer"] == layer], quantity)
            axes.set_xscale("log")
            axes.set(xlabel=label, title=f"layer {layer}" if quantity == "samples" else None)
        axes_row[0].set_ylabel("angle to BP's update (degrees)")
    grid[0, 0].legend(frameon=False, fontsize="small")
    return _save_measured(figure, log, rows, path, "epoch", "sigma2")


def plot_sigma2(log, path, layer=2, epoch=None, samples=None):
    """Angle to BP's update against σ², for one layer (None: a panel each); the shading is 1e-6 to 1e-4, flat in the paper (Figure 7).

    epoch, samples: if None, as `_measured` takes them. A network with fewer layers gives its last. Returns the path.
    """
    config, rows = log["config"], _measured(log, epoch=epoch, samples=samples)
    layers = sorted({row["layer"] for row in rows})
    layers = layers if layer is None else [min(layer, layers[-1])]
    figure = Figure(figsize=(max(3.2 * len(layers) + 0.8, 5), 3.6), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, l in zip(panels, layers):
        axes.axvspan(1e-6, 1e-4, color="0.9", zorder=0)
        _angle_lines(axes, config, [row for row in rows if row["layer"] == l], "sigma2")
        axes.set_xscale("log")
        axes.set(xlabel="noise variance σ²", title=f"layer {l}")
    panels[0].set_ylabel("angle to BP's update (degrees)")
    panels[0].legend(frameon=False, fontsize="small")
    return _save_measured(figure, log, rows, path, "epoch", "samples")


def plot_angles(log, path, epoch=None, sigma2=None, samples=None):
    """Angle to BP's update as bars, a group a layer, a bar a method, with the standard error over repeats (v1, Figure 1); returns the path.

    Beside it the forward passes of one update. epoch, sigma2, samples: if None, as `_measured` takes them.
    """
    config, rows = log["config"], _measured(log, epoch=epoch, sigma2=sigma2, samples=samples)
    layers, width = sorted({row["layer"] for row in rows}), 0.8 / len(config["methods"])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    for m, method in enumerate(config["methods"]):
        chosen = [row for row in rows if row["method"] == m]
        rule, decorrelates = split_method(method)
        look = dict(facecolor=colour(method), hatch=HATCHES.get(rule, "xx"), edgecolor="black" if decorrelates else "white",
                    label=method.upper())
        left.bar([row["layer"] + (m - (len(config["methods"]) - 1) / 2) * width for row in chosen], [row["angle"] for row in chosen], width,
                 yerr=[row["angle_sem"] for row in chosen], capsize=2, **look)
        right.bar(method.upper(), 1 + chosen[0]["passes"], **look)  # the clean pass is one more
    left.set(xlabel="layer", ylabel="angle to BP's update (degrees)", xticks=layers)
    right.set(ylabel="forward passes an update")
    left.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _save_measured(figure, log, rows, path, "epoch", "sigma2", "samples")


def plot_alignment_training(log, path, sigma2=None, samples=None):
    """Angle to BP's update against epochs of training, a panel a layer; samples: its greatest K if None."""
    config = log["config"]
    rows = _measured(log, sigma2=sigma2, samples=config["samples"][-1] if samples is None else samples)
    layers = sorted({row["layer"] for row in rows})
    figure = Figure(figsize=(max(2.7 * len(layers) + 0.8, 5), 3.2), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, layer in zip(panels, layers):
        _angle_lines(axes, config, [row for row in rows if row["layer"] == layer], "epoch")
        axes.set_xticks(config["epochs"])
        axes.set(xlabel="epoch", title=f"layer {layer}")
    panels[0].set_ylabel("angle to BP's update (degrees)")
    panels[0].legend(frameon=False, fontsize="small")
    return _save_measured(figure, log, rows, path, "sigma2", "samples")


def plot_split(log, path, epoch=None, sigma2=None, samples=None):
    """Variance and bias² of the update over ‖g‖² against the layer, on a log scale; epoch, sigma2, samples: as for `_measured`.

    bias² is an unbiased estimate, so where there is little it may come out negative. Its size is then drawn, with a cross over it: an
    estimate that noise could well have made.
    """
    config, rows = log["config"], _measured(log, epoch=epoch, sigma2=sigma2, samples=samples)
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    for axes, quantity, label in zip(figure.subplots(1, 2, sharey=True), ("bias2", "variance"), ("bias²", "variance")):
        for m, method in enumerate(config["methods"]):
            chosen = [row for row in rows if row["method"] == m]
            axes.semilogy([row["layer"] for row in chosen], [abs(row[quantity]) for row in chosen], label=method.upper(),
                          **line_style(method))
            below = [row for row in chosen if row[quantity] < 0]
            axes.semilogy([row["layer"] for row in below], [-row[quantity] for row in below], "kx", ms=9)
        axes.set_xticks(sorted({row["layer"] for row in rows}))
        axes.set(xlabel="layer", title=f"{label} / ‖g‖²" + (" (cross: below 0)" if quantity == "bias2" else ""))
        axes.tick_params(labelleft=True)
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return _save_measured(figure, log, rows, path, "epoch", "sigma2", "samples")


def _measured(log, **chosen):
    """The rows of one epoch, σ² or K each; ValueError for one that was not measured.

    None stands for the log's least, but for σ² = 1e-6, the paper's, where that was measured.
    """
    rows = log["rows"]
    for name, value in chosen.items():
        known = sorted({row[name] for row in rows})
        if value is None:
            value = 1e-6 if name == "sigma2" and 1e-6 in known else known[0]
        if value not in known:
            raise ValueError(f"{name} {value} was not measured: expected one of {', '.join(map(str, known))}")
        rows = [row for row in rows if row[name] == value]
    return rows


def _angle_lines(axes, config, rows, quantity):
    """One line a method: the mean angle against `quantity`, and a band from the least to the greatest."""
    for m, method in enumerate(config["methods"]):
        chosen = sorted((row for row in rows if row["method"] == m), key=lambda row: row[quantity])
        x, mean, least, greatest = ([row[name] for row in chosen] for name in (quantity, "angle", "angle_min", "angle_max"))
        axes.plot(x, mean, label=method.upper(), **line_style(method))
        axes.fill_between(x, least, greatest, color=colour(method), alpha=0.15, lw=0)
    axes.grid(alpha=0.3)


def _save_measured(figure, log, rows, path, *fixed):
    """Title, PNG at `path` and SVG beside it, whose bytes depend on nothing but the numbers; returns the path."""
    config = log["config"]
    texts = {"epoch": f"epoch {rows[0]['epoch']}", "sigma2": f"σ² = {rows[0]['sigma2']:g}", "samples": f"K = {rows[0]['samples']}"}
    repeats = f"{config['repeats']} repeat" + "s" * (config["repeats"] > 1)
    other = [words.format(config[name]) for name, words in (("loss", "loss {}"), ("noise", "{} noise"), ("anp_norm", "norm of the {}"))
             if config.get(name, default := Config.__dataclass_fields__[name].default) != default]
    batch = log["environment"].get("batch", config["batch_size"])  # older logs lack it, and anp_norm
    parts = [config["arch"], config["dataset"], *(texts[name] for name in fixed), *other, f"B = {batch}", repeats]
    figure.suptitle(", ".join(parts), fontsize="medium")
    return save(figure, path)
