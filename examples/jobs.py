"""The processes that a recipe takes, and running them: several at a time, with how far they are and what is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cifar10 import flags
from lr_search import best, doubt
from recipes import RECIPES
from results import (
    alignment_name,
    cell_config,
    check_complete,
    check_name,
    kind_of,
    measurement_name,
    run_name,
    search_name,
    value,
    without_backend,
)

from npref.execution import cores
from npref.runlog import locked, read_log
from npref.train import Interrupted

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One process: a script of this folder with its arguments, and the folder and log that it writes.

    epochs: how many rows a run will have; how many epochs a search tries each rate for.
    """

    script: str
    arguments: tuple
    folder: Path
    log: str = "log.h5"
    epochs: int = 1

    def so_far(self):
        """Its log so far, None without one. Raises ValueError or OSError for one that is damaged, or of another run."""
        path = self.folder / self.log
        if not path.is_file():
            return None
        try:
            log = read_log(path)
        except ValueError as error:
            try:
                read_log(path.with_name("checkpoint.h5"))
            except (ValueError, OSError):
                raise error from None
            raise ValueError(f"{error}; or delete it: the same command makes it anew from checkpoint.h5") from error
        try:
            check_complete(log)
            check_name(self.folder.name, log)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
        return log

    def rows(self):
        """(status, rows) of its log so far; ("new", []) without one."""
        log = self.so_far()
        return ("new", []) if log is None else (log["status"], log["rows"])

    def ended(self, log):
        """Whether nothing is left to do where there is this log."""
        if self.log == "search.h5":
            return log["status"] == "finished" and log["config"]["epochs"] == self.epochs
        if log["status"].startswith("diverged"):
            return True
        if self.log == "alignment.h5":
            return log["status"] == "finished"
        further = len(log["rows"]) - self.epochs  # than is asked for here, and not to be cut short
        return further > 0 or further == 0 and log["status"] == "finished"

    def done(self):
        log = self.so_far()
        return log is not None and self.ended(log)

    def recorded(self, results):
        """The log with which it is done among the recorded results, {name: log}, on its own backend or another; or None."""
        own = self.folder.name
        names = sorted((name for name in results if without_backend(name) == without_backend(own)), key=lambda name: name != own)
        return next((results[name] for name in names if self.ended(results[name])), None)


def cells_of(name, args):
    return [cell for cell in RECIPES[name].cells if (not args.methods or cell.method in args.methods)
            and (not args.archs or cell.arch in args.archs) and (not args.samples or dict(cell.options).get("samples", 1) in args.samples)]


def search_jobs(name, data, args):
    """The searches for learning rates that the recipe's cells need."""
    for cell in cells_of(name, args):
        if cell.search is not None:
            config, folder = search_config(cell, name, data, args)
            words = flags(config)
            at = words.index("--lr")
            del words[at : at + 2]  # --start says it
            seeds = map(str, range(RECIPES[name].search_seeds))
            words += ["--seeds", *seeds, "--start", str(cell.search), "--out", str(folder), "--no-plot"]
            yield Job("lr_search.py", (*words, *place(config.dataset, args)), folder, "search.h5", config.epochs)


def search_config(cell, name, data, args):
    """The Config of a cell's search and its folder; a search of fewer epochs than the recipe's has a folder of its own."""
    whole = RECIPES[name].search_epochs
    config = cell_config(cell, data[cell.dataset], lr=cell.search, epochs=min(whole, args.epochs or whole), backend=args.backend,
                         limit_train=args.limit_train)
    return config, args.runs / search_name(config, config.epochs < whole)


def training_jobs(name, data, args, failed, results):
    """The runs of the recipe's cells, seed by seed. A cell whose rate is searched has none until the search has ended.

    failed: a line is added for a search that found no rate, unless there is one. results: of recorded searches, {name: log}.
    """
    recipe = RECIPES[name]
    for seed in () if recipe.searches_only else args.seeds or range(recipe.seeds):
        for cell in cells_of(name, args):
            rate = {}
            if cell.search is not None:
                config, folder = search_config(cell, name, data, args)
                job = Job("lr_search.py", (), folder, "search.h5", config.epochs)
                try:
                    log = job.so_far() if job.done() else job.recorded(results)
                    if log is None:
                        continue
                    rate = {"lr": best(log["rows"])}
                except (ValueError, OSError) as error:
                    if not any(line.startswith(f"{folder.name}: ") for line in failed):
                        failed.append(f"{folder.name}: {error}")
                    continue
            config = cell_config(cell, data[cell.dataset], seed=seed, epochs=args.epochs or recipe.epochs, backend=args.backend,
                                 limit_train=args.limit_train, **rate)
            folder = args.runs / run_name(config)
            words = (*flags(config), "--out", str(folder), "--no-plot", "--quiet", *place(config.dataset, args))
            yield Job("cifar10.py", words, folder, epochs=config.epochs)


