"""The command line: every flag, every mistake, a kill at any moment."""

import fcntl
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import cifar10
import numpy as np
import pytest
from conftest import ROOT

from npref import METHODS, get_backend, runlog
from npref.config import Config

SCRIPT = ROOT / "examples" / "cifar10.py"
TINY = "--dataset synthetic --arch fc1 --epochs 2 --batch-size 20 --limit-train 40 --limit-test 20 --no-plot".split()


@pytest.fixture
def run(command):
    return lambda *words, tiny=True: command(cifar10.main, *(TINY if tiny else ()), *words)


def config_of(out):
    return Config(**runlog.read_log(out / "log.h5")["config"])


def test_a_run(run, tmp_path):
    code, out, err = run("--method", "danp", "--out", "r")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "data: synthetic images with 1/f correlations; 40 training and 20 test images"
    assert lines[1].startswith("run: danp on fc1, adam with lr 0.001, seed 0, numpy float32")
    assert [line.split()[:2] for line in lines[2:4]] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert all(word in lines[2] for word in ("train", "test", "%", "corr²", " s"))
    log = runlog.read_log("r/log.h5")
    best = max(row["test_accuracy"] for row in log["rows"])
    assert f"peak test accuracy {best:.1%}" in lines[4] and f"final test {log['rows'][-1]['test_accuracy']:.1%}" in lines[4]
    assert lines[5:] == ["log: r/log.h5", "checkpoint: r/checkpoint.h5"]
    assert sorted(os.listdir("r")) == ["checkpoint.h5", "log.h5"] and log["status"] == "finished"


def test_defaults_are_configs(run):
    args, given = cifar10.parse([])
    assert given == {} and set(cifar10.FLAGS) == {f.name for f in fields(Config)}
    code, out, _ = run("--help", tiny=False)
    text = " ".join(out.split())
    assert code == 0
    for f in fields(Config):
        assert f"--{f.name.replace('_', '-')}" in text
        if f.default not in (None, False) and f.name != "lr":
            assert f"(default: {f.default})" in text
    for flag in ("--data-dir", "--out", "--resume", "--plot", "--no-plot", "--quiet"):
        assert flag in text
    assert text.count("(default:") == len(fields(Config)) + 5 and "(default: Table 2)" in text


# Every flag of the configuration with a value that is not its default, and what else that value needs.
OTHER = {
    "method": "np", "arch": "conv", "dataset": None, "backend": None, "dtype": "float64", "epochs": "3", "batch_size": "15", "lr": "0.01",
    "decor_lr": "0.01", "sigma2": "0.0001", "samples": "3", "noise": "rademacher", "noisy_baseline": "", "anp_norm": "layer",
    "loss": "mse", "optimizer": "adam-eps-hat", "activation": "tanh", "init": "glorot", "slope": "0.1", "bias": "", "padding": "1",
    "seed": "4", "limit_train": "30", "limit_test": "10", "eval_train": "",
}
NEEDS = {"arch": ["--padding", "0"], "padding": ["--arch", "conv"], "activation": ["--arch", "conv"], "slope": ["--arch", "conv"],
         "anp_norm": ["--arch", "conv"]}


@pytest.mark.parametrize("name", [name for name, value in OTHER.items() if value is not None])
def test_every_flag_reaches_the_run_and_changes_it(run, tmp_path, name):
    base = ["--method", "danp", *NEEDS.get(name, [])]
    flag = ["--" + name.replace("_", "-"), *([OTHER[name]] if OTHER[name] else [])]
    assert run(*base, "--out", "a")[0] == 0
    code, _, err = run(*base, *flag, "--out", "b")
    assert code == 0, err
    value = getattr(config_of(tmp_path / "b"), name)
    assert value != getattr(config_of(tmp_path / "a"), name) and str(value) == (OTHER[name] or "True")
    a, b = (runlog.read_checkpoint(f"{r}/checkpoint.h5") for r in "ab")
    if name == "limit_test":
        assert a["rows"][-1]["test_loss"] != b["rows"][-1]["test_loss"]
    elif name == "eval_train":
        assert "eval_train_loss" in b["rows"][0] and "eval_train_loss" not in a["rows"][0]
    elif name == "epochs":
        assert len(b["rows"]) == 3
    else:  # the weights are others
        W_a, W_b = (c["arrays"]["params/W/0"] for c in (a, b))
        assert W_a.dtype != W_b.dtype or W_a.shape != W_b.shape or not np.array_equal(W_a, W_b)


