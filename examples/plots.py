"""Pictures of runs, from their logs. Needs matplotlib."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter


def plot_run(log, path):
    """Accuracy, loss and, where there is decorrelation, correlation against epochs, as a PNG at `path`; returns the path."""
    rows = log["rows"]
    epochs = [row["epoch"] for row in rows]
    panels = [("accuracy", "accuracy"), ("loss", "loss per sample")]
    if "correlation" in rows[0]:
        panels.append(("correlation", "mean squared correlation"))
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for axes, (quantity, label) in zip(figure.subplots(1, len(panels)), panels):
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
    config = log["config"]
    figure.suptitle(f"{config['method']} on {config['arch']}, {config['dataset']}, lr {config['lr']:g}, seed {config['seed']}", fontsize="medium")
    figure.savefig(path, dpi=120)
    return path
