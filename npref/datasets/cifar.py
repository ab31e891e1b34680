"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from their binary files."""

from pathlib import Path

import numpy as np

from .dataset import Dataset
from .download import Archive, fetch_command

CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    members=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size=168_513_733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    members=("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"),
)


def load_cifar10(folder):
    """CIFAR-10 from its binary files: records of one label byte and 3072 pixel bytes (R, G, B planes, row by row)."""
    folder = Path(folder)
    *training, test = [_read(folder / name, 10_000, "cifar10", {"labels": 10}) for name in CIFAR10.members if name.endswith(".bin")]
    x_train, y_train = (np.concatenate(part) for part in zip(*training))
    _check_counts("the training files", "cifar10", folder, y_train, 10)
    _check_counts("test_batch.bin", "cifar10", folder, test[1], 10)
    return Dataset("cifar10", str(folder), x_train, y_train, *test, classes=10, official=(50_000, 10_000))


def load_cifar100(folder):
    """CIFAR-100 with its 100 fine labels: records of a coarse and a fine label byte and 3072 pixel bytes."""
    folder, kinds = Path(folder), {"coarse labels": 20, "fine labels": 100}
    training, test = (_read(folder / name, n, "cifar100", kinds) for name, n in (("train.bin", 50_000), ("test.bin", 10_000)))
    _check_counts("train.bin", "cifar100", folder, training[1], 100)
    _check_counts("test.bin", "cifar100", folder, test[1], 100)
    return Dataset("cifar100", str(folder), *training, *test, classes=100, official=(50_000, 10_000))


def _check_counts(what, name, folder, y, classes):
    """ValueError unless each class has as many images as another, as in the official files: half a copy may be filled up with zeros."""
    counts, each = np.bincount(y, minlength=classes), len(y) // classes
    if (counts != each).any():
        raise ValueError(f"{folder}: expected {each} images of each class in {what}, got {counts.min()} to {counts.max()}; "
                         f"get it again with {fetch_command(name, folder.parent)}")


def _read(path, records, name, kinds):
    """(records, 3, 32, 32) uint8 and the last label byte of each, (records,) int64. kinds: what each label byte is, how many there are."""
    remedy = f"get it again with {fetch_command(name, path.parent.parent)}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {remedy}")
    width = len(kinds) + 3072
    expected, size = records * width, path.stat().st_size
    if size != expected:
        raise ValueError(f"{path}: expected {expected} bytes ({records} records of {width}), got {size}; {remedy}")
    table = np.fromfile(path, dtype=np.uint8).reshape(records, width)
    for column, (kind, count) in enumerate(kinds.items()):
        labels = table[:, column]
        if labels.max() >= count:
            first = int(np.argmax(labels >= count))
            raise ValueError(f"{path}: expected {kind} 0 to {count - 1}, got {labels[first]} in record {first}; {remedy}")
    images = np.ascontiguousarray(table[:, len(kinds):]).reshape(-1, 3, 32, 32)
    return images, table[:, len(kinds) - 1].astype(np.int64)
