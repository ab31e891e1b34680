"""The paper's experiments by name: what is run, gone on with, tabulated and drawn."""

import os
import shlex
import shutil
import signal
import sys
from dataclasses import asdict, replace

import alignment
import cifar10
import lr_search
import plots
import pytest
import results
from recipes import NOT_RUN, RECIPES, Cell, Recipe

from npref.config import Config
from npref.runlog import read_log, write_log

SMALL = ["--synthetic", "--limit-train", "40"]


@pytest.fixture
def run(run_reproduce):
    return run_reproduce


def recipe(monkeypatch, *cells, **more):
    """The recipe `mine`, made of these cells."""
    mine = Recipe("Mine", "here", cells, **{"epochs": 2, "seeds": 1, **more})
    monkeypatch.setitem(RECIPES, "mine", mine)


def test_list_names_every_table_and_figure(run):
    code, out, _ = run("list")
    assert code == 0
    named = {line.split()[0] for line in out.splitlines()}
    expected = {f"v2-figure{i}" for i in range(1, 10)} | {f"v2-table{i}" for i in range(1, 5)}
    expected |= {f"v1-figure{i}" for i in range(1, 8)} | {f"v1-table{i}" for i in range(1, 4)}
    assert named == {*RECIPES, *NOT_RUN} == expected | {"why-fc1", "why-fc3", "why-conv", "why-deep", "why-tiny", "why-v1"}
    assert "0 of 26 cells run" in out


