"""The tables, and the curves that are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import results
import tables
from recipes import RECIPES, Cell
from test_results import ENV, config_of, log_of


def test_the_table():
    cell = Cell("np", "fc1", paper=(38.5, 38.2))
    logs = {"a": log_of(config_of(), [10.0, 40.0, 20.0], [11.0, 12.0, 41.0]), "b": log_of(config_of(seed=1), [10.0, 30.0], [9.0, 8.0])}
    assert tables.cell_line(cell, results.runs_of(cell, logs)) == (
        "| fc1 | NP | 38.5 / 38.2 | 41.0 | 40.0 | +1.8 |  | 1 | 3 | 3 | 1 of another length left out |")
    logs["b"] = log_of(config_of(seed=1), [10.0, 30.0, 30.0], [9.0, 8.0, 8.0])
    assert tables.cell_line(cell, results.runs_of(cell, logs)) == (
        "| fc1 | NP | 38.5 / 38.2 | 25.0 (9.0 to 41.0) | 35.0 (30.0 to 40.0) | -3.2 | 24.5 / 35.0 | 2 | 3 | never |  |")
    assert tables.cell_line(cell, {}) == "| fc1 | NP | 38.5 / 38.2 | not run | not run | | | | | | |"
    logs["b"]["status"], logs["b"]["rows"] = "diverged: NP diverged in epoch 3", logs["b"]["rows"][:2]
    assert tables.cell_line(cell, results.runs_of(cell, logs)) == (
        "| fc1 | NP | 38.5 / 38.2 | 41.0 | 40.0 | +1.8 |  | 2 | 3 | 3 | diverged: seed 1 in epoch 3 |")
    text = tables.table(["v2-figure3", "v2-figure7"], logs)
    assert "**v2-figure3**" in text and text.count("not run") == 2 * 11 + 1 and "| fc3 | DANP | 48.5 / 44.4 | not run" in text
    stand_in = {"a": log_of(config_of(dataset="synthetic"), [10.0])}
    assert tables.cell_line(cell, results.runs_of(cell, stand_in)).endswith("| on synthetic |")
    part = {"a": {**log_of(config_of(limit_test=50), [10.0]), "environment": {**ENV, "samples": "50000 + 50"}}}
    assert tables.cell_line(cell, results.runs_of(cell, part)).endswith("| 50000 + 50 |")
    for accuracy, reached in (38.45, "1"), (38.449, "never"):  # 38.5 with the paper's one digit, or not
        line = tables.cell_line(cell, {0: log_of(config_of(), [10.0], [accuracy])})
        assert line.endswith(f"| 1 | 1 | {reached} |  |"), line
    elsewhere = {"a": log_of(config_of(backend="cupy"), [10.0]), "b": log_of(config_of(seed=1), [10.0])}
    assert tables.cell_line(cell, results.runs_of(cell, elsewhere)).endswith("| on cupy and numpy |")


def test_runs_as_long_as_most():
    """Among one that was tried for an epoch, or gone on with, the others' means, curves and peaks stay what they are."""
    runs = {n: [{"rows": [0] * rows} for rows in n] for n in ((50, 50, 1), (1, 50), (50, 100, 50), (3,), (2, 2, 5, 5))}
    assert [(sorted({len(log["rows"]) for log in alike}), others) for alike, others in map(tables.alike, runs.values())] == [
        ([50], 1), ([50], 1), ([50], 1), ([3], 0), ([5], 2)]
    assert tables.alike([]) == ([], 0)
    cell = Cell("np", "fc1", paper=(38.5, 38.2))
    logs = {seed: log_of(config_of(seed=seed), [10.0, 40.0][: 2 - (seed == 2)]) for seed in range(3)}
    assert tables.cell_line(cell, logs).endswith("| 40.0 / 40.0 | 2 | 2 | 2 | 1 of another length left out |")
    (name, _, _, drawn), = tables.curves([cell], logs)[0][2]
    assert name == "NP, 2 of 3 seeds" and [len(train) for train, _ in drawn] == [2, 2]
    logs[2]["config"]["backend"] = "cupy"  # of what is left out nothing is said
    assert tables.cell_line(cell, logs).endswith("| 1 of another length left out |")
    for n, log in enumerate(logs.values(), 1):  # no two diverge in one epoch, and their peaks are all there is
        log["status"], log["rows"] = f"diverged: NP diverged in epoch {n + 1}", log["rows"] * n
    line = tables.cell_line(cell, logs)
    assert "| 30.0 (10.0 to 40.0) | 30.0 (10.0 to 40.0) | -8.2 |" in line and "| 3 | 2 to 4 |" in line and "left out" not in line
    (name, _, _, drawn), = tables.curves([cell], logs)[0][2]
    assert name == "NP, diverged" and len(drawn) == 3


def test_curves_of_part_of_the_data_have_a_panel_of_their_own():
    cells = [Cell(method, "fc1") for method in ("np", "bp")]
    logs = {results.run_name(c): log_of(c, [1.0]) for c in (config_of("np"), config_of("bp", limit_train=2000))}
    logs[list(logs)[1]]["environment"] = {"samples": "2000 of 50000 + 10000 of 10000"}
    assert [(title, [name for name, *_ in lines]) for title, _, lines in tables.curves(cells, logs)] == [
        ("fc1, cifar10", ["NP"]), ("fc1, cifar10,\n2000 of 50000 + 10000 of 10000", ["BP"])]