def alignment_jobs(name, data, args):
    recipe = RECIPES[name]
    if recipe.alignment:
        folder = args.runs / measurement_name(alignment_name(name), data["cifar10"], args.limit_train, args.backend)
        limit = ("--limit-train", str(args.limit_train)) if args.limit_train else ()
        yield Job("alignment.py", (*recipe.alignment, "--dataset", data["cifar10"], "--backend", args.backend, *limit, "--out", str(folder),
                                   "--no-plot", *place(data["cifar10"], args)), folder, "alignment.h5")


def place(dataset, args):
    """--data-dir, for a data set that is looked for."""
    return () if args.data_dir is None or dataset.startswith("synthetic") else ("--data-dir", str(args.data_dir))


def wanted(jobs, results):
    """Each folder once, in order, with the most epochs asked for, without those that these results have, {name: log}."""
    longest = {}
    for job in jobs:
        if job.folder not in longest or job.epochs > longest[job.folder].epochs:
            longest[job.folder] = job
    left = [job for job in longest.values() if not job.recorded(results)]
    if len(left) < len(longest):
        print(f"{len(longest) - len(left)} of {len(longest)} runs are recorded already", flush=True)
    return left


def left_to_do(jobs):
    """(the jobs whose logs can be read, those of them that are not done, a line for each of the others)."""
    whole, left, failed = [], [], []
    for job in jobs:
        try:
            left += [] if job.done() else [job]
            whole.append(job)
        except (ValueError, OSError) as error:  # a damaged log, or one that cannot be read
            failed.append(f"{job.folder.name}: {error}")
    if len(whole) > len(left):
        print(f"{len(whole) - len(left)} of {len(whole)} runs are done already", flush=True)
    return whole, left, failed


def work(jobs, args, stop, recorded):
    """Run the jobs that are not done, `args.jobs` at a time, and show how far they are; returns a line for each that failed.

    recorded: recorded results, {name: log}, whose times are the first estimate.
    """
    jobs, waiting, failed = left_to_do(jobs)
    running, total, display, told = {}, len(waiting), Display(jobs, recorded), False
    if ahead := display.left(waiting, running, args.jobs):
        print(f"{total} of {len(jobs)} runs to go{ahead}, by the times of runs so far and of recorded ones", flush=True)
    try:
        while waiting or running:
            for job in [job for job in waiting if free(job)][: args.jobs - len(running)]:
                waiting.remove(job)
                said = ""
                try:
                    if job.done():
                        said = "done by another process"
                    else:
                        running[job] = start(job, args)
                except (ValueError, OSError) as error:
                    said = f"failed, {error}"
                    failed.append(f"{job.folder.name}: {error}")
                    jobs.remove(job)
                if said:
                    print(f"[{total - len(waiting) - len(running)}/{total}] {job.folder.name}: {said}", flush=True)
            if waiting and not running and not told and not any(map(free, waiting)):
                print(f"waiting for {len(waiting)} runs that another process is working on", flush=True)
                told = True
            time.sleep(0.2)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                code = running.pop(job).returncode
                try:
                    status, rows = job.rows()
                except (ValueError, OSError) as error:
                    failed.append(f"{job.folder.name}: {error}")
                    jobs.remove(job)
                    continue
                if code == 2 and (not free(job) or "another process is writing" in (said := said_last(job, code))
                                  or "holds a run already" in said and going_on(job)):  # another was a moment faster
                    waiting.append(job)
                    continue
                # A run killed as it ended need only complete its log; another process may have ended it, or gone on with it to more epochs.
                ok = (job.log == "log.h5" and code == 0 and len(rows) >= job.epochs or job.done()
                      and (job.log != "search.h5" or any(row["train_loss"] == row["train_loss"] for row in rows)))  # not NaN, diverged
                if not ok:
                    failed.append(f"{job.folder.name}: {f'exit code {code}: ' if code >= 0 else ''}{said_last(job, code)}")
                display.close()
                came_to = result(job, status, rows) if ok else f"failed, {said_last(job, code)}"
                print(f"[{total - len(waiting) - len(running)}/{total}] {job.folder.name}: {came_to}"
                      f"{display.left(waiting, running, args.jobs)}", flush=True)
            display.show(waiting, running, args.jobs)
            if stop():
                raise Interrupted(f"stopped with {len(running) + len(waiting)} of {total} runs to go; what they have done is saved, go on "
                                  "with the same command")
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)  # each saves itself after its step
        for process in running.values():
            process.wait()
        display.close()
    return failed