def test_run_go_on_table_plot_record(run, tmp_path):
    words = ["run", "v2-figure3", "--archs", "fc1", "--methods", "bp", "dnp", "--seeds", "0", "3", *SMALL]
    code, out, err = run(*words, "--epochs", "2", "--jobs", "2")
    assert code == 0 and err == "" and "v2-figure3: synthetic in place of cifar10" in out and "[4/4]" in out, (out, err)
    logs = {path.parent.name: read_log(path) for path in (tmp_path / "runs/reproduce").glob("*/log.h5")}
    assert sorted(logs) == [f"synthetic-fc1-{m}-limit-train-40-s{s}" for m in ("bp", "dnp") for s in (0, 3)]
    assert all(log["status"] == "finished" and len(log["rows"]) == 2 for log in logs.values())
    one = logs["synthetic-fc1-dnp-limit-train-40-s3"]
    assert (one["config"]["seed"], one["config"]["lr"], one["config"]["epochs"], one["config"]["limit_train"]) == (3, 1e-3, 2, 40)

    code, out, _ = run(*words, "--epochs", "2")
    assert code == 0 and "4 of 4 runs are done already" in out and "[" not in out
    code, out, _ = run(*words, "--epochs", "3", "--methods", "bp")  # goes on
    again = read_log(tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/log.h5")["rows"]
    assert code == 0 and len(again) == 3 and again[:2] == logs["synthetic-fc1-bp-limit-train-40-s0"]["rows"]

    code, out, _ = run("table", "v2-figure3")
    assert code == 0 and "| on synthetic; 40 + 2000 |" in out
    assert out.count("not run | not run") == 10 and "| fc1 | DNP | 42.8 / 40.2 |" in out and "| 2 | 2 | " in out and "| 2 | 3 | " in out
    assert "| 2 | 1 | " in (first := run("table", "v2-figure3", "--until", "1")[1]) and "| 2 | 3 | " not in first
    code, out, _ = run("plot", "v2-figure3")
    assert code == 0 and (tmp_path / "runs/reproduce/v2-figure3.png").stat().st_size > 10_000
    assert (tmp_path / "runs/reproduce/v2-figure3.svg").read_text().startswith("<?xml")
    code, out, _ = run("record")
    assert code == 0 and out.startswith("0 runs recorded")
    assert "; left out: 4 unfinished, on stand-ins or on part of the data, 0 shorter than recorded ones" in out
    code, out, _ = run("list")
    assert "v2-figure3   One layer and three hidden layers on CIFAR-10 (v2, Figure 3): 2 of 12 cells run, 2 in part (fewer " in out


def test_ten_epochs_are_asked_for(run, tmp_path):
    """Ten is cifar10.py's default, and yet neither a finished run's number of epochs nor lr_search.py's default."""
    words = ["run", "v2-figure3", "--archs", "fc1", "--methods", "bp", "--seeds", "0", *SMALL]
    assert run(*words, "--epochs", "1")[0] == 0
    code, out, err = run(*words, "--epochs", "10")
    assert code == 0 and "of 10 epochs" in out, (out, err)
    out = run("run", "v2-figure8", "--methods", "bp", *SMALL, "--epochs", "10", "--dry-run")[1]
    assert "lr_search.py" in out and "--epochs 10" in out


def test_a_stand_in_has_no_folder(run):
    words = "run v2-figure3 --archs fc1 --methods bp --seeds 0 --limit-train 40 --epochs 1 --data-dir none".split()
    code, out, err = run(*words)
    assert code == 0 and err == "" and "synthetic in place of cifar10, which was not found" in out, (out, err)


def test_what_is_recorded_stays(run, tmp_path):
    """While a recorded run is taken further, or measured on part of the test set, what was recorded of it is kept."""
    def put(name, epochs, status, **more):
        config = Config(**{"method": "bp", "arch": "fc1", "dataset": "cifar10", "epochs": epochs, **more})
        rows = [{"epoch": i + 1, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0}
                for i in range(epochs)]
        (tmp_path / "runs/reproduce" / name).mkdir(parents=True, exist_ok=True)
        env = {"backend": "numpy", "device": "CPU", "threads": "1", "revision": "abc", "samples": "all"}
        write_log(tmp_path / "runs/reproduce" / name / "log.h5", asdict(config), env, rows, status)

    put("cifar10-fc1-bp-s0", 2, "finished")
    put("part", 2, "finished", limit_test=10)
    put("cifar10-fc1-np-s0", 2, "finished")  # of another name than its run's
    for more in dict(dataset="synthetic"), dict(limit_train=10), dict(limit_test=10):  # of their own names
        put(results.run_name(Config(**{"method": "bp", "arch": "fc1", "dataset": "cifar10", "epochs": 2, **more})), 2, "finished", **more)
    assert run("record")[1].startswith("1 runs recorded in") and (tmp_path / "results/runs.tsv").read_text().count("\n") == 2
    before = (tmp_path / "results/runs.tsv").read_text()
    put("cifar10-fc1-bp-s0", 3, "running")
    assert run("record")[1].startswith("1 runs recorded in") and (tmp_path / "results/runs.tsv").read_text() == before
    put("cifar10-fc1-bp-s0", 3, "finished")
    assert run("record")[0] == 0 and (tmp_path / "results/runs.tsv").read_text() != before
    put("cifar10-fc1-dbp-s0", 1, "diverged: dbp diverged in epoch 2", method="dbp")
    assert run("record")[1].startswith("2 runs recorded in") and "diverged" in (tmp_path / "results/runs.tsv").read_text()
    before = (tmp_path / "results/runs.tsv").read_text()
    put("cifar10-fc1-bp-s0", 2, "finished")  # a shorter one is none to put in its place
    assert ", 1 shorter than recorded ones" in run("record")[1] and (tmp_path / "results/runs.tsv").read_text() == before


def test_what_is_recorded_need_not_be_run_again(run, tmp_path, monkeypatch):
    cells = [Cell(method, "fc1", options=(("optimizer", "sgd"), ("loss", "mse")), search=0.25) for method in ("bp", "np")]
    recipe(monkeypatch, *cells, epochs=1, search_epochs=1)
    config = results.cell_config(cells[0], "synthetic", lr=0.5, seed=0, epochs=1)
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0}
    search = {"config": {**asdict(config), "start": 0.25, "factor": 2.0, "patience": 3, "most": 60}, "environment": {},
              "status": "finished", "rows": [{"lr": lr, "train_loss": loss} for lr, loss in ((0.25, 2.0), (0.5, 1.0), (1.0, float("nan")))]}
    run_log = {"config": asdict(config), "environment": {}, "status": "finished", "rows": [row]}
    (tmp_path / "results/logs").mkdir(parents=True)
    names = "search-synthetic-fc1-bp-loss-mse-optimizer-sgd", "synthetic-fc1-bp-loss-mse-optimizer-sgd-lr-0.5-s0"
    words = ["run", "mine", "--synthetic", "--missing", "--dry-run"]
    assert run(*words)[1].count("--method bp") == 1  # the search; the run's rate is not known yet
    results.write_text(tmp_path / f"results/logs/{names[0]}.tsv", {**search, "config": {**search["config"], "epochs": 2}})
    assert run(*words)[1].count("lr_search.py --method bp") == 1  # that was a search of other epochs
    results.write_text(tmp_path / f"results/logs/{names[0]}.tsv", search)
    code, out, _ = run(*words)
    assert code == 0 and "1 of 2 runs are recorded already" in out
    assert "lr_search.py --method np" in out and "cifar10.py --method bp" in out and f"runs/reproduce/{names[1]} " in out
    results.write_text(tmp_path / f"results/logs/{names[1]}.tsv", run_log)
    assert run(*words)[1].count("--method bp") == 0 and run(*words)[1].count("runs are recorded already") == 2
    assert run(*words, "--epochs", "2")[1].count("cifar10.py --method bp") == 1  # goes on
    assert run(*words, "--seeds", "1")[1].count("cifar10.py --method bp") == 1
    assert run(*words[:-2], "--dry-run")[1].count("--method bp") == 1
    for name, log in zip(names, (search, run_log)):  # made on another backend, it need not be run again either
        (tmp_path / f"results/logs/{name}.tsv").unlink()
        there = {**log, "config": {**log["config"], "backend": "cupy"}}
        results.write_text(tmp_path / f"results/logs/{name.removesuffix('-s0')}-cupy{'-s0' if name.endswith('-s0') else ''}.tsv", there)
    assert run(*words)[1].count("--method bp") == 0 and run(*words)[1].count("runs are recorded already") == 2


