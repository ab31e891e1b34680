import os
import platform
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from npref import BackendUnavailable, array_module, backend, get_backend, synchronize, to_host
from npref.backend import contract, elementwise, fused, mark_nonfinite, to_host_later


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
    with pytest.raises(TypeError, match="expected numpy.ndarray or cupy.ndarray arguments, got builtins.list"):
        array_module([1, 2])
    with pytest.raises(TypeError, match="got no array"):
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


@pytest.mark.parametrize("cores", [1, 2, 3, 7])
@pytest.mark.parametrize("n, width, size", [(10, 8, 5), (10, 40, 1), (10, 41, 1), (10, 1, 10), (0, 3, 1), (4, 0, 4), (11, 10, 4)])
def test_blocks_cover_every_item_once(cores, n, width, size, monkeypatch):
    """Consecutive slices of as many items as 40 numbers hold, shared out evenly."""
    monkeypatch.setattr(backend, "cache_block", lambda xp: 40)
    monkeypatch.setattr(backend, "cores", lambda: cores)
    lists = []
    backend.in_blocks(np, lists.append, n, width)
    lists.sort(key=lambda blocks: blocks[0].start)
    blocks = [b for part in lists for b in part]
    assert blocks == [slice(i, min(i + size, n)) for i in range(0, n, size)]
    assert len(lists) == min(cores, len(blocks))
    assert n == 0 or max(map(len, lists)) - min(map(len, lists)) <= 1


def test_blocks_run_on_several_threads_with_the_callers_error_handling(monkeypatch):
    """And an error on any of them is the caller's, once all have ended."""
    monkeypatch.setattr(backend, "cache_block", lambda xp: 1)
    monkeypatch.setattr(backend, "cores", lambda: 2)
    meet, seen, x = threading.Barrier(2, timeout=60), [], np.array([1.0, 2.0])

    def function(blocks):
        meet.wait()
        seen.append((threading.get_ident(), np.geterr()["divide"], x[blocks[0]] / 0))
        if blocks[0].start == failing:
            raise RuntimeError("broken")

    for failing in (None, 0, 1):
        with np.errstate(divide="ignore"):
            if failing is None:
                backend.in_blocks(np, function, 2)
            else:
                with pytest.raises(RuntimeError, match="broken"):
                    backend.in_blocks(np, function, 2)
    assert len(seen) == 6 and len({thread for thread, *_ in seen}) == 2 and {state for _, state, _ in seen} == {"ignore"}


def test_an_error_is_raised_once_every_thread_has_ended(monkeypatch):
    monkeypatch.setattr(backend, "cache_block", lambda xp: 1)
    monkeypatch.setattr(backend, "cores", lambda: 3)
    ended, failed = [], threading.Event()

    def function(blocks):
        if blocks[0].start == 1:
            failed.set()
            raise RuntimeError("broken")
        assert failed.wait(60)
        time.sleep(0.05)
        ended.append(blocks[0].start)

    with pytest.raises(RuntimeError, match="broken"):
        backend.in_blocks(np, function, 3)
    assert sorted(ended) == [0, 2]


def test_without_more_threads_the_caller_does_it_all(monkeypatch):
    class Full:
        def submit(self, *arguments):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(backend, "_threads", lambda count: Full())
    monkeypatch.setattr(backend, "cache_block", lambda xp: 1)
    monkeypatch.setattr(backend, "cores", lambda: 3)
    done = []
    backend.in_blocks(np, done.extend, 5)
    assert sorted(b.start for b in done) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("subscripts, shapes", [
    ("kb,kbn->bn", ((3, 4), (3, 4, 5))), ("kbn,kbn->kb", ((3, 4, 5), (3, 4, 5))), ("mi,mi->i", ((6, 2), (6, 2)))])
def test_contractions_are_those_of_einsum(fake_cupy, subscripts, shapes):
    a, b = (np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(shapes))
    expected = np.einsum(subscripts, a, b)
    assert np.array_equal(contract(np, subscripts, a, b), expected)
    assert np.allclose(contract(fake_cupy, subscripts, fake_cupy.asarray(a), fake_cupy.asarray(b)).get(), expected, rtol=1e-14)


