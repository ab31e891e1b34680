"""What the command lines share: one line about a mistake, and an end without noise where nobody reads on."""

import argparse
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from shlex import quote


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line on stderr, with exit code 2. Flags are given in full; so are its subcommands'."""

    def __init__(self, *arguments, allow_abbrev=False, **options):
        super().__init__(*arguments, allow_abbrev=allow_abbrev, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help tells more)\n")


def folder(name):
    """A flag's folder. An empty name, as of a shell variable that is not set, would be the current one."""
    if not name:
        raise argparse.ArgumentTypeError("expected a folder, got an empty name; the current one is .")
    path = Path(os.path.expanduser(name))  # a shell leaves the ~ of --flag=~/x as it is
    try:
        path.is_dir()
    except OSError as error:  # a name that is too long, or in a folder that may not be read
        shown = repr(name) if len(name) <= 40 else f"{name[:40]!r} and so on"
        raise argparse.ArgumentTypeError(f"expected a folder, got {shown}: {error.strerror}") from None
    return path


def in_words(error):
    """An exception in one line. What the system says of a file where a folder should be, and the like, is said more clearly."""
    if isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename:
        return f"error: {error.filename}: it, or what is above it, is a file where a folder is needed: name another"
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"error: {error.filename}: it is a folder where a file is needed: move it, or name another"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        return "error: no space is left on a disk, or where the output goes: free some; what was saved before is whole"
    return "error: " + " ".join(str(error).split())


def quoted(path):
    """A path as it can be pasted into a command line of this system."""
    return quote(str(path)) if os.name == "posix" else subprocess.list2cmdline([str(path)])


def printed(code):
    """The exit code, once what was printed has gone where it was to go: what fails there is told as other errors are."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _lead_nowhere()  # Python would try once more as it ends
        raise
    return code


def broken_pipe():
    """After a BrokenPipeError: whoever read our output has gone, as in `| head`. Returns the exit code; nothing more is printed."""
    _lead_nowhere()
    return 128 + getattr(signal, "SIGPIPE", 13)  # which Windows does not have


def _lead_nowhere():
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
