"""Data sets: find, fetch, verify, load. Images stay uint8; training scales a batch at a time.

    python -m npref.datasets fetch cifar10 [--data-dir DIR] [--url MIRROR]
"""

import argparse
import hashlib
import os
import sys
import tarfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
from scipy.fft import fftfreq, irfft2, rfft2, rfftfreq

from . import noise

DATASETS = ("auto", "cifar10", "synthetic")


@dataclass(frozen=True)
class Dataset:
    """Images (n, C, H, W) uint8 and labels (n,) int64, for training and test; `source` says in words where they are from."""

    name: str
    source: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int

    def __post_init__(self):
        for x, y in ((self.x_train, self.y_train), (self.x_test, self.y_test)):
            if len(x) == 0 or y.shape != (len(x),) or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= self.classes:
                raise ValueError(f"{self.name}: expected one label from 0 to {self.classes - 1} for each of {len(x)} images, "
                                 f"got {y.shape} of {y.dtype}" + (f" from {y.min()} to {y.max()}" if y.size else ""))

    def limited(self, train=None, test=None):
        """The first `train` and `test` samples (None: all)."""
        for what, limit, n in (("limit_train", train, len(self.x_train)), ("limit_test", test, len(self.x_test))):
            _check_limit(what, limit, n, self.name)
        return Dataset(self.name, self.source, self.x_train[:train], self.y_train[:train], self.x_test[:test], self.y_test[:test],
                       self.classes)

    def fingerprint(self):
        """A sha256 over all of it: whether two runs saw the same data."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(str((array.shape, array.dtype)).encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def _check_limit(what, limit, n, name):
    if limit is not None and not 1 <= limit <= n:
        raise ValueError(f"{what} must be between 1 and {n}, the size of {name}, got {limit}")


@dataclass(frozen=True)
class Archive:
    """An official download: what it is called, where it is, how it is verified, and the only members that are extracted."""

    url: str
    size: int
    sha256: str
    folder: str
    members: tuple[str, ...]


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    members=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
)
ARCHIVES = {"cifar10": CIFAR10}


def load(name="auto", data_dir=None, limit_train=None, limit_test=None):
    """The data set called `name`, or its first samples; "auto" is CIFAR-10 where it is found, else synthetic.

    data_dir: where to look, and nowhere else; by default $NPREF_DATA, then data/. The source of the result says what was found.
    Raises ValueError or FileNotFoundError, with the file and the remedy, for anything missing or damaged: a damaged CIFAR-10
    never turns into the synthetic set.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}")
    if name == "synthetic":
        return synthetic(limit_train=limit_train, limit_test=limit_test)
    folder = find(CIFAR10.folder, data_dir)
    if folder is not None:
        return load_cifar10(folder).limited(limit_train, limit_test)
    looked = ", ".join(str(place) for place in search_path(data_dir))
    command = _fetch_command("cifar10", data_dir)
    if name == "auto":
        return synthetic(limit_train=limit_train, limit_test=limit_test,
                         why=f" (no {CIFAR10.folder} in {looked}; to get CIFAR-10: {command})")
    raise FileNotFoundError(f"no CIFAR-10: expected the folder {CIFAR10.folder} in {looked}; get it with {command}, "
                            "or use --dataset synthetic")


def search_path(data_dir=None):
    """The folders that are searched, in order: data_dir alone if given, else $NPREF_DATA and data/."""
    if data_dir is not None:
        return [Path(data_dir)]
    given = os.environ.get("NPREF_DATA")
    return [*([Path(given)] if given else []), default_dir()]


def default_dir():
    """data/ of the checkout that npref runs from, or of the current folder."""
    root = Path(__file__).resolve().parents[1]
    return root / "data" if (root / "setup.py").exists() else Path("data")


def find(folder, data_dir=None):
    """The first place on the search path that holds `folder` (or is it), or None."""
    for place in search_path(data_dir):
        for candidate in (place / folder, place):
            if candidate.is_dir() and candidate.resolve().name == folder:
                return candidate
    return None


def load_cifar10(folder):
    """CIFAR-10 from its binary files: records of one label byte and 3072 pixel bytes (R, G, B planes, row by row)."""
    folder = Path(folder)
    *training, test = [_read_cifar(folder / name, 10_000) for name in CIFAR10.members if name.endswith(".bin")]
    x_train, y_train = (np.concatenate(part) for part in zip(*training))
    return Dataset("cifar10", str(folder), x_train, y_train, *test, classes=10)


def _read_cifar(path, records):
    """(records, 3, 32, 32) uint8 and (records,) int64; verified."""
    remedy = f"get it again with {_fetch_command('cifar10', path.parent.parent)}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {remedy}")
    expected, size = records * 3073, path.stat().st_size
    if size != expected:
        raise ValueError(f"{path}: expected {expected} bytes ({records} records of 3073), got {size}; {remedy}")
    table = np.fromfile(path, dtype=np.uint8).reshape(records, 3073)
    if table[:, 0].max() > 9:
        first = int(np.argmax(table[:, 0] > 9))
        raise ValueError(f"{path}: expected labels 0 to 9, got {table[first, 0]} in record {first}; {remedy}")
    return np.ascontiguousarray(table[:, 1:]).reshape(-1, 3, 32, 32), table[:, 0].astype(np.int64)


