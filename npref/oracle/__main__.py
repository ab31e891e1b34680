"""The oracle on the command line:  python -m npref.oracle write | check | list | show  (--help tells more)."""

import os
import signal
import sys
import threading
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from shutil import get_terminal_size
from textwrap import fill

from ..command_line import Parser, broken_pipe, in_words, printed
from .cases import ARRAYS
from .checker import DTYPES, CannotRun, check, load_adapter
from .conventions import CONVENTIONS
from .files import flat, list_cases, one_case, write


def parse(arguments):
    parser = Parser(prog="python -m npref.oracle", description="Golden vectors of the paper's rules; the check of other code against them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="write | check | list | show")
    command = commands.add_parser("write", help="compute the cases and write them to an HDF5 file")
    command.add_argument("vectors", metavar="OUT.h5")
    command.add_argument("--cases", default="*", nargs="+", metavar="GLOB", help="only cases with such a name, as 'danp/*' (default: all)")
    width = max(20, get_terminal_size().columns - 2)  # as argparse, but in a very narrow terminal
    known = [fill(f"{name}: {c.text}", width, initial_indent="  ", subsequent_indent="    ") for name, c in CONVENTIONS.items()]
    command = commands.add_parser("check", help="compare an implementation with a file of golden vectors",
                                  epilog="\n".join(["conventions:", *known]), formatter_class=RawDescriptionHelpFormatter)
    command.add_argument("vectors", metavar="VECTORS.h5")
    command.add_argument("--adapter", required=True, metavar="MODULE:OBJECT", help="a function of a case; npref.oracle:self is npref's own")
    command.add_argument("--convention", default="paper", choices=CONVENTIONS, help="whose numbers to expect, see below (default: paper)")
    command.add_argument("--cases", default="*", nargs="+", metavar="GLOB", help="only cases with such a name (default: all)")
    command.add_argument("--dtype", choices=DTYPES, help="only this dtype (default: both)")
    command.add_argument("--quiet", action="store_true", help="print differences and the summary only (default: no)")
    command = commands.add_parser("list", help="the cases of a file, or the built-in ones, a line each")
    command.add_argument("vectors", metavar="VECTORS.h5", nargs="?")
    command = commands.add_parser("show", help="one case: its settings and the shapes of its arrays")
    command.add_argument("vectors", metavar="VECTORS.h5")
    command.add_argument("case", metavar="CASE")
    command.add_argument("--values", action="store_true", help="print the numbers too (default: no)")
    return parser.parse_args(arguments)


def main(arguments=None):
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Greek letters shows their numbers
    args = parse(arguments)
    try:
        return printed({"write": run_write, "check": run_check, "list": run_list, "show": run_show}[args.command](args))
    except KeyboardInterrupt:
        return 128 + 2
    except BrokenPipeError:
        return broken_pipe()
    except (CannotRun, ValueError, OSError) as error:
        print(in_words(error), file=sys.stderr)
        return 2


def run_write(args):
    stopping = []

    def after_a_case(done, of):
        if sys.stderr is not None and sys.stderr.isatty():
            print(f"\r{done}/{of}", end="\n" * (done == of), file=sys.stderr)
        if stopping:  # an exception that a signal raises anywhere may get lost in a callback
            raise SystemExit(128 + stopping[0])

    handlers = {number: signal.signal(number, lambda number, frame: stopping.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        count = write(args.vectors, args.cases, after_a_case, os.cpu_count() or 1)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print(f"{count} {'case' if count == 1 else 'cases'} written to {args.vectors}")
    return 0


def run_check(args):
    stopping = []

    def stop(number, frame):
        stopping.append(number)
        raise KeyboardInterrupt  # at once; should it get lost in a callback, the next case sees that it has come

    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        return _check(args, stopping)  # the caller's business, as of a command in the background, which ignores it
    signal.signal(signal.SIGINT, stop)
    try:
        return _check(args, stopping)
    finally:
        signal.signal(signal.SIGINT, handler)


def _check(args, stopping):
    count, missing, narrow = Counter(), Counter(), 0.0  # the last: the worst error in float32
    results = check(args.vectors, load_adapter(args.adapter), args.convention, args.cases, (args.dtype,) if args.dtype else DTYPES)
    if not args.quiet:
        print(f"{'case':40} {'dtype':8} arrays  worst error, in tolerances")
    for r in results:
        if stopping:
            raise KeyboardInterrupt
        verdict = "skipped" if r.skipped else "WRONG" if r.wrong else "ok"
        count[verdict] += 1
        missing.update(r.missing)
        narrow = max(narrow, r.worst) if r.dtype == "float32" else narrow
        if verdict == "skipped" and not args.quiet:
            print(f"{r.name:40} {r.dtype:8}      -  skipped: {r.skipped}")
        elif verdict == "WRONG" or not args.quiet:
            print(f"{r.name:40} {r.dtype:8} {r.checked:6}  {r.worst:8.2g} {r.worst_at:18} {verdict}", flush=True)
        if r.wrong:
            print(f"    first wrong: {r.wrong}, {'at worst ' * r.details.startswith('[')}{r.details}")
            if r.hint:
                print(f"    hint: {r.hint}")
    for n in sorted(set(missing.values()), reverse=True):
        kinds = ", ".join(kind for kind in missing if missing[kind] == n)
        print(f"not returned {n} {'time' if n == 1 else 'times'}, so not compared: {kinds}")
    if 0 < narrow < 1e-6:
        print("float32 cases: all errors are far below float32's rounding, so these were computed in float64, and float32 was not checked")
    print(f"{count['ok']} ok, {count['WRONG']} wrong, {count['skipped']} skipped, by the convention {args.convention!r}")
    if not count["ok"] + count["WRONG"]:
        raise CannotRun("every case was skipped, so nothing was checked: choose other --cases or another --convention; "
                        "an adapter that returns None, as one without a return does, supports nothing")
    return 1 if count["WRONG"] else 0


def run_list(args):
    for name, text in list_cases(args.vectors):
        print(f"{name:40} {text}")
    return 0


def run_show(args):
    case, outputs = one_case(args.vectors, args.case)
    print(f"{case.name}: {case.text}")
    for name, value in case.settings().items():
        if name not in ("name", "text", "layers"):
            print(f"  {name} = {value}")
    for l, layer in enumerate(case.layers):
        print(f"  layer {l}: {layer}")
    for title, arrays in (("inputs", flat({name: getattr(case, name) for name in ARRAYS})),
                          ("outputs", {name: value for name, (value, _) in outputs.items()})):
        print(title)
        for name, a in arrays.items():
            print(f"  {name:20} {a.shape}")
            if args.values:
                print("    " + str(a).replace("\n", "\n    "))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # by way of what ends the processes of `write`
    sys.exit(main())
