import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from npref import get_backend, runlog

ROWS = [{"epoch": 1, "test_loss": 2.5, "test_accuracy": 0.125}, {"epoch": 2, "test_loss": 1 / 3, "test_accuracy": 0.5}]


def test_log_round_trip(tmp_path):
    environment = runlog.environment(get_backend("numpy"))
    runlog.write_log(tmp_path / "log.h5", {"lr": 0.1, "limit": None}, environment, ROWS, "running")
    log = runlog.read_log(tmp_path / "log.h5")
    assert log == {"config": {"lr": 0.1, "limit": None}, "environment": environment, "status": "running", "rows": ROWS}
    assert [type(value) for value in log["rows"][0].values()] == [int, float, float]
    assert {"npref", "python", "numpy", "h5py", "backend", "device", "platform", "revision", "started"} <= environment.keys()
    with h5py.File(tmp_path / "log.h5") as file:  # as anyone would read it
        assert file["epochs"]["test_accuracy"].tolist() == [0.125, 0.5]
        assert json.loads(file.attrs["config"])["lr"] == 0.1
    large = 2**60 + 1
    for rows in ([{"a": 1, "b": 2.5}, {"b": 3, "a": 4}], [{"a": 1, "b": 2}, {"a": 1.5, "b": 3}],  # columns by name, as wide as need be
                 [{"a": large, "b": 2}, {"a": np.int64(large), "b": 3}]):
        runlog.write_log(tmp_path / "log.h5", {}, {}, rows, "finished")
        found = runlog.read_log(tmp_path / "log.h5")["rows"]
        assert found == rows and {type(row["a"]) for row in found} == {float if any(isinstance(row["a"], float) for row in rows) else int}
    with pytest.raises(ValueError, match=r"rows must have the same columns, got \['a', 'b'\] and \['a'\]"):
        runlog.write_log(tmp_path / "log.h5", {}, {}, [{"a": 1}, {"a": 2, "b": 3}], "finished")
    runlog.write_log(tmp_path / "log.h5", {}, {}, [], "finished")
    assert runlog.read_log(tmp_path / "log.h5")["rows"] == []


def test_checkpoint_round_trip_is_exact(tmp_path):
    arrays = {"params/W/0": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "optimizer/m/10": np.array([np.pi]),
              "feedback/B/0": np.eye(2), "params/theta": np.arange(3), "s": np.ones(())}  # the last three of a rule of one's own
    counters = {"epoch": 3, "t": 12, "total_loss": 0.1 + 0.2, "phase": "wake"}
    runlog.write_checkpoint(tmp_path / "c.h5", {"seed": 1}, {}, ROWS, arrays, counters)
    saved = runlog.read_checkpoint(tmp_path / "c.h5")
    assert saved["counters"] == counters and isinstance(saved["counters"]["t"], int) and saved["rows"] == ROWS
    assert saved["arrays"].keys() == arrays.keys()
    for name, array in arrays.items():
        assert isinstance(saved["arrays"][name], np.ndarray)
        assert saved["arrays"][name].dtype == array.dtype and saved["arrays"][name].tobytes() == array.tobytes()


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "c.h5"
    runlog.write_checkpoint(path, {}, {}, ROWS, {}, {})
    before = path.read_bytes()
    for name in ("epochs", "epochs/y", "/epochs/y"):
        with pytest.raises(ValueError, match=f"names that do not begin with epochs, as the table of rows has, got '{name}'"):
            runlog.write_checkpoint(path, {}, {}, [], {name: np.ones(2)}, {})
    with pytest.raises(ValueError, match=r"counters must be single values, got t=\[1, 2\]: put it among the arrays"):
        runlog.write_checkpoint(path, {}, {}, ROWS, {}, {"t": [1, 2]})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.h5"]


def test_a_link_stays_and_what_is_no_file_is_written_to(tmp_path):
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_bytes(b"old")
    link.symlink_to(target)
    runlog.replace_file(link, b"n", b"ew")
    assert link.is_symlink() and target.read_bytes() == b"new" and sorted(os.listdir(tmp_path)) == ["link", "target"]
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        runlog.replace_file(pipe, b"n", b"ew")
        assert os.read(reader, 10) == b"new" and not pipe.is_file() and pipe.exists()
    finally:
        os.close(reader)
    with pytest.raises(IsADirectoryError):
        runlog.replace_file(tmp_path, b"new")


def test_two_logs_are_written_at_once(tmp_path):
    """As by two trainings on two threads."""
    with runlog._replacing(tmp_path / "a" / "log.h5") as one, runlog._replacing(tmp_path / "b" / "log.h5") as two:
        for folder, file in (("a", one), ("b", two)):
            (tmp_path / folder).mkdir()
            runlog._write_head(file, {"folder": folder}, {}, ROWS, "running")
    assert [runlog.read_log(tmp_path / folder / "log.h5")["config"]["folder"] for folder in "ab"] == ["a", "b"]