def test_own_runs_alone(run, tmp_path):
    """A recorded result is shown unless --own is given; a recipe is whole with all its seeds and epochs on its own data."""
    rows = [{"epoch": i + 1, "train_loss": 1.0, "train_accuracy": 0.25, "test_loss": 1.0, "test_accuracy": 0.25, "seconds": 1.0}
            for i in range(50)]
    (tmp_path / "results/logs").mkdir(parents=True)
    for seed in range(3):
        config = {**asdict(results.cell_config(RECIPES["v2-figure3"].cells[0], "cifar10", seed=seed, epochs=50))}
        log = {"config": config, "environment": {}, "status": "finished", "rows": rows}
        results.write_text(tmp_path / f"results/logs/cifar10-fc1-bp-s{seed}.tsv", log)
    assert "| fc1 | BP | 41.3 / 39.3 | 25.0 (25.0 to 25.0) |" in run("table", "v2-figure3")[1]
    assert "(v2, Figure 3): 1 of 12 cells run\n" in run("list")[1]
    assert run("table", "v2-figure3", "--own")[1].count("not run | not run") == 12
    assert "(v2, Figure 3): 0 of 12 cells run\n" in run("list", "--own")[1]
    code, _, err = run("plot", "v2-figure3", "--own")
    assert code == 2 and "v2-figure3 has not been run: expected runs of it in runs/reproduce; python" in err
    run_folder = tmp_path / "runs/reproduce/cifar10-fc1-np-sigma2-0.001-s2"
    run_folder.mkdir(parents=True)
    write_log(run_folder / "log.h5", config | {"sigma2": 1e-3, "method": "np"}, {}, rows, "finished")
    code, _, err = run("plot", "--own")
    assert code == 2 and "nothing to draw: no recipe's runs are in runs/reproduce" in err
    shutil.rmtree(run_folder)
    for change in ({"epochs": 49}, {"dataset": "synthetic"}, {"limit_train": 40}):
        short = {**log, "config": config | change, "rows": rows[: change.get("epochs", 50)]}
        results.write_text(tmp_path / "results/logs/cifar10-fc1-bp-s2.tsv", short)
        assert "(v2, Figure 3): 1 of 12 cells run, 1 in part (fewer seeds, epochs or data)\n" in run("list")[1]


def test_what_came_after_the_epochs_that_are_counted_does_not_count(run, tmp_path):
    """A run that diverged, in or after the epoch that follows, was whole until then; one that diverged before was not."""
    (tmp_path / "results/logs").mkdir(parents=True)
    config = asdict(results.cell_config(RECIPES["v2-figure3"].cells[0], "cifar10", epochs=50))
    rows = [{"epoch": i + 1, "train_loss": 1.0, "train_accuracy": 0.25, "test_loss": 1.0, "test_accuracy": 0.25, "seconds": 1.0}
            for i in range(3)]
    log = {"config": config, "environment": {}, "status": "diverged: bp diverged in epoch 4", "rows": rows}
    results.write_text(tmp_path / "results/logs/cifar10-fc1-bp-s0.tsv", log)
    for until, diverged in ((2, False), (3, False), (4, True)):
        assert ("diverged: seed 0 in epoch 4" in run("table", "v2-figure3", "--until", until)[1]) == diverged
    assert "diverged: seed 0 in epoch 4" in run("table", "v2-figure3")[1]


def test_a_table_goes_between_its_marks(run, tmp_path):
    """In bytes: neither the letters nor the line ends beside it change, nor who may read the file; a second time changes nothing."""
    page = tmp_path / "page.md"
    page.write_bytes("Eq. 3–6 α\r\n<!-- results: begin -->old<!-- results: end -->\r\nδL\n".encode())
    page.chmod(0o600)
    assert run("table", "v2-figure3", "--into", str(page))[0] == 0
    before = page.read_bytes()
    assert before.startswith("Eq. 3–6 α\r\n<!-- results: begin -->\n\n**v2-figure3**".encode()) and b"old" not in before
    assert before.endswith("\n<!-- results: end -->\r\nδL\n".encode()) and page.stat().st_mode & 0o777 == 0o600
    assert run("table", "v2-figure3", "--into", str(page))[0] == 0 and page.read_bytes() == before
    page.write_text("no marks")
    code, _, err = run("table", "v2-figure3", "--into", str(page))
    assert code == 2 and "expected a line <!-- results: begin -->" in err and page.read_text() == "no marks"
    page.write_bytes(b"\xff")
    code, _, err = run("table", "v2-figure3", "--into", str(page))
    assert code == 2 and f"{page}: expected text in UTF-8, got another file" in err and page.read_bytes() == b"\xff"


