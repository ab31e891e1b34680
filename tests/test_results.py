"""Logs as text, which runs belong to which cell, and what is recorded."""

import csv
import itertools
import math
import re

import alignment
import cifar10
import numpy as np
import pytest
import recipes
import results
import tables
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from recipes import RECIPES, Cell

from npref import METHODS
from npref.config import TABLE_2, Config
from npref.network import ARCHITECTURES
from npref.runlog import write_checkpoint, write_log

ENV = {"backend": "numpy", "device": "CPU", "threads": "1", "revision": "abc", "samples": "50000 of 50000 + 10000 of 10000"}

ANGLE = {"method": 0, "sigma2": 1e-6, "samples": 1, "passes": 1, "epoch": 0, "layer": 1, "angle": 80.0, "angle_min": 79.0,
         "angle_max": 81.0, "angle_sem": 0.5, "bias2": 0.1, "variance": 2.0}


def log_of(config, test, train=None, status="finished"):
    rows = [{"epoch": i + 1, "step": 50 * (i + 1), "train_loss": 1.0, "train_accuracy": b / 100, "test_loss": 1.25,
             "test_accuracy": a / 100, "seconds": 30.0} for i, (a, b) in enumerate(zip(test, train or test))]
    return {"config": {f: getattr(config, f) for f in Config.__dataclass_fields__}, "environment": ENV, "status": status, "rows": rows}


def angles_of(recipe, **more):
    """A finished measurement, as the recipe makes it."""
    config = {**alignment.DEFAULTS, **alignment.parse([*RECIPES[recipe].alignment])[1], "dataset": "cifar10", **more}
    rows = [{**ANGLE, "method": m, "sigma2": sigma2, "samples": K, "layer": l} for m in range(len(config["methods"]))
            for sigma2 in config["sigma2"] for K in config["samples"] for l in (1, 2)]
    return {"config": config, "environment": ENV, "status": "finished", "rows": rows}


def config_of(method="np", arch="fc1", dataset="cifar10", **more):
    return Config(method=method, arch=arch, dataset=dataset, **more)


