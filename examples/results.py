"""Results of runs: gathered from HDF5 logs, found for the paper's cells, and kept as small text.

A log as text: a line "# " with configuration, environment and status as JSON, a line of column names, then one line a row (an epoch,
a learning rate or an angle), separated by tabs. `read_text` gives what `npref.runlog.read_log` gives of the log itself.
"""

import json
import math
import shlex
import sys
from pathlib import Path

import alignment
from cifar10 import flags
from lr_search import MOST, PATIENCE, ended, next_rate
from lr_search import best as best_rate
from recipes import RECIPES

from npref.backend import BACKENDS
from npref.config import Config, default_lr
from npref.rules import METHODS, split_method
from npref.runlog import OWN, read_log, replace_file

# The data sets that may stand in a cell's place, best first; a run on another than the cell's own is labelled with it.
STAND_INS = {
    "cifar10": ("cifar10", "synthetic"),
    "cifar100": ("cifar100", "synthetic-cifar100"),
    "tiny-imagenet": ("tiny-imagenet", "synthetic-tiny-imagenet"),
    "sarcos": ("sarcos-dedup", "sarcos", "sarcos-split-test", "synthetic-sarcos"),
}
FULL = {"cifar10": "50000 of 50000 + 10000 of 10000"}  # of logs that were written before `Dataset.completeness`
SUMMARY = ("run", "recipes", "method", "arch", "dataset", "samples", "options", "seed", "epochs", "status", "lr", "decor_lr", "quantity",
           "peak_train", "peak_test", "peak_epoch", "final_train", "final_test", "minutes", "backend", "device", "threads", "revision",
           "command")


def options_of(config):
    """What makes a cell besides method, architecture and data: {field: value} of what differs from the defaults; the rate is not in it."""
    elsewhere = ("method", "arch", "dataset", "seed", "epochs", "lr", "backend", "limit_train", "limit_test", "eval_train")
    return {f.name: getattr(config, f.name) for f in Config.__dataclass_fields__.values()
            if f.name not in elsewhere and getattr(config, f.name) != f.default}


def run_name(config, *, seed=True, lr=True):
    """A folder's name for this configuration; epochs are not in it, as a run can be gone on with."""
    words = [config.dataset, config.arch, config.method]
    words += [f"{name.replace('_', '-')}{'' if value is True else f'-{value}'}" for name, value in options_of(config).items()]
    if lr and (config.optimizer == "sgd" or config.lr != default_lr(config.method, config.arch)):
        words.append(f"lr-{config.lr:.6g}")
    words += [f"{name.replace('_', '-')}-{getattr(config, name)}" for name in ("limit_train", "limit_test") if getattr(config, name)]
    words += [config.backend] if config.backend != "numpy" else []
    return "-".join([*words, *([f"s{config.seed}"] if seed else [])])


def search_name(config, shorter=False):
    """A folder's name for a search with this configuration, of its own if it tries rates for fewer epochs than the recipe's."""
    return f"search-{run_name(config, lr=False, seed=False)}" + (f"-epochs-{config.epochs}" if shorter else "")


def measurement_name(recipe, dataset, limit_train, backend):
    """A folder's name for the recipe's measurement of angles."""
    return "-".join(["alignment", recipe, dataset, *([f"limit-train-{limit_train}"] if limit_train else []),
                     *([backend] if backend != "numpy" else [])])


def without_backend(name):
    """A folder's name without its backend's: the same for one run on NumPy and on CuPy."""
    return "-".join(word for word in name.split("-") if word not in BACKENDS)


def config_of(log):
    """The Config of the log of a training run, or of a search, at no rate of its own."""
    if kind_of(log) == "train":
        return Config(**log["config"])
    return Config(**{name: value for name, value in log["config"].items() if name in Config.__dataclass_fields__} | {"lr": 1.0})


def kind_of(log):
    """"train", "search" or "alignment"."""
    if "start" in log["config"]:
        return "search"
    return "train" if "lr" in log["config"] else "alignment"


