import importlib.util

import pytest
from conftest import ROOT

from npref import runlog

pytest.importorskip("matplotlib")
spec = importlib.util.spec_from_file_location("plots_example", ROOT / "examples" / "plots.py")
plots = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plots)


def write(folder, arch, method):
    folder.mkdir()
    rows = [{"epoch": e, "train_accuracy": 0.1 * e, "test_accuracy": 0.05 * e} for e in (1, 2, 3)]
    runlog.write_log(folder / "log.h5", {"arch": arch, "method": method, "dataset": "synthetic"}, {}, rows, "finished")
    return str(folder)


def test_comparison(tmp_path, capsys):
    folders = [write(tmp_path / a, *a.split("-")) for a in ("fc1-np", "fc1-dnp", "fc3-danp")]
    assert plots.main([str(tmp_path / "p.png"), *folders]) == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG" and "p.png" in capsys.readouterr().out


def test_mistakes(tmp_path, capsys):
    assert plots.main(["p.png"]) == 2 and capsys.readouterr().err.startswith("usage")
    assert plots.main(["p.png", str(tmp_path)]) == 2 and "no run file" in capsys.readouterr().err
