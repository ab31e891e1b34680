import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.io import savemat

from npref import datasets, noise
from npref.datasets import SARCOS_TEST, SARCOS_TRAIN
from npref.datasets import __main__ as command
from npref.datasets.sarcos import _leak

TRAIN, TEST = (44_484, 28), (4_449, 28)
NO_CHECKSUM = replace(SARCOS_TEST, size=None, sha256=None)


@pytest.fixture(scope="module")
def rows():
    """Made-up rows: test rows 0 to 2 are training rows too, row 0 twice; row 3 but for its last torque."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=TRAIN), rng.normal(size=TEST)
    train[[5, 77, 9, 40_000]] = test[[0, 0, 1, 2]]
    train[6] = test[3]
    train[6, 27] += 1
    return train, test


@pytest.fixture(scope="module")
def files(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sarcos")
    savemat(folder / "sarcos_inv.mat", {"sarcos_inv": rows[0]})
    save_test_file(folder, rows[1])
    return folder


def save_test_file(folder, rows):
    """A test file with these rows, and the record of its sha256: it is not the official one."""
    path = folder / "sarcos_inv_test.mat"
    savemat(path, {"sarcos_inv_test": rows})
    record(path)


def record(path):
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_test_file_is_held_against_the_official_ones_checksum(files, rows, tmp_path):
    shutil.copy(files / "sarcos_inv_test.mat", tmp_path)
    for name in "sarcos-split-test", "sarcos":
        shutil.copy(files / "sarcos_inv.mat", tmp_path)
        size = (tmp_path / "sarcos_inv_test.mat").stat().st_size
        with pytest.raises(ValueError, match=f"sarcos_inv_test.mat: expected sha256 {SARCOS_TEST.sha256}, as the official file of 996776 "
                                             f"bytes has, got {size} bytes with [0-9a-f]+; get it again with .* fetch sarcos-split-test"):
            datasets.load(name, tmp_path)


def test_a_test_file_that_is_not_the_official_one_is_not_even_read(files, tmp_path, monkeypatch):
    """A wrong type in its header would end Python itself."""
    raw = bytearray((files / "sarcos_inv_test.mat").read_bytes())
    raw[192] = 0
    (tmp_path / "sarcos_inv_test.mat").write_bytes(raw)
    monkeypatch.setattr("npref.datasets.sarcos.read_matrix", lambda *arguments: 1 / 0)
    with pytest.raises(ValueError, match="as the official file of 996776 bytes has, got"):
        datasets.load("sarcos-split-test", tmp_path)


def test_layout(files, rows):
    data = datasets.load("sarcos", files)
    assert np.array_equal(np.hstack([data.x_train, data.y_train]), rows[0]) and np.array_equal(data.x_test, rows[1][:, :21])
    assert data.x_train.shape == (44_484, 21) and data.y_test.shape == (4_449, 7) and data.x_train.flags.c_contiguous
    assert (data.name, data.classes, data.inputs, data.regression) == ("sarcos", 7, "raw", True)
    assert data.completeness == "44484 of 44484 + 4449 of 4449"
    assert "3 of 4449 test rows stand verbatim among the 44484 training rows" in data.source and str(files) in data.source
    assert datasets.load("sarcos", files, 10, 5).completeness == "10 of 44484 + 5 of 4449"
    with pytest.raises(ValueError, match="limit_test must be between 1 and 4449, the size of sarcos"):
        datasets.load("sarcos", files, limit_test=4_450)


def test_every_test_row_counts_that_stands_among_the_training_rows():
    train, test = np.zeros((2, 28)), np.zeros((4, 28))
    test[3] = 1
    assert _leak(train, test) == "3 of 4 test rows stand verbatim among the 2 training rows"


def test_dedup(files, rows):
    data = datasets.load("sarcos-dedup", files)
    kept = np.delete(rows[0], [5, 77, 9, 40_000], axis=0)
    assert np.array_equal(np.hstack([data.x_train, data.y_train]), kept) and np.array_equal(data.y_test, rows[1][:, 21:])
    assert data.completeness == "44480 of 44484 + 4449 of 4449" and data.name == "sarcos-dedup"
    assert "3 of 4449 test rows" in data.source and "the 4 training rows that are test rows are left out" in data.source


def test_split_of_the_test_file(rows, tmp_path):
    order = noise.permutation(0, 0, 4_449)
    doubled = rows[1].copy()
    doubled[order[3_559]] = doubled[order[7]]  # one of the test part is in the training part
    doubled[order[4_000]] = doubled[order[4_001]]  # both in the test part: nothing leaks
    save_test_file(tmp_path, doubled)
    data = datasets.load("sarcos-split-test", tmp_path)
    assert np.array_equal(data.x_train, doubled[order[:3_559], :21]) and np.array_equal(data.y_test, doubled[order[3_559:], 21:])
    assert len(data.x_train) == 3_559 and len(data.x_test) == 890 and data.name == "sarcos-split-test"
    assert "the official test file alone" in data.source and "not the official split" in data.source
    assert "1 of 890 test rows stand verbatim among the 3559 training rows" in data.source
    assert data.completeness == "3559 of 44484 + 890 of 4449"
    with pytest.raises(FileNotFoundError, match="expected the file sarcos_inv.mat .* or use sarcos-split-test, which needs"):
        datasets.load("sarcos", tmp_path)


def test_a_training_file_of_test_rows_alone(rows, files, tmp_path):
    (tmp_path / "sarcos_inv_test.mat").symlink_to(files / "sarcos_inv_test.mat")
    (tmp_path / "sarcos_inv_test.mat.sha256").symlink_to(files / "sarcos_inv_test.mat.sha256")
    savemat(tmp_path / "sarcos_inv.mat", {"sarcos_inv": rows[1][np.arange(44_484) % 4_449]})
    with pytest.raises(ValueError, match="sarcos_inv.mat: every row is a test row too; get it again with .* fetch sarcos --data-dir"):
        datasets.load("sarcos-dedup", tmp_path)


def matrix(value, name="sarcos_inv_test"):
    return lambda path, rows: savemat(path, {name: value(rows)})


@pytest.mark.parametrize("spoil, words", [
    (lambda path, rows: path.write_text("<html>404</html>"), "expected a MAT file, got one that cannot be read"),
    (lambda path, rows: path.write_text("<html>" + 100 * "<p>The page that you look for has moved.</p>\n"), "expected a MAT file"),
    (lambda path, rows: path.write_bytes(b""), "expected a MAT file, got one that cannot be read"),
    (lambda path, rows: [savemat(path, {"sarcos_inv_test": rows}), path.write_bytes(path.read_bytes()[:-1])], "expected a MAT file"),
    (lambda path, rows: [savemat(path, {"sarcos_inv_test": rows}), path.write_bytes(path.read_bytes()[:500_000])], "expected a MAT file"),
    (matrix(lambda rows: rows[:-1]), r"expected sarcos_inv_test of shape \(4449, 28\) and float64 in it, got \(4448, 28\) of float64"),
    (matrix(lambda rows: rows[:, 1:]), r"got \(4449, 27\) of float64"),
    (matrix(lambda rows: rows.astype(np.float32)), r"got \(4449, 28\) of float32"),
    (matrix(lambda rows: rows, "sarcos_inv"), "expected sarcos_inv_test .* got none"),
    (matrix(lambda rows: np.where(np.arange(28) == 3, np.nan, rows)), "expected finite numbers, got nan in row 0, column 3"),
    (matrix(lambda rows: np.where(np.arange(28) == 4, -np.inf, rows)), "expected finite numbers, got -inf in row 0, column 4"),
])
def test_damage_is_named(rows, tmp_path, spoil, words):
    """Of a file that was recorded as it is."""
    path = tmp_path / "sarcos_inv_test.mat"
    spoil(path, rows[1])
    record(path)
    with pytest.raises(ValueError, match=words) as caught:
        datasets.load("sarcos-split-test", tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert f"get it again with python -m npref.datasets fetch sarcos-split-test --data-dir {tmp_path}" in str(caught.value)


def test_damage_of_the_training_file(files, tmp_path):
    (tmp_path / "sarcos_inv_test.mat").symlink_to(files / "sarcos_inv_test.mat")
    (tmp_path / "sarcos_inv.mat").symlink_to(files / "sarcos_inv_test.mat")
    for name in ("sarcos", "sarcos-dedup"):
        with pytest.raises(ValueError, match=r"expected sarcos_inv of shape \(44484, 28\) .* got none; .* fetch sarcos --data-dir"):
            datasets.load(name, tmp_path)


def test_fetch_records_the_checksum(files, rows, tmp_path, monkeypatch, capsys):
    target, mirror = tmp_path / "data", files.as_uri()
    monkeypatch.setattr(datasets, "ARCHIVES", {"sarcos": (SARCOS_TRAIN, NO_CHECKSUM), "sarcos-split-test": (NO_CHECKSUM,)})
    assert command.main(["fetch", "sarcos", "--data-dir", str(target), "--url", mirror + "/"]) == 0
    assert capsys.readouterr().out == f"sarcos: verified, in {target / 'sarcos_inv.mat'} and {target / 'sarcos_inv_test.mat'}\n"
    names = ["sarcos_inv.mat", "sarcos_inv.mat.sha256", "sarcos_inv_test.mat", "sarcos_inv_test.mat.sha256"]
    assert sorted(p.name for p in target.iterdir()) == names
    digest = hashlib.sha256((files / "sarcos_inv.mat").read_bytes()).hexdigest()
    assert (target / "sarcos_inv.mat.sha256").read_text() == f"{digest}  sarcos_inv.mat\n"
    assert command.main(["fetch", "sarcos", "--data-dir", str(target), "--url", "file:///nowhere"]) == 0  # both are there
    assert command.main(["show", "sarcos", "--data-dir", str(target)]) == 0
    assert "samples: 44484 of 44484 + 4449 of 4449" in capsys.readouterr().out
    changed = rows[1] + 1
    savemat(target / "sarcos_inv_test.mat", {"sarcos_inv_test": changed})  # nothing but the record tells
    with pytest.raises(ValueError, match="expected sha256 .*, as .*sarcos_inv_test.mat.sha256 records, got .* fetch sarcos-split-test"):
        datasets.load("sarcos", target)
    assert command.main(["show", "sarcos", "--split-test", "--data-dir", str(target)]) == 2
    assert command.main(["fetch", "sarcos-split-test", "--data-dir", str(target), "--url", mirror]) == 0
    assert datasets.load("sarcos", target).fingerprint() == datasets.load("sarcos", files).fingerprint()
    train_record = target / "sarcos_inv.mat.sha256"
    train_record.write_text(train_record.read_text().upper())  # as other tools write it
    before = train_record.stat()
    assert command.main(["fetch", "sarcos", "--data-dir", str(target), "--url", "file:///nowhere"]) == 0
    assert (train_record.stat().st_mtime_ns, train_record.stat().st_ino) == (before.st_mtime_ns, before.st_ino)  # left alone
    train_record.write_text("")
    with pytest.raises(ValueError, match="sarcos_inv.mat.sha256: expected 64 hexadecimal digits"):
        datasets.load("sarcos", target)
    test_record = target / "sarcos_inv_test.mat.sha256"
    test_record.write_text("")
    monkeypatch.setattr(datasets, "ARCHIVES", {"sarcos-split-test": (replace(NO_CHECKSUM, sha256=hashlib.sha256(
        (target / "sarcos_inv_test.mat").read_bytes()).hexdigest()),)})
    assert command.main(["fetch", "sarcos-split-test", "--data-dir", str(target), "--url", "file:///nowhere"]) == 0
    assert test_record.read_text().endswith("  sarcos_inv_test.mat\n")  # written anew, as it was no record


def test_fetch_that_goes_wrong(files, rows, tmp_path, monkeypatch, capsys):
    target, mirror = tmp_path / "data", tmp_path / "mirror"
    mirror.mkdir()

    def fetch(name="sarcos-split-test", url=None):
        assert command.main(["fetch", name, "--data-dir", str(target), "--url", url or mirror.as_uri()]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    (mirror / "sarcos_inv_test.mat").write_bytes((files / "sarcos_inv_test.mat").read_bytes())  # not the official one
    assert "with sha256 161a59b5c3b4f4b404584323f181607b2acbe620eb134dc720760dc3f38f5cec, got " in fetch()
    assert "expected 996776 bytes" in fetch()
    (mirror / "sarcos_inv.mat").write_text("<html>404</html>")
    assert "sarcos_inv.mat: expected a MAT file" in fetch("sarcos") and "nothing was kept" in fetch("sarcos")
    assert "names the folder that holds sarcos_inv_test.mat" in fetch(url="https://example.org/sarcos_inv_test.mat")
    assert "cannot download file:///nowhere/sarcos_inv_test.mat" in fetch(url="file:///nowhere")
    assert list(target.iterdir()) == []
    monkeypatch.setattr(datasets, "ARCHIVES", {"sarcos-split-test": (NO_CHECKSUM,)})
    target.joinpath("sarcos_inv_test.mat").write_text("<html>404</html>")  # put there by hand, and no MAT file
    assert command.main(["fetch", "sarcos-split-test", "--data-dir", str(target), "--url", mirror.as_uri()]) == 0
    capsys.readouterr()
    target.joinpath("sarcos_inv_test.mat").unlink()
    savemat(mirror / "sarcos_inv_test.mat", {"sarcos_inv_test": rows[1] + 1})
    err = fetch()
    assert "expected a file with sha256" in err and "or remove " in err and "if the official file has changed" in err
    (mirror / "sarcos_inv_test.mat").write_bytes(b"x")
    monkeypatch.setattr("npref.datasets.download.MOST", 100)
    (mirror / "sarcos_inv_test.mat").write_bytes(b"x" * (1 << 20))
    assert "more than 100 bytes, which cannot be sarcos_inv_test.mat" in fetch()  # an endless file is not read to its end


@pytest.mark.parametrize("n", [40, 99, 101])
def test_a_download_that_ends_early_or_late(tmp_path, monkeypatch, n):
    class Answer:
        headers = {"Content-Length": "100"}
        pieces = [b"x" * n, b""]

        def read(self, n):
            return self.pieces.pop(0)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Answer())
    with pytest.raises(ConnectionError, match=f"cannot download http.*sarcos_inv.mat .{n} of 100 bytes came"):
        datasets.fetch(SARCOS_TRAIN, tmp_path, check=lambda path: None)
    assert list(tmp_path.iterdir()) == []


def test_progress_of_a_file_whose_size_the_server_tells(files, tmp_path):
    seen, size = [], (files / "sarcos_inv.mat").stat().st_size
    datasets.fetch(SARCOS_TRAIN, tmp_path, url=(files / "sarcos_inv.mat").as_uri(), check=lambda path: None,
                   report=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (size, size) and {of for _, of in seen} == {size}


def test_real_sarcos(sarcos_test_file):
    assert hashlib.sha256(sarcos_test_file.read_bytes()).hexdigest() == SARCOS_TEST.sha256
    data = datasets.load("sarcos-split-test", sarcos_test_file.parent)
    assert "0 of 890 test rows stand verbatim" in data.source
    torques = np.vstack([data.y_train, data.y_test])
    assert 20 < torques[:, 0].std() < 21 and 0.9 < torques[:, 4].std() < 1.1
