"""Train a network on CIFAR-10 with any of the eight methods:  python examples/cifar10.py --method danp --arch fc3

Without CIFAR-10 on disk it trains on synthetic images, and says so. Every flag has a default; see --help. The paper's other data
sets do as well, with --dataset.
"""

import installed  # noqa: F401  isort: skip  says so in one line where npref is not
import argparse
import importlib
import os
import signal
import stat
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import datetime
from itertools import count
from pathlib import Path

from npref import METHODS, BackendUnavailable, datasets, get_backend
from npref.backend import BACKENDS
from npref.batches import INPUTS
from npref.command_line import Parser, broken_pipe, folder, in_words, printed, quoted
from npref.config import Config, default_lr
from npref.functions import ACTIVATIONS, LOSSES
from npref.network import ARCHITECTURES, DTYPES, INITS
from npref.noise import KINDS
from npref.optim import OPTIMIZERS
from npref.rules import ANP_NORMS
from npref.runlog import changes, environment, read_log
from npref.train import Diverged, Interrupted, train

HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows

# Flags that are part of the run's configuration: name -> (choices or type, help). Defaults are Config's.
FLAGS = {
    "method": (METHODS, "learning rule; a leading d decorrelates every layer's input"),
    "arch": (ARCHITECTURES, "architecture, by its name in the paper's Table 1; sarcos is Appendix J's"),
    "dataset": (datasets.DATASETS, "auto is CIFAR-10 where it is found, else synthetic"),
    "inputs": (INPUTS, "pixels as [0, 1], standardised by the training set, or numbers as they are; auto is the data set's own"),
    "backend": (BACKENDS, "numpy runs on the CPU, cupy on an NVIDIA GPU"),
    "dtype": (DTYPES, "of weights, activities and noise; losses are always float64"),
    "epochs": (int, "passes over the training set"),
    "batch_size": (int, "samples in a mini-batch"),
    "lr": (float, "learning rate of the weights; by default Table 2's for method and architecture, where it has one (on fc6, fc9 a tenth)"),
    "decor_lr": (float, "learning rate alpha of the decorrelation matrices R"),
    "sigma2": (float, "variance of the noise"),
    "samples": (int, "noise samples K per update"),
    "noise": (KINDS, "distribution of the noise"),
    "noisy_baseline": (bool, "compare two noisy passes, no clean one (np, anp, dnp, danp); train figures are then the noisy pass's"),
    "anp_norm": (ANP_NORMS, "ANP divides by the activity difference of the whole network (v2) or of each layer (v1)"),
    "loss": (LOSSES, "cross-entropy on logits, or squared error summed or averaged over outputs"),
    "optimizer": (OPTIMIZERS, "Adam as Kingma & Ba, Adam with epsilon-hat as in Keras, or plain SGD (needs --lr)"),
    "activation": (ACTIVATIONS, "of the hidden layers"),
    "init": (INITS, "initial weights"),
    "slope": (float, "of leaky ReLU below zero"),
    "bias": (bool, "give every layer biases"),
    "padding": (int, "zeros around every convolution's input"),
    "seed": (int, "of initial weights, order of samples, and noise"),
    "limit_train": (int, "use only the first so many training samples"),
    "limit_test": (int, "use only the first so many test samples"),
    "eval_train": (bool, "also measure the whole training set with fixed weights after every epoch"),
}


def add_flags(parser, names, **defaults):
    """A flag for each of these fields of the configuration. defaults: what its help is to say in place of Config's."""
    for f in fields(Config):
        if f.name not in names:
            continue
        kind, text = FLAGS[f.name]
        options = dict(default=argparse.SUPPRESS)  # so that the namespace tells which flags were given
        if kind is bool:
            options |= dict(action="store_true", help=f"{text} (default: no)")
        else:
            shown = ({"lr": "Table 2", "limit_train": "all", "limit_test": "all"} | defaults).get(f.name, f.default)
            options |= dict(help=f"{text} (default: {shown})")
            options |= dict(choices=kind) if isinstance(kind, tuple) else dict(type=kind, metavar=kind.__name__.upper())
        parser.add_argument("--" + f.name.replace("_", "-"), **options)


def add_place_flags(parser, out, plot, resume=None):
    """Where data and results are, and what is shown: --data-dir, --out, --resume, --plot, --quiet, with these words in their help."""
    parser.add_argument("--data-dir", type=folder, help="where the data sets are (default: $NPREF_DATA, then data/)")
    parser.add_argument("--out", type=folder, help=f"folder for {out}")
    if resume:
        parser.add_argument("--resume", type=folder, nargs="?", const=True, metavar="DIR", help=f"go on with {resume} (default: no)")
    parser.add_argument("--plot", action=argparse.BooleanOptionalAction, help=f"draw {plot} (default: if matplotlib is there)")
    parser.add_argument("--quiet", action="store_true", help="print the result only (default: no)")


