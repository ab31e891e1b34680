"""Results set beside the paper's figures: the tables, and the curves that are drawn."""

import math

from lr_search import best as best_rate
from lr_search import doubt
from recipes import RECIPES
from results import alignment_of, figures, runs_of, samples, search_shown, value


def table(names, logs):
    """The paper's figures and ours, recipe by recipe, as Markdown: mean (min to max) over seeds of peak accuracy or final loss.

    Of several seeds' accuracies also the peaks of the mean curve, which are lower: the text does not say which of the two it gives.
    """
    lines = []
    for name in names:
        recipe = RECIPES[name]
        lines += [f"**{name}**: {recipe.title} ({recipe.source})", ""]
        if recipe.alignment:
            log = alignment_of(name, logs)
            lines += [alignment_table(log) if log else "not run", ""]
            continue
        if recipe.searches_only:
            lines += ["| arch | method | paper's rate | here | rates tried | note |", "|---|---|---|---|---|---|"]
            lines += [rate_line(cell, logs) for cell in recipe.cells] + [""]
            continue
        lines += ["| arch | method | paper, train / test | here, train | here, test | test − paper | of the mean curve | seeds | epochs "
                  "| paper's train at epoch | note |", "|---|---|---|---|---|---|---|---|---|---|---|"]
        lines += [cell_line(cell, runs_of(cell, logs)) for cell in recipe.cells] + [""]
    return "\n".join(lines)


def cell_line(cell, runs):
    """One line of the table."""
    paper = " / ".join("–" if value is None else f"{value:g}" for value in cell.paper)
    if not runs:
        return f"| {cell.arch} | {label(cell)} | {paper} | not run | not run | | | | | | |"
    logs = list(runs.values())
    ended = [log for log in logs if log["rows"] and not log["status"].startswith("diverged")]
    ended, left_out = alike(ended)
    ended = ended or [log for log in logs if log["rows"] and figures(log)[0] == "accuracy"]  # a peak stays one; a final loss does not
    notes = [f"{left_out} of another length left out"] if left_out else []
    config = logs[0]["config"]
    if config["dataset"] != cell.dataset:
        notes.append(f"on {config['dataset']}")
    notes += [part] if (part := part_of_data(logs[0])) else []
    backends = sorted({log["config"]["backend"] for log in ended or logs})
    notes += [f"on {' and '.join(backends)}"] if backends != ["numpy"] else []
    if cell.search is not None:
        rates = sorted({log["config"]["lr"] for log in ended or logs})
        notes.append(f"lr {' and '.join(f'{lr:.3g}' for lr in rates)}" + (f" (paper {cell.paper_lr:g})" if cell.paper_lr else ""))
    diverged = [f"seed {seed} in epoch {len(log['rows']) + 1}" for seed, log in runs.items() if log["status"].startswith("diverged")]
    if diverged:
        notes.append(f"diverged: {', '.join(diverged)}")
    epochs = sorted({len(log["rows"]) for log in ended or logs})
    epochs = " to ".join(map(str, epochs[:: max(1, len(epochs) - 1)]))
    if not ended:
        return f"| {cell.arch} | {label(cell)} | {paper} | diverged | diverged | | | {len(runs)} | {epochs} | | {'; '.join(notes)} |"
    train, test = ([value(log)[i] for log in ended] for i in (0, 1))
    difference = f"{sum(test) / len(test) - cell.paper[1]:+.1f}" if cell.paper[1] is not None else ""
    quantity, *means = mean_curves(ended)
    peaks = " / ".join(f"{max(mean):.1f}" for mean in means) if quantity == "accuracy" and len(ended) > 1 else ""
    reached = ""  # the text does not say how long the paper trained
    if quantity == "accuracy" and cell.paper[0] is not None:
        reached = next((str(epoch) for epoch, accuracy in enumerate(means[0], 1) if round(accuracy, 1) >= cell.paper[0]), "never")
    return (f"| {cell.arch} | {label(cell)} | {paper} | {spread(train)} | {spread(test)} | {difference} | {peaks} | "
            f"{len(runs) - left_out} | {epochs} | {reached} | {'; '.join(notes)} |")


def part_of_data(log):
    """How much of the data a run had, where it may not have been all."""
    config = log["config"]
    return samples(log) if config["limit_train"] or config["limit_test"] or config["dataset"] == "tiny-imagenet" else ""


