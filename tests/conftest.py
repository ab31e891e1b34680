import os

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # the tests run in parallel; set before NumPy is imported
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes most of a GPU's memory, in every one of these processes

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("random", deadline=None, max_examples=40)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]  # as `python examples/NAME.py` has it


@pytest.fixture
def handlers():
    """Whatever takes signals ({number: handler}) does so again after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, handlers):
    """A function that calls a script's `main` with words, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(main, *words):
        try:
            code = main([*map(str, words)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def run_reproduce(command, tmp_path, monkeypatch):
    """Run reproduce.py without data and recorded results."""
    import reproduce

    monkeypatch.setenv("NPREF_DATA", str(tmp_path / "none"))
    (tmp_path / "results").mkdir()
    return lambda *words: command(reproduce.main, *words, *([] if "--own" in words else ["--results", tmp_path / "results"]))


@pytest.fixture
def fake_cupy(monkeypatch):
    """A stand-in for CuPy, as strict as CuPy is; see fake_cupy.py."""
    import fake_cupy as module

    if module.COMPILER is None:
        pytest.skip("needs a C++ compiler to run the kernels' text on the CPU")
    monkeypatch.setitem(sys.modules, "cupy", module)
    module.counts.clear()
    return module


@pytest.fixture
def real_cupy():
    """CuPy on a GPU. Without one the test is skipped, or fails when NPREF_REQUIRE_GPU=1."""
    from npref.backend import BackendUnavailable, get_backend

    try:
        return get_backend("cupy").xp
    except BackendUnavailable as error:
        if os.environ.get("NPREF_REQUIRE_GPU") == "1":
            pytest.fail(f"NPREF_REQUIRE_GPU=1, but {error}")
        pytest.skip(f"needs a GPU: {error}")


@pytest.fixture(params=["fake_cupy", "real_cupy"])
def device(request):
    """The stand-in for CuPy, then CuPy itself."""
    return request.getfixturevalue(request.param)


def real_data(place, title):
    """Where the folder or file `place` of a real data set is; the test is skipped if it is not on this machine."""
    from npref import datasets

    found = datasets.find(place)
    if found is None:
        pytest.skip(f"needs {title} in $NPREF_DATA or data/")
    return found


@pytest.fixture
def cifar10_dir():
    return real_data("cifar-10-batches-bin", "CIFAR-10")


@pytest.fixture
def tiny_imagenet_dir():
    return real_data("tiny-imagenet-200", "Tiny ImageNet")


@pytest.fixture
def sarcos_test_file():
    return real_data("sarcos_inv_test.mat", "sarcos_inv_test.mat")
