"""How work on arrays is carried out: on a CPU in blocks that stay in the cache, on all cores; on a GPU in few kernels."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import lru_cache, partial
from threading import Barrier
from types import ModuleType

import numpy as np

from .backend import array_module

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
# How many elements an elementwise loop on a CPU takes at a time: a megabyte of float32, a core's share of the cache. Between two operations
# a thread waits for Python's lock; each must last long enough to make up for that.
CACHE_BLOCK = 1 << 18
C_TYPES = {"f": "float", "d": "double"}  # by dtype.char


@lru_cache
def samples_budget(xp: ModuleType) -> int:
    """How many bytes the noise samples that are held at a time should take (`rules.group_size`): 128 MiB; on a GPU 2 GiB, but no more than
    an eighth of its memory, as it is as fast for large arrays, and every group of noise samples has its launches.
    """
    return 128 << 20 if xp is np else min(2 << 30, xp.cuda.Device().mem_info[1] // 8)


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
    size = max(1, CACHE_BLOCK // max(1, width))
    if xp is not np or n <= size:
        if n:
            function([slice(0, n)])
        return
    blocks = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    workers = min(cores(), len(blocks))
    pool = _threads(cores() - 1) if workers > 1 else None
    if pool is None:
        function(blocks)
        return
    parts = [blocks[w * len(blocks) // workers : (w + 1) * len(blocks) // workers] for w in range(workers)]
    others = []
    try:
        for part in parts[1:]:
            try:
                others.append(pool.submit(copy_context().run, function, part))  # the context has np.errstate
            except RuntimeError:  # the interpreter is shutting down
                function(part)
        function(parts[0])
    finally:
        wait(others)
    for other in others:
        other.result()


def elementwise(xp: ModuleType, function, arrays, numbers=(), constants=()) -> None:
    """function(*constants, *arrays, *numbers), which writes to arrays element by element: on a CPU by `in_blocks`, on a GPU `fused`.

    A block is a range of the last axis but one, which all arrays share; any but the first may be None.
    """
    function = fused(xp, function, *constants)
    if xp is not np:
        function(*arrays, *numbers)
        return

    def apply(blocks):
        for b in blocks:
            function(*(None if a is None else a[..., b, :] for a in arrays), *numbers)

    n = arrays[0].shape[-2]
    in_blocks(xp, apply, n, arrays[0].size // max(n, 1))


@lru_cache
def fused(xp: ModuleType, function, *constants):
    """function(*constants, ...) as a function of arrays and numbers: on a GPU one elementwise kernel, compiled for these constants.

    A launch takes Python longer than a GPU needs for most arrays here. CuPy traces the function once for each combination of dtypes,
    dimensions and None: it may write to x[...], in place or with `out`, and end in one sum. Numbers must be Python's and meet arrays
    only: between two numbers CuPy computes in half precision. (CuPy 13 with NumPy 2 computes in float64 where an array meets one.)
    """
    bound = partial(function, *constants) if constants else function
    return bound if xp is np else xp.fuse(kernel_name=function.__name__)(bound)


def weighted_sum(xp: ModuleType, weights, a, total=None):
    """Σ_k weights[k, b] a[k, b, :], added to `total` if that is given: (k, B), (k, B, n) -> (B, n)."""
    if xp is not np:  # CuPy's own einsum makes a batch of tiny matrix products
        summed = _sum_on_gpu(xp, 0, weights[..., None], a)
        if total is None:
            return summed
        total += summed
        return total
    out = np.empty(a.shape[1:], dtype=a.dtype) if total is None else total

    def fill(blocks):
        for b in blocks:
            summed = np.einsum("kb,kbn->bn", weights[:, b], a[:, b])
            out[b] = summed if total is None else out[b] + summed

    in_blocks(xp, fill, a.shape[1], a.size // max(a.shape[1], 1))
    return out


def squares(xp: ModuleType, a):
    """‖a[k, b]‖²: (k, B, n) -> (k, B)."""
    if xp is not np:
        rows = a.reshape(-1, a.shape[-1])  # CuPy launches a sum over rows sooner
        return _sum_on_gpu(xp, 1, rows, rows).reshape(a.shape[:2])
    out = np.empty(a.shape[:2], dtype=a.dtype)

    def fill(blocks):
        for b in blocks:
            out[:, b] = np.einsum("kbn,kbn->kb", a[:, b], a[:, b])

    in_blocks(xp, fill, a.shape[1], a.size // max(a.shape[1], 1))
    return out


def column_squares(xp: ModuleType, x):
    """Σ_m x[m, i]²: (M, n) -> (n,)."""
    return np.einsum("mi,mi->i", x, x) if xp is np else _sum_on_gpu(xp, 0, x, x)


def _sum_on_gpu(xp, axis, a, b):
    return fused(xp, _sum_of_products, axis)(a, b) if b.shape[axis] > 1 else (a * b).reshape(b.shape[:axis] + b.shape[axis + 1 :])


def mark_nonfinite(xp: ModuleType, arrays, marks) -> None:
    """marks[i], of float64 and 0 before, becomes a number that is not finite if arrays[i] has such a number.

    A sum tells it on a CPU, where it may also be that the sum alone has overflowed. A GPU looks at all in one kernel.
    """
    if xp is np:
        for i, a in enumerate(arrays):
            marks[i] = a.sum()
        return
    for i in range(0, len(arrays), 64):  # older CUDA has 4 KiB for a kernel's arguments
        some = arrays[i : i + 64]
        threads = min(max(1, *(a.size for a in some)), 1 << 18)
        kernel = _mark_kernel(xp, "".join(a.dtype.char for a in some))
        kernel(((threads + 255) // 256,), (256,), (marks[i : i + 64], *(x for a in some for x in (a.ravel(), np.uint64(a.size)))))


MARK = r"""
template <typename T> __device__ void look(const T* a, unsigned long long n, double* mark)
{
    unsigned long long threads = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += threads) {
        T zero = a[i] - a[i];  // or not a number
        if (zero != zero) *mark = a[i];
    }
}

extern "C" __global__ void mark_nonfinite(double* marks, PARAMETERS)
{
    CALLS
}
"""


@lru_cache
def _mark_kernel(xp, chars):
    parameters = ", ".join(f"const {C_TYPES[char]}* a{i}, unsigned long long n{i}" for i, char in enumerate(chars))
    calls = " ".join(f"look(a{i}, n{i}, marks + {i});" for i in range(len(chars)))
    return xp.RawKernel(MARK.replace("PARAMETERS", parameters).replace("CALLS", calls), "mark_nonfinite")


def _sum_of_products(axis, a, b):
    return array_module(a).sum(a * b, axis=axis)


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
    """A pool of so many threads, or half as many (and so on) where the system gives no more; None where it gives none.

    All are started here: `submit` queues before it starts a thread, so work for which it could start none would still run later.
    """
    pool, started = ThreadPoolExecutor(count, thread_name_prefix="npref"), Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(started.wait)
        started.wait()
    except BaseException as error:
        started.abort()  # or those that have been started would wait without end
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, RuntimeError):
            return _threads(count // 2) if count > 1 else None
        raise
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has none of its parent's threads