def test_a_log_as_text(tmp_path):
    log = log_of(config_of(epochs=3), [10.0, 20.123456, 30.0])
    log["rows"][1]["test_loss"] = math.nan
    log["rows"][2]["train_loss"] = 1.23456789e-7
    results.write_text(tmp_path / "a.tsv", log)
    back = results.read_text(tmp_path / "a.tsv")
    assert {k: back[k] for k in ("config", "environment", "status")} == {k: log[k] for k in ("config", "environment", "status")}
    assert [row["epoch"] for row in back["rows"]] == [1, 2, 3] and isinstance(back["rows"][0]["step"], int)
    assert back["rows"][1]["test_accuracy"] == 0.20123 and math.isnan(back["rows"][1]["test_loss"])
    assert back["rows"][2]["train_loss"] == 1.2346e-07
    results.write_text(tmp_path / "b.tsv", back)
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()
    for rows, words in ((log["rows"][:2], "finished, but of 2 rows"), ([], "finished, but of 0 rows"),
                        ([{k: v for k, v in row.items() if k != "test_loss"} for row in log["rows"]], "without test_loss")):
        results.write_text(tmp_path / "a.tsv", {**log, "rows": rows})
        with pytest.raises(ValueError, match=rf"a.tsv: damaged \({words}\); take a copy of it"):
            results.read_text(tmp_path / "a.tsv")
    for config, rows, words in (
        ({k: v for k, v in log["config"].items() if k != "limit_test"}, log["rows"], "the configuration's limit_test"),
        ({}, [ANGLE], "the configuration's methods, the configuration's arch, .*, the configuration's repeats, .*'s epochs, .*'s sigma2, "
                      ".*'s samples"),
        (log["config"], [{k: v for k, v in row.items() if k != "train_accuracy"} for row in log["rows"]], "train_accuracy"),
    ):
        results.write_text(tmp_path / "a.tsv", {**log, "config": config, "rows": rows})
        with pytest.raises(ValueError, match=rf"a.tsv: damaged \(without {words}\); take a copy of it"):
            results.read_text(tmp_path / "a.tsv")
    results.write_text(tmp_path / "a.tsv", log)
    text = (tmp_path / "a.tsv").read_text()
    (tmp_path / "a.tsv").write_text(text.rpartition("\t")[0] + "\n")  # the last line has lost a column
    with pytest.raises(ValueError, match="a.tsv: damaged .zip.. argument 2 is shorter than argument 1"):
        results.read_text(tmp_path / "a.tsv")
    angles = dict.fromkeys(("methods", "arch", "dataset", "limit_train", "loss", "repeats", "epochs", "sigma2", "samples"))
    for name in set(ANGLE) - {"angle", "layer"}:
        results.write_text(tmp_path / "a.tsv", {**log, "config": angles, "rows": [{k: v for k, v in ANGLE.items() if k != name}]})
        with pytest.raises(ValueError, match=f"a.tsv: damaged .without {name}"):
            results.read_text(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_text("# {}\n")
    with pytest.raises(ValueError, match="damaged .without config, environment, status"):
        results.read_text(tmp_path / "a.tsv")
    log["rows"] = [{"lr": 1e-6 * 2**17, "train_loss": 1.234567}]
    log["config"] |= {"start": 1e-6, "factor": 2.0, "patience": 3, "most": 1}
    results.write_text(tmp_path / "c.tsv", log)
    assert results.read_text(tmp_path / "c.tsv")["rows"] == [{"lr": 1e-6 * 2**17, "train_loss": 1.2346}]
    whole = (tmp_path / "c.tsv").read_text()
    for damaged in (whole[:-8], whole[:-7], whole.replace('"status"', "status")):
        (tmp_path / "c.tsv").write_text(damaged)
        with pytest.raises(ValueError, match="c.tsv: damaged"):
            results.read_text(tmp_path / "c.tsv")
    (tmp_path / "c.tsv").write_text("")
    with pytest.raises(ValueError, match="c.tsv: expected a log as text"):
        results.read_text(tmp_path / "c.tsv")
    (tmp_path / "a.tsv").write_text("<html>\n404\n")
    with pytest.raises(ValueError, match="a.tsv: expected a log as text"):
        results.read_text(tmp_path / "a.tsv")


configs = st.builds(
    lambda method, arch, epochs, seed, options: Config(method=method, arch=arch, dataset="synthetic", epochs=epochs, seed=seed, **options),
    st.sampled_from(METHODS), st.sampled_from([a for a in ARCHITECTURES if a != "fc1"]), st.integers(1, 99), st.integers(0, 9),
    st.fixed_dictionaries({}, optional={
        "lr": st.sampled_from([1e-4, 1e-3, 0.25]), "bias": st.booleans(), "loss": st.sampled_from(["cce", "mse"]),
        "optimizer": st.sampled_from(["adam", "adam-eps-hat"]), "inputs": st.sampled_from(["auto", "standard"]),
        "limit_train": st.one_of(st.none(), st.integers(1, 9)), "slope": st.sampled_from([0.2, 0.01]),
        "init": st.sampled_from(["he", "glorot"])}))


@given(configs)
def test_flags_make_the_same_configuration(config):
    args, given_flags = cifar10.parse(cifar10.flags(config))
    assert Config(**given_flags) == config
    assert results.command(config).startswith("python examples/cifar10.py --method ")


@given(configs, configs)
def test_names_differ_where_configurations_do(one, two):
    """Folders are shared by runs that differ in epochs alone, and by no others."""
    same = all(getattr(one, f) == getattr(two, f) for f in Config.__dataclass_fields__ if f != "epochs")
    assert (results.run_name(one) == results.run_name(two)) == same


def test_names_are_readable():
    assert results.run_name(config_of("danp", "fc3", noisy_baseline=True, seed=2)) == "cifar10-fc3-danp-noisy-baseline-s2"
    assert results.run_name(config_of("bp", "fc1", optimizer="sgd", lr=0.008192, loss="mse", limit_train=2000)) == (
        "cifar10-fc1-bp-loss-mse-optimizer-sgd-lr-0.008192-limit_train-2000-s0".replace("limit_train", "limit-train"))
    assert results.run_name(config_of("bp", "fc1", lr=0.5), lr=False, seed=False) == "cifar10-fc1-bp"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_sound(name):
    recipe = RECIPES[name]
    assert bool(recipe.cells) != bool(recipe.alignment)
    assert len(set(recipe.cells)) == len(recipe.cells)
    for cell in recipe.cells:
        config = results.cell_config(cell, cell.dataset, **({"lr": 1.0} if cell.search else {}))
        assert results.matches(cell, config) and config.batch_size == 1000
        others = [other for other in recipe.cells if other is not cell and results.matches(other, config)]
        assert not others, "two cells of one recipe would be one run"


def test_the_papers_numbers():
    """Spot checks of the transcription, and that every filled cell of Table 2 that Table 3 or 4 reports is there."""
    table = {(c.method, c.arch): c.paper for c in RECIPES["v2-table3"].cells}
    assert len(table) == 26 and len(RECIPES["v2-table4"].cells) == 10 and len(RECIPES["v1-table3"].cells) == 24
    assert table["danp", "fc3"] == (48.5, 44.4) and table["dnp", "fc9"] == (40.5, 38.6) and table["inp", "conv"] == (52.3, 49.9)
    assert {key for key in TABLE_2 if key[1] != "conv-tiny"} <= set(table)
    tiny = {(c.method, dict(c.options).get("samples", 1)): c.paper for c in RECIPES["v2-table4"].cells}
    assert tiny["danp", 30] == (32.8, 11.3) and tiny["dnp", 100] == (9.7, 7.5)
    v1 = {(c.method, c.arch): (c.paper_lr, *c.paper) for c in RECIPES["v1-table3"].cells}
    assert v1["danp", "fc6"] == (66, 95.5, 41.6) and v1["dinp", "conv"] == (2.0, 84.6, 24.7)
    sarcos = {c.method: c.paper[1] for c in RECIPES["v2-figure8"].cells}
    assert sarcos == {"np": 11.18, "dnp": 10.51, "anp": 15.86, "danp": 9.79, "bp": 9.48, "dbp": 7.02}
    assert {c.method: dict(c.options).get("decor_lr") for c in recipes.SARCOS} == {
        "np": None, "dnp": 1e-4, "anp": None, "danp": 1e-4, "bp": None, "dbp": None}


def test_the_papers_seeds_and_pictures():
    assert {name for name, recipe in RECIPES.items() if recipe.seeds == 5} == {"v1-table3", "v1-figure2", "v1-figure3", "v1-figure4"}
    assert {name for name, recipe in RECIPES.items() if recipe.search_seeds == 3} == {"v2-figure8", "v1-figure7"}
    assert {name: recipe.figure for name, recipe in RECIPES.items() if recipe.alignment} == {
        "v2-figure2": "plot_alignment", "v2-figure6": "plot_alignment", "v2-figure7": "plot_sigma2", "v1-figure6": "plot_sigma2",
        "v1-figure1": "plot_angles"}


def test_the_first_version_measures_angles_with_its_own_loss():
    for name, recipe in RECIPES.items():
        if recipe.alignment:
            assert (recipe.alignment[-4:] == ("--loss", "mse", "--anp-norm", "layer")) == name.startswith("v1"), name


def test_what_the_angles_are_measured_against():
    def values(name, flag):
        after = RECIPES[name].alignment[RECIPES[name].alignment.index(flag) + 1 :]
        return [float(word) for word in itertools.takewhile(lambda word: word[0] != "-", after)]

    for name in ("v2-figure2", "v2-figure6"):
        assert values(name, "--samples") == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] and values(name, "--repeats") == [3]
    for name in ("v2-figure7", "v1-figure6"):
        assert values(name, "--sigma2") == pytest.approx([10.0**n for n in range(-10, 1)]) and values(name, "--samples") == [1]