def rate_line(cell, logs):
    """One line of a table of learning rates: what the search found."""
    paper, log = "" if cell.paper_lr is None else f"{cell.paper_lr:g}", search_shown(cell, logs)
    if log is None:
        return f"| {cell.arch} | {label(cell)} | {paper} | not run | | |"
    config, rates = log["config"], [f"{row['lr']:.3g}" for row in log["rows"]]
    notes = [f"{config['epochs']} epochs a rate"] + ([f"on {config['dataset']}"] if config["dataset"] != cell.dataset else [])
    notes += [f"{config['limit_train']} training samples"] if config["limit_train"] else []
    notes += [words] if (words := doubt(log["rows"]).removeprefix("; ")) else []
    best = f"{best_rate(log['rows']):.3g}"
    return f"| {cell.arch} | {label(cell)} | {paper} | {best} | {rates[0]} to {rates[-1]} | {'; '.join(notes)} |"


def alignment_table(log):
    """Angles at the ends of what was varied, in degrees: one line a method."""
    rows, methods = log["rows"], log["config"]["methods"]
    varied = next((name for name in ("samples", "sigma2", "epoch") if len({row[name] for row in rows}) > 1), "samples")
    values = sorted({row[varied] for row in rows})
    chosen = values if len(values) < 5 else [values[i * (len(values) - 1) // 4] for i in range(5)]
    layers = sorted({row["layer"] for row in rows})
    lines = [f"| method | layer | {' | '.join(f'{varied} {v:g}' for v in chosen)} |", "|---|---|" + "---|" * len(chosen)]
    for m, method in enumerate(methods):
        for layer in layers:
            angles = {row[varied]: row["angle"] for row in rows if (row["method"], row["layer"]) == (m, layer)}
            lines.append(f"| {method.upper()} | {layer} | " + " | ".join(f"{angles[v]:.1f}°" if v in angles else "" for v in chosen) + " |")
    config = log["config"]
    return "\n".join([*lines, "", f"On {config['dataset']} ({log['environment']['samples']}), {config['arch']}, loss {config['loss']}; "
                                  f"{config['repeats']} repeats. A noise sample is one noisy pass for NP and ANP, one a layer for INP."])


def spread(values):
    """The mean, and from where to where."""
    digits = 1 if max(values) >= 1 else 3
    text = f"{sum(values) / len(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def label(cell):
    """A cell's name in tables and legends."""
    words = {"noisy_baseline": "noisy baseline", "samples": "K = {}", "bias": "biases", "init": "{} weights", "inputs": "{} inputs",
             "optimizer": "{}", "loss": "{} loss", "anp_norm": "norm of the {}", "lr": "lr {:g}", "decor_lr": "α = {:g}"}
    shared = cell.search is not None or ("optimizer", "sgd") in cell.options  # by all cells of such recipes, and so not told
    told = [(name, value) for name, value in cell.options
            if not shared or name not in ("loss", "optimizer") and (name, value) != ("anp_norm", "layer")]
    return ", ".join([cell.method.upper(), *(words.get(name, name + " {}").format(value) for name, value in told)])


def alike(logs):
    """(the runs with as many epochs as most of them have, how many others there are): a mean over runs of any length says nothing."""
    lengths = [len(log["rows"]) for log in logs]
    usual = max(lengths, key=lambda length: (lengths.count(length), length), default=0)
    return [log for log in logs if len(log["rows"]) == usual], len(logs) - lengths.count(usual)


def mean_curves(logs):
    """(quantity, train, test): the mean over these runs, epoch by epoch for as long as all of them are."""
    quantity = figures(logs[0])[0]
    return quantity, *([sum(values) / len(values) for values in zip(*curves)] for curves in zip(*(figures(log)[1:] for log in logs)))


def curves(cells, logs):
    """What plots.plot_curves draws: [(arch and data, quantity, [(label, method, emphasis, [(train, test), ...one a seed])])].

    emphasis is 1, less for fewer noise samples than the most, and "noisy" for a noisy baseline.
    """
    panels = {}
    most = max((dict(cell.options).get("samples", 1) for cell in cells), default=1)
    for cell in cells:
        found = runs_of(cell, logs).values()
        begun = [log for log in found if log["rows"]]
        runs = alike([log for log in begun if log["status"] == "finished"])[0] or begun  # a seed cut short would cut its line short
        if not runs:
            continue
        options = dict(cell.options)
        k = options.get("samples", 1)
        emphasis = 0.35 + 0.65 * math.log(k) / math.log(most) if k < most and cell.method not in ("bp", "dbp") else 1.0
        emphasis = "noisy" if "noisy_baseline" in options else emphasis
        quantity = figures(runs[0])[0]
        text = label(cell) + (f", {len(runs)} of {len(found)} seeds" if len(runs) < len(found) else "")
        text += ", diverged" * any(log["status"].startswith("diverged") for log in runs)
        data = ",\n".join([runs[0]["config"]["dataset"], *filter(None, [part_of_data(runs[0])])])
        panels.setdefault((cell.arch, data, quantity), []).append((text, cell.method, emphasis, [figures(log)[1:] for log in runs]))
    return [(f"{arch}, {data}", quantity, lines) for (arch, data, quantity), lines in panels.items()]