def synthetic(n_train=8_000, n_test=2_000, *, limit_train=None, limit_test=None, why=""):
    """Ten classes of 3x32x32 images that need no download: deterministic, and correlated like natural images.

    Each image is white noise plus its class's fixed white pattern, coloured by a 1/f amplitude spectrum and mixed over the
    three channels. So neighbouring pixels agree and the classes differ mostly in directions of little variance: a
    learner that decorrelates its input is faster, as on natural images. Mean and contrast are about CIFAR-10's.
    """
    for what, limit, n in (("limit_train", limit_train, n_train), ("limit_test", limit_test, n_test)):
        _check_limit(what, limit, n, "synthetic")
    patterns = PATTERN_STRENGTH * _white_images(range(10), layer=1)
    fy, fx = fftfreq(32)[:, None], rfftfreq(32)[None, :]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / 32)  # 1/f, (32, 17)
    amplitude = (amplitude / np.sqrt(np.sum(irfft2(amplitude, s=(32, 32)) ** 2))).astype(np.float32)
    mix = np.full((3, 3), 0.55) + 0.2 * np.eye(3)  # channels share most of their signal
    mix = (mix / np.sqrt(np.sum(mix**2, axis=1, keepdims=True))).astype(np.float32)

    def part(first, n):
        labels = np.arange(n) % 10
        images = np.empty((n, 3, 32, 32), dtype=np.uint8)
        for start in range(0, n, 1000):
            here = slice(start, min(start + 1000, n))
            white = _white_images(range(first + here.start, first + here.stop), layer=0) + patterns[labels[here]]
            coloured = irfft2(rfft2(white) * amplitude, s=(32, 32))  # variance 1, as the rows of mix have length 1
            images[here] = np.clip(np.rint(255 * (0.47 + 0.25 * np.einsum("cd,ndhw->nchw", mix, coloured))), 0, 255)
        return images, labels

    return Dataset("synthetic", "synthetic images with 1/f correlations" + why, *part(0, limit_train or n_train),
                   *part(n_train, limit_test or n_test), classes=10)


def _white_images(indices, layer):
    return noise.draw(np, "gaussian", (3, 32, 32), 1.0, seed=0, step=0, layer=layer, samples=range(1), rows=indices,
                      dtype=np.float32, stream=noise.IMAGES)[0]


PATTERN_STRENGTH = 0.15  # of the class pattern, in standard deviations of the noise, per pixel before colouring


def fetch(archive, target, *, url=None, timeout=30.0, report=None):
    """Download, verify and unpack `archive` under `target`; returns the folder.

    The download goes to a .part file, which is renamed once size and sha256 are right. Only the expected members are
    unpacked. Raises ConnectionError if it cannot be downloaded and ValueError if it is not the expected file.
    """
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    url = archive.url if url is None else url
    packed = target / archive.url.rpartition("/")[2]
    if not packed.is_file() or _sha256(packed) != archive.sha256:
        part = packed.with_name(packed.name + ".part")
        try:
            _download(url, part, archive.size, timeout, report)
            size, digest = part.stat().st_size, _sha256(part)
            if (size, digest) != (archive.size, archive.sha256):
                raise ValueError(f"{url}: expected {archive.size} bytes with sha256 {archive.sha256}, got {size} bytes with {digest}; "
                                 "nothing was kept; try again, or name a mirror with --url")
            os.replace(part, packed)
        finally:
            part.unlink(missing_ok=True)
    folder = target / archive.folder
    folder.mkdir(exist_ok=True)
    with tarfile.open(packed) as tar:
        for name in archive.members:
            try:
                member = tar.extractfile(f"{archive.folder}/{name}")
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{packed}: expected a file {archive.folder}/{name} in it")
            part = folder / f"{name}.part"
            part.write_bytes(member.read())
            os.replace(part, folder / name)
    return folder


def _download(url, part, size, timeout, report):
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            read = getattr(response, "read1", response.read)  # returns what has come, so that progress shows
            with open(part, "wb") as file:
                done = 0
                while piece := read(1 << 16):
                    try:
                        file.write(piece)
                    except OSError as error:
                        raise RuntimeError(f"cannot write {part} ({error}): is the disk full?") from error
                    done += len(piece)
                    if done > size:
                        break  # not the expected file, and perhaps an endless one
                    if report:
                        report(done, size)
    except (OSError, ValueError, HTTPException) as error:  # URLError, timeouts, a malformed URL or answer
        raise ConnectionError(f"cannot download {url} ({error}): check the network, name a mirror with --url, "
                              f"or put the file into {part.parent} by hand") from error


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else hashlib.sha256(file.read()).hexdigest()


def _fetch_command(name, data_dir=None):
    return f"python -m npref.datasets fetch {name}" + (f" --data-dir {data_dir}" if data_dir is not None else "")


def main(arguments=None):
    """The command line, `python -m npref.datasets`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m npref.datasets", description="Fetch and verify data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch", help="download, verify and unpack a data set")
    command.add_argument("name", choices=ARCHIVES)
    command.add_argument("--data-dir", type=Path, help="where to put it (default: $NPREF_DATA, else data/)")
    command.add_argument("--url", help="a mirror of the same file")
    command.add_argument("--timeout", type=float, default=30.0, help="seconds without an answer before giving up (default: 30)")
    args = parser.parse_args(arguments)
    if not 0 < args.timeout < 1e6:
        parser.error(f"--timeout must be between 0 and 1000000 seconds, got {args.timeout}")

    def report(done, size):
        if sys.stderr.isatty():
            print(f"\r{done / 1e6:.0f} of {size / 1e6:.0f} MB", end="" if done < size else "\n", file=sys.stderr, flush=True)

    try:
        folder = fetch(ARCHIVES[args.name], args.data_dir or search_path()[0], url=args.url, timeout=args.timeout, report=report)
        if args.name == "cifar10":
            load_cifar10(folder)
    except (OSError, ValueError, RuntimeError, tarfile.TarError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was kept", file=sys.stderr)
        return 130
    print(f"{args.name}: verified, in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