def test_a_run_of_other_options_is_not_this_run():
    saved = {"config": {"lr": 0.1, "epochs": 3, "gone": 2}, "environment": {"data": "d"}}
    runlog.check_same_run(saved, {"lr": 0.1, "epochs": 9, "gone": 2}, "d", "runs/a")
    with pytest.raises(ValueError, match="cannot resume runs/a .*: lr was 0.1, now 0.2; gone was 2, now 'unknown'; "
                                         "new was 'unknown', now 0; the data's contents; start"):
        runlog.check_same_run(saved, {"lr": 0.2, "epochs": 3, "new": 0}, "e", "runs/a")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "log.h5"
    runlog.write_log(path, {"run": 1}, {}, ROWS, "running")
    with pytest.raises(TypeError):
        runlog.write_log(path, {"run": object()}, {}, ROWS, "running")
    assert runlog.read_log(path)["config"] == {"run": 1}
    assert os.listdir(tmp_path) == ["log.h5"]


def test_a_file_is_complete_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append((a.parent == b.parent, h5py.is_hdf5(a))), rename(a, b)))
    runlog.write_log(tmp_path / "log.h5", {}, {}, ROWS, "running")
    assert order == ["fsync", (True, True), "fsync"]  # the file, the rename in one folder, the folder


@pytest.mark.parametrize("size", [1, 10**6])
def test_all_of_a_file_is_flushed(tmp_path, monkeypatch, size):
    """Not what Python's buffer has not handed on yet."""
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.fstat(fd).st_size), fsync(fd)))
    runlog.replace_file(tmp_path / "log.h5", b"a" * 512, b"b" * size)
    assert flushed[0] == 512 + size


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run file .*log.h5"):
        runlog.read_log(tmp_path / "log.h5")
    with pytest.raises(FileNotFoundError, match=f"no run file {tmp_path}: it is a folder; give a run's, which has log.h5"):
        runlog.read_log(tmp_path)
    (tmp_path / "text.h5").write_text("<html>")
    with pytest.raises(ValueError, match="expected an npref run file of format 1, got another kind of file"):
        runlog.read_log(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="expected an npref run file of format 1, got another kind of file"):
        runlog.read_checkpoint(tmp_path / "other.h5")


def test_a_file_without_all_that_a_run_file_has(tmp_path):
    with runlog._replacing(tmp_path / "log.h5") as file:
        file.attrs["config"], file.attrs["status"] = "{}", "running"
    for read in runlog.read_log, runlog.read_checkpoint:
        with pytest.raises(ValueError, match=r"log.h5: what is in it is no run \(.*environment.*\); start a new one"):
            read(tmp_path / "log.h5")
    for name, value in ("config", "[1]"), ("environment", "null"), ("config", "[" * 20000):
        with runlog._replacing(tmp_path / "log.h5") as file:
            file.attrs.update({"config": "{}", "environment": "{}", "status": "running", name: value})
        with pytest.raises(ValueError, match="log.h5: what is in it is no run"):
            runlog.read_log(tmp_path / "log.h5")


def test_source_revision(monkeypatch, tmp_path):
    revision = runlog.source_revision()
    assert revision == "unknown" or len(revision.removesuffix("+changes")) == 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runlog.source_revision() == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_that_of_the_checkout_itself(monkeypatch, tmp_path):
    """Files that git does not know are no changes of it; a checkout that merely lies around npref is another's. Any name will do."""
    tmp_path /= os.fsdecode(b"\xff") if sys.platform == "linux" else "\N{GREEK SMALL LETTER DELTA}"

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "npref").mkdir(parents=True)
    (tmp_path / "npref/runlog.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(runlog, "__file__", str(tmp_path / "npref/runlog.py"))
    (tmp_path / "mine").write_text("")
    assert runlog.source_revision() == git("rev-parse", "HEAD")
    (tmp_path / "npref/runlog.py").write_text("2")
    assert runlog.source_revision() == git("rev-parse", "HEAD") + "+changes"
    monkeypatch.setattr(runlog, "__file__", str(tmp_path / "site/npref/runlog.py"))
    (tmp_path / "site/npref").mkdir(parents=True)
    assert runlog.source_revision() == "unknown"


def test_what_has_changed_between_environments_is_said_once_for_every_time():
    one = dict(revision="a", numpy="1", blas="x", threads="1", device="CPU", started="now")
    for name in ("revision", "numpy", "blas", "threads", "device"):
        assert runlog.changes(one, {**one, name: "b", "started": "then"}) == f"{name} was {one[name]}, now b"
    assert runlog.changes(one, {**one, "revision": "b", "device": "GPU"}) == "revision was a, now b; device was CPU, now GPU"
    two = runlog.going_on(one, {**one, "threads": "2"})
    assert two == {**one, "threads": "2", "went_on": "threads was 1, now 2"} and runlog.going_on(one, one) == one
    three = runlog.going_on(two, {**one, "threads": "3"})
    assert three["went_on"] == "threads was 1, now 2; threads was 2, now 3" == runlog.going_on(three, {**one, "threads": "3"})["went_on"]


def test_any_damage_is_noticed(tmp_path):
    path = tmp_path / "c.h5"
    runlog.write_checkpoint(path, {"seed": 1}, {}, ROWS, {"params/W/0": np.ones((3, 4))}, {"epoch": 3})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:100], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="c.h5: damaged, its sha256"):
            runlog.read_checkpoint(path)
    for place in rng.integers(0, len(whole), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="c.h5: (damaged|expected an npref run file)"):
            runlog.read_checkpoint(path)
    path.write_bytes(whole)
    assert runlog.read_checkpoint(path)["counters"] == {"epoch": 3}