def check_name(name, log):
    """Raise ValueError unless a folder of this name is where this log belongs: `reproduce.py run` looks up what it needs by name."""
    kind, config = kind_of(log), log["config"]
    if kind == "train":
        names = [run_name(config_of(log))]
    elif kind == "search":
        names = [search_name(config_of(log)), search_name(config_of(log), shorter=True)]
        how = config["start"], config["factor"], config.get("seeds", [0])
        as_long = config["patience"] >= PATIENCE and config["most"] >= MOST
        if name in names and not (as_long and any(
                cell.search is not None and how[0] <= cell.search and how[1:] == (2, [*range(recipe.search_seeds)])
                for recipe in RECIPES.values() for cell in recipe.cells if matches(cell, config_of(log)))):
            raise ValueError(f"it is not the recipe's search, but one from {how[0]:g} on by a factor {how[1]:g} with seeds {how[2]}, "
                             f"patience {config['patience']} and at most {config['most']} rates: move it elsewhere")
    else:
        names = [measurement_name(recipe, config["dataset"], config["limit_train"], config.get("backend", "numpy"))
                 for recipe in RECIPES if is_measurement(config, recipe)]
    if name not in names:
        belongs = " or ".join(names) or "to no recipe"
        raise ValueError(f"it is of something else than its name says ({belongs}): rename it, or move it elsewhere")


def named(name, log):
    """The name that a log goes by: a training run's own, or this one, if it is true."""
    if kind_of(log) == "train":
        return run_name(config_of(log))
    check_name(name, log)
    return name


def is_measurement(config, recipe):
    """Whether angles of this configuration are the recipe's measurement: on any data and backend, with bias and variance or without."""
    if not RECIPES[recipe].alignment or alignment_name(recipe) != recipe:
        return False
    asked = {**alignment.DEFAULTS, **alignment.parse([*RECIPES[recipe].alignment])[1]}
    return all({**alignment.DEFAULTS, **config}[key] == value for key, value in asked.items()
               if key not in ("dataset", "limit_train", "backend", "split"))


def write_text(path, log):
    """`log` as text at `path`, five significant digits a number; learning rates, which runs are found by, in full."""
    names = list(log["rows"][0]) if log["rows"] else []
    head = {"config": log["config"], "environment": log["environment"], "status": log["status"]}

    def word(name, number):
        return f"{number:.5g}" if isinstance(number, float) and name != "lr" else str(number)

    lines = ["# " + json.dumps(head), "\t".join(names), *("\t".join(word(name, row[name]) for name in names) for row in log["rows"])]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def read_text(path):
    """What `write_text` wrote, as a dict like `read_log`'s. Raises ValueError for another kind of file."""
    head, names, *lines = (Path(path).read_bytes().decode(errors="replace") + "\n\n").splitlines()
    if not head.startswith("# {"):
        raise ValueError(f"{path}: expected a log as text, beginning with '# {{', got {head[:40]!r}")
    try:
        rows = [{name: int(word) if word.lstrip("-").isdecimal() else float(word)
                 for name, word in zip(names.split("\t"), line.split("\t"), strict=True)} for line in lines if line]
        log = {**json.loads(head[2:]), "rows": rows}
        check_complete(log)
        return log
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}); take a copy of it, or delete it and record the run again") from error


def check_complete(log):
    """Raise ValueError or TypeError unless the log has what one of its kind must have, and that can be."""
    lacking = [name for name in ("config", "environment", "status") if name not in log]
    kind, rows = kind_of(log) if "config" in log else "", log["rows"]
    needed = {"train": ("epoch", "train_loss", "test_loss", "seconds"), "search": ("lr", "train_loss"), "": (), "alignment": (
        "method", "epoch", "sigma2", "samples", "passes", "layer", "angle", "angle_min", "angle_max", "angle_sem", "bias2", "variance")}
    lacking += [name for name in needed[kind] if rows and name not in rows[0]]
    if rows and "test_accuracy" in rows[0] and "train_accuracy" not in rows[0]:
        lacking.append("train_accuracy")
    trained = ("method", "arch", "dataset", "backend", "epochs", "limit_train", "limit_test")
    set_by = {"train": (*trained, "seed"), "search": (*trained, "factor", "patience", "most"), "alignment": (
        "methods", "arch", "dataset", "limit_train", "loss", "repeats", "epochs", "sigma2", "samples")}
    lacking += [f"the configuration's {name}" for name in set_by.get(kind, ()) if name not in log["config"]]
    if kind == "alignment" and "samples" not in log["environment"]:
        lacking.append("the environment's samples")
    if not lacking and (own := [name for name in OWN if name in log["environment"]]):
        raise ValueError(f"it is of a {' and a '.join(own)} of one's own, not of those that its configuration names")
    if lacking:
        raise ValueError(f"without {', '.join(lacking)}")
    config, status = log["config"], log["status"]
    if not isinstance(status, str):
        raise ValueError(f"its status is {status!r}")
    if kind == "alignment":
        if config["dataset"] not in sum(STAND_INS.values(), ()) or not set(config["methods"]) <= set(METHODS):
            raise ValueError(f"of methods {config['methods']} on {config['dataset']}")
        complete = len(rows) == math.prod(len(config[name]) for name in ("methods", "epochs", "sigma2", "samples")) * max(
            (row["layer"] for row in rows), default=1)
    else:
        config_of(log)  # which refuses what no run can have
        complete = len(rows) >= config["epochs"] if kind == "train" else bool(rows) and (
            ended(rows, config["patience"], config["most"]) or math.isinf(next_rate(rows, config["start"], config["factor"])))
    if status == "finished" and not complete:
        raise ValueError(f"finished, but of {len(rows)} rows")
    if kind == "train":
        if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError("its epochs are not 1, 2, 3 and so on")
        if any(not 0 <= row[name] <= 1 for row in rows for name in row if name.endswith("accuracy") and not math.isnan(row[name])):
            raise ValueError("an accuracy is not between 0 and 1")


