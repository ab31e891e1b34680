"""Every table and figure of the paper, by name.

    python examples/reproduce.py list                                   what there is, and what has been run
    python examples/reproduce.py run v2-table3 --seeds 0 1 2            run it; the same command goes on where it stopped
    python examples/reproduce.py table v2-table3                        the paper's numbers beside ours
    python examples/reproduce.py plot v2-figure3                        its picture
    python examples/reproduce.py record                                 keep what the runs' logs say under data/results

The recipes are in recipes.py. A run is a process of its own (examples/cifar10.py, lr_search.py or alignment.py; jobs.py starts it) in a
folder of its own under --runs; two recipes that need the same run share it.
"""

import installed  # noqa: F401  isort: skip  says so in one line where npref is not
import argparse
import shlex
import sys
from pathlib import Path

from cifar10 import any_letters, exit_code, plotter
from jobs import alignment_jobs, cells_of, going_on, left_to_do, search_jobs, training_jobs, wanted, work
from recipes import NOT_RUN, RECIPES
from results import STAND_INS, alignment_of, gather, kind_of, record, runs_of, search_shown, searches, searches_of
from tables import curves, table

from npref import METHODS, datasets, get_backend
from npref.backend import BACKENDS
from npref.command_line import Parser, folder
from npref.network import ARCHITECTURES
from npref.runlog import replace_file
from npref.train import Interrupted

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def parse(arguments):
    parser = Parser(description="Run, tabulate and draw the paper's tables and figures.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--runs", type=folder, help="folder of the runs (default: runs/reproduce)")
    shared.add_argument("--results", type=folder, help="recorded results (default: data/results)")
    names = dict(metavar="NAME", help="a table or figure, as `list` names them")
    shown = argparse.ArgumentParser(add_help=False, parents=[shared])
    shown.add_argument("--own", action="store_true", help="show the runs under --runs only (default: recorded ones too)")
    commands.add_parser("list", parents=[shown], help="name every table and figure, and what has been run")
    run = commands.add_parser("run", parents=[shared], help="run tables and figures, or go on with them")
    run.add_argument("names", nargs="+", **names)
    run.add_argument("--seeds", type=int, nargs="+", help="(default: as many as the paper took, from 0)")
    run.add_argument("--epochs", type=int, help="(default: the recipe's: 50, for SARCOS 500)")
    run.add_argument("--backend", choices=BACKENDS, default="numpy", help="(default: numpy)")
    run.add_argument("--limit-train", type=int, help="use only the first so many training samples (default: all)")
    run.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="only cells of these methods (default: all)")
    run.add_argument("--archs", nargs="+", choices=ARCHITECTURES, metavar="ARCH", help="only cells of these architectures (default: all)")
    run.add_argument("--samples", type=int, nargs="+", metavar="K", help="only cells with these numbers of noise samples (default: all)")
    run.add_argument("--jobs", type=int, default=1, help="processes at a time, which share the cores (default: 1)")
    run.add_argument("--synthetic", action="store_true", help="run on stand-ins that need no download (default: where data are missing)")
    run.add_argument("--dedup", action="store_true", help="SARCOS without the training rows that are test rows too (default: no)")
    run.add_argument("--split-test", action="store_true", help="SARCOS by a split of its test file (default: where that is all there is)")
    run.add_argument("--data-dir", type=folder, help="where the data sets are (default: $NPREF_DATA, then data/)")
    run.add_argument("--missing", action="store_true", help="only what is not recorded in --results (default: no)")
    run.add_argument("--dry-run", action="store_true", help="print the commands, run nothing (default: no)")
    show = commands.add_parser("table", parents=[shown], help="print the paper's numbers beside ours")
    show.add_argument("names", nargs="*", **names)
    show.add_argument("--until", type=int, metavar="EPOCH", help="count epochs up to this one only (default: all)")
    show.add_argument("--into", type=Path, metavar="FILE", help=f"put it into FILE between {BEGIN} and {END} (default: print it)")
    plot = commands.add_parser("plot", parents=[shown], help="draw figures from the runs")
    plot.add_argument("names", nargs="*", **names)
    plot.add_argument("--out", type=folder, help="folder of the pictures (default: --runs)")
    commands.add_parser("record", parents=[shared], help="write what the logs under --runs say to --results, as text")
    args = parser.parse_args(arguments)
    for name in getattr(args, "names", ()):
        if name not in RECIPES and name not in NOT_RUN:
            parser.error(f"unknown name {name!r}: expected one of {', '.join([*RECIPES, *NOT_RUN])}")
    for name in ("epochs", "limit_train", "jobs", "until"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if min(getattr(args, "seeds", None) or [0]) < 0:
        parser.error(f"--seeds must be at least 0, got {min(args.seeds)}")
    if getattr(args, "into", None) is not None and not args.into.is_file():
        parser.error(f"--into names a file that is there, with lines {BEGIN} and {END}, got {args.into}")
    if getattr(args, "own", False) and args.results is not None:
        parser.error("--results has no effect with --own: leave one out")
    if args.command != "record" and args.results is not None and not args.results.is_dir():
        parser.error(f"--results names a folder that is there, got {args.results}")
    if args.runs is not None and not args.runs.is_dir() and (args.command != "run" or args.runs.exists()):
        parser.error(f"--runs names a folder{' that is there' if args.command != 'run' else ''}, got {args.runs}")
    args.runs = args.runs or Path("runs") / "reproduce"
    args.results = args.results or Path(__file__).resolve().parents[1] / "data" / "results"
    if args.command == "run" and args.synthetic and args.data_dir is not None:
        parser.error("--data-dir has no effect with --synthetic: leave one out")
    if args.command == "run" and args.synthetic + args.dedup + args.split_test > 1:
        parser.error("--synthetic, --dedup and --split-test exclude one another: give one")
    return args


def main(arguments=None):
    any_letters()
    args = parse(arguments)
    commands = {"list": list_recipes, "run": run, "table": show_table, "plot": draw, "record": keep}
    return exit_code(lambda stop: commands[args.command](args, stop))


def checked(results):
    """The folder of recorded results. Raises ValueError for another folder with something in it."""
    if results.is_dir() and not (results / "logs").is_dir() and any(results.iterdir()):
        raise ValueError(f"--results names a folder of recorded results, which are in a folder logs of it, got {results}")
    return results


def shown_logs(args):
    """The logs that list, table and plot show: {name: log}. Own runs in whose place recorded ones are shown are told of on stderr."""
    logs = gather(None if args.own else checked(args.results), args.runs)
    recipes = {name: RECIPES[name] for name in getattr(args, "names", ()) or RECIPES if name in RECIPES}

    def shown(logs):
        found = [alignment_of(name, logs) for name, recipe in recipes.items() if recipe.alignment]
        for recipe in recipes.values():
            for cell in recipe.cells:
                if recipe.searches_only:
                    found.append(search_shown(cell, logs))
                else:
                    found += runs_of(cell, logs).values()
        kept = set(map(id, found))
        return {name for name, log in logs.items() if id(log) in kept}

    own = {name: log for name, log in logs.items() if (args.runs / name).is_dir()}
    if not args.own and own and (hidden := sorted(shown(own) - shown(logs))):
        print(f"note: runs in {args.runs} that are not shown: {len(hidden)}, such as {hidden[0]}; others come before them, on more data, "
              "of more epochs, at the rate that was searched, or on NumPy: --own shows yours alone", file=sys.stderr)
    return logs


def list_recipes(args, stop):
    logs = shown_logs(args)
    for name, recipe in RECIPES.items():
        print(f"{name:<12} {recipe.title} ({recipe.source}): {state(name, recipe, logs)}")
    for name, text in NOT_RUN.items():
        print(f"{name:<12} nothing to run: {text}")
    return 0


def state(name, recipe, logs):
    """How much of a recipe has been run, in words."""
    if recipe.alignment:
        return "run" if alignment_of(name, logs) else "not run"
    if recipe.searches_only:
        return f"{sum(bool(searches_of(cell, logs)) for cell in recipe.cells)} of {len(recipe.cells)} rates searched"
    found = {cell: runs for cell in recipe.cells if (runs := runs_of(cell, logs))}
    in_part = sum(len(runs) < recipe.seeds or any(log["config"]["dataset"] != cell.dataset or log["config"]["limit_train"]
                                                  or log["config"]["limit_test"]
                                                  or len(log["rows"]) < recipe.epochs and not log["status"].startswith("diverged")
                                                  for log in runs.values()) for cell, runs in found.items())
    less = f", {in_part} in part (fewer seeds, epochs or data)" if in_part else ""
    return f"{len(found)} of {len(recipe.cells)} cells run{less}"


def run(args, stop):
    get_backend(args.backend)  # before any work, to say so if it cannot work
    check_effect(args)
    for name in args.names:
        if name in NOT_RUN:
            print(f"{name}: nothing to run, {NOT_RUN[name]}")
    names = [name for name in dict.fromkeys(args.names) if name in RECIPES]
    for name in names:
        if RECIPES[name].cells and not cells_of(name, args):
            print(f"{name}: no cell is left by --methods, --archs and --samples", flush=True)
    chosen = {name: found for name in names if (found := data_set(name, args))}
    try:
        recorded = gather(checked(args.results), None)
    except (ValueError, TypeError, OSError) as error:  # a damaged one
        if args.missing:
            raise
        print(f"note: no estimate of times ({error})", flush=True)
        recorded = {}
    results = recorded if args.missing else {}
    jobs = wanted((job for name, data in chosen.items() for job in [*search_jobs(name, data, args), *alignment_jobs(name, data, args)]),
                  results)
    failed = [] if args.dry_run else work(jobs, args, stop, recorded)
    trainings = wanted((job for name, data in chosen.items() for job in training_jobs(name, data, args, failed, results)), results)
    if args.dry_run:
        _, left, damaged = left_to_do([*jobs, *trainings])
        for job in left:
            print(f"python {shlex.join([f'examples/{job.script}', *job.arguments, *(['--resume'] if going_on(job) else [])])}")
        if any(job.log == "search.h5" for job in left) and not all(RECIPES[name].searches_only for name in chosen):
            print("# then the trainings at the rates that these searches find")
        failed += damaged
    else:
        failed += work(trainings, args, stop, recorded)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def check_effect(args):
    """ValueError for a flag that would change nothing in any of the recipes, or leave nothing to run."""
    recipes = [RECIPES[name] for name in args.names if name in RECIPES]
    if not recipes:
        return
    if not any(recipe.cells for recipe in recipes):
        if args.epochs:
            print(f"{', '.join(args.names)}: angles are measured at initialisation, so --epochs changes nothing", flush=True)
        for flag in ("seeds", "methods", "archs", "samples"):
            if getattr(args, flag):
                raise ValueError(f"--{flag} has no effect on a measurement of angles, which is run as a whole: leave it out")
    elif not any(recipe.alignment or cells_of(name, args) for name, recipe in RECIPES.items() if name in args.names):
        raise ValueError(f"no cell of {', '.join(args.names)} is left by --methods, --archs and --samples: nothing to run")
    if tries := [recipe.search_epochs for recipe in recipes if recipe.searches_only]:
        trained = any(cells_of(name, args) and not RECIPES[name].searches_only for name in args.names if name in RECIPES)
        if args.seeds and not trained:
            raise ValueError("--seeds has no effect on a search for learning rates, which has its own: leave it out")
        if args.epochs and not trained and args.epochs > (most := max(tries)):
            raise ValueError(f"--epochs {args.epochs} has no effect on a search for learning rates, which tries each for {most}: "
                             "leave it out, or give fewer")
    if (args.dedup or args.split_test) and not any(cell.dataset == "sarcos" for name in args.names if name in RECIPES
                                                   for cell in cells_of(name, args)):
        raise ValueError(f"--{'dedup' if args.dedup else 'split-test'} has no effect without SARCOS: leave it out")


def data_set(name, args):
    """{the data set that a cell names: the one that is used}, said where it is a stand-in."""
    wanted = sorted({cell.dataset for cell in cells_of(name, args)} | ({"cifar10"} if RECIPES[name].alignment else set()))
    chosen = {}
    for real in wanted:
        options = STAND_INS[real]
        if args.synthetic:
            options = options[-1:]
        elif real == "sarcos":
            options = ("sarcos-dedup",) if args.dedup else ("sarcos-split-test",) if args.split_test else options[1:]
        used = next((option for option in options if datasets.available(option, args.data_dir)), None)
        if used is None:
            raise FileNotFoundError(f"no {options[0]} found: get it with python -m npref.datasets fetch {real}, or use --synthetic")
        if used != real:
            print(f"{name}: {used} in place of {real}" + ("" if args.synthetic or args.dedup or args.split_test else
                  f", which was not found; to get it: python -m npref.datasets fetch {real}"), flush=True)
        chosen[real] = used
    return chosen


def show_table(args, stop):
    for name in args.names:
        if name in NOT_RUN:
            print(f"{name}: nothing to show, {NOT_RUN[name]}")
    names = [name for name in args.names or RECIPES if name in RECIPES]
    if args.into is not None and not names:
        raise ValueError(f"no table for {args.into}: nothing is run for {', '.join(args.names)}")
    logs = shown_logs(args)
    if args.until is not None:
        if not any(RECIPES[name].cells and not RECIPES[name].searches_only for name in names):
            raise ValueError("--until has no effect on searches for learning rates and measurements of angles: leave it out")
        for log in logs.values():
            if kind_of(log) == "train" and len(log["rows"]) >= args.until:
                log |= {"rows": log["rows"][: args.until], "status": "finished"}  # what came later does not count
    text = table(names, logs)
    if args.into is None:
        print(text, end="\n" if text else "")
        return 0
    try:
        before, begin, rest = args.into.read_bytes().decode().partition(BEGIN)
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.into}: expected text in UTF-8, got another file ({error})") from error
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{args.into}: expected a line {BEGIN} and after it a line {END}, for the table to go between")
    replace_file(args.into, f"{before}{begin}\n\n{text}\n{end}{after}".encode())
    print(f"table of {len(names)} recipes: {args.into}")
    return 0