def test_which_runs_are_a_cells():
    cell = Cell("np", "fc1", paper=(38.5, 38.2))
    short, long = log_of(config_of(), [20.0]), log_of(config_of(), [20.0, 30.0])
    seed1 = log_of(config_of(seed=1), [25.0])
    others = [log_of(config_of("bp"), [1.0]), log_of(config_of(arch="fc3"), [1.0]), log_of(config_of(bias=True), [1.0]),
              log_of(config_of(lr=0.1), [1.0]), log_of(config_of(noisy_baseline=True), [1.0])]
    lesser = [log_of(config_of(limit_train=2000), [1.0, 1.0, 1.0]), log_of(config_of(dataset="synthetic"), [1.0])]
    logs = dict(enumerate([long, short, *others, *lesser, seed1]))
    assert results.runs_of(cell, logs) == {0: long, 1: seed1}
    on_gpu = log_of(config_of(backend="cupy"), [20.0, 31.0])
    assert results.runs_of(cell, {"a": on_gpu, "b": long}) == results.runs_of(cell, {"a": long, "b": on_gpu}) == {0: long}
    assert results.runs_of(cell, {"a": short, "b": on_gpu}) == {0: on_gpu}
    assert results.runs_of(cell, dict(enumerate([*others, *lesser]))) == {0: lesser[0]}  # on part of the data before a stand-in
    tested = log_of(config_of(limit_test=100), [1.0] * 9)  # on part of the test set, longer or not
    assert results.runs_of(cell, {"a": tested, "b": short}) == {0: short} and results.runs_of(cell, {"a": tested}) == {0: tested}
    assert results.runs_of(cell, dict(enumerate(others))) == {}
    assert results.runs_of(Cell("np", "fc1", "cifar100"), logs) == {}


