"""The command line of examples/alignment.py, its log and its pictures."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import alignment as example
import numpy as np
import pytest
from conftest import ROOT

from npref import bp_update, init_params, one_hot, runlog
from npref.alignment import angle
from npref.batches import input_moments, prepare
from npref.config import Config
from npref.datasets import synthetic, synthetic_tiny_imagenet
from npref.noise import permutation
from npref.step import compute_update, initial_state, training_step

SCRIPT = ROOT / "examples" / "alignment.py"
TINY = "--dataset synthetic --arch fc1 --batch-size 20 --limit-train 40 --no-plot".split()
TRAINED = ["--epochs", "0", "1", "--limit-test", "20"]
COLUMNS = ["method", "sigma2", "samples", "passes", "epoch", "layer", "angle", "angle_min", "angle_max", "angle_sem", "bias2", "variance"]


@pytest.fixture
def run(command):
    return lambda *words, tiny=True: command(example.main, *(TINY if tiny else ()), *words)


def log_of(out):
    return runlog.read_log(f"{out}/alignment.h5")


def numbers(out):
    return [tuple(row.values()) for row in log_of(out)["rows"]]


def batch(config):
    """The network and the measured batch of TINY."""
    data = synthetic(limit_train=40)
    network = config.network((3, 32, 32), 10)
    return network, prepare(data.x_train[:20], config.dtype), one_hot(data.y_train[:20], 10, config.dtype)


def test_noisy_passes():
    network, *_ = batch(Config(arch="conv"))
    assert [example.passes(method, 10, network) for method in ("np", "dnp", "anp", "danp", "inp", "dinp")] == [10] * 4 + [50] * 2


def test_the_batch_is_scaled_as_in_training(run, monkeypatch):
    """And what rounding does is measured on its first hundred images, here all of them."""
    seen = []
    monkeypatch.setattr(example.precision, "rounding_error", lambda rule, network, params, x, t: seen.append(x) or 0.0)
    code, _, err = run("--dataset", "synthetic-tiny-imagenet", "--methods", "np", "--samples", 1, "--out", "r")
    assert (code, err, len(seen)) == (0, "", 1)
    data = synthetic_tiny_imagenet(limit_train=40)
    assert np.array_equal(seen[0], prepare(data.x_train[:20], "float32", input_moments(data, "standard")))


def test_angles_bias_and_variance_are_those_of_the_rule(run):
    """By hand: the updates of R steps' own noise against BP's, on the first batch, at initialisation."""
    code, out, err = run("--arch", "conv", "--methods", "inp", "np", "--samples", 3, 1, "--sigma2", 1e-4, 1e-5, "--repeats", 2, "--split",
                         "--seed", 2, "--loss", "mse", "--out", "r")
    assert (code, err) == (0, "")
    log = log_of("r")
    assert log["status"] == "finished" and list(log["rows"][0]) == COLUMNS and len(log["rows"]) == 2 * 2 * 2 * 5
    assert log["config"]["methods"] == ["inp", "np"] and log["config"]["samples"] == [1, 3] and log["config"]["sigma2"] == [1e-5, 1e-4]
    assert log["environment"]["data"] == synthetic(limit_train=40).fingerprint()
    order = [tuple(row[name] for name in ("method", "sigma2", "samples", "layer")) for row in log["rows"]]
    assert order == [(m, s, K, l) for m in (0, 1) for s in (1e-5, 1e-4) for K in (1, 3) for l in (1, 2, 3, 4, 5)]
    for row in log["rows"]:
        method, K, l = log["config"]["methods"][row["method"]], row["samples"], row["layer"] - 1
        if (method, K, row["sigma2"]) not in (("inp", 3, 1e-5), ("np", 1, 1e-4)):
            continue  # two groups are enough to tell
        config = Config(method=method, arch="conv", samples=K, sigma2=row["sigma2"], seed=2, loss="mse")
        network, x, t = batch(config)
        params = init_params(network, seed=2)
        g = bp_update(network, params, x, t, loss="mse").dW[l]
        u = np.array([compute_update(config, network, params, x, t, 2**63 + r).dW[l] for r in range(2)], dtype=np.float64)
        found = [float(angle(u_r, g)) for u_r in u]
        variance = u.var(axis=0, ddof=1).sum()
        assert row["passes"] == (K * 5 if method == "inp" else K) and row["epoch"] == 0
        expected = {"angle": np.mean(found), "angle_min": min(found), "angle_max": max(found),
                    "angle_sem": np.std(found, ddof=1) / math.sqrt(2), "variance": variance / np.sum(g.astype(float) ** 2),
                    "bias2": (np.sum((u.mean(axis=0) - g) ** 2) - variance / 2) / np.sum(g.astype(float) ** 2)}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    lines = out.splitlines()
    assert lines[0] == "data: synthetic images with 1/f correlations; 40 training samples"
    assert "inp        0     1e-05     3     15  angle   " in out and lines[-1] == "log: r/alignment.h5"
    assert f"{log['rows'][-1]['angle']:8.2f}" in lines[-4] and f"{log['rows'][-1]['variance']:8.3g}" in lines[-2]


@pytest.mark.parametrize("method", ["np", "dinp"])
def test_along_training_the_networks_are_those_of_the_methods_own_training(run, method):
    assert run("--methods", method, "--samples", 2, "--epochs", 2, 0, 1, "--limit-test", 20, "--seed", 1, "--out", "r",
               "--arch", "conv" if method == "np" else "fc1")[0] == 0
    log = log_of("r")
    checkpoint = runlog.read_checkpoint(f"r/train-{method}/checkpoint.h5")
    assert checkpoint["config"]["method"] == method and checkpoint["config"]["samples"] == 1 and checkpoint["config"]["sigma2"] == 1e-6
    config = Config(method=method, arch=log["config"]["arch"], samples=2, batch_size=20, seed=1)
    network, x, t = batch(config)
    state = initial_state(config, network)
    order = [permutation(1, epoch, 40) for epoch in (0, 1)]
    data = synthetic(limit_train=40)
    training = Config(method=method, arch=config.arch, batch_size=20, seed=1)
    expected = {}
    for epoch in (0, 1, 2):
        exact, found = bp_update(network, state.params, x, t).dW, compute_update(config, network, state.params, x, t, 2**63).dW
        expected[epoch] = [float(angle(u, g)) for u, g in zip(found, exact)]
        for i in range(2 if epoch < 2 else 0):
            chosen = order[epoch][20 * i : 20 * (i + 1)]
            training_step(training, network, state, prepare(data.x_train[chosen], "float32"), one_hot(data.y_train[chosen], 10, "float32"),
                          2 * epoch + i)
    assert [row["epoch"] for row in log["rows"]] == [epoch for epoch in (0, 1, 2) for _ in network.layers]
    for row in log["rows"]:
        assert row["angle"] == pytest.approx(expected[row["epoch"]][row["layer"] - 1], abs=1e-2)
    assert abs(expected[0][0] - expected[2][0]) > 0.1


def test_a_decorrelated_method_has_its_plain_forms_angles_at_epoch_0_only(run):
    code, out, _ = run("--methods", "anp", "danp", *TRAINED, "--samples", 1, "--out", "r")
    assert code == 0 and "note: at epoch 0 R is I, so that a decorrelated method gives its plain form's angles" in out
    plain, plain_1, decorrelated, decorrelated_1 = (row["angle"] for row in log_of("r")["rows"])
    assert plain == pytest.approx(decorrelated, abs=1e-3) and abs(plain_1 - decorrelated_1) > 1e-3
    assert "note" not in run("--methods", "anp", "danp", "--epochs", 1, "--limit-test", 20, "--samples", 1, "--out", "s")[1]
    assert [row["angle"] for row in log_of("s")["rows"]] == [plain_1, decorrelated_1]


# Every flag of the configuration with a value that is not its default, and what else that value needs.
OTHER = {
    "methods": ["danp", "dnp", "dinp"], "samples": ["2"], "sigma2": ["0.01"], "epochs": ["2"], "repeats": ["3"], "split": [],
    "arch": ["conv"], "dataset": None, "backend": None, "dtype": ["float64"], "batch_size": ["15"], "noise": ["rademacher"],
    "loss": ["mse"], "anp_norm": ["layer"], "seed": ["4"], "limit_train": ["10"], "limit_test": ["10"], "train_samples": ["2"],
    "train_sigma2": ["0.01"],
}


@pytest.mark.parametrize("name", [name for name, value in OTHER.items() if value is not None])
def test_every_flag_reaches_the_measurement_and_changes_it(run, name):
    base = ["--methods", "np", "--samples", 1, "--repeats", 2, *(TRAINED if name in example.TRAINING_ONLY else [])]
    base += ["--methods", "anp", "--arch", "fc3"] if name == "anp_norm" else []  # it needs ANP and a hidden layer
    assert run(*base, "--out", "a")[0] == 0
    code, _, err = run(*base, "--" + name.replace("_", "-"), *OTHER[name], "--out", "b")
    assert code == 0, err
    a, b = log_of("a"), log_of("b")
    assert [key for key in a["config"] if a["config"][key] != b["config"][key]] == [name]
    if name == "limit_test":  # does not change the network
        tests = [log["rows"][-1]["test_loss"] for log in (runlog.read_log(f"{r}/train-np/log.h5") for r in "ab")]
        assert tests[0] != tests[1] and np.array_equal(numbers("a"), numbers("b"), equal_nan=True)
    elif name == "split":
        assert all(math.isnan(row["bias2"]) for row in a["rows"]) and all(math.isfinite(row["bias2"]) for row in b["rows"])
    elif name == "methods":
        assert [row["method"] for row in b["rows"]] == [0, 1, 2]
    else:
        assert a["rows"][-1]["angle"] != b["rows"][-1]["angle"]


def test_help_names_every_flag_and_its_default(run):
    code, out, _ = run("--help", tiny=False)
    text = " ".join(out.split())
    assert code == 0 and set(OTHER) == set(example.MEASURED)
    for name in [*example.MEASURED, "data-dir", "out", "resume", "plot", "no-plot", "quiet"]:
        assert f"--{name.replace('_', '-')}" in text
    assert text.count("(default:") == len(example.MEASURED) + 5
    assert "(default: np anp inp)" in text and "(default: 1 10 100)" in text and "(default: 1000)" in text


def test_quiet_and_the_default_folder(run):
    code, out, err = run("--quiet", "--samples", 1)  # whose data are named
    assert (code, err) == (0, "") and out.startswith("method epoch") and len(out.splitlines()) == 5
    assert len(os.listdir("runs")) == 1 and os.listdir("runs")[0].endswith("-alignment-fc1-synthetic")


@pytest.mark.parametrize("arguments, words", [
    (["--methods", "bp"], "argument --methods: invalid choice: 'bp'"),
    (["--methods", "np", "np"], "methods must be different ones, got np np"),
    (["--samples", "10", "1", "10"], "samples must be different ones"),
    (["--samples", "0"], "samples must be at least 1"),
    (["--samples", "1", "1000000000"], "samples must be at least 1 and at most 100000000, got 1 1000000000"),
    (["--samples"], "argument --samples: expected at least one argument"),
    (["--epochs", "-1"], "epochs must be at least 0"),
    (["--repeats", "0"], "repeats must be at least 1"),
    (["--repeats", str(2**63)], f"repeats must be at least 1 and at most {2**63 - 1}, got {2**63}"),
    (["--split"], "split needs repeats of 2 or more, got 1"),
    (["--sigma2", "0"], "error: sigma2 must be positive and finite"),
    (["--epochs", "1", "--train-sigma2", "0"], "error: train_sigma2 must be positive and finite"),
    (["--epochs", "1", "--train-samples", "0"], "error: train_samples must be at least 1"),
    (["--sigma2", "1e-6", "1e-60"], "sigma2=1e-60 is out of float32's range"),
    (["--train-samples", "3"], "train_samples=3 has no effect: epochs are 0, nothing is trained; leave it out"),
    (["--anp-norm", "layer", "--methods", "np"], "anp_norm=layer has no effect: neither anp nor danp is measured; leave it out"),
    (["--train-sigma2", "1e-3"], "train_sigma2=0.001 has no effect"),
    (["--limit-test", "20"], "limit_test=20 has no effect"),
    (["--data-dir", "."], "is made here, and a folder of data has no effect on it"),
    (["--limit-train", "1000000"], "limit_train must be between 1 and 8000"),
    (["--dtype", "float16"], "argument --dtype: invalid choice"),
    (["--batch-size", "0"], "batch_size must be at least 1"),
    (["--metods", "np"], "unrecognized arguments"),
    (["--resume", "nowhere"], "no run file nowhere/alignment.h5"),
    (["--resume"], "--resume needs one folder"),
    (["--out", "a", "--resume", "b"], "--resume needs one folder"),
    (["--out", "/proc/nothing"], "/proc/nothing"),
])
def test_mistakes_get_one_line_and_exit_code_2(run, arguments, words):
    code, _, err = run(*arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and "Traceback" not in err


def test_cupy_without_a_gpu(run):
    from npref import BackendUnavailable, get_backend

    try:
        get_backend("cupy")
    except BackendUnavailable:
        code, _, err = run("--backend", "cupy", "--out", "r")
        assert code == 2 and err.startswith("error: CuPy ") and err.count("\n") == 1 and not os.path.exists("r")
    else:
        assert run("--backend", "cupy", "--samples", 2, *TRAINED, "--out", "r")[0] == 0


def test_on_the_stand_in_as_on_numpy(run, fake_cupy):
    arguments = ["--methods", "np", "danp", "--samples", 1, 2, "--repeats", 2, "--split", *TRAINED]
    assert run(*arguments, "--out", "a")[0] == 0
    code, _, err = run(*arguments, "--backend", "cupy", "--out", "b")
    assert code == 0, err
    assert np.allclose(numbers("a"), numbers("b"), rtol=1e-3)


@pytest.mark.parametrize("asked, measured", [(15, "15"), (50, "40")])
def test_the_log_says_how_many_images_were_measured(run, asked, measured):
    assert run("--methods", "np", "--samples", 1, "--batch-size", asked, "--out", "r")[0] == 0
    assert log_of("r")["environment"]["batch"] == measured


def test_a_data_set_that_is_not_there(run, tmp_path):
    code, _, err = run("--dataset", "cifar10", "--data-dir", tmp_path)
    assert code == 2 and "python -m npref.datasets fetch cifar10" in err and err.count("\n") == 1
    assert run("--dataset", "auto", "--data-dir", tmp_path, "--samples", 1, "--out", "r")[0] == 0
    assert log_of("r")["config"]["dataset"] == "synthetic"
    code, _, err = run("--dataset", "auto", "--data-dir", tmp_path, "--samples", 1, "--quiet", "--out", "s")
    assert code == 0 and err.startswith("data: synthetic images with 1/f correlations (no ")  # nobody asked for them
    assert err.endswith("; 40 training samples\n") and err.count("\n") == 1


def test_real_targets_need_a_squared_error(run):
    """Refused before there is a folder."""
    arguments = ["--dataset", "synthetic-sarcos", "--arch", "sarcos", "--methods", "np", "--samples", 1]
    code, _, err = run(*arguments)
    assert code == 2 and "has real targets, not labels, and loss=cce needs labels: use mse or mse-mean" in err
    assert not os.path.exists("runs")
    assert run(*arguments, "--loss", "mse-mean")[0] == 0


def test_a_measurement_that_cannot_begin_leaves_no_folder_of_its_own(run):
    code, _, err = run("--dataset", "synthetic-sarcos", "--arch", "conv", "--loss", "mse", "--samples", 1)
    assert code == 2 and err.count("\n") == 1 and os.listdir("runs") == []


def test_an_update_that_is_not_finite_is_refused(run, monkeypatch):
    def overflowing(*arguments):
        update = compute_update(*arguments)
        update.dW[0][0, 0] = np.inf
        return update

    monkeypatch.setattr(example, "compute_update", overflowing)
    code, _, err = run("--methods", "anp")
    assert code == 2 and err.count("\n") == 1
    assert "the update of anp after 0 epochs is not finite at sigma2=1e-06: take a smaller sigma2, or dtype float64" in err


def test_divergence_exits_with_3(run):
    arguments = ["--methods", "np", "--arch", "conv", *TRAINED, "--samples", 1, "--loss", "mse", "--out", "r"]
    code, _, err = run(*arguments, "--train-sigma2", 8e37)
    assert code == 3 and "np diverged in epoch 1" in err and err.endswith("what is finished is in r\n") and err.count("\n") == 1
    assert log_of("r")["status"].startswith("diverged") and len(log_of("r")["rows"]) == 5


def test_noise_below_rounding_gets_a_line(run):
    """For each σ² of a sweep, at the first epoch, and where a network is trained with it."""
    code, _, err = run("--methods", "np", *TRAINED, "--samples", 1, "--sigma2", 1e-14, 1e-6, "--train-sigma2", 1e-15)
    lines = err.splitlines()
    both = run("--methods", "np", "dnp", "--samples", 1, "--sigma2", 1e-14)[2]
    assert both.count("\n") == 1  # the two are one at epoch 0
    assert code == 0 and len(lines) == 2 and all(line.startswith("warning: sigma2=1e-1") for line in lines)
    assert lines[0].startswith("warning: sigma2=1e-14 is too small for float32: ") and "sigma2=1e-15" in lines[1]


def test_the_table_tells_variances_apart(run):
    out = run("--methods", "np", "--samples", 1, "--sigma2", 1.5e-6, 2e-6, 0.123456)[1]
    rows = [line.split() for line in out.splitlines() if " angle " in line]
    assert [row[2] for row in rows] == ["1.5e-06", "2e-06", "0.1235"]
    assert len({line.index(" angle ") for line in out.splitlines() if " angle " in line}) == 1


def test_a_measurement_that_another_process_is_at_is_left_to_it(run):
    arguments = ["--methods", "np", "--samples", 1, "--out", "r"]
    assert run(*arguments)[0] == 0
    before, held = Path("r/alignment.h5").read_bytes(), runlog.lock("r")
    try:
        for more in ([], ["--resume"]):
            code, _, err = run(*arguments, *more)
            assert code == 2 and "another process is writing the run in r" in err and err.count("\n") == 1
    finally:
        runlog.unlock(held)
    assert Path("r/alignment.h5").read_bytes() == before


def test_a_new_folder_is_taken_while_it_is_measured_in(run, monkeypatch):
    measure, taken = example.measure, []
    monkeypatch.setattr(example, "measure", lambda *arguments: taken.append(runlog.locked("r")) or measure(*arguments))
    assert run("--methods", "np", "--samples", 1, "--out", "r")[0] == 0
    assert taken == [True] and not runlog.locked("r")


@pytest.mark.parametrize("resume", [True, False])
def test_the_folder_is_taken_before_it_is_read(run, monkeypatch, resume):
    """What is read of a measurement, or found not to be there, another process cannot have changed by the time of writing."""
    arguments = ["--methods", "np", "--samples", 1, "--out", "r"]
    if resume:
        assert run(*arguments)[0] == 0
    else:
        os.mkdir("r")
    read, exists, taken = runlog.read_log, Path.exists, []
    monkeypatch.setattr(example, "read_log", lambda path: taken.append(runlog.locked("r")) or read(path))
    monkeypatch.setattr(Path, "exists", lambda path: path.name == "alignment.h5" and taken.append(runlog.locked("r")) or exists(path))
    assert run(*arguments, *(["--resume"] if resume else []))[0] == 0
    assert taken and all(taken) and not exists(Path("r/.lock"))


@pytest.mark.parametrize("name, more", [("alignment.png", []), ("alignment-epoch1.png", ["--epochs", 0, 1]), ("split.png", ["--split"]),
                                        ("training.png", ["--epochs", 0, 1]), ("sigma2.png", ["--sigma2", 1e-6, 1e-4])])
def test_a_picture_of_someones_is_not_overwritten(run, tmp_path, name, more):
    pytest.importorskip("matplotlib")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text("mine")
    arguments = ["--methods", "np", "--samples", 1, 2, "--repeats", 2, "--out", "r", "--plot", *more]
    code, _, err = run(*arguments)
    assert code == 2 and f"r/{name} is there already: choose another folder, or --no-plot" in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "r").iterdir()] == [name] and (tmp_path / "r" / name).read_text() == "mine"


def test_an_existing_measurement_is_refused_or_resumed(run):
    arguments = ["--methods", "np", "danp", "--samples", 1, "--repeats", 2]
    assert run(*arguments, "--out", "r")[0] == 0
    code, _, err = run(*arguments, "--out", "r")
    assert code == 2 and "r holds a measurement already" in err and err.count("\n") == 1
    code, out, _ = run("--resume", "r", "--no-plot", tiny=False)  # nothing repeated, and nothing left to do
    assert code == 0 and "measured:" not in out and "danp" in out and log_of("r")["status"] == "finished"
    code, _, err = run("--resume", "r", "--repeats", 3)
    assert code == 2 and "changed configuration: repeats was 2, now 3" in err and err.count("\n") == 1


def test_resume_measures_what_is_missing_and_keeps_the_rest(run, monkeypatch):
    arguments = ["--methods", "np", "danp", "--samples", 1, 2, "--sigma2", 1e-6, 1e-4, *TRAINED]
    assert run(*arguments, "--out", "whole")[0] == 0
    measure, done = example.measure, []

    def dies(*args):
        if len(done) == 5:  # danp at epoch 0 and one sigma2: its training is still to come
            raise KeyboardInterrupt
        done.append(args)
        return measure(*args)

    monkeypatch.setattr(example, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments, "--out", "r")
    log = log_of("r")
    assert log["status"] == "running" and len(log["rows"]) == 5 * 2
    marked = [{**row, "angle": -1.0} for row in log["rows"]]  # so that it shows that they were kept
    runlog.write_log("r/alignment.h5", log["config"], log["environment"], marked, log["status"])
    monkeypatch.setattr(example, "measure", lambda *args: done.append(args) or measure(*args))
    code, out, err = run(*arguments, "--out", "r", "--resume")
    out = out[out.rindex("data:"):]
    assert (code, err) == (0, "") and len(done) == 8 and out.count("measured:") == 3 and "trained: np" not in out
    assert [row["angle"] for row in log_of("r")["rows"]][:10] == [-1.0] * 10
    assert numbers("r")[10:] == [pytest.approx(row, nan_ok=True) for row in numbers("whole")[10:]]


def test_a_measurement_that_goes_on_elsewhere_says_so(run, monkeypatch):
    arguments, environment = ["--methods", "np", "anp", "--samples", 1, "--out", "r"], example.environment
    assert run(*arguments)[0] == 0
    log = log_of("r")
    runlog.write_log("r/alignment.h5", log["config"], log["environment"], log["rows"][:1], "interrupted")
    monkeypatch.setattr(example, "environment", lambda backend: {**environment(backend), "threads": "77"})
    code, _, err = run("--resume", "r", "--no-plot", "--quiet", tiny=False)
    assert code == 0 and err.startswith("note: threads was ") and err.count("\n") == 1
    assert ", now 77: angles may differ in their last digits from those kept" in err
    kept = log_of("r")["environment"]
    assert kept["threads"] == "77" and kept["went_on"].startswith("threads was ")
    monkeypatch.setattr(example, "environment", lambda backend: {**environment(backend), "threads": "78"})
    code, out, err = run("--resume", "r", "--no-plot", tiny=False)  # nothing is left to do
    assert (code, err) == (0, "") and "threads" not in out and log_of("r")["environment"] == kept


def test_another_kind_of_log_is_refused(run):
    os.mkdir("r")
    runlog.write_log("r/alignment.h5", {"method": "np"}, {}, [{"epoch": 1}], "finished")
    code, _, err = run("--resume", "r")
    assert code == 2 and "r/alignment.h5 is not of a measurement of angles, or of another version of npref" in err


def test_a_stop_says_where_its_data_are(run, monkeypatch):
    monkeypatch.setattr(example.datasets, "load", lambda name, data_dir, *limits: synthetic(40, 20))
    monkeypatch.setattr(example, "compute_update", lambda *arguments: os.kill(os.getpid(), signal.SIGINT) or compute_update(*arguments))
    code, _, err = run("--dataset", "cifar10", "--data-dir", "my data", "--methods", "np", "--samples", 1, 60, "--out", "r")
    assert code == 130 and err.endswith("go on with --resume r --data-dir 'my data'\n") and err.count("\n") == 1


def test_resume_refuses_other_data(run):
    assert run("--samples", 1, "--out", "r")[0] == 0
    log = log_of("r")
    runlog.write_log("r/alignment.h5", log["config"], {**log["environment"], "data": "other"}, log["rows"], "running")
    code, _, err = run("--resume", "r")
    assert code == 2 and "the data's contents" in err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_and_resumed_has_the_same_numbers(run, tmp_path, number, code):
    arguments = "--methods np anp inp --samples 1 150 --repeats 2 --sigma2 1e-6 1e-5".split()
    whole = subprocess.Popen([sys.executable, SCRIPT, *TINY, *arguments, "--out", "whole", "--quiet"], stdout=subprocess.DEVNULL)
    process = subprocess.Popen([sys.executable, SCRIPT, *TINY, *arguments, "--out", "r"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    for line in process.stdout:
        if line.startswith("measured:"):
            break
    time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert err.startswith("stopped while measuring ") and "go on with --resume r" in err and err.count("\n") == 1
        assert log_of("r")["status"] == "interrupted"
    assert 0 < len(log_of("r")["rows"]) < 12
    assert whole.wait() == 0 and run("--resume", "r", "--no-plot", tiny=False)[0] == 0
    assert np.array_equal(numbers("r"), numbers("whole"), equal_nan=True)


def test_a_network_of_another_training_is_not_measured(run):
    """The folder of the training is there and the measurement is not, as after deleting a damaged one."""
    assert run("--methods", "np", "--epochs", 2, "--limit-test", 20, "--out", "r")[0] == 0
    os.remove("r/alignment.h5")
    before = Path("r/train-np/checkpoint.h5").read_bytes()
    code, _, err = run("--methods", "np", "--epochs", 2, "--limit-test", 20, "--seed", 7, "--out", "r")
    assert code == 2 and "cannot resume r/train-np with a changed configuration: seed was 0, now 7" in err
    code, _, err = run("--methods", "np", "--epochs", 1, "--limit-test", 20, "--out", "r")
    assert code == 2 and "r/train-np is trained for 2 epochs, and epoch 1 is not measured: choose another --out" in err
    assert os.listdir("r") == ["train-np"] and Path("r/train-np/checkpoint.h5").read_bytes() == before
    assert run("--methods", "np", "--epochs", 2, "--limit-test", 20, "--out", "r")[0] == 0


def test_pictures(run):
    pytest.importorskip("matplotlib")
    arguments = ["--methods", "np", "dinp", "--samples", 1, 2, "--sigma2", 1e-6, 1e-3, "--repeats", 2, "--split", "--plot", *TRAINED]
    code, out, err = run(*arguments, "--out", "r")
    names = ["alignment-epoch0", "alignment-epoch1", "sigma2", "training", "split"]
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("picture")] == [f"picture: r/{name}.png" for name in names]
    pictures = [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert sorted(os.listdir("r")) == sorted(["alignment.h5", "train-np", "train-dinp", *pictures])


@pytest.mark.parametrize("arguments, names", [
    (["--samples", 1], ["alignment"]), (["--samples", 1, "--sigma2", 1e-6, 1e-5], ["sigma2"]),
    (["--samples", 1, 2], ["alignment"]),
])
def test_only_pictures_that_there_are_numbers_for(run, arguments, names):
    pytest.importorskip("matplotlib")
    assert run(*arguments, "--plot", "--out", "r")[0] == 0
    assert sorted(name for name in os.listdir("r") if name.endswith(".png")) == [f"{name}.png" for name in names]


def test_pictures_without_matplotlib(run, monkeypatch):
    for name in [m for m in sys.modules if m in ("plots", "alignment_plots") or m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("--plot", "--out", "r")
    assert code == 2 and "drawing needs matplotlib" in err and not os.path.exists("r")
    arguments = [a for a in TINY if a != "--no-plot"]
    code, out, _ = run(*arguments, "--samples", 1, tiny=False)
    assert code == 0 and "picture: none, matplotlib cannot be imported" in out