def flags(config):
    """The flags that make this configuration: a list of words; what is at its default is left out, but for epochs.

    Epochs are always said: a run that goes on keeps its own otherwise, and lr_search.py has another default.
    """
    words = []
    for f in fields(Config):
        value, default = getattr(config, f.name), f.default
        if f.name == "lr" and config.optimizer != "sgd":
            default = default_lr(config.method, config.arch)
        if value != default or f.name in ("method", "arch", "dataset", "epochs"):
            words += ["--" + f.name.replace("_", "-"), *([] if value is True else [str(value)])]
    return words


def parse(arguments):
    parser = Parser(description="Train a network on CIFAR-10 with any of the eight methods.")
    add_flags(parser, FLAGS)
    add_place_flags(parser, "log, checkpoint and picture (default: runs/TIME-METHOD-ARCH-DATASET)", "the curves",
                    "the run in DIR, or in --out; its configuration is kept, --epochs may be raised")
    args = parser.parse_args(arguments)
    return args, given_flags(args)


def given_flags(args):
    """What was given of the configuration: {field: value}."""
    return {f.name: getattr(args, f.name) for f in fields(Config) if hasattr(args, f.name)}


def main(arguments=None):
    any_letters()
    args, given = parse(arguments)
    return exit_code(lambda stop: run(args, given, stop))


def any_letters():
    """Let a terminal without Greek letters show ?, and the run go on."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # neither closed by the caller nor put in another's place
            stream.reconfigure(errors="replace")


def exit_code(work):
    """work(stop), with signals and errors made into one line and an exit code; stop() tells whether a signal has come."""
    stopping = []
    try:
        def ask(number, frame):  # the first signal asks for a clean stop, the second ends it here, a third would do so anywhere
            stopping.append(number)
            if number == HANGUP:  # as a terminal closes, from the shell and from the system: so a second one is not a second wish
                silence_terminal()
                return
            if len(stopping) > 1:
                for each in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(each, signal.SIG_DFL)
                raise SystemExit(128 + number)
            if sys.stderr is not None and sys.stderr.isatty():
                print("stopping after this step; once more to stop at once", file=sys.stderr)

        signal.signal(signal.SIGINT, ask)
        signal.signal(signal.SIGTERM, ask)
        if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(HANGUP, ask)
        return printed(work(lambda: bool(stopping)))
    except Interrupted as error:
        code, said = 128 + stopping[0], str(error)
    except BrokenPipeError:  # what is finished is saved
        return broken_pipe()
    except Diverged as error:
        code, said = 3, f"error: {error}"
    except MemoryError as error:
        code, said = 2, f"error: out of memory ({' '.join(str(error).split())}): use a smaller --batch-size or --arch, or less padding"
    except (ValueError, TypeError, OSError, BackendUnavailable) as error:
        code, said = 2, in_words(error)
    with suppress(OSError):  # where nothing can be said, the code tells
        print(said, file=sys.stderr)
    return code


def silence_terminal():
    """Lead output that went to a terminal nowhere: once that has closed, to write is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):
        with suppress(OSError):  # closed by the caller
            if stat.S_ISCHR(os.fstat(standard).st_mode):  # isatty is false once it has closed
                os.dup2(nowhere, standard)
    os.close(nowhere)