def test_angles_are_shown_once_measured(run, tmp_path, monkeypatch):
    """With the data that they are of; a measurement in progress is none yet, nor is another than the recipe's."""
    monkeypatch.setitem(RECIPES, "v1-figure1", replace(RECIPES["v1-figure1"], alignment=(
        "--methods", "np", "anp", "inp", "--samples", "1", "--repeats", "2", "--arch", "fc1")))
    out = tmp_path / "runs/reproduce/alignment-v1-figure1-synthetic-limit-train-40"
    words = "--methods np anp inp --samples 1 --repeats 2 --dataset synthetic --arch fc1 --limit-train 40 --no-plot --quiet".split()
    assert alignment.main([*words, "--out", str(out)]) == 0
    log = read_log(out / "alignment.h5")
    text = run("table", "v1-figure1")[1]
    assert "| INP | 1 | " in text and "On synthetic (40 + 2000), fc1, loss cce; 2 repeats. A noise sample is one noisy pass for NP" in text
    assert run("plot", "v1-figure1")[0] == 0
    for name, config in ((out.name, {"repeats": 3}), (out.name, {"limit_train": 50}), (out.name.replace("v1-figure1", "v2-figure7"), {})):
        other = out.with_name(name)
        other.mkdir(exist_ok=True)
        write_log(other / "alignment.h5", log["config"] | config, log["environment"], log["rows"], "finished")
        assert run("table", name[10:20])[1].endswith("not run\n\n")
        assert f"left out: runs/reproduce/{name}/alignment.h5: it is of something else than its name says" in run("list")[2]
        assert run("run", name[10:20], *SMALL)[0] == 1
        if other != out:
            shutil.rmtree(other)
    for rows in ([], log["rows"][:1]):
        write_log(out / "alignment.h5", log["config"], log["environment"], rows, "running")
        assert "not run" in run("table", "v1-figure1")[1]
        code, _, err = run("plot")
        assert code == 2 and "nothing to draw: no recipe's runs are in" in err
        code, _, err = run("plot", "v1-figure1")
        assert code == 2 and "v1-figure1 has not been run" in err


def test_the_pictures_are_the_same_every_time(run, tmp_path):
    assert run("run", "v2-figure3", "--archs", "fc1", "--methods", "bp", "--seeds", "0", *SMALL, "--epochs", "1")[0] == 0
    for out in ("a", "b"):
        assert run("plot", "v2-figure3", "--out", out)[0] == 0
    for kind in ("png", "svg"):
        assert (tmp_path / f"a/v2-figure3.{kind}").read_bytes() == (tmp_path / f"b/v2-figure3.{kind}").read_bytes()