def test_the_best_data_there_are():
    """SARCOS without the training rows that are test rows comes before the official files; a measurement on more images before one on
    fewer."""
    cell = next(cell for cell in RECIPES["v2-figure8"].cells if cell.method == "bp")
    runs = {name: log_of(results.cell_config(cell, name, lr=1.0), [10.0]) for name in reversed(results.STAND_INS["sarcos"])}
    for name in ("sarcos-dedup", "sarcos", "sarcos-split-test", "synthetic-sarcos"):
        assert results.runs_of(cell, runs) == {0: runs.pop(name)}
    order = [("cifar10", None), ("cifar10", 2000), ("cifar10", 100), ("synthetic", None)]
    angles = {f"alignment-v2-figure7-{name}-{limit}": {"config": {"dataset": name, "limit_train": limit}, "status": "finished"}
              for name, limit in reversed(order)}
    for name, limit in order:
        assert results.alignment_of("v2-figure7", angles) == angles.pop(f"alignment-v2-figure7-{name}-{limit}")


def test_how_complete_the_data_were():
    def found(environment, **config):
        log = log_of(config_of(**config), [10.0])
        return results.samples({**log, "environment": environment})

    assert found({"samples": "3 of 4 + 1 of 2"}) == "3 of 4 + 1 of 2"
    assert found({}) == "50000 of 50000 + 10000 of 10000" and found({}, dataset="cifar100") == "?"
    assert found({}, limit_train=100) == found({}, limit_test=100) == "limited"


def test_the_rate_that_a_search_found():
    cell = Cell("bp", "fc1", options=(("optimizer", "sgd"),), search=1e-6)
    slow, fast = (log_of(config_of("bp", optimizer="sgd", lr=lr), [10.0 * lr]) for lr in (1.0, 2.0))
    search = log_of(config_of("bp", optimizer="sgd", lr=1.0), [])
    del search["config"]["lr"]
    search["config"]["start"] = 1.0
    search["rows"] = [{"lr": 1.0, "train_loss": 0.5}, {"lr": 2.0, "train_loss": 0.75}, {"lr": 4.0, "train_loss": math.nan}]
    assert results.runs_of(cell, {"a": fast, "b": slow, "s": search}) == {0: slow}
    search["rows"][1]["train_loss"] = 0.25
    assert results.runs_of(cell, {"a": slow, "b": fast, "s": search}) == {0: fast}
    assert results.searches([cell], {"a": slow, "s": search}) == {"s": search}
    trial = {**search, "config": {**search["config"], "epochs": 1}, "rows": [{"lr": 1.0, "train_loss": 0.125}]}
    seed1 = log_of(config_of("bp", optimizer="sgd", lr=1.0, seed=1), [10.0])
    assert results.runs_of(cell, {"a": slow, "b": fast, "c": seed1, "s": search, "t": trial}) == {0: fast}
    assert results.runs_of(cell, {"t": trial, "a": slow, "b": fast, "c": seed1, "s": search}) == {0: fast}  # whichever was first
    part = {**search, "config": {**search["config"], "limit_train": 2000, "epochs": 99}, "rows": [{"lr": 1.0, "train_loss": 0.125}]}
    assert results.runs_of(cell, {"a": slow, "b": fast, "s": search, "p": part}) == {0: fast}  # its rate is for part of the data
    assert results.runs_of(cell, {"a": slow, "s": search}) == {0: slow}  # none at the rate that was found
    search["rows"] = [{"lr": 1.0, "train_loss": math.nan}]
    assert results.searches_of(cell, {"s": search}) == [] and results.runs_of(cell, {"a": slow, "s": search}) == {0: slow}
    other = log_of(config_of("bp", optimizer="sgd", lr=2.0, seed=1), [10.0])
    assert "| lr 1 and 2 |" in tables.cell_line(cell, results.runs_of(cell, {"a": slow, "b": other}))


