"""NumPy or CuPy. The only file of npref that names CuPy.

Functions elsewhere take the array module from their arguments, once, at the top (`xp = array_module(x, W)`), and are
then one text for both. Data enters a device by `backend.xp.asarray` and leaves it by `to_host` or `to_host_later`, nowhere else.
"""

import ctypes
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

# OpenBLAS reads this as NumPy loads it: how long, as a power of two of clock ticks, its threads spin for the next product. By default
# (26) that is tens of milliseconds, on cores that are wanted for elementwise work by then. It has no effect where NumPy was imported
# before npref.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

import numpy as np

BACKENDS = ("numpy", "cupy")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
# delta L is a small difference of two losses; TF32's 10-bit mantissa buries it at sigma = 1e-3.
REDUCED_PRECISION = ("CuPy multiplies float32 matrices in reduced precision (TF32), which buries the loss differences: "
                     "unset CUPY_TF32 and start again")
NO_DEVICE = "CuPy is installed, but there is no CUDA device: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --backend numpy"


class BackendUnavailable(RuntimeError):
    """The asked-for backend cannot work on this machine; the message says why and what to install."""


@dataclass(frozen=True)
class Backend:
    """`name` ("numpy" or "cupy"), the array module `xp`, and `device`, the hardware in words."""

    name: str
    xp: ModuleType
    device: str


def get_backend(name: str = "numpy") -> Backend:
    """The backend called `name`.

    Raises ValueError for an unknown name, and BackendUnavailable when CuPy is not installed, finds no driver or no
    device, misses a CUDA library, or multiplies float32 matrices in reduced precision. Never falls back to NumPy.
    """
    if name == "numpy":
        return Backend("numpy", np, f"{_cpu_name()}, {os.cpu_count()} cores")
    if name == "cupy":
        return _probe_cupy()
    raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}")


def array_module(*arrays) -> ModuleType:
    """NumPy or CuPy, whichever the given arrays belong to (None is skipped).

    Raises TypeError when they are mixed, or when one is neither.
    """
    return _module_of(frozenset(type(a) for a in arrays if a is not None))


@lru_cache
def _module_of(types):
    kinds = {t.__module__.partition(".")[0]: t for t in types}
    if kinds.keys() == {"numpy"}:
        return np
    if kinds.keys() == {"cupy"}:
        return sys.modules["cupy"]
    if kinds.keys() == {"numpy", "cupy"}:
        raise TypeError("NumPy and CuPy arrays are mixed: expected all numpy.ndarray or all cupy.ndarray; "
                        "move them with backend.xp.asarray(x) or npref.to_host(x)")
    names = ", ".join(sorted(f"{t.__module__}.{t.__qualname__}" for t in kinds.values())) or "no array"
    raise TypeError(f"expected numpy.ndarray or cupy.ndarray arguments, got {names}")


def to_host(x) -> np.ndarray:
    """x as a NumPy array, once the device has done all that was asked of it."""
    return x if array_module(x) is np else x.get()


def to_host_later(x):
    """A function without arguments that waits for x, as what has been asked of the device so far leaves it, and gives it as NumPy's.

    `to_host`, called later, would also wait for all that has been asked of the device since then. A NumPy array is given as it is.
    """
    xp = array_module(x)
    if xp is np:
        return lambda: x
    on_host = np.frombuffer(xp.cuda.alloc_pinned_memory(x.nbytes), dtype=x.dtype, count=x.size).reshape(x.shape)
    x.get(out=on_host, blocking=False)
    copied = xp.cuda.Event()
    copied.record()

    def wait():
        copied.synchronize()
        return on_host

    return wait


def synchronize(xp: ModuleType) -> None:
    """Wait until the device has done all that was asked of it (nothing to do on NumPy)."""
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()


def cache_block(xp: ModuleType) -> int:
    """How many elements an elementwise loop should take at a time: a CPU's share of its cache, or all on a GPU.

    A megabyte of float32. Between two operations a thread waits for Python's lock; each must last long enough to make up for that.
    """
    return 1 << 18 if xp is np else sys.maxsize