def gather(results, runs):
    """{name: log} of the recorded results and of this checkout's own runs; of two of one name, the one with more rows.

    A training run has the name that its configuration makes, whatever its folder is called. A log of a run that cannot be read is left
    out, with a warning; so is one beside the log that its folder is named for, and a search or measurement that is not what its name says.
    """
    logs = {}

    def add(name, log):
        name = named(name, log)
        if len(log["rows"]) >= len(logs.get(name, {"rows": ()})["rows"]):
            logs[name] = log

    def leave_out(path, error):
        print(f"warning: left out: {path}: {str(error).removeprefix(f'{path}: ')}", file=sys.stderr)

    for path in sorted(Path(results).glob("logs/[!.]*.tsv")) if results else []:
        log = read_text(path)
        try:
            add(path.stem, log)
        except ValueError as error:
            leave_out(path, error)
    for path in sorted(Path(runs).glob("*/*.h5")) if runs else []:
        if path.name == "checkpoint.h5":
            continue
        try:
            log, name = read_log(path), path.parent.name
            kind = name.partition("-")[0]
            of_folder = f"{kind}.h5" if kind in ("search", "alignment") else "log.h5"
            if path.name != of_folder and path.with_name(of_folder).exists():
                raise ValueError(f"the folder is {of_folder}'s; move this one to a folder of its own")
            check_complete(log)
            add(name, log)
        except (ValueError, TypeError, OSError) as error:
            leave_out(path, error)
    return logs


def figures(log):
    """(quantity, train, test) of a training run: accuracies in % or losses, one number an epoch."""
    if log["rows"] and "test_accuracy" in log["rows"][0]:
        return "accuracy", *([100 * row[f"{part}_accuracy"] for row in log["rows"]] for part in ("train", "test"))
    return "loss", *([row[f"{part}_loss"] for row in log["rows"]] for part in ("train", "test"))


def summary(name, log):
    """One row of runs.tsv: a dict with SUMMARY's names."""
    config, env, (quantity, train, test) = config_of(log), log["environment"], figures(log)
    best = max if quantity == "accuracy" else min
    row = {"run": name, "recipes": ",".join(r for r, recipe in RECIPES.items() if any(matches(cell, config) for cell in recipe.cells)),
           "method": config.method, "arch": config.arch, "dataset": config.dataset, "samples": samples(log),
           "options": " ".join(f"{name}={value}" for name, value in options_of(config).items()), "seed": config.seed,
           "epochs": len(log["rows"]), "status": log["status"], "lr": config.lr,
           "decor_lr": config.decor_lr if split_method(config.method)[1] else "", "quantity": quantity,
           "minutes": f"{sum(row['seconds'] for row in log['rows']) / 60:.1f}", "backend": env["backend"], "device": env["device"],
           "threads": env["threads"], "revision": env["revision"], "command": command(config)}
    if train:
        row |= {"peak_train": f"{best(train):.5g}", "peak_test": f"{best(test):.5g}", "peak_epoch": test.index(best(test)) + 1,
                "final_train": f"{train[-1]:.5g}", "final_test": f"{test[-1]:.5g}"}
    return row


def samples(log):
    """How complete the data were: training and test samples, of how many."""
    config = log["config"]
    if "samples" in log["environment"]:
        return log["environment"]["samples"]
    return FULL.get(config["dataset"], "?") if not (config["limit_train"] or config["limit_test"]) else "limited"


def command(config):
    """The command that makes this run again."""
    return "python examples/cifar10.py " + shlex.join(flags(config))


def matches(cell, config):
    """Whether a run of this configuration is one of the cell: on its data or a stand-in, at any rate if the cell's is searched."""
    if config.dataset not in STAND_INS[cell.dataset] or (cell.method, cell.arch) != (config.method, config.arch):
        return False
    wanted = cell_config(cell, config.dataset, **({"lr": config.lr} if cell.search is not None else {}))
    return options_of(config) == options_of(wanted) and config.lr == wanted.lr