def test_a_run_without_an_epoch_is_none_yet():
    cell = Cell("np", "fc1", paper=(38.5, 38.2))
    begun, one = log_of(config_of(), [], status="running"), log_of(config_of(seed=1), [30.0])
    assert results.runs_of(cell, {"a": begun}) == {} and results.runs_of(cell, {"a": begun, "b": one}) == {1: one}
    begun["status"] = "diverged: np diverged in epoch 1"
    assert tables.cell_line(cell, results.runs_of(cell, {"a": begun})).count("diverged |") == 2


def test_record(tmp_path):
    log = log_of(config_of(epochs=3), [10.0, 30.0, 20.0], [5.0, 15.0, 25.0])
    assert results.record(tmp_path, {"cifar10-fc1-np-s0": log}) == 1
    head, line = (tmp_path / "runs.tsv").read_text().splitlines()
    row = dict(zip(head.split("\t"), line.split("\t")))
    assert row["run"] == "cifar10-fc1-np-s0" and row["recipes"] == "v2-table3,v2-figure3,why-fc1" and row["command"] == (
        "python examples/cifar10.py --method np --arch fc1 --dataset cifar10 --epochs 3")
    assert (row["peak_train"], row["peak_test"], row["peak_epoch"], row["final_train"], row["final_test"]) == ("25", "30", "2", "25", "20")
    assert (row["minutes"], row["lr"], row["decor_lr"], row["seed"], row["revision"]) == ("1.5", "0.001", "", "0", "abc")
    assert results.gather(tmp_path, None) == {"cifar10-fc1-np-s0": log}


def test_runs_that_two_devices_have_made_differ_as_the_readme_says():
    """The means and the largest of |peak test on CuPy - on NumPy| over the runs that both have made to the same epoch."""
    runs = {row["run"]: row for row in csv.DictReader((ROOT / "data/results/runs.tsv").open(), delimiter="\t")}
    found = {True: [], False: []}  # by whether the rule is a plain perturbation's
    for row in runs.values():
        other = runs.get(results.without_backend(row["run"]))
        if row["backend"] == "cupy" and other and other["epochs"] == row["epochs"]:
            found[row["method"] in ("np", "anp", "inp")].append(float(row["peak_test"]) - float(other["peak_test"]))
    (a, b), both = (np.abs(found[plain]) for plain in (False, True)), found[False] + found[True]
    said = " ".join((ROOT / "data/results/README.md").read_text(encoding="utf-8").split())
    assert f"and {sum(row['backend'] == 'cupy' for row in runs.values())} runs of fc1, fc3, fc6, fc9, conv and conv-tiny" in said
    assert f"{len(both)} of the GPU's runs were made on both for all 50 epochs" in said
    assert f"accuracies of the {len(a)} of BP and decorrelated methods differ by {a.mean():.1f} on average, {a.max():.1f} at most" in said
    assert f"the {len(b)} of NP, ANP and INP by {b.mean():.1f} on average, {b.max():.1f} at most" in said
    assert f"at most; the GPU's are {-np.mean(both):.1f} lower on average" in said