def check_marks(xp, n, dtype):
    a = np.linspace(-1, 1, n).astype(dtype)
    marks = xp.zeros(6)
    for i, value in enumerate((0, np.inf, -np.inf, np.nan, np.nan)):
        a[[0, n // 2, n - 1, min(1 << 18, n - 1), 0][i]] = value  # the kernel has 2^18 threads
        mark_nonfinite(xp, xp.asarray(a), marks[i : i + 1])
        a[:] = 1
    assert np.isfinite(to_host(marks)).tolist() == [True, False, False, False, False, True]
    if xp is not np:  # it is elements that are looked at, and no sum
        mark = xp.zeros(1)
        mark_nonfinite(xp, xp.asarray(np.full(300, np.finfo(dtype).max, dtype)), mark)
        mark_nonfinite(xp, xp.asarray(np.ones(0, dtype)), mark)
        assert to_host(mark).tolist() == [0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 300, 600_000])
def test_numbers_that_are_not_finite_are_marked(fake_cupy, n, dtype):
    check_marks(np, n, dtype)
    check_marks(fake_cupy, n, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 300, 600_000])
def test_numbers_that_are_not_finite_are_marked_on_a_gpu(real_cupy, n, dtype):
    check_marks(real_cupy, n, dtype)


@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize("device", [False, True])
def test_an_elementwise_function_reaches_every_element_once(fake_cupy, monkeypatch, device, block):
    def add(x, nothing, y, number):
        assert nothing is None
        x += number * y

    monkeypatch.setattr(backend, "cache_block", lambda xp: block)
    xp, rng = fake_cupy if device else np, np.random.default_rng(0)
    x, y = rng.normal(size=(3, 20, 5)), rng.normal(size=(20, 5))
    x_there = xp.asarray(x.copy())
    elementwise(xp, add, (x_there, None, xp.asarray(y)), (2.0,))
    assert np.array_equal(to_host(x_there), x + 2 * y)


def test_a_fused_function_is_itself_on_a_cpu_and_one_kernel_on_a_device(fake_cupy):
    def add(x, y, number):
        x += y * number

    assert fused(np, add) is add
    kernel = fused(fake_cupy, add)
    assert kernel is fused(fake_cupy, add) is not add, "or it would be compiled again and again"
    x = fake_cupy.asarray(np.ones(3))
    kernel(x, fake_cupy.asarray(np.arange(3.0)), 2.0)
    assert x.get().tolist() == [1, 3, 5]


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


def test_a_device_gets_one_block(fake_cupy):
    lists = []
    backend.in_blocks(fake_cupy, lists.append, 10**9, 10**9)
    assert lists == [[slice(0, 10**9)]]


def test_cores_are_those_that_blas_may_use(monkeypatch):
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert 1 <= backend.cores() <= os.cpu_count()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert backend.cores() == 5
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    assert backend.cores() == 4
    monkeypatch.delenv("MKL_NUM_THREADS")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert backend.cores() == 3
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "many")
    assert backend.cores() == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, numpy as np
from npref import backend
backend.cache_block, backend.cores = (lambda xp: 1), (lambda: 2)
backend.in_blocks(np, lambda blocks: None, 4)
child = os.fork()
backend.in_blocks(np, lambda blocks: None, 4)
if child:
    print(os.waitpid(child, 0)[1])
else:
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr


def run_python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept | environment).stdout.split()


def test_the_threads_of_openblas_are_told_not_to_spin_unless_the_user_says_otherwise():
    code = "import os, sys, npref; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    assert run_python(code) == ["4"] and run_python(code, OPENBLAS_THREAD_TIMEOUT="26") == ["26"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    """20 MB, freed, stay with the process: in use beside what was there before, as the kernel counts it."""
    code = """
import os
import numpy as np
from npref.backend import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
keep_freed_memory()
before = resident()
a = np.ones(20 * 10**6, dtype=np.uint8)
del a
print(resident() - before)
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs Linux's /proc")
    assert int(run_python(code)[0]) > 15 * 10**6
    assert int(run_python(code.replace("\nkeep_freed_memory()", ""))[0]) < 5 * 10**6


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError("no such library")
    monkeypatch.setattr(backend.ctypes, "CDLL", missing)
    backend.keep_freed_memory()
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: object())
    backend.keep_freed_memory()
