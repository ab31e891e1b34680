"""The command line:  python -m npref.datasets fetch | show  (--help tells more)."""

import sys
import tarfile
import zipfile
from functools import partial

from npref import datasets
from npref.command_line import Parser, broken_pipe, folder, in_words, printed


def parse(arguments):
    parser = Parser(prog="python -m npref.datasets", description="Fetch and verify data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch", help="download, verify and unpack a data set")
    command.add_argument("name", choices=datasets.ARCHIVES)
    command.add_argument("--data-dir", type=folder, help="where to put it (default: $NPREF_DATA, else data/)")
    command.add_argument("--url", help="a mirror of the same file; for sarcos of the folder with its files")
    command.add_argument("--timeout", type=float, default=30.0, help="seconds without an answer before giving up (default: 30)")
    command = commands.add_parser("show", help="load and verify a data set, and say what it is; tiny-imagenet is decoded into a file "
                                  "beside it once")
    command.add_argument("name", choices=datasets.DATASETS)
    command.add_argument("--data-dir", type=folder, help="where it is (default: $NPREF_DATA, then data/)")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--dedup", action="store_true", help="sarcos without the training rows that are test rows: sarcos-dedup")
    kind.add_argument("--split-test", action="store_true", help="sarcos's test file alone, split: sarcos-split-test")
    args = parser.parse_args(arguments)
    if args.command == "fetch" and not 0 < args.timeout < 1e6:
        parser.error(f"--timeout must be between 0 and 1000000 seconds, got {args.timeout}")
    if args.command == "show" and (args.dedup or args.split_test):
        if args.name != "sarcos":
            parser.error(f"--dedup and --split-test go with sarcos only, got {args.name}")
        args.name = "sarcos-dedup" if args.dedup else "sarcos-split-test"
    return args


def main(arguments=None):
    """Runs a command; returns the exit code."""
    args = parse(arguments)
    try:
        return printed({"fetch": run_fetch, "show": run_show}[args.command](args))
    except BrokenPipeError:
        return broken_pipe()
    except (OSError, ValueError, RuntimeError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(in_words(error), file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory ({' '.join(str(error).split())}): {args.name} is held in memory as a whole", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped" + ("; what had not come whole was not kept" if args.command == "fetch" else ""), file=sys.stderr)
        return 130


def run_fetch(args):
    target, places, shown = args.data_dir or datasets.search_path()[0], [], False

    def report(done, size):
        nonlocal shown
        if sys.stderr.isatty():
            print(f"\r{done / 1e6:.0f} of {size / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)
            shown = True

    for archive in datasets.ARCHIVES[args.name]:
        url, check = args.url, None
        if not archive.folder:  # a plain file, perhaps one of several
            if url is not None and url.endswith(".mat"):
                raise ValueError(f"--url for {args.name} names the folder that holds {archive.file}, got {url}: leave out the file's name")
            url = url and f"{url.rstrip('/')}/{archive.file}"
            check = partial(datasets.read_matrix, variable=archive.file.removesuffix(".mat"))
        try:
            places.append(datasets.fetch(archive, target, url=url, timeout=args.timeout, report=report, check=check))
        finally:
            if shown:
                print(file=sys.stderr)  # what follows begins a line
            shown = False
    datasets.load_found(args.name, *places)
    print(f"{args.name}: verified, in {' and '.join(str(place) for place in places)}")
    return 0


def run_show(args):
    data = datasets.load(args.name, args.data_dir)
    print(f"{data.name}: {data.source}")
    target = "targets" if data.regression else "labels"
    for part, x, y in (("training", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        print(f"{part}: {'x'.join(map(str, x.shape))} of {x.dtype}, {target} {'x'.join(map(str, y.shape))} of {y.dtype}")
    print(f"{'outputs' if data.regression else 'classes'}: {data.classes}; inputs: {data.inputs}")
    print(f"samples: {data.completeness}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
