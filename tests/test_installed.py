"""An example that cannot be imported, or is stopped while it is."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = ("alignment", "benchmark", "cifar10", "lr_search", "reproduce")


def call(script, *flags, path):
    command = [sys.executable, *flags, ROOT / "examples" / f"{script}.py", "--help"]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_module_that_is_not_installed_gets_one_line(script, tmp_path):
    for path, missing in (tmp_path, "npref"), (ROOT, "numpy"):
        done = call(script, "-S", path=path)  # -S: without what is installed
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"has no module {missing}: pip install -e" in done.stderr and sys.executable in done.stderr


def test_a_library_that_is_broken_gets_one_line(tmp_path):
    for error, text in ("ImportError", "libhdf5.so: cannot open\nshared object file"), ("ValueError", "numpy.dtype size changed " * 20):
        (tmp_path / "npref.py").write_text(f"raise {error}({text!r})\n")
        done = call("cifar10", path=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and len(done.stderr) < 420
        assert done.stderr.startswith(f"error: npref cannot be imported ({error}: {' '.join(text.split())[:40]}")


def test_a_library_that_training_alone_needs_is_missed(tmp_path):
    (tmp_path / "h5py.py").write_text("raise ModuleNotFoundError(name='h5py')\n")
    assert "has no module h5py: pip install -e" in call("cifar10", path=f"{tmp_path}{os.pathsep}{ROOT}").stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports_ends_without_a_word(script, tmp_path):
    (tmp_path / "npref.py").write_text("raise KeyboardInterrupt\n")
    done = call(script, path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
