import hashlib
import os
import socket
import ssl
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from npref import datasets
from npref.batches import resolved
from npref.datasets import CIFAR10, CIFAR100, Archive, Dataset
from npref.datasets import __main__ as command

FILES = CIFAR10.members[:6]
SYNTHETIC = ([78, 81, 21, 164, 116, 147, 163, 165], [39, 38, 53, 32, 28, 83, 101, 114])  # some pixels of it


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """A folder in CIFAR-10's binary format, with made-up pixels."""
    folder = tmp_path_factory.mktemp("data") / CIFAR10.folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    labels = [*np.split(rng.permutation(50_000) % 10, 5), rng.permutation(10_000) % 10]  # as many of each class
    for name, y in zip(FILES, labels):
        records = rng.integers(0, 256, size=(10_000, 3073), dtype=np.uint8)
        records[:, 0] = y
        (folder / name).write_bytes(records.tobytes())
    return folder


@pytest.fixture
def damaged(binary, tmp_path):
    """A copy of it to spoil: links to all files."""
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    for name in FILES:
        (folder / name).symlink_to(binary / name)

    def replace(name, content):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return tmp_path, replace


def test_layout(binary):
    data = datasets.load("cifar10", binary.parent)
    raw = (binary / "data_batch_2.bin").read_bytes()
    record = raw[3073 * 7 : 3073 * 8]  # record 7 of the second batch: image 10007
    assert data.y_train[10_007] == record[0]
    assert data.x_train[10_007, 0].tobytes() == record[1:1025]  # red, row by row
    assert data.x_train[10_007, 2, 1, 0] == record[1 + 2048 + 32]  # blue, second row, first column
    assert data.x_train.shape == (50_000, 3, 32, 32) and data.x_test.shape == (10_000, 3, 32, 32)
    assert data.x_train.dtype == np.uint8 and data.y_train.dtype == np.int64 and data.classes == 10
    assert data.x_test[0].tobytes() == (binary / "test_batch.bin").read_bytes()[1:3073]
    assert np.array_equal(datasets.load("cifar10", binary, 100, 10).x_train, data.x_train[:100])  # the folder itself will do


def test_names_of_folders(binary, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(binary.parents[1]))
    monkeypatch.setenv("NPREF_DATA", f"~/{binary.parent.name}")
    assert datasets.search_path()[0] == binary.parent and datasets.available("cifar10")
    assert datasets.search_path(f"~/{binary.parent.name}") == [binary.parent]
    for name in "cifar10", "synthetic":
        with pytest.raises(ValueError, match="data_dir must be a folder, got an empty name; the current one is ."):
            datasets.load(name, "")


def test_where_it_looks(binary, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "default_dir", lambda: tmp_path / "data")
    monkeypatch.delenv("NPREF_DATA", raising=False)
    data = datasets.load("auto", limit_train=10, limit_test=5)
    assert data.name == "synthetic" and str(tmp_path / "data") in data.source and "npref.datasets fetch cifar10" in data.source
    with pytest.raises(FileNotFoundError, match="no CIFAR-10: expected the folder cifar-10-batches-bin in .*fetch cifar10"):
        datasets.load("cifar10")
    monkeypatch.setenv("NPREF_DATA", str(binary.parent))
    assert datasets.load("auto").source == str(binary)
    assert datasets.load("synthetic", limit_train=10, limit_test=5).name == "synthetic"
    with pytest.raises(FileNotFoundError, match=f"in {tmp_path}; get it with .* --data-dir {tmp_path}"):  # there and nowhere else
        datasets.load("cifar10", tmp_path)
    assert f"no cifar-10-batches-bin in {tmp_path};" in datasets.load("auto", tmp_path, 10, 5).source
    with pytest.raises(ValueError, match="unknown data set 'mnist': expected one of auto"):
        datasets.load("mnist")
    monkeypatch.setenv("NPREF_DATA", str(tmp_path / "none"))
    assert datasets.search_path() == [tmp_path / "none", tmp_path / "data"]  # what is not in the first may be in the second
    assert datasets.search_path("here") == [Path("here")]
    monkeypatch.chdir(binary)
    assert datasets.find(binary.name, ".") == Path(".")  # the folder itself, whatever it is called here
    for place, target in (("a", binary.name), ("b", "elsewhere")):  # a link, to a folder of that name or another
        (tmp_path / place / "data").mkdir(parents=True)
        there = tmp_path / place / target
        there.symlink_to(binary)
        (tmp_path / place / "data" / binary.name).symlink_to(there)
        assert datasets.find(binary.name, tmp_path / place / "data") == tmp_path / place / "data" / binary.name
    assert datasets.find(binary.name, tmp_path / "b/elsewhere") == tmp_path / "b/elsewhere"
    moved = (tmp_path / "moved").resolve()
    moved.mkdir()
    (tmp_path / binary.name).symlink_to(moved)
    assert datasets.find(binary.name, tmp_path) == datasets.find(binary.name, tmp_path / binary.name) == tmp_path / binary.name
    assert datasets.find(binary.name, moved) is None


