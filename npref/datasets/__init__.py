"""Data sets: find, fetch, verify, load. Images stay uint8; training scales a batch at a time.

    python -m npref.datasets fetch cifar10 [--data-dir DIR] [--url MIRROR]
    python -m npref.datasets show cifar10 [--data-dir DIR]

    dataset        what every loader returns
    download       fetch, verify, unpack
    cifar, tiny_imagenet, sarcos    one loader each, with its official source
    standins       data sets that are made here;  robot: the arm behind one of them
"""

import os
from pathlib import Path

from .cifar import CIFAR10, CIFAR100, load_cifar10, load_cifar100
from .dataset import Dataset
from .download import Archive, fetch, fetch_command
from .sarcos import SARCOS_TEST, SARCOS_TRAIN, load_sarcos, load_sarcos_split_test, read_matrix
from .standins import PATTERN_STRENGTH, synthetic, synthetic_cifar100, synthetic_sarcos, synthetic_tiny_imagenet
from .tiny_imagenet import TINY_IMAGENET, load_tiny_imagenet

__all__ = [
    "ARCHIVES", "CIFAR10", "CIFAR100", "DATASETS", "PATTERN_STRENGTH", "SARCOS_TEST", "SARCOS_TRAIN", "TINY_IMAGENET", "Archive",
    "Dataset", "available", "default_dir", "fetch", "find", "load", "load_cifar10", "load_cifar100", "load_found",
    "load_sarcos", "load_sarcos_split_test", "load_tiny_imagenet", "read_matrix", "search_path", "synthetic",
    "synthetic_cifar100", "synthetic_sarcos", "synthetic_tiny_imagenet",
]

ARCHIVES = {  # what each consists of
    "cifar10": (CIFAR10,),
    "cifar100": (CIFAR100,),
    "tiny-imagenet": (TINY_IMAGENET,),
    "sarcos": (SARCOS_TRAIN, SARCOS_TEST),
    "sarcos-dedup": (SARCOS_TRAIN, SARCOS_TEST),
    "sarcos-split-test": (SARCOS_TEST,),
}
SYNTHETIC = {"synthetic": synthetic, "synthetic-cifar100": synthetic_cifar100, "synthetic-tiny-imagenet": synthetic_tiny_imagenet,
             "synthetic-sarcos": synthetic_sarcos}
DATASETS = ("auto", *ARCHIVES, *SYNTHETIC)
TITLES = {"cifar10": ("CIFAR-10", "synthetic"), "cifar100": ("CIFAR-100", "synthetic-cifar100"),
          "tiny-imagenet": ("Tiny ImageNet", "synthetic-tiny-imagenet"), "sarcos": ("SARCOS", "synthetic-sarcos"),
          "sarcos-dedup": ("SARCOS", "synthetic-sarcos"), "sarcos-split-test": ("SARCOS", "synthetic-sarcos")}  # and their stand-ins


def load(name="auto", data_dir=None, limit_train=None, limit_test=None):
    """The data set called `name`, or its first samples; "auto" is CIFAR-10 where it is found, else synthetic.

    data_dir: where to look, and nowhere else; by default $NPREF_DATA, then data/. The source of the result says what was found.
    Raises ValueError or FileNotFoundError, with the file and the remedy, for anything missing or damaged: a damaged CIFAR-10
    never turns into the synthetic set. ValueError, too, for a data_dir with data that are made here.
    """
    _check_name(name)
    search_path(data_dir)  # which refuses an empty name
    limits = dict(limit_train=limit_train, limit_test=limit_test)
    if name in SYNTHETIC:
        if data_dir is not None:
            raise ValueError(f"{name} is made here, and a folder of data has no effect on it: leave {data_dir} out")
        return SYNTHETIC[name](**limits)
    wanted = "cifar10" if name == "auto" else name
    places = [(archive, find(archive.place, data_dir)) for archive in ARCHIVES[wanted]]
    if all(place is not None for _, place in places):
        return load_found(wanted, *[place for _, place in places]).limited(limit_train, limit_test)
    looked = ", ".join(str(place) for place in search_path(data_dir))
    command = fetch_command(wanted, data_dir)
    if name == "auto":
        return synthetic(**limits, why=f" (no {CIFAR10.folder} in {looked}; to get CIFAR-10: {command})")
    missing = next(archive for archive, place in places if place is None)
    title, standin = TITLES[name]
    also = ", or use sarcos-split-test, which needs no training file" if missing is SARCOS_TRAIN and places[1][1] else ""
    raise FileNotFoundError(f"no {title}: expected the {'folder' if missing.folder else 'file'} {missing.place} in {looked}; "
                            f"get it with {command}, or use the data set {standin}, which is made here{also}")


def load_found(name, *places):
    """A data set that is not made here, from its folder, or its files in the order of ARCHIVES."""
    if name == "cifar10":
        return load_cifar10(*places)
    if name == "cifar100":
        return load_cifar100(*places)
    if name == "tiny-imagenet":
        return load_tiny_imagenet(*places)
    if name == "sarcos-split-test":
        return load_sarcos_split_test(*places)
    return load_sarcos(*places, dedup=name == "sarcos-dedup")


def available(name, data_dir=None):
    """Whether `load` would find the data set's files, which are not verified; True for "auto" and what is made here."""
    _check_name(name)
    return name not in ARCHIVES or all(find(archive.place, data_dir) is not None for archive in ARCHIVES[name])


def _check_name(name):
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}")


def search_path(data_dir=None):
    """The folders that are searched, in order: data_dir alone if given, else $NPREF_DATA and data/."""
    if data_dir == "":
        raise ValueError("data_dir must be a folder, got an empty name; the current one is .")
    if data_dir is not None:
        return [Path(os.path.expanduser(data_dir))]
    given = os.path.expanduser(os.environ.get("NPREF_DATA", ""))  # a shell leaves ~ in quotes as it is
    return [*([Path(given)] if given else []), default_dir()]


def default_dir():
    """data/ of the checkout that npref runs from, or of the current folder."""
    root = Path(__file__).resolve().parents[2]
    return root / "data" if (root / "setup.py").exists() else Path("data")


def find(name, data_dir=None):
    """The first place on the search path that holds the folder or file `name`, or a link to one, or is that folder; or None."""
    for place in search_path(data_dir):
        if (place / name).exists():
            return place / name
        if place.is_dir() and name in (place.name, place.resolve().name):
            return place
    return None
