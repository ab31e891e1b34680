"""Official downloads: fetch, verify, unpack only what is expected."""

import errno
import hashlib
import os
import re
import sys
import tarfile
import time
import urllib.request
import uuid
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path

from ..command_line import quoted

MOST = 1 << 28  # bytes of any download
ABANDONED = 3600  # seconds after which a .part file that has not grown is taken for a killed download's


@dataclass(frozen=True)
class Archive:
    """An official download: where it is, how it is verified, and the only members that are extracted.

    sha256 or md5 is what its publisher states, or what was measured; with neither, the first download's sha256 is recorded beside it.
    members: file names in `folder`; of a zip file also patterns, where * stands for a part between slashes. No folder: a plain file.
    """

    url: str
    size: int | None
    sha256: str | None = None
    folder: str = ""
    members: tuple[str, ...] = ()
    md5: str | None = None

    @property
    def file(self):
        """The name of the download."""
        return self.url.rpartition("/")[2]

    @property
    def place(self):
        """What to look for on disk: the folder, or the file itself."""
        return self.folder or self.file


def fetch_command(name, data_dir=None):
    return f"python -m npref.datasets fetch {name}" + (f" --data-dir {quoted(data_dir)}" if data_dir is not None else "")


def fetch(archive, target, *, url=None, timeout=30.0, report=None, check=None):
    """Download, verify and unpack `archive` under `target`; returns the folder, or the file if there is nothing to unpack.

    The download goes to a .part file, which is renamed once size and checksum are right; one that a killed download has left is
    removed. Only the expected members are unpacked. check: needed where no checksum is published, a function of a path that raises
    ValueError if the file cannot be used. Raises ConnectionError if it cannot be downloaded, ValueError if it is not the expected file, and
    OSError or RuntimeError if it cannot be written.
    """
    if check is None and archive.sha256 is None and archive.md5 is None:
        raise ValueError(f"{archive.file} has no published checksum: pass check, a function that raises ValueError for another file")
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    packed = target / archive.file
    if packed.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(packed))
    if not _is_here(archive, packed, check):
        _renew(archive, packed, archive.url if url is None else url, timeout, report, check)
    if not archive.folder:
        _record(packed)
        return packed
    folder = target / archive.folder
    folder.mkdir(exist_ok=True)
    (_unpack_zip if packed.suffix == ".zip" else _unpack_tar)(archive, packed, folder)
    return folder


def _known(archive, packed):
    """Algorithm and checksum that the download must have; the checksum is None if nobody knows it yet."""
    if archive.md5:
        return "md5", archive.md5
    return "sha256", archive.sha256 or recorded(packed)


def _is_here(archive, packed, check):
    algorithm, known = _known(archive, packed)
    if not packed.is_file():
        return False
    if known is not None:
        return file_digest(packed, algorithm) == known
    try:
        check(packed)
    except ValueError:
        return False  # nobody vouches for it: download it anew
    return True


def _renew(archive, packed, url, timeout, report, check):
    algorithm, known = _known(archive, packed)
    part = part_of(packed)
    try:
        _download(url, part, archive.size, timeout, report)
        size, found = part.stat().st_size, file_digest(part, algorithm)
        again = "nothing was kept; try again, or name a mirror with --url"
        if archive.size is not None and size != archive.size or known not in (None, found):
            expected = "a file" if archive.size is None else f"{archive.size} bytes"
            if archive.sha256 is None and archive.md5 is None:
                again += f", or remove {record_path(packed)}, which records the first download's, if the official file has changed"
            raise ValueError(f"{url}: expected {expected} with {algorithm} {known}, got {size} bytes with {found}; {again}")
        if known is None:
            try:
                check(part)
            except ValueError as error:
                raise ValueError(f"{url}: {error}; {again}") from error
        os.replace(part, packed)
    finally:
        part.unlink(missing_ok=True)