def cell_config(cell, dataset, **more):
    """The Config of a cell on this data set."""
    return Config(**{"method": cell.method, "arch": cell.arch, "dataset": dataset, **dict(cell.options), **more})


def runs_of(cell, logs):
    """The cell's training runs, one a seed, on the best data there are: {seed: log}.

    Best: the data set itself before stand-ins, then the most training samples. Where rates were searched, the runs at the rate that the
    search on these data found, if it is there (of several searches the one of most epochs); of several runs of a seed the longest,
    of two as long NumPy's. A run that has not finished an epoch is none yet.
    """
    found = [log for log in logs.values() if kind_of(log) == "train" and matches(cell, config_of(log))
             and (log["rows"] or log["status"].startswith("diverged"))]
    if not found:
        return {}
    order = STAND_INS[cell.dataset]

    def rank(log):
        return -order.index(log["config"]["dataset"]), log["config"]["limit_train"] or math.inf, log["config"]["limit_test"] or math.inf

    top = max(map(rank, found))
    found = [log for log in found if rank(log) == top]
    if cell.search is not None:
        same = [log for log in searches_of(cell, logs)
                if all(log["config"][name] == found[0]["config"][name] for name in ("dataset", "limit_train", "limit_test"))]
        if same:
            rate = best_rate(max(same, key=lambda log: log["config"]["epochs"])["rows"])
            found = [log for log in found if log["config"]["lr"] == rate] or found
    return {log["config"]["seed"]: log for log in sorted(found, key=lambda log: (len(log["rows"]), log["config"]["backend"] == "numpy"))}


def searches_of(cell, logs):
    """The logs of the cell's learning-rate searches that have ended and found a rate."""
    return [log for log in logs.values() if kind_of(log) == "search" and any(not math.isnan(row["train_loss"]) for row in log["rows"])
            and log["status"] == "finished" and cell.search is not None and matches(cell, config_of(log))]


def search_shown(cell, logs):
    """That of the cell's searches that a table of rates shows: on its data set before a stand-in, the longest first; None without one."""
    order = STAND_INS[cell.dataset]
    return min(searches_of(cell, logs), key=lambda log: (order.index(log["config"]["dataset"]), -(log["config"]["limit_train"] or math.inf),
                                                         -log["config"]["epochs"]), default=None)


def searches(cells, logs):
    """The learning-rate searches of these cells that are shown: {name: log}, each once."""
    found = [search_shown(cell, logs) for cell in cells]
    return {name: log for name, log in logs.items() if any(log is other for other in found)}


def alignment_of(name, logs):
    """The log of an alignment recipe once it is finished, on the best data there are; None without one."""
    found = [log for run, log in logs.items() if run.startswith(f"alignment-{alignment_name(name)}-") and log["status"] == "finished"]
    order = STAND_INS["cifar10"]
    return min(found, key=lambda log: (order.index(log["config"]["dataset"]), -(log["config"]["limit_train"] or math.inf)), default=None)


def alignment_name(name):
    """Recipes that measure the same share a run: it has the first one's name."""
    return next(other for other, recipe in RECIPES.items() if recipe.alignment == RECIPES[name].alignment)


def value(log):
    """What the paper tabulates of a run: (train, test) peak accuracy in %, or final loss."""
    quantity, train, test = figures(log)
    return (max(train), max(test)) if quantity == "accuracy" else (train[-1], test[-1])


def record(results, logs):
    """Write runs.tsv and logs/*.tsv under `results`; returns the number of runs."""
    results = Path(results)
    for name, log in logs.items():  # before anything is written
        try:
            if kind_of(log) == "train":
                summary(name, log)
        except KeyError as error:
            raise ValueError(f"{name}: its log has no {error}; delete it, or take a copy of it") from error
    if (results / "runs.tsv").exists() and not (results / "runs.tsv").read_bytes().startswith("\t".join(SUMMARY[:3]).encode()):
        raise FileExistsError(f"{results / 'runs.tsv'} is there already, and not of recorded results: name another folder")
    (results / "logs").mkdir(parents=True, exist_ok=True)
    for name, log in logs.items():
        write_text(results / "logs" / f"{name}.tsv", log)
    logs = {name: read_text(results / "logs" / f"{name}.tsv") for name in sorted(logs)}  # as whoever reads them will see them
    rows = [summary(name, log) for name, log in logs.items() if kind_of(log) == "train"]
    lines = ["\t".join(SUMMARY), *("\t".join(str(row.get(name, "")) for name in SUMMARY) for row in rows)]
    replace_file(results / "runs.tsv", ("\n".join(lines) + "\n").encode())
    return len(logs)