@pytest.mark.parametrize("words, message", [
    (["run", "v3-table9"], "unknown name 'v3-table9'"),
    (["table", "v3-table9"], "unknown name 'v3-table9': expected one of v2-table3, "),
    (["run", "v2-table3", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    (["run", "v2-table3", "--epochs", "0"], "--epochs must be at least 1, got 0"),
    (["table", "v2-table3", "--until", "0"], "--until must be at least 1, got 0"),
    (["table", "v2-table3", "--own", "--results", "here"], "--results has no effect with --own: leave one out"),
    (["list", "--runs", ""], "expected a folder, got an empty name"), (["list", "--results", ""], "expected a folder, got an empty name"),
    (["plot", "v2-figure3", "--out", ""], "expected a folder"), (["run", "v2-table3", "--data-dir", ""], "expected a folder"),
    (["run", "v2-table3", "--seeds", "-1"], "--seeds must be at least 0, got -1"),
    (["run", "v2-figure8", "--synthetic", "--dedup"], "--synthetic, --dedup and --split-test exclude one another: give one"),
    (["run", "v2-figure8", "--dedup"], "no sarcos-dedup found: get it with python -m npref.datasets fetch sarcos, or use --synthetic"),
    (["plot", "v2-figure3"], "v2-figure3 has not been run: expected runs of it in"),
    (["run", "v2-table3", "--backend", "cupy"], "cupy"),
    (["run", "v1-table2", "--seeds", "1"], "--seeds has no effect on a search for learning rates"),
    (["run", "v1-table2", "--epochs", "3"], "--epochs 3 has no effect on a search for learning rates, which tries each for 2: leave it"),
    (["run", "v1-table2", "--samples", "7"], "no cell of v1-table2 is left by --methods, --archs and --samples: nothing to run"),
    (["table", "v1-table2", "v2-figure2", "--until", "1"], "--until has no effect on searches for learning rates and measurements"),
    (["run", "v2-table3", "--runs", __file__], f"--runs names a folder, got {__file__}"),
    (["record", "--runs", "nowhere"], "--runs names a folder that is there, got nowhere"),
    (["list", "--runs", "nowhere"], "--runs names a folder that is there, got nowhere"),
    (["run", "v2-figure2", "--seeds", "1"], "--seeds has no effect on a measurement of angles"),
    (["run", "v2-figure2", "v2-table1", "--methods", "np"], "--methods has no effect on a measurement of angles"),
    (["run", "v2-table3", "--samples", "10"], "no cell of v2-table3 is left by --methods, --archs and --samples: nothing to run"),
    (["run", "v2-table3", "--dedup"], "--dedup has no effect without SARCOS: leave it out"),
    (["run", "v2-figure8", "v2-table3", "--archs", "fc1", "--split-test"], "--split-test has no effect without SARCOS: leave it out"),
    (["run", "v2-figure2", "v1-table2", "--archs", "fc1", "--seeds", "4"], "--seeds has no effect on a search for learning rates"),
    (["run", "v2-figure2", "v1-table2", "--archs", "fc1", "--epochs", "3"], "--epochs 3 has no effect on a search for learning rates"),
    (["run", "v2-table3", "--meth", "bp"], "unrecognized arguments: --meth bp"),
    (["table", "--into", "nofile.md"], "--into names a file that is there, with lines <!-- results: begin --> and <!-- results: end -->, "),
    (["table", "--into", "."], "--into names a file that is there, with lines <!-- results: begin --> and <!-- results: end -->, got ."),
    (["draw"], "invalid choice: 'draw'"),
])
def test_mistakes(run, words, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, out, err = run(*words)
    assert code == 2 and message in err and err.count("\n") == 1, (out, err)


def test_results_that_are_read_are_there(run, tmp_path):
    (tmp_path / "results").rmdir()
    for words in (["list"], ["table", "v2-table3"], ["plot", "v2-figure3"], ["run", "v2-table3", "--dry-run"]):
        code, out, err = run(*words)
        assert code == 2 and out == "" and f"--results names a folder that is there, got {tmp_path / 'results'}" in err
    assert run("record")[0] == 0


def test_each_kind_of_job_has_the_backend_that_is_asked_for(run, monkeypatch):
    """(Which no machine needs to have, as nothing is run.)"""
    monkeypatch.setattr("reproduce.get_backend", lambda name: None)
    for name, script in (("v2-figure3", "cifar10.py"), ("v1-table2", "lr_search.py"), ("v2-figure2", "alignment.py")):
        code, out, err = run("run", name, "--synthetic", "--dry-run", "--backend", "cupy")
        commands = [line for line in out.splitlines() if line.startswith("python ")]
        assert code == 0 and commands and all(f"examples/{script} " in line and "--backend cupy" in line for line in commands), (out, err)


def test_what_there_is_nothing_to_run_for(run):
    for name, text in NOT_RUN.items():
        assert run("run", name)[:2] == (0, f"{name}: nothing to run, {text}\n")
        assert run("plot", name)[:2] == (0, f"{name}: nothing to draw, {text}\n")
        assert run("table", name)[:2] == (0, f"{name}: nothing to show, {text}\n")


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run_prints_commands_that_parse(run, name):
    """Every cell of every recipe; searched ones as searches, as their rates are not known yet."""
    seeds = ["--seeds", "1", "2"] if RECIPES[name].cells and not RECIPES[name].searches_only else []
    code, out, err = run("run", name, "--synthetic", "--dry-run", "--backend", "numpy", *seeds)
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("python ")]
    cells = RECIPES[name].cells
    searched = sum(cell.search is not None for cell in cells)
    assert code == 0 and len(commands) == searched + 2 * (len(cells) - searched) + bool(RECIPES[name].alignment)
    for _, script, *words in commands:
        if script == "examples/cifar10.py":
            args, given = cifar10.parse(words)
            assert given["seed"] in (1, 2) and given["epochs"] == RECIPES[name].epochs and given["dataset"].startswith("synthetic")
        if script == "examples/lr_search.py":
            assert lr_search.parse(words).start in (1e-6, 1e-7)


def test_a_search_may_be_asked_for_all_its_epochs(run):
    code, out, err = run("run", "v1-table2", "--archs", "fc1", "--methods", "bp", "--epochs", "2", "--synthetic", "--dry-run")
    assert code == 0 and err == "" and out.count("--epochs 2") == 1


def test_trainings_at_rates_that_are_not_known_yet_are_announced(run):
    then = "# then the trainings at the rates that these searches find\n"
    for names, announced in ((["v1-table3"], True), (["v1-table2", "v1-table3"], True), (["v1-table2"], False), (["v2-table3"], False)):
        assert (then in run("run", *names, "--synthetic", "--dry-run")[1]) == announced, names


def test_a_recipe_of_which_nothing_is_left_is_named(run):
    out = run("run", "v2-figure3", "v2-figure9", *SMALL, "--archs", "fc1", "--dry-run")[1]
    assert "v2-figure9: no cell is left by --methods, --archs and --samples\n" in out and "v2-figure3: no cell" not in out


def test_a_damaged_recorded_run_stops_only_what_needs_it(run, tmp_path):
    (tmp_path / "results/logs").mkdir()
    (tmp_path / "results/logs/x.tsv").write_text("nonsense")
    words = ["run", "v2-figure3", "--archs", "fc1", "--methods", "bp", "--seeds", "0", *SMALL, "--epochs", "1"]
    code, _, err = run(*words, "--missing")
    assert code == 2 and "x.tsv" in err and err.count("\n") == 1
    code, out, err = run(*words)
    assert code == 0 and "note: no estimate of times (" in out and "x.tsv" in out and err == ""


def test_filters(run):
    def commands(*words):
        return run("run", *words, "--synthetic", "--dry-run", "--seeds", "0")[1].splitlines()[1:]

    ten = commands("v2-table4", "--samples", "10")
    assert len(ten) == 2 and all("--samples 10" in line for line in ten)
    assert len(commands("v2-table4", "--samples", "1", "--methods", "dinp")) == 1
    assert len(commands("v2-figure9", "--archs", "fc6", "fc9")) == 6
    shared = commands("v2-table3", "v2-figure3")
    assert len(shared) == len(set(shared)) == 27  # shared runs once


def test_the_data_that_are_used(run, tmp_path):
    def used(*words):
        code, out, err = run("run", "v2-figure8", "--dry-run", *words)
        return {line.split("--dataset ")[1].split()[0] for line in out.splitlines() if line.startswith("python")}, out

    assert used()[0] == {"synthetic-sarcos"}
    assert "cifar100" not in run("run", "v1-table3", "--archs", "fc1", "--dry-run")[1]  # of which it has no cell
    assert "v2-figure8: synthetic" not in run("run", "v2-figure8", "v2-table3", "--archs", "fc1", "--methods", "np", "--dry-run")[1]
    assert "v2-figure8: synthetic-sarcos in place of sarcos, which was not found; to get it: python -m npref.datasets fetch" in used()[1]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "sarcos_inv_test.mat").write_bytes(b"")
    assert used()[0] == {"sarcos-split-test"} == used("--split-test")[0]
    (tmp_path / "none" / "sarcos_inv.mat").write_bytes(b"")
    assert used()[0] == {"sarcos"} and used("--dedup")[0] == {"sarcos-dedup"} and used("--synthetic")[0] == {"synthetic-sarcos"}
    assert all(f"--data-dir {tmp_path / 'none'}" in line for line in used("--data-dir", str(tmp_path / "none"))[1].splitlines()
               if line.startswith("python"))


def test_a_table_of_nothing_goes_nowhere(run, tmp_path):
    (tmp_path / "a.md").write_text("<!-- results: begin -->\nmine\n<!-- results: end -->\n")
    before = (tmp_path / "a.md").read_bytes()
    code, out, err = run("table", "v2-figure1", "v2-table1", "--into", "a.md")
    assert code == 2 and "error: no table for a.md: nothing is run for v2-figure1, v2-table1" in err
    assert (tmp_path / "a.md").read_bytes() == before
    assert run("table", "v2-figure1", "v2-figure2", "--into", "a.md")[0] == 0 and (tmp_path / "a.md").read_bytes() != before


def test_results_that_are_none(run, tmp_path):
    assert run("list")[0] == 0  # an empty folder
    (tmp_path / "results/other").mkdir()
    for words in ["table"], ["list"], ["plot"], ["run", "v2-table3", "--missing"]:
        code, _, err = run(*words)
        assert code == 2 and "--results names a folder of recorded results, which are in a folder logs of it, got " in err
    (tmp_path / "results/logs").mkdir()
    assert run("list")[0] == 0


def test_a_stop_between_two_pictures(run, tmp_path, monkeypatch):
    recipe(monkeypatch, Cell("bp", "fc1"))
    assert run("run", "mine", *SMALL)[0] == 0
    drawn, plot_curves = [], plots.plot_curves

    def stopped(*arguments):
        drawn.append(arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return plot_curves(*arguments)

    monkeypatch.setattr(plots, "plot_curves", stopped)
    code, _, err = run("plot", "mine", "mine")
    assert code == 130 and err == "stopped before mine\n" and len(drawn) == 1 and (tmp_path / "runs/reproduce/mine.png").exists()


def test_what_is_left_of_a_dry_run(run, tmp_path, monkeypatch):
    """What is done is not in it; what is begun goes on."""
    recipe(monkeypatch, Cell("bp", "fc1"), Cell("np", "fc1"))
    words = ["run", "mine", *SMALL, "--dry-run"]
    assert run(*words)[1].count("\npython examples/cifar10.py") == 2
    assert run("run", "mine", *SMALL, "--methods", "bp", "--epochs", "1")[0] == 0
    lines = run(*words)[1].splitlines()[1:]
    assert [(line.split()[3], line.endswith(" --resume")) for line in lines] == [("bp", True), ("np", False)]
    assert cifar10.main(shlex.split(lines[0])[2:]) == 0  # as it stands
    *_, said, line = run(*words)[1].splitlines()
    assert said == "1 of 2 runs are done already" and "--method np" in line


def test_own_runs_that_are_not_shown_are_told_of(run, tmp_path, monkeypatch):
    """A run on stand-ins, while there are recorded ones on the data."""
    recipe(monkeypatch, Cell("bp", "fc1"), epochs=1)
    assert run("run", "mine", *SMALL)[0] == 0
    assert "note: " not in run("table", "mine")[2]
    config = results.cell_config(Cell("bp", "fc1"), "cifar10", epochs=1)
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0}
    (tmp_path / "results/logs").mkdir(parents=True, exist_ok=True)
    results.write_text(tmp_path / "results/logs/cifar10-fc1-bp-s0.tsv",
                       {"config": asdict(config), "environment": {}, "status": "finished", "rows": [row]})
    for command in ["table", "mine"], ["plot", "mine"], ["list"]:
        _, out, err = run(*command)
        assert err.count("\n") == 1 and "note: runs in runs/reproduce that are not shown: 1, such as synthetic-fc1-bp-limit-" in err
        assert run(*command, "--own")[2] == ""
    assert run("table", "v2-figure9")[2] == ""  # of other cells
    own = tmp_path / "runs/reproduce/synthetic-fc1-bp-limit-train-40-s0/log.h5"
    log = read_log(own)
    write_log(own, log["config"], log["environment"], [], "interrupted")  # which is nothing to show
    assert run("table", "mine")[2] == ""


@pytest.mark.parametrize("recipes, words, code", [
    (("search", "train"), ["--seeds", "4", "--epochs", "50"], 0), (("search", "train"), ["--archs", "fc1", "--seeds", "4"], 2)])
def test_a_flag_has_an_effect_where_something_left_is_trained(run, monkeypatch, recipes, words, code):
    searched = Cell("bp", "fc1", options=(("loss", "mse"), ("optimizer", "sgd")), search=1e-3)
    monkeypatch.setitem(RECIPES, "search", Recipe("Search", "here", (searched,), searches_only=True))
    monkeypatch.setitem(RECIPES, "train", Recipe("Train", "here", (Cell("bp", "fc3"),)))
    found, _, err = run("run", *recipes, *words, *SMALL, "--dry-run")
    assert found == code and ("--seeds has no effect" in err) == (code == 2)


def test_own_measurements_that_are_not_shown_are_told_of(run, tmp_path):
    """Of fewer images than the recorded one, here the same log."""
    own = tmp_path / "runs/reproduce"
    code, out, err = run("run", "v1-figure1", *SMALL)
    assert code == 0, (out, err)
    (made,) = own.iterdir()
    log = read_log(made / "alignment.h5")
    (tmp_path / "results/logs").mkdir(parents=True, exist_ok=True)
    name = results.measurement_name("v1-figure1", "cifar10", None, "numpy")
    whole = log["config"] | {"dataset": "cifar10", "limit_train": None}
    results.write_text(tmp_path / "results/logs" / f"{name}.tsv", log | {"config": whole})
    err = run("table", "v1-figure1")[2]
    assert f"that are not shown: 1, such as {made.name}; " in err and run("table", "v1-figure1", "--own")[2] == ""


def test_own_searches_that_are_not_shown_are_told_of(run, tmp_path, monkeypatch):
    """And a training run is not, where a table shows none."""
    cell = Cell("bp", "fc1", options=(("loss", "mse"), ("optimizer", "sgd")), search=1e-3)
    recipe(monkeypatch, cell, searches_only=True, figure="plot_searches")
    config = results.cell_config(cell, "cifar10", lr=1e-3, epochs=2)
    about = {**asdict(config), "seeds": [0], "start": 1e-3, "factor": 2.0, "patience": 3, "most": 60}
    about.pop("lr")
    rows = [{"lr": 1e-3, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0},
            {"lr": 2e-3} | dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"), float("nan"))]
    (tmp_path / "results/logs").mkdir(parents=True, exist_ok=True)
    results.write_text(tmp_path / "results/logs" / f"{results.search_name(config)}.tsv",
                       {"config": about, "environment": {"samples": "all"}, "status": "finished", "rows": rows})
    own = tmp_path / "runs/reproduce" / results.search_name(replace(config, limit_train=40))
    own.mkdir(parents=True)
    write_log(own / "search.h5", about | {"limit_train": 40}, {"samples": "40"}, rows, "finished")
    train = replace(config, epochs=1, limit_train=40)
    (tmp_path / "runs/reproduce" / results.run_name(train)).mkdir()
    write_log(tmp_path / "runs/reproduce" / results.run_name(train) / "log.h5", asdict(train), {},
              [{"epoch": 1} | {name: 1.0 for name in rows[0] if name != "lr"}], "finished")
    err = run("table", "mine")[2]
    assert f"that are not shown: 1, such as {own.name}; others" in err and err.count("\n") == 1
    assert run("table", "mine", "--own")[2] == ""
    assert run("plot", "mine")[2] == err  # a picture has what a table has
    results.write_text(tmp_path / "results/logs" / f"{results.run_name(replace(config, epochs=1))}.tsv", {
        "config": asdict(replace(config, epochs=1)), "environment": {}, "status": "finished",
        "rows": [{"epoch": 1} | {name: 1.0 for name in rows[0] if name != "lr"}]})  # in whose place the own one would not be shown
    assert "not shown: 1, such as search-" in run("table", "mine")[2]


def test_a_plot_of_what_diverged_at_once_says_so(run, tmp_path, monkeypatch):
    recipe(monkeypatch, Cell("bp", "fc1"), figure="plot_curves")
    config = results.cell_config(Cell("bp", "fc1"), "cifar10", epochs=1)
    folder = tmp_path / "runs/reproduce" / results.run_name(config)
    folder.mkdir(parents=True)
    write_log(folder / "log.h5", asdict(config), {}, [], "diverged: bp diverged in epoch 1")
    code, _, err = run("plot", "mine")
    assert code == 2 and "nothing to draw of mine: its runs in runs/reproduce or " in err and "diverged in their first epoch" in err
    recipe(monkeypatch, Cell("bp", "fc1"), searches_only=True, figure="plot_searches")  # of which a training run is none
    assert "mine has not been run" in run("plot", "mine")[2]


def test_a_plot_of_nothing_makes_no_folder(run, tmp_path):
    assert run("plot", "v2-table1", "--out", "new")[0] == 0 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name, words", [("notes.txt", "--results names a folder of recorded results, which are in a folder logs of it"),
                                         ("logs/runs.tsv", ""), ("runs.tsv", "--results names a folder of recorded results")])