def test_the_default_folder_is_the_checkouts_or_here(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "npref/datasets/__init__.py"))
    assert datasets.default_dir() == Path("data")  # an installed npref does not look beside other packages
    (tmp_path / "setup.py").touch()
    assert datasets.default_dir() == tmp_path / "data"


@pytest.mark.parametrize("name, spoil, error, words", [
    ("data_batch_3.bin", lambda raw: None, FileNotFoundError, "data_batch_3.bin: missing; get it again"),
    ("data_batch_5.bin", lambda raw: raw[:-1], ValueError, "data_batch_5.bin: expected 30730000 bytes .* got 30729999"),
    ("test_batch.bin", lambda raw: b"<html>404</html>", ValueError, "test_batch.bin: expected 30730000 bytes .* got 16"),
    ("test_batch.bin", lambda raw: raw[:3073] + b"\x0a" + raw[3074:], ValueError, "expected labels 0 to 9, got 10 in record 1"),
    ("test_batch.bin", lambda raw: bytes(len(raw)), ValueError, "1000 images of each class in test_batch.bin, got 0 to 10000"),
    ("data_batch_3.bin", lambda raw: raw[: len(raw) // 2] + bytes(len(raw) // 2), ValueError,
     r"expected 5000 images of each class in the training files, got \d+ to \d+"),
])
@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_damage_is_named_and_never_hidden(binary, damaged, monkeypatch, name, spoil, error, words, dataset):
    root, replace = damaged
    replace(name, spoil((binary / name).read_bytes()))
    monkeypatch.setenv("NPREF_DATA", str(root))
    with pytest.raises(error, match=words) as caught:
        datasets.load(dataset)
    assert str(caught.value).endswith(f"; get it again with python -m npref.datasets fetch cifar10 --data-dir {root}")


@pytest.fixture(scope="module")
def binary100(tmp_path_factory):
    """A folder in CIFAR-100's binary format, with made-up pixels: fine label i % 100, coarse label that over 5."""
    folder = tmp_path_factory.mktemp("data100") / CIFAR100.folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, n in (("train.bin", 50_000), ("test.bin", 10_000)):
        records = np.zeros((n, 3074), dtype=np.uint8)
        records[:, 1] = np.arange(n) % 100
        records[:, 0] = records[:, 1] // 5
        records[:1000, 2:] = rng.integers(0, 256, size=(1000, 3072), dtype=np.uint8)
        (folder / name).write_bytes(records.tobytes())
    return folder


def test_cifar100(binary100):
    data = datasets.load("cifar100", binary100.parent)
    record = (binary100 / "train.bin").read_bytes()[3074 * 207 : 3074 * 208]
    assert data.y_train[207] == record[1] == 7 and record[0] == 1  # the fine label
    assert data.x_train[207, 0].tobytes() == record[2:1026] and data.x_train[207, 2, 1, 0] == record[2 + 2048 + 32]
    assert data.x_train.shape == (50_000, 3, 32, 32) and data.x_test.shape == (10_000, 3, 32, 32) and data.classes == 100
    assert data.y_train.max() == 99 and data.y_test[123] == 23 and (data.inputs, data.name) == ("unit", "cifar100")
    assert data.completeness == "50000 of 50000 + 10000 of 10000"
    assert data.limited(7, 5).completeness == "7 of 50000 + 5 of 10000"


@pytest.mark.parametrize("spoil, error, words", [
    (lambda raw: None, FileNotFoundError, "test.bin: missing; get it again"),
    (lambda raw: raw[:-1], ValueError, "test.bin: expected 30740000 bytes .10000 records of 3074., got 30739999"),
    (lambda raw: b"<html>404</html>", ValueError, "test.bin: expected 30740000 bytes .* got 16"),
    (lambda raw: raw[:6149] + b"\x64" + raw[6150:], ValueError, "test.bin: expected fine labels 0 to 99, got 100 in record 2"),
    (lambda raw: raw[:6148] + b"\x14" + raw[6149:], ValueError, "test.bin: expected coarse labels 0 to 19, got 20 in record 2"),
    (lambda raw: raw[:1] + b"\x01" + raw[2:], ValueError, "expected 100 images of each class in test.bin, got 99 to 101"),
])
def test_damage_of_cifar100(binary100, tmp_path, spoil, error, words):
    folder = tmp_path / CIFAR100.folder
    folder.mkdir()
    (folder / "train.bin").symlink_to(binary100 / "train.bin")
    if (content := spoil((binary100 / "test.bin").read_bytes())) is not None:
        (folder / "test.bin").write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        datasets.load("cifar100", tmp_path)
    assert str(caught.value).endswith(f"; get it again with python -m npref.datasets fetch cifar100 --data-dir {tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_training_file_of_cifar100_with_too_many_of_a_class(binary100, tmp_path):
    folder = tmp_path / CIFAR100.folder
    folder.mkdir()
    (folder / "test.bin").symlink_to(binary100 / "test.bin")
    raw = (binary100 / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(raw[:1] + b"\x01" + raw[2:])
    with pytest.raises(ValueError, match="expected 500 images of each class in train.bin, got 499 to 501"):
        datasets.load("cifar100", tmp_path)


def test_available(binary, tmp_path, monkeypatch):
    assert all(datasets.available(name, tmp_path) == (name == "auto" or "synthetic" in name) for name in datasets.DATASETS)
    assert datasets.available("cifar10", binary.parent) and not datasets.available("cifar100", binary.parent)
    (tmp_path / "sarcos_inv_test.mat").write_text("not looked into")
    assert datasets.available("sarcos-split-test", tmp_path) and not datasets.available("sarcos", tmp_path)
    (tmp_path / "sarcos_inv.mat").write_text("not looked into")
    assert datasets.available("sarcos", tmp_path) and datasets.available("sarcos-dedup", tmp_path)
    monkeypatch.setattr(datasets, "default_dir", lambda: tmp_path)
    monkeypatch.delenv("NPREF_DATA", raising=False)
    assert datasets.available("sarcos") and not datasets.available("tiny-imagenet")
    with pytest.raises(ValueError, match="unknown data set 'mnist': expected one of auto"):
        datasets.available("mnist")


@pytest.mark.parametrize("name, words", [
    ("cifar100", "no CIFAR-100: expected the folder cifar-100-binary in .* or use the data set synthetic-cifar100, which is made here"),
    ("tiny-imagenet", "no Tiny ImageNet: expected the folder tiny-imagenet-200 in .* or use the data set synthetic-tiny-imagenet, which"),
    ("sarcos", "no SARCOS: expected the file sarcos_inv.mat in .* or use the data set synthetic-sarcos, which is made here$"),
    ("sarcos-dedup", "no SARCOS: expected the file sarcos_inv.mat in .*fetch sarcos-dedup .*, which is made here$"),
    ("sarcos-split-test", "no SARCOS: expected the file sarcos_inv_test.mat in .*fetch sarcos-split-test"),
])
def test_what_is_not_there(tmp_path, name, words):
    with pytest.raises(FileNotFoundError, match=words) as caught:
        datasets.load(name, tmp_path)
    assert f"python -m npref.datasets fetch {name} --data-dir {tmp_path}" in str(caught.value)


def test_limits_and_fingerprint(binary):
    data = datasets.load("cifar10", binary.parent)
    small = data.limited(10, 20)
    assert len(small.x_train) == len(small.y_train) == 10 and len(small.x_test) == len(small.y_test) == 20
    assert small.fingerprint() == data.limited(10, 20).fingerprint() != data.limited(11, 20).fingerprint()
    changed = Dataset(*[getattr(small, f) for f in ("name", "source", "x_train")], (small.y_train + 1) % 10, small.x_test, small.y_test, 10)
    assert changed.fingerprint() != small.fingerprint()
    for other in (replace(small, x_train=small.x_train.reshape(10, 3, 16, 64), x_test=small.x_test.reshape(20, 3, 16, 64)),
                  replace(small, y_test=small.y_test.view(np.uint64))):  # of the same bytes
        assert other.fingerprint() != small.fingerprint()
    scattered = np.ascontiguousarray(small.x_train.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)
    assert not scattered.flags.c_contiguous and replace(small, x_train=scattered).fingerprint() == small.fingerprint()
    for name in ("x_train", "y_train", "x_test", "y_test"):
        last = getattr(small, name).copy()
        last.flat[-1] ^= 1
        assert replace(small, **{name: last}).fingerprint() != small.fingerprint()
    for name, n in (("x_train", 10), ("y_train", 10), ("x_test", 20), ("y_test", 20)):  # the first
        assert np.array_equal(getattr(small, name), getattr(data, name)[:n])
    for limits in ((0, None), (50_001, None), (None, 10_001), (None, -1)):
        with pytest.raises(ValueError, match="must be between 1 and"):
            data.limited(*limits)
    with pytest.raises(ValueError, match="limit_train must be between 1 and 8000, the size of synthetic"):
        datasets.load("synthetic", limit_train=8_001)


def test_real_cifar10(cifar10_dir):
    data = datasets.load_cifar10(cifar10_dir)
    assert np.bincount(data.y_train).tolist() == [5000] * 10 and np.bincount(data.y_test).tolist() == [1000] * 10
    pixels = data.x_train / np.float32(255)
    assert np.allclose(pixels.mean(axis=(0, 2, 3)), [0.4914, 0.4822, 0.4465], atol=1e-3)


def test_synthetic():
    data = datasets.synthetic(limit_train=1200, limit_test=30)
    assert data.x_train.shape == (1200, 3, 32, 32) and data.x_test.shape == (30, 3, 32, 32) and data.x_train.dtype == np.uint8
    assert np.bincount(data.y_train).tolist() == [120] * 10
    again = datasets.synthetic(limit_train=40, limit_test=7)  # a part is the beginning of the whole, bit for bit
    assert np.array_equal(again.x_train, data.x_train[:40]) and np.array_equal(again.x_test, data.x_test[:7])
    x = data.x_train / 255.0
    assert 0.45 < x.mean() < 0.49 and 0.22 < x.std() < 0.26

    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    near, far = correlation(x[..., :-1], x[..., 1:]), correlation(x[..., :16], x[..., 16:])
    assert near > 0.6 > 0.1 > abs(far) and correlation(x[:, 0], x[:, 1]) > 0.8
    spectrum = np.mean(np.abs(np.fft.rfft2(x[:, 0] - x[:, 0].mean())) ** 2, axis=0)
    slope = np.polyfit(np.log(np.arange(1, 12)), np.log(spectrum[0, 1:12]), 1)[0]
    assert -2.2 < slope < -1.8  # amplitude 1/f is power 1/f²


def test_synthetic_is_what_it_was():
    """Pixels noted when it was made first; a rounding may fall otherwise elsewhere."""
    data = datasets.synthetic(limit_train=100, limit_test=10)
    assert np.abs(data.x_train[0, 0, 0, :8] - np.array(SYNTHETIC[0])).max() <= 1
    assert np.abs(data.x_test[9, 2, 31, -8:] - np.array(SYNTHETIC[1])).max() <= 1


@pytest.mark.parametrize("name, classes, side, n, inputs", [("synthetic-cifar100", 100, 32, (8000, 2000), "unit"),
                                                            ("synthetic-tiny-imagenet", 200, 64, (4000, 1000), "standard")])
def test_other_synthetic_images(name, classes, side, n, inputs):
    data = datasets.load(name, limit_train=2 * classes, limit_test=30)
    assert data.x_train.shape == (2 * classes, 3, side, side) and data.x_train.dtype == np.uint8
    assert np.bincount(data.y_train).tolist() == [2] * classes and (data.name, data.classes, data.inputs) == (name, classes, inputs)
    assert data.official is None and data.completeness == f"{2 * classes} + 30"
    again = datasets.load(name, limit_train=10, limit_test=7)  # a part is the beginning of the whole, bit for bit
    assert np.array_equal(again.x_train, data.x_train[:10]) and np.array_equal(again.x_test, data.x_test[:7])
    x = data.x_train / 255.0
    assert 0.43 < x.mean() < 0.51 and 0.2 < x.std() < 0.28
    spectrum = np.mean(np.abs(np.fft.rfft2(x[:, 0] - x[:, 0].mean())) ** 2, axis=0)
    assert -2.3 < np.polyfit(np.log(np.arange(1, 12)), np.log(spectrum[0, 1:12]), 1)[0] < -1.7
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    white = np.fft.irfft2(np.fft.rfft2(x.sum(axis=1) - x.sum(axis=1).mean()) * np.hypot(fy, fx), s=(side, side)).reshape(2, classes, -1)
    white -= white.mean(axis=(0, 1))
    same = np.sum(white[0] * white[1], axis=1)  # of one class
    other = np.sum(white[0] * np.roll(white[1], 1, axis=0), axis=1)
    assert same.mean() > other.mean() + 3 * np.hypot(same.std(), other.std()) / np.sqrt(classes)
    with pytest.raises(ValueError, match=f"limit_test must be between 1 and {n[1]}, the size of {name}, got {n[1] + 1}"):
        datasets.load(name, limit_test=n[1] + 1)


def test_the_sets_share_no_noise():
    first = [datasets.load(name, limit_train=1, limit_test=1).x_train[0] for name in ("synthetic", "synthetic-cifar100")]
    assert abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.9


@pytest.mark.parametrize("labels", [np.array([0, 10]), np.array([-1, 0]), np.array([0]), np.array([[0], [1]]), np.array([0.0, 1.0])])
def test_labels_that_cannot_be(labels):
    images = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match="made here: expected one label from 0 to 9 for each of 2 images"):
        Dataset("made here", "", images, labels, images, np.array([0, 1]), 10)


def test_images_that_cannot_be():
    images, labels = np.zeros((2, 3, 4, 4), dtype=np.uint8), np.array([0, 1])
    data = Dataset("made here", "", images, labels, images, labels, 10)
    assert repr(data) == "Dataset(name='made here', source='', classes=10, inputs='unit', official=None)"
    for changes, words in (
        (dict(x_test=images.astype("f4")), r"one shape and dtype, got \(3, 4, 4\) of uint8 for training and \(3, 4, 4\) of float32 "),
        (dict(x_test=images[:, :1]), r"one shape and dtype, got \(3, 4, 4\) of uint8 for training and \(1, 4, 4\) of uint8 for test"),
        (dict.fromkeys(("x_train", "x_test"), images.astype("u2")), "expected uint8 pixels or floating-point numbers, got uint16"),
        (dict.fromkeys(("x_train", "x_test"), images.astype(complex)), "floating-point numbers, got complex128"),
        (dict.fromkeys(("x_train", "x_test"), images[:, 0]),
         r"expected images \(n, C, H, W\) or features \(n, D\), got \(2, 4, 4\); images of one channel are x\[:, None\]$"),
        (dict.fromkeys(("x_train", "x_test"), images[:, 0, 0, 0]), r"expected images .*, got \(2,\)$"),
        (dict(y_train=np.array([0.5, 1])), r"one label from 0 to 9 .*; real targets are \(n, classes\), y\[:, None\] where there is one"),
        (dict(x_train=np.where(np.arange(96).reshape(images.shape) == 50, np.nan, images)), r"finite images, got nan at \(1, 0, 0, 2\)"),
    ):
        with pytest.raises(ValueError, match="made here: .*" + words):
            replace(data, **changes)
    with pytest.raises(TypeError, match="made here: y_test must be a NumPy array, got list"):
        replace(data, y_test=[0, 1])
    with pytest.raises(TypeError, match="plain array, got numpy.MaskedArray"):
        replace(data, x_train=np.ma.masked_array(images, images == 0))


def test_inputs_left_out_are_what_fits_them():
    x, y = np.ones((4, 3, 2, 2)), np.zeros(4, dtype=int)
    for dtype, inputs in (("uint8", "unit"), ("float32", "raw")):
        data = Dataset("mine", "here", x.astype(dtype), y, x.astype(dtype), y, 2)
        assert (data.inputs, data.limited(2).inputs) == (inputs, inputs) and resolved(data, "auto") == inputs


def test_regression():
    x, t = np.arange(8.0).reshape(4, 2), np.arange(12.0).reshape(4, 3)
    data = Dataset("arm", "made here", x, t, x[:2], t[:2], 3, inputs="raw", official=(10, 2))
    assert data.regression and data.completeness == "4 of 10 + 2 of 2"
    small = data.limited(3, 1)
    assert (small.inputs, small.official, small.completeness) == ("raw", (10, 2), "3 of 10 + 1 of 2")
    assert small.fingerprint() == data.limited(3, 1).fingerprint() != data.fingerprint()
    nan = np.where(np.arange(12).reshape(4, 3) == 7, np.nan, t)
    for changes, words in (
        (dict(y_train=t[:3]), r"expected float features \(n, D\) and float targets \(n, 3\), got \(4, 2\) of float64 and \(3, 3\)"),
        (dict(classes=4), r"float targets \(n, 4\)"),
        (dict(y_test=np.array([0, 1])), r"float targets \(n, 3\)"),
        (dict(x_train=x.astype(int)), r"got \(4, 2\) of int64"),
        (dict(x_train=x[:, :, None]), r"got \(4, 2, 1\)"),
        (dict(x_train=x[:0], y_train=t[:0]), r"got \(0, 2\)"),
        (dict(y_train=nan), r"expected finite targets, got nan at \(2, 1\), counted from 0"),
        (dict(x_test=np.full((2, 2), np.inf)), r"expected finite features, got inf at \(0, 0\)"),
        (dict(inputs="none"), "inputs must be one of unit, standard, raw, got 'none'"),
    ):
        with pytest.raises(ValueError, match="arm: .*" + words):
            replace(data, **changes)


def test_numbers_in_another_byte_order():
    x, t = np.arange(8.0).reshape(4, 2), np.arange(12.0).reshape(4, 3)
    data = Dataset("arm", "made here", x, t, x, t, 3)
    for name in "x_train", "y_train", "x_test", "y_test":
        with pytest.raises(TypeError, match=f"arm: {name} must be in this machine's byte order, got >f8: convert it with astype"):
            replace(data, **{name: getattr(data, name).astype(">f8")})


def test_a_command_in_a_message_can_be_pasted(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"fetch cifar10 --data-dir '{tmp_path / 'my data'}'"):
        datasets.load("cifar10", tmp_path / "my data")


def test_import_is_light():
    code = "import sys, npref.train; print([m for m in ('PIL', 'scipy', 'cupy', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def archive(tmp_path):
    """A small tar.gz in the official layout, with a member that nobody asked for and one that points outside."""
    folder = tmp_path / "made"
    (folder / "box").mkdir(parents=True)
    for name in ("a.bin", "b.bin", "extra.txt"):
        (folder / "box" / name).write_text(name * 3)
    packed = tmp_path / "box.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder / "box", "box")
        tar.add(folder / "box" / "extra.txt", "../outside.txt")
    raw = packed.read_bytes()
    return packed, Archive("https://example.org/box.tar.gz", len(raw), hashlib.sha256(raw).hexdigest(), "box", ("a.bin", "b.bin"))


def test_fetch(archive, tmp_path):
    packed, spec = archive
    seen = []
    folder = datasets.fetch(spec, tmp_path / "data", url=packed.as_uri(), report=lambda done, size: seen.append((done, size)))
    assert sorted(p.name for p in folder.iterdir()) == ["a.bin", "b.bin"] and (folder / "b.bin").read_text() == "b.bin" * 3
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["box", "box.tar.gz"]
    assert seen[-1] == (spec.size, spec.size) and not (tmp_path / "outside.txt").exists()
    packed.unlink()
    (folder / "a.bin").unlink()
    datasets.fetch(spec, tmp_path / "data", url="file:///nowhere")  # the verified download is there: no network needed
    assert (folder / "a.bin").exists()


def test_two_fetches_at_once(archive, tmp_path):
    """Though process numbers be the same, as in two containers."""
    packed, spec = archive
    fetched = []

    def in_between(done, size):
        if not fetched:
            fetched.append(datasets.fetch(spec, tmp_path / "data", url=packed.as_uri()))

    assert datasets.fetch(spec, tmp_path / "data", url=packed.as_uri(), report=in_between) == fetched[0]
    assert sorted(p.name for p in (tmp_path / "data").rglob("*")) == ["a.bin", "b.bin", "box", "box.tar.gz"]


def test_what_a_killed_fetch_has_left_is_removed(archive, tmp_path):
    packed, spec = archive
    (tmp_path / "data").mkdir()
    kept = ["bag.tar.gz.1.part", "box.tar.gz.2.part", "box.tar.gz.mine.part"]  # of another file, still being written, a user's
    for name in ["box.tar.gz.1.part", f"box.tar.gz.{'0a' * 16}.part", *kept]:
        (tmp_path / "data" / name).write_text("half")
        os.utime(tmp_path / "data" / name, (time.time() - (3000 if ".2." in name else 4000),) * 2)
    datasets.fetch(spec, tmp_path / "data", url=packed.as_uri())
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == sorted([*kept, "box", "box.tar.gz"])


def test_what_is_left_and_cannot_be_removed_does_not_stop_a_fetch(archive, tmp_path):
    packed, spec = archive
    left = tmp_path / "data" / "box.tar.gz.1.part"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    assert datasets.fetch(spec, tmp_path / "data", url=packed.as_uri()).is_dir() and left.is_dir()


def test_what_cannot_be_unpacked_leaves_nothing(archive, tmp_path, monkeypatch):
    packed, spec = archive
    replace_file = os.replace

    def full(old, new):
        if new.suffix == ".bin":
            raise OSError("full")
        replace_file(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="full"):
        datasets.fetch(spec, tmp_path / "data", url=packed.as_uri())
    assert sorted(p.name for p in (tmp_path / "data").rglob("*")) == ["box", "box.tar.gz"]


def test_fetch_that_goes_wrong(archive, tmp_path):
    packed, spec = archive
    target = tmp_path / "data"
    with pytest.raises(ConnectionError, match="cannot download file:///nowhere.* --url"):
        datasets.fetch(spec, target, url="file:///nowhere")
    for url in ("nonsense", "http://local host/x"):
        with pytest.raises(ConnectionError, match=f"cannot download {url}"):
            datasets.fetch(spec, target, url=url)
    page = tmp_path / "page.html"
    page.write_text("<html>moved</html>")
    with pytest.raises(ValueError, match=f"expected {spec.size} bytes with sha256 {spec.sha256}, got 18 bytes"):
        datasets.fetch(spec, target, url=page.as_uri())
    page.write_bytes(b"x" * (3 << 20))
    with pytest.raises(ValueError, match="nothing was kept"):
        datasets.fetch(spec, target, url=page.as_uri())
    assert list(target.iterdir()) == []
    with pytest.raises(ValueError, match="sarcos_inv.mat has no published checksum: pass check"):
        datasets.fetch(datasets.SARCOS_TRAIN, target, url=page.as_uri())
    lacking = Archive(spec.url, spec.size, spec.sha256, "box", ("a.bin", "missing.bin"))
    with pytest.raises(ValueError, match="expected a file box/missing.bin in it"):
        datasets.fetch(lacking, target, url=packed.as_uri())


def test_a_folder_in_a_downloads_place(archive, tmp_path, capsys, monkeypatch):
    packed, spec = archive
    (tmp_path / "data" / packed.name).mkdir(parents=True)
    monkeypatch.setattr(datasets, "ARCHIVES", {"cifar10": (spec,)})
    assert command.main(["fetch", "cifar10", "--data-dir", str(tmp_path / "data"), "--url", "file:///nowhere"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'data' / packed.name}: it is a folder where a file is needed: move it, or name another\n")


def test_a_full_disk_is_not_taken_for_the_network(tmp_path):
    """As by a limit on the size of files, which writes run into as they do into a full disk."""
    packed = tmp_path / "large.bin"
    packed.write_bytes(bytes(1 << 18))
    code = ("import resource, signal, sys\n"
            "from npref.datasets import Archive, fetch\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
            "try:\n"
            "    fetch(Archive('https://example.org/large.bin', 1 << 18, 'f' * 64), sys.argv[1], url=sys.argv[2])\n"
            "except RuntimeError as error:\n"
            "    print(error)\n")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "d"), packed.as_uri()], capture_output=True, text=True)
    assert run.stdout.startswith(f"cannot write {tmp_path / 'd' / 'large.bin.'}") and "is the disk full?" in run.stdout, run
    assert run.stderr == "" and list((tmp_path / "d").iterdir()) == []