def test_what_the_readme_says_of_the_paper_is_what_its_table_has():
    """Peaks and differences that are quoted in the sections on claims and on differences, against Table 3's rows above them."""
    text, method = (ROOT / "README.md").read_text(encoding="utf-8"), "[DINA]*[BN]P"
    table = re.search(r"\*\*v2-table3\*\*(.*?)\*\*v2-figure2\*\*", text, re.S)[1]
    rows = re.findall(r"^\| (\w+) \| (\w+) \| .*? \| .*? \| ([\d.]+).*? \| ([+-][\d.]+) \|", table, re.M)
    peak, difference = ({row[:2]: row[i] for row in rows} for i in (2, 3))
    claims, differences = re.search("### What the paper claims(.*)### Where a figure differs(.*)## Speed", text, re.S).groups()
    quoted = {(arch, *found) for arch, words in re.findall(r"\b(fc1|fc3|conv): (.*?)(?=fc3:|conv:|\|)", claims)
              for found in re.findall(rf"\b({method}) (\d\d\.\d)", words)}
    assert quoted == {(*cell, number) for cell, number in peak.items() if cell[0] in ("fc1", "fc3", "conv")}
    quoted = [((arch, name), number.replace("−", "-"))
              for names, arch, numbers in re.findall(r"^\| ([^|]*) on (fc1|fc3|conv) \| (.*?) \|", differences, re.M)
              for name, number in zip(re.findall(method, names), numbers.split(", "), strict=True)]
    assert len(quoted) == 11 and all(difference[cell] == number for cell, number in quoted), quoted


def test_a_folder_is_of_the_log_that_it_is_named_for(tmp_path, capsys):
    training, others = log_of(config_of(epochs=3), [10.0, 30.0, 20.0]), angles_of("v1-figure1")
    for folder in "cifar10-fc1-np-s0", "alignment-v1-figure1-cifar10":
        for name, log in ("log.h5", training), ("alignment.h5", others):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_log(tmp_path / folder / name, log["config"], log["environment"], log["rows"], log["status"])
    assert results.gather(None, tmp_path) == {"cifar10-fc1-np-s0": training, "alignment-v1-figure1-cifar10": others}
    err = capsys.readouterr().err
    assert f"left out: {tmp_path}/cifar10-fc1-np-s0/alignment.h5: the folder is log.h5's; move this one" in err and err.count("\n") == 2


@pytest.mark.parametrize("own, words", [
    ({"network": "Network(...)"}, "it is of a network of one's own, not of those that its configuration names"),
    ({"network": "Network(...)", "rule": "mine.rule"}, "it is of a network and a rule of one's own"),
])
def test_a_rule_or_network_of_ones_own_is_no_cells(tmp_path, capsys, own, words):
    """It would be taken for the paper's, and take a recorded run's place."""
    log = log_of(config_of(epochs=2), [10.0, 20.0])
    (tmp_path / "mine").mkdir()
    write_log(tmp_path / "mine" / "log.h5", log["config"], ENV | own, log["rows"], log["status"])
    assert results.gather(None, tmp_path) == {}
    assert capsys.readouterr().err.startswith(f"warning: left out: {tmp_path}/mine/log.h5: {words}")


def test_own_runs_come_before_recorded_ones_that_are_no_longer(tmp_path, capsys):
    """And checkpoints are no logs, nor worth a word."""
    name, config = "cifar10-fc1-np-s0", config_of(epochs=2)
    recorded = log_of(config, [10.0, 20.0])
    results.record(tmp_path / "recorded", {name: recorded})
    for accuracies, kept in (([30.0, 40.0], True), ([30.0], False)):
        own = log_of(config, accuracies, status="finished" if kept else "running")
        (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
        write_log(tmp_path / "runs" / name / "log.h5", own["config"], ENV, own["rows"], own["status"])
        write_checkpoint(tmp_path / "runs" / name / "checkpoint.h5", own["config"], ENV, own["rows"], {}, {})
        assert results.gather(tmp_path / "recorded", tmp_path / "runs") == {name: own if kept else recorded}
    (tmp_path / "runs" / name / "log.h5").unlink()
    assert results.gather(None, tmp_path / "runs") == {} and capsys.readouterr().err == ""


def test_runs_tsv_is_of_the_numbers_that_are_recorded(tmp_path):
    """Five digits of each: recording what was recorded changes nothing."""
    log = log_of(config_of(epochs=2), [10.123451, 20.123449])
    log["rows"][0]["seconds"], log["rows"][1]["seconds"] = 2.999996, 0.0  # 0.0 minutes; with five digits 0.05, so 0.1
    assert results.record(tmp_path / "a", {"cifar10-fc1-np-s0": log}) == 1
    results.record(tmp_path / "b", results.gather(tmp_path / "a", None))
    assert (tmp_path / "a" / "runs.tsv").read_bytes() == (tmp_path / "b" / "runs.tsv").read_bytes()


def test_recorded_logs_that_no_run_can_have(tmp_path):
    log = log_of(config_of(epochs=1), [10.0])
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "._a.tsv").write_bytes(b"\0\5\x16\7")  # as macOS leaves beside a copy
    assert results.gather(tmp_path, None) == {}
    for spoilt, words in (({"status": 3}, "its status is 3"), ({"config": {**log["config"], "method": "zz"}}, "unknown method 'zz'"),
                          ({"config": {**log["config"], "lr": "x"}}, "lr must be a number"),
                          ({"config": {**log["config"], "q": 1}}, "'q'")):
        results.write_text(tmp_path / "logs" / "a.tsv", {**log, **spoilt})
        with pytest.raises(ValueError, match=f"a.tsv: damaged .*{words}"):
            results.gather(tmp_path, None)


