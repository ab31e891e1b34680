"""What the command lines share."""

import errno

import pytest

import npref.datasets.__main__ as datasets_cli
import npref.oracle.__main__ as oracle_cli
from npref.command_line import in_words


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