def free(job):
    """Whether no other process is at it. Where that cannot be told, to start it says why."""
    try:
        return not locked(job.folder)
    except OSError:
        return True


def start(job, args):
    """The job's process, in a session of its own, so that Ctrl-C reaches it once, by way of us. Its words go to output.txt."""
    job.folder.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ)
    if args.jobs > 1:
        env.setdefault("OPENBLAS_NUM_THREADS", str(max(1, cores() // args.jobs)))
    with open(job.folder / "output.txt", "w") as output:
        return subprocess.Popen([sys.executable, str(HERE / job.script), *job.arguments, *(["--resume"] if going_on(job) else [])], env=env,
                                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def going_on(job):
    """Whether a script is to be told to go on with what is in its folder; a search does so unasked."""
    return job.log != "search.h5" and (job.folder / ("checkpoint.h5" if job.log == "log.h5" else job.log)).exists()


def said_last(job, code):
    """The last line of a process that has ended with this exit code, or what can be said in its place."""
    if code < 0:
        why = ", perhaps as memory ran out" if -code == signal.SIGKILL else ""
        return f"killed by signal {-code}, {signal.strsignal(-code)}{why}; what it has saved stays, the same command goes on"
    try:
        lines = (job.folder / "output.txt").read_text(errors="replace").split("\n")
        if said := next((line for line in reversed(lines) if line.strip()), ""):
            return said
        return "it said nothing" + ", as the disk is full" * (shutil.disk_usage(job.folder).free < 1 << 20)
    except OSError as error:
        return f"what it said cannot be read: {error}"


def result(job, status, rows):
    """What a run that has ended well, or diverged, came to."""
    if status.startswith("diverged"):
        return status
    if job.log == "search.h5":
        return f"learning rate {best(rows):g}{doubt(rows)}"
    if job.log == "alignment.h5":
        return "measured"
    train, test = value({"rows": rows})
    form = "{:.1f}% / {:.1f}%, peak train / test accuracy" if "test_accuracy" in rows[0] else "{:.4g} / {:.4g}, final train / test loss"
    return form.format(train, test) + f" of {len(rows)} epochs"


class Display:
    """How far all runs are: a bar on a terminal, and the time left."""

    def __init__(self, jobs, recorded):
        self.jobs, self.bar, self.looked = jobs, None, 0.0
        self.recorded = {without_seed(name): pace_of(log["rows"]) for name, log in recorded.items()
                         if kind_of(log) == "train" and log["rows"]}
        self.tqdm = find_spec("tqdm") is not None and sys.stderr is not None and sys.stderr.isatty()

    def remaining(self, waiting, running):
        """(seconds, or None where no epoch has been timed yet; epochs done; epochs in all).

        A run without an epoch so far is taken to be as fast as a recorded one with any seed, or as an average one.
        """
        states = {}
        for job in self.jobs:
            if job.log == "log.h5":
                with suppress(ValueError, OSError):  # a log that cannot be read is told of where its run is started, or ends
                    states[job] = job.rows()[1]
        pace = {job: self.recorded[name] for job in states if (name := without_seed(job.folder.name)) in self.recorded}
        pace |= {job: pace_of(rows) for job, rows in states.items() if rows}
        if not pace:
            return None, 0, sum(job.epochs for job in states)
        average = sum(pace.values()) / len(pace)
        left = sum((job.epochs - len(states[job])) * pace.get(job, average) for job in [*waiting, *running] if job in states)
        done = sum(min(len(rows), job.epochs) for job, rows in states.items())
        return left, done, sum(job.epochs for job in states)

    def left(self, waiting, running, jobs):
        seconds = self.remaining(waiting, running)[0]
        return f"; about {duration(seconds / self.at_once(waiting, running, jobs))} left" if seconds else ""

    @staticmethod
    def at_once(waiting, running, jobs):
        """How many processes share what is left."""
        return max(1, min(jobs, len(waiting) + len(running)))

    def show(self, waiting, running, jobs):
        if not self.tqdm or time.monotonic() - self.looked < 2:
            return
        from tqdm import tqdm

        self.looked = time.monotonic()
        seconds, done, total = self.remaining(waiting, running)
        self.bar = self.bar or tqdm(total=total, unit="epoch", leave=False, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} epochs {postfix}")
        self.bar.n = done
        left = f"; {duration(seconds / self.at_once(waiting, running, jobs))} left" if seconds else ""
        self.bar.set_postfix_str(", ".join(job.folder.name for job in running) + left)

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def pace_of(rows):
    """Seconds an epoch took."""
    return sum(row["seconds"] for row in rows) / len(rows)


def without_seed(name):
    """A training run's name without its seed."""
    return name.rsplit("-s", 1)[0]


def duration(seconds):
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