def test_what_tells_cells_apart():
    """All that differs between the cells of a recipe; v1's loss and optimiser, which all cells of its tables share, do not."""
    v1, tiny = Cell("danp", "fc3", options=(("loss", "mse"), ("optimizer", "sgd"), ("anp_norm", "layer"), ("inputs", "standard"),
                                            ("init", "uniform")), search=1e-6), Cell("bp", "fc1", options=(("optimizer", "adam-eps-hat"),))
    assert tables.label(v1) == "DANP, standard inputs, uniform weights" and tables.label(tiny) == "BP, adam-eps-hat"
    network = tuple((name, "network" if name == "anp_norm" else value) for name, value in v1.options)
    assert tables.label(replace(v1, options=network)) == "DANP, norm of the network, standard inputs, uniform weights"
    assert tables.label(replace(v1, search=None)) == "DANP, standard inputs, uniform weights"
    adam = replace(v1, search=None, options=(("loss", "mse"), *v1.options[2:]))
    assert tables.label(adam) == "DANP, mse loss, norm of the layer, standard inputs, uniform weights"
    for name, recipe in RECIPES.items():
        rows = [(cell.arch, tables.label(cell)) for cell in recipe.cells]
        assert len(set(rows)) == len(rows), name


def test_losses_are_final_accuracies_peaks():
    log = log_of(config_of(), [10.0, 30.0, 20.0], [5.0, 50.0, 40.0])
    assert results.value(log) == (50.0, 30.0)
    for row in log["rows"]:
        del row["train_accuracy"], row["test_accuracy"]
    log["rows"][-1] |= {"train_loss": 0.5, "test_loss": 2.5}
    assert results.value(log) == (0.5, 2.5) and results.figures(log)[0] == "loss"
    cell = Cell("np", "fc1", paper=(None, 2.0))
    assert "| – / 2 | 0.500 | 2.5 | +0.5 |  | 1 | 3 |" in tables.cell_line(cell, {0: log})
    log["status"] = "diverged: np diverged in epoch 4"
    assert "| – / 2 | diverged | diverged | | | 1 | 3 | | diverged: seed 0 in epoch 4 |" in tables.cell_line(cell, {0: log})
    assert tables.spread([0.25]) == "0.250" and tables.spread([0.5, 0.75]) == "0.625 (0.500 to 0.750)"
    assert tables.spread([0.5, 1.5]) == "1.0 (0.5 to 1.5)"


def test_the_rate_of_the_longest_search_on_the_most_data():
    def search(rate, **config):
        log = log_of(config_of("bp", optimizer="sgd", lr=1.0, **config), [])
        return {**log, "config": {**{k: v for k, v in log["config"].items() if k != "lr"}, "start": rate},
                "rows": [{"lr": rate, "train_loss": 1.0}, {"lr": 2 * rate, "train_loss": 2.0}]}

    cell = Cell("bp", "fc1", options=(("optimizer", "sgd"),), search=1e-6, paper_lr=0.5)
    logs = dict(enumerate([search(1.0, epochs=9, dataset="synthetic"), search(2.0, epochs=9, limit_train=100),
                           search(3.0, epochs=9, limit_train=2000), search(4.0, epochs=1), search(5.0, epochs=2)]))
    for rate, note in ((5, "2 epochs a rate"), (4, "1 epochs a rate"), (3, "9 epochs a rate; 2000 training samples"),
                       (2, "9 epochs a rate; 100 training samples"), (1, "9 epochs a rate; on synthetic")):
        first = "it is the first, a smaller --start may find a better one"
        assert tables.rate_line(cell, logs) == f"| fc1 | BP | 0.5 | {rate} | {rate} to {2 * rate} | {note}; {first} |"
        logs.popitem()
    assert tables.rate_line(cell, logs) == "| fc1 | BP | 0.5 | not run | | |"
    assert tables.rate_line(cell, {0: {**search(1.0, epochs=2), "status": "running"}}) == "| fc1 | BP | 0.5 | not run | | |"


def test_curves():
    cells = [Cell("np", "fc1"), Cell("danp", "fc3", options=(("samples", 10),)), Cell("danp", "fc3", options=(("samples", 100),)),
             Cell("dnp", "fc3", options=(("noisy_baseline", True),)), Cell("bp", "fc3")]
    logs = {i: log_of(results.cell_config(cell, "cifar10"), [10.0 * i, 20.0]) for i, cell in enumerate(cells[:4])}
    panels = tables.curves(cells, logs)
    assert [(title, quantity, [line[:3] for line in lines]) for title, quantity, lines in panels] == [
        ("fc1, cifar10", "accuracy", [("NP", "np", 0.35)]),
        ("fc3, cifar10", "accuracy", [("DANP, K = 10", "danp", pytest.approx(0.675)), ("DANP, K = 100", "danp", 1.0),
                                      ("DNP, noisy baseline", "dnp", "noisy")])]
    assert np.allclose(panels[1][2][1][3], [[[20.0, 20.0], [20.0, 20.0]]])
    logs[4] = log_of(results.cell_config(cells[4], "cifar10"), [30.0])  # it takes no noise samples, so that none are fewer
    assert tables.curves(cells, logs)[1][2][-1][:3] == ("BP", "bp", 1.0)
    logs["cut"] = log_of(results.cell_config(cells[0], "cifar10", seed=1), [5.0], status="diverged: NP diverged in epoch 2")
    (name, _, _, runs), = tables.curves(cells, logs)[0][2]
    assert name == "NP, 1 of 2 seeds" and len(runs) == 1 and len(runs[0][0]) == 2