def test_an_endless_answer_is_not_read_to_its_end(archive, tmp_path, monkeypatch):
    """Nor is one that is a little too long or too short taken for the file."""
    _, spec = archive
    read = []

    class Answer:
        headers = {}

        def read(self, n):
            read.append(n)
            return b"x" * n if len(read) < 100 else b""

        __enter__, __exit__ = (lambda self: self), (lambda self, *error: None)

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer())
    with pytest.raises(ValueError, match="nothing was kept"):
        datasets.fetch(spec, tmp_path / "data", url="http://endless")
    assert len(read) == 1 + spec.size // read[0] and list((tmp_path / "data").iterdir()) == []


def test_a_server_that_falls_silent(archive, tmp_path, monkeypatch, capsys):
    _, spec = archive
    monkeypatch.setattr(datasets, "ARCHIVES", {"cifar10": (spec,)})
    with socket.create_server(("127.0.0.1", 0)) as server:  # it is connected to, and says nothing
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        assert command.main(["fetch", "cifar10", "--data-dir", str(tmp_path / "d"), "--url", url, "--timeout", "0.2"]) == 2
    assert f"error: cannot download {url} (timed out): check the network" in capsys.readouterr().err


def test_a_certificate_that_cannot_be_verified(archive, tmp_path, monkeypatch):
    def refused(url, timeout):
        raise URLError(ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"))

    monkeypatch.setattr("urllib.request.urlopen", refused)
    with pytest.raises(ConnectionError, match=r"VERIFY_FAILED.*: let Python find your system's certificates .*, name a mirror with --url"):
        datasets.fetch(archive[1], tmp_path / "data", url="https://mirror/x")


@pytest.mark.parametrize("error, code, words", [
    (RuntimeError("cannot write x"), 2, "error: cannot write x\n"), (tarfile.ReadError("no tar"), 2, "error: no tar\n"),
    (MemoryError("1 GiB"), 2, "error: out of memory (1 GiB): cifar10 is held in memory as a whole\n"),
])
def test_what_goes_wrong_is_one_line(monkeypatch, capsys, error, code, words):
    def fails(*arguments, **more):
        raise error

    monkeypatch.setattr(datasets, "load", fails)
    assert command.main(["show", "cifar10"]) == code and capsys.readouterr().err == words


def test_a_line_of_progress_ends_before_what_follows(archive, tmp_path, monkeypatch, capsys):
    packed, spec = archive
    monkeypatch.setattr(datasets, "ARCHIVES", {"cifar10": (replace(spec, sha256="f" * 64),)})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert command.main(["fetch", "cifar10", "--data-dir", str(tmp_path / "d"), "--url", packed.as_uri()]) == 2
    first, second, nothing = capsys.readouterr().err.split("\n")
    assert first == "\r0 of 0 MB" and second.startswith("error: ") and nothing == ""


def test_fetch_command(archive, tmp_path, monkeypatch, capsys):
    packed, spec = archive
    assert command.main(["fetch", "cifar10", "--data-dir", str(tmp_path / "d"), "--url", packed.as_uri()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "expected 170052171 bytes" in err
    assert "with sha256 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd" in err
    monkeypatch.setattr(datasets, "ARCHIVES", {"cifar10": (spec,)})
    monkeypatch.setattr(datasets, "load_cifar10", lambda folder: None)
    monkeypatch.setenv("NPREF_DATA", str(tmp_path / "env"))
    assert command.main(["fetch", "cifar10", "--url", packed.as_uri()]) == 0
    assert capsys.readouterr().out == f"cifar10: verified, in {tmp_path / 'env' / 'box'}\n"
    for arguments in (["fetch", "mnist"], ["fetch", "cifar10", "--timeout", "inf"], ["fetch", "cifar10", "--timeout", "0"]):
        with pytest.raises(SystemExit) as caught:
            command.main(arguments)
        assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert command.main(["show", "synthetic", "--data-dir", "x"]) == 2
    assert capsys.readouterr().err == "error: synthetic is made here, and a folder of data has no effect on it: leave x out\n"


def test_what_was_fetched_is_loaded(monkeypatch, tmp_path, capsys):
    """Each file of a mirror's folder, and then the whole: what passes its checks one by one may not load."""
    fetched = []

    def fetch(archive, target, *, url, **more):
        fetched.append((target, url))
        return target / archive.file

    def damaged(name, *places):
        raise ValueError(f"{name} of {[place.name for place in places]} cannot be loaded")

    monkeypatch.setattr(datasets, "fetch", fetch)
    monkeypatch.setattr(datasets, "load_found", damaged)
    for mirror in "https://mirror/data", "https://mirror/data/":
        assert command.main(["fetch", "sarcos", "--data-dir", str(tmp_path), "--url", mirror]) == 2
        assert capsys.readouterr() == ("", "error: sarcos of ['sarcos_inv.mat', 'sarcos_inv_test.mat'] cannot be loaded\n")
    urls = ["https://mirror/data/sarcos_inv.mat", "https://mirror/data/sarcos_inv_test.mat"]
    assert fetched == [(tmp_path, url) for url in urls] * 2


def test_ctrl_c(monkeypatch, capsys):
    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "fetch", stopped)
    monkeypatch.setattr(datasets, "load", stopped)
    for words, said in (["fetch", "cifar10"], "stopped; what had not come whole was not kept\n"), (["show", "cifar10"], "stopped\n"):
        assert command.main(words) == 130 and capsys.readouterr() == ("", said)


@pytest.fixture
def zipped(tmp_path):
    """A small zip in the layout of Tiny ImageNet, with members that nobody asked for and some that point outside."""
    packed = tmp_path / "box.zip"
    with zipfile.ZipFile(packed, "w") as box:
        for name in ("box/names.txt", "box/train/a/images/1.JPEG", "box/train/b/images/2.JPEG", "box/train/a/boxes.txt", "box/test/3.JPEG",
                     "box/train/../images/4.JPEG", "box/train/../../images/5.JPEG", "../outside.txt", "/box/train/c/images/6.JPEG",
                     "box/train/..\\x/images/7.JPEG", "box/train/a/images/deep/8.JPEG", "box/train/./images/9.JPEG"):
            box.writestr(name, name)
    raw = packed.read_bytes()
    return packed, Archive("https://example.org/box.zip", len(raw), None, "box", ("train/*/images/*.JPEG", "names.txt"),
                           md5=hashlib.md5(raw).hexdigest())


@pytest.mark.parametrize("kind", ["archive", "zipped"])
def test_what_a_killed_unpacking_leaves_is_hidden(kind, request, tmp_path, monkeypatch):
    packed, spec = request.getfixturevalue(kind)
    replace_file, parts = os.replace, []

    def seen(old, new):
        parts.append((old, new))
        replace_file(old, new)

    monkeypatch.setattr(os, "replace", seen)
    folder = datasets.fetch(spec, tmp_path / "data", url=packed.as_uri())
    inside = [(old, new) for old, new in parts if folder in new.parents]
    assert len(inside) >= 2 and all(old.parent == new.parent and old.name.startswith(".") for old, new in inside)


def test_fetch_zip(zipped, tmp_path):
    packed, spec = zipped
    before = {p for p in tmp_path.rglob("*")}
    folder = datasets.fetch(spec, tmp_path / "data", url=packed.as_uri())
    written = {str(p.relative_to(tmp_path)) for p in set(tmp_path.rglob("*")) - before if p.is_file()}
    assert written == {"data/box.zip", "data/box/names.txt", "data/box/train/a/images/1.JPEG", "data/box/train/b/images/2.JPEG"}
    assert (folder / "train/b/images/2.JPEG").read_text() == "box/train/b/images/2.JPEG"
    (folder / "names.txt").unlink()
    datasets.fetch(spec, tmp_path / "data", url="file:///nowhere")  # the verified download is there: no network needed
    assert (folder / "names.txt").exists()


def test_fetch_zip_that_goes_wrong(zipped, tmp_path, monkeypatch, capsys):
    packed, spec = zipped
    target = tmp_path / "data"
    raw = packed.read_bytes()
    other = tmp_path / "other.zip"
    other.write_bytes(raw[:-1] + b"x")  # the right size
    with pytest.raises(ValueError, match=f"expected {spec.size} bytes with md5 {spec.md5}, got {spec.size} bytes with .*nothing was kept"):
        datasets.fetch(spec, target, url=other.as_uri())
    other.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match=f"got {spec.size - 1} bytes with"):
        datasets.fetch(spec, target, url=other.as_uri())
    assert list(target.iterdir()) == []
    with pytest.raises(ValueError, match="expected a file box/val/.*.JPEG in it"):
        datasets.fetch(replace(spec, members=("val/*.JPEG",)), target, url=packed.as_uri())
    page = tmp_path / "page.html"
    page.write_text("<html>moved</html>")
    html = replace(spec, size=18, md5=hashlib.md5(page.read_bytes()).hexdigest())
    monkeypatch.setattr(datasets, "ARCHIVES", {"tiny-imagenet": (html,)})
    assert command.main(["fetch", "tiny-imagenet", "--data-dir", str(tmp_path / "new"), "--url", page.as_uri()]) == 2
    assert capsys.readouterr().err == "error: File is not a zip file\n"


def test_official_checksums(tmp_path, capsys):
    page = tmp_path / "page"
    page.write_text("<html>moved</html>")
    for name, words in (
        ("cifar100", "expected 168513733 bytes with sha256 58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
        ("tiny-imagenet", "expected 248100043 bytes with md5 90528d7ca1a48142e341f4ef8d21d0de"),
    ):
        assert command.main(["fetch", name, "--data-dir", str(tmp_path / "d"), "--url", page.as_uri()]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err and "got 18 bytes" in err


def test_show(binary, tmp_path, capsys):
    assert command.main(["show", "cifar10", "--data-dir", str(binary.parent)]) == 0
    assert capsys.readouterr().out == (
        f"cifar10: {binary}\ntraining: 50000x3x32x32 of uint8, labels 50000 of int64\n"
        "test: 10000x3x32x32 of uint8, labels 10000 of int64\nclasses: 10; inputs: unit\nsamples: 50000 of 50000 + 10000 of 10000\n")
    assert command.main(["show", "cifar100", "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: no CIFAR-100: ") and err.count("\n") == 1
    for arguments in (["show", "cifar10", "--dedup"], ["show", "sarcos", "--dedup", "--split-test"], ["show", "mnist"], ["show"]):
        with pytest.raises(SystemExit) as caught:
            command.main(arguments)
        assert caught.value.code == 2
    run = subprocess.run([sys.executable, "-m", "npref.datasets", "show", "sarcos", "--split-test", "--data-dir", str(tmp_path)],
                         capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.startswith("error: no SARCOS: ") and run.stderr.count("\n") == 1
