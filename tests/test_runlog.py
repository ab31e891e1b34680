import json
import os

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
    assert {"npref", "python", "numpy", "h5py", "backend", "device", "platform", "revision", "started"} <= environment.keys()
    with h5py.File(tmp_path / "log.h5") as file:  # as anyone would read it
        assert file["epochs"]["test_accuracy"].tolist() == [0.125, 0.5]
        assert json.loads(file.attrs["config"])["lr"] == 0.1
    runlog.write_log(tmp_path / "log.h5", {}, {}, [], "finished")
    assert runlog.read_log(tmp_path / "log.h5")["rows"] == []


def test_checkpoint_round_trip_is_exact(tmp_path):
    arrays = {"params/W/0": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "optimizer/m/10": np.array([np.pi])}
    counters = {"epoch": 3, "t": 12, "total_loss": 0.1 + 0.2}
    runlog.write_checkpoint(tmp_path / "c.h5", {"seed": 1}, {}, ROWS, arrays, counters)
    saved = runlog.read_checkpoint(tmp_path / "c.h5")
    assert saved["counters"] == counters and isinstance(saved["counters"]["t"], int) and saved["rows"] == ROWS
    assert saved["arrays"].keys() == arrays.keys()
    for name, array in arrays.items():
        assert saved["arrays"][name].dtype == array.dtype and saved["arrays"][name].tobytes() == array.tobytes()


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


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run file .*log.h5"):
        runlog.read_log(tmp_path / "log.h5")
    (tmp_path / "text.h5").write_text("<html>")
    with pytest.raises(ValueError, match="not a readable HDF5 file"):
        runlog.read_log(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="expected an npref run file of format 1, got another kind of file"):
        runlog.read_checkpoint(tmp_path / "other.h5")


def test_source_revision(monkeypatch, tmp_path):
    revision = runlog.source_revision()
    assert revision == "unknown" or len(revision.removesuffix("+changes")) == 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runlog.source_revision() == "unknown"


def test_leftovers_of_a_kill_are_removed(tmp_path):
    for name in ("log.h5", ".checkpoint.h5.123.tmp", ".log.h5.7.tmp", "notes.tmp"):
        (tmp_path / name).write_text("")
    runlog.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["log.h5", "notes.tmp"]
    runlog.remove_leftovers(tmp_path / "nowhere")
