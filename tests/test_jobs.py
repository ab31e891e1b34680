"""The processes of recipes: what is run, gone on with, waited for, and stopped."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import asdict
from pathlib import Path

import jobs
import lr_search
import pytest
import results
from conftest import ROOT
from recipes import Cell
from test_reproduce import SMALL, recipe

from npref.config import Config
from npref.runlog import lock, locked, read_log, unlock, write_log


@pytest.fixture
def run(run_reproduce):
    return run_reproduce


def test_a_log_behind_its_checkpoint_is_completed(run, tmp_path):
    """As after a kill between the last checkpoint and the last log: nothing has failed."""
    words = ["run", "v2-figure3", "--archs", "fc1", "--methods", "bp", "--seeds", "0", *SMALL, "--epochs", "2"]
    assert run(*words)[0] == 0
    path = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/log.h5"
    log = read_log(path)
    write_log(path, log["config"], log["environment"], log["rows"][:1], "running")
    code, out, err = run(*words)
    assert code == 0 and err == "" and "of 2 epochs" in out and read_log(path)["rows"] == log["rows"], (out, err)


def test_a_run_that_went_further_is_not_cut_short(run, tmp_path):
    """Stopped or not: it has all epochs that are asked for."""
    words = ["run", "v2-figure3", "--archs", "fc1", "--methods", "bp", "--seeds", "0", *SMALL]
    assert run(*words, "--epochs", "3")[0] == 0
    path = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/log.h5"
    log = read_log(path)
    write_log(path, log["config"] | {"epochs": 50}, log["environment"], log["rows"], "interrupted")
    before = path.read_bytes()
    code, out, err = run(*words, "--epochs", "2")
    assert (code, err) == (0, "") and "1 of 1 runs are done already" in out and path.read_bytes() == before


@pytest.mark.parametrize("names", [("v2-table3", "why-deep"), ("why-deep", "v2-table3")])
def test_a_run_that_recipes_share_takes_the_most_epochs(run, names):
    """50 and 25 here, whichever is named first."""
    out = run("run", *names, "--archs", "fc6", "--methods", "dinp", "--seeds", "0", "--synthetic", "--dry-run")[1]
    assert re.findall(r"--epochs (\d+) --out \S*/synthetic-fc6-dinp-s0 ", out) == ["50"]


def test_a_folder_with_another_run_is_left_alone(run, monkeypatch, tmp_path):
    """A training run's, or a search's, by whose rate others would be trained."""
    words = ["run", "v2-figure3", "--archs", "fc1", "--methods", "bp", *SMALL, "--epochs", "1", "--seeds"]
    assert run(*words, "0")[0] == 0
    own = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0"
    moved = own.rename(own.with_name(own.name.replace("s0", "s1")))
    before = (moved / "log.h5").read_bytes()
    code, out, err = run(*words, "1", "2")
    words = f"failed: {moved.name}: runs/reproduce/{moved.name}/log.h5: it is of something else than its name says ({own.name})"
    assert code == 1 and words in err
    assert "[1/1] synthetic-fc1-bp-limit-train-40-s2: " in out and (moved / "log.h5").read_bytes() == before
    recipe(monkeypatch, *(Cell(method, "fc1", options=(("optimizer", "sgd"), ("loss", "mse")), search=0.25) for method in ("bp", "np")))
    assert run("run", "mine", "--methods", "np", *SMALL, "--epochs", "1")[0] == 0
    own = tmp_path / "runs/reproduce/search-synthetic-fc1-np-loss-mse-optimizer-sgd-limit-train-40-epochs-1"
    moved = own.rename(own.with_name(own.name.replace("np", "bp")))
    code, out, err = run("run", "mine", "--methods", "bp", *SMALL, "--epochs", "1")
    assert code == 1 and f"failed: {moved.name}: " in err and "cifar10.py" not in out and not list(tmp_path.glob("runs/*/*bp*lr*"))


def test_recorded_runs_tell_how_long_it_will_take(run, tmp_path):
    words = ["run", "v2-figure3", "--archs", "fc1", "--methods", "bp", "np", "--seeds", "0", *SMALL, "--epochs", "2"]
    row = {"train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5}
    rows = [{"epoch": i, **row, "seconds": seconds} for i, seconds in ((1, 1800.0), (2, 5400.0))]
    config = Config(method="bp", arch="fc1", dataset="synthetic", limit_train=40, seed=7, epochs=2)
    log = {"config": asdict(config), "environment": {}, "status": "finished", "rows": rows}
    (tmp_path / "results/logs").mkdir(parents=True)
    results.write_text(tmp_path / "results/logs/synthetic-fc1-bp-limit-train-40-s7.tsv", log)  # of another seed
    code, out, _ = run(*words)
    assert code == 0 and "2 of 2 runs to go; about 4 h 0 min left, by the times" in out  # NP, never timed, is taken to be as fast
    assert "[2/2]" in out and "[1/2] synthetic-fc1-bp" in out and " h " not in out.partition("[2/2]")[2]
    out = run(*words, "--epochs", "3")[1]
    assert "2 of 2 runs to go; about 1 min left" in out  # now they are timed


def test_a_search_of_other_epochs_is_another(run, tmp_path):
    words = ["run", "v1-figure2", "--methods", "bp", "--seeds", "0", *SMALL, "--epochs"]
    assert run(*words, "1")[0] == run(*words, "2")[0] == run(*words, "3")[0] == 0
    searches = [read_log(path)["config"]["epochs"] for path in sorted((tmp_path / "runs/reproduce").glob("search-*/search.h5"))]
    assert searches == [2, 1]


def test_a_search_without_a_stable_rate_stops_nothing_else(run, monkeypatch):
    recipe(monkeypatch, Cell("bp", "fc1", options=(("optimizer", "sgd"),), search=1e38), Cell("np", "fc1"))
    for _ in range(2):
        code, out, err = run("run", "mine", *SMALL)
        assert code == 1 and err.count("failed: search-synthetic-fc1-bp-") == 1 and "every learning rate from 1e+38 on diverged" in err
        assert "synthetic-fc1-np" in out or "1 of 1 runs are done already" in out
    code, out, err = run("run", "mine", *SMALL, "--dry-run")
    assert code == 1 and "python " not in out and err.count("failed: ") == 1 and "every learning rate from 1e+38 on diverged" in err


def test_a_damaged_log_stops_nothing_else(run, monkeypatch, tmp_path):
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"))
    assert run("run", "mine", *SMALL, "--methods", "bp")[0] == 0
    path = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/log.h5"
    path.write_bytes(path.read_bytes()[:-10])
    code, out, err = run("run", "mine", *SMALL, "--dry-run")
    assert code == 1 and "failed: synthetic-fc1-bp-" in err and "damaged" in err and "cifar10.py --method np" in out, (out, err)
    code, out, err = run("run", "mine", *SMALL)
    assert code == 1 and "failed: synthetic-fc1-bp-" in err and "damaged" in err and "[1/1] synthetic-fc1-np" in out, (out, err)
    (tmp_path / "runs/reproduce/nowhere").mkdir()
    (tmp_path / "runs/reproduce/nowhere/log.h5").symlink_to("gone")
    code, out, err = run("table", "mine")
    assert code == 0 and err.count("warning: left out: ") == 2 and "| fc1 | BP | – / – | not run" in out and out.count("not run") == 2


def test_rates_are_searched_first(run, tmp_path):
    words = ["run", "v1-figure2", "--methods", "bp", "--seeds", "0", *SMALL, "--epochs", "1"]
    code, out, err = run(*words)
    assert code == 0 and err == "", (out, err)
    folder, = (tmp_path / "runs/reproduce").glob("search-*")
    rate = lr_search.best(read_log(folder / "search.h5")["rows"])
    log, = (read_log(path) for path in (tmp_path / "runs/reproduce").glob("*/log.h5"))
    assert log["config"]["lr"] == rate and log["config"]["loss"] == "mse" and log["config"]["optimizer"] == "sgd"
    assert folder.name == "search-synthetic-fc1-bp-loss-mse-optimizer-sgd-limit-train-40-epochs-1"
    assert f"lr {rate:.3g} (paper 8e-06)" in run("table", "v1-figure2")[1]
    assert run("table", "v1-table2")[1].count("not run") == 23
    assert f"| fc1 | BP | 8e-06 | {rate:.3g} | 1e-06 to " in run("table", "v1-table2")[1]
    assert "| 1 epochs a rate; on synthetic; 40 training samples; but all have one training loss, so " in run("table", "v1-table2")[1]
    assert f"learning rate {rate:g}; but all have one training loss" in out  # one step, before which all weights are alike
    assert "(v1, Table 2): 1 of 24 rates searched" in run("list")[1]
    code, out, _ = run("run", "v1-table2", "--archs", "fc1", "--methods", "bp", *SMALL, "--epochs", "1")  # searches only
    assert code == 0 and out.count("done already") == 1 and "[" not in out
    assert run("plot", "v1-table2")[0] == 0 and (tmp_path / "runs/reproduce/v1-table2.png").stat().st_size > 5000


def test_divergence_is_recorded_and_the_rest_goes_on(run, monkeypatch):
    wild = Cell("bp", "fc1", options=(("optimizer", "sgd"), ("lr", 1e38)), paper=(1.0, 2.0))
    recipe(monkeypatch, wild, Cell("np", "fc1", paper=(1.0, 2.0)))
    code, out, err = run("run", "mine", *SMALL)
    assert code == 0 and err == "" and "diverged: bp diverged in epoch" in out and "[2/2] synthetic-fc1-np" in out, (out, err)
    assert "1 of 1" not in out
    code, out, _ = run("run", "mine", *SMALL)
    assert code == 0 and "2 of 2 runs are done already" in out
    assert "| fc1 | BP, lr 1e+38 | 1 / 2 | diverged | diverged | | | 1 | 0 | |" in run("table", "mine")[1]


def test_a_divergence_after_the_epochs_that_count(run, monkeypatch, tmp_path):
    cell = Cell("bp", "fc1", paper=(1.0, 2.0))
    recipe(monkeypatch, cell)
    config = results.cell_config(cell, "cifar10")
    rows = [{"epoch": i, "train_loss": 1.0, "train_accuracy": i / 10, "test_loss": 1.0, "test_accuracy": i / 10, "seconds": 1.0}
            for i in (1, 2, 3)]
    (tmp_path / "runs/reproduce/cifar10-fc1-bp-s0").mkdir(parents=True)
    write_log(tmp_path / "runs/reproduce/cifar10-fc1-bp-s0/log.h5", asdict(config), {}, rows, "diverged: bp diverged in epoch 4")
    assert "30.0 | 30.0 | +28.0 |  | 1 | 3 | 1 | diverged: seed 0 in epoch 4 |" in run("table", "mine")[1]
    for until in (1, 2, 3):
        out = run("table", "mine", "--until", str(until))[1]
        assert f"{until}0.0 | {until}0.0 | {10 * until - 2:+.1f} |  | 1 | {until} | 1 |  |" in out
    assert "diverged: seed 0 in epoch 4" in run("table", "mine", "--until", "4")[1]


def test_a_failure_is_told_and_the_rest_goes_on(run, monkeypatch, tmp_path):
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"))
    assert run("run", "mine", *SMALL, "--epochs", "1")[0] == 0
    checkpoint = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/checkpoint.h5"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    code, out, err = run("run", "mine", *SMALL, "--epochs", "2")
    assert code == 1 and "failed: synthetic-fc1-bp-limit-train-40-s0: exit code 2: error: " in err and "damaged" in err
    assert "[2/2] synthetic-fc1-np-limit-train-40-s0: " in out and "of 2 epochs" in out


def test_a_folder_that_cannot_be_used_stops_nothing_else(run, monkeypatch, tmp_path):
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"), Cell("dnp", "fc1"))
    folder = tmp_path / "runs/reproduce"
    (folder / "synthetic-fc1-np-limit-train-40-s0/output.txt").mkdir(parents=True)
    (folder / "synthetic-fc1-bp-limit-train-40-s0").write_text("mine")
    code, out, err = run("run", "mine", *SMALL, "--epochs", "1")
    assert code == 1 and "[1/3] synthetic-fc1-bp-limit-train-40-s0: failed, " in out and "[3/3] synthetic-fc1-dnp" in out, (out, err)
    assert "waiting for" not in out
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"synthetic-fc1-{m}-limit-train-40-s0" for m in ("bp", "np")]
    assert (folder / "synthetic-fc1-bp-limit-train-40-s0").read_text() == "mine"


def test_a_log_that_is_damaged_meanwhile_stops_nothing_else(run, monkeypatch, tmp_path):
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"), Cell("dnp", "fc1"))
    start = jobs.start

    def spoiling(job, args):
        if "-bp-" in job.folder.name:
            for method in "bp", "np":
                folder = job.folder.with_name(job.folder.name.replace("-bp-", f"-{method}-"))
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "log.h5").write_text("mine")
        return start(job, args)

    monkeypatch.setattr(jobs, "start", spoiling)
    code, out, err = run("run", "mine", *SMALL, "--epochs", "1")
    assert code == 1 and "[3/3] synthetic-fc1-dnp" in out, (out, err)
    assert err.count("failed: ") == 2 and "synthetic-fc1-bp-" in err and "synthetic-fc1-np-" in err


def test_a_stop_loses_less_than_an_epoch(tmp_path):
    """Ctrl-C in the middle of a run; the same command goes on and ends as an uninterrupted one does."""
    env = {**os.environ, "NPREF_DATA": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    words = "run v2-figure3 --synthetic --archs fc1 --methods dnp --seeds 0 --limit-train 200 --epochs".split()
    (tmp_path / "results").mkdir()

    def start(runs, epochs):
        places = ["--runs", tmp_path / runs, "--results", tmp_path / "results"]
        return subprocess.Popen([sys.executable, ROOT / "examples/reproduce.py", *words, str(epochs), *places], env=env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    process, log = start("a", 300), tmp_path / "a/synthetic-fc1-dnp-limit-train-200-s0/log.h5"
    while not (log.exists() and len(read_log(log)["rows"]) >= 2):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped with 1 of 1 runs to go; what they have done is saved, go on with the same command" in err
    before = read_log(log)
    assert before["status"] == "interrupted" and 2 <= len(before["rows"]) < 300
    epochs = len(before["rows"]) + 1
    for runs in ("a", "b"):
        out, err = (process := start(runs, epochs)).communicate(timeout=120)
        assert process.returncode == 0, (out, err)
    after, whole = (read_log(tmp_path / runs / log.parent.name / "log.h5")["rows"] for runs in ("a", "b"))
    assert after[:-1] == before["rows"] and len(after) == epochs
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in after] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in whole]


def test_two_signals_in_a_row_leave_nothing_running(tmp_path):
    process = subprocess.Popen([sys.executable, ROOT / "examples/reproduce.py", "run", "v2-figure3", "--synthetic", "--archs", "fc1",
                                "--methods", "dnp", "--seeds", "0", "--limit-train", "200", "--epochs", "100000", "--runs", tmp_path / "a",
                                "--results", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "a/synthetic-fc1-dnp-limit-train-200-s0"
    while not ((folder / "log.h5").exists() and read_log(folder / "log.h5")["rows"]):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    time.sleep(0.03)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, (out, err)
    end = time.monotonic() + 60
    while locked(folder):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert read_log(folder / "log.h5")["status"] == "interrupted"


@pytest.mark.parametrize("finished", [False, True])
def test_what_another_process_is_working_on_is_waited_for(run, tmp_path, finished):
    """It is run if the other process leaves it unfinished, and not if that has done it."""
    folders = [tmp_path / f"shared/synthetic-fc1-{method}-limit-train-40-s0" for method in ("bp", "np")]
    folders[0].mkdir(parents=True)
    held = lock(folders[0])
    assert locked(folders[0]) and not locked(folders[1])
    words = "run v2-figure3 --archs fc1 --methods bp np --seeds 0 --epochs 1 --runs".split()
    words += [tmp_path / "shared", *SMALL, "--results", tmp_path / "results"]
    process = subprocess.Popen([sys.executable, "-u", ROOT / "examples/reproduce.py", *words], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    lines = []
    while not (lines and lines[-1].startswith("waiting for 1 runs that another process is working on")):
        lines.append(process.stdout.readline())
        assert process.poll() is None, (lines, process.communicate())
    assert any("[1/2] synthetic-fc1-np-limit-train-40-s0: " in line for line in lines)
    assert not (folders[0] / "log.h5").exists()
    if finished:
        log = read_log(folders[1] / "log.h5")
        write_log(folders[0] / "log.h5", {**log["config"], "method": "bp"}, log["environment"], log["rows"], log["status"])
    unlock(held)
    out, err = process.communicate(timeout=60)
    result = "done by another process" if finished else "% / "
    assert process.returncode == 0 and err == "" and f"[2/2] synthetic-fc1-bp-limit-train-40-s0: {result}" in re.sub(r"[\d.]+%", "%", out)
    assert all(read_log(folder / "log.h5")["status"] == "finished" for folder in folders)
    assert (folders[0] / "checkpoint.h5").exists() is not finished


def test_a_process_that_came_second_is_started_again(run, tmp_path, monkeypatch):
    recipe(monkeypatch, Cell("bp", "fc1"), epochs=1)
    folder, start, held = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0", jobs.start, []

    def late(job, args):
        if held:
            return start(job, args)
        job.folder.mkdir(parents=True)
        held.append(lock(job.folder))
        process = start(job, args)
        assert process.wait() == 2 and "another process is writing the run" in (folder / "output.txt").read_text()
        threading.Timer(0.5, unlock, held).start()
        return process

    monkeypatch.setattr(jobs, "start", late)
    code, out, err = run("run", "mine", *SMALL)
    assert code == 0 and err == "" and "of 1 epochs" in out and len(held) == 1 and read_log(folder / "log.h5")["status"] == "finished"


@pytest.mark.parametrize("code, rows, result", [(2, 0, "of 1 epochs"), (0, 1, "of 1 epochs"), (0, 0, "failed, ")])
def test_another_process_is_at_it_or_has_gone_on(run, tmp_path, monkeypatch, code, rows, result):
    """Whatever the last line of output.txt is, to which both write."""
    recipe(monkeypatch, Cell("bp", "fc1"), epochs=1)
    folder, start, is_locked, held = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0", jobs.start, jobs.locked, []

    def beaten(job, args):
        if held:
            return start(job, args)
        process = start(job, args)  # the other one, so to say
        process.wait()
        log = read_log(folder / "log.h5")
        write_log(folder / "log.h5", {**log["config"], "epochs": 5}, log["environment"], log["rows"][:rows], "running")
        held.append(lock(folder) if code == 2 else None)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])

    def locked_until_asked(folder):
        found = is_locked(folder)
        if found:
            unlock(held[0])  # when the other has ended, ours goes on
        return found

    monkeypatch.setattr(jobs, "said_last", lambda job, code: "epoch 1/5")
    monkeypatch.setattr(jobs, "start", beaten)
    monkeypatch.setattr(jobs, "locked", locked_until_asked)
    end, out, err = run("run", "mine", *SMALL)
    assert result in out and end == ("failed" in result) and ("exit code 0" in err) == ("failed" in result), (out, err)


@pytest.mark.parametrize("number, spoil, words", [
    (signal.SIGKILL, lambda folder: None, "Killed, perhaps as memory ran out; what it has saved stays, the same command goes on"),
    (signal.SIGABRT, shutil.rmtree, "Aborted; what it has saved stays, the same command goes on"),
])
def test_a_killed_run_is_told_of_and_stops_nothing_else(run, monkeypatch, number, spoil, words):
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"), epochs=1)
    start = jobs.start

    def killed(job, args):
        if "-bp-" not in job.folder.name:
            return start(job, args)
        job.folder.mkdir(parents=True)
        spoil(job.folder)
        return subprocess.Popen([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})"])

    monkeypatch.setattr(jobs, "start", killed)
    code, out, err = run("run", "mine", *SMALL)
    assert code == 1 and f"failed, killed by signal {int(number)}, {words}" in out, (out, err)
    assert "[2/2] synthetic-fc1-np-limit-train-40-s0: " in out
    assert err == f"failed: synthetic-fc1-bp-limit-train-40-s0: killed by signal {int(number)}, {words}\n"
    assert jobs.said_last(None, -64).startswith("killed by signal 64, ")  # which has no name


def test_what_a_run_said_may_be_gone(run, monkeypatch):
    """With its folder, or as the disk is full."""
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"), epochs=1)
    start, usage = jobs.start, shutil.disk_usage("/")

    def gone(job, args):
        if "-bp-" in job.folder.name:
            return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
        return start(job, args)

    monkeypatch.setattr(jobs, "start", gone)
    code, out, err = run("run", "mine", *SMALL)
    assert code == 1 and "failed: synthetic-fc1-bp-limit-train-40-s0: exit code 2: what it said cannot be read: " in err
    assert "[2/2] synthetic-fc1-np-limit-train-40-s0: " in out and err.count("\n") == 1
    job = jobs.Job("cifar10.py", (), Path("runs/reproduce/synthetic-fc1-np-limit-train-40-s0"))
    for free, said, words in ((0, "error: this\n", "error: this"), (1 << 30, "\n", "it said nothing"),
                              (0, "\n", "it said nothing, as the disk is full")):
        monkeypatch.setattr(jobs.shutil, "disk_usage", lambda folder, free=free: usage._replace(free=free))
        (job.folder / "output.txt").write_text(said)
        assert jobs.said_last(job, 1) == words


def test_a_log_that_cannot_be_read_any_more_stops_nothing_else(run, monkeypatch, tmp_path):
    """It was whole as the runs began."""
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"), epochs=1)
    assert run("run", "mine", *SMALL, "--methods", "bp")[0] == 0
    start, log = jobs.start, tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/log.h5"

    def spoiling(job, args):
        log.unlink()
        log.symlink_to(log)  # an OSError
        return start(job, args)

    monkeypatch.setattr(jobs, "start", spoiling)
    code, out, err = run("run", "mine", *SMALL)
    assert (code, err) == (0, "") and "[1/1] synthetic-fc1-np-limit-train-40-s0: " in out


def test_a_damaged_log_is_made_anew_from_its_checkpoint(run, monkeypatch, tmp_path):
    recipe(monkeypatch, Cell("bp", "fc1"), epochs=1)
    assert run("run", "mine", *SMALL)[0] == 0
    log = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/log.h5"
    rows = read_log(log)["rows"]
    log.write_bytes(log.read_bytes()[:-1])
    code, _, err = run("run", "mine", *SMALL)
    damaged = "/log.h5: damaged, its sha256 is not the one it was written with; start a new run, or use a copy of it"
    assert code == 1 and err.endswith(f"{damaged}; or delete it: the same command makes it anew from checkpoint.h5\n")
    log.unlink()
    assert run("run", "mine", *SMALL)[0] == 0 and read_log(log)["rows"] == rows
    log.write_bytes(log.read_bytes()[:-1])
    log.with_name("checkpoint.h5").write_bytes(b"damaged, too")
    assert run("run", "mine", *SMALL)[2].endswith(f"{damaged}\n")


def test_a_folder_whose_lock_cannot_be_asked_stops_nothing_else(run, monkeypatch, tmp_path):
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"))
    (tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/.lock").mkdir(parents=True)
    code, out, err = run("run", "mine", *SMALL, "--epochs", "1")
    assert code == 1 and "[2/2] synthetic-fc1-np" in out and err.count("failed: ") == 1 and "synthetic-fc1-bp-" in err, (out, err)


@pytest.mark.parametrize("at_once, set_already, expected", [(1, None, None), (2, None, "3"), (4, None, "1"), (9, None, "1"), (2, "5", "5")])
def test_processes_share_the_cores(tmp_path, monkeypatch, at_once, set_already, expected):
    environments = []
    def start(command, env, start_new_session, **how):
        assert start_new_session  # or Ctrl-C would reach it twice
        environments.append(env)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(jobs, "cores", lambda: 6)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if set_already is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", set_already)
    job = types.SimpleNamespace(folder=tmp_path / "r", log="log.h5", script="cifar10.py", arguments=[])
    jobs.start(job, types.SimpleNamespace(jobs=at_once))
    assert environments[0].get("OPENBLAS_NUM_THREADS") == expected and environments[0]["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("log, begun", [("log.h5", {"checkpoint.h5": True, "log.h5": False}), ("alignment.h5", {"alignment.h5": True}),
                                        ("search.h5", {"search.h5": False})])
def test_what_is_told_to_go_on(tmp_path, log, begun):
    """A search goes on unasked, and has no such flag; a run needs its checkpoint for it."""
    job = jobs.Job("x.py", (), tmp_path, log)
    assert not jobs.going_on(job)
    for name, expected in begun.items():
        (tmp_path / name).touch()
        assert jobs.going_on(job) == expected
        (tmp_path / name).unlink()


def test_what_is_left_of_runs_that_have_begun(tmp_path):
    """Epochs that are to come at each run's pace: its own, that of a recorded one with another seed, or the average."""
    def job(name, epochs, *seconds):
        made = jobs.Job("cifar10.py", (), tmp_path / name, epochs=epochs)
        if seconds:
            made.folder.mkdir()
            config = asdict(Config(method=name.split("-")[2], arch="fc1", dataset="synthetic", epochs=epochs))
            rows = [{"epoch": i, "train_loss": 1.0, "test_loss": 1.0, "seconds": s} for i, s in enumerate(seconds, 1)]
            write_log(made.folder / "log.h5", config, {}, rows, "running")
        return made

    begun, new = job("synthetic-fc1-np-s0", 5, 9.0, 11.0, 10.0), job("synthetic-sarcos-sarcos-np-s1", 4)
    other, further = job("synthetic-fc1-bp-s0", 3), job("synthetic-fc1-dnp-s0", 2, 4.0, 4.0, 4.0)
    log = {"config": asdict(Config()), "environment": {}, "status": "finished", "rows": [{"epoch": 1, "seconds": 1.0}]}
    display = jobs.Display([begun, new, other, further], {"synthetic-sarcos-sarcos-np-s0": log})
    average = (10 + 1 + 4) / 3
    assert display.remaining([new, other], [begun]) == (2 * 10 + 4 * 1 + 3 * average, 3 + 2, 5 + 4 + 3 + 2)
    assert jobs.without_seed("synthetic-sarcos-sarcos-dnp-samples-10-s12") == "synthetic-sarcos-sarcos-dnp-samples-10"