def test_mse_mean_sgd_and_backend_flags(run):
    assert run("--loss", "mse-mean", "--optimizer", "sgd", "--lr", "0.01", "--backend", "numpy", "--out", "r")[0] == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ["fc1", "fc3", "conv", "conv-tiny"])
def test_every_method_on_every_kind_of_network(run, method, arch):
    code, out, err = run("--method", method, "--arch", arch, "--epochs", 1, "--limit-train", 6, "--batch-size", 3, "--limit-test", 2)
    assert (code, err) == (0, "") and f"{method} {arch} on synthetic: peak" in out


@pytest.mark.parametrize("method", ["np", "anp", "dnp", "danp"])
def test_samples_signs_and_a_noisy_baseline(run, method):
    assert run("--method", method, "--samples", 3, "--noise", "rademacher", "--noisy-baseline")[0] == 0


def test_data_dir(run, tmp_path):
    code, _, err = run("--dataset", "cifar10", "--data-dir", tmp_path)
    assert code == 2 and f"python -m npref.datasets fetch cifar10 --data-dir {tmp_path}" in err and err.count("\n") == 1
    code, out, err = run("--dataset", "auto", "--data-dir", tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith(f"data: synthetic images with 1/f correlations (no cifar-10-batches-bin in {tmp_path};")
    code, _, err = run("--data-dir", tmp_path)
    assert code == 2 and "is made here, and a folder of data has no effect on it" in err
    assert run("--method", "np", "--out", "r")[0] == 0
    code, _, err = run("--resume", "r", "--epochs", 9, "--data-dir", tmp_path, tiny=False)
    assert code == 2 and "is made here, and a folder of data has no effect on it" in err


def test_the_default_folder_is_new_every_time(run):
    for _ in range(2):
        assert run("--method", "np")[0] == 0
    names = os.listdir("runs")
    assert len(names) == 2 and all("-np-fc1-synthetic" in name for name in names)


def test_runs_of_one_second_have_a_folder_each(tmp_path):
    """Whoever makes it has it, though many look at once."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(cifar10.new_folder, [tmp_path / "runs" / "a"] * 8))
    assert sorted(made) == [tmp_path / "runs" / name for name in ("a", *(f"a-{i}" for i in range(1, 8)))]


@pytest.mark.parametrize("target", ["file", "nowhere"])
def test_runs_that_is_no_folder(run, target):
    """A file, or a link to nothing, where the default folders go."""
    open("file", "w").close()
    os.symlink(target, "runs")
    code, out, err = run("--method", "np")
    assert code == 2 and err.startswith("error: runs: it, or what is above it, is a file where a folder") and err.count("\n") == 1


def test_a_name_that_is_too_long(run):
    code, _, err = run("--out", "a" * 300)
    assert code == 2 and "argument --out: expected a folder, got 'aaaa" in err and "File name too long" in err and err.count("\n") == 1


def test_a_run_that_cannot_begin_leaves_no_folder(run):
    code, _, err = run("--method", "np", "--dataset", "synthetic-sarcos")
    assert code == 2 and "loss=cce needs labels" in err and os.listdir("runs") == []


def test_quiet(run):
    code, out, err = run("--quiet", "--out", "r")
    assert code == 0 and err == "" and out.startswith("danp fc1 on synthetic: peak") and len(out.splitlines()) == 3


def test_stand_ins_that_nobody_asked_for_are_said_quietly_too(run, tmp_path):
    code, out, err = run("--quiet", "--dataset", "auto", "--data-dir", tmp_path, "--out", "r")
    assert code == 0 and err.startswith("data: synthetic") and err.count("\n") == 1 and "data:" not in out


def test_a_folder_without_a_name(run):
    for flag in ("--out", "--data-dir", "--resume"):
        code, _, err = run(flag, "")
        assert code == 2 and "expected a folder, got an empty name" in err and err.count("\n") == 1


def test_what_is_no_training_run_is_not_resumed(run):
    runlog.write_checkpoint("checkpoint.h5", {"methods": ["np"]}, {}, [], {}, {})
    code, _, err = run("--resume", ".", tiny=False)
    assert code == 2 and "checkpoint.h5 is not of a training run" in err and err.count("\n") == 1


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_noise_below_rounding_gets_one_line(run, quiet):
    few = [*quiet, "--arch", "conv", "--limit-train", 6, "--limit-test", 2, "--sigma2", "1e-12"]
    code, _, err = run(*few, "--out", "r", "--epochs", 1)
    assert code == 0 and err.startswith("warning: sigma2=1e-12 is too small for float32: ") and err.count("\n") == 1
    assert "%; take dtype float64 or a larger sigma2" in err
    code, _, err = run(*quiet, "--resume", "r", "--epochs", 2, "--no-plot", tiny=False)
    assert code == 0 and err.startswith("warning: sigma2=1e-12 is too small") and err.count("\n") == 1
    assert run(*few, "--dtype", "float64")[::2] == (0, "")


def test_a_rate_at_which_R_grows_gets_one_line(run):
    code, _, err = run("--quiet", "--limit-train", 20, "--epochs", 1, "--decor-lr", 0.01)
    assert code == 0 and err.startswith("warning: decor_lr=0.01 is too large for the inputs of layer 1 ") and err.count("\n") == 1


@pytest.mark.parametrize("flags", ["--method danp --eval-train", "--dataset synthetic-sarcos --arch sarcos --method bp --loss mse"])
def test_plot(run, flags):
    pytest.importorskip("matplotlib")
    code, out, _ = run("--plot", *flags.split(), "--out", "r")
    assert code == 0 and out.splitlines()[-1] == "picture: r/curves.png"
    with open("r/curves.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_a_finished_run_is_drawn(run):
    pytest.importorskip("matplotlib")
    assert run("--method", "bp", "--out", "r")[0] == 0
    before = runlog.read_log("r/log.h5")
    code, out, err = run("--resume", "r", "--plot", tiny=False)
    assert (code, out, err) == (0, "picture: r/curves.png\n", "") and os.path.exists("r/curves.png")
    assert runlog.read_log("r/log.h5") == before
    for words in (["--no-plot"], ["--plot", "--seed", "5"]):
        assert run("--resume", "r", *words, tiny=False)[0] == 2


@pytest.mark.parametrize("broken", [False, True])
def test_plot_without_matplotlib(run, monkeypatch, tmp_path, broken):
    for name in [m for m in sys.modules if m == "plots" or m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    if broken:
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "matplotlib.py").write_text("raise AttributeError('of another version')")
        monkeypatch.syspath_prepend(tmp_path / "path")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("--plot", "--out", "r")
    assert code == 2 and "drawing needs matplotlib" in err and err.count("\n") == 1 and not os.path.exists("r")
    arguments = [a for a in TINY if a != "--no-plot"]
    code, out, _ = run(*arguments, "--out", "r", tiny=False)
    assert code == 0 and 'picture: none, matplotlib cannot be imported; pip install -e ".[examples]"' in out


@pytest.mark.parametrize("arguments, words", [
    (["--method", "xnp"], "argument --method: invalid choice: 'xnp'"),
    (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    (["--lr", "-1"], "lr must be positive and finite, got -1.0"),
    (["--metod", "np"], "unrecognized arguments: --metod"),
    (["--optimizer", "sgd"], "sgd needs lr"),
    (["--method", "bp", "--samples", "3"], "samples=3 has no effect: bp draws no noise"),
    (["--activation", "tanh"], "activation=tanh has no effect: fc1 has no hidden layer"),
    (["--arch", "fc3", "--slope", "2"], "slope must be in [0, 1)"),
    (["--seed", str(2**64)], "seed must be at least 0 and below 2^64"),
    (["--method", "dinp", "--noisy-baseline"], "a noisy baseline needs noise in all layers at once"),
    (["--arch", "fc3", "--method", "bp", "--activation", "step"], "bp needs a derivative"),
    (["--padding", "1"], "padding=1 has no effect: fc1 has no convolution"),
    (["--limit-train", "1000000"], "limit_train must be between 1 and 8000"),
    (["--seed", "-1"], "seed must be at least 0"),
    (["--resume", "nowhere"], "no run file nowhere/checkpoint.h5"),
    (["--resume"], "--resume needs one folder"),
    (["--out", "a", "--resume", "b"], "--resume needs one folder"),
    (["--out", "/proc/nothing"], "/proc/nothing"),
])
def test_mistakes_get_one_line_and_exit_code_2(run, arguments, words):
    code, _, err = run(*arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and "Traceback" not in err


def test_cupy_without_a_gpu(tmp_path):
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # where there is one
    done = subprocess.run([sys.executable, SCRIPT, *TINY, "--backend", "cupy"], cwd=tmp_path, env=hidden, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: CuPy ") and done.stderr.count("\n") == 1 and done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_an_existing_run_is_refused(run):
    assert run("--out", "r")[0] == 0
    code, _, err = run("--out", "r")
    assert code == 2 and "r holds a run already" in err and err.count("\n") == 1


def test_divergence_exits_with_3(run):
    code, _, err = run("--method", "bp", "--optimizer", "sgd", "--lr", 1e38, "--out", "r")
    assert code == 3 and err.startswith("error: bp diverged in epoch 1, step 2: the loss of the clean pass is not finite")
    assert err.count("\n") == 1 and sorted(os.listdir("r")) == ["checkpoint.h5", "log.h5"]
    assert err.endswith("the log so far and the last good checkpoint are in r\n")
    assert runlog.read_log("r/log.h5")["status"].startswith("diverged")


def test_resume_keeps_the_configuration(run, tmp_path):
    assert run("--method", "dnp", "--seed", 3, "--epochs", 1, "--out", "r")[0] == 0
    code, out, err = run("--resume", "r", "--epochs", 3, "--no-plot", tiny=False)  # nothing else repeated
    assert code == 0, err
    assert [line.split()[1] for line in out.splitlines() if line.startswith("epoch")] == ["2/3", "3/3"]
    assert len(runlog.read_log("r/log.h5")["rows"]) == 3 and config_of(tmp_path / "r").seed == 3
    code, _, err = run("--out", "r", "--resume", "--epochs", 4, "--lr", 0.5, tiny=False)
    assert code == 2 and "changed configuration: lr was 0.001, now 0.5" in err and err.count("\n") == 1
    code, _, err = run("--resume", "r", tiny=False)
    assert code == 2 and "has finished 3 epochs already" in err


def test_resume_with_another_numpy_says_so(run, tmp_path, monkeypatch):
    environment = runlog.environment
    with monkeypatch.context() as earlier:
        earlier.setattr(runlog, "environment", lambda backend: {**environment(backend), "numpy": "1.0"})
        assert run("--epochs", 1, "--out", "r")[0] == 0
    code, out, _ = run("--resume", "r", "--epochs", 2, "--no-plot", tiny=False)
    words = f"numpy was 1.0, now {np.__version__}"
    assert code == 0 and f"note: {words}: the weights may differ in their last bits" in out
    assert runlog.read_log("r/log.h5")["environment"]["went_on"] == words
    for module in runlog, cifar10:
        monkeypatch.setattr(module, "environment", lambda backend: {**environment(backend), "threads": "77"})
    threads = environment(get_backend())["threads"]
    code, out, err = run("--resume", "r", "--epochs", 3, "--no-plot", "--quiet", tiny=False)
    assert code == 0 and "note" not in out and err.startswith(f"note: threads was {threads}, now 77: the weights") and err.count("\n") == 1
    assert runlog.read_log("r/log.h5")["environment"]["went_on"] == f"{words}; threads was {threads}, now 77"


def test_a_picture_of_someones_is_not_overwritten(run, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "curves.png").write_text("mine")
    code, _, err = run("--out", "r", "--plot")
    assert code == 2 and "r/curves.png is there already: choose another folder, or --no-plot" in err and err.count("\n") == 1
    assert os.listdir("r") == ["curves.png"] and run("--out", "r")[0] == 0 and (tmp_path / "r" / "curves.png").read_text() == "mine"
    assert "holds a run already (log.h5, checkpoint.h5): resume it" in run("--out", "r", "--plot")[2]


@pytest.mark.parametrize("name", ["log.h5", "checkpoint.h5"])
def test_a_picture_beside_a_run_is_the_runs(run, tmp_path, name):
    (tmp_path / "r").mkdir()
    for each in name, "curves.png":
        (tmp_path / "r" / each).write_text("")
    assert f"holds a run already ({name})" in run("--out", "r", "--plot")[2]


def test_a_folder_is_quoted_in_the_way_on(run, monkeypatch):
    def stopped(*_, **__):
        raise cifar10.Interrupted("stopped")
        yield

    monkeypatch.setattr(cifar10, "train", stopped)
    monkeypatch.setattr(cifar10, "exit_code", lambda work: work(lambda: False))
    with pytest.raises(cifar10.Interrupted, match="go on with --resume 'my run'$"):
        run("--out", "my run")


def test_a_run_whose_checkpoint_is_gone(run, tmp_path):
    assert run("--out", "r")[0] == 0
    (tmp_path / "r" / "checkpoint.h5").unlink()
    code, _, err = run("--out", "r")
    assert code == 2 and "holds a run already (log.h5): its checkpoint is gone: remove the log, or choose another folder" in err


def test_out_of_memory_is_one_line(run):
    code, _, err = run("--arch", "conv", "--padding", 10**6)
    assert code == 2 and err.startswith("error: out of memory") and err.count("\n") == 1


def start(out, *arguments):
    return subprocess.Popen([sys.executable, SCRIPT, *TINY, "--epochs", "40", "--method", "danp", "--out", out, *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights(out):
    return {name: array.tobytes() for name, array in runlog.read_checkpoint(out / "checkpoint.h5")["arrays"].items()}


SLOW = ["--arch", "conv", "--epochs", "3", "--limit-train", "400"]  # long epochs, so that signals land inside them


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "r"
    assert start(out, *SLOW).wait() == 0
    return weights(out)


def killed_after(seconds, out, *arguments):
    """Start a run, and SIGKILL it so long after its first checkpoint; True if it was still running."""
    process = start(out, *SLOW, *arguments)
    while not (out / "checkpoint.h5").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("attempt", range(10))
def test_killed_and_resumed_ends_with_the_same_bytes(uninterrupted, tmp_path, attempt):
    chance = random.Random()  # the moments are meant to differ from run to run; the result must not
    seconds, tries = chance.uniform(0.05, 3.0), 0
    while not killed_after(seconds, out := tmp_path / f"r{tries}"):  # it was done already: sooner, then
        seconds, tries = seconds / 2, tries + 1
    if runlog.read_checkpoint(out / "checkpoint.h5")["counters"]["epoch"] < 3:  # whatever the moment, a whole checkpoint
        killed_after(chance.uniform(0.5, 2.0), out, "--resume")  # and perhaps once more, perhaps while it starts
    if unfinished := runlog.read_checkpoint(out / "checkpoint.h5")["counters"]["epoch"] < 3:
        process = start(out, *SLOW, "--resume")
        assert process.wait() == 0, process.stderr.read()
    assert weights(out) == uninterrupted
    if unfinished:  # a resumed run that ends removes what kills left half written; one killed after its last epoch leaves its lock
        assert sorted(os.listdir(out)) == ["checkpoint.h5", "log.h5"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(uninterrupted, tmp_path, number):
    out = tmp_path / "r"
    process = start(out, *SLOW)
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            break
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number and err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("stopped in epoch ") and err.endswith(f"all is saved, go on with --resume {out}\n")
    assert runlog.read_checkpoint(out / "checkpoint.h5")["counters"]["batch"] > 0 or "after 0 of" in err
    process = start(out, *SLOW, "--resume")
    process.communicate()
    assert process.returncode == 0 and weights(out) == uninterrupted


def test_where_the_data_are_is_part_of_how_to_go_on(run, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        yield from ()
        raise cifar10.Interrupted("stopped")

    monkeypatch.setattr(cifar10, "train", interrupted)
    monkeypatch.setattr(cifar10.datasets, "load", lambda name, data_dir, *limits: cifar10.datasets.synthetic(40, 20))
    monkeypatch.setattr(cifar10, "exit_code", lambda work: pytest.raises(cifar10.Interrupted, work, lambda: False).value)
    for words, said in ((["--data-dir", "my data"], "go on with --resume r --data-dir 'my data'"), ([], "go on with --resume r")):
        assert str(run(*words, "--dataset", "cifar10", "--out", "r")[0]).endswith(said)


def test_a_second_signal_ends_it_where_it_is_but_cleanly(handlers):
    told = []

    def work(stop):
        try:
            assert not stop()
            os.kill(os.getpid(), signal.SIGINT)
            told.append(stop())
            os.kill(os.getpid(), signal.SIGTERM)
            told.append("went on")
        finally:
            told.append("put in order")

    with pytest.raises(SystemExit) as ended:
        cifar10.exit_code(work)
    assert ended.value.code == 128 + signal.SIGTERM and told == [True, "put in order"]
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # for a third


def test_a_terminal_that_closes_saves_as_ctrl_c_does(tmp_path):
    def take_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # or nobody is told that it closes
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # should the tests run under nohup

    out, shown = tmp_path / "r", b""
    ours, its = pty.openpty()
    process = subprocess.Popen([sys.executable, SCRIPT, *TINY, *SLOW, "--out", out], stdin=its, stdout=its, stderr=its,
                               start_new_session=True, preexec_fn=take_terminal)
    os.close(its)
    while b"epoch 1/3" not in shown:
        shown += os.read(ours, 1000)
    os.close(ours)
    assert process.wait() == 128 + signal.SIGHUP
    assert runlog.read_log(out / "log.h5")["status"] == "interrupted" and not (out / ".lock").exists()


@pytest.mark.parametrize("to", ["terminal", "file"])
def test_a_closed_terminal_is_written_to_no_more_and_a_file_is(tmp_path, to):
    """It would be an error, and hide the run's own end."""
    ours, its = pty.openpty()
    script = (f"import sys, time; sys.path.insert(0, {str(SCRIPT.parent)!r}); import cifar10\n"
              "def work(stop):\n    print('begun', flush=True)\n    while not stop():\n        time.sleep(0.01)\n"
              "    for stream in (sys.stdout, sys.stderr):\n        print('ended', file=stream, flush=True)\n    return 7\n"
              "raise SystemExit(cifar10.exit_code(work))")
    with open(tmp_path / "out", "w") as file:
        output = its if to == "terminal" else file
        process = subprocess.Popen([sys.executable, "-c", script], stdin=its, stdout=output, stderr=output, start_new_session=True,
                                   preexec_fn=lambda: (fcntl.ioctl(0, termios.TIOCSCTTY, 0), signal.signal(signal.SIGHUP, signal.SIG_DFL)))
    os.close(its)
    while b"begun" not in (os.read(ours, 100) if to == "terminal" else (tmp_path / "out").read_bytes()):
        time.sleep(0.01)
    os.close(ours)
    assert process.wait() == 7 and (tmp_path / "out").read_text() == ("begun\nended\nended\n" if to == "file" else "")


@pytest.mark.parametrize("before, asked", [(signal.SIG_IGN, False), (signal.SIG_DFL, True)])
def test_nohup_is_heeded_and_a_second_hangup_is_not_a_second_wish(handlers, before, asked):
    def work(stop):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() == asked
        return "saved"

    signal.signal(signal.SIGHUP, before)
    assert cifar10.exit_code(work) == "saved"


def test_a_terminal_without_greek(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *TINY, "--out", tmp_path / "r"], capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"corr? " in done.stdout and done.stderr == b""


def test_output_that_nobody_reads(tmp_path):
    process = start(tmp_path / "r")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 128 + signal.SIGPIPE
    assert runlog.read_checkpoint(tmp_path / "r" / "checkpoint.h5")["counters"]["epoch"] >= 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_error_that_cannot_be_told_has_its_code():
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, SCRIPT, *TINY, "--resume", "nowhere"], stderr=full).returncode == 2


def test_closed_output(tmp_path):
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} {SCRIPT} {' '.join(TINY)} --out {tmp_path / 'r'} >&- 2>&-"])
    assert done.returncode == 0 and runlog.read_log(tmp_path / "r" / "log.h5")["status"] == "finished"


def test_progress_bar_on_a_terminal_only(tmp_path):
    pytest.importorskip("tqdm")
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, SCRIPT, *TINY, "--out", tmp_path / "r"], stdout=subprocess.PIPE, stderr=follower, text=True)
    os.close(follower)
    out, seen = process.communicate()[0], b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert process.returncode == 0 and b"batch" in seen and "batch/s" not in out
    piped = subprocess.run([sys.executable, SCRIPT, *TINY, "--out", tmp_path / "s"], capture_output=True, text=True)
    assert piped.returncode == 0 and piped.stderr == ""


def test_real_cifar10(run, cifar10_dir):
    arguments = "--dataset cifar10 --method np --arch fc1 --epochs 1 --limit-train 3000 --limit-test 500 --no-plot --out r".split()
    code, out, err = run(*arguments, tiny=False)
    assert code == 0, err
    assert out.splitlines()[0] == f"data: {cifar10_dir}; 3000 training and 500 test images"
