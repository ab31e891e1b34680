"""Run logs and checkpoints in HDF5.

Both are written whole to a temporary file beside their place, flushed to the disk, and renamed over the last one: a reader, or a
machine that loses power, finds the old file or the new one, never half of one. A digest in HDF5's user block tells damage.

log.h5         attributes: config (JSON), environment (JSON), status;  dataset `epochs`: one record an epoch
checkpoint.h5  the same attributes; `epochs` so far;  params/W, b, R per layer;  optimizer/m, v per
               parameter, every W and then every b (`step.learnable`);  epoch, batch, t, totals
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
from contextlib import contextmanager
from datetime import datetime, timezone
from numbers import Integral
from pathlib import Path

import h5py
import numpy as np

from . import __version__
from .execution import cores

FORMAT = 1
USER_BLOCK = 512
OWN = ("network", "rule")  # what an environment names where they are not the configured ones
HEADER = f"npref run file, format {FORMAT}, sha256 of the HDF5 file after these {USER_BLOCK} bytes: ".encode()


def environment(backend):
    """Versions, machine and source revision of this process, for the record: {name: string}. backend: `get_backend`'s."""
    versions = {"npref": __version__, "python": platform.python_version(), "numpy": np.__version__, "h5py": h5py.__version__}
    if backend.name != "numpy":
        versions[backend.name] = backend.xp.__version__
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {**versions, "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
            "threads": str(cores()),
            "backend": backend.name, "device": backend.device, "platform": platform.platform(),
            "revision": source_revision(), "started": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def source_revision():
    """The git commit of the source, with "+changes" if files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments):
        printed = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=10, check=True).stdout
        return os.fsdecode(printed).strip()  # paths, which need not be in the locale's encoding

    try:
        if not os.path.samefile(git("rev-parse", "--show-toplevel"), root):
            return "unknown"
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def write_log(path, config, environment, rows, status):
    """config and environment are dicts; rows a list of equal-keyed dicts of numbers, one an epoch; status a short text."""
    with _replacing(path) as file:
        _write_head(file, config, environment, rows, status)


def read_log(path):
    """What `write_log` wrote, as a dict with config, environment, status and rows."""
    with _opened(path) as file:
        return _read_head(file)


def write_checkpoint(path, config, environment, rows, arrays, counters):
    """arrays: {"params/W/0": NumPy array, ...}; counters: {"epoch": int, ...}, exact in float64 or int64.

    Raises ValueError for an array whose name begins as the table of epochs does, and for a counter that is not one value.
    """
    taken = [name for name in arrays if name.strip("/").partition("/")[0] == "epochs"]
    if taken:
        raise ValueError(f"arrays must have names that do not begin with epochs, as the table of rows has, got {taken[0]!r}")
    several = [name for name, value in counters.items() if np.ndim(value) != 0]
    if several:
        raise ValueError(f"counters must be single values, got {several[0]}={counters[several[0]]!r}: put it among the arrays")
    with _replacing(path) as file:
        _write_head(file, config, environment, rows, "checkpoint")
        for name, array in arrays.items():
            file[name] = array
        for name, value in counters.items():
            file.attrs[f"counter_{name}"] = value


def read_checkpoint(path):
    """What `write_checkpoint` wrote: the dict of `read_log`, with arrays and counters."""
    with _opened(path) as file:
        content = _read_head(file)
        if content["status"] != "checkpoint":
            raise ValueError(f"{path}: expected a checkpoint, got a log")
        names = []
        file.visit(names.append)
        names = [name for name in names if isinstance(file[name], h5py.Dataset) and name != "epochs"]
        content["arrays"] = {name: np.asarray(file[name][()]) for name in names}
        content["counters"] = {k.removeprefix("counter_"): np.asarray(v).item() for k, v in file.attrs.items() if k.startswith("counter_")}
        return content


def _write_head(file, config, environment, rows, status):
    file.attrs["config"] = json.dumps(config)
    file.attrs["environment"] = json.dumps(environment)
    file.attrs["status"] = status
    if rows:
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError(f"rows must have the same columns, got {' and '.join(sorted({str(sorted(row)) for row in rows}))}")
        fields = [(name, np.int64 if all(isinstance(row[name], Integral) for row in rows) else np.float64) for name in rows[0]]
        file["epochs"] = np.array([tuple(row[name] for name in rows[0]) for row in rows], dtype=fields)


def _read_head(file):
    table = file["epochs"][()] if "epochs" in file else []
    head = {name: json.loads(file.attrs[name]) for name in ("config", "environment")} | {"status": file.attrs["status"]}
    for (name, value), kind in zip(head.items(), (dict, dict, str)):
        if not isinstance(value, kind):
            raise TypeError(f"its {name} is {value!r}")
    return {**head, "rows": [{name: row[name].item() for name in table.dtype.names} for row in table]}


def check_same_run(saved, config, data, folder, apart=("epochs",), own=()):
    """Raise ValueError unless a log or checkpoint is of this very configuration, but for what is `apart`, and data (their digest).

    own: {"network": text, "rule": text} of one's own, in place of the configured ones.
    """
    differ = [f"{name} was {saved['config'].get(name, 'unknown')!r}, now {config.get(name, 'unknown')!r}"
              for name in saved["config"] | config if name not in apart and saved["config"].get(name) != config.get(name)]
    for name in OWN:
        was, now = (of[name] if name in of else "the configured one" for of in (saved["environment"], own))
        differ += [f"{name} was {was}, now {now}"] if was != now else []
    if saved["environment"]["data"] != data:
        differ.append("the data's contents")
    if differ:
        raise ValueError(f"cannot resume {folder} with a changed configuration: {'; '.join(differ)}; start anew in another folder")


def changes(before, now):
    """What differs between two environments and may change last bits, in words; empty if nothing."""
    names = ("revision", "numpy", "blas", "threads", "device")
    return "; ".join(f"{name} was {before.get(name)}, now {now[name]}" for name in names if before.get(name) != now[name])


def going_on(before, now):
    """`now`, the environment in which a run goes on that was begun in `before`; `went_on` says what has changed on the way, if anything."""
    said = [text for text in (before.get("went_on"), changes(before, now)) if text]
    return {**now, **({"went_on": "; ".join(said)} if said else {})}


def lock(folder):
    """Take the folder for this process, until `unlock` or its end. Raises OSError if another run is writing there, or nobody can."""
    path = Path(folder) / ".lock"
    while True:
        file = open(path, "w")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # a file that `unlock` removed after it was opened here: another may have taken its place
        except ModuleNotFoundError:
            break  # not a POSIX system: no lock to be had
        except FileNotFoundError:
            file.close()
        except BlockingIOError as error:
            file.close()
            raise OSError(f"another process is writing the run in {folder}: wait for it, or stop it; if it is an iterator of this one "
                          "that has not ended, close() it") from error
    for path in Path(folder).iterdir():  # what a killed run left half written; nobody else is writing here now
        if re.fullmatch(r"\.\w+\.h5\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)
    return file


def locked(folder):
    """Whether some process, this one or another, has taken the folder. Raises OSError where that cannot be told."""
    path = Path(folder) / ".lock"
    try:
        import fcntl

        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, ModuleNotFoundError):
        return False
    except BlockingIOError:
        return True
    return False  # what a killed process left behind


def unlock(file):
    """Give back what `lock` took."""
    if os.name != "posix":  # where a file that is open cannot be deleted
        file.close()
    Path(file.name).unlink(missing_ok=True)
    file.close()


def temporary_of(path):
    """Where a file is written before it takes its place: beside it, or beside what a link leads to."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def replace_file(path, *parts):
    """Put the bytes of `parts` in a file's place, all or nothing: written beside it, flushed to the disk, and renamed.

    A link stays, and the file that it leads to is replaced. What is no plain file, as a device or a pipe, is written to.
    """
    if Path(path).exists() and not Path(path).is_file():
        try:
            with open(path, "wb") as file:
                file.writelines(parts)
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        return
    path, temporary = Path(os.path.realpath(path)), temporary_of(path)
    try:
        with open(temporary, "wb") as raw:
            raw.writelines(parts)
            raw.flush()
            os.fsync(raw.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk's error names none
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _opened(path):
    """The file, read and checked as bytes first: HDF5 itself notices only some kinds of damage."""
    if Path(path).is_dir():
        raise FileNotFoundError(f"no run file {path}: it is a folder; give a run's, which has log.h5 and checkpoint.h5 as files")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no run file {path}: expected the folder of an earlier run, as printed at its end")
    raw = Path(path).read_bytes()
    if not raw.startswith(HEADER):
        raise ValueError(f"{path}: expected an npref run file of format {FORMAT}, got another kind of file")
    if raw[:USER_BLOCK] != _user_block(raw[USER_BLOCK:]):
        raise ValueError(f"{path}: damaged, its sha256 is not the one it was written with; start a new run, or use a copy of it")
    with h5py.File(io.BytesIO(raw), "r") as file:
        try:
            yield file
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:  # h5py's and json's
            raise ValueError(f"{path}: what is in it is no run ({' '.join(str(error).split())}); start a new one, or use a copy") from error


@contextmanager
def _replacing(path):
    """Build the file in memory, then put it on the disk with plain writes: HDF5 does not take a full disk well."""
    memory = io.BytesIO()  # HDF5's own driver for files in memory tells them apart by their names, for all threads
    with h5py.File(memory, "w") as file:
        yield file
    image = memory.getbuffer()
    replace_file(path, _user_block(image), image)


def _user_block(image):
    """HDF5 lets a file begin with a block that it does not read: here, what it is and a digest of the rest."""
    return (HEADER + hashlib.sha256(image).hexdigest().encode() + b"\n").ljust(USER_BLOCK, b"\0")
