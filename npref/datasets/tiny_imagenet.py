"""Tiny ImageNet (CS231n, Stanford): 200 classes of 3x64x64 images, from the JPEG files in their official layout."""

import hashlib
import os
import stat
from pathlib import Path

import h5py
import numpy as np

from .dataset import Dataset
from .download import Archive, fetch_command, part_of

TINY_IMAGENET = Archive(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    size=248_100_043,
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    folder="tiny-imagenet-200",
    members=("words.txt", "train/*/images/*.JPEG", "val/images/*.JPEG", "val/val_annotations.txt", "wnids.txt"),
)
CLASSES = 200
CACHE = "npref-uint8.h5"  # in the folder: the decoded images
CHUNK = 64  # images
ROOM = 1 << 22  # bytes that the cache may take beyond its images


def load_tiny_imagenet(folder):
    """The folder's training images, and its validation images as the test set, whose official labels nobody has.

    Classes are in the order of wnids.txt. Images go round the classes, so that the first ones are of every class. A folder with
    some of the official images loads too; Dataset.completeness tells. They are decoded once, into npref-uint8.h5 in the folder.
    """
    folder = Path(folder)
    classes = _classes(folder)
    training, y_train = _interleave(_training_files(folder, classes))
    test, y_test = _interleave(_validation_files(folder, classes))
    x_train, x_test, note = _images(folder, training, test)
    return Dataset("tiny-imagenet", str(folder) + note, x_train, y_train, x_test, y_test, classes=CLASSES, inputs="standard",
                   official=(100_000, 10_000))


def _remedy(folder):
    return f"get it again with {fetch_command('tiny-imagenet', folder.parent)}"


def _classes(folder):
    """wnid -> label."""
    path = folder / "wnids.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {_remedy(folder)}")
    names = path.read_text(encoding="utf-8-sig", errors="replace").split()
    if len(names) != CLASSES or len(set(names)) != CLASSES:
        raise ValueError(f"{path}: expected {CLASSES} different class names, got {len(set(names))} in {len(names)}; {_remedy(folder)}")
    return {name: label for label, name in enumerate(names)}


def _training_files(folder, classes):
    """A list of paths for every class."""
    top = folder / "train"
    present = _listing(folder, top)
    for name in present:
        if name not in classes:
            lacking = next((other for other in classes if other not in present), None)
            if lacking:  # either may be wrong
                raise ValueError(f"{top} does not fit {folder / 'wnids.txt'}: it has {name}, and has no {lacking}; {_remedy(folder)}")
            raise ValueError(f"{top / name}: not a class of wnids.txt; remove it, or {_remedy(folder)}")
    return [_jpegs(folder, top / name / "images") for name in classes]


def _validation_files(folder, classes):
    """A list of paths for every class, by val_annotations.txt: lines of file name, wnid and a box that is not used."""
    images, path = folder / "val" / "images", folder / "val" / "val_annotations.txt"
    present = {file.name for file in _jpegs(folder, images)}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {_remedy(folder)}")
    files, seen = [[] for _ in classes], set()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        name, wnid = (*line.split("\t"), "", "")[:2]
        if wnid not in classes:
            raise ValueError(f"{path}: line {number}: expected a file name and a class of wnids.txt, got {line[:60]!r}; {_remedy(folder)}")
        if name not in present:
            raise FileNotFoundError(f"{images / name}: missing, though line {number} of {path.name} names it; {_remedy(folder)}")
        if name in seen:
            raise ValueError(f"{path}: line {number}: {name} is annotated twice; {_remedy(folder)}")
        seen.add(name)
        files[classes[wnid]].append(images / name)
    if present - seen:
        raise ValueError(f"{images / min(present - seen)}: not annotated in {path.name}; remove it, or {_remedy(folder)}")
    return [sorted(group) for group in files]


def _jpegs(folder, place):
    names = _listing(folder, place)
    for name in names:
        if not name.endswith(".JPEG"):
            raise ValueError(f"{place / name}: expected .JPEG files only; remove it, or {_remedy(folder)}")
    if not names:
        raise FileNotFoundError(f"{place}: no .JPEG files; {_remedy(folder)}")
    return [place / name for name in names]


def _listing(folder, place):
    """The names in a folder, sorted; hidden ones are no part of the data."""
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: missing; {_remedy(folder)}")
    return sorted(name for name in os.listdir(place) if not name.startswith("."))


def _interleave(groups):
    """Paths and labels (n,): the first of every class, the second of every class, and so on."""
    order = sorted((rank, label) for label, group in enumerate(groups) for rank in range(len(group)))
    return [groups[label][rank] for rank, label in order], np.array([label for _, label in order], dtype=np.int64)


def _images(folder, training, test):
    """Both as (n, 3, 64, 64) uint8, from the cache or decoded anew; and a note if the cache was not as it should be."""
    cache, made_from, note = folder / CACHE, _digest(folder, training + test), ""
    if cache.exists():
        try:
            with h5py.File(cache, "r") as file:
                if file.attrs["made_from"] == made_from:
                    x_train, x_test = file["x_train"][:], file["x_test"][:]
                    _check_cached(x_train, len(training))
                    _check_cached(x_test, len(test))
                    return x_train, x_test, note
            note = f" (decoded anew, as the images are not those that {CACHE} was made from)"
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            note = f" (decoded anew, as {CACHE} is damaged: {' '.join(str(error).split())})"
    x_train, x_test = _decode(folder, training), _decode(folder, test)
    part = part_of(cache)
    try:
        try:
            _check_room(part, x_train.nbytes + x_test.nbytes + ROOM)
            with h5py.File(part, "w") as file:
                file.attrs["made_from"] = made_from
                for name, images in (("x_train", x_train), ("x_test", x_test)):
                    chunk = (min(CHUNK, len(images)), *images.shape[1:])
                    file.create_dataset(name, data=images, chunks=chunk, fletcher32=True)  # damage is an OSError
            with open(part, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(part, cache)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        note += f" (decoded in memory only, as {CACHE} cannot be written: {' '.join(str(error).split())})"
    return x_train, x_test, note


def _check_cached(images, n):
    if images.shape != (n, 3, 64, 64) or images.dtype != np.uint8:
        raise ValueError(f"expected ({n}, 3, 64, 64) of uint8, got {images.shape} of {images.dtype}")


def _check_room(path, size):
    """OSError where a file of that size has no room now: HDF5 itself would crash on a disk that is full."""
    with open(path, "xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def _digest(folder, paths):
    """Of the files' places, sizes and times of change, in order."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            about = path.stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: a link to a file that is missing; {_remedy(folder)}") from None
        if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for ever
            raise ValueError(f"{path}: expected a file; remove it, or {_remedy(folder)}")
        digest.update(f"{path.parent.parent.name}/{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode(folder, paths):
    """(n, 3, 64, 64) uint8; greyscale images become three equal channels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(f"Tiny ImageNet's JPEG files need Pillow ({error}): pip install -e \".[examples]\"") from error
    images = np.empty((len(paths), 3, 64, 64), dtype=np.uint8)
    for i, path in enumerate(paths):
        try:
            with Image.open(path, formats=["JPEG"]) as image:
                size, pixels = image.size, np.asarray(image.convert("RGB")) if image.size == (64, 64) else None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).replace(str(path), "it").split())
            raise ValueError(f"{path}: cannot be decoded as JPEG ({reason}); {_remedy(folder)}") from error
        if pixels is None:
            raise ValueError(f"{path}: expected 64x64 pixels, got {size[0]}x{size[1]}; {_remedy(folder)}")
        images[i] = pixels.transpose(2, 0, 1)
    return images