def draw(args, stop):
    plots, alignment_plots = plotter(True), plotter(True, "alignment_plots")
    logs, out = shown_logs(args), args.out or args.runs
    places = args.runs if args.own else f"{args.runs} or {args.results}"
    if not logs and not args.names:
        raise ValueError(f"nothing to draw: expected runs in {places}")
    any_drawn = False
    for name in args.names or RECIPES:
        if stop():
            raise Interrupted(f"stopped before {name}")
        if name in NOT_RUN:
            print(f"{name}: nothing to draw, {NOT_RUN[name]}")
            continue
        recipe = RECIPES[name]
        function = getattr(alignment_plots if recipe.alignment else plots, recipe.figure)
        if recipe.alignment:
            content = alignment_of(name, logs)
        else:
            content = searches(recipe.cells, logs) if recipe.searches_only else curves(recipe.cells, logs)
        if content:
            out.mkdir(parents=True, exist_ok=True)
            any_drawn = True
            print(f"{name}: {function(content, out / f'{name}.png')}")
        elif args.names and not recipe.searches_only and any(runs_of(cell, logs) for cell in recipe.cells):
            raise ValueError(f"nothing to draw of {name}: its runs in {places} diverged in their first epoch")
        elif args.names:
            raise ValueError(f"{name} has not been run: expected runs of it in {places}; python examples/reproduce.py run {name}")
    if not args.names and not any_drawn:
        raise ValueError(f"nothing to draw: no recipe's runs are in {places}")
    return 0


def keep(args, stop):
    recorded, own = gather(checked(args.results), None), gather(None, args.runs)
    whole = {name: log for name, log in own.items() if log["status"].startswith(("finished", "diverged"))
             and not any(log["config"].get(limit) for limit in ("limit_train", "limit_test"))
             and not log["config"]["dataset"].startswith("synthetic")}
    longer = {name: log for name, log in whole.items() if len(log["rows"]) >= len(recorded.get(name, {"rows": ()})["rows"])}
    print(f"{record(args.results, recorded | longer)} runs recorded in {args.results}; left out: "
          f"{len(own) - len(whole)} unfinished, on stand-ins or on part of the data, {len(whole) - len(longer)} shorter than recorded ones")
    return 0


if __name__ == "__main__":
    sys.exit(main())
