import itertools
import os
import re
import warnings
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from reference import assert_close

from npref import (
    METHODS,
    Conv,
    Dense,
    Network,
    datasets,
    equations,
    forward,
    init_params,
    loss,
    mean_squared_correlation,
    noise,
    one_hot,
    runlog,
)
from npref.batches import prepare
from npref.config import Config
from npref.datasets import Dataset
from npref.decorrelation import OvershootWarning
from npref.precision import NoiseFloorWarning
from npref.step import compute_update, initial_state, start_step, training_step
from npref.train import AHEAD, Diverged, Interrupted, evaluate, params_from, train

SMALL = dict(arch="fc1", batch_size=16, epochs=3, dataset="synthetic")


def small_data(n=40):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (n + 25, 3, 10, 10)).astype(np.uint8), rng.integers(0, 10, n + 25)
    return Dataset("synthetic", "made here", x[:n], y[:n], x[n:], y[n:], 10)


def weights(out):
    return runlog.read_checkpoint(out / "checkpoint.h5")["arrays"]


def same_bytes(a, b):
    assert a.keys() == b.keys()
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method):
    """On data with a clear pattern the loss falls; that an update is subtracted is not taken on trust."""
    rng = np.random.default_rng(0)
    y = np.arange(250) % 10
    x = np.clip(rng.normal(0, 40, (250, 3, 4, 4)) + rng.integers(50, 200, (10, 3, 4, 4))[y], 0, 255).astype(np.uint8)
    data = Dataset("synthetic", "made here", x[:200], y[:200], x[200:], y[200:], 10)
    rows = list(train(Config(method=method, arch="fc1", batch_size=20, epochs=20, lr=1e-2, dataset="synthetic"), data))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.3 and rows[-1]["test_accuracy"] > 0.3


def test_a_folder_without_a_name():
    with pytest.raises(ValueError, match="out must be a folder, got an empty name"):
        train(Config(method="bp", arch="fc1"), datasets.synthetic(40, 20), "")
    with pytest.raises(TypeError, match="out must be a folder, a str or a Path, or None, got int"):
        train(Config(method="bp", arch="fc1"), datasets.synthetic(40, 20), 5)


