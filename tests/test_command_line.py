"""What the command lines share."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import npref.datasets.__main__ as datasets_cli
import npref.oracle.__main__ as oracle_cli
from npref.command_line import folder, in_words


@pytest.mark.parametrize("main, words", [
    (datasets_cli.main, "show synthetic --data ."), (datasets_cli.main, "fetch cifar10 --time 3"), (oracle_cli.main, "list --cas x")])
def test_flags_are_given_in_full_to_subcommands_too(main, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "unrecognized arguments: --" in err and err.count("\n") == 1


@pytest.mark.parametrize("error, words", [
    (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), "error: d: it is a folder where a file is needed: move it, or name another"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f"),
     "error: f: it, or what is above it, is a file where a folder is needed: name another"),
    (OSError(errno.ENOSPC, "No space left on device"),
     "error: no space is left on a disk, or where the output goes: free some; what was saved before is whole"),
    (OSError(errno.ENOSPC, "No space left on device", "log.h5"), f"error: [Errno {errno.ENOSPC}] No space left on device: 'log.h5'"),
    (IsADirectoryError("a folder"), "error: a folder"),
    (ValueError("two\n lines"), "error: two lines"),
])
def test_an_error_in_words(error, words):
    assert in_words(error) == words


def test_a_tilde_that_a_shell_has_left(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (folder("~/data"), folder("a~"), folder(".")) == (tmp_path / "data", Path("a~"), Path("."))


@pytest.mark.parametrize("words", ["npref.datasets show synthetic-sarcos", "npref.oracle list"])
def test_what_cannot_be_printed_is_told_as_python_ends(words):
    """Output to a file or a pipe goes there at the end alone, unless Python is told otherwise."""
    command = [sys.executable, "-m", *words.split()]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as gone:
        run = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, env=env)
    assert (run.returncode, run.stderr) == (141, "")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
        assert run.returncode == 2 and run.stderr.startswith("error: no space is left on a disk") and run.stderr.count("\n") == 1
