"""Find a learning rate as the paper's first version does: double it until training is unstable or no longer better.

    python examples/lr_search.py --method dnp --arch fc3 --optimizer sgd --loss mse --start 1e-6

Every rate is tried from the same initial weights, with the same order of samples and the same noise, for a few epochs, and so for each of
--seeds: a rate is stable if all of them are. The mean training loss of the last epoch (running mean) decides, so no test sample has a
say. A table is printed and a picture drawn.
"""

import installed  # noqa: F401  isort: skip  says so in one line where npref is not
import math
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from cifar10 import (
    FLAGS,
    add_flags,
    add_place_flags,
    any_letters,
    exit_code,
    given_flags,
    new_folder,
    note,
    plotter,
    say_data,
    spare_pictures,
    warn_in_lines,
)

from npref import datasets, get_backend, split_method
from npref.command_line import Parser
from npref.config import Config
from npref.runlog import changes, check_same_run, environment, going_on, lock, read_log, unlock, write_log
from npref.train import Diverged, Interrupted, train

ROW = ("lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
MOST = 60  # doublings: from 1e-7 to 1e11
PATIENCE = 3  # rates in a row that are no better


def search(config, data, start, *, seeds=(0,), factor=2.0, patience=PATIENCE, most=MOST, rows=(), stop=None):
    """Try start, start*factor, ...: an iterator of one dict a rate (ROW's names), after those in `rows`, which are done already.

    It ends at the first rate that diverges, when `patience` rates in a row were no better than the best, or after `most` rates. What
    a rate does not have is nan: accuracies without labels, everything if it diverged. Losses and accuracies are means over the seeds,
    and a rate has diverged if one of them has.
    """
    rows = list(rows)
    while not ended(rows, patience, most):
        lr = next_rate(rows, start, factor)
        if math.isinf(lr):
            return
        row = dict.fromkeys(ROW, 0.0) | {"lr": lr}
        try:
            for seed in seeds:
                for epoch in train(replace(config, lr=lr, seed=seed), data, stop=stop):
                    row["seconds"] += epoch["seconds"]
                row |= {name: row[name] + epoch.get(name, math.nan) / len(seeds) for name in ROW[1:-1]}  # of the last epoch
        except Diverged:
            row |= dict.fromkeys(ROW[1:-1], math.nan)
        rows.append(row)
        yield row


def next_rate(rows, start, factor):
    return rows[-1]["lr"] * factor if rows else start


def ended(rows, patience, most=MOST):
    """Whether a search that has tried these rates is over."""
    losses = [row["train_loss"] for row in rows]
    if len(rows) >= most or (losses and math.isnan(losses[-1])):
        return True
    return len(losses) - losses.index(min(losses)) > patience if losses else False


def best(rows):
    """The rate with the lowest training loss. Raises ValueError if every rate diverged."""
    stable = [row for row in rows if not math.isnan(row["train_loss"])]
    if not stable:
        raise ValueError(f"every learning rate from {rows[0]['lr']:g} on diverged: expected a stable first one, choose a smaller --start")
    return min(stable, key=lambda row: row["train_loss"])["lr"]


def doubt(rows):
    """What speaks against the best rate, or ""."""
    if len(rows) > 1 and len({row["train_loss"] for row in rows}) == 1:
        return "; but all have one training loss, so nothing tells them apart: take more epochs, or a larger --start"
    first = "; it is the first, a smaller --start may find a better one" if best(rows) == rows[0]["lr"] else ""
    return first + ("; it is the last, a larger --most may find a better one" if best(rows) == rows[-1]["lr"] else "")


def parse(arguments):
    parser = Parser(description="Double the learning rate until training is unstable or no longer better.")
    add_flags(parser, [name for name in FLAGS if name not in ("lr", "seed", "eval_train")], epochs=2)
    parser.set_defaults(epochs=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds that every rate is tried with (default: 0)")
    parser.add_argument("--start", type=float, default=1e-6, help="the first rate (default: 1e-6)")
    parser.add_argument("--factor", type=float, default=2.0, help="what a rate is multiplied by for the next (default: 2)")
    parser.add_argument("--patience", type=int, default=PATIENCE,
                        help=f"end after so many rates in a row that are no better (default: {PATIENCE})")
    parser.add_argument("--most", type=int, default=MOST, help=f"end after so many rates (default: {MOST})")
    add_place_flags(parser, "search.h5 and picture; a search begun there goes on (default: a new one)", "the losses")
    args = parser.parse_args(arguments)
    for name, least in (("start", 0), ("factor", 1)):
        if not least < getattr(args, name) < math.inf:
            parser.error(f"--{name} must be above {least} and finite, got {getattr(args, name)}")
    if min(args.seeds) < 0 or max(args.seeds) >= 2**64 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds must be different ones, at least 0 and below 2^64, got {' '.join(map(str, args.seeds))}")
    for name in ("patience", "most"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(arguments=None):
    any_letters()
    args = parse(arguments)
    return exit_code(lambda stop: run(args, stop))


def run(args, stop):
    say = (lambda *words: None) if args.quiet else lambda *words: print(*words, flush=True)
    given = given_flags(args)
    config = Config(**given, lr=args.start, seed=args.seeds[0])
    plots = plotter(args.plot)
    backend = get_backend(config.backend)
    data = datasets.load(config.dataset, args.data_dir, config.limit_train, config.limit_test)
    say_data(f"{data.source}; {data.completeness}", config.dataset, data, args.quiet)
    config = replace(config, dataset=data.name)
    out = args.out or new_folder(Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-search-{config.method}-{config.arch}-{data.name}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "search.h5"
    if plots is not None:
        spare_pictures(out, ("search.h5",), "search.png", "search.svg")
    about = {**asdict(config), "seeds": args.seeds, "start": args.start, "factor": args.factor, "patience": args.patience,
             "most": args.most}
    about.pop("lr")
    env = {**environment(backend), "data": data.fingerprint(), "samples": data.completeness}
    held = lock(out)
    try:
        rows, before = begun(path, about, env["data"])
        if before and ended(rows, args.patience, args.most):
            env = before  # nothing is left to do
        elif before:
            if changed := changes(before, env):
                note(f"{changed}: the rates that follow may differ in their last digits from an uninterrupted search's", args.quiet)
            env = going_on(before, env)
        say(f"search: {config.method} on {config.arch}, {config.optimizer}, {config.epochs} epochs a rate, "
            f"seed {' '.join(map(str, args.seeds))}")
        for row in rows:
            say(line(row))
        with warn_in_lines():
            for row in search(config, data, args.start, seeds=args.seeds, factor=args.factor, patience=args.patience, most=args.most,
                              rows=rows, stop=stop):
                rows.append(row)
                write_log(path, about, env, rows, "running")
                say(line(row))
        write_log(path, about, env, rows, "finished")
    except Interrupted as error:
        kept = f"what was tried before it is in {out}: go on with the same command and --out" if rows else "it was the first"
        raise Interrupted(f"{error} with lr {next_rate(rows, args.start, args.factor):g}; {kept}") from None
    finally:
        unlock(held)
        if args.out is None:
            with suppress(OSError):  # empty, unless a rate was tried
                out.rmdir()
    try:
        rate = best(rows)
    except ValueError as error:
        raise ValueError(f"{error}" + ", or a smaller --decor-lr" * split_method(config.method)[1]) from None
    print(f"{config.method} {config.arch} on {data.name}: best learning rate {rate:g} of {len(rows)} from {rows[0]['lr']:g} to "
          f"{rows[-1]['lr']:g}{doubt(rows)}\nlog: {path}")
    if plots is not None:
        print(f"picture: {plots.plot_searches({path: read_log(path)}, out / 'search.png')}")
    return 0


def begun(path, about, data):
    """The rates that an interrupted search has tried, and its environment; [] and None where there is none.

    Raises ValueError if it was another search.
    """
    if not path.exists():
        return [], None
    saved = read_log(path)
    check_same_run(saved, about, data, path.parent, apart=("patience", "most"))
    rows = saved["rows"]
    if any(ended(rows[:i], about["patience"], about["most"]) for i in range(len(rows))):
        raise ValueError(f"{path} has tried {len(rows)} rates, more than --patience {about['patience']} and --most {about['most']} allow: "
                         "give larger ones, or another --out")
    return rows, saved["environment"]


def line(row):
    if math.isnan(row["train_loss"]):
        return f"lr {row['lr']:<12.4g} diverged"
    text = f"lr {row['lr']:<12.4g} train {row['train_loss']:<10.5g} test {row['test_loss']:<10.5g}"
    return text if math.isnan(row["train_accuracy"]) else text + f" accuracy {row['train_accuracy']:6.1%} / {row['test_accuracy']:6.1%}"


if __name__ == "__main__":
    sys.exit(main())
