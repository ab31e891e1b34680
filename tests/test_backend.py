import os
import subprocess
import sys
import types

import numpy as np
import pytest

from npref import BackendUnavailable, array_module, get_backend, synchronize, to_host
from npref.backend import to_host_later


def test_numpy():
    backend = get_backend("numpy")
    assert backend.name == "numpy" and backend.xp is np and "cores" in backend.device
    x = np.ones(3)
    assert array_module(x, None, x) is np and to_host(x) is x
    synchronize(np)


def test_unknown_backend():
    with pytest.raises(ValueError, match="unknown backend 'torch': expected one of numpy, cupy"):
        get_backend("torch")


def test_array_module(fake_cupy):
    gpu, cpu = fake_cupy.asarray(np.ones(3)), np.ones(3)
    assert array_module(gpu) is fake_cupy and array_module(None, gpu) is fake_cupy
    with pytest.raises(TypeError, match=r"NumPy and CuPy arrays are mixed.*numpy.ndarray.*cupy.ndarray"):
        array_module(gpu, cpu)
    words = "expected numpy.ndarray or cupy.ndarray arguments, got builtins.list; numpy.asarray turns lists into arrays$"
    with pytest.raises(TypeError, match=words):
        array_module([1, 2])
    with pytest.raises(TypeError, match="got no array$"):
        array_module(None)
    assert np.array_equal(to_host(gpu), cpu)
    synchronize(fake_cupy)
    assert fake_cupy.counts["synchronize"] == 1


def test_mixed_arrays_are_refused_by_the_rules(fake_cupy):
    from npref import Dense, Network, bp_update, init_params

    network = Network((2,), (Dense(2, activation="identity"),))
    params = init_params(network, dtype="float64")
    with pytest.raises(TypeError, match="mixed"):
        bp_update(network, params, fake_cupy.asarray(np.ones((1, 2))), fake_cupy.asarray(np.ones((1, 2))))


def test_cupy_that_works(fake_cupy):
    backend = get_backend("cupy")
    assert (backend.name, backend.xp, backend.device) == ("cupy", fake_cupy, "stand-in device")


def broken(monkeypatch, fake, **changes):
    module = types.ModuleType("cupy")
    module.__getattr__ = lambda name: changes[name] if name in changes else getattr(fake, name)
    monkeypatch.setitem(sys.modules, "cupy", module)
    with pytest.raises(BackendUnavailable) as caught:
        get_backend("cupy")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cuda(fake, count):
    runtime = types.SimpleNamespace(getDeviceCount=count, getDeviceProperties=fake.cuda.runtime.getDeviceProperties)
    return types.SimpleNamespace(runtime=runtime, Device=fake.cuda.Device)


def raising(error):
    def function(*args, **kwargs):
        raise error
    return function


def test_cupy_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import then raises ModuleNotFoundError
    with pytest.raises(BackendUnavailable, match="not installed: pip install cupy-cuda12x"):
        get_backend("cupy")


@pytest.mark.parametrize("text, words", [
    ("import a_library_of_cupys", "a library it needs is missing .*a_library_of_cupys"),
    ("raise ImportError('\\n====\\nlibcublas.so.12: cannot open shared object file\\nmore')", r"missing \(libcublas.so.12: cannot open"),
])
def test_cupy_that_cannot_be_imported(monkeypatch, tmp_path, text, words):
    (tmp_path / "cupy.py").write_text(text)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailable, match=words):
        get_backend("cupy")


def test_the_cause_in_cupys_own_import_error_is_shown(monkeypatch, tmp_path):
    text = "=====\\nFailed to import CuPy.\\n\\nlong advice\\n\\nOriginal error:\\n  ImportError: libfoo.so\\n===="
    test_cupy_that_cannot_be_imported(monkeypatch, tmp_path, f"raise ImportError('{text}')", r"missing \(ImportError: libfoo.so\)")


def test_no_driver_no_device_no_library(monkeypatch, fake_cupy):
    error = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    assert "no working NVIDIA driver (cudaErrorInsufficientDriver" in broken(monkeypatch, fake_cupy, cuda=cuda(fake_cupy, raising(error)))
    assert "no CUDA device" in broken(monkeypatch, fake_cupy, cuda=cuda(fake_cupy, lambda: 0))
    hidden = RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    assert "no CUDA device: check nvidia-smi" in broken(monkeypatch, fake_cupy, cuda=cuda(fake_cupy, raising(hidden)))
    full = MemoryError("Out of memory allocating 1,048,576 bytes (allocated so far: 0 bytes).")
    assert "the GPU has no memory left (Out of memory allocating 1,048,576" in broken(monkeypatch, fake_cupy, zeros=raising(full))
    missing = OSError("libnvrtc.so.12: cannot open shared object file")
    assert "a CUDA library (NVRTC, cuBLAS) is missing or does not fit (libnvrtc" in broken(monkeypatch, fake_cupy, zeros=raising(missing))


def test_reduced_precision_is_refused(monkeypatch, fake_cupy):
    truncated = types.SimpleNamespace(get=lambda: np.ones((512, 512), dtype=np.float32))
    sheet = type("A", (), {"__add__": lambda self, other: self, "__matmul__": lambda self, other: truncated})()
    assert "reduced precision (TF32)" in broken(monkeypatch, fake_cupy, zeros=lambda *a, **k: sheet)


def test_reduced_precision_by_environment_is_refused(monkeypatch, fake_cupy):
    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.raises(BackendUnavailable, match="unset CUPY_TF32"):
        get_backend("cupy")


def test_import_needs_neither_cupy_nor_hdf5_nor_plotting():
    code = "import sys, npref; print([m for m in ('cupy', 'h5py', 'matplotlib', 'tqdm', 'scipy', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_backend_py_alone_names_cupy():
    from conftest import ROOT

    named = [path.name for path in (ROOT / "npref").glob("*.py")
             if any("import cupy" in line or "cupy." in line or '"cupy"' in line for line in path.read_text().splitlines())]
    assert named == ["backend.py"]


def check_later(xp):
    x = xp.asarray(np.arange(6.0).reshape(2, 3))
    first = to_host_later(x)
    x *= 2
    second = to_host_later(x)
    assert second().tolist() == [[0, 2, 4], [6, 8, 10]] and first().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_comes_to_the_host_later_is_what_was_asked_for(fake_cupy):
    check_later(fake_cupy)
    x = np.ones(3)
    assert to_host_later(x)() is x


def test_what_comes_to_the_host_later_on_a_gpu(real_cupy):
    check_later(real_cupy)


def run_python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept | environment).stdout.split()


def test_arrays_that_compute_otherwise_are_refused():
    for a in (np.ma.masked_array(np.ones(2), [True, False]), np.ones((1, 1)).view(np.matrix)):
        with pytest.raises(TypeError, match="expected a plain array, got numpy.(MaskedArray|matrix): use its filled"):
            array_module(np.ones(2), a)


def test_what_only_comes_from_numpy_is_no_array():
    for other in np.random.default_rng(0), np.dtype("f4"):
        with pytest.raises(TypeError, match="expected numpy.ndarray or cupy.ndarray arguments, got numpy"):
            array_module(np.ones(2), other)
    assert array_module(np.ones(2), np.float32(1)) is np  # a 0-d result


def test_the_threads_of_openblas_are_told_not_to_spin_unless_the_user_says_otherwise():
    code = "import os, sys, npref; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    assert run_python(code) == ["4"] and run_python(code, OPENBLAS_THREAD_TIMEOUT="26") == ["26"]