def part_of(path):
    """Where nobody else writes what is to take the place of `path`; what killed processes have left of that is removed."""
    for left in path.parent.iterdir():
        if left.name.startswith(f"{path.name}.") and re.fullmatch(r"(\d+|[0-9a-f]{32})\.part", left.name[len(path.name) + 1 :]):
            with suppress(OSError):  # another process may have done it, or it is not ours to remove
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # a process number may be another container's, too


def _unpack_tar(archive, packed, folder):
    with tarfile.open(packed) as tar:
        for name in archive.members:
            try:
                member = tar.extractfile(f"{archive.folder}/{name}")
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{packed}: expected a file {archive.folder}/{name} in it")
            _write(folder / name, member.read())


def _unpack_zip(archive, packed, folder):
    """In the order of archive.members, so that the last one shows that all are there."""
    with zipfile.ZipFile(packed) as box:
        for pattern in archive.members:
            wanted = f"{archive.folder}/{pattern}"
            names = [name for name in box.namelist() if _matches(name, wanted)]
            if not names:
                raise ValueError(f"{packed}: expected a file {wanted} in it")
            for name in names:
                path = folder.joinpath(*name.split("/")[1:])
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, box.read(name))


def _matches(name, pattern):
    """Whether a member has this name, part by part; one that points elsewhere never does."""
    parts, wanted = name.split("/"), pattern.split("/")
    return (len(parts) == len(wanted) and "\\" not in name and not {"", ".", ".."} & set(parts)
            and all(fnmatchcase(part, want) for part, want in zip(parts, wanted)))


def _write(path, content):
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # hidden: if this is killed, no loader takes it for a part of the data
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _download(url, part, size, timeout, report):
    with open(part, "xb", buffering=0) as file:  # what a full disk does not take is noticed as it is written
        _receive(url, file, size, timeout, report)


def _receive(url, file, size, timeout, report):
    part = Path(file.name)
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            read = getattr(response, "read1", response.read)  # returns what has come, so that progress shows
            announced = response.headers.get("Content-Length") if size is None else None
            done = 0
            while piece := read(1 << 16):
                done += len(piece)
                try:
                    while piece:
                        piece = piece[file.write(piece) :]
                except OSError as error:
                    raise RuntimeError(f"cannot write {part} ({error}): is the disk full?") from error
                if size is not None and done > size:
                    break  # not the expected file, and perhaps an endless one
                if done > MOST:
                    raise ValueError(f"more than {MOST} bytes, which cannot be {Path(part.stem).stem}")
                if report and (size or announced):
                    report(done, size or int(announced))
            if announced and done != int(announced):
                raise ValueError(f"{done} of {announced} bytes came")
    except (OSError, ValueError, HTTPException) as error:  # URLError, timeouts, a malformed URL or answer
        remedy = "check the network"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            remedy = "let Python find your system's certificates (on macOS run its \"Install Certificates.command\")"
        raise ConnectionError(f"cannot download {url} ({error}): {remedy}, name a mirror with --url, "
                              f"or put the file into {part.parent} by hand") from error


def file_digest(path, algorithm="sha256"):
    """The checksum of a file, in hex."""
    with open(path, "rb") as file:
        if sys.version_info >= (3, 11):
            return hashlib.file_digest(file, algorithm).hexdigest()
        return hashlib.new(algorithm, file.read()).hexdigest()


def record_path(path):
    """Where the sha256 of a download is recorded."""
    return path.with_name(path.name + ".sha256")


def _record(packed):
    """Records the sha256 of a download, unless that is done."""
    found = file_digest(packed)
    with suppress(ValueError):  # a record that is none
        if recorded(packed) == found:
            return
    _write(record_path(packed), f"{found}  {packed.name}\n".encode())


def recorded(path):
    """The sha256 recorded beside `path`, or None; ValueError if the record is no sha256."""
    record = record_path(path)
    if not record.is_file():
        return None
    words = record.read_text(errors="replace").split()
    if not words or not re.fullmatch("[0-9a-fA-F]{64}", words[0]):
        raise ValueError(f"{record}: expected 64 hexadecimal digits, then the file's name; remove it to record the file anew")
    return words[0].lower()