def run(args, given, stop):
    say = (lambda *words: None) if args.quiet else lambda *words: print(*words, flush=True)
    out = asked_folder(args)
    if args.resume is not None:
        saved = read_log(out / "checkpoint.h5")  # its head; the weights come later
        if not saved["config"].keys() <= Config.__dataclass_fields__.keys():
            raise ValueError(f"{out / 'checkpoint.h5'} is not of a training run, or of another version of npref")
        config = Config(**{**saved["config"], **given})
    else:
        config = Config(**given)
    plot = plotter(args.plot)
    if args.resume is not None and args.plot and not given and len(saved["rows"]) >= config.epochs:  # nothing is left to do, but this
        print(f"picture: {plot.plot_run(saved, out / 'curves.png')}")
        return 0
    backend = get_backend(config.backend)  # before any work, to say so if it cannot work
    data = datasets.load(config.dataset, args.data_dir, config.limit_train, config.limit_test)
    what = "images" if data.x_train.ndim == 4 else "samples"
    say_data(f"{data.source}; {len(data.x_train)} training and {len(data.x_test)} test {what}", config.dataset, data, args.quiet)
    bar, new = Bar(args.quiet), out is None
    if new:
        out = new_folder(Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{config.method}-{config.arch}-{data.name}")
    if plot is not None:
        spare_pictures(out, ("log.h5", "checkpoint.h5"), "curves.png")
    try:
        with warn_in_lines():
            epochs = train(config, data, out, resume=args.resume is not None, progress=bar.show, stop=stop)
    except BaseException:
        if new:
            with suppress(OSError):  # empty, unless it has begun
                out.rmdir()
        raise
    if args.resume is not None and (changed := changes(saved["environment"], environment(backend))):
        note(f"{changed}: the weights may differ in their last bits from an uninterrupted run's", args.quiet)
    say(f"run: {config.method} on {config.arch}, {config.optimizer} with lr {config.lr:g}, seed {config.seed}, "
        f"{config.backend} {config.dtype}")
    try:
        for row in epochs:
            bar.close()
            say(line(row, config.epochs))
    except Interrupted as error:
        raise Interrupted(f"{error}; all is saved, go on with --resume {quoted(out)}{data_flag(args)}") from None
    except Diverged as error:
        raise Diverged(f"{error}; the log so far and the last good checkpoint are in {out}") from None
    finally:
        bar.close()
    log = read_log(out / "log.h5")
    print(f"{config.method} {config.arch} on {data.name}: {summary(log['rows'])}")
    print(f"log: {out / 'log.h5'}\ncheckpoint: {out / 'checkpoint.h5'}")
    if plot is not None:
        print(f"picture: {plot.plot_run(log, out / 'curves.png')}")
    elif args.plot is None:
        print("picture: none, matplotlib cannot be imported; pip install -e \".[examples]\"")
    return 0


def asked_folder(args):
    """The folder that --out or --resume names, or None."""
    if args.resume is None:
        return args.out
    out = args.out if args.resume is True else args.resume
    if out is None or (args.out is not None and args.out != out):
        raise ValueError("--resume needs one folder: --resume DIR, or --out DIR --resume")
    return out


def say_data(text, asked, data, quiet):
    """Say what was loaded; where only the result is asked for, on stderr, and only of a stand-in that nobody asked for."""
    if not quiet or (asked == "auto" and data.name == "synthetic"):
        print(f"data: {text}", file=sys.stderr if quiet else sys.stdout, flush=True)


def data_flag(args):
    """The flag that a run needs again to go on, if it was given."""
    return f" --data-dir {quoted(args.data_dir)}" if args.data_dir is not None else ""


def spare_pictures(out, logs, *pictures):
    """Raise FileExistsError if the folder has a file of such a name (or pattern), and none of the logs whose picture it would be."""
    taken = [path for picture in pictures for path in sorted(out.glob(picture))]
    if taken and not any((out / name).exists() for name in logs):
        raise FileExistsError(f"{taken[0]} is there already: choose another folder, or --no-plot")


@contextmanager
def warn_in_lines():
    """What is warned of meanwhile is put as one line each on stderr, the same line once."""
    said = set()

    def show(message, *details, **more):
        line = "warning: " + " ".join(str(message).split())
        if line not in said:
            print(line, file=sys.stderr)
        said.add(line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def summary(rows):
    """Peak and final accuracy or, where there are no labels, loss."""
    quantity, best, form = ("accuracy", max, ".1%") if "test_accuracy" in rows[0] else ("loss", min, ".4g")
    train, test = ([row[f"{part}_{quantity}"] for row in rows] for part in ("train", "test"))
    peak = best(test)
    name = "peak" if best is max else "lowest"
    return (f"{name} test {quantity} {peak:{form}} (epoch {rows[test.index(peak)]['epoch']}), {name} train {best(train):{form}}; "
            f"final test {test[-1]:{form}}, train {train[-1]:{form}}")


def note(text, quiet):
    """Say what the user should know, on stderr where only the result is asked for."""
    print(f"note: {text}", file=sys.stderr if quiet else sys.stdout, flush=True)


def line(row, epochs):
    def figures(part):
        accuracy = f" {row[f'{part}_accuracy']:6.1%}" if f"{part}_accuracy" in row else ""
        return f"{row[f'{part}_loss']:.4f}{accuracy}"

    text = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  train {figures('train')}  test {figures('test')}"
    if "eval_train_loss" in row:
        text += f"  whole train {figures('eval_train')}"
    if "correlation" in row:
        text += f"  corr² {row['correlation']:.2e}"
    return f"{text}  {row['seconds']:.1f} s"


class Bar:
    """A progress bar for the epoch (or other work) under way, on a terminal only."""

    def __init__(self, quiet, unit="batch"):
        self.unit = unit
        try:
            from tqdm import tqdm
        except ImportError:
            tqdm = None
        self.tqdm = tqdm if sys.stderr is not None and sys.stderr.isatty() and not quiet else None
        self.bar = None

    def show(self, done, of):
        if self.tqdm is not None:
            self.bar = self.bar or self.tqdm(total=of, initial=done, leave=False, unit=self.unit)
            self.bar.update(done - self.bar.n)

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def plotter(wanted, module="plots"):
    """The module that draws, or None. Asked for in so many words, its absence is an error."""
    if wanted is False:
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken matplotlib raises anything
        if wanted:
            raise ValueError(f"drawing needs matplotlib ({error}): pip install -e \".[examples]\"") from error
        return None


def new_folder(path):
    """Make the folder, or path-1, path-2, … where there is one already: that of a run which began in the same second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for i in count():
        with suppress(FileExistsError):
            made = path.with_name(f"{path.name}-{i}") if i else path
            made.mkdir()
            return made


if __name__ == "__main__":
    sys.exit(main())
