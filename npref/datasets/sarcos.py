"""SARCOS (Vijayakumar & Schaal 2000): the inverse dynamics of a seven-joint robot arm. 21 inputs, 7 torques."""

from pathlib import Path

import numpy as np

from .. import noise
from .dataset import Dataset
from .download import Archive, fetch_command, file_digest, record_path, recorded

SARCOS_TRAIN = Archive(url="http://www.gaussianprocess.org/gpml/data/sarcos_inv.mat", size=None)  # no checksum is published
SARCOS_TEST = Archive(
    url="http://www.gaussianprocess.org/gpml/data/sarcos_inv_test.mat",
    size=996_776,
    sha256="161a59b5c3b4f4b404584323f181607b2acbe620eb134dc720760dc3f38f5cec",  # measured
)
OFFICIAL = (44_484, 4_449)
ROWS = dict(zip(("sarcos_inv", "sarcos_inv_test"), OFFICIAL))


def load_sarcos(train_path, test_path, dedup=False):
    """The official files; dedup leaves out every training row that is also a test row. `source` says how many test rows are.

    Positions, velocities and accelerations of the seven joints, (n, 21), and their torques, (n, 7), all float64.
    """
    train, test = _read(train_path, "sarcos_inv"), _read(test_path, "sarcos_inv_test")
    source = f"{train_path} and {test_path}: {_leak(train, test)}"
    if dedup:
        test_rows = set(_row_bytes(test))
        keep = np.array([row not in test_rows for row in _row_bytes(train)])
        source += f"; the {np.sum(~keep)} training rows that are test rows are left out"
        train = train[keep]
        if len(train) == 0:
            raise ValueError(f"{train_path}: every row is a test row too; get it again with "
                             f"{fetch_command('sarcos', Path(train_path).parent)}")
    return _dataset("sarcos-dedup" if dedup else "sarcos", source, train, test)


def load_sarcos_split_test(test_path):
    """The official test file alone, split: in the order of noise.permutation(0, 0, n) the first 80% train, the others test."""
    rows = _read(test_path, "sarcos_inv_test")
    rows = rows[noise.permutation(0, 0, len(rows))]
    train, test = np.split(rows, [len(rows) * 4 // 5])
    source = (f"{test_path}, the official test file alone, split at random into {len(train)} training and {len(test)} test rows, which is "
              f"not the official split: {_leak(train, test)}")
    return _dataset("sarcos-split-test", source, train, test)


def _dataset(name, source, train, test):
    return Dataset(name, source, *(np.ascontiguousarray(part) for rows in (train, test) for part in (rows[:, :21], rows[:, 21:])),
                   classes=7, inputs="raw", official=OFFICIAL)


def _leak(train, test):
    seen = set(_row_bytes(train))
    return f"{sum(row in seen for row in _row_bytes(test))} of {len(test)} test rows stand verbatim among the {len(train)} training rows"


def _row_bytes(rows):
    return [row.tobytes() for row in rows]


def _read(path, variable):
    """(rows, 28) float64; verified against the recorded sha256 or, of the test file, the one above."""
    path = Path(path)
    remedy = f"get it again with {fetch_command('sarcos' if variable == 'sarcos_inv' else 'sarcos-split-test', path.parent)}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {remedy}")
    known = recorded(path)
    whose = f"as {record_path(path)} records"
    if known is None and variable == "sarcos_inv_test":
        known, whose = SARCOS_TEST.sha256, f"as the official file of {SARCOS_TEST.size} bytes has"
    if known is not None and (found := file_digest(path)) != known:  # before it is read: some damage SciPy does not survive
        raise ValueError(f"{path}: expected sha256 {known}, {whose}, got {path.stat().st_size} bytes with {found}; {remedy}")
    try:
        return read_matrix(path, variable)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from error


def read_matrix(path, variable):
    """`sarcos_inv` or `sarcos_inv_test` of a MAT file, (rows, 28) float64; ValueError if that is not what is in it."""
    from scipy.io import loadmat  # here, as it takes its time to import

    with open(path, "rb") as file:
        try:
            found = loadmat(file, variable_names=[variable]).get(variable)
        except Exception as error:  # loadmat raises nearly anything on what is no MAT file, or half of one
            text = " ".join(str(error).split())
            raise ValueError(f"expected a MAT file, got one that cannot be read ({type(error).__name__}: {text})") from error
    shape = (ROWS[variable], 28)
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype != np.float64:
        got = f"{found.shape} of {found.dtype}" if isinstance(found, np.ndarray) else "none" if found is None else type(found).__name__
        raise ValueError(f"expected {variable} of shape {shape} and float64 in it, got {got}")
    if not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise ValueError(f"expected finite numbers, got {found[row, column]} in row {row}, column {column}")
    return np.ascontiguousarray(found)