def test_a_log_is_no_checkpoint(tmp_path):
    runlog.write_log(tmp_path / "log.h5", {}, {}, ROWS, "running")
    with pytest.raises(ValueError, match="expected a checkpoint, got a log"):
        runlog.read_checkpoint(tmp_path / "log.h5")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_plain_error(tmp_path, monkeypatch):
    runlog.write_log(tmp_path / "log.h5", {"run": 1}, {}, ROWS, "running")
    (tmp_path / f".log.h5.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*/log\.h5.$"):
        runlog.write_log(tmp_path / "log.h5", {"run": 2}, {}, ROWS, "running")
    assert runlog.read_log(tmp_path / "log.h5")["config"] == {"run": 1} and os.listdir(tmp_path) == ["log.h5"]
    with pytest.raises(OSError, match="No space left.*/dev/full.$"):
        runlog.replace_file("/dev/full", b"a")


def test_lock(tmp_path):
    for name in ("log.h5", ".checkpoint.h5.123.tmp", ".log.h5.7.tmp", ".mydata.h5.backup.tmp"):
        (tmp_path / name).write_text("")
    held = runlog.lock(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", ".mydata.h5.backup.tmp", "log.h5"]  # leftovers of a kill are gone
    with pytest.raises(OSError, match="another process is writing the run"):
        runlog.lock(tmp_path)
    assert runlog.locked(tmp_path)
    runlog.unlock(held)
    assert not runlog.locked(tmp_path)
    runlog.unlock(runlog.lock(tmp_path))
    assert ".lock" not in os.listdir(tmp_path)
    (tmp_path / ".lock").touch()  # of a killed process
    assert not runlog.locked(tmp_path)


def test_a_numpy_that_does_not_tell_its_blas(monkeypatch):
    monkeypatch.setattr(np, "show_config", lambda mode: {})
    assert runlog.environment(get_backend("numpy"))["blas"] == "unknown"


@pytest.mark.parametrize("behind", [False, True])
def test_a_lock_that_is_given_back_meanwhile_is_not_taken_for_the_new_one(tmp_path, monkeypatch, behind):
    """The holder removes its file after we opened it and before we lock it; `behind`: another has put its own there."""
    fcntl = pytest.importorskip("fcntl")
    flock, calls = fcntl.flock, []

    def meanwhile(file, how):
        if not calls:
            (tmp_path / ".lock").unlink()
            if behind:
                (tmp_path / ".lock").touch()
        calls.append(how)
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    held = runlog.lock(tmp_path)
    assert len(calls) == 2 and os.path.samestat(os.fstat(held.fileno()), (tmp_path / ".lock").stat())
    with pytest.raises(OSError, match="another process is writing"):
        runlog.lock(tmp_path)
    runlog.unlock(held)


def test_a_lock_is_held_until_its_file_is_gone(tmp_path, monkeypatch):
    """Else another could take the file that is about to be removed, and a third a new one beside it."""
    pytest.importorskip("fcntl")
    held, seen, unlink = runlog.lock(tmp_path), [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **how: (seen.append(runlog.locked(tmp_path)), unlink(path, **how)))
    runlog.unlock(held)
    assert seen == [True] and not (tmp_path / ".lock").exists()


def test_who_looks_whether_a_folder_is_locked_does_not_lock_it(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".lock").touch()
    with open(tmp_path / ".lock") as another:  # who looks at the same time
        fcntl.flock(another, fcntl.LOCK_SH)
        assert not runlog.locked(tmp_path)


def test_what_can_be_locked_by_nobody_is_not_taken_for_locked(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / ".lock").mkdir()
    for folder in (tmp_path / "file", tmp_path):
        with pytest.raises(OSError, match="Not a directory|Is a directory"):
            runlog.locked(folder)
        with pytest.raises(OSError, match="Not a directory|Is a directory"):
            runlog.lock(folder)