def test_what_is_recorded_agrees_with_itself(tmp_path):
    """runs.tsv and the tables of both READMEs are what the recorded logs make them."""
    recorded = ROOT / "data" / "results"
    logs = results.gather(recorded, None)
    assert results.record(tmp_path, logs) == len(logs) > 0
    assert (tmp_path / "runs.tsv").read_text() == (recorded / "runs.tsv").read_text()
    tabulated = set()
    for path in ("README.md", "data/results/README.md"):
        text = (ROOT / path).read_text()
        names = re.search(rf"reproduce\.py table --into {re.escape(path)} ([\w\- ]+)", text).group(1).split()
        shown = text.partition("<!-- results: begin -->")[2].partition("<!-- results: end -->")[0]
        assert shown.strip() == tables.table(names, logs).strip()
        tabulated |= set(names)
    rows = [line.split("\t") for line in (recorded / "runs.tsv").read_text().splitlines()]
    assert all(tabulated & set(row[rows[0].index("recipes")].split(",")) for row in rows[1:])  # every run is in one of them


def search_of(epochs=2, losses=(3.0, 2.0, math.nan), **more):
    """A finished search: doubled from 1e-6 until it diverged."""
    config = log_of(config_of("bp", loss="mse", optimizer="sgd", lr=1e-6, epochs=epochs), [])["config"]
    config = {**config, "start": 1e-6, "factor": 2.0, "patience": 3, "most": 60, **more}
    return {"config": config, "environment": ENV, "status": "finished",
            "rows": [{"lr": 1e-6 * 2**i, "train_loss": loss} for i, loss in enumerate(losses)]}


def test_a_log_that_has_lost_lines_is_damaged():
    """Whatever it is of, it says that it is finished."""
    for log in (log_of(config_of(epochs=3), [1.0, 2.0, 3.0]), search_of(), angles_of("v1-figure1")):
        results.check_complete(log)
        for rows in log["rows"][:-1], []:
            with pytest.raises(ValueError, match=f"finished, but of {len(rows)} rows"):
                results.check_complete({**log, "rows": rows})
            results.check_complete({**log, "rows": rows, "status": "running"})
    results.check_complete(search_of(losses=(3.0,) * 4))
    results.check_complete(search_of(losses=(3.0, 2.0), most=2))
    results.check_complete(search_of(losses=(3.0, 2.0), factor=math.inf))
    log = log_of(config_of(epochs=3), [1.0, 2.0, 3.0])
    for order in ([1, 0, 2], [0, 0, 1], [1, 2, 2]):
        with pytest.raises(ValueError, match="its epochs are not 1, 2, 3 and so on"):
            results.check_complete({**log, "rows": [log["rows"][i] for i in order]})
    for name, value in ("test_accuracy", 5.1), ("train_accuracy", -0.1), ("test_accuracy", math.inf):
        log["rows"][1][name], before = value, log["rows"][1][name]
        with pytest.raises(ValueError, match="an accuracy is not between 0 and 1"):
            results.check_complete(log)
        log["rows"][1][name] = before
    for more, words in (({"methods": ["np", "zz"]}, r"of methods \['np', 'zz'\] on cifar10"), ({"dataset": "foo"}, "of methods .* on foo")):
        angles = angles_of("v1-figure1")
        with pytest.raises(ValueError, match=words):
            results.check_complete({**angles, "config": angles["config"] | more})
    with pytest.raises(ValueError, match="without the environment's samples"):
        results.check_complete({**angles_of("v1-figure1"), "environment": {}})
    with pytest.raises(TypeError, match="epochs must be an int, got 'x'"):
        results.check_complete(search_of("x"))


