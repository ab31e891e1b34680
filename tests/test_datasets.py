import hashlib
import tarfile

import numpy as np
import pytest

from npref import datasets
from npref.datasets import CIFAR10, Archive, Dataset

FILES = CIFAR10.members[:6]


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """A folder in CIFAR-10's binary format, with made-up pixels."""
    folder = tmp_path_factory.mktemp("data") / CIFAR10.folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in FILES:
        records = rng.integers(0, 256, size=(10_000, 3073), dtype=np.uint8)
        records[:, 0] %= 10
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


@pytest.mark.parametrize("name, spoil, error, words", [
    ("data_batch_3.bin", lambda raw: None, FileNotFoundError, "data_batch_3.bin: missing; get it again"),
    ("data_batch_5.bin", lambda raw: raw[:-1], ValueError, "data_batch_5.bin: expected 30730000 bytes .* got 30729999"),
    ("test_batch.bin", lambda raw: b"<html>404</html>", ValueError, "test_batch.bin: expected 30730000 bytes .* got 16"),
    ("test_batch.bin", lambda raw: raw[:3073] + b"\x0a" + raw[3074:], ValueError, "expected labels 0 to 9, got 10 in record 1"),
])
@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_damage_is_named_and_never_hidden(binary, damaged, monkeypatch, name, spoil, error, words, dataset):
    root, replace = damaged
    replace(name, spoil((binary / name).read_bytes()))
    monkeypatch.setenv("NPREF_DATA", str(root))
    with pytest.raises(error, match=words) as caught:
        datasets.load(dataset)
    assert f"python -m npref.datasets fetch cifar10 --data-dir {root}" in str(caught.value)


def test_limits_and_fingerprint(binary):
    data = datasets.load("cifar10", binary.parent)
    small = data.limited(10, 20)
    assert len(small.x_train) == len(small.y_train) == 10 and len(small.x_test) == len(small.y_test) == 20
    assert small.fingerprint() == data.limited(10, 20).fingerprint() != data.limited(11, 20).fingerprint()
    changed = Dataset(*[getattr(small, f) for f in ("name", "source", "x_train")], (small.y_train + 1) % 10, small.x_test, small.y_test, 10)
    assert changed.fingerprint() != small.fingerprint()
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


@pytest.mark.parametrize("labels", [np.array([0, 10]), np.array([-1, 0]), np.array([0]), np.array([[0], [1]]), np.array([0.0, 1.0])])
def test_labels_that_cannot_be(labels):
    images = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match="made here: expected one label from 0 to 9 for each of 2 images"):
        Dataset("made here", "", images, labels, images, np.array([0, 1]), 10)


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
    lacking = Archive(spec.url, spec.size, spec.sha256, "box", ("a.bin", "missing.bin"))
    with pytest.raises(ValueError, match="expected a file box/missing.bin in it"):
        datasets.fetch(lacking, target, url=packed.as_uri())


def test_fetch_command(archive, tmp_path, monkeypatch, capsys):
    packed, spec = archive
    assert datasets.main(["fetch", "cifar10", "--data-dir", str(tmp_path / "d"), "--url", packed.as_uri()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "expected 170052171 bytes" in err
    assert "with sha256 c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd" in err
    monkeypatch.setattr(datasets, "ARCHIVES", {"cifar10": spec})
    monkeypatch.setattr(datasets, "load_cifar10", lambda folder: None)
    monkeypatch.setenv("NPREF_DATA", str(tmp_path / "env"))
    assert datasets.main(["fetch", "cifar10", "--url", packed.as_uri()]) == 0
    assert capsys.readouterr().out == f"cifar10: verified, in {tmp_path / 'env' / 'box'}\n"
    for arguments in (["fetch", "mnist"], ["fetch", "cifar10", "--timeout", "inf"], ["fetch", "cifar10", "--timeout", "0"]):
        with pytest.raises(SystemExit) as caught:
            datasets.main(arguments)
        assert caught.value.code == 2