def test_record_takes_no_other_folder_than_recorded_results(run, tmp_path, name, words):
    """Nor another's table in one."""
    mine = tmp_path / "results" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("my\tprecious\ttable\n")
    if not words:  # a folder logs, with the table beside it
        mine, words = mine.rename(tmp_path / "results/runs.tsv"), "runs.tsv is there already, and not of recorded results: name another"
    (tmp_path / "runs/reproduce").mkdir(parents=True)
    before = sorted((tmp_path / "results").rglob("*"))
    code, out, err = run("record")
    assert code == 2 and words in err and err.count("\n") == 1 and out == ""
    assert mine.read_text() == "my\tprecious\ttable\n" and sorted((tmp_path / "results").rglob("*")) == before


def test_a_part_of_the_test_set_is_a_part(run, tmp_path, monkeypatch):
    recipe(monkeypatch, Cell("bp", "fc1"), epochs=1)
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0}
    for limit, said in (None, "1 of 1 cells run\n"), (50, "1 of 1 cells run, 1 in part (fewer seeds, epochs or data)\n"):
        config = results.cell_config(Cell("bp", "fc1"), "cifar10", epochs=1, limit_test=limit)
        folder = tmp_path / "runs/reproduce" / results.run_name(config)
        folder.mkdir(parents=True)
        write_log(folder / "log.h5", asdict(config), {}, [row], "finished")
        assert f"mine         Mine (here): {said}" in run("list")[1]
        shutil.rmtree(folder)