def test_the_time_that_is_left_is_shared_by_the_processes_that_there_are():
    assert [jobs.Display.at_once([1] * w, [1] * r, 4) for w, r in ((0, 0), (1, 0), (0, 2), (3, 4))] == [1, 1, 2, 4]
    assert [jobs.duration(s) for s in (1, 89, 91, 3599, 3600, 9000)] == ["1 min", "1 min", "2 min", "1 h 0 min", "1 h 0 min", "2 h 30 min"]


def test_a_search_has_ended_for_its_own_number_of_epochs():
    job = jobs.Job("lr_search.py", (), Path("runs/search-a"), "search.h5", 2)
    for epochs, status, ended in ((2, "finished", True), (1, "finished", False), (3, "finished", False), (2, "running", False)):
        assert job.ended({"status": status, "config": {"epochs": epochs}, "rows": [{}]}) == ended


def test_a_run_has_ended_once_its_log_says_so_or_has_more_epochs():
    job = jobs.Job("cifar10.py", (), Path("runs/a"), epochs=2)
    for count, status, ended in ((2, "finished", True), (2, "running", False), (2, "interrupted", False), (3, "running", True),
                                 (1, "finished", False), (1, "diverged: bp diverged in epoch 2", True)):
        assert job.ended({"status": status, "config": {}, "rows": [{}] * count}) == ended, (count, status)


def test_what_another_backend_has_done_counts_where_its_own_has_not():
    job = jobs.Job("cifar10.py", (), Path("runs/cifar10-fc1-bp-cupy-s0"), epochs=2)
    whole, other = ({"status": "finished", "config": {}, "rows": [{}, {}]} for _ in range(2))
    part = {**whole, "rows": [{}]}
    assert job.recorded({"cifar10-fc1-bp-s0": other, "cifar10-fc1-bp-cupy-s0": whole}) is whole
    assert job.recorded({"cifar10-fc1-bp-s0": other, "cifar10-fc1-bp-cupy-s0": part}) is other
    assert job.recorded({"cifar10-fc1-bp-s0": part, "cifar10-fc1-bp-s1": whole, "cifar10-fc1-dbp-s0": whole}) is None