def test_what_a_log_is_of_is_what_its_name_says():
    training = log_of(config_of(epochs=1, seed=3), [1.0])
    angles, on_gpu = angles_of("v1-figure1"), angles_of("v2-figure2", backend="cupy", limit_train=7)
    for name, log in (("cifar10-fc1-np-s3", training), ("search-cifar10-fc1-bp-loss-mse-optimizer-sgd", search_of()),
                      ("search-cifar10-fc1-bp-loss-mse-optimizer-sgd-epochs-1", search_of(1)), ("alignment-v1-figure1-cifar10", angles),
                      ("alignment-v2-figure2-cifar10-limit-train-7-cupy", on_gpu)):
        results.check_name(name, log)
    for name, log in (("cifar10-fc1-np-s0", training), ("cifar10-fc1-bp-s3", training), ("copy", training),
                      ("search-cifar10-fc1-np-loss-mse-optimizer-sgd", search_of()),
                      ("search-cifar10-fc1-bp-loss-mse-optimizer-sgd-epochs-1", search_of()),
                      ("alignment-v1-figure1-cifar10", angles_of("v1-figure1", repeats=1)),
                      ("alignment-v1-figure1-cifar10", angles_of("v1-figure1", loss="cce")),
                      ("alignment-v1-figure1-synthetic", angles), ("alignment-v1-figure6-cifar10", angles), ("alignment-mine", angles)):
        with pytest.raises(ValueError, match="it is of something else than its name says .*: rename it, or move it elsewhere"):
            results.check_name(name, log)
    name = "search-cifar10-fc1-bp-loss-mse-optimizer-sgd"
    results.check_name(name, search_of(start=1e-7))  # which has tried the recipe's rates, too
    results.check_name("alignment-v1-figure1-cifar10", angles_of("v1-figure1", split=True))
    for more, words in (({"factor": 1.1}, "1e-06 on by a factor 1.1 with seeds .0."), ({"start": 1e-3}, "0.001 on by a factor 2 "),
                        ({"most": 3}, "patience 3 and at most 3 rates"), ({"patience": 2}, "patience 2 and at most 60 rates"),
                        ({"seeds": [0, 1]}, r"with seeds \[0, 1\]")):
        with pytest.raises(ValueError, match=f"it is not the recipe's search, but one from .*{words}"):
            results.check_name(name, search_of(**more))


def test_a_training_run_goes_by_its_own_name(tmp_path, capsys):
    """Recorded or not, and whatever its folder is called; a search or measurement must be what its name says."""
    log, other = log_of(config_of(epochs=1), [10.0]), log_of(config_of(epochs=1, seed=1), [20.0])
    (tmp_path / "logs").mkdir()
    results.write_text(tmp_path / "logs/copy.tsv", log)
    for name in "a", "d":  # of the same run, and shorter
        results.write_text(tmp_path / f"logs/{name}.tsv", {**log, "rows": [], "status": "interrupted"})
    results.write_text(tmp_path / "logs/search-copy.tsv", search_of())
    (tmp_path / "runs/mine").mkdir(parents=True)
    write_log(tmp_path / "runs/mine/log.h5", other["config"], other["environment"], other["rows"], other["status"])
    assert {name: log["rows"][0]["test_accuracy"] for name, log in results.gather(tmp_path, tmp_path / "runs").items()} == {
        "cifar10-fc1-np-s0": 0.1, "cifar10-fc1-np-s1": 0.2}
    assert capsys.readouterr().err == (
        f"warning: left out: {tmp_path}/logs/search-copy.tsv: it is of something else than its name says "
        "(search-cifar10-fc1-bp-loss-mse-optimizer-sgd or search-cifar10-fc1-bp-loss-mse-optimizer-sgd-epochs-2): rename it, "
        "or move it elsewhere\n")
