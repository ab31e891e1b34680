"""The search for a learning rate: where it ends, what it picks, and its command line."""

import math
import os
import re
import signal
from dataclasses import replace

import lr_search
import pytest

from npref import datasets
from npref.config import Config
from npref.runlog import lock, locked, read_log, unlock
from npref.train import Interrupted, train

TINY = "--dataset synthetic --arch fc1 --method bp --epochs 1 --batch-size 20 --limit-train 60 --limit-test 20 --optimizer sgd".split()
CONFIG = Config(method="bp", arch="fc1", dataset="synthetic", epochs=1, batch_size=20, optimizer="sgd", lr=1.0)


@pytest.fixture(scope="module")
def data():
    return datasets.load("synthetic", limit_train=60, limit_test=20)


def rows_of(*losses):
    return [{"lr": 2.0**i, "train_loss": loss} for i, loss in enumerate(losses)]


def test_when_it_ends():
    nan = math.nan
    assert not lr_search.ended([], 3) and not lr_search.ended(rows_of(3, 2, 1), 3)
    assert lr_search.ended(rows_of(3, 2, nan), 3) and lr_search.ended(rows_of(nan), 3)
    assert not lr_search.ended(rows_of(3, 2, 4, 5), 3) and lr_search.ended(rows_of(3, 2, 4, 5, 2.5), 3)
    assert lr_search.ended(rows_of(3, 2, 4), 1) and not lr_search.ended(rows_of(3, 2, 4, 5, 1), 3)
    assert lr_search.ended(rows_of(3, 2, 1), 3, most=3)


def test_what_it_picks():
    assert lr_search.best(rows_of(3, 1, 2, math.nan)) == 2.0
    with pytest.raises(ValueError, match="every learning rate from 1 on diverged: expected a stable first one"):
        lr_search.best(rows_of(math.nan))


def test_it_doubles_until_it_is_worse(data):
    rows = list(lr_search.search(CONFIG, data, 1e-4, patience=2))
    losses = [row["train_loss"] for row in rows]
    assert [row["lr"] for row in rows] == [1e-4 * 2**i for i in range(len(rows))]
    low = losses.index(min(losses))
    assert 0 < low == len(rows) - 3 and losses[: low + 1] == sorted(losses[: low + 1], reverse=True)
    assert 0 < rows[-1]["test_loss"] and 0 <= rows[-1]["train_accuracy"] <= 1 and rows[-1]["seconds"] > 0
    assert [row["lr"] for row in lr_search.search(CONFIG, data, 1e-4, factor=10, most=2)] == [1e-4, 1e-3]
    more = list(lr_search.search(CONFIG, data, 1e-4, patience=2, rows=rows[:3]))  # goes on behind what is done
    assert [row["train_loss"] for row in more] == losses[3:]


def test_a_factor_whose_powers_are_no_numbers(data):
    found = [row["lr"] for row in lr_search.search(CONFIG, data, 1e-300, factor=1e200, patience=9)]
    assert found == pytest.approx([1e-300, 1e-100, 1e100], rel=1e-9)  # the last diverges
    assert [row["lr"] for row in lr_search.search(CONFIG, data, 10.0, factor=1e308)] == [10]  # 1e309 is none


def test_what_to_do_when_all_diverge(capsys, tmp_path):
    """A decorrelated method may owe it to R."""
    for method, more in (("np", ""), ("dnp", ", or a smaller --decor-lr")):
        arguments = [*TINY, "--method", method, "--start", "1e38", "--no-plot", "--quiet", "--out", str(tmp_path / method)]
        assert lr_search.main(arguments) == 2
        err = capsys.readouterr().err
        assert err == f"error: every learning rate from 1e+38 on diverged: expected a stable first one, choose a smaller --start{more}\n"


def test_divergence_ends_it(data):
    rows = list(lr_search.search(CONFIG, data, 1e35, factor=1e3))
    assert math.isnan(rows[-1]["train_loss"]) and math.isnan(rows[-1]["test_accuracy"]) and len(rows) <= 2


def test_what_speaks_against_the_best_rate():
    nan = math.nan
    assert lr_search.doubt(rows_of(3, 2, 4)) == lr_search.doubt(rows_of(3, 2, nan)) == ""
    first, last = "; it is the first, a smaller --start may find a better one", "; it is the last, a larger --most may find a better one"
    assert lr_search.doubt(rows_of(2, 3, nan)) == first and lr_search.doubt(rows_of(3, 2)) == last
    assert lr_search.doubt(rows_of(2)) == first + last
    assert lr_search.doubt(rows_of(2, 2, 2)) == ("; but all have one training loss, so nothing tells them apart: take more epochs, "
                                                 "or a larger --start")


