"""What the command lines share: one line about a mistake, and an end without noise where nobody reads on."""

import argparse
import os
import signal
import sys
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line on stderr, with exit code 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help tells more)\n")


def folder(name):
    """A flag's folder. An empty name, as of a shell variable that is not set, would be the current one."""
    if not name:
        raise argparse.ArgumentTypeError("expected a folder, got an empty name; the current one is .")
    return Path(name)


def broken_pipe():
    """After a BrokenPipeError: whoever read our output has gone, as in `| head`. Returns the exit code; nothing more is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