def test_standardised_inputs_and_real_targets():
    """As if the data had been standardised beforehand: in training, evaluation on both parts, and the measure of correlation."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(5, [[3.0, 0.5, 9.0]], (70, 3)), rng.normal(0, 2, (70, 2))
    data = Dataset("made", "here", x[:50], y[:50], x[50:], y[50:], 2, inputs="raw")
    z = (x - x[:50].mean(axis=0)) / x[:50].std(axis=0)
    ready = Dataset("made", "here", z[:50], y[:50], z[50:], y[50:], 2, inputs="raw")
    config = Config(method="danp", arch="sarcos", dataset="made", loss="mse", epochs=2, batch_size=20, dtype="float64", eval_train=True)
    rows, expected = list(train(replace(config, inputs="standard"), data)), list(train(config, ready))
    for row, other in zip(rows, expected, strict=True):
        assert "test_accuracy" not in row and "eval_train_accuracy" not in row
        row, other = without_seconds([row, other])
        assert row == pytest.approx(other, rel=1e-6)
    assert rows[0]["test_loss"] != pytest.approx(next(train(config, data))["test_loss"], rel=1e-3)  # raw is something else
    with pytest.raises(ValueError, match="made has real targets, not labels, and loss=cce needs labels: use mse or mse-mean"):
        train(replace(config, loss="cce"), data)


@pytest.mark.parametrize("method", ["np", "danp", "dinp"])
def test_two_epochs_by_the_parts(method, tmp_path):
    """The loop against its parts put together by hand: order of samples, noise of the step, update, R, totals, last short batch."""
    config, data = Config(method=method, **{**SMALL, "epochs": 2}, dtype="float64"), small_data()
    rows = list(train(config, data, tmp_path))
    network = config.network((3, 10, 10), 10)
    state = initial_state(config, network)
    step = 0
    for epoch in range(2):
        order, losses = noise.permutation(config.seed, epoch, 40), []
        for chosen in (order[:16], order[16:32], order[32:]):
            x, t = data.x_train[chosen] / 255, np.eye(10)[data.y_train[chosen]]
            losses.append(loss("cce", forward(network, state.params, x).y, t))
            update = compute_update(config, network, state.params, x, t, step)
            R = [None if r is None else equations.decorrelation_update(r, [row[:, None] for row in x_star], config.decor_lr)
                 for r, x_star in zip(state.params.R, update.trace.x_star)]
            training_step(config, network, state, x, t, step)
            for new, expected in zip(state.params.R, R):
                assert (new is None) == (not method.startswith("d"))
                if new is not None:
                    assert_close(new, expected, 100)
                    assert not np.array_equal(new, np.eye(len(new))), "R_0 was not updated"
            step += 1
        assert rows[epoch]["train_loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-12)
        assert rows[epoch]["step"] == step and rows[epoch]["epoch"] == epoch + 1
    assert same_bytes({"params/W/0": state.params.W[0]}, {"params/W/0": weights(tmp_path)["params/W/0"]})
    test_loss, accuracy = evaluate(network, state.params, data.x_test, data.y_test)
    assert rows[1]["test_loss"] == test_loss and rows[1]["test_accuracy"] == accuracy


@pytest.mark.parametrize("optimizer, extra", [("adam", {}), ("adam-eps-hat", {}), ("sgd", dict(lr=0.01))])
def test_resume_is_bit_identical(tmp_path, optimizer, extra):
    config, data = Config(method="danp", **SMALL, optimizer=optimizer, bias=True, eval_train=True, **extra), small_data()
    whole = list(train(config, data, tmp_path / "whole"))
    for stop_at in (0, 1, 4, 8):
        out, count = tmp_path / f"stopped{stop_at}", iter(range(100))
        with pytest.raises(Interrupted, match="stopped in epoch"):
            list(train(config, data, out, stop=lambda: next(count) == stop_at))  # noqa: B023
        assert runlog.read_log(out / "log.h5")["status"] == "interrupted"
        list(train(config, data, out, resume=True))
        assert same_bytes(weights(out), weights(tmp_path / "whole"))
        log = runlog.read_log(out / "log.h5")
        assert without_seconds(log["rows"]) == without_seconds(whole) and log["status"] == "finished"


def test_more_epochs_can_be_asked_for_on_resume(tmp_path):
    config, data = Config(method="np", **SMALL), small_data()
    list(train(replace(config, epochs=1), data, tmp_path / "a"))
    assert len(list(train(config, data, tmp_path / "a", resume=True))) == 2
    list(train(config, data, tmp_path / "b"))
    assert same_bytes(weights(tmp_path / "a"), weights(tmp_path / "b"))
    with pytest.raises(ValueError, match="has finished 3 epochs already"):
        train(config, data, tmp_path / "a", resume=True)


def test_a_changed_configuration_is_refused_by_name(tmp_path):
    config, data = Config(method="np", **SMALL), small_data()
    list(train(config, data, tmp_path))
    with pytest.raises(ValueError, match="changed configuration: lr was 0.001, now 0.1; seed was 0, now 7; start anew in another folder"):
        train(replace(config, lr=0.1, seed=7, epochs=5), data, tmp_path, resume=True)
    other = replace(data, y_train=(data.y_train + 1) % 10)
    with pytest.raises(ValueError, match="the data's contents"):
        train(replace(config, epochs=5), other, tmp_path, resume=True)
    assert len(runlog.read_log(tmp_path / "log.h5")["rows"]) == 3


def test_a_run_is_not_overwritten(tmp_path):
    config, data = Config(method="np", **SMALL), small_data()
    list(train(config, data, tmp_path))
    before = (tmp_path / "log.h5").read_bytes()
    with pytest.raises(FileExistsError, match=r"holds a run already \(log.h5, checkpoint.h5\): resume it, or choose another folder"):
        train(config, data, tmp_path)
    assert (tmp_path / "log.h5").read_bytes() == before
    (tmp_path / "checkpoint.h5").unlink()
    with pytest.raises(FileExistsError, match=r"already \(log.h5\): its checkpoint is gone: remove the log, or choose another folder"):
        train(config, data, tmp_path)


def test_two_processes_do_not_share_a_folder(tmp_path):
    config, data = Config(method="np", **SMALL), small_data()
    first = train(config, data, tmp_path)
    next(first)
    with pytest.raises(OSError, match="another process is writing the run"):
        train(config, data, tmp_path, resume=True)
    assert len(list(first)) == 2 and sorted(os.listdir(tmp_path)) == ["checkpoint.h5", "log.h5"]


def test_a_run_that_is_given_up_before_its_first_epoch_gives_its_folder_back(tmp_path):
    config, data = Config(method="np", **SMALL), small_data()
    train(config, data, tmp_path).close()
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.h5", "log.h5"]
    assert without_seconds(train(config, data, tmp_path, resume=True)) == without_seconds(train(config, data))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "r").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file: expected a folder"):
        train(Config(**SMALL), small_data(), tmp_path / "r")


@pytest.mark.parametrize("status, epochs, then", [
    ("interrupted", 2, "interrupted"), ("running", 2, "running"), ("interrupted", 3, "finished"), ("finished", 3, None),
    ("diverged: np diverged in epoch 4", 2, None), ("diverged: np diverged in epoch 4", 3, None)])
def test_what_is_refused_leaves_the_log_as_it_was(tmp_path, status, epochs, then):
    """But for a run of just so many epochs, which is finished now."""
    config, data = Config(method="np", **SMALL), small_data()
    list(train(config, data, tmp_path))
    log = runlog.read_log(tmp_path / "log.h5")
    runlog.write_log(tmp_path / "log.h5", log["config"] | {"epochs": 100}, log["environment"] | {"more": "1"}, log["rows"], status)
    before = (tmp_path / "log.h5").read_bytes()
    with pytest.raises(ValueError, match="has finished 3 epochs already"):
        train(replace(config, epochs=epochs), data, tmp_path, resume=True)
    log = runlog.read_log(tmp_path / "log.h5")
    assert log["status"] == (then or status) and log["config"]["epochs"] == (3 if then == "finished" else 100)
    assert then == "finished" or (tmp_path / "log.h5").read_bytes() == before


def test_the_rows_are_the_callers_to_change(tmp_path):
    for row in train(Config(method="np", **SMALL), small_data(), tmp_path):
        row["test_accuracy"] = 100.0
        row["mine"] = 1
    assert all(row["test_accuracy"] <= 1 and "mine" not in row for row in runlog.read_log(tmp_path / "log.h5")["rows"])


@pytest.mark.parametrize("epochs, status", [(3, "finished"), (2, "running")])
def test_resuming_a_finished_run_completes_its_log(tmp_path, epochs, status, monkeypatch):
    """As after a kill between the last checkpoint and the last log; also where fewer epochs are asked for."""
    config, data = Config(method="np", **SMALL), small_data()
    rows = list(train(config, data, tmp_path))
    made = runlog.read_log(tmp_path / "log.h5")
    runlog.write_log(tmp_path / "log.h5", made["config"], {}, rows[:2], "running")
    monkeypatch.setattr(runlog, "source_revision", lambda: "another")
    with pytest.raises(ValueError, match="has finished 3 epochs already"):
        train(replace(config, epochs=epochs), data, tmp_path, resume=True)
    log = runlog.read_log(tmp_path / "log.h5")
    assert log["rows"] == rows and log["status"] == status and sorted(os.listdir(tmp_path)) == ["checkpoint.h5", "log.h5"]
    assert log["environment"] == made["environment"]  # of the process that has made the epochs, its `rounding` too


def test_rounding_is_that_of_the_start_wherever_a_run_goes_on(tmp_path, monkeypatch):
    config, data = Config(method="np", **SMALL), small_data()
    monkeypatch.setattr("npref.train.rounding_error", lambda *arguments: 0.5)
    with pytest.warns(NoiseFloorWarning, match="by 50%"):
        next(train(config, data, tmp_path))
    monkeypatch.setattr("npref.train.rounding_error", lambda *arguments: 0.25)
    with pytest.warns(NoiseFloorWarning, match="by 50%"):
        list(train(config, data, tmp_path, resume=True))
    for name, read in (("log.h5", runlog.read_log), ("checkpoint.h5", runlog.read_checkpoint)):
        assert read(tmp_path / name)["environment"]["rounding"] == "0.5"


def test_data_that_are_none(tmp_path):
    with pytest.raises(TypeError, match="expected a Dataset, as npref.datasets.load returns, got NoneType"):
        train(Config(**SMALL), None, tmp_path)
    for config in None, SMALL, Config:
        with pytest.raises(TypeError, match=f"expected a Config, got {type(config).__name__}"):
            train(config, small_data(), tmp_path)


@pytest.mark.parametrize("more", [{}, {"inputs": "standard", "loss": "mse"}])
def test_a_checkpoint_tells_what_its_network_is(tmp_path, monkeypatch, more):
    """By the lines in README."""
    data = small_data()
    monkeypatch.setattr(datasets, "load", lambda name, limit_train, limit_test: data)
    row = list(train(Config(**SMALL | {"arch": "fc3", "method": "danp", "epochs": 1} | more), data, tmp_path))[-1]
    said = re.search(r"```python\n(from npref import datasets\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    assert "runs/mine" in said
    exec(said.replace("runs/mine", str(tmp_path)), found := {})
    assert (found["loss"], found["accuracy"]) == (row["test_loss"], row["test_accuracy"])
    with pytest.raises(ValueError, match="expected a checkpoint's arrays, params/W/0 and so on, got .*arrays, counters"):
        params_from(found["saved"])


OWN = Network((3, 10, 10), (Conv(4, 3, stride=2, bias=True), Dense(6, activation="tanh"), Dense(10, activation="identity")))


def twice(config, network, params, x, t, step):
    update = compute_update(config, network, params, x, t, step)
    return replace(update, dW=tuple(2 * d for d in update.dW))


def test_a_network_and_a_rule_of_ones_own(tmp_path):
    """Trained as by the loop in step.py's docstring, logged, resumed with the same bytes, and not taken for others."""
    config, data = Config(method="danp", dataset="synthetic", batch_size=16, epochs=3, optimizer="sgd", lr=0.1), small_data()
    own = dict(network=OWN, rule=twice)
    state, x, t = initial_state(config, OWN), data.x_train, one_hot(data.y_train, 10)
    for step in range(9):
        chosen = np.split(noise.permutation(0, step // 3, 40), [16, 32])[step % 3]
        training_step(config, OWN, state, prepare(x[chosen], "float32"), t[chosen], step, rule=twice)
    list(train(config, data, tmp_path / "whole", **own))
    saved = runlog.read_checkpoint(tmp_path / "whole" / "checkpoint.h5")
    assert all((saved["arrays"][f"params/W/{l}"] == W).all() for l, W in enumerate(state.params.W))
    about = saved["environment"]
    assert (about["network"], about["rule"], "rounding" in about) == (str(OWN), f"{__name__}.twice", False)
    assert eval(about["network"], {"Network": Network, "Conv": Conv, "Dense": Dense}) == OWN
    list(train(replace(config, epochs=1), data, tmp_path / "parts", **own))
    for more, said in ((dict(network=OWN), r"parts with a changed configuration: rule was \S+twice, now the configured one; start"),
                       (dict(rule=twice), r"network was Network\(.*\), now the configured one; start anew"),
                       (dict(own, network=replace(OWN, layers=OWN.layers[:1] + OWN.layers[2:])), r"network was .*, now Network\("),
                       (dict(own, rule=partial(twice, t=1)), r"rule was \S+twice, now \S+twice with t=1;")):
        with pytest.raises(ValueError, match=said):
            train(config, data, tmp_path / "parts", resume=True, **more)
    with pytest.raises(ValueError, match=r"network was Network.*; rule was \S+twice, now the configured one;"):
        runlog.check_same_run(runlog.read_log(tmp_path / "parts" / "log.h5"), asdict(replace(config, epochs=1)), about["data"], "parts")
    list(train(config, data, tmp_path / "parts", resume=True, **own))
    assert same_bytes(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_the_configured_network_and_rule_given_by_hand(tmp_path):
    config, data = Config(method="dinp", arch="fc3", dataset="synthetic", batch_size=16, epochs=1), small_data()
    given = list(train(config, data, tmp_path, network=config.network((3, 10, 10), 10), rule=compute_update))
    assert without_seconds(given) == without_seconds(train(config, data))
    about = runlog.read_log(tmp_path / "log.h5")["environment"]
    assert "rule" not in about and "rounding" in about


@pytest.mark.parametrize("change, error, words", [
    (lambda update: None, TypeError, "rule bad must return an Update, got NoneType"),
    (lambda update: replace(update, dW=update.dW[:2]), ValueError, r"rule bad must return dW of the shapes \[\(4, 3, 3, 3\), .*, got"),
    (lambda update: replace(update, db=None), ValueError, r"rule bad must return db of the shapes \[\(4,\), None, None\], got NoneType"),
    (lambda update: replace(update, db=(None,) * 3), ValueError, r"must return db .*, got \[None, None, None\]"),
    (lambda update: replace(update, losses=update.losses[:1]), ValueError, r"must return losses \(16,\), one a sample, got \(1,\)"),
    (lambda update: replace(update, losses=None), ValueError, r"must return losses \(16,\), one a sample, got None"),
    (lambda update: replace(update, dL=1.0), TypeError, "must return dL as an array, or None, got float"),
    (lambda update: replace(update, trace=None), TypeError, "must return the trace of its clean pass, got NoneType"),
    (lambda update: replace(update, trace=replace(update.trace, x=(*update.trace.x[:-1], np.zeros((32, 10), "float32")))), ValueError,
     r"rule bad must return the trace of one pass, with outputs \(16, 10\), got \(32, 10\)"),
])
def test_what_a_rule_of_ones_own_must_return(change, error, words):
    def bad(*arguments):
        return change(compute_update(*arguments))

    config, data = Config(method="danp", dataset="synthetic"), small_data()
    state = initial_state(config, OWN)
    before = [p.copy() for p in (*state.params.W, *state.params.R)]
    x, t = prepare(data.x_train[:16], "float32"), one_hot(data.y_train[:16], 10)
    with pytest.raises(error, match=words):
        training_step(config, OWN, state, x, t, 0, rule=bad)
    assert all((a == b).all() for a, b in zip(before, (*state.params.W, *state.params.R)))
    without_dL = replace(compute_update(config, OWN, state.params, x, t, 0), dL=None)
    training_step(config, OWN, state, x, t, 0, rule=lambda *arguments: without_dL)


@pytest.mark.parametrize("own, error, said", [
    (dict(network="fc3"), TypeError, "expected a Network, got str"),
    (dict(network=()), TypeError, "expected a Network, got tuple"),
    (dict(network=replace(OWN, input_shape=(3, 9, 9))), ValueError, r"must take \(3, 10, 10\) to 10 outputs, .* got \(3, 9, 9\) to 10"),
    (dict(network=replace(OWN, layers=(Dense(9),))), ValueError, r"got \(3, 10, 10\) to 9"),
    (dict(network=Network((3, 10, 10), (Dense(9, activation="sign"), Dense(10))), method="dbp"), ValueError,
     "dbp needs a derivative, which the sign activation does not have: use np"),
    (dict(rule="np"), TypeError, "rule must be a function as npref.step.compute_update is, got 'np'"),
])
def test_networks_and_rules_that_are_none(tmp_path, own, error, said):
    with pytest.raises(error, match=said):
        train(Config(dataset="synthetic", method=own.get("method", "danp")), small_data(), tmp_path / "out",
              **{name: value for name, value in own.items() if name != "method"})
    assert not (tmp_path / "out").exists()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run file"):
        train(Config(**SMALL), small_data(), tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="needs the folder"):
        train(Config(**SMALL), small_data(), resume=True)


@pytest.mark.filterwarnings("ignore::npref.decorrelation.OvershootWarning")
@pytest.mark.parametrize("options, quantity", [
    (dict(method="bp", lr=1e30, optimizer="sgd"), "the loss of the clean pass is not finite"),
    (dict(method="np", lr=1e36, optimizer="sgd"), "is not finite"),
    (dict(method="danp", decor_lr=1e39), "R_0 is not finite"),
    (dict(method="bp", lr=1e20, loss="mse", arch="fc1"), "Adam's second moment of W_1 is not finite"),
    (dict(method="dbp", lr=3e3, loss="mse", batch_size=40), "the test loss is not finite"),
])
def test_divergence_stops_the_run_and_keeps_what_was_good(tmp_path, options, quantity):
    config, data = Config(**{**SMALL, "arch": "fc3", **options}), small_data()
    with pytest.raises(Diverged, match=rf"{config.method} diverged in epoch \d, step \d+: .*{quantity}"):
        list(train(config, data, tmp_path))
    log = runlog.read_log(tmp_path / "log.h5")
    assert log["status"].startswith("diverged: ") and quantity in log["status"]
    assert all(np.isfinite(a).all() for a in weights(tmp_path).values())


@pytest.mark.parametrize("spoil, quantity", [
    (lambda params, adam: params.W[1].fill(np.inf), "W_2"), (lambda params, adam: params.b[1].fill(np.nan), "b_2"),
    (lambda params, adam: adam.v[1].fill(np.inf), "Adam's second moment of W_2"),
    (lambda params, adam: adam.v[5].fill(np.inf), "Adam's second moment of b_2")])
def test_what_diverged_is_named_by_its_layer(monkeypatch, spoil, quantity):
    from npref import step as module

    whole = module.apply_update

    def spoilt(params, adam, update, **rates):
        whole(params, adam, update, **rates)
        spoil(params, adam)

    monkeypatch.setattr(module, "apply_update", spoilt)
    monkeypatch.setattr("npref.train.evaluate", lambda *arguments: (1.0, 0.5))  # as if the test set had not met it
    with pytest.raises(Diverged, match=f"step 1: {quantity} is not finite"):
        list(train(Config(method="bp", bias=True, **{**SMALL, "arch": "fc3", "batch_size": 40}), small_data()))


@pytest.mark.parametrize("bad", [0, 1, 3, 4, 7])
def test_a_device_is_steps_ahead_of_what_is_looked_at(fake_cupy, monkeypatch, tmp_path, bad):
    """The step and the quantity are those of the step that went wrong, in every batch of the epoch."""
    from npref import step as module

    whole, seen = module.apply_update, []

    def spoilt(params, adam, update, **rates):
        whole(params, adam, update, **rates)
        seen.append(len(seen))
        if len(seen) == bad + 1:
            params.R[1][0, 0] = np.nan

    monkeypatch.setattr(module, "apply_update", spoilt)
    config = Config(method="danp", backend="cupy", **{**SMALL, "arch": "fc3", "batch_size": 5})  # eight batches
    with pytest.raises(Diverged, match=f"danp diverged in epoch 1, step {bad + 1}: R_1 is not finite"):
        list(train(config, small_data(), tmp_path))
    assert len(seen) == min(bad + 1 + AHEAD, 8)
    assert not fake_cupy.copies  # none is left on its way, to come when its place has another's numbers
    assert all(np.isfinite(a).all() for a in weights(tmp_path).values())
    seen.clear()
    with pytest.raises(Diverged, match=f"epoch 1, step {bad + 1}: R_1 is not finite"):  # and if the run is asked to stop just then
        list(train(config, small_data(), tmp_path / "stopped", stop=lambda: len(seen) == bad + 1))
    assert runlog.read_checkpoint(tmp_path / "stopped" / "checkpoint.h5")["counters"]["batch"] == 0


def test_python_is_only_so_far_ahead_of_a_gpu(fake_cupy, tmp_path, monkeypatch):
    waiting, most = [], []

    def start(*arguments):
        update, outcome = start_step(*arguments)
        waiting.append(outcome)
        most.append(len(waiting))
        return update, lambda: waiting.pop(0)()

    monkeypatch.setattr("npref.train.start_step", start)
    for backend, ahead in ("cupy", AHEAD), ("numpy", 0):
        most.clear()
        list(train(Config(method="bp", arch="fc1", backend=backend, batch_size=2, epochs=2), small_data(), tmp_path / backend))
        assert max(most) == ahead + 1 and most[20] == 1 and not waiting  # 20 steps an epoch, and at its end all are waited for


def test_what_inputs_are_standardised_by_goes_to_the_device_once(fake_cupy):
    moved = []
    for epochs in (1, 2):
        before = fake_cupy.counts["to_device"]
        options = {**SMALL, "epochs": epochs, "batch_size": 10, "inputs": "standard"}
        list(train(Config(method="np", backend="cupy", **options), small_data()))
        moved.append(fake_cupy.counts["to_device"] - before)
    assert moved[1] - moved[0] == 1  # the second epoch's order


def test_a_device_that_is_stopped_has_counted_every_step(fake_cupy, tmp_path):
    config, data = Config(method="np", backend="cupy", **{**SMALL, "batch_size": 10}), small_data()
    calls = iter(range(100))
    with pytest.raises(Interrupted):
        list(train(config, data, tmp_path / "a", stop=lambda: next(calls) == 2))
    counters = runlog.read_checkpoint(tmp_path / "a" / "checkpoint.h5")["counters"]
    assert counters["batch"] == 2 and counters["total_seen"] == 20 and counters["total_loss"] > 40
    resumed, whole = list(train(config, data, tmp_path / "a", resume=True)), list(train(config, data))
    for a, b in zip(resumed, whole, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_a_rate_at_which_R_grows_is_warned_of_at_the_start(tmp_path):
    """The limit of the small data's 300 pixels, in [0, 1], is 0.026; a run that goes on has another R, of which that says nothing."""
    config = Config(method="dbp", decor_lr=0.03, **SMALL)
    with pytest.warns(OvershootWarning, match="decor_lr=0.03 is too large for the inputs of layer 1 .*: beyond 0.026 ") as caught:
        rows = train(config, small_data(), tmp_path)
    assert caught[0].filename == __file__
    next(rows)
    rows.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OvershootWarning)
        train(config, small_data(), tmp_path, resume=True)
        train(replace(config, decor_lr=0.025), small_data())
        train(Config(method="bp", **SMALL), small_data())


@pytest.mark.parametrize("loss_name", ["cce", "mse"])
def test_a_row_is_what_its_columns_say(tmp_path, loss_name):
    """Anew from the weights, sample by sample, on standardised pixels, with a last batch that is smaller than the others."""
    data = small_data()
    config = Config(method="dnp", arch="sarcos", dataset="synthetic", inputs="standard", loss=loss_name, epochs=1, batch_size=16,
                    eval_train=True, dtype="float64", seed=1)
    (row,) = train(config, data, tmp_path)
    mean, std = (f(data.x_train / 255, axis=(0, 2, 3), keepdims=True)[0] for f in (np.mean, np.std))
    network = config.network((3, 10, 10), 10)
    end = params_from(runlog.read_checkpoint(tmp_path / "checkpoint.h5")["arrays"])

    def judged(params, x, y):  # sums of losses and of right answers, and the pass
        trace = forward(network, params, (x / 255 - mean) / std)
        return loss(loss_name, trace.y, one_hot(y, 10, "float64")).sum(), (trace.y.argmax(axis=1) == y).sum(), trace

    for part, x, y in (("test", data.x_test, data.y_test), ("eval_train", data.x_train, data.y_train)):
        total, right, trace = judged(end, x, y)
        assert row[f"{part}_loss"] == pytest.approx(total / len(x)) and row[f"{part}_accuracy"] == right / len(x)
    each = [float(mean_squared_correlation(x_star)) for x_star in trace.x_star]  # of the training images
    assert row["correlation"] == pytest.approx(sum(each) / 3) and [row[f"correlation_{l}"] for l in range(3)] == pytest.approx(each)
    state, order, sums = initial_state(config, network), noise.permutation(config.seed, 0, 40), np.zeros(2)
    for step in range(3):  # of 16, 16 and 8 samples, each judged before its own update
        chosen = order[16 * step : 16 * step + 16]
        x, y = data.x_train[chosen], data.y_train[chosen]
        sums += (last := judged(state.params, x, y))[:2]
        training_step(config, network, state, (x / 255 - mean) / std, one_hot(y, 10, "float64"), step)
    assert row["train_loss"] == pytest.approx(sums[0] / 40) and row["train_accuracy"] == sums[1] / 40
    assert last[1] > 0  # so that the smaller batch would show if it counted for more


def test_limits_come_before_standardisation():
    data, config = small_data(), Config(method="bp", inputs="standard", **SMALL)
    part = Dataset("synthetic", "made here", data.x_train[:20], data.y_train[:20], data.x_test[:9], data.y_test[:9], 10)
    assert without_seconds(train(replace(config, limit_train=20, limit_test=9), data)) == without_seconds(train(config, part))


def test_columns_of_the_table(tmp_path):
    data = small_data()
    plain, = train(Config(method="np", **{**SMALL, "epochs": 1}), data)
    assert list(plain) == ["epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"]
    full, = train(Config(method="danp", **{**SMALL, "epochs": 1}, eval_train=True), data)
    assert {"eval_train_loss", "eval_train_accuracy", "correlation", "correlation_0"} < full.keys() and "correlation_1" not in full
    assert 0 < full["correlation"] <= 1 and full["eval_train_loss"] != full["train_loss"]


def test_evaluate_counts_every_sample_once():
    config, data = Config(method="dnp", arch="fc1"), small_data()
    network = config.network((3, 10, 10), 10)
    params = initial_state(config, network).params
    params.R[0][...] += np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32) / 20
    y = forward(network, params, prepare(data.x_train, "float32")).y
    expected = loss("cce", y, one_hot(data.y_train, 10)).mean(), (y.argmax(1) == data.y_train).mean()
    for batch in (7, 40, 1000):
        assert np.allclose(evaluate(network, params, data.x_train, data.y_train, batch=batch), expected, rtol=1e-5)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_that_no_output_stands_for_are_no_score(label):
    network = Network((4,), (Dense(3, activation="identity"),))
    params, x, y = init_params(network), np.ones((7, 4), dtype=np.float32), np.array([0, 1, 2, 0, 1, 2, 0])
    assert 0 <= evaluate(network, params, x, y, batch=3)[1] <= 1
    y[[2, 4]] = label
    with pytest.raises(ValueError, match="expected labels from 0 to 2, got 2 others among 7"):
        evaluate(network, params, x, y, batch=3)


@pytest.mark.parametrize("inputs, labels", [(1000, 1500), (7, 100), (2000, 1000), (0, 0), (0, 3)])
def test_an_evaluation_needs_a_label_for_each_input(inputs, labels):
    network = Network((4,), (Dense(3, activation="identity"),))
    x, y = np.zeros((inputs, 4), dtype=np.float32), np.zeros(labels, dtype=int)
    with pytest.raises(ValueError, match=f"expected one label or target for each of at least one input, got {labels} for {inputs}$"):
        evaluate(network, init_params(network), x, y)
    with pytest.raises(TypeError, match="expected Params, got dict: params_from makes them of a checkpoint's arrays"):
        evaluate(network, {}, np.zeros((2, 4), dtype=np.float32), np.zeros(2, dtype=int))


def test_an_evaluation_that_overflows_gives_a_loss_that_is_not_finite():
    network = Config(method="dbp", arch="sarcos").network((3,), 7)
    params = initial_state(Config(method="dbp", arch="sarcos"), network).params
    x, y = np.full((20, 3), 3e38, dtype=np.float32), np.ones((20, 7))
    found, accuracy = evaluate(network, params, x, y, "mse")
    assert not np.isfinite(found) and np.isnan(accuracy)


def test_prepare_scales_bytes_and_nothing_else():
    x = prepare(np.array([0, 51, 255], dtype=np.uint8), "float32")
    assert x.dtype == np.float32 and x.tolist() == [0, np.float32(0.2), 1]
    assert prepare(np.array([2.5]), "float32").tolist() == [2.5]


def test_a_batch_larger_than_the_data_is_all_of_it():
    row, = train(Config(method="np", **{**SMALL, "epochs": 1, "batch_size": 1000}), small_data())
    assert row["step"] == 1


def test_correlation_is_measured_on_the_first_thousand_images(tmp_path):
    config, data = Config(method="dnp", dtype="float64", **{**SMALL, "epochs": 1, "batch_size": 500}), small_data(1100)
    row, = train(config, data, tmp_path)
    trace = forward(config.network((3, 10, 10), 10), params_from(weights(tmp_path)), data.x_train[:1000] / 255)
    assert row["correlation"] == pytest.approx(float(mean_squared_correlation(trace.x_star[0])), rel=1e-9)


def test_an_epochs_seconds_are_those_of_its_steps_and_of_its_evaluation(tmp_path, monkeypatch):
    """Also of the steps before it was stopped; by a clock that goes on by one second each time it is looked at."""
    monkeypatch.setattr("npref.train.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    config, data = Config(method="bp", **{**SMALL, "epochs": 2}), small_data()  # three steps an epoch
    assert [row["seconds"] for row in train(config, data)] == [4, 4]
    count = iter(range(100))
    with pytest.raises(Interrupted):
        list(train(config, data, tmp_path, stop=lambda: next(count) == 2))
    assert [row["seconds"] for row in train(config, data, tmp_path, resume=True)] == [4, 4]


def test_what_has_changed_on_the_way_is_in_the_log(tmp_path, monkeypatch):
    config, data = Config(method="np", **SMALL), small_data()
    rows = train(config, data, tmp_path)
    next(rows)
    rows.close()
    monkeypatch.setattr(runlog, "source_revision", lambda: "another")
    list(train(config, data, tmp_path, resume=True))
    for log in runlog.read_log(tmp_path / "log.h5"), runlog.read_checkpoint(tmp_path / "checkpoint.h5"):
        assert log["environment"]["revision"] == "another"
        assert log["environment"]["went_on"].startswith("revision was ") and log["environment"]["went_on"].endswith(", now another")


@pytest.mark.parametrize("method", ["bp", "np", "danp"])
@pytest.mark.parametrize("part, quantity", [("x_train", "the loss of the clean pass"), ("x_test", "the test loss")])
def test_features_that_overflow_are_divergence(method, part, quantity):
    """No arithmetic's warnings: of squares that are infinite, and of those that are not numbers."""
    rng = np.random.default_rng(0)
    arrays = dict(x_train=rng.normal(size=(40, 3)), y_train=rng.normal(size=(40, 7)), x_test=rng.normal(size=(20, 3)),
                  y_test=rng.normal(size=(20, 7)))
    arrays = {name: a.astype(np.float32) for name, a in arrays.items()}
    arrays[part][3, 1] = 3e38
    data = Dataset("made", "here", **arrays, classes=7, inputs="raw")
    with pytest.raises(Diverged, match=f"{quantity} is not finite"):
        list(train(Config(method=method, arch="fc1", dataset="made", loss="mse", batch_size=40), data))


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(train(Config(method="np", **SMALL), small_data()))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("method", METHODS)
def test_dtype_never_changes(method):
    for dtype in ("float32", "float64"):
        config, data = Config(method=method, arch="conv", dtype=dtype, bias=True), datasets.synthetic(limit_train=4, limit_test=1)
        network = config.network((3, 32, 32), 10)
        state = initial_state(config, network)
        update, _ = training_step(config, network, state, prepare(data.x_train, dtype), one_hot(data.y_train, 10, dtype), 0)
        arrays = [*state.params.W, *state.params.b, *state.params.R, *state.adam.m, *state.adam.v, *update.dW, *update.db,
                  *update.trace.x_star, *update.trace.a, *update.trace.x]
        assert {str(a.dtype) for a in arrays if a is not None} == {dtype} and update.losses.dtype == np.float64


def test_real_cifar10(cifar10_dir):
    """A few steps of the paper's main network on the real images."""
    data = datasets.load_cifar10(cifar10_dir).limited(2000, 500)
    rows = list(train(Config(method="dbp", arch="fc1", dataset="cifar10", epochs=3, batch_size=500), data))
    assert rows[-1]["test_accuracy"] > 0.22


def test_a_checkpoint_without_all_that_a_run_needs_is_refused(tmp_path):
    config, data = Config(**SMALL | {"epochs": 1}), small_data()
    list(train(config, data, tmp_path))
    saved = runlog.read_checkpoint(tmp_path / "checkpoint.h5")
    for part, name in (("arrays", "optimizer/m/0"), ("arrays", "params/W/0"), ("counters", "t"), ("counters", "batch"),
                       ("counters", "total_loss"), ("environment", "data"), ("rows", 0)):
        spoilt = {**saved, part: [] if part == "rows" else {k: v for k, v in saved[part].items() if k != name}}
        runlog.write_checkpoint(tmp_path / "checkpoint.h5", *(spoilt[k] for k in ("config", "environment", "rows", "arrays", "counters")))
        words = "params/W/0" if name == "params/W/0" else f"a checkpoint without {name or 'row of each of 1 epochs'}"
        with pytest.raises(ValueError, match=words):
            train(replace(config, epochs=2), data, tmp_path, resume=True)