def test_one_step_a_rate_is_said_to_tell_nothing(capsys):
    assert lr_search.main([*TINY, "--batch-size", "60", "--no-plot", "--most", "2", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "best learning rate 1e-06 of 2 from 1e-06 to 2e-06; but all have one training loss" in out


def test_several_seeds(data, monkeypatch):
    """Means over the seeds; one that diverges is enough for the rate to have."""
    both, zero, one = ([*lr_search.search(CONFIG, data, 1e-3, seeds=seeds, most=2)] for seeds in ((0, 1), (0,), (1,)))
    for row, a, b in zip(both, zero, one):
        for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
            assert row[name] == pytest.approx((a[name] + b[name]) / 2) and a["train_loss"] != b["train_loss"]
    train = lr_search.train

    def wild(config, data, stop=None):
        if config.seed == 1:
            raise lr_search.Diverged("at once")
        return train(config, data, stop=stop)

    monkeypatch.setattr(lr_search, "train", wild)
    row, = lr_search.search(CONFIG, data, 1e-3, seeds=(0, 1))
    assert math.isnan(row["train_loss"]) and math.isnan(row["test_accuracy"]) and row["seconds"] > 0


def test_command(tmp_path, capsys):
    out = tmp_path / "s"
    assert lr_search.main([*TINY, "--start", "1e-3", "--most", "3", "--out", str(out), "--no-plot"]) == 0
    printed = capsys.readouterr().out
    last = "; it is the last, a larger --most may find a better one"
    assert f"best learning rate 0.004 of 3 from 0.001 to 0.004{last}\nlog: " in printed and printed.count("\nlr ") == 3
    log = read_log(out / "search.h5")
    row = log["rows"][1]
    assert (f"lr {row['lr']:<12.4g} train {row['train_loss']:<10.5g} test {row['test_loss']:<10.5g} accuracy "
            f"{row['train_accuracy']:6.1%} / {row['test_accuracy']:6.1%}") in printed.splitlines()
    assert row["train_loss"] != row["test_loss"] and row["train_accuracy"] != row["test_accuracy"]
    assert log["status"] == "finished" and [row["lr"] for row in log["rows"]] == [1e-3, 2e-3, 4e-3] and log["config"]["start"] == 1e-3
    first = log["rows"]
    assert lr_search.main([*TINY, "--start", "1e-3", "--most", "4", "--out", str(out), "--plot", "--quiet"]) == 0  # goes on
    log = read_log(out / "search.h5")
    assert log["rows"][:3] == first and len(log["rows"]) == 4
    assert (out / "search.png").stat().st_size > 5000 and (out / "search.svg").exists()
    assert capsys.readouterr().out.count("lr ") == 0
    assert lr_search.main([*TINY, "--start", "1e-3", "--most", "4", "--out", str(out), "--no-plot"]) == 0  # nothing is left to do
    assert capsys.readouterr().out.count("\nlr ") == 4  # the rates that it has


@pytest.mark.parametrize("rate, words", [("1e-3", "with lr 0.001; it was the first"),
                                         ("4e-3", "with lr 0.004; what was tried before it is in s: go on with the same command "
                                                  "and --out")])
def test_a_stop_says_at_which_rate_and_what_is_kept(tmp_path, capsys, monkeypatch, rate, words):
    train = lr_search.train

    def stopped(config, data, stop=None):
        if config.lr == float(rate):
            os.kill(os.getpid(), signal.SIGTERM)
        return train(config, data, stop=stop)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lr_search, "train", stopped)
    assert lr_search.main([*TINY, "--start", "1e-3", "--out", "s", "--no-plot", "--quiet"]) == 143
    err = capsys.readouterr().err
    assert err.endswith(f"{words}\n") and err.count("\n") == 1, err


def test_every_rate_is_saved_at_once(tmp_path, capsys, monkeypatch):
    """Whatever ends a search costs the rate under way alone."""
    arguments, kept = [*TINY, "--start", "1e-3", "--most", "3", "--out", str(tmp_path), "--no-plot"], []
    train = lr_search.train

    def stopped_at_the_third(config, data, stop=None):
        if (tmp_path / "search.h5").exists():
            log = read_log(tmp_path / "search.h5")
            kept.append((log["status"], len(log["rows"])))
        if config.lr == 4e-3:
            raise KeyboardInterrupt
        return train(config, data, stop=stop)

    monkeypatch.setattr(lr_search, "train", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        lr_search.main(arguments)
    assert kept == [("running", 1), ("running", 2)]
    monkeypatch.setattr(lr_search, "train", train)
    assert lr_search.main(arguments) == 0
    log = read_log(tmp_path / "search.h5")
    assert [row["lr"] for row in log["rows"]] == [1e-3, 2e-3, 4e-3] and log["status"] == "finished"
    assert log["environment"]["samples"] == "60 + 20"


def test_rates_are_tried_for_two_epochs_unless_told_otherwise(capsys):
    assert lr_search.parse([]).epochs == 2 and lr_search.parse(["--epochs", "5"]).epochs == 5
    with pytest.raises(SystemExit):
        lr_search.parse(["--help"])
    assert re.search(r"--epochs INT\s+\S[^-]*\(default: 2\)", capsys.readouterr().out)


def test_a_stand_in_that_nobody_asked_for_is_named_even_where_it_is_quiet(tmp_path, capsys):
    arguments = [*TINY[2:], "--most", "1", "--no-plot", "--quiet"]
    assert lr_search.main([*arguments, "--data-dir", str(tmp_path), "--out", str(tmp_path / "s")]) == 0
    err = capsys.readouterr().err
    assert err.startswith("data: synthetic images with 1/f correlations (no ") and err.endswith("; 60 + 20\n") and err.count("\n") == 1
    assert lr_search.main([*arguments, "--dataset", "synthetic", "--out", str(tmp_path / "t")]) == 0
    assert capsys.readouterr().err == ""


def test_a_search_that_goes_on_elsewhere_says_so(tmp_path, capsys, monkeypatch):
    arguments = [*TINY, "--start", "1e-3", "--out", str(tmp_path), "--no-plot"]
    assert lr_search.main([*arguments, "--most", "1"]) == 0
    environment = lr_search.environment
    monkeypatch.setattr(lr_search, "environment", lambda backend: {**environment(backend), "threads": "77"})
    capsys.readouterr()
    assert lr_search.main([*arguments, "--most", "2", "--quiet"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("note: threads was ") and ", now 77: the rates that follow may differ" in err and err.count("\n") == 1
    log = read_log(tmp_path / "search.h5")
    assert log["environment"]["threads"] == "77" and log["environment"]["went_on"].startswith("threads was ")
    monkeypatch.setattr(lr_search, "environment", lambda backend: {**environment(backend), "threads": "78"})
    assert lr_search.main([*arguments, "--most", "2"]) == 0  # nothing is left to do
    assert "note" not in capsys.readouterr().out and read_log(tmp_path / "search.h5")["environment"] == log["environment"]


def test_a_search_that_is_refused_leaves_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lr_search.main(["--dataset", "synthetic-sarcos", "--arch", "sarcos", "--optimizer", "sgd", "--no-plot"]) == 2
    assert "use mse" in capsys.readouterr().err and list((tmp_path / "runs").iterdir()) == []


def test_what_is_warned_of_gets_one_line_for_all_rates(tmp_path, capsys):
    arguments = [*TINY, "--method", "np", "--sigma2", "1e-14", "--start", "1e-6", "--most", "3", "--no-plot", "--quiet"]
    assert lr_search.main([*arguments, "--out", str(tmp_path / "s")]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: sigma2=1e-14 is too small for float32: ") and err.count("\n") == 1


@pytest.mark.parametrize("words, message", [
    (["--start", "0"], "--start must be above 0 and finite, got 0.0"),
    (["--factor", "1"], "--factor must be above 1 and finite, got 1.0"),
    (["--patience", "0"], "--patience must be at least 1, got 0"),
    (["--most", "0"], "--most must be at least 1, got 0"),
    (["--lr", "1"], "unrecognized arguments: --lr 1"),
    (["--seed", "1"], "unrecognized arguments: --seed 1"),
    (["--seeds", "1", "1"], "--seeds must be different ones, at least 0 and below 2^64, got 1 1"),
    (["--seeds", str(2**64)], f"--seeds must be different ones, at least 0 and below 2^64, got {2**64}"),
])
def test_mistakes(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        lr_search.main([*TINY, *words])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_place_for_data_that_are_made_here_is_refused(tmp_path, capsys):
    assert lr_search.main([*TINY, "--data-dir", str(tmp_path), "--out", str(tmp_path / "s"), "--no-plot"]) == 2
    assert f"synthetic is made here, and a folder of data has no effect on it: leave {tmp_path} out" in capsys.readouterr().err


def test_another_search_is_not_overwritten(tmp_path, capsys):
    assert lr_search.main([*TINY, "--most", "1", "--out", str(tmp_path), "--no-plot"]) == 0
    before = (tmp_path / "search.h5").read_bytes()
    assert lr_search.main([*TINY, "--most", "2", "--seeds", "1", "--out", str(tmp_path), "--no-plot"]) == 2
    differs = "seed was 0, now 1; seeds was [0], now [1]"
    assert f"cannot resume {tmp_path} with a changed configuration: {differs}; start anew in another folder" in capsys.readouterr().err
    for flag, differs in (("--factor", "factor was 2.0, now 3.0"), ("--start", "start was 1e-06, now 3.0")):
        assert lr_search.main([*TINY, "--most", "2", flag, "3", "--out", str(tmp_path), "--no-plot"]) == 2
        assert f"with a changed configuration: {differs}; start anew" in capsys.readouterr().err
    assert (tmp_path / "search.h5").read_bytes() == before


def test_a_picture_of_someones_is_not_overwritten(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "search.png").write_text("mine")
    arguments = [*TINY, "--most", "1", "--out", str(tmp_path)]
    assert lr_search.main(arguments) == 2 and "search.png is there already: choose another folder, or --no-plot" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["search.png"] and (tmp_path / "search.png").read_text() == "mine"
    assert lr_search.main([*arguments, "--no-plot"]) == 0 and lr_search.main(arguments) == 2  # though the search is there
    assert "search.png is there already, and no picture: move it, or choose" in capsys.readouterr().err
    (tmp_path / "search.png").rename(tmp_path / "search.svg")
    assert lr_search.main(arguments) == 2 and (tmp_path / "search.svg").read_text() == "mine" and not (tmp_path / "search.png").exists()
    (tmp_path / "search.svg").unlink()
    assert lr_search.main(arguments) == lr_search.main(arguments) == 0  # a search's own
    for log in tmp_path.glob("search.h5"):
        log.unlink()
    (tmp_path / "search.png").unlink()
    assert lr_search.main(arguments) == 2 and "search.svg is there already: choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("fewer", [["--most", "3"], ["--most", "9", "--patience", "1"]])
def test_a_search_that_went_further_is_not_cut_short(fewer, tmp_path, capsys):
    out = ["--out", str(tmp_path), "--no-plot"]
    assert lr_search.main([*TINY, "--start", "0.5", "--most", "4", *out]) == 0
    before = (tmp_path / "search.h5").read_bytes()
    losses = [row["train_loss"] for row in read_log(tmp_path / "search.h5")["rows"]]
    assert len(losses) == 4 and min(losses) == losses[0], losses  # so that a patience of 1 would have ended it
    assert lr_search.main([*TINY, "--start", "0.5", *fewer, *out]) == 2
    assert "has tried 4 rates, more than --patience" in capsys.readouterr().err
    assert (tmp_path / "search.h5").read_bytes() == before


def test_a_folder_is_for_one_process(tmp_path, capsys):
    held = lock(tmp_path)
    assert lr_search.main([*TINY, "--most", "1", "--out", str(tmp_path), "--no-plot"]) == 2
    assert "another process is writing the run in" in capsys.readouterr().err and not (tmp_path / "search.h5").exists()
    unlock(held)
    assert lr_search.main([*TINY, "--most", "1", "--out", str(tmp_path), "--no-plot"]) == 0 and not locked(tmp_path)


def test_a_stop_is_passed_on_and_losses_are_means_over_seeds(data):
    with pytest.raises(Interrupted):
        next(lr_search.search(CONFIG, data, 1e-4, stop=lambda: True))
    row = next(lr_search.search(replace(CONFIG, epochs=2), data, 1e-4, seeds=(0, 1)))
    assert row["train_loss"] == pytest.approx(
        sum(list(train(replace(CONFIG, epochs=2, lr=1e-4, seed=seed), data))[-1]["train_loss"] for seed in (0, 1)) / 2)