def samples_budget(xp: ModuleType) -> int:
    """How many bytes the noise samples that are held at a time should take (`rules.group_size`): 128 MiB; on a GPU 2 GiB, but no more than
    an eighth of its memory, as it is as fast for large arrays, and every group of noise samples has its launches.
    """
    return 128 << 20 if xp is np else min(2 << 30, _device_memory(xp) // 8)


@lru_cache
def _device_memory(xp):
    _, total = xp.cuda.Device().mem_info
    return total


def cores() -> int:
    """How many threads share elementwise work on the CPU: what OPENBLAS_, MKL_ or OMP_NUM_THREADS says, else every core."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdecimal() and int(os.environ[name]) > 0:
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_blocks(xp: ModuleType, function, n: int, width: int = 1) -> None:
    """function(blocks), where blocks is a list of consecutive slices; all lists together cover range(n), whose items have `width` numbers.

    On a CPU a slice stays in the cache for all that is done to it, and the slices are shared out among the cores, as far as there are
    enough: functions write to their own only (NumPy computes without Python's lock). On a GPU there is one slice. No result depends
    on the division. An error on any thread is raised once all have ended.
    """
    if xp is not np:
        return function([slice(0, n)]) if n else None
    size = max(1, cache_block(xp) // max(1, width))
    blocks = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    workers = min(cores(), len(blocks))
    if workers <= 1:
        if blocks:
            function(blocks)
        return
    parts = [blocks[w * len(blocks) // workers : (w + 1) * len(blocks) // workers] for w in range(workers)]
    others = []
    try:
        for part in parts[1:]:
            try:
                others.append(_threads(workers - 1).submit(copy_context().run, function, part))  # the context has np.errstate
            except RuntimeError:  # no more threads to be had, as when the interpreter is shutting down
                function(part)
        function(parts[0])
    finally:
        wait(others)
    for other in others:
        other.result()


def elementwise(xp: ModuleType, function, arrays, numbers=()) -> None:
    """function(*arrays, *numbers), which writes to arrays element by element: on a CPU by `in_blocks`, on a GPU `fused`.

    A block is a range of the last axis but one, which all arrays share; one may be None.
    """
    if xp is not np:
        fused(xp, function)(*arrays, *numbers)
        return

    def apply(blocks):
        for b in blocks:
            function(*(None if a is None else a[..., b, :] for a in arrays), *numbers)

    n = arrays[0].shape[-2]
    in_blocks(xp, apply, n, arrays[0].size // max(n, 1))


def fused(xp: ModuleType, function):
    """`function`, elementwise on arrays and numbers, as one kernel on a GPU; on a CPU as it is.

    To launch a kernel takes Python longer than a GPU needs for most arrays here. CuPy traces the function once for each combination of
    dtypes, dimensions and None: it may write to x[...], in place and with `out`, and end in one sum. Numbers are to be Python's and to
    meet arrays only: between two of them CuPy would compute in half precision. (CuPy 13 with NumPy 2 computes in float64 what meets them.)
    """
    return function if xp is np else _kernel(xp, function)


def contract(xp: ModuleType, subscripts: str, a, b):
    """einsum(subscripts, a, b) of arrays whose letters stand in one order, all of them in b's, and one of which is summed over.

    CuPy's own einsum makes a batch of tiny matrix products of them.
    """
    if xp is np:
        return np.einsum(subscripts, a, b)
    operands, kept = subscripts.split("->")
    of_a, of_b = operands.split(",")
    (axis,) = (i for i, letter in enumerate(of_b) if letter not in kept)
    if of_a != of_b:
        a = a.reshape([n if letter in of_a else 1 for letter, n in zip(of_b, b.shape)])
    if b.shape[axis] == 1:
        return (a * b).reshape([n for n, letter in zip(b.shape, of_b) if letter in kept])
    return fused(xp, _sum_of_products(axis))(a, b)


def mark_nonfinite(xp: ModuleType, a, mark) -> None:
    """mark, (1,) of float64 and 0 before, becomes a number that is not finite if a has such a number.

    A sum tells it on a CPU, where it may also be that the sum alone has overflowed; a GPU takes longer to launch one than this kernel.
    """
    if xp is np:
        mark[0] = a.sum()
    elif a.size > 0:
        threads = min(a.size, 1 << 18)
        _mark_kernel(xp, a.dtype.char)(((threads + 255) // 256,), (256,), (a.ravel(), np.uint64(a.size), mark))


MARK = r"""
extern "C" __global__ void mark_nonfinite(const T* a, unsigned long long n, double* mark)
{
    unsigned long long threads = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads) {
        T zero = a[i] - a[i];  // or not a number
        if (zero != zero) *mark = a[i];
    }
}
"""


@lru_cache
def _mark_kernel(xp, char):
    return xp.RawKernel(f"typedef {dict(f='float', d='double')[char]} T;\n" + MARK, "mark_nonfinite")


@lru_cache
def _sum_of_products(axis):
    def sum_of_products(a, b):
        return array_module(a).sum(a * b, axis=axis)

    return sum_of_products


@lru_cache
def _kernel(xp, function):
    return xp.fuse()(function)


def keep_freed_memory() -> None:
    """Let this process keep what its arrays free, to be used again, up to a gigabyte; for arrays below 32 MB, and with glibc.

    A training step allocates the same arrays each time. Handed back to the system they come again as zeroed pages, at up to a
    tenth of the step's time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for option, size in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)):
        mallopt(option, size)


@lru_cache
def _threads(count):
    return ThreadPoolExecutor(count, thread_name_prefix="npref")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has none of its parent's threads


def _probe_cupy() -> Backend:
    """Import CuPy and see it work: `import cupy` alone succeeds on machines without a driver."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise BackendUnavailable(f"CuPy is installed, but a library it needs is missing ({error}): "
                                     f"reinstall it, e.g. pip install --force-reinstall cupy-cuda12x") from error
        raise BackendUnavailable("CuPy is not installed: pip install cupy-cuda12x (CUDA 12) or cupy-cuda13x (CUDA 13), "
                                 "or use --backend numpy") from error
    except Exception as error:  # whatever a broken installation raises
        raise BackendUnavailable(f"CuPy is installed, but cannot be imported, a library it needs is missing ({_first_line(error)}): "
                                 "install the wheel for your CUDA version, cupy-cuda12x or cupy-cuda13x") from error
    if os.environ.get("CUPY_TF32", "0") not in ("", "0"):
        raise BackendUnavailable(REDUCED_PRECISION)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "cudaErrorNoDevice" in str(error):
            raise BackendUnavailable(NO_DEVICE) from error
        raise BackendUnavailable(f"CuPy is installed, but there is no working NVIDIA driver ({_first_line(error)}): "
                                 "install or update the driver, or use --backend numpy") from error
    if count == 0:
        raise BackendUnavailable(NO_DEVICE)
    try:
        # One elementwise kernel (needs the NVRTC compiler) and one matrix product (needs cuBLAS). 1 + 2^-12 is exact in
        # float32 and rounds to 1 in TF32, bfloat16 and float16, so the product also tells the precision.
        ones = cupy.zeros((512, 512), dtype=cupy.float32) + cupy.float32(1 + 2**-12)
        product = (ones @ cupy.eye(512, dtype=cupy.float32)).get()
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    except Exception as error:  # CuPy's own kinds among them
        if "out of memory" in str(error).lower():
            raise BackendUnavailable(f"the GPU has no memory left ({_first_line(error)}): end what else runs on it (nvidia-smi lists it), "
                                     "or use --backend numpy") from error
        raise BackendUnavailable(f"CuPy finds a device but cannot compute on it, a CUDA library (NVRTC, cuBLAS) is missing "
                                 f"or does not fit ({_first_line(error)}): pip install \"cupy-cuda12x[ctk]\"") from error
    if not (product == np.float32(1 + 2**-12)).all():
        raise BackendUnavailable(REDUCED_PRECISION)
    return Backend("cupy", cupy, device.decode() if isinstance(device, bytes) else str(device))


def _first_line(error: BaseException) -> str:
    text = str(error).rpartition("Original error:")[2]  # CuPy's import error is a page with the cause at its end
    lines = [line.strip(" =") for line in text.splitlines() if line.strip(" =")]
    return lines[0] if lines else type(error).__name__


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
